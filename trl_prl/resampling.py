"""Intervals and paired tests over problems: bootstrap, permutation and exact McNemar.

Layer 0: NumPy only, no model, no trainer. The unit that is resampled is the problem, never the sample: samples of one
problem are alike, and intervals that treat them as independent are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


# Numbers drawn at a time, so that many problems do not take the memory.
_CHUNK = 1 << 22
# Sign patterns that are enumerated instead of drawn.
_EXACT_PROBLEMS = 14


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over problems.

    Source: Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 7(1), 1979. Where all
    values are equal it has no width; for values of 0 and 1 alone use [`wilson_interval`], which has one.

    Args:
        values (`Sequence[float]`):
            One value per problem: the fraction of its samples that is correct, for instance.
        confidence (`float`, *optional*, defaults to `0.95`):
            Nominal coverage, in (0, 1).
        num_draws (`int`, *optional*, defaults to `2000`):
            Resampled sets of problems.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `tuple[float, float]`: Both ends, within the range of the values; NaN where there are none.

    Raises:
        `ValueError`: if the confidence or the number of draws is out of range.
    """
    _check(confidence, num_draws)
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return math.nan, math.nan
    means = _bootstrap_means(array, num_draws, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mcnemar_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact McNemar test of two models that gave one answer each to the same problems.

    Two-sided binomial test of the problems that only one of them solved: under the null hypothesis either is as likely
    to be the one. Source: McNemar, *Note on the Sampling Error of the Difference between Correlated Proportions or
    Percentages*, Psychometrika 12, 1947, in its exact form.

    Args:
        first (`Sequence[bool]`):
            Which problems the first model solved.
        second (`Sequence[bool]`):
            Which problems the second one solved, in the same order.

    Returns:
        `float`: p-value, in (0, 1]; 1 where the two differ on no problem.

    Raises:
        `ValueError`: if the lengths differ.
    """
    _check_pairs(first, second)
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    differing = only_first + only_second
    tail = sum(math.comb(differing, i) for i in range(min(only_first, only_second) + 1))
    # Whole numbers up to the last division: the tail of a thousand problems is still exact.
    return min(1.0, 2 * tail / 2**differing)


def permutation_test(first: Sequence[float], second: Sequence[float], num_draws: int = 10_000, seed: int = 0) -> float:
    """Paired permutation test of the mean difference over problems, two-sided.

    Under the null hypothesis the two values of a problem could be exchanged, so the signs of the differences are
    flipped at random; with few problems all patterns are counted instead, and the test is exact. Source: Dror et al.,
    *The Hitchhiker's Guide to Testing Statistical Significance in NLP*, ACL 2018, section 3.2.

    Args:
        first (`Sequence[float]`):
            One value per problem of the first model, such as its fraction of correct samples.
        second (`Sequence[float]`):
            The same of the second one, in the same order.
        num_draws (`int`, *optional*, defaults to `10_000`):
            Random patterns of signs.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `float`: p-value, in (0, 1]; drawn ones count the observed pattern too, so that it is never 0.

    Raises:
        `ValueError`: if the lengths differ or there is no draw.
    """
    _check_pairs(first, second)
    _check(0.5, num_draws)
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    differences = differences[differences != 0]
    # Sums that are equal but for rounding count as equal.
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    size = len(differences)
    if size <= _EXACT_PROBLEMS:
        signs = 1 - 2 * (np.arange(2**size)[:, None] >> np.arange(size) & 1)
        return float((np.abs(signs @ differences) >= observed).mean())
    generator, extreme, left = np.random.default_rng(seed), 0, num_draws
    while left:
        rows = min(left, max(1, _CHUNK // size))
        signs = 1 - 2 * generator.integers(2, size=(rows, size), dtype=np.int8)
        extreme += int((np.abs(signs @ differences) >= observed).sum())
        left -= rows
    return (extreme + 1) / (num_draws + 1)


def difference_interval(
    first: Sequence[float],
    second: Sequence[float],
    confidence: float = 0.95,
    num_draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Paired percentile bootstrap interval of the mean of `first - second` over problems.

    Args:
        first (`Sequence[float]`):
            One value per problem of the first model.
        second (`Sequence[float]`):
            The same of the second one, in the same order.
        confidence (`float`, *optional*, defaults to `0.95`):
            Nominal coverage, in (0, 1).
        num_draws (`int`, *optional*, defaults to `2000`):
            Resampled sets of problems; both values of a problem stay together.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `tuple[float, float]`: Both ends; NaN where there is no problem.

    Raises:
        `ValueError`: if the lengths differ, or the confidence or the number of draws is out of range.
    """
    _check_pairs(first, second)
    return bootstrap_interval([a - b for a, b in zip(first, second, strict=True)], confidence, num_draws, seed)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that any false alarm among them has the stated probability.

    Source: Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian Journal of Statistics 6(2),
    1979.

    Args:
        p_values (`Sequence[float]`):
            p-values, in [0, 1].

    Returns:
        `list[float]`: Adjusted ones in the same order, in [0, 1], none below its own.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _bootstrap_means(array: NDArray[np.float64], num_draws: int, seed: int) -> NDArray[np.float64]:
    generator, means, left = np.random.default_rng(seed), [], num_draws
    while left:
        rows = min(left, max(1, _CHUNK // len(array)))
        means.append(array[generator.integers(len(array), size=(rows, len(array)))].mean(axis=1))
        left -= rows
    return np.concatenate(means)


def _check(confidence: float, num_draws: int) -> None:
    if not 0 < confidence < 1 or num_draws < 1:
        raise ValueError(
            f"Got confidence={confidence} and num_draws={num_draws}. An interval has some coverage, never all of it, "
            "and comes from at least one draw. Use a confidence in (0, 1) and 1,000 draws or more."
        )


def _check_pairs(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"Got values of {len(first)} and of {len(second)} problems, but a paired test compares two values of each "
            "problem. Pass the problems that both have, in the same order."
        )
