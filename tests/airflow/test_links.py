"""A task's links as on-call opens them: Airflow's webserver with the platform's plugin, on a local AWS."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from busco.aws import client
from busco.catalog import athena
from busco.embedded.airflow_api import logged_in
from busco.lake.layout import new_id, run_key
from busco.lake.records import RUNNER_NODE, Ending, Follower, Order, Pin, Result, Runner, utc_now
from busco.lake.runs import Run, save_pin
from busco.orchestration import pages
from busco.orchestration.ecs import log_stream, started_by
from busco.orchestration.whereabouts import whereabouts
from busco.processes import this_host
from busco.settings import Settings, get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, Driver
from tests.airflow.lab import Lab, a_model
from tests.airflow.simulation import simulate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TASK, NODE, KEY = "models.fct.run", "model.busco.fct", "fct"
LINKS = {"log stream", "ECS task", "Athena table", "dbt docs"}
PACKAGE = tomllib.loads((ROOT / "pyproject.toml").read_text())
EVIL = "<script>alert('1')</script>"
# the tasks' state in Airflow and their try number, for each run
RUNS: dict[str, list[Any]] = {
    "unpinned": ["scheduled", 1], "waiting": ["deferred", 1], "ordered": ["deferred", 1], "ecs": ["deferred", 1],
    "local": ["deferred", 1], "elsewhere": ["deferred", 1], "foreign": ["deferred", 1], "expired": ["deferred", 1],
    "retried": ["deferred", 2], "refused": ["failed", 1],
}  # fmt: skip


@dataclass
class Web:
    """A platform with a running webserver; models run as ECS tasks of its local AWS, which has no Docker."""

    driver: Driver
    url: str
    settings: Settings
    sessions: dict[str, requests.Session] = field(default_factory=dict)

    def session(self, user: str = "viewer") -> requests.Session:
        """Returns a session in which `user` is logged in. Logs in only once, because Airflow limits logins."""
        if user in self.sessions:
            return self.sessions[user]
        self.sessions[user] = logged_in(self.url, user, user)
        return self.sessions[user]

    def links(self, run: str, task: str = TASK) -> dict[str, str]:
        """Returns a task's links as Airflow's UI receives them."""
        path = f"api/v1/dags/{DAG}/dagRuns/{run}/taskInstances/{task}/links"
        answer = self.session().get(f"{self.url}/{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def open(self, name: str, run: str, task: str = TASK) -> str:
        """Returns the page that a reader sees after following a task's link."""
        answer = self.session().get(self.links(run, task)[name], timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.text

    # -- a run's records ----------------------------------------------------------------------------------------------

    def pinned(self, run: str) -> Run:
        pin = Pin(
            run=run_key(DAG, run), epoch=1, environment="prod", base=None, bronze={}, manifest_hash="h",
            created_at=utc_now(), project="busco",
        )  # fmt: skip
        return save_pin(self.driver.store, ENVIRONMENT, pin)

    def register(self, run: Run, number: int = 1, **more: Any) -> Runner:
        values: dict[str, Any] = {"kind": "shared", "launcher": "ecs", "host": "h", "pid": 1, "started": 0, **more}
        runner = Runner(number=number, token=new_id(), **values)
        run.store.create(run.layout.runner(number), runner)
        return runner

    def run_task(self, token: str = "") -> str:
        """Starts one of the platform's ECS tasks. Returns its ARN."""
        answer = client("ecs", self.settings).run_task(
            cluster=self.settings.ecs_cluster,
            taskDefinition=self.settings.ecs_task_definition_small,
            startedBy=started_by(token or new_id()),
        )
        return str(answer["tasks"][0]["taskArn"])

    def prints(self, arn: str, *lines: str) -> None:
        """Writes lines to the log stream of an ECS task, as if its container had printed them."""
        logs, stream = client("logs", self.settings), log_stream(self.settings, arn)
        logs.create_log_stream(logGroupName=self.settings.ecs_log_group, logStreamName=stream)
        now = int(time.time() * 1000)
        events = [{"timestamp": now + number, "message": line} for number, line in enumerate(lines)]
        logs.put_log_events(logGroupName=self.settings.ecs_log_group, logStreamName=stream, logEvents=events)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "tests/projects/mini/dbt_project", home / "dbt_project")
    shutil.copytree(ROOT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    (home / "plugins").mkdir()
    # the plugin that pyproject.toml names, even if this environment's installed entry points are older
    module, _, name = PACKAGE["project"]["entry-points"]["airflow.plugins"]["busco"].partition(":")
    (home / "plugins/busco_plugin.py").write_text(f"from {module} import {name}\n")
    (home / "deploy").symlink_to(ROOT / "deploy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    own = {
        "BUSCO_HOME": str(home),
        "BUSCO_DBT_PYTHON": str(ROOT / ".venv-dbt/bin/python"),
        "BUSCO_EXECUTION": "ecs_shared",
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__WEBSERVER__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.session",
        "PYTHONWARNINGS": "ignore",
    }
    with mock.patch.dict(os.environ, {**kept, **own}, clear=True):
        get_settings.cache_clear()
        driver = Driver(home)
        process = None
        try:
            driver.busco("aws", "up", "--no-docker")
            get_settings.cache_clear()
            driver.write("in/orders.csv", "id,customer,amount,day,n\na,x,1.50,2018-01-01,1\nb,y,2.25,2018-01-02,2\n")
            driver.busco("ingest", str(home / "in"))
            driver.busco("dbt", "build", "--publish")
            settings = get_settings()
            runs = {run: {TASK: state, "models.v_orders_run": state, "docs": state} for run, state in RUNS.items()}
            command = [sys.executable, str(ROOT / "tests/airflow/web.py"), str(port), json.dumps(runs)]
            with (home / "web.log").open("wb") as log:
                process = subprocess.Popen(command, cwd=home, stdout=log, stderr=subprocess.STDOUT)
            made = Web(driver, f"http://127.0.0.1:{port}", settings)
            driver.wait(lambda: answers(made.url, process, home / "web.log"), 180)
            yield made
        finally:
            if process is not None:
                process.kill()
                process.wait()
            driver.busco("aws", "down")
            get_settings.cache_clear()


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        return requests.get(f"{url}/health", timeout=60, proxies={"no_proxy": "*"}).ok
    except requests.ConnectionError:
        return False


def task_try(run: str) -> pages.TaskTry:
    return pages.TaskTry(DAG, run, KEY, (NODE,), "model gold.fct", 1, "deferred")


def reloads(page: str) -> bool:
    return 'http-equiv="refresh"' in page


# -- the links --------------------------------------------------------------------------------------------------------


def test_a_task_has_only_the_links_that_apply_to_it(web: Web) -> None:
    assert set(web.links("waiting")) == LINKS
    assert set(web.links("waiting", "models.v_orders_run")) == LINKS - {"Athena table"}, (
        "a view is not a table in Athena"
    )
    assert set(web.links("waiting", "docs")) == {"log stream", "ECS task"}


def test_a_link_names_the_try_and_opens_no_connection(web: Web) -> None:
    from airflow.models.taskinstancekey import TaskInstanceKey
    from airflow.serialization.serialized_objects import SerializedBaseOperator

    from busco.orchestration.operators import FollowOperator

    task = FollowOperator(
        task_id="t", key="t", nodes=[NODE], along=[], label="l", table="gold.fct", unique_id=NODE, project="busco"
    )  # fmt: skip
    serialized = SerializedBaseOperator.serialize_operator(task)["_operator_extra_links"]
    assert {key: value for link in serialized for key, value in link.items()} == {
        "busco.orchestration.links.LogStream": {},
        "busco.orchestration.links.EcsTaskLink": {},
        "busco.orchestration.links.AthenaTable": {"table": "gold.fct"},
        "busco.orchestration.links.DbtDocs": {"unique_id": NODE, "project": "busco"},
    }
    key = TaskInstanceKey(DAG, "models.a&b.run", "manual__2026-01-01T00:00:00+00:00", 3, -1)
    with mock.patch.object(socket.socket, "connect", side_effect=AssertionError("a link opened a connection")):
        addresses = [link.get_link(task, ti_key=key) for link in task.operator_extra_links]
    for address in addresses:
        assert urlsplit(address).path.startswith("/busco/")
        assert parse_qs(urlsplit(address).query) == {
            "dag_id": [DAG], "task_id": [key.task_id], "dag_run_id": [key.run_id], "try_number": ["3"],
        }  # fmt: skip


def test_users_who_cannot_read_the_dag_cannot_read_its_pages(web: Web) -> None:
    anonymous = requests.Session()
    anonymous.trust_env = False
    for name, address in web.links("waiting").items():
        page = anonymous.get(address, timeout=60)
        assert urlsplit(page.url).path == "/login/", f"{name}: {page.url}"
        assert "/busco/" in parse_qs(urlsplit(page.url).query)["next"][0]
        turned_away = web.session("stranger").get(address, timeout=60, allow_redirects=False)
        assert (turned_away.status_code, urlsplit(turned_away.headers["Location"]).path) == (302, "/home"), name
    docs = f"{web.url}/busco/dbt_docs_page?dag_id={DAG}&project=busco"
    assert urlsplit(anonymous.get(docs, timeout=60).url).path == "/login/"


def test_pages_of_unknown_dags_runs_and_tasks_are_not_found(web: Web) -> None:
    address = web.links("waiting")["log stream"]
    for old, new in ((TASK, "models.nothing"), ("waiting", "no_run"), (DAG, "nothing"), (TASK, "pin")):
        assert web.session("admin").get(address.replace(old, new), timeout=60).status_code == 404, new


def test_the_package_contains_the_templates_of_the_pages() -> None:
    folder = ROOT / "src/busco/orchestration"
    packed = {
        file
        for pattern in PACKAGE["tool"]["setuptools"]["package-data"]["busco.orchestration"]
        for file in folder.glob(pattern)
    }
    assert packed == {file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}


# -- log stream and ECS task ------------------------------------------------------------------------------------------


def test_before_there_is_a_runner_the_pages_say_so_and_reload(web: Web) -> None:
    def says(run: str, *words: str) -> None:
        for name in ("log stream", "ECS task"):
            page = web.open(name, run)
            assert all(word in page for word in words), name
            assert reloads(page), name

    says("unpinned", "not pinned yet")
    run = web.pinned("waiting")
    says("waiting", "No runner has been started for try 1 yet")
    order = Order(name="shared", generation=1, kind="shared", token=new_id(), size="small")
    run.store.create(run.layout.order("shared", 1), order)
    says("waiting", "waiting for a slot", f"BUSCO_MAX_ECS_TASKS={web.settings.max_ecs_tasks}")


def test_the_page_of_a_task_that_ended_without_a_runner_says_so_and_does_not_reload(web: Web) -> None:
    web.pinned("refused")
    page = web.open("log stream", "refused")
    assert "Try 1 had no runner. State of the try in Airflow: failed." in page
    assert not reloads(page)


def test_an_ecs_task_is_shown_before_its_container_has_registered_itself(web: Web) -> None:
    run = web.pinned("ordered")
    order = Order(name="shared", generation=1, kind="shared", token=new_id(), size="small")
    run.store.create(run.layout.order("shared", 1), order)
    arn = web.run_task(order.token)
    assert arn in web.open("ECS task", "ordered")
    page = web.open("log stream", "ordered")
    assert "The container has no output yet" in page
    assert reloads(page)


def test_log_stream_and_ecs_task_are_shown_while_the_task_runs_and_after_it_was_stopped(web: Web) -> None:
    arn = web.run_task()
    run = web.pinned("ecs")
    web.register(run, arn=arn, size="small", cpu=512, memory=4096)
    run.put_result(Result(node=RUNNER_NODE, runner=1, status="running", plan=(NODE,)))
    web.prints(arn, *(f"line {number} of dbt" for number in range(1, 1101)), EVIL)
    page = web.open("log stream", "ecs")
    assert "line 1100 of dbt" in page
    assert "line 101 of dbt\n" not in page, "only the last 1,000 lines are shown"
    assert "line 102 of dbt\n" in page
    assert html.escape(EVIL, quote=False).replace("'", "&#39;") in page
    assert EVIL not in page
    assert reloads(page)
    page = web.open("ECS task", "ecs")
    for text in (arn, "RUNNING", "0.5 vCPU, 4,096 MiB", "small"):
        assert text in page
    assert reloads(page)
    client("ecs", web.settings).stop_task(cluster=web.settings.ecs_cluster, task=arn, reason="by <on-call>")
    page = web.open("ECS task", "ecs")
    assert "STOPPED" in page
    assert "by &lt;on-call&gt;" in page
    assert not reloads(page)


def test_an_ecs_task_that_ecs_has_forgotten_is_shown_from_the_records(web: Web) -> None:
    run = web.pinned("expired")
    arn = "arn:aws:ecs:us-east-1:000000000000:task/busco/0123456789abcdef0123456789abcdef"
    web.register(run, arn=arn, size="large")
    ending = Ending(number=1, reason="it ran out of memory: 30,720 MiB", hint="give it more", out_of_memory=True)
    run.store.create(run.layout.ending(1), ending)
    page = web.open("ECS task", "expired")
    for text in ("ECS no longer has this task", arn, "large", ending.reason, ending.hint):
        assert text in page


def test_each_try_s_link_leads_to_the_runner_of_that_try(web: Web) -> None:
    run = web.pinned("retried")
    for number, attempt in ((1, 0), (2, 2)):
        arn = web.run_task()
        own = {"kind": "solo", "nodes": (NODE,), "task": KEY, "attempt": attempt} if attempt else {}
        web.register(run, number, arn=arn, **own)
        web.prints(arn, f"this is runner {number}")
    run.put_result(Result(node=NODE, runner=1, status="error"))
    run.store.create(run.layout.follower(KEY), Follower(task=KEY, attempt=2, after=1, again=True))
    assert "this is runner 2" in web.open("log stream", "retried")
    before = web.links("retried")["log stream"].replace("try_number=2", "try_number=1")
    page = web.session().get(before, timeout=60).text
    assert "this is runner 1" in page
    assert not reloads(page)


def test_a_local_runner_s_log_is_shown_if_it_is_on_this_host(web: Web) -> None:
    host, folder = this_host(web.settings.state), web.settings.state / "log/runners"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "one.log").write_text("".join(f"line {number}\n" for number in range(1, 1501)))
    process = {"launcher": "local", "pid": os.getpid(), "started": time.time()}
    web.register(web.pinned("local"), host=host, log=str(folder / "one.log"), **process)
    page = web.open("log stream", "local")
    assert "line 501\n" in page
    assert "line 500\n" not in page
    assert "line 1500\n" in page

    elsewhere = web.pinned("elsewhere")
    web.register(elsewhere, host="another", log=str(folder / "one.log"), **process)
    elsewhere.put_result(Result(node=NODE, runner=1, status="error"), f"dbt's log {EVIL}")
    page = web.open("log stream", "elsewhere")
    assert "line 501\n" not in page
    assert "dbt&#39;s log &lt;script&gt;" in page

    # no other file of this host is shown, whatever the record says
    secret = web.settings.state / "log/runners/../secret"
    secret.resolve().write_text("a secret")
    web.register(web.pinned("foreign"), host=host, log=str(secret), **process)
    assert "a secret" not in web.open("log stream", "foreign")


