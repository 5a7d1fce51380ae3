"""The `lakehouse` DAG as on-call sees it: what is red, why, and what clearing does. Each test leaves it green."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.serialization.serialized_objects import BaseSerialization
from sqlalchemy import text

from busco.aws import client
from busco.embedded import airflow, processes
from busco.lake import releases
from busco.lake.layout import run_key
from busco.lake.records import Runner
from busco.lake.runs import open_run
from busco.orchestration.triggers import FollowTrigger
from busco.settings import get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, Driver

FCT = "dbt_project/models/gold/fct.sql"
TASKS = {
    "pin",
    "models.orders_run",
    "models.v_orders_run",
    "models.fct.run",
    "models.fct.test",
    "docs",
    "publish",
    "glue",
}


def deliver(driver: Driver, name: str, day: int) -> None:
    driver.write(f"in/orders-{name}.csv", f"id,customer,amount,day,n\n{name},x,1.00,2018-03-{day:02},1\n")
    driver.busco("ingest", str(driver.home / "in"))


def session_of(pid: int) -> int:
    """Returns a process's session id, or 0 if it is gone. A runner is in a session of its own, whatever started it."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def slow(numbers: int) -> str:
    """Returns SQL for the model that runs as long as it takes to count so many numbers."""
    return (
        "select day, sum(n) as n, sum(amount) as amount, count(*) as orders, list(id order by id) as ids "
        f"from {{{{ ref('v_orders') }}}} where (select count(*) from range({numbers}) r(i) where i % 7 = 3) > 0 "
        "group by day"
    )


def graph(driver: Driver) -> set[str]:
    """Returns the tasks of the DAG that Airflow currently has."""
    return {task["task_id"] for task in driver.api.call("GET", f"dags/{DAG}/tasks")["tasks"]}


def red(driver: Driver, run: str) -> set[str]:
    """Returns the tasks of a run that failed themselves, without those that failed because of an upstream task."""
    return {task for task, state in driver.states(run).items() if state == "failed"}


def runners(driver: Driver, run: str) -> list[str]:
    return [runner.kind for runner in open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).runners()]


def test_a_green_run_publishes_and_shows_its_tables_in_glue(driver: Driver) -> None:
    run, state = driver.run()
    assert state == "success"
    assert driver.states(run) == dict.fromkeys(TASKS, "success")
    release = driver.live()
    assert release.run == run_key(DAG, run)
    # other projects may have been published on this platform
    own = {table for table, version in release.tables.items() if version.project in ("", "busco")}
    assert own == {"bronze.orders", "silver.orders", "gold.fct"}
    assert driver.busco("query", "--format", "csv", "select count(*) as n from busco_gold.fct") == "n\n2\n"
    assert runners(driver, run) == ["shared"], "one process built everything"
    assert "2 rows" in driver.log(run, "models.fct.run")


def alerts(driver: Driver) -> Callable[[], list[dict[str, str]]]:
    """Subscribes to the alerts topic. Returns a function that returns all alerts received since then."""
    settings = get_settings()
    sqs = client("sqs", settings)
    queue = sqs.create_queue(QueueName="alerts")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    statement = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage"}
    policy = {"Version": "2012-10-17", "Statement": [{**statement, "Resource": arn}]}
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": json.dumps(policy)})
    client("sns", settings).subscribe(TopicArn=settings.alerts_topic, Protocol="sqs", Endpoint=arn)
    received: list[dict[str, str]] = []

    def receive() -> list[dict[str, str]]:
        answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        for message in answer.get("Messages", []):
            received.append(json.loads(message["Body"]))
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return received

    return receive


