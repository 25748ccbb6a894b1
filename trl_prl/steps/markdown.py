"""The Markdown and LaTeX aware step splitter.

Layer 0: numpy and regular expressions only.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .splitters import TextSplitter, delimiter_pattern


# Starts with one set of bytes, which `re` searches for quickly; fences and tables are then checked from the start of
# their line. `\\` and `\$` are matched to be passed over.
_OPENER = re.compile(
    rb"[\\$`~|](?:(?<=\\)(?:(?P<pass>[\\$])|(?P<bracket>\[)|begin\{(?P<name>[A-Za-z]+\*?)\})|(?<=\$)(?P<dollars>\$)"
    rb"|(?P<fence>(?<=`)`{2,}|(?<=~)~{2,})|(?<=\|)(?P<rule>[ \t]*:?-))"
)
_FENCE_LINE = re.compile(rb"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t\r]*$", re.MULTILINE)
# Possessive, so that a row that fails late is not tried in other ways.
_RULE_ROW = re.compile(rb"[ \t]*+(?:\|[ \t]*+)?:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)++\|?[ \t\r]*+$", re.MULTILINE)
_INDENT = re.compile(rb"[ \t]*+")
_DOLLARS = re.compile(rb"\\[\\$]|(?P<mark>\$\$)")
_BRACKET = re.compile(rb"\\\\|(?P<mark>\\\])")
_BEGIN_END = re.compile(rb"\\\\(?![A-Za-z])|\\(?P<mark>begin|end)\{(?P<name>[A-Za-z]+\*?)\}")
_BLANK_LINE = delimiter_pattern("\n\n")


@dataclass(frozen=True)
class MarkdownSplitter(TextSplitter):
    r"""Steps that end at blank lines, but never inside a block of Markdown or LaTeX.

    Nothing is cut inside `$$…$$`, `\[…\]`, `\begin{…}…\end{…}`, fenced code and tables. A block that is still open at
    the end of the text, because the completion was truncated or the opener is a stray one, is handled as its language
    does: an open code fence runs to the end (CommonMark), open mathematics to the next blank line (LaTeX ends it
    there), so that one stray `$$` does not swallow the rest of a completion.

    Args:
        newline (`bool`, *optional*, defaults to `False`):
            Also end steps at single line breaks.
    """

    newline: bool = False

    @property
    def delimiter(self) -> str:
        """What ends a step outside of the blocks."""
        return "\n" if self.newline else "\n\n"

    def boundaries(self, text: bytes) -> Sequence[int]:
        ends = [match.end() for match in delimiter_pattern(self.delimiter).finditer(text)]
        if not ends:
            return ends
        kept: list[int] = []
        position = 0
        for start, end in protected_spans(text):
            cut = bisect_right(ends, start)
            kept.extend(ends[position:cut])
            position = bisect_left(ends, end, lo=cut)
        return kept + ends[position:]


def protected_spans(text: bytes) -> list[tuple[int, int]]:
    """Find the blocks that no step end may cut.

    Args:
        text (`bytes`):
            Text of one completion, UTF-8 or not.

    Returns:
        `list[tuple[int, int]]`: Start and exclusive end of each block, in order and disjoint. A block that runs to the
        end of a truncated text ends at `len(text) + 1`.
    """
    spans: list[tuple[int, int]] = []
    closers, line = _Closers(text), _Line(text, 0, 0)
    position = 0
    while match := _OPENER.search(text, position):
        start, position = match.start(), match.end()
        if match["pass"]:
            continue
        if match["fence"] or match["rule"]:
            line = line.at(start)
        if match["rule"]:
            if not line.rule_row:
                continue
            start = max(_header_start(text, line.start), spans[-1][1] if spans else 0)
            end = _table_end(text, line.rule_row.end())
        elif match["fence"]:
            if start != line.indent_end:
                continue
            start, end = line.start, closers.find(match)
        else:
            end = closers.find(match)
        spans.append((start, end))
        position = max(position, end)
        if position > len(text):
            break
    return spans


class _Line:
    """A line of the text, read at most once, however many openers it has."""

    def __init__(self, text: bytes, start: int, end: int) -> None:
        self._text = text
        self.start = start
        self.end = end

    @cached_property
    def indent_end(self) -> int:
        return _INDENT.match(self._text, self.start).end()  # type: ignore[union-attr]

    @cached_property
    def rule_row(self) -> re.Match[bytes] | None:
        return _RULE_ROW.match(self._text, self.start)

    def at(self, position: int) -> _Line:
        """The line at a position: this one or a later one."""
        if position < self.end:
            return self
        start = self._text.rfind(b"\n", self.end, position) + 1 or self.end
        return _Line(self._text, start, self._text.find(b"\n", position) + 1 or len(self._text) + 1)


class _Closers:
    """Where blocks close; every mark is looked up once, so that many stray openers stay cheap."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._marks: dict[bytes, list[int]] = {}
        self._environments: dict[int, int] | None = None

    def find(self, opener: re.Match[bytes]) -> int:
        if opener["fence"]:
            return self._fence_end(opener)
        if opener["dollars"]:
            return self._next(b"dollars", _DOLLARS, opener.end())
        if opener["bracket"]:
            return self._next(b"bracket", _BRACKET, opener.end())
        if self._environments is None:
            self._environments = _pair_environments(self._text)
        return self._environments.get(opener.start()) or self._next_blank_line(opener.end())

    def _next(self, name: bytes, pattern: re.Pattern[bytes], after: int) -> int:
        if name not in self._marks:
            self._marks[name] = [m.end() for m in pattern.finditer(self._text) if m["mark"]]
        ends = self._marks[name]
        index = bisect_left(ends, after + 2)
        return ends[index] if index < len(ends) else self._next_blank_line(after)

    def _next_blank_line(self, after: int) -> int:
        blank = _BLANK_LINE.search(self._text, after)
        return blank.start() if blank else len(self._text) + 1

    def _fence_end(self, opener: re.Match[bytes]) -> int:
        fence = opener.group()
        for line in _FENCE_LINE.finditer(self._text, opener.end()):
            if line["fence"].startswith(fence):
                return line.end()
        return len(self._text) + 1


def _pair_environments(text: bytes) -> dict[int, int]:
    r"""Pair each `\begin{name}` with its `\end{name}`: start of the first to end of the second."""
    pairs: dict[int, int] = {}
    open_environments: list[tuple[bytes, int]] = []
    open_names: dict[bytes, int] = {}
    for match in _BEGIN_END.finditer(text):
        if match["mark"] == b"begin":
            open_environments.append((match["name"], match.start()))
            open_names[match["name"]] = open_names.get(match["name"], 0) + 1
        elif match["mark"] == b"end" and open_names.get(match["name"]):
            while True:
                name, start = open_environments.pop()
                open_names[name] -= 1
                if name == match["name"]:
                    break
            pairs[start] = match.end()
    return pairs


def _header_start(text: bytes, rule_start: int) -> int:
    """Find the start of a table: its header row if it has one, else its rule row."""
    line_start = text.rfind(b"\n", 0, max(rule_start - 1, 0)) + 1
    return line_start if b"|" in text[line_start:rule_start] else rule_start


def _table_end(text: bytes, position: int) -> int:
    """Find the end of the last row of a table, from the end of its rule row."""
    while True:
        newline = text.find(b"\n", position)
        if newline < 0:
            return len(text)
        line_end = text.find(b"\n", newline + 1)
        line = text[newline + 1 : line_end if line_end >= 0 else len(text)]
        if b"|" not in line:
            return newline
        position = newline + 1 + len(line)
