"""Columns that are there twice, in a SELECT and further inside of one, with DuckDB itself as the judge."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from busco.errors import BuscoError
from busco.lake import types
from busco.warehouse import column_names

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
def test_a_select_is_refused_exactly_if_a_table_of_it_would_have_other_names(
    db: duckdb.DuckDBPyConnection, names: list[str]
) -> None:
    given_by_sql = columns_of(db, select(names))
    assert given_by_sql == names
    if columns_of(db, f"select * from ({select(names)})") == names:
        column_names.check(given_by_sql)
    else:
        with pytest.raises(BuscoError, match="the SQL gives"):
            column_names.check(given_by_sql)


@settings(max_examples=200, deadline=None)
@given(names=NAMES)
@example(names=["a", "a"])
def test_columns_that_a_subquery_renamed_are_those_that_its_text_does_not_name(
    db: duckdb.DuckDBPyConnection, names: list[str]
) -> None:
    sql = f"with inner_one as ({select(names)}) select * from inner_one"
    found = column_names.perhaps_renamed(columns_of(db, sql), sql)
    renamed = {now for now, before in zip(columns_of(db, sql), names, strict=True) if now != before}
    assert set(found) == {name for name in renamed if name.lower() not in {one.lower() for one in names}}


@pytest.mark.parametrize("names", [["é", "É"], ["a", "b", "A"]])
def test_names_that_differ_by_case_alone_are_refused_in_any_alphabet(names: list[str]) -> None:
    with pytest.raises(BuscoError, match="differ by case only"):
        column_names.check(names)


def test_a_renamed_column_is_said_with_the_one_that_it_doubles() -> None:
    found = column_names.perhaps_renamed(["id", "id_1", "n"], "select * from j", documented=["n"])
    assert found == {"id_1": "id"}
    with pytest.raises(BuscoError, match="id_1 is a second column id"):
        column_names.check_renamed(found, ["n"])
    column_names.check_renamed(found, ["id_1"])
    assert column_names.perhaps_renamed(["id", "ID_1"], "select * from j", documented=["id_1"]) == {}
