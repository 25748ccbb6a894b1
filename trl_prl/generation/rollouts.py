"""Rollouts from prefixes, with their outcomes: drawn by a generator, checked by an outcome reward, counted apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trl_prl.metrics.intervals import SequentialRule
from trl_prl.rewards.outcomes import check_rewards
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Generator, OutcomeReward, Prompt, SamplingParams

from .sampling import completion_limit, draw
from .tallies import Rollout, Spending, Tally, Unfinished


_ARGUMENTS = ("prompts", "completions", "completion_ids")


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


Prefix = tuple[int, tuple[int, ...]]
"""Position of a problem in the list at hand, and the ids of the start of a completion; `()` is the prompt itself."""


@dataclass
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

    problems: Sequence[Problem]
    generator: Generator
    reward: OutcomeReward
    token_pieces: TokenPieces
    params: SamplingParams
    threshold: float = 0.5
    spending: Spending = field(default_factory=Spending)

    def has_room(self, prefix: Prefix) -> bool:
        """Whether there is room for a token after a prefix, within `max_tokens` and the positions of the model."""
        i, ids = prefix
        num_prompt_tokens = len(self.problems[i].prompt_ids)
        return len(ids) < completion_limit(self.generator, num_prompt_tokens, self.params.max_tokens)

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
        samples = draw(self.generator, prompts, replace(self.params, n=n))
        flat = [
            (i, (*ids, *completion.token_ids), completion)
            for (i, ids), row in zip(prefixes, samples, strict=True)
            for completion in row
        ]
        finished = [(i, ids) for i, ids, completion in flat if completion.finished]
        problems = [self.problems[i] for i, _ in finished]
        texts, ids_of = [self.text(ids) for _, ids in finished], [list(ids) for _, ids in finished]
        outcomes = iter(check_outcomes(problems, texts, ids_of, self.reward, self.threshold))
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
            Problem of each completion. A column that some lack is `None` there; one that is called like an argument
            below is not passed.
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
        `ValueError`: When the reward does not return one number per completion.
    """
    if not problems:
        return []
    # As in TRL, a column cannot stand in for what is sampled.
    names = dict.fromkeys(name for problem in problems for name in problem.columns if name not in _ARGUMENTS)
    rewards = reward(
        prompts=[problem.prompt for problem in problems],
        completions=[
            completion
            if isinstance(problem.prompt, str) or not isinstance(completion, str)
            else [{"role": "assistant", "content": completion}]
            for problem, completion in zip(problems, completions, strict=True)
        ],
        completion_ids=list(completion_ids),
        **{name: [problem.columns.get(name) for problem in problems] for name in names},
    )
    name = getattr(reward, "name", getattr(reward, "__name__", ""))
    return [None if r is None else r > threshold for r in check_rewards(rewards, len(completions), name)]


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
