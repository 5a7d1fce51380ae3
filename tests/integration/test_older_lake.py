"""A lake that older code made can be used: read, built on, published to, rolled back."""

from __future__ import annotations

import getpass
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from busco.aws import client
from busco.errors import BuscoError
from busco.lake import releases, replays
from busco.lake.contents import read_versions
from busco.lake.records import FORMAT, Release
from busco.lake.runs import Run, open_run
from tests.integration.test_personal_data import static
from tests.lakes.make import HEADER, restore
from tests.platforms import ENVIRONMENT, Platform, csv_text

LAKE = Path(__file__).parents[1] / "lakes/format_1.tar.xz"
COUNT = "select count(*) from busco_gold.fct"


@pytest.fixture
def older(mini: Platform) -> Platform:
    restore(mini, LAKE)
    return mini


def history(made: Platform) -> list[Release]:
    return list(releases.history(made.store, ENVIRONMENT))


def stored(made: Platform, release: str) -> dict[str, Any]:
    found = made.store.get(ENVIRONMENT.release(release))
    assert found is not None
    return dict(json.loads(found.body))


def runs(made: Platform) -> tuple[Run, Run]:
    """Returns the run that was built but not published, and the run that was only pinned."""
    published = {release.run for release in history(made)}
    built, pinned = sorted(set(made.store.folders(ENVIRONMENT.all_runs)) - published)
    return open_run(made.store, ENVIRONMENT, built), open_run(made.store, ENVIRONMENT, pinned)


def locations(made: Platform) -> list[str]:
    glue, settings = client("glue", made.settings), made.settings
    return [
        f"{table['StorageDescriptor']['Location']}/"
        for layer in ("bronze", "silver", "gold")
        for table in glue.get_tables(DatabaseName=settings.database(layer))["TableList"]
    ]


def test_every_command_that_reads_works_on_an_older_lake(older: Platform) -> None:
    assert older.busco("release", "list").count("local.") == 3
    assert "ON HOLD" in older.busco("release", "show")
    assert older.busco("run", "list").count("local.") == 5
    for release in history(older):
        assert older.duckdb(COUNT, release)
        assert release.release in older.busco("release", "show", release.release, "--json")
    assert older.query(COUNT) == [("2",)]
    for run in runs(older):
        assert "pinned" in older.busco("run", "show", run.name)
        assert older.busco("query", "--run", run.name, "--format", "csv", COUNT)


def test_a_run_that_older_code_pinned_is_finished_in_the_format_that_it_can_read(older: Platform) -> None:
    run, _ = runs(older)
    assert run.pin.format == 1
    with pytest.raises(releases.OnHold):
        older.publish(run)
    older.busco("release", "resume", "--no-start")
    release = older.publish(run)
    written = stored(older, release.release)
    assert "format" not in written
    assert all(version["files"] and version["columns"] for version in written["tables"].values())
    assert len(written["tables"]["bronze.orders"]["deliveries"]) == 4
    assert older.query(COUNT) == [("3",)]


@pytest.mark.slow
def test_a_run_that_older_code_only_pinned_is_built_by_this_code_in_that_format(older: Platform) -> None:
    from busco.warehouse.runner import work

    older.busco("release", "resume", "--no-start")
    _, run = runs(older)
    outcome = work(older.settings, run.name)
    assert outcome is not None
    assert outcome.good
    entry = older.store.get(run.layout.entry("gold.fct"))
    assert entry is not None
    assert json.loads(entry.body)["version"]["files"]
    older.publish(run)
    assert older.query(COUNT) == [("3",)]


@pytest.mark.slow
def test_the_first_new_run_gives_every_version_a_record_and_a_location_of_its_own(older: Platform) -> None:
    older.busco("release", "resume", "--no-start")
    rows = older.query("select * from busco_gold.fct order by day")
    outcome = older.build("fct")
    assert outcome.good
    release = older.live()
    assert stored(older, release.release)["format"] == FORMAT
    whole = read_versions(older.store, release.tables.values())
    assert all(older.store.get(version.record) for version in release.tables.values())
    assert {table: len(version.files) for table, version in whole.items()} == {
        table: version.files for table, version in release.tables.items()
    }
    found = locations(older)
    assert len(found) == 3
    assert not any(one.startswith(other) for one, other in permutations(found, 2))
    assert not any(older.store.url(file.key).startswith(tuple(found)) for v in whole.values() for file in v.files)
    assert older.query("select * from busco_gold.fct order by day")[: len(rows)] == rows
    older.deliver(csv_text(HEADER, [("o7", "y", "7.50", "2018-01-04", 6)]), "orders-e.csv")
    assert older.build().good
    assert older.query(COUNT) == [("4",)]


