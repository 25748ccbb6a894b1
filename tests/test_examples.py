"""Each example runs under `accelerate launch`, on a tiny model with real prompts."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prm_models import save_qwen


pytestmark = [pytest.mark.slow, pytest.mark.shared_data]

PROCESS_REWARD = '''
def ends_on_an_even_id(completion_ids, level, **columns):
    """An outcome reward of the user's own."""
    return [0.5 + 0.5 * (ids[-1] % 2 == 0) for ids in completion_ids]


def step_values(prompts, steps, answer, **columns):
    """Longer steps are better: enough to see that scores arrive."""
    return [[min(len(text), 50) / 50 for text in row] for row in steps]
'''

SETTINGS: dict[str, Any] = {
    "prompt_column": "question",
    "use_cpu": True,
    "bf16": False,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "report_to": "none",
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 24,
    "max_steps": 2,
    "logging_steps": 1,
    "log_completions": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1.0e-3,
}


@pytest.fixture
def workdir(tmp_path: Path, shared_data: Path) -> Path:
    """Folder with GSM8K rows in their original columns and a process reward to import."""
    rows = []
    with gzip.open(shared_data / "tasks" / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        for line, _ in zip(file, range(16), strict=False):
            row = json.loads(line)
            rows.append({"question": row["problem"], "answer": f"Some steps.\n#### {row['answer']}", "level": 1})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my_rewards.py").write_text(PROCESS_REWARD)
    return tmp_path


def launch(script: str, workdir: Path, repo_root: Path, settings: dict[str, Any], *arguments: str) -> str:
    config = {**SETTINGS, "dataset_name": str(workdir / "train.jsonl"), "output_dir": str(workdir / "out"), **settings}
    (workdir / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(repo_root / "examples" / script), "--config", "config.yaml", *arguments]
    done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


def training_log(workdir: Path) -> list[dict[str, Any]]:
    state = json.loads((workdir / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "reward" in entry]


@pytest.mark.parametrize("name", ["pav", "prl"])
def test_a_few_completions_are_printed_and_not_those_of_a_whole_batch(name: str, repo_root: Path) -> None:
    settings = yaml.safe_load((repo_root / "examples" / "configs" / f"{name}.yaml").read_text())
    assert not settings["log_completions"] or 0 < settings["num_completions_to_print"] <= 16


def test_train_prl(workdir: Path, repo_root: Path, tiny_model_path: str) -> None:
    launch(
        "train_prl.py", workdir, repo_root, {"beta": 0.1, "step_length": 8}, "--model_name_or_path", tiny_model_path
    )
    log = training_log(workdir)
    assert len(log) == 2
    assert log[0]["process/tokens_per_step"] <= 8
    assert log[0]["process/steps_per_completion"] > 1
    # A random model solves no problem, so no outcome moves it away from the reference, which was therefore loaded.
    assert log[1]["kl"] == log[1]["process/kl_to_go"] == 0.0
    assert (workdir / "out" / "model.safetensors").exists()
    assert "2601.10201" in (workdir / "out" / "README.md").read_text()


def test_train_pav_with_lora(workdir: Path, repo_root: Path, tiny_model_path: str) -> None:
    settings = {"alpha": 3.0, "initial_value": 0.5, "use_peft": True, "lora_r": 4}
    arguments = ("--model_name_or_path", tiny_model_path, "--process_reward", "my_rewards:step_values")
    launch("train_pav.py", workdir, repo_root, settings, *arguments, "--reward", "my_rewards:ends_on_an_even_id")
    log = training_log(workdir)
    assert log[0]["reward"] >= 0.5
    assert log[0]["process/alpha"] == 3.0
    assert log[0]["process/reward/std"] > 0
    assert (workdir / "out" / "adapter_model.safetensors").exists()


def test_wrong_column_is_explained(workdir: Path, repo_root: Path, tiny_model_path: str) -> None:
    with pytest.raises(AssertionError, match="The data set has no column 'problem', only"):
        launch(
            "train_prl.py", workdir, repo_root, {"prompt_column": "problem"}, "--model_name_or_path", tiny_model_path
        )


def test_train_pav_with_a_public_process_reward_model(workdir: Path, repo_root: Path, tiny_model_path: str) -> None:
    """The first run of a newcomer: the name of a model and nothing else, here that of a folder."""
    model = save_qwen(workdir / "Qwen2.5-Math-PRM-7B", max_position_embeddings=4096)
    arguments = ("--model_name_or_path", tiny_model_path, "--process_reward", str(model))
    launch("train_pav.py", workdir, repo_root, {"step_splitter": "blank_line"}, *arguments)
    assert training_log(workdir)[0]["process/reward/std"] > 0
