"""Files of rows: JSON lines, gzipped or not, and Parquet, read and written in chunks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


ROWS_PER_CHUNK = 64
JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def check_suffix(path: Path) -> None:
    """Refuse a file whose name does not say one of the formats.

    Args:
        path (`Path`):
            The file.

    Raises:
        `ValueError`: If the name has another ending.
    """
    if not path.name.endswith((*JSON_SUFFIXES, ".parquet")):
        raise ValueError(
            f"'{path}' ends with none of the formats that are read and written. Use a name that ends with .jsonl, "
            ".jsonl.gz or .parquet."
        )


def read_rows(path: Path) -> tuple[Iterator[dict[str, Any]], int | None]:
    """Read a file of rows without holding it in memory.

    Args:
        path (`Path`):
            JSON lines, gzipped or not, or Parquet.

    Returns:
        `tuple[Iterator[dict], int | None]`: The rows, and how many there are, where the file says it.

    Raises:
        `ValueError`: If the name has another ending, or a line is not a JSON object.
        `OSError`: If there is no such file.
    """
    if path.name.endswith(".parquet"):
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(path)
        rows = (row for batch in file.iter_batches(ROWS_PER_CHUNK) for row in batch.to_pylist())
        return rows, int(file.metadata.num_rows)
    check_suffix(path)
    path.stat()  # a missing file is reported before the verifier is loaded
    return _json_rows(path), None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"Line {number} of '{path}' is no JSON ({error}). Every line must be one JSON object. Correct or "
                    "remove it."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"Line {number} of '{path}' is a {type(row).__name__}, which has no columns. Every line must be "
                    "one JSON object."
                )
            yield row


@contextmanager
def write_rows(path: Path) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Open a file to write chunks of rows to.

    Args:
        path (`Path`):
            JSON lines, gzipped or not, or Parquet, by its ending.

    Yields:
        `Callable[[list[dict]], None]`: Writes one chunk.
    """
    if not path.name.endswith(".parquet"):
        with (gzip.open if path.name.endswith(".gz") else open)(path, "wt", encoding="utf-8") as file:
            yield lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    import pyarrow
    import pyarrow.parquet

    writer: Any = None

    def write(rows: list[dict[str, Any]]) -> None:
        nonlocal writer
        if writer is None:
            table = pyarrow.Table.from_pylist(rows)
            # A first chunk without any value would otherwise fix the type of these columns to null.
            numbers = pyarrow.list_(pyarrow.float64())
            types = {"initial_value": pyarrow.float64(), "step_values": numbers, "step_advantages": numbers}
            schema = pyarrow.schema([entry.with_type(types.get(entry.name, entry.type)) for entry in table.schema])
            writer = pyarrow.parquet.ParquetWriter(path, schema)
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=writer.schema))

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
