"""What a diagnosis shows, in words: for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .credit import ALPHAS
from .diagnosis import MARGIN


COLUMNS = {
    "distinguishability": "how much the prover's values differ between next steps that the policy takes (a variance)",
    "alignment": "how much of that goes the way of the policy's own values (a covariance; below 0 it misleads)",
    "credit": "correlation of what a step is given with its true advantage, at the best alpha or at --alpha",
    "alpha": "the best weight of the progress, and the weights that keep 90 % of what it adds",
}


def describe(result: Mapping[str, Any]) -> list[str]:
    """The finding, how sure it is, and which `alpha` to set.

    Args:
        result (`Mapping[str, Any]`):
            As [`diagnose_files`] returns it.

    Returns:
        `list[str]`: Paragraphs.
    """
    chosen, use = result["recommendation"], result["params"]["use"]
    signal = "the outcome of its rollout" if use == "rl" else "the value that the verifier tells"
    start = (
        f"{result['num_problems']} problems, {result['num_states']} states that {result['base']} came to. Credit is "
        "how well what a step is given follows its true advantage: 0 not at all, 1 exactly. Where a step is given "
        f"{signal} alone, without progress, it is {number_text(result['signal_credit'])}."
    )
    if chosen["verdict"] == "none helps":
        return [
            start,
            f"No recommendation: the best candidate, {chosen['label']}, is not seen to be aligned with the base "
            "policy. Collect more problems, or try other provers.",
        ]
    entry = next(entry for entry in result["candidates"] if entry["label"] == chosen["label"])
    text = (
        f"With the progress of {chosen['label']} it is highest: {number_text(entry['credit'])}, at an alpha of "
        f"{weight_text(entry[f'alpha_{use}']['value'])}."
    )
    if chosen["verdict"] == "cannot tell":
        text += f" That cannot be told from {', '.join(chosen['not_told_apart'])} by more than {MARGIN:.0%}."
    if chosen["by_theorem"] != chosen["label"]:
        text += f" The sum of the two terms alone, which Theorem 3.1 of PAV has, prefers {chosen['by_theorem']}."
    return [start, text, _alpha_words(chosen, use)]


def _alpha_words(chosen: Mapping[str, Any], use: str) -> str:
    """Which weight to set, by how wrong the verifier is."""
    weights = [
        f"if off by {error}, {range_text(found[f'alpha_{use}'])} with {found['label']}"
        for error, found in chosen["by_verifier_error"].items()
    ]
    start = (
        "Start at the lower end, or below it at 0.5, which PAVConfig and pav.yaml have"
        if use == "rl"
        else "Start at the lower end"
    )
    units = " In the units of PAVConfig (its default `progress_scale`)" if use == "rl" else " By that error"
    return (
        "Which alpha to set follows from how wrong the verifier's progress is (root mean square), which is not in "
        f"this data.{units}: {'; '.join(weights)}. "
        "`trl-prl evaluate-verifier` measures the error on collected values. "
        f"{start}: a policy learns to exploit a verifier's mistakes, which nothing here accounts for."
    )


def number_text(estimate: Mapping[str, float | None], between: str = " ") -> str:
    """A number and its interval."""
    if estimate["value"] is None:
        return "not defined"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.2g}"
    return f"{estimate['value']:.2g}{between}({estimate['low']:.2g} to {estimate['high']:.2g})"


def weight_text(value: float) -> str:
    """A weight; the largest that is considered stands for no limit."""
    return f"{value:.2g}" if value < ALPHAS[-1] else "no limit"


def range_text(ends: Sequence[float]) -> str:
    """A range of weights; an upper end at the edge of what is considered is none."""
    low, high = ends
    if high == 0:
        return "none"
    return f"{low:.2g} or more" if high >= ALPHAS[-1] else f"{low:.2g} to {high:.2g}"
