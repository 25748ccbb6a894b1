"""Multi-step arithmetic in text, with a prover whose values are exact at every line.

A problem is a chain of additions and subtractions. A solution writes one running result per line and ends with the
answer behind a `#`:

    12+7-25+9=          (the prompt)
    19
    -6
    3
    #3

The prover continues any prefix by *copying forward*: it reads the last written running result, right or wrong, and
applies the next term to it; with no term left it writes the answer line with that result. Each line it writes is
wrong with probability `error_rate`, independently; a wrong line is off by one of `ERROR_OFFSETS`, all equally likely.
So a prefix that is off by `d` with `r` lines to go leads to the right answer exactly when the prover's own errors add
up to `-d` over `r` lines, and that probability is a convolution.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from importlib.resources import files
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from trl_prl.tasks._tokenizers import character_tokenizer


if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

Split = Literal["train", "tuning", "test"]

MAIN_NUM_TERMS = 4
LONG_NUM_TERMS = 8
ERROR_OFFSETS = (-10, -1, 1, 10)
"""Slips of one unit in the ones or the tens place, by which a wrong line of the prover is off."""

_LARGEST_TERM = 9
_PROBLEM = re.compile(r"([0-9]{1,6})((?:[+-][0-9]{1,6})+)=")
_RESULT = re.compile(r"-?[0-9]{1,6}")
_EOS, _PAD = "<eos>", "<pad>"


@dataclass(frozen=True)
class ArithmeticProblem:
    """A chain of additions and subtractions.

    Args:
        terms (`tuple[int, ...]`):
            Signed terms, at least two, the first one not negative.
    """

    terms: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The problem as text, such as `12+7-25+9=`."""
        return str(self.terms[0]) + "".join(f"{term:+d}" for term in self.terms[1:]) + "="

    @property
    def running_results(self) -> tuple[int, ...]:
        """Results after each term but the first: `len(terms) - 1` numbers, the last one is the answer."""
        return tuple(accumulate(self.terms))[1:]

    @property
    def answer(self) -> str:
        """The final answer as text."""
        return str(self.running_results[-1])


def parse_problem(prompt: str) -> ArithmeticProblem:
    """Read a problem from its prompt.

    Args:
        prompt (`str`):
            Text such as `12+7-25+9=`.

    Returns:
        [`ArithmeticProblem`]: The problem.

    Raises:
        `ValueError`: If the prompt is anything else.
    """
    match = _PROBLEM.fullmatch(prompt) if isinstance(prompt, str) else None
    if match is None:
        raise ValueError(
            f"Got the prompt {prompt!r}. Its terms cannot be read, so no line of a solution can be checked. Use "
            "prompts of `arithmetic_dataset`, plain text such as '12+7-25+9='."
        )
    return ArithmeticProblem((int(match[1]), *map(int, re.findall(r"[+-][0-9]+", match[2]))))


def sample_problems(split: Split, n: int, seed: int, num_terms: int = MAIN_NUM_TERMS) -> list[ArithmeticProblem]:
    """Draw problems with terms from 1 to 9 and random signs.

    A checksum of a problem's text assigns it to one split, whatever the seed: splits never share a problem. 5 % of all
    problems are in each of `"tuning"` and `"test"`. Draws are independent, so a problem may come up twice.

    Args:
        split (`str`):
            `"train"`, `"tuning"` or `"test"`.
        n (`int`):
            Number of problems.
        seed (`int`):
            Seed of the draws.
        num_terms (`int`, *optional*, defaults to `4`):
            Terms per problem, at least 2. Chains of `LONG_NUM_TERMS` are rarely solved by the shipped policy.

    Returns:
        `list[ArithmeticProblem]`: The problems.

    Raises:
        `ValueError`: If the split is unknown or there are fewer than two terms.
    """
    if split not in ("train", "tuning", "test"):
        raise ValueError(f"Got split={split!r}. There is no such split. Use 'train', 'tuning' or 'test'.")
    if num_terms < 2:
        raise ValueError(f"Got num_terms={num_terms}. Fewer than two terms leave nothing to compute. Use 2 or more.")
    generator = random.Random(f"{split}-{num_terms}-{seed}")
    problems: list[ArithmeticProblem] = []
    while len(problems) < n:
        first, *others = (generator.randint(1, _LARGEST_TERM) for _ in range(num_terms))
        problem = ArithmeticProblem((first, *(generator.choice((-1, 1)) * term for term in others)))
        bucket = zlib.crc32(problem.prompt.encode()) % 20
        if split == ("test" if bucket == 0 else "tuning" if bucket == 1 else "train"):
            problems.append(problem)
    return problems


def arithmetic_dataset(split: Split, n: int, seed: int, num_terms: int = MAIN_NUM_TERMS) -> Dataset:
    """Data set of problems.

    Args:
        split (`str`):
            `"train"`, `"tuning"` or `"test"`; they share no problem.
        n (`int`):
            Number of rows.
        seed (`int`):
            Seed of the draws.
        num_terms (`int`, *optional*, defaults to `4`):
            Terms per problem.

    Returns:
        [`~datasets.Dataset`]: Columns `"prompt"` and `"answer"`, both text.
    """
    from datasets import Dataset

    problems = sample_problems(split, n, seed, num_terms)
    return Dataset.from_dict({"prompt": [p.prompt for p in problems], "answer": [p.answer for p in problems]})


def reference_solution(problem: ArithmeticProblem) -> str:
    """Write the right solution: every running result on its line, then the answer line."""
    return "".join(f"{result}\n" for result in problem.running_results) + f"#{problem.answer}"


def read_answer(text: str) -> int | None:
    """Read the answer of a solution: the first line that starts with `#`; nothing after it counts.

    Args:
        text (`str`):
            The solution.

    Returns:
        `int`, *optional*: `None` without an answer line, or when it holds anything but a whole number.
    """
    line = next((line for line in text.split("\n") if line.startswith("#")), "")
    return int(line[1:]) if _RESULT.fullmatch(line[1:]) else None


def arithmetic_reward(completions: Sequence[str], answer: Sequence[str], **kwargs: Any) -> list[float]:
    """Outcome reward in TRL's signature: 1.0 where the answer line has exactly the right number, else 0.0.

    Args:
        completions (`Sequence[str]`):
            Texts of the completions.
        answer (`Sequence[str]`):
            Column of the right answers.
        **kwargs:
            Further columns, not used.

    Returns:
        `list[float]`: One reward per completion.
    """
    return [float(read_answer(text) == int(right)) for text, right in zip(completions, answer, strict=True)]


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


def build_arithmetic_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with one token per character of a problem or solution, and end and padding tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: 17 tokens; pads on the left.
    """
    return character_tokenizer([_PAD, _EOS, *"0123456789+-=#\n"], eos=_EOS, pad=_PAD)


def arithmetic_policy_path() -> str:
    """Folder of the base policy that ships with the package.

    `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` take it as it is; so does a trainer,
    which loads its reference model from there again.

    Returns:
        `str`: Path of the folder.
    """
    return str(files("trl_prl") / "tasks" / "arithmetic_policy")


def arithmetic_verifier_path() -> str:
    """Folder of the verifier that ships with the package, trained on rollouts of the shipped base policy.

    `PAVTrainer` takes it as `process_reward`. Its values are those of the base policy itself; `best_of_k=4` in the
    config makes them those of its Best-of-4.

    Returns:
        `str`: Path of the folder.
    """
    return str(files("trl_prl") / "tasks" / "arithmetic_verifier")
