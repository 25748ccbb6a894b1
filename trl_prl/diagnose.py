"""`trl-prl diagnose`: which prover, which K and which alpha suit a policy, from collected values.

trl-prl diagnose values --k 1 2 4 8 --output diagnosis.json --plot diagnosis.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from trl_prl.diagnosis import MARGIN, USES, DiagnosisParams
from trl_prl.diagnosis_files import diagnose_files
from trl_prl.diagnosis_plot import draw_diagnosis
from trl_prl.prover_credit import ALPHAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "values",
        nargs="+",
        type=Path,
        help="folders or .parquet files of `trl-prl collect`: first the base policy with its own values, then other "
        "provers on the same prefixes (--seed-model is the base policy)",
    )
    parser.add_argument(
        "--k", nargs="+", type=int, default=[1, 2, 4, 8], help="K of the Best-of-K provers (default: 1 2 4 8)"
    )
    parser.add_argument("--use", choices=USES, default="rl", help="what the progress is for (default: rl)")
    parser.add_argument(
        "--verifier-error",
        type=float,
        default=0.1,
        help="root-mean-square error of the progress that the verifier will tell (default: 0.1, an assumption)",
    )
    parser.add_argument("--alpha", type=float, help="compare at this weight (default: the best one of each prover)")
    parser.add_argument("--confidence", type=float, default=0.95, help="coverage of the intervals (default: 0.95)")
    parser.add_argument(
        "--strata", type=int, default=4, help="strata of depth that credit is averaged over (default: 4)"
    )
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of the bootstrap (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    parser.add_argument(
        "--bins",
        nargs="*",
        type=float,
        default=[0.25, 0.75],
        help="edges of difficulty, the base policy's success on a problem (default: 0.25 0.75)",
    )
    parser.add_argument("--output", type=Path, help="where to write the diagnosis as JSON")
    parser.add_argument("--plot", type=Path, help="where to draw it: .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    """Diagnose, print the table and the recommendation, write what was asked for."""
    params = DiagnosisParams(
        use=args.use,
        verifier_error=args.verifier_error,
        alpha=args.alpha,
        confidence=args.confidence,
        num_resamples=args.resamples,
        seed=args.seed,
        num_strata=args.strata,
        edges=tuple(args.bins),
    )
    result = diagnose_files(args.values, args.k, params)
    show(result, Console())
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if args.plot is not None:
        draw_diagnosis(result, args.plot)
    return 0


COLUMNS = ("distinguishability", "alignment", "sum", "credit")


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables, the recommendation and the warnings."""
    console.print(
        f"Base policy {result['base']}: {result['num_problems']} problems, {result['num_states']} states. Variance "
        f"of its values over next steps {_text(result['own_variance'])}, of outcomes "
        f"{_text(result['outcome_variance'])}. Credit without a prover {_text(result['signal_credit'])}.",
        highlight=False,
    )
    console.print(_table("all problems", result["candidates"], result["params"]["use"]))
    for group in result["by_difficulty"]:
        title = f"success {group['low']:g} to {group['high']:g}: {group['num_problems']} problems"
        console.print(_table(title, group["candidates"], result["params"]["use"]))
    console.print(sentence(result), highlight=False)
    for warning in result["warnings"]:
        console.print(f"Note: {warning}", highlight=False)


def _table(title: str, entries: Sequence[Mapping[str, Any]], use: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("prover", overflow="fold")
    for name in (*COLUMNS, "alpha"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        numbers = (_text(entry[name], "\n") for name in COLUMNS)
        table.add_row(entry["label"], *numbers, f"{_weight(entry, use)}\n({_weights(entry[f'alpha_range_{use}'])})")
    return table


def _weight(entry: Mapping[str, Any], use: str) -> str:
    """The best weight; the largest that is considered stands for no limit."""
    value = entry[f"alpha_{use}"]["value"]
    return f"{value:.2g}" if value < ALPHAS[-1] else "no limit"


def _weights(ends: Sequence[float]) -> str:
    """A range of weights; an upper end at the edge of what is considered is none."""
    low, high = ends
    if high == 0:
        return "none"
    return f"{low:.2g} or more" if high >= ALPHAS[-1] else f"{low:.2g} to {high:.2g}"


def sentence(result: Mapping[str, Any]) -> str:
    """The recommendation in words.

    Args:
        result (`Mapping[str, Any]`):
            As [`diagnose_files`] returns it.

    Returns:
        `str`: One paragraph.
    """
    chosen, use = result["recommendation"], result["params"]["use"]
    if chosen["verdict"] == "none helps":
        return (
            f"No recommendation: the best candidate, {chosen['label']}, is not seen to be aligned with the base "
            "policy. Collect more problems, or try other provers."
        )
    entry = next(entry for entry in result["candidates"] if entry["label"] == chosen["label"])
    text = (
        f"Highest credit: {chosen['label']}, at an alpha of {_weight(entry, use)}; {_weights(chosen[f'alpha_{use}'])} "
        f"keeps 90 % of what it adds ({use}; a heuristic)."
    )
    if chosen["verdict"] == "cannot tell":
        text += f" It cannot be told from {', '.join(chosen['not_told_apart'])} by more than {MARGIN:.0%}."
    if chosen["by_theorem"] != chosen["label"]:
        text += f" The sum of the two terms alone prefers {chosen['by_theorem']}."
    others = {error: label for error, label in chosen["by_verifier_error"].items() if label != chosen["label"]}
    for error, label in others.items():
        text += f" With a verifier error of {error} it would be {label}."
    return text


def _text(estimate: Mapping[str, float | None], between: str = " ") -> str:
    if estimate["value"] is None:
        return "not defined"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.2g}"
    return f"{estimate['value']:.2g}{between}({estimate['low']:.2g} to {estimate['high']:.2g})"
