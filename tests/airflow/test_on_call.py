"""What OnCall may do, whom a rollback names, and what hostile pages and password guessers can achieve.

The tests use the pages and the API of Airflow's webserver with the platform's configuration.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from airflow.configuration import conf
from requests.adapters import HTTPAdapter

from busco.embedded.airflow_api import logged_in
from busco.orchestration.access import ON_CALL_MAY
from tests.airflow.on_call_web import DAG, TASK
from tests.airflow.test_logins import CONFIG, OF_A_ROLE
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
        """Sends what a button on a page sends."""
        browser = self.browser(user)
        return browser.post(
            f"{self.url}{path}", data={"csrf_token": self.tokens[user], **fields}, timeout=60, allow_redirects=False
        )

    def api(self, user: str, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        if "data" not in more:
            more["json"] = body
        return self.browser(user).request(method, f"{self.url}/api/v1/{path}", timeout=60, **more)

    def run(self, user: str = "ana", run: str = "") -> str:
        """Triggers a run as a user. Returns its id."""
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
        """Returns the number that identifies a run in lists."""
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
        "AIRFLOW__API__AUTH_BACKENDS": "busco.orchestration.basic_auth,airflow.api.auth.backend.session",
        "AIRFLOW__WEBSERVER__CONFIG_FILE": str(CONFIG),
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


# -- what OnCall may do -----------------------------------------------------------------------------------------------


def test_on_call_loses_earlier_permissions_and_keeps_those_that_a_dag_file_grants(web: Web) -> None:
    from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride as Stock

    expected = {*ON_CALL_MAY, *Stock.VIEWER_PERMISSIONS, ("can_edit", "DAG:operations")}
    logins = Logins("", None, web.home)  # type: ignore[arg-type]
    assert logins.query(OF_A_ROLE, "OnCall") == {f"{action} {resource}" for action, resource in expected}


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
def test_on_call_can_create_nothing_but_runs_and_can_delete_nothing(web: Web, what: str) -> None:
    run = web.run()
    web.lab("ended", run=run)
    before = web.lab("counts")
    answer = DELETING[what](web, run)
    assert answer.status_code in ((403,) if what.startswith("api") else (302, 403, 404, 405)), answer.text[-500:]
    assert web.lab("counts") == before


def test_on_call_pauses_and_triggers_by_page_and_api(web: Web) -> None:
    for paused in (True, False):
        assert web.api("ana", "PATCH", f"dags/{DAG}", {"is_paused": paused}).json()["is_paused"] is paused
    for current, paused in (("false", True), ("true", False)):
        # the page sends the current state
        web.post("ana", f"/paused?is_paused={current}&dag_id={DAG}")
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
    "list: runs": lambda web, user, run: web.post(user, "/dagrun/action_post", action="clear", rowid=web.key(run)),
    "list: task instances": lambda web, user, run: web.post(
        user, "/taskinstance/action_post", action="clear", rowid=_task_key(run)
    ),
    "list: runs, and another DAG": lambda web, user, run: web.post(
        user, "/dagrun/action_post", action="clear", rowid=web.key(run), dag_id="other"
    ),
    "list: task instances, and another DAG": lambda web, user, run: web.post(
        user, "/taskinstance/action_post", action="clear", rowid=_task_key(run), dag_id="other", run_id="other"
    ),
}  # fmt: skip


# these do not queue the run again if it has not ended
GOES_ON = ("api: a task", "list: task instances", "list: task instances, and another DAG")


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


# -- who triggered it -------------------------------------------------------------------------------------------------

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
        "bob", f"/dags/{DAG}/trigger?run_id={run}", conf=json.dumps(CONF)
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", TRIGGERING)
def test_the_user_who_triggered_a_run_is_named_whatever_its_configuration_says(web: Web, way: str) -> None:
    web.run("boss")
    before = web.newest()
    run = f"run-{uuid4().hex}"
    # ana tried to use the same id long ago
    web.api("ana", "POST", f"dags/{DAG}/dagRuns", {"conf": "no object", "dag_run_id": run})
    web.lab("aged")
    answer = TRIGGERING[way](web, run)
    made = web.newest()
    if made == before:
        assert answer.status_code in (400, 415), "Airflow may refuse this content type"
        assert "that the event does not keep" in way
        return
    assert web.lab("who", run=made) == "bob"


def test_a_user_who_was_lured_to_the_form_is_not_the_only_one_named(web: Web) -> None:
    run = f"run-{uuid4().hex}"
    web.browser("ana").get(f"{web.url}/dags/{DAG}/trigger?run_id={run}&conf=%7B%7D", timeout=60)
    assert web.lab("who", run=web.run("bob", run)) == "bob or ana"
    web.browser("ana").get(f"{web.url}/dags/{DAG}/trigger?run_id={run}", timeout=60)
    assert web.lab("who", run=run) == "bob or ana", "an event that is newer than the run did not create it"


def test_a_user_who_only_opens_the_form_is_not_named(web: Web) -> None:
    web.browser("ana").get(f"{web.url}/dags/{DAG}/trigger", timeout=60)
    web.post("bob", f"/dags/{DAG}/trigger", conf=json.dumps(CONF))
    assert web.lab("who", run=web.newest()) == "bob"


# requests that Airflow's event log would read differently from Airflow itself, or would not record in time
MISLEADING: dict[str, Callable[[Web], requests.Response]] = {
    "form, dag_run_id": lambda web: web.post("bob", _FORM, dag_run_id="manual__other", conf=json.dumps(CONF)),
    "form, dag_run_id in the address": lambda web: web.post(
        "bob", f"{_FORM}?run_id=&dag_run_id=x", conf=json.dumps(CONF)
    ),
    "form, an empty id in the address": lambda web: web.post(
        "bob", f"{_FORM}?run_id=", run_id="other", conf=json.dumps(CONF)
    ),
    "form, two ids": lambda web: web.post("bob", f"{_FORM}?run_id=a", run_id="b", conf=json.dumps(CONF)),
    "form, many keys": lambda web: web.post("bob", _FORM, conf=json.dumps(_conf(101))),
    "form, many keys in the address": lambda web: web.post("bob", f"{_FORM}?conf={json.dumps(_conf(101))}", conf="{}"),
    "form, a long conf": lambda web: web.post("bob", _FORM, conf=json.dumps({**CONF, "key": "x" * 66_000})),
    "form, a deep conf": lambda web: web.post("bob", _FORM, conf="[" * 60_000),
    "api, many keys": lambda web: web.api("bob", "POST", _RUNS, {"conf": _conf(101)}),
    "api, a long conf": lambda web: web.api("bob", "POST", _RUNS, {"conf": {**CONF, "key": "x" * 66_000}}),
    "api, a long note": lambda web: web.api("bob", "POST", _RUNS, {"conf": CONF, "note": "x" * 66_000}),
}
_FORM, _RUNS = f"/dags/{DAG}/trigger", f"dags/{DAG}/dagRuns"


def _conf(keys: int) -> dict[str, Any]:
    return {**CONF, **{f"key {number}": number for number in range(keys - len(CONF))}}


@pytest.mark.parametrize("way", MISLEADING)
def test_a_trigger_request_that_the_event_log_would_read_differently_is_refused(web: Web, way: str) -> None:
    web.run("boss")
    before = web.newest()
    assert MISLEADING[way](web).status_code == 400
    assert web.newest() == before


def test_a_configuration_with_the_maximum_number_of_keys_is_accepted(web: Web) -> None:
    assert web.api("bob", "POST", _RUNS, {"conf": _conf(100)}).status_code == 200
    assert web.lab("who", run=web.newest()) == "bob"


@pytest.mark.parametrize("way", ["api", "api, no id", "form", "form, no id"])
def test_a_run_that_takes_long_to_create_still_names_its_user(web: Web, way: str) -> None:
    TRIGGERING[way](web, f"run-{uuid4().hex}")
    longest = conf.getint("webserver", "web_server_worker_timeout")
    web.lab("earlier", owner="bob", seconds=str(longest - 10))
    assert web.lab("who", run=web.newest()) == "bob"


@pytest.mark.parametrize("way", ["api", "form"])
def test_an_event_that_names_exactly_this_run_counts_whatever_its_age(web: Web, way: str) -> None:
    run = f"run-{uuid4().hex}"
    web.browser("ana").get(f"{web.url}/dags/{DAG}/trigger?conf=%7B%7D", timeout=60)
    TRIGGERING[way](web, run)
    web.lab("earlier", owner="bob", seconds="1000")
    assert web.lab("who", run=run) == "ana or bob"


def test_a_run_that_was_queued_again_through_the_api_names_the_user_who_did_it(web: Web) -> None:
    run = web.run("bob")
    web.api("bob", "PATCH", f"{_RUNS}/{run}", {"state": "failed"})
    body = {"dry_run": False, "dag_run_id": run, "task_ids": [TASK], "only_failed": False, "reset_dag_runs": False}
    assert web.api("bob", "POST", f"dags/{DAG}/clearTaskInstances", body).status_code == 200
    web.lab("aged")
    # bob waits until ana has used the form
    web.browser("ana").get(f"{web.url}/dags/{DAG}/trigger?conf=%7B%7D", timeout=60)
    assert web.api("bob", "PATCH", f"{_RUNS}/{run}", {"state": "queued"}).status_code == 200
    assert web.lab("who", run=run).split(" or ")[0] == "bob"


@pytest.mark.parametrize("way", CLEARING)
def test_a_task_that_another_user_clears_names_that_user(web: Web, way: str) -> None:
    run = web.run("ana")
    assert web.lab("who", run=run) == "ana"
    web.lab("ended", run=run, **({"goes_on": ""} if way in GOES_ON else {}))
    web.lab("aged")
    CLEARING[way](web, "bob", run)
    assert web.lab("taken", run=run) == "yes"
    assert web.lab("who", run=run) == "bob (cleared)"


@pytest.mark.parametrize("more", [f"dag_id={DAG}2", "dag_run_id=no", "task_id=glue"])
def test_a_clear_request_that_also_names_something_else_is_refused(web: Web, more: str) -> None:
    run = web.run("ana")
    web.lab("ended", run=run)
    assert _clear(web, "bob", run, f"/clear?{more}").status_code == 400
    assert web.lab("taken", run=run) == "no"


@pytest.mark.parametrize("way", GOES_ON)
def test_a_cleared_task_that_waits_long_still_names_the_user_who_cleared_it(web: Web, way: str) -> None:
    other = web.run("ana")
    web.lab("ended", run=other)
    run = web.run("ana")
    web.lab("ended", run=run, goes_on="")
    web.lab("aged")
    CLEARING[way](web, "bob", run)
    # bob has paused the DAG, and resumes it after ana has cleared a task
    web.lab("aged")
    CLEARING["page: a task"](web, "ana", other)
    assert web.lab("taken", run=run) == "yes"
    assert "bob (cleared)" in web.lab("who", run=run).split(" or ")


def test_a_cleared_task_still_names_its_user_if_another_user_queues_the_run(web: Web) -> None:
    run = web.run("ana")
    web.lab("ended", run=run)
    web.lab("aged")
    body = {"dry_run": False, "dag_run_id": run, "task_ids": [TASK], "only_failed": False, "reset_dag_runs": False}
    assert web.api("bob", "POST", f"dags/{DAG}/clearTaskInstances", body).status_code == 200
    web.lab("aged")
    body |= {"task_ids": ["glue"], "reset_dag_runs": True}
    assert web.api("ana", "POST", f"dags/{DAG}/clearTaskInstances", body).status_code == 200
    assert web.lab("taken", run=run) == "yes"
    assert web.lab("who", run=run) == "ana (cleared) or bob (cleared)"


@pytest.mark.parametrize("kind", ["scheduled", "manual"])
def test_if_no_user_triggered_a_run_the_run_itself_is_named(web: Web, kind: str) -> None:
    run = web.lab("made", kind=kind)
    assert web.lab("who", run=run) == f"airflow:{DAG}/{run}"


def test_a_name_from_the_command_line_is_distinguished_from_a_user_s_name(web: Web) -> None:
    run = f"run-{uuid4().hex}"
    web.lab("command", run=run)
    # the name comes from the operating system, not from LOGNAME
    assert web.lab("who", run=run) == f"{pwd.getpwuid(os.getuid()).pw_name} (command line)"


# -- a page of another site in the browser of a user who is logged in -------------------------------------------------

MALLORY = {"username": "mallory", "password": "mallory", "first_name": "m", "last_name": "m", "email": "m@example.com"}
FORGED: dict[str, Callable[[Web, dict[str, str]], requests.Response]] = {
    "a new admin": lambda web, headers: web.browser("boss").post(
        f"{web.url}/auth/fab/v1/users", data=json.dumps({**MALLORY, "roles": [{"name": "Admin"}]}), headers=headers,
        timeout=60,
    ),
    "a run": lambda web, headers: web.api("boss", "POST", _RUNS, data=json.dumps({"conf": CONF}), headers=headers),
    "a variable": lambda web, headers: web.api(
        "boss", "POST", "variables", data=json.dumps({"key": "k", "value": "v"}), headers=headers
    ),
    "a deleted DAG": lambda web, headers: web.api("boss", "DELETE", f"dags/{DAG}", data="", headers=headers),
    "a paused DAG": lambda web, headers: web.api(
        "boss", "PATCH", f"dags/{DAG}", data=json.dumps({"is_paused": True}), headers=headers
    ),
    "a page's form": lambda web, headers: web.browser("boss").post(
        f"{web.url}{_FORM}", data={"csrf_token": web.tokens["boss"], "conf": json.dumps(CONF)}, headers=headers,
        timeout=60, allow_redirects=False,
    ),
}  # fmt: skip
TEXT = {"Content-Type": "text/plain;charset=UTF-8"}
FOREIGN = {
    "another port of this machine": {**TEXT, "Origin": "http://127.0.0.1:9999"},
    "another name of this machine": {**TEXT, "Origin": "http://localhost:{port}"},
    "another site": {**TEXT, "Origin": "https://evil.example.com"},
    "a page without an origin": {**TEXT, "Origin": "null"},
    "a name that looks alike": {**TEXT, "Origin": "http://127.0.0.1:{port}.example.com"},
    "the same site, Sec-Fetch-Site alone": {**TEXT, "Sec-Fetch-Site": "same-site"},
    "another site, Sec-Fetch-Site alone": {**TEXT, "Sec-Fetch-Site": "cross-site"},
    "JSON, another port": {"Content-Type": "application/json", "Origin": "http://127.0.0.1:9999"},
    "as browsers send it": {**TEXT, "Origin": "http://127.0.0.1:9999", "Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("page", FOREIGN)
def test_a_page_of_another_site_changes_nothing_on_behalf_of_the_user_who_is_logged_in(web: Web, page: str) -> None:
    web.browser("boss")
    before, port = web.lab("counts"), web.url.rpartition(":")[2]
    headers = {name: value.replace("{port}", port) for name, value in FOREIGN[page].items()}
    for what, forge in FORGED.items():
        form_headers = {name: value for name, value in headers.items() if name != "Content-Type"}
        answer = forge(web, form_headers if what == "a page's form" else headers)
        assert answer.status_code == 403, what
        assert "Page refused" in answer.text, what
    assert web.lab("counts") == before
    assert web.api("boss", "GET", f"dags/{DAG}").json()["is_paused"] is False
    names = [user["username"] for user in web.browser("boss").get(f"{web.url}/auth/fab/v1/users").json()["users"]]
    assert "mallory" not in names


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain; x=application/json", "", "application/csp-report", "text/json", "nonsense",
             "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)  # fmt: skip
def test_the_api_accepts_only_the_content_type_of_json(web: Web, kind: str) -> None:
    before = web.lab("counts")
    # a browser sends most of these for any page without a preflight request
    for what in ("a new admin", "a run", "a variable"):
        answer = FORGED[what](web, {"Content-Type": kind} if kind else {})
        # stock Airflow's own status codes
        assert answer.status_code in (400, 415), what
    assert web.lab("counts") == before


def test_airflow_s_own_pages_and_clients_other_than_browsers_are_accepted(web: Web) -> None:
    json_type = {"Content-Type": "application/json"}
    for headers in (
        {}, {"Origin": web.url}, {"Origin": web.url, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    ):  # fmt: skip
        assert FORGED["a run"](web, {**json_type, **headers}).status_code == 200, headers
        assert FORGED["a page's form"](web, headers).status_code == 302, headers
    # requests that only read are accepted from anywhere
    linked = {"Origin": "https://wiki.example.com", "Sec-Fetch-Site": "cross-site"}
    assert web.browser("boss").get(f"{web.url}/dags/{DAG}/grid", headers=linked, timeout=60).status_code == 200


def test_no_page_can_be_framed_by_another_site(web: Web) -> None:
    for path in ("/home", _FORM, "/login/", "/api/v1/dags", "/no-such-page"):
        answer = web.browser("boss").get(f"{web.url}{path}", timeout=60)
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN", path


def test_a_body_without_a_length_and_one_that_is_too_long_are_not_read(web: Web) -> None:
    with requests.Session() as nobody:
        nobody.trust_env = False
        for path in ("/health", "/login/", f"/api/v1/{_RUNS}", "/no-such-page"):
            for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
                headers = {"Content-Type": kind}
                for body, status in (((b"[]" for _ in range(2)), 411), (b"[" + b"[]," * 5_000_000 + b"0]", 413)):
                    began = time.monotonic()
                    answer = nobody.post(f"{web.url}{path}", data=body, headers=headers, timeout=60)
                    assert answer.status_code == status, (path, kind)
                    assert time.monotonic() - began < 10


# -- password guessing ------------------------------------------------------------------------------------------------


class _From(HTTPAdapter):
    """Sends requests from one of this machine's own addresses."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
        super().init_poolmanager(*arguments, source_address=(self.address, 0), **more)


