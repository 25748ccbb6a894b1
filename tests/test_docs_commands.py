"""Every command line of the package that a page prints is taken by today's options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trl_prl.__main__ import load_command, parse_command


ROOT = Path(__file__).resolve().parent.parent
# What a configuration of the reader holds.
OF_CONFIG = ["--model", "m", "--dataset", "d", "--output_dir", "o"]


def commands() -> list[str]:
    """The lines of code blocks that begin with a command, continued lines joined, without comments."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        lines = re.findall(r"^ *(?:CUDA_VISIBLE_DEVICES=\S+ )?trl-prl ([a-z-]+ -[^\n]*)$", text, re.MULTILINE)
        found += [re.sub(r"\s+(#.*|&)$", "", line) for line in lines]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("line", commands())
def test_a_command_of_a_page_is_taken(line: str) -> None:
    name, *words = shlex.split(line.replace("$", ""))
    words = ["1" if word == "i" else word for word in words]
    if "--config" in words:
        place = words.index("--config")
        words = [*words[:place], *OF_CONFIG, *words[place + 2 :]]
    parse_command(load_command(name), name, words)


def test_commands_are_found() -> None:
    assert len(commands()) >= 25
