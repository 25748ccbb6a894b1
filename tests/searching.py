"""Generators and process rewards with known answers, for tests of searches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Problem
from trl_prl.generation.sampling import StopTexts
from trl_prl.steps.splitters import DelimiterSplitter
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion, Prompt, SamplingParams


@cache
def arithmetic_generator() -> TransformersGenerator:
    """The shipped policy."""
    return TransformersGenerator.from_pretrained(arithmetic_policy_path(), dtype="float32", device="cpu")


def arithmetic_search_problems(n: int, num_terms: int = 4) -> list[Problem]:
    """Problems of the tuning split with the policy's ids."""
    tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
    return [
        Problem(row, problem.prompt, tuple(tokenizer(problem.prompt).input_ids), {"answer": problem.answer})
        for row, problem in enumerate(sample_problems("tuning", n, 0, num_terms))
    ]


def line_search(generator: Any, max_tokens: int = 40, seed: int = 0) -> dict[str, Any]:
    """What searches over lines of the arithmetic tokenizer take besides problems and process reward."""
    return {
        "generator": generator,
        "splitter": DelimiterSplitter("\n"),
        "token_pieces": TokenPieces(generator.tokenizer),
        "sampling": SamplingParams(max_tokens=max_tokens, seed=seed),
    }


class StepScript:
    """Continues a completion with steps from a table: sample `i` after a text gets entry `i` of its list, cyclically.

    A step that ends with a line break is one that a stop text ended; any other ends the completion.
    """

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
        self.table = table
        self.num_tokens = 0
        self.num_calls = 0
        self.prompts: list[Prompt] = []

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        self.num_calls += 1
        self.prompts += prompts
        return [[self._sample(prompt, params, i) for i in range(params.n)] for prompt in prompts]

    def _sample(self, prompt: Prompt, params: SamplingParams, i: int) -> Completion:
        prefix = self.tokenizer.decode(prompt.token_ids).partition("=")[2]
        steps = self.table[prefix]
        text = steps[i % len(steps)]
        ends = text.endswith("\n")
        ids = [*self.tokenizer(text).input_ids, *([] if ends else [self.tokenizer.eos_token_id])]
        limit = prompt.max_tokens or params.max_tokens
        reason: Any = "length" if len(ids) > limit else "stop" if ends else "eos"
        self.num_tokens += min(len(ids), limit)
        return Completion(tuple(ids[:limit]), text, reason)

    def problem(self, row: int = 0, prompt: str = "1+1=") -> Problem:
        """A problem whose completions the table has."""
        return Problem(row, prompt, tuple(self.tokenizer(prompt).input_ids), {})


class TableReward:
    """Values of the last step by the text of the whole prefix, 0.5 for any other; remembers what it was asked."""

    def __init__(self, values: dict[str, float | None], initial: float = 0.5) -> None:
        self.values = values
        self.initial = initial
        self.asked: list[tuple[str, bool]] = []

    def __call__(
        self, prompts: list[Any], steps: list[list[str]], finished: Sequence[bool], **columns: Any
    ) -> list[list[float | None]]:
        self.asked += [("".join(row), bool(ended)) for row, ended in zip(steps, finished, strict=True)]
        return [[self.values.get("".join(row[: h + 1]), 0.5) for h in range(len(row))] for row in steps]

    def initial_values(self, prompts: list[Any], **columns: Any) -> list[float]:
        return [self.initial] * len(prompts)


class PieceTable:
    """Pieces of a made-up vocabulary; id 0 is the end of a sequence."""

    def __init__(self, table: list[bytes]) -> None:
        self.table = [b"", *table]

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        return [self.table[int(i)] for i in ids]

    def join(self, ids: Sequence[int] | np.ndarray) -> tuple[bytes, np.ndarray]:
        pieces = self.pieces(list(ids))
        return b"".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)


class Recital:
    """Always samples the same completion, from wherever it is asked to go on; honours stop texts and limits."""

    def __init__(self, pieces: PieceTable, script: Sequence[int]) -> None:
        self.token_pieces = pieces
        self.script = list(script)
        self.num_tokens = 0

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        return [[self._sample(prompt, params) for _ in range(params.n)] for prompt in prompts]

    def _sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        start = len(prompt.token_ids) - 1
        assert list(prompt.token_ids[1:]) == self.script[:start], "the prefix is not what was sampled"
        stop = StopTexts(params.stop, 1)
        ids: list[int] = []
        reason: Any = "length"
        for token in self.script[start : start + (prompt.max_tokens or params.max_tokens)]:
            ids.append(token)
            if token == 0:
                reason = "eos"
                break
            if params.stop and stop.found(0, self.token_pieces.pieces([token])[0]):
                reason = "stop"
                break
        self.num_tokens += len(ids)
        return Completion(tuple(ids), "", reason)
