"""Training on paths with GRPO, RLOO, PRL and PAV, and measuring what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from trl import GRPOConfig, RLOOConfig, RLOOTrainer

from trl_prl.demo.path_prover import PathProcessReward
from trl_prl.demo.paths import (
    FAR,
    MAX_COMPLETION_LENGTH,
    NEAR,
    Split,
    is_right,
    path_dataset,
    path_reward,
    problems_of,
)
from trl_prl.demo.training import OnStep, cpu_fields, train_quietly
from trl_prl.metrics.sampling_estimates import mean_pass_at_k
from trl_prl.training.pav_config import PAVConfig
from trl_prl.training.pav_trainer import PAVTrainer
from trl_prl.training.prl_config import PRLConfig
from trl_prl.training.prl_trainer import PRLTrainer
from trl_prl.training.process_grpo_trainer import ProcessGRPOTrainer


PASS_AT = (1, 8, 64)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        method (`str`):
            `"GRPO"`, `"GRPO-KL"` (the KL in the loss), `"RLOO"`, `"PRL"` or `"PAV"`.
        learning_rate (`float`):
            Learning rate, constant.
        coefficient (`float`):
            `beta` of GRPO-KL, RLOO and PRL, `alpha` of PAV.
        num_prompts (`int`), num_generations (`int`):
            Problems per optimizer step, half of them far, and samples of each.
        max_steps (`int`):
            Optimizer steps.
        seed (`int`):
            Seed of problems and rollouts.
        process_reward (`str`):
            What PAV scores steps with: `"exact"`, or the folder of a verifier.
        wander (`float`):
            Of the prover whose exact values are used.
        options (`str`):
            Further fields of the trainer's configuration as `name=value`, separated by commas.
    """

    method: str
    learning_rate: float
    coefficient: float = 0.0
    num_prompts: int = 32
    num_generations: int = 16
    max_steps: int = 200
    seed: int = 0
    process_reward: str = "exact"
    wander: float = 0.3
    options: str = ""

    @property
    def name(self) -> str:
        """Name of the run, as of a file."""
        changed = {k: v for k, v in asdict(self).items() if v != Run.__dataclass_fields__[k].default}
        return "-".join(f"{k}_{v}" for k, v in changed.items()).replace("/", "_").replace("=", "_")


