"""The reward-hacking radar: silent while a policy learns, and heard when it games a process reward."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import make_grpo_args
from tests.trainer_runs import make_trainer, train_logs
from trl_prl.demo.planted import PlantedProcessReward, planted_reward
from trl_prl.demo.planted_policy import build_base_policy, build_planted_tokenizer, planted_dataset
from trl_prl.training.hacking_radar import HackingRadar, change
from trl_prl.training.metrics import count_repeated_steps
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer


HEALTHY = {
    "reward": 0.4,
    "process/reward/mean": 0.1,
    "process/outcome_correlation": 0.6,
    "process/steps_per_completion": 5.0,
    "process/repeated_steps": 0.05,
}


def history(num_entries: int = 40, noise: float = 0.05, **late: float) -> list[dict[str, Any]]:
    """Log entries around healthy levels, whose second half moves some metrics to other ones."""
    generator = random.Random(0)
    entries = []
    for index in range(num_entries):
        levels = {**HEALTHY, **({} if index < num_entries // 2 else late)}
        entry = {name: level * (1 + noise * generator.gauss(0, 1)) for name, level in levels.items()}
        entries.append({"step": index + 1, **entry})
    return entries


def say(entries: Sequence[dict[str, Any]], window: int = 10) -> list[str]:
    """What the radar says as the entries are logged one by one."""
    radar, log = HackingRadar(window), []
    return [message for entry in entries for message in (log.append(entry), radar.look(log))[1]]


def test_change_by_hand() -> None:
    found = change([1.0, 3.0], [4.0, 4.0])
    assert found == (2.0, 4.0, 1.0)  # variance 2 over 2 entries, and none
    assert found.rise == 2.0


# ---- what it says ----


@pytest.mark.parametrize(
    ("late", "part"),
    [
        ({"process/outcome_correlation": 0.1}, r"process/outcome_correlation fell from 0\.[56]"),
        ({"process/outcome_correlation": -0.3}, r"process/outcome_correlation is -0\."),
        ({"process/steps_per_completion": 15.0}, r"process/steps_per_completion grew from (4\.9|5)"),
        ({"process/repeated_steps": 0.5}, r"process/repeated_steps rose from 0\.0[45]"),
        ({"reward": 0.2, "process/reward/mean": 0.3}, r"the outcome reward fell from 0\.4"),
    ],
)
def test_each_cause_is_named_once_with_numbers_and_a_remedy(late: dict[str, float], part: str) -> None:
    messages = say(history(**late))
    (message,) = [message for message in messages if re.search(part, message)]
    assert message.startswith("Optimizer step ")
    assert "lower `alpha`" in message
    assert len(messages) == len(set(messages))


@pytest.mark.parametrize(
    "late",
    [
        {},
        {"process/outcome_correlation": 0.5},
        {"process/steps_per_completion": 8.0},
        {"process/repeated_steps": 0.12},
        {"reward": 0.2},  # worse, but the process reward says so too
        {"process/reward/mean": 0.3},  # more process reward, and the outcome as good as before
        # A policy that learns may write more steps, repeat some, and leave little for a correlation to find.
        {"reward": 0.9, "process/steps_per_completion": 15.0},
        {"reward": 0.9, "process/repeated_steps": 0.5},
        {"reward": 0.9, "process/outcome_correlation": 0.1},
    ],
)
def test_what_is_healthy_is_not_reported(late: dict[str, float]) -> None:
    assert say(history(**late)) == []


def test_noise_alone_is_not_reported() -> None:
    """Metrics of small batches vary a lot; 2,000 entries of white noise are a long run."""
    assert say(history(num_entries=2000, noise=0.6)) == []


def test_the_outcome_is_compared_with_its_best_not_with_its_first() -> None:
    levels = [(0.2, 0.1), (0.7, 0.2), (0.5, 0.4)]
    start, best, hacked = (history(20, reward=level, **{"process/reward/mean": more}) for level, more in levels)
    messages = say([*start[10:], *best[10:], *hacked[10:], *hacked[10:]])
    assert any("the outcome reward fell from 0.7" in message and "its best mean" in message for message in messages)


def test_entries_without_metrics_are_left_out() -> None:
    """Losses without a rollout, evaluations, a correlation of equal outcomes, which is logged as `None`."""
    entries: list[dict[str, Any]] = []
    for entry in history(**{"process/outcome_correlation": 0.1}):
        entries += [{"step": 1, "loss": 0.0}, {"eval_reward": 0.1}, {**entry, "process/outcome_correlation": None}]
        entries += [{"process/outcome_correlation": entry["process/outcome_correlation"]}, {"process/kl": math.nan}]
    assert [message for message in say(entries) if "process/outcome_correlation fell" in message]
    assert say([entry for entry in entries if "reward" not in entry]) == []  # it cannot tell whether the outcome rose


def test_the_outcome_of_a_run_that_pays_none(tiny_model_path: str, tmp_path: Path) -> None:
    """With weights of 0 `reward` never rises, so that a policy that learns to write more would be called a gamer."""
    entries = history(reward=0.9, **{"process/steps_per_completion": 15.0})
    unpaid = [{**entry, "reward": 0.0, "rewards/f/mean": entry["reward"]} for entry in entries]
    assert HackingRadar(10).look(unpaid)
    assert HackingRadar(10, outcome="rewards/f/mean").look(unpaid) == []
    for weight, metric in ((0.0, "rewards/token_reward/mean"), (1.0, "reward")):
        trainer = make_trainer("pav", tiny_model_path, tmp_path, {}, reward_weights=[weight])
        assert trainer.hacking_radar.outcome == metric


def test_windows_are_of_the_same_entries() -> None:
    """An outcome without a process reward, as of an unscorable batch, does not shift the one against the other."""
    entries = history(reward=0.2, **{"process/reward/mean": 0.3})
    gaps = [{**entry, "process/reward/mean": math.nan, "reward": 99.0} for entry in entries[:10]]
    assert say([*gaps, *entries]) == say(entries)


@pytest.mark.parametrize("num", [0, 1, 19])
def test_silent_until_two_windows_are_full(num: int) -> None:
    assert say(history(**{"reward": 0.0, "process/outcome_correlation": -1.0})[20 - num // 2 :][:num]) == []


def test_another_history_is_read_from_its_start() -> None:
    radar = HackingRadar(10)
    entries = history(**{"process/outcome_correlation": -0.3})
    assert radar.look(entries)
    assert radar.look(entries) == []
    assert radar.look(list(entries))  # a checkpoint's, or that of a second training: it may say so again
    entries.clear()


def calibration(value: float, outcome: float, num: int) -> dict[str, float]:
    names = {"mean_value": value, "mean_outcome": outcome, "num_solutions": num, "brier": 0.3}
    return {f"process/calibration/{name}": number for name, number in names.items()}


@pytest.mark.parametrize(
    ("entry", "speaks"),
    [
        (calibration(0.9, 0.5, 200), True),
        (calibration(0.9, 0.5, 4), False),  # four solutions may be bad luck
        (calibration(0.6, 0.5, 100000), False),
        (calibration(0.3, 0.9, 200), False),  # a pessimist cannot be gamed this way
    ],
)
def test_overrated_solutions(entry: dict[str, float], speaks: bool) -> None:
    messages = HackingRadar(10).look([entry])
    assert len(messages) == speaks
    assert not speaks or "only 0.5 of them are right" in messages[0]


# ---- repeated steps ----


def test_repeated_steps_by_hand() -> None:
    rows = [["So x = 1.\n", "so  x = 1.", "So x = 2.\n", "SO X = 1."], ["So x = 1.\n"], []]
    assert count_repeated_steps(rows) == 2  # the second and the fourth; another completion's steps do not count
    assert count_repeated_steps([]) == 0


def test_repeated_steps_are_logged(tiny_model_path: str, tmp_path: Path) -> None:
    for kind in ("prl", "pav"):
        trainer = make_trainer(kind, tiny_model_path, tmp_path / kind, {}, step_splitter="fixed", step_length=1)
        trainer.train()
        for log, rollout in zip(train_logs(trainer), trainer.rollouts, strict=True):
            steps = rollout["steps"]
            expected = sum(text.split() in [t.split() for t in row[:i]] for row in steps for i, text in enumerate(row))
            assert log["process/repeated_steps"] == pytest.approx(expected / sum(map(len, steps)), abs=0.05)


# ---- in training ----


def repetition_reward(prompts: Any, steps: list[list[str]], **columns: Any) -> list[list[float]]:
    """A process reward that can be gamed: it likes what it has seen before."""
    return [[float(text in row[:index]) for index, text in enumerate(row)] for row in steps]


def variety_reward(completions: list[str], **columns: Any) -> list[float]:
    """Share of the ten places that hold a letter not used before."""
    return [len(set(text)) / 10 for text in completions]


@pytest.fixture(scope="module")
def policy() -> Any:
    """The base policy of the planted task."""
    return build_base_policy(0)


def planted_run(
    policy: Any, output_dir: Path, reward: Any, process_reward: Any, resume_from: Path | None = None, **overrides: Any
) -> PAVTrainer:
    """Train on sequences of up to ten letters, one step each."""
    fields = {
        "per_device_train_batch_size": 32,
        "num_generations": 32,
        "max_completion_length": 10,
        "max_steps": 24,
        "learning_rate": 2e-3,
        "step_splitter": "fixed",
        "step_length": 1,
        "alpha": 1.0,
        "radar_window": 5,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        **overrides,
    }
    args = make_grpo_args(PAVConfig, output_dir, **fields)
    trainer = PAVTrainer(
        copy.deepcopy(policy),
        reward,
        args,
        planted_dataset(64),
        processing_class=build_planted_tokenizer(),
        process_reward=process_reward,
    )
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    return trainer


def radar_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the radar has said since it was asked last."""
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return [message for message in messages if "Reward-hacking radar" in message]


