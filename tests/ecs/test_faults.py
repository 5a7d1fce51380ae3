"""All that can happen to a run on ECS, with real containers: it ends right, nothing is built twice, none is left.

One of each kind is in test_shared_runner.py; here is the rest (`make test-long`).
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
    agree,
    at_work,
    deliver,
    ends_right,
    kill_service,
    opened,
    results,
    run_out_of_memory,
    shows_all_that_was_delivered,
)
from tests.loopback import WAY, serving

pytestmark = pytest.mark.long
TASKS = ("models.orders.run", "models.fct.run", "models.months.run", "models.customers.run")


@pytest.fixture(scope="module", params=["ecs_shared", "ecs"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Driver]:
    variables = {"BUSCO_EXECUTION": request.param, "BUSCO_DBT_IMAGE": image, "BUSCO_ECS_SIZE": "small"}
    with platform(tmp_path_factory.mktemp(request.param), PROJECT, BUSCO_RUNNER_SILENCE="20", **variables) as made:
        yield made


@pytest.fixture
def shared(driver: Driver) -> bool:
    """Whether one runner is for the whole run."""
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
    run, container = at_work(driver, tasks, harm.__name__, day)
    harm(container)
    ends_right(driver, run, 2 if shared else None)


@pytest.mark.parametrize(
    ("day", "services"),
    [(4, ("scheduler",)), (5, ("triggerer",)), (6, ("webserver",)), (7, ("triggerer", "scheduler", "webserver"))],
)
def test_services_that_are_killed_and_started_again_find_the_containers(
    driver: Driver, tasks: Tasks, day: int, services: tuple[str, ...], shared: bool
) -> None:
    run, container = at_work(driver, tasks, "-".join(services), day)
    for service in services:
        kill_service(service)
    assert container in tasks.running()
    airflow.up(get_settings(), lambda _: None)
    ends_right(driver, run, 1 if shared else None)


@pytest.mark.parametrize(("day", "task"), [(8, "pin"), (9, "publish")])
def test_a_worker_that_is_killed_is_followed_by_another_try(driver: Driver, tasks: Tasks, day: int, task: str) -> None:
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
    ends_right(driver, run)
    assert driver.tries(run)[task] > 1


def test_the_local_aws_may_be_restarted(driver: Driver, tasks: Tasks) -> None:
    run, container = at_work(driver, tasks, "restarted", 10)
    driver.busco("aws", "down")
    assert container not in tasks.all(), "its containers end with it"
    driver.busco("aws", "up")
    ends_right(driver, run)


def test_a_model_that_runs_out_of_memory_twice_fails_and_the_rest_goes_on_until_it_is_cleared(
    driver: Driver, tasks: Tasks
) -> None:
    run, container = at_work(driver, tasks, "memory", 11)
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
    agree(driver, run)
    # cleared with what it has blocked
    driver.clear(run, "models.fct.run")
    ends_right(driver, run)


def test_a_model_that_is_marked_failed_has_its_runner_stopped_and_is_built_when_it_is_cleared(
    driver: Driver, tasks: Tasks
) -> None:
    run, container = at_work(driver, tasks, "marked", 12)
    before = driver.live()
    driver.wait(lambda: driver.states(run)["models.customers.run"] == "success", LIMIT)
    driver.wait(lambda: driver.states(run)["models.customers.test"] == "success", LIMIT)
    driver.api.set_state(DAG, run, "models.fct.run", "failed")
    driver.wait(lambda: container not in tasks.running(), 60)
    assert driver.finish(run, limit=LIMIT) == "failed"
    assert driver.live() == before
    driver.wait(lambda: not tasks.running(), 60)
    driver.clear(run, "models.fct.run")
    ends_right(driver, run)


def test_a_model_that_is_cleared_at_work_is_built_by_a_runner_of_its_own(driver: Driver, tasks: Tasks) -> None:
    run, _ = at_work(driver, tasks, "cleared", 13)
    driver.clear(run, "models.fct.run")
    driver.green(run, limit=LIMIT)
    entered = opened(driver, run).entries()["gold.fct"].version
    assert entered is not None
    (made,) = [result for result in results(driver, run, FCT) if result.made == entered.version]
    assert not made.fenced
    shows_all_that_was_delivered(driver, run)


def test_a_whole_run_that_is_cleared_at_work_begins_anew_in_a_new_epoch(driver: Driver, tasks: Tasks) -> None:
    run, container = at_work(driver, tasks, "whole", 14)
    driver.clear(run, "pin")
    driver.wait(lambda: container not in tasks.running(), 60)
    ends_right(driver, run)
    assert newest_epoch(driver.store, ENVIRONMENT, run_key(DAG, run)) == 2
    # and one that is done: the same tables, nothing built again
    driver.clear(run, "pin")
    driver.green(run, limit=LIMIT)
    assert newest_epoch(driver.store, ENVIRONMENT, run_key(DAG, run)) == 3


def test_of_two_triggerers_one_is_killed_and_the_other_goes_on(driver: Driver, tasks: Tasks, shared: bool) -> None:
    with a_second_triggerer():
        run, _ = at_work(driver, tasks, "two", 15)
        # the first one's triggers are the second's when its heartbeat is half a minute old
        kill_service("triggerer")
        ends_right(driver, run, 1 if shared else None)
    airflow.up(get_settings(), lambda _: None)


def test_what_ecs_does_wrong_is_survived(driver: Driver, tasks: Tasks, shared: bool) -> None:
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
        ends_right(driver, run, 1 if shared else None)
        assert proxy.calls.count("RunTask") > 5
        # no stream, no log: no result waits for it
        proxy.fail("GetLogEvents", *[error("ResourceNotFoundException", "no such stream")] * 20)
        deliver(driver, "role", 17, 1)
        proxy.fail("RunTask", error("ClientException", "ECS was unable to assume the role 'arn:aws:iam::1:role/gone'"))
        run = driver.start()
        assert driver.finish(run, limit=LIMIT) == "failed"
        assert "role" in driver.log(run, "models.orders.run")
        agree(driver, run)
        driver.clear(run, "models.orders.run")
        ends_right(driver, run)


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
    """Airflow reaches the local AWS through a proxy; containers do not."""

    def restarted() -> None:
        get_settings.cache_clear()
        airflow.down(get_settings(), lambda _: None)
        airflow.up(get_settings(), lambda _: None)

    with serving(proxy.handler(), WAY) as url:
        with mock.patch.dict(os.environ, {"BUSCO_ENDPOINT_URL": url}):
            restarted()
            yield
        restarted()
