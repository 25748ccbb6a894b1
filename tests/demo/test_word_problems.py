"""The word problems of the experiment on a language model: exact solutions, apart splits, little luck."""

from __future__ import annotations

import random
import re

import pytest

from tests.benchmarks.word_problems import (
    NUM_STEPS,
    WordProblem,
    luck,
    make_problem,
    results_of,
    right_so_far,
    word_dataset,
    word_problems,
)
from trl_prl.rewards.answers import exact_match_reward, math_accuracy_reward


@pytest.mark.parametrize("num_steps", NUM_STEPS)
def test_every_calculation_is_right_and_needed(num_steps: int) -> None:
    generator = random.Random(0)
    for _ in range(200):
        problem = make_problem(generator, num_steps)
        assert len(problem.calculations) == num_steps
        left_over: list[int] = []
        for line in problem.calculations:
            left, sign, right, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", line).groups()  # type: ignore[union-attr]
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[
                sign
            ] == int(result)
            # What a calculation starts from is in the story or was calculated, and what was calculated is used up.
            for number in (int(left), int(right)):
                if number in left_over:
                    left_over.remove(number)
            left_over.append(int(result))
        assert left_over == [problem.answer]


def test_worked_solutions_earn_the_rewards() -> None:
    problems = word_problems("train", 60, seed=0)
    answers = [str(problem.answer) for problem in problems]
    texts = [problem.solution for problem in problems]
    assert exact_match_reward(texts, answers) == [1.0] * 60
    assert math_accuracy_reward(texts, answers) == [1.0] * 60
    assert (
        exact_match_reward([text.rpartition("\n")[0] + "\nThe answer is 0." for text in texts], answers) == [0.0] * 60
    )


def test_splits_share_no_story_and_have_all_lengths() -> None:
    stories = {split: {p.question for p in word_problems(split, 300, seed=3)} for split in ("train", "tuning", "test")}  # type: ignore[arg-type]
    assert all(len(found) == 300 for found in stories.values())
    assert not stories["train"] & stories["tuning"] | stories["train"] & stories["test"]
    assert word_problems("test", 5, seed=3) == word_problems("test", 5, seed=3) != word_problems("test", 5, seed=4)
    rows = word_dataset(word_problems("test", 6, seed=3))
    assert rows["num_steps"] == [2, 3, 4, 2, 3, 4]
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]


def test_mistakes_and_luck() -> None:
    problem = WordProblem("", ("34 + 17 = 51", "4 * 6 = 24", "51 - 24 = 27"), 27)
    results = results_of(problem.calculations)
    right = problem.solution.split("\n")
    wrong = ["34 + 17 = 41", "4 * 6 = 24", "41 - 24 = 17", "The answer is 17."]
    lucky = ["34 + 17 = 41", "4 * 6 = 14", "41 - 14 = 27", "The answer is 27."]
    assert results == [51, 24, 27]
    assert right_so_far(right, results) == [True, True, True, True]
    assert right_so_far(["34 + 17 = 51", "so 24"], results) == [True, False]
    assert right_so_far(wrong, results) == [False] * 4
    assert luck([True, False, True], [right, wrong, lucky], [results] * 3) == 0.5
    assert luck([True], [["The answer is 27."]], [results]) == 1.0
