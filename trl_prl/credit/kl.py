"""Kullback-Leibler divergence from a policy to its reference, estimated on sampled tokens, from each token on.

The process part of [`~trl_prl.prl_advantages`], without the coefficient. With `s` and `e` the first and the last token
of the step of `t`:

    token:     K[i, t] = own(delta[i, t])             + Σ_{j>t} m[i, j]·future(delta[i, j])
    step:      K[i, t] = Σ_{s<=j<=e} own(delta[i, j]) + Σ_{j>e} m[i, j]·future(delta[i, j])
    step_end:  K[i, t] = own(delta[i, e])             + Σ_{j>e} m[i, j]·future(delta[i, j])

with `delta = logps − ref_logps`, `m = step_ids >= 0`, and

| direction | estimator | own | future | source |
|---|---|---|---|---|
| reverse | k1 | `delta` | `delta` | https://huggingface.co/papers/2601.10201, eq. 5.1 |
| reverse | k3 | `delta` | `exp(−delta) + delta − 1` | the same, eq. 4.6 |
| forward | (both) | `1 − u` | `u·log u − u + 1`, `u = exp(−delta)` | the same, forward variant |

In the reverse direction, `∇log pi` weighted with `−K` has the gradient of `−KL` as its expectation at the levels
`token` and `step`: a step adds terms of earlier tokens only, whose product with `∇log pi(a_t)` has mean 0. At the
level `step_end`, the form of the first version of the paper, the KL of the step's tokens between `t` and `e` is
missing, and with one step per completion nearly all of it. In the forward direction the own term has mean 0, so the
step leaves out what its tokens bring about within it.

The own terms are left out with `inclusive=False` (Theorem 5.3), and with them the direct gradient of the KL: such a
policy can drift further than one without any KL. `exp(−delta)` overflows float32 where the reference is more than 88
nats above the policy on a sampled token; as in TRL the ratio is not clamped, so such a token shows as an infinite
value instead of a quietly bounded one. k1 in the reverse direction has no exponential.

Shapes, precision and `step_ids` are as in `advantages.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .step_tensors import (
    as_float32,
    check_option,
    check_rows,
    check_same_shape,
    check_step_ids,
    edge_tokens,
    gather_steps,
    in_row_blocks,
)


Level = Literal["step", "step_end", "token"]
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
    """Estimated KL divergence to the reference from each token, or from its step, to the end of the completion.

    The formulas are at the top of this module.

    Args:
        logps (`torch.Tensor` of shape (B, T)):
            Log-probabilities of the sampled tokens under the policy, in nats. Detached here.
        ref_logps (`torch.Tensor` of shape (B, T)):
            The same under the reference policy (not under the policy of the previous iteration).
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask. A step may be interrupted by off-mask tokens.
        level (`str`, *optional*, defaults to `"step"`):
            `"step"`: every token of a step takes the sum from the step's first token. `"step_end"`: the sum from its
            last token. `"token"`: each its own.
        estimator (`str`, *optional*, defaults to `"k1"`):
            Per-token estimator of the reverse KL, `"k1"` or `"k3"`. The forward direction has one form and ignores it.
        direction (`str`, *optional*, defaults to `"reverse"`):
            `"reverse"`, KL(pi‖pi_ref), or `"forward"`, KL(pi_ref‖pi).
        inclusive (`bool`, *optional*, defaults to `True`):
            Whether the token itself counts (`step`: the tokens of the step; `step_end`: its last token).

    Returns:
        `torch.Tensor` of shape (B, T): Nats, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit or an option is unknown.
    """
    check_rows("logps", logps)
    check_same_shape("ref_logps", ref_logps, "logps", logps)
    check_same_shape("step_ids", step_ids, "logps", logps)
    check_step_ids(step_ids)
    check_option("level", level, Level)
    check_option("estimator", estimator, Estimator)
    check_option("direction", direction, Direction)

    def kl_of_rows(logps: Tensor, ref_logps: Tensor, step_ids: Tensor) -> Tensor:
        action_mask = step_ids >= 0
        # Off-mask entries may hold anything, NaN included: they are replaced before they meet a sum.
        delta = torch.sub(as_float32(logps), as_float32(ref_logps)).masked_fill_(~action_mask, 0.0)
        own, future = _terms(delta, estimator, direction)
        if level == "token":
            to_go = _sums_of_last(future)
            # Where both terms are one tensor, one sum holds them; else the own term joins the sum behind it.
            if inclusive and own is future:
                return to_go[:, 1:].flip(1).masked_fill_(~action_mask, 0.0)
            values = to_go[:, :-1].flip(1)
            return (values.add_(own) if inclusive else values).masked_fill_(~action_mask, 0.0)
        return gather_steps(_of_steps(own, future, step_ids, level, inclusive), step_ids, fill=0.0)

    return in_row_blocks(kl_of_rows, logps, ref_logps, step_ids)


def _terms(delta: Tensor, estimator: Estimator, direction: Direction) -> tuple[Tensor, Tensor]:
    """Own and future term of every token, of shape (B, T); the same tensor twice where they are equal."""
    if direction == "forward":
        growth = torch.expm1(-delta)  # u − 1, exact near delta = 0 where exp(−delta) − 1 is rounding noise
        return -growth, -delta * (growth + 1) - growth
    if estimator == "k3":
        return delta, torch.expm1(-delta).add_(delta)
    return delta, delta


def _sums_of_last(values: Tensor) -> Tensor:
    """Column n is the sum over the last n tokens of the row, of shape (B, T + 1): "from t" and "after t" at once."""
    sums = values.new_empty(len(values), values.shape[1] + 1)
    sums[:, 0] = 0.0
    torch.cumsum(values.flip(1), dim=1, out=sums[:, 1:])
    return sums


def _of_steps(own: Tensor, future: Tensor, step_ids: Tensor, level: Level, inclusive: bool) -> Tensor:
    """KL to go of every step, of shape (B, S), arbitrary for ids without a token in the row."""
    to_go, num_tokens = _sums_of_last(future), own.shape[1]
    if inclusive and own is future:
        edges = edge_tokens(step_ids, "first" if level == "step" else "last")
        return to_go.gather(1, num_tokens - edges)
    ends = edge_tokens(step_ids, "last")
    values = to_go.gather(1, num_tokens - 1 - ends)
    if not inclusive:
        return values
    if level == "step_end":
        return values.add_(own.gather(1, ends))
    own_sums = own.new_zeros(len(own), ends.shape[1] + 1).scatter_add_(1, step_ids.long() + 1, own)
    return values.add_(own_sums[:, 1:])
