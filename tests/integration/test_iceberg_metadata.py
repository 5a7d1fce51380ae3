"""The contract of lake/versions.py: three independent Iceberg readers return the same rows from the product's tables.

The readers are pyiceberg's own StaticTable, DuckDB's iceberg_scan and ClickHouse (chdb). The platform's own two ways to
read, select_sql and Athena, are tested as well. All must return what a plain DuckDB returns for the model's SQL.
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import permutations
from typing import Any

import chdb
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg import expressions
from pyiceberg.avro.file import AvroFile
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile as ManifestFile
from pyiceberg.manifest import ManifestEntry
from pyiceberg.table import StaticTable
from pyiceberg.types import ListType, MapType, StructType

from busco.errors import BuscoError
from busco.lake import types, versions
from busco.lake.engine import connect
from busco.lake.metadata_json import NONE, location_of
from busco.lake.objects import ObjectStore
from busco.lake.records import Version
from busco.lake.relations import select_sql
from busco.warehouse import model_sql
from tests.extremes import MODELS, ODD, Dialect, Query, queries_of
from tests.platforms import ENVIRONMENT, ROOT, Platform, platform

Row = tuple[Any, ...]


@dataclass
class Lake:
    """A platform on which dbt has built and published MODELS, and its readers."""

    platform: Platform
    store: ObjectStore
    db: duckdb.DuckDBPyConnection
    tables: dict[str, Version]

    @cached_property
    def rows(self) -> dict[str, Any]:
        """The results of each model's SQL in a DuckDB without the lake, as Arrow tables."""
        found = {}
        with duckdb.connect(":memory:") as plain:
            plain.execute("set timezone = 'UTC'")
            for name, (_, sql) in MODELS.items():
                found[name] = plain.execute(sql).to_arrow_table()
        return found

    def static(self, version: Version) -> StaticTable:
        properties = {
            "s3.endpoint": str(self.platform.settings.endpoint_url),
            "s3.region": self.platform.settings.region,
            "s3.access-key-id": os.environ["AWS_ACCESS_KEY_ID"],
            "s3.secret-access-key": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
        return StaticTable.from_metadata(self.store.url(version.metadata), properties)

    @cached_property
    def statics(self) -> dict[str, StaticTable]:
        return {name: self.static(version) for name, version in self.tables.items()}

    def entries(self, name: str) -> list[ManifestEntry]:
        static = self.statics[name]
        snapshot = static.current_snapshot()
        assert snapshot is not None
        manifests = snapshot.manifests(static.io)
        return [entry for manifest in manifests for entry in manifest.fetch_manifest_entry(static.io)]

    def by_pyiceberg(self, version: Version) -> list[Row]:
        return canonical(self.static(version).scan().to_arrow())

    def by_duckdb(self, version: Version) -> list[Row]:
        return canonical(self.db.execute(f"from {self.iceberg_scan(version)}").to_arrow_table())

    def iceberg_scan(self, version: Version) -> str:
        return f"iceberg_scan({types.literal(self.store.url(version.metadata))})"

    def by_select_sql(self, version: Version) -> list[Row]:
        return canonical(self.db.execute(select_sql(version, self.store.bucket)).to_arrow_table())

    def by_clickhouse(self, version: Version) -> list[Row]:
        table = self.clickhouse(version, "select *")
        for index, column in enumerate(version.columns):
            if column.type == "BLOB":  # ClickHouse has one type for text and bytes
                table = table.set_column(index, column.name, table[column.name].cast(pa.binary()))
        return canonical(table)

    def clickhouse(self, version: Version, select: str, where: str = "1") -> Any:
        return self.chdb(f"{select} from {self.clickhouse_table(version)} where {where}")

    def clickhouse_table(self, version: Version) -> str:
        location = location_of(version.metadata)
        settings = self.platform.settings
        source = ", ".join(
            types.literal(text)
            for text in (
                f"{settings.endpoint_url}/{settings.lake_bucket}/{location}/",
                os.environ["AWS_ACCESS_KEY_ID"],
                os.environ["AWS_SECRET_ACCESS_KEY"],
            )
        )
        file = types.literal(version.metadata.removeprefix(f"{location}/"))
        return f"icebergS3({source}, settings iceberg_metadata_file_path = {file})"

    def chdb(self, sql: str) -> Any:
        answer = chdb.query(f"{sql} settings session_timezone = 'UTC'", "ArrowStream")
        return pa.ipc.open_stream(answer.bytes()).read_all()


def canonical(table: Any) -> list[Row]:
    """Returns the column names and then the sorted rows, with values that are equal only if their types are, too."""
    return [tuple(table.column_names), *sorted(tuple(map(_value, row.values())) for row in table.to_pylist())]


def _value(value: Any) -> str:
    if isinstance(value, datetime):  # ClickHouse adds the session's time zone to each timestamp
        value = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with platform(tmp_path_factory.mktemp("lake"), ROOT / "tests/projects/mini") as made:
        models = made.home / "dbt_project/models"
        for folder in ("silver", "gold"):
            shutil.rmtree(models / folder)
        for name, (partition_by, sql) in MODELS.items():
            made.model(f"gold/{name}", f"{{{{ config(partition_by={list(partition_by)}) }}}}\n{sql}")
        outcome = made.build()
        assert outcome.good, outcome.statuses
        with connect(made.settings, iceberg=True) as db:
            tables = {name: made.version(f"gold.{name}") for name in MODELS}
            yield Lake(made, made.store, db, tables)


def write(lake: Lake, name: str, sql: str, partition_by: tuple[str, ...] = ()) -> Version:
    """Writes a version in the same way as a model's, but without dbt."""
    store, version, table = lake.store, uuid.uuid4().hex, f"gold.{name}"
    described = [(str(row[0]), str(row[1])) for row in lake.db.execute(f"describe {sql}").fetchall()]
    columns, selected = model_sql.columns(described, ())
    partition_by = model_sql.partition_columns(partition_by, columns)
    copy = model_sql.copy_sql(selected, columns, partition_by, sql, store.url(ENVIRONMENT.data(table, version)))
    files = model_sql.written_files(lake.db.execute(copy).fetchall(), store.url(""))
    made = Version(
        table=table, version=version, columns=columns, partition_by=partition_by,
        metadata=ENVIRONMENT.metadata(table, version), rows=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files), files=tuple(files), personal=(),
    )  # fmt: skip
    versions.write_metadata(store, ENVIRONMENT, made, [versions.ManifestFiles(version, lambda: files)], NONE, {})
    return made


