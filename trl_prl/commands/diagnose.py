"""`trl-prl diagnose`: which prover, which K and which alpha suit a policy, from collected values.

trl-prl diagnose values --k 1 2 4 8 --output diagnosis.json --plot diagnosis.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trl_prl.diagnosis.diagnosis import USES, DiagnosisParams
from trl_prl.diagnosis.files import diagnose_files
from trl_prl.diagnosis.plot import draw_diagnosis
from trl_prl.diagnosis.words import COLUMNS, number_text, range_text, weight_text
from trl_prl.storage.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "values",
        nargs="+",
        type=Path,
        help="folders or .parquet files of `trl-prl collect`: first the base policy with its own values, then other "
        "provers on the same prefixes (--seed_model is the base policy)",
    )
    parser.add_argument(
        "--k", nargs="+", type=int, default=[1, 2, 4, 8], help="K of the Best-of-K provers (default: 1 2 4 8)"
    )
    parser.add_argument("--use", choices=USES, default="rl", help="what the progress is for (default: rl)")
    parser.add_argument(
        "--verifier_error",
        type=float,
        default=0.1,
        help="root-mean-square error of the verifier's progress, as evaluate-verifier measures it (default: 0.1, an "
        "assumption)",
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
        write_text(args.output, json.dumps(result, indent=1))
    if args.plot is not None:
        draw_diagnosis(result, args.plot)
    return 0


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the tables, what they say in words, and the warnings."""
    candidates, bins, use = result["candidates"], result["by_difficulty"], result["params"]["use"]
    rows = []
    for entry in candidates:
        numbers = [number_text(entry[name], "\n") for name in COLUMNS if name != "alpha"]
        weights = f"{weight_text(entry[f'alpha_{use}']['value'])}\n({range_text(entry[f'alpha_range_{use}'])})"
        rows.append([entry["label"], *numbers, weights])
    console.print(_table(f"all problems, {result['params']['confidence']:.0%} intervals", COLUMNS, rows))
    for name, meaning in COLUMNS.items():
        console.print(f"{name}: {meaning}", highlight=False)
    if len(bins) > 1:
        titles = [f"{group['low']:g} to {group['high']:g}\n{group['num_problems']} problems" for group in bins]
        rows = [
            [entry["label"], *(number_text(group["candidates"][j]["credit"], "\n") for group in bins)]
            for j, entry in enumerate(candidates)
        ]
        console.print()
        console.print(_table("credit by the base policy's success on a problem", titles, rows))
    for paragraph in result["words"]:
        console.print()
        console.print(paragraph, highlight=False, markup=False)
    for warning in result["warnings"]:
        console.print(f"Note: {warning}", highlight=False, markup=False)


def _table(title: str, columns: Iterable[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("prover", *columns):
        table.add_column(escape(name.replace("distinguish", "distinguish-\n")), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
