"""Outcome rewards: is the final answer right?"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .equality import NotChecked, answers_equal
from .extraction import final_answer, final_text


_FORMULA = re.compile(r"(?<!\\)\$|\\[(\[]")


def math_accuracy_reward(
    completions: list[Any],
    answer: list[Any],
    log_extra: Callable[[str, list[Any]], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    r"""Outcome reward in TRL's signature: is the completion's final answer mathematically equal to the right one?

    [`final_answer`] says what a completion's answer is, [`answers_equal`] when it is right; evaluation and search
    count their votes by the same two functions. A completion without an answer is wrong here, or a policy could keep
    its reward by not answering.

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions as text or as messages; of messages, the last one of the assistant counts.
        answer (`list`):
            Right answers, such as `"42"`, `42`, `"\\frac{1}{2}"` or `["3", "4"]` (all of them are asked for), with or
            without `$` or `\boxed{}` around them, or as worked solutions that end in a box or behind `####`; `None` or
            NaN where there is none.
        log_extra (`Callable`, *optional*):
            TRL's; gets the column `final_answer` of the completions table.
        log_metric (`Callable`, *optional*):
            TRL's; gets `no_answer`, the fraction of the completions without an answer. Near 0.
        **columns:
            Not used; `solution` neither: where a data set has worked solutions too, the answer alone is compared.

    Returns:
        `list[float | None]`: 1.0 or 0.0 per completion; `None` where there is no right answer that could be read, or
        the comparison took too long.

    Raises:
        `ImportError`: If math-verify is needed and not installed.
    """
    found = [final_answer(final_text(completion)) for completion in completions]
    if log_extra is not None:
        log_extra("final_answer", ["" if entry is None else entry for entry in found])
    if log_metric is not None and found:
        log_metric("no_answer", found.count(None) / len(found))
    return [_verdict(right_answer(wanted), entry) for wanted, entry in zip(answer, found, strict=True)]


def _verdict(wanted: str | None, found: str | None) -> float | None:
    if wanted is None:
        return None
    try:
        return float(found is not None and answers_equal(wanted, found))
    except NotChecked:
        return None


def right_answer(entry: Any) -> str | None:
    """Read the right answer that a data set gives.

    Args:
        entry (`Any`):
            A text, a number of any size, a list of which everything is asked for, or nothing.

    Returns:
        `str`, *optional*: The answer as text; `None` where there is none, or only formula signs without a formula.
    """
    if hasattr(entry, "tolist"):  # an array
        entry = entry.tolist()
    if isinstance(entry, list | tuple):
        answers = [right_answer(part) for part in entry]
        # A comma and a space, as commas alone also group digits.
        return None if not answers or None in answers else ", ".join(map(str, answers))
    if _is_missing(entry):
        return None
    text = str(entry).strip()
    if re.search(r"\\(?:f?boxed|fbox)\s*\{|####|</think>", text):
        return final_answer(text)
    if _FORMULA.search(text) and not re.search(r"\$[^$]+\$|\\\(.+\\\)|\\\[.+\\\]|\$\d", text, re.DOTALL):
        return None
    return text or None


def _is_missing(entry: Any) -> bool:
    """Whether a data set gives nothing: `None`, or NaN of any kind."""
    value = entry.tolist() if hasattr(entry, "tolist") else entry
    return value is None or value != value


def exact_match_reward(completions: list[Any], answer: list[Any], **columns: Any) -> list[float | None]:
    r"""Outcome reward in TRL's signature: is the final answer of the completion, letter by letter, the right one?

    Args:
        completions (`list[str]` or `list[list[dict]]`):
            Completions as text or as messages; [`final_answer`] says what their answers are.
        answer (`list`):
            Right answers; numbers are compared as they are written. `None`, NaN or no text where there is none.
        **columns:
            Not used.

    Returns:
        `list[float | None]`: 1.0 or 0.0 per completion, 0.0 for one without an answer; `None` where there is no right
        answer.
    """
    answers = [final_answer(final_text(completion)) for completion in completions]
    texts = ["" if _is_missing(wanted) else str(wanted).strip() for wanted in answer]
    return [float(found == text) if text else None for found, text in zip(answers, texts, strict=True)]
