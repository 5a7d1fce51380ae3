"""Smallest and largest values in metadata: none of personal columns, for more people may read metadata than tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from busco.lake import dates
from busco.lake.records import Column

# What of COPY's statistics is no value of the column.
_COUNTS = frozenset({"null_count", "num_values", "column_size_bytes", "has_nan", dates.PROVEN})
_FIRST = re.compile(r'"((?:[^"]|"")*)"')


def without_bounds(
    statistics: Mapping[str, Mapping[str, str]], columns: Sequence[Column], personal: Collection[str]
) -> dict[str, dict[str, str]]:
    """A file's statistics, as COPY reports them, with only the counts of personal columns.

    Of dates and times it keeps whether they are in the range that readers can hold (`dates.PROVEN`).

    Args:
        statistics: by quoted path, `"st"."a"`.
        columns: the table's.
        personal: names of those columns of which no value is kept, whatever their case.
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
    """The table's column that a quoted path begins with; the path itself if it is none."""
    first = _FIRST.match(path)
    return first.group(1).replace('""', '"') if first else path
