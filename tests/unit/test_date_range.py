"""Dates and times out of range are detected from COPY's own statistics; DuckDB itself is the reference."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from busco.errors import BuscoError
from busco.lake import dates, types
from busco.lake.records import Column, DataFile
from busco.warehouse import date_range, model_sql

# values in range, including the first and the last one, and values out of range, as DuckDB parses them
INSIDE = {
    "DATE": ["0001-01-01", "1969-12-31", "9999-12-31"],
    "TIMESTAMP": ["0001-01-01 00:00:00", "1969-12-31 23:59:59.999999", "9999-12-31 23:59:59.999999"],
    "TIMESTAMP_S": ["0001-01-01 00:00:00", "9999-12-31 23:59:59"],
    "TIMESTAMP_MS": ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999"],
    "TIMESTAMP WITH TIME ZONE": [
        "0001-01-01 00:00:00+00",
        "9999-12-31 23:59:59.999999+00",
        "9999-12-31 23:00:00-00:59",
    ],
}
OUTSIDE = {
    "DATE": ["infinity", "-infinity", "10000-01-01", "0001-12-31 (BC)", "0044-03-15 (BC)", "290000-01-01"],
    "TIMESTAMP": ["infinity", "-infinity", "10000-01-01 00:00:00", "0001-12-31 (BC) 23:59:59.999999"],
    "TIMESTAMP_S": ["infinity", "-infinity", "10000-01-01 00:00:00", "0044-03-15 (BC) 10:00:00"],
    "TIMESTAMP_MS": ["infinity", "-infinity", "10000-01-01 00:00:00", "0044-03-15 (BC) 10:00:00"],
    "TIMESTAMP WITH TIME ZONE": ["infinity", "-infinity", "9999-12-31 23:30:00-01", "0001-01-01 00:30:00+01"],
}
# the ways in which a value can be nested in a column: the column's type and value, as templates for the inner ones
PLACES = {
    "{}": "{}",
    "{}[]": "[null, {}]",
    "{}[][]": "[[], null, [{}]]",
    "STRUCT(n INTEGER, a {})": "{{'n': 1, 'a': {}}}",
    "MAP({}, INTEGER)": "map {{{}: 1}}",
    "MAP(INTEGER, {})": "map {{1: null, 2: {}}}",
    'STRUCT("it\'s ""q"" é" MAP(VARCHAR, {}[]))[]': "[{{'it''s \"q\" é': map {{'k': [{}]}}}}]",
}


def copied(db: duckdb.DuckDBPyConnection, sql: str, folder: Path) -> tuple[tuple[Column, ...], list[DataFile]]:
    """Writes a query's result as a model is written, and returns its columns and files."""
    described = [(str(row[0]), str(row[1])) for row in db.execute(f"describe ({sql})").fetchall()]
    columns, expressions = model_sql.columns(described, ())
    copy = model_sql.copy_sql(expressions, columns, (), sql, str(folder / uuid.uuid4().hex))
    return columns, model_sql.written_files(db.execute(copy).fetchall(), "")


@pytest.fixture(scope="module")
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'America/New_York'")
        yield connection


def found(db: duckdb.DuckDBPyConnection, sql: str, folder: Path) -> dict[str, int]:
    """Returns the columns with values out of range and how many rows have one, as the materialization finds them.

    Also checks that the query returns such rows, and that the statistics alone identify the same columns.
    """
    columns, (file,) = copied(db, sql, folder)
    proven = {column.name: dates.in_range(dates.paths([column]), file.statistics) for column in columns}
    counts: dict[str, int] = {}
    if suspects := date_range.suspects(columns, [file]):
        counted = db.execute(suspects.count_sql(str)).fetchall()[0]
        rows = db.execute(suspects.find_sql(str)).fetchall()
        assert len(rows) <= sum(counted)
        assert bool(rows) == any(counted)
        counts = {name: count for name, count in zip(suspects.columns, counted, strict=True) if count}
    assert proven == {name: name not in counts for name in proven}
    return counts


@pytest.mark.parametrize("kind", INSIDE)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exactly_the_rows_with_a_date_or_time_outside_years_1_to_9999_are_counted(
    db: duckdb.DuckDBPyConnection, kind: str, data: st.DataObject, tmp_path: Path
) -> None:
    outer, written = data.draw(st.sampled_from(sorted(PLACES.items())))
    values = data.draw(st.lists(st.sampled_from([*INSIDE[kind], *OUTSIDE[kind], None]), min_size=1, max_size=6))
    if outer.startswith("MAP({}"):
        values = [value for value in values if value] or [INSIDE[kind][0]]
    shown = ["null" if v is None else written.format(f"{types.literal(v)}::{kind}") for v in values]
    rows = ", ".join(f"({text}::{outer.format(kind)}, 'infinity', 'inf'::double)" for text in shown)
    expected = sum(value in OUTSIDE[kind] for value in values)
    counts = found(db, f'select * from (values {rows}) as t ("a ""b", said, number)', tmp_path)
    assert counts == ({'a "b': expected} if expected else {})


def test_infinity_and_nan_are_valid_floating_point_values(db: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    sql = "select 'inf'::double as a, '-inf'::float as b, 'nan'::double as c, {'x': 'nan'::float} as d"
    assert found(db, sql, tmp_path) == {}


def test_a_table_whose_statistics_prove_it_valid_is_not_read_again(
    db: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    sql = (
        "select date '2018-01-01' + i::int as d, [timestamp '2018-01-01', null] as l, map {'k': null::date} as m,"
        " null::timestamptz as z, []::date[] as e, 'infinity' as t from range(5) as r (i)"
    )
    assert date_range.suspects(*copied(db, sql, tmp_path)) is None


def test_the_rows_of_a_column_without_statistics_are_counted(db: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    columns, (written,) = copied(db, "select date 'infinity' as d, 1 as n", tmp_path)
    for known in ({}, {'"d"': {"null_count": "0", "num_values": "1"}}):
        bare = written.model_copy(update={"statistics": known})
        suspects = date_range.suspects(columns, [bare])
        assert suspects is not None
        assert suspects.columns == ("d",)
        assert db.execute(suspects.count_sql(str)).fetchall() == [(1,)]


def test_the_error_names_the_table_columns_and_row_counts_and_a_query_for_the_rows() -> None:
    columns = (Column(name="day", type="DATE"), Column(name="at", type="TIMESTAMP"))
    beyond = {"max": "infinity", "min": "2018-01-01", "null_count": "0", "num_values": "3"}
    file = model_sql.written_files(
        [("s3://lake/x/t.parquet", 3, 9, 9, {'"day"': beyond, '"at"': beyond}, {})], "s3://lake/"
    )
    suspects = date_range.suspects(columns, file)
    assert suspects is not None
    date_range.check("gold.t", suspects, {"day": 0, "at": 0}, str, "r1", "")
    with pytest.raises(BuscoError) as refusal:
        date_range.check("gold.t", suspects, {"day": 2, "at": 1}, lambda key: f"s3://lake/{key}", "r1", "do this")
    assert "gold.t" in refusal.value.message
    assert "day in 2 rows" in refusal.value.message
    assert "at in 1 row" in refusal.value.message
    assert refusal.value.hint.startswith("do this; ")
    assert "busco query --run r1 " in refusal.value.hint
    assert "s3://lake/x/t.parquet" in refusal.value.hint
