"""The command from a user's point of view: its output and its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from busco.errors import BuscoError
from busco.ingest.load import Loaded
from busco.lake import releases
from busco.settings import get_settings
from busco.warehouse.dbt import opened
from tests.command import Command, in_process
from tests.integration.conftest import MINI
from tests.platforms import ENVIRONMENT, ROOT, Platform, csv_text, platform

HEADER = ("id", "customer", "amount", "day", "n")
GOOD = [("a", "x", "1.50", "2018-01-01", 1), ("b", "y", "2.25", "2018-01-02", None)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a release of the small project and of gold.days, which shares a test with gold.fct."""
    home = tmp_path_factory.mktemp("command")
    with platform(home, MINI) as made:
        made.model(
            "gold/days",
            "select distinct day from {{ ref('orders') }}",
            "models:\n  - name: days\n    columns:\n      - name: day\n        data_tests: [relationships: "
            "{name: days_in_fct, arguments: {to: ref('fct'), field: day}}]\n",
        )
        made.deliver(csv_text(HEADER, GOOD))
        assert made.build().good
        yield made


@pytest.fixture
def busco(live: Platform, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process; returns its exit status and the output on both streams."""
    return in_process(capfd)


def interrupt_when(moment: threading.Event) -> None:
    # jobs that a script runs in the background ignore SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def kill() -> None:
        assert moment.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=kill, daemon=True).start()


@contextmanager
def delivered_to_another_thread() -> Iterator[None]:
    """Keeps signals from the main thread: the kernel may deliver a process's signal to any of its threads."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# -- build ------------------------------------------------------------------------------------------------------------


def test_a_build_with_a_failed_model_ends_with_status_1_and_keeps_dbt_s_files(live: Platform, busco: Command) -> None:
    live.model("gold/broken", "select 1 / 'x' as a, nothing as b from {{ ref('orders') }}")
    stale = live.home / f".busco/dbt/target-999999999@{socket.gethostname()}-x"
    stale.mkdir(parents=True)
    try:
        status, printed = busco("dbt", "build", "--select", "broken")
    finally:
        (live.home / "dbt_project/models/gold/broken.sql").unlink()
    assert status == 1
    last = live.home / ".busco/dbt/last"
    assert f"the files from dbt's target folder are in {last}" in printed
    assert (last / "run_results.json").is_file()
    assert not stale.exists(), "the target folder of a process that no longer exists is deleted too"
    assert '{"unique_id"' not in printed


def test_the_error_of_a_model_that_needs_a_package_says_how_to_install_it(live: Platform, busco: Command) -> None:
    live.model("gold/packaged", "select {{ utils.surrogate('a') }} as a")
    try:
        run, outcome = live.built("packaged")
    finally:
        (live.home / "dbt_project/models/gold/packaged.sql").unlink()
    assert not outcome.good
    result = run.latest_results()["model.busco.packaged"]
    assert "'utils' is undefined" in result.error
    assert result.error.splitlines()[-1].endswith("then run: busco dbt deps")


def test_a_selection_includes_tests_whose_other_tables_are_selected_or_were_ever_built(live: Platform) -> None:
    with opened(live.settings) as dbt:
        dbt.parse()
        joint = "days_in_fct"
        assert any(joint in node for node in dbt.select("days", built={"gold.fct", "silver.orders"}).nodes)
        assert any(joint in node for node in dbt.select("days fct", built=set()).nodes)
        alone = dbt.select("+days", built=set())
        assert not any(joint in node for node in alone.nodes)
        assert any(node.endswith(".days") for node in alone.nodes)
    assert alone.notes == (f"left out, because gold.fct was never built: {joint}",)


@pytest.mark.parametrize(
    ("select", "unmatched"),
    [
        ("fct typo_model", ["typo_model"]),
        ("fct, days", ["fct,"]),
        ("tag:none fct tag:nobody", ["tag:none", "tag:nobody"]),
        ("fct days", []),
        ("+fct fct,tag:x days", ["fct,tag:x"]),
    ],
)
def test_each_part_of_a_selection_that_matches_nothing_is_named(
    live: Platform, select: str, unmatched: list[str]
) -> None:
    with opened(live.settings) as dbt:
        dbt.parse()
        found = dbt.select(select)
    assert found.nodes
    assert found.notes == tuple(f"{word!r} in the selection matches nothing" for word in unmatched)


def test_a_build_names_what_matches_nothing_and_shows_dbt_s_own_selection_errors(
    live: Platform, busco: Command
) -> None:
    before = live.live().release
    status, printed = busco("dbt", "build", "--select", "days", "--select", "typo_model")
    assert status == 0
    assert "'typo_model' in the selection matches nothing" in printed
    status, printed = busco("dbt", "build", "--select", "typo, model")
    assert status == 1
    assert "the selection 'typo, model' matches nothing" in printed
    assert "a comma means that both must match" in printed
    status, printed = busco("dbt", "build", "--select", "nomethod:fct")
    assert status == 1
    assert "'nomethod' is not a valid method name" in printed
    assert "•••" not in printed
    status, printed = busco("select", "days typo_model")
    assert status == 0
    assert "'typo_model' in the selection matches nothing" in printed
    assert live.live().release == before


@pytest.mark.parametrize(
    ("select", "exclude", "message"),
    [
        ("days", "days typo", "the selection 'days' matches only what is excluded by 'days typo'"),
        ("typo", "days", "the selection 'typo' matches nothing"),
        ("days_in_fct", "", "matches only tests that are left out, because gold.days, gold.fct were never built"),
    ],
)
def test_the_error_for_a_selection_without_nodes_says_why_there_are_none(
    live: Platform, select: str, exclude: str, message: str
) -> None:
    with opened(live.settings) as dbt:
        dbt.parse()
        with pytest.raises(BuscoError) as refused:
            dbt.select(select, exclude, built=set())
        assert message in refused.value.message
        assert dbt.select("fct days", "days typo").notes == ("'typo' in the exclusion matches nothing",)


def test_a_single_model_is_published_with_the_tests_that_it_shares_with_others(live: Platform, busco: Command) -> None:
    before = live.live().release
    status, printed = busco("dbt", "build", "--select", "fct", "--full-refresh", "--publish")
    assert status == 0, printed
    assert live.live().release != before
    assert '{"unique_id"' not in printed


def test_a_publish_that_is_on_hold_ends_with_status_1_and_says_how_to_resume(live: Platform, busco: Command) -> None:
    releases.rollback(live.store, ENVIRONMENT, live.live().release, "ana", "wrong prices")
    try:
        status, printed = busco("dbt", "build", "--select", "fct", "--publish")
    finally:
        releases.resume(live.store, ENVIRONMENT)
    assert status == 1
    assert "wrong prices" in printed
    assert "busco release resume" in printed


def test_an_interrupted_build_ends_with_status_130(live: Platform, busco: Command) -> None:
    live.model("gold/slow", "select count(*) as n from range(100000000000) as r(i) where hash(i) = 1")
    running = threading.Event()

    def watch() -> None:
        while not running.is_set():
            if any("slow" in key and key.endswith(".json") for key in live.store.keys("_lake/env/prod/runs/")):
                running.set()

    threading.Thread(target=watch, daemon=True).start()
    interrupt_when(running)
    try:
        status, printed = busco("dbt", "build", "--select", "slow")
    finally:
        running.set()
        (live.home / "dbt_project/models/gold/slow.sql").unlink()
    assert (status, printed.splitlines()[-1]) == (130, "busco: interrupted")


# -- dbt's other commands ---------------------------------------------------------------------------------------------


def test_dbt_commands_receive_their_options_and_unknown_options_are_wrong_usage(live: Platform, busco: Command) -> None:
    status, printed = busco("dbt", "debug")
    assert status == 0, printed
    status, printed = busco("dbt", "foo")
    assert (status, "dbt has no command 'foo'" in printed) == (2, True)
    assert busco("dbt", "ls", "--nonsense")[0] == 2
    status, printed = busco("dbt", "compile", "--select", "fct")
    assert status == 0, printed
    assert str(live.home / ".busco/dbt/last") in printed
    assert list((live.home / ".busco/dbt/last/compiled").rglob("fct.sql"))


# -- query ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["athena", "duckdb"])
def test_each_engine_accepts_only_a_single_read_only_statement(live: Platform, busco: Command, engine: str) -> None:
    for sql in (
        "copy (select 1) to '/tmp/busco-was-here'",
        "explain analyze copy (select 1) to '/tmp/busco-was-here'",
        "create table x as select 1",
        "drop table busco_gold.fct",
        "select 1; select 2",
        "select 1; drop table busco_gold.fct",
        "unload (select 1) to 's3://x/y'",
    ):
        status, printed = busco("query", "--engine", engine, sql)
        assert (status, "a single read-only statement" in printed) == (1, True), sql
    for sql in ("", ";", "-- nothing"):
        status, printed = busco("query", "--engine", engine, sql)
        assert (status, "the query is empty" in printed) == (1, True), sql
    for sql in ("-- how many\nselect 1 as one;", "with a as (values (1)) select * from a", "(select ';' as a)"):
        status, printed = busco("query", "--engine", engine, sql)
        assert (status, "1 row" in printed) == (0, True), printed


@pytest.mark.parametrize("engine", ["athena", "duckdb"])
def test_each_engine_shows_describes_and_explains(live: Platform, busco: Command, engine: str) -> None:
    for sql, expected in (
        ("show databases", "busco_gold" if engine == "athena" else "memory"),
        ("show tables from busco_gold", "fct"),
        ("describe busco_gold.fct", "amount"),
        ("explain select day from busco_gold.fct", "day"),
    ):
        status, printed = busco("query", "--engine", engine, sql)
        assert (status, expected in printed) == (0, True), printed


def test_both_engines_return_the_same_json_and_csv(live: Platform, busco: Command) -> None:
    sql = (
        "select cast(1.50 as decimal(12,2)) as d, 1 as i, cast('nan' as double) as nan, cast(0.25 as double) as f, "
        "1 = 1 as yes, cast(null as integer) as none, timestamp '2018-01-01 10:00:00' as t, date '2018-01-01' as day, "
        "'ü\"' as s, 'ab'::blob as b, cast(0 as decimal(38,10)) as zero, timestamptz '2018-01-01 10:00:00+02' as tz"
    )
    expected = [
        {"d": "1.50", "i": 1, "nan": None, "f": 0.25, "yes": True, "none": None}
        | {"t": "2018-01-01 10:00:00", "day": "2018-01-01", "s": 'ü"', "b": "61 62", "zero": "0.0000000000"}
        | {"tz": "2018-01-01 08:00:00+00:00"}
    ]
    printed = {
        engine: busco("query", "--engine", engine, "--format", "json", sql)[1] for engine in ("athena", "duckdb")
    }
    assert json.loads(printed["duckdb"], parse_constant=pytest.fail) == expected
    assert printed["athena"] == printed["duckdb"]
    csv = {engine: busco("query", "--engine", engine, "--format", "csv", sql)[1] for engine in ("athena", "duckdb")}
    assert csv["athena"] == csv["duckdb"]
    assert ",true," in csv["duckdb"]
    assert ",61 62,0.0000000000," in csv["duckdb"]
    status, message = busco("query", "--engine", "duckdb", "--format", "json", "select 1 as a, 2 as a")
    assert (status, "two columns are named 'a'" in message) == (1, True)


@pytest.mark.parametrize("engine", ["athena", "duckdb"])
def test_the_error_for_a_missing_table_lists_what_exists(live: Platform, busco: Command, engine: str) -> None:
    def run(sql: str) -> tuple[int, str]:
        return busco("query", "--engine", engine, sql)

    status, printed = run("select * from nothing_of_this_name")
    assert status == 1
    assert "nothing_of_this_name" in printed
    assert "busco_gold has the tables days, fct" in printed
    status, printed = run("select * from busco_silver.v_orders")
    assert status == 1
    assert not re.search(r"schema\W.*does not exist", printed, re.IGNORECASE)
    assert "silver.v_orders is a view of the dbt project busco: Glue and Athena show only tables" in printed
    assert "the databases are busco_bronze, busco_gold, busco_silver" in run("select * from busco_golf.fct")[1]
    status, printed = run("select nothing_of_this_name from busco_gold.fct")
    assert (status, "has the tables" in printed) == (1, False)


def test_an_empty_release_id_is_wrong_usage_not_the_live_release(live: Platform, busco: Command) -> None:
    for arguments in (
        ("query", "--release", "", "select 1"),
        ("query", "--env", "prod", "--engine", "athena", "select 1"),
        ("query", "--release", "r1", "--run", "x", "select 1"),
        ("release", "show", ""),
        ("release", "rollback", "", "--reason", "x"),
        ("release", "list", "-n", "-1"),
    ):
        assert busco(*arguments)[0] == 2, arguments


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [nullcontext, delivered_to_another_thread])
def test_an_interrupted_query_ends_with_status_130(
    live: Platform, busco: Command, monkeypatch: pytest.MonkeyPatch, how: Callable[[], AbstractContextManager[None]]
) -> None:
    from busco.lake import reading

    opening, ready = reading.open_versions, threading.Event()

    def open_and_signal(*arguments: object) -> object:
        connection = opening(*arguments)  # type: ignore[arg-type]
        ready.set()
        return connection

    monkeypatch.setattr(reading, "open_versions", open_and_signal)
    interrupt_when(ready)
    endless = "select count(*) from range(100000000000) as r(i) where hash(i) = 1"
    with how():
        status, printed = busco("query", "--engine", "duckdb", endless)
    assert (status, printed.strip()) == (130, "busco: interrupted")


