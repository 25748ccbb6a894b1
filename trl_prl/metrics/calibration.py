"""Calibration: the mean label against the mean value, in bins; and how well logits say outcomes.

Layer 0: no model, no trainer. scikit-learn's `calibration_curve` and `brier_score_loss` take hard labels only; here a
label may be the share of rollouts that succeeded. On hard labels they agree.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def calibration_bins(values: ArrayLike, labels: ArrayLike, num_bins: int = 10) -> list[dict[str, Any]]:
    """Mean value against mean label in bins of equal width: the points of a reliability diagram.

    Args:
        values (`ArrayLike`):
            Predicted probabilities, in [0, 1], of any shape; NaN where there is none.
        labels (`ArrayLike`):
            Labels in [0, 1], of the same shape; NaN where there is none.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.

    Returns:
        `list[dict]`: One entry per bin with `low`, `high`, `num`, `mean_value` and `mean_label`; the means of an empty
        bin are `None`.

    Raises:
        `ValueError`: If there is no bin or the shapes differ.
    """
    if num_bins < 1:
        raise ValueError(f"Got num_bins={num_bins}. Without a bin nothing can be compared. Use 1 or more, such as 10.")
    pairs = value_label_pairs(values, labels)
    # A value of exactly 1 belongs to the last bin.
    places = np.minimum((pairs[0] * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for place in range(num_bins):
        inside = [side[places == place] for side in pairs]
        means = [float(side.mean()) if len(side) else None for side in inside]
        ends = {"low": place / num_bins, "high": (place + 1) / num_bins}
        bins.append({**ends, "num": len(inside[0]), "mean_value": means[0], "mean_label": means[1]})
    return bins


def expected_calibration_error(values: ArrayLike, labels: ArrayLike, num_bins: int = 10) -> float:
    """Mean distance between the mean value and the mean label in bins of equal width, weighted by their sizes.

    Source: Guo et al., [On Calibration of Modern Neural Networks](https://huggingface.co/papers/1706.04599), eq. 3;
    with soft labels the mean label stands for the accuracy.

    Args:
        values (`ArrayLike`):
            Predicted probabilities, in [0, 1], of any shape; NaN where there is none.
        labels (`ArrayLike`):
            Labels in [0, 1], of the same shape; NaN where there is none.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.

    Returns:
        `float`: The error, in [0, 1], lower is better; NaN without a pair of value and label.

    Raises:
        `ValueError`: If there is no bin or the shapes differ.
    """
    filled = [entry for entry in calibration_bins(values, labels, num_bins) if entry["num"]]
    total = sum(entry["num"] for entry in filled)
    gaps = [entry["num"] * abs(entry["mean_value"] - entry["mean_label"]) for entry in filled]
    return math.fsum(gaps) / total if total else math.nan


def value_label_pairs(values: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and labels where both exist, flattened.

    Args:
        values (`ArrayLike`):
            Values of any shape, NaN where there is none.
        labels (`ArrayLike`):
            Labels of the same shape, NaN where there is none.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Both, of shape (N,).

    Raises:
        `ValueError`: If the shapes differ.
    """
    predicted, wanted = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if predicted.shape != wanted.shape:
        raise ValueError(
            f"Got values of shape {predicted.shape} and labels of shape {wanted.shape}. They are compared entry by "
            "entry and must not broadcast. Pass two arrays of the same shape."
        )
    both = ~(np.isnan(predicted) | np.isnan(wanted))
    return predicted[both], wanted[both]


def fit_calibration(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Fit `sigmoid(logit / temperature + offset)` to soft labels by cross-entropy.

    Source: Platt scaling, and for the temperature alone Guo et al.,
    [On Calibration of Modern Neural Networks](https://huggingface.co/papers/1706.04599), section 4.2.

    Args:
        logits (`ArrayLike`):
            Logits before calibration, of any shape; NaN where there is none.
        labels (`ArrayLike`):
            Labels in [0, 1], of the same shape; NaN where there is none.

    Returns:
        `tuple[float, float]`: Temperature, positive, and offset.

    Raises:
        `ValueError`: If no label goes with a logit.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    x, y = value_label_pairs(logits, labels)
    if not len(x):
        raise ValueError(
            f"None of {np.size(logits)} places has a score and a label, so there is nothing to fit. Pass labels "
            "between 0 and 1 for some of the steps."
        )
    # A thousandth of a label on either side keeps the fit finite where the labels are separable.
    y = y.clip(1e-3, 1 - 1e-3)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # The slope as a logarithm: the temperature stays positive, and with it the order of values.
        slope = np.exp(parameters[0])
        fitted = slope * x + parameters[1]
        errors = expit(fitted) - y
        gradient = np.array([(errors * x).mean() * slope, errors.mean()])
        return float((np.logaddexp(0, fitted) - y * fitted).mean()), gradient

    log_slope, offset = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return float(np.exp(-log_slope)), float(offset)


def outcome_metrics(logits: ArrayLike, outcomes: ArrayLike) -> dict[str, float]:
    """How well logits say outcomes.

    Args:
        logits (`ArrayLike`):
            Logits of shape (N,), N at least 1.
        outcomes (`ArrayLike`):
            What came of each, in [0, 1], of shape (N,).

    Returns:
        `dict[str, float]`: `loss`, the mean cross-entropy in nats, and `auroc` of outcomes above 0.5, where both kinds
        occur.
    """
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    found = {"loss": float((np.logaddexp(0, x) - y * x).mean())}
    right = y > 0.5
    if right.any() and not right.all():
        from sklearn.metrics import roc_auc_score

        found["auroc"] = float(roc_auc_score(right, x))
    return found
