"""Estimators of the two terms of PAV's Theorem 3.1: by hand, by enumeration, and against exact values."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planted_policies import exact_terms
from trl_prl.diagnosis.files import warn
from trl_prl.diagnosis.moments import (
    Candidate,
    SampledState,
    depth_strata,
    draw_covariance,
    failure_moment,
    problem_sums,
    state_terms,
)
from trl_prl.diagnosis.states import Coverage, ProblemValues, read_problems, sampled_states
from trl_prl.diagnosis.terms import bootstrap_terms, terms_from_sums


def binomial(n: int, c: int, q: float) -> float:
    return math.comb(n, c) * q**c * (1 - q) ** (n - c)


def make_state(
    draws: list[int], rollouts: list[list[int]], correct: list[list[int]], problem: int = 0, depth: int = 0
) -> SampledState:
    return SampledState(problem, depth, 1, np.array(draws), np.array(rollouts), np.array(correct), 0.25)


# ---- moments of failure ----


def test_failure_moment_by_hand() -> None:
    """Four rollouts, one correct: three of six pairs fail both, and one of four triples fails throughout."""
    assert failure_moment(4, 1, 1) == pytest.approx(3 / 4)
    assert failure_moment(4, 1, 2) == pytest.approx(3 / 6)
    assert failure_moment(4, 1, 3) == pytest.approx(1 / 4)
    assert failure_moment(4, 1, 4) == 0.0
    # The squared fraction is what it must not be.
    assert failure_moment(4, 1, 2) != pytest.approx((3 / 4) ** 2)


def test_failure_moment_of_known_and_of_too_few() -> None:
    assert failure_moment([0, 0], [0, 1], 7).tolist() == [1.0, 0.0]
    assert np.isnan(failure_moment([3], [0], 4)).all()
    with pytest.raises(ValueError, match="do not fit together"):
        failure_moment(3, 4, 1)
    with pytest.raises(ValueError, match="do not fit together"):
        failure_moment(0, 2, 1)


@given(st.floats(0, 1), st.integers(1, 7), st.data())
def test_failure_moment_is_unbiased(q: float, n: int, data: st.DataObject) -> None:
    power = data.draw(st.integers(1, n))
    mean = sum(binomial(n, c, q) * float(failure_moment(n, c, power)) for c in range(n + 1))
    assert mean == pytest.approx((1 - q) ** power, abs=1e-12)


# ---- covariance over draws ----


def test_draw_covariance_by_hand() -> None:
    """Two actions with values 0 and 1, drawn twice and once: pairs differ in 2 of 3 cases, each adding a half."""
    x = np.array([0.0, 1.0])
    assert draw_covariance([2, 1], x, x, x * x) == pytest.approx(1 / 3)
    # It is the sample variance of 0, 0, 1.
    assert draw_covariance([2, 1], x, x, x * x) == pytest.approx(np.var([0, 0, 1], ddof=1))
    with pytest.raises(ValueError, match="needs two"):
        draw_covariance([1], x[:1], x[:1], x[:1])


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_draw_covariance_of_known_values_is_the_sample_covariance(rows: list[tuple[int, float, float]]) -> None:
    draws = np.array([n for n, _, _ in rows])
    x, y = (np.array([row[k] for row in rows]) for k in (1, 2))
    expected = np.cov(np.repeat(x, draws), np.repeat(y, draws))[0, 1]
    assert draw_covariance(draws, x, y, x * y) == pytest.approx(expected, abs=1e-9)


# ---- unbiased in spite of rollout noise: every outcome of a small experiment ----

POLICY = np.array([0.5, 0.3, 0.2])
OWN = np.array([0.7, 0.2, 0.4])
OTHER = np.array([0.9, 0.3, 0.1])
N_OWN, N_OTHER = 4, 2
CANDIDATES = [Candidate(0), Candidate(0, 2), Candidate(1)]


def best_of(values: np.ndarray, k: int) -> np.ndarray:
    return 1 - (1 - values) ** k


def expectation_over_everything(of: object) -> np.ndarray:
    """Mean over two draws of an action and over all counts of rollouts after each distinct one."""
    total = np.zeros(2 * len(CANDIDATES) + 2)
    for actions in itertools.product(range(3), repeat=2):
        counted = Counter(actions)
        distinct = sorted(counted)
        ranges = [range(N_OWN + 1)] * len(distinct) + [range(N_OTHER + 1)] * len(distinct)
        for counts in itertools.product(*ranges):
            own, other = counts[: len(distinct)], counts[len(distinct) :]
            weight = math.prod(POLICY[a] for a in actions)
            weight *= math.prod(binomial(N_OWN, c, OWN[a]) for a, c in zip(distinct, own, strict=True))
            weight *= math.prod(binomial(N_OTHER, c, OTHER[a]) for a, c in zip(distinct, other, strict=True))
            state = make_state(
                [counted[a] for a in distinct],
                [[N_OWN] * len(distinct), [N_OTHER] * len(distinct)],
                [list(own), list(other)],
            )
            total += weight * of(state)  # type: ignore[operator]
    return total


def exact() -> np.ndarray:
    values = [OWN, best_of(OWN, 2), OTHER]
    terms = exact_terms([1.0], POLICY[None], OWN[None], [v[None] for v in values])
    return np.concatenate([terms.distinguishability[0], terms.alignment[0], terms.own_variance[0], [0.25]])


def test_every_term_is_unbiased() -> None:
    found = expectation_over_everything(lambda state: state_terms(state, CANDIDATES))
    assert found == pytest.approx(exact(), abs=1e-12)


def test_fractions_put_in_would_be_biased() -> None:
    """What the debiasing is for: the variance of measured fractions is too high, of Best-of-2 too."""

    def naive(state: SampledState) -> np.ndarray:
        own, other = state.num_correct[0] / N_OWN, state.num_correct[1] / N_OTHER
        values = [own, best_of(own, 2), other]
        rows = [np.repeat(v, state.num_draws) for v in (*values, own)]
        variances = [np.var(v, ddof=1) for v in rows]
        covariances = [np.cov(v, rows[-1])[0, 1] for v in rows[:-1]]
        return np.array([*variances[:-1], *covariances, variances[-1], 0.25])

    error = expectation_over_everything(naive) - exact()
    assert (error[:3] > 0.02).all()
    # Values of another prover have noise of their own, which no covariance with the policy's sees.
    assert error[3] > 0.02
    assert error[5] == pytest.approx(0.0, abs=1e-12)


def test_the_policy_as_its_own_prover_has_its_variance_as_both_terms() -> None:
    state = make_state([2, 1, 3], [[8, 6, 0]], [[3, 5, 1]])
    distinguishability, alignment, variance, _ = state_terms(state, [Candidate(0)])
    assert distinguishability == alignment == variance


def test_a_constant_prover_has_neither_term() -> None:
    """Known values, all equal: exactly zero. Measured ones, of a prover that always succeeds: too."""
    always = make_state([1, 2], [[5, 5], [5, 5]], [[1, 4], [5, 5]])
    terms = state_terms(always, [Candidate(1), Candidate(1, 2)])
    assert terms[:4].tolist() == [0.0] * 4
    flat = exact_terms([1.0], POLICY[None], OWN[None], [np.full((1, 3), 0.6)])
    assert flat.distinguishability == pytest.approx(0.0, abs=1e-15)
    assert flat.alignment == pytest.approx(0.0, abs=1e-15)


def test_best_of_k_by_hand() -> None:
    """Two ended solutions, one right: Best-of-K of a known value is that value."""
    state = make_state([1, 1], [[0, 0]], [[0, 1]])
    for k in (1, 2, 8):
        assert state_terms(state, [Candidate(0, k)])[:3] == pytest.approx([0.5, 0.5, 0.5])


def test_too_few_rollouts_for_k_are_not_a_number() -> None:
    terms = state_terms(make_state([1, 1], [[6, 6]], [[2, 3]]), [Candidate(0, 3), Candidate(0, 4)])
    assert np.isnan(terms[:4]).tolist() == [False, True, False, False]


# ---- strata, sums, bootstrap ----


def test_depth_strata_by_hand() -> None:
    assert depth_strata([0, 1, 2, 3], [1, 1, 1, 1], 2).tolist() == [0, 0, 1, 1]
    # A single depth with most of the visits leaves fewer strata, without gaps.
    assert depth_strata([0, 5, 5, 9], [1, 40, 40, 1], 4).tolist() == [0, 1, 1, 2]
    assert depth_strata([3, 3], [1, 1], 4).tolist() == [0, 0]


def random_states(seed: int, num_problems: int, num_rollouts: int = 6) -> list[SampledState]:
    """Problems of their own difficulty, each with three states and three draws from [`POLICY`]."""
    rng = np.random.default_rng(seed)
    states = []
    for problem in range(num_problems):
        shift = rng.uniform(-0.1, 0.1)
        for depth in range(3):
            drawn = Counter(rng.choice(3, size=3, p=POLICY).tolist())
            actions = sorted(drawn)
            counts = np.stack([rng.binomial(num_rollouts, (v + shift)[actions]) for v in (OWN, OTHER)])
            rollouts = np.full(counts.shape, num_rollouts)
            draws = np.array([drawn[a] for a in actions])
            states.append(SampledState(problem, depth, 1, draws, rollouts, counts, 0.2))
    return states


def test_sums_weigh_states_by_visits() -> None:
    light, heavy = make_state([1, 1], [[0, 0]], [[0, 1]]), make_state([1, 1], [[0, 0]], [[1, 1]], depth=1)
    heavy = SampledState(**{**vars(heavy), "num_visits": 3})
    problems, sums = problem_sums([light, heavy], [Candidate(0)])
    assert problems.tolist() == [0]
    assert terms_from_sums(sums.sum(0)).pooled("distinguishability") == pytest.approx([0.125])
    _, apart = problem_sums([light, heavy], [Candidate(0)], num_strata=2)
    terms = terms_from_sums(apart.sum(0))
    assert terms.distinguishability[:, 0] == pytest.approx([0.5, 0.0])
    assert terms.share[:, 0] == pytest.approx([0.25, 0.75])
    assert terms.pooled("distinguishability") == pytest.approx([0.125])


def test_bootstrap_is_reproducible_and_paired() -> None:
    _, sums = problem_sums(random_states(0, 12), [Candidate(0), Candidate(0)], num_strata=2)
    first, again, other = (bootstrap_terms(sums, 50, seed) for seed in (3, 3, 4))
    assert (first.distinguishability == again.distinguishability).all()
    assert (first.distinguishability != other.distinguishability).any()
    # Two names for one prover never differ in any resample.
    assert (first.distinguishability[..., 0] == first.distinguishability[..., 1]).all()
    assert first.share.sum(-2) == pytest.approx(1.0)


@pytest.mark.slow
def test_intervals_cover_the_exact_terms() -> None:
    """95 % intervals of 120 data sets, each of 60 problems; three standard errors of the coverage are 6 points."""
    candidates = [Candidate(0), Candidate(0, 2), Candidate(1)]
    shifts = np.linspace(-0.1, 0.1, 401)
    true = np.mean(
        [
            [t.pooled("distinguishability"), t.pooled("alignment")]
            for s in shifts
            for t in [exact_terms([1], POLICY[None], OWN[None] + s, [v[None] for v in
                                  (OWN + s, best_of(OWN + s, 2), OTHER + s)])]
        ],
        axis=0,
    )  # fmt: skip
    covered, means = [], []
    for seed in range(120):
        _, sums = problem_sums(random_states(seed, 60), candidates)
        resampled = bootstrap_terms(sums, 300, seed)
        draws = np.stack([resampled.pooled("distinguishability"), resampled.pooled("alignment")])
        low, high = np.quantile(draws, [0.025, 0.975], axis=1)
        covered.append((low <= true) & (true <= high))
        estimate = terms_from_sums(sums.sum(0))
        means.append([estimate.pooled("distinguishability"), estimate.pooled("alignment")])
    assert np.mean(covered, axis=0).min() > 0.88
    assert np.mean(covered, axis=0).max() < 1.0
    # Without bias: the mean over data sets is within four of its standard errors.
    error = np.std(means, axis=0) / math.sqrt(len(means))
    assert (np.abs(np.mean(means, axis=0) - true) < 4 * error).all()


def test_a_next_step_is_left_out_for_one_reason() -> None:
    """Of ten draws two are measured by both, three not in the other file, and five measured too little by someone."""
    draws = {"both": 2, "base only": 3, "few in the other": 1, "few in the base": 1, "other only": 1, "neither": 2}
    counts = {"both": (4, 4), "base only": (4, None), "few in the other": (4, 1), "few in the base": (1, 4)}
    counts |= {"other only": (None, 4), "neither": (None, None)}
    files = []
    for position in (0, 1):
        problem = ProblemValues("q", {((), False): (4, 2)}, Counter({(): 10}))
        problem.draws[()] = Counter({((name,), False): number for name, number in draws.items()})
        for name, number in ((name, both[position]) for name, both in counts.items()):
            if number is not None:
                problem.counts[(name,), False] = (number, 1)
        files.append({0: problem})
    (state,), coverage = sampled_states(files, [Candidate(0), Candidate(1)])
    assert state.num_draws.tolist() == [2]
    assert coverage == Coverage(num_visits=10, num_used=10, num_unmatched=3, num_unmeasured=5, num_draws=10)
    few = {"num_problems": 100, "effective_problems": 100.0}
    assert warn(few, coverage, [], 1) == [
        "3 of 10 next steps are not in every other file and are left out.",
        "5 of 10 next steps have too few counted rollouts and are left out.",
    ]


def test_rows_that_are_no_collection_are_named() -> None:
    row = {
        "row": 0, "prompt": "q", "completions": ["a"], "labels": [0.7], "num_rollouts": [0], "num_correct": [0],
        "initial_num_rollouts": 4, "initial_num_correct": 2, "num_seeds": 1, "branch_at": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"Row 1 of 'x' has the label 0\.7 for step 0 without any rollouts"):
        read_problems([{**row, "labels": [1.0]}, row], "x")
    with pytest.raises(ValueError, match="Row 0 of 'x' has no num_rollouts and no num_seeds"):
        read_problems(
            [{"num_seeds": None} | {k: v for k, v in row.items() if k not in ("num_rollouts", "num_seeds")}], "x"
        )
