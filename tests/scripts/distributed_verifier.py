"""Trains and evaluates a verifier on the processes that launch it, for test_verifier_distributed.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.arithmetic.task import build_arithmetic_tokenizer
from tests.scripts.distributed_train import train_and_compare
from tests.verifier_models import arithmetic_rows, build_verifier_model, make_verifier_args
from trl_prl.verifier.trainer import PAVRewardTrainer


def make_fixed_verifier_trainer(
    model: Any, tokenizer: Any, output_dir: Path, num_processes: int, peft_config: Any = None, **overrides: Any
) -> PAVRewardTrainer:
    """Build a trainer whose batch is all rows, whatever their order, and which evaluates on rows no batch divides.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            What is trained.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        output_dir (`Path`):
            Folder of the run.
        num_processes (`int`):
            Number of processes the batch is shared out to.
        peft_config (`PeftConfig`, *optional*):
            Adapter to train.
        **overrides:
            Configuration fields.

    Returns:
        [`PAVRewardTrainer`]: The trainer.
    """
    settings = {"per_device_train_batch_size": 16 // num_processes, "max_steps": 4, "optim": "sgd", **overrides}
    return PAVRewardTrainer(
        model,
        make_verifier_args(output_dir, **{"learning_rate": 0.5, **settings}),
        train_dataset=arithmetic_rows(16, seed=0),
        eval_dataset=arithmetic_rows(13, seed=1),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def train(output_dir: Path, num_processes: int) -> dict[str, Any]:
    """Train, then evaluate."""
    tokenizer = build_arithmetic_tokenizer()
    trainer = make_fixed_verifier_trainer(build_verifier_model(tokenizer), tokenizer, output_dir, num_processes)
    return {**train_and_compare(trainer), "metrics": trainer.evaluate()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", type=Path, required=True)
    folder = parser.parse_args().output_dir
    found = train(folder / "run", num_processes=2)
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
