"""Process rewards that learn while the policy does: when they are told what, what is logged, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from tests.trainer_runs import make_trainer, train_logs
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.step_reward_func import StepRewardFunc


NOT_RESUMED = ("step_time", "train_runtime")


class RunningMean:
    """Scores every step by its length times a weight that follows the outcomes it has been told."""

    returns = "advantages"

    def __init__(self) -> None:
        self.weight = torch.zeros(1)
        self.events: list[str] = []
        self.told: list[dict[str, Any]] = []

    def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        self.events.append("score")
        return [[self.weight.item() * len(text) for text in row] for row in steps]

    def update(
        self, prompts: list[Any], steps: list[list[str]], outcomes: list[float | None], **columns: Any
    ) -> dict[str, float]:
        self.events.append("update")
        self.told.append({"prompts": prompts, "steps": steps, "outcomes": outcomes, **columns})
        found = [value for value in outcomes if value is not None]
        self.weight = self.weight + 0.1 + sum(found)
        return {"weight": self.weight.item(), "num_told": len(found)}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def test_update_is_told_every_training_rollout_and_logged(tiny_model_path: str, tmp_path: Path) -> None:
    reward = RunningMean()
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2}

    def some_unscorable(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        return [None, *token_reward(completion_ids)[1:]]

    more = {"process_reward": reward, "reward_funcs": [some_unscorable, token_reward]}
    more["eval_dataset"] = prompt_dataset(num_rows=2)
    trainer = make_trainer("pav", tiny_model_path, tmp_path, more, **settings)
    trainer.train()
    # Not in evaluation, and after the scores that its rollout trains on.
    assert reward.events.count("update") == 2
    assert reward.events[:2] == ["score", "update"]
    assert len(reward.events) > 4
    told = reward.told[0]
    assert told["outcomes"][0] is None
    assert all(isinstance(value, float) for value in told["outcomes"][1:])
    assert len(told["prompts"]) == len(told["steps"]) == len(told["answer"]) == len(told["outcomes"]) == 4
    assert told["trainer_state"] is trainer.state
    logs = train_logs(trainer)
    assert [log["process/update/num_told"] for log in logs] == [3.0, 3.0]
    assert logs[-1]["process/update/weight"] == pytest.approx(reward.weight.item())
    assert logs[0]["process/reward/mean"] == 0 != logs[1]["process/reward/mean"]


def stock_trainer(model: str, output_dir: Path, **settings: Any) -> tuple[Any, RunningMean]:
    reward = RunningMean()
    args = make_grpo_args(GRPOConfig, output_dir, **settings)
    trainer = GRPOTrainer(model, token_reward, args=args, train_dataset=prompt_dataset())
    callback = ProcessRewardCallback(trainer, reward, step_splitter="newline", alpha=1.0, progress_scale="none")
    trainer.add_callback(callback)
    return trainer, reward


def pav_trainer(model: str, output_dir: Path, **settings: Any) -> tuple[Any, RunningMean]:
    reward = RunningMean()
    return make_trainer("pav", model, output_dir, {"process_reward": reward}, **settings), reward


@pytest.mark.parametrize("make", [pav_trainer, stock_trainer])
def test_resume_is_exact(make: Any, tiny_model_path: str, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 5e-3}
    whole, learned = make(tiny_model_path, tmp_path / "whole", **settings)
    whole.train()
    assert (tmp_path / "whole" / "checkpoint-2" / "process_reward.pt").is_file()
    resumed, other = make(tiny_model_path, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(other.weight, learned.weight)
    assert other.events.count("update") == 2
    for log, expected in zip(train_logs(resumed)[-2:], train_logs(whole)[-2:], strict=True):
        names = expected.keys() - set(NOT_RESUMED)
        assert {name: log[name] for name in names} == {name: expected[name] for name in names}
    assert "process/update/weight" in train_logs(resumed)[-1]


def test_callback_leaves_nothing_behind(tiny_model_path: str, tmp_path: Path) -> None:
    trainer, reward = stock_trainer(tiny_model_path, tmp_path, max_steps=1)
    before = list(trainer.callback_handler.callbacks)
    trainer.train()
    assert reward.events == ["score", "update"]
    assert trainer.callback_handler.callbacks == before
    assert not hasattr(trainer, "process_reward_state")


class OtherMean(RunningMean):
    pass


def test_a_state_of_something_else_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    def make(reward: Any, **settings: Any) -> Any:
        return make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": reward}, max_steps=1, **settings)

    make(RunningMean(), save_strategy="steps", save_steps=1).train()
    path = tmp_path / "checkpoint-1" / "process_reward.pt"
    frozen: Any = RunningMean()
    frozen.is_trainable = False
    for reward, words in ((OtherMean(), "another process reward, 'RunningMean'"), (frozen, "'RunningMean' does not")):
        with pytest.raises(ValueError, match=words):
            make(reward).train(resume_from_checkpoint=True)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no state"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"process_reward\.pt' is damaged"):
            make(RunningMean()).train(resume_from_checkpoint=str(path.parent))


def test_a_checkpoint_is_whole_before_older_ones_go(tiny_model_path: str, tmp_path: Path) -> None:
    """And before callbacks hear of it, or it is pushed to the hub."""
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((tmp_path / f"checkpoint-{state.global_step}" / "process_reward.pt").is_file())

    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    make_trainer(
        "pav", tiny_model_path, tmp_path, {"process_reward": RunningMean(), "callbacks": [Look()]}, **settings
    ).train()
    assert seen == [True, True]


def test_what_cannot_work_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    class Forgetful:
        returns = "advantages"
        update = RunningMean.update

        def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
            return [[0.0] * len(row) for row in steps]

    with pytest.raises(TypeError, match="no `state_dict`"):
        make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": Forgetful()})
    with pytest.raises(ValueError, match="learns from rollouts"):
        StepRewardFunc(RunningMean())
    trainer = make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": RunningMean()}, max_steps=1)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(ValueError, match="and 'RunningMean' learns"):
        trainer.train(resume_from_checkpoint=True)
    taken = prompt_dataset().rename_column("answer", "outcomes")
    more = {"process_reward": RunningMean(), "train_dataset": taken}
    with pytest.raises(ValueError, match="column 'outcomes'"):
        make_trainer("pav", tiny_model_path, tmp_path, more, max_steps=1).train()


def test_a_reward_with_nothing_to_update_is_left_alone(tiny_model_path: str, tmp_path: Path) -> None:
    reward: Any = RunningMean()
    reward.is_trainable = False
    trainer = make_trainer("pav", tiny_model_path, tmp_path, {"process_reward": reward}, max_steps=1)
    trainer.train()
    assert reward.events == ["score"]
