r"""Answers that hang, blow up or confuse a checker, of the kinds that models have been seen to write and worse."""

from __future__ import annotations

import time
from typing import Any


HANG = r"\boxed{hang}"
"""An answer on which `accuracy_that_may_hang` hangs on a machine of any speed."""


def accuracy_that_may_hang(completions: list[str], **columns: Any) -> list[float | None]:
    """The reward `accuracy`, which never returns from `HANG`."""
    from trl_prl.rewards.answers import math_accuracy_reward

    while HANG in completions:
        time.sleep(1)
    return math_accuracy_reward(completions=completions, **columns)


def hostile_answers(n: int) -> list[str]:
    r"""Completions whose answer costs unbounded time or memory, or is malformed, each different from all others.

    Args:
        n (`int`):
            How many.

    Returns:
        `list[str]`: Completions.
    """
    kinds = (
        lambda i: rf"\boxed{{9^{{9^{{9^{9 + i}}}}}}}",
        lambda i: rf"\boxed{{{i + 2}^{{{i + 3}^{{{i + 4}^{{5}}}}}}}}",
        lambda i: rf"\boxed{{{10**8 + i}!}}",
        lambda i: rf"\boxed{{({i + 3}!)!!!}}",
        lambda i: rf"\boxed{{\binom{{10^{{{9 + i % 4}}}}}{{5\cdot 10^{{8}}+{i}}}}}",
        lambda i: r"\boxed{" + "(" * (2000 + i) + "1" + ")" * (2000 + i) + "}",
        lambda i: r"\boxed{" + r"\frac{1}{" * (300 + i) + "2" + "}" * (300 + i) + "}",
        lambda i: r"\boxed{" + r"\sqrt{" * (200 + i) + "2" + "}" * (200 + i) + "}",
        lambda i: r"\boxed{" + "+".join(["x^{99}"] * (800 + i)) + "}",
        lambda i: rf"\boxed{{(x+y+z+{i})^{{{4000 + i}}}}}",
        lambda i: rf"\boxed{{\sum_{{k=1}}^{{{10**9 + i}}} \frac{{1}}{{k^k}}}}",
        lambda i: rf"\boxed{{\int_0^1 e^{{e^{{x^{{{i + 7}}}}}}} \sin(x^x) dx}}",
        lambda i: rf"\boxed{{10^{{10^{{{i + 10}}}}}}} or \boxed{{0^{{-1}}}}",
        lambda i: rf"\boxed{{{'9' * (20000 + i)}^{{{'9' * 9}}}}}",
        lambda i: r"\boxed{" * (500 + i),
        lambda i: "$" * (3001 + i) + r"\boxed{}}}{{{",
        lambda i: rf"\boxed{{\lim_{{x \to 0}} \frac{{\sin^{{{900 + i}}} x}}{{x^{{{900 + i}}}}}}}",
        lambda i: rf"\boxed{{\begin{{pmatrix}} {'1 & ' * 300} {i} \end{{pmatrix}}^{{{1000 + i}}}}}",
        lambda i: rf"\boxed{{\{{1, 2, \ldots, 10^{{{12 + i}}}\}}}}",
        lambda i: "\x00\ufffd" * 50 + rf"\boxed{{\text{{\u202e}}\cdot\infty^{{\infty}}-{i}\cdot\infty}}",
    )
    return [kinds[i % len(kinds)](i // len(kinds)) for i in range(n)]
