"""Calibration curves and the threshold of a verifier.

Layer 0: NumPy only. Values and labels come as in [`verifier_metrics`](verifier_metrics.py), NaN where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_prl.verifier_metrics import POSITIVE, process_bench_f1


def calibration_bins(values: ArrayLike, labels: ArrayLike, num_bins: int = 10) -> list[dict[str, Any]]:
    """Mean value against mean label in bins of equal width: the points of a reliability diagram.

    Args:
        values (`ArrayLike`):
            Predicted probabilities, in [0, 1], of any shape.
        labels (`ArrayLike`):
            Labels in [0, 1], of the same shape.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.

    Returns:
        `list[dict]`: One entry per bin with `low`, `high`, `num`, `mean_value` and `mean_label`; the means of an empty
        bin are `None`. Their distances, weighted by `num`, add up to the expected calibration error.

    Raises:
        `ValueError`: If there is no bin or the shapes differ.
    """
    predicted, wanted = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if num_bins < 1 or predicted.shape != wanted.shape:
        raise ValueError(
            f"Got {num_bins} bins for values of shape {predicted.shape} and labels of shape {wanted.shape}. They are "
            "compared entry by entry, in at least one bin. Pass two arrays of the same shape."
        )
    both = ~(np.isnan(predicted) | np.isnan(wanted))
    predicted, wanted = predicted[both], wanted[both]
    # A value of exactly 1 belongs to the last bin.
    places = np.minimum((predicted * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for place in range(num_bins):
        inside = places == place
        num = int(inside.sum())
        bins.append(
            {
                "low": place / num_bins,
                "high": (place + 1) / num_bins,
                "num": num,
                "mean_value": float(predicted[inside].mean()) if num else None,
                "mean_label": float(wanted[inside].mean()) if num else None,
            }
        )
    return bins


def choose_threshold(values: ArrayLike, error_steps: Sequence[int] | NDArray[np.int64]) -> float:
    """Threshold with the highest F1 score of first-error detection.

    It is chosen *on these solutions*: report the score on others, as
    [ProcessBench](https://huggingface.co/papers/2412.06559) does.

    Args:
        values (`ArrayLike` of shape (B, S)):
            Values of the steps, NaN where there is no step.
        error_steps (`Sequence[int]`):
            Index of the first wrong step of each solution, -1 for none.

    Returns:
        `float`: The threshold, between two values that occur; of equally good ones the closest to 0.5, and 0.5 where
        no score can be computed.
    """
    array = np.asarray(values, dtype=np.float64)
    # Between two neighbouring values every threshold does the same; some hundred quantiles stand for more of them.
    known = np.unique(array[~np.isnan(array)])
    known = known if len(known) <= 512 else np.unique(np.quantile(known, np.linspace(0, 1, 512)))
    candidates = [POSITIVE, *((known[1:] + known[:-1]) / 2)]
    scores = [process_bench_f1(array, error_steps, float(threshold))["f1"] for threshold in candidates]
    ranked = [
        (score, -abs(float(threshold) - POSITIVE), float(threshold))
        for score, threshold in zip(scores, candidates, strict=True)
        if not np.isnan(score)
    ]
    return max(ranked)[2] if ranked else POSITIVE


def bootstrap_metrics(
    compute: Callable[[NDArray[np.int64]], Mapping[str, float]],
    groups: Sequence[int],
    confidence: float = 0.95,
    num_draws: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of metrics that are no means, over groups of solutions.

    Args:
        compute (`Callable`):
            Takes indices of solutions, some several times, and returns metrics by name, NaN or absent where one cannot
            be computed.
        groups (`Sequence[int]`):
            Group of each solution: those of one problem are alike, and are drawn together.
        confidence (`float`, *optional*, defaults to `0.95`):
            Nominal coverage, in (0, 1).
        num_draws (`int`, *optional*, defaults to `200`):
            Resampled sets.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `dict[str, tuple[float, float]]`: Both ends for each metric that at least half of the draws have.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    blocks = [np.asarray(block, dtype=np.int64) for block in members.values()]
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(num_draws if blocks else 0):
        indices = np.concatenate([blocks[i] for i in generator.integers(len(blocks), size=len(blocks))])
        for name, value in compute(indices).items():
            if not np.isnan(value):
                drawn.setdefault(name, []).append(value)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {
        name: tuple(map(float, np.quantile(found, tails)))  # type: ignore[misc]
        for name, found in drawn.items()
        if len(found) >= num_draws / 2
    }
