"""Converts DuckDB's types and values to Athena's: the only place where the local Athena turns values into text.

Sources: the names of types are those that GetQueryResults returns, as listed in PyAthena's `converter.py`. A timestamp
or time has as many decimal places as its type (Trino, "Data types": `timestamp(P)`); DuckDB's types with microseconds
correspond to `timestamp(6)`, the type of Iceberg's timestamps in Trino ("Iceberg connector", "Type mapping"). Floating
point numbers have the format of Java's `Double.toString`. Arrays, maps and rows have the format of Java's collections.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from typing import Any

_NAMES = {
    "boolean": "boolean",
    "tinyint": "tinyint",
    "utinyint": "smallint",
    "smallint": "smallint",
    "usmallint": "integer",
    "integer": "integer",
    "uinteger": "bigint",
    "bigint": "bigint",
    # the type of sum(bigint) in DuckDB, which is bigint in Athena
    "hugeint": "bigint",
    "float": "float",
    "double": "double",
    "decimal": "decimal",
    "blob": "varbinary",
    "date": "date",
    "time": "time",
    "time with time zone": "time with time zone",
    "timestamp": "timestamp",
    "timestamp_s": "timestamp",
    "timestamp_ms": "timestamp",
    "timestamp_ns": "timestamp",
    "timestamp with time zone": "timestamp with time zone",
    "list": "array",
    "array": "array",
    "map": "map",
    "struct": "row",
}
_PLACES = {"timestamp_s": 0, "timestamp_ms": 3, "timestamp_ns": 9}
_MICROSECONDS = 6


@dataclass(frozen=True)
class ColumnType:
    """A column's type in Athena.

    `precision` and `scale` are for decimals, whose text includes both, such as `decimal(12,2)`.
    """

    name: str
    precision: int = 0
    scale: int = 0

    def __str__(self) -> str:
        return f"{self.name}({self.precision},{self.scale})" if self.precision else self.name

    @classmethod
    def parse(cls, text: str) -> ColumnType:
        name, _, numbers = text.rstrip(")").partition("(")
        precision, _, scale = numbers.partition(",")
        return cls(name, int(precision or 0), int(scale or 0))


def column_type(kind: Any) -> ColumnType:
    """Returns Athena's type for a DuckDB type (`DuckDBPyType`); `varchar` if Athena has no equivalent type."""
    if kind.id == "decimal":
        inner = dict(kind.children)
        return ColumnType("decimal", inner["precision"], inner["scale"])
    return ColumnType(_NAMES.get(kind.id, "varchar"))


def text(value: Any, kind: Any) -> str | None:
    """Returns Athena's text for a value that DuckDB returned; None for NULL.

    Args:
        kind: the value's DuckDB type.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if kind.id in ("list", "array"):
        element = kind.children[0][1]
        return f"[{', '.join(_inner(one, element) for one in value)}]"
    if kind.id == "map":
        return _map(value, *(inner for _, inner in kind.children))
    if kind.id == "struct":
        return _row(value, kind.children)
    return _scalar(value, kind.id)


def _inner(value: Any, kind: Any) -> str:
    found = text(value, kind)
    return "null" if found is None else found


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "{" + ", ".join(f"{name}={value}" for name, value in pairs) + "}"


def _map(value: dict[Any, Any], key: Any, element: Any) -> str:
    # DuckDB returns two lists if the keys can't be used as keys of a Python dictionary.
    listed = key.id in ("list", "array", "struct", "map")
    items = zip(value["key"], value["value"], strict=True) if listed else value.items()
    return _pairs((_inner(name, key), _inner(one, element)) for name, one in items)


def _row(value: Any, fields: list[tuple[str, Any]]) -> str:
    # DuckDB returns a tuple if the fields have no names.
    values = value.values() if isinstance(value, dict) else value
    return _pairs(
        (name or f"field{number}", _inner(one, kind))
        for number, ((name, kind), one) in enumerate(zip(fields, values, strict=True))
    )


def _scalar(value: Any, kind: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _float(value, _shortest(value) if kind == "float" else repr(value))
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.hex(" ")
    if kind.startswith("timestamp"):
        zone = " UTC" if value.tzinfo else ""
        moment = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return f"{_with_places(moment.isoformat(' ', 'microseconds'), kind)}{zone}"
    return str(value.isoformat("microseconds") if kind.startswith("time") else value)


def _with_places(moment: str, kind: str) -> str:
    whole, _, fraction = moment.partition(".")
    places = _PLACES.get(kind, _MICROSECONDS)
    return f"{whole}.{fraction[:places]:0<{places}}" if places else whole


def _shortest(value: float) -> str:
    """Returns the shortest text that represents this 32-bit number, which Python stores as a 64-bit number."""
    if not math.isfinite(value):
        return repr(value)
    candidates = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next(one for one in candidates if _rounded(float(one)) == value)


def _rounded(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.inf


def _float(value: float, shortest: str) -> str:
    """Formats a number the way Java does: `1.0E-7`, `0.001`, `100.0`, `1.0E7`."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    number = Decimal(shortest)
    exponent = number.adjusted() if value else 0
    if -3 <= exponent < 7:
        return _with_point(format(number, "f"))
    return f"{_with_point(format(number.scaleb(-exponent).normalize(), 'f'))}E{exponent}"


def _with_point(number: str) -> str:
    return number if "." in number else f"{number}.0"
