"""Training on the planted sub-sequence task: the didactic experiment of the PAV paper."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer

from .planted import PlantedProcessReward, planted_reward
from .planted_policy import build_base_policy, build_planted_tokenizer, planted_dataset
from .training import OnStep, cpu_fields, train_quietly


# Appendix B: batch 64, Adam, no baseline but the batch mean, every token a step.
PAPER_FIELDS: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "num_generations": 64,
    "max_completion_length": 10,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "loss_type": "dr_grpo",
    "scale_rewards": "none",
    "beta": 0.0,
    "step_splitter": "fixed",
    "step_length": 1,
}


@dataclass
class PlantedRun:
    """One run on the planted sub-sequence task.

    Attributes:
        accuracies (`list[float]`):
            Share of the 64 rollouts of each optimizer step that contain the planted run.
        model (`PreTrainedModel`):
            The policy afterwards.
    """

    accuracies: list[float]
    model: Any


def train_planted(
    seed: int,
    alpha: float,
    gamma: float = 10.0,
    max_steps: int = 100,
    base_iterations: int = 50,
    learning_rate: float = 1e-3,
    on_step: OnStep | None = None,
    output_dir: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> PlantedRun:
    """Train on the didactic task of the PAV paper: effective reward (`alpha > 0`) or outcome only (`alpha = 0`).

    Source: [PAV](https://huggingface.co/papers/2410.08146), App. B: batch 64, Adam with learning rate 1e-3, every
    token a step, exact prover values. Rewards are centred by the batch mean and not scaled.

    Args:
        seed (`int`):
            Seed of the base policy and of the rollouts.
        alpha (`float`):
            Weight of the progress; the paper uses 1.
        gamma (`float`, *optional*, defaults to `10.0`):
            Strength of the prover.
        max_steps (`int`, *optional*, defaults to `100`):
            Optimizer steps.
        base_iterations (`int`, *optional*, defaults to `50`):
            Supervised iterations of the base policy. Fewer make success rarer.
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            Learning rate of Adam, the paper's by default.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.
        output_dir (`Path`, *optional*):
            Folder to leave the record of the run in, for `trl-prl report`.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Callbacks of the trainer.

    Returns:
        [`PlantedRun`]: Accuracy per optimizer step and the trained policy.
    """
    with tempfile.TemporaryDirectory() as temporary_dir:
        args = PAVConfig(
            **cpu_fields(str(output_dir or temporary_dir)),
            **PAPER_FIELDS | {"learning_rate": learning_rate},
            max_steps=max_steps,
            seed=seed,
            alpha=alpha,
        )
        trainer = PAVTrainer(
            build_base_policy(seed, num_iterations=base_iterations),
            planted_reward,
            args,
            planted_dataset(max(64, max_steps)),
            processing_class=build_planted_tokenizer(),
            process_reward=PlantedProcessReward(gamma),
            callbacks=list(callbacks),
        )
        logs = train_quietly(trainer, on_step)
    return PlantedRun([entry["reward"] for entry in logs], trainer.model)
