"""The engine of a Ray cluster: units of a job computed by a pool of actors on any number of machines."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import EngineOptions
from .runner import Engine, OnCounts, Results, Worker, run_here


logger = logging.getLogger(__name__)

# A unit whose actor died so often is what kills it, memory most of the time; so is a worker that never got ready.
MAX_DEATHS = 3


class _Actor:
    """Lives on a machine of the cluster, and has one worker of the job."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self.worker = make_worker()

    def ready(self) -> None:
        """Answers once the worker is made."""

    def compute(self, start: int, stop: int) -> tuple[dict[str, Any], list[Mapping[str, int]]]:
        """Result of a unit, and what was counted meanwhile."""
        counts: list[Mapping[str, int]] = []
        return self.worker.compute(range(start, stop), counts.append), counts

    def close(self) -> None:
        """Give back memory and processes."""
        self.worker.close()


@dataclass(frozen=True)
class RayEngine:
    """Computes units with Ray actors; an [`Engine`] of [`Job.run`].

    The process that runs the job hands out units, one to each actor at a time, and alone writes what comes back,
    through the same shards and manifest as without Ray: a job may change its engine when it is resumed. An actor that
    dies, or whose machine is lost, is replaced and its unit done again. Actors that wait for a free machine take part
    as soon as there is one.

    Args:
        address (`str`, *optional*):
            Address of a running cluster; by default that of `RAY_ADDRESS`, else one that runs on this
            machine, else a new one of this machine alone.
        num_workers (`int`, *optional*):
            Actors; by default as many as the cluster has room for when the job starts.
        gpus_per_worker (`float`, *optional*, defaults to `0.0`):
            GPUs that each of them reserves, beside one CPU.

    Raises:
        `ValueError`: If there is room for no worker, or a number makes no sense.
    """

    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        fewest = 1 if self.num_workers is None else self.num_workers
        if fewest < 1 or self.gpus_per_worker < 0:
            raise ValueError(
                f"Got {self}, with which nothing can be computed. Use at least one worker, and no negative numbers."
            )

    def __call__(self, make_worker: Callable[[], Worker], units: Mapping[int, range], on_counts: OnCounts) -> Results:
        """Compute units, each once, in the order in which they end."""
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "engine='ray' needs Ray, which is not installed. Run `pip install trl-prl[ray]`."
            ) from error
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        pool = _Pool(ray, self, make_worker, units)
        try:
            yield from pool.results(on_counts)
        finally:
            pool.close()
            if started_here:
                ray.shutdown()


def make_engine(options: EngineOptions) -> Engine:
    """The engine that options ask for.

    Args:
        options ([`EngineOptions`]):
            Options of a job.

    Returns:
        [`Engine`]: This process, or a [`RayEngine`].
    """
    if options.engine == "process":
        return run_here
    return RayEngine(options.ray_address, options.num_workers, options.gpus_per_worker)


class _Pool:
    """Actors of one run, and what each of them is doing."""

    def __init__(
        self, ray: Any, engine: RayEngine, make_worker: Callable[[], Worker], units: Mapping[int, range]
    ) -> None:
        self.ray, self.units = ray, units
        actor_class = ray.remote(num_cpus=1, num_gpus=engine.gpus_per_worker)(_Actor)
        blob = ray.put(make_worker)
        self.start: Callable[[], Any] = lambda: actor_class.remote(blob)
        self.pending = deque(units)
        self.deaths: Counter[int] = Counter()
        self.failed_starts = 0
        # What is asked of which actor: a unit, or `None` for whether it is ready.
        self.busy: dict[Any, tuple[Any, int | None]] = {}
        for _ in range(min(len(units), engine.num_workers or self._room(engine))):
            self._add()

    def _room(self, engine: RayEngine) -> int:
        """Workers that the cluster has room for."""
        resources = self.ray.cluster_resources()
        needs = {"CPU": 1.0, "GPU": engine.gpus_per_worker}
        room = min((int(resources.get(name, 0) / need) for name, need in needs.items() if need), default=1)
        if room < 1:
            found = {name: resources.get(name, 0) for name in needs}
            raise ValueError(
                f"The Ray cluster has {found}, and a worker needs {needs}, so there is room for none. Lower "
                "gpus_per_worker, or set num_workers to wait until machines join."
            )
        return room

    def _add(self) -> None:
        actor = self.start()
        self.busy[actor.ready.remote()] = actor, None

    def results(self, on_counts: OnCounts) -> Results:
        """Results as they come."""
        while self.busy:
            (ended,), _ = self.ray.wait(list(self.busy), num_returns=1)
            actor, unit = self.busy.pop(ended)
            try:
                answer = self.ray.get(ended)
            except self.ray.exceptions.RayActorError as error:
                self._replace(unit, error)
                continue
            except self.ray.exceptions.RayTaskError as error:
                # What the job's own code raised, as it would be without Ray.
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            if self.pending:
                following = self.pending.popleft()
                rows = self.units[following]
                self.busy[actor.compute.remote(rows.start, rows.stop)] = actor, following
            else:
                actor.close.remote()
            self.failed_starts = 0
            if unit is not None:
                result, counts = answer
                for counted in counts:
                    on_counts(counted)
                yield unit, result

    def _replace(self, unit: int | None, error: Exception) -> None:
        """Put another actor in the place of one that died, and its unit back in front."""
        if unit is None:
            self.failed_starts += 1
            if self.failed_starts >= MAX_DEATHS:
                raise RuntimeError(
                    f"{self.failed_starts} Ray workers, one after the other, could not be made ({error}). Run the "
                    "same command with --engine process to see the error here, or give workers more memory."
                ) from error
        else:
            self.deaths[unit] += 1
            if self.deaths[unit] >= MAX_DEATHS:
                rows = self.units[unit]
                raise RuntimeError(
                    f"Rows {rows.start} to {rows.stop - 1} took down {self.deaths[unit]} workers, one after the other "
                    f"({error}). Give workers more memory (fewer per machine, or smaller batches), and run the same "
                    "command again."
                ) from error
            self.pending.appendleft(unit)
        logger.warning("A Ray worker was lost; another one takes its place.")
        self._add()

    def close(self) -> None:
        """End all actors."""
        for actor, _ in self.busy.values():
            self.ray.kill(actor)
        self.busy = {}