def training_problems(num_problems: int, seed: int, split: Split = "train") -> Dataset:
    """Problems to train on: half of them near, half far, in random order."""
    halves = [
        path_dataset(split, num_problems - num_problems // 2, seed, NEAR),
        path_dataset(split, num_problems // 2, seed, FAR),
    ]
    return concatenate_datasets(halves).shuffle(seed=seed)


@torch.no_grad()
def evaluate_paths(
    model: Any,
    tokenizer: Any,
    split: Split,
    num_samples: int = 8,
    seed: int = 0,
    reference: Any | None = None,
    batch_size: int = 4096,
) -> dict[str, float]:
    """avg@n and unbiased pass@k on all problems of a split at temperature 1, in percent.

    Args:
        model (`PreTrainedModel`):
            The policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split (`str`):
            `"tuning"` or `"test"`.
        num_samples (`int`, *optional*, defaults to `8`):
            Samples per problem.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        reference (`PreTrainedModel`, *optional*):
            Base policy; with it, `near/kl` and `far/kl` are the KL to it per completion, in nats.
        batch_size (`int`, *optional*, defaults to `4096`):
            Completions generated at once.

    Returns:
        `dict[str, float]`: Percentages named `near/avg`, `far/pass@8` and so on.
    """
    was_training, results = model.training, {}
    model.eval()
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for name, num_edges in (("near", NEAR), ("far", FAR)):
            prompts = [p.prompt for p in problems_of(split, num_edges) for _ in range(num_samples)]
            right, kl = _sample(model, tokenizer, prompts, reference, batch_size)
            rows = [right[i : i + num_samples] for i in range(0, len(right), num_samples)]
            results[f"{name}/avg"] = 100.0 * mean_pass_at_k(rows, 1)
            for k in PASS_AT[1:]:
                if k <= num_samples:
                    results[f"{name}/pass@{k}"] = 100.0 * mean_pass_at_k(rows, k)
            if kl:
                results[f"{name}/kl"] = sum(kl) / len(kl)
    model.train(was_training)
    return results


def _sample(
    model: Any, tokenizer: Any, prompts: list[str], reference: Any | None, batch_size: int
) -> tuple[list[bool], list[float]]:
    """Which samples are right, and their log-ratios to a reference where there is one."""
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=MAX_COMPLETION_LENGTH,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    right: list[bool] = []
    log_ratios: list[float] = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        ids = tokenizer(some, return_tensors="pt")["input_ids"].to(model.device)
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        right += [is_right(prompt, text) for prompt, text in zip(some, texts, strict=True)]
        if reference is not None:
            log_ratios += _log_ratios(model, reference, output, ids.shape[1], tokenizer.eos_token_id)
    return right, log_ratios


def _log_ratios(model: Any, reference: Any, ids: torch.Tensor, start: int, eos: int) -> list[float]:
    """Log-ratio of each completion under two models, whose mean estimates the KL."""
    tokens = ids[:, start:]
    mask = (tokens == eos).cumsum(1) - (tokens == eos).long() == 0
    logps = []
    for scorer in (model, reference):
        logits = scorer(input_ids=ids).logits[:, start - 1 : -1].float()
        logps.append(logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0])
    return ((logps[0] - logps[1]) * mask).sum(1).tolist()


class _Evaluate(TrainerCallback):
    """Evaluates on a split every so many optimizer steps."""

    def __init__(self, tokenizer: Any, split: Split, every: int, reference: Any) -> None:
        self.tokenizer, self.split, self.every, self.reference = tokenizer, split, every, reference
        self.scores: dict[int, dict[str, float]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            scores = evaluate_paths(model, self.tokenizer, self.split, reference=self.reference.to(model.device))
            self.scores[state.global_step] = scores


def _kind_of(run: Run, num_eval_problems: int) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Trainer and configuration of a run, fields of the one and arguments of the other."""
    reward = PathProcessReward(run.wander) if run.process_reward == "exact" else run.process_reward
    steps = {"step_splitter": "newline"}
    classes: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
        "GRPO": (ProcessGRPOTrainer, GRPOConfig, {"beta": 0.0}, {}),
        "GRPO-KL": (ProcessGRPOTrainer, GRPOConfig, {"beta": run.coefficient}, {}),
        "RLOO": (RLOOTrainer, RLOOConfig, {"beta": run.coefficient}, {}),
        "PRL": (PRLTrainer, PRLConfig, {"beta": run.coefficient, **steps}, {}),
        "PAV": (PAVTrainer, PAVConfig, {"beta": 0.0, "alpha": run.coefficient, **steps}, {"process_reward": reward}),
    }
    trainer_class, config_class, fields, arguments = classes[run.method]
    shared: dict[str, Any] = {
        "per_device_train_batch_size": run.num_prompts * run.num_generations,
        "num_generations": run.num_generations,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "max_steps": run.max_steps,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "constant",
        "seed": run.seed,
    }
    if num_eval_problems:
        shared |= {"eval_strategy": "steps", "eval_steps": max(1, run.max_steps // 5), "eval_on_start": True}
        shared["per_device_eval_batch_size"] = shared["per_device_train_batch_size"]
        arguments["eval_dataset"] = training_problems(num_eval_problems, seed=0, split="tuning")
    given = dict(_option(item) for item in filter(None, run.options.split(",")))
    return trainer_class, config_class, {**shared, **fields, **given}, arguments


def train_paths(
    run: Run,
    policy: str,
    split: Split | None,
    *,
    evaluate_every: int = 50,
    on_step: OnStep | None = None,
    output_dir: Path | None = None,
    num_eval_problems: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Any, dict[str, Any]]:
    """Train a policy on paths, and evaluate it along the way.

    All methods see the same problems in the same order and draw the same number of samples.

    Args:
        run ([`Run`]):
            What to train.
        policy (`str`):
            Folder of the base policy.
        split (`str`):
            `"tuning"` or `"test"`: where to evaluate; with `None` nowhere, and there are no scores.
        evaluate_every (`int`, *optional*, defaults to `50`):
            Optimizer steps between two evaluations.
        on_step (`Callable`, *optional*):
            Called with every optimizer step's number and metrics.
        output_dir (`Path`, *optional*):
            Folder to leave the record of the run in.
        num_eval_problems (`int`, *optional*, defaults to `0`):
            Problems that the trainer itself evaluates on five times, so that the record of the run has the same
            prompts again and again. It moves the random numbers of the rollouts.
        callbacks (`Sequence[TrainerCallback]`, *optional*):
            Further callbacks of the trainer.

    Returns:
        `tuple`: The trained policy, and the run as plain data: `curve` (accuracy of the rollouts), `entropy`, `scores`
        by optimizer step, `num_tokens` of the policy's samples.
    """
    trainer_class, config_class, fields, arguments = _kind_of(run, num_eval_problems)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    reference = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    evaluations = [] if split is None else [_Evaluate(tokenizer, split, evaluate_every, reference)]
    with tempfile.TemporaryDirectory() as temporary_dir:
        args = config_class(**cpu_fields(str(output_dir or temporary_dir)), **fields)
        problems = training_problems(run.num_prompts * run.max_steps, run.seed)
        trainer = trainer_class(policy, path_reward, args, problems, callbacks=[*evaluations, *callbacks], **arguments)
        logs = train_quietly(trainer, on_step)
    scores: dict[int, dict[str, float]] = {}
    if split is not None:
        reference.to(trainer.model.device)
        before = evaluate_paths(reference, tokenizer, split, num_samples=64, seed=run.seed)
        after = evaluate_paths(trainer.model, tokenizer, split, 64, run.seed, reference)
        scores = {0: before, **evaluations[0].scores, run.max_steps: after}
    return trainer.model, {
        "run": asdict(run),
        "split": split,
        "curve": [entry["reward"] for entry in logs],
        "entropy": [entry.get("entropy") for entry in logs],
        "scores": scores,
        "num_tokens": logs[-1].get("num_tokens") if logs else None,
    }


def _option(item: str) -> tuple[str, Any]:
    name, _, value = item.partition("=")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, {"true": True, "false": False}.get(value, value)
