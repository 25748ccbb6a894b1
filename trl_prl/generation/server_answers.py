"""Answers of completions endpoints as samples, once they have shown that they are what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import NoneType
from typing import Any

from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.types import Completion

from .engines import completion_of, finish_reason_of
from .server_calls import UnusableAnswerError, part_of


logger = logging.getLogger(__name__)


class AnswerReader:
    """Reads the samples of answers. Whatever is no sample of the model is refused, never taken for a wrong answer.

    Args:
        model (`str`):
            Name of the model at the servers.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        pieces ([`TokenPieces`]):
            The same tokenizer's tokens as bytes.
        send_text (`bool`):
            Whether text is sent and comes back, rather than ids.
    """

    def __init__(self, model: str, tokenizer: Any, pieces: TokenPieces, *, send_text: bool) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.send_text = send_text
        self._pieces = pieces
        self._vocab_size = len(tokenizer)
        self._is_compared = False

    def read(self, answer: Any, num_prompt_tokens: int, max_tokens: int) -> list[Completion]:
        """The samples of an answer.

        Args:
            answer:
                An answer with choices, as the `openai` package reads it.
            num_prompt_tokens (`int`):
                Tokens of the prompt, as counted here.
            max_tokens (`int`):
                Most tokens of a sample, as asked.

        Returns:
            `list[Completion]`: One per choice.

        Raises:
            [`UnusableAnswerError`]: When it is malformed, or a sample is empty, cut by something else than its length,
                longer than asked or has ids outside the vocabulary.
            `ValueError`: When the server gives no ids, or has another tokenizer.
        """
        counted = part_of(answer, "usage.prompt_tokens", int, NoneType)
        if self.send_text and counted is not None:
            self._compare_counts(counted, num_prompt_tokens)
        num_tokens = part_of(answer, "usage.completion_tokens", int, NoneType)
        if num_tokens is not None and num_tokens > max_tokens * len(answer.choices):
            raise UnusableAnswerError(
                f"{num_tokens} tokens in {len(answer.choices)} samples of at most {max_tokens} tokens"
            )
        return [self._completion(choice, max_tokens, num_tokens) for choice in answer.choices]

    def _completion(self, choice: Any, max_tokens: int, num_tokens: int | None) -> Completion:
        ended_by = part_of(choice, "finish_reason", str, NoneType)
        if ended_by not in ("stop", "length"):
            raise UnusableAnswerError(f"a sample that ended by {ended_by!r}")
        stopped = isinstance(getattr(choice, "stop_reason", None), str)
        reason = finish_reason_of(ended_by, stopped)
        if self.send_text:
            # A model may end at once, and then has sampled the token that ends it.
            text = part_of(choice, "text", str)
            if not text and not num_tokens:
                raise UnusableAnswerError(f"a sample without any token that ended by {ended_by!r}")
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            # A finished sample must not look like the start of a longer one.
            if reason == "eos" and self.tokenizer.eos_token_id is not None:
                ids = [*ids, self.tokenizer.eos_token_id]
        else:
            ids = part_of(choice, "token_ids", list, NoneType)
            if ids is None:
                raise ValueError(
                    "The server does not return the ids of its samples, so steps could not be cut where it cut "
                    "tokens. Use one that has `return_token_ids` (vLLM 0.10.2 or newer), or send_text=True, "
                    "which tokenises the texts again."
                )
            check_ids(ids, max_tokens, self._vocab_size)
            self._compare(part_of(choice, "text", str, NoneType) or "", ids)
        return completion_of(self._pieces, ids, reason)

    def _compare_counts(self, theirs: int, ours: int) -> None:
        """Where only text is sent, another tokenizer changes no meaning, but every limit in tokens."""
        # The server may count a start token, or leave it out.
        if not self._is_compared and abs(theirs - ours) > 1:
            logger.warning(
                "The server counts %d tokens in a prompt that has %d with this tokenizer: the model '%s' there "
                "has another one, so steps and limits in tokens are not in its tokens. Pass its tokenizer.",
                theirs,
                ours,
                self.model,
            )
        self._is_compared = True

    def _compare(self, text: str, ids: Sequence[int]) -> None:
        """Compare the served tokenizer with ours, once, on the first sample that both have as text."""
        if self._is_compared or not (theirs := _letters(text)):
            return
        ours = _letters(self.tokenizer.decode(ids, skip_special_tokens=True))
        if ours != theirs:
            raise ValueError(
                f"The server reads the ids of a sample as {text[:80]!r}, this tokenizer as "
                f"{self.tokenizer.decode(ids)[:80]!r}: the model {self.model!r} at the server has another tokenizer, "
                "and each prompt would mean something else to it. Pass the tokenizer of the served model."
            )
        self._is_compared = True


def check_ids(ids: Sequence[int], max_tokens: int, vocab_size: int) -> None:
    """Raise [`UnusableAnswerError`] for ids that cannot be a sample.

    Args:
        ids (`Sequence[int]`):
            Ids of a sample, the end token included.
        max_tokens (`int`):
            How many there may be.
        vocab_size (`int`):
            Size of the vocabulary.
    """
    if not ids:
        raise UnusableAnswerError("a sample without any token")
    if len(ids) > max_tokens:
        raise UnusableAnswerError(f"a sample of {len(ids)} tokens where at most {max_tokens} were asked for")
    outside = [i for i in ids if not (type(i) is int and 0 <= i < vocab_size)]
    if outside:
        raise UnusableAnswerError(f"a sample with the id {outside[0]!r}, outside the vocabulary of {vocab_size}")


def _letters(text: str) -> str:
    """What two ways of putting tokens together agree on: blanks at the edges and halves of characters differ."""
    return "".join(text.replace("\ufffd", "").split())
