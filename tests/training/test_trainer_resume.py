"""A run that is interrupted and resumed is the run without the break, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_runs import KINDS, make_trainer, train_logs, trainable


NOT_RESUMED = ("step_time", "train_runtime")


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "prl": ("prl", {}),
    "pav": ("pav", {}),
    "prl-accumulation": ("prl", {"gradient_accumulation_steps": 2, "num_iterations": 2}),
    "pav-accumulation": ("pav", {"gradient_accumulation_steps": 2, "num_iterations": 2}),
    "prl-rollout": ("prl", {"logps_source": "rollout", "num_iterations": 2, "step_level": "token"}),
    "pav-schedule": ("pav", {"alpha_schedule": "cosine", "alpha_final": 0.1, "alpha_warmup_ratio": 0.25}),
}


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(case: str, tiny_model_path: str, tmp_path: Path) -> None:
    kind, fields = CASES[case]
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 5e-3, **fields}
    whole = make_trainer(kind, tiny_model_path, tmp_path / "whole", {}, **settings)
    whole.train()
    resumed = make_trainer(kind, tiny_model_path, tmp_path / "resumed", {}, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for log, expected in zip(train_logs(resumed)[-2:], train_logs(whole)[-2:], strict=True):
        names = expected.keys() - set(NOT_RESUMED)
        assert {name: log[name] for name in names} == {name: expected[name] for name in names}
    assert len(resumed.losses) == len(whole.losses) // 2
    for record, expected_record in zip(resumed.losses, whole.losses[len(resumed.losses) :], strict=True):
        assert torch.equal(record["completion_ids"], expected_record["completion_ids"])
        assert torch.equal(record["advantages"], expected_record["advantages"])
    parameters = trainable(whole)
    assert all(torch.equal(value, parameters[name]) for name, value in trainable(resumed).items())
    if kind == "prl":  # the reference is the model training started from, not the one it went on from
        assert all(abs(log["process/kl_to_go"]) > 1e-4 for log in train_logs(resumed)[-2:])
    if "alpha_schedule" in fields:
        alphas = [log["process/alpha"] for log in train_logs(whole)]
        assert alphas == pytest.approx([0.0, 1.0, 1.0 - 0.9 * 0.25, 1.0 - 0.9 * 0.75])


@pytest.mark.parametrize("kind", KINDS)
def test_resume_finds_the_last_checkpoint(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    make_trainer(kind, tiny_model_path, tmp_path, {}, max_steps=2, **settings).train()
    longer = make_trainer(kind, tiny_model_path, tmp_path, {}, max_steps=3, **settings)
    longer.train(resume_from_checkpoint=True)
    assert len(longer.losses) == 1
    assert [log["step"] for log in train_logs(longer)] == [1, 2, 3]
