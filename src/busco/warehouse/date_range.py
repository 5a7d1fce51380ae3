"""Checks that a table's dates and times are between 0001-01-01 and 9999-12-31 (in UTC if they have a time zone).

DuckDB also supports infinity, BC dates and years after 9999. Iceberg's types could hold some of these values, but
Iceberg readers don't support them: pyiceberg fails to read the table, and Athena shows a different value
(docs/iceberg.md, "Types").

COPY's own statistics usually prove that a table has no such values (`busco.lake.dates`), so no query is needed. Rows
are counted only if the statistics show such a value or are inconclusive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath

from busco.errors import BuscoError
from busco.lake import dates, types
from busco.lake.records import Column, DataFile

_RANGES = {
    "date": ("date '0001-01-01'", "date '9999-12-31'"),
    "timestamp": ("timestamp '0001-01-01 00:00:00'", "timestamp '9999-12-31 23:59:59.999999'"),
    "timestamptz": ("timestamptz '0001-01-01 00:00:00+00'", "timestamptz '9999-12-31 23:59:59.999999+00'"),
}
# If there are more files than this, the query for the rows names the files' folder instead, to stay readable.
_NAMED_FILES = 3

Url = Callable[[str], str]


@dataclass(frozen=True)
class Suspects:
    """Columns that have, or may have, out-of-range values, and the keys of the files that may contain them."""

    columns: tuple[str, ...]
    kinds: tuple[types.DataType, ...]
    files: tuple[str, ...]

    def count_sql(self, url: Url) -> str:
        """Returns a query that counts each column's rows with out-of-range values. `url` turns a key into a URL."""
        counts = (
            f"count(*) filter (where {where}) as {types.quoted(name)}"
            for name, where in zip(self.columns, self._conditions(), strict=True)
        )
        return f"select {', '.join(counts)} from {_files_sql([url(key) for key in self.files])}"

    def find_sql(self, url: Url) -> str:
        """Returns a query that selects the rows with an out-of-range value in any of the columns."""
        files = self.files
        if len(files) > _NAMED_FILES:
            files = (f"{commonpath(files)}/**/*.parquet",)
        return f"select * from {_files_sql([url(key) for key in files])} where {' or '.join(self._conditions())}"

    def _conditions(self) -> Iterator[str]:
        for name, kind in zip(self.columns, self.kinds, strict=True):
            yield _beyond_sql(kind, types.quoted(name)) or "false"


def suspects(columns: Sequence[Column], files: Sequence[DataFile]) -> Suspects | None:
    """Returns the columns that COPY's statistics don't prove to be in range, or None if, as usual, there are none."""
    found: dict[str, types.DataType] = {}
    where: dict[str, None] = {}
    for column in columns:
        kind = types.parse(column.type, column.name)
        fields = dates.paths([column])
        for file in files:
            if file.rows and not dates.in_range(fields, file.statistics):
                found[column.name] = kind
                where[file.key] = None
    return Suspects(tuple(found), tuple(found.values()), tuple(where)) if found else None


def check(table: str, found: Suspects, counted: Mapping[str, int], url: Url, run: str, advice: str) -> None:
    """Refuses the table if `count_sql` counted any rows. The message shows no values, since they may be personal data.

    Args:
        table: `<layer>.<name>`.
        counted: the result of `count_sql`: the number of rows for each column.
        run: the run's key, so that the command in the message works before anything is published.
        advice: what to do about such rows.

    Raises:
        BuscoError: there are such rows; the message lists the columns with the number of rows for each, and shows a
            command that selects the rows.
    """
    counts = {name: int(counted[name]) for name in found.columns if int(counted[name])}
    if not counts:
        return
    listed = ", ".join(f"{name} in {count} row{'s' if count != 1 else ''}" for name, count in counts.items())
    wrong = [at for at, name in enumerate(found.columns) if name in counts]
    only = Suspects(tuple(found.columns[i] for i in wrong), tuple(found.kinds[i] for i in wrong), found.files)
    command = f"busco query --run {run} {_in_shell(only.find_sql(url))}"
    raise BuscoError(
        f"{table} has dates or times that readers of the table do not support "
        f"(infinity, before 0001-01-01 or after 9999-12-31, in UTC): {listed}",
        f"{advice}; to see the rows, run:\n{command}",
    )


def _beyond_sql(kind: types.DataType, value: str, depth: int = 0) -> str:
    """Returns a condition that is true if a value contains an out-of-range date or time, and never NULL; '' if no value
    of the type can contain one."""
    if isinstance(kind, types.Primitive):
        if not dates.is_date_or_time(kind):
            return ""
        first, last = _RANGES[types.iceberg_name(kind)]
        return f"coalesce(not ({value} between {first} and {last}), false)"
    if isinstance(kind, types.ListOf):
        inner = _beyond_sql(kind.element, f"x{depth}", depth + 1)
        return f"coalesce(list_bool_or(list_transform({value}, lambda x{depth}: {inner})), false)" if inner else ""
    if isinstance(kind, types.MapOf):
        lists = ((kind.key, f"map_keys({value})"), (kind.value, f"map_values({value})"))
        parts = [_beyond_sql(types.ListOf(part), listed, depth) for part, listed in lists]
    else:
        parts = [
            _beyond_sql(part, f"struct_extract({value}, {types.literal(name)})", depth) for name, part in kind.fields
        ]
    conditions = [part for part in parts if part]
    return f"({' or '.join(conditions)})" if conditions else ""


def _files_sql(urls: Sequence[str]) -> str:
    listed = ", ".join(types.literal(url) for url in urls)
    return f"read_parquet({listed if len(urls) == 1 else f'[{listed}]'}, hive_partitioning = false)"


def _in_shell(text: str) -> str:
    """Returns a string as a double-quoted argument for a POSIX shell."""
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'
