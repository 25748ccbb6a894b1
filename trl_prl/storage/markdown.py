"""Tables of Markdown, for cards and results: whatever a name holds, it stays in its cell and is read as text."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any


def as_text(value: Any) -> str:
    """A value on one line of Markdown, with what Markdown and HTML would take for marks escaped.

    Args:
        value (`Any`):
            The value.

    Returns:
        `str`: The text.
    """
    return re.sub(r"([|`]|\](?=\())", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A table of Markdown.

    Args:
        header (`Iterable`):
            Names of the columns.
        rows (`Iterable[Iterable]`):
            Cells of each row.

    Returns:
        `str`: The lines, without an end of line behind the last.
    """
    names = [as_text(name) for name in header]
    lines = [names, ["---"] * len(names), *([as_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
