"""Profiles of large tables: counts become estimates, rows a sample, and a query ends when its time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import duckdb
import pytest

from busco.lake.records import Column, DataFile, Version
from busco.warehouse import profile
from busco.warehouse.profile import Profiler

# The rows of a table by their number: a key in three types, its thirds, three words, and a NULL in each tenth row.
ROWS = """select range as id, md5(range::varchar) as code, (range * 1.5)::decimal(18,2) as amount, range // 3 as third,
    ['a', 'b', 'c'][1 + range % 3] as word, case when range % 10 > 0 then range end as gaps from range({})"""
COLUMNS = {
    "id": "BIGINT", "code": "VARCHAR", "amount": "DECIMAL(18,2)", "third": "BIGINT", "word": "VARCHAR",
    "gaps": "BIGINT",
}  # fmt: skip


def version(rows: int) -> Version:
    columns = tuple(Column(name=name, type=kind) for name, kind in COLUMNS.items())
    files = (DataFile(key="a", rows=rows, bytes=1),)
    return Version(table="gold.large", version="1", columns=columns, rows=rows, bytes=1, files=files)


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[duckdb.DuckDBPyConnection]:
    monkeypatch.setattr(profile, "select_sql", lambda version, _: ROWS.format(version.rows))
    with duckdb.connect() as made:
        yield made


def test_distinct_values_are_counted_up_to_100_000_rows(connection: duckdb.DuckDBPyConnection) -> None:
    counted = Profiler(connection, "lake", 60).profile(version(100_000), frozenset())
    assert {name: (one["distinct"], one["exact"]) for name, one in counted.columns.items()} == {
        "id": (100_000, True), "code": (100_000, True), "amount": (100_000, True), "third": (33_334, True),
        "word": (3, True), "gaps": (90_000, True),
    }  # fmt: skip


def test_other_numbers_than_distinct_values_are_exact_in_a_table_of_any_size(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    found = Profiler(connection, "lake", 60).profile(version(150_000), frozenset()).columns
    assert {name: one["nulls"] for name, one in found.items()} == dict.fromkeys(COLUMNS, 0) | {"gaps": 15_000}
    assert (found["id"]["min"], found["id"]["max"], found["id"]["top"]) == ("0", "149999", None)
    assert (found["id"]["exact"], found["word"]["exact"]) == (False, True)


def test_the_values_of_a_small_set_are_counted_in_a_table_of_any_size(connection: duckdb.DuckDBPyConnection) -> None:
    found = Profiler(connection, "lake", 60).profile(version(300_001), frozenset()).columns["word"]
    assert (found["distinct"], found["exact"]) == (3, True)
    assert found["top"] == [("a", 100_001), ("b", 100_000), ("c", 100_000)]


def test_a_sample_has_ten_rows(connection: duckdb.DuckDBPyConnection) -> None:
    names, rows = Profiler(connection, "lake", 60).profile(version(1000), frozenset({"third"})).sample or ((), ())
    assert names == ("id", "code", "amount", "word", "gaps")
    assert len(rows) == 10
    assert all(word == "abc"[int(number or 0) % 3] for number, _, _, word, _ in rows), "each is a row of the table"


def test_a_running_query_is_interrupted_when_the_time_is_up(connection: duckdb.DuckDBPyConnection) -> None:
    started = time.monotonic()
    # a scan of so many rows takes hours
    found = Profiler(connection, "lake", 0.5).profile(version(10**13), frozenset())
    assert time.monotonic() - started < 10
    assert (found.source, found.sample) == ("statistics", None)
    assert connection.execute("select 1").fetchone() == (1,), "no interrupt is left"