def test_a_broken_model_is_the_only_red_task_with_one_alert_and_clearing_it_finishes_the_run(
    driver: Driver,
) -> None:
    sent = alerts(driver)
    deliver(driver, "broken", 1)
    before = driver.live()
    whole = driver.write(FCT, "select day, n,\n  nonsense\nfrom {{ ref('v_orders') }}")
    try:
        run, state = driver.run()
    finally:
        driver.write(FCT, whole)
    assert state == "failed"
    states = driver.states(run)
    assert red(driver, run) == {"models.fct.run"}
    assert {task for task, s in states.items() if s == "upstream_failed"} == {
        "models.fct.test",
        "docs",
        "publish",
        "glue",
    }
    log = driver.log(run, "models.fct.run")
    first = next(line for line in log.splitlines() if "ERROR" in line)
    assert "model gold.fct failed" in first
    assert "nonsense" in log
    assert "fct.sql:2" in log
    assert "→ fix the error, then clear this task" in log
    assert "\x1b[" not in log
    assert driver.live() == before
    driver.wait(lambda: bool(sent()), 60)
    (alert,) = sent()
    assert alert["Subject"] == "lakehouse failed: fct"
    assert run in alert["Message"]
    assert 'Referenced column "nonsense" not found' in alert["Message"]
    assert "at models/gold/fct.sql:2" in alert["Message"]
    assert "stale until this is fixed: gold.fct" in alert["Message"]
    assert "stale until this is fixed: gold.fct" in log

    built = open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).entries()["silver.orders"].version.version
    driver.clear(run, "models.fct.run")
    driver.green(run)
    release = driver.live()
    assert release.run == run_key(DAG, run)
    assert release.tables["silver.orders"].version == built, "a model that succeeded is not built again"
    assert driver.tries(run)["models.orders_run"] == 1
    assert driver.tries(run)["models.fct.run"] == 2
    assert min(driver.durations(run).values()) >= 0, "a cleared try does not pass its end time on to the next one"
    assert len(sent()) == 1


@pytest.mark.slow
def test_a_failed_test_is_the_red_task_and_clearing_its_model_finishes_the_run(driver: Driver) -> None:
    deliver(driver, "doubled", 2)
    before = driver.live()
    whole = driver.write(FCT, "")
    driver.write(FCT, f"{whole}\nunion all\n{whole}")
    try:
        run, state = driver.run()
    finally:
        driver.write(FCT, whole)
    assert state == "failed"
    # dbt's unit test of the model is the first to fail
    assert red(driver, run) == {"models.fct.run"}
    assert "unit_test" in driver.log(run, "models.fct.run") or "sums" in driver.log(run, "models.fct.run")
    assert driver.live() == before
    driver.clear(run, "models.fct.run")
    driver.green(run)


@pytest.mark.long
def test_a_model_cleared_alone_after_its_tests_is_not_published_untested(driver: Driver) -> None:
    deliver(driver, "alone", 4)
    deliver(driver, "alone-too", 4)
    before = driver.live()
    # a hold, so the run completes and is green but is not published yet
    driver.busco("release", "rollback", before.release, "--reason", "to look at it first")
    held = driver.live()
    run, state = driver.run()
    assert state == "success"
    assert driver.states(run)["publish"] == "skipped"
    whole = driver.write(FCT, "")
    # days with several orders now appear twice: the unit test has no such day, the data has one
    driver.write(FCT, f"{whole}\nunion all\n{whole}\nhaving count(*) > 1")
    try:
        driver.clear(run, "models.fct.run", downstream=False)
        driver.wait(lambda: driver.tries(run)["models.fct.run"] == 2)
        driver.wait(lambda: driver.states(run)["models.fct.run"] == "success")
    finally:
        driver.write(FCT, whole)
    assert driver.states(run)["models.fct.test"] == "success", "its result is that of the previous version"
    driver.busco("release", "resume", "--no-start")
    driver.clear(run, "publish")
    assert driver.finish(run) == "failed"
    log = driver.log(run, "publish")
    assert "these tests have not passed on the versions to be published" in log
    assert "unique_fct_day: failed" in log
    assert driver.live() == held
    driver.clear(run, "models.fct.run")
    driver.green(run)
    release = driver.live()
    assert release.run == run_key(DAG, run)
    results = open_run(driver.store, ENVIRONMENT, release.run).latest_results()
    tested = {result.reads["gold.fct"] for node, result in results.items() if node.startswith("test.")}
    assert tested == {release.tables["gold.fct"].version}


