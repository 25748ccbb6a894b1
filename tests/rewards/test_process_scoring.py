"""Process rewards are called as promised, and what they return is checked before it becomes credit."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_models import prompt_dataset
from tests.trainer_runs import make_trainer, run, score_progress, text_values, train_logs
from trl_prl.prms.load import load_process_reward
from trl_prl.rewards.scoring import score_steps, score_values


NAN = math.nan
STEPS = [["a", "b"], [], ["c"]]
PROMPTS = ["p", "q", "r"]


def fixed(scores: Any, **attributes: Any) -> Any:
    """A process reward that returns the same whatever it is asked."""

    def my_scorer(prompts: list[Any], steps: list[list[str]], **columns: Any) -> Any:
        return scores

    for name, value in attributes.items():
        setattr(my_scorer, name, value)
    return my_scorer


def assert_rows(tensor: torch.Tensor, rows: list[list[float]]) -> None:
    torch.testing.assert_close(tensor, torch.tensor(rows), rtol=0, atol=1e-6, equal_nan=True)


# ---- what is read ----


@pytest.mark.parametrize(
    "scores",
    [
        [[0.5, 0.0], [], [1]],
        ([0.5, 0.0], (), (1.0,)),
        [np.array([0.5, 0.0]), np.array([]), np.array([1.0])],
        [torch.tensor([0.5, 0.0]), torch.tensor([]), torch.tensor([1.0])],
    ],
    ids=["lists", "tuples", "arrays", "tensors"],
)
def test_scores_are_padded_with_nan(scores: Any) -> None:
    result = score_steps(fixed(scores), PROMPTS, STEPS)
    assert result.dtype == torch.float32
    assert_rows(result, [[0.5, 0.0], [NAN, NAN], [1.0, NAN]])


def test_none_and_nan_mark_what_cannot_be_scored() -> None:
    assert_rows(score_steps(fixed([[None, 0.0], [], [NAN]]), PROMPTS, STEPS), [[NAN, 0.0], [NAN, NAN], [NAN, NAN]])


def test_the_scorer_gets_copies_and_columns() -> None:
    steps = [["a", "b"], ["c"]]

    def vandal(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        assert columns == {"answer": ["1", "2"]}
        scores = [[0.0] * len(row) for row in steps]
        prompts.clear()
        for row in steps:
            row.clear()
        return scores

    assert_rows(score_steps(vandal, ("p", "q"), steps, answer=["1", "2"]), [[0.0, 0.0], [0.0, NAN]])
    assert steps == [["a", "b"], ["c"]]


async def async_scorer(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
    await asyncio.sleep(0)
    return [[float(len(text)) for text in row] for row in steps]


class AsyncObject:
    async def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return await async_scorer(prompts, steps)


@pytest.mark.parametrize("scorer", [async_scorer, AsyncObject()], ids=["function", "object"])
def test_async_scorers_with_and_without_a_running_loop(scorer: Any) -> None:
    async def in_a_notebook() -> torch.Tensor:
        return score_steps(scorer, PROMPTS, STEPS)

    for result in (score_steps(scorer, PROMPTS, STEPS), asyncio.run(in_a_notebook())):
        assert_rows(result, [[1.0, 1.0], [NAN, NAN], [1.0, NAN]])


def test_async_scorers_keep_their_event_loop() -> None:
    """A client that is kept between calls belongs to the loop that first ran it."""
    loops = []

    async def scorer(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        loops.append(asyncio.get_running_loop())
        return await async_scorer(prompts, steps)

    for _ in range(2):
        score_steps(scorer, PROMPTS, STEPS)
    assert loops[0] is loops[1]
    assert not loops[0].is_closed()


def test_an_exception_is_not_turned_into_a_score() -> None:
    def broken(**columns: Any) -> Any:
        raise KeyError("no such column")

    async def async_broken(**columns: Any) -> Any:
        raise KeyError("no such column")

    for scorer in (broken, async_broken):
        with pytest.raises(KeyError, match="no such column"):
            score_steps(scorer, PROMPTS, STEPS)


# ---- errors: what was given, why it cannot work, what to do ----


@pytest.mark.parametrize(
    ("scores", "given", "why", "advice"),
    [
        ([[0.5, 0.5], []], "scores for 2 completions, but 3", "paired wrongly", "one list of floats per completion"),
        (
            [[0.5], [], [1.0]],
            r"1 scores for completion 0, which has 2 steps: \['a', 'b'\]",
            "wrong tokens",
            "exactly one float per step",
        ),
        (
            [[0.5, 0.5], [0.1], [1.0]],
            "1 scores for completion 1, which has 0 steps",
            "wrong tokens",
            "None for a step",
        ),
        ([[0.5, math.inf], [], [1.0]], "inf for step 1 of completion 0", "infinite", "Return a finite number"),
        ([[0.5, 0.5], [], [-math.inf]], "-inf for step 0 of completion 2", "infinite", "or None"),
        ([[0.5, "good"], [], [1.0]], "'good' for step 1 of completion 0", "not a number", "Return one float"),
        ([[0.5, [1]], [], [1.0]], r"\[1\] for step 1 of completion 0", "not a number", "Return one float"),
        ([0.5, 0.1, 0.2], r"returned \[0.5, 0.1, 0.2\]", "not one list per completion", "use `reward_funcs`"),
        (None, "returned None", "not one list per completion", "Return one list of floats"),
        (0.5, "returned 0.5", "not one list per completion", "Return one list of floats"),
        (["yes", "", "n"], "'yes'", "not one list per completion", "Return one list of floats"),
        (torch.zeros(3), "tensor", "not one list per completion", "Return one list of floats"),
    ],
)
def test_wrong_scores_are_refused(scores: Any, given: str, why: str, advice: str) -> None:
    with pytest.raises(ValueError, match=given) as error:
        score_steps(fixed(scores), PROMPTS, STEPS)
    for part in ("'my_scorer'", why, advice):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5], "returned 1 values for 3 prompts"),
        ([0.5, math.inf, 0.5], "inf for prompt 1"),
        ([0.5, "x", 0.5], "'x' for prompt 1"),
    ],
)
def test_wrong_initial_values_are_refused(values: Any, message: str) -> None:
    nothing: list[list[str]] = [[] for _ in PROMPTS]
    scorer = fixed(nothing, initial_values=lambda prompts, **columns: values)
    with pytest.raises(ValueError, match=message) as error:
        score_values(scorer, PROMPTS, nothing)
    assert "my_scorer.initial_values" in str(error.value)


def test_what_cannot_score_is_refused() -> None:
    for wrong in (3, None, [text_values]):
        with pytest.raises(TypeError, match=r"cannot score steps. Pass a function"):
            load_process_reward(wrong)
    assert load_process_reward(text_values) is text_values


def test_a_column_named_steps_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    dataset = prompt_dataset()
    dataset = dataset.add_column("steps", [["Worked", "example"]] * len(dataset))
    trainer = make_trainer("pav", tiny_model_path, tmp_path, {"train_dataset": dataset})
    with pytest.raises(ValueError, match=r"has a column 'steps'.*cannot get the column too. Rename it"):
        trainer.train()


# ---- progress, hand-worked ----


def test_values_become_differences() -> None:
    progress = score_progress(fixed([[0.5, 0.75], [], [0.0]]), PROMPTS, STEPS, initial_value=0.25)
    assert_rows(progress, [[0.25, 0.25], [NAN, NAN], [-0.25, NAN]])


def test_initial_values_of_the_scorer_win_over_the_constant() -> None:
    def initial_values(prompts: list[Any], **columns: Any) -> list[float | None]:
        assert prompts == PROMPTS
        assert columns == {"answer": ["1", "2", "3"]}
        return [0.5, 0.5, None]

    scorer = fixed([[0.5, 0.75], [], [0.0]], initial_values=initial_values)
    progress = score_progress(scorer, PROMPTS, STEPS, {"answer": ["1", "2", "3"]}, initial_value=0.0)
    assert_rows(progress, [[0.0, 0.25], [NAN, NAN], [NAN, NAN]])


def test_async_initial_values() -> None:
    async def initial_values(prompts: list[Any], **columns: Any) -> list[float]:
        return [0.25] * len(prompts)

    progress = score_progress(fixed([[0.5, 0.75], [], [0.0]], initial_values=initial_values), PROMPTS, STEPS)
    assert_rows(progress, [[0.25, 0.25], [NAN, NAN], [-0.25, NAN]])


def test_an_unscorable_step_makes_two_differences_unknown() -> None:
    progress = score_progress(fixed([[None, 0.75, 1.0]]), ["p"], [["a", "b", "c"]], initial_value=0.25)
    assert_rows(progress, [[NAN, NAN, 0.25]])


def test_best_of_k_turns_values_before_differences_are_taken() -> None:
    # 1 - (1 - Q)^2: 0.5 -> 0.75, 0.25 -> 0.4375, 1 -> 1, 0 -> 0
    progress = score_progress(fixed([[0.5, 1.0], [], [0.0]]), PROMPTS, STEPS, best_of_k=2, initial_value=0.25)
    assert_rows(progress, [[0.3125, 0.25], [NAN, NAN], [-0.4375, NAN]])
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        score_progress(fixed([[2.0, 1.0], [], [0.0]]), PROMPTS, STEPS, best_of_k=2, initial_value=0.25)


@pytest.mark.parametrize(("returns", "process_reward_type"), [("advantages", None), ("values", "advantages")])
def test_advantages_are_progress_already(returns: str, process_reward_type: str | None) -> None:
    scorer = fixed([[0.5, -2.0], [], [0.0]], returns=returns)
    progress = score_progress(scorer, PROMPTS, STEPS, process_reward_type=process_reward_type)
    assert_rows(progress, [[0.5, -2.0], [NAN, NAN], [0.0, NAN]])


# ---- in training ----


def test_columns_named_like_settings_reach_the_scorer(tiny_model_path: str, tmp_path: Path) -> None:
    seen: list[Any] = []

    def scorer(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        seen.extend(columns["initial_value"] + columns["process_reward"])
        return text_values(prompts, steps)

    dataset = prompt_dataset()
    for column in ("initial_value", "process_reward"):
        dataset = dataset.add_column(column, [0.25] * len(dataset))
    run(make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": scorer, "train_dataset": dataset}))
    assert set(seen) == {0.25}


def test_columns_state_metrics_and_extra_columns(tiny_model_path: str, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    async def scorer(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float | None]]:
        seen.append({"prompts": prompts, "global_step": columns["trainer_state"].global_step, **columns})
        columns["log_metric"]("prover/calls", 2)
        columns["log_metric"]("prover/calls", 1)
        columns["log_extra"]("first_step", [row[0] if row else "" for row in steps])
        return [[None if i % 2 else value for i, value in enumerate(row)] for row in text_values(prompts, steps)]

    arguments = {"process_reward": scorer}
    fields: dict[str, Any] = {"log_completions": True, "process_reward_type": "advantages"}
    trainer = run(make_trainer("pav", tiny_model_path, tmp_path, arguments, **fields))
    assert [call["global_step"] for call in seen] == [0, 1]
    dataset = prompt_dataset()
    answers = dict(zip(dataset["prompt"], dataset["answer"], strict=True))
    for call in seen:
        assert [answers[prompt] for prompt in call["prompts"]] == call["answer"]
        assert {"answer", "trainer_state", "log_metric", "log_extra"} <= call.keys()
        assert "environments" not in call
    assert [log["prover/calls"] for log in train_logs(trainer)] == [1.5, 1.5]
    assert all(0 < log["process/unscorable_frac"] < 1 for log in train_logs(trainer))
    assert list(trainer._logs["extra"]["first_step"]) == [row[0] for row in trainer.rollouts[-1]["steps"]]
    for rollout in trainer.rollouts:  # tokens of a step without a score have the outcome advantage alone
        odd = (rollout["step_ids"] % 2 == 1) & (rollout["step_ids"] >= 0)
        outcome = rollout["outcome_advantages"].unsqueeze(1).expand_as(odd)
        assert odd.any()
        assert torch.equal(rollout["advantages"][odd], outcome[odd])


@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_ends_the_training(is_async: bool, tiny_model_path: str, tmp_path: Path) -> None:
    """A scorer that fails must not look like one that found nothing good."""

    def failing(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        raise ConnectionError("the server of the scorer is gone")

    async def failing_later(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return failing(prompts, steps)

    process_reward = failing_later if is_async else failing
    trainer = make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": process_reward})
    with pytest.raises(ConnectionError, match="the server of the scorer is gone"):
        trainer.train()
