"""The DAGs `ecs_check` and `maintenance` on an embedded Airflow, over an ECS that runs real containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import docker
import pytest
from ecs_lab import engine

from busco.aws import client
from busco.embedded import aws
from busco.embedded.airflow_api import AirflowApi
from busco.lake.layout import EnvironmentLayout, run_key
from busco.lake.objects import ObjectStore
from busco.lake.records import Pin, utc_now
from busco.lake.runs import save_pin
from busco.settings import Settings, get_settings, read_env_file
from tests.integration.own_aws import quiet, wait_for

ROOT = Path(__file__).parents[2]
MADE_BY = "make image"
# A task that waits in the triggerer, as those of a run's models do.
WAITING = """
from datetime import timedelta
import pendulum
from airflow.models.dag import DAG
from airflow.sensors.time_delta import TimeDeltaSensorAsync

with DAG("waiting", schedule=None, start_date=pendulum.datetime(2024, 1, 1, tz="UTC")):
    TimeDeltaSensorAsync(task_id="wait", delta=timedelta(hours=1))
"""
# The reaper as the DAG's task has it, but for its patience: what it stopped, and how many places it freed.
REAP = """
import json, sys
from datetime import timedelta
from busco.aws import client
from busco.lake.objects import ObjectStore
from busco.orchestration.reaper import Reaper, followed_runs
from busco.orchestration.slots import Slots
from busco.settings import get_settings

settings = get_settings()
slots = Slots.of_airflow(10)
store = ObjectStore(client("s3", settings), settings.lake_bucket)
reaper = Reaper(settings, client("ecs", settings), store, slots, followed_runs, 0.2, timedelta(0), 0.0)
for token, arn in json.loads(sys.argv[1]).items():
    slots.ask(token, "test")
    slots.started(token, arn)
stopped = [one.task.arn for one in reaper.reap()]
print(json.dumps({"stopped": stopped, "freed": reaper.free_places(), "left": [one.token for one in slots.holders()]}))
"""
SLEEP = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nwhile True: time.sleep(1)"


@dataclass
class Airflow:
    """An embedded Airflow on a local AWS with containers."""

    home: Path
    docker: Any

    @property
    def settings(self) -> Settings:
        return get_settings()

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(self.settings)

    @property
    def ecs(self) -> Any:
        return client("ecs", self.settings)

    def python(self, side: str, *words: str) -> str:
        done = subprocess.run(
            [str(ROOT / side / "bin/python"), *words],
            cwd=self.home, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, dag: str) -> str:
        return self.api.trigger(dag, {})

    def states(self, dag: str, run: str) -> set[str]:
        return {str(one["state"]) for one in self.api.task_instances(dag, run)}

    def finish(self, dag: str, run: str) -> str:
        wait_for(lambda: self.api.dag_run(dag, run)["state"] in ("success", "failed"), 120)
        return str(self.api.dag_run(dag, run)["state"])

    def run_task(self, run: str, epoch: int = 1, **request: Any) -> str:
        """A container that sleeps, started as runners are; gives its task's ARN."""
        command = ["runner", "--run", run, "--epoch", str(epoch), "--order", "shared", "--generation", "1"]
        name = self.settings.ecs_container
        variables = [{"name": "BUSCO_ENVIRONMENT", "value": "prod"}]
        override = {"name": name, "command": command, "environment": variables}
        container = {"name": name, "image": "python:3.11-slim-bookworm", "entryPoint": ["python3", "-c", SLEEP]}
        family = self.ecs.register_task_definition(
            family="sleeping", networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="512",
            containerDefinitions=[container],
        )["taskDefinition"]["taskDefinitionArn"]  # fmt: skip
        wanted = {"startedBy": f"busco-{run[:20]}{epoch}", "overrides": {"containerOverrides": [override]}, **request}
        answer = self.ecs.run_task(cluster=self.settings.ecs_cluster, taskDefinition=family, **wanted)
        return str(answer["tasks"][0]["taskArn"])

    def task(self, arn: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ecs.describe_tasks(cluster=self.settings.ecs_cluster, tasks=[arn])["tasks"][0]
        return found


@pytest.fixture(scope="module")
def image() -> str:
    """dbt's image, of this very code."""
    name = os.environ.get("BUSCO_DBT_IMAGE") or str(Settings.model_fields["dbt_image"].default)
    try:
        engine().images.get(name)
    except docker.errors.ImageNotFound:
        pytest.skip(f"the image {name} is not here: {MADE_BY}")
    return name


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Airflow]:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "tests/projects/mini/dbt_project", home / "dbt_project")
    shutil.copytree(ROOT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    (home / "dags/waiting.py").write_text(WAITING)
    (home / "plugins").mkdir()
    (home / "deploy").symlink_to(ROOT / "deploy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW_"))}
    own = {
        "BUSCO_HOME": str(home),
        "BUSCO_EXECUTION": "ecs_shared",
        "BUSCO_DBT_IMAGE": image,
        # started by hand here
        "BUSCO_MAINTENANCE_SCHEDULE": "",
        "BUSCO_DBT_PYTHON": str(ROOT / ".venv-dbt/bin/python"),
        "BUSCO_AIRFLOW_PYTHON": str(ROOT / ".venv/bin/python"),
    }
    with mock.patch.dict(os.environ, {**kept, **own}, clear=True):
        get_settings.cache_clear()
        made = Airflow(home, engine())
        try:
            aws.up(get_settings(), quiet)
            get_settings.cache_clear()
            made.python(".venv-dbt", "-m", "busco", "dbt", "parse")
            made.python(".venv", "-m", "busco", "airflow", "up")
            yield made
        finally:
            made.python(".venv", "-m", "busco", "airflow", "down")
            aws.down(get_settings(), quiet)
            get_settings.cache_clear()