@pytest.mark.long
def test_failed_tests_of_one_and_of_several_models_are_red_tasks_until_they_are_fixed(
    driver: Driver,
) -> None:
    deliver(driver, "nulls", 3)
    deliver(driver, "joint", 10)
    before = driver.live()
    yaml = "dbt_project/models/gold/fct.yml"
    whole = driver.write(yaml, "")
    accepted = "{accepted_values: {arguments: {values: ['2018-01-01']}, config: {where: day is not null}}}"
    tested = whole.replace("data_tests: [unique, not_null]", f"data_tests: [unique, {accepted}]")
    driver.write(yaml, tested)
    file = driver.home / "dbt_project/tests/no_order_has_a_fact.sql"
    driver.write(str(file), "select day from {{ ref('fct') }} join {{ ref('orders') }} using (day)")
    try:
        driver.busco("dbt", "parse")
        driver.wait(lambda: graph(driver) != TASKS)
        (joint,) = graph(driver) - TASKS
        run, state = driver.run()
        assert state == "failed"
        assert red(driver, run) == {"models.fct.test"}
        assert driver.states(run)["models.fct.run"] == "success"
        log = driver.log(run, "models.fct.test")
        assert "tests of gold.fct failed" in log
        assert "accepted_values" in log
        driver.write(yaml, tested.replace("day is not null", "day is null"))
        driver.clear(run, "models.fct.test")
        assert driver.finish(run) == "failed"
        states = driver.states(run)
        assert red(driver, run) == {joint}
        assert (states["models.fct.test"], states["docs"]) == ("success", "upstream_failed")
        log = driver.log(run, joint)
        assert "no_order_has_a_fact failed" in log
        assert "so that its rows pass the test" in log
        assert driver.live() == before
        driver.write(str(file), "select day from {{ ref('fct') }} join {{ ref('orders') }} using (day) where false")
        driver.clear(run, joint)
        driver.green(run)
    finally:
        driver.write(yaml, whole)
        file.unlink()
        driver.busco("dbt", "parse")
        driver.wait(lambda: graph(driver) == TASKS)


@pytest.mark.long
def test_failed_docs_and_a_missing_glue_database_are_red_tasks_of_their_own(driver: Driver) -> None:
    deliver(driver, "docs", 11)
    before = driver.live()
    glue, database = client("glue", get_settings()), get_settings().database("gold")
    # dbt compiles analyses for its docs, and for nothing else
    file = driver.home / "dbt_project/analyses/broken.sql"
    driver.write(str(file), "{% if execute %}{% do run_query('select nonsense') %}{% endif %} select 1")
    try:
        run, state = driver.run()
    finally:
        file.unlink()
    assert state == "failed"
    assert red(driver, run) == {"docs"}
    log = driver.log(run, "docs")
    assert "dbt docs generate failed" in log
    assert "nonsense" in log
    assert driver.live() == before
    glue.delete_database(Name=database)
    try:
        driver.clear(run, "docs")
        assert driver.finish(run) == "failed"
    finally:
        glue.create_database(DatabaseInput={"Name": database})
    assert red(driver, run) == {"glue"}
    assert f"the Glue database {database} does not exist" in driver.log(run, "glue")
    release = driver.live()
    assert release.run == run_key(DAG, run), "publishing does not wait for Glue"
    driver.clear(run, "glue")
    driver.green(run)
    shown = glue.get_table(DatabaseName=database, Name="fct")["Table"]
    assert shown["Parameters"]["metadata_location"].endswith(release.tables["gold.fct"].metadata)


def test_tasks_that_are_not_selected_end_skipped(driver: Driver) -> None:
    run, state = driver.run(select="orders typo_model")
    assert state == "success"
    states = driver.states(run)
    assert "'typo_model' in the selection matches nothing" in driver.log(run, "pin")
    assert states["models.orders_run"] == "success"
    assert states["models.fct.run"] == states["models.fct.test"] == states["models.v_orders_run"] == "skipped"
    assert states["publish"] == "success"


