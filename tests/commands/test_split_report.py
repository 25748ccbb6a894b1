"""The report on a file of completions: counts by hand, formats, errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console

from tests.tokenizers_for_tests import byte_level_tokenizer, character_tokenizer, sentencepiece_bpe_tokenizer
from trl_prl.commands.split_report import Options, read_completions, render, run
from trl_prl.jobs.arguments import parse_options
from trl_prl.steps.report import split_report
from trl_prl.steps.split import get_splitter


ROWS = [
    {"completion": "First we add.\n\nThen we get 42.\n\n", "n": 1},
    {"completion": "\n\nDone!", "n": 2},
    {"completion": None, "n": 3},
    {"completion": "Code:\n\n```\na\n\n\nb\n```\n\nDone!", "n": 4},
]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n", encoding="utf-8")
    return path


def _run(*options: str) -> int:
    return run(parse_options(Options, options))


def test_counts_by_hand() -> None:
    texts = [row["completion"] for row in ROWS]
    report = split_report(texts, get_splitter("blank_line"), character_tokenizer())
    assert (report.num_completions, report.num_skipped, report.num_steps, report.num_single_step) == (3, 1, 7, 1)
    assert report.num_tokens == sum(len(text) for text in texts if text)
    assert report.steps_per_completion == {"mean": 7 / 3, "median": 2.0, "p95": pytest.approx(3.8), "max": 4.0}
    # Lengths 15, 17 | 7 | 7, 8, 7, 5
    assert report.histogram == [(4, 7, 4), (8, 15, 2), (16, 31, 1)]
    assert report.longest_step == {"row": 0, "step": 1, "tokens": 17, "text": "Then we get 42.\n\n"}
    assert report.delimiter is not None
    assert report.delimiter.num_occurrences == 6
    assert report.delimiter.num_ended_step == 5
    assert report.delimiter.num_protected == 0
    assert report.delimiter.num_merged == 1


def test_protected_occurrences_are_counted() -> None:
    report = split_report([ROWS[3]["completion"]], get_splitter("markdown"), byte_level_tokenizer()).delimiter
    assert report is not None
    assert (report.num_occurrences, report.num_ended_step, report.num_protected, report.num_merged) == (3, 2, 1, 0)


def test_merged_delimiters_are_missed_by_id() -> None:
    texts = ["Then we get 42.\n\nDone!\n\n\nhello\n\nhello"]
    report = split_report(texts, get_splitter("blank_line"), byte_level_tokenizer()).delimiter
    assert report is not None
    assert report.naive_token == "ĊĊ"
    assert ".\n\n" in report.tokens
    assert report.num_missed_by_id == report.num_occurrences - report.tokens["\n\n"]
    assert report.num_occurrences == report.num_ended_step == 3
    llama = split_report(texts, get_splitter("blank_line"), sentencepiece_bpe_tokenizer()).delimiter
    assert llama is not None
    assert llama.num_occurrences == 3
    # `encode` puts a space before the delimiter: its first id is that space.
    assert llama.naive_token == "▁"
    assert llama.num_missed_by_id == 3


def test_sampled_ids_are_taken_as_they_are() -> None:
    tokenizer = byte_level_tokenizer()
    characters = [*tokenizer.convert_tokens_to_ids(["a", "Ċ", "Ċ", "b"]), tokenizer.eos_token_id]
    report = split_report([characters], get_splitter("blank_line"), tokenizer)
    assert (report.num_steps, report.num_tokens) == (2, 5)
    assert report.delimiter is not None
    assert report.delimiter.num_missed_by_id == 1
    trailing = [*tokenizer.convert_tokens_to_ids(["a", "Ċ", "Ċ"]), tokenizer.eos_token_id]
    report = split_report([trailing], get_splitter("blank_line"), tokenizer)
    assert report.delimiter is not None
    assert report.delimiter.num_ended_step == 1


@pytest.mark.parametrize("name", ["fixed", "sentence", "regex:x"])
def test_splitters_without_delimiter(name: str) -> None:
    assert split_report(["a. B\n\nx"], get_splitter(name), byte_level_tokenizer()).delimiter is None


def test_nothing_to_split_raises() -> None:
    with pytest.raises(ValueError, match="There are 2 rows, but none"):
        split_report(["", None], get_splitter("newline"), byte_level_tokenizer())


def test_formats_read_the_same(tmp_path: Path, jsonl: Path) -> None:
    expected = [row["completion"] for row in ROWS]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(jsonl.read_text(encoding="utf-8"))
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"):
        assert read_completions(tmp_path / name, "completion") == expected
    (tmp_path / "one.txt").write_text("a\n\nb", encoding="utf-8")
    assert read_completions(tmp_path / "one.txt", "completion") == ["a\n\nb"]


def test_messages_and_ids_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"m": [{"role": "assistant", "content": "a\n\nb"}], "ids": [1, 2]}), encoding="utf-8")
    assert read_completions(path, "m") == ["a\n\nb"]
    assert read_completions(path, "ids") == [[1, 2]]


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        read_completions(tmp_path / "absent.jsonl", "completion")


def test_missing_column_names_the_columns(jsonl: Path) -> None:
    with pytest.raises(ValueError, match=r"column is 'text', but no row .* --column: 'completion', 'n'\."):
        read_completions(jsonl, "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "x", "ends with none of the formats"),
        ("a.jsonl", '{"completion": ""}\n{oops', "Line 2 of .*a.jsonl' is {oops, which is no JSON"),
        ("a.jsonl", "[1]", "must be one JSON object"),
        ("a.jsonl", '{"completion": 3}', "Row 0 of .*a.jsonl' has a 'completion' that is 3, but a completion is text"),
        ("a.jsonl", '{"completion": ["a", "b"]}', "a list of texts is split already"),
        ("a.jsonl", '{"completion": [true, false]}', "list of token ids"),
    ],
)
def test_unreadable_files_raise(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        read_completions(tmp_path / name, "completion")


def test_command_prints_json(tokenizer_path: str, jsonl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _run("--tokenizer", tokenizer_path, "--file", str(jsonl), "--splitter", "blank_line", "--output", "json") == 0
    )
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["num_steps"] == 7
    assert report["delimiter"]["delimiter"] == "\n\n"


def test_command_prints_tables(tokenizer_path: str, jsonl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--tokenizer", tokenizer_path, "--file", str(jsonl), "--splitter", "markdown") == 0
    out = capsys.readouterr().out
    for text in ("steps per completion", "tokens per step", "█", "longest step", "inside a protected block"):
        assert text in out


def test_text_that_looks_like_markup_is_printed_as_it_is() -> None:
    report = split_report(["[bold]x[/bold] [/]"], get_splitter("regex:[/]"), byte_level_tokenizer())
    console = Console(record=True, width=120)
    render(report, console)
    printed = console.export_text()
    assert "RegexSplitter(pattern='[/]')" in printed
    assert "'[bold]x[/'" in printed


@pytest.mark.shared_data
def test_real_outputs(shared_data: Path) -> None:
    texts = read_completions(shared_data / "outputs" / "model_outputs.jsonl.gz", "completion")[::20]
    report = split_report(texts, get_splitter("markdown"), byte_level_tokenizer())
    assert report.delimiter is not None
    counts = report.delimiter
    assert counts.num_occurrences == counts.num_ended_step + counts.num_protected + counts.num_merged
    assert counts.num_missed_by_id > 0
    assert report.num_steps == sum(count for _, _, count in report.histogram)
