"""The record of a training run: what trainers write, and what is read after kills and resumed runs."""

from __future__ import annotations

import json
import math
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from tests.trainer_runs import KINDS, eval_logs, make_trainer, run, text_values, train_logs, trainable
from trl_prl.credit.step_tensors import suffix_sums
from trl_prl.report.files import as_text
from trl_prl.report.run_files import RunWriter, append_lines, is_run, read_lines, read_run
from trl_prl.training.callback import ProcessRewardCallback
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.process_grpo_trainer import ProcessGRPOTrainer


# ---- files ----


def recorded_steps(folder: Path) -> tuple[list[int], list[int]]:
    found = read_run(folder)
    return [row["optimizer_step"] for row in found.metrics], [row["optimizer_step"] for row in found.completions]


def write_steps(writer: RunWriter, steps: range, note: str) -> None:
    for step in steps:
        writer.write_metrics("train", step, {"reward": 0.5, "note": note})
        writer.write_completions([{"optimizer_step": step, "split": "train", "steps": [note]}])


def test_resumed_steps_count_once(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.start({"method": "PRL", "seed": 1}, 0, "t0")
    write_steps(writer, range(1, 8), "first")
    RunWriter(tmp_path).start({"method": "PRL", "seed": 1}, 4, "t1")
    write_steps(writer, range(5, 7), "second")
    found = read_run(tmp_path)
    assert recorded_steps(tmp_path) == ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    assert [row["metrics"]["note"] for row in found.metrics] == ["first"] * 4 + ["second"] * 2
    assert found.num_superseded == 6  # three of each file
    assert [start["optimizer_step"] for start in found.manifest["starts"]] == [0, 4]
    assert found.manifest["method"] == "PRL"


def test_a_run_that_begins_anew_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    for note in ("first", "second"):
        writer.start({}, 0, note)
        write_steps(writer, range(1, 3), note)
    assert [row["steps"] for row in read_run(tmp_path).completions] == [["second"], ["second"]]


@pytest.mark.parametrize("text", ["", '{"method": "PR', '{"starts": 3}'])
def test_an_unreadable_manifest_is_named_and_written_anew(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RunWriter(tmp_path)
    writer.start({"method": "PAV"}, 0, "t0")
    assert not caplog.records
    (tmp_path / "process" / "run.json").write_text(text)
    writer.start({"method": "PAV"}, 2, "t1")
    assert [str(tmp_path / "process" / "run.json") in record.message for record in caplog.records] == [True]
    manifest = read_run(tmp_path).manifest
    assert (manifest["method"], [start["time"] for start in manifest["starts"]]) == ("PAV", ["t1"])


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_line_costs_that_line_only(tmp_path: Path, cut: int) -> None:
    writer = RunWriter(tmp_path)
    writer.start({}, 0, "t0")
    write_steps(writer, range(1, 4), "whole")
    path = writer.completions_path
    path.write_bytes(path.read_bytes()[:-cut])  # with 1, only the line break is missing
    expected = [1, 2, 3] if cut == 1 else [1, 2]
    assert recorded_steps(tmp_path)[1] == expected
    write_steps(writer, range(4, 5), "after")
    assert recorded_steps(tmp_path)[1] == [*expected, 4]
    assert read_run(tmp_path).num_unreadable == (0 if cut == 1 else 1)


def test_lines_are_strict_json_whatever_is_in_them(tmp_path: Path) -> None:
    row = {"a": math.nan, "b": [math.inf, 1.5], "c": "\ud83d </script> \u2028 ü", "d": Path("x"), "e": {1: True}}
    append_lines(tmp_path / "x.jsonl", [row, row])
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3
    assert json.loads(lines[0], parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.5],
        "c": "\ud83d </script> \u2028 ü",
        "d": "x",
        "e": {"1": True},
    }
    assert read_lines(tmp_path / "x.jsonl")[1] == 0


def test_secrets_of_the_settings_are_masked(tmp_path: Path) -> None:
    config = {
        "hub_token": "abc",
        "model_init_kwargs": {"token": "def"},
        "url": "http://me:ghi@host/",
        "eos_token": "e",
    }
    RunWriter(tmp_path).start({"method": "PRL", "config": config}, 0, "t0")
    path = tmp_path / "process" / "run.json"
    masked = {"hub_token": "***", "model_init_kwargs": {"token": "***"}, "url": "http://***@host/", "eos_token": "e"}
    assert json.loads(path.read_text())["config"] == masked
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_warns_once_and_costs_only_what_does_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = RunWriter(tmp_path)
    writer.start({}, 0, "now")
    writer.write_completions([{"optimizer_step": 1, "steps": ["a"]}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        for step in (2, 3):
            writer.write_completions([{"optimizer_step": step, "steps": ["x" * 8_000]}])
        writer.write_metrics("train", 3, {"loss": 0.5})
        writer.start({"config": {"text": "x" * 8_000}}, 3, "later")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.getMessage() for record in caplog.records if "cannot be written" in record.message] == [
        f"The record of this run in {writer.folder} cannot be written ([Errno 27] File too large), so reports will "
        "lack a part of it. The training goes on; make room, or see what lies there."
    ]
    writer.write_completions([{"optimizer_step": 4, "steps": ["b"]}])
    found = read_run(tmp_path)
    assert [row["optimizer_step"] for row in found.completions] == [1, 4]
    assert [row["metrics"] for row in found.metrics] == [{"loss": 0.5}]
    assert not list(writer.folder.glob(".tmp-*"))


def test_planted_links_are_neither_written_nor_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"optimizer_step": 1, "split": "train", "metrics": {"private": 1.0}}\n')
    folder = tmp_path / "run" / "process"
    folder.mkdir(parents=True)
    for name in ("metrics.jsonl", "completions-00000.jsonl"):
        (folder / name).symlink_to(other)
    before = other.read_text()
    writer = RunWriter(tmp_path / "run")
    writer.start({}, 0, "now")
    writer.write_metrics("train", 1, {"loss": 0.5})
    assert other.read_text() == before
    assert "cannot be written" in caplog.text
    found = read_run(tmp_path / "run")
    assert (found.metrics, found.completions) == ([], [])


@pytest.mark.parametrize("starts", [7, None, "x"])
def test_edited_records_are_read_as_far_as_they_go(tmp_path: Path, starts: Any) -> None:
    writer = RunWriter(tmp_path)
    writer.start({}, 0, "now")
    manifest = writer.folder / "run.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "starts": starts}))
    writer.start({}, 0, "later")
    assert len(json.loads(manifest.read_text())["starts"]) == 1
    good = {"optimizer_step": 1, "steps": ["a"], "rewards": {"r": 1.0}}
    bad: list[dict[str, Any]] = [{"steps": 5}, {"rewards": [1]}, {"step_rewards": "x"}, {"optimizer_step": "1"}]
    writer.write_completions([good, *({**good, **changes} for changes in bad)])
    with writer.completions_path.open("a") as file:
        file.write("[" * 200_000 + "\n")
    found = read_run(tmp_path)
    assert found.completions == [good]
    assert found.num_unreadable == len(bad) + 1


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    with pytest.raises(ValueError, match="record_run=True"):
        read_run(tmp_path)
    writer = RunWriter(tmp_path)
    writer.start({"version": 99}, 0, "t0")
    with pytest.raises(ValueError, match="format 99"):
        read_run(tmp_path)


def test_messages_become_text() -> None:
    image = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "see"}]}
    assert as_text([{"role": "system", "content": "be short"}, image]) == "system: be short\nuser: [image]see"
    # A data set gives every part all fields.
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "see"}]
    assert as_text([{"role": "user", "content": parts}]) == "user: [image]see"
    assert as_text("plain") == "plain"
    assert as_text(None) == ""


