"""ProcessRewardCallback: the credit of PAVTrainer on a trainer that exists, and the trainer given back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from tests.trainer_runs import PROCESS_METRICS, eval_logs, text_values, train_logs, trainable
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.process_grpo_trainer import ProcessRewardHooks
from trl_prl.training.step_reward_func import StepRewardFunc


# What differs between two runs that compute the same.
CLOCK = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime")
CLOCK += ("eval_samples_per_second", "eval_steps_per_second", "train_tokens_per_second")


def without_clock(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in CLOCK} for entry in history]


def stock_trainer(path: str, output_dir: Path, trainer_class: type = GRPOTrainer, **fields: Any) -> Any:
    config_class = RLOOConfig if issubclass(trainer_class, RLOOTrainer) else GRPOConfig
    eval_dataset = prompt_dataset(2) if "eval_strategy" in fields else None
    args = make_grpo_args(config_class, output_dir, **fields)
    return trainer_class(path, token_reward, args, prompt_dataset(), eval_dataset=eval_dataset)


@pytest.mark.parametrize(
    ("fields", "process"),
    [
        ({"max_steps": 3}, {"alpha": 2.0}),
        ({"num_iterations": 2, "max_steps": 4, "beta": 0.1}, {"alpha": 2.0, "alpha_schedule": "linear"}),
        ({"importance_sampling_level": "sequence", "loss_type": "grpo"}, {"best_of_k": 3, "step_advantage_clip": 0.2}),
        ({"eval_strategy": "steps", "eval_steps": 1}, {"step_splitter": "fixed", "step_length": 3}),
    ],
    ids=["plain", "stale", "sequence", "evaluation"],
)
def test_bit_equal_to_pav_trainer(
    fields: dict[str, Any], process: dict[str, Any], tiny_model_path: str, tmp_path: Path
) -> None:
    process = {"initial_value": 0.5, **process}
    args = make_grpo_args(PAVConfig, tmp_path / "pav", **fields, **process)
    eval_dataset = prompt_dataset(2) if "eval_strategy" in fields else None
    pav = PAVTrainer(
        tiny_model_path, token_reward, args, prompt_dataset(), eval_dataset=eval_dataset, process_reward=text_values
    )
    pav.train()
    stock = stock_trainer(tiny_model_path, tmp_path / "stock", **fields)
    stock.add_callback(ProcessRewardCallback(stock, process_reward=text_values, **process))
    stock.train()
    assert without_clock(stock.state.log_history) == without_clock(pav.state.log_history)
    assert all(name in train_logs(stock)[0] for name in PROCESS_METRICS)
    assert len(eval_logs(stock)) == (2 if eval_dataset else 0)
    expected = trainable(pav)
    assert all(torch.equal(value, expected[name]) for name, value in trainable(stock).items())


def test_process_reward_changes_training(tiny_model_path: str, tmp_path: Path) -> None:
    """The bit-equality above could also mean that the callback does nothing, were it not for the metrics."""
    plain = stock_trainer(tiny_model_path, tmp_path / "plain")
    plain.train()
    stock = stock_trainer(tiny_model_path, tmp_path / "callback")
    stock.add_callback(ProcessRewardCallback(stock, process_reward=text_values, initial_value=0.5))
    stock.train()
    expected = trainable(plain)
    assert any(not torch.equal(value, expected[name]) for name, value in trainable(stock).items())


class LoggingTrainer(GRPOTrainer):
    """A subclass with an override and an attribute that appears while training."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.num_logs = getattr(self, "num_logs", 0) + 1
        self.seen_hooks = isinstance(self, ProcessRewardHooks)
        super().log({**logs, "extra": 1.0}, *args, **kwargs)


