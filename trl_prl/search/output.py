"""What a search job writes: the curve of accuracy against compute as JSON, table and figure, and rows per problem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_prl.jobs.masking import mask_secrets
from trl_prl.metrics.intervals import value_interval
from trl_prl.report.plots import STYLES, new_figure, save
from trl_prl.storage.files import write_text
from trl_prl.storage.row_files import write_rows
from trl_prl.storage.row_values import json_value

from .config import SearchConfig


FORMAT_VERSION = 1
RESULTS_FILE = "search.json"
PROBLEMS_FILE = "problems.jsonl"
COSTS = ("generated_tokens", "prompt_tokens", "scored_tokens", "samples")


def write_results(
    config: SearchConfig, settings: Mapping[str, Any], units: Iterable[Sequence[dict[str, Any]]]
) -> Path:
    """Write the results of a finished job; each file appears whole or not at all.

    Args:
        config ([`SearchConfig`]):
            Settings.
        settings (`Mapping[str, Any]`):
            Everything that the rows depend on.
        units (`Iterable[Sequence[dict]]`):
            Rows of each unit, in order.

    Returns:
        `Path`: The JSON file.
    """
    folder = Path(config.output_dir)
    sums: dict[int, dict[str, float]] = {n: {} for n in sorted(config.n)}

    def searched() -> Iterator[dict[str, Any]]:
        for rows in units:
            for row in rows:
                for run in row["runs"]:
                    _add(sums[run["n"]], run)
                    yield {"row": row["row"], "prompt": row["prompt"], "columns": row["columns"], **run}

    with write_rows(folder / PROBLEMS_FILE) as write:
        write(searched())
    curve = [_point(n, counted, config.confidence) for n, counted in sums.items()]
    results = {
        "kind": "search",
        "format_version": FORMAT_VERSION,
        "method": config.method,
        "settings": mask_secrets(settings),
        "num_problems": settings["num_problems"],
        "confidence": config.confidence,
        "curve": curve,
        "problems_file": PROBLEMS_FILE,
    }
    if config.plot != "none" and curve:
        figure = draw(results)
        save(figure, folder / f"search.{config.plot}")
    # Last, so that whoever finds the results finds all that belongs to them.
    write_text(folder / RESULTS_FILE, json.dumps(json_value(results), indent=1, allow_nan=False) + "\n")
    return folder / RESULTS_FILE


def _add(sums: dict[str, float], run: Mapping[str, Any]) -> None:
    """Count one problem's run."""
    unchecked = run["chosen"] is not None and run["correct"] is None
    counted = {
        "problems": 1,
        "correct": run["correct"] is True,
        "unanswered": run["chosen"] is None,
        "unchecked": unchecked,
        "any_correct": run["any_correct"],
        "with_samples": run["pass_at_n"] is not None,
        "pass_at_n": run["pass_at_n"] is True,
        "pass_at_n_tokens": run["pass_at_n_tokens"] or 0,
        "scored": run["cost"]["num_scored"],
        "unscored": run["cost"]["num_unscored"],
        "seconds": run["cost"]["seconds"],
        **{name: run["cost"][f"num_{name}"] for name in COSTS},
    }
    for name, number in counted.items():
        sums[name] = sums.get(name, 0) + number


def _point(n: int, sums: Mapping[str, float], confidence: float) -> dict[str, Any]:
    """One point of the curve. Problems without an answer are wrong; those that could not be checked are left out."""
    number = int(sums["problems"])
    num_checked = number - int(sums["unchecked"])
    point: dict[str, Any] = {
        "n": n,
        "num_problems": number,
        "num_checked": num_checked,
        "num_correct": int(sums["correct"]),
        "num_unanswered": int(sums["unanswered"]),
        "num_unchecked": int(sums["unchecked"]),
        "num_scored": int(sums["scored"]),
        "num_unscored": int(sums["unscored"]),
        "accuracy": _share(sums["correct"], num_checked, confidence),
        "any_correct": _share(sums["any_correct"], number, confidence),
        "pass_at_n": _share(sums["pass_at_n"], int(sums["with_samples"]), confidence),
    }
    with_samples = int(sums["with_samples"])
    point["pass_at_n_tokens_per_problem"] = sums["pass_at_n_tokens"] / with_samples if with_samples else None
    return {**point, **{f"{name}_per_problem": sums[name] / number for name in (*COSTS, "seconds")}}


def _share(count: float, number: int, confidence: float) -> dict[str, float] | None:
    """A fraction of problems with its Wilson interval; `None` of none."""
    if not number:
        return None
    low, high = value_interval(int(count), number, confidence)
    return {"value": count / number, "low": low, "high": high}


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of a search: accuracy with its interval, tokens and seconds per problem.

    Args:
        results (`Mapping[str, Any]`):
            What the JSON file holds.

    Returns:
        `tuple[list[str], list[list[str]]]`: The header, and a line per n.
    """
    header = ["n", "accuracy %", "any %", "pass@n %", "tokens", "scored", "seconds", "no answer"]
    lines = []
    for point in results["curve"]:
        shares = [
            _percent(point["accuracy"], True), _percent(point["any_correct"]), _percent(point["pass_at_n"])
        ]  # fmt: skip
        costs = [f"{point[f'{name}_per_problem']:.0f}" for name in ("generated_tokens", "scored_tokens")]
        seconds = f"{point['seconds_per_problem']:.2f}"
        lines.append([str(point["n"]), *shares, *costs, seconds, str(point["num_unanswered"])])
    return header, lines


def _percent(share: Mapping[str, float] | None, with_interval: bool = False) -> str:
    if share is None:
        return "-"
    if not with_interval:
        return f"{100 * share['value']:.1f}"
    return f"{100 * share['value']:.1f} ({100 * share['low']:.1f}-{100 * share['high']:.1f})"


def draw(results: Mapping[str, Any]) -> Any:
    """Draw accuracy against tokens sampled per problem, with intervals, and pass@n of plain samples.

    Args:
        results (`Mapping[str, Any]`):
            What the JSON file holds.

    Returns:
        `matplotlib.figure.Figure`: The figure.
    """
    figure, (axis,) = new_figure(1, width=6.0, height=4.2)
    style = STYLES[0]
    points = sorted(results["curve"], key=lambda point: point["generated_tokens_per_problem"])
    points = [point for point in points if point["accuracy"] is not None]
    tokens = [point["generated_tokens_per_problem"] for point in points]
    values, low, high = ([100 * point["accuracy"][key] for point in points] for key in ("value", "low", "high"))
    axis.plot(tokens, values, label=results["method"], markersize=5, **style)
    axis.fill_between(tokens, low, high, color=style["color"], alpha=0.15)
    for x, y, point in zip(tokens, values, points, strict=True):
        axis.annotate(f"n={point['n']}", (x, y), textcoords="offset points", xytext=(4, -10), fontsize=7)
    # At the tokens of n plain samples, which is not what a search over steps costs at the same n.
    ceiling = [
        (point["pass_at_n_tokens_per_problem"], 100 * point["pass_at_n"]["value"])
        for point in points
        if point["pass_at_n"] is not None
    ]
    if ceiling:
        dotted = {"color": style["color"], "linestyle": (0, (1, 1)), "linewidth": 1, "marker": "_"}
        axis.plot(*zip(*sorted(ceiling), strict=True), label=f"pass@n ({results['method']})", **dotted)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("tokens sampled per problem")
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False, fontsize=8)
    return figure
