"""`trl-prl serve` against scoring in this process: throughput, and whether any score is lost or mixed up.

python tests/benchmarks/bench_serve.py --clients 64 --output serve.json

64 clients on 127.0.0.1 ask one server, each request a few solutions, as processes of a training do; the same solutions
are scored in this process in batches of the size of the server's. The server runs in a process of its own. With
`--verifier` any process reward is measured; by default a random Qwen2 with 128 hidden units, 4 layers and Qwen's head.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.common import Results, machine_text
from tests.prm_models import save_qwen
from trl_prl import RemoteProcessReward, load_process_reward


def build_rows(num_rows: int, seed: int) -> list[tuple[str, list[str]]]:
    """Solutions of 2 to 8 steps, all different."""
    numbers = random.Random(seed)

    def step(number: int) -> str:
        return f"Step {number}: we add {numbers.randint(1, 999)} to {numbers.random()}.\n\n"

    return [
        (f"Problem {row}: what is the sum?", [step(number) for number in range(1, numbers.randint(3, 9))])
        for row in range(num_rows)
    ]


def ask(process_reward: Any, rows: list[tuple[str, list[str]]], size: int) -> list[Any]:
    """Scores of all rows, in requests of one size."""
    found = []
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        found += process_reward([prompt for prompt, _ in part], [steps for _, steps in part])
    return found


def cpu_seconds(process_id: int) -> float:
    """Processor time of a process: what a busy machine changes less than the time on the wall."""
    times = psutil.Process(process_id).cpu_times()
    return times.user + times.system


def measure(args: argparse.Namespace, verifier: str) -> dict[str, Any]:
    """Score the same rows here and over HTTP."""
    share = args.requests * args.solutions
    rows = build_rows(args.clients * share, seed=0)
    local = load_process_reward(verifier)
    ask(local, rows[:8], 8)
    start, cpu_local = time.perf_counter(), time.process_time()
    expected = ask(local, rows, args.max_batch)
    seconds_local, cpu_local = time.perf_counter() - start, time.process_time() - cpu_local
    words = ["--verifier", verifier, "--port", str(args.port), "--max-batch", str(args.max_batch), "--device", "cpu"]
    command = [sys.executable, "-m", "trl_prl", "serve", *words]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{args.port}"
        clients = [RemoteProcessReward(url, max_wait=300, max_retries=1000) for _ in range(args.clients)]
        ask(clients[0], rows[:8], 8)
        start, cpu = time.perf_counter(), cpu_seconds(server.pid)
        with ThreadPoolExecutor(args.clients) as pool:
            parts = [rows[i * share : (i + 1) * share] for i in range(args.clients)]
            found = [row for part in pool.map(ask, clients, parts, [args.solutions] * args.clients) for row in part]
        seconds, cpu = time.perf_counter() - start, cpu_seconds(server.pid) - cpu
    finally:
        server.kill()
        server.wait()
    pairs = [pair for row, other in zip(found, expected, strict=True) for pair in zip(row, other, strict=True)]
    differences = [abs(a - b) for a, b in pairs]
    return {
        "num_solutions": len(rows),
        "num_steps": len(differences),
        "in_process": len(rows) / seconds_local,
        "served": len(rows) / seconds,
        "ratio": seconds_local / seconds,
        "cpu_ratio": cpu_local / cpu,
        "num_lost": sum(len(row) != len(steps) for row, (_, steps) in zip(found, rows, strict=True)),
        "num_mixed_up": sum(difference > 1e-5 for difference in differences),
        "largest_difference": max(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4, help="requests of each client")
    parser.add_argument("--solutions", type=int, default=2, help="solutions of each request")
    parser.add_argument("--max-batch", type=int, default=256)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--verifier")
    parser.add_argument("--output", type=Path, default=Path("bench_serve.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.verifier is None:
            sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
            args.verifier = str(save_qwen(Path(folder) / "qwen", **sizes))
        results = Results(args.output)
        found = results.get(f"{args.clients} clients", lambda: measure(args, args.verifier))
    print(machine_text(results.data["machine"]))
    for name, value in found.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
