"""`log_completions`: the table on disk and on the screen has the steps and what each of them earned."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.tiny_models import prompt_dataset
from tests.trainer_runs import KINDS, eval_logs, make_trainer, run


def tables(output_dir: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(path) for path in sorted((output_dir / "completions").glob("*.parquet"))]


def assert_rows_are_whole(table: pd.DataFrame) -> None:
    assert len(table) == 4
    for row in table.to_dict("records"):
        steps, rewards = list(row["steps"]), list(row["step_rewards"])
        assert all(isinstance(text, str) for text in steps)
        assert "".join(steps) == row["completion"]
        assert len(steps) == len(rewards) > 0
        assert all(math.isfinite(reward) for reward in rewards)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "num_tables"),
    [
        ({}, 2),
        ({"steps_per_generation": 2, "logging_steps": 2}, 1),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, 2),
        ({"num_iterations": 2, "logging_steps": 2}, 1),
    ],
    ids=["plain", "stale", "accumulation", "iterations"],
)
def test_parquet_has_steps_and_rewards(
    kind: str, fields: dict[str, Any], num_tables: int, tiny_model_path: str, tmp_path: Path
) -> None:
    if fields.get("steps_per_generation") == 2:
        fields = {**fields, "per_device_train_batch_size": 2}  # so that a rollout stays one group of four
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, {}, log_completions=True, **fields))
    written = tables(tmp_path)
    assert len(written) == num_tables
    for table in written:
        assert_rows_are_whole(table)
        assert table["advantage"].nunique() > 1
    # Each row has the rewards of its own completion: the process part of the advantage at the end of each step.
    last = written[-1]
    by_text = dict(zip(last["completion"], last["step_rewards"], strict=True))
    for record in trainer.losses[-1:]:
        for i, ids in enumerate(record["step_ids"]):
            tokens = record["completion_ids"][i][ids >= 0]
            rewards = by_text[trainer.processing_class.decode(tokens, skip_special_tokens=True)]
            outcome = {round(value, 5) for value in last["advantage"]}
            for step, reward in enumerate(rewards):
                advantages = record["advantages"][i][ids == step]
                assert round(float(advantages[0]) - reward, 5) in outcome


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_in_between_keeps_both_tables_whole(kind: str, tiny_model_path: str, tmp_path: Path) -> None:
    """With two losses per rollout, an evaluation comes after the first and has a table of its own rows."""
    fields: dict[str, Any] = {
        "num_iterations": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "log_completions": True,
    }
    arguments = {"eval_dataset": prompt_dataset(1)}
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, arguments, **fields))
    assert len(eval_logs(trainer)) == 2
    for table in tables(tmp_path):  # an evaluation writes over the table of its optimizer step, as in TRL
        assert_rows_are_whole(table)


@pytest.mark.parametrize("kind", KINDS)
def test_conversational_table_and_tensorboard(
    kind: str, tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    arguments = {"train_dataset": prompt_dataset(conversational=True)}
    trainer = run(
        make_trainer(kind, tiny_model_path, tmp_path, arguments, log_completions=True, report_to="tensorboard")
    )
    for table in tables(tmp_path):
        for row in table.to_dict("records"):
            # Reading a turn back into a message strips it; the steps are the sampled text as it is.
            assert "".join(row["steps"]).strip() == row["completion"][0]["content"].strip()
            assert len(row["steps"]) == len(row["step_rewards"])
    events = event_accumulator.EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/process/reward/std")]
    assert logged == pytest.approx([log["process/reward/std"] for log in trainer.state.log_history if "loss" in log])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_rewards_are_printed(
    kind: str,
    tiny_model_path: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "250")  # on a narrow screen the columns are cut to a few letters
    run(make_trainer(kind, tiny_model_path, tmp_path, {}, log_completions=True, max_steps=1))
    printed = capsys.readouterr().out
    assert "steps" in printed.lower()
    assert "step_rewards" in printed.lower()
    assert "[?]" not in printed
    assert "[+0." in printed or "[-0." in printed


@pytest.mark.slow
def test_tracker_gets_steps_and_rewards(tiny_model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases without a network: the tables it would upload, and the metrics of its history."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))  # read once per process, so both trainers run in one test
    for kind in KINDS:
        run(make_trainer(kind, tiny_model_path, tmp_path / kind, {}, log_completions=True, report_to="wandb"))
        summary = dict(wandb.run.summary)
        wandb.finish()
        assert summary["train/process/steps_per_completion"] > 0
    uploads = sorted(tmp_path.rglob("completions_*.table.json"))
    runs = {upload.relative_to(tmp_path / "wandb").parts[0] for upload in uploads}
    assert len(runs) == len(KINDS)
    for upload in uploads:
        table = json.loads(upload.read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        for row in rows:
            assert "".join(row["steps"]) == row["completion"]
            assert len(row["steps"]) == len(row["step_rewards"]) > 0
