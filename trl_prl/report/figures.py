"""The report's figures as PNG and SVG files, for papers. matplotlib is imported when a figure is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .plots import draw_line, moving_average, new_figure


Payload = Mapping[str, Any]
Figure = tuple[str, Any]
Point = tuple[float, Mapping[str, Any]]
"""Position of an estimate on the x axis, and the estimate."""


def write_figures(payload: Payload, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Draw every figure that the report's data has something for.

    Args:
        payload (`Mapping`):
            What the report shows, as `ReportData.payload` returns it.
        folder (`Path`):
            Folder of the figures; made if absent.
        formats (`Sequence[str]`):
            `"png"`, `"svg"`, or both.

    Returns:
        `list[Path]`: The files.

    Raises:
        `ImportError`: if matplotlib is not installed.
        `ValueError`: if there is nothing to draw.
    """
    figures = [*training_figures(payload), *verifier_figures(payload)]
    figures += [*prover_figures(payload), *evaluation_figures(payload), *search_figures(payload)]
    if not figures:
        raise ValueError(
            f"Figures were asked for ({', '.join(formats)}), but what was passed has no curves. Pass training runs or "
            "results of evaluations, or ask for `--format html` alone."
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures:
        for extension in formats:
            path = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name).strip('_')}.{extension}"
            figure.savefig(path, dpi=200)
            written.append(path)
    return written


def one_panel(title: str, xlabel: str, ylabel: str = "") -> tuple[Any, Any]:
    """A figure with one panel and its labels."""
    figure, (axis,) = new_figure(1, width=5.2, height=3.4)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axis


def over_seeds(series: Sequence[Sequence[Sequence[float]]], window: int) -> tuple[Any, Any, Any, Any]:
    """Mean, lowest and highest over runs at every x that any of them has.

    Args:
        series (`Sequence`):
            For each run its positions and values.
        window (`int`):
            Moving average over this many points of each run.

    Returns:
        `tuple[np.ndarray, ...]`: Positions, means, lowest and highest values.
    """
    at: dict[float, list[float]] = {}
    for xs, ys in series:
        for x, y in zip(xs, moving_average(ys, window), strict=True):
            at.setdefault(x, []).append(float(y))
    positions = sorted(at)
    rows = [at[x] for x in positions]
    middle, low, high = (np.array([reduce(row) for row in rows]) for reduce in (np.mean, min, max))
    return np.array(positions), middle, low, high


def training_figures(payload: Payload) -> Iterable[Figure]:
    """One figure for each of the metrics that the report shows first."""
    for split in ("train", "eval"):
        for metric, (title, _) in payload["metricInfo"].items():
            found = []
            for index, group in enumerate(payload["groups"]):
                runs = [payload["runs"][i]["metrics"][split].get(metric) for i in group["runs"]]
                series = [run for run in runs if run and run[0]]
                if series:
                    found.append((index, group["label"], series))
            if not found:
                continue
            suffix = ", evaluation" if split == "eval" else ""
            figure, axis = one_panel(title + suffix, "optimizer step")
            for index, label, series in found:
                window = 1 if split == "eval" else max(1, round(max(len(xs) for xs, _ in series) / 25))
                x, middle, low, high = over_seeds(series, window)
                draw_line(axis, index, label, x, middle, (low, high) if len(series) > 1 else None)
            axis.legend(frameon=False, fontsize=8)
            yield f"{split}-{metric}", figure


def verifier_figures(payload: Payload) -> Iterable[Figure]:
    """Calibration of each verifier."""
    for verifier in payload["verifiers"]:
        bins = [b for b in verifier["bins"] if b["predicted"] is not None and b["observed"] is not None]
        if not bins:
            continue
        figure, axis = one_panel(f"Calibration of {verifier['label']}", "predicted value", "observed success")
        axis.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="perfect")
        draw_line(axis, 0, "observed", [b["predicted"] for b in bins], [b["observed"] for b in bins])
        axis.legend(frameon=False, fontsize=8)
        yield f"calibration-{verifier['label']}", figure


def prover_figures(payload: Payload) -> Iterable[Figure]:
    """Both terms of Theorem 3.1 and what follows from them, over K, one line per prover."""
    for diagnosis in payload["diagnoses"]:
        for name in ("credit", "gain", "distinguishability", "alignment", "sum"):
            lines: dict[str, list[Point]] = {}
            for candidate in diagnosis["candidates"]:
                found = candidate["numbers"].get(name)
                if found and found["value"] is not None and candidate["k"] is not None:
                    lines.setdefault(candidate["prover"], []).append((candidate["k"], found))
            if lines:
                yield f"prover-{diagnosis['label']}-{name}", estimates_figure(lines, name, "K of Best-of-K")[0]


def evaluation_figures(payload: Payload) -> Iterable[Figure]:
    """pass@k and maj@k over k, one line per model."""
    for evaluation in payload["evaluations"]:
        for kind in ("pass", "maj"):
            lines = {
                model["name"]: [
                    (float(name.partition("@")[2]), found)
                    for name, found in model["metrics"].items()
                    if re.fullmatch(rf"{kind}@\d+", name) and found["value"] is not None
                ]
                for model in evaluation["models"]
            }
            if any(len(points) > 1 for points in lines.values()):
                yield f"{evaluation['label']}-{kind}_at_k", estimates_figure(lines, f"{kind}@k", "k")[0]


def search_figures(payload: Payload) -> Iterable[Figure]:
    """Accuracy against tokens sampled per problem, one line per method."""
    lines: dict[str, list[Point]] = {}
    for point in (point for search in payload["searches"] for point in search["points"]):
        lines.setdefault(point["line"], []).append((point["tokens"], point))
    if lines:
        title, xlabel = "Accuracy against compute", "tokens sampled per problem"
        figure, axis = estimates_figure(lines, title, xlabel, "accuracy")
        axis.set_xscale("log")
        yield "search-accuracy", figure


def estimates_figure(
    lines: Mapping[str, Sequence[Point]], title: str, xlabel: str, ylabel: str = ""
) -> tuple[Any, Any]:
    """A figure with a line through the estimates of each name, and a band where all of them have intervals."""
    figure, axis = one_panel(title, xlabel, ylabel)
    for index, (label, points) in enumerate(lines.items()):
        if not points:
            continue
        x, found = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        value, low, high = ([estimate[end] for estimate in found] for end in ("value", "low", "high"))
        draw_line(axis, index, label, x, value, None if None in (*low, *high) else (low, high))
    axis.legend(frameon=False, fontsize=8)
    return figure, axis
