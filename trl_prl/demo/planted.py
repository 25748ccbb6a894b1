"""The planted sub-sequence task: the didactic experiment of the PAV paper, with exact prover values.

A policy writes up to ten tokens and is rewarded when a hidden run of five appears among them. A prover of strength
`gamma` knows how far the run has come, and favours the next token of it. What it reaches from any prefix depends on
two numbers only, the length of the match so far and the tokens left, so its value is a small table.

Source: https://huggingface.co/papers/2410.08146, Appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np


if TYPE_CHECKING:
    from numpy.typing import NDArray

END_TEXT = "<|end|>"


@dataclass(frozen=True)
class PlantedTask:
    """What is planted, and in how many tokens it must appear.

    Token `i` is written as the `i`-th letter of the alphabet; the end token has no text of its own. The defaults are
    those of https://huggingface.co/papers/2410.08146, Appendix B.

    Args:
        vocab_size (`int`, *optional*, defaults to `15`):
            Number of tokens, the end token included; between 2 and 27.
        length (`int`, *optional*, defaults to `10`):
            Longest sequence in tokens.
        planted (`tuple[int, ...]`, *optional*, defaults to `(3, 6, 0, 3, 5)`):
            The run of tokens that must appear contiguously.
        eos (`int`, *optional*, defaults to `14`):
            The token that ends a sequence; the last of the vocabulary.

    Raises:
        `ValueError`: If the end token is not the last one, or the planted run cannot be written.
    """

    vocab_size: int = 15
    length: int = 10
    planted: tuple[int, ...] = (3, 6, 0, 3, 5)
    eos: int = 14

    def __post_init__(self) -> None:
        if not 2 <= self.vocab_size <= 27 or self.eos != self.vocab_size - 1:
            raise ValueError(
                f"Got vocab_size={self.vocab_size} and eos={self.eos}. Tokens are written as the letters a to z and "
                "the end token comes last. Use 2 to 27 tokens and eos=vocab_size - 1."
            )
        if not self.planted or not all(0 <= token < self.eos for token in self.planted):
            raise ValueError(
                f"Got planted={self.planted} with eos={self.eos}. An empty run is always found, and one with the end "
                "token or an unknown token never is. Give at least one token, each from 0 to eos - 1."
            )
        if self.length < 1:
            raise ValueError(f"Got length={self.length}. A sequence needs room for a token. Use at least 1.")

    @cached_property
    def transitions(self) -> NDArray[np.int64]:
        """Next state of the matching automaton, of shape (states, vocab_size).

        State `k` says that the last `k` tokens are the first `k` of the planted run, with the largest such `k`. The
        last state (all planted) is never left. The column of the end token is unused and holds 0.
        """
        goal = len(self.planted)
        table = np.zeros((goal + 1, self.vocab_size), dtype=np.int64)
        for state in range(goal):
            for token in range(self.eos):
                recent = (*self.planted[:state], token)
                table[state, token] = max(k for k in range(state + 2) if recent[len(recent) - k :] == self.planted[:k])
        table[goal, :] = goal
        return table

    def states(self, text: str) -> list[int]:
        """Follow the automaton through a text.

        Args:
            text (`str`):
                Letters of the tokens written so far, from the start of the completion. Characters beyond `length` and
                characters that are no token of this task match nothing.

        Returns:
            `list[int]`: State before the first and after each character: `len(text) + 1` numbers.
        """
        goal, state, found = len(self.planted), 0, [0]
        for position, character in enumerate(text):
            token = ord(character) - ord("a")
            if state < goal:
                written = position < self.length and 0 <= token < self.eos
                state = int(self.transitions[state, token]) if written else 0
            found.append(state)
        return found

    def solved(self, text: str) -> bool:
        """Say whether the planted run appears in a completion's text."""
        return self.states(text)[-1] == len(self.planted)


DEFAULT_TASK = PlantedTask()


def prover_token_probs(gamma: float, task: PlantedTask = DEFAULT_TASK) -> NDArray[np.float64]:
    """Next-token distribution of the prover in every state (https://huggingface.co/papers/2410.08146, App. B).

    The next token of the planted run has weight `gamma`, every other token (the end token too) weight 1. Once the run
    is complete nothing is favoured.

    Args:
        gamma (`float`):
            Strength of the prover, positive; 1 is a uniform prover.
        task ([`PlantedTask`], *optional*):
            The task.

    Returns:
        `np.ndarray` of shape (states, vocab_size): Rows sum to 1.

    Raises:
        `ValueError`: If `gamma` is not positive and finite.
    """
    if not 0 < gamma < float("inf"):
        raise ValueError(f"Got gamma={gamma}. A token's weight must be positive and finite. The paper uses 1 to 100.")
    weights = np.ones((len(task.planted) + 1, task.vocab_size))
    weights[np.arange(len(task.planted)), task.planted] = gamma
    return weights / weights.sum(axis=1, keepdims=True)


