"""Intervals and paired tests over problems: bootstrap, permutation and exact McNemar, as SciPy has them.

Layer 0: no model, no trainer. The unit that is resampled is the problem, never the sample: samples of one problem are
alike, and intervals that treat them as independent are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


# Numbers drawn at a time, so that many problems do not take the memory.
_CHUNK = 1 << 22


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over problems, by [`scipy.stats.bootstrap`].

    Source: Efron, *Bootstrap Methods: Another Look at the Jackknife*, Annals of Statistics 7(1), 1979. Where all
    values are equal it has no width; for values of 0 and 1 alone use [`value_interval`], which has one. Of paired
    differences it is the paired interval.

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
    if not 0 < confidence < 1 or num_draws < 1:
        raise ValueError(
            f"Got confidence={confidence} and num_draws={num_draws}. An interval has some coverage, never all of it, "
            "and comes from at least one draw. Use a confidence in (0, 1) and 1,000 draws or more."
        )
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        value = float(array[0]) if len(array) else math.nan
        return value, value
    from scipy.stats import bootstrap

    low, high = bootstrap(
        (array,),
        np.mean,
        n_resamples=num_draws,
        confidence_level=confidence,
        method="percentile",
        batch=max(1, _CHUNK // len(array)),
        rng=seed,
    ).confidence_interval
    return float(low), float(high)


def bootstrap_metrics(
    compute: Callable[[NDArray[np.int64]], Mapping[str, float]],
    groups: Sequence[int],
    confidence: float = 0.95,
    num_draws: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of metrics that are no means, over groups of solutions.

    By hand, as SciPy's bootstrap knows neither groups nor several metrics of one draw, some of them undefined.

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
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    blocks = [np.flatnonzero(place == group) for group in range(place.max(initial=-1) + 1)]
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


def mcnemar_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact McNemar test of two models that gave one answer each to the same problems.

    [`scipy.stats.binomtest`] of the problems that only one of them solved: under the null hypothesis either is as
    likely to be the one. Source: McNemar, *Note on the Sampling Error of the Difference between Correlated Proportions
    or Percentages*, Psychometrika 12, 1947, in its exact form.

    Args:
        first (`Sequence[float]`):
            Which problems the first model solved: 1 or `True`, else 0 or `False`.
        second (`Sequence[float]`):
            Which problems the second one solved, in the same order.

    Returns:
        `float`: p-value, in (0, 1]; 1 where the two differ on no problem.

    Raises:
        `ValueError`: if the lengths differ.
    """
    differences = _differences(first, second)
    only_first, differing = int((differences > 0).sum()), int((differences != 0).sum())
    if not differing:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, differing).pvalue)


def permutation_test(first: Sequence[float], second: Sequence[float], num_draws: int = 10_000, seed: int = 0) -> float:
    """Paired permutation test of the mean difference over problems, two-sided, by [`scipy.stats.permutation_test`].

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
        `ValueError`: if the lengths differ.
    """
    differences = _differences(first, second)
    differences = differences[differences != 0]
    # Where nothing differs, or one problem does, no pattern is more extreme than the observed one.
    if len(differences) < 2:
        return 1.0
    from scipy.stats import permutation_test as test

    def statistic(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        # Sums that are equal but for rounding count as equal.
        return np.round(values.mean(axis=axis), 12)

    found = test(
        (differences,),
        statistic,
        permutation_type="samples",
        n_resamples=num_draws,
        batch=max(1, _CHUNK // len(differences)),
        rng=seed,
    )
    return float(found.pvalue)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that any false alarm among them has the stated probability.

    Source: Holm, *A Simple Sequentially Rejective Multiple Test Procedure*, Scandinavian Journal of Statistics 6(2),
    1979. By hand, as SciPy adjusts for the rate of false discoveries only.

    Args:
        p_values (`Sequence[float]`):
            p-values, in [0, 1].

    Returns:
        `list[float]`: Adjusted ones in the same order, in [0, 1], none below its own.
    """
    array = np.asarray(p_values, dtype=np.float64)
    order, adjusted = np.argsort(array), np.empty(len(array))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(array), 0, -1) * array[order]))
    return adjusted.tolist()


def _differences(first: Sequence[float], second: Sequence[float]) -> NDArray[np.float64]:
    if len(first) != len(second):
        raise ValueError(
            f"Got values of {len(first)} and of {len(second)} problems, but a paired test compares two values of each "
            "problem. Pass the problems that both have, in the same order."
        )
    return np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
