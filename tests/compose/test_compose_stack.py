"""The platform in Docker Compose from the point of view of operators, on-call engineers and consumers."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.chromium import show, steady, submit
from tests.compose.conftest import ORDERS, log_in
from tests.compose.stack import DAG, SERVICES, Stack, tables_of_demo
from tests.compose.test_doors import assert_tasks_are_confined

MODEL = "dbt_project/models/gold/mart_daily_sales.sql"
TASK = "models.mart_daily_sales.run"
LONG = 60_000  # milliseconds


# -- services ---------------------------------------------------------------------------------------------------------


def test_all_services_are_healthy_and_up_is_safe_to_run_twice(stack: Stack) -> None:
    assert stack.states() == dict.fromkeys(SERVICES, "healthy")
    before = {service: stack.container(service) for service in SERVICES}
    stack.compose("up", "--detach", "--wait")
    assert {service: stack.container(service) for service in SERVICES} == before


def test_services_listen_only_on_loopback_and_only_the_starter_has_the_docker_socket(stack: Stack) -> None:
    for service in SERVICES:
        inspected = json.loads(stack.call("docker", "inspect", stack.container(service)))[0]
        published = [one for ports in inspected["NetworkSettings"]["Ports"].values() for one in ports or []]
        assert {one["HostIp"] for one in published} <= {"127.0.0.1"}
        assert ("docker.sock" in json.dumps(inspected["Mounts"])) == (service == "starter")
        volumes = [mount["Name"] for mount in inspected["Mounts"] if mount["Type"] == "volume"]
        assert all(name.startswith(stack.project) for name in volumes), "anonymous volumes would be left behind"
        assert inspected["HostConfig"]["Memory"] > 0
        assert inspected["HostConfig"]["LogConfig"]["Config"]["max-size"] == "10m"


def test_no_process_of_the_platform_runs_as_root(stack: Stack) -> None:
    for service in SERVICES:
        if service not in ("postgres", "redis"):
            assert stack.compose("exec", "-T", service, "id", "-u").strip() != "0", service


def test_doctor_passes_in_the_airflow_and_the_dbt_image_and_detects_a_paused_broker(stack: Stack) -> None:
    passed = {}
    for service in ("airflow-worker", "local-aws"):
        report = json.loads(stack.compose("exec", "-T", service, "busco", "doctor", "--format", "json"))
        assert report["ok"], report
        passed |= {one["name"]: one["seen"] for one in report["checks"] if one["state"] == "ok"}
    assert passed.keys() >= {
        "keys",
        "database",
        "broker",
        "image",
        "task definitions",
        "task roles",
        "manifest",
        "DuckDB",
    }
    assert "1 worker responding" in passed["broker"]
    # doctor reports a broker that doesn't respond
    stack.compose("pause", "redis")
    try:
        report = json.loads(
            stack.compose("exec", "-T", "airflow-worker", "busco", "doctor", "--format", "json", check=False)
        )
    finally:
        stack.compose("unpause", "redis")
    assert [one["name"] for one in report["checks"] if one["state"] == "failed"] == ["broker"]


def test_connections_from_env_are_created_once_and_no_secret_is_printed(stack: Stack) -> None:
    connections = {"lake": {"conn_type": "http", "host": "example.com", "password": "canary-secret"}}
    command = [
        "exec",
        "-T",
        "-e",
        f"AIRFLOW_CONNECTIONS={json.dumps(connections)}",
        "-e",
        'AIRFLOW_VARIABLES={"team": "canary"}',
    ]
    command += ["airflow-scheduler", "python", "scripts/setup_connections.py"]
    assert stack.compose(*command).splitlines()[-1] == "setup_connections: connection lake, variable team"
    assert stack.compose(*command).splitlines()[-1] == "setup_connections: nothing to change"
    assert stack.api("GET", "api/v1/connections/lake")["host"] == "example.com"
    assert stack.api("GET", "api/v1/variables/team")["value"] == "canary"
    broken = [part.replace('{"team"', '{"team') for part in command]
    printed = stack.failing(*broken)
    assert "AIRFLOW_VARIABLES is not valid JSON" in printed
    assert "canary" not in printed


# -- a day of work with the platform ----------------------------------------------------------------------------------


def test_a_user_triggers_a_run_finds_and_fixes_a_broken_model_and_follows_links(stack: Stack, page: Page) -> None:
    file = stack.home / MODEL
    whole = file.read_text()
    file.write_text(whole.replace("select", "select nonsense,", 1))
    try:
        run = trigger(stack, page)
        assert stack.finish(run) == "failed"
    finally:
        file.write_text(whole)
    states = stack.task_states(run)
    failed = {task for task, state in states.items() if state == "failed"}
    assert failed == {TASK}, "\n".join(f"{task}:\n{stack.log(run, task)}" for task in sorted(failed - {TASK})[:2])
    tab = f"{stack.url}/dags/{DAG}/grid?dag_run_id={run}&task_id={TASK}&tab=logs"
    show(page, tab, page.get_by_text("nonsense").first, LONG)
    log = stack.log(run, TASK)
    lines = log[log.index("::endgroup::") :].splitlines()
    assert "ERROR - model gold.mart_daily_sales failed" in lines[1], "the error is at the top of the log"
    assert any('"nonsense" not found' in line for line in lines[2:8])
    assert "mart_daily_sales.sql" in log
    picture(page, "log of a broken model")
    page.goto(f"{stack.url}/dags/{DAG}/grid?dag_run_id={run}&task_id={TASK}")
    page.get_by_text("Clear task").click(timeout=LONG)
    page.get_by_role("dialog").get_by_text("Clear", exact=True).click(timeout=LONG)
    stack.wait(lambda: stack.task_states(run)[TASK] != "failed")
    assert stack.finish(run) == "success"

    page.goto(f"{stack.url}/dags/{DAG}/grid?dag_run_id={run}&tab=graph")
    # the graph begins with the datasets that start the DAG, and does not fit at first
    expect(page.get_by_text(re.compile("^busco://lake/bronze/")).first).to_be_attached(timeout=LONG)
    page.get_by_role("button", name="fit view").click(timeout=LONG)
    for task in ("pin", "models", "docs", "publish", "glue"):
        node = page.locator(".react-flow__node", has_text=re.compile(rf"^{task}"))
        expect(node.get_by_text("success")).to_be_visible(timeout=LONG)
    picture(page, "green graph")
    show(page, tab, page.get_by_text("OK created sql lake model gold.mart_daily_sales").first, LONG)
    picture(page, "log of a model")
    follow_links(stack, page, run)


def trigger(stack: Stack, page: Page) -> str:
    """Triggers the DAG in the UI; returns the run's id, escaped for URLs."""
    known = {run["dag_run_id"] for run in stack.runs()}

    def form() -> None:
        page.goto(f"{stack.url}/dags/{DAG}/grid")
        page.get_by_label("Trigger DAG").first.click()
        page.get_by_role("button", name="Trigger", exact=True).click()

    submit(page, form, lambda: len(stack.runs()) > len(known))
    return next(run["dag_run_id"] for run in stack.runs() if run["dag_run_id"] not in known).replace("+", "%2B")


