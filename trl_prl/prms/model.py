"""A public process reward model as a process reward: its family's text and readout around the verifier's batching."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch

from trl_prl.verifier.rows import TokenizedSteps, text_messages
from trl_prl.verifier.scorer import ModelScorer
from trl_prl.verifier.settings import VerifierSettings

from .families import Family


class PublicProcessReward(ModelScorer):
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
        super().__init__(model, tokenizer, settings, max_batch_tokens)
        self.family = family
        self.initial_value = initial_value
        ids = [] if family.marker is None else tokenizer.encode(family.marker, add_special_tokens=False)
        if len(ids) > 1 or ids == [tokenizer.unk_token_id]:
            raise ValueError(
                f"The family {family.name!r} marks steps with {family.marker!r}, which the tokenizer of "
                f"'{self.__name__}' turns into {len(ids)} tokens ({ids}). The model was not trained with it. Check "
                "that the tokenizer is the model's own, or give another `family`."
            )

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
        texts = [[step.rstrip() for step in row] for row in steps]
        values = torch.sigmoid(self._score(prompts, texts, columns))[:, 1:].tolist()
        initial_values = self.initial_values(prompts)
        return initial_values, [*map(with_blanks, texts, values, initial_values)]

    def _tokenize_row(self, prompt: Any, steps: list[str], finished: bool) -> TokenizedSteps:
        kept = [text for text in steps if text]
        ids, positions = self.family.tokenize(self.tokenizer, text_messages(prompt), kept)
        limit = self.settings.max_length or len(ids)
        # The first position is the prompt's, which is not read.
        read = [-1, *(position if position < limit else -1 for position in positions)]
        return TokenizedSteps(ids[:limit], read, len(steps) - len(kept))


def with_blanks(texts: Sequence[str], values: Iterable[float], initial_value: float) -> list[float]:
    """Values of all steps, out of those of the steps that hold more than white space.

    Args:
        texts (`Sequence[str]`):
            Texts of the steps, without white space at their ends.
        values (`Iterable[float]`):
            Values of those that are not empty.
        initial_value (`float`):
            Value of the prompt.

    Returns:
        `list[float]`: One value per step; an empty one has the value of the step before.
    """
    row, value, found = [], initial_value, iter(values)
    for text in texts:
        value = next(found) if text else value
        row.append(value)
    return row
