"""Credit, its best weight and its range: by hand, by reduction, and against the papers' weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.diagnosis.credit import ALPHAS, alpha_range, best_credit, credit, credit_curve
from trl_prl.diagnosis.terms import Terms


def one_stratum(own: float, outcome: float, distinguishability: float, alignment: float) -> Terms:
    return Terms(*(np.array([[value]]) for value in (1.0, distinguishability, alignment, own, outcome)))


def test_credit_by_hand() -> None:
    """(a + alpha c) / sqrt(a (o + 2 alpha c + alpha² (d + error²)))."""
    terms = one_stratum(own=0.04, outcome=0.16, distinguishability=0.05, alignment=0.03)
    assert credit(terms, 0.0, 0.1) == pytest.approx([0.5])
    assert credit(terms, 2.0, 0.1) == pytest.approx([0.1 / np.sqrt(0.04 * (0.16 + 0.12 + 4 * 0.06))])
    # In a search the signal is a verifier's value: 0.04 + 0.01 instead of 0.16.
    assert credit(terms, 0.0, 0.1, "search") == pytest.approx([np.sqrt(0.04 / 0.05)])
    with pytest.raises(ValueError, match="two uses"):
        credit(terms, 1.0, 0.1, "both")  # type: ignore[arg-type]


def test_credit_is_the_correlation_of_sampled_credit() -> None:
    """Simulated: an outcome with the probability of the sampled action, plus progress with a verifier's error."""
    rng = np.random.default_rng(0)
    policy, own, other = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.2, 0.4]), np.array([0.9, 0.3, 0.1])
    value = policy @ own
    mean = policy @ other
    terms = one_stratum(
        policy @ (own - value) ** 2,
        value * (1 - value),
        policy @ (other - mean) ** 2,
        policy @ ((own - value) * (other - mean)),
    )
    actions = rng.choice(3, size=400_000, p=policy)
    outcomes = rng.random(len(actions)) < own[actions]
    received = outcomes + 1.5 * (other[actions] + rng.normal(0, 0.1, len(actions)))
    found = np.corrcoef(received, own[actions])[0, 1]
    assert credit(terms, 1.5, 0.1) == pytest.approx([found], abs=0.005)


@given(st.floats(0.01, 0.1), st.floats(1.5, 10.0), st.floats(0.3, 3.0), st.floats(0.3, 0.95), st.floats(0.02, 0.1))
def test_best_weight_follows_the_formula(own: float, ratio: float, scale: float, rho: float, error: float) -> None:
    variance = own * scale
    alignment = rho * np.sqrt(own * variance)
    terms = one_stratum(own, own * ratio, variance, alignment)
    best, weight = best_credit(terms, error)
    expected = alignment * own * (ratio - 1) / (own * (variance + error**2) - alignment**2)
    # The grid has steps of 8 %.
    assert np.log(weight) == pytest.approx(np.log(np.clip(expected, ALPHAS[1], ALPHAS[-1])), abs=0.08)
    low, high = alpha_range(terms, error)
    assert low <= weight <= high
    assert best >= credit_curve(terms, error).max() - 1e-12


@given(st.floats(0.2, 5.0))
def test_a_scaled_prover_is_as_good_at_a_scaled_weight(scale: float) -> None:
    """Without a verifier's error only the product of weight and progress matters."""
    plain, scaled = one_stratum(0.03, 0.2, 0.05, 0.02), one_stratum(0.03, 0.2, 0.05 * scale**2, 0.02 * scale)
    assert credit(plain, 2.0, 0.0) == pytest.approx(credit(scaled, 2.0 / scale, 0.0))


def test_exact_advantages_need_no_outcome_and_misaligned_ones_no_weight() -> None:
    own = one_stratum(0.03, 0.2, 0.03, 0.03)
    best, weight = best_credit(own, 0.0)
    assert weight == pytest.approx([ALPHAS[-1]])
    assert best > 0.999
    against = one_stratum(0.03, 0.2, 0.05, -0.02)
    assert best_credit(against, 0.1)[1].tolist() == [0.0]
    assert [end.tolist() for end in alpha_range(against, 0.1)] == [[0.0], [0.0]]


def test_credit_is_averaged_over_strata_by_visits() -> None:
    """A stratum where the policy's values do not vary has no correlation, and counts for no candidate."""
    terms = Terms(
        share=np.array([[0.25], [0.25], [0.5]]),
        distinguishability=np.array([[0.1, 0.1]] * 3),
        alignment=np.zeros((3, 2)),
        own_variance=np.array([[0.04], [0.01], [-0.001]]),
        outcome_variance=np.array([[0.16], [0.16], [0.1]]),
    )
    assert credit(terms, 0.0, 0.1) == pytest.approx([(0.5 + 0.25) / 2] * 2)


def test_weights_of_a_common_case_are_those_of_the_papers() -> None:
    """Values that vary by 0.16 between next steps, outcomes by 0.39, a prover with correlation 0.73, an error of 0.1.

    The paper uses 3 to 5 in RL, where 0.5 to 6 helped, and found 0.2 to 0.6 flat in a search.
    """
    terms = one_stratum(own=0.025, outcome=0.15, distinguishability=0.03, alignment=0.02)
    assert 3 < best_credit(terms, 0.1, "rl")[1] < 5
    low, high = alpha_range(terms, 0.1, "search")
    assert 0.2 < low < high < 0.6
