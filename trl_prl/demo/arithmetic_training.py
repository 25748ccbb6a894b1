"""Training on arithmetic in text with GRPO, PRL and PAV, and measuring what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from trl import GRPOConfig

from trl_prl.metrics.sampling_estimates import mean_pass_at_k
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer
from trl_prl.training.process_grpo_trainer import ProcessGRPOTrainer

from .arithmetic import (
    LONG_NUM_TERMS,
    MAIN_NUM_TERMS,
    Split,
    arithmetic_dataset,
    arithmetic_policy_path,
    arithmetic_reward,
)
from .arithmetic_prover import ArithmeticProcessReward
from .training import OnStep, cpu_fields, train_quietly


@torch.no_grad()
def sample_correct(
    model: Any,
    split: Split,
    num_terms: int,
    num_problems: int,
    num_samples: int = 8,
    seed: int = 0,
    batch_size: int = 512,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[bool]]:
    """Sample solutions of held-out arithmetic problems at temperature 1 and check them.

    Args:
        model (`PreTrainedModel`):
            The policy.
        split (`str`):
            `"tuning"` or `"test"`.
        num_terms (`int`):
            Terms per problem.
        num_problems (`int`):
            Number of problems.
        num_samples (`int`, *optional*, defaults to `8`):
            Samples per problem.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling; the problems are always the same.
        batch_size (`int`, *optional*, defaults to `512`):
            Completions generated at once.
        on_batch (`Callable`, *optional*):
            Called with the number of completions of each batch.

    Returns:
        `list[list[bool]]`: For each problem, which of its samples are correct.
    """
    tokenizer = AutoTokenizer.from_pretrained(arithmetic_policy_path())
    problems = arithmetic_dataset(split, num_problems, seed=0, num_terms=num_terms)
    prompts = [prompt for prompt in problems["prompt"] for _ in range(num_samples)]
    answers = [answer for answer in problems["answer"] for _ in range(num_samples)]
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=completion_length(num_terms),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    was_training, correct = model.training, list[bool]()
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            batch = tokenizer(prompts[start : start + batch_size], return_tensors="pt", padding=True).to(model.device)
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            output = model.generate(**inputs, generation_config=config)
            texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            rewards = arithmetic_reward(texts, answers[start : start + batch_size])
            correct.extend(reward == 1.0 for reward in rewards)
            if on_batch is not None:
                on_batch(len(texts))
    model.train(was_training)
    return [correct[i : i + num_samples] for i in range(0, len(correct), num_samples)]


def completion_length(num_terms: int) -> int:
    """Room for a solution: up to four characters and a line break per running result, and the answer line."""
    return 5 * num_terms + 2


def load_arithmetic_policy() -> Any:
    """The base policy that ships with the package, in float32."""
    return AutoModelForCausalLM.from_pretrained(arithmetic_policy_path(), dtype=torch.float32)


def evaluate_arithmetic(
    model: Any, split: Split, num_problems: int, seed: int = 0, on_batch: Callable[[int], None] | None = None
) -> dict[str, float]:
    """avg@8 and unbiased pass@8 on problems of ordinary and of long length, in percent.

    Args:
        model (`PreTrainedModel`):
            The policy.
        split (`str`):
            `"tuning"` or `"test"`.
        num_problems (`int`):
            Problems of each length.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        on_batch (`Callable`, *optional*):
            Called with the number of completions of each batch.

    Returns:
        `dict[str, float]`: Percentages named `<length>/avg@8` and `<length>/pass@8`.
    """
    results = {}
    for name, num_terms in (("main", MAIN_NUM_TERMS), ("long", LONG_NUM_TERMS)):
        correct = sample_correct(model, split, num_terms, num_problems, 8, seed, on_batch=on_batch)
        results[f"{name}/avg@8"] = 100.0 * mean_pass_at_k(correct, 1)
        results[f"{name}/pass@8"] = 100.0 * mean_pass_at_k(correct, 8)
    return results


@dataclass(frozen=True)
class Method:
    """One way of training on arithmetic, with its hyperparameters.

    Attributes:
        name (`str`):
            `"GRPO"`, `"PRL"` or `"PAV"`.
        learning_rate (`float`):
            Learning rate.
        coefficient (`float`):
            `beta` of PRL or `alpha` of PAV; not used by GRPO.
        process_reward (`ProcessReward` or `str`, *optional*):
            What PAV scores steps with: a process reward, or the folder of a verifier. Exact values by default.
        best_of_k (`int`):
            Best-of-K transform of its values.
    """

    name: str
    learning_rate: float
    coefficient: float = 0.0
    process_reward: Any = None
    best_of_k: int = 1


def training_problems(num_problems: int, seed: int, split: Split = "train") -> Dataset:
    """Problems to train on: half of ordinary length, half long, in random order."""
    halves = [
        arithmetic_dataset(split, num_problems - num_problems // 2, seed, MAIN_NUM_TERMS),
        arithmetic_dataset(split, num_problems // 2, seed, LONG_NUM_TERMS),
    ]
    return concatenate_datasets(halves).shuffle(seed=seed)


def _kind_of(method: Method) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Trainer and configuration of a method, fields of the one and arguments of the other."""
    classes: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
        # Stock GRPO to the last bit, but recorded.
        "GRPO": (ProcessGRPOTrainer, GRPOConfig, {"beta": 0.0}, {}),
        "PRL": (PRLTrainer, PRLConfig, {"beta": method.coefficient, "step_splitter": "newline"}, {}),
        "PAV": (
            PAVTrainer,
            PAVConfig,
            {
                "beta": 0.0,
                "alpha": method.coefficient,
                "progress_scale": "none",
                "best_of_k": method.best_of_k,
                "step_splitter": "newline",
            },
            {"process_reward": method.process_reward or ArithmeticProcessReward()},
        ),
    }
    return classes[method.name]


