"""`trl-prl evaluate-verifier`: step values of a verifier against the labels of a stepwise data set.

trl-prl evaluate-verifier --verifier my-pav --dataset processbench.jsonl --step_separator "\\n\\n" --output_dir results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from trl_prl.evaluation.process_bench import NAME, read_process_bench, score_process_bench
from trl_prl.jobs.config import PromptOptions
from trl_prl.jobs.options import quiet_libraries
from trl_prl.jobs.progress import Meter, ProgressBar
from trl_prl.prompts.format import PromptFormat
from trl_prl.report.plots import STYLES, new_figure, save
from trl_prl.storage.files import write_text
from trl_prl.storage.row_files import write_rows
from trl_prl.storage.row_sources import open_rows
from trl_prl.storage.row_values import read_labels, read_steps, read_text, row_place
from trl_prl.verifier.evaluation import ScoredSolution, evaluate_verifier
from trl_prl.verifier.formats import add_separator
from trl_prl.verifier.rows import is_finished
from trl_prl.verifier.settings import collected_settings


RESULTS_FILE = "verifier_evaluation.json"
SOLUTIONS_FILE = "solutions.jsonl"
FORMAT_VERSION = 1
_ROWS_PER_CHUNK = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--verifier", required=True, help="folder, hub id, address or module:name of the verifier")
    parser.add_argument(
        "--dataset",
        required=True,
        help="rows with prompt, completions and labels: a file, a folder or a hub id; 'processbench' for that "
        "benchmark, or 'processbench:FOLDER' for a copy of it",
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for the results")
    parser.add_argument("--dataset_config", help="configuration of the dataset")
    parser.add_argument("--dataset_split", default="train", help="split of the dataset (default: train)")
    types = get_type_hints(PromptOptions)
    for entry in fields(PromptOptions):
        kind: dict[str, Any] = {"action": "store_true"} if types[entry.name] is bool else {"default": entry.default}
        parser.add_argument(f"--{entry.name}", help=entry.metadata["help"], **kind)
    parser.add_argument("--limit", type=int, help="use only the first rows (of every subset of processbench)")
    parser.add_argument(
        "--step_separator", default="", help=r"text that was cut off between steps, such as '\n\n' (default: none)"
    )
    parser.add_argument("--threshold", type=float, help="values below it are errors (default: chosen on a split)")
    parser.add_argument(
        "--tune_fraction",
        type=float,
        default=0.2,
        help="share of the prompts that choose the threshold and are not reported on (default: 0.2)",
    )
    parser.add_argument("--group_by", nargs="*", default=[], help="columns to report by, such as a difficulty")
    parser.add_argument("--confidence", type=float, default=0.95, help="coverage of the intervals (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and the bootstrap (default: 0)")
    parser.add_argument("--batch_tokens", type=int, default=16384, help="most tokens of a batch (default: 16384)")
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
    bench = score_process_bench(solutions, args.threshold) if _is_process_bench(args) else None
    results = {
        "kind": "verifier_evaluation",
        "format_version": FORMAT_VERSION,
        "verifier": args.verifier,
        "dataset": args.dataset,
        "settings": {name: getattr(args, name) for name in ("step_separator", "limit", "confidence", "seed")},
        **evaluate_verifier(
            solutions,
            threshold=args.threshold if bench is None else bench["threshold"]["value"],
            tune_fraction=args.tune_fraction,
            group_by=args.group_by if bench is None else [*args.group_by, "subset"],
            confidence=args.confidence,
            seed=args.seed,
        ),
        **({} if bench is None else {NAME: bench}),
        "solutions_file": SOLUTIONS_FILE,
    }
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    with write_rows(folder / SOLUTIONS_FILE) as write:
        write({**row, "step_values": solution.values} for row, solution in zip(rows, solutions, strict=True))
    if args.plot != "none":
        save(draw(results), folder / f"verifier_evaluation.{args.plot}")
    write_text(folder / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    _print(results)
    print(f"Results: {folder / RESULTS_FILE}, with the values of each solution next to it")
    return 0


def _is_process_bench(args: argparse.Namespace) -> bool:
    return args.dataset.partition(":")[0] == NAME and not Path(args.dataset).exists()


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    if _is_process_bench(args):
        return read_process_bench(args.dataset.partition(":")[2] or None, args.limit)
    found = list(open_rows(args.dataset, args.dataset_config, args.dataset_split).head(args.limit))
    for index, row in enumerate(found):
        where = row_place(index, args.dataset)
        missing = [name for name in (args.prompt_column, "completions", "labels") if row.get(name) is None]
        if missing:
            raise ValueError(
                f"{where} has no {' and no '.join(missing)}; its columns are {', '.join(sorted(row))}. A stepwise row "
                "has a prompt, completions (its steps) and labels. Convert it, for instance with "
                "trl_prl.verifier.formats."
            )
        read_text(row[args.prompt_column], f"{where} has a {args.prompt_column!r} that")
        read_steps(row["completions"], f"{where} has a 'completions' that")
        read_labels(row["labels"], f"{where} has a label that")
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
    # Here, so that `--help` answers without torch.
    from trl_prl.prms.load import default_device, load_process_reward
    from trl_prl.prms.scoring import score_prefixes
    from trl_prl.rewards.checks import warn_of_other_prompts, warn_of_other_splitter
    from trl_prl.steps.split import get_splitter

    verifier: Any = load_process_reward(
        args.verifier,
        device=args.device or default_device(),
        dtype=args.dtype,
        max_batch_tokens=args.batch_tokens,
    )
    prompt_format = PromptFormat.from_dict(vars(args))
    warn_of_other_prompts(verifier, prompt_format.prompt_of(rows[0]), prompt_format)
    collected = collected_settings(args.dataset)
    if collected is not None and "splitter" in collected:
        splitter = get_splitter(collected["splitter"], step_length=collected.get("step_length", 256))
        warn_of_other_splitter(verifier, splitter)
    # A shell hands over a backslash and an n.
    separator = args.step_separator.replace("\\n", "\n")
    solutions = []
    with ProgressBar() as bar:
        meter = Meter(len(rows), bar.update)
        for start in range(0, len(rows), _ROWS_PER_CHUNK):
            chunk = rows[start : start + _ROWS_PER_CHUNK]
            steps = [_steps(row, separator) for row in chunk]
            prompts = [prompt_format.prompt_of(row) for row in chunk]
            _, values = score_prefixes(verifier, prompts, steps, [is_finished(row) for row in chunk])
            for row, prompt, scores in zip(chunk, prompts, values, strict=True):
                given = (args.prompt_column, "completions", "labels")
                columns = {name: value for name, value in row.items() if name not in given}
                known = [None if score != score else score for score in scores]
                solutions.append(ScoredSolution(prompt, known, list(row["labels"]), columns))
            meter.finish(len(chunk))
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
        known = [part.get(metric, float("nan")) for part in positions]
        axes[-1].plot(names, known, label=metric, markersize=5, **style)
    axes[-1].set(title="by position", xlabel="step", ylim=(0, 1))
    axes[-1].legend(frameon=False, fontsize=7)
    return figure


def _process_bench_table(bench: Mapping[str, Any]) -> Any:
    from rich.table import Table

    threshold = bench["threshold"]
    shown = Table("ProcessBench", "solutions", "error", "correct", f"F1 at {threshold['value']:.3f}", "F1 at 0.5")
    for name, part in bench["subsets"].items():
        numbers = [part[key] for key in ("error_accuracy", "correct_accuracy", "f1", "f1_at_0.5")]
        shown.add_row(name, str(part["num_solutions"]), *("" if n is None else f"{100 * n:.1f}" for n in numbers))
    averages = [bench[key] for key in ("average_f1", "average_f1_at_0.5")]
    shown.add_row("average", "", "", "", *("" if n is None else f"{100 * n:.1f}" for n in averages))
    shown.caption = f"threshold: {threshold['how']}"
    return shown


def _print(results: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table("metric", "value", "interval", box=box.SIMPLE_HEAD)
    for name, entry in results["metrics"].items():
        ends = "{:.3f} to {:.3f}".format(*entry["interval"]) if "interval" in entry else ""
        shown.add_row(name, f"{entry['value']:.3f}", ends)
    console = Console()
    console.print(shown)
    for title, parts in [
        ("step", {part["position"]: part for part in results["positions"]}),
        *results["groups"].items(),
    ]:
        columns = ("mean_value", "mean_label", "brier", "ece", "auroc")
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in (title, "labels", *columns):
            shown.add_column(escape(name), overflow="fold")
        for label, part in parts.items():
            numbers = (f"{part[column]:.3f}" if column in part else "" for column in columns)
            shown.add_row(escape(label), f"{part['num_labels']:.0f}", *numbers)
        console.print(shown)
    if NAME in results:
        console.print(_process_bench_table(results[NAME]))
    threshold = results["threshold"]
    console.print(
        f"{results['num_solutions']} solutions, {results['num_labels']} labelled steps, {results['num_unscored']} "
        f"more without a value. {_LABELS[results['labels']]} Threshold {threshold['value']:.3f}: {threshold['how']}.",
        highlight=False,
    )
    if "progress_error" in results:
        console.print(
            f"The progress from step to step is off by {results['progress_error']:.2f} (root mean square, without the "
            "noise of the rollouts): what `trl-prl diagnose --verifier_error` asks for.",
            highlight=False,
        )


_LABELS = {
    "hard": "Labels are judgements, 0 or 1.",
    "monte_carlo": "Labels are shares of rollouts, so there is no first error to find.",
    "soft": "Labels are probabilities, so there is no first error to find.",
}
