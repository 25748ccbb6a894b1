"""Which credit is the gradient of a KL penalty, and which baselines change nothing: by enumeration, not sampling."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.tabular_policy import TabularPolicy, cosine
from trl_prl.credit.advantages import pav_advantages, prl_advantages
from trl_prl.credit.groups import from_positions, leave_one_out, to_positions
from trl_prl.credit.kl import kl_to_go


POLICY = TabularPolicy(vocab_size=3, length=6)
REFERENCE = POLICY.logits(seed=0)
LOGITS = REFERENCE + POLICY.logits(seed=1, scale=0.7)
# Completions of one to three tokens, the last token ends them.
SHORT = TabularPolicy(vocab_size=3, length=3, ends=True)


def true_gradient(policy: TabularPolicy, logits: Tensor, ref_logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-policy.kl(logits, ref_logits), logits)
    return gradient


def credit_gradient(policy: TabularPolicy, step_ids: Tensor, **options: object) -> Tensor:
    ref_logits = REFERENCE if policy is POLICY else policy.logits(seed=0)
    logits = LOGITS if policy is POLICY else ref_logits + policy.logits(seed=1, scale=0.7)
    zeros = torch.zeros(len(step_ids))
    logps, ref_logps = policy.logps(logits), policy.logps(ref_logits)
    # Float64 sums would hide nothing here: the functions compute in float32 whatever they are given.
    weights = prl_advantages(zeros, logps, ref_logps, step_ids, beta=1.0, **options)
    return policy.expected_gradient(logits, weights)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("step_length", [1, 2, 3, 6])
@pytest.mark.parametrize("level", ["token", "step"])
def test_the_expected_gradient_is_that_of_minus_kl(level: str, step_length: int, estimator: str) -> None:
    found = credit_gradient(POLICY, POLICY.fixed_steps(step_length), level=level, estimator=estimator)
    expected = true_gradient(POLICY, LOGITS, REFERENCE)
    assert cosine(found, expected) == pytest.approx(1.0, abs=1e-6)
    assert float(found.norm() / expected.norm()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("policy", [POLICY, SHORT], ids=["fixed length", "ends by itself"])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_steps_that_the_tokens_decide_are_exact_too(policy: TabularPolicy, estimator: str) -> None:
    step_ids = policy.delimited_steps()
    assert len(step_ids.amax(1).unique()) > 1
    ref_logits = REFERENCE if policy is POLICY else policy.logits(seed=0)
    logits = LOGITS if policy is POLICY else ref_logits + policy.logits(seed=1, scale=0.7)
    found = credit_gradient(policy, step_ids, level="step", estimator=estimator)
    torch.testing.assert_close(found, true_gradient(policy, logits, ref_logits), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("step_length", "highest"), [(2, 0.99), (3, 0.9), (6, 0.7)])
def test_the_form_of_the_release_is_not(step_length: int, highest: float) -> None:
    found = credit_gradient(POLICY, POLICY.fixed_steps(step_length), level="step_end")
    assert cosine(found, true_gradient(POLICY, LOGITS, REFERENCE)) < highest


def test_without_own_terms_it_is_not_either() -> None:
    found = credit_gradient(POLICY, POLICY.fixed_steps(1), level="token", inclusive=False)
    assert cosine(found, true_gradient(POLICY, LOGITS, REFERENCE)) < 0.9


# ---- leave-one-out baselines: expectations over all groups of three completions ----


def group_gradient(weights_of_group: object, num_generations: int = 3) -> Tensor:
    """Expected gradient of a group, over every group that can be sampled."""
    logits = SHORT.logits(seed=1)
    probabilities, num_rows = SHORT.probabilities(logits), len(SHORT.tokens)
    groups = torch.tensor(list(itertools.product(range(num_rows), repeat=num_generations)))
    rows = groups.flatten()
    gradients = SHORT.sample_gradients(logits, rows, weights_of_group(rows))  # type: ignore[operator]
    shares = probabilities[groups].prod(1).repeat_interleave(num_generations)
    assert float(probabilities.sum()) == pytest.approx(1.0)
    return (shares.unsqueeze(1) * gradients).sum(0) / num_generations


def baseline_of(values: Tensor, step_ids: Tensor) -> Tensor:
    return from_positions(leave_one_out(to_positions(values, step_ids), 3), step_ids)


@pytest.mark.parametrize("level", ["token", "step", "step_end"])
@pytest.mark.parametrize("steps", ["fixed", "delimited"])
def test_a_group_baseline_does_not_change_the_expected_kl_gradient(level: str, steps: str) -> None:
    step_ids = SHORT.fixed_steps(2) if steps == "fixed" else SHORT.delimited_steps()
    logps, ref_logps = SHORT.logps(SHORT.logits(seed=1)), SHORT.logps(SHORT.logits(seed=0))

    def weights(rows: Tensor, with_baseline: bool) -> Tensor:
        inputs = (logps[rows], ref_logps[rows], step_ids[rows])
        kl = kl_to_go(*inputs, level=level)  # type: ignore[arg-type]
        baseline = baseline_of(kl, step_ids[rows]) if with_baseline else None
        return prl_advantages(torch.zeros(len(rows)), *inputs, 1.0, level, baseline=baseline)  # type: ignore[arg-type]

    without, with_baseline = (group_gradient(lambda rows, b=b: weights(rows, b)) for b in (False, True))
    assert float(without.norm()) > 0.1
    torch.testing.assert_close(with_baseline, without, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", ["fixed", "delimited"])
def test_a_group_baseline_does_not_change_the_expected_progress_gradient(steps: str) -> None:
    step_ids = SHORT.fixed_steps(2) if steps == "fixed" else SHORT.delimited_steps()
    # A prover that finds every step a little good, as Best-of-K provers do.
    progress = torch.rand(len(step_ids), 3, generator=torch.Generator().manual_seed(2)) + 0.5

    def weights(rows: Tensor, with_baseline: bool) -> Tensor:
        ids, of_rows = step_ids[rows], progress[rows]
        plain = pav_advantages(torch.zeros(len(rows)), of_rows, ids, 1.0)
        if not with_baseline:
            return plain
        return pav_advantages(torch.zeros(len(rows)), of_rows, ids, 1.0, baseline_of(plain, ids))

    # The progress of a step may depend on all of its completion here, which is more than any prover does.
    without, with_baseline = (group_gradient(lambda rows, b=b: weights(rows, b)) for b in (False, True))
    assert float(without.norm()) > 0.1
    torch.testing.assert_close(with_baseline, without, atol=1e-6, rtol=0)


def test_a_baseline_by_the_index_of_the_step_would_change_it() -> None:
    """Why the depth is counted in tokens: a step may begin with the very token that is credited."""
    # Here a delimiter begins a step, so the index of a token's step is decided by the token.
    step_ids = (SHORT.tokens == 0).long().cumsum(1).masked_fill(~SHORT.mask, -1)
    progress = torch.rand(len(step_ids), 4, generator=torch.Generator().manual_seed(2)) + 0.5
    progress *= torch.arange(4)

    def weights(rows: Tensor, baseline: str) -> Tensor:
        ids = step_ids[rows]
        plain = pav_advantages(torch.zeros(len(rows)), progress[rows], ids, 1.0)
        if baseline == "index":
            # The same computation with steps for positions.
            has_step = (ids.unsqueeze(2) == torch.arange(4)).any(1)
            by_index = leave_one_out(progress[rows].masked_fill(~has_step, torch.nan), 3)
            return plain - by_index.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, 0.0)
        return plain if baseline == "none" else plain - baseline_of(plain, ids)

    none, depth, index = (group_gradient(lambda rows, b=b: weights(rows, b)) for b in ("none", "depth", "index"))
    torch.testing.assert_close(depth, none, atol=1e-6, rtol=0)
    assert float((index - none).norm() / none.norm()) > 0.05
