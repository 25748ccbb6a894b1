"""Tiny verifiers and stepwise rows of the arithmetic task."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForTokenClassification

from tests.benchmarks.arithmetic.prover import ArithmeticProcessReward, continue_solution
from tests.benchmarks.arithmetic.task import ArithmeticProblem
from trl_prl.verifier.config import PAVRewardConfig
from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.settings import VerifierSettings


def build_verifier_model(
    tokenizer: Any, num_labels: int = 1, seed: int = 0, hidden_size: int = 32, **overrides: Any
) -> Any:
    """Random two-layer token-classification Llama for a tokenizer, in float32, with values that differ."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        num_labels=num_labels,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **overrides,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForTokenClassification(config).eval()


def build_verifier(tokenizer: Any, **settings: Any) -> ProcessAdvantageVerifier:
    """Random verifier."""
    return ProcessAdvantageVerifier(build_verifier_model(tokenizer), tokenizer, VerifierSettings(**settings))


def arithmetic_rows(num_rows: int, seed: int, error_rate: float = 0.3) -> Dataset:
    """Stepwise rows with exact values: solutions of sums of two small numbers by a prover that errs.

    Small numbers, so that a tiny model learns their sums in seconds.
    """
    numbers, generator = random.Random(seed), np.random.default_rng(seed)
    prover = ArithmeticProcessReward(0.1)
    rows = []
    for _ in range(num_rows):
        problem = ArithmeticProblem((numbers.randint(1, 4), numbers.choice((-1, 1)) * numbers.randint(1, 4)))
        solution = continue_solution(problem, "", error_rate, generator)
        steps = (solution or "").splitlines(keepends=True)
        [labels] = prover([problem.prompt], [steps])
        [initial] = prover.initial_values([problem.prompt])
        rows.append({"prompt": problem.prompt, "completions": steps, "labels": labels, "initial_value": initial})
    return Dataset.from_list(rows)


def make_verifier_args(output_dir: Path | str, **overrides: Any) -> PAVRewardConfig:
    """Training arguments that are fast on a CPU: two optimizer steps of four rows."""
    fields: dict[str, Any] = {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "max_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    return PAVRewardConfig(output_dir=str(output_dir), **{**fields, **overrides})
