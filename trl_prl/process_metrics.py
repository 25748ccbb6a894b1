"""The `process/` metrics: sums that add up over processes, and what is read off them.

- `process/steps_per_completion`: steps per completion that has any. Above 1, else there is nothing to credit.
- `process/tokens_per_step`: action tokens per step. Tens to hundreds for text.
- `process/reward/mean`, `process/reward/std`: process reward per step, which is the progress for PAV and the process
  part of the advantage for PRL. The deviation is well above 0.
- `process/reward/frac_zero`: share of the scored steps whose reward is exactly 0. Below 0.9.
- `process/unscorable_frac`: share of the steps that could not be scored. Near 0.
- `process/advantage_share`: variance of the process part of the token advantages, divided by the sum of the variances
  of the process part and the outcome part. 0.05 to 0.7.
- `process/outcome_correlation`: correlation, over completions, of the mean process reward with the outcome advantage.
  Positive for a useful process reward.
- `process/repeated_steps`: share of the steps whose text, without case and spacing, occurred before in the completion.
  At the level of the first optimizer steps; a rise is a sign of reward hacking.
- `process/kl_to_go`: mean over tokens of the log-ratio to the reference summed from the token to the end, in nats.
  Grows slowly. Only where a reference model is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


FIELDS = (
    "num_completions",
    "num_steps",
    "num_tokens",
    "num_scored",
    "num_zero",
    "reward",
    "reward_square",
    "process",
    "process_square",
    "outcome",
    "outcome_square",
    "num_rewarded",
    "mean_reward",
    "mean_reward_square",
    "advantage",
    "advantage_square",
    "mean_reward_advantage",
)


def step_end_mask(step_ids: torch.Tensor) -> torch.Tensor:
    """Marks the last token of every step, of one that tool output interrupts too.

    Args:
        step_ids (`torch.Tensor`):
            Step of each token of shape (B, T), -1 off the action mask.

    Returns:
        `torch.Tensor`: Boolean mask of shape (B, T).
    """
    # Steps come in order, so the smallest id behind a token, holes left out, is the step of the next action token.
    beyond = torch.iinfo(step_ids.dtype).max
    ids = step_ids.masked_fill(step_ids < 0, beyond)
    smallest_from_here = ids.flip(1).cummin(1).values.flip(1)
    following = torch.nn.functional.pad(smallest_from_here[:, 1:], (0, 1), value=beyond)
    return (step_ids >= 0) & (step_ids != following)


def process_metric_sums(
    step_rewards: torch.Tensor,
    process_advantages: torch.Tensor,
    outcome_advantages: torch.Tensor,
    step_ids: torch.Tensor,
) -> torch.Tensor:
    """Sums from which the `process/` metrics follow; those of several processes add up.

    Args:
        step_rewards (`torch.Tensor`):
            Process reward of each token's step of shape (B, T), NaN where the step cannot be scored.
        process_advantages (`torch.Tensor`):
            Process part of the token advantages of shape (B, T).
        outcome_advantages (`torch.Tensor`):
            Outcome advantages of shape (B,).
        step_ids (`torch.Tensor`):
            Step of each token of shape (B, T), -1 off the action mask.

    Returns:
        `torch.Tensor`: Sums of shape (len(FIELDS),).
    """
    # Squares of thousands of tokens lose digits in float32; Apple's GPUs have nothing else.
    dtype = torch.float32 if step_ids.device.type == "mps" else torch.float64
    action_mask = step_ids >= 0
    end_mask = step_end_mask(step_ids)
    scored_mask = end_mask & ~step_rewards.isnan()
    rewards = step_rewards.to(dtype).masked_fill(~scored_mask, 0.0)
    process = process_advantages.to(dtype).masked_fill(~action_mask, 0.0)
    num_tokens = action_mask.sum(1).to(dtype)
    outcome = outcome_advantages.to(dtype)
    num_scored = scored_mask.sum(1)
    rewarded_mask = (num_scored > 0).to(dtype)
    mean_rewards = rewards.sum(1) / num_scored.clamp(min=1)
    return torch.stack(
        [
            action_mask.any(1).sum().to(dtype),
            end_mask.sum().to(dtype),
            num_tokens.sum(),
            num_scored.sum().to(dtype),
            (scored_mask & (rewards == 0)).sum().to(dtype),
            rewards.sum(),
            rewards.square().sum(),
            process.sum(),
            process.square().sum(),
            (outcome * num_tokens).sum(),
            (outcome.square() * num_tokens).sum(),
            rewarded_mask.sum(),
            (mean_rewards * rewarded_mask).sum(),
            (mean_rewards.square() * rewarded_mask).sum(),
            (outcome * rewarded_mask).sum(),
            (outcome.square() * rewarded_mask).sum(),
            (outcome * mean_rewards * rewarded_mask).sum(),
        ]
    )


def moments(total: float, square: float, count: float) -> tuple[float, float]:
    """Mean and population variance from sums; NaN without items."""
    if count == 0:
        return math.nan, math.nan
    mean = total / count
    return mean, max(square / count - mean * mean, 0.0)


def process_metrics(sums: torch.Tensor) -> dict[str, float]:
    """Read the `process/` metrics off the sums of all processes.

    Args:
        sums (`torch.Tensor`):
            Sums of shape (len(FIELDS),) from [`process_metric_sums`], added over processes.

    Returns:
        `dict[str, float]`: Metric by name; NaN where nothing was there to measure.
    """
    s = dict(zip(FIELDS, sums.tolist(), strict=True))
    reward_mean, reward_variance = moments(s["reward"], s["reward_square"], s["num_scored"])
    _, process_variance = moments(s["process"], s["process_square"], s["num_tokens"])
    _, outcome_variance = moments(s["outcome"], s["outcome_square"], s["num_tokens"])
    x_mean, x_variance = moments(s["mean_reward"], s["mean_reward_square"], s["num_rewarded"])
    y_mean, y_variance = moments(s["advantage"], s["advantage_square"], s["num_rewarded"])
    metrics = {
        "process/steps_per_completion": divide(s["num_steps"], s["num_completions"]),
        "process/tokens_per_step": divide(s["num_tokens"], s["num_steps"]),
        "process/reward/mean": reward_mean,
        "process/reward/std": math.sqrt(reward_variance) if reward_variance >= 0 else math.nan,
        "process/reward/frac_zero": divide(s["num_zero"], s["num_scored"]),
        "process/unscorable_frac": divide(s["num_steps"] - s["num_scored"], s["num_steps"]),
        "process/advantage_share": divide(process_variance, process_variance + outcome_variance),
    }
    # Below this a variance is rounding noise, and a correlation would be a ratio of two rounding errors.
    tiny = 1e-12
    if min(x_variance, y_variance) > tiny:
        covariance = s["mean_reward_advantage"] / s["num_rewarded"] - x_mean * y_mean
        metrics["process/outcome_correlation"] = covariance / math.sqrt(x_variance * y_variance)
    else:
        metrics["process/outcome_correlation"] = math.nan
    return metrics


def count_repeated_steps(steps: Sequence[Sequence[str]]) -> int:
    """Number of steps whose text occurred before in the same completion, case and spacing left aside.

    Args:
        steps (`Sequence[Sequence[str]]`):
            Step texts of each completion.

    Returns:
        `int`: Over all completions; a text that occurs n times counts n - 1 times.
    """
    return sum(len(row) - len({" ".join(text.split()).casefold() for text in row}) for row in steps)


def divide(numerator: float, denominator: float) -> float:
    """Quotient, NaN for a denominator of 0."""
    return numerator / denominator if denominator else math.nan


class LoggedSteps(list[str]):
    """Steps of a completion for the completions table: a plain list in files, one line per step when printed.

    Args:
        steps (`list[str]`):
            Step texts.
        rewards (`list[float]`):
            Reward of each step; may be filled later.
    """

    def __init__(self, steps: list[str], rewards: list[float]) -> None:
        super().__init__(steps)
        self.rewards = rewards

    def __str__(self) -> str:
        rewards = [f"{reward:+.3f}" for reward in self.rewards] or ["?"] * len(self)
        return "\n".join(f"[{reward}] {text.strip()}" for reward, text in zip(rewards, self, strict=True))


class LoggedRewards(list[float]):
    """Step rewards of a completion for the completions table: a plain list in files, short when printed."""

    def __str__(self) -> str:
        return " ".join(f"{reward:+.3f}" for reward in self)
