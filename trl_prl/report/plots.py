"""What the figures of commands and benchmarks are drawn with. matplotlib is imported when a figure is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_prl.storage.files import replace_file


# Told apart by line style and marker too, for readers without colour vision.
STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#56B4E9", "linestyle": "-", "marker": "v"},
    {"color": "#E69F00", "linestyle": "--", "marker": "P"},
    {"color": "#000000", "linestyle": "-.", "marker": "X"},
    {"color": "#999999", "linestyle": ":", "marker": "*"},
)


def new_figure(num_panels: int, width: float = 5.0, height: float = 3.6) -> tuple[Any, list[Any]]:
    """Make a figure with panels side by side, without touching the caller's matplotlib state.

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "A plot was asked for, but matplotlib is not installed. Install it with `pip install trl-prl[plot]`."
        ) from error
    figure = Figure(figsize=(width * num_panels, height), layout="constrained")
    axes = figure.subplots(1, num_panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    return figure, list(axes)


def moving_average(values: Sequence[float], window: int) -> np.ndarray:
    """Mean over the last `window` values; over fewer at the beginning."""
    array = np.asarray(values, dtype=float)
    sums = np.cumsum(np.insert(array, 0, 0.0))
    ends = np.arange(1, len(array) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def draw_line(axis: Any, index: int, label: str, x: Any, y: Any, band: tuple[Any, Any] | None = None) -> None:
    """Draw one line told apart by colour, dash and marker, with a band where there is a spread."""
    style = STYLES[index % len(STYLES)]
    axis.plot(x, y, label=label, markevery=max(1, len(x) // 8), markersize=4, **style)
    if band is not None:
        axis.fill_between(x, *band, color=style["color"], alpha=0.15, linewidth=0)


def draw_curves(
    axis: Any, curves: Mapping[str, Sequence[Sequence[float]]], window: int = 1, x: Sequence[float] | None = None
) -> None:
    """Draw one line per name: the mean over runs, with a band from the lowest to the highest run.

    Args:
        axis (`matplotlib.axes.Axes`):
            Where to draw.
        curves (`Mapping[str, Sequence[Sequence[float]]]`):
            For each name, the values of each run.
        window (`int`, *optional*, defaults to `1`):
            Moving average over this many points.
        x (`Sequence[float]`, *optional*):
            Positions of the points, by default 1, 2, 3, ...
    """
    for index, (name, runs) in enumerate(curves.items()):
        length = min(len(run) for run in runs)
        smooth = np.stack([moving_average(run[:length], window) for run in runs])
        positions = np.arange(1, length + 1) if x is None else np.asarray(x[:length])
        band = (smooth.min(0), smooth.max(0)) if len(runs) > 1 else None
        draw_line(axis, index, name, positions, smooth.mean(0), band)
    axis.legend(frameon=False, fontsize=8)


def save(figure: Any, path: Path) -> None:
    """Write a figure; the ending of the path says in which format."""
    with replace_file(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:])
