"""Rollouts from prefixes, with their outcomes: drawn by a generator, checked by an outcome reward, counted apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from trl_prl.intervals import SequentialRule, value_interval
from trl_prl.token_pieces import TokenPieces
from trl_prl.types import FinishReason, Generator, OutcomeReward, Prompt, SamplingParams


Unfinished = Literal["exclude", "wrong"]


@dataclass(frozen=True)
class Problem:
    """One row of the prompts' data set.

    Args:
        row (`int`):
            Its number in the data set: its identity. Rows with equal prompts stay rows of their own.
        prompt (`str` or `list[dict]`):
            Prompt as the data set has it.
        prompt_ids (`tuple[int, ...]`):
            Its token ids, as the policy sees them.
        columns (`Mapping[str, Any]`, *optional*):
            The other columns, for the outcome reward.
    """

    row: int
    prompt: Any
    prompt_ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)


def prompt_token_ids(tokenizer: Any, prompt: str | list[Mapping[str, Any]], **template_args: Any) -> tuple[int, ...]:
    """Ids of a prompt as TRL's trainers give them to the policy: messages through the chat template.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, with a chat template if prompts are messages.
        prompt (`str` or `list[dict]`):
            The prompt.
        **template_args:
            Passed to the chat template.

    Returns:
        `tuple[int, ...]`: Ids.
    """
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt)["input_ids"])
    encoded = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **template_args
    )
    return tuple(encoded["input_ids"])


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

    def as_dict(self) -> dict[str, int]:
        """The sums by name."""
        return asdict(self)


Prefix = tuple[int, tuple[int, ...]]
"""Position of a problem in the list at hand, and the ids of the start of a completion; `()` is the prompt itself."""


class Roller:
    """Draws rollouts of a list of problems and checks them.

    Args:
        problems (`Sequence[Problem]`):
            The problems.
        generator ([`Generator`]):
            The prover.
        reward ([`OutcomeReward`]):
            Outcome reward. What it raises is raised: an error in a check is no wrong answer.
        token_pieces ([`TokenPieces`]):
            Bytes of the generator's tokens.
        params ([`SamplingParams`]):
            How to sample; `max_tokens` is the limit of a whole completion, prefix included. `n` is not read.
        threshold (`float`, *optional*, defaults to `0.5`):
            Rewards above it are correct.
        spending ([`Spending`], *optional*):
            Where to add up what is drawn.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        generator: Generator,
        reward: OutcomeReward,
        token_pieces: TokenPieces,
        params: SamplingParams,
        threshold: float = 0.5,
        spending: Spending | None = None,
    ) -> None:
        self.problems = problems
        self.generator = generator
        self.reward = reward
        self.token_pieces = token_pieces
        self.params = params
        self.threshold = threshold
        self.spending = spending or Spending()

    def has_room(self, prefix: Prefix) -> bool:
        """Whether there is room for a token after a prefix."""
        return len(prefix[1]) < self.params.max_tokens

    def draw(self, prefixes: Sequence[Prefix], n: int, label: str) -> list[list[Rollout]]:
        """Draw rollouts from prefixes.

        Args:
            prefixes (`Sequence[Prefix]`):
                Where to continue, each with room for a token.
            n (`int`):
                Rollouts per prefix.
            label (`str`):
                What they are for. Different labels give independent rollouts of one prefix, equal ones equal ones.

        Returns:
            `list[list[Rollout]]`: `n` rollouts for each prefix.

        Raises:
            `ValueError`: When the generator or the reward returns another number than asked.
        """
        prompts = [
            Prompt(
                (*self.problems[i].prompt_ids, *ids),
                key=f"{self.problems[i].row}/{label}/{ids_digest(ids)}",
                max_tokens=self.params.max_tokens - len(ids),
            )
            for i, ids in prefixes
        ]
        samples = self.generator.generate(prompts, replace(self.params, n=n)) if prompts else []
        if len(samples) != len(prefixes) or any(len(row) != n for row in samples):
            raise ValueError(
                f"{type(self.generator).__name__} returned {sorted({len(row) for row in samples})} samples for "
                f"{len(samples)} prompts, but {n} were asked for each of {len(prefixes)}: values would be fractions "
                "of the wrong number. Use a generator that returns exactly as many as asked."
            )
        flat = [
            (i, (*ids, *completion.token_ids), completion)
            for (i, ids), row in zip(prefixes, samples, strict=True)
            for completion in row
        ]
        finished = [(i, ids) for i, ids, completion in flat if completion.finished]
        outcomes = iter(self._check(finished))
        rollouts = [
            Rollout(ids, completion.finish_reason, next(outcomes) if completion.finished else None)
            for _, ids, completion in flat
        ]
        self.spending.add(
            {
                "num_rollouts": len(rollouts),
                "num_unfinished": len(rollouts) - len(finished),
                "num_failed": sum(rollout.finished and rollout.correct is None for rollout in rollouts),
                "num_prompt_tokens": sum(len(prompt.token_ids) for prompt in prompts),
                "num_sampled_tokens": sum(len(completion.token_ids) for _, _, completion in flat),
            }
        )
        return [rollouts[k : k + n] for k in range(0, len(rollouts), n)]

    def text(self, ids: Sequence[int]) -> str:
        """Text of a completion's ids."""
        return b"".join(self.token_pieces.pieces(ids)).decode("utf-8", "replace")

    def _check(self, completions: Sequence[Prefix]) -> list[bool | None]:
        return check_outcomes(
            [self.problems[i] for i, _ in completions],
            [self.text(ids) for _, ids in completions],
            [list(ids) for _, ids in completions],
            self.reward,
            self.threshold,
        )


