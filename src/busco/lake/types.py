"""Parses DuckDB's type names, decides which types tables can have, and translates these types to Iceberg and Glue.

The rules are in docs/iceberg.md, section "Types": tables can have the types whose values are read identically by
DuckDB, pyiceberg, ClickHouse and (according to its documentation) Athena.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from busco.errors import BuscoError

# DuckDB's name of a type → the Iceberg primitive that holds all values of that type
_PRIMITIVES: dict[str, str] = {
    "BOOLEAN": "boolean",
    "TINYINT": "int",
    "SMALLINT": "int",
    "INTEGER": "int",
    "UTINYINT": "int",
    "USMALLINT": "int",
    "BIGINT": "long",
    "FLOAT": "float",
    "DOUBLE": "double",
    "VARCHAR": "string",
    "JSON": "string",
    "BLOB": "binary",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
    "TIMESTAMP_S": "timestamp",
    "TIMESTAMP_MS": "timestamp",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
}
_ALIASES: dict[str, str] = {
    "BOOL": "BOOLEAN",
    "LOGICAL": "BOOLEAN",
    "INT1": "TINYINT",
    "INT2": "SMALLINT",
    "SHORT": "SMALLINT",
    "INT": "INTEGER",
    "INT4": "INTEGER",
    "SIGNED": "INTEGER",
    "INT8": "BIGINT",
    "LONG": "BIGINT",
    "INT64": "BIGINT",
    "REAL": "FLOAT",
    "FLOAT4": "FLOAT",
    "FLOAT8": "DOUBLE",
    "STRING": "VARCHAR",
    "TEXT": "VARCHAR",
    "CHAR": "VARCHAR",
    "BPCHAR": "VARCHAR",
    "BYTEA": "BLOB",
    "BINARY": "BLOB",
    "VARBINARY": "BLOB",
    "DATETIME": "TIMESTAMP",
    "TIMESTAMP_US": "TIMESTAMP",
    "TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE",
    "NUMERIC": "DECIMAL",
}
# The types that can't be stored exactly, and what to write instead.
_REFUSED: dict[str, str] = {
    "HUGEINT": "cast(… as BIGINT), or as DECIMAL(38,0): COPY would write it as DOUBLE",
    "UHUGEINT": "cast(… as DECIMAL(38,0))",
    "UBIGINT": "cast(… as DECIMAL(20,0)), or as BIGINT",
    "UINTEGER": "cast(… as BIGINT)",
    "TIMESTAMP_NS": "cast(… as TIMESTAMP): tables store microseconds",
    "TIME": "cast(… as VARCHAR)",
    "TIME_NS": "cast(… as VARCHAR)",
    "TIME WITH TIME ZONE": "cast(… as VARCHAR)",
    "INTERVAL": "epoch(…) in seconds, or cast(… as VARCHAR)",
    "UUID": "cast(… as VARCHAR): Athena has no such type",
    "BIT": "cast(… as VARCHAR)",
    "UNION": "a STRUCT",
    "VARIANT": "cast(… as JSON)",
    "GEOMETRY": "st_asbinary(…), which returns a BLOB",
    "BIGNUM": "cast(… as DECIMAL(38,0))",
    "SQLNULL": "cast(null as …): the column is an untyped NULL",
    '"NULL"': "cast(null as …): the column is an untyped NULL",
    "NULL": "cast(null as …): the column is an untyped NULL",
}

_ENUM = re.compile(r"\bENUM\s*\((?:'(?:[^']|'')*'|[^'()])*\)", re.IGNORECASE)


@dataclass(frozen=True)
class Primitive:
    """`name` is DuckDB's canonical name; `precision` and `scale` are for decimals."""

    name: str
    precision: int = 0
    scale: int = 0

    def __str__(self) -> str:
        return f"DECIMAL({self.precision},{self.scale})" if self.name == "DECIMAL" else self.name


@dataclass(frozen=True)
class ListOf:
    element: DataType

    def __str__(self) -> str:
        return f"{self.element}[]"


@dataclass(frozen=True)
class Struct:
    fields: tuple[tuple[str, DataType], ...]

    def __str__(self) -> str:
        return "STRUCT(" + ", ".join(f"{quoted(name)} {kind}" for name, kind in self.fields) + ")"


@dataclass(frozen=True)
class MapOf:
    key: DataType
    value: DataType

    def __str__(self) -> str:
        return f"MAP({self.key}, {self.value})"


DataType = Primitive | ListOf | Struct | MapOf


def quoted(name: str) -> str:
    """Returns an identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Returns a string literal in single quotes."""
    return "'" + text.replace("'", "''") + "'"


def parse(text: str, column: str = "") -> DataType:
    """Parses a type name as written by DuckDB.

    Raises:
        BuscoError: tables can't store the type exactly; the hint contains the cast to write.
    """
    parser = _Parser(text, column)
    kind = parser.type()
    if parser.rest():
        raise parser.refuse(f"unknown type {text}")
    return kind


