"""Builds the SQL that reads a CSV as text and checks that each value fits its column's type (as `exact` defines)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from busco.ingest import exact
from busco.lake import types
from busco.lake.deliveries import Contract
from busco.lake.records import Column
from busco.lake.types import literal, quoted

# Lines longer than this need a higher `max_line_size` in DuckDB's read_csv. By default, the buffer of read_csv holds 16
# such lines, and DuckDB silently drops the last line if it is longer than the buffer.
_MAX_LINE = 2_000_000
_BUFFER = 16 * _MAX_LINE


def reader_sql(path: str, columns: Mapping[str, str], compressed: bool, longest: int = 0) -> str:
    """Returns an SQL relation with a CSV file's rows, in file order.

    Reading the relation fails if the number of values on a line differs from the number of columns. However, DuckDB can
    lose or add rows without an error (long lines, blank lines), so the caller must compare the number of rows with
    `RowCount`.

    Args:
        path: an absolute path, so that DuckDB interprets no `~` or URL scheme in it.
        columns: the column names in header order, each with the type to read its values as.
        longest: length in bytes of the longest row, or an upper bound.
    """
    typed = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
    options = [
        literal(escaped(path)),
        "auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', strict_mode = true",
        # otherwise DuckDB would turn a folder named `day=2018-01-01` into a partition column
        "hive_partitioning = false",
        f"columns = {{{typed}}}",
        f"compression = {literal('gzip' if compressed else 'none')}",
    ]
    if longest >= _MAX_LINE:
        # if a single thread reads the file, DuckDB 1.5 accepts a buffer that holds as few as two such lines
        size = longest + 1000
        options.append(f"max_line_size = {size}, buffer_size = {max(_BUFFER, 2 * size)}, parallel = false")
    return f"read_csv({', '.join(options)})"


def escaped(path: str) -> str:
    """Escapes a path so that DuckDB, which treats every path as a pattern, matches only this file."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def numbered_sql(reader: str) -> str:
    """Returns the reader's rows with a 1-based `_source_row`, which counts neither the header nor blank lines.

    A window without ORDER BY numbers rows in file order, because DuckDB computes it in a single ordered stream.
    """
    return f"select *, row_number() over () as _source_row from {reader}"


def problems_sql(contract: Contract) -> str:
    """Returns SQL for the list of problems ({column, value, reason}) in a row of text; the list can be empty."""
    structs = []
    for column in contract.columns:
        for condition, reason in _conditions(column, column.name in contract.grain):
            structs.append(
                f"case when {condition} then {{'column': {literal(column.name)}, 'value': {quoted(column.name)}, "
                f"'reason': {literal(reason)}}} end"
            )
    return f"list_filter([{', '.join(structs)}], lambda p: p is not null)" if structs else "[]"


def typed_sql(contract: Contract) -> str:
    """Returns the select list that converts a row of text to the contract's types; every value must fit."""
    return ", ".join(
        f"{exact.cast_sql(types.parse(c.type, c.name), quoted(c.name))} as {quoted(c.name)}" for c in contract.columns
    )


def _conditions(column: Column, in_grain: bool) -> list[tuple[str, str]]:
    name = quoted(column.name)
    found = []
    if in_grain:
        found.append((f"{name} is null", "empty, but part of the table's grain"))
    kind = types.parse(column.type, column.name)
    if column.type != "VARCHAR":
        found.append(
            (f"{name} is not null and not ({exact.fits_sql(kind, name)})", f"not {_article(column.type)} {column.type}")
        )
    return found


def _article(word: str) -> str:
    # by sound: an INTEGER, but a UTINYINT
    return "an" if word[0] in "AEIO" else "a"