@pytest.mark.parametrize("trainer_class", [GRPOTrainer, LoggingTrainer])
def test_detaches_on_train_end(trainer_class: type, tiny_model_path: str, tmp_path: Path) -> None:
    plain = stock_trainer(tiny_model_path, tmp_path / "plain", trainer_class)
    plain.train()
    trainer = stock_trainer(tiny_model_path, tmp_path / "callback", trainer_class)
    callback = ProcessRewardCallback(trainer, process_reward=text_values, initial_value=0.5)
    assert type(trainer) is trainer_class
    trainer.add_callback(callback)
    trainer.train()
    assert type(trainer) is trainer_class
    # All that training leaves on a stock trainer is left on this one, and nothing else but the wrapped `train`.
    assert vars(trainer).keys() - {"train"} == vars(plain).keys()
    if trainer_class is LoggingTrainer:
        assert trainer.num_logs == plain.num_logs > 0
        assert trainer.seen_hooks
        assert not plain.seen_hooks
        assert all(log["extra"] == 1.0 for log in train_logs(trainer))


def test_attributes_of_the_same_name_come_back(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = stock_trainer(tiny_model_path, tmp_path)
    trainer.process_reward = "the user's own"
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=text_values, initial_value=0.5))
    trainer.train()
    assert trainer.process_reward == "the user's own"
    assert not hasattr(trainer, "step_splitter")


