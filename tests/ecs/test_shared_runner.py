"""BUSCO_EXECUTION=ecs_shared: one container builds a run, whatever happens to it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from busco.aws import client
from busco.embedded import airflow, processes
from busco.lake.layout import run_key
from busco.lake.records import Result
from busco.lake.runs import Run, open_run
from busco.orchestration.ecs import log_stream
from busco.settings import get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, Driver, platform
from tests.ecs.conftest import PROJECT, Tasks, docker

FCT, ORDERS = "model.busco.fct", "model.busco.orders"
SLOW = 400  # tens of millions of numbers to count: seconds in which a test does its worst
LIMIT = 240.0
# Takes memory in a runner's container until the kernel ends a process there: the runner, which offers itself first.
HOG = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int(process.name) not in (1, os.getpid()) and b"busco" in (process / "cmdline").read_bytes():
        (process / "oom_score_adj").write_text("1000")
kept = [b"x" * (1 << 26) for _ in range(100)]
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Driver]:
    variables = {"BUSCO_EXECUTION": "ecs_shared", "BUSCO_DBT_IMAGE": image, "BUSCO_ECS_SIZE": "small"}
    with platform(tmp_path_factory.mktemp("shared"), PROJECT, **variables) as made:
        yield made


@pytest.fixture
def tasks(driver: Driver) -> Iterator[Tasks]:
    found = Tasks(driver)
    yield found
    driver.wait(lambda: not found.all(), 60)


def deliver(driver: Driver, name: str, day: int, n: int) -> None:
    """An order; `n` says for how long models are built from then on."""
    driver.write(f"in/orders-{name}.csv", f"id,customer,amount,day,n\n{name},x,1.00,2018-03-{day:02},{n}\n")
    driver.busco("ingest", str(driver.home / "in"))


def opened(driver: Driver, run: str) -> Run:
    return open_run(driver.store, ENVIRONMENT, run_key(DAG, run))


def results(driver: Driver, run: str, node: str) -> list[Result]:
    return sorted((r for r in opened(driver, run).results() if r.node == node), key=lambda result: result.runner)


def at_work(driver: Driver, tasks: Tasks, name: str, day: int) -> tuple[str, str]:
    """A run whose container is building a slow model: the run and the container. What is delivered then is quick."""
    deliver(driver, name, day, SLOW)
    run = driver.start()
    driver.wait(lambda: bool(driver_results(driver, run)), LIMIT)
    return run, tasks.running()[0]


def driver_results(driver: Driver, run: str) -> list[Result]:
    try:
        return [result for result in results(driver, run, FCT) if result.status == "running"]
    except Exception:  # the run is not pinned yet
        return []


def ends_right(driver: Driver, run: str, runners: int) -> Run:
    """The run ends green with so many runners, each model built once; gold is what it must be."""
    driver.green(run, limit=LIMIT)
    ended = opened(driver, run)
    assert len(ended.runners()) == runners
    for node in (ORDERS, FCT):
        good = [result for result in results(driver, run, node) if result.status == "success"]
        assert len(good) == 1, node
    printed = driver.busco("query", "--format", "csv", "select sum(orders) as n from busco_gold.months")
    bronze = driver.busco("query", "--format", "csv", "select count(distinct id) as n from busco_bronze.orders")
    assert printed == bronze
    assert driver.live().run == run_key(DAG, run)
    return ended


def test_a_run_is_one_container_whose_output_is_in_cloudwatch_and_models_logs_in_their_tasks(
    driver: Driver, tasks: Tasks
) -> None:
    run = driver.start()
    ended = ends_right(driver, run, 1)
    (runner,) = ended.runners()
    assert runner.arn.startswith("arn:aws:ecs:")
    assert (runner.kind, runner.size, runner.cpu, runner.memory) == ("shared", "small", 1024, 4096)
    assert "2 rows" in driver.log(run, "models.orders.run")
    logs = client("logs", get_settings())
    stream = log_stream(get_settings(), runner.arn)
    events = logs.get_log_events(logGroupName=get_settings().ecs_log_group, logStreamName=stream, startFromHead=True)
    printed = "\n".join(event["message"] for event in events["events"])
    assert "parsed_by=image" in printed
    assert "silver.orders" in printed


def test_a_container_that_is_killed_is_replaced_and_what_is_built_is_not_built_again(
    driver: Driver, tasks: Tasks
) -> None:
    run, container = at_work(driver, tasks, "killed", 1)
    docker("kill", container)
    ended = ends_right(driver, run, 2)
    assert results(driver, run, ORDERS)[0].runner == 1
    assert ended.endings()[1].exit_code == 137
    assert "another one goes on" in driver.log(run, "models.fct.run")


def test_a_task_that_is_stopped_by_hand_is_replaced(driver: Driver, tasks: Tasks) -> None:
    run, _ = at_work(driver, tasks, "stopped", 2)
    (runner,) = opened(driver, run).runners()
    settings = get_settings()
    client("ecs", settings).stop_task(cluster=settings.ecs_cluster, task=runner.arn, reason="maintenance of it")
    ends_right(driver, run, 2)
    assert "maintenance of it" in driver.log(run, "models.fct.run")


def test_a_model_that_runs_out_of_memory_is_built_alone_in_the_next_size(driver: Driver, tasks: Tasks) -> None:
    run, container = at_work(driver, tasks, "memory", 3)
    docker("exec", container, "python3", "-c", HOG, check=False)
    driver.green(run, limit=LIMIT)
    ended = opened(driver, run)
    first, *others = ended.runners()
    assert ended.endings()[first.number].out_of_memory
    alone = next(runner for runner in others if FCT in runner.nodes)
    assert (alone.kind, alone.size, alone.memory) == ("solo", "medium", 8192)
    log = driver.log(run, "models.fct.run")
    assert "a runner of size medium is started" in log
    assert "4 GB" in log


def test_the_local_aws_may_be_restarted_while_a_run_goes_on(driver: Driver, tasks: Tasks) -> None:
    run, container = at_work(driver, tasks, "restarted", 4)
    driver.busco("aws", "down")
    assert container not in tasks.all(), "its containers end with it"
    driver.busco("aws", "up")
    ends_right(driver, run, 2)


def test_a_triggerer_and_a_scheduler_that_are_killed_find_the_container_again(driver: Driver, tasks: Tasks) -> None:
    run, container = at_work(driver, tasks, "triggerer", 5)
    settings = get_settings()
    for service in ("triggerer", "scheduler"):
        process = processes.find(settings.state.resolve(), service)
        assert process is not None
        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            one.kill()
    assert tasks.running() == [container]
    airflow.up(settings, lambda _: None)
    ends_right(driver, run, 1)


def test_a_running_model_that_is_cleared_is_built_by_its_own_runner_and_the_late_write_stays_out(
    driver: Driver, tasks: Tasks
) -> None:
    run, _ = at_work(driver, tasks, "cleared", 6)
    driver.clear(run, "models.fct.run", downstream=False)
    driver.green(run, limit=LIMIT)
    entered = opened(driver, run).entries()["gold.fct"].version
    assert entered is not None
    made = [result for result in results(driver, run, FCT) if result.made == entered.version]
    assert len(made) == 1
    assert not made[0].fenced
