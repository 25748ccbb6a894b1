"""Token pieces: the exact bytes that each sampled id contributes to the text.

Layer 0: reads a tokenizer's tables, runs no model and tokenises nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import regex


_BYTE_TOKEN = regex.compile(r"<0x([0-9A-Fa-f]{2})>")
# Kinds of decoder steps that change the text of each token.
_REWRITES = ("Metaspace", "Replace", "WordPiece", "BPEDecoder", "Words")
# What a WordPiece decoder with `cleanup` does to the space it puts before punctuation and contractions.
_WORDPIECE_CLEANUP = regex.compile(r" (?=[.?!,]|n't|'(?:m|s|ve|re)(?![^\W_]))")


class TokenPieces:
    """Bytes of every id of a tokenizer, as a table that is built once, on first use.

    A piece is what an id adds to the text *in the middle of a text*, because a completion always follows a prompt: the
    SentencePiece token `▁So` is `b" So"` also when it is the first of the completion, where `decode` would drop the
    space. Byte-level BPE pieces are the raw bytes, so a character may be spread over several pieces and an arbitrary
    sequence of sampled ids, canonical or not, always has exact pieces.

    Special tokens (whatever `decode(..., skip_special_tokens=True)` drops) contribute `b""`, and so do ids beyond the
    vocabulary, which a padded embedding matrix lets a model sample. Added tokens that are not special, such as
    `<think>` in most reasoning models, keep their text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer of the policy, or a processor that has one. Byte-level BPE, SentencePiece (with or without byte
            fallback), WordPiece, BPE with a word suffix and plain word tokenizers are understood.

    Raises:
        `ValueError`: When the tokenizer's decoder is of a kind whose pieces depend on the neighbouring tokens, or
            cannot be found out (raised on first use, not in the constructor).

    Example:

    ```python
    >>> pieces = TokenPieces(AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B"))
    >>> pieces.pieces([40, 382, 0])
    [b'I', b'.\\n\\n', b'!']
    ```
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)

    def __len__(self) -> int:
        return len(self._table) - 1

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Look up the pieces of sampled ids.

        Args:
            ids (`Sequence[int]`):
                Token ids, in any order: they need not be what the tokenizer would produce for their text.

        Returns:
            `list[bytes]`: One piece per id; joined, they are the text of the ids as bytes.
        """
        return self._table[self._rows(ids)].tolist()

    def join(self, ids: Sequence[int] | np.ndarray) -> tuple[bytes, np.ndarray]:
        """Join the pieces of sampled ids without making a list of them: the fast path of the splitters.

        Args:
            ids (`Sequence[int]` or `np.ndarray`):
                Token ids of one run, of shape (N,).

        Returns:
            `tuple[bytes, np.ndarray]`: The text as bytes, and the exclusive byte end of every token in it, of shape
            (N,) and type int64.
        """
        rows = self._rows(ids)
        return b"".join(self._table[rows].tolist()), np.cumsum(self._lengths[rows])

    def literal_pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Look up pieces with special tokens written out (`b"<|im_end|>"` instead of `b""`).

        Args:
            ids (`Sequence[int]`):
                Token ids of a tokenised text.

        Returns:
            `list[bytes]`: One piece per id.
        """
        return [self._special_texts.get(int(i), piece) for i, piece in zip(ids, self.pieces(ids), strict=True)]

    def _rows(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        rows = np.asarray(ids, dtype=np.int64)
        beyond = len(self._table) - 1
        # One comparison for both ends: a negative id is a huge unsigned one.
        outside = rows.view(np.uint64) >= beyond
        return np.where(outside, beyond, rows) if outside.any() else rows

    @cached_property
    def _special_texts(self) -> dict[int, bytes]:
        tokenizer = self._tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        ids = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
        tokens = dict(zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True))
        return {i: token.encode("utf-8", "surrogatepass") for i, token in tokens.items() if token is not None}

    @cached_property
    def _table(self) -> np.ndarray:
        tokenizer = self._tokenizer
        to_bytes = _token_to_bytes(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        size = max(len(tokenizer), *(i + 1 for i in added), 0)
        silent, tokens = self._special_texts, tokenizer.convert_ids_to_tokens(list(range(size)))
        table = [
            b"" if token is None or i in silent else to_bytes(str(token), i in added) for i, token in enumerate(tokens)
        ]
        # The last row stands for every id outside the vocabulary. An object array is indexed by a whole run at once.
        return np.array([*table, b""], dtype=object)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.fromiter(map(len, self._table), dtype=np.int64, count=len(self._table))


def _token_to_bytes(tokenizer: Any) -> Callable[[str, bool], bytes]:
    """Find the function from (token, is an added token) to its bytes, from what the tokenizer's decoder does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _from_decoder(tokenizer, _decoder_steps(backend))
    # Tokenizers in pure Python have no decoder object; their tables tell the kind.
    if hasattr(tokenizer, "sp_model"):
        metaspace = {"type": "Metaspace", "replacement": "▁"}
        return _from_decoder(tokenizer, [metaspace, {"type": "ByteFallback"}])
    if hasattr(tokenizer, "byte_decoder"):
        return _from_decoder(tokenizer, [{"type": "ByteLevel"}])
    raise _unsupported(tokenizer, "it has neither a `tokenizers` backend, nor an `sp_model`, nor a `byte_decoder`")


def _decoder_steps(backend: Any) -> list[dict[str, Any]]:
    """List the decoder's steps, each a dict with its type, as the tokenizer's own JSON has them."""
    decoder = _flatten(_state(backend.decoder), "decoders")
    if decoder:
        return decoder
    for step in _flatten(_state(backend.pre_tokenizer), "pretokenizers"):
        if step["type"] in ("ByteLevel", "Metaspace"):
            return [step]
    # Without a decoder the `tokenizers` library joins tokens with a space.
    return [{"type": "Words"}]


def _state(component: Any) -> dict[str, Any] | None:
    return None if component is None else json.loads(component.__getstate__())


def _flatten(state: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if state is None:
        return []
    if state["type"] == "Sequence":
        return [step for child in state[key] for step in _flatten(child, key)]
    return [state]


def _from_decoder(tokenizer: Any, steps: list[dict[str, Any]]) -> Callable[[str, bool], bytes]:
    """Compose the decoder's steps into one function of a single token."""
    rewrites: list[dict[str, Any]] = []
    byte_level = byte_fallback = fused = False
    for step in steps:
        kind = step["type"]
        if fused and kind != "Strip":
            raise _unsupported(tokenizer, f"its decoder applies {kind!r} to the joined text, not to each token")
        if kind == "ByteLevel":
            byte_level = True
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused:
            # Takes a space off the start of a whole text; a completion is never the start of a text.
            continue
        elif kind in _REWRITES:
            rewrites.append(step)
        else:
            raise _unsupported(tokenizer, f"its decoder has a step of type {kind!r}")

    def to_bytes(token: str, is_added: bool) -> bytes:
        # Added tokens are stored as plain text, not in the byte-level alphabet: `é` must not become the byte 0xE9.
        if byte_level and not is_added and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for step in rewrites:
            token = _rewrite(step, token)
        return token.encode("utf-8", "surrogatepass")

    return to_bytes


def _rewrite(step: dict[str, Any], token: str) -> str:
    """What one step of the decoder, of a kind in `_REWRITES`, makes of a token."""
    match step["type"]:
        case "Metaspace":
            return token.replace(step["replacement"], " ")
        case "BPEDecoder":
            return token.replace(step["suffix"], " ")
        case "Words":
            return f" {token}"
        case "WordPiece":
            token = token.removeprefix(step["prefix"]) if token.startswith(step["prefix"]) else f" {token}"
            return _WORDPIECE_CLEANUP.sub("", token) if step["cleanup"] else token
    pattern, content = step["pattern"], step["content"]
    if "String" in pattern:
        return token.replace(pattern["String"], content)
    return regex.sub(pattern["Regex"], lambda _: content, token)


def _byte_alphabet() -> dict[str, int]:
    """Invert GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _unsupported(tokenizer: Any, reason: str) -> ValueError:
    return ValueError(
        f"Token pieces were asked of a {type(tokenizer).__name__}, but {reason}, so the bytes that one sampled id "
        "contributes cannot be told. Use a tokenizer with a byte-level, SentencePiece or WordPiece decoder "
        "(for most models `AutoTokenizer` finds one)."
    )