def refused(columns: Iterable[tuple[str, str]]) -> list[tuple[str, BuscoError]]:
    """Returns the columns whose types can't be stored, as `column a` or `columns a, b`, with one error per type.

    Args:
        columns: the name of each column, and its type as accepted by `parse`.
    """
    names: dict[str, list[str]] = {}
    errors: dict[str, BuscoError] = {}
    for name, kind in columns:
        try:
            parse(kind)
        except BuscoError as error:
            errors.setdefault(str(error), error)
            names.setdefault(str(error), []).append(name)
    return [(_columns(found), errors[text]) for text, found in names.items()]


def parse_all(columns: Iterable[tuple[str, str]]) -> list[tuple[str, DataType]]:
    """Returns the name and the parsed type of each column.

    Raises:
        BuscoError: tables can't store some types exactly; the message lists the columns and the hint the casts.
    """
    given = list(columns)
    wrong = refused(given)
    if len(wrong) == 1:
        ((found, error),) = wrong
        raise BuscoError(f"{found}: {error.message}", error.hint)
    if wrong:
        lines = [f"{found}: {error.message}" for found, error in wrong]
        advice = [f"{found}: {error.hint}" for found, error in wrong if error.hint]
        raise BuscoError("\n    ".join(["tables can't store these types:", *lines]), "; ".join(advice))
    return [(name, parse(kind, name)) for name, kind in given]


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"


def shown(text: str) -> str:
    """Returns a type's name, or text that contains one, without the values of ENUMs, which may be personal data."""
    return _ENUM.sub("ENUM(…)", text)


def is_nested(kind: DataType) -> bool:
    return not isinstance(kind, Primitive)


def iceberg_name(kind: Primitive) -> str:
    """Returns the Iceberg primitive that holds a type's values, such as `long` for BIGINT."""
    return f"decimal({kind.precision}, {kind.scale})" if kind.name == "DECIMAL" else _PRIMITIVES[kind.name]


def glue(kind: DataType) -> str:
    """Returns the name of a type in Glue and Athena, based on its Iceberg form: `array<struct<a:int>>`."""
    if isinstance(kind, ListOf):
        return f"array<{glue(kind.element)}>"
    if isinstance(kind, MapOf):
        return f"map<{glue(kind.key)},{glue(kind.value)}>"
    if isinstance(kind, Struct):
        return "struct<" + ",".join(f"{name}:{glue(field)}" for name, field in kind.fields) + ">"
    if kind.name == "DECIMAL":
        return f"decimal({kind.precision},{kind.scale})"
    named = {"long": "bigint", "timestamptz": "timestamp"}
    return named.get(_PRIMITIVES[kind.name], _PRIMITIVES[kind.name])


