"""Trino, the engine that Athena is built on, reads every table from Glue alone, with DuckDB's values."""

from __future__ import annotations

from typing import Any

import pytest

from busco.lake.layout import split_table
from busco.lake.metadata_json import Descriptions
from busco.lake.records import Version
from busco.project import Project, table_name
from tests.engines.engine import Rows, Trino, by_duckdb, duckdb_of, needs, shown
from tests.extremes import MODELS, Query, queries_of
from tests.platforms import Platform

pytestmark = needs("BUSCO_TEST_TRINO")

Tables = dict[str, tuple[Version, Rows]]


@pytest.fixture(scope="module")
def tables(lake: Platform) -> Tables:
    return by_duckdb(lake)


def test_every_table_has_duckdbs_rows(trino: Trino, tables: Tables) -> None:
    assert len(tables) == 29 + len(MODELS)
    # each table by its name: a table that can't be read only shortens a listing
    different = {}
    for table, (version, rows) in tables.items():
        found = trino.table(version)
        ((count,),) = trino.rows(f"select count(*) from {shown(table)}")
        if found != rows or count != rows.total():
            different[table] = (count, rows - found, found - rows)
    assert different == {}


def test_every_column_and_every_table_has_its_description(trino: Trino, lake: Platform, tables: Tables) -> None:
    project = Project.read(lake.settings.manifest_path)
    uids = {table_name(project.node(uid)): uid for uid in (*project.tables.values(), *project.sources)}
    found, expected = {}, {}
    for table, (version, _) in tables.items():
        layer, name = split_table(table)
        described: Descriptions = project.descriptions(uids[table])
        expected[table] = (
            described.table or None, {column.name: described.of((column.name,)) or None for column in version.columns}
        )  # fmt: skip
        where = f"schema_name = 'busco_{layer}' and table_name = '{name}' and catalog_name = current_catalog"
        ((comment,),) = trino.rows(f"select comment from system.metadata.table_comments where {where}")
        columns = trino.rows(f"show columns from {shown(table)}")
        found[table] = (comment, {column: text or None for column, _, _, text in columns})
    assert found == expected
    assert len(found["gold.nested"][1]["a_struct"] or "") > 255
    assert (found["gold.nested"][0] or "").count("\n") > 2


def test_no_filter_loses_a_row(trino: Trino, lake: Platform) -> None:
    with duckdb_of(lake, "gold.bounded") as db:
        table = db.execute("from busco_gold.bounded").to_arrow_table()
        queries = queries_of(table)
        expected = {
            query: sorted(db.execute(f"select id from busco_gold.bounded where {query.sql()}").fetchall())
            for query in queries
        }
    each = [f"select {n}, id from bounded where {query.sql('trino')}" for n, query in enumerate(queries)]
    found: dict[Query, list[tuple[Any, ...]]] = {query: [] for query in queries}
    for start in range(0, len(each), 40):
        for number, identity in trino.rows(" union all ".join(each[start : start + 40])):
            found[queries[number]].append((identity,))
    assert {query: sorted(ids) for query, ids in found.items()} == expected
    assert sum(map(bool, expected.values())) > 140


def test_a_filter_finds_each_value_of_a_column_with_extremes(trino: Trino, lake: Platform) -> None:
    with duckdb_of(lake, "gold.wide") as db:
        table = db.execute("from busco_gold.wide").to_arrow_table()
    different = {}
    for name in set(table.column_names) - {"k", "a_float", "a_double", "a_blob", "a_json"}:
        values = dict(zip(table["k"].to_pylist(), table[name].to_pylist(), strict=True))
        for value in set(values.values()):
            found = trino.rows(f"select k from wide where {Query(name, '=', value).sql('trino')}")
            if sorted(found) != sorted((k,) for k, other in values.items() if other == value):
                different[name, value] = found
    assert different == {}
    infinite = trino.rows("select k from wide where a_double = infinity() or a_float = -infinity() order by k")
    assert infinite == [(1,), (2,)]
    assert trino.rows("select k from wide where is_nan(a_double) and is_nan(a_float)") == [(3,)]
    assert trino.rows("select k from wide where a_blob = X'00ff8061'") == [(2,)]


@pytest.mark.parametrize("table", ["by_text", "by_two", "code_points"])
def test_a_filter_on_each_partition_or_text_finds_its_row(trino: Trino, lake: Platform, table: str) -> None:
    with duckdb_of(lake, f"gold.{table}") as db:
        texts = [row[0] for row in db.execute(f"select distinct text from busco_gold.{table}").fetchall()]
        counts = {
            text: db.execute(f"select count(*) from {table} where {Query('text', '=', text).sql()}").fetchall()
            for text in texts
        }
    assert {
        text: trino.rows(f"select count(*) from {table} where {Query('text', '=', text).sql('trino')}")
        for text in texts
    } == counts  # fmt: skip
