"""`trl-prl score`: files in, files with step values out."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import build_tokenizer
from tests.verifier_models import build_verifier
from trl_prl.__main__ import main
from trl_prl.storage.row_sources import open_rows
from trl_prl.verifier.model import ProcessAdvantageVerifier


@pytest.fixture(scope="module")
def verifier_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("verifier")
    build_verifier(build_tokenizer(), step_splitter="newline", max_length=60).save_pretrained(path)
    return str(path)


ROWS: list[dict[str, Any]] = [
    {"prompt": "Add 1.\n", "completion": "First 12.\nSo the answer is 13.", "id": 0},
    {"prompt": [{"role": "user", "content": "Add 2.\n"}], "completion": [{"role": "assistant", "content": "2\n3"}]},
    # As `trl-prl collect` writes it: the measured value of the prompt is a label, and stays.
    {"prompt": "Add 3.\n", "completions": ["Then 4", "5.\n"], "labels": [1.0, None], "initial_value": 0.25},
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
    found = list(open_rows(output))
    steps = [["First 12.\n", "So the answer is 13."], ["2\n", "3"], ["Then 4", "5.\n"]]
    assert [row.get("steps", row.get("completions")) for row in found] == steps
    verifier = ProcessAdvantageVerifier.from_pretrained(verifier_path)
    initial, values = verifier.score_solutions([row["prompt"] for row in ROWS], steps)
    for row, before, start, expected in zip(found, ROWS, initial, values, strict=True):
        assert before.items() <= row.items()  # nothing of the input is lost
        assert row["scored_initial_value"] == pytest.approx(start, abs=1e-5)
        assert row["step_values"] == pytest.approx(expected, abs=1e-5)
        assert sum(row["step_advantages"]) == pytest.approx(expected[-1] - start, abs=1e-5)


def test_parquet_in_and_out_in_chunks(
    verifier_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet

    monkeypatch.setattr("trl_prl.commands.score.ROWS_PER_CHUNK", 2)
    # The first chunk has no value at all, and must not fix the type of the column.
    prompts = ["Add 1. " * 40, "Add 2. " * 40, "Add 3.\n", "Add 4.\n", "Add 5.\n"]
    table = pyarrow.table({"question": prompts, "answer_text": ["1\n2"] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    columns = ["--prompt-column", "question", "--column", "answer_text"]
    assert score(verifier_path, tmp_path / "in.parquet", output, *columns) == 0
    found = list(open_rows(output))
    assert [row["question"] for row in found] == prompts
    assert found[0]["step_values"] == [None, None]
    assert found[0]["scored_initial_value"] is None
    assert None not in found[2]["step_values"]
    message = " ".join(capsys.readouterr().err.split())
    assert "4 steps lie beyond 60 tokens" in message
    assert "5 solutions, 10 steps" in message


def test_columns_keep_their_values_whatever_the_first_rows_hold(verifier_path: str, tmp_path: Path) -> None:
    first = {"prompt": "Add 1.\n", "completion": "2", "score": 1, "note": None}
    last = {"prompt": "Add 1.\n", "completion": "2", "score": 0.5, "note": "late", "gold": 10**30, "meta": {"a": [1]}}
    source = write_jsonl(tmp_path / "in.jsonl", [first] * 70 + [last])
    assert score(verifier_path, source, tmp_path / "out.parquet") == 0
    found = list(open_rows(tmp_path / "out.parquet"))
    assert last.items() <= found[-1].items()
    assert {**first, "gold": None, "meta": None}.items() <= found[0].items()
    # A folder of the written file is read by every command, and its values are found again.
    assert score(verifier_path, tmp_path / "out.parquet", tmp_path / "again.jsonl") == 0
    assert list(open_rows(tmp_path / "again.jsonl"))[-1]["gold"] == 10**30


def test_columns_that_parquet_cannot_hold_are_named_before_the_scoring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a", "completion": "b", "id": value} for value in [1] * 70 + ["x"]]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    assert score(str(tmp_path / "no verifier"), source, tmp_path / "out.parquet") == 2
    assert "Row 70 of" in (error := capsys.readouterr().err)
    assert "in.jsonl' has 'x' in the column 'id'" in error
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_steps_beyond_the_window_are_null_and_the_file_is_json(verifier_path: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Add 1.\n", "completion": "Then we take 12.\n" * 12}])
    assert score(verifier_path, source, tmp_path / "out.jsonl") == 0
    text = (tmp_path / "out.jsonl").read_text()
    assert "NaN" not in text
    [row] = map(json.loads, text.splitlines())
    assert row["step_values"][0] is not None
    assert row["step_values"][-1] is None
    assert len(row["step_values"]) == 12


def silent(prompts: list[Any], steps: list[list[str]], **columns: Any) -> list[list[float | None]]:
    return [[None] * len(row) for row in steps]


def test_a_file_without_a_score_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    assert score("tests.commands.test_score_command:silent", source, tmp_path / "out.jsonl") == 0
    assert "6 steps have no value, as the process reward gave None or NaN" in capsys.readouterr().err


def test_splitter_and_limit_are_options(verifier_path: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Add 1.\n", "completion": "One. Two. Three."}] * 3)
    assert score(verifier_path, source, tmp_path / "out.jsonl", "--splitter", "sentence", "--max_rows", "2") == 0
    rows = list(open_rows(tmp_path / "out.jsonl"))
    assert [row["steps"] for row in rows] == [["One.", " Two.", " Three."]] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "in.jsonl' has no 'completion'"),
        ({"completion": "a"}, "in.jsonl' has no 'prompt'"),
        ({"prompt": "a", "completion": 3}, "in.jsonl' has a 'completion' that is 3, which is no list of steps"),
        ({"prompt": "a", "completions": ["b", 2], "labels": [1, 1]}, "has a 'completions' that has 2 as entry 1"),
        ({"prompt": "a", "completions": [["b"]], "labels": [1]}, "has a 'completions' that has ['b'] as entry 0"),
        ({"prompt": "a", "completions": ["b", "c"]}, "several whole solutions. Give --column completions for steps"),
        ({"prompt": 3, "completion": "b"}, "has a prompt that is 3"),
        ({"prompt": "a", "completion": "b\ud800"}, "has a 'completion' that holds '\\ud800' at character 1"),
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
        (tmp_path / "absent.jsonl", "out.jsonl", "is not here"),
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


def test_two_processes_do_not_write_one_output(
    verifier_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write_jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from trl_prl.storage.files import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as file: print('begun', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "begun\n"
    assert score(verifier_path, source, output) == 2
    assert "Another process is writing" in capsys.readouterr().err
    other.kill()
    other.wait()
    assert score(verifier_path, source, output) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}
    # A file that appeared meanwhile stays.
    assert score(verifier_path, source, output) == 2
    assert "exists, and would be lost" in capsys.readouterr().err


def test_processes_of_a_launcher_are_refused(
    verifier_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    assert score(verifier_path, source, tmp_path / "out.jsonl") == 2
    assert "A launcher has started 2 processes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_options_may_come_from_a_file(verifier_path: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "score.yaml").write_text(f"verifier: {verifier_path}\nfile: {source}\nmax_rows: 1\n")
    assert main(["score", "--config", str(tmp_path / "score.yaml"), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


def test_steps_that_another_splitter_cut_are_named(
    verifier_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The verifier knows lines; the collected rows say what cut them."""
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["Add 3.\n"], "completions": [["Then 4.", " 5.\n"]], "labels": [[1.0, 0.5]]})
    for splitter, warns in (("newline", False), ("sentence", True)):
        source = tmp_path / f"{splitter}.parquet"
        made = json.dumps({"splitter": splitter, "step_length": 256})
        pyarrow.parquet.write_table(table.replace_schema_metadata({"trl_prl": made}), source)
        caplog.clear()
        assert score(verifier_path, source, tmp_path / f"{splitter}.jsonl") == 0
        assert ("was trained on steps cut by `step_splitter='newline'`" in caplog.text) == warns
