"""Texts on which a splitter might look at the same bytes again and again: short motifs, repeated.

Those of degenerate policies, those built against the patterns of the splitters, and those found by trying random
motifs over the characters that splitters look at. Each is the text before the repeats, the motif, and the text after.
"""

from __future__ import annotations

import random


SPLITTERS = [
    *["fixed", "newline", "blank_line", "sentence", "turn", "markdown", "markdown_newline"],
    *["delimiter:###", "delimiter:\n\n\n", "delimiter:ab", r"regex:\n\n|[.!?] ", r"regex:(?=^Step \d+)"],
]

MOTIFS = [
    # Marks in a row that end no sentence, and closing quotes behind them.
    *[("", "!?.", "x"), ("", ".", "x"), ("", '."', "x")],
    *[(".", '"', "x"), ("", '."\r', "x"), (".", " ", "\r"), ("", ".\r", "x")],
    *[("", "。", "x"), ("", "。」", ""), ("", "。.", "x")],
    *[("", "।॥", "x"), ("", "؟!", "x"), ("", "…", "x"), ("．", "1．", "x")],
    *[("", "1. ", ""), ("", "A. ", ""), ("", "e.g. ", "")],
    *[("\n", "1", ". x"), ("", "J. R. ", "Go. x"), ("", "Fig. ", "3")],
    # White space, tags, and steps without content.
    *[("", "\n", "x"), ("", " ", "x"), ("x\n", " ", "x"), ("", "\n ", "x"), ("", "\r", "\n"), ("", "\u3000", "x")],
    *[("", "<think>", "x"), ("", "<think>\n", "x")],
    *[("", "<think>\n\n", "x"), ("x\n\n", "<think>\n\n", ""), ("", "<", "")],
    *[("", "</think>\n", "x"), ("x\n", "</", ""), ("", "<think", ">"), ("", "<answer>\n\n</answer>\n\n", "x")],
    # Rows of tables that are none, and openers without an end.
    *[("", "|-", ""), ("", "|---", ""), ("", "|-", "x\n\n")],
    *[("", "|- x", ""), ("", "|", ""), ("|", " ", "-"), ("|", "-", "|")],
    *[(" ", "|-", "x"), ("|-|-", " ", "x"), ("", " ", "x|-|-")],
    *[("", "a|b\n-|-\n", ""), ("", "x\n|-|-|\n\n", ""), ("", "|-\n", "")],
    *[("", "```", ""), ("", "x```a", ""), ("", "a ~~~b", "\n")],
    *[("", "```a\n", ""), ("````\n", "```\n", ""), ("", "`", "\n")],
    *[("", "$$ ", ""), ("", "$", ""), ("", "\\[ ", "")],
    *[("", "\\[\\\\]", ""), ("", "\\", ""), ("\\[", "\n\n$$", "\\]")],
    *[("", "\\begin{a} ", ""), ("", "\\begin{", "")],
    *[("\\begin{", "a", ""), ("", "\\end{a}", ""), ("", "\\begin{a}\n\n", "\\end{b}")],
    *[("", "\\begin{a}\\begin{b}\\end{a}", ""), ("", "###", "x")],
    *[("", "ab", "a"), ("", "##x", ""), ("", "\n\n ", "\n\n")],
]

_ATOMS = [
    *["\n", "\n\n", " ", "\t", "\r", "<think>", "</think>"],
    *["<", "$", "$$", "\\[", "\\]", "\\", "\\begin{a}", "\\end{a}"],
    *["```", "~~~", "|", "|-", "-", ":", "a", "A", ".", "!"],
    *["?", "…", "。", "।", "؟", "．", '"', ")", "*", "”", "」"],
    *["1", "#", "- ", "1. ", "e.g", "Fig", "\u3000", "\u00a0", "é", "\0", "A. ", "###"],
]


def repeated(motif: tuple[str, str, str], num_bytes: int) -> bytes:
    """The motif repeated until the text has about `num_bytes`."""
    before, middle, after = (part.encode() for part in motif)
    return before + middle * (num_bytes // len(middle)) + after


def random_motif(rng: random.Random) -> tuple[str, str, str]:
    """A motif out of what splitters look at."""
    parts = [rng.choices(_ATOMS, k=rng.randint(low, high)) for low, high in ((0, 2), (1, 4), (0, 2))]
    before, middle, after = ("".join(part) for part in parts)
    return before, middle, after
