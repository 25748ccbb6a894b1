"""Shared types: the seams between splitting, scoring and training.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class StepSplitter(Protocol):
    """Decides where the steps of a completion end.

    A splitter reads the byte pieces of the *sampled* tokens, never re-tokenised text, so a delimiter that was merged
    into a longer token or spread over several is found at the token that completes it.
    """

    def step_ends(self, pieces: Sequence[bytes]) -> list[int]:
        """Find the step ends of one run of tokens.

        Args:
            pieces (`Sequence[bytes]`):
                Bytes that each token contributes to the text; special tokens contribute `b""`.

        Returns:
            `list[int]`: Exclusive end of each step in `pieces`: strictly increasing, the last one equals
            `len(pieces)`; empty when `pieces` is empty.
        """
        ...


@runtime_checkable
class ProcessReward(Protocol):
    """Scores every step of every completion: TRL's reward-function convention, one level deeper.

    Called as `process_reward(prompts=..., steps=..., **columns)`; it may also be a coroutine function. As in TRL, the
    columns hold every column of the dataset and, in training, `trainer_state`, `log_metric` and `log_extra`, so accept
    `**kwargs`.

    An object may say what it returns in an attribute `returns`: `"values"` (probabilities of success after each step,
    the default) or `"advantages"` (progress). One that returns values should have a method
    `initial_values(prompts, **columns) -> list[float]` for the value of the prompt itself.
    """

    def __call__(
        self, prompts: list[Any], steps: list[list[str]], **columns: Any
    ) -> list[list[float | None]] | Awaitable[list[list[float | None]]]:
        """Score steps.

        Args:
            prompts (`list`):
                One prompt per completion, as the dataset has it (text or messages).
            steps (`list[list[str]]`):
                Texts of the steps of each completion; joined, they give the completion back. A completion without
                tokens has no steps.
            **columns:
                Further dataset columns, one entry per completion.

        Returns:
            `list[list[float | None]]`: One number per step. `None` or NaN marks a step that cannot be scored.
        """
        ...
