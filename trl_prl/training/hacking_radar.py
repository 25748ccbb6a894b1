"""Reward-hacking radar: says when the process reward and the outcome part.

It reads the trainer's own log entries, so it costs nothing, needs nothing from other processes, and finds its state
again in the log history of a checkpoint. Each cause is reported once per training run. `docs/pav_trainer.md` lists the
metrics, what is healthy, and when the radar speaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple


# Standard errors by which a change must exceed the noise of the two windows: with windows of ten entries, one look in
# a few thousand goes beyond by chance, and a run has hundreds.
NUM_ERRORS = 4.0
# A gain of the outcome reward excuses much, so less is asked of it.
OUTCOME_ERRORS = 2.0
# How far the correlation must fall below its early level, and how low.
CORRELATION_FALL = 0.2
CORRELATION_SHARE = 0.5
# A correlation this far below zero is no rounding.
CORRELATION_BELOW_ZERO = 0.05
STEPS_GROWTH = 2.0
REPEATS_RISE = 0.1
# Mean value of finished solutions minus their share of right answers.
OVERRATING = 0.15

REMEDY = (
    "Read completions (`log_completions=True`), lower `alpha` or let it fall (`alpha_schedule`), bound single steps "
    "(`step_advantage_clip`), or train the verifier again on solutions of this policy."
)


class Change(NamedTuple):
    """Means of one metric over two windows of log entries, and the standard error of their difference."""

    before: float
    after: float
    error: float

    @property
    def rise(self) -> float:
        """How much larger the later mean is."""
        return self.after - self.before


def change(before: Sequence[float], after: Sequence[float]) -> Change:
    """Compare two windows.

    Args:
        before (`Sequence[float]`):
            Earlier entries, at least two.
        after (`Sequence[float]`):
            Later entries, at least two.

    Returns:
        [`Change`]: The means and the standard error of their difference.
    """
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    return Change(fmean(before), fmean(after), error)


def outcome_metric(trainer: Any) -> str:
    """The metric of the outcome.

    Args:
        trainer ([`~trl.GRPOTrainer`]):
            The trainer that logs it.

    Returns:
        `str`: `"reward"`; where no outcome is paid, and it is 0 throughout, that of the first reward function.
    """
    return "reward" if trainer.reward_weights.any() else f"rewards/{trainer.reward_func_names[0]}/mean"


class HackingRadar:
    """Watches the log of one training run.

    The first `window` log entries are the early level of a metric, and the last `window` its present one; it speaks
    from the `2 * window`-th entry on. Entries without the metric are left out.

    Args:
        window (`int`):
            Log entries per window, at least 3. Their length in optimizer steps is `logging_steps`.
        remedy (`str`, *optional*):
            What every message ends with.
        outcome (`str`, *optional*, defaults to `"reward"`):
            Metric of the outcome.
        compares_rewards (`bool`, *optional*, defaults to `True`):
            Whether process reward and outcome should go together. PRL's process reward is a penalty, which a policy
            that learns pays; there only what completions look like is watched.
    """

    def __init__(
        self, window: int, remedy: str = REMEDY, outcome: str = "reward", compares_rewards: bool = True
    ) -> None:
        self.window = window
        self.remedy = remedy
        self.outcome = outcome
        self.compares_rewards = compares_rewards
        self._history: Sequence[Mapping[str, Any]] | None = None
        self._restart()

    def _restart(self) -> None:
        self._num_seen = 0
        self._reported: set[str] = set()
        self._correlations: list[float] = []
        self._steps: list[float] = []
        self._repeats: list[float] = []
        self._outcomes: list[float] = []
        self._rewards: list[float] = []
        # First entry of the earlier window with the best outcome.
        self._best = 0

    def look(self, history: Sequence[Mapping[str, Any]]) -> list[str]:
        """Read the log entries that are new.

        Args:
            history (`Sequence[Mapping]`):
                `trainer.state.log_history`. That of another training run, or of a checkpoint, is read from its start.

        Returns:
            `list[str]`: A message for each cause that was not reported before.
        """
        if history is not self._history:
            self._history = history
            self._restart()
        messages = []
        for entry in history[self._num_seen :]:
            for cause, message in self._causes(entry):
                if cause not in self._reported:
                    self._reported.add(cause)
                    messages.append(f"Optimizer step {entry.get('step', '?')}: {message} {self.remedy}")
        self._num_seen = len(history)
        return messages

    def _causes(self, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Take in one entry, and yield every cause that it gives with its message."""
        outcome, reward = entry.get(self.outcome), entry.get("process/reward/mean")
        if _is_known(outcome) and _is_known(reward):
            # Only in pairs, so that both windows are of the same entries.
            self._add(self._rewards, reward)
            if self._add(self._outcomes, outcome) and self.compares_rewards:
                yield from self._parting()
        if self._add(self._correlations, entry.get("process/outcome_correlation")) and self.compares_rewards:
            yield from self._correlation()
        if self._add(self._steps, entry.get("process/steps_per_completion")):
            yield from self._step_count()
        if self._add(self._repeats, entry.get("process/repeated_steps")):
            yield from self._repetition()
        yield from self._calibration(entry)

    def _add(self, series: list[float], value: float | None) -> bool:
        """Append a value, if there is one; whether there are enough to compare two windows."""
        if value is None or not _is_known(value):
            return False
        series.append(value)
        return len(series) >= 2 * self.window

    def _since_start(self, series: list[float]) -> Change:
        return change(series[: self.window], series[-self.window :])

    def _outcome_rose(self) -> bool:
        """Whether the outcome reward has got better since the start, be it little.

        A policy that learns the task may well write more steps, or repeat some because the task asks for it.
        """
        if len(self._outcomes) < 2 * self.window:
            return True
        found = self._since_start(self._outcomes)
        return found.rise > OUTCOME_ERRORS * found.error

    def _span(self) -> str:
        return f"over the first {self.window} log entries to {{:.3g}} over the last {self.window}"

    def _correlation(self) -> Iterator[tuple[str, str]]:
        found = self._since_start(self._correlations)
        recent = self._correlations[-self.window :]
        noise = NUM_ERRORS * math.sqrt(variance(recent) / self.window)
        fell = -found.rise > max(CORRELATION_FALL, NUM_ERRORS * found.error)
        if fell and found.after < CORRELATION_SHARE * found.before and not self._outcome_rose():
            yield (
                "correlation_fell",
                f"process/outcome_correlation fell from {found.before:.3g} {self._span().format(found.after)}. "
                "Completions with more process reward are hardly better ones any more, and the outcome reward has not "
                "risen: training pulls two ways.",
            )
        if found.after < -max(CORRELATION_BELOW_ZERO, noise):
            yield (
                "correlation_negative",
                f"process/outcome_correlation is {found.after:.3g} on average over the last {self.window} log "
                "entries. Completions with more process reward are worse ones: training pulls two ways.",
            )

    def _step_count(self) -> Iterator[tuple[str, str]]:
        found = self._since_start(self._steps)
        grew = found.after > STEPS_GROWTH * found.before and found.rise > NUM_ERRORS * found.error
        if grew and not self._outcome_rose():
            yield (
                "steps",
                f"process/steps_per_completion grew from {found.before:.3g} {self._span().format(found.after)}. The "
                "outcome reward has not risen with it: the policy is paid for writing steps.",
            )

    def _repetition(self) -> Iterator[tuple[str, str]]:
        found = self._since_start(self._repeats)
        if found.rise > max(REPEATS_RISE, NUM_ERRORS * found.error) and not self._outcome_rose():
            yield (
                "repeats",
                f"process/repeated_steps rose from {found.before:.3g} {self._span().format(found.after)}. The "
                "outcome reward has not risen with it: steps that were paid for once are written again.",
            )

    def _parting(self) -> Iterator[tuple[str, str]]:
        """Outcome below its best window, and process reward above what it was then."""
        newest = len(self._outcomes) - 2 * self.window
        if self._mean_outcome(newest) > self._mean_outcome(self._best):
            self._best = newest
        then, now = slice(self._best, self._best + self.window), slice(-self.window, None)
        outcome = change(self._outcomes[then], self._outcomes[now])
        reward = change(self._rewards[then], self._rewards[now])
        if -outcome.rise > NUM_ERRORS * outcome.error and reward.rise > NUM_ERRORS * reward.error:
            yield (
                "parting",
                f"the outcome reward fell from {outcome.before:.3g}, its best mean over {self.window} log entries, to "
                f"{outcome.after:.3g} over the last {self.window}, while process/reward/mean rose from "
                f"{reward.before:.3g} to {reward.after:.3g}. The policy earns process reward at the cost of right "
                "answers.",
            )

    def _mean_outcome(self, first: int) -> float:
        return fmean(self._outcomes[first : first + self.window])

    def _calibration(self, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        names = ("mean_value", "mean_outcome", "brier", "num_solutions")
        value, outcome, brier, num = (entry.get(f"process/calibration/{name}") for name in names)
        if value is None or outcome is None or brier is None or num is None:
            return
        # The Brier score is the mean square of the differences whose mean is the overrating.
        overrating = value - outcome
        error = math.sqrt(max(brier - overrating**2, 0.0) / num)
        if overrating > max(OVERRATING, NUM_ERRORS * error):
            yield (
                "calibration",
                f"the values of {num:.0f} finished solutions are {value:.3g} on average, but only {outcome:.3g} of "
                "them are right (process/calibration). The process reward overrates what this policy writes; if it "
                "did so from the start, calibrate it (`verifier.calibrate`).",
            )


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
