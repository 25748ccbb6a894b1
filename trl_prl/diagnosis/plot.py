"""Figure of a diagnosis of provers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_prl.report.plots import STYLES, new_figure, save

from .credit import ALPHAS


def draw_diagnosis(result: Mapping[str, Any], path: Path) -> None:
    """Draw the two terms, the credit over alpha, and the credit by difficulty.

    Args:
        result (`Mapping[str, Any]`):
            As [`diagnose_files`] returns it.
        path (`Path`):
            Where to; the ending says in which format.
    """
    figure, (terms_axis, alpha_axis, bins_axis) = new_figure(3)
    entries, params = result["candidates"], result["params"]
    positions = np.arange(len(entries))
    for name, style, shift in zip(("distinguishability", "alignment"), STYLES, (-0.12, 0.12), strict=False):
        _error_bars(terms_axis, positions + shift, [entry[name] for entry in entries], name, style)
    terms_axis.set_xticks(positions, [entry["label"] for entry in entries], rotation=20, ha="right", fontsize=7)
    terms_axis.set(title="terms of Theorem 3.1", ylabel="variance of probabilities")
    for j, entry in enumerate(entries):
        style = {**STYLES[j % len(STYLES)], "marker": ""}
        curve = entry[f"credit_curve_{params['use']}"]
        alpha_axis.plot(ALPHAS[1:], curve[1:], label=entry["label"], **style)
    alpha_axis.axvspan(*result["recommendation"][f"alpha_{params['use']}"], color="0.85", zorder=0)
    alpha_axis.set(title=f"credit by weight ({params['use']})", xlabel="alpha", ylabel="correlation", xscale="log")
    groups = result["by_difficulty"]
    for j, entry in enumerate(entries):
        shift = (j - (len(entries) - 1) / 2) * 0.6 / len(entries)
        found = [group["candidates"][j]["credit"] for group in groups]
        _error_bars(bins_axis, np.arange(len(groups)) + shift, found, entry["label"], STYLES[j % len(STYLES)])
    names = [f"{group['low']:g} to {group['high']:g}\n{group['num_problems']} problems" for group in groups]
    bins_axis.set_xticks(np.arange(len(groups)), names, fontsize=8)
    bins_axis.set(title="credit by the base policy's success", ylabel="correlation")
    for axis in (terms_axis, alpha_axis, bins_axis):
        axis.legend(frameon=False, fontsize=7)
    save(figure, path)


def _error_bars(
    axis: Any, positions: Any, estimates: Sequence[Mapping[str, float | None]], label: str, style: Mapping[str, str]
) -> None:
    """Points with their intervals; a number without one is a point, an undefined one is left out."""
    kept = [(x, e) for x, e in zip(positions, estimates, strict=True) if e["value"] is not None]
    values = np.array([e["value"] for _, e in kept], dtype=float)
    low, high = (np.array([e[end] for _, e in kept], dtype=float) for end in ("low", "high"))
    # A percentile interval need not contain the estimate.
    spread = np.nan_to_num(np.clip([values - low, high - values], 0, None))
    axis.errorbar(
        [x for x, _ in kept], values, spread, label=label, capsize=3, linestyle="none",
        color=style["color"], marker=style["marker"], markersize=5,
    )  # fmt: skip
