"""Faults of production's services during a run: Docker and Airflow recover from them by themselves."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.production.stack import Production

pytestmark = pytest.mark.long

AIRFLOW = ("airflow-webserver", "airflow-scheduler", "airflow-triggerer", "airflow-worker")
CUT = 120  # seconds
SHORT = 50  # tasks of load_dag.py, besides the long one


def restarts(stack: Production, service: str) -> int:
    return int(stack.call("docker", "inspect", "--format", "{{.RestartCount}}", stack.container(service)))


def tries(stack: Production, dag: str, run: str) -> dict[str, tuple[str, int]]:
    """Returns the state and the try number of each task of a run."""
    found = stack.api("GET", f"api/v1/dags/{dag}/dagRuns/{run}/taskInstances?limit=100")["task_instances"]
    return {task["task_id"]: (str(task["state"]), task["try_number"]) for task in found}


def started(stack: Production) -> str:
    """Starts a run that builds all models; returns its id as soon as its ECS task is running."""
    run = stack.start(full_refresh=True)
    stack.wait(lambda: bool(stack.tasks()))
    return run


def ends_well(stack: Production, run: str, limit: float = 400) -> None:
    assert stack.finish(run, limit) == "success", stack.task_states(run)
    assert set(stack.task_states(run).values()) == {"success"}
    models = {task.split(".")[1] for task in stack.task_states(run) if task.endswith(".run")}
    assert stack.built(run) == {f"model.busco.{model}": 1 for model in models}
    stack.wait(lambda: not stack.tasks(), 60)


@pytest.mark.parametrize("service", [*AIRFLOW, "flower", "nginx-proxy"])
def test_docker_restarts_a_service_that_crashes_and_the_run_succeeds(loaded: Production, service: str) -> None:
    before = restarts(loaded, service)
    run = started(loaded)
    # all processes but the container's init process, which then ends as well. Docker does not restart a container
    # that `docker kill` has ended
    loaded.compose("exec", "-T", service, "sh", "-c", "kill -KILL -1", check=False)
    loaded.wait(lambda: restarts(loaded, service) > before, 30)
    loaded.wait(lambda: loaded.get("/health").status == 200)
    ends_well(loaded, run)
    loaded.wait(
        lambda: (
            loaded.call("docker", "inspect", "--format", "{{.State.Health.Status}}", loaded.container(service)).strip()
            == "healthy"
        )
    )


def test_a_new_task_runs_within_two_minutes_of_a_restart_of_redis(loaded: Production) -> None:
    loaded.call("docker", "restart", "--time", "2", loaded.container("redis"))
    run = loaded.start()
    loaded.wait(lambda: loaded.task_states(run).get("pin") == "success", 120)
    assert loaded.finish(run) == "success"


def test_no_task_is_lost_or_tried_twice_while_redis_and_the_worker_are_replaced(loaded: Production) -> None:
    run = loaded.start("load")
    loaded.wait(lambda: sum(state == "success" for state, _ in tries(loaded, "load", run).values()) > 3)
    loaded.compose("up", "--detach", "--no-deps", "--force-recreate", "--wait", "airflow-worker", limit=900)
    loaded.compose("up", "--detach", "--no-deps", "--force-recreate", "--wait", "redis")
    assert loaded.finish(run, 600, "load") == "success"
    found = tries(loaded, "load", run)
    assert len(found) == SHORT + 1
    assert set(found.values()) == {("success", 1)}


# the connections that RDS allows for db.t4g.small, whose 2 GiB of memory are not all for PostgreSQL: memory in bytes /
# 9,531,392 (Amazon RDS User Guide, "Quotas and constraints")
RDS_CONNECTIONS = int(1.75 * 2**30 / 9_531_392)


def connections(stack: Production) -> int:
    query = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
    return int(stack.compose("exec", "-T", "postgres", "psql", "-U", "airflow", "-Atc", query))


def test_at_full_load_the_connections_stay_under_60_percent_of_what_a_small_database_allows(loaded: Production) -> None:
    models, load = loaded.start(full_refresh=True), loaded.start("load")
    most = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        most = max(most, connections(loaded))
        threading.Event().wait(1)
    assert loaded.finish(load, 600, "load") == "success"
    assert loaded.finish(models, 600) == "success"
    print(f"at most {most} connections of {RDS_CONNECTIONS}")
    assert 5 < most < 0.6 * RDS_CONNECTIONS


def test_a_database_whose_certificate_is_from_another_authority_is_refused(loaded: Production) -> None:
    def check(bundle: str) -> str:
        change = f"s#sslrootcert=[^&]*#sslrootcert={bundle}#"
        command = (
            f'name=AIRFLOW__DATABASE__SQL_ALCHEMY_CONN; export $name="$(printenv $name | sed "{change}")"; '
            "airflow db check 2>&1 || true"
        )
        return loaded.compose("exec", "-T", "airflow-scheduler", "bash", "-c", command)

    assert "Connection successful" in check("/opt/busco/rds/global-bundle.pem")
    refused = check("/etc/ssl/certs/ca-certificates.crt")
    assert "certificate verify failed" in refused
    assert "Connection successful" not in refused


def test_a_run_goes_on_in_ecs_while_all_of_airflow_is_replaced(loaded: Production) -> None:
    run = started(loaded)
    for service in AIRFLOW:
        loaded.compose("up", "--detach", "--no-deps", "--force-recreate", "--wait", service, limit=900)
    ends_well(loaded, run)


@contextmanager
def stopped(stack: Production) -> Iterator[None]:
    stack.compose("stop", "postgres")
    try:
        yield
    finally:
        stack.compose("start", "postgres")


@contextmanager
def packets_dropped(stack: Production) -> Iterator[None]:
    """Drops all packets to the database: nothing answers, not even a refusal."""
    pid = stack.call("docker", "inspect", "--format", "{{.State.Pid}}", stack.container("postgres")).strip()
    rule = ["INPUT", "--protocol", "tcp", "--dport", "5432", "--jump", "DROP"]
    inside = ["nsenter", "--target", pid, "--net", "iptables"]
    stack.call(*inside, "--insert", *rule)
    try:
        yield
    finally:
        stack.call(*inside, "--delete", *rule)


@pytest.mark.parametrize("cut", [stopped, packets_dropped])
def test_scheduling_resumes_after_the_database_was_unreachable(loaded: Production, cut: object) -> None:
    if cut is packets_dropped and (os.geteuid() != 0 or shutil.which("iptables") is None):
        pytest.skip("dropping packets needs root and iptables")
    run = started(loaded)
    assert callable(cut)
    with cut(loaded):
        assert not threading.Event().wait(CUT)
    began = time.monotonic()
    loaded.wait(lambda: loaded.get("/health").body.count('"healthy"') >= 3, 180)
    print(f"healthy {time.monotonic() - began:.0f} s after the database was back")
    ends_well(loaded, run, 600)
    new = loaded.start()
    assert loaded.finish(new) == "success"
