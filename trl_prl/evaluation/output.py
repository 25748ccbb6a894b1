"""What an evaluation writes: JSON for programs, rows per problem, a table and a figure for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_prl.jobs.masking import mask_secrets
from trl_prl.report.plots import STYLES, new_figure, save
from trl_prl.storage.files import write_text
from trl_prl.storage.markdown import as_text, table
from trl_prl.storage.row_files import write_rows

from .comparison import compare
from .config import EvaluateConfig
from .summary import problem_values, summarise


RESULTS_FILE = "evaluation.json"
PROBLEMS_FILE = "problems.jsonl"
TABLE_FILE = "evaluation.md"
FORMAT_VERSION = 2  # comparisons are after - before; what is not defined is left out

# As many as there are colours that can be told apart.
_MOST_DRAWN = len(STYLES)
_AT_K = re.compile(r"^(pass|bootstrap_pass|maj|best)@(\d+)(/.*)?$")


def write_results(
    config: EvaluateConfig, rows: Mapping[str, Sequence[dict[str, Any]]], paths: Mapping[str, str]
) -> Path:
    """Write the results of a finished job; each file appears whole or not at all.

    Args:
        config ([`EvaluateConfig`]):
            Settings.
        rows (`Mapping[str, Sequence[dict]]`):
            Rows of each model, as [`check_samples`] makes them.
        paths (`Mapping[str, str]`):
            Path of each model, or of the file with its samples.

    Returns:
        `Path`: The JSON file.
    """
    folder = Path(config.output_dir)
    most_samples = max((len(row["samples"]) for model in rows.values() for row in model), default=1)
    params = config.summary(most_samples)
    # Once, as votes may compare many formulas.
    values = {name: problem_values(model, params) for name, model in rows.items()}
    results = {
        "kind": "evaluation",
        "format_version": FORMAT_VERSION,
        "settings": mask_secrets(
            {**config.settings(), "k": params.k, "group_by": params.group_by, "confidence": params.confidence}
        ),
        "estimators": ESTIMATORS,
        "models": [
            {"name": name, "path": mask_secrets(paths[name]), **summarise(model, params, values[name])}
            for name, model in rows.items()
        ],
        "comparisons": compare(rows, params, values) if len(rows) > 1 else [],
        "problems_file": PROBLEMS_FILE,
    }
    with write_rows(folder / PROBLEMS_FILE) as write:
        write({"model": name, **row} for name, model in rows.items() for row in model)
    write_text(folder / TABLE_FILE, markdown(results))
    if config.plot != "none":
        figure = draw(results)
        if figure is not None:
            save(figure, folder / f"evaluation.{config.plot}")
    # Last, so that whoever finds the results finds all that belongs to them.
    write_text(folder / RESULTS_FILE, json.dumps(results, indent=1, default=str) + "\n")
    return folder / RESULTS_FILE


ESTIMATORS = {
    "avg@n": "mean fraction of correct samples",
    "pass@k": "unbiased: 1 - C(n - c, k) / C(n, k), subsets without replacement",
    "bootstrap_pass@k": "share of draws of k with replacement that hold a correct sample (FRPO)",
    "maj@k": "exact mean over subsets of k of a majority vote, ties split evenly",
    "best@k": "exact mean over subsets of k of the sample with the highest score, ties split evenly",
    "majority_vote": "one vote among all samples, first on ties",
    "best_of_n": "the sample with the highest score among all, first on ties",
    "weighted_vote": "one vote among all samples weighted by the score, first on ties",
}


@dataclass(frozen=True)
class TextTable:
    """A table for people.

    Attributes:
        title (`str`):
            What it shows.
        header (`list[str]`):
            Names of the columns.
        lines (`list[list[str]]`):
            Cells. Between a number and its interval is the only space of a cell, so that it can be broken there.
    """

    title: str
    header: list[str]
    lines: list[list[str]]


def tables(results: Mapping[str, Any]) -> list[TextTable]:
    """Results as tables: the models, then each pair of them.

    Args:
        results (`Mapping`):
            Results, as they stand in the JSON file.

    Returns:
        `list[TextTable]`: The tables; best@k is left to the JSON file and the figure.
    """
    pairs = dict.fromkeys((entry["before"], entry["after"]) for entry in results["comparisons"])
    return [_model_table(results), *(_pair_table(results, *pair, len(pairs)) for pair in pairs)]


def _model_table(results: Mapping[str, Any]) -> TextTable:
    """One line per metric and group, one column per model."""
    models = results["models"]
    names = dict.fromkeys(name for model in models for name in model["metrics"] if not name.startswith("best@"))
    lines = [[name, *(_cell(model["metrics"].get(name)) for model in models)] for name in names]
    main = [next((name for name in model["metrics"] if name.startswith("avg@")), "") for model in models]
    if any(model["num_unfinished"] for model in models):
        for way, words in (("wrong", "wrong"), ("exclude", "left out")):
            cells = [_cell(model["avg_by_unfinished"].get(way)) for model in models]
            lines.append([f"{main[0]}, unfinished {words}", *cells])
        left = [model["avg_by_unfinished"].get("exclude", {}) for model in models]
        for title, name in (("problems with a finished sample", "num_problems"), ("finished samples", "num_samples")):
            lines.append([title, *(str(part.get(name, 0)) for part in left)])
    for column in dict.fromkeys(column for model in models for column in model["groups"]):
        groups = [model["groups"].get(column, {}) for model in models]
        for label in dict.fromkeys(label for group in groups for label in group):
            found = [group.get(label, {"metrics": {}})["metrics"] for group in groups]
            cells = [_cell(metrics.get(name)) for metrics, name in zip(found, main, strict=True)]
            lines.append([f"{main[0]}, {column} {label}", *cells])
    counts = {
        "problems": "num_problems",
        "samples": "num_samples",
        "unfinished": "num_unfinished",
        "not checked": "num_unchecked",
        "without an answer": "num_without_answer",
    }
    lines += [[title, *(str(model[name]) for model in models)] for title, name in counts.items()]
    if any(model["num_counted"] < model["num_samples"] for model in models):
        for side, words in enumerate(("wrong", "right")):
            bounds = [f"{100 * model['accuracy_bounds'][side]:.1f}" for model in models]
            lines.append([f"accuracy, not counted as {words}", *bounds])
    title = f"percent, with {results['settings']['confidence']:.0%} intervals over problems"
    return TextTable(title, ["", *(model["name"] for model in models)], lines)


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    return f"{100 * estimate['value']:.1f} {_interval(estimate['interval'], '.1f')}"


def _interval(ends: Sequence[float], form: str) -> str:
    """Both ends in percent; a dash where all problems say the same, as resampling them then shows no spread."""
    low, high = (100 * end for end in ends)
    return f"[{low:{form}},{high:{form}}]" if low < high else "[-]"


def _pair_table(results: Mapping[str, Any], before: str, after: str, num_pairs: int) -> TextTable:
    """Paired tests of two models; p-values are adjusted only where there are several pairs."""
    lines = []
    for entry in results["comparisons"]:
        if (entry["before"], entry["after"]) == (before, after):
            test = {"mcnemar_exact": "McNemar"}.get(entry["test"], entry["test"])
            p_values = [entry["p_value"], *([entry["p_value_holm"]] if num_pairs > 1 else [])]
            difference = f"{100 * entry['difference']:+.1f} {_interval(entry['interval'], '+.1f')}"
            numbers = [f"{p_value:.3g}" for p_value in p_values]
            lines.append([entry["metric"], difference, *numbers, test, str(entry["num_problems"])])
    header = ["", "difference", "p", *(["p (Holm)"] if num_pairs > 1 else []), "test", "problems"]
    return TextTable(f"{after} - {before}, in points of percent, on the problems of both", header, lines)


def markdown(results: Mapping[str, Any]) -> str:
    """Tables of the results in Markdown.

    Args:
        results (`Mapping`):
            Results, as they stand in the JSON file.

    Returns:
        `str`: The text.
    """
    parts = (f"{as_text(shown.title)}\n\n{table(shown.header, shown.lines)}" for shown in tables(results))
    return "\n\n".join(parts) + "\n"


def draw(results: Mapping[str, Any]) -> Any:
    """Draw the estimates over k, with their intervals.

    Args:
        results (`Mapping`):
            Results, as they stand in the JSON file.

    Returns:
        `matplotlib.figure.Figure`, *optional*: The figure: for several models one panel per estimator, for a single
        one all estimators in one panel, and never more than eight; `None` with nothing to draw.

    Raises:
        `ImportError`: If matplotlib is not installed.
    """
    curves: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = {}
    single = len(results["models"]) == 1
    for model in results["models"]:
        for name, entry in model["metrics"].items():
            match = _AT_K.match(name)
            if match:
                estimator = f"{match[1]}@k{match[3] or ''}"
                panel, label = (model["name"], estimator) if single else (estimator, model["name"])
                curves.setdefault(panel, {}).setdefault(label, []).append((int(match[2]), entry))
    panels = list(curves.items())[:_MOST_DRAWN]
    if not panels:
        return None
    figure, axes = new_figure(len(panels), width=3.6)
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for (label, points), style in zip(lines.items(), STYLES, strict=False):
            _draw_curve(axis, label, sorted(points, key=lambda point: point[0]), style)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_xlabel("k")
        axis.set_title(title, fontsize=9)
        axis.set_ylim(0, 102)
    axes[0].set_ylabel("%")
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _draw_curve(axis: Any, label: str, points: list[tuple[int, dict[str, Any]]], style: Mapping[str, Any]) -> None:
    values = [100 * entry["value"] for _, entry in points]
    ends = [[100 * abs(entry["interval"][side] - entry["value"]) for _, entry in points] for side in (0, 1)]
    axis.errorbar([k for k, _ in points], values, yerr=ends, label=label, capsize=2, markersize=5, **style)