def test_the_ecs_page_says_so_if_models_run_as_processes(web: Web) -> None:
    process = {"launcher": "local", "host": this_host(web.settings.state), "pid": os.getpid(), "started": time.time()}
    web.register(web.pinned("process"), **process)
    page = pages.ecs_page(web.settings.model_copy(update={"execution": "local"}), task_try("process"))
    assert isinstance(page, pages.Page)
    assert "Models run as local processes" in page.texts[0]
    assert str(os.getpid()) in dict(page.facts)["process"]


# -- Athena table and dbt docs ----------------------------------------------------------------------------------------


def test_the_athena_page_has_the_live_version_its_columns_and_a_query_that_runs(web: Web) -> None:
    page = web.open("Athena table", "waiting")
    release = web.driver.live()
    assert release is not None
    assert release.tables["gold.fct"].version in page
    assert release.tables["gold.fct"].since in page
    assert "decimal(18,2)" in page
    query = re.search(r"<pre[^>]*>(select.*?)</pre>", page, re.DOTALL)
    assert query
    answer = athena.query(client("athena", web.settings), html.unescape(query[1]), "busco", "busco_gold")
    assert (answer.columns, len(answer.rows)) == (("day", "orders", "n", "amount", "ids"), 2)


def test_the_docs_link_leads_to_the_model_in_the_docs_of_the_live_release(web: Web) -> None:
    browser, address = web.session(), web.links("waiting")["dbt docs"]
    first = browser.get(address, timeout=60, allow_redirects=False)
    assert urlsplit(first.headers["Location"]).fragment == f"!/model/{NODE}"
    page = browser.get(address, timeout=60)
    release = web.driver.live()
    assert release is not None
    stored = web.driver.store.get(f"{release.docs}index.html")
    assert stored is not None
    assert page.content == stored.body
    # isolated from Airflow: the page has no access to its cookies
    sandbox = page.headers["Content-Security-Policy"].split(";")[0].split()
    assert sandbox[0] == "sandbox"
    assert "allow-same-origin" not in sandbox
    other = browser.get(f"{web.url}/busco/dbt_docs_page?dag_id={DAG}&project=../busco", timeout=60)
    assert other.status_code == 404