def test_an_older_release_can_be_rolled_back_to_and_read_by_athena(older: Platform) -> None:
    first, *_ = reversed(history(older))
    expected = older.duckdb("select * from busco_gold.fct order by day", first)
    made = older.busco("release", "rollback", first.release, "--reason", "all others are wrong")
    assert f"with the content of {first.release}" in made
    assert older.duckdb("select * from busco_gold.fct order by day") == expected
    assert older.query(COUNT) == [(str(len(expected)),)]
    assert all("/metadata/" in location for location in locations(older))
    assert older.live().format == FORMAT


@pytest.mark.slow
def test_a_repair_gives_every_kept_version_a_place_of_its_own_and_keeps_the_hold(older: Platform) -> None:
    before, kept = older.query("select * from busco_gold.fct order by day"), history(older)
    printed = older.busco("release", "repair", "--check", status=1)
    assert printed.count("the format-1 version ") == printed.count("shares its Iceberg location") > len(kept[0].tables)
    assert [one.release for one in history(older)] == [one.release for one in kept]
    older.busco("release", "repair")
    live = older.live()
    assert stored(older, live.release)["format"] == FORMAT
    assert (live.previous, live.rolled_back_to) == (kept[0].release, kept[0].rolled_back_to)
    assert "ON HOLD" in older.busco("release", "show")
    assert all("/metadata/" in location for location in locations(older))
    assert older.query("select * from busco_gold.fct order by day") == before
    older.busco("release", "repair", "--check")
    # a rollback needs nothing of the shared location's metadata files any more
    for key in older.store.keys("_lake/env/prod/iceberg/"):
        if key.endswith(".json"):
            older.store.client.delete_object(Bucket=older.store.bucket, Key=key)
    first, *_ = reversed(kept)
    expected = older.duckdb("select * from busco_gold.fct order by day", first)
    older.busco("release", "rollback", first.release, "--reason", "all others are wrong")
    assert older.query(COUNT) == [(str(len(expected)),)]


@pytest.mark.slow
def test_a_run_that_older_code_pinned_can_be_replayed(older: Platform) -> None:
    name = next(release.run for release in history(older) if release.kind == "publish")
    source = open_run(older.store, ENVIRONMENT, name)
    assert source.pin.format == 1
    older.busco("replay", name, "fct", "--code", "here")
    copied = open_run(older.store, replays.environment_of(getpass.getuser()), name)
    found = older.store.get(copied.layout.pin)
    assert found is not None
    assert json.loads(found.body)["bronze"]["bronze.orders"]["files"]
    assert read_versions(older.store, copied.pin.bronze.values()) == read_versions(
        older.store, source.pin.bronze.values()
    )
    assert copied.latest_results()["model.busco.fct"].status == "success"


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["original", "copy", "both"])
def test_lost_metadata_of_an_older_version_is_made_again_with_its_partition_values(older: Platform, lost: str) -> None:
    day = "select count(*) from busco_silver.orders where day = date '2018-01-01'"
    original = history(older)[0].tables["silver.orders"].metadata
    if lost != "original":
        older.busco("release", "repair")
    rows, before = older.query(day), older.live().tables["silver.orders"].metadata
    assert rows != [("0",)]
    for key in {"original": [original], "copy": [before], "both": [original, before]}[lost]:
        older.store.purge(key, whole=True)
    older.busco("release", "repair")
    now = older.live().tables["silver.orders"].metadata
    assert not older.store.missing([now])
    assert older.query(day) == rows
    read = static(older, now).scan(row_filter="day = '2018-01-01'").to_arrow()
    assert read.num_rows == int(rows[0][0])
    older.busco("release", "repair", "--check")


def test_a_release_of_a_later_format_is_refused_and_nothing_is_changed(older: Platform) -> None:
    key = ENVIRONMENT.release(older.live().release)
    found = older.store.get(key)
    assert found is not None
    older.store.put(key, json.dumps({**json.loads(found.body), "format": 9}).encode())
    before = {key: older.store.get(key) for key in older.store.keys("_lake/")}
    with pytest.raises(BuscoError, match="has format 9, but this code reads only formats 1 and 2"):
        older.build()
    assert "docs/upgrading.md" in older.busco("release", "resume", status=1)
    assert {key: older.store.get(key) for key in older.store.keys("_lake/")} == before
