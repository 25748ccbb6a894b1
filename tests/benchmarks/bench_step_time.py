"""Time of a PRL optimizer step as a multiple of one of GRPO with the same beta, and of PAV against GRPO.

    python tests/benchmarks/bench_step_time.py --pairs 10

Both trainers live in one process and train in turn, A B A B; the ratio is taken pair by pair. PAV's includes a process
reward that costs nothing to compute. Timings are for one process on this machine; the ratios are what carries over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from arithmetic.prover import ArithmeticProcessReward
from arithmetic.task import (
    LONG_NUM_TERMS,
    arithmetic_dataset,
    arithmetic_policy_path,
    arithmetic_reward,
    completion_length,
)
from common import machine
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from trl_prl import PAVConfig, PAVTrainer, PRLConfig, PRLTrainer
from trl_prl.demo.training import cpu_fields


def build(trainer_class: Any, config_class: Any, output_dir: str, args: argparse.Namespace, **extra: Any) -> Any:
    fields = {"beta": args.beta, **extra.pop("fields", {})}
    config = config_class(
        **cpu_fields(output_dir),
        per_device_train_batch_size=args.batch_size,
        num_generations=8,
        max_completion_length=completion_length(LONG_NUM_TERMS),
        max_steps=args.steps,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        **fields,
    )
    dataset = arithmetic_dataset("train", args.batch_size * args.steps, seed=0, num_terms=LONG_NUM_TERMS)
    trainer = trainer_class(arithmetic_policy_path(), arithmetic_reward, config, dataset, **extra)
    trainer.remove_callback(PrinterCallback)
    return trainer


def seconds(trainer: Any) -> float:
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def measure(first: Any, second: Any, pairs: int, steps: int) -> dict[str, Any]:
    seconds(first), seconds(second)  # warm-up
    times = [(seconds(first), seconds(second)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b in times)
    return {
        "ratio_median": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "ms_per_step": [1000 * statistics.median(column) / steps for column in zip(*times, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps per timing")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--beta", type=float, default=0.005)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        grpo = build(GRPOTrainer, GRPOConfig, folder, args)
        prl = build(PRLTrainer, PRLConfig, folder, args, fields={"step_splitter": "newline"})
        pav = build(
            PAVTrainer,
            PAVConfig,
            folder,
            args,
            fields={"step_splitter": "newline"},
            process_reward=ArithmeticProcessReward(),
        )
        results = {
            "PRL / GRPO(beta)": measure(prl, grpo, args.pairs, args.steps),
            "GRPO(beta) / GRPO(beta)": measure(
                build(GRPOTrainer, GRPOConfig, folder, args), grpo, args.pairs, args.steps
            ),
            "PAV / GRPO(beta)": measure(pav, grpo, args.pairs, args.steps),
            "machine": machine(),
        }
    text = json.dumps(results, indent=1)
    if args.output is not None:
        args.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
