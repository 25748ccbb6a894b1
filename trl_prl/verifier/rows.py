"""Stepwise rows as tokens: one tokenisation for training and scoring, and soft labels.

A row is `{"prompt", "completions": [step, ...], "labels": [number, ...]}`, and possibly `initial_value`, the value of
the prompt itself. The text of a solution is tokenised as a whole, never step by step, and its steps are found again in
the tokens of that text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from trl_prl.prompts.chat import check_chat_template, end_token_ids, is_messages, prompt_token_ids
from trl_prl.steps.plain_text import token_spans
from trl_prl.steps.token_pieces import TokenPieces
from trl_prl.storage.row_values import read_labels

from .settings import VerifierSettings


@dataclass(frozen=True)
class TokenizedSteps:
    """Tokens of a prompt and its solution, and the positions that stand for its steps.

    Attributes:
        input_ids (`list[int]`):
            Tokens, at most `max_length`: a text that is too long keeps its head.
        positions (`list[int]`):
            Position of the prompt's value, then one per step; -1 where it lies beyond `max_length`. Increasing, but
            two steps that end in one token share its position.
        num_merged (`int`):
            Steps without a position of their own, because a token covers the ends of two, or the step is empty.
    """

    input_ids: list[int]
    positions: list[int]
    num_merged: int

    @property
    def num_truncated(self) -> int:
        """Steps that lie beyond `max_length`."""
        return sum(position < 0 for position in self.positions[1:])


def render_prompt(tokenizer: Any, prompt: str | Sequence[Mapping[str, Any]], settings: VerifierSettings) -> str:
    """Text of a prompt, as the verifier reads it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the verifier.
        prompt (`str` or `Sequence[Mapping]`):
            Plain text, or messages with `role` and `content`.
        settings ([`VerifierSettings`]):
            Settings of the verifier.

    Returns:
        `str`: The text.

    Raises:
        `ValueError`: If the prompt is not text, or there is no chat template to render it.
    """
    messages = text_messages(prompt)
    if settings.prompt_format == "text":
        return "\n\n".join(message["content"] for message in messages) + settings.prompt_suffix
    check_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text) + settings.prompt_suffix


def text_messages(prompt: Any) -> list[dict[str, Any]]:
    """Messages of a prompt, whose contents are texts.

    Args:
        prompt (`str` or `Sequence[Mapping]`):
            Plain text, which is one message of the user, or messages with `role` and `content`; parts of a content are
            joined.

    Returns:
        `list[dict]`: The messages.

    Raises:
        `ValueError`: If there is no text for every message.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or ()
    found = [dict(message) for message in messages if isinstance(message, Mapping)]
    for message in found:
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
            texts = [part.get("text") for part in content]
            message["content"] = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not found or not all(isinstance(message.get("content"), str) for message in found):
        raise ValueError(
            f"The prompt is {prompt!r:.120}, in which there is no text for every message. A verifier reads text "
            "only. Pass a string, or messages whose `content` is a string."
        )
    return found


def _head_ids(tokenizer: Any, prompt: Any, settings: VerifierSettings) -> list[int]:
    """Tokens of a prompt as a policy is given it."""
    arguments = settings.prompts.chat_template_kwargs if settings.prompts else {}
    if isinstance(prompt, str):
        return list(prompt_token_ids(tokenizer, prompt + settings.prompt_suffix))
    suffix = tokenizer(settings.prompt_suffix, add_special_tokens=False)["input_ids"] if settings.prompt_suffix else []
    return [*prompt_token_ids(tokenizer, text_messages(prompt), **arguments), *suffix]


