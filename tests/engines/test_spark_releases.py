"""A Spark session reads one release after another, and what it does to a table is refused or can be undone."""

from __future__ import annotations

import pytest

from tests.engines.engine import Spark, SparkError, in_spark, needs
from tests.engines.releases import Tables, by_duckdb_of_each, deliver, history, kinds, repair, roll_back
from tests.platforms import Platform

pytestmark = [pytest.mark.long, needs("BUSCO_TEST_SPARK")]


@pytest.fixture
def two(mini: Platform) -> Platform:
    """A lake with two releases."""
    for n in (1, 2):
        deliver(mini, [(f"o{n}", "x", "1.50", "2018-01-01", n), (f"p{n}", "", "2.50", f"2018-02-0{n}", n)])
        assert mini.build().good
    return mini


def by_spark(spark: Spark, made: Platform) -> Tables:
    """Returns the rows of each table that Glue shows for the live release."""
    found = {}
    for table in made.live().tables:
        # a session keeps a table that it has read
        spark.rows(f"refresh table {in_spark(table)}")
        found[table] = spark.table(made.version(table))
    return found


def test_a_session_reads_one_release_after_another(spark: Spark, two: Platform) -> None:
    expected = by_duckdb_of_each(two)
    found = {}
    for release in reversed(history(two)):
        if release != history(two)[-1]:
            roll_back(two, release)
        found[release] = by_spark(spark, two)
    assert found == expected


def test_a_session_that_holds_a_table_of_one_release_accepts_another(spark: Spark, two: Platform) -> None:
    expected = by_duckdb_of_each(two)
    first, second = history(two)
    assert by_spark(spark, two) == expected[second]
    roll_back(two, first)
    # a commit loads the present metadata into the table that the session holds, and fails if its UUID is another one
    spark.rows("insert into lake.busco_gold.fct select * from lake.busco_gold.fct")
    repair(two)
    assert by_spark(spark, two) == expected[first]


@pytest.mark.parametrize(
    "statement",
    [
        "call lake.system.expire_snapshots(table => 'busco_gold.fct', older_than => timestamp '2100-01-01 00:00:00')",
        "call lake.system.remove_orphan_files(table => 'busco_gold.fct')",
        "drop table lake.busco_gold.fct purge",
    ],
)
def test_garbage_collection_is_refused_and_deletes_nothing(spark: Spark, two: Platform, statement: str) -> None:
    spark.rows("refresh table lake.busco_gold.fct")
    before = two.store.sizes("")
    with pytest.raises(SparkError, match="GC is disabled"):
        spark.rows(statement)
    assert two.store.sizes("") == before


CHANGES = {
    "INSERT": ("insert into {table} select * from {table}",),
    "DELETE": ("delete from {table} where n > 1",),
    "DROP": ("drop table {table}",),
    # somebody allows garbage collection, which then deletes what the release and older ones need
    "expire_snapshots": (
        "alter table {table} set tblproperties ('gc.enabled' = 'true')",
        "delete from {table} where true",
        "call lake.system.expire_snapshots(table => '{table}', older_than => timestamp '2100-01-01 00:00:00')",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_undone_by_one_command(spark: Spark, two: Platform, change: str) -> None:
    expected, before = by_duckdb_of_each(two), set(two.store.keys(""))
    for table in two.live().tables:
        # the session may know the table of an earlier lake
        for statement in ("refresh table {table}", *CHANGES[change]):
            spark.rows(statement.format(table=in_spark(table)))
    deleted = kinds(before - set(two.store.keys("")))
    assert deleted == ({"data", "manifests", "metadata"} if change == "expire_snapshots" else set())
    repair(two)
    assert by_spark(spark, two) == expected[history(two)[-1]]
    first = history(two)[0]
    roll_back(two, first)
    assert by_spark(spark, two) == expected[first]
