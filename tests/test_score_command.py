"""`trl-prl score`: files in, files with step values out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import build_tokenizer
from tests.verifier_models import build_verifier
from trl_prl.cli import main
from trl_prl.row_files import read_rows
from trl_prl.verifier import ProcessAdvantageVerifier


@pytest.fixture(scope="module")
def verifier_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("verifier")
    build_verifier(build_tokenizer(), step_splitter="newline", max_length=60).save_pretrained(path)
    return str(path)


ROWS: list[dict[str, Any]] = [
    {"prompt": "Add 1.\n", "completion": "First 12.\nSo the answer is 13.", "id": 0},
    {"prompt": [{"role": "user", "content": "Add 2.\n"}], "completion": [{"role": "assistant", "content": "2\n3"}]},
    {"prompt": "Add 3.\n", "completions": ["Then 4", "5.\n"], "labels": [1.0, None]},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def score(verifier_path: str, source: Path, output: Path, *more: str) -> int:
    return main(["score", "--verifier", verifier_path, "--file", str(source), "--output", str(output), *more])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_texts_messages_and_lists_of_steps(verifier_path: str, tmp_path: Path, suffix: str) -> None:
    source, output = write_jsonl(tmp_path / f"in{suffix}", ROWS), tmp_path / f"out{suffix}"
    assert score(verifier_path, source, output) == 0
    found = list(read_rows(output)[0])
    steps = [["First 12.\n", "So the answer is 13."], ["2\n", "3"], ["Then 4", "5.\n"]]
    assert [row.get("steps", row.get("completions")) for row in found] == steps
    verifier = ProcessAdvantageVerifier.from_pretrained(verifier_path)
    initial, values = verifier.score_solutions([row["prompt"] for row in ROWS], steps)
    for row, before, start, expected in zip(found, ROWS, initial, values, strict=True):
        assert before.items() <= row.items()  # nothing of the input is lost
        assert row["initial_value"] == pytest.approx(start, abs=1e-5)
        assert row["step_values"] == pytest.approx(expected, abs=1e-5)
        assert sum(row["step_advantages"]) == pytest.approx(expected[-1] - start, abs=1e-5)


def test_parquet_in_and_out_in_chunks(
    verifier_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet

    monkeypatch.setattr("trl_prl.score.ROWS_PER_CHUNK", 2)
    # The first chunk has no value at all, and must not fix the type of the column.
    prompts = ["Add 1. " * 40, "Add 2. " * 40, "Add 3.\n", "Add 4.\n", "Add 5.\n"]
    table = pyarrow.table({"question": prompts, "answer_text": ["1\n2"] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    columns = ["--prompt-column", "question", "--column", "answer_text"]
    assert score(verifier_path, tmp_path / "in.parquet", output, *columns) == 0
    found = list(read_rows(output)[0])
    assert [row["question"] for row in found] == prompts
    assert found[0]["step_values"] == [None, None]
    assert found[0]["initial_value"] is None
    assert None not in found[2]["step_values"]
    message = " ".join(capsys.readouterr().err.split())
    assert "4 steps lie beyond 60 tokens" in message
    assert "5 solutions, 10 steps" in message


def test_steps_beyond_the_window_are_null_and_the_file_is_json(verifier_path: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Add 1.\n", "completion": "Then we take 12.\n" * 12}])
    assert score(verifier_path, source, tmp_path / "out.jsonl") == 0
    text = (tmp_path / "out.jsonl").read_text()
    assert "NaN" not in text
    [row] = map(json.loads, text.splitlines())
    assert row["step_values"][0] is not None
    assert row["step_values"][-1] is None
    assert len(row["step_values"]) == 12


def test_splitter_and_limit_are_options(verifier_path: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Add 1.\n", "completion": "One. Two. Three."}] * 3)
    assert score(verifier_path, source, tmp_path / "out.jsonl", "--splitter", "sentence", "--limit", "2") == 0
    rows = list(read_rows(tmp_path / "out.jsonl")[0])
    assert [row["steps"] for row in rows] == [["One.", " Two.", " Three."]] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "Row 1 has no 'completion'"),
        ({"completion": "a"}, "Row 1 has no 'prompt'"),
        ({"prompt": "a", "completion": 3}, "Row 1 has 3 in 'completion'"),
        ({"prompt": "a", "completions": ["b", 2]}, "neither a text nor a list of steps"),
    ],
)
def test_bad_rows_are_named(
    verifier_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [ROWS[0], row])
    assert score(verifier_path, source, tmp_path / "out.jsonl") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()  # a file that looks whole would be taken for one


def test_bad_files_are_named(verifier_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    listed = tmp_path / "list.jsonl"
    listed.write_text("[1]\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    good = write_jsonl(tmp_path / "good.jsonl", ROWS)
    for source, output, message in (
        (broken, "out.jsonl", "Line 2 of"),
        (listed, "out.jsonl", "Line 1 of"),
        (empty, "out.jsonl", "has no rows"),
        (tmp_path / "absent.jsonl", "out.jsonl", "No such file"),
        (tmp_path / "absent.parquet", "out.jsonl", "absent.parquet"),
        (good, "out.csv", "Use a name that ends with"),
        (good, "broken.jsonl", "exists, and would be lost"),
    ):
        assert score(verifier_path, source, tmp_path / output) == 2
        assert message in capsys.readouterr().err


def test_output_is_replaced_only_on_request_and_never_the_input(
    verifier_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    output.write_text("old")
    assert score(verifier_path, source, output, "--overwrite") == 0
    assert len(output.read_text().splitlines()) == 3
    assert score(verifier_path, source, source, "--overwrite") == 2
    assert len(source.read_text().splitlines()) == 3
