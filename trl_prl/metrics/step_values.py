"""How well the values of a verifier agree with labels: discrimination, calibration, first-error detection.

Layer 0: no model, no trainer. Values and labels come as (B, S) arrays, one row per solution and one column
per step, NaN where there is no step, no value or no label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import expected_calibration_error, value_label_pairs


POSITIVE = 0.5
"""Labels from here on count as positive, and values below it as an error, unless a threshold says otherwise."""

# Steps with a Brier score of their own; later ones share one.
MAX_POSITIONS = 4


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
    predicted, wanted = value_label_pairs(values, labels)
    return float(np.mean((predicted - wanted) ** 2)) if len(predicted) else math.nan


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
    predicted, wanted = value_label_pairs(values, labels)
    positive = wanted >= threshold
    if positive.all() or not positive.any():
        return math.nan
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, predicted))


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
    predicted, wanted = value_label_pairs(values, labels)
    if not len(predicted) or np.ptp(predicted) == 0 or np.ptp(wanted) == 0:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, wanted).statistic)


def progress_error(values: ArrayLike, labels: ArrayLike, num_rollouts: ArrayLike) -> float:
    """Root-mean-square error of the progress from step to step, without the noise of the rollouts.

    It is the `verifier_error` of a diagnosis. The mean square difference to the labels' own progress has the variance
    of the labels in it, of which `p (1 - p) / (n - 1)` is an unbiased estimate.

    Args:
        values (`ArrayLike` of shape (B, S)):
            Values of the steps, NaN where there is none.
        labels (`ArrayLike` of shape (B, S)):
            Fractions of rollouts that succeeded, NaN where there is none.
        num_rollouts (`ArrayLike` of shape (B, S)):
            Their numbers; 0 for an outcome, which has no noise. A label of a single rollout is left out.

    Returns:
        `float`: The error, not negative; NaN where no two steps in a row have labels.
    """
    predicted, wanted, number = _rows(values), _rows(labels), _rows(num_rollouts)
    noise = np.where(number == 0, 0.0, wanted * (1 - wanted) / np.where(number > 1, number - 1, np.nan))
    squares = np.diff(predicted - wanted) ** 2 - (noise[:, 1:] + noise[:, :-1])
    known = squares[~np.isnan(squares)]
    return math.sqrt(max(0.0, float(known.mean()))) if len(known) else math.nan


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


def verifier_metrics(
    values: ArrayLike,
    labels: ArrayLike,
    threshold: float = POSITIVE,
    hard_labels: bool = True,
) -> dict[str, float]:
    """Every metric of step values against step labels.

    Args:
        values (`ArrayLike` of shape (B, S)):
            Values of the steps, in [0, 1], NaN where there is none.
        labels (`ArrayLike` of shape (B, S)):
            Labels in [0, 1], NaN where there is none.
        threshold (`float`, *optional*, defaults to `0.5`):
            Values below it predict an error, for first-error detection.
        hard_labels (`bool`, *optional*, defaults to `True`):
            Whether labels may be judgements. `False` for shares of rollouts, of which some are 0 or 1 by chance.

    Returns:
        `dict[str, float]`: `num_labels`, `cross_entropy` (nats), `brier`, `ece`, `auroc`, `spearman`, `mean_value`,
        `mean_label`, `brier_step_1` to `brier_step_4` and `brier_step_later`; where every label is a
        judgement, 0 or 1, also `process_bench_f1`, `process_bench_error_accuracy` and
        `process_bench_correct_accuracy`. What cannot be computed (one class only, no step at a position) is left out.

    Raises:
        `ValueError`: If the shapes differ or are not (B, S).
    """
    rows, label_rows = _rows(values), _rows(labels)
    predicted, wanted = value_label_pairs(rows, label_rows)
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
    for position in range(min(MAX_POSITIONS, rows.shape[1])):
        found[f"brier_step_{position + 1}"] = brier_score(rows[:, position], label_rows[:, position])
    if rows.shape[1] > MAX_POSITIONS:
        found["brier_step_later"] = brier_score(rows[:, MAX_POSITIONS:], label_rows[:, MAX_POSITIONS:])
    if hard_labels and len(wanted) and np.isin(wanted, (0.0, 1.0)).all():
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
        `dict[str, float]`: The metrics of `verifier_metrics`, `loss` (the cross-entropy of steps
        and prompts together) and `brier_prompt`.
    """
    size = max((len(values) for values, _ in records), default=1)
    padded = np.full((2, len(records), size), np.nan)
    for i, (values, labels) in enumerate(records):
        padded[0, i, : len(values)], padded[1, i, : len(labels)] = values, labels
    # Only rollouts give the prompt a label.
    hard_labels = bool(np.isnan(padded[1, :, 0]).all())
    metrics = verifier_metrics(padded[0, :, 1:], padded[1, :, 1:], threshold, hard_labels=hard_labels)
    everything = value_label_pairs(padded[0], padded[1])
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