# ---- trainers ----


def assert_rows_match_the_losses(trainer: Any, rows: list[dict[str, Any]]) -> None:
    """Every row has the numbers of the loss that saw its completion."""
    decode = trainer.processing_class.decode
    losses = {}
    for record in trainer.losses:
        for i, ids in enumerate(record["step_ids"]):
            text = decode(record["completion_ids"][i][ids >= 0], skip_special_tokens=True)
            losses.setdefault(text, []).append((record, i))
    for row in rows:
        matches = 0
        for record, i in losses["".join(row["steps"])]:
            ids, advantages = record["step_ids"][i], record["advantages"][i]
            ends = [max(j for j, step in enumerate(ids.tolist()) if step == h) for h in range(len(row["steps"]))]
            same = row["advantages"] == pytest.approx([float(advantages[e]) for e in ends], abs=2e-6)
            if "kl_to_go" in row:
                delta = record["logps"] - record["ref_per_token_logps"]
                to_go = suffix_sums(delta, record["step_ids"] >= 0)[i]
                same = same and row["kl_to_go"] == pytest.approx([float(to_go[e]) for e in ends], abs=2e-6)
            matches += same
        assert matches >= 1
        assert row["num_tokens"] > 0
        assert set(row["rewards"]) == {"token_reward"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"steps_per_generation": 2, "per_device_train_batch_size": 2},
        {"num_iterations": 2, "logging_steps": 2},
    ],
    ids=["plain", "stale", "iterations"],
)
def test_trainers_record_what_the_loss_used(
    kind: str, fields: dict[str, Any], tiny_model_path: str, tmp_path: Path
) -> None:
    trainer = run(make_trainer(kind, tiny_model_path, tmp_path, {}, **fields))
    found = read_run(tmp_path)
    assert found.manifest["method"] == kind.upper()
    assert found.manifest["seed"] == trainer.args.seed
    assert found.manifest["config"]["learning_rate"] == trainer.args.learning_rate
    assert found.manifest["reward_funcs"] == ["token_reward"]
    rows = found.completions
    texts = ["".join(row["steps"]) for row in rows]
    # One rollout of four per log entry; two optimizer steps or two iterations share one.
    assert len(rows) == (4 if fields else 8)
    assert_rows_match_the_losses(trainer, rows)
    outcomes = {round(value, 5) for rollout in trainer.rollouts for value in rollout["outcome_advantages"].tolist()}
    for row, text in zip(rows, texts, strict=True):
        assert round(row["outcome_advantage"], 5) in outcomes
        assert row["rewards"]["token_reward"] is not None
        weight = 1.0  # alpha, and PRL's part is whole
        parts = [row["outcome_advantage"] + weight * value for value in row["step_rewards"]]
        assert row["advantages"] == pytest.approx(parts, abs=1e-5), text
        assert ("kl_to_go" in row) == (kind == "prl")
    logged = {log["step"]: log for log in train_logs(trainer)}
    for metrics in found.metrics:
        if "loss" in metrics["metrics"]:
            assert metrics["metrics"]["loss"] == logged[metrics["optimizer_step"]]["loss"]
            # What a rollout measures is logged once per rollout.
            assert metrics["metrics"].get("process/steps_per_completion", 1.0) > 0


