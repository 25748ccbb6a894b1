"""Steps of plain text, where they end on the tokens of that text.

Layer 0: no model, no trainer; a tokenizer where steps are to end at its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trl_prl.types import StepSplitter

from .splitters import FixedLengthSplitter
from .token_pieces import TokenPieces


def split_text(splitter: StepSplitter, text: str, tokenizer: Any | None = None) -> list[str]:
    """Split plain text into steps, with the same result as on the tokens of that text.

    Args:
        splitter (`StepSplitter`):
            The splitter that also splits the sampled completions.
        text (`str`):
            Text to split.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer whose tokens steps end at; the text is tokenised without special tokens. Without one, a step may
            end at any character.

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
        ends = _text_ends(splitter, text, getattr(tokenizer, "tokenizer", tokenizer))
    starts = [0, *ends[:-1]]
    return [text[a:b] for a, b in zip(starts, ends, strict=True) if a < b]


def _text_ends(splitter: StepSplitter, text: str, tokenizer: Any) -> list[int]:
    """Step ends of a text's tokens, as character ends."""
    token_pieces = TokenPieces(tokenizer)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = encoding["input_ids"]
    token_ends = splitter.step_ends(token_pieces.pieces(ids))
    if not token_ends:
        return [len(text)]
    literal = token_pieces.literal_pieces(ids)
    raw, joined = text.encode("utf-8", "surrogatepass"), b"".join(literal)
    if joined in (raw, b" " + raw):
        # SentencePiece puts a space before a text, which is not part of it.
        added = len(joined) - len(raw)
        byte_ends = np.cumsum([len(piece) for piece in literal]) - added
        # A continuation byte never starts a character, so this counts the characters begun up to each end.
        begun = np.cumsum((np.frombuffer(raw, dtype=np.uint8) & 0xC0) != 0x80)
        return [int(begun[max(byte_ends[end - 1], 1) - 1]) for end in token_ends]
    if not tokenizer.is_fast:
        raise ValueError(
            f"The text was tokenised by a {type(tokenizer).__name__}, which changes text and has no offsets, so its "
            "tokens cannot be found in the text again. Use the fast version of the tokenizer, or split without one."
        )
    # A tokenizer that normalises: what lies between two tokens belongs to the one before.
    offsets = encoding["offset_mapping"]
    return [max(offsets[end - 1][1], offsets[end][0]) if end < len(offsets) else len(text) for end in token_ends]