def doctor(lab: Airflow, image: str, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """`busco doctor` in the image, as strict as Fargate's: its exit status, and its checks by name."""
    given = read_env_file(lab.settings.state / "aws.env") | variables
    container = lab.docker.containers.create(
        image, ["doctor", "--format", "json"], environment=given, network_mode="host", read_only=True,
        mem_limit="1g", memswap_limit="1g", nano_cpus=1_000_000_000, cap_drop=["ALL"],
    )  # fmt: skip
    try:
        container.start()
        status = int(container.wait(timeout=120)["StatusCode"])
        printed = container.logs(stdout=True, stderr=False).decode()
        assert printed.startswith("{"), container.logs().decode()
    finally:
        container.remove(v=True, force=True)
    return status, {check["name"]: check for check in json.loads(printed)["checks"]}


# -- busco doctor in the image ----------------------------------------------------------------------------------------


def test_doctor_sees_what_a_container_of_the_image_has(lab: Airflow, image: str) -> None:
    status, checks = doctor(lab, image)
    states = {name: check["state"] for name, check in checks.items()}
    assert (status, "failed" in states.values()) == (0, False), checks
    assert {name for name, state in states.items() if state == "skipped"} == {"ECS cluster", "manifest"}
    assert "parsed in the image" in checks["dbt projects"]["seen"]
    assert checks["memory and CPU"]["seen"].startswith("1.0 GiB of memory, of which DuckDB may use 505.5 MiB; 1 CPUs")
    assert checks["disk"]["seen"].startswith("/tmp/busco/spill: ")


def test_doctor_in_a_container_fails_where_its_disk_can_t_be_written(lab: Airflow, image: str) -> None:
    status, checks = doctor(lab, image, BUSCO_STATE_DIR="/opt/busco/state")
    assert (status, checks["disk"]["state"]) == (1, "failed")
    assert "Read-only file system" in checks["disk"]["seen"]
    assert "BUSCO_STATE_DIR" in checks["disk"]["mend"]


# -- ecs_check --------------------------------------------------------------------------------------------------------


def test_ecs_check_is_green_and_its_log_has_what_the_container_saw(lab: Airflow) -> None:
    run = lab.start("ecs_check")
    assert lab.finish("ecs_check", run) == "success", lab.api.log("ecs_check", run, "doctor", 1)
    log = lab.api.log("ecs_check", run, "doctor", 1)
    assert "busco_bronze, busco_silver, busco_gold" in log
    assert "in ECS task" in log
    assert "12 ok, 0 failed, 2 skipped" in log


def test_ecs_check_is_red_and_its_log_says_what_to_mend(lab: Airflow) -> None:
    glue = client("glue", lab.settings)
    glue.delete_database(Name="busco_silver")
    try:
        run = lab.start("ecs_check")
        assert lab.finish("ecs_check", run) == "failed"
    finally:
        glue.create_database(DatabaseInput={"Name": "busco_silver"})
    log = lab.api.log("ecs_check", run, "doctor", 1)
    assert "Glue databases failed: missing: busco_silver" in log
    assert "deploy deploy/aws/lake.yaml" in log


# -- maintenance ------------------------------------------------------------------------------------------------------


def test_maintenance_stops_the_runners_that_nobody_follows_and_nothing_else(lab: Airflow) -> None:
    waiting = lab.start("waiting")
    wait_for(lambda: lab.states("waiting", waiting) == {"deferred"}, 60)
    run = run_key("waiting", waiting)
    store = ObjectStore(client("s3", lab.settings), lab.settings.lake_bucket)
    for epoch in (1, 2):
        pin = Pin(
            run=run, epoch=epoch, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=utc_now()
        )  # fmt: skip
        save_pin(store, EnvironmentLayout("prod"), pin)
    followed, over, left = lab.run_task(run, 2), lab.run_task(run, 1), lab.run_task("gone.run.12345678")
    foreign = lab.run_task("gone.run.12345678", startedBy="somebody")
    kept, stopped = {followed, foreign}, {over, left}
    try:
        wait_for(lambda: all(lab.task(arn)["lastStatus"] == "RUNNING" for arn in kept | stopped), 60)
        young = lab.start("maintenance")
        assert lab.finish("maintenance", young) == "success", lab.api.log("maintenance", young, "reap", 1)
        assert {lab.task(arn)["desiredStatus"] for arn in stopped} == {"RUNNING"}, "they are not two minutes old"

        said = reap(lab, {"a": over, "b": followed})
        assert set(said["stopped"]) == stopped
        wait_for(lambda: all(lab.task(arn)["lastStatus"] == "STOPPED" for arn in stopped), 60)
        assert {lab.task(arn)["lastStatus"] for arn in kept} == {"RUNNING"}
        reasons = {arn: lab.task(arn)["stoppedReason"] for arn in stopped}
        assert reasons[over] == f"busco maintenance: epoch 2 of its run has begun (run {run}, epoch 1, shared/1)"
        assert "no task of its run waits for it in Airflow (run gone.run.12345678" in reasons[left]

        said = reap(lab, {})
        assert (said["stopped"], said["left"]) == ([], ["b"]), "the place of what is gone is free"
    finally:
        for arn in kept | stopped:
            lab.ecs.stop_task(cluster=lab.settings.ecs_cluster, task=arn)


def reap(lab: Airflow, places: dict[str, str]) -> dict[str, Any]:
    """The reaper in Airflow's environment, without its patience."""
    code = "from busco.embedded import airflow\nfrom busco.settings import get_settings\nimport os\n"
    code += "os.environ.update(airflow.environment(get_settings()))\n" + REAP
    said: dict[str, Any] = json.loads(lab.python(".venv", "-c", code, json.dumps(places)).splitlines()[-1])
    return said