@pytest.mark.slow
def test_a_gamed_process_reward_is_heard(policy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = {"process_reward_type": "advantages", "save_strategy": "steps", "save_steps": 15}
    trainer = planted_run(policy, tmp_path, variety_reward, repetition_reward, **fields)
    logs = train_logs(trainer)
    assert logs[-1]["process/repeated_steps"] > logs[0]["process/repeated_steps"] + 0.1  # it was gamed
    messages = radar_messages(caplog)
    for part in ("process/outcome_correlation is -", "process/repeated_steps rose", "the outcome reward fell"):
        assert sum(part in message for message in messages) == 1, part
    # Resumed, it still knows what was normal at the start, and says again what it said before the checkpoint.
    resume_from = tmp_path / "checkpoint-15"
    planted_run(policy, tmp_path, variety_reward, repetition_reward, resume_from, **fields)
    assert radar_messages(caplog) == messages


@pytest.mark.slow
def test_a_healthy_run_is_silent(policy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # With this seed the solution is found early, whatever numbers a release of torch draws.
    trainer = planted_run(policy, tmp_path, planted_reward, PlantedProcessReward(10.0), seed=1)
    logs = train_logs(trainer)
    assert logs[-1]["reward"] > logs[0]["reward"] + 0.2  # it learned
    assert logs[-1]["process/repeated_steps"] > logs[0]["process/repeated_steps"] + 0.1  # the planted run has one
    assert radar_messages(caplog) == []
