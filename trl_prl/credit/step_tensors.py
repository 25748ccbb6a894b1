"""Tensors of tokens and steps: the bridge between them, and the checks that keep shapes from broadcasting.

Shapes: B completions, T completion tokens (padded), S steps (padded with NaN). `step_ids` of shape (B, T) holds the
step of each token, −1 for every token that is not an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor


def suffix_sums(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of each token's value and all later ones, `out[i, t] = Σ_{j>=t} mask[i, j]·values[i, j]`.

    The sum runs backwards from the end, so `out[i, t]` does not depend on anything before `t`: neither on earlier
    values nor, through rounding, on their size. Long rows stay accurate (PyTorch carries the running sum in float64 on
    CPU and as a tree on CUDA), where a bfloat16 sum over thousands of tokens would stop growing.

    Args:
        values (`torch.Tensor` of shape (B, T)):
            Per-token values. Half precision is upcast before summing.
        mask (`torch.Tensor` of shape (B, T), *optional*):
            Tokens that count. Values elsewhere are ignored, NaN and infinities included.

    Returns:
        `torch.Tensor` of shape (B, T): Suffix sums in float32, at masked positions too.

    Raises:
        `ValueError`: If a shape does not fit.
    """
    check_rows("values", values)
    values = as_float32(values)
    if mask is not None:
        check_same_shape("mask", mask, "values", values)
        # A product would let NaN through: NaN * 0 is NaN.
        values = torch.where(mask.bool(), values, 0.0)
    return values.flip(1).cumsum_(1).flip(1)


def spread_to_tokens(step_values: Tensor, step_ids: Tensor, fill: float = 0.0) -> Tensor:
    """Give every token the value of its step, `out[i, t] = step_values[i, step_ids[i, t]]`.

    Args:
        step_values (`torch.Tensor` of shape (B, S)):
            One value per step; NaN is passed on.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask.
        fill (`float`, *optional*, defaults to `0.0`):
            Value of off-mask tokens.

    Returns:
        `torch.Tensor` of shape (B, T): Token values, float32, detached.

    Raises:
        `ValueError`: If a shape does not fit, or a token belongs to a step that has no entry in `step_values`.
    """
    check_rows("step_values", step_values)
    check_rows("step_ids", step_ids)
    if step_ids.shape[0] != step_values.shape[0]:
        raise ValueError(
            f"`step_ids` has shape {tuple(step_ids.shape)} and `step_values` {tuple(step_values.shape)}. Row i of one "
            "is completion i of the other, so the first sizes must be equal. Pass the same completions in the same "
            "order."
        )
    check_step_ids(step_ids)
    if step_ids.numel():
        low, high = (int(bound) for bound in step_ids.aminmax())
        if low < -1 or high >= step_values.shape[1]:
            raise ValueError(
                f"`step_ids` reach from {low} to {high} but `step_values` has {step_values.shape[1]} steps per row. A "
                "token of a step without a value cannot be credited. Pass one value per step (NaN for a step that "
                "cannot be scored) and -1 for tokens outside every step."
            )
    return gather_steps(as_float32(step_values), step_ids, fill)


def pad_step_rewards(step_rewards: Sequence[Sequence[float | None]]) -> Tensor:
    """Ragged lists of step rewards as one tensor, padded with NaN.

    Args:
        step_rewards (`Sequence[Sequence[float | None]]`):
            One list per completion, one number per step; `None` or NaN marks a step that cannot be scored.

    Returns:
        `torch.Tensor` of shape (B, S): Float32, with S the largest number of steps. NaN marks padding and unscorable
        steps alike; which is which follows from the number of steps.
    """
    num_steps = max((len(row) for row in step_rewards), default=0)
    rows = [
        [math.nan if reward is None else float(reward) for reward in row] + [math.nan] * (num_steps - len(row))
        for row in step_rewards
    ]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), num_steps)


def edge_tokens(step_ids: Tensor, edge: Literal["first", "last"]) -> Tensor:
    """Position of the first or last token of each step: (B, T) -> (B, S). 0 for ids without a token in the row."""
    # A step begins or ends at most where the id changes. Only these few positions are looked at further, and of those
    # with the same id (a step interrupted by tool output has several) the outermost one counts.
    is_candidate = step_ids >= 0
    differs = step_ids[:, 1:] != step_ids[:, :-1]
    if edge == "first":
        is_candidate[:, 1:] &= differs
    else:
        is_candidate[:, :-1] &= differs
    rows, positions = is_candidate.nonzero(as_tuple=True)
    ids = step_ids[rows, positions].long()
    num_steps = int(ids.max()) + 1 if len(ids) else 0
    edges = torch.zeros(len(step_ids) * num_steps, dtype=torch.long, device=step_ids.device)
    reduce = "amin" if edge == "first" else "amax"
    edges.scatter_reduce_(0, rows * num_steps + ids, positions, reduce=reduce, include_self=False)
    return edges.view(len(step_ids), num_steps)


