"""Numbers over all processes: the `process/` metrics, statistics of groups, and the completions table.

- `process/steps_per_completion`: steps per completion that has any. Above 1, else there is nothing to credit.
- `process/tokens_per_step`: action tokens per step. Tens to hundreds for text.
- `process/reward/mean`, `process/reward/std`: process reward per step, which is the progress for PAV and the process
  part of the advantage for PRL. The deviation is well above 0.
- `process/reward/frac_zero`: share of the scored steps whose reward is exactly 0. Below 0.9.
- `process/unscorable_frac`: share of the steps that could not be scored. Near 0.
- `process/advantage_share`: variance of the process part of the token advantages, divided by the sum of the variances
  of the process part and the outcome part. Below 0.7; for PAV above 0.05.
- `process/outcome_correlation`: correlation, over completions, of the mean process reward with the outcome advantage.
  Positive for a useful process reward.
- `process/repeated_steps`: share of the steps whose text, without case and spacing, occurred before in the completion.
  At the level of the first optimizer steps; a rise is a sign of reward hacking.
- `process/kl_to_go`: mean over tokens of the log-ratio to the reference summed from the token to the end, in nats.
  Grows slowly. Only where a reference model is used, as the next one.
- `process/kl_completion`: mean over completions of their whole log-ratio, the k1 estimate of how far the policy is
  from the reference, in nats per completion. Grows slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from trl_prl.credit.groups import from_positions, leave_one_out, to_positions
from trl_prl.credit.step_tensors import precise_dtype, step_end_mask


def process_metric_sums(
    token_rewards: torch.Tensor,
    process_advantages: torch.Tensor,
    outcome_advantages: torch.Tensor,
    step_ids: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Sums from which the `process/` metrics follow; those of several processes add up.

    Args:
        token_rewards (`torch.Tensor`):
            Process reward of each token's step of shape (B, T), NaN where the step cannot be scored.
        process_advantages (`torch.Tensor`):
            Process part of the token advantages of shape (B, T).
        outcome_advantages (`torch.Tensor`):
            Outcome advantages of shape (B,).
        step_ids (`torch.Tensor`):
            Step of each token of shape (B, T), -1 off the action mask.

    Returns:
        `dict[str, torch.Tensor]`: Sums by name, numbers in the precision of [`precise_dtype`].
    """
    # Squares of thousands of tokens lose digits in float32.
    dtype = precise_dtype(step_ids.device)
    action_mask = step_ids >= 0
    end_mask = step_end_mask(step_ids)
    scored_mask = end_mask & ~token_rewards.isnan()
    rewards = token_rewards.to(dtype).masked_fill(~scored_mask, 0.0)
    process = process_advantages.to(dtype).masked_fill(~action_mask, 0.0)
    num_tokens = action_mask.sum(1).to(dtype)
    outcome = outcome_advantages.to(dtype)
    num_scored = scored_mask.sum(1)
    rewarded_mask = (num_scored > 0).to(dtype)
    mean_rewards = rewards.sum(1) / num_scored.clamp(min=1)
    sums = {
        "num_completions": action_mask.any(1).sum(),
        "num_steps": end_mask.sum(),
        "num_tokens": num_tokens.sum(),
        "num_scored": num_scored.sum(),
        "num_zero": (scored_mask & (rewards == 0)).sum(),
        "reward": rewards.sum(),
        "reward_square": rewards.square().sum(),
        "process": process.sum(),
        "process_square": process.square().sum(),
        "outcome": (outcome * num_tokens).sum(),
        "outcome_square": (outcome.square() * num_tokens).sum(),
        "num_rewarded": rewarded_mask.sum(),
        "mean_reward": (mean_rewards * rewarded_mask).sum(),
        "mean_reward_square": (mean_rewards.square() * rewarded_mask).sum(),
        "advantage": (outcome * rewarded_mask).sum(),
        "advantage_square": (outcome.square() * rewarded_mask).sum(),
        "mean_reward_advantage": (outcome * mean_rewards * rewarded_mask).sum(),
    }
    return {name: total.to(dtype) for name, total in sums.items()}


def moments(total: float, square: float, count: float) -> tuple[float, float]:
    """Mean and population variance from sums; NaN without items."""
    if count == 0:
        return math.nan, math.nan
    mean = total / count
    return mean, max(square / count - mean * mean, 0.0)


