"""What an evaluation writes: JSON for programs, rows per problem, a table and a figure for people."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_prl.evaluate_config import EvaluateConfig
from trl_prl.evaluation_summary import summarise
from trl_prl.model_comparison import compare
from trl_prl.plots import STYLES, new_figure, save


RESULTS_FILE = "evaluation.json"
PROBLEMS_FILE = "problems.jsonl"
TABLE_FILE = "evaluation.md"
FORMAT_VERSION = 1

# As many as there are colours that can be told apart.
_MOST_DRAWN = len(STYLES)
_AT_K = re.compile(r"^(pass|bootstrap_pass|maj|best)@(\d+)(/.*)?$")


def write_results(config: EvaluateConfig, rows: Mapping[str, Sequence[dict[str, Any]]]) -> Path:
    """Write the results of a finished job; each file appears whole or not at all.

    Args:
        config ([`EvaluateConfig`]):
            Settings.
        rows (`Mapping[str, Sequence[dict]]`):
            Rows of each model, as [`check_samples`] makes them.

    Returns:
        `Path`: The JSON file.
    """
    folder = Path(config.output_dir)
    most_samples = max((len(row["samples"]) for model in rows.values() for row in model), default=1)
    params = config.summary(most_samples)
    paths = dict(config.sources())
    results = {
        "kind": "evaluation",
        "format_version": FORMAT_VERSION,
        "settings": {**config.settings(), "k": list(params.k), "group_by": list(params.group_by)},
        "estimators": ESTIMATORS,
        "models": [{"name": name, "path": paths[name], **summarise(model, params)} for name, model in rows.items()],
        "comparisons": compare(rows, params) if len(rows) > 1 else [],
        "problems_file": PROBLEMS_FILE,
    }
    lines = (
        json.dumps({"model": name, **row}, ensure_ascii=False) + "\n" for name, model in rows.items() for row in model
    )
    # Sampled bytes need not be text: lone surrogates are written escaped.
    _write(folder / PROBLEMS_FILE, "".join(lines).encode("utf-8", "backslashreplace"))
    _write(folder / TABLE_FILE, markdown(results).encode())
    if config.plot != "none":
        figure = draw(results)
        if figure is not None:
            save(figure, folder / f"evaluation.{config.plot}")
    # Last, so that whoever finds the results finds all that belongs to them.
    _write(folder / RESULTS_FILE, (json.dumps(results, indent=1, default=str) + "\n").encode())
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


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Results as a table: one line per metric, one column per model; best@k is left to the JSON file and the figure.

    Args:
        results (`Mapping`):
            Results, as they stand in the JSON file.

    Returns:
        `tuple[list[str], list[list[str]]]`: Header and lines.
    """
    models = results["models"]
    names = [
        name
        for name in dict.fromkeys(name for model in models for name in model["metrics"])
        if not name.startswith("best@")
    ]
    lines = [[name, *(_cell(model["metrics"].get(name)) for model in models)] for name in names]
    columns = list(dict.fromkeys(column for model in models for column in model["groups"]))
    main = _main_metric(models)
    for column in columns:
        labels = list(dict.fromkeys(label for model in models for label in model["groups"].get(column, {})))
        for label in labels:
            cells = [
                _cell(model["groups"].get(column, {}).get(label, {"metrics": {}})["metrics"].get(main[i]))
                for i, model in enumerate(models)
            ]
            lines.append([f"{main[0]}, {column} {label}", *cells])
    counts = {
        "problems": "num_problems",
        "samples": "num_samples",
        "unfinished": "num_unfinished",
        "not checked": "num_unchecked",
        "without an answer": "num_without_answer",
    }
    lines += [[title, *(str(model[name]) for model in models)] for title, name in counts.items()]
    bounds = [model["accuracy_bounds"] for model in models]
    lines.append(
        ["accuracy if those not counted are wrong, right"]
        + ["" if bound is None else f"{100 * bound[0]:.1f}, {100 * bound[1]:.1f}" for bound in bounds]
    )
    return ["%", *(model["name"] for model in models)], lines


def _main_metric(models: Sequence[Mapping[str, Any]]) -> list[str]:
    return [next(name for name in model["metrics"] if name.startswith("avg@")) for model in models]


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    low, high = estimate["interval"]
    return f"{100 * estimate['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def comparison_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Paired tests as a table.

    Args:
        results (`Mapping`):
            Results, as they stand in the JSON file.

    Returns:
        `tuple[list[str], list[list[str]]]`: Header and lines; no lines for a single model.
    """
    header = ["metric", "models", "difference", "test", "p", "p (Holm)", "problems"]
    lines = []
    for entry in results["comparisons"]:
        low, high = entry["interval"]
        lines.append(
            [
                entry["metric"],
                f"{entry['first']} - {entry['second']}",
                f"{100 * entry['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                entry["test"],
                f"{entry['p_value']:.3g}",
                f"{entry['p_value_holm']:.3g}",
                str(entry["num_problems"]),
            ]
        )
    return header, lines


def markdown(results: Mapping[str, Any]) -> str:
    """Tables of the results in Markdown.

    Args:
        results (`Mapping`):
            Results, as they stand in the JSON file.

    Returns:
        `str`: The text.
    """
    parts = []
    for header, lines in (table(results), comparison_table(results)):
        if lines:
            rows = [header, ["---"] * len(header), *lines]
            parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows))
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
            if match and entry["value"] is not None:
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
