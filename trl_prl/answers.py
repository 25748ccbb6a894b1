"""Outcome rewards: is the final answer right?"""

from __future__ import annotations

import re
from typing import Any

from trl.rewards import accuracy_reward


# Of formulas; `\$` is a currency, and `\\[` a line break of a matrix.
_DELIMITERS = re.compile(r"\\boxed|(?<!\\)(\$|\\\(|\\\[)")


def math_accuracy_reward(completions: list[Any], answer: list[Any], **columns: Any) -> list[float | None]:
    r"""Outcome reward in TRL's signature: is the answer in the completion mathematically equal to the right one?

    [`~trl.rewards.accuracy_reward`], which compares with math-verify, for plain text as well as for messages, and for
    a data set whose column is called `answer`. The completion's answer is looked for in `\boxed{}` first.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions as text or as messages; of messages, the last one of the assistant counts.
        answer (`list`):
            Right answers, such as `"42"`, `42` or `"\\frac{1}{2}"`, with or without `$` or `\boxed{}` around them;
            `None` where there is none.
        **columns:
            Passed on, apart from `solution`: where a data set has worked solutions too, the answer alone is compared.

    Returns:
        `list[float | None]`: 1.0 or 0.0 per completion, `None` where the right answer is absent or cannot be parsed.

    Raises:
        `ImportError`: if math-verify is not installed.
    """
    messages = [[{"role": "assistant", "content": final_text(completion)}] for completion in completions]
    columns.pop("solution", None)  # TRL's name for the right answer
    return accuracy_reward(messages, solution=[_as_maths(entry) for entry in answer], **columns)


def _as_maths(answer: Any) -> str:
    r"""A right answer as math-verify reads it: it takes LaTeX without `$` or `\boxed{}` around it for plain text."""
    text = "" if answer is None else str(answer).strip()
    return text if not text or _DELIMITERS.search(text) else rf"\boxed{{{text}}}"


def exact_match_reward(completions: list[Any], answer: list[Any], **columns: Any) -> list[float]:
    r"""Outcome reward in TRL's signature: is the final answer of the completion, letter by letter, the right one?

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions as text or as messages; [`final_answer`] says what their answers are.
        answer (`list`):
            Right answers; numbers are compared as they are written.
        **columns:
            Not used.

    Returns:
        `list[float]`: 1.0 or 0.0 per completion; 0.0 for one without an answer.
    """
    answers = [final_answer(final_text(completion)) for completion in completions]
    return [float(found == str(wanted).strip()) for found, wanted in zip(answers, answer, strict=True)]


def final_answer(text: str) -> str | None:
    r"""Final answer in a text: what stands in its last `\boxed{}`, or else after its last `#` or `####`.

    Args:
        text (`str`):
            Text of a completion.

    Returns:
        `str`, *optional*: The answer without white space around it; `None` where there is none, or an empty one.
    """
    boxed = _last_boxed(text)
    if boxed is None:
        # A heading of Markdown has a space behind its sign, and often one behind an answer's is left out.
        marked = re.findall(r"^[ \t]*(?:####[ \t]*|#)([^#\s].*)$", text, re.MULTILINE)
        boxed = marked[-1] if marked else None
    return None if boxed is None else boxed.strip() or None


def _last_boxed(text: str) -> str | None:
    r"""Content of the `\boxed{}` that begins last among those whose braces close, in one pass over the text."""
    found, open_braces = (-1, -1), list[int]()
    # An escaped brace is part of the answer and closes nothing.
    for match in re.finditer(r"\\f?boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        if match[0] == "}":
            start = open_braces.pop() if open_braces else -1
            if start > found[0]:
                found = start, match.start()
        elif match[0].endswith("{") and match[0] != r"\{":
            # -1 stands for a brace that belongs to no box.
            open_braces.append(match.end() if len(match[0]) > 1 else -1)
    return None if found[0] < 0 else text[slice(*found)]


def final_text(completion: Any) -> str:
    """Text of a completion, or of its last assistant message; empty if the assistant said nothing."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion if message["role"] == "assistant"]
    return contents[-1] if contents else ""
