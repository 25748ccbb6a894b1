"""Moments of values that are known from a few rollouts each: unbiased in spite of that noise, and possibly negative.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .terms import Array


@dataclass(frozen=True)
class Candidate:
    """A prover whose rollouts were counted, or Best-of-K of it.

    Args:
        prover (`int`):
            Row of the counts; 0 is the base policy itself.
        k (`int`, *optional*, defaults to `1`):
            K; 1 is the prover as it is.
    """

    prover: int
    k: int = 1


@dataclass(frozen=True)
class SampledState:
    """A state, the actions sampled there, and rollouts counted after each action.

    Zero rollouts say that the value is known: the action ended the solution, with `num_correct` (0 or 1) as its
    outcome.

    Args:
        problem (`int`):
            Number of its problem; problems are independent, states of one are not.
        depth (`int`):
            Steps of the prefix.
        num_visits (`int`):
            How often the base policy came here: the weight of the state.
        num_draws (`np.ndarray` of shape (A,)):
            How often each distinct action was sampled.
        num_rollouts (`np.ndarray` of shape (P, A)):
            Rollouts of each prover after each action.
        num_correct (`np.ndarray` of shape (P, A)):
            Correct ones among them.
        outcome_variance (`float`):
            Unbiased estimate of `V^pi(s) (1 - V^pi(s))`.
    """

    problem: int
    depth: int
    num_visits: int
    num_draws: NDArray[np.int64]
    num_rollouts: NDArray[np.int64]
    num_correct: NDArray[np.int64]
    outcome_variance: float


def failure_moment(num_rollouts: ArrayLike, num_correct: ArrayLike, power: int) -> Array:
    """Unbiased estimate of `(1 - Q)^power`, the probability that `power` rollouts all fail.

    `C(n - c, power) / C(n, power)`, the U-statistic behind pass@k (https://huggingface.co/papers/2107.03374). No
    function of fewer than `power` rollouts is unbiased: it would be a polynomial in Q of too low a degree.

    Args:
        num_rollouts (`array` of int):
            Rollouts n; 0 for a value that is known.
        num_correct (`array` of int):
            Correct ones c; for a known value, the value.
        power (`int`):
            Exponent, at least 1.

    Returns:
        `np.ndarray`: The estimates; NaN where `0 < n < power`.

    Raises:
        `ValueError`: When counts do not fit together or `power` is below 1.
    """
    total, correct = np.asarray(num_rollouts, dtype=float), np.asarray(num_correct, dtype=float)
    known = total == 0
    if power < 1 or np.any(correct < 0) or np.any(correct > np.where(known, 1, total)):
        raise ValueError(
            f"Got power={power} and counts of correct rollouts between {correct.min()} and {correct.max()} of "
            f"{total.min()} to {total.max()}, which do not fit together. Use power >= 1 and 0 <= correct <= rollouts, "
            "and 0 or 1 where no rollout was needed."
        )
    from scipy.special import comb

    subsets = np.where(total >= power, comb(total, power), np.nan)
    return np.where(known, 1.0 - correct, comb(total - correct, power) / subsets)


def draw_covariance(num_draws: ArrayLike, x: Array, y: Array, xy: Array) -> float:
    """Unbiased covariance of two values over the actions of a state.

    Half the mean of `(x_a - x_b) (y_a - y_b)` over all pairs of draws. A pair of equal actions has equal values and
    adds exactly nothing; other pairs need estimates of `x_a y_a` that are unbiased *within* an action, and this is
    where rollout noise is taken out.

    Args:
        num_draws (`array` of shape (A,)):
            How often each action was drawn; at least 2 draws in all.
        x (`np.ndarray` of shape (A,)):
            Unbiased estimates of the first value, independent between actions.
        y (`np.ndarray` of shape (A,)):
            Of the second one.
        xy (`np.ndarray` of shape (A,)):
            Unbiased estimates of their product.

    Returns:
        `float`: The estimate; it can be negative, also where `x` is `y`.

    Raises:
        `ValueError`: When there are fewer than two draws.
    """
    draws = np.asarray(num_draws, dtype=float)
    number = draws.sum()
    if number < 2:
        raise ValueError(
            f"Got {number:g} draws of a state, but a variance over actions needs two. Sample several next steps."
        )
    between = (draws * x).sum() * (draws * y).sum() - (draws**2 * x * y).sum()
    return float(((draws * (number - draws) * xy).sum() - between) / (number * (number - 1)))


def state_terms(state: SampledState, candidates: Sequence[Candidate]) -> Array:
    """Unbiased estimates of all moments of one state.

    Args:
        state ([`SampledState`]):
            The state.
        candidates (`Sequence[Candidate]`):
            The provers.

    Returns:
        `np.ndarray` of shape (2 C + 2,): Distinguishability of each candidate, alignment of each, own variance and
        outcome variance. NaN where an action has too few rollouts: 2 K for the first, K + 1 for the second.
    """

    def moment(prover: int, power: int) -> Array:
        return failure_moment(state.num_rollouts[prover], state.num_correct[prover], power)

    # Failures instead of successes: 1 - Q has the variance of Q, and (1 - Q)^K is what Best-of-K is made of.
    own = moment(0, 1)
    variances, covariances = [], []
    for candidate in candidates:
        fails = moment(candidate.prover, candidate.k)
        variances.append(draw_covariance(state.num_draws, fails, fails, moment(candidate.prover, 2 * candidate.k)))
        # Of the base policy's own rollouts both factors are made; those of another prover are independent of them.
        product = moment(0, candidate.k + 1) if candidate.prover == 0 else fails * own
        covariances.append(draw_covariance(state.num_draws, fails, own, product))
    variance = draw_covariance(state.num_draws, own, own, moment(0, 2))
    return np.array([*variances, *covariances, variance, state.outcome_variance])


def depth_strata(depths: ArrayLike, weights: ArrayLike, num_strata: int) -> NDArray[np.int64]:
    """Put depths into strata of about equal weight; equal depths are in the same one.

    Args:
        depths (`array` of int, of shape (S,)):
            Depth of each state.
        weights (`array` of shape (S,)):
            Its visits.
        num_strata (`int`):
            Strata; fewer come out where a single depth has more than its share.

    Returns:
        `np.ndarray` of shape (S,): Stratum of each state, from 0 without gaps.
    """
    distinct, place = np.unique(np.asarray(depths), return_inverse=True)
    mass = np.bincount(place, np.asarray(weights, dtype=float), len(distinct))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.unique((middle * num_strata).astype(np.int64), return_inverse=True)[1][place]


def problem_sums(
    states: Sequence[SampledState], candidates: Sequence[Candidate], num_strata: int = 1
) -> tuple[NDArray[np.int64], Array]:
    """Sum the moments of the states of each problem and stratum, by visits.

    Args:
        states (`Sequence[SampledState]`):
            States of all problems, each with every moment defined.
        candidates (`Sequence[Candidate]`):
            The provers.
        num_strata (`int`, *optional*, defaults to `1`):
            Strata of depth.

    Returns:
        `tuple`: Numbers of the problems, of shape (P,), and their sums of shape (P, H, 2 C + 3): visits, then visits
        times the moments of [`state_terms`].
    """
    problems = np.unique([state.problem for state in states])
    strata = depth_strata([state.depth for state in states], [state.num_visits for state in states], num_strata)
    sums = np.zeros((len(problems), strata.max() + 1, 2 * len(candidates) + 3))
    rows = np.searchsorted(problems, [state.problem for state in states])
    for state, row, stratum in zip(states, rows, strata, strict=True):
        sums[row, stratum] += state.num_visits * np.concatenate([[1.0], state_terms(state, candidates)])
    return problems, sums