class FailingReward:
    """Fails at its second call, once."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.__name__ = "failing_reward"

    def __call__(self, completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        self.num_calls += 1
        if self.num_calls == 2:
            raise RuntimeError("the reward failed")
        return token_reward(completion_ids)


@pytest.mark.parametrize("level", ["step", "completion"])
def test_detaches_after_an_exception_and_trains_again(level: str, tiny_model_path: str, tmp_path: Path) -> None:
    args = make_grpo_args(GRPOConfig, tmp_path, max_steps=3)
    trainer = GRPOTrainer(tiny_model_path, FailingReward(), args, prompt_dataset())
    process = {"initial_value": 0.5} if level == "step" else {}
    trainer.add_callback(ProcessRewardCallback(trainer, text_values, level=level, **process))
    reward_funcs, weights = trainer.reward_funcs, trainer.reward_weights
    for attempt in range(2):
        if attempt == 0:
            with pytest.raises(RuntimeError, match="the reward failed"):
                trainer.train()
        else:
            trainer.train()
        assert type(trainer) is GRPOTrainer
        assert not hasattr(trainer, "step_splitter")
        assert trainer.reward_funcs is reward_funcs
        assert trainer.reward_weights is weights
        assert trainer.reward_func_names == ["failing_reward"]
    name = "process/reward/mean" if level == "step" else "rewards/text_values_mean/mean"
    assert len(train_logs(trainer)) == 3
    assert all(name in log for log in train_logs(trainer))


def test_an_error_while_attaching_leaves_the_trainer_alone(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = stock_trainer(tiny_model_path, tmp_path)
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=text_values, initial_value=0.5))
    trainer.loss_type = "a loss type of tomorrow"
    with pytest.raises(ValueError, match="not known to use an advantage per token"):
        trainer.train()
    assert type(trainer) is GRPOTrainer
    assert not {"step_splitter", "token_pieces", "process_reward", "process_args"} & vars(trainer).keys()


def test_two_callbacks_on_one_trainer_are_refused(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = stock_trainer(tiny_model_path, tmp_path)
    for _ in range(2):
        trainer.add_callback(ProcessRewardCallback(trainer, process_reward=text_values, initial_value=0.5))
    with pytest.raises(TypeError, match="process rewards of its own"):
        trainer.train()
    assert type(trainer) is GRPOTrainer


def test_second_training_continues_with_process_rewards(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = stock_trainer(tiny_model_path, tmp_path)
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=text_values, initial_value=0.5))
    for _ in range(2):
        trainer.train()
        assert type(trainer) is GRPOTrainer
        assert len(train_logs(trainer)) == 2
        assert all("process/reward/mean" in log for log in train_logs(trainer))


def test_checkpoints_and_model_card_while_attached(tiny_model_path: str, tmp_path: Path) -> None:
    """The class of the attached trainer is made on the fly: saving, the model card included, must not mind."""
    fields: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = stock_trainer(tiny_model_path, tmp_path / "whole", **fields)
    whole.add_callback(ProcessRewardCallback(whole, process_reward=text_values, initial_value=0.5))
    whole.train()
    assert (tmp_path / "whole" / "checkpoint-2" / "model.safetensors").exists()
    assert "GRPO" in (tmp_path / "whole" / "README.md").read_text()
    assert not (tmp_path / "whole" / "checkpoint-2" / "trainer_state.json").read_text().count("ProcessReward")
    resumed = stock_trainer(tiny_model_path, tmp_path / "resumed", **fields)
    resumed.add_callback(ProcessRewardCallback(resumed, process_reward=text_values, initial_value=0.5))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert without_clock(train_logs(resumed))[-1] == without_clock(train_logs(whole))[-1]
    expected = trainable(whole)
    assert all(torch.equal(value, expected[name]) for name, value in trainable(resumed).items())
    resumed.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").exists()


def table_run(tiny_model_path: str, output_dir: Path, **process: Any) -> tuple[Any, Path]:
    """A trainer that was evaluated, then trained with a callback, and where its completions table is written."""
    args = make_grpo_args(
        GRPOConfig,
        output_dir,
        log_completions=True,
        max_steps=1,
        eval_on_start=True,
        eval_strategy="steps",
        per_device_eval_batch_size=2,
        num_generations_eval=2,
    )
    trainer = GRPOTrainer(tiny_model_path, token_reward, args, prompt_dataset(), eval_dataset=prompt_dataset(1))
    trainer.add_callback(ProcessRewardCallback(trainer, process_reward=text_values, **process))
    trainer.evaluate()
    trainer.train()  # with an evaluation at the start, whose two rows join the two of the evaluation before
    return trainer, output_dir / "completions" / "completions_00001.parquet"


def test_completions_table_before_and_after_training(tiny_model_path: str, tmp_path: Path) -> None:
    """Evaluations without process rewards have no steps: the table must neither break nor pair rows wrongly."""
    trainer, path = table_run(tiny_model_path, tmp_path, initial_value=0.5)
    assert "steps" not in trainer._logs["extra"]
    table = pd.read_parquet(path)
    assert ["".join(steps) for steps in table["steps"]] == table["completion"].tolist()
    trainer.evaluate()
    table = pd.read_parquet(path)
    assert len(table) == 4
    assert "steps" not in table.columns


def test_completions_table_at_the_level_of_completions(tiny_model_path: str, tmp_path: Path) -> None:
    trainer, path = table_run(tiny_model_path, tmp_path, level="completion")
    start = pd.read_parquet(path.with_name("completions_00000.parquet"))
    assert start["text_values_mean"].isna().tolist() == [True, True, False, False]
    assert pd.read_parquet(path)["text_values_mean"].notna().all()
    trainer.evaluate()
    assert "text_values_mean" not in pd.read_parquet(path).columns


# ---- RLOO, completion level ----


def test_rloo_refuses_steps_and_says_why(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = stock_trainer(tiny_model_path, tmp_path, RLOOTrainer)
    with pytest.raises(TypeError, match=r"one advantage per\s+completion.*level='completion'"):
        ProcessRewardCallback(trainer, process_reward=text_values, initial_value=0.5)
    assert "train" not in vars(trainer)


@pytest.mark.parametrize("trainer_class", [RLOOTrainer, GRPOTrainer])
def test_completion_level_adds_a_reward(trainer_class: type, tiny_model_path: str, tmp_path: Path) -> None:
    scored: list[float] = []

    def count_steps(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        assert columns["answer"]
        scores = [[float(len(row))] * len(row) for row in steps]
        scored.extend(float(len(row)) for row in steps)
        return scores

    trainer = stock_trainer(tiny_model_path, tmp_path, trainer_class, max_steps=1)
    callback = ProcessRewardCallback(
        trainer, count_steps, level="completion", alpha=0.25, step_splitter="fixed", step_length=2
    )
    trainer.add_callback(callback)
    trainer.train()
    (log,) = train_logs(trainer)
    assert log["rewards/count_steps_mean/mean"] == pytest.approx(sum(scored) / len(scored))
    # The text of up to 12 tokens in steps of two: the step length was heeded.
    assert max(scored) > 1
    assert log["reward"] == pytest.approx(log["rewards/token_reward/mean"] + 0.25 * sum(scored) / len(scored))
    assert trainer.reward_funcs == [token_reward]
    assert trainer.reward_func_names == ["token_reward"]
    assert trainer.reward_weights.tolist() == [1.0]
    assert len(trainer.reward_processing_classes) == 1


class Preparable:
    """A scorer that, as a verifier does, gets ready for the process's device."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []

    def prepare(self, accelerator: Any) -> None:
        self.devices.append(accelerator.device)

    def __call__(self, prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        assert self.devices, "scored before it was prepared"
        return text_values(prompts, steps)


@pytest.mark.parametrize("way", ["step", "completion", "reward function"])
def test_a_scorer_is_prepared_before_it_scores(way: str, tiny_model_path: str, tmp_path: Path) -> None:
    scorer = Preparable()
    args = make_grpo_args(GRPOConfig, tmp_path, max_steps=2)
    rewards = [token_reward, StepRewardFunc(scorer)] if way == "reward function" else token_reward
    trainer = GRPOTrainer(tiny_model_path, rewards, args, prompt_dataset())
    if way == "step":
        trainer.add_callback(ProcessRewardCallback(trainer, scorer, initial_value=0.5))
    elif way == "completion":
        trainer.add_callback(ProcessRewardCallback(trainer, scorer, level="completion"))
    assert not scorer.devices
    trainer.train()
    assert scorer.devices == [trainer.accelerator.device]


# ---- refusals ----


def test_a_trainer_with_process_rewards_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    args = make_grpo_args(PAVConfig, tmp_path, initial_value=0.5)
    trainer = PAVTrainer(tiny_model_path, token_reward, args, prompt_dataset(), process_reward=text_values)
    with pytest.raises(TypeError, match="process rewards of its own"):
        ProcessRewardCallback(trainer, process_reward=text_values)


@pytest.mark.parametrize("wrong", [None, "a trainer", Trainer])
def test_what_is_no_trainer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"`trainer` is a .*Build the trainer first"):
        ProcessRewardCallback(wrong, process_reward=text_values)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "says nothing about the prompt's own value"),
        ({"initial_value": 0.5, "step_splitter": "paragraphs"}, ValueError, "no splitter has that name"),
        ({"level": "token"}, ValueError, "'step' or 'completion'"),
        ({"alpha": -1.0}, ValueError, "punish progress"),
        ({"best_of_k": 0}, ValueError, "at least one sample"),
        ({"level": "completion", "best_of_k": 2}, ValueError, "best_of_k was given for `level='completion'`"),
        ({"aggregation": "min"}, ValueError, "every step keeps its own score"),
        ({"level": "completion", "aggregation": "median"}, ValueError, "Set it to one of: mean"),
        ({"unknown": 1}, TypeError, r"ProcessRewardCallback was given unknown.*takes level.*alpha_final"),
        ({"initial_valu": 1}, TypeError, r"Did you mean initial_value\?"),
        ({"level": "completion", "aggregaton": "min"}, TypeError, "was given aggregaton"),
    ],
)
def test_bad_settings_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, tiny_model_path: str, tmp_path: Path
) -> None:
    trainer = stock_trainer(tiny_model_path, tmp_path)
    with pytest.raises(error, match=message):
        ProcessRewardCallback(trainer, text_values, **arguments)
    assert "train" not in vars(trainer)


def test_progress_is_not_scaled_where_every_reward_has_its_own(tiny_model_path: str, tmp_path: Path) -> None:
    """The division of `PAVConfig`, which also a callback and a plain `GRPOConfig` would make."""
    fields = {"multi_objective_aggregation": "normalize_then_sum"}
    trainer, message = stock_trainer(tiny_model_path, tmp_path, **fields), "divides every outcome reward"
    with pytest.raises(ValueError, match=message):
        ProcessRewardCallback(trainer, text_values, initial_value=0.5)
    ProcessRewardCallback(trainer, text_values, initial_value=0.5, progress_scale="none")
    with pytest.raises(ValueError, match=message):
        PAVTrainer(tiny_model_path, trainer.reward_funcs, trainer.args, process_reward=text_values)
