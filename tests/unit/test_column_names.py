"""Duplicate columns are found in a SELECT and in its subqueries; DuckDB itself is the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import agate
import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from busco.errors import BuscoError
from busco.lake import types
from busco.project import Project
from busco.settings import Settings
from busco.warehouse import column_names
from busco.warehouse.session import Session

NAMES = st.lists(st.sampled_from(["a", "A", "b", "a_1", "A_1", "a_2", "x y", 'q"', "é"]), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def columns_of(db: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    return [str(row[0]) for row in db.execute(f"describe (\n{sql}\n)").fetchall()]


def select(names: list[str]) -> str:
    return "select " + ", ".join(f"{place} as {types.quoted(name)}" for place, name in enumerate(names))


@settings(max_examples=200, deadline=None)
@given(names=NAMES)
@example(names=["a", "a_1", "a"])
def test_a_select_is_refused_exactly_if_its_table_would_have_other_column_names(
    db: duckdb.DuckDBPyConnection, names: list[str]
) -> None:
    described = columns_of(db, select(names))
    assert described == names
    if columns_of(db, f"select * from ({select(names)})") == names:
        column_names.check(described)
    else:
        with pytest.raises(BuscoError, match="the SQL has"):
            column_names.check(described)


@settings(max_examples=200, deadline=None)
@given(names=NAMES)
@example(names=["a", "a"])
def test_columns_renamed_by_a_subquery_are_found_unless_the_sql_names_them(
    db: duckdb.DuckDBPyConnection, names: list[str]
) -> None:
    sql = f"with inner_one as ({select(names)}) select * from inner_one"
    found = column_names.perhaps_renamed(columns_of(db, sql), sql)
    renamed = {now for now, before in zip(columns_of(db, sql), names, strict=True) if now != before}
    assert set(found) == {name for name in renamed if name.lower() not in {one.lower() for one in names}}


@pytest.mark.parametrize("names", [["é", "É"], ["a", "b", "A"]])
def test_names_that_differ_only_in_case_are_refused_in_any_alphabet(names: list[str]) -> None:
    with pytest.raises(BuscoError, match="differ only in case"):
        column_names.check(names)


NESTED = st.recursive(
    st.just("1"),
    lambda inner: st.one_of(
        inner.map(lambda value: f"[{value}]"),
        inner.map(lambda value: f"map {{'k_1': {value}}}"),
        st.dictionaries(
            st.sampled_from(["a", "a_1", "A_2", 'q" x_1', "é_1", "select"]), inner, min_size=1, max_size=3
        ).map(lambda fields: "{" + ", ".join(f"{types.quoted(name)}: {value}" for name, value in fields.items()) + "}"),
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(value=NESTED)
@example(value="{'b': [{'a': 1, 'a_1': 2}]}")
def test_struct_fields_of_the_relations_that_are_read_are_known_names(
    db: duckdb.DuckDBPyConnection, value: str
) -> None:
    db.execute(f"create or replace view read_here as select 1 as id, {value} as nested")
    kind = types.parse(str(db.execute("describe select nested from read_here").fetchall()[0][1]))
    parts = {path[-1].lower() for path, _ in types.fields(("nested",), kind)}
    names = ["id", "nested", "nested_1", "a", "a_1", "A_2", 'q" x_1', "x_1", "é_1", "select", "elect", "k_1", "struct"]
    found = db.execute(column_names.known_sql(names, [("main", "read_here")])).fetchall()
    assert {row[0] for row in found} == ({"id"} | parts) & {name.lower() for name in names}
    assert db.execute(column_names.known_sql(names, [("main", "other")])).fetchall() == []


@pytest.mark.parametrize(
    "sql",
    [
        "pivot sold on k using sum(n) group by day",
        "select * from (\n  PIVOT sold\n  ON 'day_' || n USING sum(n) GROUP BY day)",
        "select * from (pivot_wider sold on k using sum(n) group by day)",
        "select columns('(day|n)'), Columns ('(day|n)') as '\\1_1' from sold",
    ],
)
def test_names_from_data_or_from_a_pattern_are_not_treated_as_renamed(db: duckdb.DuckDBPyConnection, sql: str) -> None:
    db.execute(
        "create or replace table sold as select 1 as day, 2 as n, 'day' as k union all select 1, 2, 'day_1'"
        " union all select 1, 1, 'x' union all select 1, 1, 'x_1'"
    )
    names = columns_of(db, sql)
    assert {"day", "day_1"} <= set(names)
    assert column_names.perhaps_renamed(names, sql) == {}


@pytest.mark.parametrize(
    "sql",
    [
        "select * from j -- pivot",
        "select 'pivot' as columns, \"pivot\" /* columns(*) */ from j",
        "unpivot j on a into name n value v",
        "select pivots, pivot_1 from j",
    ],
)
def test_text_that_only_looks_like_a_pivot_does_not_disable_the_check(sql: str) -> None:
    assert column_names.perhaps_renamed(["id", "id_1"], sql) == {"id_1": "id"}


def test_a_renamed_column_is_reported_with_the_column_that_it_duplicates() -> None:
    found = column_names.perhaps_renamed(["id", "id_1", "n"], "select * from j", documented=["n"])
    assert found == {"id_1": "id"}
    with pytest.raises(BuscoError, match="id_1 was a second column named id") as refused:
        column_names.check_renamed(found, ["n"])
    assert "write the name in the SQL or list it under the model's `columns:`" in refused.value.hint
    column_names.check_renamed(found, ["id_1"])
    assert column_names.perhaps_renamed(["id", "ID_1"], "select * from j", documented=["id_1"]) == {}


HEADERS = st.lists(st.sampled_from(["a", "A", "b", "a_2", "b_2", "c", "", " ", "x y"]), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(header=HEADERS)
@example(header=["", "a", "b"])
@example(header=["id", "", "B"])
@example(header=["phone", "phone_2"])
@example(header=["a", "", "", "d"])
def test_a_seed_header_is_refused_exactly_if_a_name_would_change_or_is_a_duplicate(
    header: list[str],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = agate.Table([], header).column_names
    kept = all(name in ("", now) for name, now in zip(header, names, strict=True))
    if kept and len({name.lower() for name in names}) == len(names):
        column_names.check_header(header, names)
    else:
        with pytest.raises(BuscoError, match="the seed's header"):
            column_names.check_header(header, names)


def test_a_blank_name_that_takes_another_columns_name_is_refused_with_both_names() -> None:
    with pytest.raises(BuscoError) as refused:
        column_names.check_header(["", "a", "b"], ["a", "a_2", "b"])
    assert "column 1 has no name, so dbt calls it a" in refused.value.message
    assert "a would become a_2" in refused.value.message
    assert "give column 1 a name" in refused.value.hint


def test_a_seed_may_have_names_that_end_in_a_number(db: duckdb.DuckDBPyConnection) -> None:
    seed = {"resource_type": "seed", "config": {"materialized": "seed"}, "depends_on": {"nodes": []}}
    made = Project({"metadata": {"project_name": "p"}, "nodes": {"seed.p.s": seed}, "sources": {}})
    session = Session(Settings(), made, None, None, None)
    job = {"node": "seed.p.s", "sql": "select * from s", "described": [("phone", "VARCHAR"), ("phone_2", "VARCHAR")]}
    session.check_names(job)
    assert job["known_sql"] == ""
