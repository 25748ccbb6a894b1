"""Word problems of two to four calculations in plain English, with exact worked solutions.

A problem tells what somebody has and what happens to it; a solution writes one calculation a line:

    Mia has 34 stickers. Mia finds 17 stickers. Then Mia gives away 4 bags of 6 stickers. How many ... now?

    34 + 17 = 51
    4 * 6 = 24
    51 - 24 = 27
    The answer is 27.

Every calculation of the story is needed, and what goes on from a wrong result ends at a wrong answer, unless a second
mistake undoes the first. About a third of the problems also state a number that has nothing to do with the question.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import Dataset


Split = Literal["train", "tuning", "test"]

NUM_STEPS = (2, 3, 4)
SYSTEM_PROMPT = "Write one calculation per line."

_NAMES = ("Mia", "Noah", "Zoe", "Liam", "Ava", "Omar", "Lena", "Hugo", "Nina", "Ivan", "Rosa", "Theo")
# What is counted; how it is gained, lost, and what it comes in.
_THEMES = (
    ("stickers", ("finds", "is given", "buys"), ("gives away", "loses"), ("packs", "sheets")),
    ("marbles", ("wins", "finds", "gets"), ("loses", "gives a friend"), ("bags", "boxes")),
    ("eggs", ("collects", "gathers", "buys"), ("sells", "breaks"), ("cartons", "trays")),
    ("books", ("buys", "borrows", "receives"), ("returns", "gives away"), ("boxes", "shelves")),
    ("cookies", ("bakes", "buys", "is given"), ("eats", "sells"), ("trays", "jars")),
    ("pencils", ("buys", "finds", "receives"), ("loses", "lends a friend"), ("boxes", "cups")),
    ("flowers", ("picks", "plants", "buys"), ("sells", "gives away"), ("bunches", "rows")),
    ("coins", ("earns", "finds", "saves"), ("spends", "pays"), ("rolls", "piles")),
)
_LINKS = ("Then ", "Later ", "After that ", "The next day ")
_DISTRACTORS = (
    "{name}'s sister is {n} years old. ",
    "It is {n} degrees outside. ",
    "{name} lives at number {n}. ",
    "The shop is {n} minutes away. ",
)
_RESULT = re.compile(r"=\s*(-?\d+)\s*$")
_MAX_AMOUNT = 400


@dataclass(frozen=True)
class WordProblem:
    """A story, its calculations and its answer.

    Attributes:
        question (`str`):
            The story with its question.
        calculations (`tuple[str, ...]`):
            Lines such as `34 + 17 = 51`, in the order of the story.
        answer (`int`):
            The result.
    """

    question: str
    calculations: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The problem as messages."""
        return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": self.question}]

    @property
    def solution(self) -> str:
        """The worked solution."""
        return "\n".join([*self.calculations, f"The answer is {self.answer}."])


def make_problem(generator: random.Random, num_steps: int) -> WordProblem:
    """Draw a problem.

    Args:
        generator (`random.Random`):
            Where chance comes from.
        num_steps (`int`):
            Calculations, at least 2.

    Returns:
        [`WordProblem`]: The problem.
    """
    while True:
        problem = _try_problem(generator, num_steps)
        if problem is not None:
            return problem


