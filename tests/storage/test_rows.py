"""One reader and one writer of rows: every format, every kind of value, and errors that name file, row and column."""

from __future__ import annotations

import gzip
import json
import math
import os
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from trl_prl import load_rows
from trl_prl.storage.row_files import Rows, write_rows
from trl_prl.storage.row_sources import open_rows, rows_dataset
from trl_prl.storage.row_tables import infer_schema
from trl_prl.storage.row_values import read_labels, read_number, read_outcome, read_steps, read_text


ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "answer": "2", "samples": [{"completion": "x", "rm": 1}]},
    {"prompt": "b\nc", "answer": None, "level": 3, "samples": [{"completion": "y", "rm": 0.5}, {"completion": "z"}]},
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def files_of(folder: Path, rows: list[dict[str, Any]]) -> list[Path]:
    """The same rows in every way that people publish them."""
    (folder / "plain.jsonl").write_text(lines(rows))
    (folder / "mark.jsonl").write_text(lines(rows), encoding="utf-8-sig")
    (folder / "windows.jsonl").write_bytes(lines(rows).replace("\n", "\r\n").encode())
    (folder / "blank.jsonl").write_text("\n" + lines(rows).replace("\n", "\n\n"))
    (folder / "lines.json").write_text(lines(rows))
    (folder / "array.json").write_text("\n " + json.dumps(rows, indent=1), encoding="utf-8-sig")
    for name in ("plain.jsonl", "array.json"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    return sorted(folder.iterdir())


def test_every_form_of_json_reads_the_same(tmp_path: Path) -> None:
    for path in files_of(tmp_path, ROWS):
        assert list(open_rows(path)) == ROWS, path
        dataset = load_rows(path)
        assert dataset.column_names == ["prompt", "answer", "samples", "level"]
        assert dataset[0]["level"] is None
        assert dataset["answer"] == ["2", None]
        assert [s["rm"] for s in dataset[1]["samples"]] == [0.5, None]


def test_rows_can_be_read_again_and_cut(tmp_path: Path) -> None:
    rows = open_rows(files_of(tmp_path, ROWS)[0])
    assert list(rows) == list(rows) == ROWS
    assert list(rows.head(1)) == ROWS[:1]
    pq.write_table(pa.Table.from_pylist([{"a": 1}] * 5), tmp_path / "x.parquet")
    assert (open_rows(tmp_path / "x.parquet").num_rows, open_rows(tmp_path / "x.parquet").head(2).num_rows) == (5, 2)


def test_csv_values_are_texts_and_empty_ones_null(tmp_path: Path) -> None:
    text = 'prompt,answer,level\n"1 + 1,\n""sum""",007,\n,NA,1e5\nshort,True\n' + "x" * 200_000 + ",1,2\n"
    (tmp_path / "x.csv").write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    rows = list(open_rows(tmp_path / "x.csv"))
    assert rows[0] == {"prompt": '1 + 1,\r\n"sum"', "answer": "007", "level": None}
    assert rows[1] == {"prompt": None, "answer": "NA", "level": "1e5"}
    assert rows[2] == {"prompt": "short", "answer": "True", "level": None}
    assert len(rows[3]["prompt"]) == 200_000
    assert load_rows(tmp_path / "x.csv")[1]["answer"] == "NA"
    (tmp_path / "y.csv").write_text("a,b\n1,2,3\n")
    with pytest.raises(ValueError, match=r"Line 2 of '.*y.csv' has more values"):
        list(open_rows(tmp_path / "y.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"Line 2 of '.*a.jsonl' is \{\"a\":, which is no JSON"),
        ("a.jsonl", b"[1]\n", r"Line 1 of '.*a.jsonl' is a list"),
        ("a.jsonl", b'[\n{"a": 1}]', r"Line 1 of .*name that ends with .json"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", r"Line 1 of .* no JSON"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", r"Line 1 of .* no JSON \(maximum recursion"),
        ("a.json", b"[" * 100_000, r"a.json' cannot be read \(maximum recursion"),
        ("a.json", b'[{"a": 1}, 2]', r"Row 1 of '.*a.json' is a int"),
        ("a.json", b'[{"a": 1}', r"a.json' cannot be read"),
        ("a.jsonl", "ä".encode("latin-1"), r"a.jsonl' cannot be read .*not in UTF-8"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"a.jsonl' cannot be read .*not in UTF-8"),
        ("a.jsonl.gz", b'{"a": 1}\n', r"a.jsonl.gz' cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], r"a.jsonl.gz' cannot be read"),
        ("a.csv", b'a,b\n1,"2\n', r"a.csv' cannot be read"),
        ("a.parquet", b"PAR1", r"a.parquet' cannot be read"),
        ("a.tsv", b"a\tb", r"a.tsv' ends with none of the formats"),
        ("a.jsonl", b"\n", r"a.jsonl' has no rows"),
    ],
)
def test_what_cannot_be_read_names_the_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_dataset(open_rows(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "a.csv", "a.parquet"])
def test_a_missing_file_is_said_at_once(tmp_path: Path, name: str) -> None:
    for read in (open_rows, load_rows):
        with pytest.raises(FileNotFoundError, match=name):
            read(tmp_path / name)


def test_no_source_and_no_split(tmp_path: Path) -> None:
    path = files_of(tmp_path, ROWS)[0]
    with pytest.raises(ValueError, match="No data set was given"):
        load_rows(None)
    for read in (open_rows, load_rows):
        with pytest.raises(ValueError, match="has the splits train and no 'test'"):
            read(path, split="test")
    assert list(load_rows(path, split=None)) == list(open_rows(path, None, None)) == ["train"]


# ---- folders ----


def test_a_folder_of_json_is_read_row_by_row(tmp_path: Path) -> None:
    """`datasets` takes the types from the first rows and the first file."""
    (tmp_path / "train-0.jsonl").write_text(lines([{"a": 1, "b": None}] * 3))
    (tmp_path / "train-1.jsonl").write_text(lines([{"a": 0.5}, {"b": "late", "c": [1]}]))
    (tmp_path / "test.jsonl").write_text(lines([{"a": 2}]))
    splits = load_rows(tmp_path, split=None)
    assert isinstance(splits, DatasetDict)
    assert splits["train"]["a"] == [1.0, 1.0, 1.0, 0.5, None]
    assert splits["train"]["b"] == [None] * 4 + ["late"]
    assert list(open_rows(tmp_path, None, "test")) == [{"a": 2}]
    streamed = load_rows(tmp_path, split="train", streaming=True)
    assert [row["a"] for row in streamed] == [1.0, 1.0, 1.0, 0.5, None]
    with pytest.raises(ValueError, match="no 'validation'"):
        load_rows(tmp_path, split="validation")


def test_folders_of_datasets(tmp_path: Path) -> None:
    dataset = Dataset.from_list([{"a": 1}, {"a": 2}])
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "two")
    (tmp_path / "files").mkdir()
    pq.write_table(dataset.data.table, tmp_path / "files" / "train.parquet")
    for name in ("one", "two", "files"):
        assert load_rows(tmp_path / name)["a"] == [1, 2]
        assert [row["a"] for row in open_rows(tmp_path / name)] == [1, 2]
    assert load_rows(tmp_path / "two", split="test")["a"] == [2]
    with pytest.raises(ValueError, match="no 'test'"):
        load_rows(tmp_path / "one", split="test")
    assert load_rows(tmp_path / "files" / "train.parquet", split=None)["train"]["a"] == [1, 2]


# ---- types ----


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1] * 300 + [0.5], pa.float64()),
        ([None] * 300 + ["late"], pa.string()),
        ([None] * 300 + [[None]] + [["late"]], pa.list_(pa.string())),
        ([1] * 300 + [2**64], pa.decimal256(76, 0)),
        ([{"a": 1}] * 300 + [{"a": 0.5, "b": [1]}], pa.struct({"a": pa.float64(), "b": pa.list_(pa.int64())})),
        ([[]] * 300 + [[{"a": None}]] + [[{"a": 2**70}]], pa.list_(pa.struct({"a": pa.decimal256(76, 0)}))),
        ([True] * 300 + [None], pa.bool_()),
        ([Decimal("0.25"), Decimal("100")], pa.decimal128(5, 2)),
    ],
)
def test_types_do_not_depend_on_the_first_rows(values: list[Any], kind: pa.DataType, tmp_path: Path) -> None:
    for ordered in (values, values[::-1]):
        rows: list[dict[str, Any]] = [{"x": value} if value is not None else {} for value in ordered] + [{"x": None}]
        assert infer_schema(rows, "f").field("x").type == kind
        with write_rows(tmp_path / "x.parquet", lambda rows=rows: infer_schema(rows, "f")) as write:
            for start in range(0, len(rows), 50):
                write(rows[start : start + 50])
        found = [row["x"] for row in open_rows(tmp_path / "x.parquet")]
        expected = [row.get("x") for row in rows]
        assert list(map(bare, found)) == list(map(bare, expected))


