"""EvaluationCallback: what it logs, and that training is the same with it and without it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from tests.scripts.distributed_evaluation import half_right, train
from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from tests.trainer_runs import text_values, train_logs, trainable
from tests.training.test_callback import without_clock
from tests.two_processes import launch_two_processes
from trl_prl.evaluation.samples import check_samples
from trl_prl.training.evaluation_callback import EvaluationCallback
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer


def make_trainer(kind: str, path: str, folder: Path, **fields: Any) -> Any:
    eval_dataset = prompt_dataset(3) if "eval_strategy" in fields else None
    common = {"train_dataset": prompt_dataset(), "eval_dataset": eval_dataset}
    if kind == "prl":
        return PRLTrainer(path, token_reward, make_grpo_args(PRLConfig, folder, beta=0.2, **fields), **common)
    if kind == "pav":
        args = make_grpo_args(PAVConfig, folder, initial_value=0.5, **fields)
        return PAVTrainer(path, token_reward, args, process_reward=text_values, **common)
    return GRPOTrainer(path, token_reward, make_grpo_args(GRPOConfig, folder, **fields), **common)


@pytest.mark.parametrize("kind", ["grpo", "prl", "pav"])
def test_training_is_bit_equal_with_and_without(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    """Losses, all other metrics, parameters and the random numbers that follow."""
    after = []
    trainers = []
    for name in ("without", "with"):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        trainer = make_trainer(kind, tiny_model_path, tmp_path / name, max_steps=3)
        if name == "with":
            trainer.add_callback(
                EvaluationCallback(trainer, prompt_dataset(3), half_right, n=4, freq=1, unfinished="check")
            )
        trainer.train()
        trainers.append(trainer)
        after.append((torch.rand(3).tolist(), random.random(), float(np.random.rand())))
    assert after[0] == after[1]
    assert without_clock(train_logs(trainers[0])) == without_clock(train_logs(trainers[1]))
    expected = trainable(trainers[0])
    assert all(torch.equal(value, expected[name]) for name, value in trainable(trainers[1]).items())
    logs = [entry for entry in trainers[1].state.log_history if "eval_avg_at_4" in entry]
    assert [entry["step"] for entry in logs] == [1, 2, 3]
    for entry in logs:
        assert entry["eval_avg_at_4"] == pytest.approx(entry["eval_pass_at_1"])
        assert 0 < entry["eval_pass_at_1"] < entry["eval_pass_at_4"] <= 1
        assert entry["eval_unchecked"] == 0
        assert 0 <= entry["eval_unfinished"] <= 1


def test_it_is_logged_where_the_trainer_evaluates(tiny_model_path: str, tmp_path: Path) -> None:
    """Trackers, the trainer's own result, and the choice of the best checkpoint get the numbers."""
    trainer = make_trainer(
        "grpo", tiny_model_path, tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        save_steps=1, metric_for_best_model="eval_pass_at_4", report_to="tensorboard",
    )  # fmt: skip
    seen: list[dict[str, Any]] = []

    def reward(completion_ids: list[list[int]], answer: list[str], **columns: Any) -> list[float | None]:
        seen.append({"answer": answer, "training": trainer.model.training})
        return [
            None if sum(ids) % 3 == 0 else value
            for ids, value in zip(completion_ids, half_right(completion_ids), strict=True)
        ]

    trainer.add_callback(
        EvaluationCallback(trainer, reward_func=reward, n=4, k=(4,), max_prompts=2, unfinished="wrong")
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "eval_pass_at_4" in entry]
    assert [entry["step"] for entry in logs] == [1, 2]
    assert trainer.state.best_metric == max(entry["eval_pass_at_4"] for entry in logs)
    assert {len(call["answer"]) for call in seen} <= set(range(1, 9))
    assert "eval_avg_at_4" in trainer.evaluate()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = next(tmp_path.rglob("events.out*")).parent
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert "eval/pass_at_4" in accumulator.Tags()["scalars"]


def test_modes_of_modules_come_back(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tiny_model_path, tmp_path)
    trainer.model.gradient_checkpointing_enable()
    trainer.model.train()
    frozen = trainer.model.model.layers[0]
    frozen.eval()
    modes = [module.training for module in trainer.model.modules()]
    assert len(set(modes)) == 2
    callback = EvaluationCallback(trainer, prompt_dataset(2), half_right, n=2)
    first = callback.evaluate()
    assert [module.training for module in trainer.model.modules()] == modes
    assert trainer.model.is_gradient_checkpointing
    # Equal random numbers every time: what changes between evaluations is the policy.
    assert callback.evaluate() == first

    def broken(**columns: Any) -> list[float]:
        raise RuntimeError("the reward failed")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the reward failed"):
        EvaluationCallback(trainer, prompt_dataset(2), broken, n=2).evaluate()
    assert [module.training for module in trainer.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_messages_and_a_reward_by_its_name(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tiny_model_path, tmp_path, max_completion_length=40)
    callback = EvaluationCallback(
        trainer, prompt_dataset(2, conversational=True), "exact_match", n=2, metric_key_prefix="eval_chat"
    )
    try:
        metrics = callback.evaluate()
    finally:
        callback.on_train_end(None, None, None)
    assert set(metrics) == {
        f"eval_chat_{name}" for name in ("avg_at_2", "pass_at_1", "pass_at_2", "unfinished", "unchecked", "no_answer")
    }
    assert metrics["eval_chat_avg_at_2"] in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_samples_without_an_answer_are_counted(
    tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(problems: Any, *rest: Any, **options: Any) -> list[dict[str, Any]]:
        samples = [{"completion": text, "finish_reason": "stop"} for text in ("I do not know.", r"So \boxed{4}.")]
        return check_samples(problems, [samples] * len(problems), half_right, unfinished="wrong")

    monkeypatch.setattr("trl_prl.training.evaluation_callback.evaluate_problems", found)
    trainer = make_trainer("grpo", tiny_model_path, tmp_path)
    assert EvaluationCallback(trainer, prompt_dataset(3), half_right, n=2).evaluate()["eval_no_answer"] == 0.5


def test_mistakes_are_explained(tiny_model_path: str, tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tiny_model_path, tmp_path)
    with pytest.raises(ValueError, match="no rows with a 'prompt'"):
        EvaluationCallback(trainer)
    with pytest.raises(ValueError, match="1 <= k <= n"):
        EvaluationCallback(trainer, prompt_dataset(2), n=2, k=(4,))
    with pytest.raises(ValueError, match="cannot say whether"):
        EvaluationCallback(trainer, prompt_dataset(2), torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(tiny_model_path: str, tmp_path: Path) -> None:
    launch_two_processes("distributed_evaluation.py", tmp_path, "--model", tiny_model_path)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    one = train(tiny_model_path, tmp_path / "one", 1)
    for rank in ranks:
        assert rank["with"]["losses"] == rank["without"]["losses"]
        expected = rank["without"]["parameters"]
        assert all(torch.equal(value, expected[name]) for name, value in rank["with"]["parameters"].items())
        assert without_clock(rank["with"]["logs"]) == without_clock(ranks[0]["with"]["logs"])
        # The policies of the two runs part while they train; before it, they are one.
        assert rank["with"]["before"] == one["before"]
    assert len(one["logs"]) == len(ranks[0]["with"]["logs"]) == 2
