"""Trains and evaluates a verifier on the processes that launch it; run by tests/test_verifier_distributed.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tests.verifier_models import arithmetic_rows, build_verifier_model, make_verifier_args
from trl_prl.demo.arithmetic import build_arithmetic_tokenizer
from trl_prl.verifier.trainer import PAVRewardTrainer


def train(output_dir: Path, num_processes: int) -> dict[str, Any]:
    """Train on all rows at once, whatever their order; then evaluate, on rows that no batch divides."""
    tokenizer = build_arithmetic_tokenizer()
    args = make_verifier_args(output_dir, per_device_train_batch_size=16 // num_processes, max_steps=3)
    trainer = PAVRewardTrainer(
        build_verifier_model(tokenizer),
        args,
        train_dataset=arithmetic_rows(16, seed=0),
        eval_dataset=arithmetic_rows(13, seed=1),
        processing_class=tokenizer,
    )
    trainer.train()
    return {"world_size": trainer.args.world_size, "metrics": trainer.evaluate()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", type=Path, required=True)
    folder = parser.parse_args().output_dir
    found = train(folder / "run", num_processes=2)
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