def follow_links(stack: Stack, page: Page, run: str) -> None:
    """Opens all links of a task; each must lead to the page that it names."""
    expected = {
        "log stream": "parsed_by=",
        "ECS task": "busco-dbt-small",
        "Athena table": "busco_gold",
        "dbt docs": "mart_daily_sales",
    }
    for name, text in expected.items():
        page.goto(f"{stack.url}/dags/{DAG}/grid?dag_run_id={run}&task_id={TASK}")
        link = page.get_by_role("link", name=name)
        expect(link).to_be_visible(timeout=LONG)
        opened = steady(page.context.new_page())
        opened.goto(str(link.get_attribute("href")))
        expect(opened.get_by_text(text).first).to_be_attached(timeout=LONG)
        picture(opened, f"link {name}")
        opened.close()


def picture(page: Page, name: str) -> None:
    """Saves a screenshot for people to look at."""
    from tests.compose.conftest import SCREENSHOTS

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    # a page that keeps sending requests is captured as it is
    with contextlib.suppress(PlaywrightTimeout):
        page.wait_for_load_state("networkidle", timeout=5000)
    page.screenshot(path=SCREENSHOTS / f"{name.replace(' ', '-')}.png")


def test_a_saved_model_shows_in_the_graph_without_a_restart(stack: Stack) -> None:
    def graph() -> set[str]:
        return {task["task_id"] for task in stack.api("GET", f"api/v1/dags/{DAG}/tasks")["tasks"]}

    before = graph()
    model = stack.home / "dbt_project/models/gold/compose_days.sql"
    model.write_text("select distinct sales_date from {{ ref('mart_daily_sales') }}")
    model.with_suffix(".yml").write_text(
        "models:\n  - name: compose_days\n    columns: [{name: sales_date, data_type: DATE}]\n"
    )
    began = time.monotonic()
    try:
        stack.wait(lambda: graph() != before, 60)
        print(f"saved → graph: {time.monotonic() - began:.1f} s")
        model.write_text("select {{ nonsense(")
        stack.wait(lambda: bool(stack.api("GET", "api/v1/importErrors")["import_errors"]), 60)
        errors = stack.api("GET", "api/v1/importErrors")["import_errors"]
        assert [error["filename"].rpartition("/")[2] for error in errors] == ["parse_check.py"]
        assert "compose_days.sql" in errors[0]["stack_trace"]
    finally:
        model.unlink()
        model.with_suffix(".yml").unlink()
    stack.wait(lambda: graph() == before, 60)
    stack.wait(lambda: not stack.api("GET", "api/v1/importErrors")["import_errors"], 60)


