"""Steps of plain text, where they end on the tokens of that text.

Layer 0: no model, no trainer; a tokenizer where steps are to end at its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trl_prl.types import StepSplitter

from .splitters import FixedLengthSplitter
from .token_pieces import TokenPieces


def split_text(
    splitter: StepSplitter, text: str, tokenizer: Any | None = None, token_pieces: TokenPieces | None = None
) -> list[str]:
    """Split plain text into steps, with the same result as on the tokens of that text.

    Args:
        splitter (`StepSplitter`):
            The splitter that also splits the sampled completions.
        text (`str`):
            Text to split.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer whose tokens steps end at; the text is tokenised without special tokens. Without one, a step may
            end at any character.
        token_pieces ([`TokenPieces`], *optional*):
            The tokenizer's, for many texts: to make them takes a second for a large vocabulary.

    Returns:
        `list[str]`: Steps; joined, they are `text`. Empty for the empty text. A character that a step end would cut
        goes to the step that ends there, and a step left without any character is dropped.

    Raises:
        `ValueError`: When the splitter counts tokens and there is no tokenizer, or the tokenizer does not keep the
            text and cannot tell where its tokens lie in it.
    """
    if not text:
        return []
    if tokenizer is None:
        if isinstance(splitter, FixedLengthSplitter):
            raise ValueError(
                f"The splitter is {splitter!r}, which counts tokens, but plain text has none. Pass "
                "`tokenizer=`, or use a splitter that reads the text."
            )
        ends = splitter.step_ends([character.encode("utf-8", "surrogatepass") for character in text])
    else:
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        ends = _text_ends(splitter, text, tokenizer, token_pieces or TokenPieces(tokenizer))
    starts = [0, *ends[:-1]]
    return [text[a:b] for a, b in zip(starts, ends, strict=True) if a < b]


def _text_ends(splitter: StepSplitter, text: str, tokenizer: Any, token_pieces: TokenPieces) -> list[int]:
    """Step ends of a text's tokens, as character ends."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    token_ends = splitter.step_ends(token_pieces.pieces(encoding["input_ids"]))
    if not token_ends:
        return [len(text)]
    starts, ends = token_spans(tokenizer, text, encoding, token_pieces)
    # What lies between two tokens belongs to the one before.
    reached = np.maximum(ends, np.append(starts[1:], len(text)))
    return [int(reached[end - 1]) for end in token_ends]


def token_spans(
    tokenizer: Any, text: str, encoding: Mapping[str, Any], token_pieces: TokenPieces
) -> tuple[np.ndarray, np.ndarray]:
    """Where the tokens of a text lie in it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        text (`str`):
            The text.
        encoding (`Mapping`):
            What the tokenizer made of it: `input_ids` and, if it is a fast one, `offset_mapping`.
        token_pieces ([`TokenPieces`]):
            Bytes of the tokenizer's tokens.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Character at which each of N tokens starts, and up to which it reaches, of
        shape (N,); both never decrease. A token that holds a part of a character covers it.

    Raises:
        `ValueError`: If the tokenizer does not keep the text and has no offsets.
    """
    pieces = token_pieces.literal_pieces(encoding["input_ids"])
    raw, joined = text.encode("utf-8", "surrogatepass"), b"".join(pieces)
    if joined in (raw, b" " + raw):
        # Exact. SentencePiece puts a space before a text, which is not part of it.
        byte_ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - (len(joined) - len(raw))
        byte_ends = np.maximum(byte_ends, 0)
        byte_starts = np.concatenate([[0], byte_ends[:-1]])[: len(byte_ends)]
        # Continuation bytes start no character, so this counts the characters begun before each byte.
        is_start = (np.frombuffer(raw, dtype=np.uint8) & 0xC0) != 0x80
        begun = np.concatenate([[0], np.cumsum(is_start)])
        return begun[np.minimum(byte_starts + 1, len(raw))] - 1, begun[byte_ends]
    if not tokenizer.is_fast:
        raise ValueError(
            f"The text was tokenised by a {type(tokenizer).__name__}, which changes text and has no offsets, so its "
            "tokens, and the steps, cannot be found in the text again. Use the fast version of the tokenizer; to "
            "split a text, none is needed."
        )
    offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    return np.maximum.accumulate(offsets[:, 0]), np.maximum.accumulate(offsets[:, 1])
