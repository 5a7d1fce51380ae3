"""The SQL that reads a text as a scalar, by the grammar of a column of its own (`exact` has that of nested values)."""

from __future__ import annotations

from dataclasses import dataclass

from busco.lake import types
from busco.lake.types import literal

INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT"})
FLOATS = frozenset({"FLOAT", "DOUBLE"})
# the digits that each keeps of a second's fraction
FRACTIONS = {"TIMESTAMP": 6, "TIMESTAMP_S": 0, "TIMESTAMP_MS": 3, "TIMESTAMP WITH TIME ZONE": 6}
# types for which DuckDB's own grammar is accepted in a column of their own too
WIDE = frozenset({"UTINYINT", "USMALLINT", "TIMESTAMP WITH TIME ZONE"})

_SPACE = "' ' || chr(9) || chr(10) || chr(11) || chr(12) || chr(13)"

_DAY = r"\d{4}-\d{2}-\d{2}"
# a string in a JSON text
JSON_STRING = r'"(?:[^"\\]|\\.)*"'
_NO_JSON = r"(?i)nan|inf|,\s*[\]}]"


@dataclass(frozen=True)
class Scalar:
    """How a scalar is read: `cast`, where each of `texts` is true of its text and `accepted` of its value.

    DuckDB computes an expression within AND or CASE as often as it stands there, so that `fits` names the cast once.
    """

    cast: str
    texts: tuple[str, ...] = ()
    accepted: str = ""

    def value(self) -> str:
        """An expression of the text's value; NULL where it does not fit."""
        conditions = [*self.texts, *([self.accepted] if self.accepted else [])]
        return where(" and ".join(conditions), self.cast) if conditions else self.cast

    def fits(self) -> str:
        """Whether a text that is not NULL has a value."""
        accepted = f"coalesce({self.accepted}, false)" if self.accepted else f"{self.cast} is not null"
        return " and ".join([*self.texts, accepted])


def strict(kind: types.Primitive, text: str) -> Scalar:
    """A scalar by the grammar that a column of its own has."""
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
        # DuckDB accepts NaN, Infinity and a comma after the last element, which JSON does not have. Outside of its
        # strings, JSON has no such letters.
        no_strings = f"regexp_replace({text}, {literal(JSON_STRING)}, '0', 'g')"
        return Scalar(read, (f"not regexp_matches({no_strings}, {literal(_NO_JSON)})",))
    return Scalar(read)


def time_pattern(kind: types.Primitive, separator: str, digits: str, zone: str) -> str:
    """A pattern of an optional time of day.

    Args:
        separator, digits, zone: patterns of what is before it, of its hour, minute and second, and of what follows it.
    """
    seconds = rf"{digits}(?:\.\d{{0,{FRACTIONS[kind.name]}}}0*)?"
    return rf"(?:{separator}{digits}:{digits}(?::{seconds})?{zone})?"


def moment(kind: types.Primitive, text: str, pattern: str) -> Scalar:
    """A date or a time in the years 1 to 9999, which are those that every reader of a table knows.

    The year 0 is the year before 1 to DuckDB, and to others none at all.
    """
    read = f"try_cast({text} as {kind})"
    texts = (matches(text, pattern), f"not starts_with({text}, '0000')")
    if kind.name == "DATE":
        return Scalar(read, texts)
    # by 24:00, or by an offset, a moment is in another year than its text
    if kind.name == "TIMESTAMP WITH TIME ZONE":
        first, last = "'0001-01-01 00:00:00+00'", "'9999-12-31 23:59:59.999999+00'"
        return Scalar(read, texts, f"{read} between cast({first} as {kind}) and cast({last} as {kind})")
    return Scalar(read, texts, f"{read} < cast('10000-01-01' as {kind})")


def stripped(kind: types.Primitive, text: str) -> str:
    """Without the spaces around it, which are part of a text and of bytes alone."""
    if kind.name in ("VARCHAR", "BLOB"):
        return text
    return trimmed(text) if kind.name in WIDE | {"JSON"} else f"trim({text})"


def trimmed(text: str) -> str:
    """Without spaces of any kind (the inner trim), tabs and line breaks around it."""
    return f"trim(trim({text}), {_SPACE})"


def where(condition: str, value: str) -> str:
    """A value, NULL unless a condition is true."""
    return f"case when {condition} then {value} end"


def matches(text: str, pattern: str) -> str:
    """Whether the whole of a text has the form of a pattern."""
    return f"regexp_full_match({text}, {literal(pattern)})"
