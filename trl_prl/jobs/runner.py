"""The shape of every job: rows in units, units computed by a worker, finished units in shards, results once all are.

A job needs a worker: an object made once in each process that computes, which turns the rows of a unit into JSON
values. Who makes workers and hands them units is an engine. [`run_here`] makes one in this process. An engine that has
its workers elsewhere hands out units and yields what comes back, in any order; the process that runs the job alone
writes it down.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .manifest import claim_share, open_manifest
from .progress import Meter, OnCounts, OnProgress
from .shards import ShardWriter, UnitPlace, find_units, read_units


class Worker(Protocol):
    """Computes units of a job."""

    def compute(self, rows: range, on_counts: OnCounts) -> dict[str, Any]:
        """Compute a unit. The result depends on the job's settings and the rows alone.

        Args:
            rows (`range`):
                Rows of the unit.
            on_counts (`Callable`):
                To be called with what was counted, as often as there is something to tell.

        Returns:
            `dict[str, Any]`: JSON values.
        """
        ...

    def close(self) -> None:
        """Give back memory and processes."""
        ...


Results = Generator[tuple[int, dict[str, Any]], None, None]
"""Number and result of each finished unit."""


class Engine(Protocol):
    """Computes units with workers."""

    def __call__(self, make_worker: Callable[[], Worker], units: Mapping[int, range], on_counts: OnCounts) -> Results:
        """Compute units, each once. When the generator is closed, its workers end.

        Args:
            make_worker (`Callable`):
                Makes a worker where it is called; may be sent to another process with cloudpickle.
            units (`Mapping[int, range]`):
                Rows of each unit, in the order that they are wanted in.
            on_counts (`Callable`):
                To be called here with what the workers count.

        Yields:
            `tuple[int, dict]`: Number and result of a finished unit. The next one is asked for when it is on the disk.
        """
        ...


def in_order(results: Results, units: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Results of an engine in the order of the units, for a job that keeps no shards."""
    early: dict[int, dict[str, Any]] = {}
    for unit in units:
        while unit not in early:
            number, result = next(results)
            early[number] = result
        yield early.pop(unit)


def run_here(make_worker: Callable[[], Worker], units: Mapping[int, range], on_counts: OnCounts) -> Results:
    """The [`Engine`] of this process: one worker, one unit after the other."""
    with closing(make_worker()) as worker:
        for unit, rows in units.items():
            yield unit, worker.compute(rows, on_counts)


@dataclass(frozen=True)
class Job:
    """Rows to compute, and the folder where they are kept.

    Rows are cut into units of `rows_per_unit`; unit `u` belongs to process `u` modulo their number. What a unit's
    results are depends on the settings alone, so any number of interruptions, processes and engines gives the same
    ones. Processes do not talk to each other; the one that finds all units finished goes on to the results.

    Args:
        folder (`Path`):
            Folder of the job.
        settings (`Mapping[str, Any]`):
            Everything that the results depend on.
        num_rows (`int`):
            Number of rows.
        rows_per_unit (`int`):
            Rows computed and saved together.
        process (`tuple[int, int]`, *optional*):
            Number of this process, and of all.
        defaults (`Mapping[str, Any]`, *optional*):
            As in [`open_manifest`].
        samples_per_row (`int`, *optional*):
            Samples drawn for a row, where that is known before.
        name (`str`, *optional*):
            What it is about, for its progress.
    """

    folder: Path
    settings: Mapping[str, Any]
    num_rows: int
    rows_per_unit: int
    process: tuple[int, int] = (0, 1)
    defaults: Mapping[str, Any] | None = None
    samples_per_row: int | None = None
    name: str = ""

    @property
    def num_units(self) -> int:
        """Number of units, of all processes."""
        return -(-self.num_rows // self.rows_per_unit)

    def rows_of(self, unit: int) -> range:
        """Rows of a unit."""
        return range(unit * self.rows_per_unit, min(self.num_rows, (unit + 1) * self.rows_per_unit))

    def run(
        self,
        make_worker: Callable[[], Worker],
        *,
        engine: Engine = run_here,
        on_progress: OnProgress | None = None,
    ) -> bool:
        """Compute the units of this process that are not there yet; each is on the disk before the next one begins.

        Args:
            make_worker (`Callable`):
                Makes a worker. Only called if there is work.
            engine ([`Engine`], *optional*):
                Who computes; this process by default.
            on_progress (`Callable`, *optional*):
                Called at the start, with what is counted, and after every unit.

        Returns:
            `bool`: Whether all units are there, those of other processes too.

        Raises:
            `ValueError`: When the folder holds a job with other settings, or another process works on this share.
        """
        begun = open_manifest(self.folder, self.settings, self.defaults)
        index, number = self.process
        with claim_share(self.folder, index, begun):
            done = find_units(self.folder)
            share = {unit: self.rows_of(unit) for unit in range(index, self.num_units, number)}
            pending = {unit: rows for unit, rows in share.items() if unit not in done}
            num_total = sum(map(len, share.values()))
            num_before = num_total - sum(map(len, pending.values()))
            meter = Meter(num_total, on_progress, num_before, self.samples_per_row, self.name)
            if pending:
                with (
                    ShardWriter(self.folder, index) as writer,
                    closing(engine(make_worker, pending, meter.count)) as results,
                ):
                    for unit, result in results:
                        writer.write(unit, result)
                        meter.finish(len(pending[unit]))
        return len(self.places) == self.num_units

    @property
    def places(self) -> dict[int, UnitPlace]:
        """Places of the finished units."""
        return find_units(self.folder)

    def results(self) -> Iterator[dict[str, Any]]:
        """Results of all units, in order, one in memory at a time."""
        return read_units(self.places, range(self.num_units))