def tokenize_stepwise(
    tokenizer: Any,
    prompt: str | Sequence[Mapping[str, Any]],
    steps: Sequence[str],
    settings: VerifierSettings,
    token_pieces: TokenPieces | None = None,
    finished: bool = True,
) -> TokenizedSteps:
    """Tokenise a prompt with its solution, for training and for scoring alike.

    The solution is tokenised as a whole: behind the prompt's own tokens, as a policy samples it, or, in the formats
    `"text"` and `"chat"`, in one text with the prompt. A step is scored at the token that holds its last character
    (the last token of a character that is spread over several). When that token reaches into the next step, and the
    next step ends in it too, both are scored there. The last step of a finished solution is scored at the token that
    ends it, if the settings say that it is read. The prompt is scored at its last token that holds nothing of the
    solution, so that its value is the same whatever follows.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the verifier.
        prompt (`str` or `Sequence[Mapping]`):
            Plain text or messages.
        steps (`Sequence[str]`):
            Texts of the steps; joined, they are the solution.
        settings ([`VerifierSettings`]):
            Settings of the verifier.
        token_pieces ([`TokenPieces`], *optional*):
            Bytes of the tokenizer's tokens, to build its table only once.
        finished (`bool`, *optional*, defaults to `True`):
            Whether the solution ends with its last step.

    Returns:
        [`TokenizedSteps`]: Tokens and positions.

    Raises:
        `ValueError`: If the prompt has no text or no tokens, or the tokenizer changes text and has no offsets.
    """
    # Processors of vision-language models wrap the tokenizer.
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    ids, positions = _ids_and_positions(tokenizer, prompt, steps, settings, token_pieces or TokenPieces(tokenizer))
    if positions[0] < 0:
        raise ValueError(
            f"The prompt {prompt!r:.80} has no token of its own, so there is no position for its value. Give the "
            "prompt a text, or set `prompt_suffix` to a line break."
        )
    num_merged = sum(a == b for a, b in pairwise(positions))
    if settings.read_end and finished and steps:
        is_chat = settings.prompt_format == "chat" or (settings.prompt_format == "as_given" and is_messages(prompt))
        ids += end_token_ids(tokenizer, is_chat)
        positions[-1] = len(ids) - 1
    if settings.max_length is not None and len(ids) > settings.max_length:
        ids = ids[: settings.max_length]
        positions = [position if position < len(ids) else -1 for position in positions]
    return TokenizedSteps(ids, positions, num_merged)


def _ids_and_positions(
    tokenizer: Any, prompt: Any, steps: Sequence[str], settings: VerifierSettings, token_pieces: TokenPieces
) -> tuple[list[int], list[int]]:
    """Tokens of prompt and solution, and the positions of the prompt and of each step in them."""
    as_given = settings.prompt_format == "as_given"
    head = "" if as_given else render_prompt(tokenizer, prompt, settings)
    text = head + "".join(steps)
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, return_attention_mask=False
    )
    starts, ends = token_spans(tokenizer, text, encoding, token_pieces)
    if as_given:
        added = _head_ids(tokenizer, prompt, settings)
    else:
        # A chat template writes the start token itself.
        added = [] if settings.prompt_format == "chat" else start_ids(tokenizer)
    text_ends = list(accumulate((len(step) for step in steps), initial=len(head)))
    # The last token that starts before the end of the step; for the prompt, the last one that ends by its end.
    positions = (np.searchsorted(starts, text_ends, side="left") - 1 + len(added)).tolist()
    if not as_given:
        positions[0] = int(np.searchsorted(ends, text_ends[0], side="right")) - 1 + len(added)
    return added + list(encoding["input_ids"]), positions


def start_ids(tokenizer: Any) -> list[int]:
    """The start token, where the tokenizer adds one; what it adds at the end would stand behind the last step."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def is_finished(row: Mapping[str, Any]) -> bool:
    """Whether a stepwise row ends where its solution ends: not, if steps follow or it reached the length limit.

    Args:
        row (`Mapping`):
            Stepwise row; one that has neither `rest` nor `finished` nor `finish_reason` is taken as finished.

    Returns:
        `bool`: Whether it is.
    """
    if row.get("rest"):
        return False
    known = row.get("finished")
    return row.get("finish_reason") != "length" if known is None else bool(known)


def clean_labels(labels: Sequence[Any], num_steps: int) -> list[float]:
    """Read step labels.

    Args:
        labels (`Sequence`):
            Numbers in [0, 1] or booleans; `None`, NaN and -100 mark steps without a label.
        num_steps (`int`):
            Number of steps.

    Returns:
        `list[float]`: Labels in [0, 1], NaN where there is none.

    Raises:
        `ValueError`: If there is not one label per step, or one is out of range.
    """
    if len(labels) != num_steps:
        raise ValueError(
            f"There are {len(labels)} labels for {num_steps} steps. Labels would belong to other steps. Give one "
            "label per step, `None` for a step without one."
        )
    return read_labels(labels, "A step has a label that")


def cut_after_first_error(steps: Sequence[str], labels: Sequence[float]) -> tuple[list[str], list[float]]:
    """Drop what follows the first step whose label says that the solution has failed.

    Source: the first pit of [PAV](https://huggingface.co/papers/2410.08146), App. D: the first step from which no
    rollout succeeds.

    Args:
        steps (`Sequence[str]`):
            Texts of the steps.
        labels (`Sequence[float]`):
            One label per step, NaN for none.

    Returns:
        `tuple[list[str], list[float]]`: Steps and labels up to and including that step.
    """
    end = next((i + 1 for i, label in enumerate(labels) if label <= 0), len(steps))
    return list(steps[:end]), list(labels[:end])