@lru_cache(maxsize=64)
def prover_values(gamma: float, task: PlantedTask = DEFAULT_TASK) -> NDArray[np.float64]:
    """Probability that the prover completes the planted run, for every state and number of tokens left.

    Exact, by dynamic programming: `V[k, r] = sum_a mu(a | k) * V[next(k, a), r - 1]`, with `V = 1` once the run is
    complete, and `V = 0` when no token is left or the end token was written before.

    Args:
        gamma (`float`):
            Strength of the prover.
        task ([`PlantedTask`], *optional*):
            The task.

    Returns:
        `np.ndarray` of shape (states, length + 1): Read-only, in [0, 1]; `[k, r]` with `r` tokens left.
    """
    goal = len(task.planted)
    probs, values = prover_token_probs(gamma, task), np.zeros((goal + 1, task.length + 1))
    values[goal] = 1.0
    for remaining in range(1, task.length + 1):
        after = values[task.transitions[:goal], remaining - 1]  # (states - 1, vocab_size)
        after[:, task.eos] = 0.0
        values[:goal, remaining] = (probs[:goal] * after).sum(axis=1)
    values.flags.writeable = False
    return values


def sample_prover(gamma: float, n: int, seed: int, task: PlantedTask = DEFAULT_TASK) -> NDArray[np.int64]:
    """Sample sequences from the prover.

    Args:
        gamma (`float`):
            Strength of the prover.
        n (`int`):
            Number of sequences.
        seed (`int`):
            Seed of the sampling.
        task ([`PlantedTask`], *optional*):
            The task.

    Returns:
        `np.ndarray` of shape (n, length): Token ids; after the first end token every entry is the end token.
    """
    generator = np.random.default_rng(seed)
    cumulative = prover_token_probs(gamma, task).cumsum(axis=1)
    tokens = np.full((n, task.length), task.eos, dtype=np.int64)
    state, alive = np.zeros(n, dtype=np.int64), np.ones(n, dtype=bool)
    for position in range(task.length):
        # The clip guards against a cumulative sum that rounds to just under 1.
        drawn = (generator.random(n)[:, None] >= cumulative[state]).sum(axis=1).clip(max=task.eos)
        tokens[alive, position] = drawn[alive]
        alive &= drawn != task.eos
        state = np.where(alive, task.transitions[state, drawn], state)
    return tokens


class PlantedProcessReward:
    """Exact values of the prover after every step: a process reward without a learned verifier.

    Computed from the text alone, so steps may hold any number of tokens. The last step of a finished completion has
    the outcome as its value (0 or 1): the end token has no text and is part of that step, and a sequence cut at the
    length limit goes no further either.

    Args:
        gamma (`float`):
            Strength of the prover. About 8 to 15 helps the base policy of the paper; 10 is its main example.
        task ([`PlantedTask`], *optional*):
            The task.
    """

    returns: Literal["values"] = "values"

    def __init__(self, gamma: float = 10.0, task: PlantedTask = DEFAULT_TASK) -> None:
        self.task = task
        self.values = prover_values(gamma, task)
        self.__name__ = f"planted_gamma_{gamma:g}"

    def __call__(
        self,
        prompts: Sequence[Any],
        steps: Sequence[Sequence[str]],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[list[float | None]]:
        """Score steps.

        Args:
            prompts (`Sequence`):
                One prompt per completion; the task has only one, so they are not read.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each completion.
            finished (`Sequence[bool]`, *optional*):
                Whether each completion has ended. Defaults to all of them, which is what training scores; a search
                that scores prefixes passes `False`.
            **columns:
                Not used.

        Returns:
            `list[list[float | None]]`: One probability of success per step, in [0, 1].
        """
        finished = [True] * len(steps) if finished is None else finished
        return [self._score(list(texts), bool(ended)) for texts, ended in zip(steps, finished, strict=True)]

    def _score(self, texts: list[str], ended: bool) -> list[float | None]:
        states = self.task.states("".join(texts))
        scores: list[float | None] = []
        written = 0
        for text in texts:
            written += len(text)
            scores.append(float(self.values[states[written], max(self.task.length - written, 0)]))
        if scores and ended:
            scores[-1] = float(states[-1] == len(self.task.planted))
        return scores

    def initial_values(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        """Value of each prompt before the first step, `V^mu(prompt)`: the same number for all."""
        return [float(self.values[0, self.task.length])] * len(prompts)


def planted_reward(completions: Sequence[str], **kwargs: Any) -> list[float]:
    """Outcome reward in TRL's signature: 1.0 where the planted run of [`PlantedTask`] appears, else 0.0.

    Args:
        completions (`Sequence[str]`):
            Texts of the completions.
        **kwargs:
            Further columns, not used.

    Returns:
        `list[float]`: One reward per completion.
    """
    return [float(DEFAULT_TASK.solved(text)) for text in completions]
