"""`trl-prl export`: siblings whose values differ for certain become preferences that DPO trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tests.benchmarks.arithmetic.task import arithmetic_policy_path
from tests.commands.test_collect_command import options, write_prompts
from trl_prl import __main__ as cli
from trl_prl import load_rows
from trl_prl.collection.preferences import step_preferences


def row(steps: list[str], labels: list[float | None], width: float = 0.1, **fields: Any) -> dict[str, Any]:
    intervals = [
        (0.0, 1.0) if value is None else (max(0.0, value - width), min(1.0, value + width)) for value in labels
    ]
    return {
        "row": 0, "prompt": "1+1+1=", "completions": steps, "labels": labels, "rest": "", "finish_reason": "eos",
        "interval_low": [low for low, _ in intervals], "interval_high": [high for _, high in intervals], **fields,
    }  # fmt: skip


def pairs(rows: list[dict[str, Any]], **arguments: Any) -> list[tuple[str, str, str]]:
    found = step_preferences(rows, str, **arguments)
    return [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in found]


def test_pairs_by_hand() -> None:
    rows = [
        row(["2\n", "3"], [0.8, 1.0]),
        # A branch: the label of its prefix is in the seed's row.
        row(["2\n", "4"], [None, 0.0], branch_at=1),
        # The prompt's other next steps: one surely worse than 0.8, one within the intervals.
        row(["5\n"], [0.2], rest="4"),
        row(["1\n"], [0.65], rest="3"),
        # Another prompt shares no prefix with the first, and has no siblings.
        row(["9\n"], [0.0], row=1, prompt="1+8="),
    ]
    assert pairs(rows) == [("1+1+1=", "2\n", "5\n"), ("1+1+1=2\n", "3", "4")]
    assert pairs(rows, max_pairs=3) == [
        ("1+1+1=", "2\n", "5\n"), ("1+1+1=", "1\n", "5\n"), ("1+1+1=2\n", "3", "4"),
    ]  # fmt: skip
    first, second = step_preferences(rows, str)
    assert (first["chosen_value"], first["rejected_value"], first["step"], first["row"]) == (0.8, 0.2, 0, 0)
    assert (first["chosen_is_end"], first["rejected_is_end"]) == (False, False)
    assert (second["chosen_is_end"], second["rejected_is_end"], second["step"]) == (True, True, 1)


def test_touching_intervals_and_equal_texts_prefer_nothing() -> None:
    assert pairs([row(["a"], [0.25], width=0.25), row(["b"], [0.75], width=0.25)]) == []
    # Cut off after the same text, so that only the end token differs.
    assert pairs([row(["a"], [1.0]), row(["a"], [0.0], finish_reason="length")]) == []


def test_dpo_trains_on_collected_siblings(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, 6)
    assert cli.main(options(tmp_path / "values", prompts, n_branch=2, n_mc=12)) == 0
    output = tmp_path / "preferences.jsonl"
    assert cli.main(["export", "--values", str(tmp_path / "values"), "--output", str(output)]) == 0
    dataset = load_rows(str(output))
    assert len(dataset) >= 4
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    collected = pq.read_table(tmp_path / "values" / "data" / "train.parquet").to_pylist()
    known = {
        (entry["row"], "".join(entry["completions"][:depth]), step): value
        for entry in collected
        for depth, (step, value) in enumerate(zip(entry["completions"], entry["labels"], strict=True))
        if value is not None
    }
    for pair in dataset:
        prefix = pair["prompt"].removeprefix(texts[pair["row"]])
        assert texts[pair["row"]] + prefix == pair["prompt"]
        assert known[pair["row"], prefix, pair["chosen"]] == pair["chosen_value"] > pair["rejected_value"]
        assert known[pair["row"], prefix, pair["rejected"]] == pair["rejected_value"]
    assert any(pair["step"] > 0 for pair in dataset)

    tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
    args = DPOConfig(
        str(tmp_path / "dpo"), max_steps=1, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(arithmetic_policy_path())
    trainer = DPOTrainer(model, args=args, train_dataset=dataset, processing_class=tokenizer)
    # As docs/collection.md has it: TRL ends every text with the end token, also where the solution goes on.
    trainer.train_dataset = trainer.train_dataset.map(without_end)
    ends = {
        name: [ids[-1] == tokenizer.eos_token_id for ids in trainer.train_dataset[f"{name}_ids"]]
        for name in ("chosen", "rejected")
    }
    assert ends == {name: dataset[f"{name}_is_end"] for name in ("chosen", "rejected")}
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert any(not value.equal(before[name]) for name, value in model.named_parameters())


def without_end(row: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}_ids": row[f"{name}_ids"] if row[f"{name}_is_end"] else row[f"{name}_ids"][:-1]
        for name in ("chosen", "rejected")
    }


def write_values(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"trl_prl": json.dumps(settings)})
    path = folder / "train.parquet"
    pq.write_table(table, path)
    return path


def test_messages_become_text_with_the_chat_template(
    tiny_model_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = [{"role": "user", "content": "1+1+1="}]
    rows = [row(["2\n", "3"], [0.8, 1.0], prompt=prompt), row(["2\n", "4"], [0.8, 0.0], prompt=prompt)]
    words = ["export", "--values", str(write_values(tmp_path, rows)), "--output", str(tmp_path / "out.parquet")]
    assert cli.main(words) == 2
    assert "Give the policy's --tokenizer" in capsys.readouterr().err
    assert cli.main([*words, "--tokenizer", tiny_model_path]) == 0
    (pair,) = load_rows(str(tmp_path / "out.parquet"))
    assert pair["prompt"] == "<|start|>user\n1+1+1=<|end|><|start|>assistant\n2\n"
    assert cli.main([*words, "--tokenizer", tiny_model_path]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([row(["a"], [0.5]), row(["b"], [0.5])], {"splitter": "newline"}, "No two siblings"),
        ([row(["a"], [0.5])], None, "does not say how its values were collected"),
    ],
)
def test_what_cannot_be_exported_is_explained(
    rows: list[dict[str, Any]], settings: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_values(tmp_path, rows, **(settings or {}))
    if settings is None:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert cli.main(["export", "--values", str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
