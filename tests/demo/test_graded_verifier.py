"""The verifier of paths whose quality is a number."""

from __future__ import annotations

import random

import pytest

from tests.benchmarks.graded_verifier import GradedPathReward, sigma_of
from tests.benchmarks.train_path_policy import sample_walk
from trl_prl.demo.path_prover import PathProcessReward
from trl_prl.demo.paths import FAR, NODES, distances, neighbour_matrix, parse_problem, problems_of
from trl_prl.metrics.step_values import auroc


def walks() -> tuple[list[str], list[list[str]]]:
    """Prompts and random walks."""
    generator, problems = random.Random(0), problems_of("test", FAR)[:30]
    return [p.prompt for p in problems], [sample_walk(p, 1.0, generator).splitlines(keepends=True) for p in problems]


def progress_auroc(reward: GradedPathReward) -> float:
    """Progress on steps towards the goal against steps away from it."""
    prompts, steps = walks()
    scores, right = [], []
    for prompt, texts, start, values in zip(
        prompts, steps, reward.initial_values(prompts), reward(prompts, steps, [False] * len(steps)), strict=True
    ):
        problem = parse_problem(prompt)
        goal, node, before = NODES.index(problem.goal), NODES.index(problem.start), start
        for text, value in zip(texts, values, strict=True):
            apart, node = distances()[node, goal], NODES.index(text.strip())
            if distances()[node, goal] != apart:
                scores.append(float(value or 0.0) - before)
                right.append(bool(distances()[node, goal] < apart))
            before = float(value or 0.0)
    return auroc(scores, right)


def test_without_noise_values_are_exact() -> None:
    prompts, steps = walks()
    graded, exact = GradedPathReward(0.3, 0.0), PathProcessReward(0.3)
    assert graded(prompts, steps) == exact(prompts, steps)
    assert graded(prompts, steps, [False] * len(steps)) == exact(prompts, steps, [False] * len(steps))
    assert graded.initial_values(prompts) == exact.initial_values(prompts)


def test_noise_is_that_of_the_prefix_alone() -> None:
    prompts, steps = walks()
    together = GradedPathReward(0.3, 1.0)(prompts, steps, [False] * len(steps))
    alone = [GradedPathReward(0.3, 1.0)([p], [texts[:2]], [False])[0] for p, texts in zip(prompts, steps, strict=True)]
    assert alone == [row[:2] for row in together]
    assert GradedPathReward(0.3, 1.0, "other")(prompts, steps, [False] * len(steps)) != together


def test_noise_of_a_place_is_the_same_on_every_walk() -> None:
    problem = problems_of("test", FAR)[0]
    node = NODES[int(neighbour_matrix()[NODES.index(problem.start)].argmax())]
    (first, second) = GradedPathReward(1.0, 1.0, by_place=True)(
        [problem.prompt] * 2, [["?\n", "!\n"], [f"{node}\n", "?\n", "!\n"]], [False] * 2
    )
    assert first == second[1:]  # impossible lines: only the noise differs


def test_quality_falls_with_the_noise_and_can_be_asked_for() -> None:
    found = [progress_auroc(GradedPathReward(1.0, sigma)) for sigma in (0.0, 0.3, 1.0, 3.0, 30.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.85
    assert found[-1] == pytest.approx(0.5, abs=0.05)


def test_a_quality_is_found_by_bisection() -> None:
    assert sigma_of(0.7, lambda sigma: 0.5 + 0.5 / (1.0 + sigma)) == pytest.approx(1.5, abs=1e-4)


def test_what_is_impossible_can_be_believed() -> None:
    """With noise some impossible first line is worth more than some possible one; without, none is."""
    problem = problems_of("test", FAR)[0]
    around = neighbour_matrix()[NODES.index(problem.start)]
    steps = [[f"{node}\n"] for node in NODES]

    def overlap(reward: GradedPathReward) -> bool:
        values = [float(row[0] or 0.0) for row in reward([problem.prompt] * len(steps), steps, [False] * len(steps))]
        return max(v for v, joined in zip(values, around, strict=True) if not joined) >= min(
            v for v, joined in zip(values, around, strict=True) if joined
        )

    assert not overlap(GradedPathReward(1.0, 0.0))
    assert overlap(GradedPathReward(1.0, 4.0))