def process_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Read the `process/` metrics off the sums of all processes.

    Args:
        sums (`Mapping[str, float]`):
            Sums from [`process_metric_sums`], added over processes.

    Returns:
        `dict[str, float]`: Metric by name; left out where nothing was there to measure.
    """
    reward_mean, reward_variance = moments(sums["reward"], sums["reward_square"], sums["num_scored"])
    _, process_variance = moments(sums["process"], sums["process_square"], sums["num_tokens"])
    _, outcome_variance = moments(sums["outcome"], sums["outcome_square"], sums["num_tokens"])
    x_mean, x_variance = moments(sums["mean_reward"], sums["mean_reward_square"], sums["num_rewarded"])
    y_mean, y_variance = moments(sums["advantage"], sums["advantage_square"], sums["num_rewarded"])
    metrics = {
        "process/steps_per_completion": divide(sums["num_steps"], sums["num_completions"]),
        "process/tokens_per_step": divide(sums["num_tokens"], sums["num_steps"]),
        "process/reward/mean": reward_mean,
        "process/reward/std": math.sqrt(reward_variance),
        "process/reward/frac_zero": divide(sums["num_zero"], sums["num_scored"]),
        "process/unscorable_frac": divide(sums["num_steps"] - sums["num_scored"], sums["num_steps"]),
        "process/advantage_share": divide(process_variance, process_variance + outcome_variance),
    }
    # Below this a variance is rounding noise, and a correlation would be a ratio of two rounding errors.
    tiny = 1e-12
    if min(x_variance, y_variance) > tiny:
        covariance = sums["mean_reward_advantage"] / sums["num_rewarded"] - x_mean * y_mean
        metrics["process/outcome_correlation"] = covariance / math.sqrt(x_variance * y_variance)
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


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


def gather_rows(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Rows of all processes in their order: (B,) -> (N,), or (B, T) -> (N, P) padded with NaN."""
    if values.dim() > 1:
        values = accelerator.pad_across_processes(values, dim=1, pad_index=math.nan)  # type: ignore[arg-type]
    return accelerator.gather(values)


def own_rows(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Rows of this process, out of those of all: (N, ...) -> (B, ...)."""
    num_rows = len(values) // accelerator.num_processes
    return values[accelerator.process_index * num_rows :][:num_rows]


def group_baseline(
    accelerator: Accelerator, values: torch.Tensor, step_ids: torch.Tensor, num_generations: int
) -> torch.Tensor:
    """[`leave_one_out`] of token values of shape (B, T), NaN where unknown, over groups that may span processes."""
    everyone = gather_rows(accelerator, to_positions(values, step_ids))
    return from_positions(own_rows(accelerator, leave_one_out(everyone, num_generations)), step_ids)


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


class CompletionsTable:
    """Columns that are added to TRL's completions table, with entries for all processes.

    Args:
        logs (`Mapping`):
            TRL's table, to whose `extra` columns these belong.
    """

    def __init__(self, logs: Mapping[str, Any]) -> None:
        self._table = logs
        self._names: set[str] = set()
        self._open_rows: dict[str, list[LoggedRewards]] = {"train": [], "eval": []}

    def extend(self, name: str, entries: list[Any]) -> None:
        """Add the entries of the rows that TRL has just added."""
        column = self._table["extra"][name]
        # Rows from before there was such a column, such as those of an evaluation before a callback was attached.
        num_missing = len(self._table["prompt"]) - len(entries) - len(column)
        column.extend([None] * num_missing + entries)
        self._names.add(name)

    def extend_steps(self, steps: list[list[str]], rewards: list[list[float]], mode: str | None) -> None:
        """Add steps and their rewards; with a mode the rewards are not known yet, and filled in the mode's losses."""
        # The table holds these very lists.
        rows = [LoggedRewards(row) for row in rewards]
        self.extend("steps", [LoggedSteps(*pair) for pair in zip(steps, rows, strict=True)])
        self.extend("step_rewards", rows)
        if mode is not None:
            # An evaluation may come between a rollout and its losses, so each mode has rows of its own.
            self._open_rows[mode] = rows

    def fill(self, mode: str, rewards: Iterable[tuple[int, list[float]]]) -> None:
        """Enter rewards that were not known at the rollout, by row number."""
        for row, values in rewards:
            self._open_rows[mode][row][:] = values

    def remove(self) -> None:
        """Take the columns out of the table, as nobody goes on filling them."""
        for name in self._names:
            self._table["extra"].pop(name, None)
