"""What is asked of a verifier of the path task: solutions of the shipped policy, and how well it knows them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from trl_prl.generation.local import TransformersGenerator
from trl_prl.metrics.step_values import auroc, spearman
from trl_prl.steps.plain_text import split_text
from trl_prl.steps.split import get_splitter
from trl_prl.types import Prompt, SamplingParams

from .paths import (
    MAX_COMPLETION_LENGTH,
    Split,
    distances,
    is_right,
    parse_problem,
    path_policy_path,
    problems_of,
    start_of,
)


ALL_DISTANCES = (2, 9)


def verifier_problems(split: Split, number: int, seed: int) -> Dataset:
    """Problems of all distances, as often as they come, none twice."""
    known = problems_of(split, ALL_DISTANCES)
    rows = random.Random(seed).sample(known, min(number, len(known)))
    return Dataset.from_dict({"prompt": [row.prompt for row in rows], "goal": [row.goal for row in rows]})


def path_generator() -> TransformersGenerator:
    """The shipped policy, ready to sample: on a GPU if there is one, else on the CPU."""
    return TransformersGenerator.from_pretrained(path_policy_path(), dtype="float32")


@dataclass(frozen=True)
class PathExam:
    """Solutions of the shipped policy to held-out problems, and what is known of them.

    Attributes:
        prompts (`list[str]`), solutions (`list[list[str]]`):
            Problems, and the steps of one solution of each.
        right (`list[list[bool | None]]`):
            Whether each step leads closer to the goal; not if it leads away or is impossible, and `None` for a
            detour of equal length.
        places (`list[tuple[int, int]]`), values (`list[float]`):
            Solution and step of prefixes that can still succeed, and the share of further rollouts that did.
    """

    prompts: list[str]
    solutions: list[list[str]]
    right: list[list[bool | None]]
    places: list[tuple[int, int]]
    values: list[float]


def path_exam(
    generator: TransformersGenerator, num_problems: int = 400, num_prefixes: int = 300, num_rollouts: int = 256
) -> PathExam:
    """Draw solutions to problems of the test split, mark their steps, and value prefixes of them by rollouts.

    Args:
        generator ([`TransformersGenerator`]):
            The policy.
        num_problems (`int`, *optional*, defaults to `400`):
            Problems of all distances.
        num_prefixes (`int`, *optional*, defaults to `300`), num_rollouts (`int`, *optional*, defaults to `256`):
            Prefixes to value, and rollouts of each.

    Returns:
        [`PathExam`]: The exam.
    """
    splitter, tokenizer = get_splitter("newline"), generator.tokenizer
    prompts = list(verifier_problems("test", num_problems, 0)["prompt"])
    asked = [Prompt(tuple(tokenizer(prompt)["input_ids"]), key=prompt) for prompt in prompts]
    drawn = generator.generate(asked, SamplingParams(max_tokens=MAX_COMPLETION_LENGTH, seed=1))
    solutions = [split_text(splitter, row[0].text) for row in drawn]
    right, places, prefixes = [], [], []
    for i, (prompt, steps) in enumerate(zip(prompts, solutions, strict=True)):
        walk, marks = start_of(parse_problem(prompt)), []
        apart = float(distances()[walk.node, walk.goal])
        for j, step in enumerate(steps):
            walk = walk.go(step.strip())
            before, apart = apart, math.inf if walk.node is None else float(distances()[walk.node, walk.goal])
            marks.append(None if apart == before < math.inf else apart < before)
            if walk.node is not None and walk.node != walk.goal and step.endswith("\n"):
                text = prompt + "".join(steps[: j + 1])
                ids = tuple(tokenizer(text)["input_ids"])
                places.append((i, j))
                prefixes.append(Prompt(ids, key=text, max_tokens=MAX_COMPLETION_LENGTH - len(ids) + 4))
        right.append(marks)
    keep = random.Random(0).sample(range(len(places)), min(num_prefixes, len(places)))
    rollouts = generator.generate([prefixes[k] for k in keep], SamplingParams(n=num_rollouts, seed=2))
    values = []
    for k, samples in zip(keep, rollouts, strict=True):
        i, j = places[k]
        start = "".join(solutions[i][: j + 1])
        values.append(sum(is_right(prompts[i], start + sample.text) for sample in samples) / num_rollouts)
    return PathExam(prompts, solutions, right, [places[k] for k in keep], values)


def step_auroc(scores: Sequence[Sequence[float]], starts: Sequence[float], exam: PathExam) -> float:
    """How well the progress between scores tells right steps from wrong ones; 0.5 is chance."""
    progress = [
        (value - before, right)
        for start, values, marks in zip(starts, scores, exam.right, strict=True)
        for before, value, right in zip([start, *values[:-1]], values, marks, strict=True)
        if right is not None
    ]
    return auroc([gain for gain, _ in progress], [right for _, right in progress])


def judge(verifier: Any, exam: PathExam) -> dict[str, float]:
    """AUROC of progress, right steps against wrong ones, rank correlation and root-mean-square error of values."""
    scores = verifier(exam.prompts, exam.solutions)
    found = {"auroc": step_auroc(scores, verifier.initial_values(exam.prompts), exam)}
    if exam.places:
        learned = [scores[i][j] for i, j in exam.places]
        error = sum((a - b) ** 2 for a, b in zip(learned, exam.values, strict=True)) / len(learned)
        found |= {"spearman": spearman(learned, exam.values), "rmse": error**0.5}
    return found
