"""Where the final answer of a completion stands: one reading for checks and for votes."""

from __future__ import annotations

import itertools
import re
from typing import Any

from .numbers import parse_number


# A model that does not stop goes on with the next turn or the next question; neither is part of its answer.
_END = re.compile(r"<\|[\w-]*(?:end|eot|im_start|start_header|user)[\w-]*\|>|</s>|\n[ \t]*(?:Question|Problem|Q):")
_MARKED = re.compile(r"^[ \t]*(?:####[ \t]*|#)([^#\s].*)$", re.MULTILINE)
_PHRASE = re.compile(
    # the answer to the question is indeed
    r"\banswers?\b[^.\n:=]{0,80}?\b(?:is|are|be)\b[\s*:]*"
    r"(?:(?:indeed|definitely|simply|just|exactly|clearly|actually|thus|therefore|equal\s+to|the\s+number)\b[\s*:]*)*"
    r"|\banswers?[ \t*]*[:=][\s*]*"  # **Answer:**
    r"|^[ \t]*(?:#+|\*\*)[ \t]*(?:final[ \t]+)?answer[ \t*:]*$\s*"  # a heading
    r"|^[ \t*]*A:(?![^\n]*\n[ \t*]*B:)[ \t*]*",  # not the first of several choices
    re.IGNORECASE | re.MULTILINE,
)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})(?<![:\s])\*\*(?!\s*:)")
_NUMBER = (
    r"[-−]?(?:\\?[$€£¥]\s?)?[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?(?:/\d+(?!\d))?(?:\s?\\?%|°)?"
)
# Formulas, and numbers outside of them that are no part of a word or of an ordinal.
_CANDIDATE = re.compile(
    r"\\\((.{1,1000}?)\\\)|(?<![\\$])\$(?=\S)([^$\n]{0,1000}?[^\s$\\])\$(?!\d)"
    rf"|(?<![\w.,/^_\\])({_NUMBER})(?!\w*[a-zA-Z]\w*\d)(?!(?:st|nd|rd|th)\b)",
    re.DOTALL,
)
# What may follow an answer and is none of it.
_OBVIOUS = re.compile(r",[ \t]+(?:of course|obviously|indeed)\b")
_RESULT = re.compile(rf"(?:=|≈|\\approx)\s*({_NUMBER})")
# The end of a completion, in which its conclusion stands.
_CONCLUSION_CHARS = 4000
# Words of an answer such as `18 dollars per hour`, and of one that is rather a sentence.
_MAX_WORDS, _MIN_SENTENCE = 4, 12


