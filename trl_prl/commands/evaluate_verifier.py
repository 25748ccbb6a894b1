"""`trl-prl evaluate-verifier`: step values of a verifier against the labels of a stepwise data set.

trl-prl evaluate-verifier --verifier my-pav --dataset processbench.jsonl --step_separator "\\n\\n" --output_dir results
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trl_prl.evaluation.process_bench import NAME, read_process_bench, score_process_bench
from trl_prl.jobs.config import PromptOptions, VerifierOptions, option, refuse_unheeded, require
from trl_prl.jobs.options import quiet_libraries
from trl_prl.jobs.progress import Meter, ProgressBar
from trl_prl.report.plots import STYLES, new_figure, save
from trl_prl.storage.files import write_text
from trl_prl.storage.row_files import ROWS_PER_CHUNK, write_rows
from trl_prl.storage.row_sources import open_rows
from trl_prl.storage.row_values import read_labels, read_steps, read_text, row_place
from trl_prl.verifier.evaluation import ScoredSolution, evaluate_verifier
from trl_prl.verifier.formats import add_separator
from trl_prl.verifier.rows import is_finished
from trl_prl.verifier.settings import collected_settings, collected_splitter, warn_of_training_prompts


RESULTS_FILE = "verifier_evaluation.json"
SOLUTIONS_FILE = "solutions.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Options(VerifierOptions, PromptOptions):
    """What to evaluate, on which rows, and where to write the results.

    Every field is an option of `trl-prl evaluate-verifier` and a key of its YAML file.

    Raises:
        `ValueError`: When a required field is missing.
    """

    dataset: str = option(
        "",
        "rows with prompt, completions and labels: a file, a folder or a hub id; 'processbench' for that benchmark, "
        "or 'processbench:FOLDER' for a copy of it",
    )
    output_dir: str = option("", "folder for the results")
    dataset_config: str | None = option(None, "configuration of the dataset")
    dataset_split: str = option("train", "split of the dataset")
    max_rows: int | None = option(None, "use only the first rows (of every subset of processbench)")
    step_separator: str = option("", r"text that was cut off between steps, such as '\n\n'")
    error_threshold: float | None = option(
        None, "values below it are errors; by default chosen on a split where labels are judgements, else 0.5"
    )
    tune_fraction: float = option(0.2, "share of the prompts that choose the threshold and are not reported on")
    group_by: list[str] = option([], "columns to report by, such as a difficulty")
    confidence: float = option(0.95, "coverage of the intervals")
    seed: int = option(0, "seed of the split and the bootstrap")
    plot: Literal["png", "svg", "none"] = option("png", "format of the figure, or 'none'")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "verifier", "dataset", "output_dir")
        of_rows = ["tune_fraction", "dataset_split", "dataset_config"]
        refuse_unheeded(self, of_rows, "dataset", unless=not _is_process_bench(self))
        refuse_unheeded(self, ["tune_fraction"], "error_threshold", unless=self.error_threshold is None)


def run(options: Options) -> int:
    """Score the data set and compare."""
    if options.plot != "none":
        # What is missing for the figure is said before the work, not after it.
        new_figure(1)
    quiet_libraries()
    rows = _rows(options)
    solutions = score_rows(rows, options)
    bench = score_process_bench(solutions, options.error_threshold) if _is_process_bench(options) else None
    results = {
        "kind": "verifier_evaluation",
        "format_version": FORMAT_VERSION,
        "verifier": options.verifier,
        "dataset": options.dataset,
        "settings": {name: getattr(options, name) for name in ("step_separator", "max_rows", "confidence", "seed")},
        **evaluate_verifier(
            solutions,
            threshold=options.error_threshold if bench is None else bench["threshold"]["value"],
            tune_fraction=options.tune_fraction,
            group_by=options.group_by if bench is None else [*options.group_by, "subset"],
            confidence=options.confidence,
            seed=options.seed,
        ),
        **({} if bench is None else {NAME: bench}),
        "solutions_file": SOLUTIONS_FILE,
    }
    if bench is not None:
        # The benchmark chose it, not who typed the command.
        results["threshold"]["how"] = bench["threshold"]["how"]
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with write_rows(folder / SOLUTIONS_FILE) as write:
        write({**row, "step_values": solution.values} for row, solution in zip(rows, solutions, strict=True))
    if options.plot != "none":
        save(draw(results), folder / f"verifier_evaluation.{options.plot}")
    write_text(folder / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    _print(results)
    print(f"Results: {folder / RESULTS_FILE}, with the values of each solution next to it")
    return 0


def _is_process_bench(options: Options) -> bool:
    return options.dataset.partition(":")[0] == NAME and not Path(options.dataset).exists()


def _rows(options: Options) -> list[dict[str, Any]]:
    if _is_process_bench(options):
        return read_process_bench(options.dataset.partition(":")[2] or None, options.max_rows)
    found = list(open_rows(options.dataset, options.dataset_config, options.dataset_split).head(options.max_rows))
    for index, row in enumerate(found):
        where = row_place(index, options.dataset)
        missing = [name for name in (options.prompt_column, "completions", "labels") if row.get(name) is None]
        if missing:
            raise ValueError(
                f"{where} has no {' and no '.join(missing)}; its columns are {', '.join(sorted(row))}. A stepwise row "
                "has a prompt, completions (its steps) and labels. Convert it, for instance with "
                "trl_prl.verifier.formats."
            )
        read_text(row[options.prompt_column], f"{where} has a {options.prompt_column!r} that")
        read_steps(row["completions"], f"{where} has a 'completions' that")
        read_labels(row["labels"], f"{where} has a label that")
    if not found:
        raise ValueError(
            f"{options.dataset} has no rows, so there is nothing to evaluate. Give a file with solutions."
        )
    return found


def score_rows(rows: Sequence[Mapping[str, Any]], options: Options) -> list[ScoredSolution]:
    """Score the labelled steps of every row.

    Args:
        rows (`Sequence[Mapping]`):
            Stepwise rows.
        options ([`Options`]):
            Verifier, separator and device.

    Returns:
        `list[ScoredSolution]`: One per row.
    """
    # Here, so that `--help` answers without torch.
    from trl_prl.prms.load import load_verifier
    from trl_prl.prms.scoring import score_prefixes
    from trl_prl.rewards.checks import warn_of_other_prompts, warn_of_other_splitter

    verifier = load_verifier(options)
    format_of_rows = options.prompts()
    warn_of_other_prompts(verifier, format_of_rows.prompt_of(rows[0]), format_of_rows)
    collected = collected_settings(options.dataset) or {}
    warn_of_training_prompts(verifier, collected.get("fingerprint"), options.dataset)
    if (splitter := collected_splitter(options.dataset)) is not None:
        warn_of_other_splitter(verifier, splitter)
    # A shell hands over a backslash and an n.
    separator = options.step_separator.replace("\\n", "\n")
    solutions = []
    with ProgressBar() as bar:
        meter = Meter(len(rows), bar.update)
        for start in range(0, len(rows), ROWS_PER_CHUNK):
            chunk = rows[start : start + ROWS_PER_CHUNK]
            steps = [_steps(row, separator) for row in chunk]
            prompts = [format_of_rows.prompt_of(row) for row in chunk]
            _, values = score_prefixes(verifier, prompts, steps, [is_finished(row) for row in chunk])
            for row, prompt, scores in zip(chunk, prompts, values, strict=True):
                given = (options.prompt_column, "completions", "labels")
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

    console = Console()
    console.print(f"{escape(results['verifier'])} on {escape(results['dataset'])}", highlight=False, soft_wrap=True)
    shown = Table("metric", "value", "interval", box=box.SIMPLE_HEAD)
    for name, entry in results["metrics"].items():
        low, high = entry.get("interval", (0.0, 0.0))
        # Where all draws are the same, resampling shows no spread.
        ends = f"{low:.3f} to {high:.3f}" if low < high else "-"
        shown.add_row(name, f"{entry['value']:.3f}", ends)
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
        f"{results['num_solutions']} solutions, {results['num_labels']} labelled steps"
        + (f", {n} more without a value (beyond its length, or unscorable)" if (n := results["num_unscored"]) else "")
        + f". {_LABELS[results['labels']]}"
        # Nothing but first errors is found with it.
        + (f" Threshold {threshold['value']:.3f}: {threshold['how']}." if "first_error" in results else ""),
        highlight=False,
    )
    if "progress_error" in results:
        console.print(
            f"The progress from step to step is off by {results['progress_error']:.2f} (root mean square, without the "
            "noise of the rollouts): what `trl-prl diagnose --verifier_error` asks for.",
            highlight=False,
        )
    if "no_progress_error" in results:
        console.print(
            "The error of the progress from step to step, which `trl-prl diagnose --verifier_error` asks for, is not "
            f"known: {results['no_progress_error']}.",
            highlight=False,
        )


_LABELS = {
    "hard": "Labels are judgements, 0 or 1.",
    "monte_carlo": "Labels are shares of rollouts, so there is no first error to find.",
    "soft": "Labels are probabilities, so there is no first error to find.",
}
