"""Time of credit assignment, as a multiple of a plain copy of its inputs.

    python tests/benchmarks/bench_advantages.py
    python tests/benchmarks/bench_advantages.py --device cuda --json bench.json

The copy moves the same bytes that every function has to read at least once (`logps` and `ref_logps` in float32), with
the same number of threads, and is timed in turn with the function it is compared to: a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from trl_prl.credit.advantages import pav_advantages, prl_advantages


def make_inputs(batch: int, length: int, step_length: int, device: str) -> dict[str, torch.Tensor]:
    """Ragged completions between half the length and all of it, with a hole of 64 tokens in the middle of each."""
    generator = torch.Generator().manual_seed(0)
    ref_logps = -torch.rand(batch, length, generator=generator) * 3
    logps = ref_logps + 0.1 * torch.randn(batch, length, generator=generator)
    positions = torch.arange(length)
    step_ids = (positions // step_length).expand(batch, length).clone()
    lengths = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    step_ids[positions >= lengths] = -1
    step_ids[:, length // 4 : length // 4 + 64] = -1
    inputs = {
        "outcome_advantages": torch.randn(batch, generator=generator),
        "logps": logps,
        "ref_logps": ref_logps,
        "step_ids": step_ids,
        "step_advantages": torch.randn(batch, int(step_ids.max()) + 1, generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def milliseconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="completions")
    parser.add_argument("--length", type=int, default=8192, help="tokens per completion")
    parser.add_argument("--step_length", type=int, default=256, help="tokens per step")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of timings; the median is reported")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", default=None, help="file to write the results to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    inputs = make_inputs(args.batch, args.length, args.step_length, args.device)
    outcome, logps, ref_logps, step_ids = (
        inputs[name] for name in ("outcome_advantages", "logps", "ref_logps", "step_ids")
    )
    copies = [torch.empty_like(logps), torch.empty_like(ref_logps)]

    def copy() -> None:
        copies[0].copy_(logps)
        copies[1].copy_(ref_logps)

    def prl(**options: object) -> Callable[[], object]:
        return lambda: prl_advantages(outcome, logps, ref_logps, step_ids, beta=0.005, **options)

    functions = {
        "prl token k1": prl(level="token"),
        "prl step k1": prl(level="step"),
        "prl token k3": prl(level="token", estimator="k3"),
        "prl step k3": prl(level="step", estimator="k3"),
        "prl step forward": prl(level="step", direction="forward"),
        "pav": lambda: pav_advantages(outcome, inputs["step_advantages"], step_ids, alpha=5.0),
    }
    results = {}
    print(
        f"({args.batch}, {args.length}) float32, steps of {args.step_length}, {args.device}, {args.threads} thread(s)"
    )
    print(f"{'':18} {'ms':>9} {'copy ms':>9} {'x copy':>7}   (medians of {args.repeats} pairs)")
    for name, function in functions.items():
        function()
        copy()
        pairs = [(milliseconds(function, args.device), milliseconds(copy, args.device)) for _ in range(args.repeats)]
        results[name] = {
            "ms": statistics.median(pair[0] for pair in pairs),
            "copy_ms": statistics.median(pair[1] for pair in pairs),
            "times_copy": statistics.median(pair[0] / pair[1] for pair in pairs),
        }
        row = results[name]
        print(f"{name:18} {row['ms']:9.3f} {row['copy_ms']:9.3f} {row['times_copy']:7.2f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
