"""Files of samples as other people write them: a value, or an error that names file, row and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trl_prl.evaluation.config import EvaluateConfig
from trl_prl.evaluation.sources import read_samples
from trl_prl.generation.rollouts import Problem, check_outcomes


def read(folder: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[list[Problem], list[list[dict[str, Any]]]]:
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_samples(str(path), EvaluateConfig(samples=(str(path),), output_dir="o", **options))


def one(**fields: Any) -> dict[str, Any]:
    return {"prompt": "q", "answer": "2", "samples": [{"completion": "a", **fields}]}


@pytest.mark.parametrize(
    ("value", "right"),
    [("true", True), ("False", False), (0.3, False), (1, True), (0, False), (-1, False), (float("nan"), None)],
)
def test_correct_is_read_by_its_meaning(tmp_path: Path, value: Any, right: bool | None) -> None:
    _, [[sample]] = read(tmp_path, [one(correct=value)])
    assert sample["correct"] is right


def test_rewards_are_compared_with_the_threshold(tmp_path: Path) -> None:
    _, samples = read(tmp_path, [one(correct=0.3), one(correct=True)], reward_threshold=0.2)
    assert [sample["correct"] for row in samples for sample in row] == [True, True]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (one(correct="yes"), "has a sample whose 'correct' is 'yes', which is no number"),
        (one(scores={"rm": "good"}), "has a sample whose score 'rm' is 'good'"),
        (one(scores=[1]), r"has a sample whose 'scores' are \[1\]"),
        (one(scores={"prm": [0.1, "x"]}), "has a sample whose score 'prm' is 'x'"),
        (one(completion=3), "has a sample whose 'completion' is 3"),
        ({"prompt": "q", "samples": "abc"}, "has 'abc' as 'samples', which is no list"),
        ({"prompt": "q", "samples": {"completion": "a"}}, "as 'samples', which is no list"),
        ({"prompt": "q", "completions": [["a"], ["b"]]}, r"has a sample that is \['a'\]"),
        ({"prompt": "q", "completion": 7}, "has a sample that is 7"),
        ({"prompt": 7, "completion": "a"}, "has a 'prompt' that is 7"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [1, 0]}, "which are the steps of one solution"),
    ],
)
def test_what_cannot_be_read_names_file_and_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = dict.fromkeys(row) | one()
    with pytest.raises(ValueError, match=rf"Row 1 of '.*x\.jsonl' .*{message}"):
        read(tmp_path, [good, row])


def test_scores_are_numbers_or_lists_of_them(tmp_path: Path) -> None:
    given = {"rm": "0.5", "prm": [0.1, None, float("nan"), "1"], "none": None}
    _, [[sample]] = read(tmp_path, [one(scores=given)])
    assert sample["scores"] == {"rm": 0.5, "prm": [0.1, None, None, 1.0], "none": None}


@pytest.mark.parametrize("columns", ["a,b", 3, ["x"], None])
def test_a_column_called_columns_is_a_column(tmp_path: Path, columns: Any) -> None:
    [problem], _ = read(tmp_path, [{**one(), "columns": columns}])
    assert problem.columns["columns"] == columns
    [problem], _ = read(tmp_path, [{**one(), "columns": {"level": 3}}])
    assert problem.columns == {"answer": "2", "level": 3}


def test_columns_that_some_rows_lack_are_null(tmp_path: Path) -> None:
    rows = [{**one(), "level": 3}, {**one(), "prompt": "p", "source": "x"}]
    for ordered in (rows, rows[::-1]):
        problems, _ = read(tmp_path, ordered)
        assert {frozenset(problem.columns) for problem in problems} == {frozenset({"answer", "level", "source"})}
        assert sorted([problem.columns["level"] for problem in problems], key=str) == [3, None]


def test_an_answer_that_is_nan_is_none(tmp_path: Path) -> None:
    [problem], [[sample]] = read(tmp_path, [{**one(answer=float("nan")), "answer": float("nan")}])
    assert problem.columns["answer"] is None
    assert sample["answer"] is None


def test_half_a_surrogate_pair_is_a_value_here(tmp_path: Path) -> None:
    """Nothing has to tokenise it, and sampled bytes need not be text."""
    _, [[sample]] = read(tmp_path, [one(completion="a\ud800")])
    assert sample["completion"] == "a\ud800"


def test_columns_called_like_arguments_do_not_reach_the_reward() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        seen.update(columns, completions=completions)
        return [1.0, 0.0]

    clash = {"prompts": "p", "completions": ["step"], "completion_ids": [1], "answer": "2"}
    problems = [Problem(0, "q", (), clash), Problem(1, "r", (), {"level": 3})]
    assert check_outcomes(problems, ["a", "b"], [[1], [2]], reward) == [True, False]
    assert seen == {"completions": ["a", "b"], "answer": ["2", None], "level": [None, 3]}
