"""Process advantage verifier: a token-classification model that scores every step of a solution in one forward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trl_prl.advantages import best_of_k_values, step_advantages
from trl_prl.step_tensors import pad_step_rewards
from trl_prl.stepwise_batches import StepwiseCollator, gather_positions
from trl_prl.stepwise_data import TokenizedSteps, VerifierSettings, tokenize_stepwise
from trl_prl.token_pieces import TokenPieces
from trl_prl.verifier_loading import fit_calibration, load_verifier_model, load_verifier_tokenizer


class ProcessAdvantageVerifier:
    r"""
    Scores every step of a solution, and the prompt, with one forward of a token-classification model.

    The value of a prefix is the sigmoid of the logit at its last token: the probability that the prover, going on from
    there, reaches a right answer. Source: [PAV](https://huggingface.co/papers/2410.08146), section 4.

    It is a [`ProcessReward`] that returns values: pass it, or the folder it was saved to, as `process_reward`. It
    speaks text, so the tokenizers of policy and verifier may differ. Scores do not depend on the batch beyond rounding
    (1e-5 in float32): padding is masked, and the model is always in evaluation mode and in its own precision.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal token-classification model with one label, or with two (the second means a right step). A model with
            attention in both directions would see the steps to come.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        settings ([`VerifierSettings`], *optional*):
            How prompts are written, and what the values mean. By default those in the model's config.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Most tokens of a batch, padding included; a longer solution is a batch of its own.

    Raises:
        `ValueError`: If the model has more than two labels.

    Example:

    ```python
    >>> verifier = ProcessAdvantageVerifier.from_pretrained("my-org/my-pav")
    >>> verifier(prompts=["1+2-4="], steps=[["3\n", "-1\n", "#-1"]])
    [[0.93, 0.97, 0.99]]
    ```
    """

    returns: Literal["values"] = "values"

    def __init__(
        self, model: Any, tokenizer: Any, settings: VerifierSettings | None = None, max_batch_tokens: int = 16384
    ) -> None:
        if model.config.num_labels > 2:
            raise ValueError(
                f"The model has {model.config.num_labels} labels, which are no probability of success. Use a "
                "token-classification model with one label, such as `PAVRewardTrainer` trains."
            )
        if settings is None:
            settings = VerifierSettings.from_dict(getattr(model.config, "verifier", None) or {})
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if settings.max_length is None and limit:
            settings = replace(settings, max_length=limit)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_batch_tokens = max_batch_tokens
        self.num_steps = 0
        """Steps scored or left out so far."""
        self.num_truncated_steps = 0
        """Steps left out so far, because they lie beyond `settings.max_length`."""
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.__name__ = Path(name).name
        self._accelerator: Any = None
        self._token_pieces = TokenPieces(tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = "auto",
        max_batch_tokens: int = 16384,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> ProcessAdvantageVerifier:
        """Load a verifier from a folder or the hub: a whole model, or a PEFT adapter, which is merged.

        Args:
            path (`str` or `Path`):
                Folder or hub id.
            device (`torch.device` or `str`, *optional*):
                Where to put the model; it stays on the CPU by default.
            dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`):
                Precision; by default that of the weights.
            max_batch_tokens (`int`, *optional*, defaults to `16384`):
                Most tokens of a batch.
            revision (`str`, *optional*):
                Branch, tag or commit on the hub.
            **model_kwargs:
                Passed to `AutoModelForTokenClassification.from_pretrained`.

        Returns:
            [`ProcessAdvantageVerifier`]: The verifier.

        Raises:
            `ValueError`: If the checkpoint has no trained value head.
            `OSError`: If there is no model with its tokenizer, or none in safetensors format; pickled weights are
            not read.
        """
        tokenizer = load_verifier_tokenizer(path, revision)
        model = load_verifier_model(path, dtype=dtype, revision=revision, **model_kwargs)
        if device is not None:
            model = model.to(device)
        return cls(model, tokenizer, max_batch_tokens=max_batch_tokens)

    def save_pretrained(self, path: str | Path) -> None:
        """Save model (safetensors), tokenizer and settings to a folder that `from_pretrained` loads.

        Args:
            path (`str` or `Path`):
                Folder; created if absent.
        """
        self.model.config.verifier = self.settings.to_dict()
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> ProcessAdvantageVerifier:
        """Move the model to a device, in place.

        Returns:
            [`ProcessAdvantageVerifier`]: Itself.
        """
        self.model.to(device)
        return self

    def prepare(self, accelerator: Any) -> None:
        """Get ready for a training with `accelerate`: every process holds the verifier, or its share under ZeRO-3.

        Nothing of it is trained, so it is neither wrapped for data parallelism nor given to the optimizer: it moves to
        the process's device, in its own precision. Weights that DeepSpeed ZeRO-3 has partitioned while loading are
        gathered by an inference engine, as TRL does for reward models.

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

    def __call__(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> list[list[float | None]]:
        """Values of the steps.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution; joined, they are the solution.
            **columns:
                As for [`~ProcessAdvantageVerifier.score_solutions`].

        Returns:
            `list[list[float]]`: One value per step, in [0, 1]; NaN for steps beyond `max_length`.
        """
        return [[*row] for row in self.score_solutions(prompts, steps, **columns)[1]]

    def initial_values(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        """Values of the prompts before any step, in [0, 1]; NaN for a prompt beyond `max_length`.

        Args:
            prompts (`Sequence`):
                Prompts, plain text or messages.
            **columns:
                Not used.

        Returns:
            `list[float]`: One value per prompt.
        """
        return self.score_solutions(prompts, [[] for _ in prompts])[0]

    def advantages(self, prompts: Sequence[Any], steps: Sequence[Sequence[str]]) -> list[list[float]]:
        """Progress of every step, its value minus the one before ([PAV](https://huggingface.co/papers/2410.08146),
        eq. 2).

        Args:
            prompts (`Sequence`):
                One prompt per solution.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.

        Returns:
            `list[list[float]]`: One number per step, in [-1, 1]; NaN for steps that are not scored.
        """
        initial, values = self.score_solutions(prompts, steps)
        rows = step_advantages(pad_step_rewards(values), torch.tensor(initial, dtype=torch.float32))
        return [row[: len(texts)].tolist() for row, texts in zip(rows, steps, strict=True)]

    def score_solutions(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> tuple[list[float], list[list[float]]]:
        """Values of prompts and steps together: one forward per solution.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            **columns:
                `log_metric`, as trainers pass it, is told the shares of steps that were cut off or merged; the others
                are not used.

        Returns:
            `tuple[list[float], list[list[float]]]`: The values of the prompts, and those of the steps, in [0, 1], NaN
            beyond `max_length`.

        Raises:
            `ValueError`: If there is not one prompt per solution, or a prompt cannot be read.
        """
        if len(prompts) != len(steps):
            raise ValueError(
                f"There are {len(prompts)} prompts and {len(steps)} solutions. Row i of one belongs to row i of the "
                "other. Pass one prompt per solution."
            )
        rows = [
            tokenize_stepwise(self.tokenizer, prompt, list(texts), self.settings, self._token_pieces)
            for prompt, texts in zip(prompts, steps, strict=True)
        ]
        self._count(rows, columns.get("log_metric"))
        logits = self.score_tokenized(rows)
        values = torch.sigmoid(logits / self.settings.temperature + self.settings.offset)
        if self.settings.best_of_k != 1:
            values = best_of_k_values(values, self.settings.best_of_k)
        scores = [row[: len(texts) + 1].tolist() for row, texts in zip(values, steps, strict=True)]
        return [row[0] for row in scores], [row[1:] for row in scores]

    def _count(self, rows: list[TokenizedSteps], log_metric: Any) -> None:
        num_steps = sum(len(row.positions) - 1 for row in rows)
        num_truncated = sum(row.num_truncated for row in rows)
        self.num_steps += num_steps
        self.num_truncated_steps += num_truncated
        if log_metric is not None and num_steps:
            log_metric("process/verifier/truncated_steps", num_truncated / num_steps)
            log_metric("process/verifier/merged_steps", sum(row.num_merged for row in rows) / num_steps)

    @torch.no_grad()
    def score_tokenized(self, rows: Sequence[TokenizedSteps]) -> Tensor:
        """Logits of tokenised solutions, before calibration.

        Args:
            rows (`Sequence[TokenizedSteps]`):
                B solutions.

        Returns:
            `torch.Tensor` of shape (B, 1 + S): Logits of prompt and steps, float32 on the CPU, NaN where there is no
            step or it lies beyond `max_length`.
        """
        num_positions = max((len(row.positions) for row in rows), default=1)
        logits = torch.full((len(rows), num_positions), math.nan)
        # Attention is masked by length, so the id of the padding does not matter.
        collator = StepwiseCollator(pad_token_id=self.tokenizer.pad_token_id or 0)
        with self._evaluation():
            batches = self._batches(rows)
            for indices in batches:
                batch = collator([{"input_ids": rows[i].input_ids, "positions": rows[i].positions} for i in indices])
                batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
                found = gather_positions(self._forward(batch), batch["positions"])
                found = found.masked_fill(~batch["position_mask"], math.nan).cpu()
                logits[indices, : found.shape[1]] = found
            self._keep_pace(len(batches))
        return logits

    def _forward(self, batch: dict[str, Tensor]) -> Tensor:
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return output.logits

    def _batches(self, rows: Sequence[TokenizedSteps]) -> list[list[int]]:
        """Indices of the rows of each batch, longest first: one that does not fit in memory fails at once."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids))
        batches: list[list[int]] = []
        for i in order:
            # The first row of a batch is its longest.
            if batches and len(rows[batches[-1][0]].input_ids) * (len(batches[-1]) + 1) <= self.max_batch_tokens:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _keep_pace(self, num_batches: int) -> None:
        """Partitioned weights are gathered by all processes together, so all need the same number of forwards."""
        if self._accelerator is None:
            return
        counts = self._accelerator.gather(torch.tensor([num_batches], device=self.device))
        empty = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        for _ in range(int(counts.max()) - num_batches):
            self._forward({"input_ids": empty, "attention_mask": empty + 1})

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """No dropout, and no autocast of a training around it; the model's mode is put back afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.model.train(was_training)

    def calibrate(self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], labels: Sequence[Any]) -> None:
        """Fit temperature and offset of the settings on held-out labels, by their cross-entropy.

        Class-balanced training shifts values towards 0.5; two numbers put them back without changing their order.

        Args:
            prompts (`Sequence`):
                One prompt per solution.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            labels (`Sequence`):
                Labels of each solution, in [0, 1], NaN or `None` where there is none.

        Raises:
            `ValueError`: If no label goes with a scored step.
        """
        rows = [
            tokenize_stepwise(self.tokenizer, prompt, list(texts), self.settings, self._token_pieces)
            for prompt, texts in zip(prompts, steps, strict=True)
        ]
        logits, wanted = self.score_tokenized(rows)[:, 1:], pad_step_rewards(labels)
        both = ~(logits.isnan() | wanted.isnan())
        if not both.any():
            raise ValueError(
                f"None of the steps of {len(rows)} solutions has a score and a label, so there is nothing to fit. "
                "Pass labels between 0 and 1 for some of the steps."
            )
        temperature, offset = fit_calibration(logits[both], wanted[both])
        self.settings = replace(self.settings, temperature=temperature, offset=offset)
