"""The rules for types: parsing, field ids, names in Glue and Iceberg, and quoting, checked against DuckDB itself."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pyiceberg.types import ListType, MapType, StructType

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.records import Column
from busco.lake.types import DataType, ListOf, MapOf, Primitive, Struct, parse
from busco.lake.versions import iceberg_schema
from busco.project import Project
from busco.warehouse import model_sql

ROOT = Path(__file__).parents[2]

# DuckDB's canonical name → the names in Iceberg and Glue (docs/iceberg.md, "Types"; Amazon Athena User Guide, "Iceberg
# data types")
KEPT = {
    "BOOLEAN": ("boolean", "boolean"),
    "TINYINT": ("int", "int"),
    "SMALLINT": ("int", "int"),
    "INTEGER": ("int", "int"),
    "UTINYINT": ("int", "int"),
    "USMALLINT": ("int", "int"),
    "BIGINT": ("long", "bigint"),
    "FLOAT": ("float", "float"),
    "DOUBLE": ("double", "double"),
    "DECIMAL(18,3)": ("decimal(18, 3)", "decimal(18,3)"),
    "DECIMAL(38,10)": ("decimal(38, 10)", "decimal(38,10)"),
    "DECIMAL(1,0)": ("decimal(1, 0)", "decimal(1,0)"),
    "VARCHAR": ("string", "string"),
    "JSON": ("string", "string"),
    "BLOB": ("binary", "binary"),
    "DATE": ("date", "date"),
    "TIMESTAMP": ("timestamp", "timestamp"),
    "TIMESTAMP_S": ("timestamp", "timestamp"),
    "TIMESTAMP_MS": ("timestamp", "timestamp"),
    "TIMESTAMP WITH TIME ZONE": ("timestamptz", "timestamp"),
}

# What a user can write, and the canonical name in DuckDB.
SPELLINGS = {
    "bool": "BOOLEAN", "logical": "BOOLEAN", "int1": "TINYINT", "int2": "SMALLINT", "short": "SMALLINT",
    "int": "INTEGER", "int4": "INTEGER", "signed": "INTEGER", "int8": "BIGINT", "long": "BIGINT", "int64": "BIGINT",
    "real": "FLOAT", "float4": "FLOAT", "float8": "DOUBLE", "string": "VARCHAR", "text": "VARCHAR",
    "char": "VARCHAR", "bpchar": "VARCHAR", "varchar(10)": "VARCHAR", "bytea": "BLOB", "binary": "BLOB",
    "varbinary": "BLOB", "datetime": "TIMESTAMP", "timestamp_us": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE", "timestamp with time zone": "TIMESTAMP WITH TIME ZONE",
    "decimal": "DECIMAL(18,3)", "numeric": "DECIMAL(18,3)", "numeric(12, 2)": "DECIMAL(12,2)",
    "decimal(10)": "DECIMAL(10,0)", "Decimal ( 5 , 1 )": "DECIMAL(5,1)", "date[]": "DATE[]",
    "int [] []": "INTEGER[][]", "map(text, int)": "MAP(VARCHAR, INTEGER)",
    'struct(a int, "B c" text)[]': 'STRUCT("a" INTEGER, "B c" VARCHAR)[]',
}  # fmt: skip

REFUSED = {
    "HUGEINT": "cast(… as BIGINT), or as DECIMAL(38,0)",
    "UHUGEINT": "cast(… as DECIMAL(38,0))",
    "UBIGINT": "cast(… as DECIMAL(20,0)), or as BIGINT",
    "UINTEGER": "cast(… as BIGINT)",
    "BIGNUM": "cast(… as DECIMAL(38,0))",
    "TIMESTAMP_NS": "cast(… as TIMESTAMP)",
    "TIME": "cast(… as VARCHAR)",
    "TIME_NS": "cast(… as VARCHAR)",
    "TIME WITH TIME ZONE": "cast(… as VARCHAR)",
    "INTERVAL": "epoch(…) in seconds, or cast(… as VARCHAR)",
    "UUID": "cast(… as VARCHAR)",
    "BIT": "cast(… as VARCHAR)",
    "UNION(a INTEGER, b VARCHAR)": "a STRUCT",
    "VARIANT": "cast(… as JSON)",
    "GEOMETRY": "st_asbinary(…)",
    "INTEGER[3]": "cast(… as T[])",
    "VARCHAR[][2]": "cast(… as T[])",
    '"NULL"': "cast(null as …)",
}

# DuckDB accepts any identifier that is not empty and does not contain NUL.
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
NAMES = TEXT.filter(bool) | st.sampled_from(["select", "a b", "1a", 'q"r', "Upper", "a.b", "é", "map", "with", "["])
PRIMITIVES: st.SearchStrategy[DataType] = st.sampled_from(
    [Primitive(name) for name in KEPT if not name.startswith("DECIMAL")]
) | st.integers(1, 38).flatmap(lambda p: st.builds(Primitive, st.just("DECIMAL"), st.just(p), st.integers(0, p)))


def structs(inner: st.SearchStrategy[DataType]) -> st.SearchStrategy[DataType]:
    # DuckDB rejects names that differ only in case.
    named = st.lists(st.tuples(NAMES, inner), min_size=1, max_size=4, unique_by=lambda field: field[0].casefold())
    return named.map(lambda fields: Struct(tuple(fields)))


TYPES = st.recursive(
    PRIMITIVES,
    lambda inner: inner.map(ListOf) | structs(inner) | st.builds(MapOf, inner, inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as connection:
        yield connection


def name_in(db: duckdb.DuckDBPyConnection, kind: str) -> str:
    return str(db.execute(f"select typeof(cast(null as {kind}))").fetchall()[0][0])


def refusal(text: str, column: str = "") -> BuscoError:
    with pytest.raises(BuscoError) as refused:
        parse(text, column)
    return refused.value


# -- parsing ----------------------------------------------------------------------------------------------------------


@given(kind=TYPES)
def test_a_type_can_be_parsed_from_its_own_text(kind: DataType) -> None:
    assert parse(str(kind)) == kind


@given(kind=TYPES)
def test_a_type_can_be_parsed_from_its_name_in_duckdb(db: duckdb.DuckDBPyConnection, kind: DataType) -> None:
    assert parse(name_in(db, str(kind))) == kind


@pytest.mark.parametrize(("spelling", "name"), SPELLINGS.items())
def test_each_spelling_means_the_same_type_as_in_duckdb(
    db: duckdb.DuckDBPyConnection, spelling: str, name: str
) -> None:
    assert str(parse(spelling)) == name
    assert parse(name_in(db, spelling)) == parse(spelling)


def test_no_spelling_means_a_different_type_than_in_duckdb(db: duckdb.DuckDBPyConnection) -> None:
    understood = []
    for (spelling,) in db.execute("select distinct type_name from duckdb_types()").fetchall():
        with contextlib.suppress(BuscoError):
            understood.append((spelling, parse(spelling)))
    assert len(understood) > 40
    assert understood == [(spelling, parse(name_in(db, spelling))) for spelling, _ in understood]


@given(labels=st.lists(TEXT, min_size=1, max_size=4, unique=True))
def test_an_enum_becomes_text_whatever_its_labels_look_like(db: duckdb.DuckDBPyConnection, labels: list[str]) -> None:
    name = name_in(db, f"enum({', '.join(types.literal(label) for label in labels)})[]")
    assert name.startswith("ENUM(")
    assert parse(name) == ListOf(Primitive("VARCHAR"))


def test_every_duckdb_type_is_either_kept_or_refused_with_the_cast_to_write(db: duckdb.DuckDBPyConnection) -> None:
    """This fails for types that a new DuckDB version adds, because they are neither kept nor refused yet."""
    named = {str(row[0]) for row in db.execute("select distinct logical_type from duckdb_types()").fetchall()}
    # All but the last of these need arguments; a TYPE value is the name of a type.
    named -= {"ARRAY", "ENUM", "LIST", "MAP", "STRUCT", "TYPE"}
    known = {name.partition("(")[0] for name in (*KEPT, *REFUSED, "NULL")}
    assert named - known == set()


@pytest.mark.parametrize(
    ("page", "kept", "refused"),
    [
        ("iceberg.md", "read the same values of: ([^.]*)", "Not supported: ([^.]*)"),
        ("modelling.md", "have in common: ([^.]*)", r"([^.]*) are refused in\s+the same way"),
    ],
)
def test_the_pages_about_types_list_the_integers_that_tables_can_store_and_those_that_are_refused(
    page: str, kept: str, refused: str
) -> None:
    integers = {name for name in KEPT if name.endswith(("INT", "INTEGER"))}
    text = re.sub(r"\([^)]*\)", "", (ROOT / "docs" / page).read_text())
    stored, others = (set(re.findall("[A-Z_]+", re.findall(words, text)[0])) for words in (kept, refused))
    assert integers <= stored
    assert not stored & REFUSED.keys()
    assert {"UINTEGER", "UBIGINT"} <= others
    assert not others & KEPT.keys()


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "advice"), REFUSED.items())
def test_a_type_that_tables_cannot_store_is_refused_with_the_cast_to_write(
    db: duckdb.DuckDBPyConnection, kind: str, advice: str
) -> None:
    refused = refusal(name_in(db, kind), "amount")
    assert "column amount: " in refused.message
    assert advice in refused.hint


@pytest.mark.parametrize("around", ["{}[]", 'STRUCT("a" INTEGER, "b" {})', "MAP(VARCHAR, {})", "MAP({}, VARCHAR)[]"])
def test_a_refused_type_is_also_refused_within_nested_types(around: str) -> None:
    assert "can't store the type HUGEINT" in refusal(around.format("HUGEINT")).message


def test_all_columns_with_a_refused_type_are_in_one_message() -> None:
    given = [("a", "HUGEINT"), ("b", "INTEGER"), ("c", "HUGEINT"), ("d e", "HUGEINT"), ("f", "UUID")]
    with pytest.raises(BuscoError) as wrong:
        model_sql.columns(given[:4], ())
    assert wrong.value.message == "columns a, c, d e: tables can't store the type HUGEINT exactly"
    assert wrong.value.hint.startswith("write cast(… as BIGINT)")
    with pytest.raises(BuscoError) as wrong:
        model_sql.columns(given, ())
    assert "columns a, c, d e: tables can't store the type HUGEINT" in wrong.value.message
    assert "column f: tables can't store the type UUID" in wrong.value.message
    assert "columns a, c, d e: write cast(… as BIGINT)" in wrong.value.hint
    assert "column f: write cast(… as VARCHAR)" in wrong.value.hint


def test_all_columns_of_a_source_with_a_refused_type_are_in_one_message() -> None:
    columns = {name: {"name": name, "data_type": kind} for name, kind in (("a", "time"), ("b", "int"), ("c", "time"))}
    source = {"source_name": "bronze", "name": "t", "columns": columns, "meta": {"delivery": "full"}}
    project = Project({"metadata": {"project_name": "p"}, "nodes": {}, "sources": {"source.p.bronze.t": source}})
    with pytest.raises(BuscoError, match=r"source bronze\.t: columns a, c: tables can't store the type TIME"):
        assert project.contracts


WORDS = [
    "DECIMAL",
    "STRUCT",
    "MAP",
    "ENUM",
    "TIMESTAMP",
    "WITH",
    "TIME",
    "ZONE",
    "INTEGER",
    *"()[],\"'7x",
    '"a"',
    "'a'",
]


@given(text=st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(max_size=8))
def test_any_text_is_either_a_type_or_refused_with_a_readable_message(text: str) -> None:
    try:
        kind = parse(text)
    except BuscoError:
        return
    assert parse(str(kind)) == kind


@pytest.mark.parametrize("text", ["DECIMAL(x)", "DECIMAL(5,y)", "DECIMAL(39,2)", "DECIMAL(3,9)", "DECIMAL(0)"])
def test_an_invalid_decimal_is_refused(db: duckdb.DuckDBPyConnection, text: str) -> None:
    with pytest.raises(duckdb.Error):
        name_in(db, text)
    assert text in refusal(text, "amount").message


# -- field ids --------------------------------------------------------------------------------------------------------


def ids(kind: DataType, name: str = "c") -> dict[tuple[str, ...], int]:
    return {path: types.field_id(path, inner) for path, inner in types.fields((name,), kind)}


def test_field_ids_are_the_same_as_in_earlier_versions_of_a_table() -> None:
    """These ids are in existing files and metadata, which would become unreadable with a different hash."""
    kind = parse("STRUCT(a INTEGER, b DECIMAL(12,2)[], m MAP(VARCHAR, DOUBLE))")
    assert ids(kind, "st") == {
        ("st",): 651492937,
        ("st", "a"): 337982009,
        ("st", "b"): 1492519582,
        ("st", "b", "element"): 292938314,
        ("st", "m"): 1756548276,
        ("st", "m", "key"): 59625120,
        ("st", "m", "value"): 617940104,
    }
    assert types.field_id(("order_id",), parse("VARCHAR")) == 235571018


@given(columns=st.lists(st.tuples(NAMES, PRIMITIVES), min_size=2, max_size=5, unique_by=lambda c: c[0].lower()))
def test_the_id_of_a_column_does_not_depend_on_its_position_or_its_neighbours(
    columns: list[tuple[str, DataType]],
) -> None:
    given_columns = [Column(name=name, type=str(kind)) for name, kind in columns]
    alone = [iceberg_schema([column]).fields[0].field_id for column in given_columns]
    assert [field.field_id for field in reversed(iceberg_schema(given_columns[::-1]).fields)] == alone


@given(kind=TYPES, path=st.lists(NAMES, min_size=1, max_size=3).map(tuple))
def test_field_ids_are_below_the_range_that_iceberg_reserves(kind: DataType, path: tuple[str, ...]) -> None:
    assert 0 < types.field_id(path, kind) < 2_147_483_447


@given(paths=st.lists(st.lists(NAMES, min_size=1, max_size=3).map(tuple), min_size=2, max_size=2, unique=True))
def test_different_paths_have_different_ids(paths: list[tuple[str, ...]]) -> None:
    first, second = (types.field_id(path, Primitive("INTEGER")) for path in paths)
    assert first != second


FAMILIES = [
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT"},
    {"FLOAT", "DOUBLE"},
    {"DECIMAL(9,2)", "DECIMAL(18,2)", "DECIMAL(38,2)"},
    {"DECIMAL(18,3)"},
    {"VARCHAR", "JSON"},
    {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS"},
    {"TIMESTAMP WITH TIME ZONE"},
    {"BOOLEAN"},
    {"BLOB"},
    {"DATE"},
    {"INTEGER[]", "VARCHAR[]"},
    {"STRUCT(a INTEGER)", "STRUCT(b VARCHAR)"},
    {"MAP(VARCHAR, INTEGER)"},
]


def test_types_share_an_id_exactly_if_iceberg_can_promote_one_to_the_other() -> None:
    found = [{types.field_id(("c",), parse(kind)) for kind in family} for family in FAMILIES]
    assert [len(numbers) for numbers in found] == [1] * len(FAMILIES)
    assert len(set.union(*found)) == len(FAMILIES)


def test_two_columns_with_one_field_id_are_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_numbers(path: tuple[str, ...], kind: DataType) -> int:
        return 1 if path in (("orders", "element", "sku"), ("amount",)) else hash(path)

    monkeypatch.setattr(types, "field_id", two_numbers)
    columns = [("orders", parse("STRUCT(sku VARCHAR)[]")), ("n", parse("INTEGER")), ("amount", parse("DOUBLE"))]
    with pytest.raises(BuscoError) as refused:
        types.field_ids_sql(columns)
    assert "columns orders.element.sku and amount have the same field id 1" in refused.value.message


@pytest.mark.parametrize(("first", "second"), [("Day", "day"), ("day", "Day")])
def test_columns_that_differ_only_by_case_are_an_error_that_names_both(first: str, second: str) -> None:
    with pytest.raises(BuscoError, match=f"columns {first} and {second} differ only in case"):
        types.field_ids_sql([(first, parse("DATE")), ("n", parse("INTEGER")), (second, parse("DATE"))])


@given(kind=TYPES, name=NAMES)
def test_the_copy_option_has_the_id_of_every_field_and_is_valid_in_duckdb(
    db: duckdb.DuckDBPyConnection, kind: DataType, name: str
) -> None:
    option = types.field_ids_sql([(name, kind)])
    assert sorted(map(int, re.findall(r"\d+", _without_names(option)))) == sorted(ids(kind, name).values())
    assert db.execute(f"select {option}").fetchall()


def _without_names(option: str) -> str:
    return re.sub(r'"(?:[^"]|"")*"', "", option)


# -- Glue and Iceberg -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), KEPT.items())
def test_each_type_has_the_expected_name_in_iceberg_and_glue(name: str, expected: tuple[str, str]) -> None:
    kind = parse(name)
    assert isinstance(kind, Primitive)
    assert (types.iceberg_name(kind), types.glue(kind)) == expected


@pytest.mark.parametrize(
    ("kind", "glue"),
    [
        ("VARCHAR[]", "array<string>"),
        ("BIGINT[][]", "array<array<bigint>>"),
        ("STRUCT(sku VARCHAR, price DECIMAL(18,2))[]", "array<struct<sku:string,price:decimal(18,2)>>"),
        ("MAP(VARCHAR, TIMESTAMPTZ)", "map<string,timestamp>"),
        ("STRUCT(a STRUCT(b TINYINT), m MAP(DATE, BLOB[]))", "struct<a:struct<b:int>,m:map<date,array<binary>>>"),
    ],
)
def test_nested_types_have_the_expected_name_in_glue(kind: str, glue: str) -> None:
    assert types.glue(parse(kind)) == glue


def shape(kind: object) -> object:
    """Returns a type of ours or of pyiceberg as nested tuples with the id of each field."""
    if isinstance(kind, ListType):
        return ("list", kind.element_id, shape(kind.element_type))
    if isinstance(kind, MapType):
        return ("map", kind.key_id, shape(kind.key_type), kind.value_id, shape(kind.value_type))
    if isinstance(kind, StructType):
        return ("struct", *((field.field_id, field.name, shape(field.field_type)) for field in kind.fields))
    return str(kind)


def shape_of(path: tuple[str, ...], kind: DataType) -> object:
    def inner(name: str, field: DataType) -> tuple[int, object]:
        return types.field_id((*path, name), field), shape_of((*path, name), field)

    if isinstance(kind, ListOf):
        return ("list", *inner("element", kind.element))
    if isinstance(kind, MapOf):
        return ("map", *inner("key", kind.key), *inner("value", kind.value))
    if isinstance(kind, Struct):
        numbered = ((name, *inner(name, field)) for name, field in kind.fields)
        return ("struct", *((number, name, inner_shape) for name, number, inner_shape in numbered))
    return types.iceberg_name(kind)


# pyiceberg looks up fields by dotted names.
@given(kind=TYPES.filter(lambda kind: all("." not in name for path, _ in types.fields((), kind) for name in path)))
def test_the_iceberg_schema_has_the_types_and_ids_of_the_columns(kind: DataType) -> None:
    (field,) = iceberg_schema([Column(name="c", type=str(kind))]).fields
    assert field.field_id == types.field_id(("c",), kind)
    assert shape(field.field_type) == shape_of(("c",), kind)


def test_a_column_is_required_in_iceberg_if_it_is_in_the_contract() -> None:
    columns = [Column(name="a", type="INTEGER", required=True), Column(name="b", type="INTEGER")]
    assert [field.required for field in iceberg_schema(columns).fields] == [True, False]


def test_a_schema_id_changes_exactly_when_a_column_changes() -> None:
    a, b = Column(name="a", type="INTEGER"), Column(name="b", type="INTEGER")
    variants = [
        [a, b], [b, a], [a], [a, b.model_copy(update={"name": "c"})], [a, b.model_copy(update={"type": "BIGINT"})],
        [a, b.model_copy(update={"required": True})],
    ]  # fmt: skip
    numbers = [iceberg_schema(columns).schema_id for columns in variants]
    assert all(first != second for first, second in itertools.combinations(numbers, 2))
    assert iceberg_schema([a, b]).schema_id == numbers[0]


def test_columns_that_iceberg_cannot_tell_apart_are_an_error_that_names_both() -> None:
    columns = [Column(name="a.b", type="INTEGER"), Column(name="a", type="STRUCT(b INTEGER)")]
    with pytest.raises(BuscoError, match=r"a\.b"):
        iceberg_schema(columns)


# -- quoting ----------------------------------------------------------------------------------------------------------


@given(text=TEXT)
def test_any_text_round_trips_through_its_literal(db: duckdb.DuckDBPyConnection, text: str) -> None:
    assert db.execute(f"select {types.literal(text)}").fetchall() == [(text,)]


@given(name=NAMES)
def test_any_name_round_trips_through_quoting(db: duckdb.DuckDBPyConnection, name: str) -> None:
    assume(name.strip())
    found = db.execute(f"select 1 as {types.quoted(name)}")
    assert [column[0] for column in found.description or ()] == [name]


@pytest.mark.parametrize("text", ["ENUM('Maria ''M', 'Ana (x)')", "STRUCT(a ENUM('Maria', 'b'), c NOPE)"])
def test_the_refusal_of_an_enum_does_not_show_its_values(text: str) -> None:
    with pytest.raises(BuscoError, match=r"ENUM\(…\)") as refusal:
        parse(f"{text}[2]", "c")
    assert "Maria" not in str(refusal.value)
    with pytest.raises(BuscoError, match=r"INTEGER in the contract, .*ENUM\(…\).* in the SQL") as refusal:
        model_sql.columns([("c", text)], [Column(name="c", type="INTEGER")])
    assert "Maria" not in str(refusal.value)
