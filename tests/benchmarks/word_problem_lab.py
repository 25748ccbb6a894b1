"""Sizes of the experiment on word problems, and the folder in which its stages leave their results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import machine
from transformers import AutoModelForCausalLM, AutoTokenizer
from word_problems import WordProblem

from trl_prl.demo.training import cpu_fields
from trl_prl.generation.local import TransformersGenerator
from trl_prl.generation.rollouts import Problem
from trl_prl.prompts.chat import prompt_token_ids
from trl_prl.storage.files import write_text
from trl_prl.types import SamplingParams


LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Sizes:
    """How much of everything. The defaults are for one GPU.

    Attributes:
        max_tokens (`int`):
            Longest completion.
        batch_tokens (`int`):
            Tokens in the cache while sampling.
        sft_target (`float`):
            Success on tuning problems at which the supervised start ends.
        micro_batch (`int`):
            Completions per backward pass.
        rl_every (`int`):
            Optimizer steps between evaluations.
        save_every (`int`):
            Optimizer steps between checkpoints, from which an interrupted run goes on.
        first_lora_layer (`int`):
            First of the layers that learn in training: the backward pass ends there.
        beam_problems (`int`):
            Test problems that are searched.
    """

    max_tokens: int = 64
    batch_tokens: int = 100_000
    sft_steps: int = 300
    sft_every: int = 5
    sft_batch: int = 16
    sft_learning_rate: float = 5e-5
    sft_target: float = 0.25
    tuning_problems: int = 64
    collect_problems: int = 240
    n_cov: int = 4
    n_mc: int = 8
    verifier_epochs: float = 4.0
    verifier_batch: int = 32
    verifier_learning_rate: float = 5e-4
    lora_rank: int = 16
    first_lora_layer: int = 0
    rl_steps: int = 60
    rl_every: int = 20
    save_every: int = 10
    prompts_per_step: int = 8
    generations: int = 8
    micro_batch: int = 16
    rl_learning_rate: float = 1e-4
    test_problems: int = 200
    test_samples: int = 8
    beam_problems: int = 64
    best_of: int = 32


PRESETS = {
    "gpu": Sizes(),
    "cpu": Sizes(
        batch_tokens=16_000,
        sft_every=10,
        sft_batch=8,
        sft_learning_rate=1e-4,
        tuning_problems=24,
        collect_problems=120,
        n_cov=3,
        n_mc=4,
        verifier_epochs=3.0,
        verifier_batch=8,
        first_lora_layer=15,
        prompts_per_step=2,
        rl_every=60,
        test_problems=120,
        test_samples=4,
        beam_problems=48,
        best_of=16,
    ),
    "tiny": Sizes(
        max_tokens=12,
        batch_tokens=2000,
        sft_steps=2,
        sft_every=1,
        sft_batch=2,
        tuning_problems=3,
        collect_problems=8,
        n_cov=1,
        n_mc=2,
        verifier_epochs=1.0,
        verifier_batch=4,
        lora_rank=2,
        rl_steps=2,
        rl_every=1,
        prompts_per_step=1,
        generations=4,
        micro_batch=2,
        test_problems=3,
        test_samples=4,
        beam_problems=2,
        best_of=4,
    ),
}


class Lab:
    """A folder of results, the model it began with, and where to compute.

    Args:
        folder (`Path`):
            Where results go.
        model (`str`):
            Pretrained chat model.
        device (`str`):
            `"cpu"` or `"cuda"`.
        sizes ([`Sizes`]):
            How much.
    """

    def __init__(self, folder: Path, model: str, device: str, sizes: Sizes) -> None:
        self.folder, self.base, self.device, self.sizes = folder, model, device, sizes
        # Products in the precision that a GPU is fast in. Weights in bfloat16 would swallow the small updates.
        torch.set_float32_matmul_precision("high")
        self.policy_path = str(folder / "policy")
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> None:
        """Do a stage unless it is done, and keep its result."""
        path = self.folder / f"{name}.json"
        if path.exists():
            return
        start = time.time()
        data = {**compute(), "seconds": time.time() - start, "machine": machine()}
        write_text(path, json.dumps(data))
        print(f"{time.strftime('%X')} {name}: {data['seconds']:.0f} s", flush=True)

    def load(self, path: str, dtype: torch.dtype = torch.float32) -> Any:
        """A causal language model on the device."""
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(self.device)
        model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def generator(self, model: Any) -> TransformersGenerator:
        """A generator over a model."""
        return TransformersGenerator(model, self.tokenizer, max_batch_tokens=self.sizes.batch_tokens)

    def frozen_start(self) -> TransformersGenerator:
        """A generator over the start, which is only read: in bfloat16 on a GPU."""
        return self.generator(self.load(self.policy_path, torch.bfloat16 if self.device == "cuda" else torch.float32))

    def problems(self, stories: Sequence[WordProblem]) -> list[Problem]:
        """Stories as problems of the package."""
        return [
            Problem(row, story.prompt, prompt_token_ids(self.tokenizer, story.prompt), {"answer": str(story.answer)})
            for row, story in enumerate(stories)
        ]

    def sampling(self, seed: int) -> SamplingParams:
        """How to sample: as training does."""
        return SamplingParams(max_tokens=self.sizes.max_tokens, temperature=1.0, seed=seed)

    def lora(self, **fields: Any) -> Any:
        """An adapter for the linear layers."""
        from peft import LoraConfig

        rank = self.sizes.lora_rank
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_MODULES, **fields)

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of every trainer."""
        return {**cpu_fields(str(self.folder / name)), "use_cpu": self.device == "cpu"}
