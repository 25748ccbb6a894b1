"""Units of a collection through Ray against this process, in one run: what a unit costs more, and what workers gain.

    python -m tests.benchmarks.bench_ray                    # in turn: this process, one Ray worker, two of them

Every worker has one thread. What is timed begins with the first unit that ends and leaves starting and loading out,
which a job pays once. The ratios hold for units as long as these; the time that Ray adds to a unit does not depend on
its length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.arithmetic.task import arithmetic_policy_path, sample_problems
from tests.benchmarks.common import machine, table
from trl_prl.collection.config import CollectConfig
from trl_prl.collection.job import CollectWorker
from trl_prl.jobs.ray_engine import RayEngine
from trl_prl.jobs.runner import run_here
from trl_prl.storage.row_sources import load_rows


def seconds_per_unit(engine: Any, make_worker: Any, units: dict[int, range], num_workers: int) -> float:
    """Time from one unit that ends to the next, once all workers are at work."""
    ends = []
    for _ in engine(make_worker, units, lambda counts: None):
        ends.append(time.perf_counter())
    # The last units leave workers without any.
    ends = ends[: len(ends) - num_workers + 1]
    return (ends[-1] - ends[num_workers - 1]) / (len(ends) - num_workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--problems_per_unit", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", choices=["table", "json"], default="table")
    args = parser.parse_args()
    torch.set_num_threads(1)

    folder = Path(tempfile.mkdtemp())
    problems = sample_problems("tuning", args.units * args.problems_per_unit, seed=5)
    rows = [json.dumps({"prompt": problem.prompt, "answer": problem.answer}) for problem in problems]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    config = CollectConfig(
        model=arithmetic_policy_path(),
        dataset=str(folder / "prompts.jsonl"),
        output_dir=str(folder / "values"),
        reward="tests.benchmarks.arithmetic.task:arithmetic_reward",
        max_completion_length=40,
        n_cov=4,
        n_mc=16,
        check_timeout=0,
    )
    make_worker = partial(CollectWorker, config, load_rows(config.dataset))
    units = {i: range(i * args.problems_per_unit, (i + 1) * args.problems_per_unit) for i in range(args.units)}
    engines = {
        "this process": (run_here, 1),
        "Ray, 1 worker": (RayEngine(num_workers=1), 1),
        "Ray, 2 workers": (RayEngine(num_workers=2), 2),
    }
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(args.repeats):
        for name, (engine, num_workers) in engines.items():
            found[name].append(seconds_per_unit(engine, make_worker, units, num_workers))
    if args.output == "json":
        print(json.dumps({"seconds per unit": found, "machine": machine()}, indent=1))
        return
    here = statistics.median(found["this process"])
    alone = statistics.median(found["Ray, 1 worker"])
    lines = [
        (
            name,
            f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})",
            f"{100 * (statistics.median(values) / here - 1):+.1f} %",
            f"{alone / statistics.median(values):.2f}",
        )
        for name, values in found.items()
    ]
    print(machine())
    print(table(["engine", "seconds per unit", "against this process", "throughput of one Ray worker"], lines))


if __name__ == "__main__":
    main()
