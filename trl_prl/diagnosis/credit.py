"""How well the credit of a step follows its true advantage, and the weight of the progress at which it does best.

The effective reward of a step is a noisy signal of `A^pi`, plus `alpha` times the prover's progress with the error of
the verifier that tells it. Within a state, its covariance with `A^pi` is `own_variance + alpha * alignment`, and its
variance `own_variance + noise + 2 alpha * alignment + alpha² (distinguishability + verifier_error²)`. In RL the
signal is the outcome of one rollout, with `noise = outcome_variance - own_variance`; in a search it is `Q^pi` as a
verifier tells it, with `noise = verifier_error²`. The correlation, averaged over strata of depth, is called credit
here: at 1 every step is credited with its advantage, at 0 credit says nothing.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .terms import Array, Terms


Use = Literal["rl", "search"]

# Weights that are considered; papers use 0.2 to 6.
ALPHAS = np.concatenate([[0.0], np.geomspace(0.01, 100.0, 121)])


def signal_noise(terms: Terms, verifier_error: float, use: Use = "rl") -> Array:
    """Variance of the signal of `A^pi` beyond `A^pi` itself.

    Args:
        terms ([`Terms`]):
            The moments.
        verifier_error (`float`):
            Root-mean-square error of a verifier's progress, in units of probability.
        use (`str`, *optional*, defaults to `"rl"`):
            `"rl"`: the outcome of one rollout. `"search"`: a verifier's value.

    Returns:
        `np.ndarray` of shape (..., H, 1): Not negative.

    Raises:
        `ValueError`: When the error is negative or the use unknown.
    """
    if verifier_error < 0 or use not in ("rl", "search"):
        raise ValueError(
            f"Got verifier_error={verifier_error} and use={use!r}. An error is not negative, and there are two uses. "
            "Give 0 for exact values, and 'rl' or 'search'."
        )
    if use == "search":
        return np.full_like(terms.own_variance, verifier_error**2)
    return np.clip(terms.outcome_variance - terms.own_variance, 0.0, None)


def credit(terms: Terms, alpha: ArrayLike, verifier_error: float, use: Use = "rl") -> Array:
    """Correlation of a step's credit with its advantage `A^pi` within a state, averaged over strata by their visits.

    Args:
        terms ([`Terms`]):
            The moments.
        alpha (`float` or `array` of shape (C,)):
            Weight of the progress.
        verifier_error (`float`):
            Root-mean-square error of a verifier's progress, in units of probability.
        use (`str`, *optional*, defaults to `"rl"`):
            `"rl"` or `"search"`.

    Returns:
        `np.ndarray` of shape (..., C): In [-1, 1] up to the noise of estimates. Strata where the estimated variance of
        the policy's own values is not positive have no correlation, and are left out for every candidate; NaN without
        any other.
    """
    weight = np.asarray(alpha, dtype=float)
    covariance = terms.own_variance + weight * terms.alignment
    variance = terms.own_variance + signal_noise(terms, verifier_error, use) + 2 * weight * terms.alignment
    variance = variance + weight**2 * (terms.distinguishability + verifier_error**2)
    product = terms.own_variance * variance
    # Estimates of small variances may leave none for one candidate: its credit there counts as 0.
    correlation = np.where(product > 0, covariance / np.sqrt(np.where(product > 0, product, 1.0)), 0.0)
    share = np.where(terms.own_variance > 0, terms.share, 0.0)
    total = share.sum(-2)
    return (share * correlation).sum(-2) / np.where(total > 0, total, np.nan)


def best_credit(terms: Terms, verifier_error: float, use: Use = "rl") -> tuple[Array, Array]:
    """Highest [`credit`] over the weights that are considered, and that weight.

    In a single stratum the weight is `alignment * noise / (own_variance * (distinguishability + verifier_error²) -
    alignment²)`: none if the prover is not aligned, and no limit if its progress is the policy's exact advantage.

    Args:
        terms ([`Terms`]):
            The moments.
        verifier_error (`float`):
            Root-mean-square error of a verifier's progress, in units of probability.
        use (`str`, *optional*, defaults to `"rl"`):
            `"rl"` or `"search"`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Credit and weight, each of shape (..., C).
    """
    curve = credit_curve(terms, verifier_error, use)
    # Undefined for all weights or for none; of equally good ones the lowest.
    place = np.where(np.isnan(curve), -np.inf, curve).argmax(0)
    return np.take_along_axis(curve, place[None], 0)[0], ALPHAS[place]


def alpha_range(terms: Terms, verifier_error: float, use: Use = "rl", share: float = 0.9) -> tuple[Array, Array]:
    """Weights that reach most of what the best one adds to `alpha = 0`.

    Args:
        terms ([`Terms`]):
            The moments, without leading axes.
        verifier_error (`float`):
            Root-mean-square error of a verifier's progress, in units of probability.
        use (`str`, *optional*, defaults to `"rl"`):
            `"rl"` or `"search"`.
        share (`float`, *optional*, defaults to `0.9`):
            How much of it.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Lowest and highest such weight among those considered, each of shape (C,);
        both 0 where no weight adds anything.
    """
    curve = credit_curve(terms, verifier_error, use)
    start, best = curve[0], curve.max(0)
    enough = curve >= start + share * (best - start)
    low, high = ALPHAS[enough.argmax(0)], ALPHAS[len(ALPHAS) - 1 - enough[::-1].argmax(0)]
    adds = best > start
    return np.where(adds, low, 0.0), np.where(adds, high, 0.0)


def credit_curve(terms: Terms, verifier_error: float, use: Use = "rl") -> Array:
    """[`credit`] at every weight in `ALPHAS`.

    Args:
        terms ([`Terms`]):
            The moments.
        verifier_error (`float`):
            Root-mean-square error of a verifier's progress, in units of probability.
        use (`str`, *optional*, defaults to `"rl"`):
            `"rl"` or `"search"`.

    Returns:
        `np.ndarray` of shape (len(ALPHAS), ..., C): The curves.
    """
    return np.stack([credit(terms, alpha, verifier_error, use) for alpha in ALPHAS])
