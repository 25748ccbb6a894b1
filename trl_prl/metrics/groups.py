"""Groups of rows by a column of theirs, such as a difficulty or a source."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


# Numeric columns with more values than this are cut into as many groups of about equal size.
_MAX_GROUPS = 5


def group_rows(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[int]]:
    """Which rows have which value of a column.

    Args:
        rows (`Sequence[Mapping]`):
            Rows of one model.
        column (`str`):
            A column of the problems.

    Returns:
        `dict[str, list[int]]`: Positions of the rows of each value, in the order of the values. Numbers with more than
        five values are cut at their quantiles. Rows without a value are under `"(none)"`.

    Raises:
        `ValueError`: If no row has the column.
    """
    values = [row["columns"].get(column) for row in rows]
    known = [value for value in values if value is not None]
    if rows and not known:
        available = ", ".join(sorted({name for row in rows for name in row["columns"]}))
        raise ValueError(
            f"No problem has the column {column!r}, so there are no groups. The columns are: {available or 'none'}."
        )
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    if is_number and len(set(known)) > _MAX_GROUPS:
        cuts = np.quantile(known, np.linspace(0, 1, _MAX_GROUPS + 1)[1:-1])
        places = [None if value is None else int(np.searchsorted(cuts, value, side="left")) for value in values]
        labels = {
            place: f"{min(members):g} to {max(members):g}" if min(members) < max(members) else f"{members[0]:g}"
            for place in sorted({place for place in places if place is not None})
            if (members := [value for value, other in zip(values, places, strict=True) if other == place])
        }
    else:
        labels = {value: str(value) for value in sorted(set(map(_hashable, known)), key=_sort_key)}
        places = [None if value is None else _hashable(value) for value in values]
    found: dict[Any, list[int]] = defaultdict(list)
    for i, place in enumerate(places):
        found[place].append(i)
    groups = {label: found[place] for place, label in labels.items()}
    return {**groups, "(none)": found[None]} if found[None] else groups


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True, default=str)


def _sort_key(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value)
