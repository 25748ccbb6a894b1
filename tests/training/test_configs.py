"""The configs: what a command line and a YAML file can say, what is refused, and the schedule of alpha."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig, TrlParser

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from tests.trainer_runs import text_values, train_logs
from trl_prl.collection.config import CollectConfig
from trl_prl.training.pav_config import PAVArguments, PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer
from trl_prl.verifier.settings import VerifierSettings


CPU = {"use_cpu": True, "bf16": False}


# ---- fields and command line ----


@pytest.mark.parametrize("config_class", [PRLConfig, PAVConfig])
def test_every_field_has_help(config_class: type) -> None:
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(GRPOConfig)}
    assert len(own) >= 7
    assert all(field.metadata["help"] for field in fields(config_class) if field.name in own)


def test_defaults_are_the_papers() -> None:
    prl = PRLConfig("out", **CPU)
    assert (prl.beta, prl.step_level, prl.step_splitter, prl.step_length) == (1 / 200, "step", "fixed", 256)
    assert (prl.kl_estimator, prl.kl_direction, prl.kl_inclusive, prl.logps_source) == (
        "k1",
        "reverse",
        True,
        "current",
    )
    pav = PAVConfig("out", **CPU)
    assert (pav.alpha, pav.alpha_schedule, pav.best_of_k, pav.step_splitter) == (0.5, "constant", 1, "newline")
    assert (pav.progress_scale, pav.process_baseline, pav.credit) == ("outcome", "none", "progress")
    assert (pav.equal_outcomes, pav.unscorable_outcomes, prl.unscorable_outcomes) == ("process",) * 3
    assert (prl.kl_placement, prl.process_baseline) == ("advantage", "none")
    assert (pav.process_reward_type, pav.initial_value, pav.step_advantage_clip) == (None, None, None)
    stock = GRPOConfig("out", **CPU)
    changed = {f.name for f in fields(stock) if getattr(stock, f.name) != getattr(pav, f.name)}
    assert changed <= {"logging_dir"}


@pytest.mark.parametrize(
    ("config_class", "yaml", "arguments", "expected"),
    [
        (
            PRLConfig,
            "beta: 0.01\nstep_level: token\nkl_inclusive: false\nlogps_source: rollout\n",
            ["--kl_estimator", "k3", "--step_splitter", "delimiter:\\n\\n", "--beta", "0.02"],
            {
                "beta": 0.02,  # the command line wins
                "step_level": "token",
                "kl_inclusive": False,
                "logps_source": "rollout",
                "kl_estimator": "k3",
                "kl_direction": "reverse",
                "step_splitter": "delimiter:\\n\\n",
            },
        ),
        (
            PAVConfig,
            "alpha: 3.0\nalpha_schedule: cosine\nbest_of_k: 4\nprocess_reward_type: values\n",
            ["--initial_value", "0.25", "--alpha_warmup_ratio", "0.1", "--step_advantage_clip", "0.5"],
            {
                "alpha": 3.0,
                "alpha_schedule": "cosine",
                "alpha_final": 0.0,
                "alpha_warmup_ratio": 0.1,
                "best_of_k": 4,
                "process_reward_type": "values",
                "initial_value": 0.25,
                "step_advantage_clip": 0.5,
            },
        ),
    ],
    ids=["prl", "pav"],
)
def test_yaml_and_command_line(
    config_class: type, yaml: str, arguments: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml + "bf16: false\nlearning_rate: 1.0e-5\n")
    parser = TrlParser(config_class)
    command = ["--config", str(config), "--output_dir", str(tmp_path), "--use_cpu", *arguments]
    (args,) = parser.parse_args_and_config(command)
    assert type(args) is config_class
    assert args.learning_rate == 1e-5
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("config_class", [PRLConfig, PAVConfig])
def test_a_config_survives_its_dictionary(config_class: type, tmp_path: Path) -> None:
    """Trackers and checkpoints store configurations as dictionaries."""
    args = make_grpo_args(config_class, tmp_path, step_splitter="regex:x+")
    stored = args.to_dict()
    own = {field.name for field in fields(config_class)} - {field.name for field in fields(GRPOConfig)}
    assert {name: stored[name] for name in own} == {name: getattr(args, name) for name in own}


# ---- refusals: what was given, why it cannot work, what to do ----


@pytest.mark.parametrize(
    ("config_class", "setting", "why", "advice"),
    [
        (PRLConfig, {"beta": -0.1}, "drifting away", "Set `beta` to 0.0"),
        (PRLConfig, {"beta": math.nan}, "non-finite", "Set `beta` to 0.0"),
        (PRLConfig, {"step_level": "word"}, "There is no such variant", "'step', 'step_end', 'token'"),
        (PRLConfig, {"kl_estimator": "k2"}, "There is no such variant", "'k1', 'k3'"),
        (PRLConfig, {"kl_direction": "back"}, "There is no such variant", "'reverse', 'forward'"),
        (PRLConfig, {"logps_source": "old"}, "There is no such variant", "'current', 'rollout'"),
        (PAVConfig, {"alpha": -1.0}, "punish progress", "Set it to 0.0"),
        (PAVConfig, {"alpha": math.inf}, "non-finite", "Set it to 0.0"),
        (PAVConfig, {"alpha": math.nan}, "non-finite", "Set it to 0.0"),
        (PAVConfig, {"alpha_final": -1.0}, "punish progress", "Set it to 0.0"),
        (PAVConfig, {"alpha_final": 0.5}, "alpha_schedule='constant'`, where nothing would heed it", "Leave"),
        (PAVConfig, {"clip_eta": 0.5}, "credit='progress'`, where nothing would heed it", "Leave `clip_eta` out"),
        (PAVConfig, {"credit": "clip_delta", "clip_eta": math.nan}, "no score finite", "mean score of the group"),
        (PRLConfig, {"kl_placement": "loss", "kl_estimator": "k3"}, "nothing would heed it", "change `kl_placement`"),
        (PRLConfig, {"kl_placement": "loss", "process_baseline": "group"}, "nothing would heed it", "Leave"),
        (PRLConfig, {"kl_placement": "loss", "unscorable_outcomes": "skip"}, "nothing would heed it", "Leave"),
        (PRLConfig, {"kl_placement": "reward", "kl_inclusive": False}, "nothing would heed it", "Leave"),
        (PRLConfig, {"kl_placement": "reward", "unscorable_outcomes": "skip"}, "nothing would heed it", "Leave"),
        (PAVConfig, {"alpha_schedule": "step"}, "There is no such variant", "'constant', 'linear', 'cosine'"),
        (PAVConfig, {"alpha_warmup_ratio": 1.5}, "share of the training run", "between 0.0 and 1.0"),
        (PAVConfig, {"process_reward_type": "rewards"}, "There is no such variant", "'values', 'advantages'"),
        (PAVConfig, {"best_of_k": 0}, "at least one sample", "Set it to 1"),
        (PAVConfig, {"initial_value": 1.5}, "probability", "between 0.0 and 1.0"),
        (PAVConfig, {"step_advantage_clip": 0.0}, "leaves nothing", "positive number"),
        (PAVConfig, {"step_advantage_clip": math.nan}, "leaves nothing", "positive number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused(config_class: type, setting: dict[str, Any], why: str, advice: str) -> None:
    name, value = list(setting.items())[-1]
    with pytest.raises(ValueError, match=f"`{name}` (is|was set to) {value!r}") as error:
        config_class("out", **CPU, **setting)
    assert why in str(error.value)
    assert advice in str(error.value)


@pytest.mark.parametrize(
    ("fields_", "message"),
    [
        ({"step_splitter": "paragraphs"}, "no splitter has that name"),
        ({"step_splitter": "fixed", "step_length": 0}, "0"),
    ],
)
def test_bad_splitters_are_refused_at_construction(
    fields_: dict[str, Any], message: str, tiny_model_path: str, tmp_path: Path
) -> None:
    args = make_grpo_args(PRLConfig, tmp_path, **fields_)
    with pytest.raises(ValueError, match=message):
        PRLTrainer(tiny_model_path, token_reward, args, prompt_dataset())


# ---- alpha over the run, hand-worked ----


@pytest.mark.parametrize(
    ("arguments", "max_steps", "expected"),
    [
        ({}, 4, [2.0] * 6),
        ({"alpha_schedule": "linear"}, 4, [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
        ({"alpha_schedule": "linear", "alpha_final": 4.0}, 4, [2.0, 2.5, 3.0, 3.5, 4.0, 4.0]),
        # (1 - cos(pi * x)) / 2 at 0, 1/4, 1/2, 3/4, 1
        ({"alpha_schedule": "cosine"}, 4, [2.0, 1.0 + math.sqrt(0.5), 1.0, 1.0 - math.sqrt(0.5), 0.0, 0.0]),
        ({"alpha_warmup_ratio": 0.5}, 4, [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
        ({"alpha_warmup_ratio": 0.3}, 4, [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]),  # 1.2 optimizer steps are 2
        ({"alpha_warmup_ratio": 0.5, "alpha_schedule": "linear"}, 4, [0.0, 1.0, 2.0, 1.0, 0.0, 0.0]),
        ({"alpha_warmup_ratio": 1.0, "alpha_schedule": "linear"}, 2, [0.0, 1.0, 2.0, 0.0]),
        ({"alpha_schedule": "linear"}, 0, [2.0, 0.0]),  # an evaluation before any training
    ],
)
def test_alpha_at(arguments: dict[str, Any], max_steps: int, expected: list[float]) -> None:
    schedule = PAVArguments(alpha=2.0, **arguments)
    assert [schedule.alpha_at(step, max_steps) for step in range(len(expected))] == pytest.approx(expected)


def test_alpha_follows_the_optimizer_steps(tiny_model_path: str, tmp_path: Path) -> None:
    fields_: dict[str, Any] = {"alpha": 2.0, "alpha_schedule": "linear", "initial_value": 0.5, "max_steps": 4}
    args = make_grpo_args(PAVConfig, tmp_path, gradient_accumulation_steps=2, **fields_)
    trainer = PAVTrainer(tiny_model_path, token_reward, args, prompt_dataset(), process_reward=text_values)
    trainer.train()
    assert [log["process/alpha"] for log in train_logs(trainer)] == pytest.approx([2.0, 1.5, 1.0, 0.5])


# ---- a script that only swaps the trainer class ----


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("trl_prl"))


def test_grpo_config_for_prl(tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = make_grpo_args(GRPOConfig, tmp_path, learning_rate=3e-4)
    assert args.beta == 0.0
    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trainer = PRLTrainer(tiny_model_path, token_reward, args, prompt_dataset())
    assert "step_length=256" in warnings_of(caplog)
    assert "`beta` is 0.0 in the GRPOConfig" in warnings_of(caplog)
    assert type(trainer.args) is PRLConfig
    assert (trainer.args.beta, trainer.beta, trainer.args.learning_rate) == (0.005, 0.005, 3e-4)
    assert trainer.ref_model is not None
    assert (type(args), args.beta) == (GRPOConfig, 0.0)
    trainer.train()
    assert all("process/kl_to_go" in log for log in train_logs(trainer))


def test_grpo_config_with_beta_for_prl(tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = make_grpo_args(GRPOConfig, tmp_path, beta=0.04)
    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trainer = PRLTrainer(tiny_model_path, token_reward, args, prompt_dataset())
    assert trainer.beta == 0.04
    assert "`beta` is 0.0" not in warnings_of(caplog)


def test_grpo_config_for_pav(tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def progress(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float]]:
        return text_values(prompts, steps)

    progress.returns = "advantages"  # type: ignore[attr-defined]
    args = make_grpo_args(GRPOConfig, tmp_path)
    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trainer = PAVTrainer(tiny_model_path, token_reward, args, prompt_dataset(), process_reward=progress)
    assert "alpha=0.5" in warnings_of(caplog)
    assert type(trainer.args) is PAVConfig
    assert type(args) is GRPOConfig
    trainer.train()
    assert [log["process/alpha"] for log in train_logs(trainer)] == [0.5, 0.5]


def test_own_configs_give_no_warning(tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = make_grpo_args(PRLConfig, tmp_path, beta=0.0, step_length=4)
    with caplog.at_level(logging.WARNING, logger="trl_prl"):
        trainer = PRLTrainer(tiny_model_path, token_reward, args, prompt_dataset())
    assert trainer.args is args
    assert (trainer.beta, trainer.ref_model) == (0.0, None)
    assert warnings_of(caplog) == ""


def test_other_arguments_are_refused(tiny_model_path: str, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    for args in (TrainingArguments(str(tmp_path), **CPU), {"beta": 0.1}):
        with pytest.raises(TypeError, match=r"has no GRPO settings. Pass a `PRLConfig`"):
            PRLTrainer(tiny_model_path, token_reward, args, prompt_dataset())  # type: ignore[arg-type]


def test_configuration_of_another_trainer_is_refused(tiny_model_path: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`args` is a PRLConfig, the configuration of another trainer"):
        PAVTrainer(
            tiny_model_path,
            token_reward,
            PRLConfig(str(tmp_path), **CPU),
            prompt_dataset(),
            process_reward=lambda prompts, steps, **columns: [[0.5] * len(row) for row in steps],
        )


def test_mistakes_are_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    """The folder does not exist: whatever is reported first was checked before loading."""
    missing = str(tmp_path / "no-such-model")
    with pytest.raises(ValueError, match="no splitter has that name"):
        PRLTrainer(
            missing, token_reward, PRLConfig(str(tmp_path), step_splitter="paragraphs", **CPU), prompt_dataset()
        )
    with pytest.raises(TypeError, match="cannot score steps"):
        PAVTrainer(missing, token_reward, PAVConfig(str(tmp_path), **CPU), prompt_dataset(), process_reward=3)


def test_steps_as_long_as_completions_are_warned_of(
    tiny_model_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PRLTrainer(tiny_model_path, token_reward, make_grpo_args(PRLConfig, tmp_path, beta=0.0), prompt_dataset())
    assert "`step_length=256` is not below `max_completion_length=12`" in caplog.text
    caplog.clear()
    args = make_grpo_args(PRLConfig, tmp_path, beta=0.0, step_length=4)
    PRLTrainer(tiny_model_path, token_reward, args, prompt_dataset())
    assert "is not below" not in caplog.text


def test_all_stages_cut_steps_alike_by_default(repo_root: Path) -> None:
    """Values of prefixes that end elsewhere than those a verifier learned are guesses."""
    import yaml

    collected = re.findall(r"^splitter: (\w+)", (repo_root / "docs" / "collection.md").read_text(), re.MULTILINE)
    configs = [
        yaml.safe_load((repo_root / "examples" / "configs" / f"{name}.yaml").read_text())["step_splitter"]
        for name in ("verifier", "pav")
    ]
    defaults = [PAVArguments().step_splitter, VerifierSettings().step_splitter, CollectConfig.splitter]
    assert {*collected, *configs, *defaults} == {"newline"}