def check_outcomes(
    problems: Sequence[Problem],
    completions: Sequence[Any],
    completion_ids: Sequence[list[int]],
    reward: OutcomeReward,
    threshold: float = 0.5,
) -> list[bool | None]:
    """Check completions with an outcome reward, as TRL's trainers call it.

    Args:
        problems (`Sequence[Problem]`):
            Problem of each completion, all with the same columns.
        completions (`Sequence`):
            Completions as texts or messages; a text whose prompt is a list of messages becomes one of the assistant.
        completion_ids (`Sequence[list[int]]`):
            Their token ids.
        reward ([`OutcomeReward`]):
            Outcome reward. What it raises is raised: an error in a check is no wrong answer.
        threshold (`float`, *optional*, defaults to `0.5`):
            Rewards above it are correct.

    Returns:
        `list[bool | None]`: Outcome of each completion; `None` for one that could not be checked.

    Raises:
        `ValueError`: When the reward returns another number than asked.
    """
    if not problems:
        return []
    rewards = reward(
        prompts=[problem.prompt for problem in problems],
        completions=[
            completion
            if isinstance(problem.prompt, str) or not isinstance(completion, str)
            else [{"role": "assistant", "content": completion}]
            for problem, completion in zip(problems, completions, strict=True)
        ],
        completion_ids=list(completion_ids),
        **{name: [problem.columns[name] for problem in problems] for name in problems[0].columns},
    )
    if len(rewards) != len(completions):
        raise ValueError(
            f"The outcome reward returned {len(rewards)} rewards for {len(completions)} completions, so they cannot "
            "be told apart. Return one per completion, None for one that cannot be checked."
        )
    return [None if r is None or math.isnan(r) else bool(r > threshold) for r in rewards]


def measure(
    roller: Roller,
    prefixes: Iterable[Prefix],
    tallies: dict[Prefix, Tally],
    rule: int | SequentialRule,
    unfinished: Unfinished,
    label: str = "value",
) -> None:
    """Measure the values of prefixes, and add them to `tallies`.

    Args:
        roller ([`Roller`]):
            Draws the rollouts.
        prefixes (`Iterable[Prefix]`):
            What to measure. Those that have a tally already and those without room are left out.
        tallies (`dict[Prefix, Tally]`):
            Tallies so far; new ones are added.
        rule (`int` or [`SequentialRule`]):
            Rollouts of each prefix, or the rule that ends them.
        unfinished (`str`):
            As in [`Tally.add`].
        label (`str`, *optional*, defaults to `"value"`):
            What the rollouts are for.
    """
    active = [prefix for prefix in dict.fromkeys(prefixes) if prefix not in tallies]
    tallies.update((prefix, Tally()) for prefix in active)
    active = [prefix for prefix in active if roller.has_room(prefix)]
    for number, size in enumerate((rule,) if isinstance(rule, int) else rule.rounds):
        drawn = roller.draw(active, size, f"{label}{number}")
        for prefix, rollouts in zip(active, drawn, strict=True):
            tallies[prefix] = tallies[prefix].add(rollouts, unfinished)
        if isinstance(rule, SequentialRule):
            active = [p for p in active if not rule.settled(tallies[p].num_correct, tallies[p].num_rollouts)]


def ids_digest(ids: Sequence[int]) -> str:
    """Short checksum of token ids, for keys of prompts."""
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).hexdigest()