def _try_problem(generator: random.Random, num_steps: int) -> WordProblem | None:
    """A problem, or none where an amount would become negative or large."""
    name = generator.choice(_NAMES)
    item, gains, losses, holders = generator.choice(_THEMES)
    amount = generator.randint(15, 95)
    story, calculations = [f"{name} has {amount} {item}. "], list[str]()

    def calculate(left: int, sign: str, right: int) -> int:
        result = {"+": left + right, "-": left - right, "*": left * right}[sign]
        calculations.append(f"{left} {sign} {right} = {result}")
        return result

    while len(calculations) < num_steps:
        left = num_steps - len(calculations)
        kind = generator.choice(("change", "change", "double") if left == 1 else ("change", "packs", "packs"))
        link = generator.choice(_LINKS) if calculations else ""
        verb, sign = generator.choice([(v, "+") for v in gains] + [(v, "-") for v in losses])
        if kind == "double":
            times = generator.choice((2, 3))
            story.append(f"{link}{name} makes it {'twice' if times == 2 else 'three times'} as many. ")
            amount = calculate(amount, "*", times)
            continue
        if kind == "packs":
            number, size = generator.randint(2, 9), generator.randint(3, 15)
            story.append(f"{link}{name} {verb} {number} {generator.choice(holders)} of {size} {item} each. ")
            change = calculate(number, "*", size)
        else:
            change = generator.randint(7, 89)
            story.append(f"{link}{name} {verb} {change} {item}. ")
        amount = calculate(amount, sign, change)
        if not 0 < amount <= _MAX_AMOUNT:
            return None
    if generator.random() < 1 / 3:
        distractor = generator.choice(_DISTRACTORS).format(name=name, n=generator.randint(5, 60))
        story.insert(generator.randint(1, len(story)), distractor)
    question = generator.choice((f"How many {item} does {name} have now?", f"How many {item} are there in the end?"))
    return WordProblem("".join(story) + question, tuple(calculations), amount)


def word_problems(split: Split, n: int, seed: int, num_steps: Sequence[int] = NUM_STEPS) -> list[WordProblem]:
    """Problems of a split, as many of each number of calculations.

    A checksum of the story assigns a problem to one split, whatever the seed.

    Args:
        split (`str`):
            `"train"`, `"tuning"` or `"test"`.
        n (`int`):
            Number of problems.
        seed (`int`):
            Seed.
        num_steps (`Sequence[int]`, *optional*, defaults to `NUM_STEPS`):
            Numbers of calculations, in turn.

    Returns:
        `list[WordProblem]`: Problems, no story twice.
    """
    generator, found = random.Random(f"{split}-{seed}"), dict[str, WordProblem]()
    while len(found) < n:
        problem = make_problem(generator, num_steps[len(found) % len(num_steps)])
        if ("test", "tuning", "train", "train")[zlib.crc32(problem.question.encode()) % 4] == split:
            found.setdefault(problem.question, problem)
    return list(found.values())


def word_dataset(problems: Sequence[WordProblem]) -> Dataset:
    """Rows for training: `prompt` as messages, `answer` as text, `num_steps`, and `results` of the calculations."""
    return Dataset.from_list(
        [
            {
                "prompt": problem.prompt,
                "answer": str(problem.answer),
                "num_steps": len(problem.calculations),
                "results": results_of(problem.calculations),
            }
            for problem in problems
        ]
    )


def results_of(lines: Sequence[str]) -> list[int | None]:
    """What stands behind the last equals sign of each line, `None` where that is no whole number."""
    return [None if (match := _RESULT.search(line.strip())) is None else int(match[1]) for line in lines]


def right_so_far(steps: Sequence[str], results: Sequence[int]) -> list[bool]:
    """Whether a solution has no mistake up to and including each of its steps.

    The results of its lines must be those of the story, in its order; so must the line with the answer, which counts
    as right where all calculations before it are there and right, and it repeats the last one.

    Args:
        steps (`Sequence[str]`):
            Lines of a solution.
        results (`Sequence[int]`):
            Results of the problem's calculations.

    Returns:
        `list[bool]`: One per step.
    """
    flags, right = [], True
    for position, (step, found) in enumerate(zip(steps, results_of(steps), strict=True)):
        if position < len(results):
            right = right and found == results[position]
        else:
            right = right and re.search(rf"\b{results[-1]}\b", step) is not None
        flags.append(right)
    return flags


def luck(outcomes: Sequence[Any], steps: Sequence[Sequence[str]], results: Sequence[Sequence[int]]) -> float:
    """Share of the right answers whose solution has a mistake."""
    mistaken = [
        not all(right_so_far(texts, wanted)) or len(texts) <= len(wanted)
        for right, texts, wanted in zip(outcomes, steps, results, strict=True)
        if right
    ]
    return sum(mistaken) / len(mistaken) if mistaken else 0.0
