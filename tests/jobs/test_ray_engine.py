"""Jobs on a Ray cluster of several nodes on this machine: nodes and workers die, nodes join, rows stay the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from trl_prl.jobs.ray_engine import MAX_DEATHS, RayEngine
from trl_prl.jobs.runner import Job, OnCounts, run_here


ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402


pytestmark = pytest.mark.ray


class SquareWorker:
    """Squares rows, slowly; kills its process, raises, or cannot be made where it is told to."""

    def __init__(self, seconds: float = 0.0, dies_at: int | None = None, raises_at: int | None = None) -> None:
        self.seconds, self.dies_at, self.raises_at = seconds, dies_at, raises_at

    def compute(self, rows: range, on_counts: OnCounts) -> dict[str, Any]:
        time.sleep(self.seconds)
        if self.dies_at in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.raises_at in rows:
            raise KeyError("no such column")
        on_counts({"num_rollouts": len(rows)})
        return {"squares": [row**2 for row in rows]}

    def close(self) -> None:
        pass


def unmade() -> SquareWorker:
    raise ValueError("no such model")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room for workers, to which nodes of one CPU are added."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def squares(job: Job) -> list[int]:
    return [square for unit in job.results() for square in unit["squares"]]


def job_in(folder: Path, num_rows: int = 40) -> Job:
    return Job(folder, {"kind": "squares"}, num_rows, rows_per_unit=2)


def test_a_node_is_lost_and_one_joins_late(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    seen: list[Mapping[str, int]] = []

    def on_progress(progress: Any) -> None:
        seen.append(dict(progress.counts))
        if progress.num_done >= 8 and len(nodes) == 2:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            cluster.add_node(num_cpus=1)

    job = job_in(tmp_path / "job")
    engine = RayEngine(cluster.address, num_workers=3)
    assert job.run(partial(SquareWorker, 0.2), engine=engine, on_progress=on_progress)
    assert squares(job) == [row**2 for row in range(40)]
    assert len(nodes) == 1
    assert seen[-1]["num_rollouts"] == 40


def test_a_job_changes_its_engine(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    job = job_in(tmp_path / "job")
    with pytest.raises(KeyError, match="no such column"):
        job.run(partial(SquareWorker, raises_at=20))
    half = len(job.places)
    assert 0 < half < job.num_units
    assert job.run(SquareWorker, engine=RayEngine(cluster.address))
    assert squares(job) == [row**2 for row in range(40)]


def test_errors_of_the_job_reach_the_user(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    with pytest.raises(KeyError, match="no such column"):
        job_in(tmp_path / "raises").run(partial(SquareWorker, raises_at=4), engine=RayEngine(cluster.address))
    with pytest.raises(RuntimeError, match="no such model"):
        job_in(tmp_path / "unmade").run(unmade, engine=RayEngine(cluster.address))


def test_a_unit_that_kills_its_workers_is_named(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2)
    job = job_in(tmp_path / "job")
    with pytest.raises(RuntimeError, match=rf"Rows 6 to 7 took down {MAX_DEATHS} workers"):
        job.run(partial(SquareWorker, dies_at=7), engine=RayEngine(cluster.address))
    assert job.run(SquareWorker)
    assert squares(job) == [row**2 for row in range(40)]


def test_a_cluster_without_room_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    with pytest.raises(ValueError, match="there is room for none"):
        job_in(tmp_path / "job").run(SquareWorker, engine=RayEngine(cluster.address, gpus_per_worker=1.0))


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        RayEngine(num_workers=0)


def test_collect_equals_one_process(cluster: Cluster, tmp_path: Path) -> None:
    from datasets import Dataset

    from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
    from trl_prl.collection.config import CollectConfig
    from trl_prl.collection.job import collect

    cluster.add_node(num_cpus=2)
    problems = sample_problems("train", 4, seed=0)
    dataset = Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in problems])
    tables = []
    for name, engine in (("ray", RayEngine(cluster.address, num_workers=2)), ("here", run_here)):
        config = CollectConfig(
            model=arithmetic_policy_path(),
            dataset="arithmetic",
            output_dir=str(tmp_path / name),
            reward="tests.benchmarks.arithmetic.task:arithmetic_reward",
            n_cov=2,
            n_mc=2,
            max_completion_length=24,
            problems_per_unit=1,
        )
        collected = collect(config, dataset, engine=engine)
        assert collected is not None
        tables.append(pq.read_table(collected.path).to_pylist())
    assert tables[0] == tables[1]
    assert tables[0]
