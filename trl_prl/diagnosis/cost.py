"""What a collection, the training of a verifier and reinforcement learning cost, in tokens, computations and memory.

Tokens follow from the lengths of completions and steps; hours follow from tokens by throughputs that are assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


# Peak of dense bfloat16 computations in TFLOP/s, and memory in GB, as the maker's data sheets give them.
GPUS = {
    "B200": (2250.0, 180),
    "H200": (989.0, 141),
    "H100": (989.0, 80),
    "A100": (312.0, 80),
    "L40S": (362.0, 48),
    "L4": (121.0, 24),
    "RTX4090": (165.0, 24),
}
# Weight, gradient and Adam's two moments of a parameter that is trained, in float32; a frozen one in bfloat16.
TRAINED_BYTES, FROZEN_BYTES = 16, 2
# Operations per parameter and token: a forward; a backward, with and without gradients of the weights.
FORWARD, BACKWARD, BACKWARD_FROZEN = 2, 4, 2
LORA_SHARE = 0.01


@dataclass(frozen=True)
class Lengths:
    """Mean lengths of one prompt and its `n_cov` seeds, in tokens.

    Attributes:
        prompt (`float`), completion (`float`):
            Of the prompt, and of one completion.
        seeds (`float`):
            Distinct seeds of the prompt.
        prefixes (`float`):
            Distinct prefixes of the seeds at which rollouts begin, the prompt not counted.
        kept (`float`), remaining (`float`):
            Summed over these prefixes: their own lengths, and how much of a completion comes after them.
        steps (`float`):
            Steps of one completion.
    """

    prompt: float
    completion: float
    seeds: float
    prefixes: float
    kept: float
    remaining: float
    steps: float


def equal_lengths(prompt: float, completion: float, steps: float, n_cov: int) -> Lengths:
    """Lengths where all completions are alike, have steps of equal length and share no prefix.

    Args:
        prompt (`float`), completion (`float`):
            Tokens.
        steps (`float`):
            Steps of a completion, at least 1.
        n_cov (`int`):
            Seeds of a prompt.

    Returns:
        [`Lengths`]: The lengths.

    Raises:
        `ValueError`: When a length is not positive.
    """
    if min(prompt, completion, n_cov) <= 0 or steps < 1:
        raise ValueError(
            f"Got a prompt of {prompt} tokens, completions of {completion} tokens in {steps} steps and n_cov={n_cov}, "
            "which cannot be. Use positive lengths and at least one step."
        )
    half = n_cov * completion * (steps - 1) / 2
    return Lengths(prompt, completion, n_cov, n_cov * (steps - 1), half, half, steps)


def measured_lengths(
    prompts: Sequence[int], completions: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], n_cov: int
) -> Lengths:
    """Lengths as samples of some prompts have them.

    Args:
        prompts (`Sequence[int]`):
            Tokens of each prompt.
        completions (`Sequence[Sequence[tuple]]`):
            For each prompt its samples, of which the first `n_cov` stand for the seeds: ids of a completion, and
            where its steps end.
        n_cov (`int`):
            Seeds of a prompt.

    Returns:
        [`Lengths`]: Means over the prompts.

    Raises:
        `ValueError`: When a prompt has fewer samples than seeds.
    """
    fewest = min((len(samples) for samples in completions), default=0)
    if fewest < n_cov:
        raise ValueError(
            f"Got {fewest} samples of a prompt and n_cov={n_cov}. The seeds of a prompt share prefixes, which are "
            "measured once, so there must be as many samples as seeds. Give more, or lower --n_cov."
        )
    tokens: list[int] = []
    steps: list[int] = []
    seeds = prefixes = 0
    kept = remaining = 0.0
    for samples in completions:
        found: dict[tuple[int, ...], list[int]] = {}
        seeds += len({tuple(ids) for ids, _ in samples[:n_cov]})
        for ids, ends in samples[:n_cov]:
            tokens.append(len(ids))
            steps.append(len(ends))
            for end in ends[:-1]:
                found.setdefault(tuple(ids[:end]), []).append(len(ids) - end)
        prefixes += len(found)
        kept += sum(map(len, found))
        remaining += sum(sum(rest) / len(rest) for rest in found.values())
    number = len(completions)
    return Lengths(
        sum(prompts) / number,
        sum(tokens) / len(tokens),
        seeds / number,
        prefixes / number,
        kept / number,
        remaining / number,
        sum(steps) / len(steps),
    )


@dataclass(frozen=True)
class Stage:
    """What one stage costs.

    Attributes:
        name (`str`):
            The stage.
        sampled (`float`), read (`float`), trained (`float`):
            Tokens that are sampled, read once without a gradient, and trained on.
        operations (`dict[str, float]`):
            Floating-point operations of `"sample"`, `"read"` and `"train"`.
        resident (`dict[str, float]`):
            GiB of weights, gradients and optimizer states, by what holds them; without activations and caches.
    """

    name: str
    sampled: float
    read: float
    trained: float
    operations: dict[str, float]
    resident: dict[str, float]


def collection(lengths: Lengths, num_prompts: int, n_cov: int, n_mc: int, prover_size: float) -> Stage:
    """Rollouts of a collection with `strategy="iid"` ([PAV](https://huggingface.co/papers/2410.08146), section 4.2).

    Args:
        lengths ([`Lengths`]):
            Lengths of a prompt with its seeds.
        num_prompts (`int`), n_cov (`int`), n_mc (`int`):
            As in [`CollectConfig`].
        prover_size (`float`):
            Parameters of the prover.

    Returns:
        [`Stage`]: Its cost. Adaptive collections cost less, and those with branches more.
    """
    sampled = n_cov * lengths.completion + n_mc * (lengths.completion + lengths.remaining)
    # The prompt for the seeds, and the prompt and each prefix for rollouts.
    read = (2 + lengths.prefixes) * lengths.prompt + lengths.kept
    per_token = FORWARD * prover_size * num_prompts
    return Stage(
        "collection",
        num_prompts * sampled,
        num_prompts * read,
        0.0,
        {"sample": per_token * sampled, "read": per_token * read, "train": 0.0},
        {"prover": _gib(prover_size * FROZEN_BYTES)},
    )


def verifier_training(lengths: Lengths, num_prompts: int, epochs: float, size: float, is_lora: bool) -> Stage:
    """Training of the verifier on what was collected.

    Args:
        lengths ([`Lengths`]):
            Lengths of a prompt with its seeds.
        num_prompts (`int`):
            Prompts that were collected from.
        epochs (`float`):
            Passes over the rows.
        size (`float`):
            Parameters of the verifier.
        is_lora (`bool`):
            Whether only an adapter is trained.

    Returns:
        [`Stage`]: Its cost.
    """
    tokens = num_prompts * epochs * lengths.seeds * (lengths.prompt + lengths.completion)
    return Stage(
        "verifier training",
        0.0,
        0.0,
        tokens,
        {"sample": 0.0, "read": 0.0, "train": _train_operations(size, is_lora) * tokens},
        {"verifier": _trained_gib(size, is_lora)},
    )


def reinforcement_learning(
    lengths: Lengths,
    method: Literal["grpo", "prl", "pav"],
    optimizer_steps: int,
    completions_per_step: int,
    policy_size: float,
    verifier_size: float,
    is_lora: bool,
    num_iterations: int = 1,
) -> Stage:
    """Reinforcement learning with process rewards.

    Args:
        lengths ([`Lengths`]):
            Lengths of prompts and completions.
        method (`str`):
            `"grpo"`, `"prl"`, which reads every completion with the reference model, or `"pav"`, which reads it with
            the verifier.
        optimizer_steps (`int`), completions_per_step (`int`):
            Optimizer steps, and completions of all processes in each.
        policy_size (`float`), verifier_size (`float`):
            Parameters.
        is_lora (`bool`):
            Whether only an adapter of the policy is trained; the reference model is then the policy without it.
        num_iterations (`int`, *optional*, defaults to `1`):
            Optimizer steps on each rollout (`num_iterations` of TRL).

    Returns:
        [`Stage`]: Its cost.
    """
    completions = optimizer_steps * completions_per_step / num_iterations
    tokens = completions * (lengths.prompt + lengths.completion)
    resident = {"policy": _trained_gib(policy_size, is_lora)}
    reader_size = {"grpo": 0.0, "prl": policy_size, "pav": verifier_size}[method]
    if method == "pav":
        resident["verifier"] = _gib(verifier_size * FROZEN_BYTES)
    elif method == "prl" and not is_lora:
        resident["reference"] = _gib(policy_size * FROZEN_BYTES)
    read = tokens if method != "grpo" else 0.0
    sampled, trained = completions * lengths.completion, tokens * num_iterations
    operations = {
        "sample": FORWARD * policy_size * sampled,
        "read": FORWARD * reader_size * read,
        "train": _train_operations(policy_size, is_lora) * trained,
    }
    return Stage(
        f"{method.upper()}, {optimizer_steps:,} optimizer steps", sampled, read, trained, operations, resident
    )


def _train_operations(size: float, is_lora: bool) -> float:
    return (FORWARD + (BACKWARD_FROZEN if is_lora else BACKWARD)) * size


def _trained_gib(size: float, is_lora: bool) -> float:
    return _gib(size * (FROZEN_BYTES + LORA_SHARE * TRAINED_BYTES if is_lora else TRAINED_BYTES))


def _gib(size: float) -> float:
    return size / (1 << 30)
