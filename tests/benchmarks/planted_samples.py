"""What the benchmarks on the planted task share: samples of a policy, an end to training, its steps in words."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, TrainerCallback

from trl_prl.demo.planted import planted_reward
from trl_prl.demo.planted_policy import build_base_policy, build_planted_tokenizer
from trl_prl.demo.planted_training import train_planted
from trl_prl.demo.training import WINDOW, steps_to_accuracy


REWARDS = {"effective reward": 1.0, "outcome only": 0.0}
THRESHOLD = 0.9


class StopAtAccuracy(TrainerCallback):
    """Ends training once the accuracy of the rollouts, averaged over a window, has reached a threshold."""

    def __init__(self, threshold: float, window: int = WINDOW) -> None:
        self.threshold = threshold
        self.accuracies: deque[float] = deque(maxlen=window)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "reward" in logs:
            self.accuracies.append(logs["reward"])
            full = len(self.accuracies) == self.accuracies.maxlen
            control.should_training_stop |= full and sum(self.accuracies) / len(self.accuracies) >= self.threshold


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


def base_accuracy(seed: int, iterations: int, num_samples: int) -> float:
    """Success of a base policy of so many supervised iterations."""
    samples = sample_planted(build_base_policy(seed, num_iterations=iterations), num_samples)
    return sum(samples) / len(samples)


def steps_needed(seed: int, alpha: float, limit: int, **settings: Any) -> int | None:
    """Optimizer steps until the policy is right often enough, `None` where it is not within the limit."""
    run = train_planted(seed, alpha, max_steps=limit, callbacks=[StopAtAccuracy(THRESHOLD)], **settings)
    return steps_to_accuracy(run.accuracies, THRESHOLD)


def steps_text(steps: list[int | None], limit: int) -> str:
    reached = [step for step in steps if step is not None]
    if not reached:
        return f"never in {limit}"
    text = f"{statistics.fmean(reached):.0f} ({min(reached)} to {max(reached)})"
    return (
        text
        if len(reached) == len(steps)
        else f"{text}, {len(steps) - len(reached)} of {len(steps)} seeds not in {limit}"
    )
