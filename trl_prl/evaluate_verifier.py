"""`trl-prl evaluate-verifier`: step values of a verifier against the labels of a stepwise data set.

trl-prl evaluate-verifier --verifier my-pav --dataset processbench.jsonl --step-separator "\\n\\n" --output-dir results
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trl_prl.command_options import load_rows, quiet_libraries
from trl_prl.plots import STYLES, new_figure, save
from trl_prl.row_files import JSON_SUFFIXES, read_rows
from trl_prl.stepwise_formats import add_separator
from trl_prl.verifier_evaluation import ScoredSolution, evaluate_verifier


RESULTS_FILE = "verifier_evaluation.json"
SOLUTIONS_FILE = "solutions.jsonl"
FORMAT_VERSION = 1
_ROWS_PER_CHUNK = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--verifier", required=True, help="folder or hub id of the verifier")
    parser.add_argument(
        "--dataset", required=True, help="rows with prompt, completions and labels: a file, a folder or a hub id"
    )
    parser.add_argument("--output-dir", required=True, type=Path, help="folder for the results")
    parser.add_argument("--dataset-config", help="configuration of the dataset")
    parser.add_argument("--dataset-split", default="train", help="split of the dataset (default: train)")
    parser.add_argument("--limit", type=int, help="use only the first rows")
    parser.add_argument(
        "--step-separator", default="", help=r"text that was cut off between steps, such as '\n\n' (default: none)"
    )
    parser.add_argument("--threshold", type=float, help="values below it are errors (default: chosen on a split)")
    parser.add_argument(
        "--tune-fraction",
        type=float,
        default=0.2,
        help="share of the prompts that choose the threshold and are not reported on (default: 0.2)",
    )
    parser.add_argument("--group-by", nargs="*", default=[], help="columns to report by, such as a difficulty")
    parser.add_argument("--confidence", type=float, default=0.95, help="coverage of the intervals (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and the bootstrap (default: 0)")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="most tokens of a batch (default: 16384)")
    parser.add_argument("--device", help="device of the model (default: the accelerator if there is one)")
    parser.add_argument("--dtype", default="auto", help="precision, such as bfloat16 (default: that of the weights)")
    parser.add_argument("--plot", choices=("png", "svg", "none"), default="png", help="format of the figure")


def run(args: argparse.Namespace) -> int:
    """Score the data set and compare."""
    if args.plot != "none":
        # What is missing for the figure is said before the work, not after it.
        new_figure(1)
    quiet_libraries()
    rows = _rows(args)
    solutions = score_rows(rows, args)
    results = {
        "kind": "verifier_evaluation",
        "format_version": FORMAT_VERSION,
        "verifier": args.verifier,
        "dataset": args.dataset,
        "settings": {name: getattr(args, name) for name in ("step_separator", "limit", "confidence", "seed")},
        **evaluate_verifier(
            solutions,
            threshold=args.threshold,
            tune_fraction=args.tune_fraction,
            group_by=args.group_by,
            confidence=args.confidence,
            seed=args.seed,
        ),
        "solutions_file": SOLUTIONS_FILE,
    }
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SOLUTIONS_FILE).open("w", encoding="utf-8") as file:
        for row, solution in zip(rows, solutions, strict=True):
            file.write(json.dumps({**row, "step_values": solution.values}, default=str) + "\n")
    if args.plot != "none":
        save(draw(results), folder / f"verifier_evaluation.{args.plot}")
    temporary = folder / f".{RESULTS_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / RESULTS_FILE)
    _print(results)
    print(f"Results: {folder / RESULTS_FILE}, with the values of each solution next to it")
    return 0


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    if args.dataset.endswith((*JSON_SUFFIXES, ".parquet")):
        rows: Any = read_rows(Path(args.dataset))[0]
    else:
        rows = load_rows(args.dataset, args.dataset_config, args.dataset_split)
    found = list(islice(rows, args.limit))
    for index, row in enumerate(found):
        missing = [name for name in ("prompt", "completions", "labels") if row.get(name) is None]
        if missing:
            raise ValueError(
                f"Row {index} of {args.dataset} has no {' and no '.join(missing)}; its columns are "
                f"{', '.join(sorted(row))}. A stepwise row has a prompt, completions (its steps) and labels. Convert "
                "it, for instance with trl_prl.stepwise_formats."
            )
    if not found:
        raise ValueError(f"{args.dataset} has no rows, so there is nothing to evaluate. Give a file with solutions.")
    return found


def score_rows(rows: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> list[ScoredSolution]:
    """Score the labelled steps of every row.

    Args:
        rows (`Sequence[Mapping]`):
            Stepwise rows.
        args (`argparse.Namespace`):
            Verifier, separator and device.

    Returns:
        `list[ScoredSolution]`: One per row.
    """
    from rich.progress import track

    from trl_prl.verifier import ProcessAdvantageVerifier

    verifier = ProcessAdvantageVerifier.from_pretrained(
        args.verifier, device=args.device or _default_device(), dtype=args.dtype, max_batch_tokens=args.batch_tokens
    )
    # A shell hands over a backslash and an n.
    separator = args.step_separator.replace("\\n", "\n")
    solutions = []
    for start in track(range(0, len(rows), _ROWS_PER_CHUNK), description="scoring", transient=True):
        chunk = rows[start : start + _ROWS_PER_CHUNK]
        steps = [_steps(row, separator) for row in chunk]
        values = verifier(prompts=[row["prompt"] for row in chunk], steps=steps)
        for row, scores in zip(chunk, values, strict=True):
            columns = {name: value for name, value in row.items() if name not in ("prompt", "completions", "labels")}
            known = [None if score is None or score != score else float(score) for score in scores]
            solutions.append(ScoredSolution(row["prompt"], known, list(row["labels"]), columns))
    return solutions


def _steps(row: Mapping[str, Any], separator: str) -> list[str]:
    """The labelled steps; the last one ends with the separator where the solution goes on in `rest`."""
    steps, rest = list(row["completions"]), row.get("rest") or []
    return add_separator([*steps, *([rest] if isinstance(rest, str) else rest)], separator)[: len(steps)]


def draw(results: Mapping[str, Any]) -> Any:
    """Draw the calibration curve, of all steps and per column it was grouped by, and the figures by position.

    Args:
        results (`Mapping`):
            Results, as they stand in the JSON file.

    Returns:
        `matplotlib.figure.Figure`: The figure.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    figure, axes = new_figure(2 + len(results["groups"]), width=3.8)
    curves = {"calibration": {"all steps": results["bins"]}}
    for column, parts in results["groups"].items():
        curves[f"by {column}"] = {label: part["bins"] for label, part in parts.items()}
    for axis, (title, lines) in zip(axes, curves.items(), strict=False):
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1)
        for (label, bins), style in zip(lines.items(), STYLES, strict=False):
            filled = [entry for entry in bins if entry["num"]]
            points = [entry["mean_value"] for entry in filled], [entry["mean_label"] for entry in filled]
            axis.plot(*points, label=label, markersize=5, **style)
        axis.set(title=title, xlabel="mean value", ylabel="mean label", xlim=(0, 1), ylim=(0, 1))
        axis.legend(frameon=False, fontsize=7)
    positions = results["positions"]
    names = [part["position"] for part in positions]
    for metric, style in zip(("mean_value", "mean_label", "brier", "auroc"), STYLES, strict=False):
        known = [float("nan") if part[metric] is None else part[metric] for part in positions]
        axes[-1].plot(names, known, label=metric, markersize=5, **style)
    axes[-1].set(title="by position", xlabel="step", ylim=(0, 1))
    axes[-1].legend(frameon=False, fontsize=7)
    return figure


def _print(results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table("metric", "value", "interval")
    for name, entry in results["metrics"].items():
        ends = "" if entry["interval"] is None else "{:.3f} to {:.3f}".format(*entry["interval"])
        shown.add_row(name, f"{entry['value']:.3f}", ends)
    console = Console()
    console.print(shown)
    for title, parts in [
        ("step", {part["position"]: part for part in results["positions"]}),
        *results["groups"].items(),
    ]:
        columns = ("mean_value", "mean_label", "brier", "ece", "auroc")
        shown = Table(title, "labels", *columns)
        for label, part in parts.items():
            numbers = [part[column] for column in columns]
            shown.add_row(label, f"{part['num_labels'] or 0:.0f}", *("" if n is None else f"{n:.3f}" for n in numbers))
        console.print(shown)
    threshold = results["threshold"]
    console.print(
        f"{results['num_solutions']} solutions, {results['num_labels']} labelled steps, {results['num_unscored']} "
        f"more without a value. Threshold {threshold['value']:.3f}: {threshold['how']}."
    )


def _default_device() -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