def field_id(path: tuple[str, ...], kind: DataType) -> int:
    """Returns a field's id, which is stable across versions: a hash, below 2^31 − 1000, of its path and type family.

    int and long form one family, and float and double another, because Iceberg allows promotion within them. Ids from
    2147483447 are reserved (Iceberg specification, "Reserved Field IDs").
    """
    families = {"long": "int", "double": "float"}
    if isinstance(kind, Primitive):
        family = f"decimal.{kind.scale}" if kind.name == "DECIMAL" else _PRIMITIVES[kind.name]
        family = families.get(family, family)
    else:
        family = type(kind).__name__
    digest = hashlib.sha256("\x00".join((*path, family)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 2_147_482_648 + 1


def fields(path: tuple[str, ...], kind: DataType) -> Iterator[tuple[tuple[str, ...], DataType]]:
    """Yields the path and type of a field and of all fields in it: `element` in lists, `key` and `value` in maps."""
    yield path, kind
    if isinstance(kind, ListOf):
        yield from fields((*path, "element"), kind.element)
    elif isinstance(kind, MapOf):
        yield from fields((*path, "key"), kind.key)
        yield from fields((*path, "value"), kind.value)
    elif isinstance(kind, Struct):
        for name, inner in kind.fields:
            yield from fields((*path, name), inner)


def field_ids_sql(columns: list[tuple[str, DataType]]) -> str:
    """Returns the value of COPY's FIELD_IDS option: the ids of all fields, including nested ones.

    Raises:
        BuscoError: see `check_fields`.
    """
    check_fields(columns)
    return "{" + ", ".join(f"{quoted(name)}: {_ids((name,), kind)}" for name, kind in columns) + "}"


def check_fields(columns: Sequence[tuple[str, DataType]]) -> None:
    """Checks that readers can tell a table's fields apart, including nested ones.

    Raises:
        BuscoError: the names of two columns differ only in case, or two fields have the same id or dotted path.
    """
    taken: dict[int | str, tuple[str, ...]] = {}
    lowered: dict[str, str] = {}
    for name, kind in columns:
        if other := lowered.get(name.lower()):
            raise BuscoError(f"columns {other} and {name} differ only in case", "rename one of them")
        lowered[name.lower()] = name
        for path, inner in fields((name,), kind):
            number, dotted = field_id(path, inner), ".".join(path)
            if number in taken:
                raise BuscoError(
                    f"columns {'.'.join(taken[number])} and {dotted} have the same field id {number}",
                    "rename one of them",
                )
            if dotted in taken:
                raise BuscoError(f"two columns or nested fields have the same path {dotted}", "rename one of them")
            taken[number] = taken[dotted] = path


def _ids(path: tuple[str, ...], kind: DataType) -> str:
    number = field_id(path, kind)
    if isinstance(kind, Primitive):
        return str(number)
    if isinstance(kind, ListOf):
        inner = [("element", kind.element)]
    elif isinstance(kind, MapOf):
        inner = [("key", kind.key), ("value", kind.value)]
    else:
        inner = list(kind.fields)
    nested = ", ".join(f"{quoted(name)}: {_ids((*path, name), field)}" for name, field in inner)
    return f"{{__duckdb_field_id: {number}, {nested}}}"


class _Parser:
    """Parses type names such as `DECIMAL(12,2)`, `STRUCT(a INTEGER, "b c" VARCHAR[])[]`, `MAP(VARCHAR, DOUBLE)`."""

    _TOKEN = re.compile(r'\s*(?:("(?:[^"]|"")*")|(\'(?:[^\']|\'\')*\')|([A-Za-z_][A-Za-z0-9_]*)|(\d+)|(.))')

    def __init__(self, text: str, column: str) -> None:
        self.text, self.column, self.at = text, column, 0

    def refuse(self, what: str, hint: str = "") -> BuscoError:
        where = f"column {self.column}: " if self.column else ""
        return BuscoError(f"{where}{shown(what)}", hint)

    def rest(self) -> str:
        return self.text[self.at :].strip()

    def peek(self) -> str:
        found = self._TOKEN.match(self.text, self.at)
        return found.group(0).strip() if found else ""

    def take(self, expected: str = "") -> str:
        found = self._TOKEN.match(self.text, self.at)
        token = found.group(0).strip() if found else ""
        if not found or (expected and token != expected):
            raise self.refuse(f"unknown type {self.text}")
        self.at = found.end()
        return token

    def type(self) -> DataType:
        kind = self.named()
        while self.peek() == "[":
            self.take("[")
            if self.peek() != "]":
                raise self.refuse(f"type {self.text}: fixed-size arrays can't be stored", "write cast(… as T[])")
            self.take("]")
            kind = ListOf(kind)
        return kind

    def named(self) -> DataType:
        name = self.take().upper()
        if name == "STRUCT":
            return Struct(tuple(self.struct_fields()))
        if name == "MAP":
            self.take("(")
            key = self.type()
            self.take(",")
            value = self.type()
            self.take(")")
            return MapOf(key, value)
        if name == "ENUM":
            self.skip_arguments()
            return Primitive("VARCHAR")
        if name in ("TIMESTAMP", "TIME") and self.peek().upper() == "WITH":
            for word in ("WITH", "TIME", "ZONE"):
                if self.take().upper() != word:
                    raise self.refuse(f"unknown type {self.text}")
            name += " WITH TIME ZONE"
        name = _ALIASES.get(name, name)
        if name == "DECIMAL":
            return self.decimal()
        if name == "VARCHAR" and self.peek() == "(":
            self.skip_arguments()
        if name in _REFUSED:
            raise self.refuse(f"tables can't store the type {name} exactly", f"write {_REFUSED[name]}")
        if name not in _PRIMITIVES:
            raise self.refuse(f"unknown type {self.text}", "use a DuckDB type that tables can store")
        return Primitive(name)

    def decimal(self) -> Primitive:
        precision, scale = 18, 3  # DuckDB's own default
        if self.peek() == "(":
            self.take("(")
            precision, scale = self.number(), 0
            if self.peek() == ",":
                self.take(",")
                scale = self.number()
            self.take(")")
        if not (1 <= precision <= 38 and scale <= precision):
            raise self.refuse(f"invalid type {self.text}", "use DECIMAL(p,s) with p from 1 to 38 and s from 0 to p")
        return Primitive("DECIMAL", precision, scale)

    def number(self) -> int:
        token = self.take()
        if not token.isdecimal():
            raise self.refuse(f"unknown type {self.text}")
        return int(token)

    def struct_fields(self) -> Iterator[tuple[str, DataType]]:
        self.take("(")
        while True:
            token = self.take()
            name = token[1:-1].replace('""', '"') if token.startswith('"') else token
            yield name, self.type()
            if self.peek() != ",":
                break
            self.take(",")
        self.take(")")

    def skip_arguments(self) -> None:
        self.take("(")
        depth = 1
        while depth:
            token = self.take()
            depth += {"(": 1, ")": -1}.get(token, 0)
