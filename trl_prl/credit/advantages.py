"""Credit assignment: process rewards to per-token advantages, as pure functions.

Shapes: B completions, T completion tokens (padded), S steps (padded with NaN). `step_ids` of shape (B, T) is the only
bridge from steps to tokens: the step a token belongs to, −1 for every token that is not an action (prompt, padding,
tool output, masked rows). Its non-negative positions *are* the action mask.

Every function takes floats of any precision and computes and returns float32, detached from the graph: an advantage is
a weight, never a path for gradients. Inputs are not written to and nothing moves between devices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kl import Direction, Estimator, Level, kl_to_go
from .step_tensors import as_float32, check_per_completion, check_rows, check_same_shape, spread_to_tokens


def prl_advantages(
    outcome_advantages: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    step_ids: Tensor,
    beta: float,
    level: Level = "step",
    estimator: Estimator = "k1",
    direction: Direction = "reverse",
    inclusive: bool = True,
    baseline: Tensor | None = None,
) -> Tensor:
    """Advantages of process reward learning: the outcome advantage minus the KL that is still to come.

        A[i, t] = outcome_advantages[i] − beta · (K[i, t] − baseline[i, t])        K: see `kl_to_go`

    The outcome advantage is normalised *before* the correction, and the whole weight carries no gradient (Algorithm 1
    and eq. 5.1 of https://huggingface.co/papers/2601.10201, whose first version writes `eta = 1 / beta` and has the
    form `level="step_end"`).

    Args:
        outcome_advantages (`torch.Tensor` of shape (B,)):
            Group-normalised outcome advantages.
        logps (`torch.Tensor` of shape (B, T)):
            Log-probabilities of the sampled tokens under the policy, in nats.
        ref_logps (`torch.Tensor` of shape (B, T)):
            The same under the reference policy.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask.
        beta (`float`):
            KL coefficient, at least 0. 0 returns the outcome advantages unchanged, bit by bit.
        level, estimator, direction, inclusive:
            As for [`~trl_prl.credit.kl.kl_to_go`].
        baseline (`torch.Tensor` of shape (B, T), *optional*):
            What is subtracted from the KL to go, such as [`~trl_prl.credit.groups.leave_one_out`]; must not depend on
            the token or what follows it.

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit, an option is unknown, or `beta` is negative or not finite.
    """
    kl = kl_to_go(logps, ref_logps, step_ids, level, estimator, direction, inclusive)
    check_per_completion("outcome_advantages", outcome_advantages, "logps", logps)
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(
            f"`beta` is {beta}. It is the weight of a KL penalty, and a negative or non-finite weight rewards drift "
            "from the reference or makes every advantage infinite. Pass a number of at least 0 (1 / eta in the first "
            "version of the paper)."
        )
    outcome = as_float32(outcome_advantages).unsqueeze(1)
    if beta == 0:
        # Left out rather than multiplied: 0 * inf is NaN, and the result must be equal bit by bit.
        return torch.where(step_ids >= 0, outcome, 0.0)
    if baseline is not None:
        check_same_shape("baseline", baseline, "logps", logps)
        kl.sub_(as_float32(baseline))
    return kl.mul_(-beta).add_(outcome).masked_fill_(step_ids < 0, 0.0)


def step_advantages(step_values: Tensor, initial_values: Tensor) -> Tensor:
    """Progress of each step under a prover, `A[i, h] = Q[i, h] − Q[i, h−1]` with `Q[i, −1] = V(prompt)`.

    Eq. 2 of https://huggingface.co/papers/2410.08146. The sum over the steps of a completion telescopes to
    `Q_last − V(prompt)`.

    Args:
        step_values (`torch.Tensor` of shape (B, S)):
            Value of the prefix that ends with each step, usually a probability in [0, 1]. Rows are ragged: padding is
            NaN. A NaN before the end is a step that could not be scored, and makes two differences unknown: its own
            and that of the step after it. A value of exactly 0 is a value like any other.
        initial_values (`torch.Tensor` of shape (B,)):
            Value of the prompt alone. NaN makes the first difference unknown.

    Returns:
        `torch.Tensor` of shape (B, S): Progress, float32, NaN where unknown and at padding.

    Raises:
        `ValueError`: If a shape does not fit.
    """
    check_rows("step_values", step_values)
    check_per_completion("initial_values", initial_values, "step_values", step_values)
    values = as_float32(step_values)
    before = torch.cat([as_float32(initial_values).unsqueeze(1), values], dim=1)
    return values - before[:, :-1]


def best_of_k_values(values: Tensor, k: int) -> Tensor:
    """Value of the Best-of-K policy from the value of one sample, `Q_BoK = 1 − (1 − Q)^K`.

    Eq. 30 of https://huggingface.co/papers/2410.08146: a stronger prover for which no new data are needed.

    Args:
        values (`torch.Tensor` of any shape):
            Probabilities of success in [0, 1]; NaN stays NaN.
        k (`int`):
            Number of samples the prover draws, at least 1. 1 returns the values unchanged.

    Returns:
        `torch.Tensor` of the same shape: Probabilities, float32.

    Raises:
        `ValueError`: If `k` is below 1 or a value lies outside [0, 1].
    """
    if k < 1:
        raise ValueError(
            f"`k` is {k}. Best-of-K draws at least one sample. Pass an integer of at least 1 (1 keeps the values)."
        )
    values = as_float32(values)
    if bool(((values < 0) | (values > 1)).any()):
        raise ValueError(
            f"`values` reach from {values.nan_to_num(0.5).min():.4g} to {values.nan_to_num(0.5).max():.4g}. Eq. 30 "
            "holds for probabilities of success, which lie in [0, 1]. Pass probabilities (not logits and not "
            "advantages), and apply Best-of-K before taking differences."
        )
    if k == 1:
        return values.clone()
    # log1p and expm1 keep small probabilities, which 1 − (1 − Q)^K rounds away.
    return -torch.expm1(k * torch.log1p(-values))


def pav_advantages(
    outcome_advantages: Tensor,
    step_advantages: Tensor,
    step_ids: Tensor,
    alpha: float | Tensor,
    baseline: Tensor | None = None,
) -> Tensor:
    """Advantages of process advantage verifiers: outcome plus the progress of the token's own step.

        A[i, t] = outcome_advantages[i] + alpha[i] · (step_advantages[i, step_ids[i, t]] − baseline[i, t])

    The effective reward, eq. 5 of https://huggingface.co/papers/2410.08146. There is no return-to-go over the
    progress: a step is credited with what it changed, not with what later steps do.

    Args:
        outcome_advantages (`torch.Tensor` of shape (B,)):
            Group-normalised outcome advantages.
        step_advantages (`torch.Tensor` of shape (B, S)):
            Progress of each step (see [`step_advantages`]). NaN, a step that could not be scored, contributes 0: its
            tokens keep the outcome advantage. Count these before calling if they matter.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask.
        alpha (`float` or `torch.Tensor` of shape (B,)):
            Weight of the progress, one for all or one per completion. Outcome advantages are usually divided by the
            standard deviation of their group, and the progress is not: divide `alpha` by it to have the paper's, in
            units of the reward. 0 returns the outcome advantages unchanged, bit by bit.
        baseline (`torch.Tensor` of shape (B, T), *optional*):
            What is subtracted from the progress of scored steps, such as [`~trl_prl.credit.groups.leave_one_out`].

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit, `alpha` is not finite, or a token belongs to a step that has no entry in
            `step_advantages`.
    """
    check_rows("step_advantages", step_advantages)
    check_per_completion("outcome_advantages", outcome_advantages, "step_advantages", step_advantages)
    weights = torch.as_tensor(alpha, dtype=torch.float32, device=step_advantages.device)
    if weights.dim():
        check_per_completion("alpha", weights, "step_advantages", step_advantages)
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"`alpha` is {alpha}. It weights the progress of every step, so every advantage would be infinite or NaN. "
            "Pass a finite number; 0 switches the progress off."
        )
    progress, weights = as_float32(step_advantages), weights.expand(len(step_advantages)).unsqueeze(1)
    # A weight of 0 skips the product: 0 * inf is NaN.
    counts = ~progress.isnan() & (weights != 0)
    # Added up on (B, S), where it is cheap, and spread once.
    effective = as_float32(outcome_advantages).unsqueeze(1) + torch.where(counts, weights * progress, 0.0)
    advantages = spread_to_tokens(effective, step_ids)
    if baseline is not None:
        check_same_shape("baseline", baseline, "step_ids", step_ids)
        counted = spread_to_tokens(counts.float(), step_ids) > 0
        advantages -= torch.where(counted, weights * as_float32(baseline), 0.0)
    return advantages
