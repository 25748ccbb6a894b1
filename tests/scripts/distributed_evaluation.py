"""One short run with an EvaluationCallback; its logs and final parameters go to a file of each process.

torchrun --nproc_per_node 2 tests/scripts/distributed_evaluation.py --model DIR --output-dir DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from tests.tiny_models import make_grpo_args, prompt_dataset, token_reward
from trl_prl.training.evaluation_callback import EvaluationCallback


def half_right(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Right or not by the sampled ids, about half of the time."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def train(model: str, output_dir: Path, num_processes: int, with_callback: bool = True) -> dict[str, Any]:
    """Train for two optimizer steps and evaluate after each.

    Args:
        model (`str`):
            Folder of the policy.
        output_dir (`Path`):
            Folder of the run.
        num_processes (`int`):
            Number of processes the batch is shared out to.
        with_callback (`bool`, *optional*, defaults to `True`):
            Whether to evaluate at all.

    Returns:
        `dict`: What the policy scored before training, logs of the evaluations, losses, and parameters.
    """
    args = make_grpo_args(
        GRPOConfig, output_dir, max_steps=2, per_device_train_batch_size=8 // num_processes, optim="sgd"
    )
    trainer = GRPOTrainer(model, token_reward, args, prompt_dataset())
    before = None
    if with_callback:
        # Five prompts: the processes have different shares.
        callback = EvaluationCallback(trainer, prompt_dataset(5), half_right, n=4, k=(1, 2, 4), freq=1)
        before = callback.evaluate()
        trainer.add_callback(callback)
    trainer.train()
    return {
        "before": before,
        "logs": [entry for entry in trainer.state.log_history if "eval_avg_at_4" in entry],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "parameters": {name: value.detach().clone() for name, value in trainer.model.named_parameters()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parsed = parser.parse_args()
    runs = {
        name: train(parsed.model, parsed.output_dir / name, 2, with_callback=name == "with")
        for name in ("with", "without")
    }
    torch.save(runs, parsed.output_dir / f"rank-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
