"""What OnCall may and may not, and whom a rollback names: asked of Airflow's webserver, by its pages and its API."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from busco.orchestration.access import ON_CALL_MAY
from tests.airflow.driver import logged_in
from tests.airflow.on_call_web import DAG, TASK
from tests.airflow.test_logins import OF_A_ROLE
from tests.airflow.test_logins import Web as Logins
from tests.airflow.test_logins import _wait as wait_for

ROOT = Path(__file__).parents[2]
CONF = {"action": "rollback", "release": "r", "reason": "why", "who": "somebody else"}


class Web:
    def __init__(self, url: str, home: Path) -> None:
        self.url, self.home = url, home
        self.browsers: dict[str, requests.Session] = {}
        self.tokens: dict[str, str] = {}

    def lab(self, what: str, **arguments: str) -> str:
        answer = requests.get(f"{self.url}/lab/{what}", params=arguments, timeout=60, proxies={"no_proxy": "*"})
        assert answer.status_code == 200, answer.text[-2000:]
        return answer.text

    def browser(self, user: str) -> requests.Session:
        if user not in self.browsers:
            self.browsers[user] = logged_in(self.url, user, user)
            token = re.search(
                r'name="csrf_token"[^>]*value="([^"]+)"', self.browsers[user].get(f"{self.url}/home").text
            )
            assert token
            self.tokens[user] = token[1]
        return self.browsers[user]

    def post(self, user: str, path: str, **fields: Any) -> requests.Response:
        """What a page's button sends."""
        browser = self.browser(user)
        return browser.post(
            f"{self.url}{path}", data={"csrf_token": self.tokens[user], **fields}, timeout=60, allow_redirects=False
        )

    def api(self, user: str, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        if "data" not in more:
            more["json"] = body
        return self.browser(user).request(method, f"{self.url}/api/v1/{path}", timeout=60, **more)

    def run(self, user: str = "ana", run: str = "") -> str:
        """A run that a user has triggered; its id."""
        answer = self.api(
            user, "POST", f"dags/{DAG}/dagRuns", {"conf": CONF, "dag_run_id": run or f"run-{uuid4().hex}"}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["dag_run_id"])

    def newest(self) -> str:
        found = self.api("boss", "GET", f"dags/{DAG}/dagRuns?order_by=-id&limit=1").json()
        return str(found["dag_runs"][0]["dag_run_id"])

    def state(self, run: str, task: str = "") -> str:
        path = f"dags/{DAG}/dagRuns/{run}" + (f"/taskInstances/{task}" if task else "")
        return str(self.api("boss", "GET", path).json()["state"])

    def key(self, run: str) -> str:
        """A run's number, by which lists know it."""
        import sqlite3

        with sqlite3.connect(f"file:{self.home}/airflow.db?mode=ro", uri=True) as database:
            return str(database.execute("select id from dag_run where run_id = ?", [run]).fetchone()[0])


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    home = tmp_path_factory.mktemp("on_call")
    (home / "dags").mkdir()
    shutil.copy(ROOT / "dags/operations.py", home / "dags")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    own = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth,airflow.api.auth.backend.session",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "tests.airflow.on_call_web", str(port)]
    with (home / "web.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**kept, **own}, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}", process, home / "web.log")
        yield Web(f"http://127.0.0.1:{port}", home)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def _later(web: Web) -> None:
    web.lab("aged")


# -- what OnCall may --------------------------------------------------------------------------------------------------


def test_on_call_loses_what_it_might_do_before_and_keeps_what_a_dag_file_gives(web: Web) -> None:
    from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride as Stock

    wanted = {*ON_CALL_MAY, *Stock.VIEWER_PERMISSIONS, ("can_edit", "DAG:operations")}
    assert Logins("", None, web.home).ask(OF_A_ROLE, "OnCall") == {f"{what} {of}" for what, of in wanted}  # type: ignore[arg-type]


DELETING: dict[str, Callable[[Web, str], requests.Response]] = {
    "api: a run": lambda web, run: web.api("ana", "DELETE", f"dags/{DAG}/dagRuns/{run}"),
    "api: a DAG": lambda web, _: web.api("ana", "DELETE", f"dags/{DAG}"),
    "api: a dataset's event": lambda web, _: web.api("ana", "POST", "datasets/events", {"dataset_uri": "s3://b/k"}),
    "api: a connection": lambda web, _: web.api(
        "ana", "POST", "connections", {"connection_id": "c", "conn_type": "http"}
    ),
    "api: a variable": lambda web, _: web.api("ana", "POST", "variables", {"key": "k", "value": "v"}),
    "api: a pool": lambda web, _: web.api("ana", "POST", "pools", {"name": "p", "slots": 1}),
    "page: a DAG": lambda web, _: web.post("ana", "/delete", dag_id=DAG),
    "list: a run": lambda web, run: web.post("ana", f"/dagrun/delete/{web.key(run)}"),
    "list: runs": lambda web, run: web.post("ana", "/dagrun/action_post", action="muldelete", rowid=web.key(run)),
    "list: a task instance": lambda web, run: web.post("ana", f"/taskinstance/delete/{_task_key(run)}"),
    "list: task instances": lambda web, run: web.post(
        "ana", "/taskinstance/action_post", action="muldelete", rowid=_task_key(run)
    ),
}


def _task_key(run: str) -> str:
    return json.dumps([DAG, TASK, run, -1])


@pytest.mark.parametrize("what", DELETING)
def test_on_call_deletes_and_makes_nothing_but_runs(web: Web, what: str) -> None:
    run = web.run()
    web.lab("ended", run=run)
    before = web.lab("counts")
    answer = DELETING[what](web, run)
    assert answer.status_code in ((403,) if what.startswith("api") else (302, 403, 404, 405)), answer.text[-500:]
    assert web.lab("counts") == before


def test_on_call_pauses_and_triggers_by_page_and_api(web: Web) -> None:
    for paused in (True, False):
        assert web.api("ana", "PATCH", f"dags/{DAG}", {"is_paused": paused}).json()["is_paused"] is paused
    for said, paused in (("false", True), ("true", False)):
        # what the page says is what is now
        web.post("ana", f"/paused?is_paused={said}&dag_id={DAG}")
        assert web.api("boss", "GET", f"dags/{DAG}").json()["is_paused"] is paused
    run = f"form-{uuid4().hex}"
    web.post("ana", f"/dags/{DAG}/trigger", run_id=run, conf=json.dumps(CONF))
    assert web.state(run) == web.state(web.run()) == "queued"


CLEARING: dict[str, Callable[[Web, str, str], requests.Response]] = {
    "api: a run": lambda web, user, run: web.api(user, "POST", f"dags/{DAG}/dagRuns/{run}/clear", {"dry_run": False}),
    "api: a task": lambda web, user, run: web.api(
        user, "POST", f"dags/{DAG}/clearTaskInstances",
        {"dry_run": False, "dag_run_id": run, "task_ids": [TASK], "only_failed": False},
    ),
    "page: a run": lambda web, user, run: web.post(
        user, "/dagrun_clear", dag_id=DAG, dag_run_id=run, confirmed="true", only_failed="false"
    ),
    "page: a task": lambda web, user, run: _clear(web, user, run, "/clear"),
    "page: a task, another run in the address": lambda web, user, run: _clear(web, user, run, "/clear?dag_run_id=no"),
    "list: runs": lambda web, user, run: web.post(user, "/dagrun/action_post", action="clear", rowid=web.key(run)),
    "list: task instances": lambda web, user, run: web.post(
        user, "/taskinstance/action_post", action="clear", rowid=_task_key(run)
    ),
}  # fmt: skip


# of a run that has not ended, which is not queued again
GOES_ON = ("api: a task", "page: a task, another run in the address", "list: task instances")


def _clear(web: Web, user: str, run: str, path: str) -> requests.Response:
    moment = web.api("boss", "GET", f"dags/{DAG}/dagRuns/{run}").json()["logical_date"]
    fields = {"dag_id": DAG, "dag_run_id": run, "task_id": TASK, "execution_date": moment, "confirmed": "true"}
    return web.post(user, path, **fields, only_failed="false")


def test_on_call_marks_by_page_and_api(web: Web) -> None:
    run = web.run()
    web.lab("ended", run=run)
    path = f"dags/{DAG}/dagRuns/{run}"
    assert web.api("ana", "PATCH", path, {"state": "failed"}).status_code == 200
    assert web.state(run) == "failed"
    assert web.api("ana", "PATCH", f"{path}/taskInstances/{TASK}", {"new_state": "failed", "dry_run": False}).ok
    assert web.state(run, TASK) == "failed"
    web.post("ana", "/dagrun_success", dag_id=DAG, dag_run_id=run, confirmed="true")
    assert web.state(run) == "success"
    web.post("ana", "/taskinstance/action_post", action="set_failed", rowid=_task_key(run))
    assert web.state(run, TASK) == "failed"
    web.post("ana", "/dagrun/action_post", action="set_failed", rowid=web.key(run))
    assert web.state(run) == "failed"


# -- who it was -------------------------------------------------------------------------------------------------------

TRIGGERING: dict[str, Callable[[Web, str], Any]] = {
    "api": lambda web, run: web.api("bob", "POST", f"dags/{DAG}/dagRuns", {"conf": CONF, "dag_run_id": run}),
    "api, no id": lambda web, _: web.api("bob", "POST", f"dags/{DAG}/dagRuns", {"conf": CONF}),
    "api, with a password": lambda web, run: requests.post(
        f"{web.url}/api/v1/dags/{DAG}/dagRuns", json={"conf": CONF, "dag_run_id": run}, auth=("bob", "bob"), timeout=60,
        proxies={"no_proxy": "*"},
    ),
    "api, a body that the event does not keep": lambda web, run: web.api(
        "bob", "POST", f"dags/{DAG}/dagRuns", headers={"Content-Type": "application/vnd.api+json"},
        data=json.dumps({"conf": CONF, "dag_run_id": run}),
    ),
    "form": lambda web, run: web.post("bob", f"/dags/{DAG}/trigger", run_id=run, conf=json.dumps(CONF)),
    "form, no id": lambda web, _: web.post("bob", f"/dags/{DAG}/trigger", run_id="", conf=json.dumps(CONF)),
    "form, its id in the address": lambda web, run: web.post(
        "bob", f"/dags/{DAG}/trigger?run_id={run}", run_id="other", conf=json.dumps(CONF)
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", TRIGGERING)
def test_a_run_is_of_the_user_who_has_triggered_it_whatever_it_says(web: Web, way: str) -> None:
    web.run("boss")
    before = web.newest()
    run = f"run-{uuid4().hex}"
    # an attempt of ana's at the same id, long ago
    web.api("ana", "POST", f"dags/{DAG}/dagRuns", {"conf": "no object", "dag_run_id": run})
    web.lab("aged")
    answer = TRIGGERING[way](web, run)
    made = web.newest()
    if made == before:
        assert answer.status_code in (400, 415), "Airflow may refuse what it does not understand"
        assert "that the event does not keep" in way
        return
    assert web.lab("who", run=made) == "bob"


def test_one_who_is_lured_to_the_form_is_not_named_alone(web: Web) -> None:
    run = f"run-{uuid4().hex}"
    web.browser("ana").get(f"{web.url}/dags/{DAG}/trigger?run_id={run}&conf=%7B%7D", timeout=60)
    assert web.lab("who", run=web.run("bob", run)) == "bob or ana"
    web.browser("ana").get(f"{web.url}/dags/{DAG}/trigger?run_id={run}", timeout=60)
    assert web.lab("who", run=run) == "bob or ana", "what comes after the run has not made it"


@pytest.mark.parametrize("way", CLEARING)
def test_a_task_that_another_one_clears_is_the_other_one_s(web: Web, way: str) -> None:
    run = web.run("ana")
    assert web.lab("who", run=run) == "ana"
    web.lab("ended", run=run, **({"goes_on": ""} if way in GOES_ON else {}))
    web.lab("aged")
    CLEARING[way](web, "bob", run)
    assert web.lab("taken", run=run) == "yes"
    assert web.lab("who", run=run) == "bob (cleared)"


def test_a_clearing_that_names_another_dag_is_still_its_user_s(web: Web) -> None:
    run = web.run("ana")
    web.lab("ended", run=run)
    web.lab("aged")
    _clear(web, "bob", run, f"/clear?dag_id={DAG}2")
    if web.lab("taken", run=run) == "yes":
        assert web.lab("who", run=run) == "bob (cleared)"


@pytest.mark.parametrize("kind", ["scheduled", "manual"])
def test_where_nobody_has_asked_the_run_itself_is_named(web: Web, kind: str) -> None:
    run = web.lab("made", kind=kind)
    assert web.lab("who", run=run) == f"airflow:{DAG}/{run}"


def test_a_name_of_the_command_line_is_told_from_a_user_s(web: Web) -> None:
    run = f"run-{uuid4().hex}"
    web.lab("command", run=run)
    # the operating system's, whatever LOGNAME says
    assert web.lab("who", run=run) == f"{pwd.getpwuid(os.getuid()).pw_name} (command line)"
