"""Whether a file's dates and times are from 0001-01-01 to 9999-12-31 (UTC where there is a zone), by COPY's statistics.

The statistics have the smallest and the largest value of every field, of nested ones too, as DuckDB prints them: exact,
and in UTC. Infinity sorts before or behind all other values. So they usually prove that all values are in range, or
that one is not; where they say nothing of a field, only the rows can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from busco.lake import types
from busco.lake.records import Column

# A statistic in place of the smallest and largest value, where these are not kept (`busco.lake.bounds`).
PROVEN = "in_range"
_ICEBERG_NAMES = frozenset({"date", "timestamp", "timestamptz"})
_IN_RANGE = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?([+-]\d\d(:\d\d)*)?)?")
# Infinity, a year of more than four digits, a year before Christ.
_BEYOND = re.compile(r"-?infinity|\d{5,}-\d\d-\d\d.*|\d+-\d\d-\d\d \(BC\).*")

Statistics = Mapping[str, Mapping[str, str]]


def is_date_or_time(kind: types.DataType) -> bool:
    return isinstance(kind, types.Primitive) and types.iceberg_name(kind) in _ICEBERG_NAMES


def paths(columns: Iterable[Column]) -> tuple[str, ...]:
    """The dates and times of the columns, nested ones too, as the statistics call them: `"a"`, `"b"."element"`."""
    return tuple(
        ".".join(types.quoted(part) for part in path)
        for column in columns
        for path, kind in types.fields((column.name,), types.parse(column.type, column.name))
        if is_date_or_time(kind)
    )


def in_range(fields: Iterable[str], statistics: Statistics) -> bool | None:
    """Whether a file has no value beyond the range in some of its fields (`paths`); None if that is not known."""
    found = {_in_range(statistics.get(field)) for field in fields}
    return False if False in found else None if None in found else True


def _in_range(known: Mapping[str, str] | None) -> bool | None:
    if known is None:
        return None
    if PROVEN in known:
        return known[PROVEN] == "true"
    if "min" not in known or "max" not in known:
        # so it is where all values are NULL, or lists are empty
        return True if int(known.get("null_count", 0)) >= int(known.get("num_values", 1)) else None
    bounds = (known["min"], known["max"])
    if any(_BEYOND.fullmatch(bound) for bound in bounds):
        return False
    return True if all(_IN_RANGE.fullmatch(bound) for bound in bounds) else None
