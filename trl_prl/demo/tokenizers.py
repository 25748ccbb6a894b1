"""Tokenizer of the tasks: one token per character, and special tokens that have no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def character_tokenizer(
    tokens: Sequence[str], *, eos: str, pad: str, bos: str | None = None
) -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer without merges, so that decoding joins the characters exactly.

    Args:
        tokens (`Sequence[str]`):
            ASCII characters and special tokens; the position of each is its id.
        eos (`str`):
            Special token that ends a sequence.
        pad (`str`):
            Special token that pads; it may be the same.
        bos (`str`, *optional*):
            Special token that starts a sequence. It is not added by itself.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: Pads on the left.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level vocabularies write the newline as this letter, and the other characters as themselves.
    vocab = {token.replace("\n", "Ċ"): index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = [token for token in tokens if len(token) > 1]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