def final_text(completion: Any) -> str:
    """Text of a completion, or of its last assistant message; empty if the assistant said nothing."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion if message["role"] == "assistant"]
    return contents[-1] if contents else ""


def final_answer(text: str) -> str | None:
    r"""Final answer in a text, as a reader would find it.

    Looked for behind the last `</think>`, in this order: the last `\boxed{}`, and no other one; what follows the last
    `####`, or a `#` without a space; `<answer>` tags; the last "the answer is …", "Answer: …" or "A: …"; and then in
    the last sentence with a number or a formula: what is bold in it, or the last of its numbers and formulas, where of
    several the one is preferred that the last calculation resulted in.

    Args:
        text (`str`):
            Text of a completion.

    Returns:
        `str`, *optional*: The answer without white space around it; `None` where there is none, or an empty one.
    """
    _, closed, behind = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return None
    text = behind
    found = _last_boxed(_before_end(text))
    if found is not None:
        return _in_box(found) or found.strip() or None
    text = _before_end(text)
    marked = [match for match in _MARKED.finditer(text) if _is_marked(match[1], text[match.end() :])]
    if marked:
        return marked[-1][1].strip()
    _, _, tagged = text.rpartition("<answer>")
    if "<answer>" in text and tagged.partition("</answer>")[0].strip():
        text = tagged.partition("</answer>")[0]
        if _is_short(text):
            return text.strip()
    return _said(_OBVIOUS.sub("", text)) or _concluded(text)


def _before_end(text: str) -> str:
    """What stands before a model ran on; a question before any answer is its own."""
    for match in _END.finditer(text):
        head = text[: match.start()]
        if match[0][0] == "<" or "boxed" in head or "####" in head or "answer" in head.lower():
            return head if head.strip() else text
    return text


def _last_boxed(text: str) -> str | None:
    r"""Content of the `\boxed{}` that begins last among those whose braces close, in one pass over the text."""
    found, open_braces = (-1, -1), list[int]()
    # An escaped brace is part of the answer and closes nothing.
    for match in re.finditer(r"\\+(?:f?boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        if match[0] == "}":
            start = open_braces.pop() if open_braces else -1
            if start > found[0]:
                found = start, match.start()
        elif match[0].endswith("{") and match[0] != r"\{":
            # -1 stands for a brace that belongs to no box.
            open_braces.append(match.end() if len(match[0]) > 1 else -1)
    return None if found[0] < 0 else text[slice(*found)]


def _in_box(text: str) -> str | None:
    """The answer in a box with a sentence: what it says is its answer, or the one formula in it."""
    signs = re.search(r"(?<!\\)\\[(\[]|(?<!\\)\$[^$]+\$", text)
    if _num_words(text) <= (0 if signs else _MIN_SENTENCE):
        return None
    return _said(text) or (_concluded(text) if len(_CANDIDATE.findall(_plain(text))) == 1 else None)


def _is_marked(line: str, rest: str) -> bool:
    """Whether a line behind a mark is an answer: it ends the text, or begins as numbers do and no numbered heading."""
    return not rest.strip() or re.match(r"[-+−.$\\\d(](?!\d*\.\s)", line) is not None


def _said(text: str) -> str | None:
    """What the text itself calls its answer."""
    phrase = None
    for phrase in _PHRASE.finditer(text):  # noqa: B007
        pass
    if phrase is None:
        return None
    tail = _plain(text[phrase.end() :][:_CONCLUSION_CHARS]).lstrip(" \n*:")
    if not tail:
        return None
    _, sentence = _sentences(tail)[0]
    sentence = re.split(r",?\s+(?:because|since|which|where)\b", sentence.replace("**", ""))[0].strip(" \t.,;:!")
    choice = re.match(r"\(?([A-J])\)\s", sentence)
    if choice:
        return choice[1]
    if _is_short(_CANDIDATE.sub("", sentence)):
        formula = _CANDIDATE.fullmatch(sentence)
        return ((formula and (formula[1] or formula[2])) or sentence).strip() or None
    return _pick(sentence, text[: phrase.start()])


def _concluded(text: str) -> str | None:
    """The answer in the last sentence that has a number or a formula."""
    text = _plain(text[-_CONCLUSION_CHARS:])
    for begin, sentence in reversed(_sentences(text)):
        bold = [found for found in _BOLD.findall(sentence) if _is_short(found)]
        if bold:
            return bold[-1].strip(" .,")
        found = _pick(sentence, text[:begin])
        if found is not None:
            return found
    return None


def _pick(sentence: str, before: str) -> str | None:
    """Of the numbers and formulas of a sentence the one that was calculated last, if it is among them, or the last."""
    found = []
    for match in _CANDIDATE.finditer(sentence):
        if match[3]:
            found.append(match[3])
            continue
        formula = re.split(r"(?<![<>!\\])=|\\approx", match[1] or match[2])[-1].strip(" .,")
        # A letter alone is the name of something.
        if re.search(r"\d|\\[a-zA-Z]|[a-zA-Z].*[a-zA-Z]", formula):
            found.append(formula)
    results = _RESULT.findall(before[-_CONCLUSION_CHARS:]) if len(found) > 1 else []
    if results:
        calculated = parse_number(results[-1])
        found = [entry for entry in found if calculated is not None and parse_number(entry) == calculated] or found
    return found[-1] if found else None


def _plain(text: str) -> str:
    """Text with each displayed formula on one line, and without the marks of a calculator."""
    text = re.sub(r"<<[^<>\n]{0,200}>>", "", text)
    return re.sub(
        r"\\\[(.{1,1000}?)\\\]|\$\$([^$]{1,1000})\$\$",
        lambda match: rf"\({' '.join((match[1] or match[2]).split())}\)",
        text,
        flags=re.DOTALL,
    )


def _sentences(text: str) -> list[tuple[int, str]]:
    """Where each sentence begins, and the sentence; it ends with its line, or at a mark that is in no formula."""
    hidden = re.sub(r"\\\(.{1,1000}?\\\)", lambda match: re.sub(r"\s", "_", match[0]), text, flags=re.DOTALL)
    places = [0, *(match.end() for match in re.finditer(r"(?<=[.!?])\s+|(?<=[.!?]\*\*)\s+|\n", hidden)), len(text)]
    return [(begin, text[begin:end].strip()) for begin, end in itertools.pairwise(places) if text[begin:end].strip()]


def _num_words(text: str) -> int:
    return len(re.findall(r"(?<!\\)\b[^\W\d_]{2,}", text))


def _is_short(text: str) -> bool:
    """Whether a text is an answer and not a sentence with one."""
    return "\n" not in text.strip() and _num_words(text) <= _MAX_WORDS
