"""Builds the SQL that parses the strings of top-level columns as scalars (`exact` handles nested values)."""

from __future__ import annotations

from dataclasses import dataclass

from busco.lake import types
from busco.lake.types import literal

INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT"})
FLOATS = frozenset({"FLOAT", "DOUBLE"})
# the number of fractional-second digits that each type keeps
FRACTIONS = {"TIMESTAMP": 6, "TIMESTAMP_S": 0, "TIMESTAMP_MS": 3, "TIMESTAMP WITH TIME ZONE": 6}
# types for which DuckDB's own grammar is accepted in top-level columns too
WIDE = frozenset({"UTINYINT", "USMALLINT", "TIMESTAMP WITH TIME ZONE"})

_SPACE = "' ' || chr(9) || chr(10) || chr(11) || chr(12) || chr(13)"

_DAY = r"\d{4}-\d{2}-\d{2}"
# a string within JSON
JSON_STRING = r'"(?:[^"\\]|\\.)*"'
_NO_JSON = r"(?i)nan|inf|,\s*[\]}]"


@dataclass(frozen=True)
class Scalar:
    """How to parse a scalar: with `cast`, if the string meets the conditions `texts`, and the value meets `accepted`.

    If an expression occurs several times within AND or CASE, DuckDB evaluates it each time. Therefore, `fits` contains
    the cast only once.
    """

    cast: str
    texts: tuple[str, ...] = ()
    accepted: str = ""

    def value(self) -> str:
        """Returns an SQL expression for the string's value, NULL if it does not fit."""
        conditions = [*self.texts, *([self.accepted] if self.accepted else [])]
        return where(" and ".join(conditions), self.cast) if conditions else self.cast

    def fits(self) -> str:
        """Returns SQL that tests whether a non-NULL string has a value."""
        accepted = f"coalesce({self.accepted}, false)" if self.accepted else f"{self.cast} is not null"
        return " and ".join([*self.texts, accepted])


def strict(kind: types.Primitive, text: str) -> Scalar:
    """Returns how to parse a scalar in a top-level column."""
    read = f"try_cast({text} as {kind})"
    if kind.name in INTEGERS:
        return Scalar(read, (matches(text, r"[+-]?\d+(?:\.0*)?"),))
    if kind.name == "DECIMAL":
        fraction = rf"\d{{0,{kind.scale}}}0*"
        only = rf"|\.\d{{1,{kind.scale}}}0*" if kind.scale else ""
        return Scalar(read, (matches(text, rf"[+-]?(?:\d+(?:\.{fraction})?{only})"),))
    if kind.name in FLOATS:
        number = matches(text, r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
        return Scalar(read, (number,), f"isfinite({read})")
    if kind.name == "DATE":
        return moment(kind, text, _DAY)
    if kind.name in FRACTIONS:
        return moment(kind, text, _DAY + time_pattern(kind, "[ T]", r"\d{2}", ""))
    if kind.name == "JSON":
        # DuckDB accepts NaN, Infinity and a comma after the last element, which JSON does not allow. Outside of its
        # strings, valid JSON never contains the letters `nan` or `inf`.
        no_strings = f"regexp_replace({text}, {literal(JSON_STRING)}, '0', 'g')"
        return Scalar(read, (f"not regexp_matches({no_strings}, {literal(_NO_JSON)})",))
    return Scalar(read)


def time_pattern(kind: types.Primitive, separator: str, digits: str, zone: str) -> str:
    """Returns a regular expression for an optional time of day.

    Args:
        separator, zone: patterns for what precedes and what follows the time of day.
        digits: the pattern for each of the hour, the minute and the second.
    """
    seconds = rf"{digits}(?:\.\d{{0,{FRACTIONS[kind.name]}}}0*)?"
    return rf"(?:{separator}{digits}:{digits}(?::{seconds})?{zone})?"


def moment(kind: types.Primitive, text: str, pattern: str) -> Scalar:
    """Returns how to parse a date or a time in the years 1 to 9999, which every reader of a table supports.

    In DuckDB, year 0 is the year before year 1; other readers have no year 0.
    """
    read = f"try_cast({text} as {kind})"
    texts = (matches(text, pattern), f"not starts_with({text}, '0000')")
    if kind.name == "DATE":
        return Scalar(read, texts)
    # because of 24:00 or an offset, a moment can be in a different year than the one in its string
    if kind.name == "TIMESTAMP WITH TIME ZONE":
        first, last = "'0001-01-01 00:00:00+00'", "'9999-12-31 23:59:59.999999+00'"
        return Scalar(read, texts, f"{read} between cast({first} as {kind}) and cast({last} as {kind})")
    return Scalar(read, texts, f"{read} < cast('10000-01-01' as {kind})")


def stripped(kind: types.Primitive, text: str) -> str:
    """Returns SQL that removes the spaces around a string, except for VARCHAR and BLOB, whose values include them."""
    if kind.name in ("VARCHAR", "BLOB"):
        return text
    return trimmed(text) if kind.name in WIDE | {"JSON"} else f"trim({text})"


def trimmed(text: str) -> str:
    """Returns SQL that removes spaces of any kind (the inner trim), tabs and line breaks around a string."""
    return f"trim(trim({text}), {_SPACE})"


def where(condition: str, value: str) -> str:
    """Returns an SQL expression for a value if a condition is true, otherwise NULL."""
    return f"case when {condition} then {value} end"


def matches(text: str, pattern: str) -> str:
    """Returns SQL that tests whether a whole string matches a pattern."""
    return f"regexp_full_match({text}, {literal(pattern)})"
