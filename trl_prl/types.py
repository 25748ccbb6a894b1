"""Shared types: the seams between splitting, scoring and training.

Layer 0: no model, no trainer, no input or output.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable


FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue: a prompt, or a prompt and the first steps of a completion.

    Args:
        token_ids (`tuple[int, ...]`):
            Ids, at least one. Nothing is added to them (no start token, no template) and they are not re-tokenised.
        key (`str`, *optional*):
            Identity of the prompt. With the seed and the number of the sample it decides what is drawn, so equal ids
            under different keys give independent samples. Without one, the position in the call is the key, and then
            samples depend on what else is in the call.
        max_tokens (`int`, *optional*):
            Most tokens to generate for this prompt, at least 1; [`SamplingParams`] decides when it is absent.

    Raises:
        `ValueError`: When there are no ids, or no room for a token.
    """

    token_ids: tuple[int, ...]
    key: str | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(
                f"The prompt with key {self.key!r} has no token ids, so there is nothing to continue. Give at least "
                "one, the start token for instance."
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(
                f"The prompt with key {self.key!r} has max_tokens={self.max_tokens}, which leaves no room for a "
                "completion. Use at least 1, or leave the prompt out."
            )


@dataclass(frozen=True)
class SamplingParams:
    """How a [`Generator`] samples.

    Args:
        n (`int`, *optional*, defaults to `1`):
            Samples per prompt.
        max_tokens (`int`, *optional*, defaults to `256`):
            Most tokens per sample.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits; 0 takes the most likely token.
        top_p (`float`, *optional*, defaults to `1.0`):
            Least probability, in (0, 1], that the most likely tokens to choose from have together.
        top_k (`int`, *optional*, defaults to `0`):
            Most likely tokens to choose from; 0 is all of them.
        stop (`tuple[str, ...]`, *optional*):
            Texts that end a sample once they appear in it. They stay in the sample.
        seed (`int`, *optional*, defaults to `0`):
            Seed.

    Raises:
        `ValueError`: When a number is outside its range or a stop text is empty.
    """

    n: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "n": (self.n >= 1, "at least 1"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "a finite number that is not negative"),
            "top_p": (0 < self.top_p <= 1, "a number in (0, 1]"),
            "top_k": (self.top_k >= 0, "0 for all tokens, or a positive number"),
        }
        for name, (valid, allowed) in ranges.items():
            if not valid:
                raise ValueError(
                    f"Got {name}={getattr(self, name)}, with which nothing can be sampled. Use {allowed}."
                )
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(
                f"Got stop={self.stop!r}. It must be a tuple of texts, and the empty text would end every sample "
                "before its first token. Use a tuple such as ('\\n\\n',)."
            )


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    Args:
        token_ids (`tuple[int, ...]`):
            Sampled ids, with the end-of-sequence token if there was one.
        text (`str`):
            Their text, without special tokens.
        finish_reason (`str`):
            `"eos"` (end-of-sequence token), `"stop"` (one of the stop texts) or `"length"` (no room left).
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason

    @property
    def finished(self) -> bool:
        """Whether the sample came to an end by itself. If not, its outcome says nothing about its prompt."""
        return self.finish_reason != "length"


@runtime_checkable
class Generator(Protocol):
    """Samples continuations: a model in this process, or a server.

    One that knows the positions of its model may say so in an attribute `max_length`: the most tokens of a prompt and
    its continuation together, or `None`. A prefix that fills them is then not continued, as one at `max_tokens` is
    not; without it, what the generator raises for such a prompt is raised.
    """

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Sample `params.n` continuations of every prompt.

        Args:
            prompts (`list[Prompt]`):
                What to continue, in any order and of any lengths.
            params ([`SamplingParams`]):
                How to sample.

        Returns:
            `list[list[Completion]]`: For each prompt, in the order given, exactly `params.n` samples.
        """
        ...


class OutcomeReward(Protocol):
    """Says whether completions are right: the signature of TRL's reward functions."""

    def __call__(
        self, *, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> Sequence[float | None]:
        """Check completions.

        Args:
            prompts (`list`):
                One prompt per completion, as the dataset has it (text or messages).
            completions (`list`):
                Completions: text, or a list with one assistant message where the prompt is a list of messages.
            completion_ids (`list[list[int]]`):
                Their token ids.
            **columns:
                Further dataset columns, one entry per completion.

        Returns:
            `Sequence[float | None]`: One reward per completion. `None` or NaN marks one that could not be checked.
        """
        ...


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
    `**kwargs`. A column `finished` says of each completion whether it ends with its last step or goes on, or was cut
    off; one of that name in the dataset gives way to it. In training, one that names `step_token_ids` in its signature
    is also given the sampled tokens of every step, and one that names `transcript`, for each completion, what the
    policy wrote and what its tools answered, as a list of [`TranscriptSegment`].

    An object may say what it returns in an attribute `returns`: `"values"` (probabilities of success after each step,
    the default) or `"advantages"` (progress). One that returns values should have a method
    `initial_values(prompts, **columns) -> list[float]` for the value of the prompt itself. Where it can compute both
    at once, a method `score_solutions(prompts, steps, **columns)` that returns the values of the prompts and those of
    the steps is called instead of the two. A method `prepare(accelerator)` is called once, before training, and
    behind it, where there is one, `attach(trainer)`.

    One that learns while the policy does has a method
    `update(prompts, steps, outcomes, **columns) -> dict[str, float]`. [`PAVTrainer`] and [`ProcessRewardCallback`]
    call it after every rollout of the training, once its advantages are computed, on all processes together;
    `outcomes` are the results of the first reward function, `None` where there is none, and what it returns is logged
    as `process/update/<name>`, averaged over the processes. The columns are those above but `log_metric` and
    `log_extra`; `step_token_ids` and `transcript` are there if the scoring names them. Its `state_dict()` is saved
    in checkpoints, and given to `load_state_dict(state)` when a training is resumed. An attribute `is_trainable` that
    is False says that there is nothing to update.
    """

    def __call__(
        self, prompts: list[Any], steps: list[list[str]], **columns: Any
    ) -> list[list[float | None]] | Awaitable[list[list[float | None]]]:
        """Score steps.

        Args:
            prompts (`list`):
                One prompt per completion, as the dataset has it (text or messages), and with what an environment's
                `reset` has told the policy.
            steps (`list[list[str]]`):
                Texts of the steps of each completion; joined, they give the completion back. A completion without
                tokens has no steps.
            **columns:
                Further dataset columns, one entry per completion.

        Returns:
            `list[list[float | None]]`: One number per step. `None` or NaN marks a step that cannot be scored.
        """
        ...
