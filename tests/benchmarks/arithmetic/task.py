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
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trl_prl.demo.tokenizers import character_tokenizer


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

Split = Literal["train", "tuning", "test"]

MAIN_NUM_TERMS = 4
LONG_NUM_TERMS = 8

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


def build_arithmetic_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with one token per character of a problem or solution, and end and padding tokens.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: 17 tokens; pads on the left.
    """
    return character_tokenizer([_PAD, _EOS, *"0123456789+-=#\n"], eos=_EOS, pad=_PAD)


def completion_length(num_terms: int) -> int:
    """Room for a solution: up to four characters and a line break per running result, and the answer line."""
    return 5 * num_terms + 2


def arithmetic_policy_path() -> str:
    """Folder of the base policy, a model of 0.66 M parameters that `train_arithmetic_policy.py` makes."""
    return str(Path(__file__).parent / "policy")


def arithmetic_verifier_path() -> str:
    """Folder of a verifier trained on rollouts of that policy, with the policy's own values."""
    return str(Path(__file__).parent / "verifier")
