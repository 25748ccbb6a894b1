"""Files of rows, read and written: JSON lines and arrays, CSV, Parquet."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from .files import replace_file
from .missing import say_missing
from .row_values import json_value, row_place


ROWS_PER_CHUNK = 64
JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
TEXT_SUFFIXES = (*JSON_SUFFIXES, ".csv", ".csv.gz")
READ_SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
WRITTEN_SUFFIXES = (*JSON_SUFFIXES, ".parquet")


@dataclass(frozen=True)
class Rows:
    """Rows that can be read as often as needed, without holding them in memory.

    Attributes:
        source (`str`):
            Where they are from.
        read (`Callable[[], Iterator[dict]]`):
            Begins to read them.
        num_rows (`int`, *optional*):
            How many there are, where that is known.
        stored_schema (`pa.Schema`, *optional*):
            Types of the columns, where they are stored with the rows.
    """

    source: str
    read: Callable[[], Iterator[dict[str, Any]]]
    num_rows: int | None = None
    stored_schema: Any = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.read()

    def head(self, limit: int | None) -> Rows:
        """The first rows only; all for `None`."""
        if limit is None:
            return self
        num_rows = None if self.num_rows is None else min(limit, self.num_rows)
        return replace(self, read=lambda: islice(self.read(), limit), num_rows=num_rows)

    def schema(self, added: Mapping[str, Any] | None = None) -> Any:
        """Types that hold every row.

        Args:
            added (`Mapping[str, pa.DataType]`, *optional*):
                Further columns, which replace those of the same name.

        Returns:
            `pa.Schema`: The types. Of the stored metadata, only that of this package is kept.

        Raises:
            `ValueError`: If a column has values of several kinds, with its row.
        """
        import pyarrow as pa

        from .row_tables import infer_schema

        known = infer_schema(self, self.source) if self.stored_schema is None else self.stored_schema
        kept = {key: value for key, value in (known.metadata or {}).items() if key == b"trl_prl"}
        types = {**{field.name: field.type for field in known}, **(added or {})}
        return pa.schema(list(types.items()), metadata=kept or None)


def existing(path: Path) -> Path:
    """The path itself, if there is something.

    Raises:
        `FileNotFoundError`: If there is nothing, before anything else is loaded.
    """
    if not path.exists():
        raise FileNotFoundError(f"{say_missing('file', path)} Give a file that exists, a folder or a hub id.")
    return path


def file_rows(path: Path) -> Rows:
    """The rows of one file.

    Args:
        path (`Path`):
            JSON lines, a `.json` array or CSV, gzipped or not, or Parquet.

    Returns:
        [`Rows`]: The rows.

    Raises:
        `ValueError`: If the name has another ending, or the file is broken.
        `OSError`: If there is no such file.
    """
    if not existing(path).name.endswith(READ_SUFFIXES):
        raise ValueError(
            f"'{path}' ends with none of the formats that are read, so it cannot be told what it holds. Use a name "
            f"that ends with {', '.join(READ_SUFFIXES)}."
        )
    if path.name.endswith(".parquet"):
        return _parquet_rows(path)
    read = _csv_rows if path.name.endswith((".csv", ".csv.gz")) else _json_rows
    return Rows(str(path), lambda: read(path))


def _parquet_rows(path: Path) -> Rows:
    import pyarrow.parquet as pq

    with _readable(path):
        file = pq.ParquetFile(path)
    has_decimals = any("decimal" in str(field.type) for field in file.schema_arrow)

    def read() -> Iterator[dict[str, Any]]:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_CHUNK):
            yield from (_with_integers(row) if has_decimals else row for row in batch.to_pylist())

    return Rows(str(path), read, int(file.metadata.num_rows), file.schema_arrow)


def _with_integers(value: Any) -> Any:
    """Decimals without a fraction are whole numbers beyond 64 bits, as the writer stores them."""
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, Decimal) and value.as_tuple().exponent == 0 else value


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # a completion is longer than the 131,072 characters of the default
    with _readable(path), _open_text(path, newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            if None in row:
                raise ValueError(
                    f"Line {reader.line_num} of '{path}' has more values than there are columns, so it cannot be told "
                    "which is which. Put values that hold commas into double quotes."
                )
            yield {name: value or None for name, value in row.items()}


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _readable(path), _open_text(path) as file:
        if path.name.endswith((".json", ".json.gz")) and _first_character(file) == "[":
            for number, row in enumerate(json.load(file)):
                yield _checked_row(row, row_place(number, path))
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"Line {number} of '{path}' is {line.strip():.60}, which is no JSON ({error}). Every line must be "
                    "one JSON object; a file that is one array has a name that ends with .json. Correct or remove it."
                ) from error
            yield _checked_row(row, f"Line {number} of '{path}'")


def _checked_row(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise ValueError(
        f"{where} is a {type(row).__name__}, which has no columns. Every row must be one JSON object. Correct it."
    )


def _first_character(file: TextIO) -> str:
    while (character := file.read(1)).isspace():
        pass
    file.seek(0)
    return character


def _open_text(path: Path, mode: str = "rt", **kwargs: Any) -> Any:
    # The mark that some programs put before the text is none of it.
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"
    return (gzip.open if path.name.endswith(".gz") else open)(path, mode, encoding=encoding, **kwargs)  # type: ignore[operator]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file in what libraries raise about its contents."""
    from pyarrow import ArrowInvalid

    unreadable = (UnicodeDecodeError, json.JSONDecodeError, RecursionError, csv.Error, EOFError, gzip.BadGzipFile)
    try:
        yield
    except (*unreadable, ArrowInvalid) as error:
        raise ValueError(
            f"'{path}' cannot be read ({error or type(error).__name__}). It is cut, not in UTF-8, or not what its "
            "ending says. Write it anew."
        ) from error


