"""Credit assignment: process rewards to per-token advantages, as pure functions.

Shapes: B completions, T completion tokens (padded), S steps (padded with NaN). `step_ids` of shape (B, T) is the only
bridge from steps to tokens: the step a token belongs to, −1 for every token that is not an action (prompt, padding,
tool output, masked rows). Its non-negative positions *are* the action mask.

Every function takes floats of any precision and computes and returns float32, detached from the graph: an advantage is
a weight, never a path for gradients. Inputs are not written to and nothing moves between devices.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .step_tensors import (
    as_float32,
    check_option,
    check_per_completion,
    check_rank,
    check_same_shape,
    check_step_ids,
    gather_steps,
    in_row_blocks,
    last_tokens,
    pad_step_rewards,
    spread_to_tokens,
    suffix_sums,
)


__all__ = [
    "best_of_k_values",
    "kl_to_go",
    "pad_step_rewards",
    "pav_advantages",
    "prl_advantages",
    "spread_to_tokens",
    "step_advantages",
    "suffix_sums",
]


Level = Literal["step", "token"]
Estimator = Literal["k1", "k3"]
Direction = Literal["reverse", "forward"]


def kl_to_go(
    logps: Tensor,
    ref_logps: Tensor,
    step_ids: Tensor,
    level: Level = "step",
    estimator: Estimator = "k1",
    direction: Direction = "reverse",
    inclusive: bool = True,
) -> Tensor:
    """Estimated KL divergence to the reference from each token (or step end) to the end of the completion.

    This is the process part of [`prl_advantages`], without the coefficient:

        token level:  K[i, t] = own(delta[i, t]) + Σ_{j>t}   m[i, j]·future(delta[i, j])
        step level:   K[i, t] = own(delta[i, e]) + Σ_{j>e}   m[i, j]·future(delta[i, j])

    with `delta = logps − ref_logps`, `m = step_ids >= 0`, `e` the last token of the step of `t`, and

    | direction | estimator | own | future | source |
    |---|---|---|---|---|
    | reverse | k1 | `delta` | `delta` | https://huggingface.co/papers/2601.10201, eq. 5.1 |
    | reverse | k3 | `delta` | `exp(−delta) + delta − 1` | the same, eq. 4.6 |
    | forward | (both) | `1 − u` | `u·log u − u + 1`, `u = exp(−delta)` | the same, forward variant |

    The own term is left out with `inclusive=False` (Theorem 5.3). `exp(−delta)` overflows float32 where the reference
    is more than 88 nats above the policy on a sampled token; as in TRL the ratio is not clamped, so such a token shows
    as an infinite value instead of a quietly bounded one. k1 in the reverse direction has no exponential.

    Args:
        logps (`torch.Tensor` of shape (B, T)):
            Log-probabilities of the sampled tokens under the policy, in nats. Detached here.
        ref_logps (`torch.Tensor` of shape (B, T)):
            The same under the reference policy (not under the policy of the previous iteration).
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask. A step may be interrupted by off-mask tokens.
        level (`str`, *optional*, defaults to `"step"`):
            `"step"`: every token of a step takes the value at the step's last token. `"token"`: each its own.
        estimator (`str`, *optional*, defaults to `"k1"`):
            Per-token estimator of the reverse KL, `"k1"` or `"k3"`. The forward direction has one form and ignores it.
        direction (`str`, *optional*, defaults to `"reverse"`):
            `"reverse"`, KL(pi‖pi_ref), or `"forward"`, KL(pi_ref‖pi).
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether the token itself (step level: the step's last token) counts.

    Returns:
        `torch.Tensor` of shape (B, T): Nats, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit or an option is unknown.
    """
    _check_prl_inputs(logps, ref_logps, step_ids, level, estimator, direction)

    def kl_of_rows(logps: Tensor, ref_logps: Tensor, step_ids: Tensor) -> Tensor:
        values = _kl_to_go(logps, ref_logps, step_ids, level, estimator, direction, inclusive)
        return _to_tokens(values, step_ids, level)

    return in_row_blocks(kl_of_rows, logps, ref_logps, step_ids)


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
) -> Tensor:
    """Advantages of process reward learning: the outcome advantage minus the KL that is still to come.

        A[i, t] = outcome_advantages[i] − beta · K[i, t]        K: see `kl_to_go`

    The outcome advantage is normalised *before* the correction, and the whole weight carries no gradient (Algorithm 1
    and eq. 5.1 of https://huggingface.co/papers/2601.10201; `level="step"` is the form of its first version, which
    writes `eta = 1 / beta`).

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
        level (`str`, *optional*, defaults to `"step"`):
            As in [`kl_to_go`], like the options that follow.
        estimator (`str`, *optional*, defaults to `"k1"`):
            Estimator of the reverse KL.
        direction (`str`, *optional*, defaults to `"reverse"`):
            Direction of the KL.
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether the own term counts.

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit, an option is unknown, or `beta` is negative or not finite.
    """
    _check_prl_inputs(logps, ref_logps, step_ids, level, estimator, direction)
    check_per_completion("outcome_advantages", outcome_advantages, "logps", logps)
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(
            f"`beta` is {beta}. It is the weight of a KL penalty, and a negative or non-finite weight rewards drift "
            "from the reference or makes every advantage infinite. Pass a number of at least 0 (1 / eta in the first "
            "version of the paper)."
        )
    if beta == 0:
        # Left out rather than multiplied: 0 * inf is NaN, and the result must be equal bit by bit.
        return torch.where(step_ids >= 0, as_float32(outcome_advantages).unsqueeze(1), 0.0)

    def advantages_of_rows(outcome: Tensor, logps: Tensor, ref_logps: Tensor, step_ids: Tensor) -> Tensor:
        values = _kl_to_go(logps, ref_logps, step_ids, level, estimator, direction, inclusive)
        return _to_tokens(values.mul_(-beta).add_(outcome.unsqueeze(1)), step_ids, level)

    return in_row_blocks(advantages_of_rows, as_float32(outcome_advantages), logps, ref_logps, step_ids)


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
    check_rank("step_values", step_values, 2)
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


def pav_advantages(outcome_advantages: Tensor, step_advantages: Tensor, step_ids: Tensor, alpha: float) -> Tensor:
    """Advantages of process advantage verifiers: outcome plus the progress of the token's own step.

        A[i, t] = outcome_advantages[i] + alpha · step_advantages[i, step_ids[i, t]]

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
        alpha (`float`):
            Weight of the progress (the paper: 0.5 to 6). 0 returns the outcome advantages unchanged, bit by bit.

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit, `alpha` is not finite, or a token belongs to a step that has no entry in
            `step_advantages`.
    """
    check_rank("step_advantages", step_advantages, 2)
    check_per_completion("outcome_advantages", outcome_advantages, "step_advantages", step_advantages)
    if not math.isfinite(alpha):
        raise ValueError(
            f"`alpha` is {alpha}. It weights the progress of every step, so every advantage would be infinite or NaN. "
            "Pass a finite number; 0 switches the progress off."
        )
    progress = as_float32(step_advantages)
    progress = torch.where(progress.isnan(), 0.0, progress)
    outcome = as_float32(outcome_advantages).unsqueeze(1)
    # Added up on (B, S), where it is cheap, and spread once. alpha = 0 skips the product: 0 * inf is NaN.
    effective = outcome.expand_as(progress) if alpha == 0 else torch.add(outcome, progress, alpha=alpha)
    return spread_to_tokens(effective, step_ids)


def _kl_to_go(
    logps: Tensor,
    ref_logps: Tensor,
    step_ids: Tensor,
    level: Level,
    estimator: Estimator,
    direction: Direction,
    inclusive: bool,
) -> Tensor:
    """A new tensor of shape (B, T) at token level, with arbitrary values off-mask, and (B, S) at step level."""
    action_mask = step_ids >= 0
    # Off-mask entries may hold anything, NaN included: they are replaced before they meet a sum.
    delta = torch.sub(as_float32(logps), as_float32(ref_logps)).masked_fill_(~action_mask, 0.0)
    if direction == "forward":
        growth = torch.expm1(-delta)  # u − 1, exact near delta = 0 where exp(−delta) − 1 is rounding noise
        own, future = -growth, -delta * (growth + 1) - growth
    elif estimator == "k3":
        own, future = delta, torch.expm1(-delta).add_(delta)
    else:
        own = future = delta

    # Column n is the sum over the last n tokens of the row, so that "from t" and "after t" are both at hand.
    batch_size, num_tokens = delta.shape
    to_go = delta.new_empty(batch_size, num_tokens + 1)
    to_go[:, 0] = 0.0
    torch.cumsum(future.flip(1), dim=1, out=to_go[:, 1:])
    own_in_sum = inclusive and own is future
    if level == "token":
        values = (to_go[:, 1:] if own_in_sum else to_go[:, :-1]).flip(1)
    else:
        ends = last_tokens(step_ids, action_mask)
        values = to_go.gather(1, num_tokens - ends if own_in_sum else num_tokens - 1 - ends)
        own = own.gather(1, ends)
    return values.add_(own) if inclusive and not own_in_sum else values


def _to_tokens(values: Tensor, step_ids: Tensor, level: Level) -> Tensor:
    """The last stage of both levels, 0 off-mask: spread (B, S) or mask (B, T) in place."""
    return gather_steps(values, step_ids, fill=0.0) if level == "step" else values.masked_fill_(step_ids < 0, 0.0)


def _check_prl_inputs(
    logps: Tensor, ref_logps: Tensor, step_ids: Tensor, level: str, estimator: str, direction: str
) -> None:
    check_rank("logps", logps, 2)
    check_same_shape("ref_logps", ref_logps, "logps", logps)
    check_same_shape("step_ids", step_ids, "logps", logps)
    check_step_ids(step_ids)
    check_option("level", level, Level)
    check_option("estimator", estimator, Estimator)
    check_option("direction", direction, Direction)
