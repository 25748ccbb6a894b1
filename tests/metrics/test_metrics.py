"""Estimators over samples against brute force, and by hand."""

from __future__ import annotations

import math
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from trl_prl.metrics.aggregation import best_of_n, majority_vote
from trl_prl.metrics.sampling_estimates import best_at_k, bootstrap_pass_at_k, maj_at_k, mean_pass_at_k, pass_at_k


counts = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(counts)
def test_pass_at_k_is_the_mean_over_subsets(case: tuple[int, int, int]) -> None:
    n, c, k = case
    samples = [True] * c + [False] * (n - c)
    subsets = list(combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))
    # None of k drawn without replacement is right.
    assert pass_at_k(n, c, k) == pytest.approx(1 - hypergeom.pmf(0, n, c, k))


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


def test_bootstrap_draws_with_replacement() -> None:
    """Its mean is 1 - (1 - c/n)^k, which is not what the unbiased estimator gives."""
    estimate = bootstrap_pass_at_k(16, 2, 8, num_draws=200_000)
    assert estimate == pytest.approx(1 - (1 - 2 / 16) ** 8, abs=0.005)
    assert pass_at_k(16, 2, 8) == pytest.approx(1 - (8 * 7) / (16 * 15))
    # With one right sample of four, all four are right without replacement, and 1 - (3/4)^4 with it.
    assert pass_at_k(4, 1, 4) == 1.0
    assert bootstrap_pass_at_k(4, 1, 4, num_draws=200_000) == pytest.approx(175 / 256, abs=0.005)


def test_bootstrap_is_seeded_and_counts_draws() -> None:
    estimates = [bootstrap_pass_at_k(10, 3, 2, seed=seed) for seed in (0, 0, 1)]
    assert estimates[0] == estimates[1] != estimates[2]
    assert (estimates[0] * 1000).is_integer()
    assert (bootstrap_pass_at_k(5, 0, 9), bootstrap_pass_at_k(5, 5, 9)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="0 <= correct <= samples"):
        bootstrap_pass_at_k(0, 0, 1)


votes = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=5)


def over_orders(samples: list[Any], k: int, choose: Any) -> float:
    """Mean over all ordered choices of k samples of whether the chosen one is correct."""
    outcomes = [choose(chosen) for chosen in permutations(samples, k)]
    return sum(outcomes) / len(outcomes)


@given(votes, st.data())
def test_maj_is_the_mean_over_ordered_subsets(samples: list[tuple[str | None, bool]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))

    def winner(chosen: tuple[tuple[str | None, bool], ...]) -> float:
        answers = [answer for answer, _ in chosen]
        if not any(answers):
            return 0.0
        won = answers[majority_vote(answers)]
        # Of samples that agree in their answer the vote does not prefer one, so the share in all samples counts.
        marks = [right for answer, right in samples if answer == won]
        return sum(marks) / len(marks)

    answers, correct = [answer for answer, _ in samples], [right for _, right in samples]
    assert maj_at_k(answers, correct, k) == pytest.approx(over_orders(samples, k, winner))
    assert maj_at_k(answers[::-1], correct[::-1], k) == pytest.approx(maj_at_k(answers, correct, k))


def test_maj_by_hand() -> None:
    answers, correct = ["1", "2", "2", "3"], [False, True, True, False]
    assert maj_at_k(answers, correct, 1) == pytest.approx(0.5)
    # Pairs: {2,2} is right; the four with one 2 are a tie, right half of the time; {1,3} is wrong.
    assert maj_at_k(answers, correct, 2) == pytest.approx((1 + 4 / 2) / 6)
    assert maj_at_k(answers, correct, 4) == pytest.approx(1.0)
    assert maj_at_k([None, None], [True, True], 2) == 0.0
    # Far beyond what float64 can hold as numbers of subsets.
    many = ["a"] * 1200 + ["b"] * 800
    subsets = sum(math.comb(1200, a) * math.comb(800, 51 - a) for a in range(26, 52))
    assert maj_at_k(many, [True] * 1200 + [False] * 800, 51) == pytest.approx(subsets / math.comb(2000, 51))
    assert maj_at_k(many, [True] * 1200 + [False] * 800, 1) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="Draw more samples or lower k"):
        maj_at_k(answers, correct, 5)


scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, -math.inf, math.nan, None]), st.booleans()), min_size=1, max_size=5
)


@given(scored, st.data())
def test_best_is_the_mean_over_ordered_subsets(samples: list[tuple[float | None, bool]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    scores, correct = [score for score, _ in samples], [right for _, right in samples]
    expected = over_orders(samples, k, lambda chosen: chosen[best_of_n([score for score, _ in chosen])][1])
    assert best_at_k(scores, correct, k) == pytest.approx(expected)


def test_best_by_hand() -> None:
    assert best_at_k([0.1, 0.9, 0.5], [True, False, True], 2) == pytest.approx(1 / 3)
    assert best_at_k([0.1, 0.9, 0.5], [True, False, True], 1) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one mark per score"):
        best_at_k([0.1], [True, False], 1)
