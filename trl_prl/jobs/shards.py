"""Append-only shards: results of units of work that survive being killed at any moment.

A unit is a block of problems whose rows are computed together and written as *one* line with its checksum, so that it
is there in full or not at all. A file is only ever appended to by the process that began it; one that starts anew
begins a new file. Nothing is ever overwritten, truncated or renamed. So no order of kills, restarts and numbers of
processes can lose a finished unit, and one computed twice counts once.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


SHARDS = "shards"


class ShardWriter:
    """Appends units to a file of its own.

    Args:
        folder (`Path`):
            Folder of the job.
        process_index (`int`, *optional*, defaults to `0`):
            Number of the process, for the name of the file.

    Example:

    ```python
    >>> with ShardWriter(folder) as writer:
    ...     writer.write(0, {"rows": rows})
    ```
    """

    def __init__(self, folder: Path, process_index: int = 0) -> None:
        self.folder = folder / SHARDS
        self.process_index = process_index
        self._file: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, unit: int, data: Mapping[str, Any]) -> None:
        """Append a unit; when this returns it is on the disk.

        Args:
            unit (`int`):
                Number of the unit.
            data (`Mapping[str, Any]`):
                What was computed, as JSON values.
        """
        if self._file is None:
            self._file = self._begin()
        body = json.dumps({"unit": unit, **data}, ensure_ascii=False, separators=(",", ":"))
        # Sampled bytes need not be text: lone surrogates are written escaped.
        encoded = body.encode("utf-8", "backslashreplace")
        self._file.write(b"%08x %s\n" % (zlib.crc32(encoded), encoded))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _begin(self) -> BinaryIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        serial = 0
        while True:
            try:
                # Exclusive: also a process of another machine with the same number begins a file of its own.
                return (self.folder / f"process-{self.process_index:05d}-{serial:05d}.jsonl").open("xb")
            except FileExistsError:
                serial += 1


@dataclass(frozen=True)
class UnitPlace:
    """Where a unit is: its file, the offset of its line and the line's length in bytes."""

    path: Path
    offset: int
    length: int


def find_units(folder: Path) -> dict[int, UnitPlace]:
    """Find every whole unit of a job, without keeping what is in them.

    Args:
        folder (`Path`):
            Folder of the job.

    Returns:
        `dict[int, UnitPlace]`: Place of each finished unit. Lines that were cut by a kill or damaged are left out, so
        that their units are computed again; of a unit computed twice, the first one found counts.
    """
    found: dict[int, UnitPlace] = {}
    for path in sorted((folder / SHARDS).glob("process-*.jsonl")):
        offset = 0
        with path.open("rb") as file:
            for line in file:
                unit = _unit_of(line)
                if unit is not None:
                    found.setdefault(unit, UnitPlace(path, offset, len(line)))
                offset += len(line)
    return found


def read_units(places: Mapping[int, UnitPlace], units: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Read units one at a time.

    Args:
        places (`Mapping[int, UnitPlace]`):
            Places, as [`find_units`] returns them.
        units (`Iterable[int]`):
            Units to read, in this order.

    Returns:
        `Iterator[dict]`: What was written, each with its `"unit"`.
    """
    for unit in units:
        place = places[unit]
        with place.path.open("rb") as file:
            file.seek(place.offset)
            yield json.loads(file.read(place.length)[9:])


def _unit_of(line: bytes) -> int | None:
    checksum, body = line[:8], line[9:-1]
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    # The number comes first, so that the rows of a long line need not be parsed.
    return int(body[len(b'{"unit":') :].split(b",", 1)[0].rstrip(b"}"))
