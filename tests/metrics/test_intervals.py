"""Intervals of a success probability: by hand, against their definitions, and as a stopping rule."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.metrics.intervals import SequentialRule, value_interval


counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
confidences = st.floats(0.05, 0.999)
KINDS = ["wilson", "beta"]


def test_wilson_by_hand() -> None:
    # z = 1.959964: z²/n = 0.384146, centre (0.5 + 0.192073) / 1.384146, for 5 of 10.
    low, high = value_interval(5, 10)
    assert (low, high) == pytest.approx((0.236593, 0.763407), abs=1e-6)
    # 0 of n: the upper end is z² / (n + z²).
    assert value_interval(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)


def test_beta_by_hand() -> None:
    # 0 of n: (1 - p)^n = alpha / 2.
    assert value_interval(0, 10, kind="beta") == pytest.approx((0.0, 1 - 0.025**0.1), abs=1e-9)
    assert value_interval(10, 10, kind="beta") == pytest.approx((0.025**0.1, 1.0), abs=1e-9)
    # 1 of 2 at 50 %: P(X >= 1) = 1 - (1 - p)^2 = 0.25 below, p^2 = 0.25 from above mirrored.
    assert value_interval(1, 2, 0.5, "beta") == pytest.approx((1 - math.sqrt(0.75), math.sqrt(0.75)), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(counted=counts, confidence=confidences)
def test_intervals_contain_the_rate_and_mirror(kind: str, counted: tuple[int, int], confidence: float) -> None:
    num_correct, n = counted
    low, high = value_interval(num_correct, n, confidence, kind)  # type: ignore[arg-type]
    assert 0 <= low <= num_correct / n + 1e-9
    assert num_correct / n - 1e-9 <= high <= 1
    mirrored = value_interval(n - num_correct, n, confidence, kind)  # type: ignore[arg-type]
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(counted=counts)
def test_more_confidence_is_wider_and_more_rollouts_narrower(kind: str, counted: tuple[int, int]) -> None:
    num_correct, n = counted

    def width(correct: int, rollouts: int, confidence: float) -> float:
        low, high = value_interval(correct, rollouts, confidence, kind)  # type: ignore[arg-type]
        return high - low

    assert width(num_correct, n, 0.95) > width(num_correct, n, 0.8)
    assert width(4 * num_correct, 4 * n, 0.9) < width(num_correct, n, 0.9)


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 300), confidence=confidences)
def test_interval_at_none_and_at_all_has_a_width(kind: str, n: int, confidence: float) -> None:
    """A Wald interval has none, so that adaptive sampling stops at once."""
    for num_correct in (0, n):
        low, high = value_interval(num_correct, n, confidence, kind)  # type: ignore[arg-type]
        assert high - low > 1e-5


@pytest.mark.parametrize("p", [0.02, 0.1, 0.37, 0.5, 0.8])
@pytest.mark.parametrize("n", [5, 20, 60])
def test_beta_covers_at_least_its_confidence(p: float, n: int) -> None:
    """The exact coverage: the sum of binomial probabilities of the counts whose interval has `p` in it."""
    covered = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c)
        for c in range(n + 1)
        if (interval := value_interval(c, n, 0.9, "beta"))[0] <= p <= interval[1]
    )
    assert covered >= 0.9


def test_no_rollouts_say_nothing() -> None:
    assert value_interval(0, 0) == value_interval(0, 0, kind="beta") == (0.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_rule_spends_more_where_the_value_is_uncertain(kind: str) -> None:
    # At 0.5: sqrt(0.25) / n <= 0.02 for n = 25.
    rule = SequentialRule(tolerance=0.02, min_rollouts=4, max_rollouts=256, kind=kind)  # type: ignore[arg-type]
    assert not rule.settled(0, 1)
    assert not rule.settled(0, 4)

    def needed(rate: float) -> int:
        return next(n for n in range(1, 257) if rule.settled(round(rate * n), n))

    assert needed(0.0) == needed(1.0) < needed(0.1) <= needed(0.5) == 25


@given(st.integers(1, 20), st.integers(0, 300))
def test_rounds_add_up(first: int, more: int) -> None:
    rule = SequentialRule(min_rollouts=first, max_rollouts=first + more)
    assert sum(rule.rounds) == first + more
    assert min(rule.rounds) >= 1
    assert rule.rounds[0] == first


@pytest.mark.parametrize("p", [0.03, 0.3, 0.5])
def test_interval_at_the_stop_still_covers(p: float) -> None:
    """Looking again and again breaks an ordinary interval; the share of each look keeps the promise."""
    rule = SequentialRule(tolerance=0.01, max_rollouts=200, confidence=0.9, kind="beta")
    generator, misses, repeats = random.Random(0), 0, 400
    look = 1 - (1 - rule.confidence) / len(rule.rounds)
    for _ in range(repeats):
        correct = total = 0
        for size in rule.rounds:
            correct += sum(generator.random() < p for _ in range(size))
            total += size
            if rule.settled(correct, total):
                break
        low, high = value_interval(correct, total, look, "beta")
        misses += not low <= p <= high
    assert misses / repeats <= 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"tolerance": 0.5}, "tolerance"), ({"min_rollouts": 0}, "min_rollouts"), ({"kind": "wald"}, "Wald")],
)
def test_rule_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequentialRule(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [(3, 2), (-1, 2), (0, 1, 1.0), (0, 1, 0.0)])
def test_intervals_refuse(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="0 <= correct <= rollouts and a confidence in"):
        value_interval(*arguments)  # type: ignore[arg-type]
