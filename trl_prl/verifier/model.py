"""Process advantage verifier: a token-classification model that scores every step of a solution in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from trl_prl.credit.advantages import best_of_k_values, step_advantages
from trl_prl.credit.step_tensors import pad_step_rewards

from .loading import load_verifier_model, load_verifier_tokenizer
from .scorer import ModelScorer
from .settings import VerifierSettings


class ProcessAdvantageVerifier(ModelScorer):
    r"""
    Scores every step of a solution, and the prompt, with one forward of a token-classification model.

    The value of a prefix is the sigmoid of the logit at its last token: the probability that the prover, going on from
    there, reaches a right answer. Source: [PAV](https://huggingface.co/papers/2410.08146), section 4.

    It is a [`ProcessReward`] that returns values: pass it, or the folder it was saved to, as `process_reward`. It
    speaks text, so the tokenizers of policy and verifier may differ. Scores do not depend on the batch beyond rounding
    (1e-5 in float32): padding is masked, and the model is always in evaluation mode and in its own precision.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal token-classification model with one label, or with two, whose names in `config.id2label` say which
            one means a right step; without names it is the second. A model with attention in both directions would see
            the steps to come.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        settings ([`VerifierSettings`], *optional*):
            How prompts are written, and what the values mean. By default those in the model's config.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Most tokens of a batch, padding included; a longer solution is a batch of its own.

    Raises:
        `ValueError`: If the model has more than two labels, or the names of two do not say which one is right.

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
        if settings is None:
            settings = VerifierSettings.from_dict(getattr(model.config, "verifier", None) or {})
        super().__init__(model, tokenizer, settings, max_batch_tokens)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = "auto",
        max_batch_tokens: int = 16384,
        revision: str | None = None,
        trust_remote_code: bool = False,
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
                As in the constructor.
            revision (`str`, *optional*):
                Branch, tag or commit on the hub.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether Python code that comes with it may be run.
            **model_kwargs:
                Passed to `AutoModelForTokenClassification.from_pretrained`.

        Returns:
            [`ProcessAdvantageVerifier`]: The verifier.

        Raises:
            `ValueError`: If the checkpoint has no trained value head, or is another kind of model.
            `OSError`: If there is no model with its tokenizer, or none in safetensors format.
        """
        tokenizer = load_verifier_tokenizer(path, revision, trust_remote_code)
        model = load_verifier_model(
            path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, **model_kwargs
        )
        if device is not None:
            model = model.to(device)
        return cls(model, tokenizer, max_batch_tokens=max_batch_tokens)

    def save_pretrained(self, path: str | Path) -> None:
        """Save model (safetensors), tokenizer and settings to a folder, made if absent, for `from_pretrained`."""
        self.model.config.verifier = self.settings.to_dict()
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def initial_values(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        """Values of the prompts before any step, in [0, 1]; NaN for a prompt beyond `max_length`.

        Args:
            prompts, **columns:
                As for [`~ProcessAdvantageVerifier.score_solutions`].

        Returns:
            `list[float]`: One value per prompt.
        """
        return self.score_solutions(prompts, [[] for _ in prompts])[0]

    def advantages(self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any) -> list[list[float]]:
        """Progress of every step, its value minus the one before ([PAV](https://huggingface.co/papers/2410.08146),
        eq. 2).

        Args:
            prompts, steps, **columns:
                As for [`~ProcessAdvantageVerifier.score_solutions`].

        Returns:
            `list[list[float]]`: One number per step, in [-1, 1]; NaN for steps that are not scored.
        """
        initial, values = self.score_solutions(prompts, steps, **columns)
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
                Texts of the steps of each solution; joined, they are the solution.
            **columns:
                `finished` says of each solution whether it ends with its last step (all do by default);
                `log_metric`, as trainers pass it, is told the shares of steps that were cut off or merged.

        Returns:
            `tuple[list[float], list[list[float]]]`: The values of the prompts, and those of the steps, in [0, 1], NaN
            beyond `max_length`.

        Raises:
            `ValueError`: If there is not one prompt per solution, or a prompt cannot be read.
        """
        values = torch.sigmoid(self._calibrated(self._score(prompts, steps, columns)))
        if self.settings.best_of_k != 1:
            values = best_of_k_values(values, self.settings.best_of_k)
        scores = [row[: len(texts) + 1].tolist() for row, texts in zip(values, steps, strict=True)]
        return [row[0] for row in scores], [row[1:] for row in scores]

    def _calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        return logits / self.settings.temperature + self.settings.offset

    def calibrate(
        self,
        prompts: Sequence[Any],
        steps: Sequence[Sequence[str]],
        labels: Sequence[Any],
        finished: Sequence[bool] | None = None,
    ) -> None:
        """Fit temperature and offset of the settings on held-out labels, by their cross-entropy.

        Class-balanced training shifts values towards 0.5; two numbers put them back without changing their order.

        Args:
            prompts (`Sequence`):
                One prompt per solution.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            labels (`Sequence`):
                Labels of each solution, in [0, 1], NaN or `None` where there is none.
            finished (`Sequence[bool]`, *optional*):
                Which solutions end with their last step; all do by default.

        Raises:
            `ValueError`: If no label goes with a scored step.
        """
        logits = self.score_tokenized(self._tokenize(prompts, steps, finished))[:, 1:]
        wanted = pad_step_rewards(labels)
        self.settings = self.settings.calibrated(logits.numpy(), wanted.numpy())