def test_a_selection_that_matches_nothing_fails_the_pin_with_the_reason(driver: Driver) -> None:
    run, state = driver.run(select="nothing_of_that_name")
    assert state == "failed"
    assert driver.states(run)["pin"] == "failed"
    log = driver.log(run, "pin")
    assert log.index("the selection 'nothing_of_that_name' matches nothing") < log.index("Traceback")


@pytest.mark.slow
def test_rollback_holds_publishing_until_resume_starts_a_new_run(driver: Driver) -> None:
    bad = driver.live()
    rows = bad.tables["silver.orders"].rows
    history = releases.history(driver.store, ENVIRONMENT)
    old = next(release for release in history if release.tables["silver.orders"].rows != rows)
    deliver(driver, "rolled", 6)
    parameters = {"release": old.release, "reason": "wrong prices", "who": "the boss"}
    _, state = driver.run("operations", action="rollback", **parameters)
    assert state == "success"
    assert driver.live().rolled_back_to == old.release
    assert driver.live().who == "admin", "the user in Airflow's event log, not the one in the run's parameters"
    count = "select count(*) as n from busco_silver.orders"
    assert driver.busco("query", "--format", "csv", count) == f"n\n{old.tables['silver.orders'].rows}\n"
    held, state = driver.run()
    assert state == "success"
    assert driver.states(held)["publish"] == "skipped"
    assert "on hold" in driver.log(held, "publish")
    resumed, state = driver.run("operations", action="resume")
    assert state == "success"
    assert run_key(DAG, held) in driver.log(resumed, "resume", "operations")
    started = driver.api.call("GET", f"dags/{DAG}/dagRuns", order_by="-start_date", limit=1)["dag_runs"][0]
    driver.green(started["dag_run_id"])
    assert driver.live().tables["silver.orders"].rows == rows + 1


@pytest.mark.long
@pytest.mark.parametrize(
    "victim",
    ["runner", "triggerer", "scheduler"],
)
def test_a_run_succeeds_although_one_of_its_processes_is_killed(driver: Driver, victim: str) -> None:
    deliver(driver, f"killed-{victim}", {"runner": 7, "triggerer": 8, "scheduler": 9}[victim])
    whole = driver.write(FCT, slow(300_000_000))
    try:
        run = driver.start()
        key = run_key(DAG, run)
        driver.wait(lambda: driver.states(run).get("models.v_orders_run") == "success")
        if victim == "runner":
            runner = open_run(driver.store, ENVIRONMENT, key).runners()[0]
            os.kill(runner.pid, signal.SIGKILL)
        else:
            process = processes.find(get_settings().state, victim)
            for pid in [pid for pid in psutil.pids() if session_of(pid) == process.pid]:
                os.kill(pid, signal.SIGKILL)
            airflow.up(get_settings(), lambda _: None)
        driver.green(run)
    finally:
        driver.write(FCT, whole)
    assert driver.live().run == key
    made = open_run(driver.store, ENVIRONMENT, key)
    assert len(made.runners()) == (2 if victim == "runner" else 1)
    built = [r for r in made.results() if r.node == "model.busco.orders"]
    assert len(built) == 1, "nothing is built twice"


def building_fct(driver: Driver) -> tuple[str, Runner]:
    """Starts a run and waits until its runner builds gold.fct and the task follows it. Returns run and runner."""
    run = driver.start(full_refresh=True)
    driver.wait(lambda: driver.states(run).get("models.v_orders_run") == "success")
    driver.wait(lambda: driver.states(run).get("models.fct.run") == "deferred")
    (runner,) = open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).runners()
    return run, runner


def test_marking_a_following_task_failed_stops_its_runner(driver: Driver) -> None:
    whole = driver.write(FCT, slow(100_000_000_000))
    try:
        run, runner = building_fct(driver)
        driver.api.set_state(DAG, run, "models.fct.run", "failed")
        driver.wait(lambda: not processes.process_alive(runner.pid, runner.started), 30)
        assert driver.finish(run) == "failed"
    finally:
        driver.write(FCT, whole)


