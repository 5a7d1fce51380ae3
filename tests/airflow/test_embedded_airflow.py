"""The embedded Airflow starts once, recovers from any kill, listens only on loopback and leaves no processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
import psycopg2
import pytest

from busco.embedded import airflow, processes
from busco.embedded.airflow_api import AirflowApi
from busco.embedded.postgres import Postgres
from busco.errors import BuscoError
from busco.settings import Settings
from tests.airflow.test_logins import OF_A_ROLE

ALL = ("postgres", *airflow.SERVICES)
LEVELS = 4
DAGS = """
from datetime import datetime

from airflow import DAG
from airflow.models.baseoperator import BaseOperator
from airflow.triggers.base import StartTriggerArgs


class Starts(BaseOperator):
    start_from_trigger = True

    def __init__(self, forever=False, **kwargs):
        super().__init__(**kwargs)
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="test_triggers.Says", trigger_kwargs={"forever": forever}, next_method="", timeout=None
        )

    def execute(self, context):
        raise RuntimeError("never in a worker")


with DAG("levels", start_date=datetime(2024, 1, 1), schedule=None):
    last = Starts(task_id="t0")
    for level in range(1, 4):
        last = last >> Starts(task_id=f"t{level}")

with DAG("waits", start_date=datetime(2024, 1, 1), schedule=None):
    Starts(task_id="forever", forever=True)
"""
TRIGGERS = """
import asyncio

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent


class Says(BaseTrigger):
    def __init__(self, forever=False):
        super().__init__()
        self.forever = forever

    def serialize(self):
        return "test_triggers.Says", {"forever": self.forever}

    async def run(self):
        self.log.info("the trigger speaks")
        try:
            while self.forever:
                await asyncio.sleep(1)
        except asyncio.CancelledError:
            self.log.info("the trigger is told to stop")
            raise
        yield TaskSuccessEvent()
