"""Releases as readers see them: complete, tested, switched table by table, and completed after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from busco.aws import client
from busco.catalog import athena, glue
from busco.cli.releases import show_glue
from busco.errors import BuscoError
from busco.lake import pins, releases
from busco.lake.engine import connect
from busco.lake.relations import select_sql
from busco.project import Project
from busco.settings import LAYERS
from busco.warehouse.session import Session
from tests import warm
from tests.platforms import ENVIRONMENT, Platform, csv_text

HEADER = ("id", "customer", "amount", "day", "n")
DAYS = 3


def orders(number: int) -> str:
    """Returns orders that all contain `number`, so that a reader of one version sees the same number in all rows."""
    rows = [(f"o{day}", "x", "1.50", f"2018-01-0{day + 1}", number) for day in range(DAYS)]
    return csv_text(HEADER, rows)


def tables_in_glue(platform: Platform) -> dict[str, dict[str, Any]]:
    found = {}
    for layer in LAYERS:
        database = f"busco_{layer}"
        for table in client("glue", platform.settings).get_tables(DatabaseName=database)["TableList"]:
            found[f"{layer}.{table['Name']}"] = table
    return found


def shown(platform: Platform) -> dict[str, str]:
    return {name: table["Parameters"]["busco.version"] for name, table in tables_in_glue(platform).items()}


def versions(release: releases.Release) -> dict[str, str]:
    return {table: version.version for table, version in release.tables.items()}


# -- readers ----------------------------------------------------------------------------------------------------------


def quickly_published(platform: Platform, number: int) -> None:
    """Publishes a run of silver.orders alone: calls what the materialization calls, but without dbt."""
    project = Project.read(platform.settings.manifest_path)
    nodes = ["model.busco.orders"]
    run = pins.pin(platform.store, ENVIRONMENT, f"quick{number}", 1, project.contracts, project.hash, nodes=nodes)
    session = Session(platform.settings, project, platform.store, run, run.base(), 1, frozenset(nodes))
    files = select_sql(session.version("bronze.orders"), platform.store.bucket)
    sql = f"select * replace ({number} as n) from bronze.orders"
    with connect(platform.settings) as connection:
        connection.execute(f"create schema bronze; create view bronze.orders as {files}")
        job: dict[str, Any] = {"node": nodes[0], "sql": sql, "counted": {}}
        session.begin(job)
        job["described"] = connection.execute(f"describe {sql}").fetchall()
        session.check_names(job)
        session.describe(job)
        job["stats"] = connection.execute(job["copy_sql"]).fetchall()
        session.wrote(job)
        session.commit(job)
    releases.publish(run, releases.Audit({}, frozenset({"silver.orders"}), "busco", ""), "test", platform.live().docs)
    show_glue(platform.settings, platform.store, ENVIRONMENT)


@pytest.mark.slow
@pytest.mark.parametrize("published", [4, pytest.param(20, marks=pytest.mark.long)])
def test_readers_see_one_version_of_a_table_at_a_time_during_publishes_and_rollbacks(
    mini: Platform, published: int
) -> None:
    mini.deliver(orders(0))
    mini.build()
    settings, stop = mini.settings, threading.Event()
    problems: list[BaseException] = []
    seen: dict[str, set[Any]] = {"athena": set(), "duckdb": set()}
    reads = {"athena": 0, "duckdb": 0}
    sql = "select count(*), min(n), max(n) from busco_silver.orders"

    def loop(engine: str, read: Callable[[], tuple[Any, ...]]) -> None:
        while not stop.is_set():
            try:
                rows, least, most = (int(value) for value in read())
                assert (rows, least) == (DAYS, most), f"{engine} saw a mixture: {rows} rows from {least} to {most}"
                seen[engine].add(most)
                reads[engine] += 1
            except BaseException as error:
                problems.append(error)
            stop.wait(0.05)

    def wait_for_readers() -> None:
        """Waits until each engine has completed a read that began after the last switch."""
        before, deadline = dict(reads), time.monotonic() + 60
        while any(reads[engine] < before[engine] + 2 for engine in reads) and not problems:
            assert time.monotonic() < deadline, "a reader is stuck"
            stop.wait(0.02)

    api = client("athena", settings)
    readers = [
        threading.Thread(target=loop, args=("athena", lambda: athena.query(api, sql, "busco", "busco_gold").rows[0])),
        threading.Thread(target=loop, args=("duckdb", lambda: mini.duckdb(sql)[0])),
    ]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, published + 1):
            quickly_published(mini, number)
            wait_for_readers()
            if number % 2 == 0:
                history = [release.release for release in releases.history(mini.store, ENVIRONMENT)]
                releases.rollback(mini.store, ENVIRONMENT, history[2], "test", "to check that readers don't notice")
                show_glue(settings, mini.store, ENVIRONMENT)
                releases.resume(mini.store, ENVIRONMENT)
                wait_for_readers()
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert problems == []
    assert len(list(releases.history(mini.store, ENVIRONMENT))) == 1 + published + published // 2
    assert seen == {"athena": set(range(published + 1)), "duckdb": set(range(published + 1))}, "each version was read"


@pytest.mark.slow
def test_a_release_can_be_read_as_it_was_by_its_id(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    old = mini.live().release
    mini.deliver(orders(2))
    mini.build()
    sql = "select max(n) as n from busco_silver.orders"
    assert mini.busco("query", "--format", "csv", sql) == "n\n2\n"
    assert mini.busco("query", "--format", "csv", "--engine", "duckdb", sql) == "n\n2\n"
    assert mini.busco("query", "--format", "csv", "--release", old, sql) == "n\n1\n"
    assert json.loads(mini.busco("query", "--format", "json", "--release", old[:16], sql)) == [{"n": 1}]
    assert "does not match any release that has been live" in mini.busco("query", "--release", "r1999", sql, status=1)
    assert "--release requires DuckDB" in mini.busco("query", "--release", old, "--engine", "athena", sql, status=2)


# -- publishers -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_of_two_concurrent_publishers_wins_and_the_other_says_what_to_do(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    mini.deliver(orders(2))
    one, _ = mini.built()
    fct = mini.home / "dbt_project/models/gold/fct.sql"
    fct.write_text(f"{fct.read_text()} -- another way to write it")
    two, _ = mini.built()
    barrier, results = threading.Barrier(2), {}

    def go(run: Any) -> None:
        audit = mini.audit(run)
        barrier.wait(10)
        try:
            results[run.name] = releases.publish(run, audit, "test", run.docs)
        except (BuscoError, releases.Skipped) as error:
            results[run.name] = error

    threads = [threading.Thread(target=go, args=(run,)) for run in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [result for result in results.values() if isinstance(result, releases.Release)]
    losers = [result for result in results.values() if not isinstance(result, releases.Release)]
    assert [winner.release for winner in winners] == [mini.live().release]
    assert "published by another run since this run was pinned" in str(losers[0])
    assert "clear the pin task" in str(losers[0])


KILLER = """
import os, signal, sys
from busco.settings import get_settings
from busco.lake import releases, objects
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.runs import open_run
from busco.project import Project
from busco.aws import client
from busco.cli.releases import show_glue
import json
run_key, kill_at = sys.argv[1], int(sys.argv[2])
settings = get_settings()
count = 0
def before(*_, **__):
    global count
    count += 1
    if count == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
