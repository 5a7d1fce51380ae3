"""Faults during a run on ECS, with real containers: it succeeds, builds nothing twice and leaves no container behind.

One fault of each kind is tested in test_shared_runner.py; the others are here (`make test-long`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import psutil
import pytest

from busco.aws import client
from busco.embedded import airflow, processes
from busco.lake.layout import run_key
from busco.lake.runs import newest_epoch
from busco.settings import get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, Driver, platform
from tests.airflow.fault_proxy import Proxy, error, failure, lost
from tests.ecs.conftest import PROJECT, Tasks, docker
from tests.ecs.runs import (
    FCT,
    LIMIT,
    assert_complete,
    assert_states_match,
    assert_succeeds,
    deliver,
    kill_service,
    opened,
    results,
    run_out_of_memory,
    start_slow_run,
)
from tests.loopback import PROXY_PORT, serving

pytestmark = pytest.mark.long
TASKS = ("models.orders.run", "models.fct.run", "models.months.run", "models.customers.run")


@pytest.fixture(scope="module", params=["ecs_shared", "ecs"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Driver]:
    variables = {"BUSCO_EXECUTION": request.param, "BUSCO_DBT_IMAGE": image, "BUSCO_ECS_SIZE": "small"}
    with platform(tmp_path_factory.mktemp(request.param), PROJECT, BUSCO_RUNNER_SILENCE="20", **variables) as made:
        yield made


@pytest.fixture
def shared(driver: Driver) -> bool:
    """Whether one runner serves the whole run."""
    return get_settings().execution == "ecs_shared"


def killed(container: str) -> None:
    docker("kill", container)


def hanging(container: str) -> None:
    docker("pause", container)


def stopped(_: str) -> None:
    settings = get_settings()
    ecs = client("ecs", settings)
    for arn in ecs.list_tasks(cluster=settings.ecs_cluster)["taskArns"]:
        ecs.stop_task(cluster=settings.ecs_cluster, task=arn, reason="maintenance of it")


@pytest.mark.parametrize(("day", "harm"), [(1, killed), (2, hanging), (3, stopped)])
def test_a_container_that_is_lost_is_replaced(
    driver: Driver, tasks: Tasks, day: int, harm: Callable[[str], None], shared: bool
) -> None:
    run, container = start_slow_run(driver, tasks, harm.__name__, day)
    harm(container)
    assert_succeeds(driver, run, 2 if shared else None)


@pytest.mark.parametrize(
    ("day", "services"),
    [(4, ("scheduler",)), (5, ("triggerer",)), (6, ("webserver",)), (7, ("triggerer", "scheduler", "webserver"))],
)
def test_services_that_are_killed_and_restarted_find_the_containers(
    driver: Driver, tasks: Tasks, day: int, services: tuple[str, ...], shared: bool
) -> None:
    run, container = start_slow_run(driver, tasks, "-".join(services), day)
    for service in services:
        kill_service(service)
    assert container in tasks.running()
    airflow.up(get_settings(), lambda _: None)
    assert_succeeds(driver, run, 1 if shared else None)


@pytest.mark.parametrize(("day", "task"), [(8, "pin"), (9, "publish")])
def test_a_task_whose_worker_is_killed_is_tried_again(driver: Driver, tasks: Tasks, day: int, task: str) -> None:
    deliver(driver, f"worker-{task}", day, 1)
    hit = threading.Event()

    def watch() -> None:
        scheduler = processes.find(get_settings().state.resolve(), "scheduler")
        assert scheduler is not None
        while not hit.wait(0.02):
            for process in psutil.Process(scheduler.pid).children(recursive=True):
                try:
                    if f"task runner: {DAG} {task}" in " ".join(process.cmdline()):
                        process.kill()
                        hit.set()
                except psutil.NoSuchProcess:
                    continue

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    run = driver.start()
    try:
        driver.wait(hit.is_set, LIMIT)
    finally:
        hit.set()
        watching.join()
    assert_succeeds(driver, run)
    assert driver.tries(run)[task] > 1


def test_the_local_aws_can_be_restarted(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "restarted", 10)
    driver.busco("aws", "down")
    assert container not in tasks.all(), "its containers end when it stops"
    driver.busco("aws", "up")
    assert_succeeds(driver, run)


def test_a_model_that_runs_out_of_memory_twice_fails_while_other_models_are_built(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "memory", 11)
    run_out_of_memory(container)
    driver.wait(lambda: any(r.size == "medium" for r in opened(driver, run).runners()), LIMIT)
    (larger,) = [r for r in opened(driver, run).runners() if r.size == "medium"]
    assert FCT in larger.nodes
    driver.wait(lambda: any(r.runner == larger.number for r in results(driver, run, FCT)), LIMIT)
    (container,) = [one for one in tasks.running() if tasks.inspect(one)["HostConfig"]["Memory"] == 8192 << 20]
    run_out_of_memory(container, gib=10)
    assert driver.finish(run, limit=LIMIT) == "failed"
    states = driver.states(run)
    assert states["models.fct.run"] == "failed"
    assert states["models.customers.run"] == "success"
    assert "ran out of memory" in driver.log(run, "models.fct.run")
    assert_states_match(driver, run)
    # clear the task and the tasks downstream that it blocked
    driver.clear(run, "models.fct.run")
    assert_succeeds(driver, run)


def test_marking_a_model_failed_stops_its_runner_and_clearing_it_builds_the_model(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "marked", 12)
    before = driver.live()
    driver.wait(lambda: driver.states(run)["models.customers.run"] == "success", LIMIT)
    driver.wait(lambda: driver.states(run)["models.customers.test"] == "success", LIMIT)
    driver.api.set_state(DAG, run, "models.fct.run", "failed")
    driver.wait(lambda: container not in tasks.running(), 60)
    assert driver.finish(run, limit=LIMIT) == "failed"
    assert driver.live() == before
    driver.wait(lambda: not tasks.running(), 60)
    driver.clear(run, "models.fct.run")
    assert_succeeds(driver, run)


def test_a_model_that_is_cleared_while_it_is_built_gets_a_runner_of_its_own(driver: Driver, tasks: Tasks) -> None:
    run, _ = start_slow_run(driver, tasks, "cleared", 13)
    driver.clear(run, "models.fct.run")
    driver.green(run, limit=LIMIT)
    entered = opened(driver, run).entries()["gold.fct"].version
    assert entered is not None
    (made,) = [result for result in results(driver, run, FCT) if result.made == entered.version]
    assert not made.fenced
    assert_complete(driver, run)


def test_a_run_that_is_cleared_while_it_is_running_starts_over_in_a_new_epoch(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "whole", 14)
    driver.clear(run, "pin")
    driver.wait(lambda: container not in tasks.running(), 60)
    assert_succeeds(driver, run)
    assert newest_epoch(driver.store, ENVIRONMENT, run_key(DAG, run)) == 2
    # clearing a finished run starts another epoch too
    driver.clear(run, "pin")
    driver.green(run, limit=LIMIT)
    assert newest_epoch(driver.store, ENVIRONMENT, run_key(DAG, run)) == 3


def test_if_one_of_two_triggerers_is_killed_the_other_takes_over(driver: Driver, tasks: Tasks, shared: bool) -> None:
    with a_second_triggerer():
        run, _ = start_slow_run(driver, tasks, "two", 15)
        # the second triggerer takes over the first one's triggers once its heartbeat is 30 s old
        kill_service("triggerer")
        assert_succeeds(driver, run, 1 if shared else None)
    airflow.up(get_settings(), lambda _: None)


def test_a_run_survives_failures_of_ecs(driver: Driver, tasks: Tasks, shared: bool) -> None:
    deliver(driver, "wire", 16, 1)
    proxy = Proxy(str(get_settings().endpoint_url))
    with through(proxy):
        proxy.fail(
            "RunTask",
            failure("RESOURCE:MEMORY"),
            failure("Capacity is unavailable at this time."),
            error("ThrottlingException", "Rate exceeded"),
            error("ClientException", "Rate exceeded"),
            lost,
        )
        proxy.fail("DescribeTasks", *[error("ServerException", "Service Unavailable", 500)] * 3)
        run = driver.start()
        assert_succeeds(driver, run, 1 if shared else None)
        assert proxy.calls.count("RunTask") > 5
        # a missing log stream doesn't delay any result
        proxy.fail("GetLogEvents", *[error("ResourceNotFoundException", "no such stream")] * 20)
        deliver(driver, "role", 17, 1)
        proxy.fail("RunTask", error("ClientException", "ECS was unable to assume the role 'arn:aws:iam::1:role/gone'"))
        run = driver.start()
        assert driver.finish(run, limit=LIMIT) == "failed"
        assert "role" in driver.log(run, "models.orders.run")
        assert_states_match(driver, run)
        driver.clear(run, "models.orders.run")
        assert_succeeds(driver, run)


@contextmanager
def a_second_triggerer() -> Iterator[None]:
    settings = get_settings()
    state, name = settings.state.resolve(), "triggerer-2"
    command = [*airflow.command("triggerer"), "--pid", str(state / f"{name}.pid")]
    processes.start(state, name, command, airflow.environment(settings), settings.home)
    try:
        yield
    finally:
        processes.stop(state, name)


@contextmanager
def through(proxy: Proxy) -> Iterator[None]:
    """Airflow, but not the containers, reaches the local AWS through a proxy."""

    def restarted() -> None:
        get_settings.cache_clear()
        airflow.down(get_settings(), lambda _: None)
        airflow.up(get_settings(), lambda _: None)

    with serving(proxy.handler(), PROXY_PORT) as url:
        with mock.patch.dict(os.environ, {"BUSCO_ENDPOINT_URL": url}):
            restarted()
            yield
        restarted()
