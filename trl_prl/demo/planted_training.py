"""Training on the planted sub-sequence task: the didactic experiment of the PAV paper, and PRL on the same task."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer

from .planted import PlantedProcessReward, planted_reward
from .planted_policy import build_base_policy, build_planted_tokenizer, planted_dataset
from .training import WINDOW, OnStep, StopAtAccuracy, cpu_fields, train_quietly


# Appendix B: batch 64, Adam, no baseline but the batch mean, every token a step.
_PAPER_FIELDS: dict[str, Any] = {
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
    stop_at: float | None = None,
    on_step: OnStep | None = None,
    output_dir: Path | None = None,
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
        stop_at (`float`, *optional*):
            End the run once the accuracy, averaged over [`WINDOW`] optimizer steps, has reached this.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.
        output_dir (`Path`, *optional*):
            Folder to leave the record of the run in, for `trl-prl report`.

    Returns:
        [`PlantedRun`]: Accuracy per optimizer step and the trained policy.
    """
    with tempfile.TemporaryDirectory() as temporary_dir:
        args = PAVConfig(
            **cpu_fields(str(output_dir or temporary_dir)),
            **_PAPER_FIELDS,
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
            callbacks=[] if stop_at is None else [StopAtAccuracy(stop_at, WINDOW)],
        )
        logs = train_quietly(trainer, on_step)
    return PlantedRun([entry["reward"] for entry in logs], trainer.model)


def train_planted_prl(
    seed: int, base: str, max_steps: int = 100, on_step: OnStep | None = None, **fields: Any
) -> PlantedRun:
    """Train with [`PRLTrainer`] on the planted task: outcome rewards and the KL to the base policy, no prover.

    Batch and optimizer are those of [`train_planted`]. Unscaled rewards and the loss's constant divisor put reward and
    KL in the same units wherever the KL is placed, so `beta` means the same everywhere.

    Args:
        seed (`int`):
            Seed of the rollouts.
        base (`str`):
            Folder of the base policy, a saved [`build_base_policy`]; the reference is loaded from it too.
        max_steps (`int`, *optional*, defaults to `100`):
            Optimizer steps.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.
        **fields:
            Fields of [`PRLConfig`], such as `beta` and `kl_placement`.

    Returns:
        [`PlantedRun`]: Accuracy per optimizer step and the trained policy.
    """
    with tempfile.TemporaryDirectory() as output_dir:
        args = PRLConfig(**{**cpu_fields(output_dir), **_PAPER_FIELDS, "max_steps": max_steps, "seed": seed, **fields})
        trainer = PRLTrainer(
            base, planted_reward, args, planted_dataset(max(64, max_steps)), processing_class=build_planted_tokenizer()
        )
        logs = train_quietly(trainer, on_step)
    return PlantedRun([entry["reward"] for entry in logs], trainer.model)


def sample_planted(model: Any, num_samples: int, seed: int = 0) -> list[bool]:
    """Sample sequences from a policy at temperature 1, and check which contain the planted run.

    Args:
        model (`PreTrainedModel`):
            The policy.
        num_samples (`int`):
            Number of sequences.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.

    Returns:
        `list[bool]`: Whether each sequence is a success.
    """
    tokens = sample_planted_tokens(model, num_samples, seed)
    texts = build_planted_tokenizer().batch_decode(tokens, skip_special_tokens=True)
    return [reward == 1.0 for reward in planted_reward(texts)]


@torch.no_grad()
def sample_planted_tokens(model: Any, num_samples: int, seed: int = 0) -> Tensor:
    """Sample sequences from a policy at temperature 1, as [`sample_planted`] does.

    Returns:
        `Tensor` of shape (num_samples, T): Token ids, at most 10 each, the end token from the end of a sequence on.
    """
    tokenizer = build_planted_tokenizer()
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=10,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prompts = torch.full((num_samples, 1), tokenizer.eos_token_id, device=model.device)
        output: Tensor = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=config
        )
    return output[:, 1:]
