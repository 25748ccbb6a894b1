"""The two small experiments that `trl-prl quickstart` and the benchmarks run."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from .pav_config import PAVConfig
from .pav_trainer import PAVTrainer
from .prl_config import PRLConfig
from .prl_trainer import PRLTrainer
from .tasks.arithmetic import ArithmeticProcessReward, arithmetic_policy_path, arithmetic_reward
from .tasks.planted import (
    PlantedProcessReward,
    build_base_policy,
    build_planted_tokenizer,
    planted_dataset,
    planted_reward,
)


OnStep = Callable[[int, dict[str, float]], None]


class OnLog(TrainerCallback):
    """Hands the metrics of every optimizer step to a function `(optimizer_step, metrics)`."""

    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "reward" in logs:
            self.on_step(state.global_step, logs)


def cpu_fields(output_dir: str) -> dict[str, Any]:
    """Arguments of a small quiet run: on a GPU if there is one, else on the CPU."""
    return {
        "output_dir": output_dir,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "temperature": 1.0,
    }


def train_quietly(trainer: Any, on_step: OnStep | None) -> list[dict[str, float]]:
    """Train without printing every log entry, and return those of the optimizer steps."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    if on_step is not None:
        trainer.add_callback(OnLog(on_step))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "reward" in entry]


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
    learning_rate: float = 1e-3,
    on_step: OnStep | None = None,
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
        learning_rate (`float`, *optional*, defaults to `1e-3`):
            Learning rate.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.

    Returns:
        [`PlantedRun`]: Accuracy per optimizer step and the trained policy.
    """
    with tempfile.TemporaryDirectory() as output_dir:
        args = PAVConfig(
            **cpu_fields(output_dir),
            per_device_train_batch_size=64,
            num_generations=64,
            max_completion_length=10,
            max_steps=max_steps,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
            seed=seed,
            alpha=alpha,
            step_splitter="fixed",
            step_length=1,
        )
        trainer = PAVTrainer(
            build_base_policy(seed),
            planted_reward,
            args,
            planted_dataset(max(64, max_steps)),
            processing_class=build_planted_tokenizer(),
            process_reward=PlantedProcessReward(gamma),
        )
        logs = train_quietly(trainer, on_step)
    return PlantedRun([entry["reward"] for entry in logs], trainer.model)


def steps_to_accuracy(accuracies: Sequence[float], threshold: float, window: int = 5) -> int | None:
    """Optimizer steps until the accuracy, averaged over the last `window` of them, reaches a threshold.

    Returns:
        `int`, *optional*: The number of optimizer steps, `None` if it is never reached.
    """
    for end in range(window, len(accuracies) + 1):
        if sum(accuracies[end - window : end]) / window >= threshold:
            return end
    return None