"""


@dataclass
class Platform:
    settings: Settings

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(self.settings)

    def up(self) -> list[str]:
        """Starts it and returns its messages."""
        messages: list[str] = []
        airflow.up(self.settings, messages.append)
        return messages

    def on_call_may(self, permission: str) -> bool:
        """Whether the role OnCall has a permission, such as `can_delete DAG Runs`."""
        with closing(Postgres(self.settings.state).connect()) as connection, connection.cursor() as cursor:
            cursor.execute(OF_A_ROLE.replace("?", "%s"), ["OnCall"])
            return permission in {row[0] for row in cursor.fetchall()}

    def pids(self) -> dict[str, int]:
        found = {name: processes.find(self.settings.state, name) for name in ALL}
        return {name: process.pid for name, process in found.items() if process}

    def family(self) -> list[psutil.Process]:
        """Returns every process of the platform: the recorded ones and all others in their sessions."""
        leaders = set(self.pids().values())
        return [process for process in psutil.process_iter() if _session(process.pid) in leaders]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _wait(ready: Callable[[], bool], limit: float = 30) -> None:
    deadline, pause = time.monotonic() + limit, threading.Event()
    while not ready():
        assert time.monotonic() < deadline, "the condition was not met within the time limit"
        pause.wait(0.1)


def _settings(home: Path) -> Settings:
    for folder in ("dags", "plugins", "dbt_project"):
        (home / folder).mkdir(exist_ok=True)
    (home / "dbt_project/dbt_project.yml").touch()
    (home / "dags/levels.py").write_text(DAGS)
    (home / "plugins/test_triggers.py").write_text(TRIGGERS)
    return Settings(home=home, keep_graph=False)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # pytest's own folders are private to their owner, but PostgreSQL runs as another user if this one is root
    home = Path(tempfile.mkdtemp(prefix="busco-airflow-"))
    home.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    with mock.patch.dict(os.environ, {**kept, "BUSCO_HOME": str(home)}, clear=True):
        yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def platform(home: Path) -> Iterator[Platform]:
    made = Platform(_settings(home))
    try:
        made.up()
        yield made
    finally:
        airflow.down(made.settings, lambda _: None)


def test_starting_a_running_platform_starts_nothing(platform: Platform) -> None:
    before = platform.pids()
    assert platform.up() == []
    assert platform.pids() == before
    assert set(before) == set(ALL)


def test_everything_listens_on_this_machine_only(platform: Platform) -> None:
    mine = {process.pid for process in platform.family()}
    listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in mine]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    assert {c.laddr.port for c in listening} == set(
        json.loads((platform.settings.state / "ports.json").read_text()).values()
    )


def test_the_webserver_keeps_its_files_inside_the_project(platform: Platform) -> None:
    webserver = platform.pids()["webserver"]
    mine = {process.pid for process in platform.family() if _session(process.pid) == webserver}
    assert [c.laddr for c in psutil.net_connections("unix") if c.pid in mine and c.laddr] == []
    assert list((platform.settings.state / "airflow/tmp").iterdir()), "the webserver's cache is missing"


def test_keys_and_passwords_can_be_read_by_their_owner_only(platform: Platform) -> None:
    files = list((platform.settings.state / "secrets").iterdir())
    assert {file.name for file in files} == {"postgres", "postgres-superuser", "fernet", "webserver"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((platform.settings.state / "log").stat().st_mode) == 0o700
    secrets = [file.read_text() for file in files]
    for log in (platform.settings.state / "log").rglob("*.log"):
        assert not any(secret in log.read_text(errors="replace") for secret in secrets), log
    for process in platform.family():
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)


def test_the_database_rejects_a_wrong_password(platform: Platform) -> None:
    dsn = Postgres(platform.settings.state).dsn
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(dsn.replace(dsn.split(":")[2].split("@")[0], "guess"), connect_timeout=5)


@pytest.mark.skipif(os.geteuid() != 0, reason="if Airflow is started by an ordinary user, PostgreSQL runs as that user")
def test_as_root_the_database_runs_as_an_ordinary_user_with_its_own_group_only(platform: Platform) -> None:
    server = psutil.Process(platform.pids()["postgres"])
    import grp
    import pwd

    account = pwd.getpwnam(server.username())
    assert account.pw_name == "busco-postgres"
    assert set(server.gids()) == {account.pw_gid}
    assert grp.getgrgid(account.pw_gid).gr_name == "busco-postgres"


def test_a_chain_of_tasks_runs_in_the_triggerer_without_an_error(platform: Platform) -> None:
    run = platform.api.trigger("levels", {}, run_id="mine")
    assert run == "mine"
    _wait(lambda: platform.api.dag_run("levels", run)["state"] in ("success", "failed"), 60)
    tasks = platform.api.task_instances("levels", run)
    assert [task["state"] for task in tasks] == ["success"] * LEVELS
    log = (platform.settings.state / "log/triggerer.log").read_text()
    assert "Traceback" not in log


def test_the_log_of_a_waiting_trigger_is_read_only_from_its_file(platform: Platform) -> None:
    run = platform.api.trigger("waits", {})
    _wait(lambda: "the trigger speaks" in platform.api.log("waits", run, "forever", 1))
    log = platform.api.log("waits", run, "forever", 1)
    assert "served logs" not in log
    assert "\x1b[" not in log
    platform.api.set_state("waits", run, "forever", "failed")
    _wait(lambda: "told to stop" in platform.api.log("waits", run, "forever", 1))


def test_a_run_that_airflow_refuses_is_reported_at_once(platform: Platform) -> None:
    platform.api.trigger("levels", {}, run_id="twice")
    begun = time.monotonic()
    with pytest.raises(BuscoError, match="409"):
        platform.api.trigger("levels", {}, run_id="twice")
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_after_all_processes_are_killed_it_starts_again_and_continues_the_running_tasks(platform: Platform) -> None:
    run = platform.api.trigger("waits", {})
    _wait(lambda: "the trigger speaks" in platform.api.log("waits", run, "forever", 1))
    address, before = airflow.url(platform.settings), platform.pids()
    for process in platform.family():
        process.kill()
    platform.up()
    assert airflow.url(platform.settings) == address
    assert not set(platform.pids().values()) & set(before.values())
    assert all(state.startswith("running") for _, state in airflow.status(platform.settings))
    # well before Airflow itself would consider the former triggerer dead
    _wait(lambda: platform.api.log("waits", run, "forever", 1).count("the trigger speaks") == 2, 15)
    platform.api.set_state("waits", run, "forever", "failed")


@pytest.mark.slow
def test_the_children_of_a_killed_process_are_ended_before_the_next_one_starts(platform: Platform) -> None:
    address, before = airflow.url(platform.settings), platform.family()
    for pid in platform.pids().values():
        os.kill(pid, signal.SIGKILL)
    platform.up()
    assert airflow.url(platform.settings) == address
    assert processes.wait_ended(before, 0) == []


@pytest.mark.long
def test_a_start_that_was_killed_halfway_is_completed_by_the_next_one(home: Path) -> None:
    other = home / "other"
    other.mkdir()
    platform = Platform(_settings(other))
    code = "from busco.settings import Settings; from busco.embedded import airflow; airflow.up(Settings(), print)"
    moments: tuple[Callable[[], bool], ...] = (
        lambda: any(platform.settings.state.glob("postgres-new.*/data/PG_VERSION")),
        lambda: (platform.settings.state / "run/postgres.json").exists(),
        lambda: (platform.settings.state / "run/scheduler.json").exists(),
    )
    try:
        for moment in moments:
            environment = {**os.environ, "BUSCO_HOME": str(other)}
            starting = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
            _wait(lambda moment=moment, starting=starting: moment() or starting.poll() is not None)
            starting.kill()
            assert starting.wait() == -signal.SIGKILL
        platform.up()
        assert set(platform.pids()) == set(ALL)
        assert platform.api.wait_for_dag("levels")["dag_id"] == "levels"
        assert not list(platform.settings.state.glob("postgres-new.*"))
    finally:
        everything = platform.family()
        airflow.down(platform.settings, lambda _: None)
    assert processes.wait_ended(everything, 0) == []


def test_stopping_it_leaves_no_process_and_no_open_port(platform: Platform) -> None:
    everything, messages = platform.family(), []
    assert len(everything) > len(ALL)
    airflow.down(platform.settings, messages.append)
    assert processes.wait_ended(everything, 0) == []
    assert messages[-1] == "stopped PostgreSQL"
    assert dict(airflow.status(platform.settings)) == dict.fromkeys(ALL, "stopped")
    for port in json.loads((platform.settings.state / "ports.json").read_text()).values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    airflow.down(platform.settings, messages.append)  # stopping it again is not an error


@pytest.mark.slow
def test_a_restart_keeps_the_data_and_removes_the_leftovers_of_a_killed_start(platform: Platform) -> None:
    data = Path((platform.settings.state / "postgres.location").read_text().strip())
    leftover = data.with_name("postgres-new.killed")
    (leftover / "data").mkdir(parents=True)
    platform.up()
    platform.api.trigger("levels", {}, run_id="kept")
    _wait(lambda: platform.api.dag_run("levels", "kept")["state"] == "success")
    assert not platform.on_call_may("can_delete DAG Runs")
    # as an earlier version of the platform left it
    with closing(Postgres(platform.settings.state).connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into ab_permission_view_role (id, permission_view_id, role_id) select "
            "nextval('ab_permission_view_role_id_seq'), pv.id, r.id from ab_permission_view pv "
            "join ab_permission p on p.id = pv.permission_id join ab_view_menu v on v.id = pv.view_menu_id "
            "join ab_role r on r.name = 'OnCall' where p.name = 'can_delete' and v.name = 'DAG Runs'"
        )
        cursor.execute("comment on database airflow is 'apache-airflow 2.10.5, role OnCall'")
    assert platform.on_call_may("can_delete DAG Runs")
    assert "upgrading Airflow's database" in platform.up()
    assert not platform.on_call_may("can_delete DAG Runs")
    assert platform.api.dag_run("levels", "kept")["state"] == "success"
    assert not leftover.exists()
