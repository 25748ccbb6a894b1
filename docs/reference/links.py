"""Turns the docstrings' [`Name`] into links of the reference, and [`~package.Name`] into plain code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe


# Names with a page of their own: those of the reference pages.
_DOCUMENTED = {
    path.rpartition(".")[2]: path
    for page in Path(__file__).parent.glob("*.md")
    for path in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
}


def link(match: re.Match[str]) -> str:
    """A link for a documented name, code for any other."""
    name = match[1].removeprefix("~")
    known = _DOCUMENTED.get(name.removeprefix("trl_prl."))
    return f"[`{name}`][{known}]" if known else f"`{name}`"


def indent_continuations(text: str) -> str:
    """Indent what continues an entry of `Raises:`, as the parser wants it."""
    head, section, rest = text.partition("Raises:\n")
    body, blank, after = rest.partition("\n\n")
    return head + section + re.sub(r"^(\s+)(?![\s`\[])", r"\1    ", body, flags=re.MULTILINE) + blank + after


def plain_types(text: str) -> str:
    """Take the marks of code and links out of the types of arguments, which are shown as code already."""
    entry = re.compile(r"^(\s+\**\w+ \()(.+)(\):)$", re.MULTILINE)
    return entry.sub(lambda match: match[1] + re.sub(r"[`~*]|\[(?=`)|(?<=`)\]", "", match[2]) + match[3], text)


class DocstringLinks(griffe.Extension):
    """Rewrites every docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            text = indent_continuations(plain_types(obj.docstring.value))
            obj.docstring.value = re.sub(r"\[`([^`\]]+)`\](?![(\[])", link, text)
