"""pass@k against brute force, and by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.metrics import mean_pass_at_k, pass_at_k


counts = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(counts)
def test_pass_at_k_is_the_mean_over_subsets(case: tuple[int, int, int]) -> None:
    n, c, k = case
    samples = [True] * c + [False] * (n - c)
    subsets = list(combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


@given(counts)
def test_pass_at_k_grows_with_k_and_ends_at_one(case: tuple[int, int, int]) -> None:
    n, c, k = case
    if k < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1)
    if n - c < k:
        assert pass_at_k(n, c, k) == 1.0


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)  # 3 of the 6 pairs hold the one right sample
    assert pass_at_k(10, 0, 5) == 0.0
    assert pass_at_k(100_000, 1, 1) == pytest.approx(1e-5)


def test_mean_over_problems() -> None:
    correct = [[True, False], [False, False]]
    assert mean_pass_at_k(correct, 1) == pytest.approx(0.25)
    assert mean_pass_at_k(correct, 2) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="Draw more samples or lower k"):
        pass_at_k(n, c, k)


def test_no_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="no mean of nothing"):
        mean_pass_at_k([], 1)
