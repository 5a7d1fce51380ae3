"""Tests that take minutes: faults of each service during a run, which succeeds all the same; and real data."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.compose.conftest import ORDERS
from tests.compose.stack import ROOT, Stack, tables_of_demo

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
def test_a_service_that_is_killed_during_a_run_restarts_and_the_run_succeeds(stack: Stack, service: str) -> None:
    stack.survives(lambda: stack.call("docker", "kill", "--signal", "KILL", stack.container(service)))


def test_the_next_up_completes_an_interrupted_first_load_even_from_a_read_only_folder(
    stack: Stack, tmp_path: Path
) -> None:
    before = stack.tables()
    subprocess.run([ROOT / ".venv/bin/busco", "sample", "--orders", ORDERS, "--out", tmp_path / "in"], check=True)
    (tmp_path / "in").chmod(0o555)
    ended = subprocess.Popen(["true"])
    ended.wait()
    begun = stack.home / ".busco/first-data.begun"
    begun.write_text(f"{ended.pid}\n{tmp_path / 'in'}\n")
    try:
        stack.call("make", "up", "BUSCO_BUILD=0")
        stack.wait(lambda: not begun.exists())
    finally:
        print((stack.home / ".busco/log/first-data.log").read_text())
    assert stack.compose("exec", "-T", "local-aws", "ls", "/var/lib/busco/incoming", check=False) == ""
    stack.wait(lambda: all(run["state"] in ("success", "failed") for run in stack.runs()), 400)
    assert stack.tables() == before
    runs = len(stack.runs())
    # after a completed load, `make up` loads nothing
    stack.call("make", "up", "BUSCO_BUILD=0")
    assert not begun.exists()
    assert len(stack.runs()) == runs


def test_a_worker_that_is_removed_by_scaling_down_finishes_its_task_first(stack: Stack) -> None:
    stack.compose("up", "--detach", "--wait", "--scale", "airflow-worker=2")
    try:
        stack.survives(lambda: stack.compose("up", "--detach", "--wait", "--scale", "airflow-worker=1"))
    finally:
        stack.compose("up", "--detach", "--wait", "--scale", "airflow-worker=1")


def test_the_whole_stack_can_be_restarted_during_a_run(stack: Stack) -> None:
    stack.survives(lambda: stack.compose("restart"))


RESTART = os.environ.get("BUSCO_RESTART_DOCKER", "")


@pytest.mark.skipif(not RESTART, reason="BUSCO_RESTART_DOCKER (a command that restarts the Docker engine) is not set")
def test_the_docker_engine_can_be_restarted_during_a_run(stack: Stack) -> None:
    stack.survives(lambda: stack.call("bash", "-c", RESTART))


@pytest.mark.skipif(not os.environ.get("OLIST_DIR"), reason="OLIST_DIR (the folder with Olist's CSV files) is not set")
def test_real_data_produces_identical_tables_in_the_demo_and_in_docker_compose(tmp_path: Path) -> None:
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