def gather_steps(step_values: Tensor, step_ids: Tensor, fill: float) -> Tensor:
    """`spread_to_tokens` without checks. The fill value sits in front of the steps, so −1 needs no pass of its own."""
    table = torch.cat([step_values.new_full((len(step_values), 1), fill), step_values], dim=1)
    return in_row_blocks(lambda values, ids: values.gather(1, ids.long() + 1), table, step_ids)


def in_row_blocks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply a function that treats rows independently; on CPU in blocks, whose intermediate results stay in cache."""
    num_rows = 64 if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    blocks = zip(*(tensor.split(num_rows) for tensor in tensors), strict=True)
    return torch.cat([function(*block) for block in blocks])


def as_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float()


def precise_dtype(device: torch.device) -> torch.dtype:
    """The most precise type that a device computes in: float64, and float32 on Apple's GPUs, which refuse it."""
    return torch.float32 if device.type == "mps" else torch.float64


def precise(tensor: Tensor) -> Tensor:
    """The tensor in the type of [`precise_dtype`], with gradient."""
    return tensor.to(precise_dtype(tensor.device))


def check_rows(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 2:
        raise ValueError(
            f"`{name}` has shape {tuple(tensor.shape)}. Credit is assigned over rows of tokens or steps, so it needs "
            "2 dimensions. Pass a tensor of shape (B, T) or (B, S), one row per completion."
        )


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"`{name}` has shape {tuple(tensor.shape)} and `{other_name}` {tuple(other.shape)}. They are read entry "
            "by entry and must not broadcast. Pass two tensors of the same shape."
        )


def check_per_completion(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    # (B,) against (B, T) broadcasts along the wrong dimension without a word when B == T.
    if tensor.dim() != 1 or tensor.shape[0] != other.shape[0]:
        raise ValueError(
            f"`{name}` has shape {tuple(tensor.shape)} and `{other_name}` {tuple(other.shape)}. `{name}` holds one "
            f"number per completion, so it cannot be matched to the rows. Pass shape ({other.shape[0]},)."
        )


def check_step_ids(step_ids: Tensor) -> None:
    if step_ids.is_floating_point() or step_ids.dtype == torch.bool:
        raise ValueError(
            f"`step_ids` has dtype {step_ids.dtype}. It names the step of each token, which no {step_ids.dtype} can. "
            "Pass integers: the index of the step, -1 for tokens outside every step."
        )


def check_option(name: str, value: str, options: object) -> None:
    allowed = get_args(options)
    if value not in allowed:
        raise ValueError(
            f"`{name}` is {value!r}. There is no such variant. Pass one of {', '.join(map(repr, allowed))}."
        )


def step_end_mask(step_ids: Tensor) -> Tensor:
    """Marks the last token of every step, of one that tool output interrupts too.

    Args:
        step_ids (`torch.Tensor`):
            Step of each token of shape (B, T), -1 off the action mask.

    Returns:
        `torch.Tensor`: Boolean mask of shape (B, T).
    """
    ends = gather_steps(edge_tokens(step_ids, "last"), step_ids, fill=-1)
    return ends == torch.arange(step_ids.shape[1], device=step_ids.device)


def action_mask(batch: Mapping[str, Any]) -> Tensor:
    """Tokens the policy chose, of shape (B, T): `completion_mask` without tool output, as the loss masks them."""
    mask: Tensor = batch["completion_mask"]
    return mask if batch.get("tool_mask") is None else mask * batch["tool_mask"]


def sequence_ratio_per_token(logps: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Old log-probs of shape (B, T) that give the sequence-level ratio a gradient per token.

    TRL's sequence level differentiates one ratio per completion, which would spread every token's advantage evenly
    over the completion. GSPO-token (https://huggingface.co/papers/2507.18071, eq. 13) has the same ratio as a number
    and the token's own gradient: `sg[s] * pi / sg[pi]`. With `old = sg[log pi] - log s`, TRL's token level computes
    exactly that.
    """
    mask, old_logps = action_mask(batch), batch.get("old_per_token_logps")
    log_ratio = torch.zeros_like(logps) if old_logps is None else logps - old_logps
    return logps - (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
