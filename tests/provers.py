"""Provers with known values, as generators, for tests and benchmarks of collection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from tests.benchmarks.arithmetic.prover import continue_solution
from tests.benchmarks.arithmetic.task import ArithmeticProblem, arithmetic_policy_path, parse_problem
from tests.benchmarks.arithmetic.task import sample_problems as draw_problems
from tests.tiny_models import build_model, build_tokenizer
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Problem
from trl_prl.generation.sampling import sample_uniforms
from trl_prl.types import Completion, Prompt, SamplingParams


class ArithmeticProver:
    """The exact prover of the arithmetic task: its values are those of `ArithmeticProcessReward(error_rate)`."""

    def __init__(self, error_rate: float = 0.1) -> None:
        self.error_rate = error_rate
        self.tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
        self.prompts: list[Prompt] = []
        self.num_rollouts = 0

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        self.prompts += prompts
        self.num_rollouts += params.n * len(prompts)
        return [[self._sample(prompt, params, i) for i in range(params.n)] for prompt in prompts]

    def _sample(self, prompt: Prompt, params: SamplingParams, i: int) -> Completion:
        text = self.tokenizer.decode(prompt.token_ids)
        end = text.index("=") + 1
        stream = sample_uniforms(params.seed, str(prompt.key), i, 1)
        rng = np.random.default_rng(int(stream[0] * 2**52))
        solution = continue_solution(parse_problem(text[:end]), text[end:], self.error_rate, rng)
        ids = [*self.tokenizer(solution).input_ids, self.tokenizer.eos_token_id][len(text) - end :]
        limit = prompt.max_tokens or params.max_tokens
        new = self.tokenizer.decode(ids[:limit], skip_special_tokens=True)
        return Completion(tuple(ids[:limit]), new, "eos" if len(ids) <= limit else "length")


def arithmetic_problems(tokenizer: Any, n: int, num_terms: int = 4, seed: int = 0) -> list[Problem]:
    """Problems of the tuning split, numbered."""
    problems: list[ArithmeticProblem] = draw_problems("tuning", n, seed, num_terms)
    return [
        Problem(row, problem.prompt, tuple(tokenizer(problem.prompt).input_ids), {"answer": problem.answer})
        for row, problem in enumerate(problems)
    ]


def few_positions(num_positions: int) -> TransformersGenerator:
    """A tiny random model that can read and write so many tokens, prompt included."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.config.max_position_embeddings = num_positions
    return TransformersGenerator(model, tokenizer)


def root_mean_square(errors: list[float]) -> float:
    """Root of the mean of squares."""
    return math.sqrt(math.fsum(error * error for error in errors) / len(errors))


class ScriptedGenerator:
    """Samples that a function writes: `(prompt ids, sample number) -> text`, byte by byte, with an end token."""

    def __init__(self, tokenizer: Any, write: Callable[[str, int], str]) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self.prompts: list[Prompt] = []

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        self.prompts += prompts
        return [[self._sample(prompt, params, i) for i in range(params.n)] for prompt in prompts]

    def _sample(self, prompt: Prompt, params: SamplingParams, i: int) -> Completion:
        text = self.write(self.tokenizer.decode(prompt.token_ids), i)
        ids = [*self.tokenizer(text).input_ids, self.tokenizer.eos_token_id]
        limit = prompt.max_tokens or params.max_tokens
        return Completion(tuple(ids[:limit]), text, "eos" if len(ids) <= limit else "length")
