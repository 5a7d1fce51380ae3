"""The `ecs_check` and `maintenance` DAGs on an ECS that runs real containers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from busco.aws import client
from busco.embedded import airflow
from busco.lake.layout import run_key
from busco.lake.records import Pin, utc_now
from busco.lake.runs import save_pin
from busco.orchestration.reaper import Reaper, followed_runs
from busco.orchestration.slots import Slots
from busco.settings import get_settings
from tests.airflow.driver import ENVIRONMENT, Driver
from tests.ecs.conftest import SLEEPERS

# A task that waits in the triggerer, like the model tasks of a run.
WAITING = """
from datetime import timedelta
import pendulum
from airflow.models.dag import DAG
from airflow.sensors.time_delta import TimeDeltaSensorAsync

with DAG("waiting", schedule=None, start_date=pendulum.datetime(2024, 1, 1, tz="UTC")):
    TimeDeltaSensorAsync(task_id="wait", delta=timedelta(hours=1))
"""
GONE = "lakehouse.manual-2026.12345678"


@pytest.fixture(scope="module")
def driver(shared_runners: Driver) -> Driver:
    return shared_runners


# -- ecs_check --------------------------------------------------------------------------------------------------------


def test_ecs_check_succeeds_and_logs_what_the_container_saw(driver: Driver) -> None:
    run = driver.start("ecs_check")
    driver.green(run, "ecs_check")
    log = driver.log(run, "doctor", "ecs_check")
    assert "busco_bronze, busco_silver, busco_gold" in log
    assert "in ECS task" in log
    assert "13 ok, 0 failed, 11 skipped" in log


def test_ecs_check_fails_and_logs_what_to_fix(driver: Driver) -> None:
    glue = client("glue", get_settings())
    glue.delete_database(Name="busco_silver")
    try:
        run = driver.start("ecs_check")
        assert driver.finish(run, "ecs_check") == "failed"
    finally:
        glue.create_database(DatabaseInput={"Name": "busco_silver"})
    log = driver.log(run, "doctor", "ecs_check")
    assert "Glue databases failed: these Glue databases do not exist: busco_silver" in log
    assert "deploy deploy/aws/lake.yaml" in log


# -- maintenance ------------------------------------------------------------------------------------------------------


class Sleepers:
    """ECS tasks with a runner's command, whose containers sleep."""

    def __init__(self) -> None:
        self.settings = get_settings()
        self.ecs = client("ecs", self.settings)
        entry = {"name": self.settings.ecs_container, "image": self.settings.dbt_image}
        self.family = self.ecs.register_task_definition(
            family="sleeping", networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
            containerDefinitions=[{**entry, "environment": [{"name": "PYTHONPATH", "value": SLEEPERS}]}],
        )["taskDefinition"]["taskDefinitionArn"]  # fmt: skip

    def start(self, run: str, epoch: int = 1, **request: Any) -> str:
        """Starts a task in the same way as a runner; returns its ARN."""
        command = ["runner", "--run", run, "--epoch", str(epoch), "--order", "shared", "--generation", "1"]
        variables = [{"name": "BUSCO_ENVIRONMENT", "value": "prod"}]
        override = {"name": self.settings.ecs_container, "command": command, "environment": variables}
        options = {"startedBy": f"busco-{epoch}", "overrides": {"containerOverrides": [override]}, **request}
        answer = self.ecs.run_task(cluster=self.settings.ecs_cluster, taskDefinition=self.family, **options)
        return str(answer["tasks"][0]["taskArn"])

    def task(self, arn: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ecs.describe_tasks(cluster=self.settings.ecs_cluster, tasks=[arn])["tasks"][0]
        return found

    def states(self, arns: set[str]) -> set[str]:
        return {str(self.task(arn)["lastStatus"]) for arn in arns}

    def stop(self, arns: set[str]) -> None:
        for arn in arns:
            self.ecs.stop_task(cluster=self.settings.ecs_cluster, task=arn)


@pytest.fixture
def airflow_database(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Connects Airflow's sessions to the embedded Airflow's database, as in one of its workers."""
    from airflow.settings import Session
    from sqlalchemy import create_engine

    url = airflow.environment(get_settings())["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    engine = create_engine(url)
    monkeypatch.setattr(Session, "session_factory", Session.session_factory)
    Session.remove()
    Session.configure(bind=engine)
    yield
    Session.remove()
    engine.dispose()


def test_maintenance_stops_the_runners_that_nobody_follows_and_nothing_else(
    driver: Driver, airflow_database: None
) -> None:
    driver.write("dags/waiting.py", WAITING)
    waiting = driver.start("waiting")
    driver.wait(lambda: driver.states(waiting, "waiting") == {"wait": "deferred"})
    run = run_key("waiting", waiting)
    for epoch in (1, 2):
        save_pin(driver.store, ENVIRONMENT, Pin(
            run=run, epoch=epoch, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=utc_now()
        ))  # fmt: skip
    tasks = Sleepers()
    followed, over, left = tasks.start(run, 2), tasks.start(run, 1), tasks.start(GONE)
    foreign = tasks.start(GONE, startedBy="somebody")
    kept, unfollowed = {followed, foreign}, {over, left}
    try:
        driver.wait(lambda: tasks.states(kept | unfollowed) == {"RUNNING"})
        driver.green(driver.start("maintenance"), "maintenance")
        assert tasks.states(unfollowed) == {"RUNNING"}, "they are less than two minutes old"

        slots = Slots.of_airflow(10)
        for token, arn in {"a": over, "b": followed}.items():
            slots.ask(token, "test", "start")
            slots.started(token, arn)
        patient = {"again": 0.2, "grace": timedelta(0), "stale": 0.0}
        reaper = Reaper(tasks.settings, tasks.ecs, driver.store, slots, followed_runs, **patient)
        assert {one.task.arn for one in reaper.reap()} == unfollowed
        driver.wait(lambda: tasks.states(unfollowed) == {"STOPPED"})
        assert tasks.states(kept) == {"RUNNING"}
        reasons = [tasks.task(arn)["stoppedReason"] for arn in (over, left)]
        assert reasons[0] == f"busco maintenance: epoch 2 of its run has begun (run {run}, epoch 1, shared/1)"
        assert reasons[1] == (
            f"busco maintenance: no Airflow task of its run is waiting for it (run {GONE}, epoch 1, shared/1)"
        )

        assert reaper.reap() == []
        assert reaper.free_places() == 1
        assert [holder.token for holder in slots.holders()] == ["b"], "the slot of the stopped task is free again"
    finally:
        tasks.stop(kept | unfollowed)
