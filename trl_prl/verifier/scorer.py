"""A token classifier that reads solutions at their steps: where it lies, how it is prepared, and its batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from trl_prl.steps.token_pieces import TokenPieces

from .batches import collated, gather_positions, right_label
from .rows import TokenizedSteps, tokenize_stepwise
from .settings import VerifierSettings


class ModelScorer(ABC):
    """What the process rewards share that read a token classifier in this process.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal token-classification model with one label, or with two, see [`right_label`](batches.py).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        settings ([`VerifierSettings`]):
            How prompts are written. The length is the model's, if they do not say one.
        max_batch_tokens (`int`):
            Most tokens of a batch, padding included; a longer solution is a batch of its own.

    Raises:
        `ValueError`: If the model has more than two labels, or the names of two do not say which one is right.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: VerifierSettings, max_batch_tokens: int) -> None:
        self._right_label = right_label(model.config)
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if settings.max_length is None and limit:
            settings = replace(settings, max_length=limit)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_batch_tokens = max_batch_tokens
        self.num_truncated_steps = 0
        """Steps left out so far, because they lie beyond `settings.max_length`."""
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.__name__ = Path(name).name
        self._accelerator: Any = None
        self._token_pieces = TokenPieces(tokenizer)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device, in place, and return the process reward."""
        self.model.to(device)
        return self

    def prepare(self, accelerator: Any) -> None:
        """Get ready for a training with `accelerate`: every process holds the model, or its share under ZeRO-3.

        Nothing of it is trained, so it is not wrapped: it moves to the process's device, in its own precision. Weights
        that DeepSpeed ZeRO-3 has partitioned are gathered by an inference engine, as TRL does for reward models.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's.
        """
        if any(hasattr(parameter, "ds_id") for parameter in self.model.parameters()):
            from trl.models import prepare_deepspeed

            self.model = prepare_deepspeed(self.model, accelerator)
            self._accelerator = accelerator
        elif getattr(self.model, "hf_device_map", None) is None:
            self.model.to(accelerator.device)
        self.model.eval()

    @abstractmethod
    def score_solutions(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> tuple[list[float], list[list[float]]]:
        """Values of prompts and steps together: one forward per solution."""

    def __call__(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> list[list[float | None]]:
        """Values of the steps.

        Args:
            prompts, steps, **columns:
                As for [`~ModelScorer.score_solutions`].

        Returns:
            `list[list[float]]`: One value per step, in [0, 1]; NaN for steps beyond `max_length`.
        """
        return [[*row] for row in self.score_solutions(prompts, steps, **columns)[1]]

    def _tokenize(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], finished: Sequence[Any] | None = None
    ) -> list[TokenizedSteps]:
        if len(prompts) != len(steps):
            raise ValueError(
                f"There are {len(prompts)} prompts and {len(steps)} solutions. Row i of one belongs to row i of the "
                "other. Pass one prompt per solution."
            )
        ended = [True] * len(steps) if finished is None else [mark is None or bool(mark) for mark in finished]
        return [
            self._tokenize_row(prompt, list(texts), end)
            for prompt, texts, end in zip(prompts, steps, ended, strict=True)
        ]

    def _tokenize_row(self, prompt: Any, steps: list[str], finished: bool) -> TokenizedSteps:
        return tokenize_stepwise(self.tokenizer, prompt, steps, self.settings, self._token_pieces, finished)

    def _score(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], columns: Mapping[str, Any]
    ) -> torch.Tensor:
        """Logits of prompts and steps, of shape (B, 1 + S); steps without a place of their own are counted."""
        rows = self._tokenize(prompts, steps, columns.get("finished"))
        num_steps, num_truncated = sum(map(len, steps)), sum(row.num_truncated for row in rows)
        self.num_truncated_steps += num_truncated
        log_metric = columns.get("log_metric")
        if log_metric is not None and num_steps:
            log_metric("process/verifier/truncated_steps", num_truncated / num_steps)
            log_metric("process/verifier/merged_steps", sum(row.num_merged for row in rows) / num_steps)
        return self.score_tokenized(rows)

    @torch.no_grad()
    def score_tokenized(self, rows: Sequence[TokenizedSteps]) -> torch.Tensor:
        """Logits of tokenised solutions, before calibration, without dropout and the autocast of a training around it.

        Where weights are partitioned, all processes gather them together and need the same number of forwards.

        Args:
            rows (`Sequence[TokenizedSteps]`):
                B solutions.

        Returns:
            `torch.Tensor` of shape (B, 1 + S): Logits of prompt and steps, on the CPU, in the precision of
            [`gather_positions`](batches.py), NaN where there is no step or it lies beyond the longest length.
        """

        def forward(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # type: ignore[no-any-return]

        logits = torch.full((len(rows), max((len(row.positions) for row in rows), default=1)), math.nan)
        device, was_training = self.device, self.model.training
        self.model.eval()
        num_batches = 0
        try:
            with torch.autocast(device.type, enabled=False):
                for indices, batch in collated([vars(row) for row in rows], self.max_batch_tokens, device):
                    num_batches += 1
                    found = gather_positions(forward(batch), batch["positions"], self._right_label)
                    found = found.masked_fill(~batch["position_mask"], math.nan).cpu()
                    logits = logits.to(found.dtype)
                    logits[indices, : found.shape[1]] = found
                if self._accelerator is not None:
                    counts = self._accelerator.gather(torch.tensor([num_batches], device=device))
                    empty = torch.zeros((1, 1), dtype=torch.long, device=device)
                    for _ in range(int(counts.max()) - num_batches):
                        forward({"input_ids": empty, "attention_mask": empty + 1})
        finally:
            self.model.train(was_training)
        return logits