@pytest.mark.long
def test_a_task_deferred_after_its_run_was_marked_failed_ends_and_clearing_finishes_the_run(
    driver: Driver, sessions: Any
) -> None:
    whole = driver.write(FCT, slow(100_000_000_000))
    try:
        run, runner = building_fct(driver)
        driver.api.call("PATCH", f"dags/{DAG}/dagRuns/{run}", {"state": "failed"})
        # as written by a scheduler that read the task before the run was marked
        late = FollowTrigger("fct.test", ["test.busco.late"], [], "tests of gold.fct").serialize()
        with sessions() as session:
            defer(session, run, "models.fct.test", *late)
        driver.wait(lambda: "deferred" not in driver.states(run).values(), 30)
        driver.wait(lambda: not processes.process_alive(runner.pid, runner.started), 30)
        assert driver.api.dag_run(DAG, run)["state"] == "failed"
        assert driver.states(run)["models.fct.test"] == "failed"
        assert "its DAG run was marked as failed" in driver.log(run, "models.fct.test")
        assert len(open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).runners()) == 1, "no other runner was started"
    finally:
        driver.write(FCT, whole)
    driver.clear(run, *(task for task, state in driver.states(run).items() if state != "success"), downstream=False)
    driver.green(run)
    assert driver.live().run == run_key(DAG, run)


def defer(session: Any, run: str, task: str, classpath: str, arguments: dict[str, Any]) -> None:
    """Defers a task, as Airflow's scheduler does (`models/taskinstance.py`, `_defer_task`)."""
    parameters = {"class": classpath, "arguments": json.dumps(BaseSerialization.serialize(arguments))}
    insert = "insert into trigger (classpath, kwargs, created_date) values (:class, :arguments, now()) returning id"
    trigger = session.execute(text(insert), parameters).scalar_one()
    deferred = "state = 'deferred', trigger_id = :trigger, try_number = 1, start_date = now(), end_date = null"
    where = f"dag_id = '{DAG}' and run_id = :run and task_id = :task"
    values = {"run": run, "task": task, "trigger": trigger}
    session.execute(text(f"update task_instance set {deferred} where {where}"), values)


@pytest.mark.long
def test_airflow_dags_test_runs_the_same_graph_in_one_process(driver: Driver) -> None:
    settings = get_settings()
    # a scheduler would pick up the run that `dags test` creates
    for service in ("scheduler", "triggerer"):
        processes.stop(settings.state, service)
    deliver(driver, "tested", 10)
    command = [str(Path(sys.executable).parent / "airflow"), "dags", "test", DAG, "2024-02-02"]
    for _ in range(2):
        done = subprocess.run(
            command, env=airflow.environment(settings), capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stdout[-5000:]
        release = driver.live()
        assert release.run.startswith("lakehouse.manual__2024-02-02")
    assert release.epoch == 2, "the second command starts a new epoch"
    airflow.up(settings, lambda _: None)


@pytest.mark.slow
def test_a_model_that_a_deployment_adds_to_a_run_in_progress_is_built_or_named(driver: Driver) -> None:
    """The DAG changes under the run; the run ends published with the new model, or red with what to clear."""
    deliver(driver, "changed-graph", 13)
    whole = driver.write(FCT, slow(1_500_000_000))
    late = driver.home / "dbt_project/models/gold/late.sql"
    try:
        driver.busco("dbt", "parse")
        run = driver.start(full_refresh=True)
        driver.wait(lambda: bool(runners(driver, run)))
        driver.write(str(late), "select day, n from {{ ref('fct') }}")
        driver.busco("dbt", "parse")
        driver.wait(lambda: "models.late_run" in graph(driver))
        state = driver.finish(run)
        print(state, driver.states(run))
        if state == "failed":
            log = driver.log(run, "publish") if driver.states(run)["publish"] == "failed" else ""
            print(log)
            assert "late" in log or "None" in set(map(str, driver.states(run).values()))
            driver.clear(run, "pin")
            driver.green(run)
        live = driver.live()
        assert live is not None
        assert live.run == run_key(DAG, run)
        assert "gold.late" in live.tables
    finally:
        late.unlink()
        driver.write(FCT, whole)
        driver.busco("dbt", "parse")
        driver.wait(lambda: graph(driver) == TASKS)
        _, state = driver.run()
        assert state == "success"
