"""The step splitter that ends steps with sentences, in many scripts.

Layer 0: regular expressions only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .splitters import TextSplitter


# Ends of sentences in other scripts, which need no space behind them: Armenian, Arabic, Devanagari (and the scripts
# that share its danda), Tibetan, Myanmar, Ethiopic, Khmer, Mongolian, doubled marks, Chinese and Japanese.
_TERMINATORS = [c.encode() for c in "։؟۔।॥།༎။።፧፨។៕᠃᠉‼⁇⁈⁉。！？｡"]
# A full stop of full width, unless it is a decimal point.
_WIDE_STOP, _WIDE_DIGIT = "．".encode(), rb"\xef\xbc[\x90-\x99]"
_DANDA = "।".encode()
_LEADS = sorted({mark[:1] for mark in _TERMINATORS})


def _terminator(lead: bytes) -> bytes:
    """Pattern of the terminators that start with `lead`, without it."""
    tails = [re.escape(mark[1:]) for mark in _TERMINATORS if mark[:1] == lead]
    if lead == _WIDE_STOP[:1]:
        tails.append(re.escape(_WIDE_STOP[1:]) + rb"(?!\d|" + _WIDE_DIGIT + rb")")
    return rb"(?:" + b"|".join(tails) + rb")"


_CLOSERS = rb"\xe2\x80[\x99\x9d\xba]|\xc2\xbb|\xe3\x80[\x89\x8b\x8d\x8f\x91\x95\x97]|\xef(?:\xbc[\x89\xbd]|\xbd\xa3)"
# Starts with one set of bytes, which `re` searches for quickly. A run of marks is looked at once, from its start.
_SENTENCE_END = re.compile(
    rb"[.!?\n" + b"".join(_LEADS) + rb"](?:"
    rb"(?:(?<=[.!?])(?<![.!?][.!?])(?P<more>[.!?]*+)|(?<=\xe2)\x80\xa6)"
    # U+201C closes in German; what opens in English has a space before it.
    rb"(?:[\"')\]}*_]|\xe2\x80[\x98\x9c]|" + _CLOSERS + rb")*+"
    rb"(?P<after>(?:[ \t\r]*\n)+|(?=[ \t])|$)"
    rb"|(?:" + b"|".join(rb"(?<=%s)%s" % (lead, _terminator(lead)) for lead in _LEADS) + rb")"
    rb"(?:[.!?]|" + b"|".join(lead + _terminator(lead) for lead in _LEADS) + rb")*+"
    rb"(?:" + _CLOSERS + rb")*+(?:[\"')\]}*_]++(?=[ \t\r\n]|$))?(?:[ \t\r]*\n)*"
    rb"|(?<=\n)(?:(?:[ \t\r]*\n)+|(?=[ \t]*(?:[-*+]|\d{1,3}[.)]|\#{1,6})[ \t])))"
)
# What stands before a full stop that ends no sentence. Searched in the last bytes before it, longer than any of these.
_ABBREVIATION = re.compile(
    rb"(?:^|[^A-Za-z])(?:e\.g|i\.e|cf|vs|viz|approx|resp|w\.r\.t|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|Inc|Ltd|Co|al)$"
)
# Initials: `J. Smith`, `George R. R. Martin`; but `option B.` may well end a sentence.
_INITIAL = re.compile(rb"(?:^|[.!?]\s+|\b[A-Z][a-z]+\s+|[A-Z]\.\s?)[A-Z]$")
_NUMBERED = re.compile(rb"(?:^|[^A-Za-z])(?:Fig|Figs|Eq|Eqs|No|Nos|Sec|Ch|Thm|Lem|Prop|Cor|Def|p|pp|Ex)$")
_LIST_MARKER = re.compile(rb"(?:^|\n)[ \t]*(?:\*\*)?(?:\d|\xe0[\xa5-\xb5][\xa6-\xaf]|" + _WIDE_DIGIT + rb"){1,3}$")
_WORD_WINDOW, _WINDOW = 8, 40


@dataclass(frozen=True)
class SentenceSplitter(TextSplitter):
    """Steps of one sentence.

    A sentence ends after `.`, `!`, `?`, `…` and their closing quotes and brackets when whitespace follows, after the
    marks of other scripts (`。！？` in Chinese and Japanese, `।` in Hindi and Bengali, `؟` and `۔` in Arabic and Urdu,
    `።` in Amharic, and those of Armenian, Khmer, Myanmar, Mongolian and Tibetan) in any case, at a blank line, and
    before a list item or heading. It does not end at decimals, list numbers (`1.`), initials, abbreviations (`e.g.`,
    `Dr.`, `Fig. 3`), or before a lower-case letter. The space after a sentence belongs to the next one, because that
    is where tokenizers put it.
    """

    def boundaries(self, text: bytes) -> Sequence[int]:
        return [match.end() for match in _SENTENCE_END.finditer(text) if _ends_sentence(text, match)]


def _ends_sentence(text: bytes, match: re.Match[bytes]) -> bool:
    start = match.start()
    if match["more"] != b"" or text[start] != ord("."):
        # `১।` numbers a list in Bengali.
        is_number_mark = text.startswith((_DANDA, _WIDE_STOP), start)
        return not (is_number_mark and _LIST_MARKER.search(text, max(0, start - _WINDOW), start))
    if b"\n" in match["after"]:
        # A list number with its text on the next line is still a list number.
        return not _LIST_MARKER.search(text, max(0, start - _WINDOW), start)
    following = text[match.end() : match.end() + 8].lstrip()
    if following[:4].decode("utf-8", "ignore")[:1].islower():
        return False
    last = text[max(0, start - 1) : start]
    if not last.isalpha():
        return not _LIST_MARKER.search(text, max(0, start - _WINDOW), start)
    if last.isupper():
        return not _INITIAL.search(text[max(0, start - _WINDOW) : start])
    word = text[max(0, start - _WORD_WINDOW) : start]
    if _ABBREVIATION.search(word):
        return False
    return not (_NUMBERED.search(word) and (following[:1].isdigit() or following.startswith((b"(", b"$"))))
