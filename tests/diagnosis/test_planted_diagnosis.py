"""The diagnosis on the planted task: exact terms, estimates from rollouts, and the measured curve of strengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.planted_policies import (
    GOAL,
    TASK,
    constant_policy,
    fitted_policy,
    planted_terms,
    policy_values,
    sampled_planted_states,
    step_values,
    visits,
)
from trl_prl.demo.planted import prover_values, sample_prover
from trl_prl.demo.planted_policy import build_base_policy
from trl_prl.demo.training import steps_to_accuracy
from trl_prl.diagnosis.credit import credit
from trl_prl.diagnosis.diagnosis import effective_problems
from trl_prl.diagnosis.moments import Candidate, problem_sums
from trl_prl.diagnosis.terms import bootstrap_terms, terms_from_sums


GAMMAS = (1.0, 3.0, 5.0, 8.0, 10.0, 15.0, 30.0, 100.0, 1000.0)


def test_tables_are_those_of_the_task() -> None:
    """The same values as the task's own, and as many successes and visits as in samples."""
    policy = constant_policy(10.0)
    assert policy_values(policy) == pytest.approx(prover_values(10.0))
    assert visits(policy)[:, TASK.length].tolist() == [1.0] + [0.0] * GOAL
    # Every state but the ended ones is left for some state: the visits at each time are those still writing.
    samples = sample_prover(10.0, 20_000, seed=0)
    writing = (samples[:, :3] != TASK.eos).all(1).mean()
    assert visits(policy)[:, TASK.length - 3].sum() == pytest.approx(writing, abs=0.01)
    # The mean of Q over the policy's own tokens is V.
    mean = (policy * step_values(prover_values(10.0))).sum(-1)[:GOAL, 1:]
    assert mean == pytest.approx(prover_values(10.0)[:GOAL, 1:])


def test_variance_of_a_policys_own_values_adds_up_to_that_of_the_outcome() -> None:
    """A martingale: the variances of all its steps sum to V (1 - V) at the prompt."""
    policy = constant_policy(15.0)
    terms = planted_terms(policy, [15.0])
    value = policy_values(policy)[0, TASK.length]
    assert terms.pooled("own_variance")[0] * visits(policy).sum() == pytest.approx(value * (1 - value))
    # And the policy as its own prover has that variance as both terms.
    assert terms.pooled("distinguishability") == pytest.approx(terms.pooled("own_variance"))
    assert terms.pooled("alignment") == pytest.approx(terms.pooled("own_variance"))


@pytest.mark.parametrize("base", [2.0, 3.0, 4.0])
def test_credit_has_its_best_prover_in_the_middle(base: float) -> None:
    """At the states of a weak policy: provers somewhat stronger than it are best, weak and strong ones worse."""
    found = credit(planted_terms(constant_policy(base), GAMMAS), 1.0, 0.0)
    best = int(found.argmax())
    assert 8 <= GAMMAS[best] <= 15
    assert found[0] < 0.8 * found[best]
    assert found[-1] < 0.8 * found[best]
    assert (np.diff(found[: best + 1]) > 0).all()
    assert (np.diff(found[best:]) < 0).all()


def test_the_sum_of_the_terms_alone_prefers_the_strongest_prover_here() -> None:
    """A known disagreement: a strong prover's values differ most where the policy stops or runs out of time."""
    terms = planted_terms(constant_policy(3.0), GAMMAS)
    assert GAMMAS[int(terms.total.argmax())] == 1000.0
    # It is distinguishability that grows; the correlation with the policy's own advantages falls.
    assert (np.diff(terms.pooled("distinguishability")) > 0).all()
    assert terms.correlation[-1] < 0.2 < terms.correlation[1]


@pytest.mark.slow
def test_estimates_from_rollouts_agree_with_the_exact_terms() -> None:
    policy, gammas = constant_policy(15.0), (5.0, 30.0, 100.0)
    exact = planted_terms(policy, [15.0, *gammas])
    states = sampled_planted_states(policy, gammas, num_problems=300, num_rollouts=6, seed=0)
    _, sums = problem_sums(states, [Candidate(p) for p in range(4)], num_strata=4)
    found, resampled = terms_from_sums(sums.sum(0)), bootstrap_terms(sums, 500)
    for name in ("distinguishability", "alignment", "own_variance", "outcome_variance"):
        error = resampled.pooled(name).std(0)
        assert (np.abs(found.pooled(name) - exact.pooled(name)) < 4 * error).all(), name
        assert (error < 0.25 * exact.pooled(name)).all(), name


def test_rare_success_is_noticed() -> None:
    """A policy that succeeds once in 200 times: a hundred problems hold as much information as a handful."""
    number = {}
    for gamma in (5.0, 15.0):
        states = sampled_planted_states(constant_policy(gamma), [], num_problems=100, num_rollouts=8, seed=0)
        number[gamma] = effective_problems(problem_sums(states, [Candidate(0)])[1])
    assert number[5.0] < 10 < 20 < number[15.0] < 100
    assert effective_problems(np.zeros((3, 1, 5))) == 0.0
    assert effective_problems(np.ones((3, 1, 5))) == pytest.approx(3.0)


@pytest.mark.slow
def test_credit_ranks_provers_as_training_did(repo_root: Path) -> None:
    """Against the measured optimizer steps to 90 %, for both base policies of `docs/experiments/rare_solutions.md`."""
    measured = json.loads((repo_root / "docs" / "figures" / "planted.json").read_text())
    for iterations in (50, 10):
        runs = [[measured[f"b {iterations} gamma {g:g} seed {s}"] for g in GAMMAS] for s in range(5)]
        steps = np.array([[steps_to_accuracy(run, 0.9) or 200 for run in row] for row in runs]).mean(0)
        found = credit(planted_terms(fitted_policy(build_base_policy(0, num_iterations=iterations)), GAMMAS), 1.0, 0.0)
        assert spearmanr(found, -steps).statistic > 0.6
        # What it recommends took at most a tenth more optimizer steps than the best.
        assert steps[int(found.argmax())] < 1.1 * steps.min()
        assert found[0] < 0.8 * found.max()
        assert found[-1] < 0.8 * found.max()
