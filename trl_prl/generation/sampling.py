"""Sampling that does not depend on the batch: one stream of uniform numbers per sample, inverted through the
cumulative distribution.

A library's sampler draws one random tensor for the whole batch, so a sample changes with what it is batched with. Here
sample `i` of the prompt with key `k` under seed `s` owns the stream of a counter-based generator keyed by a digest of
`(s, k, i)`; its token at position `t` is the one whose interval of the cumulative distribution holds number `t` of the
stream. What remains is rounding: another batch shape may change logits in their last bits, and a token changes when
its number falls into that sliver (by size one token in a million in float32, one in some hundreds in bfloat16).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_prl.credit.step_tensors import precise_dtype
from trl_prl.types import Completion, Generator, Prompt, SamplingParams


logger = logging.getLogger(__name__)

# Keeps the product with a total that is a little above 1 below that total.
_LARGEST_UNIFORM = 1.0 - 2.0**-50


def draw(generator: Generator, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
    """Samples of a generator, which is held to their number: estimates would be fractions of a wrong one.

    Args:
        generator ([`Generator`]):
            Any engine.
        prompts (`list[Prompt]`):
            What to continue; of none, nothing is asked.
        params ([`SamplingParams`]):
            How to sample.

    Returns:
        `list[list[Completion]]`: `params.n` samples of each prompt.

    Raises:
        `ValueError`: When the generator returns another number than asked.
    """
    samples = generator.generate(prompts, params) if prompts else []
    if len(samples) != len(prompts) or any(len(row) != params.n for row in samples):
        raise ValueError(
            f"{type(generator).__name__} returned {sorted({len(row) for row in samples})} samples for {len(samples)} "
            f"prompts, but {params.n} were asked for each of {len(prompts)}, so samples and prompts would be paired "
            "wrongly. Use a generator that returns exactly as many as asked."
        )
    return samples


def sampling_of_training(args: Any, **changes: Any) -> SamplingParams:
    """How a trainer samples, for samples that are drawn beside its own.

    Args:
        args ([`~trl.GRPOConfig`] or any `TrainingArguments`):
            Settings of the trainer. What it has besides temperature, `top_p` and `top_k` no generator here knows:
            a warning names it, as its samples are then of another distribution.
        **changes:
            Fields of [`SamplingParams`] to set otherwise, unless they are `None`.

    Returns:
        [`SamplingParams`]: The settings.
    """
    neutral = {"min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}
    given = {name: getattr(args, name, value) or value for name, value in neutral.items()}
    unheeded = [f"{name}={given[name]!r}" for name, value in neutral.items() if given[name] != value]
    if unheeded:
        logger.warning(
            "Samples of an evaluation or a Monte-Carlo value are drawn without %s of the training, so they are of "
            "another distribution than its rollouts. Leave it out of the training to compare them.",
            ", ".join(unheeded),
        )
    fields = {
        "max_tokens": getattr(args, "max_completion_length", None) or 256,
        "temperature": getattr(args, "temperature", 1.0),
        "top_p": getattr(args, "top_p", None) or 1.0,
        "top_k": max(0, getattr(args, "top_k", None) or 0),
    }
    return SamplingParams(**{**fields, **{name: value for name, value in changes.items() if value is not None}})


def completion_limit(generator: Generator, num_prompt_tokens: int, max_tokens: int) -> int:
    """Most tokens that a completion can have.

    Args:
        generator ([`Generator`]):
            Any engine; one that has no `max_length` is taken to have room.
        num_prompt_tokens (`int`):
            Tokens of the prompt.
        max_tokens (`int`):
            Most tokens that were asked for.

    Returns:
        `int`: `max_tokens`, or the positions that the prompt leaves if these are fewer; at most 0 if it leaves none.
    """
    max_length = getattr(generator, "max_length", None)
    return max_tokens if max_length is None else min(max_tokens, max_length - num_prompt_tokens)


def sample_uniforms(seed: int, key: str, sample: int, length: int) -> np.ndarray:
    """Stream of uniform numbers of one sample.

    Args:
        seed (`int`):
            Seed of the call.
        key (`str`):
            Identity of the prompt.
        sample (`int`):
            Number of the sample among those of the prompt.
        length (`int`):
            How many numbers. A shorter stream is the start of a longer one.

    Returns:
        `np.ndarray` of shape (length,), float64: Numbers in [0, 1).
    """
    philox = np.random.Philox(key=int.from_bytes(_digest(seed, key, sample), "little"))
    return np.minimum(np.random.Generator(philox).random(length), _LARGEST_UNIFORM)


def request_seed(seed: int, key: str, sample: int) -> int:
    """Seed of one sample for an engine that has a sampler of its own.

    Args:
        seed (`int`):
            Seed of the call.
        key (`str`):
            Identity of the prompt.
        sample (`int`):
            Number of the sample among those of the prompt.

    Returns:
        `int`: A number from 0 to 2³¹ − 1.
    """
    return int.from_bytes(_digest(seed, key, sample)[:4], "little") >> 1


def _digest(seed: int, key: str, sample: int) -> bytes:
    return hashlib.blake2b(f"{seed}\n{sample}\n{key}".encode(), digest_size=16).digest()


def choose_tokens(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> Tensor:
    """Choose the next token of every row.

    Args:
        logits (`Tensor` of shape (B, V)):
            Logits of the next token, any floating type.
        uniforms (`Tensor` of shape (B,)):
            One number in [0, 1) per row.
        params ([`SamplingParams`]):
            `temperature`, `top_k` and `top_p` are read; top-k is applied before top-p, as in `transformers`.

    Returns:
        `Tensor` of shape (B,), int64: Token ids. A token without probability is never chosen.
    """
    if params.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / params.temperature
    order = None
    if params.top_k or params.top_p < 1:
        size = min(params.top_k or logits.shape[-1], logits.shape[-1])
        logits, order = logits.topk(size, dim=-1)
    probs = logits.softmax(dim=-1)
    if params.top_p < 1:
        # The token that crosses `top_p` is kept, so that there is always one.
        probs = probs * (probs.cumsum(dim=-1) - probs < params.top_p)
    # In float32 the sum over a large vocabulary would swallow rare tokens.
    total = probs.cumsum(dim=-1, dtype=precise_dtype(logits.device))
    targets = uniforms.to(total)[:, None] * total[:, -1:]
    tokens = torch.searchsorted(total, targets, right=True).clamp(max=total.shape[-1] - 1)
    return (tokens if order is None else order.gather(-1, tokens)).squeeze(-1)


class StopTexts:
    """Finds stop texts in the bytes of growing samples, also where they are spread over tokens.

    Args:
        stop (`Sequence[str]`):
            Texts that end a sample.
        num_samples (`int`):
            Number of samples.
    """

    def __init__(self, stop: Sequence[str], num_samples: int) -> None:
        self._stop = [text.encode() for text in stop]
        self._kept = max((len(text) for text in self._stop), default=1) - 1
        self._tails = [b""] * num_samples

    def found(self, sample: int, piece: bytes) -> bool:
        """Append the bytes of a sample's next token, and say whether a stop text has appeared.

        Args:
            sample (`int`):
                Number of the sample.
            piece (`bytes`):
                Bytes of its next token.

        Returns:
            `bool`: Whether the sample ends here.
        """
        text = self._tails[sample] + piece
        self._tails[sample] = text[max(0, len(text) - self._kept) :]
        return any(stop in text for stop in self._stop)
