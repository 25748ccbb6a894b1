"""One set of checks on values that others wrote: a value, or an error that says where it stands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


UNLABELLED = -100
"""TRL's and PyTorch's mark of a label that does not count, accepted besides `None` and NaN."""

_TRUTH = {"true": 1.0, "false": 0.0}


def row_place(row: int, source: Any) -> str:
    """How messages call a row.

    Args:
        row (`int`):
            Its number, from 0.
        source (`Any`):
            The file, folder or data set.

    Returns:
        `str`: The place.
    """
    return f"Row {row} of '{source}'"


def json_value(value: Any) -> Any:
    """Turn a value into what strict JSON can say: no number that is not finite, text for what has no JSON form."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    # Whole numbers beyond 64 bits are decimals in an Arrow table.
    return int(value) if isinstance(value, Decimal) and value.as_tuple().exponent == 0 else str(value)


def missing_as_none(value: Any) -> Any:
    """`None` for NaN, which data frames write where there is no value; everything else as it is."""
    return None if isinstance(value, float) and math.isnan(value) else value


def read_number(value: Any, where: str) -> float:
    """Read a number.

    Args:
        value (`Any`):
            A number, a boolean, or one of the two as text; `None` and NaN for none.
        where (`str`):
            What it is, for the message, such as `"Row 3 of 'x.jsonl' has a 'score' that"`.

    Returns:
        `float`: The number, 1.0 and 0.0 for true and false, NaN where there is none.

    Raises:
        `ValueError`: If it is something else.
    """
    found = value.item() if hasattr(value, "item") else value
    if found is None:
        return math.nan
    if isinstance(found, str):
        try:
            found = _TRUTH.get(found.strip().lower(), found)
            found = float(found)
        except ValueError:
            pass
    if isinstance(found, int | float | Decimal):
        return float(found)
    raise ValueError(
        f"{where} is {value!r:.80}, which is no number. What it counts for cannot be guessed. Write a number, or null "
        "for none."
    )


def read_labels(values: Any, where: str) -> list[float]:
    """Read labels of steps.

    Args:
        values (`Sequence`):
            Probabilities of success, or booleans; `None`, NaN and -100 for none.
        where (`str`):
            What one of them is, for the message.

    Returns:
        `list[float]`: The labels, in [0, 1], NaN where there is none.

    Raises:
        `ValueError`: If it is no list, or one is no number or out of range.
    """
    if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
        raise ValueError(f"{where} is {values!r:.80}, but labels are a list. Give one number per step, null for none.")
    labels = [read_number(value, where) for value in values]
    for value in (label for label in labels if label != UNLABELLED and not math.isnan(label)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(
                f"{where} is {value:g}, but labels are probabilities of success. Rescale them to [0, 1] (-1 to 0 "
                f"where 1 is right), and use null, NaN or {UNLABELLED} for steps without a label."
            )
    return [math.nan if label == UNLABELLED else label for label in labels]


def read_outcome(value: Any, where: str, threshold: float = 0.5) -> bool | None:
    """Read whether a solution is right.

    Args:
        value (`Any`):
            A boolean, or a reward; `None` and NaN for one that was not checked.
        where (`str`):
            What it is, for the message.
        threshold (`float`, *optional*, defaults to `0.5`):
            Rewards above it are right.

    Returns:
        `bool`, *optional*: The outcome.

    Raises:
        `ValueError`: If it is neither.
    """
    if isinstance(value, bool):
        return value  # whatever the threshold
    reward = read_number(value, where)
    return None if math.isnan(reward) else reward > threshold


def read_steps(value: Any, where: str) -> list[str]:
    """Read the steps of one solution.

    Args:
        value (`Any`):
            A list of texts.
        where (`str`):
            What it is, for the message.

    Returns:
        `list[str]`: The steps.

    Raises:
        `ValueError`: If it is something else, or a text cannot be written as UTF-8.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{where} is {value!r:.80}, which is no list of steps. Steps are the texts that joined are one solution. "
            "Split it first, or name the column of whole solutions."
        )
    for number, step in enumerate(value):
        if not isinstance(step, str):
            raise ValueError(
                f"{where} has {step!r:.80} as entry {number}, but a step is a text. Give one list of texts per "
                "solution; several solutions of a problem are several rows."
            )
        check_text(step, f"{where} has a text as entry {number} that")
    return list(value)


def read_text(value: Any, where: str) -> Any:
    """Check a prompt or a whole solution.

    Args:
        value (`Any`):
            A text, or messages with `role` and `content`.
        where (`str`):
            What it is, for the message.

    Returns:
        `str` or `list[dict]`: The same.

    Raises:
        `ValueError`: If it is something else.
    """
    is_messages = isinstance(value, list | tuple) and all(isinstance(m, Mapping) and "role" in m for m in value)
    if isinstance(value, str) or (is_messages and value):
        return value
    raise ValueError(
        f"{where} is {value!r:.80}, which is neither a text nor a list of messages with a role. Give one of the two."
    )


def check_text(text: str, where: str) -> None:
    """Refuse a text that no tokenizer takes.

    Args:
        text (`str`):
            The text.
        where (`str`):
            What it is, for the message.

    Raises:
        `ValueError`: If it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds {text[error.start]!r} at character {error.start}, half of a character outside the first "
            "65,536, which no tokenizer reads. Mend or drop the text."
        ) from error
