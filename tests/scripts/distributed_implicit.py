"""Lets an implicit process reward learn on some processes, by itself or in a training, and saves what it learned."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tests.tiny_models import build_model, build_tokenizer
from tests.trainer_runs import make_trainer, train_logs
from trl_prl.prms.implicit import ImplicitProcessReward


STEPS = [["We add.\n", "It is 3."], ["It is 8."], ["First.\n\n", "Then.\n\n", "So 5."]]
OUTCOMES = [1.0, 0.0, 1.0]


def learn(rank: int = 0, num_processes: int = 1) -> dict[str, Any]:
    """Take two steps: on three solutions, and on one, which leaves all processes but the first without any."""
    accelerator, tokenizer = Accelerator(cpu=True), build_tokenizer()
    # The first process's adapter counts.
    torch.manual_seed(rank)
    reward = ImplicitProcessReward(build_model(tokenizer), tokenizer, learning_rate=1e-3, lora_rank=4)
    reward.prepare(accelerator)
    logs = []
    for count in (3, 1):
        rows, outcomes = STEPS[:count][rank::num_processes], OUTCOMES[:count][rank::num_processes]
        logs.append(reward.update(["Add."] * len(rows), rows, outcomes))
    return {"parameters": reward.state_dict()["parameters"], "logs": logs}


def train(model: str, output_dir: Path, rank: int) -> dict[str, Any]:
    """Train a policy for two optimizer steps with a reward that learns; the second process has no scorable outcome."""

    def outcomes(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        return [None if rank else float(len(ids) % 2) for ids in completion_ids]

    tokenizer = build_tokenizer()
    torch.manual_seed(rank)
    reward = ImplicitProcessReward(build_model(tokenizer), tokenizer, learning_rate=1e-2, lora_rank=4)
    more = {"process_reward": reward, "reward_funcs": outcomes}
    trainer = make_trainer("pav", model, output_dir, more, initial_value=None, save_strategy="steps", save_steps=2)
    trainer.train()
    return {"parameters": reward.state_dict()["parameters"], "logs": train_logs(trainer)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", help="Policy to train; without one, the reward learns from given solutions.")
    arguments = parser.parse_args()
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = train(arguments.model, arguments.output_dir, rank) if arguments.model else learn(rank, num_processes)
    torch.save(found, arguments.output_dir / f"{rank}.pt")
