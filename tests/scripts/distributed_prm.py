"""Trains with a public process reward model on the processes that launch it; run by tests/prms/test_distributed.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tests.scripts.distributed_train import GLOBAL_BATCH, GROUP, fixed_rollout, train_and_collect
from tests.trainer_runs import make_trainer


def train(model: str, verifier: str, output_dir: Path, num_processes: int) -> dict[str, Any]:
    """Train PAV on a share of the global batch, with the same rollouts on any number of processes."""
    trainer = make_trainer(
        "pav",
        model,
        output_dir,
        {"rollout_func": fixed_rollout, "process_reward": verifier},
        per_device_train_batch_size=GLOBAL_BATCH // num_processes,
        num_generations=GROUP,
        max_steps=2,
        optim="sgd",
        learning_rate=0.5,
        beta=0.2,
    )
    return train_and_collect(trainer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--verifier", "--output-dir"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = train(options.model, options.verifier, Path(options.output_dir) / "run", num_processes=2)
    torch.save(found, Path(options.output_dir) / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
