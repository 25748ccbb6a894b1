"""The shape of jobs: units once each, in any order, by any engine, with progress from the first sample on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.jobs.progress import OnCounts, Progress
from trl_prl.jobs.runner import Job, Results, Worker, in_order


class Squares:
    """A worker with known results, which tells of two samples per row."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.is_closed = False
        self.computed: list[int] = []

    def compute(self, rows: range, on_counts: OnCounts) -> dict[str, Any]:
        if self.fail_at in rows:
            raise RuntimeError("broken")
        for row in rows:
            self.computed.append(row)
            on_counts({"num_rollouts": 1, "num_sampled_tokens": 10})
            on_counts({"num_rollouts": 1, "num_sampled_tokens": 10})
        return {"rows": [row**2 for row in rows]}

    def close(self) -> None:
        self.is_closed = True


def backwards(make_worker: Callable[[], Worker], units: Mapping[int, range], on_counts: OnCounts) -> Results:
    """An engine whose units come back in another order, by two workers."""
    workers = [make_worker(), make_worker()]
    for place, unit in enumerate(reversed(units)):
        yield unit, workers[place % 2].compute(units[unit], on_counts)


def rows_of(job: Job) -> list[int]:
    return [row for unit in job.results() for row in unit["rows"]]


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
def test_units_are_computed_once_and_closed(tmp_path: Path, process: tuple[int, int]) -> None:
    worker = Squares()
    job = Job(tmp_path, {"seed": 1}, num_rows=7, rows_per_unit=3, process=process)
    assert job.run(lambda: worker) is (process == (0, 1))
    assert worker.is_closed
    assert worker.computed == (list(range(7)) if process == (0, 1) else [3, 4, 5])
    assert job.run(lambda: pytest.fail("there is nothing to do")) is (process == (0, 1))
    if process == (0, 1):
        assert rows_of(job) == [row**2 for row in range(7)]


def test_what_is_finished_stays_and_another_engine_goes_on(tmp_path: Path) -> None:
    worker = Squares(fail_at=5)
    job = Job(tmp_path, {"seed": 1}, num_rows=9, rows_per_unit=2)
    with pytest.raises(RuntimeError):
        job.run(lambda: worker)
    assert worker.is_closed
    assert set(job.places) == {0, 1}
    workers: list[Squares] = []

    def make_worker() -> Squares:
        workers.append(Squares())
        return workers[-1]

    assert job.run(make_worker, engine=backwards)
    assert sorted(row for made in workers for row in made.computed) == [4, 5, 6, 7, 8]
    assert rows_of(job) == [row**2 for row in range(9)]


@given(st.permutations(range(5)))
def test_in_order(order: list[int]) -> None:
    results = ((unit, {"unit": unit}) for unit in order)
    assert [result["unit"] for result in in_order(results, range(5))] == list(range(5))


def test_progress_grows_from_the_first_sample_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_prl.jobs.progress._SECONDS_BETWEEN", 0.0)
    seen: list[Progress] = []
    job = Job(tmp_path, {}, num_rows=4, rows_per_unit=2, samples_per_row=2, name="m")
    job.run(Squares, on_progress=seen.append)
    # Two samples a row: each is half a row, and a unit counts as done when it is written.
    assert [progress.num_done for progress in seen] == [0, 0.5, 1, 1.5, 2, 2, 2.5, 3, 3.5, 3.98, 4]
    assert {(progress.num_total, progress.num_before, progress.name) for progress in seen} == {(4, 0, "m")}
    assert [progress.counts.get("num_sampled_tokens", 0) for progress in seen][-1] == 80
    # Without the number of samples, it is that of the units so far.
    seen.clear()
    Job(tmp_path / "b", {}, num_rows=4, rows_per_unit=2).run(Squares, on_progress=seen.append)
    assert [progress.num_done for progress in seen] == [0, 0, 0, 0, 0, 2, 2.5, 3, 3.5, 3.98, 4]
    seen.clear()
    Job(tmp_path / "b", {}, num_rows=4, rows_per_unit=2).run(Squares, on_progress=seen.append)
    assert [(progress.num_done, progress.num_before) for progress in seen] == [(4, 4)]
