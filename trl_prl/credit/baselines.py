"""Other ways to assign credit: published alternatives, and three that are known to go wrong.

The alternatives are what an ablation compares to. The functions whose names begin with `biased_` are mistakes that
look right; each docstring says what goes wrong. None of them is a default anywhere.

Functions that use a group (`num_generations`) need complete groups, as those of `groups.py`.

Shapes, precision and `step_ids` are as in `advantages.py`: (B,), (B, S) padded with NaN, (B, T); float32, detached.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .advantages import pav_advantages
from .groups import Scale, check_groups, group_normalise
from .step_tensors import (
    as_float32,
    check_per_completion,
    check_rows,
    check_same_shape,
    check_step_ids,
    spread_to_tokens,
    suffix_sums,
)


CreditForm = Literal["progress", "min_form", "return_to_go", "clip_delta"]


def step_credit(
    step_scores: Tensor, credit: CreditForm, num_generations: int, clip_eta: float | None = None
) -> Tensor:
    """What each step earns in the forms of credit that are returns over shaped scores.

    Args:
        step_scores (`torch.Tensor` of shape (N, S)):
            Scores of the steps as the process reward gives them, complete groups; NaN at padding and where unscorable.
        credit (`str`):
            `"min_form"` ([`min_form_step_rewards`], temperature 0.1), `"return_to_go"` ([`group_normalise`], as in
            [`process_supervision_advantages`]) or `"clip_delta"` ([`clip_and_delta_step_rewards`], both).
        num_generations (`int`):
            Completions per prompt; divides N.
        clip_eta (`float`, *optional*):
            Bound of `"clip_delta"`; by default the mean score of the group's steps.

    Returns:
        `torch.Tensor` of shape (N, S): Sum of the shaped scores from each step on, float32, NaN where the score is.

    Raises:
        `ValueError`: If N does not consist of complete groups, or the form is no return.
    """
    check_rows("step_scores", step_scores)
    if credit == "min_form":
        shaped = min_form_step_rewards(step_scores)
    elif credit == "return_to_go":
        shaped = group_normalise(step_scores, num_generations)
    elif credit == "clip_delta":
        check_groups(step_scores, num_generations)
        scores = as_float32(step_scores)
        groups = scores.reshape(len(scores) // num_generations, num_generations * scores.shape[1])
        means = groups.nanmean(dim=1).repeat_interleave(num_generations).unsqueeze(1)
        shaped = clip_and_delta_step_rewards(scores, means if clip_eta is None else clip_eta)
    else:
        raise ValueError(
            f"`credit` is {credit!r}, which is not a return over shaped scores. Pass 'min_form', 'return_to_go' or "
            "'clip_delta'; progress is `step_advantages`."
        )
    known = ~shaped.isnan()
    return suffix_sums(shaped, mask=known).masked_fill(~known, torch.nan)


def process_supervision_advantages(
    step_rewards: Tensor, step_ids: Tensor, num_generations: int, scale: Scale = "group", eps: float = 1e-4
) -> Tensor:
    """GRPO with process supervision: return-to-go over group-normalised step rewards.

        A[i, t] = Σ_{k >= step_ids[i, t]} (r[i, k] − mean(R)) / (std(R) + eps)      R: all step rewards of the group

    Section 4.1.3 of https://huggingface.co/papers/2402.03300. A sum: with rewards of one sign it favours long or short
    completions, and a policy learns to add steps that score well.

    Args:
        step_rewards (`torch.Tensor` of shape (B, S)):
            Reward of each step; NaN (padding, unscorable) takes no part and adds 0.
        step_ids (`torch.Tensor` of shape (B, T)):
            Integer step of each token, −1 off-mask.
        num_generations, scale, eps:
            As for [`~trl_prl.credit.groups.group_normalise`].

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit or B does not consist of complete groups.
    """
    check_rows("step_rewards", step_rewards)
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
    check_rows("step_rewards", step_rewards)
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


def clip_and_delta_step_rewards(step_rewards: Tensor, eta: float | Tensor | None = None, delta: bool = True) -> Tensor:
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
        eta (`float` or `torch.Tensor` of shape (B, 1), *optional*):
            Upper bound of a reward. Not given, nothing is clipped. The paper chooses it so that most steps are at 0.
        delta (`bool`, *optional*, defaults to `True`):
            Whether to take differences.

    Returns:
        `torch.Tensor` of shape (B, S): Shaped rewards, float32, detached, NaN at padding and where unknown.

    Raises:
        `ValueError`: If the shape does not fit.
    """
    check_rows("step_rewards", step_rewards)
    rewards = as_float32(step_rewards)
    if eta is not None:
        bound = torch.as_tensor(eta, dtype=torch.float32, device=rewards.device)
        rewards = torch.minimum(rewards, bound) - bound
    if not delta:
        return rewards.clone()
    num_steps = rewards.shape[1]
    index = torch.arange(num_steps, device=rewards.device)
    last = torch.where(rewards.isnan(), -1, index).amax(dim=1, keepdim=True) if num_steps else index[None]
    following = torch.cat([rewards[:, 1:], rewards[:, :1]], dim=1)
    # The last step gives no reward, and the one before it has nothing to be compared to.
    differences = torch.where(index == last - 1, rewards, rewards - following)
    return torch.where(index == last, 0.0, torch.where(index > last, torch.nan, differences))


def total_log_ratio(logps: Tensor, ref_logps: Tensor, action_mask: Tensor) -> Tensor:
    """Log-ratio of whole completions, k1 estimate of the KL in nats: (B, T), (B, T), (B, T) -> (B,)."""
    return torch.where(action_mask, as_float32(logps) - as_float32(ref_logps), 0.0).sum(dim=1)


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
        num_generations, scale, eps:
            As for [`~trl_prl.credit.groups.group_normalise`].

    Returns:
        `torch.Tensor` of shape (B, T): Token advantages, float32, detached, 0 off-mask.

    Raises:
        `ValueError`: If a shape does not fit or B does not consist of complete groups.
    """
    check_rows("logps", logps)
    check_same_shape("ref_logps", ref_logps, "logps", logps)
    check_same_shape("step_ids", step_ids, "logps", logps)
    check_step_ids(step_ids)
    check_per_completion("outcome_rewards", outcome_rewards, "logps", logps)
    action_mask = step_ids >= 0
    kl = total_log_ratio(logps, ref_logps, action_mask)
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
        step_values (`torch.Tensor` of shape (B, S)):
            Prover's value of the prefix that ends with each step; NaN contributes 0.
        outcome_advantages, step_ids, alpha:
            As for [`pav_advantages`], like what is returned and raised.
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
    check_rows("step_rewards", step_rewards)
    check_groups(step_rewards, num_generations)
    # Index by index, so that the groups of each one are neighbours.
    by_index = group_normalise(step_rewards.T.reshape(-1), num_generations, eps=eps)
    return by_index.reshape(step_rewards.shape[::-1]).T