import botocore.client
call = botocore.client.BaseClient._make_api_call
WRITES = {"PutObject", "CreateTable", "UpdateTable", "DeleteTable"}
def counted(self, operation, parameters):
    if operation in WRITES:
        before()
    return call(self, operation, parameters)
botocore.client.BaseClient._make_api_call = counted
environment = EnvironmentLayout("prod")
store = ObjectStore(client("s3", settings), settings.lake_bucket)
run = open_run(store, environment, run_key)
audit = Project(json.loads(store.get(run.docs + "manifest.json").body)).audit()
releases.publish(run, audit, "test", run.docs)
show_glue(settings, store, environment)
print("writes", count)
"""


@pytest.mark.long
def test_a_publish_that_is_killed_between_any_two_writes_is_completed_by_the_next_attempt(mini: Platform) -> None:
    mini.model("gold/gone", "select day from {{ ref('orders') }}")
    mini.deliver(orders(1))
    mini.build()
    (mini.home / "dbt_project/models/gold/gone.sql").unlink()
    mini.model("gold/fresh", "select day from {{ ref('orders') }}")
    mini.deliver(orders(2))
    run, outcome = mini.built()
    assert outcome.good
    script = mini.write("kill.py", KILLER)
    before, kills = versions(mini.live()), 0

    def attempt(kill_at: int) -> subprocess.CompletedProcess[str]:
        return warm.run(str(script), run.name, str(kill_at), cwd=mini.home, environment=os.environ)

    # killed before the release is created, before and after current.json is swapped, then one write further each time
    while (result := attempt({0: 1, 1: 2, 2: 3}.get(kills, 2))).returncode == -signal.SIGKILL:
        kills += 1
        live = versions(mini.live())
        assert live == before or mini.live().run == run.name
        assert mini.query("select count(*), min(n) = max(n) from busco_silver.orders") == [(str(DAYS), "true")]
        assert kills < 30
    assert result.returncode == 0, result.stderr
    # the release, current.json, the Glue tables including the dropped one, and the docs page
    assert kills >= 6
    assert shown(mini) == versions(mini.live())
    assert "gold.gone" not in shown(mini)
    assert mini.live().dropped == ("gold.gone",)
    assert len([r for r in releases.history(mini.store, ENVIRONMENT) if r.run == run.name]) == 1
    page = mini.store.get(f"{mini.live().docs}index.html")
    assert page is not None
    assert mini.store.get("docs/index.html").body == page.body
    again = attempt(0)
    assert "writes 0" in again.stdout, "nothing correct is written again"


# -- Glue -------------------------------------------------------------------------------------------------------------


def test_glue_shows_types_comments_descriptions_and_the_release_of_every_table(mini: Platform) -> None:
    mini.write(
        "dbt_project/models/gold/fct.yml",
        (mini.home / "dbt_project/models/gold/fct.yml")
        .read_text()
        .replace("name: fct\n", "name: fct\n    description: Days, and what was ordered on each.\n", 1)
        .replace("{name: n, data_type: BIGINT}", '{name: n, data_type: BIGINT, description: "how many; üñ"}'),
    )
    mini.deliver(orders(1))
    mini.build()
    release, found = mini.live(), tables_in_glue(mini)
    assert set(found) == set(release.tables) == {"bronze.orders", "silver.orders", "gold.fct"}
    fct = found["gold.fct"]
    assert fct["Description"] == "Days, and what was ordered on each."
    columns = {
        column["Name"]: (column["Type"], column.get("Comment", "")) for column in fct["StorageDescriptor"]["Columns"]
    }
    assert columns == {
        "day": ("date", ""),
        "orders": ("bigint", ""),
        "n": ("bigint", "how many; üñ"),
        "amount": ("decimal(18,2)", ""),
        "ids": ("array<string>", ""),
    }
    version = mini.version("gold.fct")
    expected = {
        "table_type": "ICEBERG",
        "metadata_location": mini.store.url(version.metadata),
        "busco.release": release.release,
        "busco.version": version.version,
        "busco.rows": "3",
        "busco.unique_id": "model.busco.fct",
        "busco.partition_by": "",
    }
    assert expected.items() <= fct["Parameters"].items()
    assert found["silver.orders"]["Parameters"]["busco.partition_by"] == "day"
    assert found["bronze.orders"]["Parameters"]["busco.unique_id"] == "source.busco.bronze.orders"
    location = fct["StorageDescriptor"]["Location"]
    assert not any(mini.store.url(file.key).startswith(location) for file in version.files), (
        "metadata only (docs/iceberg.md)"
    )


def test_G2_a_sync_that_finds_everything_correct_writes_nothing(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    before = {name: table["VersionId"] for name, table in tables_in_glue(mini).items()}
    again = show_glue(mini.settings, mini.store, ENVIRONMENT)
    assert again is not None
    assert (again.created, again.updated, again.deleted) == ((), (), ())
    assert {name: table["VersionId"] for name, table in tables_in_glue(mini).items()} == before


def test_G1_a_table_that_somebody_changed_is_corrected_and_foreign_tables_are_left_alone(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    api = client("glue", mini.settings)
    foreign = {"Name": "theirs", "TableType": "EXTERNAL_TABLE", "Parameters": {"classification": "csv"}}
    api.create_table(DatabaseName="busco_gold", TableInput=foreign)
    api.delete_table(DatabaseName="busco_silver", Name="orders")
    mine = {**foreign, "Name": "fct"}
    api.update_table(DatabaseName="busco_gold", TableInput=mine)
    done = show_glue(mini.settings, mini.store, ENVIRONMENT)
    assert done is not None
    assert (done.created, done.updated) == (("busco_silver.orders",), ("busco_gold.fct",))
    assert "gold.theirs" in tables_in_glue(mini)
    assert mini.query("select count(*) from busco_gold.fct") == [("3",)]


@pytest.mark.parametrize("moment", ["before the first table is switched", "after the docs page is switched"])
def test_G1_a_sync_ends_with_a_release_that_went_live_during_it(mini: Platform, moment: str) -> None:
    mini.deliver(orders(1))
    mini.build()
    old = mini.live()
    mini.deliver(orders(2))
    run, _ = mini.built()
    releases.publish(run, mini.audit(run), "test", run.docs)
    api, store, switched = client("glue", mini.settings), mini.store, []
    first = moment.startswith("before")
    original: Any = api.update_table if first else store.swap

    def interrupted(*arguments: Any, **request: Any) -> None:
        if not first:
            original(*arguments, **request)
        if not switched:
            switched.append(releases.rollback(mini.store, ENVIRONMENT, old.release, "test", "in the middle").release)
        if first:
            original(*arguments, **request)

    setattr(*((api, "update_table") if first else (store, "swap")), interrupted)
    done = glue.sync(api, store, ENVIRONMENT, mini.settings.database, LAYERS, at_once=1)
    assert done is not None
    assert [done.release] == switched
    assert shown(mini) == versions(old)


@pytest.mark.slow
def test_G1_a_sync_that_was_overtaken_does_not_replace_a_newer_version(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    mini.deliver(orders(2))
    run, _ = mini.built()
    releases.publish(run, mini.audit(run), "test", run.docs)
    slow, answers = client("glue", mini.settings), []
    update = slow.update_table

    def overtaken(**request: Any) -> Any:
        if not answers:
            answers.append("")
            releases.rollback(mini.store, ENVIRONMENT, mini.live().release, "test", "a newer release, shown first")
            show_glue(mini.settings, mini.store, ENVIRONMENT)
        try:
            return update(**request)
        except ClientError as error:
            answers.append(error.response["Error"]["Code"])
            raise

    slow.update_table = overtaken
    glue.sync(slow, mini.store, ENVIRONMENT, mini.settings.database, LAYERS, at_once=1)
    # a call that another thread has begun by then is refused as well
    assert set(answers[1:]) == {"ConcurrentModificationException"}
    assert shown(mini) == versions(mini.live())


@pytest.mark.long
def test_G1_concurrent_syncs_end_with_the_live_release(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    for number in range(2, 5):
        mini.deliver(orders(number))
        run, _ = mini.built()
        releases.publish(run, mini.audit(run), "test", run.docs)
        syncs = [threading.Thread(target=show_glue, args=(mini.settings, mini.store, ENVIRONMENT)) for _ in range(4)]
        for thread in syncs:
            thread.start()
        for thread in syncs:
            thread.join()
        assert shown(mini) == versions(mini.live())


def test_G3_bronze_tables_change_at_publish_and_not_at_ingest(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    mini.deliver(csv_text(HEADER, [("late", "x", "1", "2018-02-01", 9)]), "orders-late.csv")
    count = "select count(*) from busco_bronze.orders"
    assert mini.query(count) == [("3",)]
    assert mini.duckdb(count) == [(3,)]
    mini.build()
    assert mini.query(count) == [("4",)]


@pytest.mark.slow
def test_glue_is_rebuilt_from_the_live_release_when_the_local_aws_restarts(alone: Platform) -> None:
    alone.deliver(orders(1))
    alone.build()
    before = {name: table["Parameters"] for name, table in tables_in_glue(alone).items()}
    alone.busco("aws", "down")
    alone.busco("aws", "up")
    assert {name: table["Parameters"] for name, table in tables_in_glue(alone).items()} == before
    assert alone.query("select count(*) from busco_gold.fct") == [("3",)]


# -- the verbs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_release_list_show_rollback_and_resume_report_what_happened(mini: Platform) -> None:
    assert "nothing is published yet" in mini.busco("release", "show", status=1)
    mini.deliver(orders(1))
    mini.build()
    old = mini.live().release
    mini.deliver(orders(2))
    mini.build()
    assert mini.busco("release", "rollback", old, status=2).count("--reason")
    printed = mini.busco("release", "rollback", old, "--reason", "wrong prices")
    assert f"with the content of {old}" in printed
    assert mini.query("select max(n) from busco_silver.orders") == [("1",)]
    assert "ON HOLD since" in mini.busco("release", "show")
    assert "wrong prices" in mini.busco("release", "list")
    run, _ = mini.built()
    with pytest.raises(releases.Skipped, match="on hold"):
        releases.publish(run, mini.audit(run), "test", run.docs)
    assert re.search(rf"{re.escape(run.name)} .*not published: on hold", mini.busco("run", "list"))
    details = mini.busco("run", "show", run.name, "--all")
    assert re.search(r"runner 1 started from a shell: process \d+ on", details)
    assert re.search(r"model orders: success \(OK\), \d rows", details)
    assert re.search(r"now:\n  not published: .* put publishing on hold at .*: wrong prices", details)
    assert json.loads(mini.busco("run", "show", run.name, "--format", "json"))["run"] == run.name
    printed = mini.busco("release", "resume", "--no-start")
    assert run.name in printed
    assert "there is no hold" in mini.busco("release", "resume", "--no-start")
    assert [r["kind"] for r in json.loads(mini.busco("release", "list", "--format", "json"))] == [
        "rollback",
        "publish",
        "publish",
    ]


def test_a_build_is_invisible_until_it_is_published(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.busco("dbt", "build")
    assert "nothing is published yet" in mini.busco("release", "show", status=1)
    assert tables_in_glue(mini) == {}
    printed = mini.busco("dbt", "build", "--publish")
    assert f"published {mini.live().release}" in printed
    assert shown(mini) == versions(mini.live())


def test_P4_a_build_without_the_tests_is_not_published(mini: Platform) -> None:
    mini.deliver(orders(1))
    printed = mini.busco("dbt", "build", "--exclude", "resource_type:test", "--publish", status=1)
    assert "these tests have not passed on the versions to be published" in printed
    assert "unique_fct_day: has not run" in printed