# -- on AWS -----------------------------------------------------------------------------------------------------------


def test_on_aws_the_links_lead_to_the_console(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = "arn:aws:ecs:us-east-1:000000000000:task/busco/0123456789abcdef0123456789abcdef"
    web.register(web.pinned("on_aws"), arn=arn)
    # the lake's records still come from the local S3; calls to any other service would go to AWS itself
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(web.settings.endpoint_url))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    settings = web.settings.model_copy(update={"endpoint_url": None})
    console = "https://us-east-1.console.aws.amazon.com"
    log = pages.log_page(settings, task_try("on_aws"))
    assert isinstance(log, str)
    assert log.startswith(f"{console}/cloudwatch/home")
    assert "$252Fbusco$252Fdbt" in log
    assert log.endswith("0123456789abcdef0123456789abcdef")
    task = pages.ecs_page(settings, task_try("on_aws"))
    assert isinstance(task, str)
    assert task.startswith(f"{console}/ecs/v2/clusters/busco/tasks/0123456789abcdef0123456789abcdef")
    table = pages.table_page(settings, "gold.fct")
    assert isinstance(table, str)
    assert table.startswith(f"{console}/athena/home")
    assert "database=busco_gold&table=fct" in table


# -- which runner -----------------------------------------------------------------------------------------------------


