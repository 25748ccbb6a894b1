"""A public process reward model as a process reward: its family's text and readout around the verifier's batching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from trl_prl.verifier.model import ProcessAdvantageVerifier
from trl_prl.verifier.rows import TokenizedSteps, VerifierSettings

from .families import Family


class _ModelReward:
    """What the process rewards over a model in this process share: where it lies, and how it is prepared.

    Args:
        scorer ([`ProcessAdvantageVerifier`]):
            Batches tokenised solutions and reads the model at their positions.
    """

    def __init__(self, scorer: ProcessAdvantageVerifier) -> None:
        self._scorer = scorer
        self.__name__ = scorer.__name__
        self.num_steps = 0
        """Steps scored or left out so far."""
        self.num_truncated_steps = 0
        """Steps left out so far, because they lie beyond `settings.max_length`."""

    @property
    def model(self) -> Any:
        """The model."""
        return self._scorer.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._scorer.tokenizer

    @property
    def settings(self) -> VerifierSettings:
        """Splitter of the training data, and the most tokens of a solution."""
        return self._scorer.settings

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._scorer.device

    def to(self, device: torch.device | str) -> Any:
        """Move the model to a device, in place, and return the process reward."""
        self._scorer.to(device)
        return self

    def prepare(self, accelerator: Any) -> None:
        """Get ready for a training with `accelerate`, as [`ProcessAdvantageVerifier`] does.

        Args:
            accelerator (`accelerate.Accelerator`):
                The trainer's.
        """
        self._scorer.prepare(accelerator)

    def _count(self, rows: Sequence[TokenizedSteps], num_steps: int, log_metric: Any) -> None:
        num_truncated = sum(row.num_truncated for row in rows)
        self.num_steps += num_steps
        self.num_truncated_steps += num_truncated
        if log_metric is not None and num_steps:
            log_metric("process/verifier/truncated_steps", num_truncated / num_steps)
            log_metric("process/verifier/merged_steps", sum(row.num_merged for row in rows) / num_steps)


class PublicProcessReward(_ModelReward):
    r"""
    Scores steps with a public process reward model, as its family was trained, in one forward per solution.

    It is a [`ProcessReward`] that returns values. What they mean is up to the family, mostly whether the step is
    right, see `docs/public_prms.md`; [`load_process_reward`] makes one. White space at the end of a step gives way to
    the family's marker. A step of white space alone is not shown to the model and has the value of the step before. A
    marker that a step holds itself is not read: positions are known, never searched for. Steps that end beyond
    `max_length` tokens are not scored.

    Args:
        model (`torch.nn.Module`):
            Gives logits of shape (B, T, 1), or (B, T, 2), of whose labels `config.id2label` names the right one; the
            second by default.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        family ([`Family`]):
            Text and readout.
        initial_value (`float`, *optional*, defaults to `1.0`):
            Value of a prompt before any step, which these models do not know: no step is wrong yet.
        max_length (`int`, *optional*):
            Most tokens of a solution with its prompt; by default what the model takes.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Most tokens of a batch, padding included.

    Raises:
        `ValueError`: If the family's marker is not one token.
    """

    returns: Literal["values"] = "values"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        *,
        initial_value: float = 1.0,
        max_length: int | None = None,
        max_batch_tokens: int = 16384,
    ) -> None:
        settings = VerifierSettings(step_splitter=family.step_splitter, max_length=max_length)
        super().__init__(ProcessAdvantageVerifier(model, tokenizer, settings, max_batch_tokens))
        self.family = family
        self.initial_value = initial_value
        ids = [] if family.marker is None else tokenizer.encode(family.marker, add_special_tokens=False)
        if len(ids) > 1 or ids == [tokenizer.unk_token_id]:
            raise ValueError(
                f"The family {family.name!r} marks steps with {family.marker!r}, which the tokenizer of "
                f"'{self.__name__}' turns into {len(ids)} tokens ({ids}). The model was not trained with it. Check "
                "that the tokenizer is the model's own, or give another `family`."
            )

    def __call__(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> list[list[float | None]]:
        """Values of the steps.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            **columns:
                As for [`~PublicProcessReward.score_solutions`].

        Returns:
            `list[list[float]]`: One value per step, in [0, 1]; NaN for steps beyond `max_length`.
        """
        return [[*row] for row in self.score_solutions(prompts, steps, **columns)[1]]

    def initial_values(self, prompts: Sequence[Any], **columns: Any) -> list[float]:
        """The constant `initial_value` for every prompt.

        Args:
            prompts (`Sequence`):
                Prompts.
            **columns:
                Not used.

        Returns:
            `list[float]`: One value per prompt.
        """
        return [self.initial_value] * len(prompts)

    def score_solutions(
        self, prompts: Sequence[Any], steps: Sequence[Sequence[str]], **columns: Any
    ) -> tuple[list[float], list[list[float]]]:
        """Values of prompts and steps together.

        Args:
            prompts (`Sequence`):
                One prompt per solution, plain text or messages.
            steps (`Sequence[Sequence[str]]`):
                Texts of the steps of each solution.
            **columns:
                `log_metric`, as trainers pass it, is told the shares of steps that were cut off or are white space;
                the others are not used.

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
        texts = [[step.rstrip() for step in row] for row in steps]
        rows = [self._tokenize(prompt, row) for prompt, row in zip(prompts, texts, strict=True)]
        self._count(rows, sum(map(len, steps)), columns.get("log_metric"))
        values = torch.sigmoid(self._scorer.score_tokenized(rows))[:, 1:].tolist()
        return self.initial_values(prompts), [
            self._with_blanks(row, found) for row, found in zip(texts, values, strict=True)
        ]

    def _tokenize(self, prompt: Any, texts: Sequence[str]) -> TokenizedSteps:
        kept = [text for text in texts if text]
        ids, positions = self.family.tokenize(self.tokenizer, as_messages(prompt), kept)
        limit = self.settings.max_length or len(ids)
        # The first position is the prompt's, which is not read.
        read = [-1, *(position if position < limit else -1 for position in positions)]
        return TokenizedSteps(ids[:limit], read, len(texts) - len(kept), len(ids))

    def _with_blanks(self, texts: Sequence[str], values: Sequence[float]) -> list[float]:
        row, value, found = [], self.initial_value, iter(values)
        for text in texts:
            value = next(found) if text else value
            row.append(value)
        return row


def as_messages(prompt: Any) -> list[Mapping[str, Any]]:
    """Messages of a prompt; a plain text is one of the user.

    Args:
        prompt (`str` or `Sequence[Mapping]`):
            Plain text, or messages with `role` and `content`.

    Returns:
        `list[Mapping]`: The messages.

    Raises:
        `ValueError`: If there is no text for every message.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or ())
    if not messages or not all(isinstance(message.get("content"), str) for message in messages):
        raise ValueError(
            f"The prompt is {prompt!r:.120}, in which there is no text for every message. A verifier reads text only. "
            "Pass a string, or messages whose `content` is a string."
        )
    return messages
