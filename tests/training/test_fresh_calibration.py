"""Calibration of a process reward on the policy's own finished solutions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import make_grpo_args, prompt_dataset
from tests.trainer_runs import make_trainer, text_values, train_logs, trainable
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.fresh_calibration import FreshCalibration, calibration_metrics, last_values


NAN = math.nan


# ---- by hand ----


def test_only_the_last_value_of_a_solution_counts() -> None:
    values = torch.tensor([[0.1, 0.9, NAN], [0.2, 0.3, 0.4], [NAN, NAN, NAN], [0.5, NAN, NAN]])
    found = last_values(values, [2, 3, 0, 2], best_of_k=1)
    assert found[:2] == pytest.approx([0.9, 0.4])
    assert math.isnan(found[2])  # no steps
    assert math.isnan(found[3])  # the last step is not scored


def test_best_of_k_is_undone_where_nothing_is_left_to_sample() -> None:
    # 1 - (1 - 0.5)^2 = 0.75
    assert last_values(torch.tensor([[0.75], [1.0], [0.0], [3.0]]), [1] * 4, 2) == pytest.approx([0.5, 1.0, 0.0, 3.0])


def test_metrics_by_hand() -> None:
    pairs = [(0.9, 1.0, 1), (0.6, 0.0, 2), (0.2, 0.0, 2), (0.75, 1.0, 6)]
    found = calibration_metrics(pairs)
    assert found == pytest.approx(
        {
            "num_solutions": 4,
            "mean_value": 2.45 / 4,
            "mean_outcome": 0.5,
            "brier": (0.01 + 0.36 + 0.04 + 0.0625) / 4,
            "ece": (0.1 + 0.6 + 0.2 + 0.25) / 4,
            "auroc": 1.0,
            "brier_step_1": 0.01,
            "brier_step_2": 0.2,
            "brier_step_later": 0.0625,
        }
    )
    assert calibration_metrics([]) == {"num_solutions": 0.0}


def test_windows_of_optimizer_steps() -> None:
    calibration = FreshCalibration(2)
    one = ([0.5], [1.0], [1], [True])
    assert not calibration.add(7, *one)  # the first seen, here after a resume
    assert calibration.add(8, *one)
    assert len(calibration.pairs) == 2
    calibration.start_window(8)
    assert calibration.pairs == []
    assert not calibration.add(9, *one)
    assert not calibration.add(0, *one)  # a second training starts over
    assert len(calibration.pairs) == 1


def test_what_cannot_be_compared_is_left_out() -> None:
    calibration = FreshCalibration(1)
    calibration.add(0, [0.5, NAN, 0.5, 0.5], [1.0, 1.0, NAN, 0.0], [1, 1, 1, 1], [True, True, True, False])
    assert calibration.pairs == [(0.5, 1.0, 1)]


@pytest.mark.parametrize(
    ("value", "outcome", "message"),
    [(1.5, 1.0, "value of a step is 1.5"), (0.5, -1.0, "first reward function's result is -1")],
)
def test_what_is_no_probability_is_refused(value: float, outcome: float, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*set `calibration_steps=0`"):
        FreshCalibration(1).add(0, [value], [outcome], [1], [True])


# ---- in training ----


def even_length(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """An outcome of 0 or 1, and none for very short completions."""
    return [None if len(ids) < 2 else float(len(ids) % 2 == 0) for ids in completion_ids]


def some_bonus(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [len(ids) * 7.0 for ids in completion_ids]


def test_fresh_rollouts_are_compared_as_they_were(tiny_model_path: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"calibration_steps": 2, "max_steps": 5, "per_device_train_batch_size": 8}
    fields |= {"max_completion_length": 20, "logging_steps": 1}
    arguments = {"reward_funcs": [even_length, some_bonus]}
    trainer = make_trainer("pav", tiny_model_path, tmp_path, arguments, **fields)
    trainer.train()
    logs = train_logs(trainer)
    assert ["process/calibration/brier" in log for log in logs] == [False, True, False, True, False]
    eos = trainer.processing_class.eos_token_id
    for last, log in ((2, logs[1]), (4, logs[3])):
        pairs = []
        for rollout in trainer.rollouts[last - 2 : last]:
            for ids, step_ids, steps in zip(
                rollout["completion_ids"], rollout["step_ids"], rollout["steps"], strict=True
            ):
                sampled = ids[step_ids >= 0].tolist()
                (outcome,) = even_length([sampled])
                if sampled[-1] == eos and outcome is not None:
                    pairs.append((text_values([], [steps])[0][-1], outcome, len(steps)))
        assert 2 <= len(pairs) < 16  # some were cut off at the length limit
        for name, value in calibration_metrics(pairs).items():
            assert log[f"process/calibration/{name}"] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("way", ["trainer", "callback"])
def test_looking_changes_nothing(way: str, tiny_model_path: str, tmp_path: Path) -> None:
    """No further forward, no random number: parameters are equal to the last bit with and without."""
    found = []
    for settings in ({}, {"calibration_steps": 1, "radar_window": 3}, {"radar_window": 0}):
        arguments = {"reward_funcs": even_length}
        if way == "trainer":
            trainer = make_trainer("pav", tiny_model_path, tmp_path, arguments, max_steps=3, **settings)
        else:
            args = make_grpo_args(GRPOConfig, tmp_path, max_steps=3)
            trainer = GRPOTrainer(tiny_model_path, even_length, args, prompt_dataset())
            trainer.add_callback(ProcessRewardCallback(trainer, text_values, initial_value=0.5, **settings))
        trainer.train()
        found.append(trainable(trainer))
        assert ("process/calibration/num_solutions" in train_logs(trainer)[0]) == ("calibration_steps" in settings)
    assert all(torch.equal(value, other[name]) for other in found[1:] for name, value in found[0].items())


def test_an_outcome_that_is_no_probability_stops_the_run(tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {"reward_funcs": [some_bonus, even_length]}
    trainer = make_trainer("pav", tiny_model_path, tmp_path, arguments, calibration_steps=1, max_completion_length=20)
    with pytest.raises(ValueError, match=r"first in `reward_funcs`"):
        trainer.train()


@pytest.mark.parametrize(("field", "value"), [("calibration_steps", -1), ("radar_window", 2), ("radar_window", -3)])
def test_settings_out_of_range_are_refused(field: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`{field}` was set to {value}"):
        make_trainer("pav", "no/such-model", tmp_path, {}, **{field: value})
