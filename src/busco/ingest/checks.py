"""The SQL that reads a CSV as text and says of each value whether it fits its type (`exact` says when it does)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from busco.ingest import exact
from busco.lake import types
from busco.lake.deliveries import Contract
from busco.lake.records import Column
from busco.lake.types import literal, quoted

# Longer lines need DuckDB's limits raised (read_csv, max_line_size); its buffer is 16 of these by default, and a last
# line that is longer than the buffer is dropped without an error.
_MAX_LINE = 2_000_000
_BUFFER = 16 * _MAX_LINE


def reader_sql(path: str, columns: Mapping[str, str], compressed: bool, longest: int = 0) -> str:
    """A relation of a CSV file's values, in the file's order. It raises where a line is no row of that many values.

    DuckDB may lose or add rows without an error (long lines, blank lines): compare with `RowCount`.

    Args:
        path: absolute, so that DuckDB sees neither `~` nor a protocol in it.
        columns: the header's names, in its order, each with the type to read it as.
        longest: bytes of the longest row, or more.
    """
    typed = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items())
    options = [
        literal(escaped(path)),
        "auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', strict_mode = true",
        # else a folder `day=2018-01-01` would be taken for the column
        "hive_partitioning = false",
        f"columns = {{{typed}}}",
        f"compression = {literal('gzip' if compressed else 'none')}",
    ]
    if longest >= _MAX_LINE:
        # DuckDB 1.5 takes a buffer of two such lines for enough only where one thread reads them
        size = longest + 1000
        options.append(f"max_line_size = {size}, buffer_size = {max(_BUFFER, 2 * size)}, parallel = false")
    return f"read_csv({', '.join(options)})"


def escaped(path: str) -> str:
    """A path that DuckDB, which takes any for a pattern, finds this one file by."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def numbered_sql(reader: str) -> str:
    """The reader's rows with `_source_row`, 1-based; DuckDB counts neither the header nor blank lines.

    The window without an order numbers rows as they stand in the file: DuckDB computes it in one stream, in order.
    """
    return f"select *, row_number() over () as _source_row from {reader}"


def problems_sql(contract: Contract) -> str:
    """A list of {column, value, reason} for a row of text; empty where every value fits."""
    structs = []
    for column in contract.columns:
        for condition, reason in _conditions(column, column.name in contract.grain):
            structs.append(
                f"case when {condition} then {{'column': {literal(column.name)}, 'value': {quoted(column.name)}, "
                f"'reason': {literal(reason)}}} end"
            )
    return f"list_filter([{', '.join(structs)}], lambda p: p is not null)" if structs else "[]"


def typed_sql(contract: Contract) -> str:
    """The select list that turns a row of text that fits into the contract's types."""
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
    return "an" if word[0] in "AEIOU" else "a"