def test_a_link_leads_to_the_runner_whose_result_the_task_used() -> None:
    async def story() -> Lab:
        lab = Lab({**a_model("a"), **a_model("b", "a")}, bad={"model.p.b": "error"})
        assert (await lab.follow("model.p.a")).state == "success"
        assert (await lab.follow("model.p.b")).state == "failed"
        lab.bad = {}
        assert (await lab.follow("model.p.b", attempt=2)).state == "success"
        return lab

    lab = simulate(story())
    first, second, third = (whereabouts(lab.run, "b", ["model.p.b"], attempt) for attempt in (1, 2, 3))
    assert first.runner is not None
    assert second.runner is not None
    assert (first.runner.number, [result.status for result in first.results]) == (1, ["error"])
    assert (second.runner.number, [result.status for result in second.results]) == (2, ["success"])
    assert third.runner is None, "a try that has not started has no runner yet"


def test_a_runner_for_another_try_and_one_that_is_newer_than_the_result_are_not_shown() -> None:
    lab = Lab({**a_model("a"), **a_model("b", "a")})
    run, node = lab.run, "model.p.b"

    def register(number: int, **more: Any) -> None:
        values = {"kind": "shared", "launcher": "ecs", "host": "h", "pid": 1, "started": 0, "token": new_id(), **more}
        run.store.create(run.layout.runner(number), Runner(number=number, **values))

    def runner_of(attempt: int) -> int:
        found = whereabouts(run, "b", [node], attempt).runner
        return found.number if found else 0

    # try 1 was cleared while a runner worked for it alone: that runner is not for try 2
    register(1, kind="solo", nodes=(node,), task="b", attempt=1)
    run.store.create(run.layout.follower("b"), Follower(task="b", attempt=2))
    assert (runner_of(1), runner_of(2)) == (1, 0)
    # a shared runner reported the result of try 2; the next runner is for try 3
    register(2)
    run.put_result(Result(node=node, runner=2, status="error"))
    assert (runner_of(1), runner_of(2)) == (1, 2)
    register(3)
    stored = run.store.get(run.layout.follower("b"))
    assert stored is not None
    run.store.swap(run.layout.follower("b"), Follower(task="b", attempt=3, after=2, again=True), stored.etag)
    assert (runner_of(2), runner_of(3)) == (2, 3)
    # it was lost before it reached the task, which now waits for the replacement that has been ordered
    run.store.create(run.layout.ending(3), Ending(number=3, reason="a spot interruption", passing=True))
    run.store.create(run.layout.order("shared", 4), Order(name="shared", generation=4, kind="shared"))
    found = whereabouts(run, "b", [node], 3)
    assert found.runner is None
    assert found.order is not None


def test_the_runner_that_runs_a_task_takes_precedence_over_one_that_has_not_reached_it() -> None:
    run, node = Lab(a_model("b")).run, "model.p.b"
    for number in (1, 2):
        values = {"kind": "shared", "launcher": "ecs", "host": "h", "pid": 1, "started": 0, "token": new_id()}
        run.store.create(run.layout.runner(number), Runner(number=number, **values))
    run.put_result(Result(node=node, runner=1, status="running"))
    found = whereabouts(run, "b", [node], 1)
    assert found.runner is not None
    assert found.runner.number == 1
    run.put_result(Result(node=RUNNER_NODE, runner=2, status="running", plan=("model.p.other",)))
    run.store.create(run.layout.ending(1), Ending(number=1, reason="it was killed"))
    found = whereabouts(run, "b", [node], 1)
    assert found.runner is not None
    assert found.runner.number == 1, "the other runner does not cover the task"
