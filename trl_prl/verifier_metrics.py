"""How well the values of a verifier agree with labels: discrimination, calibration, first-error detection.

Layer 0: NumPy only, no model, no trainer. Values and labels come as (B, S) arrays, one row per solution and one column
per step, NaN where there is no step, no value or no label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


POSITIVE = 0.5
"""Labels from here on count as positive, and values below it as an error, unless a threshold says otherwise."""


def brier_score(values: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared difference between values and labels.

    With soft labels (a share of successful rollouts) it keeps the variance of the labels themselves, so that it does
    not reach 0 even for a perfect verifier.

    Args:
        values (`ArrayLike`):
            Predicted probabilities, in [0, 1], of any shape.
        labels (`ArrayLike`):
            Labels in [0, 1], of the same shape.

    Returns:
        `float`: The score, in [0, 1], lower is better; NaN without a pair of value and label.
    """
    predicted, wanted = _pairs(values, labels)
    return float(np.mean((predicted - wanted) ** 2)) if len(predicted) else math.nan


def expected_calibration_error(values: ArrayLike, labels: ArrayLike, num_bins: int = 10) -> float:
    """Mean distance between the mean value and the mean label in bins of equal width, weighted by their sizes.

    Source: Guo et al., [On Calibration of Modern Neural Networks](https://huggingface.co/papers/1706.04599), eq. 3;
    with soft labels the mean label stands for the accuracy.

    Args:
        values (`ArrayLike`):
            Predicted probabilities, in [0, 1], of any shape.
        labels (`ArrayLike`):
            Labels in [0, 1], of the same shape.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.

    Returns:
        `float`: The error, in [0, 1], lower is better; NaN without a pair of value and label.

    Raises:
        `ValueError`: If there is no bin.
    """
    if num_bins < 1:
        raise ValueError(f"Got num_bins={num_bins}. Without a bin nothing can be compared. Use 1 or more, such as 10.")
    predicted, wanted = _pairs(values, labels)
    if not len(predicted):
        return math.nan
    # A value of exactly 1 belongs to the last bin.
    bins = np.minimum((predicted * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins, weights=predicted - wanted, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(predicted))


def auroc(values: ArrayLike, labels: ArrayLike, threshold: float = POSITIVE) -> float:
    """Probability that a positive step has a higher value than a negative one, ties counted half.

    Args:
        values (`ArrayLike`):
            Scores of any shape and range.
        labels (`ArrayLike`):
            Labels in [0, 1], of the same shape.
        threshold (`float`, *optional*, defaults to `0.5`):
            Labels from here on are positive.

    Returns:
        `float`: The area, in [0, 1], 0.5 is chance; NaN when one of the classes is empty.
    """
    predicted, wanted = _pairs(values, labels)
    positive = wanted >= threshold
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return math.nan
    rank_sum = _ranks(predicted)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def spearman(values: ArrayLike, labels: ArrayLike) -> float:
    """Rank correlation between values and labels, ties at their mean rank.

    Args:
        values (`ArrayLike`):
            Scores of any shape and range.
        labels (`ArrayLike`):
            Labels, of the same shape.

    Returns:
        `float`: The correlation, in [-1, 1]; NaN when one side is constant or has fewer than two entries.
    """
    predicted, wanted = _pairs(values, labels)
    if len(predicted) < 2:
        return math.nan
    x, y = _ranks(predicted), _ranks(wanted)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else math.nan


def first_errors(scores: ArrayLike, threshold: float = POSITIVE) -> NDArray[np.int64]:
    """First step of each solution whose score is below a threshold.

    Args:
        scores (`ArrayLike` of shape (B, S)):
            Values or labels; NaN is never an error.
        threshold (`float`, *optional*, defaults to `0.5`):
            Scores below it are errors.

    Returns:
        `np.ndarray` of shape (B,), int64: Index of the step, -1 for a solution without an error.
    """
    wrong = _rows(scores) < threshold
    if not wrong.shape[1]:
        return np.full(len(wrong), -1, dtype=np.int64)
    return np.where(wrong.any(1), wrong.argmax(1), -1).astype(np.int64)


def process_bench_f1(
    values: ArrayLike, error_steps: Sequence[int] | NDArray[np.int64], threshold: float = POSITIVE
) -> dict[str, float]:
    """First-error detection as in [ProcessBench](https://huggingface.co/papers/2412.06559), section 3.

    The first step with a value below the threshold is the prediction. The F1 score is the harmonic mean of the
    accuracies on solutions with an error, where the very step has to be found, and on solutions without one.

    Args:
        values (`ArrayLike` of shape (B, S)):
            Values of the steps, NaN where there is no step.
        error_steps (`Sequence[int]`):
            Index of the first wrong step of each solution, -1 for none.
        threshold (`float`, *optional*, defaults to `0.5`):
            Values below it are errors. Choose it on other data than those reported.

    Returns:
        `dict[str, float]`: `error_accuracy`, `correct_accuracy` and `f1`, each in [0, 1]; NaN for a class that has no
        solutions, and then for `f1`.
    """
    predicted = first_errors(values, threshold)
    wanted = np.asarray(error_steps, dtype=np.int64)
    if wanted.shape != predicted.shape:
        raise ValueError(
            f"There are values of {len(predicted)} solutions and first errors of {len(wanted)}. Row i of one is "
            "solution i of the other, so the numbers must be equal. Pass one index per solution, -1 for none."
        )
    hits = predicted == wanted
    accuracies = [float(hits[side].mean()) if side.any() else math.nan for side in (wanted >= 0, wanted < 0)]
    total = sum(accuracies)
    f1 = 2 * accuracies[0] * accuracies[1] / total if total else 0.0 * total
    return {"error_accuracy": accuracies[0], "correct_accuracy": accuracies[1], "f1": f1}


def verifier_metrics(
    values: ArrayLike, labels: ArrayLike, threshold: float = POSITIVE, max_positions: int = 4
) -> dict[str, float]:
    """Every metric of step values against step labels.

    Args:
        values (`ArrayLike` of shape (B, S)):
            Values of the steps, in [0, 1], NaN where there is none.
        labels (`ArrayLike` of shape (B, S)):
            Labels in [0, 1], NaN where there is none.
        threshold (`float`, *optional*, defaults to `0.5`):
            Values below it predict an error, for first-error detection.
        max_positions (`int`, *optional*, defaults to `4`):
            Steps with a Brier score of their own; later ones share one.

    Returns:
        `dict[str, float]`: `num_labels`, `cross_entropy` (nats), `brier`, `ece`, `auroc`, `spearman`, `mean_value`,
        `mean_label`, `brier_step_1` to `brier_step_{max_positions}` and `brier_step_later`; where every label is 0 or
        1, also `process_bench_f1`, `process_bench_error_accuracy` and `process_bench_correct_accuracy`. What cannot
        be computed (one class only, no step at a position) is left out.

    Raises:
        `ValueError`: If the shapes differ or are not (B, S).
    """
    rows, label_rows = _rows(values), _rows(labels)
    predicted, wanted = _pairs(rows, label_rows)
    found = {
        "num_labels": float(len(predicted)),
        "cross_entropy": _cross_entropy(predicted, wanted),
        "brier": brier_score(predicted, wanted),
        "ece": expected_calibration_error(predicted, wanted),
        "auroc": auroc(predicted, wanted),
        "spearman": spearman(predicted, wanted),
    }
    if len(predicted):
        found |= {"mean_value": float(predicted.mean()), "mean_label": float(wanted.mean())}
    for position in range(min(max_positions, rows.shape[1])):
        found[f"brier_step_{position + 1}"] = brier_score(rows[:, position], label_rows[:, position])
    if rows.shape[1] > max_positions:
        found["brier_step_later"] = brier_score(rows[:, max_positions:], label_rows[:, max_positions:])
    if len(wanted) and np.isin(wanted, (0.0, 1.0)).all():
        scored = np.where(np.isnan(label_rows), np.nan, rows)
        labelled = ~np.isnan(label_rows).all(1)
        result = process_bench_f1(scored[labelled], first_errors(label_rows[labelled]), threshold)
        found |= {f"process_bench_{name}": value for name, value in result.items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def metrics_of_records(
    records: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], threshold: float
) -> dict[str, float]:
    """Metrics of all evaluated rows: those of the steps, and the Brier score of the prompts.

    Args:
        records (`Sequence[tuple[np.ndarray, np.ndarray]]`):
            Values and labels of each row, the prompt's first, NaN where there is none; rows differ in length.
        threshold (`float`):
            Values below it predict an error.

    Returns:
        `dict[str, float]`: The metrics of [`~verifier_metrics.verifier_metrics`], `loss` (the cross-entropy of steps
        and prompts together) and `brier_prompt`.
    """
    size = max((len(values) for values, _ in records), default=1)
    padded = np.full((2, len(records), size), np.nan)
    for i, (values, labels) in enumerate(records):
        padded[0, i, : len(values)], padded[1, i, : len(labels)] = values, labels
    metrics = verifier_metrics(padded[0, :, 1:], padded[1, :, 1:], threshold)
    everything = _pairs(padded[0], padded[1])
    if len(everything[0]):
        metrics["loss"] = _cross_entropy(*everything)
    prompt_errors = (padded[0, :, 0] - padded[1, :, 0]) ** 2
    if not np.isnan(prompt_errors).all():
        metrics["brier_prompt"] = float(np.nanmean(prompt_errors))
    return metrics


def _cross_entropy(predicted: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    if not len(predicted):
        return math.nan
    clipped = np.clip(predicted, 1e-7, 1 - 1e-7)  # a float32 probability of exactly 0 or 1 is a rounded one
    return float(-np.mean(wanted * np.log(clipped) + (1 - wanted) * np.log(1 - clipped)))


def _rows(scores: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(scores, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(
            f"Got scores of shape {rows.shape}, which do not say which step belongs to which solution. Pass shape "
            "(B, S), one row per solution, padded with NaN."
        )
    return rows


def _pairs(values: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and labels where both exist, flattened."""
    predicted, wanted = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if predicted.shape != wanted.shape:
        raise ValueError(
            f"Got values of shape {predicted.shape} and labels of shape {wanted.shape}. They are compared entry by "
            "entry and must not broadcast. Pass two arrays of the same shape."
        )
    both = ~(np.isnan(predicted) | np.isnan(wanted))
    return predicted[both], wanted[both]


def _ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal numbers at the mean of theirs."""
    _, groups, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[groups]