def test_a_new_dag_and_a_new_plugin_are_loaded_without_a_new_image(stack: Stack) -> None:
    whole = (stack.home / "dags/example.py").read_text()
    (stack.home / "dags/own.py").write_text(whole.replace("example", "own"))
    (stack.home / "plugins/own.py").write_text(
        "from airflow.plugins_manager import AirflowPlugin\n\n\nclass Own(AirflowPlugin):\n    name = 'own'\n"
    )
    stack.wait(lambda: "own" in {dag["dag_id"] for dag in stack.api("GET", "api/v1/dags")["dags"]}, 60)
    run = stack.start("own")
    assert stack.finish(run, dag="own") == "success"
    listed = json.loads(stack.compose("exec", "-T", "airflow-scheduler", "airflow", "plugins", "-o", "json"))
    assert "own" in {plugin["name"] for plugin in listed}


# -- roles and permissions --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users(stack: Stack) -> Callable[[str], str]:
    """Creates a user with a role; the role's name is the user name and the password."""

    def made(role: str) -> str:
        user = {"username": role, "password": role, "first_name": role, "last_name": role, "email": f"{role}@x.org"}
        stack.api("POST", "auth/fab/v1/users", {**user, "roles": [{"name": role}]})
        return role

    return made


def test_a_viewer_reads_dags_and_docs_with_all_tables_and_types_but_can_change_nothing(
    stack: Stack, browser: Browser, users: Callable[[str], str]
) -> None:
    page = steady(browser.new_context(viewport={"width": 1500, "height": 1000}).new_page())
    anonymous = page.goto(f"{stack.url}/cosmos/dbt_docs")
    assert "/login" in page.url, anonymous
    log_in(page, stack, users("Viewer"), "Viewer")
    frame = page.frame_locator("iframe")
    show(page, f"{stack.url}/cosmos/dbt_docs", frame.get_by_text("Welcome").first, LONG)
    page.goto("about:blank")
    orders = f"{stack.url}/cosmos/dbt_docs_index.html#!/model/model.busco.fct_orders"
    show(page, orders, frame.get_by_role("cell", name="purchase_month", exact=True).first, LONG)
    picture(page, "docs of a viewer")
    text = page.request.get(f"{stack.url}/busco/dbt_docs_page?dag_id={DAG}&project=busco").text()
    begins = text.index('catalog:{"metadata"') + len("catalog:")
    catalog, _ = json.JSONDecoder().raw_decode(text, begins)
    models = {name: node for name, node in catalog["nodes"].items() if name.startswith("model.busco.")}
    assert len(models) == 20
    assert all(column["type"] for node in models.values() for column in node["columns"].values())
    assert {status_of(page, stack, what) for what in ("clear", "connections", "trigger")} == {403}
    page.context.close()


def test_on_call_clears_and_triggers_but_sees_no_connections_variables_or_pools(
    stack: Stack, browser: Browser, users: Callable[[str], str]
) -> None:
    page = steady(browser.new_page())
    log_in(page, stack, users("OnCall"), "OnCall")
    assert status_of(page, stack, "clear") == 200
    for resource in ("connections", "variables"):
        assert status_of(page, stack, resource) == 403
    body = {"name": "x", "slots": 1}
    assert page.request.post(f"{stack.url}/api/v1/pools", data=body).status == 403
    body = {"connection_id": "x", "conn_type": "http"}
    assert page.request.post(f"{stack.url}/api/v1/connections", data=body).status == 403
    page.goto(f"{stack.url}/home")
    expect(page.get_by_role("link", name="operations", exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name="Connections")).to_have_count(0)
    picture(page, "home of on-call")
    page.context.close()