# -- ingest -----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [nullcontext, delivered_to_another_thread])
def test_an_interrupted_ingest_ends_with_status_130_and_releases_its_files(
    live: Platform, busco: Command, monkeypatch: pytest.MonkeyPatch, how: Callable[[], AbstractContextManager[None]]
) -> None:
    started, released = threading.Event(), threading.Event()

    def endless(*arguments: object) -> Loaded:
        progress: Callable[[int], None] = arguments[-1]  # type: ignore[assignment]
        started.set()
        try:
            while True:
                progress(0)
        finally:
            released.set()

    monkeypatch.setattr("busco.ingest.ingest.load", endless)
    interrupt_when(started)
    file = live.write("in/orders-slow.csv", csv_text(HEADER, GOOD))
    with how():
        status, printed = busco("ingest", str(file))
    assert (status, printed.strip()) == (130, "busco: interrupted")
    assert released.is_set()


# -- errors in the environment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUSCO_ENVIRONMENT", "Foo"),
        ("BUSCO_DBT_THREADS", "abc"),
        ("BUSCO_DUCKDB_MEMORY_LIMIT", "lots"),
        ("BUSCO_STATE_DIR", "/proc/nowhere"),
        ("BUSCO_HOME", "/tmp"),
    ],
)
def test_a_variable_with_an_invalid_value_is_named(
    live: Platform, busco: Command, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    status, printed = busco("release", "list")
    assert status == 1
    assert printed.startswith(f"busco: {name}")
    get_settings.cache_clear()


def test_a_local_aws_that_does_not_respond_is_reported_with_the_command_that_starts_it(
    live: Platform, busco: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSCO_ENDPOINT_URL", "http://127.0.0.1:9")
    for arguments in (("query", "select 1"), ("release", "list"), ("dbt", "build"), ("ingest", "x.csv")):
        status, printed = busco(*arguments)
        assert status == 1
        assert "the local AWS is not responding at http://127.0.0.1:9" in printed
        assert "busco aws up" in printed


def test_an_endpoint_that_stops_responding_midway_is_named(
    live: Platform, busco: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb
    from botocore.exceptions import EndpointConnectionError

    lost = "IO Error: Could not connect to server error for HTTP HEAD to 'http://127.0.0.1:9/lake/x'"
    for error in (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), duckdb.IOException(lost)):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("busco.lake.releases.read_live", fail)
        status, printed = busco("release", "show")
        assert status == 1
        assert "is not responding at http://127.0.0.1:9" in printed


def test_a_closed_pipe_and_a_full_disk_cause_no_traceback(live: Platform) -> None:
    command = f"{ROOT}/.venv-dbt/bin/python -m busco release list --format json"
    # the pipe's reader exits before anything is written
    gone = subprocess.run(["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (gone.stdout.strip(), gone.stderr) == ("141", "")
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 1
    assert full.stderr == "busco: cannot write: No space left on device\n  → free up space, or write elsewhere\n"


def test_without_a_terminal_each_row_is_one_line(live: Platform, busco: Command) -> None:
    long = "x" * 1000
    _, printed = busco("query", "--engine", "duckdb", f"select '{long}' as a, '{long}' as b")
    assert f"{long}  {long}\n" in printed


def test_a_line_break_in_a_path_is_accepted_and_printed_escaped(live: Platform, busco: Command) -> None:
    odd: Path = live.write("in/new\nline/orders-a\nb.csv", csv_text(HEADER, GOOD))
    status, printed = busco("ingest", str(odd))
    assert (status, "orders-a\\nb.csv" in printed) == (0, True), printed