def guess(web: Web, user: str, password: str, address: str = "127.0.0.1") -> int:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", _From(address))
        return session.get(f"{web.url}/api/v1/dags?limit=1", auth=(user, password), timeout=60).status_code


def test_wrong_passwords_count_for_the_user_however_the_name_is_written(web: Web) -> None:
    spellings = ("guessed", "Guessed", "GUESSED", "guessed@example.com")
    tried = [guess(web, spellings[number % len(spellings)], f"wrong {number}") for number in range(12)]
    assert tried == [401] * 10 + [429] * 2
    for name in ("guessed", "gUESSED", "guessed@example.com"):
        assert guess(web, name, "guessed") == 429, name
    assert guess(web, "viewer", "viewer") == 200


def test_wrong_passwords_on_the_login_page_and_in_the_api_count_together(web: Web) -> None:
    mine = "127.0.2.1"
    assert [guess(web, "spread", "wrong", mine) for _ in range(6)] == [401] * 6
    # the page's own rate limit is five
    assert [_by_the_page(web, "spread", "wrong", mine) for _ in range(4)] == [302] * 4
    assert guess(web, "spread", "spread", mine) == 429
    assert _by_the_page(web, "Spread", "spread", mine) == 429
    assert guess(web, "spread", "spread", "127.0.2.2") == 200, "a guesser does not lock the user out at other addresses"


def _by_the_page(web: Web, user: str, password: str, address: str) -> int:
    with requests.Session() as browser:
        browser.trust_env = False
        browser.mount("http://", _From(address))
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', browser.get(f"{web.url}/login/", timeout=60).text)
        assert token
        fields = {"username": user, "password": password, "csrf_token": token[1]}
        return browser.post(f"{web.url}/login/", data=fields, timeout=60, allow_redirects=False).status_code
