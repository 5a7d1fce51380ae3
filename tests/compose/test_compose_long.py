"""What takes minutes: whatever happens to a service while a run goes on, the run ends right; and real data."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from tests.compose.stack import Stack, tables_of_demo

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "service",
    [
        "postgres",
        "redis",
        "local-aws",
        "starter",
        "airflow-webserver",
        "airflow-scheduler",
        "airflow-triggerer",
        "flower",
    ],
)
def test_a_service_that_is_killed_under_a_run_comes_back_and_the_run_ends_right(stack: Stack, service: str) -> None:
    stack.survives(lambda: stack.call("docker", "kill", "--signal", "KILL", stack.container(service)))


def test_a_worker_that_is_taken_away_warm_ends_its_task_first(stack: Stack) -> None:
    stack.compose("up", "--detach", "--wait", "--scale", "airflow-worker=2")
    try:
        stack.survives(lambda: stack.compose("up", "--detach", "--wait", "--scale", "airflow-worker=1"))
    finally:
        stack.compose("up", "--detach", "--wait", "--scale", "airflow-worker=1")


def test_the_whole_stack_may_be_restarted_under_a_run(stack: Stack) -> None:
    stack.survives(lambda: stack.compose("restart"))


RESTART = os.environ.get("BUSCO_RESTART_DOCKER", "")


@pytest.mark.skipif(not RESTART, reason="BUSCO_RESTART_DOCKER is unset: the command that restarts Docker's engine here")
def test_docker_s_engine_may_be_restarted_under_a_run(stack: Stack) -> None:
    stack.survives(lambda: stack.call("bash", "-c", RESTART))


@pytest.mark.skipif(not os.environ.get("OLIST_DIR"), reason="OLIST_DIR is unset: the folder of Olist's CSV files")
def test_real_data_give_the_same_tables_value_for_value_in_the_demo_and_in_docker_compose(tmp_path: Path) -> None:
    data = os.environ["OLIST_DIR"]
    stack = Stack.made(tmp_path / "stack", f"busco-real-{uuid.uuid4().hex[:8]}")
    try:
        stack.call("make", "up", f"DATA={data}", "BUSCO_BUILD=0")
        stack.wait(lambda: bool(stack.runs()), 300)
        assert stack.finish(stack.runs()[0]["dag_run_id"]) == "success"
        found = stack.tables()
    finally:
        stack.call("make", "destroy", check=False, given="y\n")
    assert len(found.splitlines()) == 20
    assert found == tables_of_demo(tmp_path, "--data", data)
