"""Step splitters over the joined bytes of a run of sampled tokens.

Layer 0: numpy and regular expressions only. The Markdown splitter has its own file.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex


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
    start = 0
    for end, text_end in zip(ends, text_ends, strict=True):
        if not is_blank(text, start, text_end):
            merged.append(end)
        elif merged and not _OPENING_TAG.search(text, start, text_end):
            merged[-1] = end
        else:
            # Kept open: the next step begins where this one did.
            continue
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


@dataclass(frozen=True)
class RegexSplitter(TextSplitter):
    r"""Steps that end where a regular expression matches.

    Args:
        pattern (`str`):
            Pattern of the `regex` module, matched on the text with `MULTILINE`. A step ends where a match ends; a
            look-ahead ends it before a marker: `r"(?=^Step \d+)"`.

    Raises:
        `ValueError`: When `pattern` is empty or does not compile.
    """

    pattern: str

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
        offsets = [match.end() for match in compiled.finditer(decoded)]
        if len(decoded) == len(text):
            return offsets
        byte_offsets, previous, total = [], 0, 0
        for offset in offsets:
            total += len(decoded[previous:offset].encode("utf-8", "surrogateescape"))
            byte_offsets.append(total)
            previous = offset
        return byte_offsets


# Starts with one set of bytes, which `re` searches for quickly.
_SENTENCE_END = re.compile(
    rb"[.!?\n\xe2\xe3\xef](?:"
    rb"(?:(?<=[.!?])(?P<more>[.!?]*)|(?<=\xe2)\x80\xa6)"
    rb"(?:[\"')\]}*_]|\xe2\x80[\x99\x9d]|\xc2\xbb|\xe3\x80[\x8d\x8f])*"
    rb"(?P<after>(?:[ \t\r]*\n)+|(?=[ \t])|$)"
    rb"|(?:(?<=\xe3)\x80\x82|(?<=\xef)\xbc[\x81\x9f\x8e])(?:\xe2\x80[\x99\x9d]|\xe3\x80[\x8d\x8f])*(?:[ \t\r]*\n)*"
    rb"|(?<=\n)(?:(?:[ \t\r]*\n)+|(?=[ \t]*(?:[-*+]|\d{1,3}[.)]|\#{1,6})[ \t])))"
)
_ABBREVIATION = re.compile(
    rb"(?:^|[^A-Za-z])(?:(?:e\.g|i\.e|cf|vs|viz|approx|resp|w\.r\.t|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|Inc|Ltd|Co|al)"
    # Initials: `J. Smith`, `George R. R. Martin`; but `option B.` may well end a sentence.
    rb"|(?:^|[.!?]\s+|\b[A-Z][a-z]+\s+|[A-Z]\.\s?)[A-Z])$"
)
_NUMBERED = re.compile(rb"(?:^|[^A-Za-z])(?:Fig|Figs|Eq|Eqs|No|Nos|Sec|Ch|Thm|Lem|Prop|Cor|Def|p|pp|Ex)$")
_LIST_MARKER = re.compile(rb"(?:^|\n)[ \t]*(?:\*\*)?\d{1,3}$")
_WINDOW = 40


@dataclass(frozen=True)
class SentenceSplitter(TextSplitter):
    """Steps of one sentence.

    A sentence ends after `.`, `!`, `?`, `…` and their closing quotes and brackets when whitespace follows, after the
    full-width `。！？` in any case, at a blank line, and before a list item or heading. It does not end at decimals,
    list numbers (`1.`), initials, abbreviations (`e.g.`, `Dr.`, `Fig. 3`), or before a lower-case letter. The space
    after a sentence belongs to the next one, because that is where tokenizers put it.
    """

    def boundaries(self, text: bytes) -> Sequence[int]:
        return [match.end() for match in _SENTENCE_END.finditer(text) if _ends_sentence(text, match)]


def _ends_sentence(text: bytes, match: re.Match[bytes]) -> bool:
    if match["more"] != b"" or text[match.start()] != ord("."):
        return True
    if b"\n" in match["after"]:
        # A list number with its text on the next line is still a list number.
        return not _LIST_MARKER.search(text, max(0, match.start() - _WINDOW), match.start())
    before = text[max(0, match.start() - _WINDOW) : match.start()]
    following = text[match.end() : match.end() + 8].lstrip()[:1]
    if following.islower() or _ABBREVIATION.search(before) or _LIST_MARKER.search(before):
        return False
    return not (_NUMBERED.search(before) and (following.isdigit() or following in (b"(", b"$")))