def bare(value: Any) -> Any:
    """A value without the nulls of the fields that a table adds."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if item is not None}
    return [bare(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "pair", [(1, "a"), (True, 1), (0.5, True), ("a", ["a"]), ({"a": 1}, [1]), ({"a": 1}, {"a": "b"}), (2**60, 0.5)]
)
@pytest.mark.parametrize("num_before", [0, 300])
def test_values_of_two_kinds_name_row_and_column(pair: tuple[Any, Any], order: int, num_before: int) -> None:
    first, second = pair[::order]
    rows = [{"x": first, "y": 1}] * (num_before + 1) + [{"x": second}]
    with pytest.raises(ValueError, match=r"Row \d+ of 'f' has .* in the column 'x'"):
        infer_schema(rows, "f")


@pytest.mark.parametrize("value", ["a\ud800", ["\udfff"], 10**80])
def test_values_that_no_table_holds_name_row_and_column(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Row 2 of 'f' has .* in the column 'x'"):
        infer_schema([{}, {"x": None}, {"x": value}], "f")


# ---- the writer ----


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        path = tmp_path / name
        with pytest.raises(KeyError):  # noqa: PT012
            with write_rows(path, lambda: pa.schema({"a": pa.int64()})) as write:
                write([{"a": 1}])
                assert not path.exists()
                raise KeyError
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"Row 1 of .*a.parquet' has 'b' in the column 'a'"):  # noqa: PT012
        with write_rows(tmp_path / "a.parquet", lambda: pa.schema({"a": pa.int64()})) as write:
            write([{"a": 1}])
            write([{"a": "b"}])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_before_the_first_row(tmp_path: Path) -> None:
    for name, schema, message in (
        ("a.csv", None, "Use a name that ends with"),
        ("a.parquet", None, "Pass the schema"),
        ("a.parquet", lambda: infer_schema([{"x": {}}], "f"), "cannot hold these columns"),
    ):
        with pytest.raises(ValueError, match=message), write_rows(tmp_path / name, schema):
            pytest.fail("the file was opened")


def test_json_lines_hold_what_json_has(tmp_path: Path) -> None:
    row = {"nan": math.nan, "day": date(2024, 1, 2), "big": Decimal(10**30), "part": Decimal("0.10"), "half": "\ud83d"}
    with write_rows(tmp_path / "x.jsonl") as write:
        write([row])
    (found,) = open_rows(tmp_path / "x.jsonl")
    assert found == {"nan": None, "day": "2024-01-02", "big": 10**30, "part": "0.10", "half": "\ud83d"}


def test_stored_types_and_our_metadata_are_kept(tmp_path: Path) -> None:
    schema = pa.schema({"day": pa.date32(), "n": pa.int8()}, metadata={"trl_prl": "{}", "huggingface": "stale"})
    pq.write_table(pa.Table.from_pylist([{"day": date(2024, 1, 2), "n": 3}], schema), tmp_path / "in.parquet")
    rows = open_rows(tmp_path / "in.parquet")
    with write_rows(tmp_path / "out.parquet", lambda: rows.schema({"score": pa.float64()})) as write:
        write({**row, "score": 1} for row in rows)
    written = pq.read_schema(tmp_path / "out.parquet")
    assert [str(field.type) for field in written] == ["date32[day]", "int8", "double"]
    assert written.metadata == {b"trl_prl": b"{}"}
    assert list(open_rows(tmp_path / "out.parquet")) == [{"day": date(2024, 1, 2), "n": 3, "score": 1.0}]


# ---- any rows ----

NAMES = st.sampled_from(["prompt", "columns", "labels", "ü", "a.b", ""])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
# Arrow ends a name at a zero byte.
KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
ANY_ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=6).filter(any)


@given(rows=ANY_ROWS, suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".json"]))
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, rows: Any, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    with write_rows(path) as write:
        write(rows)
    assert list(open_rows(path)) == rows


@given(rows=ANY_ROWS)
def test_parquet_comes_back_or_names_the_column(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        with write_rows(path, Rows("f", lambda: iter(rows)).schema) as write:
            for row in rows:
                write([row])
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert any(f"in the column {name!r}" in message for name in names) or "cannot hold" in message
        return
    found = list(open_rows(path))
    assert list(map(bare, found)) == list(map(bare, rows))
    assert all(list(row) == list(names) for row in found)
    assert bare(list(rows_dataset(rows, "f"))) == bare(rows)


HOMOGENEOUS: dict[str, st.SearchStrategy[Any]] = {
    "number": st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
    "big": st.integers(-(10**70), 10**70),
    "text": st.text(),
    "truth": st.booleans(),
    "labels": st.lists(st.none() | st.floats(0, 1)),
    "samples": st.lists(st.fixed_dictionaries({"rm": st.floats(0, 1)}, optional={"text": st.text()})),
}


@given(
    rows=st.lists(
        st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in HOMOGENEOUS.items()}),
        min_size=1,
        max_size=8,
    ).filter(any)
)
def test_columns_of_one_kind_always_come_back(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "same.parquet"
    with write_rows(path, Rows("f", lambda: iter(rows)).schema) as write:
        write(rows)
    assert list(map(bare, open_rows(path))) == list(map(bare, rows))


# ---- values ----


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (0.3, 0.3), (True, 1.0), ("0.3", 0.3), (" -2e1 ", -20.0), ("False", 0.0), ("TRUE", 1.0)],
)
def test_numbers(value: Any, number: float) -> None:
    assert read_number(value, "It") == number


@pytest.mark.parametrize("value", [None, math.nan, "nan"])
def test_no_number(value: Any) -> None:
    assert math.isnan(read_number(value, "It"))
    assert read_outcome(value, "It") is None


@pytest.mark.parametrize("value", ["", "yes", "1/2", [1], {}, b"1"])
def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^Row 3 of 'f' has a score that is .*, which is no number"):
        read_number(value, "Row 3 of 'f' has a score that")


@pytest.mark.parametrize(
    ("value", "right"),
    [(True, True), (False, False), ("True", True), ("False", False), (1, True), (0, False), (0.3, False), (0.5, False),
     (0.7, True), ("0.3", False), (-1, False), ("-1", False), (None, None), (math.nan, None)],
)  # fmt: skip
def test_outcomes_are_above_the_threshold(value: Any, right: bool | None) -> None:
    assert read_outcome(value, "It") is right


@pytest.mark.parametrize("labels", [[1, -1], [0, 100], [2], "101", 1, None, {"a": 1}, ["x"], [[1]]])
def test_labels_that_are_none_are_named(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"^Row 3 has a label that is"):
        read_labels(labels, "Row 3 has a label that")


def test_labels() -> None:
    labels = read_labels([0.7, True, "False", 1, None, math.nan, -100, "-100"], "It")
    assert labels[:4] == [0.7, 1.0, 0.0, 1.0]
    assert all(map(math.isnan, labels[4:]))


@pytest.mark.parametrize("steps", ["ab", None, 3, [["a"], ["b"]], ["a", None], ["a", 1], ["\ud800"], {"a": "b"}])
def test_steps_are_a_list_of_texts(steps: Any) -> None:
    with pytest.raises(ValueError, match=r"^Row 3"):
        read_steps(steps, "Row 3")


@pytest.mark.parametrize("value", [3, None, [], ["a"], [{"content": "x"}], {"role": "user", "content": "x"}, math.nan])
def test_texts_are_texts_or_messages(value: Any) -> None:
    for good in ("", "x", [{"role": "user", "content": "x"}]):
        assert read_text(good, "It") == good
    with pytest.raises(ValueError, match="neither a text nor a list of messages"):
        read_text(value, "Row 3")


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "lines/train.jsonl", "tables/train.parquet"]
)
def test_what_is_written_at_a_path_that_was_read_is_read_anew(tmp_path: Path, name: str) -> None:
    """Of the same size and time of modification, as copies may have them: no cache tells them apart."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    source = path.parent if "/" in name else path
    for text in ("row 1", "row 2"):
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"prompt": [text]}), path)
        else:
            path.write_text(f"prompt\n{text}\n" if name.endswith(".csv") else json.dumps({"prompt": text}))
        os.utime(path, (1e9, 1e9))
        assert [row["prompt"] for row in open_rows(source)] == [text]
        loaded = load_rows(source)
        assert loaded["prompt"][:] == [text]
        assert loaded.map(lambda row: {"again": row["prompt"]})["again"][:] == [text]