def status_of(page: Page, stack: Stack, what: str) -> int:
    """Returns the HTTP status that the logged-in user gets for a request."""
    run = stack.runs()[0]["dag_run_id"]
    if what == "clear":
        body = {"dry_run": True, "dag_run_id": run, "task_ids": ["publish"], "reset_dag_runs": True}
        return page.request.post(f"{stack.url}/api/v1/dags/{DAG}/clearTaskInstances", data=body).status
    if what == "trigger":
        return page.request.post(f"{stack.url}/api/v1/dags/{DAG}/dagRuns", data={}).status
    return page.request.get(f"{stack.url}/api/v1/{what}").status


def test_flower_shows_the_worker(stack: Stack, browser: Browser) -> None:
    login = {"username": stack.value("AIRFLOW_ADMIN_USERNAME"), "password": stack.value("AIRFLOW_ADMIN_PASSWORD")}
    flower = f"http://127.0.0.1:{stack.value('FLOWER_PORT')}"
    nobody = browser.new_context()
    assert nobody.request.get(f"{flower}/workers").status == 401
    nobody.close()
    page = steady(browser.new_context(http_credentials=login).new_page())
    show(page, f"{flower}/workers", page.get_by_text("celery@").first, LONG)
    picture(page, "flower")
    page.context.close()


# -- the same tables, faults ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_demo_builds_the_same_tables_from_the_same_data(stack: Stack, tmp_path: Path) -> None:
    assert len(stack.tables().splitlines()) == 20
    assert stack.tables() == tables_of_demo(tmp_path, "--orders", ORDERS)


@pytest.mark.timeout(1200)
def test_a_run_survives_a_worker_that_is_killed_and_a_stop_and_start_of_the_platform(stack: Stack) -> None:
    runs = len(stack.runs())
    took = []

    def disrupt() -> None:
        assert_tasks_are_confined(stack)
        before = stack.container("airflow-worker")
        stack.call("docker", "kill", before)
        stack.compose("up", "--detach", "--wait")
        assert stack.container("airflow-worker") == before
        assert "running" in {run["state"] for run in stack.runs()}, "the run must not end before the platform stops"
        stack.call("make", "stop")
        assert not stack.tasks()
        assert stack.call("docker", "network", "ls", "--quiet", "--filter", f"name={stack.network}") == ""
        began = time.monotonic()
        stack.call("make", "up", "BUSCO_BUILD=0")
        assert len(stack.runs()) == runs + 1
        took.append(time.monotonic() - began)

    stack.survives(disrupt)
    print(f"second start, until a login works: {took[0]:.0f} s")


# -- new objects ------------------------------------------------------------------------------------------------------


UPLOAD = """
import sys
from busco.aws import client
from busco.settings import get_settings

settings = get_settings()
body = "seller_id,seller_zip_code_prefix,seller_city,seller_state\\nuploaded,01234,sao paulo,SP\\n"
client("s3", settings).put_object(Bucket=settings.landing_bucket, Key="bronze/sellers/uploaded.csv", Body=body.encode())
"""


def test_an_object_that_is_uploaded_shows_its_rows_in_athena_without_any_further_step(stack: Stack) -> None:
    before = {run["dag_run_id"] for run in stack.runs()}
    stack.compose("exec", "-T", "local-aws", "python", "-", given=UPLOAD)
    sql = "select city from busco_silver.sellers where seller_id = 'uploaded'"
    shown = ("exec", "-T", "local-aws", "busco", "query", "--format", "csv", sql)
    stack.wait(lambda: "sao paulo" in stack.compose(*shown, check=False), 600)
    stack.wait(lambda: all(run["state"] in ("success", "failed") for run in stack.runs()), 600)
    new = [run for run in stack.runs() if run["dag_run_id"] not in before]
    assert [(run["run_type"], run["state"]) for run in new] == [("dataset_triggered", "success")], new
    status = stack.compose("exec", "-T", "events", "busco", "events", "status")
    assert "0 messages waiting, 0 being processed, 0 dead letters" in status
    assert "1 object: ingested=1" in status
