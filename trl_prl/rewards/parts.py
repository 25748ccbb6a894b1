"""Answers that are made of parts, as text: lists, sets, tuples, unions, vectors and matrices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate


_MATRIX = re.compile(r"\[?\s*\\begin\{([pbvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*\]?")


def parse_parts(text: str) -> tuple[str, list[str]] | None:
    """A list, set, tuple, union or matrix with its parts, which are texts; `None` for anything else."""
    matrix = _MATRIX.fullmatch(text)
    if matrix and r"\begin" not in matrix[2]:
        rows = [split_outside(row, "&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        if len(rows) == 1 or all(len(row) == 1 for row in rows):
            return ("column" if len(rows) > 1 else "row"), [entry for row in rows for entry in row]
        return f"matrix of {[len(row) for row in rows]}", [entry for row in rows for entry in row]
    if r"\begin" in text:
        return None
    union = text.split(r"\cup")
    if len(union) > 1:
        return "union", [part.strip() for part in union]
    text = re.sub(r",?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|;", ", ", text)
    if text.startswith(r"\{") and text.endswith(r"\}") and closing_place(text[1:]) == len(text) - 2:
        return "set", _items(text[2:-2].strip())
    if text[:1] in tuple("([") and closing_place(text) == len(text) - 1:
        items = split_outside(text[1:-1], ",;")
        if len(items) > 1:
            return ("list" if text[0] == "[" and text[-1] == "]" and len(items) > 2 else text[0] + text[-1]), items
    items = _items(text)
    return ("list", items) if len(items) > 1 else None


def _items(text: str) -> list[str]:
    r"""The parts of a list. A comma and a space separate; one without may group digits. `\pm` stands for two."""
    items: list[str] = []
    for part in split_outside(re.sub(r",\s+", "\x00", text), "\x00"):
        part = part.replace("\x00", ", ")
        whole = re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?: [a-z]+)?", part)
        for item in [part] if whole else split_outside(part, ","):
            signs = re.split(r"\\pm(?![a-z])|±", item)
            items += [signs[0] + sign + signs[1] for sign in "+-"] if len(signs) == 2 else [item]
    return [item.strip().removeprefix("+") for item in items if item.strip()]


def closing_place(text: str) -> int:
    """Where the bracket is closed that a text begins with; -1 if nowhere."""
    return next((place for place, depth in enumerate(depths(text)) if depth == 0), -1)


def split_outside(text: str, separators: str) -> list[str]:
    """Split at separators that are in no bracket."""
    parts, begin = [], 0
    for place, depth in enumerate(depths(text)):
        if depth == 0 and text[place] in separators:
            parts.append(text[begin:place].strip())
            begin = place + 1
    return [*parts, text[begin:].strip()]


def depths(text: str) -> Iterator[int]:
    """For each character, how many brackets are open behind it."""
    return accumulate((character in "([{") - (character in ")]}") for character in text)
