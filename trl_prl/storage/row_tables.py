"""Rows as Arrow tables: types that hold every row's values, whatever the first ones are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from typing import Any

import pyarrow as pa

from .row_values import row_place


ROWS_PER_CHUNK = 256
# Whole numbers beyond 64 bits have a type of their own.
_LARGE = pa.decimal256(76, 0)
_ARROW_ERRORS = (pa.ArrowException, UnicodeEncodeError, OverflowError)


def infer_schema(rows: Iterable[Mapping[str, Any]], source: Any) -> pa.Schema:
    """Find the types that hold all rows: whole numbers and others become the others, a missing column is null.

    Args:
        rows (`Iterable[Mapping]`):
            Rows, which need not have the same columns.
        source (`Any`):
            Where they are from, for messages.

    Returns:
        `pa.Schema`: The columns in the order they first appear in.

    Raises:
        `ValueError`: If a column has values of several kinds or what Arrow cannot hold, with its row.
    """
    types: dict[str, pa.DataType] = {}
    widened = False
    for first, chunk in _chunks(rows):
        for name in dict.fromkeys(name for row in chunk for name in row):
            known, values = types.get(name, pa.null()), [row.get(name) for row in chunk]
            found = _quick_type(values, known)
            if found is None:
                found = _careful_type(values, known, name, first, source)
                widened = True
            widened |= found != known and not pa.types.is_null(known)
            types[name] = found
    schema = pa.schema(list(types.items()))
    if widened:
        # A whole number that fits its own type need not fit the one of fractions.
        for _ in row_tables(rows, schema, source):
            pass
    return schema


def row_tables(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, source: Any) -> Iterator[pa.Table]:
    """Make tables of rows, a few at a time.

    Args:
        rows (`Iterable[Mapping]`):
            The rows.
        schema (`pa.Schema`):
            Types of their columns.
        source (`Any`):
            Where they are from, for messages.

    Returns:
        `Iterator[pa.Table]`: The tables.

    Raises:
        `ValueError`: If a value is not of its column's type, with its row.
    """
    for first, chunk in _chunks(rows):
        yield row_table(chunk, schema, source, first)


def row_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, source: Any, first: int = 0) -> pa.Table:
    """Make one table of rows.

    Args:
        rows (`Sequence[Mapping]`):
            The rows.
        schema (`pa.Schema`):
            Types of their columns.
        source (`Any`):
            Where they are from, for messages.
        first (`int`, *optional*, defaults to `0`):
            Number of the first row.

    Returns:
        `pa.Table`: The table.

    Raises:
        `ValueError`: If a value is not of its column's type, with its row.
    """
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            columns.append(pa.array(values, field.type))
        except (*_ARROW_ERRORS, TypeError) as error:
            number = next(i for i, value in enumerate(values) if not _fits(value, field.type))
            raise _refusal(values[number], field.name, first + number, source, error) from error
    return pa.table(columns, schema=schema)


def json_type(kind: pa.DataType) -> pa.DataType:
    """Type of what [`json_value`] makes of a type's values: text for dates, bytes and decimal fractions.

    Args:
        kind (`pa.DataType`):
            The type.

    Returns:
        `pa.DataType`: The type of its JSON form.
    """
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, json_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(json_type(kind.value_type))
    is_text = pa.types.is_temporal(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return pa.string() if is_text or (pa.types.is_decimal(kind) and kind.scale > 0) else kind


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except (*_ARROW_ERRORS, TypeError):
        return False
    return True


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    remaining, first = iter(rows), 0
    while chunk := list(islice(remaining, ROWS_PER_CHUNK)):
        yield first, chunk
        first += len(chunk)


def _quick_type(values: list[Any], known: pa.DataType) -> pa.DataType | None:
    kinds = {type(value) for value in values if value is not None}
    if bool in kinds and len(kinds) > 1:
        return None  # Arrow takes a truth value behind a number for one
    try:
        return _merged(known, pa.array(values).type)
    except _ARROW_ERRORS:
        return None


def _careful_type(values: list[Any], known: pa.DataType, name: str, first: int, source: Any) -> pa.DataType:
    """One value at a time, which finds the row that does not fit, and types of numbers beyond 64 bits."""
    for number, value in enumerate(values):
        try:
            known = _merged(known, _value_type(value))
        except _ARROW_ERRORS as error:
            raise _refusal(value, name, first + number, source, error) from error
    return known


def _value_type(value: Any) -> pa.DataType:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return pa.array([value], _LARGE).type
    if isinstance(value, Mapping):
        return pa.struct([(str(key), _value_type(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return pa.list_(reduce(_merged, map(_value_type, value), pa.null()))
    return pa.array([value]).type


def _merged(known: pa.DataType, found: pa.DataType) -> pa.DataType:
    if known == found:
        return known
    schemas = [pa.schema([("", kind)]) for kind in (known, found)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _refusal(value: Any, name: str, row: int, source: Any, error: Exception) -> ValueError:
    return ValueError(
        f"{row_place(row, source)} has {value!r:.80} in the column {name!r}, which does not go with the rows before "
        f"it or into a table ({error}). A column of a table holds one kind of values. Write this one like the others."
    )
