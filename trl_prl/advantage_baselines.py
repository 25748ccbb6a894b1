"""Other ways to assign credit: published alternatives, and three that are known to go wrong.

The alternatives are what an ablation compares to. The functions whose names begin with `biased_` are mistakes that
look right; each docstring says what goes wrong. None of them is a default anywhere.

Functions that use a group (`num_generations`) read it from the rows: row `i` belongs to group `i // num_generations`.
A group may span processes, so their inputs must hold complete groups, gathered across processes beforehand.

Shapes, precision and `step_ids` are as in `advantages.py`: (B,), (B, S) padded with NaN, (B, T); float32, detached.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .advantages import pav_advantages
from .step_tensors import (
    as_float32,
    check_option,
    check_per_completion,
    check_rank,
    check_same_shape,
    check_step_ids,
    spread_to_tokens,
    suffix_sums,
)


__all__ = [
    "biased_kl_in_reward_advantages",
    "biased_prover_value_bonus_advantages",
    "biased_step_index_normalisation",
    "clip_and_delta_step_rewards",
    "group_normalise",
    "min_form_step_rewards",
    "process_supervision_advantages",
]

Scale = Literal["group", "batch", "none"]


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
    _check_groups(rewards, num_generations)
    # In float64, the mean of equal rewards is exactly that reward; in float32 its rounding error, divided by a small
    # eps, would pass for a signal.
    group_size = num_generations * math.prod(rewards.shape[1:])
    values = as_float32(rewards).double().reshape(len(rewards) // num_generations, group_size)
    centred = values - values.nanmean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (_sample_std(values) + eps)
    elif scale == "batch":
        centred = centred / (_sample_std(values.reshape(1, -1)) + eps)
    return centred.reshape(rewards.shape).float()


def process_supervision_advantages(
    step_rewards: Tensor, step_ids: Tensor, num_generations: int, scale: Scale = "group", eps: float = 1e-4
) -> Tensor:
    """GRPO with process supervision: return-to-go over group-normalised step rewards.

        A[i, t] = Σ_{k >= step_ids[i, t]} (r[i, k] − mean(R)) / (std(R) + eps)      R: all step rewards of the group

    Section 4.1.3 of https://huggingface.co/papers/2402.03300. A sum: with rewards of one sign it favours long or short
    completions, and a policy learns to add steps that score well.

    To use it where groups span processes, call [`group_normalise`] on the gathered rewards, keep the local rows, and
    spread their [`suffix_sums`] with [`spread_to_tokens`], which is all this function does.

    Args:
        step_rewards (`torch.Tensor` of shape (B, S)):
            Reward of each step; NaN (padding, unscorable) takes no part and adds 0.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask.
        num_generations (`int`):
            Completions per prompt; divides B.
        scale (`str`, *optional*, defaults to `"group"`):
            As in [`group_normalise`].
        eps (`float`, *optional*, defaults to `1e-4`):
            As in [`group_normalise`].

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit or B does not consist of complete groups.
    """
    check_rank("step_rewards", step_rewards, 2)
    normalised = group_normalise(step_rewards, num_generations, scale, eps)
    return spread_to_tokens(suffix_sums(normalised, mask=~normalised.isnan()), step_ids)


def min_form_step_rewards(step_rewards: Tensor, temperature: float = 0.1) -> Tensor:
    """Step rewards whose sum is a soft minimum, so that the worst step carries the credit (PURE).

        r*[i, k] = r[i, k] · exp(−r[i, k] / temperature) / Σ_j exp(−r[i, j] / temperature)

    The transform of https://huggingface.co/papers/2504.15275: the value of a completion is the smallest of its step
    rewards instead of their sum, which a policy cannot raise by adding good steps. As the temperature falls, the
    worst step keeps its reward and the others tend to 0. The return-to-go over the result is
    `suffix_sums(r, mask=~r.isnan())`.

    Args:
        step_rewards (`torch.Tensor` of shape (B, S)):
            Reward of each step. NaN (padding, unscorable) is no candidate for the minimum; 0 is a reward like any
            other.
        temperature (`float`, *optional*, defaults to `0.1`):
            Softness of the minimum, above 0, in units of the rewards.

    Returns:
        `torch.Tensor` of shape (B, S): Transformed rewards, float32, detached, NaN where the input is.

    Raises:
        `ValueError`: If the shape does not fit or the temperature is not above 0.
    """
    check_rank("step_rewards", step_rewards, 2)
    if not temperature > 0:
        raise ValueError(
            f"`temperature` is {temperature}. It divides the rewards inside a softmin. Pass a number above 0; the "
            "smaller, the closer to the hard minimum."
        )
    rewards = as_float32(step_rewards)
    known = ~rewards.isnan()
    # A padding entry must weigh nothing, so it is taken out of the exponent and not set to a reward of 0, which would
    # be the minimum of any row of positive rewards.
    weights = torch.softmax(torch.where(known, -rewards / temperature, -torch.inf), dim=1)
    return weights * rewards


def clip_and_delta_step_rewards(step_rewards: Tensor, eta: float | None = None, delta: bool = True) -> Tensor:
    """Step rewards with a bounded sum, by clipping and by taking differences.

        clip:   r[i, k] <- min(r[i, k], eta) − eta
        delta:  r[i, k] <- r[i, k] − r[i, k+1]  for k < K−1,   r[i, K−1] for k = K−1,   0 for the last step K  (from 1)

    Clip, Delta and both (clip first) of section 4 of https://huggingface.co/papers/2410.15115, against policies that
    repeat steps that score well. After Clip no step is worth more than 0. After Delta the return-to-go of every step
    but the last equals its own reward, however many steps follow; the last step is left to the outcome reward.

    Args:
        step_rewards (`torch.Tensor` of shape (B, S)):
            Reward of each step. Padding is NaN; the last number of a row is its last step. A NaN before it
            (unscorable) makes its own difference and that of the step before it NaN.
        eta (`float`, *optional*):
            Upper bound of a reward. Not given, nothing is clipped. The paper chooses it so that most steps are at 0.
        delta (`bool`, *optional*, defaults to `True`):
            Whether to take differences.

    Returns:
        `torch.Tensor` of shape (B, S): Shaped rewards, float32, detached, NaN at padding and where unknown.

    Raises:
        `ValueError`: If the shape does not fit.
    """
    check_rank("step_rewards", step_rewards, 2)
    rewards = as_float32(step_rewards)
    if eta is not None:
        rewards = rewards.clamp(max=eta) - eta
    if not delta:
        return rewards.clone()
    num_steps = rewards.shape[1]
    index = torch.arange(num_steps, device=rewards.device)
    last = torch.where(rewards.isnan(), -1, index).amax(dim=1, keepdim=True) if num_steps else index[None]
    following = torch.cat([rewards[:, 1:], rewards[:, :1]], dim=1)
    # The last step gives no reward, and the one before it has nothing to be compared to.
    differences = torch.where(index == last - 1, rewards, rewards - following)
    return torch.where(index == last, 0.0, torch.where(index > last, torch.nan, differences))


def biased_kl_in_reward_advantages(
    outcome_rewards: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    step_ids: Tensor,
    beta: float,
    num_generations: int,
    scale: Scale = "group",
    eps: float = 1e-4,
) -> Tensor:
    """Known to be wrong: subtract the KL from the reward, then normalise within the group.

        A[i, t] = group_normalise(outcome_rewards − beta · Σ_j m[:, j]·delta[:, j])[i]      for every t

    The order [`prl_advantages`] avoids (https://huggingface.co/papers/2601.10201). Binary rewards normalised in a
    group maximise the utility `2·arcsin(sqrt(p))`; with the KL inside, the normaliser depends on the drift and the
    utility is no longer that. All token information collapses into one number per completion, and a group whose
    rewards are all equal trains on nothing but rescaled KL noise. The authors' runs with it collapsed.

    Args:
        outcome_rewards (`torch.Tensor` of shape (B,)):
            Rewards *before* normalisation, complete groups, gathered across processes like the other inputs.
        logps (`torch.Tensor` of shape (B, T)):
            Log-probabilities of the sampled tokens under the policy, in nats.
        ref_logps (`torch.Tensor` of shape (B, T)):
            The same under the reference policy.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask. Only the mask is used.
        beta (`float`):
            KL coefficient.
        num_generations (`int`):
            Completions per prompt; divides B.
        scale (`str`, *optional*, defaults to `"group"`):
            As in [`group_normalise`].
        eps (`float`, *optional*, defaults to `1e-4`):
            As in [`group_normalise`].

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit or B does not consist of complete groups.
    """
    check_rank("logps", logps, 2)
    check_same_shape("ref_logps", ref_logps, "logps", logps)
    check_same_shape("step_ids", step_ids, "logps", logps)
    check_step_ids(step_ids)
    check_per_completion("outcome_rewards", outcome_rewards, "logps", logps)
    action_mask = step_ids >= 0
    kl = torch.where(action_mask, as_float32(logps) - as_float32(ref_logps), 0.0).sum(dim=1)
    advantages = group_normalise(as_float32(outcome_rewards) - beta * kl, num_generations, scale, eps)
    return torch.where(action_mask, advantages.unsqueeze(1), 0.0)


def biased_prover_value_bonus_advantages(
    outcome_advantages: Tensor, step_values: Tensor, step_ids: Tensor, alpha: float
) -> Tensor:
    """Known to be wrong: add the prover's *value* of a step instead of its progress.

        A[i, t] = outcome_advantages[i] + alpha · Q_mu[i, step_ids[i, t]]

    Section 3 of https://huggingface.co/papers/2410.08146: a value says how good the prefix is, whoever wrote it, so
    a step that changes nothing after a good one earns as much as the good one. The policy learns to rephrase the
    question for ever. [`pav_advantages`] of [`step_advantages`] credits the change alone.

    Args:
        outcome_advantages (`torch.Tensor` of shape (B,)):
            Group-normalised outcome advantages.
        step_values (`torch.Tensor` of shape (B, S)):
            Prover's value of the prefix that ends with each step; NaN contributes 0.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask.
        alpha (`float`):
            Weight of the value.

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit or `alpha` is not finite.
    """
    return pav_advantages(outcome_advantages, step_values, step_ids, alpha)


def biased_step_index_normalisation(step_rewards: Tensor, num_generations: int, eps: float = 1e-4) -> Tensor:
    """Known to be wrong: normalise the k-th steps of a group against each other.

        out[i, k] = (r[i, k] − mean_k) / (std_k + eps)      over the completions of the group that have a step k

    Steps with the same index share nothing but the index. Few completions reach a large k, so its mean and standard
    deviation are those of the longest completions, noisy and biased by length, and the only completion that has a
    step k gets 0 for it. [`group_normalise`] takes all steps of the group as one population.

    Args:
        step_rewards (`torch.Tensor` of shape (B, S)):
            Reward of each step, complete groups, gathered across processes; NaN takes no part and stays NaN.
        num_generations (`int`):
            Completions per prompt; divides B.
        eps (`float`, *optional*, defaults to `1e-4`):
            Added to the sample standard deviation.

    Returns:
        `torch.Tensor` of shape (B, S): Normalised rewards, float32, detached.

    Raises:
        `ValueError`: If the shape does not fit or B does not consist of complete groups.
    """
    check_rank("step_rewards", step_rewards, 2)
    _check_groups(step_rewards, num_generations)
    num_groups, num_steps = len(step_rewards) // num_generations, step_rewards.shape[1]
    groups = as_float32(step_rewards).reshape(num_groups, num_generations, num_steps)
    by_index = groups.transpose(1, 2).reshape(num_groups * num_steps, num_generations).double()
    normalised = (by_index - by_index.nanmean(dim=1, keepdim=True)) / (_sample_std(by_index) + eps)
    return (
        normalised.reshape(num_groups, num_steps, num_generations).transpose(1, 2).reshape(step_rewards.shape).float()
    )


def _sample_std(values: Tensor) -> Tensor:
    """Standard deviation of each row's numbers, divisor n − 1, NaN left out; 0 with fewer than two numbers."""
    counts = (~values.isnan()).sum(dim=1, keepdim=True)
    squares = (values - values.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
    return (squares / (counts - 1).clamp(min=1)).sqrt()


def _check_groups(rewards: Tensor, num_generations: int) -> None:
    if num_generations < 1 or len(rewards) % num_generations:
        raise ValueError(
            f"`num_generations` is {num_generations} and there are {len(rewards)} rows. Rows are split into groups of "
            "`num_generations` completions of one prompt, which needs complete groups. Pass the number of completions "
            "per prompt, with the rewards gathered across processes."
        )
