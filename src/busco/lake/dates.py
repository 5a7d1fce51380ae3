"""Checks that dates and times lie between 0001-01-01 and 9999-12-31 (UTC if they have a zone), using COPY's statistics.

The statistics contain the minimum and maximum of every field, including nested fields, as printed by DuckDB: exact, and
in UTC. An infinity sorts before or after all other values. So the statistics usually prove that all values are in
range, or that at least one is not. If a field has no statistics, its values must be checked in the rows themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from busco.lake import types
from busco.lake.records import Column

# The statistic that replaces a minimum and maximum that must not be kept (`busco.lake.bounds`).
PROVEN = "in_range"
_ICEBERG_NAMES = frozenset({"date", "timestamp", "timestamptz"})
_IN_RANGE = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?([+-]\d\d(:\d\d)*)?)?")
# Infinity, a year with more than four digits, or a year BC.
_BEYOND = re.compile(r"-?infinity|\d{5,}-\d\d-\d\d.*|\d+-\d\d-\d\d \(BC\).*")

Statistics = Mapping[str, Mapping[str, str]]


def is_date_or_time(kind: types.DataType) -> bool:
    return isinstance(kind, types.Primitive) and types.iceberg_name(kind) in _ICEBERG_NAMES


def paths(columns: Iterable[Column]) -> tuple[str, ...]:
    """Returns the paths of all date and time fields, nested ones too, as written in statistics: `"b"."element"`."""
    return tuple(
        ".".join(types.quoted(part) for part in path)
        for column in columns
        for path, kind in types.fields((column.name,), types.parse(column.type, column.name))
        if is_date_or_time(kind)
    )


def in_range(fields: Iterable[str], statistics: Statistics) -> bool | None:
    """Returns whether all values of these fields (see `paths`) are in range, or None if the statistics can't tell."""
    found = {_in_range(statistics.get(field)) for field in fields}
    return False if False in found else None if None in found else True


def _in_range(known: Mapping[str, str] | None) -> bool | None:
    if known is None:
        return None
    if PROVEN in known:
        return known[PROVEN] == "true"
    if "min" not in known or "max" not in known:
        # This happens when all values are NULL, or all lists are empty.
        return True if int(known.get("null_count", 0)) >= int(known.get("num_values", 1)) else None
    bounds = (known["min"], known["max"])
    if any(_BEYOND.fullmatch(bound) for bound in bounds):
        return False
    return True if all(_IN_RANGE.fullmatch(bound) for bound in bounds) else None
