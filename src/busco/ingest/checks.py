"""The SQL that reads a CSV as text and says of each value whether it fits its type, exactly.

DuckDB's own casts round: `'1.5'` becomes the integer 2 and `'12.345'` the decimal 12.35. A value that would change so
does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence

from busco.lake import types
from busco.lake.deliveries import Contract
from busco.lake.records import Column
from busco.lake.types import literal, quoted

_INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT"})
_TIME = r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?"


def reader_sql(path: str, header: Sequence[str], compressed: bool, errors: str = "") -> str:
    """A relation of a CSV file's values as text, columns named as in its header, in the file's order.

    `errors` are DuckDB's options for lines that are no rows of that many values; without any they raise.
    """
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in header)
    options = [
        literal(path),
        "auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', strict_mode = true",
        f"columns = {{{columns}}}",
        f"compression = {literal('gzip' if compressed else 'none')}",
    ]
    if errors:
        options.append(errors)
    return f"read_csv({', '.join(options)})"


def numbered_sql(reader: str, shifts: str = "") -> str:
    """The reader's rows with `_source_row`, 1-based; `shifts` names a table (after, by) of lines left out before.

    The window without an order numbers rows as they stand in the file: DuckDB computes it in one stream, in order.
    """
    numbered = f"select *, row_number() over () as _rank from {reader}"
    if not shifts:
        return f"select * exclude (_rank), _rank as _source_row from ({numbered})"
    return (
        f"select r.* exclude (_rank), r._rank + coalesce(s.shift, 0) as _source_row "
        f"from ({numbered}) as r asof left join {shifts} as s on r._rank >= s.after"
    )


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
        f"{quoted(c.name)}" if c.type == "VARCHAR" else f"cast(trim({quoted(c.name)}) as {c.type}) as {quoted(c.name)}"
        for c in contract.columns
    )


def _conditions(column: Column, in_grain: bool) -> list[tuple[str, str]]:
    name = quoted(column.name)
    found = []
    if in_grain:
        found.append((f"{name} is null", "empty, but part of the table's grain"))
    kind = types.parse(column.type, column.name)
    pattern = _pattern(kind)
    fits = f"try_cast(trim({name}) as {column.type}) is not null"
    if pattern:
        fits = f"regexp_full_match(trim({name}), {literal(pattern)}) and {fits}"
    if column.type != "VARCHAR":
        found.append((f"{name} is not null and not ({fits})", f"not {_article(column.type)} {column.type}"))
    return found


def _pattern(kind: types.DataType) -> str:
    if not isinstance(kind, types.Primitive):
        return ""
    if kind.name in _INTEGERS:
        return r"[+-]?\d+(\.0*)?"
    if kind.name == "DECIMAL":
        return rf"[+-]?(\d+(\.\d{{0,{kind.scale}}}0*)?|\.\d{{1,{kind.scale}}}0*)" if kind.scale else r"[+-]?\d+(\.0*)?"
    if kind.name in ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS"):
        return _TIME
    return r"\d{4}-\d{2}-\d{2}" if kind.name == "DATE" else ""


def _article(word: str) -> str:
    return "an" if word[0] in "AEIOU" else "a"
