"""Statistics of a group, the completions of one prompt: normalised rewards, scales, leave-one-out baselines.

Groups are read from the rows: row `i` belongs to group `i // num_generations`. A group may span processes, so inputs
must hold complete groups, gathered across processes beforehand.

Shapes, precision and `step_ids` are as in `advantages.py`; N completions of all processes, P positions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .step_tensors import as_float32, check_option, check_rows, check_same_shape, precise


Scale = Literal["group", "batch", "none"]
ProcessBaseline = Literal["none", "group"]


def group_normalise(rewards: Tensor, num_generations: int, scale: Scale = "group", eps: float = 1e-4) -> Tensor:
    """Rewards relative to their group, `(r − mean(group)) / (std + eps)`.

    Eq. 3 and section 4.1.2 of https://huggingface.co/papers/2402.03300. The standard deviation is the *sample* one
    (Bessel's correction, divisor n − 1), as in TRL and in the PRL release, where FRPO divides by n. A group of one, or
    one whose rewards are all equal, gives exactly 0.

    Args:
        rewards (`torch.Tensor` of shape (B,) or (B, S)):
            Rewards, with complete groups in consecutive rows, gathered across processes. NaN entries (padding,
            unscorable) take no part and stay NaN. With shape (B, S) the steps of all completions of a group are one
            population.
        num_generations (`int`):
            Completions per prompt; divides B.
        scale (`str`, *optional*, defaults to `"group"`):
            Whose standard deviation divides: the `"group"`'s, the whole `"batch"`'s, or `"none"`. As TRL's
            `scale_rewards`.
        eps (`float`, *optional*, defaults to `1e-4`):
            Added to the standard deviation (1e-4 in TRL, 1e-6 in the PRL release).

    Returns:
        `torch.Tensor` of the same shape: Normalised rewards, float32, detached.

    Raises:
        `ValueError`: If B does not consist of complete groups or `scale` is unknown.
    """
    check_option("scale", scale, Scale)
    check_groups(rewards, num_generations)
    group_size = num_generations * math.prod(rewards.shape[1:])
    values = precise(as_float32(rewards)).reshape(len(rewards) // num_generations, group_size)
    centred = _centred(values)
    if scale == "group":
        centred = centred / (sample_std(values) + eps)
    elif scale == "batch":
        centred = centred / (sample_std(values.reshape(1, -1)) + eps)
    return centred.reshape(rewards.shape).float()


def outcome_scale(rewards: Tensor, num_generations: int, scale: Scale = "group") -> tuple[Tensor, Tensor]:
    """What TRL divides the outcome advantage of each completion by, and which completions have no such advantage.

    Args:
        rewards (`torch.Tensor` of shape (N,)):
            Outcome rewards, complete groups; NaN where unscorable.
        num_generations (`int`):
            Completions per prompt; divides N.
        scale (`str`, *optional*, defaults to `"group"`):
            TRL's `scale_rewards`, as in [`group_normalise`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Divisors of shape (N,), float32: the sample standard deviation plus 1e-4,
        and 1 where it is 0 or nothing is divided; a bool mask of shape (N,) of the groups whose rewards are all equal.

    Raises:
        `ValueError`: If N does not consist of complete groups or `scale` is unknown.
    """
    check_option("scale", scale, Scale)
    check_groups(rewards, num_generations)
    values = precise(as_float32(rewards)).reshape(-1, num_generations)
    std = sample_std(values).expand(-1, num_generations).reshape(-1)
    divisors = {"group": std, "batch": sample_std(values.reshape(1, -1)).reshape(-1).expand_as(std)}.get(scale)
    equal = std < 1e-8
    if divisors is None:
        return torch.ones_like(std).float(), equal
    return torch.where(divisors < 1e-8, 1.0, divisors + 1e-4).float(), equal


def to_positions(values: Tensor, step_ids: Tensor) -> Tensor:
    """Token values by the number of the policy's own tokens before them.

    Args:
        values (`torch.Tensor` of shape (B, T)):
            One value per token.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask.

    Returns:
        `torch.Tensor` of shape (B, T): Entry p of a row is the value of its p-th action token; NaN behind the last.
    """
    check_rows("values", values)
    check_same_shape("step_ids", step_ids, "values", values)
    off_mask = step_ids < 0
    own_first = off_mask.int().argsort(dim=1, stable=True)
    return as_float32(values).masked_fill(off_mask, math.nan).gather(1, own_first)


def from_positions(by_position: Tensor, step_ids: Tensor) -> Tensor:
    """The inverse of [`to_positions`]: (B, P) with P >= T, (B, T) -> (B, T), 0 off-mask."""
    # The position of a token is the number of action tokens before it.
    positions = (step_ids >= 0).cumsum(1) - 1
    return by_position.gather(1, positions.clamp(min=0)).masked_fill(step_ids < 0, 0.0)


def leave_one_out(by_position: Tensor, num_generations: int) -> Tensor:
    """Baseline of each token from the other completions of its group, at the same depth.

        b[i, p] = mean over the others j of the group that have a position p of values[j, p]

    and where none of them has one, the mean over all their tokens; 0 without others. The depth is the number of tokens
    that the policy had written, which its next token does not change. The index of the step would not do: where a
    step ends may depend on the tokens that are credited, and then the baseline would too. So `b` is independent of the
    token and of all that follows it, `E[b · ∇log pi]` is 0, and subtracting it changes the variance of a gradient and
    not its expectation.

    Args:
        by_position (`torch.Tensor` of shape (N, P)):
            Values by position, see [`to_positions`], complete groups; NaN where there is no token or no value.
        num_generations (`int`):
            Completions per prompt; divides N.

    Returns:
        `torch.Tensor` of shape (N, P): Baselines, float32, never NaN for finite values.

    Raises:
        `ValueError`: If N does not consist of complete groups.
    """
    check_rows("by_position", by_position)
    check_groups(by_position, num_generations)
    values = precise(as_float32(by_position)).reshape(-1, num_generations, by_position.shape[1])
    known = ~values.isnan()
    values = values.masked_fill(~known, 0.0)
    sums = values.sum(1, keepdim=True) - values
    counts = known.sum(1, keepdim=True) - known.long()
    whole = sums.sum(2, keepdim=True) / counts.sum(2, keepdim=True).clamp(min=1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), whole).reshape(by_position.shape).float()


def sample_std(values: Tensor) -> Tensor:
    """Standard deviation of each row's numbers, divisor n − 1, NaN left out; 0 with fewer than two numbers."""
    counts = (~values.isnan()).sum(dim=1, keepdim=True)
    squares = _centred(values).square().nansum(dim=1, keepdim=True)
    return (squares / (counts - 1).clamp(min=1)).sqrt()


def _centred(values: Tensor) -> Tensor:
    """Each row's numbers minus their mean, NaN left out; exactly 0 where they are equal.

    In float32 the mean of equal numbers has a rounding error that, divided by a small eps, would pass for a signal.
    """
    if values.shape[1]:
        values = values - torch.where(values.isnan(), -math.inf, values).amax(dim=1, keepdim=True)
    return values - values.nanmean(dim=1, keepdim=True)


def check_groups(rewards: Tensor, num_generations: int) -> None:
    if num_generations < 1 or len(rewards) % num_generations:
        raise ValueError(
            f"`num_generations` is {num_generations} and there are {len(rewards)} rows. Rows are split into groups of "
            "`num_generations` completions of one prompt, which needs complete groups. Pass the number of completions "
            "per prompt, with the rewards gathered across processes."
        )