# -- the same rows ----------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Lake, Version], list[Row]]] = {
    "pyiceberg": Lake.by_pyiceberg,
    "duckdb": Lake.by_duckdb,
    "select_sql": Lake.by_select_sql,
    "clickhouse": Lake.by_clickhouse,
}


def as_read(reader: str, column: str, value: Any, kind: types.DataType) -> Any:
    """Converts a value to what a reader returns for it: two readers lose some of the file's NULLs."""
    if reader == "clickhouse":
        return without_null_groups(value, kind)
    # pyiceberg rebuilds lists of structs from their offsets only (ArrowProjectionVisitor.list)
    return value or [] if (reader, column) == ("pyiceberg", "structs") else value


def without_null_groups(value: Any, kind: types.DataType) -> Any:
    """Converts a value to what ClickHouse returns for it, which has no NULL lists, maps or structs."""
    if isinstance(kind, types.ListOf):
        return [without_null_groups(inner, kind.element) for inner in value or []]
    if isinstance(kind, types.MapOf):
        return [(key, without_null_groups(inner, kind.value)) for key, inner in value or []]
    if isinstance(kind, types.Struct):
        return {name: without_null_groups((value or {}).get(name), inner) for name, inner in kind.fields}
    return value


@pytest.mark.parametrize("table", MODELS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_returns_exactly_the_rows_of_the_model(lake: Lake, table: str, reader: str) -> None:
    version, rows = lake.tables[table], lake.rows[table]
    kinds = {column.name: types.parse(column.type) for column in version.columns}
    expected = [
        tuple(_value(as_read(reader, name, value, kinds[name])) for name, value in row.items())
        for row in rows.to_pylist()
    ]
    assert READERS[reader](lake, version) == [tuple(rows.column_names), *sorted(expected)]


@pytest.mark.parametrize("table", MODELS)
def test_athena_returns_exactly_the_rows_of_the_model(lake: Lake, table: str) -> None:
    names = lake.rows[table].column_names
    # as text, because Athena's API returns text; cast in SQL, because Athena formats some values differently
    texts = ", ".join(f"cast({types.quoted(name)} as varchar) as {types.quoted(name)}" for name in names)
    with duckdb.connect(":memory:") as plain:
        plain.execute("set timezone = 'UTC'")
        expected = plain.execute(f"select {texts} from ({MODELS[table][1]})").fetchall()
    found = lake.platform.query(f"select {texts} from busco_gold.{table}")
    assert Counter(found) == Counter(expected)


def test_the_platforms_own_reader_returns_the_types_of_the_model(lake: Lake) -> None:
    for name, (_, sql) in MODELS.items():
        found = lake.db.execute(f"describe {select_sql(lake.tables[name], lake.store.bucket)}").fetchall()
        expected = lake.db.execute(f"describe {sql}").fetchall()
        assert [(row[0], types.parse(row[1])) for row in found] == [(row[0], types.parse(row[1])) for row in expected]


def test_each_partition_has_one_file_and_a_table_without_rows_has_none(lake: Lake) -> None:
    files = {name: len(version.files) for name, version in lake.tables.items()}
    assert files == {
        "wide": 1, "nested": 1, "no_rows": 0, "no_rows_by_day": 0, "by_text": len(ODD), "by_day": 9, "by_two": 6,
        "many": 60, "bounded": 12, "code_points": 5,
    }  # fmt: skip


# -- filters ----------------------------------------------------------------------------------------------------------

EXPRESSIONS: dict[str, Callable[[str, Any], Any]] = {
    "=": expressions.EqualTo,
    "<": expressions.LessThan,
    "<=": expressions.LessThanOrEqual,
    ">": expressions.GreaterThan,
    ">=": expressions.GreaterThanOrEqual,
    "<>": expressions.NotEqualTo,
}


def expression(query: Query) -> Any:
    if query.value is None:
        return (expressions.NotNull if query.operator == "<>" else expressions.IsNull)(query.column)
    return EXPRESSIONS[query.operator](query.column, query.value)


@pytest.fixture(scope="module")
def queries(lake: Lake) -> list[Query]:
    return queries_of(lake.rows["bounded"])


@pytest.fixture(scope="module")
def answers(lake: Lake, queries: list[Query]) -> list[list[int]]:
    """The ids that each query finds in the data files, which DuckDB reads without our metadata."""
    files = ", ".join(types.literal(lake.store.url(file.key)) for file in lake.tables["bounded"].files)
    plain = f"read_parquet([{files}], hive_partitioning = false, filename = true)"
    lake.db.execute(f"create or replace temp table bounded as from {plain}")
    return [
        [row[0] for row in lake.db.execute(f"select id from bounded where {q.sql()} order by id").fetchall()]
        for q in queries
    ]


def test_there_are_enough_queries_and_most_of_them_find_rows(queries: list[Query], answers: list[list[int]]) -> None:
    assert len(queries) > 150
    assert sum(map(bool, answers)) > 140


def test_pyiceberg_skips_no_file_with_a_matching_row(
    lake: Lake, queries: list[Query], answers: list[list[int]]
) -> None:
    home = dict(lake.db.execute("select id, filename from bounded").fetchall())
    lost = {}
    for query, found in zip(queries, answers, strict=True):
        planned = {task.file.file_path for task in lake.statics["bounded"].scan(expression(query)).plan_files()}
        if missing := {home[number] for number in found} - planned:
            lost[query] = missing
    assert lost == {}


@pytest.mark.parametrize("engine", ["clickhouse", "duckdb"])
def test_a_filter_loses_no_matching_row(
    lake: Lake, queries: list[Query], answers: list[list[int]], engine: str
) -> None:
    version, clickhouse = lake.tables["bounded"], engine == "clickhouse"
    dialect: Dialect = "clickhouse" if clickhouse else "duckdb"
    table = lake.clickhouse_table(version) if clickhouse else lake.iceberg_scan(version)
    each = [
        f"select {number} as query, id from {table} where {query.sql(dialect)}" for number, query in enumerate(queries)
    ]
    found: dict[Query, list[int]] = {query: [] for query in queries}
    for start in range(0, len(each), 40):
        sql = " union all ".join(each[start : start + 40])
        rows = (lake.chdb(sql) if clickhouse else lake.db.execute(sql).to_arrow_table()).to_pydict()
        for number, identity in zip(rows["query"], rows["id"], strict=True):
            found[queries[number]].append(identity)
    assert {query: sorted(ids) for query, ids in found.items()} == dict(zip(queries, answers, strict=True))


@pytest.mark.parametrize("text", ODD)
def test_a_filter_on_the_partition_opens_only_the_file_with_its_value(lake: Lake, text: str | None) -> None:
    (task,) = lake.statics["by_text"].scan(expression(Query("text", "=", text))).plan_files()
    (file,) = [f for f in lake.tables["by_text"].files if lake.store.url(f.key) == task.file.file_path]
    condition = Query("text", "=", text)
    found = lake.db.execute(f"select k, text from {lake.iceberg_scan(lake.tables['by_text'])} where {condition.sql()}")
    assert (found.fetchall(), file.rows) == ([(ODD.index(text), text)], 1)


def test_a_filter_on_a_bounded_column_opens_fewer_files(lake: Lake) -> None:
    table = lake.rows["bounded"]
    for name in set(table.column_names) - {"cut_word", "last_word", "flag", "wild"}:
        value = [v for v in table[name].to_pylist() if v is not None][3]
        planned = list(lake.statics["bounded"].scan(expression(Query(name, "=", value))).plan_files())
        assert len(planned) <= 2, name


# -- the content of the metadata --------------------------------------------------------------------------------------


def lake_body(lake: Lake, file: ManifestFile) -> bytes:
    stored = lake.store.get(file.file_path.removeprefix(lake.store.url("")))
    assert stored is not None
    return stored.body


@pytest.mark.parametrize("table", ["wide", "bounded", "by_text"])
def test_bounds_enclose_each_files_values_and_nulls_are_counted(lake: Lake, table: str) -> None:
    schema = lake.statics[table].schema()
    bounded = Counter()
    for entry in lake.entries(table):
        file = entry.data_file
        content = pq.read_table(io.BytesIO(lake_body(lake, file)))
        for field in schema.fields:
            values = content[field.name].to_pylist()
            number, kept = field.field_id, [v for v in values if v is not None]
            assert file.null_value_counts[number] == len(values) - len(kept), field.name
            assert file.value_counts[number] == len(values), field.name
            for bounds, inside in ((file.lower_bounds, lambda b, v: b <= v), (file.upper_bounds, lambda b, v: b >= v)):
                if number in bounds:
                    bound = from_bytes(field.field_type, bounds[number])
                    bounded[field.name] += 1
                    assert all(inside(bound, _number(v)) for v in kept), (field.name, bound)
                    assert len(bounds[number]) <= 256, field.name
    without = {field.name for field in schema.fields} - set(bounded)
    assert without == {"wide": {"a_float", "a_double", "a_blob"}, "bounded": {"last_word"}, "by_text": set()}[table]


def _number(value: Any) -> Any:
    """Converts a value to its form in Iceberg's bounds: days or microseconds."""
    if isinstance(value, datetime):
        since = value.replace(tzinfo=None) - datetime(1970, 1, 1)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return (value - date(1970, 1, 1)).days if isinstance(value, date) else value


def test_nested_columns_whose_nulls_copy_does_not_count_have_no_null_count(lake: Lake) -> None:
    (entry,) = lake.entries("nested")
    schema = lake.statics["nested"].schema()
    groups = {field.field_id for field in schema.fields if field.name != "k"}
    assert groups.isdisjoint(entry.data_file.null_value_counts)
    scan = lake.iceberg_scan(lake.tables["nested"])
    for name in ("a_list", "a_struct", "a_map"):
        assert lake.db.execute(f"select k from {scan} where {name} is null").fetchall() == [(3,)]


def test_nulls_within_nested_columns_are_counted(lake: Lake) -> None:
    (entry,) = lake.entries("nested")
    schema = lake.statics["nested"].schema()
    nulls = {name: entry.data_file.null_value_counts[schema.find_field(name).field_id] for name in ("k", "a_struct.a")}
    assert nulls == {"k": 0, "a_struct.a": 2}


@pytest.mark.parametrize("table", MODELS)
def test_a_metadata_file_has_one_snapshot_with_sequence_number_one(lake: Lake, table: str) -> None:
    metadata = lake.statics[table].metadata
    version = lake.tables[table]
    assert metadata.format_version == 2
    assert [snapshot.sequence_number for snapshot in metadata.snapshots] == [1]
    assert metadata.last_sequence_number == 1
    assert metadata.current_snapshot_id == metadata.snapshots[0].snapshot_id == metadata.refs["main"].snapshot_id
    summary = metadata.snapshots[0].summary
    assert summary is not None
    assert (summary["total-records"], summary["total-data-files"]) == (str(version.rows), str(len(version.files)))
    numbers = {(e.sequence_number, e.data_file.record_count > 0) for e in lake.entries(table)}
    assert numbers <= {(1, True)}


@pytest.mark.parametrize("table", MODELS)
def test_the_metadata_lists_exactly_the_versions_files(lake: Lake, table: str) -> None:
    listed = {
        (e.data_file.file_path, e.data_file.record_count, e.data_file.file_size_in_bytes) for e in lake.entries(table)
    }
    store = lake.store
    assert listed == {(store.url(file.key), file.rows, file.bytes) for file in lake.tables[table].files}
    sizes = {key: len(store.get(key).body) for key in (file.key for file in lake.tables[table].files)}
    assert sizes == {file.key: file.bytes for file in lake.tables[table].files}


def test_data_is_outside_the_location_and_excluded_from_garbage_collection(lake: Lake) -> None:
    for name, static in lake.statics.items():
        assert static.location() == lake.store.url(location_of(lake.tables[name].metadata))
        assert lake.tables[name].version in static.location()
        assert not any(e.data_file.file_path.startswith(f"{static.location()}/") for e in lake.entries(name))
        assert static.properties["gc.enabled"] == "false"


def test_a_metadata_files_name_starts_with_a_number_as_clickhouse_requires(lake: Lake) -> None:
    for name, version in lake.tables.items():
        assert version.metadata.rpartition("/")[2] == f"00001-{version.version}.metadata.json", name


def parquet_ids(field: Any) -> object:
    """Returns the field ids, including nested ones, of an Arrow field that was read from a footer."""
    number, kind = int(field.metadata[b"PARQUET:field_id"]), field.type
    if pa.types.is_list(kind):
        return (number, parquet_ids(kind.value_field))
    if pa.types.is_map(kind):
        return (number, parquet_ids(kind.key_field), parquet_ids(kind.item_field))
    if pa.types.is_struct(kind):
        return (number, {inner.name: parquet_ids(inner) for inner in kind})
    return number


def iceberg_ids(number: int, kind: Any) -> object:
    if isinstance(kind, ListType):
        return (number, iceberg_ids(kind.element_id, kind.element_type))
    if isinstance(kind, MapType):
        return (number, iceberg_ids(kind.key_id, kind.key_type), iceberg_ids(kind.value_id, kind.value_type))
    if isinstance(kind, StructType):
        return (number, {inner.name: iceberg_ids(inner.field_id, inner.field_type) for inner in kind.fields})
    return number


@pytest.mark.parametrize("table", [name for name in MODELS if not name.startswith("no_rows")])
def test_field_ids_in_the_footer_are_those_of_the_schema_including_nested_ones(lake: Lake, table: str) -> None:
    fields = lake.statics[table].schema().fields
    in_schema = {field.name: iceberg_ids(field.field_id, field.field_type) for field in fields}
    footer = pq.read_schema(io.BytesIO(lake_body(lake, lake.entries(table)[0].data_file)))
    assert {field.name: parquet_ids(field) for field in footer} == in_schema


def test_the_last_column_id_is_the_highest_including_nested_ones(lake: Lake) -> None:
    for name, static in lake.statics.items():
        numbers = [field.field_id for field in _all_fields(static)]
        assert static.metadata.last_column_id == max(numbers), name


def _all_fields(static: StaticTable) -> list[Any]:
    schema = static.schema()
    return [schema.find_field(number) for number in schema.field_ids]


def test_a_new_version_keeps_the_tables_uuid_and_schema_and_has_its_own_snapshot(lake: Lake) -> None:
    before = lake.statics["by_day"].metadata
    made = lake.platform
    made.model("gold/by_day", f"{{{{ config(partition_by=['day']) }}}}\n{MODELS['by_day'][1]} order by k")
    made.built("by_day")
    keys = [key for key in made.store.keys(ENVIRONMENT.location("gold.by_day", "")) if key.endswith(".metadata.json")]
    (key,) = set(keys) - {lake.tables["by_day"].metadata}
    after = lake.static(lake.tables["by_day"].model_copy(update={"metadata": key})).metadata
    assert (after.table_uuid, after.schemas) == (before.table_uuid, before.schemas)
    locations = [f"{one.location}/" for one in (before, after)]
    assert not any(one.startswith(other) for one, other in permutations(locations, 2)), "no location nests in another"
    assert after.current_snapshot_id != before.current_snapshot_id


def test_existing_metadata_is_not_overwritten(lake: Lake) -> None:
    store, version = lake.store, lake.tables["by_day"]
    before = store.get(version.metadata)
    versions.write_metadata(store, ENVIRONMENT, version, [], NONE, {"busco.version": version.version})
    assert store.get(version.metadata) == before


# -- unusual partition values and names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("boolean", ["true", "false", None]),
        ("tinyint", ["-128", "0", None]),
        ("bigint", ["-9223372036854775808", "9223372036854775807", None]),
        ("decimal(38, 10)", ["-1.5", "0", "9999999999999999999999999999.9999999999", None]),
        ("double", ["1.1", "-inf", "nan", None]),
        ("date", ["0001-01-01", "1969-12-31", "9999-12-31", None]),
        ("timestamp", ["1969-12-31 23:59:59.999999", "2018-01-01", None]),
        ("timestamptz", ["1969-12-31 23:59:59.999999+00", "2018-01-01 00:00:00.1+03:30", None]),
    ],
)
def test_a_table_can_be_partitioned_by_a_column_of_any_simple_type(
    lake: Lake, kind: str, values: list[str | None]
) -> None:
    literals = ", ".join(f"({i}, {'null' if v is None else types.literal(v)}::{kind})" for i, v in enumerate(values))
    sql = f"select * from (values {literals}) as t (k, p)"
    version = write(lake, "by_kind", sql, ("p",))
    expected = canonical(lake.db.execute(sql).to_arrow_table())
    assert {name: read(lake, version) for name, read in READERS.items()} == dict.fromkeys(READERS, expected)


