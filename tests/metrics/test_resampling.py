"""Intervals and paired tests over problems: by hand, against enumeration, and their coverage."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.metrics.resampling import (
    bootstrap_interval,
    bootstrap_metrics,
    holm_adjusted,
    mcnemar_test,
    permutation_test,
)


def test_bootstrap_interval_of_two_problems_by_hand() -> None:
    """Means of two draws of {0, 1} are 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4."""
    assert bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0], confidence=0.9) == (0.0, 1.0)


def test_bootstrap_interval_is_seeded_and_within_the_values() -> None:
    values = [0.1, 0.4, 0.4, 0.9]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert len({bootstrap_interval(values, num_draws=10, seed=seed) for seed in range(9)}) > 1
    low, high = bootstrap_interval(values, 0.999999)
    assert (low, high) == pytest.approx((0.1, 0.9))
    assert bootstrap_interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    assert all(math.isnan(end) for end in bootstrap_interval([]))
    # SciPy refuses a single value.
    assert bootstrap_interval([0.3]) == (0.3, 0.3)


def test_bootstrap_interval_covers() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(generator.beta(2, 3, size=60), 0.9, num_draws=400, seed=seed)
        hits += low <= 0.4 <= high
    assert 0.84 <= hits / 200 <= 0.96


def test_bootstrap_draws_problems_as_a_whole() -> None:
    values = np.array([0.0] * 50 + [1.0] * 50)
    by_sample = bootstrap_metrics(lambda rows: {"mean": float(values[rows].mean())}, list(range(100)))
    by_problem = bootstrap_metrics(lambda rows: {"mean": float(values[rows].mean())}, [0] * 50 + [1] * 50)
    assert by_problem["mean"] == (0.0, 1.0)
    assert 0.3 < by_sample["mean"][0] < by_sample["mean"][1] < 0.7
    assert bootstrap_metrics(lambda rows: {"never": math.nan}, [0, 1]) == {}


def test_mcnemar_by_hand() -> None:
    # Five problems only the first solved, one only the second: 2 (1 + 6) / 2^6.
    first = [True] * 5 + [False] + [True, False] * 4
    second = [False] * 5 + [True] + [True, False] * 4
    assert mcnemar_test(first, second) == pytest.approx(14 / 64)
    assert mcnemar_test(second, first) == mcnemar_test(first, second)
    assert mcnemar_test([True] * 10, [False] * 10) == pytest.approx(2 / 1024)
    assert mcnemar_test(first, first) == 1.0
    assert 0 < mcnemar_test([True] * 900, [False] * 900) < 1e-200


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=7))
def test_few_problems_are_tested_exactly(pairs: list[tuple[int, int]]) -> None:
    first, second = [a / 4 for a, _ in pairs], [b / 4 for _, b in pairs]
    observed = abs(sum(a - b for a, b in pairs))
    patterns = list(product((1, -1), repeat=len(pairs)))
    extreme = sum(
        abs(sum(s * (a - b) for s, (a, b) in zip(signs, pairs, strict=True))) >= observed for signs in patterns
    )
    assert permutation_test(first, second) == pytest.approx(extreme / len(patterns))


def test_many_problems_are_tested_by_draws() -> None:
    generator = np.random.default_rng(0)
    first = generator.random(200)
    # SciPy doubles the smaller tail, each of which counts the observed pattern.
    assert permutation_test(first, first - 0.1) == pytest.approx(2 / 10_001)
    noisy = first + generator.normal(size=200)
    assert 0.01 < permutation_test(first, noisy) <= 1
    assert permutation_test(first, noisy) == permutation_test(first, noisy)


def test_single_answers_give_what_mcnemar_gives() -> None:
    first, second = [1.0] * 9 + [0.0] * 3, [0.0] * 9 + [1.0] * 3
    exact = mcnemar_test([bool(x) for x in first], [bool(x) for x in second])
    assert permutation_test(first, second) == pytest.approx(exact)


def test_sums_that_differ_by_rounding_alone_are_ties() -> None:
    """All 2^4 sign patterns of four tenths have a sum of at least 0.2 but those with two of each sign."""
    first = [0.1, 0.2, 0.3, 0.4]
    second = [0.2, 0.1, 0.2, 0.3]  # differences -0.1, 0.1, 0.1, 0.1 but for rounding
    assert permutation_test(first, second) == pytest.approx(10 / 16)
    assert permutation_test([0.3], [0.1]) == permutation_test([0.3], [0.3]) == 1.0


def test_pairs_must_fit() -> None:
    for function in (mcnemar_test, permutation_test):
        with pytest.raises(ValueError, match="the same order"):
            function([1.0], [1.0, 0.0])  # type: ignore[operator]


def test_holm_by_hand() -> None:
    assert holm_adjusted([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm_adjusted([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjusted([]) == []


@pytest.mark.parametrize(("confidence", "num_draws"), [(0.0, 10), (1.0, 10), (0.9, 0)])
def test_settings_without_sense_are_refused(confidence: float, num_draws: int) -> None:
    with pytest.raises(ValueError, match="at least one draw"):
        bootstrap_interval([0.5], confidence, num_draws)
