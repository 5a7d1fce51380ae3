"""Profiles of rows that DuckDB can't read, and of tables for which there is no time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import duckdb
import pytest

from busco.lake.records import Column, DataFile, Version
from busco.warehouse import profile
from busco.warehouse.profile import Profiler

STATISTICS = {'"a"': {"min": "1", "max": "9", "null_count": "0", "num_values": "9"}}


def version(table: str) -> Version:
    file = DataFile(key="a", rows=9, bytes=1, statistics=STATISTICS)
    return Version(
        table=table, version="1", columns=(Column(name="a", type="INTEGER"),), rows=9, bytes=1, files=(file,)
    )


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection in which each version's query reads the relation of the same name."""
    monkeypatch.setattr(profile, "select_sql", lambda version, _: f"select * from {version.table}")
    with duckdb.connect() as made:
        made.execute("create schema gold")
        made.execute("create table gold.good as select range::integer + 1 as a from range(9)")
        made.execute("create view gold.bad as select cast(a as integer) as a from (select 'Ana Canary' as a)")
        yield made


def test_a_table_that_can_not_be_read_costs_no_other_table_its_profile(connection: duckdb.DuckDBPyConnection) -> None:
    profiler = Profiler(connection, "lake", 60)
    bad = profiler.profile(version("gold.bad"), frozenset())
    assert (bad.source, bad.columns["a"]["max"]) == ("statistics", "9")
    assert profiler.profile(version("gold.good"), frozenset()).source == "rows"
    assert profiler.failed == {"gold.bad": "ConversionException"}, "without the message, which has the value"


def test_no_query_starts_when_the_time_is_used_up(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiler = Profiler(connection, "lake", 0.5)
    asked = []

    def slow(*given: object) -> str:
        # between two queries, when an interrupt has nothing to stop
        asked.append(given)
        time.sleep(0.6)
        return "select 1 from gold.good"

    monkeypatch.setattr(profile, "select_sql", slow)
    assert profiler.profile(version("gold.good"), frozenset()).source == "statistics"
    assert len(asked) == 1
    monkeypatch.undo()
    assert connection.execute("select count(*) from gold.good").fetchone() == (9,), "no interrupt is left"
