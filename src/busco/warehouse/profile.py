"""Computes the profile and the sample rows of a version, which the site shows on the page of a table."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import duckdb

from busco.lake import types
from busco.lake.deliveries import TECHNICAL
from busco.lake.records import Column, Version
from busco.lake.relations import select_sql

# Up to this many rows, distinct values are counted exactly; beyond that, DuckDB estimates their number.
_EXACT_ROWS = 100_000
# The most frequent values are listed for columns with at most this many distinct values.
_SMALL_SET = 20
_TOP = 10
_SAMPLE_ROWS = 10
# Longer texts are cut to this many characters.
_TEXT = 200
_UNORDERED = frozenset({"BLOB"})
# The Iceberg types whose bounds are compared as numbers. The bounds of all others have the order of their texts.
_NUMBERS = ("int", "long", "float", "double", "decimal")
_LOADED_AT = TECHNICAL[-1].name
# The names of a sample's columns, and its rows as text.
Sample = tuple[tuple[str, ...], tuple[tuple[str | None, ...], ...]]


@dataclass(frozen=True)
class Profile:
    """What is known about the values of a version's columns, without those of personal columns.

    Attributes:
        source: `rows` if the values were read, `statistics` if all this comes from the version's statistics.
        columns: per column, `nulls` and `distinct` (numbers or None), `exact` (whether `distinct` is exact), `min` and
            `max` (text or None), and `top` (pairs of a value and the number of its rows, or None).
        sample: ten rows; None if no rows were read.
        loaded_at: for a bronze table, when its newest row was ingested; None if that is not known.
    """

    source: str
    columns: Mapping[str, Mapping[str, Any]]
    sample: Sample | None
    loaded_at: datetime | None


class Profiler:
    """Profiles versions until its time is used up; from then on, it uses only their statistics.

    A version whose rows DuckDB can't read is also described by its statistics only; `failed` has the names of these
    tables, each with the kind of the error, because its message can contain values.

    Args:
        connection: a DuckDB connection with access to the lake. It runs only SQL of this module.
        seconds: the time that all profiles together may take. A query that would exceed it is interrupted.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, bucket: str, seconds: float) -> None:
        self._connection, self._bucket = connection, bucket
        self._end = time.monotonic() + seconds
        self.failed: dict[str, str] = {}

    def profile(self, version: Version, personal: frozenset[str]) -> Profile:
        """Returns the profile of a version.

        Args:
            personal: the columns with personal data, of which nothing is read.
        """
        shown = [column for column in version.columns if column.name not in personal]
        left = self._end - time.monotonic()
        if left > 0 and version.files:
            timer = threading.Timer(left, self._connection.interrupt)
            timer.start()
            try:
                return self._of_rows(version, shown)
            except duckdb.InterruptException:
                pass
            except duckdb.Error as error:
                self.failed[version.table] = type(error).__name__
            finally:
                timer.cancel()
        return of_statistics(version, shown)

    def sample(self, version: Version, personal: frozenset[str]) -> Sample | None:
        """Returns ten rows of a version that has no profile of its rows; None if they can't be read.

        Reading ten rows takes little time, so it is not limited as profiles are. May be called in several threads.

        Args:
            personal: the columns with personal data, which are left out.
        """
        shown = [column for column in version.columns if column.name not in personal]
        if not shown or not version.files or version.table in self.failed:
            return None
        try:
            with self._connection.cursor() as cursor:
                rows = cursor.execute(_sample_sql(_rows_of(version, self._bucket), shown)).fetchall()
        except duckdb.Error as error:
            self.failed[version.table] = type(error).__name__
            return None
        return tuple(column.name for column in shown), tuple(rows)

    def _of_rows(self, version: Version, shown: Sequence[Column]) -> Profile:
        table = _rows_of(version, self._bucket)
        if not shown:
            return Profile("rows", {}, None, None)
        exact = version.rows <= _EXACT_ROWS
        counts = "count(distinct {0})" if exact else "approx_count_distinct({0})"
        expressions = []
        for column in shown:
            name = types.quoted(column.name)
            expressions.append(f"count(*) - count({name})")
            if _is_ordered(column):
                expressions += [counts.format(name), _text(f"min({name})"), _text(f"max({name})")]
            else:
                expressions += ["null", "null", "null"]
        row = self._rows(f"select {', '.join(expressions)} from {table}")[0]
        found = {}
        for at, column in enumerate(shown):
            nulls, distinct, least, greatest = row[4 * at : 4 * at + 4]
            found[column.name] = {
                "nulls": nulls, "distinct": distinct, "exact": exact, "min": least, "max": greatest, "top": None
            }  # fmt: skip
        small = [name for name, one in found.items() if 0 < (one["distinct"] or 0) <= _SMALL_SET]
        small = [name for name in small if found[name]["distinct"] < version.rows]
        for name, top in self._top(table, small).items():
            # the values were just counted
            found[name] |= {"top": top[:_TOP], "distinct": len(top), "exact": True}
        sample = tuple(column.name for column in shown), tuple(self._rows(_sample_sql(table, shown)))
        return Profile("rows", found, sample, _loaded_at(version, found))

    def _top(self, table: str, names: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
        """Returns all values of these columns and their numbers of rows, the most frequent first."""
        if not names:
            return {}
        queries = [
            f"select {at}, cast({types.quoted(name)} as varchar), count(*) from {table} "
            f"where {types.quoted(name)} is not null group by 2"
            for at, name in enumerate(names)
        ]
        found: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
        for at, value, rows in self._rows(" union all ".join(queries)):
            found[names[at]].append((value[:_TEXT], rows))
        return {name: sorted(values, key=lambda one: (-one[1], one[0])) for name, values in found.items()}

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        # an interrupt between two queries has no effect
        if time.monotonic() >= self._end:
            raise duckdb.InterruptException("the time is used up")
        return self._connection.execute(query).fetchall()


def _rows_of(version: Version, bucket: str) -> str:
    """Returns a subquery with the rows of a version."""
    return f"({select_sql(version, bucket)})"


def _sample_sql(table: str, shown: Sequence[Column]) -> str:
    texts = ", ".join(_text(types.quoted(column.name)) for column in shown)
    return f"select {texts} from {table} limit {_SAMPLE_ROWS}"


def _loaded_at(version: Version, columns: Mapping[str, Mapping[str, Any]]) -> datetime | None:
    newest = columns.get(_LOADED_AT, {}).get("max") if version.table.startswith("bronze.") else None
    return datetime.fromisoformat(newest).replace(tzinfo=UTC) if newest else None


def of_statistics(version: Version, shown: Sequence[Column]) -> Profile:
    """Returns what a version's record says about these columns: null counts, minima and maxima.

    A column without statistics in one of the files, such as any column of a bronze table, has none here.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for column in shown:
        known = [file.statistics.get(types.quoted(column.name)) for file in version.files]
        if not known or not all(known):
            continue
        files = [one for one in known if one]
        nulls = [int(one["null_count"]) for one in files if "null_count" in one]
        least, greatest = _bounds(column, files)
        found[column.name] = {
            "nulls": sum(nulls) if len(nulls) == len(files) else None,
            "distinct": None, "exact": False, "min": least, "max": greatest, "top": None,
        }  # fmt: skip
    return Profile("statistics", found, None, None)


def _bounds(column: Column, files: Sequence[Mapping[str, str]]) -> tuple[str | None, str | None]:
    """Returns the least and the greatest of the files' bounds.

    A file without bounds has only NULL in the column, or its bounds are not known; then there are none.
    """
    files = [one for one in files if one.get("null_count") != one.get("num_values") or "min" in one]
    if not files or not all("min" in one and "max" in one for one in files):
        return None, None
    if any(one.get("has_nan") == "true" for one in files):
        return None, None
    kind = types.parse(column.type, column.name)
    is_number = isinstance(kind, types.Primitive) and types.iceberg_name(kind).startswith(_NUMBERS)

    def order(text: str) -> Any:
        return Decimal(text) if is_number else text

    try:
        least = min((one["min"] for one in files), key=order)
        greatest = max((one["max"] for one in files), key=order)
    except InvalidOperation:
        return None, None
    return least[:_TEXT], greatest[:_TEXT]


def _is_ordered(column: Column) -> bool:
    kind = types.parse(column.type, column.name)
    return not types.is_nested(kind) and str(kind) not in _UNORDERED


def _text(expression: str) -> str:
    return f"left(cast({expression} as varchar), {_TEXT})"