def test_columns_can_have_any_name(lake: Lake) -> None:
    names = ["a b", "a.b", "é ü", 'q"r', "Upper", "select", "1a", "a-b", "a/b=c"]
    sql = "select " + ", ".join(f"{i} as {types.quoted(name)}" for i, name in enumerate(names))
    version = write(lake, "by_name", sql)
    expected = [tuple(names), tuple(map(str, range(len(names))))]
    assert {name: read(lake, version) for name, read in READERS.items()} == dict.fromkeys(READERS, expected)


@pytest.mark.parametrize("name", ["a b", "a/b=c", "é"])
def test_a_partition_column_of_any_name_gets_a_valid_avro_name(lake: Lake, name: str) -> None:
    """DuckDB crashes when it reads a manifest with a name that Avro's specification ("Names") does not allow."""
    version = write(lake, "by_named", f"select 'x' as {types.quoted(name)}", (name,))
    static = lake.static(version)
    snapshot = static.current_snapshot()
    assert snapshot is not None
    (manifest,) = snapshot.manifests(static.io)
    with AvroFile[Any](static.io.new_input(manifest.manifest_path)) as opened:
        assert_names_are_avros(opened.header.meta["avro.schema"])


def assert_names_are_avros(schema: str) -> None:
    import json
    import re

    def names(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "name" in node:
                yield node["name"]
            for inner in node.values():
                yield from names(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from names(inner)

    assert [name for name in names(json.loads(schema)) if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)] == []


def test_a_value_that_equals_the_name_of_nulls_folder_is_kept_or_refused_beside_a_null(lake: Lake) -> None:
    sql = "select * from (values (1, '__HIVE_DEFAULT_PARTITION__'), (2, 'b')) as t (k, p)"
    version = write(lake, "by_hive", sql, ("p",))
    assert lake.by_select_sql(version) == canonical(lake.db.execute(sql).to_arrow_table())
    with pytest.raises(BuscoError, match="two values of p map to the same partition folder"):
        write(lake, "by_hive_and_null", f"{sql} union all select 3, null", ("p",))


def test_partitioning_by_a_blob_is_refused(lake: Lake) -> None:
    with pytest.raises(BuscoError, match="content"):
        write(lake, "by_blob", "select 1 as k, 'a'::blob as content", ("content",))
