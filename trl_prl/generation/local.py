"""Generation with `transformers`: every prefix computed once, samples that do not depend on the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_prl.credit.step_tensors import precise_dtype
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.storage.missing import model_named
from trl_prl.types import Completion, FinishReason, Prompt, SamplingParams

from .adapters import adapter_folder
from .engines import completion_of, key_of
from .roomy_cache import repeat_with_room
from .sampling import StopTexts, choose_tokens, sample_uniforms


# Rows that have ended are dropped from the batch once they are this share of it; each time the cache is copied.
_DROP_SHARE = 0.25


@dataclass
class _Batch:
    """Prompts of similar length, each with the samples `first..first + repeats - 1`."""

    prompts: list[int]
    first: int
    repeats: int


class TransformersGenerator:
    """A [`Generator`] over a causal language model of `transformers`.

    Prompts are batched by length under a budget of tokens. The prompts of a batch are run once, their key-value cache
    is repeated for the `n` samples, and only new tokens are run after that; rows that have ended leave the batch.
    Sampling is the loop of this class, not `model.generate`: sample `i` of a prompt depends on the seed, the prompt's
    key and `i` alone (up to rounding, see `sampling.py`). The model is put in evaluation mode while it runs.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Decoder-only model in any dtype, quantized or with adapters or not.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer. Nothing is tokenised; it says what the sampled ids mean.
        max_batch_tokens (`int`, *optional*, defaults to `65536`):
            Most tokens in the key-value cache at a time, prompts and samples together. Bounds the memory; a single
            sample is always run.

    A function in the attribute `on_sample` is told the number of tokens of every sample as it ends.

    Raises:
        `ValueError`: When the model has an encoder or the budget is not positive.

    Example:

    ```python
    >>> generator = TransformersGenerator.from_pretrained("Qwen/Qwen2.5-0.5B")
    >>> prompts = [Prompt(tuple(generator.tokenizer("1+1=").input_ids), key="first")]
    >>> generator.generate(prompts, SamplingParams(n=4, max_tokens=16))[0][0].text
    ```
    """

    on_sample: Callable[[int], None] | None = None

    def __init__(self, model: Any, tokenizer: Any, *, max_batch_tokens: int = 65536) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"The model is a {type(model).__name__}, which has an encoder, so a prefix cannot be continued by its "
                "decoder alone. Use a decoder-only model."
            )
        if max_batch_tokens < 1:
            raise ValueError(
                f"Got max_batch_tokens={max_batch_tokens}, which no sample fits into. Use a positive number of tokens."
            )
        self.model = model
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.max_batch_tokens = max_batch_tokens
        self._pieces = TokenPieces(tokenizer)
        base = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
        self._accepts = set(inspect.signature(base.forward).parameters)
        config = model.config.get_text_config()
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)
        self._eos_ids = _eos_ids(model, self.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        tokenizer: Any = None,
        adapter: str | None = None,
        dtype: str | torch.dtype = "auto",
        quantization_config: Any | None = None,
        device: str | torch.device | None = None,
        max_batch_tokens: int = 65536,
        **model_kwargs: Any,
    ) -> TransformersGenerator:
        """Load a model and its tokenizer.

        Args:
            model (`str`), tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Path or Hub id, and a tokenizer to use instead of the one that lies there.
            adapter (`str`, *optional*):
                Path or Hub id of a PEFT adapter on top, in safetensors format.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Dtype of the weights, `"float32"` or `"bfloat16"` for instance; the one they are stored in by default.
            quantization_config (`BitsAndBytesConfig`, *optional*), device (`str` or `torch.device`, *optional*):
                Quantization, as in `transformers`, and where to run; a GPU if there is one by default.
            max_batch_tokens (`int`, *optional*, defaults to `65536`):
                As in the constructor.
            **model_kwargs:
                Further arguments of `AutoModelForCausalLM.from_pretrained`, such as `trust_remote_code`.

        Returns:
            [`TransformersGenerator`]: The generator.

        Raises:
            `ImportError`: When there is an adapter and PEFT is not installed.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        trust_remote_code = model_kwargs.setdefault("trust_remote_code", False)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if quantization_config is not None:
            # Quantized weights are made on their device and cannot be moved to another one.
            model_kwargs = {"quantization_config": quantization_config, "device_map": {"": device}, **model_kwargs}
        with model_named(model):
            loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **model_kwargs)
        if adapter is not None:
            try:
                from peft import PeftModel
            except ImportError as error:
                raise ImportError(
                    f"Got the adapter {adapter!r}, but adapters are loaded with PEFT, which is not installed. Install "
                    "it: pip install trl-prl[peft]"
                ) from error
            with model_named(adapter, "adapter"):
                loaded = PeftModel.from_pretrained(loaded, str(adapter_folder(adapter) or adapter))
        if quantization_config is None:
            loaded = loaded.to(device)
        if tokenizer is None:
            with model_named(model):
                tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        return cls(loaded, tokenizer, max_batch_tokens=max_batch_tokens)

    @torch.no_grad()
    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[list[Completion]]:
        """Sample continuations.

        Args:
            prompts (`list[Prompt]`):
                What to continue.
            params ([`SamplingParams`]):
                How to sample.

        Returns:
            `list[list[Completion]]`: For each prompt, in the order given, `params.n` samples. A sample that reaches
            the end of the model's positions has the finish reason `"length"`.

        Raises:
            `ValueError`: When a prompt leaves the model no position to write to.
        """
        limits = [self._limit(prompt, params) for prompt in prompts]
        results: list[list[Completion]] = [[] for _ in prompts]
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches(prompts, limits, params.n):
                for row, completion in zip(_rows(batch), self._run(prompts, limits, batch, params), strict=True):
                    results[row[0]].append(completion)
        finally:
            self.model.train(was_training)
        return results

    def _limit(self, prompt: Prompt, params: SamplingParams) -> int:
        limit = prompt.max_tokens or params.max_tokens
        if self.max_length is None:
            return limit
        room = self.max_length - len(prompt.token_ids)
        if room < 1:
            raise ValueError(
                f"The prompt with key {prompt.key!r} has {len(prompt.token_ids)} tokens, but the model has "
                f"{self.max_length} positions, so it cannot write one more. Leave the prompt out or shorten it."
            )
        return min(limit, room)

    def _batches(self, prompts: list[Prompt], limits: list[int], n: int) -> Iterator[_Batch]:
        """Group prompts of similar length; a prompt whose samples do not fit together is run in several parts."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].token_ids), limits[i], i))
        batch = _Batch([], 0, n)
        limit = 0
        for i in order:
            size = len(prompts[i].token_ids)
            # Lengths only grow, so this prompt's is the padded length of the batch.
            if batch.prompts and (len(batch.prompts) + 1) * n * (size + max(limit, limits[i])) > self.max_batch_tokens:
                yield batch
                batch, limit = _Batch([], 0, n), 0
            limit = max(limit, limits[i])
            batch.prompts.append(i)
            repeats = max(1, self.max_batch_tokens // (size + limits[i]))
            if len(batch.prompts) == 1 and repeats < n:
                for first in range(0, n, repeats):
                    yield _Batch([i], first, min(repeats, n - first))
                batch, limit = _Batch([], 0, n), 0
        if batch.prompts:
            yield batch

    def _run(
        self, prompts: list[Prompt], limits: list[int], batch: _Batch, params: SamplingParams
    ) -> list[Completion]:
        """Sample one batch: prefill, repeat, decode."""
        device = self.model.device
        ids = [prompts[i].token_ids for i in batch.prompts]
        length, rows = max(map(len, ids)), list(_rows(batch))
        row_limits = np.array([limits[i] for i, _ in rows])
        padded = torch.zeros(len(ids), length, dtype=torch.long)
        mask = torch.zeros(len(ids), length, dtype=torch.long)
        for row, prompt_ids in enumerate(ids):
            padded[row, length - len(prompt_ids) :] = torch.tensor(prompt_ids)
            mask[row, length - len(prompt_ids) :] = 1
        uniforms = torch.from_numpy(
            np.stack([sample_uniforms(params.seed, key_of(prompts, i), j, row_limits.max()) for i, j in rows])
        ).to(device, precise_dtype(device))
        padded, mask = padded.to(device), mask.to(device)

        is_padded = bool((mask == 0).any())
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits, cache = self._forward(padded, mask if is_padded else None, positions, None)
        repeat_with_room(cache, batch.repeats, int(row_limits.max()))
        logits = logits.repeat_interleave(batch.repeats, dim=0)
        mask = mask.repeat_interleave(batch.repeats, dim=0)
        positions = positions[:, -1:].repeat_interleave(batch.repeats, dim=0)

        stop = StopTexts(params.stop, len(rows))
        sampled: list[list[int]] = [[] for _ in rows]
        reasons: list[FinishReason] = ["length"] * len(rows)
        # `live` has the row of each line of the batch, and `active` whether it still grows.
        live, active = torch.arange(len(rows), device=device), np.ones(len(rows), dtype=bool)
        for step in range(int(row_limits.max())):
            tokens = choose_tokens(logits, uniforms[live, step], params)
            for line, (row, token) in enumerate(zip(live.tolist(), tokens.tolist(), strict=True)):
                if not active[line]:
                    continue
                sampled[row].append(token)
                if token in self._eos_ids:
                    reasons[row], active[line] = "eos", False
                elif params.stop and stop.found(row, self._pieces.pieces([token])[0]):
                    reasons[row], active[line] = "stop", False
                elif len(sampled[row]) >= row_limits[row]:
                    active[line] = False
                if not active[line] and self.on_sample is not None:
                    self.on_sample(len(sampled[row]))
            if not active.any():
                break
            if active.mean() <= 1 - _DROP_SHARE:
                kept = torch.from_numpy(np.flatnonzero(active)).to(device)
                cache.batch_select_indices(kept)
                tokens, live, mask, positions = tokens[kept], live[kept], mask[kept], positions[kept]
                active = active[active]
            positions = positions + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1) if is_padded else mask
            logits, cache = self._forward(tokens[:, None], mask if is_padded else None, positions, cache)
        return [completion_of(self._pieces, ids, reason) for ids, reason in zip(sampled, reasons, strict=True)]

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the next token, of shape (B, V), and the cache."""
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepts},
        )
        return output.logits[:, -1], output.past_key_values


def _rows(batch: _Batch) -> Iterator[tuple[int, int]]:
    """Prompt and sample of each row of a batch."""
    return ((i, j) for i in batch.prompts for j in range(batch.first, batch.first + batch.repeats))


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a sequence: chat models have one of the base model and one that ends a turn."""
    found: set[int] = set()
    config = getattr(model, "generation_config", None)
    for ids in (getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)