def train_arithmetic(
    method: Method,
    seed: int,
    max_steps: int,
    on_step: OnStep | None = None,
    output_dir: Path | None = None,
    num_eval_problems: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Any, list[dict[str, float]]]:
    """Train the shipped base policy on arithmetic problems, eight problems and eight samples each per optimizer step.

    All methods see the same problems in the same order and draw the same number of samples.

    Args:
        method ([`Method`]):
            What to train with.
        seed (`int`):
            Seed of problems and rollouts.
        max_steps (`int`):
            Optimizer steps.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.
        output_dir (`Path`, *optional*):
            Folder to leave the record of the run in, for `trl-prl report`.
        num_eval_problems (`int`, *optional*, defaults to `0`):
            Problems, half of them long, on which the policy is evaluated five times during the run, so that the record
            has the same prompts again and again. It moves the random numbers of the rollouts.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Further callbacks of the trainer.

    Returns:
        `tuple`: The trained policy, and the metrics of every optimizer step.
    """
    trainer_class, config_class, fields, arguments = _kind_of(method)
    if num_eval_problems:
        fields = {**fields, "eval_strategy": "steps", "eval_steps": max(1, max_steps // 5), "eval_on_start": True}
        arguments = {**arguments, "eval_dataset": training_problems(num_eval_problems, seed=0, split="tuning")}
    with tempfile.TemporaryDirectory() as temporary_dir:
        args = config_class(
            **cpu_fields(str(output_dir or temporary_dir)),
            per_device_eval_batch_size=64,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=completion_length(LONG_NUM_TERMS),
            max_steps=max_steps,
            learning_rate=method.learning_rate,
            lr_scheduler_type="constant",
            seed=seed,
            **fields,
        )
        trainer = trainer_class(
            arithmetic_policy_path(),
            arithmetic_reward,
            args,
            training_problems(8 * max_steps, seed),
            callbacks=[*callbacks],
            **arguments,
        )
        logs = train_quietly(trainer, on_step)
    return trainer.model, logs