@contextmanager
def write_rows(
    path: Path, schema: Callable[[], Any] | None = None, *, overwrite: bool = True, alone: bool = False
) -> Iterator[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """Open a file to write chunks of rows to; it appears whole or not at all.

    JSON lines keep every value that JSON has: numbers that are not finite become null, dates and decimals texts.

    Args:
        path (`Path`):
            JSON lines, gzipped or not, or Parquet, by its ending.
        schema (`Callable[[], pa.Schema]`, *optional*):
            Types of the columns, asked for before anything is written; only Parquet needs them. Found from all rows,
            such as by [`Rows.schema`], they do not depend on the first ones.
        overwrite (`bool`, *optional*, defaults to `True`), alone (`bool`, *optional*, defaults to `False`):
            As in [`replace_file`].

    Yields:
        `Callable[[Iterable[Mapping]], None]`: Writes one chunk.

    Raises:
        `ValueError`: If the name has another ending, there is no schema, or a value does not fit it.
    """
    check_suffix(path)
    writer = _parquet_writer if path.name.endswith(".parquet") else _json_writer
    with replace_file(path, overwrite=overwrite, alone=alone) as file, writer(Path(file.name), path, schema) as write:
        yield write


def check_suffix(path: Path) -> None:
    """Refuse a file whose name does not say one of the formats that are written.

    Args:
        path (`Path`):
            The file.

    Raises:
        `ValueError`: If the name has another ending.
    """
    if not path.name.endswith(WRITTEN_SUFFIXES):
        raise ValueError(
            f"'{path}' ends with none of the formats that are written. Use a name that ends with .jsonl, .jsonl.gz or "
            ".parquet."
        )


@contextmanager
def _json_writer(unfinished: Path, path: Path, schema: Any) -> Iterator[Callable[[Any], None]]:
    # Text need not be Unicode: lone surrogates are written escaped.
    with _open_text(unfinished, "wt", errors="backslashreplace") as file:
        yield lambda rows: file.writelines(json.dumps(json_value(row), ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def _parquet_writer(unfinished: Path, path: Path, schema: Any) -> Iterator[Callable[[Any], None]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowNotImplementedError

    from .row_tables import row_table

    if schema is None:
        raise ValueError(
            f"'{path}' is to be Parquet, whose types must be known before the first row. Pass the schema of all rows."
        )
    types, num_rows = schema(), 0
    try:
        opened = pq.ParquetWriter(unfinished, types)
    except ArrowNotImplementedError as error:
        raise ValueError(
            f"'{path}' cannot hold these columns ({error}). Name it .jsonl, or leave them out."
        ) from error
    with opened as writer:

        def write(rows: Iterable[Mapping[str, Any]]) -> None:
            nonlocal num_rows
            rows = list(rows)
            if rows:
                writer.write_table(row_table(rows, types, path, num_rows))
                num_rows += len(rows)

        yield write
