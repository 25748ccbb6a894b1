"""Step splitters over the joined bytes of a run of sampled tokens.

Layer 0: numpy and regular expressions only. The sentence and Markdown splitters have files of their own.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
import regex


SPLITTER_HELP = (
    "'fixed', 'newline', 'blank_line', 'sentence', 'turn', 'markdown', 'markdown_newline', 'regex:PATTERN' or "
    "'delimiter:TEXT'"
)
"""The names of splitters that `get_splitter` knows, for whoever has an option for one."""

# Tags that mark a section and say nothing themselves: a step of only these and whitespace would be an empty one.
_TAG = rb"</?(?:think|thinking|thought|reasoning|answer)>"
_OPENING_TAG = re.compile(_TAG.replace(b"/?", b""))
# `str.isspace` in UTF-8.
_SPACE = rb"[\x09-\x0d\x1c-\x20]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
_BLANK = re.compile(rb"(?:" + _SPACE + rb"|" + _TAG + rb")*")


def is_blank(text: bytes, start: int = 0, end: int | None = None) -> bool:
    """Tell whether `text[start:end]` has nothing but whitespace and section tags such as `</think>`."""
    return _BLANK.fullmatch(text, start, len(text) if end is None else end) is not None


# Bytes that show at once that a step is not blank: ASCII that starts neither whitespace nor a tag.
_IS_CONTENT = np.array([b < 0x80 and b != ord("<") and not is_blank(bytes([b])) for b in range(256)])


class ByteSplitter(ABC):
    """Base of the splitters that see one run of tokens as its joined bytes and the byte end of every token.

    A subclass proposes ends; this class turns them into steps that are never blank: a step with nothing but
    whitespace, section tags (`<think>`, `</think>`, ...) and special tokens joins the step before it, or the step
    after it when it is the first one or opens a section.
    """

    @abstractmethod
    def propose_ends(self, text: bytes, byte_ends: np.ndarray) -> np.ndarray:
        """Propose step ends, before blank steps are merged.

        Args:
            text (`bytes`):
                Joined pieces of the run.
            byte_ends (`np.ndarray`):
                Exclusive byte end of each token in `text`, of shape (N,), int64.

        Returns:
            `np.ndarray`: Exclusive token ends, non-decreasing, each in 1..N; N itself may be left out.
        """

    def step_ends(self, pieces: Sequence[bytes]) -> list[int]:
        """Find the step ends of one run of tokens.

        Args:
            pieces (`Sequence[bytes]`):
                Bytes that each token contributes to the text; special tokens contribute `b""`.

        Returns:
            `list[int]`: Exclusive end of each step in `pieces`: strictly increasing, the last one equals
            `len(pieces)`; empty when `pieces` is empty.
        """
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        return self.step_ends_from_bytes(b"".join(pieces), np.cumsum(lengths))

    def step_ends_from_bytes(self, text: bytes, byte_ends: np.ndarray) -> list[int]:
        """Find the step ends of one run of tokens from its joined bytes: the fast path of `step_ends`.

        Args:
            text (`bytes`):
                Joined pieces of the run.
            byte_ends (`np.ndarray`):
                Exclusive byte end of each token in `text`, of shape (N,), int64.

        Returns:
            `list[int]`: As `step_ends` returns.
        """
        num_tokens = len(byte_ends)
        if num_tokens == 0:
            return []
        if is_blank(text):
            return [num_tokens]
        proposed = np.append(self.propose_ends(text, byte_ends), num_tokens)
        proposed = proposed[np.append(True, proposed[1:] > proposed[:-1])]
        text_ends = byte_ends[proposed - 1]
        text_starts = np.append(0, text_ends[:-1])
        if (text_starts < text_ends).all() and _IS_CONTENT[np.frombuffer(text, np.uint8)[text_starts]].all():
            return proposed.tolist()
        return _merge_blank(text, proposed.tolist(), text_ends.tolist())


def _merge_blank(text: bytes, ends: list[int], text_ends: list[int]) -> list[int]:
    merged: list[int] = []
    # A blank part consists of whole tags and spaces, so it need not be read again with what follows it.
    start, is_open = 0, False
    for end, text_end in zip(ends, text_ends, strict=True):
        if not is_blank(text, start, text_end):
            merged.append(end)
            is_open = False
        elif merged and not is_open and not _OPENING_TAG.search(text, start, text_end):
            merged[-1] = end
        else:
            # Kept open: the next step begins where this one did.
            is_open = True
        start = text_end
    if not merged:
        return ends[-1:]
    merged[-1] = ends[-1]
    return merged


@dataclass(frozen=True)
class FixedLengthSplitter(ByteSplitter):
    """Steps of a fixed number of tokens, the default of PRL (https://huggingface.co/papers/2601.10201).

    The last step is shorter. The only exception to the length is a step without content, such as an end-of-sequence
    token alone, which joins its neighbour.

    Args:
        length (`int`, *optional*, defaults to `256`):
            Tokens per step, at least 1.

    Raises:
        `ValueError`: When `length` is below 1.
    """

    length: int = 256

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(
                f"`length` is {self.length}, but a step has at least one token. Use a positive number of tokens, "
                "256 as in PRL for instance."
            )

    def propose_ends(self, text: bytes, byte_ends: np.ndarray) -> np.ndarray:
        return np.arange(self.length, len(byte_ends) + 1, self.length)


@dataclass(frozen=True)
class TurnSplitter(ByteSplitter):
    """One step per turn of the policy, for agents with tools or environments.

    A turn is a run of the action mask: what the policy sampled between two tool outputs. As every run is split on its
    own, there is nothing to end inside of it.
    """

    def propose_ends(self, text: bytes, byte_ends: np.ndarray) -> np.ndarray:
        return np.empty(0, dtype=np.int64)


class TextSplitter(ByteSplitter):
    """Base of the splitters that look at the text alone.

    A boundary inside a token moves to the end of that token: the token that completes a delimiter ends the step.
    """

    @abstractmethod
    def boundaries(self, text: bytes) -> Sequence[int]:
        """Find where steps end in the text.

        Args:
            text (`bytes`):
                Joined pieces of one run; usually UTF-8, but sampled bytes need not be valid.

        Returns:
            `Sequence[int]`: Byte offsets, increasing, each the exclusive end of a step; `len(text)` may be left out.
        """

    def propose_ends(self, text: bytes, byte_ends: np.ndarray) -> np.ndarray:
        offsets = np.asarray(self.boundaries(text), dtype=np.int64)
        # Zero offsets would end a step before its first byte.
        return np.searchsorted(byte_ends, offsets[offsets > 0], side="left") + 1


@dataclass(frozen=True)
class DelimiterSplitter(TextSplitter):
    r"""Steps that end with a delimiter.

    A delimiter made of newlines is a number of line breaks: `"\n"` ends a step at every line that has text, `"\n\n"`
    at every blank line. More line breaks belong to the same end, a line of only spaces or tabs counts as blank, and
    `\r\n` is a line break. Any other delimiter is taken literally, and repetitions of it (`####` for `###`) belong to
    the same end.

    Args:
        delimiter (`str`, *optional*, defaults to `"\n\n"`):
            Text that ends a step. It stays with the step it ends.

    Raises:
        `ValueError`: When `delimiter` is empty.
    """

    delimiter: str = "\n\n"

    def __post_init__(self) -> None:
        if not self.delimiter:
            raise ValueError(
                "`delimiter` is the empty string, but that ends no step anywhere. Use the text that separates steps, "
                r'"\n\n" for instance, or `FixedLengthSplitter(1)` for one step per token.'
            )

    def boundaries(self, text: bytes) -> Sequence[int]:
        return [match.end() for match in delimiter_pattern(self.delimiter).finditer(text)]


def delimiter_pattern(delimiter: str) -> re.Pattern[bytes]:
    """Compile the pattern of one delimiter run, as `DelimiterSplitter` documents it."""
    if set(delimiter) <= {"\r", "\n"}:
        breaks = max(delimiter.count("\n"), 1)
        return re.compile(rb"\n(?:[ \t\r]*\n){%d,}" % (breaks - 1))
    literal = delimiter.encode()
    if len(set(delimiter)) == 1:
        character = re.escape(delimiter[0].encode())
        return re.compile(rb"(?:%s){%d,}" % (character, len(delimiter)))
    return re.compile(rb"(?:%s)+" % re.escape(literal))


# Parts of a pattern in which `*`, `+`, `?` and `{` are no repeats.
_LITERALS = regex.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]", regex.DOTALL)


@dataclass(frozen=True)
class RegexSplitter(TextSplitter):
    r"""Steps that end where a regular expression matches.

    Args:
        pattern (`str`):
            Pattern of the `regex` module, matched on the text with `MULTILINE`. A step ends where a match ends; a
            look-ahead ends it before a marker: `r"(?=^Step \d+)"`.
        timeout (`float`, *optional*, defaults to `10.0`):
            Seconds that matching one text may take. A pattern with nested repeats, `(a+)+b` for instance, can take
            years where it does not match.

    Raises:
        `ValueError`: When `pattern` is empty or does not compile.
        `TimeoutError`: When a text takes longer (raised while splitting).
    """

    pattern: str
    timeout: float = field(default=10.0, repr=False)

    def __post_init__(self) -> None:
        try:
            regex.compile(self.pattern, regex.MULTILINE)
        except regex.error as error:
            raise ValueError(
                f"`pattern` is {self.pattern!r}, which is not a regular expression of the `regex` module ({error}). "
                "Correct it, or use `DelimiterSplitter` for a literal text."
            ) from error
        if not self.pattern:
            raise ValueError(
                "`pattern` is empty, so it would match between any two characters. Use a pattern of what ends a step, "
                "or `FixedLengthSplitter(1)` for one step per token."
            )

    def boundaries(self, text: bytes) -> Sequence[int]:
        # Undecodable bytes become lone surrogates, which encode back to the same bytes.
        decoded = text.decode("utf-8", "surrogateescape")
        compiled = regex.compile(self.pattern, regex.MULTILINE)
        # The clock of `regex` costs a system call a match, which patterns without repeats, always fast, are spared.
        timeout = self.timeout if set("*+?{") & set(_LITERALS.sub("", self.pattern)) else None
        try:
            offsets = [match.end() for match in compiled.finditer(decoded, timeout=timeout)]
        except TimeoutError as error:
            raise TimeoutError(
                f"`pattern` is {self.pattern!r}, which was not done after {self.timeout:g} s with a text of "
                f"{len(decoded)} characters that begins with {decoded[:60]!r}, so it would hold up a training for "
                "good. Write it without repeats inside repeats (possessive ones, `++` and `*+`, do not go back), or "
                "raise `timeout`."
            ) from error
        if len(decoded) == len(text):
            return offsets
        parts = (decoded[start:end] for start, end in pairwise([0, *offsets]))
        return list(accumulate(len(part.encode("utf-8", "surrogateescape")) for part in parts))