@pytest.mark.parametrize("limit", [0, 3, 16])
def test_the_number_of_completions_is_bounded(limit: int, tiny_model_path: str, tmp_path: Path) -> None:
    arguments = {"eval_dataset": prompt_dataset(3)}
    fields = {"eval_strategy": "steps", "eval_steps": 1, "record_completions": limit}
    trainer = run(make_trainer("pav", tiny_model_path, tmp_path, arguments, **fields))
    assert len(eval_logs(trainer)) == 2
    counts: dict[tuple[str, int], int] = {}
    for row in read_run(tmp_path).completions:
        key = (row["split"], row["optimizer_step"])
        counts[key] = counts.get(key, 0) + 1
    expected = {("train", 1): 4, ("eval", 1): 12, ("train", 2): 4, ("eval", 2): 12}
    assert counts == {key: min(limit, count) for key, count in expected.items() if limit}
    splits = [row["split"] for row in read_run(tmp_path).metrics]
    assert splits.count("eval") == 2
    assert any("reward" in row["metrics"] for row in read_run(tmp_path).metrics if row["split"] == "eval")


def test_recording_changes_nothing_and_can_be_switched_off(tiny_model_path: str, tmp_path: Path) -> None:
    states = []
    for name, recorded in (("on", True), ("off", False)):
        trainer = make_trainer("prl", tiny_model_path, tmp_path / name, {}, record_run=recorded)
        trainer.train()
        states.append((trainable(trainer), torch.get_rng_state()))
    assert is_run(tmp_path / "on")
    assert not (tmp_path / "off" / "process").exists()
    assert all(torch.equal(value, states[1][0][name]) for name, value in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])
    with pytest.raises(ValueError, match="record_completions"):
        make_grpo_args(PRLConfig, tmp_path, record_completions=-1)


def test_a_resumed_run_is_recorded_once(tiny_model_path: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    make_trainer("prl", tiny_model_path, tmp_path, {}, max_steps=3, **settings).train()
    longer = make_trainer("prl", tiny_model_path, tmp_path, {}, max_steps=4, **settings)
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    found = read_run(tmp_path)
    steps = [row["optimizer_step"] for row in found.metrics if "loss" in row["metrics"]]
    assert steps == [1, 2, 3, 4]
    assert [row["optimizer_step"] for row in found.completions] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert found.num_superseded > 0
    assert [start["optimizer_step"] for start in found.manifest["starts"]] == [0, 2]


def test_callback_records_and_leaves_no_trace(tiny_model_path: str, tmp_path: Path) -> None:
    args = make_grpo_args(GRPOConfig, tmp_path)
    trainer = GRPOTrainer(model=tiny_model_path, reward_funcs=token_reward, args=args, train_dataset=prompt_dataset())
    num_callbacks = len(trainer.callback_handler.callbacks)
    trainer.add_callback(
        ProcessRewardCallback(trainer, process_reward=text_values, alpha=2.0, initial_value=0.5, progress_scale="none")
    )
    trainer.train()
    assert len(trainer.callback_handler.callbacks) == num_callbacks + 1
    found = read_run(tmp_path)
    assert found.manifest["method"] == "GRPO + process rewards"
    assert found.manifest["config"]["alpha"] == 2.0
    assert [start["optimizer_step"] for start in found.manifest["starts"]] == [0]
    assert len(found.completions) == 8
    for row in found.completions:
        parts = [row["outcome_advantage"] + 2.0 * value for value in row["step_rewards"]]
        assert row["advantages"] == pytest.approx(parts, abs=1e-5)


def test_truncated_completions_are_recorded_with_their_text(tiny_model_path: str, tmp_path: Path) -> None:
    args = make_grpo_args(GRPOConfig, tmp_path, mask_truncated_completions=True, max_completion_length=4)
    trainer = ProcessGRPOTrainer(
        model=tiny_model_path, reward_funcs=token_reward, args=args, train_dataset=prompt_dataset()
    )
    trainer.train()
    rows = read_run(tmp_path).completions
    cut = [row for row in rows if not row["finished"]]
    assert len(rows) == 8
    assert cut
    for row in cut:
        assert row["steps"] == row["advantages"] == []
        assert row["completion"]
