"""Compares rows that a query engine returns as text with a table of the expected values and types."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import polars as pl

from tests.oracle import KEYS

__all__ = ["KEYS", "differences"]

SHOWN = 20
TOLERANCE = 1e-9

Row = dict[str, Any]
Key = tuple[Any, ...]


def differences(
    expected: pl.DataFrame, columns: Sequence[str], rows: Iterable[Sequence[str | None]], key: Sequence[str]
) -> list[str]:
    """Describes the differences from the expected table: the first 20, and then how many more there are.

    The order of rows and columns doesn't matter. Additional columns whose name begins with `_`, which record where a
    row came from, are ignored. All other values have to be equal, doubles to within a billionth of their size.
    """
    problems = _columns(expected, columns)
    if problems and not set(key) <= set(columns):
        return problems
    compared = [column for column in expected.columns if column in columns]
    expected_rows, repeated = _by_key(expected.select(compared).iter_rows(named=True), key)
    problems += [f"expected table: {_show(key, found)} occurs more than once" for found in repeated]

    texts = [tuple(row) for row in rows]
    if len(texts) != expected.height:
        problems.append(f"{len(texts)} rows, expected {expected.height}")
    parsers = {column: _parser(expected.schema[column]) for column in compared}
    typed: list[Row] = []
    for number, row in enumerate(texts, 1):
        if len(row) != len(columns):
            problems.append(f"row {number}: {len(row)} values for {len(columns)} columns")
            continue
        named = dict(zip(columns, row, strict=True))
        typed.append({column: _value(named[column], parser) for column, parser in parsers.items()})
    actual, repeated = _by_key(typed, key)
    problems += [f"{_show(key, found)}: more than one row" for found in repeated]
    problems += [f"{_show(key, found)}: row is missing" for found in expected_rows if found not in actual]
    problems += [f"{_show(key, found)}: row is not expected" for found in actual if found not in expected_rows]
    for found, right in expected_rows.items():
        row_found = actual.get(found, right)
        problems += [
            f"{_show(key, found)}: {column} is {_text(row_found[column])}, expected {_text(right[column])}"
            for column in compared
            if not _same(row_found[column], right[column])
        ]
    more = len(problems) - SHOWN
    return problems[:SHOWN] + ([f"… and {more} more"] if more > 0 else [])


def _columns(expected: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Describes columns that are missing, unexpected or repeated."""
    missing = [f"column {name} is missing" for name in expected.columns if name not in columns]
    extra = [f"column {n} is not expected" for n in columns if n not in expected.columns and not n.startswith("_")]
    twice = [f"column {name} occurs more than once" for name in sorted(set(columns)) if columns.count(name) > 1]
    return missing + extra + twice


def _by_key(rows: Iterable[Row], key: Sequence[str]) -> tuple[dict[Key, Row], list[Key]]:
    """Returns the first row of each key, and the keys that several rows have."""
    kept: dict[Key, Row] = {}
    repeated: dict[Key, None] = {}
    for row in rows:
        found = tuple(row[column] for column in key)
        if found in kept:
            repeated[found] = None
        else:
            kept[found] = row
    return kept, list(repeated)


class _NoValue(str):
    """A string that is not a value of its column's type, and therefore equals no value."""


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _timestamp(text: str) -> datetime:
    if len(text) < len("YYYY-MM-DD HH:MM:SS"):
        raise ValueError(text)
    return datetime.fromisoformat(text)


def _parser(kind: pl.DataType) -> Callable[[str], Any]:
    """Returns a function that parses a string as a value of the type."""
    if kind == pl.Boolean:
        return _boolean
    if kind == pl.Date:
        return date.fromisoformat
    if kind == pl.Datetime:
        return _timestamp
    if kind == pl.String:
        return str
    if kind.is_decimal():
        return Decimal
    if kind.is_integer():
        return int
    if kind.is_float():
        return float
    raise TypeError(f"there is no parser for {kind}")


def _value(text: str | None, parser: Callable[[str], Any]) -> Any:
    """Returns the parsed value, or a `_NoValue` if the text is not a value of the type."""
    if text is None:
        return None
    try:
        return parser(text)
    except (ValueError, InvalidOperation):
        return _NoValue(text)


def _same(found: Any, right: Any) -> bool:
    if isinstance(found, float) and isinstance(right, float):
        both_nan = math.isnan(found) and math.isnan(right)
        return both_nan or found == right or abs(found - right) <= TOLERANCE * abs(right)
    return type(found) is type(right) and bool(found == right)


def _show(key: Sequence[str], values: Key) -> str:
    return ", ".join(f"{column} {_text(value)}" for column, value in zip(key, values, strict=True))


def _text(value: Any) -> str:
    if isinstance(value, _NoValue):
        return f"{str(value)!r}, which is not a value of the type"
    if isinstance(value, str):
        return repr(value)
    return "NULL" if value is None else str(value)
