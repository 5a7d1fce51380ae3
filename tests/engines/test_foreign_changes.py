"""What other engines do to published tables through Glue is undone by one command, and no release is harmed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from trino.exceptions import TrinoQueryError

from busco.aws import client
from busco.lake.metadata_json import location_of
from tests.engines.conftest import MINI
from tests.engines.engine import Trino, needs, shown
from tests.engines.releases import (
    Tables,
    by_duckdb_of_each,
    by_trino,
    by_trino_after_rollbacks,
    deliver,
    kinds,
    repair,
    roll_back,
)
from tests.platforms import Platform, platform, with_parse

pytestmark = needs("BUSCO_TEST_TRINO")

TABLES = ("bronze.orders", "silver.orders", "gold.fct")
INSERT = "insert into {table} select * from {table}"
EVERYTHING = "delete from {table} where true"
OPTIMIZE = "alter table {table} execute optimize"
EXPIRE = "alter table {table} execute expire_snapshots(retention_threshold => '0s')"
ORPHANS = "alter table {table} execute remove_orphan_files(retention_threshold => '0s')"


@dataclass(frozen=True)
class Change:
    """What is run on each table, and what it deletes of the lake: data, manifests, metadata."""

    statements: tuple[str, ...]
    deletes: frozenset[str] = frozenset()
    # whether it is left out of the shorter run: it is undone by the same steps as one that is not left out
    long: bool = False


CHANGES = {
    "INSERT": Change((INSERT,)),
    "UPDATE": Change(("update {table} set n = n + 1",), long=True),
    "DELETE of some rows": Change(("delete from {table} where n > 1",), long=True),
    "DELETE of all rows": Change((EVERYTHING,), long=True),
    "OPTIMIZE after an INSERT": Change((INSERT, OPTIMIZE), long=True),
    "remove_orphan_files after a DELETE of all rows": Change((EVERYTHING, ORPHANS)),
    "DROP": Change(("drop table {table}",), frozenset({"manifests", "metadata"})),
}


@dataclass(frozen=True)
class Lake:
    """`expected` has the rows of each release, newest first; `objects` are the keys of all of their objects."""

    made: Platform
    expected: dict[str, Tables]
    objects: set[str]

    def roll_back(self) -> Tables:
        """Makes the newest release's content live; returns its rows."""
        newest = next(iter(self.expected))
        roll_back(self.made, newest)
        return self.expected[newest]

    def deleted(self) -> set[str]:
        """Returns what is missing of the objects: data, manifests, metadata."""
        return kinds(self.objects - set(self.made.store.keys("")))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, parsed: dict[str, bytes], served: Path) -> Iterator[Lake]:
    """A lake with three releases."""
    with platform(tmp_path_factory.mktemp("lake"), MINI, served) as made:
        with_parse(made, parsed)
        for n in range(1, 4):
            deliver(made, [(f"o{n}", "x", "1.50", "2018-01-01", n), (f"p{n}", "", "2.50", f"2018-02-0{n}", n)])
            assert made.build().good
        yield Lake(made, by_duckdb_of_each(made), set(made.store.keys("")))


def run(trino: Trino, *statements: str) -> None:
    """Runs statements on each of TABLES."""
    for table in TABLES:
        for statement in statements:
            trino.rows(statement.format(table=shown(table)))


def entries(made: Platform) -> dict[str, str]:
    """Returns the metadata file that Glue names for each table."""
    glue, settings = client("glue", made.settings), made.settings
    return {
        f"{layer}.{table['Name']}": table["Parameters"].get("metadata_location", "")
        for layer in ("bronze", "silver", "gold")
        for table in glue.get_tables(DatabaseName=settings.database(layer))["TableList"]
    }


def by_records(made: Platform) -> dict[str, str]:
    return {table: made.store.url(version.metadata) for table, version in made.live().tables.items()}


@pytest.mark.parametrize(
    "change",
    [pytest.param(name, marks=[pytest.mark.long] if change.long else []) for name, change in CHANGES.items()],
)
def test_a_foreign_change_is_undone_by_one_command_and_every_release_is_readable(
    trino: Trino, lake: Lake, change: str
) -> None:
    made = lake.made
    newest = lake.roll_back()
    run(trino, *CHANGES[change].statements)
    named, deleted = entries(made), lake.deleted()
    repair(made)
    assert entries(made) == by_records(made)
    assert all(named.get(table) != url for table, url in by_records(made).items()), "nothing was changed"
    assert deleted == CHANGES[change].deletes
    assert by_trino(trino, made) == newest
    assert by_trino_after_rollbacks(trino, made, list(lake.expected)) == lake.expected


def test_a_check_names_each_changed_table_and_who_changed_it_and_changes_nothing(trino: Trino, lake: Lake) -> None:
    made = lake.made
    lake.roll_back()
    run(trino, INSERT)
    before = entries(made)
    printed = made.busco("release", "repair", "--check", status=1)
    after = entries(made)
    repair(made)
    assert after == before
    for table in TABLES:
        assert f"busco_{table}" in printed
    assert printed.count("trino_user test") == len(TABLES)
    assert "are unchanged" in made.busco("release", "repair", "--check")


def test_remove_orphan_files_on_the_live_release_harms_no_release(trino: Trino, lake: Lake) -> None:
    made = lake.made
    lake.roll_back()
    before = entries(made)
    run(trino, ORPHANS)
    assert lake.deleted() == set()
    assert entries(made) == before == by_records(made), "it commits nothing, so nothing must be undone"
    assert by_trino_after_rollbacks(trino, made, list(lake.expected)) == lake.expected


def test_snapshots_are_not_expired_even_after_a_foreign_commit(trino: Trino, lake: Lake) -> None:
    made = lake.made
    lake.roll_back()
    run(trino, EVERYTHING)
    refusals = []
    for table in TABLES:
        with pytest.raises(TrinoQueryError) as refused:
            trino.rows(EXPIRE.format(table=shown(table)))
        refusals.append(str(refused.value))
    deleted = lake.deleted()
    repair(made)
    assert all("GC is disabled" in refusal for refusal in refusals)
    assert deleted == set()
    assert by_trino_after_rollbacks(trino, made, list(lake.expected)) == lake.expected


def test_tables_that_a_crawler_or_an_engine_added_are_named_and_left_alone(trino: Trino, lake: Lake) -> None:
    made = lake.made
    newest = lake.roll_back()
    glue, database = client("glue", made.settings), made.settings.database("gold")
    crawled = {
        "Name": "metadata",
        "TableType": "EXTERNAL_TABLE",
        "Parameters": {"classification": "json", "UPDATED_BY_CRAWLER": "a crawler"},
        "StorageDescriptor": {
            "Columns": [{"Name": "format-version", "Type": "int"}],
            "Location": made.store.url(f"{location_of(made.live().tables['gold.fct'].metadata)}/metadata/"),
        },
    }
    glue.create_table(DatabaseName=database, TableInput=crawled)
    trino.rows(f"create table added with (location = '{made.store.url('elsewhere/added')}') as select 1 as a")
    try:
        assert "busco_gold.added, busco_gold.metadata" in repair(made)
        assert entries(made).keys() - by_records(made).keys() == {"gold.added", "gold.metadata"}
        assert by_trino(trino, made) == newest
        assert trino.rows("select a from added") == [(1,)]
    finally:
        trino.rows("drop table added")
        glue.delete_table(DatabaseName=database, Name="metadata")
