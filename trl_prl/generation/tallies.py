"""Rollouts and what is counted of them: outcomes, values with their intervals, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from trl_prl.metrics.intervals import value_interval
from trl_prl.types import FinishReason


Unfinished = Literal["exclude", "wrong"]


@dataclass(frozen=True)
class Rollout:
    """A whole completion of a problem and its outcome.

    Args:
        ids (`tuple[int, ...]`):
            Token ids of the completion, the prefix it was continued from included.
        finish_reason (`str`):
            As in [`Completion`].
        correct (`bool`, *optional*):
            Outcome; `None` for one that did not finish or could not be checked.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    correct: bool | None

    @property
    def finished(self) -> bool:
        """Whether the rollout came to an end by itself."""
        return self.finish_reason != "length"


@dataclass(frozen=True)
class Tally:
    """Counted rollouts of a prefix.

    Args:
        num_rollouts (`int`):
            Rollouts that the value is a fraction of.
        num_correct (`int`):
            Correct ones among them.
        num_unfinished (`int`):
            Rollouts that reached the length limit. Among `num_rollouts` only where they are said to count as wrong.
        num_failed (`int`):
            Finished rollouts whose outcome could not be checked; never among `num_rollouts`.
        outcome (`bool`, *optional*):
            Outcome of a prefix that is a whole completion. Its value is that outcome, without any rollout.
    """

    num_rollouts: int = 0
    num_correct: int = 0
    num_unfinished: int = 0
    num_failed: int = 0
    outcome: bool | None = None

    @property
    def value(self) -> float | None:
        """Fraction correct, in [0, 1]; `None` where nothing was counted."""
        if self.outcome is not None:
            return float(self.outcome)
        return self.num_correct / self.num_rollouts if self.num_rollouts else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson interval of the value; without width for an outcome, which is not an estimate."""
        if self.outcome is not None:
            return float(self.outcome), float(self.outcome)
        return value_interval(self.num_correct, self.num_rollouts, confidence)

    def add(self, rollouts: Iterable[Rollout], unfinished: Unfinished) -> Tally:
        """Count more rollouts.

        Args:
            rollouts (`Iterable[Rollout]`):
                Independent rollouts from the prefix.
            unfinished (`str`):
                `"exclude"` or `"wrong"`: what rollouts are that reached the length limit.

        Returns:
            [`Tally`]: The new tally.
        """
        rollouts = list(rollouts)
        num_unfinished = sum(not rollout.finished for rollout in rollouts)
        checked = [rollout.correct for rollout in rollouts if rollout.finished and rollout.correct is not None]
        return replace(
            self,
            num_rollouts=self.num_rollouts + len(checked) + (num_unfinished if unfinished == "wrong" else 0),
            num_correct=self.num_correct + sum(checked),
            num_unfinished=self.num_unfinished + num_unfinished,
            num_failed=self.num_failed + len(rollouts) - num_unfinished - len(checked),
        )


@dataclass
class Spending:
    """What a collection cost and met; sums over everything that was drawn."""

    num_rollouts: int = 0
    num_unfinished: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_sampled_tokens: int = 0

    def add(self, other: Mapping[str, int]) -> None:
        """Add the sums of another one."""
        for name, number in other.items():
            setattr(self, name, getattr(self, name) + number)
