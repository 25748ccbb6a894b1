"""Outcomes of completions: what a reward is given, and what it may return."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trl_prl.generation.rollouts import Problem, check_outcomes


def outcomes(returned: Any, columns: dict[str, Any] | None = None, n: int = 2) -> list[bool | None]:
    problems = [Problem(row, "q", (), columns or {"answer": "2"}) for row in range(n)]
    return check_outcomes(problems, ["x"] * n, [[1]] * n, lambda **kwargs: returned)


@pytest.mark.parametrize("returned", [[1.0, 0.0], (1, 0), np.array([1.0, 0.0]), [True, False], ["0.9", "0.1"]])
def test_one_number_per_completion(returned: Any) -> None:
    assert outcomes(returned) == [True, False]


def test_none_and_nan_are_not_checked() -> None:
    assert outcomes([None, math.nan]) == [None, None]


@pytest.mark.parametrize(
    "returned", [1.0, None, "10", {0: 1.0, 1: 0.0}, [1.0], [1.0, "right"], [[1.0], [0.0]], np.float64(1)]
)
def test_anything_else_is_refused_in_one_line(returned: Any) -> None:
    with pytest.raises(ValueError, match=r"one (number )?per completion") as caught:
        outcomes(returned)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids"])
def test_a_column_does_not_stand_in_for_what_is_sampled(name: str) -> None:
    seen: dict[str, Any] = {}

    def reward(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [1.0]

    check_outcomes([Problem(0, "q", (), {"answer": "2", name: ["of the column"]})], ["x"], [[1]], reward)
    assert seen == {"prompts": ["q"], "completions": ["x"], "completion_ids": [[1]], "answer": ["2"]}
