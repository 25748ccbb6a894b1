"""The prover of the arithmetic task: it copies forward, slips now and then, and its values are exact at every line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from .task import _RESULT, ArithmeticProblem, parse_problem, read_answer


if TYPE_CHECKING:
    from numpy.typing import NDArray


ERROR_OFFSETS = (-10, -1, 1, 10)
"""Slips of one unit in the ones or the tens place, by which a wrong line of the prover is off."""


class _State(NamedTuple):
    """What the prover sees of complete lines: how many running results there are, and the one it continues from."""

    num_results: int
    last_result: int | None  # None after a line that cannot be read
    answered: bool


def _read_line(state: _State, line: str) -> _State:
    if state.answered or not line:
        return state
    if line.startswith("#"):
        return state._replace(answered=True)
    if state.last_result is None or not _RESULT.fullmatch(line):
        return state._replace(last_result=None)
    return _State(state.num_results + 1, int(line), False)


def continue_solution(
    problem: ArithmeticProblem, prefix: str, error_rate: float, generator: np.random.Generator
) -> str | None:
    """Let the prover write the rest of a solution.

    Args:
        problem (`ArithmeticProblem`):
            The problem.
        prefix (`str`):
            Complete lines, each with its newline; empty for a whole solution.
        error_rate (`float`):
            Probability that a line of the prover is wrong, in [0, 1).
        generator (`np.random.Generator`):
            Source of randomness.

    Returns:
        `str`, *optional*: The prefix with the prover's lines. `None` if the prefix has a line that cannot be read, so
        there is nothing to continue from.
    """
    state = reduce(_read_line, prefix.split("\n"), _State(0, problem.terms[0], False))
    if state.answered:
        return prefix
    if state.last_result is None:
        return None
    result, lines = state.last_result, []
    # The last term to write is the answer line, which copies the running result and so adds nothing to it.
    for term in (*problem.terms[1 + state.num_results :], 0):
        slip = generator.choice(ERROR_OFFSETS) if generator.random() < error_rate else 0
        result += term + int(slip)
        lines.append(str(result))
    return prefix + "\n".join([*lines[:-1], "#" + lines[-1]])


@lru_cache(maxsize=256)
def _total_error_probs(error_rate: float, num_lines: int) -> NDArray[np.float64]:
    """Distribution of the sum of the errors of `num_lines` lines; the middle entry is a sum of 0."""
    reach = max(ERROR_OFFSETS)
    line = np.zeros(2 * reach + 1)
    line[reach] = 1.0 - error_rate
    line[[reach + offset for offset in ERROR_OFFSETS]] += error_rate / len(ERROR_OFFSETS)
    return reduce(np.convolve, [line] * num_lines)


class ArithmeticProcessReward:
    """Exact values of the prover after every step: a process reward without a learned verifier.

    With `r` lines to go after the prefix, the answer line included, and a last written result that is off by `d`:

        Q = P(e_1 + ... + e_r = -d),   e_i = 0 with probability 1 - error_rate, else uniform on ERROR_OFFSETS

    For `d = 0` that is `(1 - error_rate)^r` plus the small chance that errors cancel; for `d != 0` it is small, and 0
    if `d` is out of reach. Running results beyond the last term are compared with the answer, and the prover then has
    the answer line to go. Blank lines change nothing. After a line that cannot be read the value is 0. Once the
    answer line is complete the value is the outcome (0 or 1), whatever stands before.

    Computed from the text alone: a step may hold any number of lines, and after a step that ends inside a line the
    prover starts that line again. The last step of a finished completion has the outcome as its value, so one that was
    cut before its answer ends with 0.

    Args:
        error_rate (`float`, *optional*, defaults to `0.1`):
            Probability that a line of the prover is wrong, in [0, 1).

    Raises:
        `ValueError`: If `error_rate` is outside [0, 1).
    """

    returns: Literal["values"] = "values"

    def __init__(self, error_rate: float = 0.1) -> None:
        if not 0 <= error_rate < 1:
            raise ValueError(
                f"Got error_rate={error_rate}. It is the probability of a wrong line, and a prover that is always "
                "wrong tells steps apart by luck only. Use a number in [0, 1), such as 0.1."
            )
        self.error_rate = float(error_rate)
        self.__name__ = f"arithmetic_error_rate_{error_rate:g}"

    def __call__(
        self,
        prompts: Sequence[str],
        steps: Sequence[Sequence[str]],
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[list[float | None]]:
        """Score steps.

        Args:
            prompts (`Sequence[str]`):
                One problem per completion, such as `12+7-25+9=`.
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
        rows = zip(prompts, steps, finished, strict=True)
        return [self._score(parse_problem(prompt), list(texts), bool(ended)) for prompt, texts, ended in rows]

    def _score(self, problem: ArithmeticProblem, texts: list[str], ended: bool) -> list[float | None]:
        text = "".join(texts)
        outcome = float(read_answer(text) == int(problem.answer))
        state, line_start, step_end = _State(0, problem.terms[0], False), 0, 0
        scores: list[float | None] = []
        for step in texts:
            step_end += len(step)
            while (newline := text.find("\n", line_start, step_end)) >= 0:
                state, line_start = _read_line(state, text[line_start:newline]), newline + 1
            scores.append(outcome if state.answered else self._value(problem, state))
        if scores and ended:
            scores[-1] = outcome
        return scores

    def _value(self, problem: ArithmeticProblem, state: _State) -> float:
        if state.last_result is None:
            return 0.0
        num_terms_used = min(state.num_results, len(problem.terms) - 1)
        error = state.last_result - sum(problem.terms[: 1 + num_terms_used])
        probs = _total_error_probs(self.error_rate, len(problem.terms) - num_terms_used)
        index = len(probs) // 2 - error
        return float(probs[index]) if 0 <= index < len(probs) else 0.0

    def initial_values(self, prompts: Sequence[str], **columns: Any) -> list[float]:
        """Value of each prompt before the first step, `V^mu(prompt)`; it depends on the number of terms only."""
        problems = map(parse_problem, prompts)
        return [self._value(problem, _State(0, problem.terms[0], False)) for problem in problems]
