"""Removes the bounds of personal columns from file statistics, because more people can read metadata than data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from busco.lake import dates
from busco.lake.records import Column

# The statistics from COPY that reveal none of the column's values.
_COUNTS = frozenset({"null_count", "num_values", "column_size_bytes", "has_nan", dates.PROVEN})
_FIRST = re.compile(r'"((?:[^"]|"")*)"')


def without_bounds(
    statistics: Mapping[str, Mapping[str, str]], columns: Sequence[Column], personal: Collection[str]
) -> dict[str, dict[str, str]]:
    """Returns a file's statistics, as reported by COPY, with only counts for personal columns.

    For personal columns with dates or times, the result also states whether all values are in the range that readers
    support (`dates.PROVEN`).

    Args:
        statistics: the statistics by quoted path, such as `"st"."a"`.
        columns: the table's columns.
        personal: the case-insensitive names of the columns whose values must not be kept.
    """
    hidden = {name.lower() for name in personal}
    dated = set(dates.paths(columns))
    found = {}
    for path, known in statistics.items():
        if _column(path).lower() not in hidden:
            found[path] = dict(known)
            continue
        found[path] = {name: value for name, value in known.items() if name in _COUNTS}
        if path in dated and (proven := dates.in_range([path], statistics)) is not None:
            found[path][dates.PROVEN] = "true" if proven else "false"
    return found


def _column(path: str) -> str:
    """Returns the column that a quoted path starts with, or the path itself if it is not quoted."""
    first = _FIRST.match(path)
    return first.group(1).replace('""', '"') if first else path
