"""BUSCO_EXECUTION=ecs_shared: one container builds a run and is replaced if it is lost."""

from __future__ import annotations

import pytest

from busco.aws import client
from busco.embedded import airflow
from busco.orchestration.ecs import log_stream
from busco.settings import get_settings
from tests.airflow.driver import Driver
from tests.ecs.conftest import Tasks, docker
from tests.ecs.runs import (
    FCT,
    LIMIT,
    ORDERS,
    assert_succeeds,
    deliver,
    is_building,
    kill_service,
    opened,
    results,
    run_out_of_memory,
    start_slow_run,
)


@pytest.fixture(scope="module")
def driver(shared_runners: Driver) -> Driver:
    return shared_runners


def test_a_run_uses_one_container_that_logs_to_cloudwatch_and_model_logs_are_in_their_tasks(
    driver: Driver, tasks: Tasks
) -> None:
    run = driver.start()
    ended = assert_succeeds(driver, run, 1)
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


def test_a_container_that_is_killed_is_replaced_and_finished_models_are_not_built_again(
    driver: Driver, tasks: Tasks
) -> None:
    run, container = start_slow_run(driver, tasks, "killed", 1)
    docker("kill", container)
    ended = assert_succeeds(driver, run, 2)
    assert results(driver, run, ORDERS)[0].runner == 1
    assert ended.endings()[1].exit_code == 137
    assert "another runner will take over" in driver.log(run, "models.fct.run")


@pytest.mark.long
def test_a_task_that_is_stopped_by_hand_is_replaced(driver: Driver, tasks: Tasks) -> None:
    run, _ = start_slow_run(driver, tasks, "stopped", 2)
    (runner,) = opened(driver, run).runners()
    settings = get_settings()
    client("ecs", settings).stop_task(cluster=settings.ecs_cluster, task=runner.arn, reason="maintenance of it")
    assert_succeeds(driver, run, 2)
    assert "maintenance of it" in driver.log(run, "models.fct.run")


@pytest.mark.long
def test_a_container_that_hangs_is_stopped_and_replaced(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "hanging", 7)
    docker("pause", container)
    assert_succeeds(driver, run, 2)
    log = driver.log(run, "models.fct.run")
    assert "no heartbeats for 20 s" in log
    assert "another runner will take over" in log


@pytest.mark.long
def test_a_model_that_runs_out_of_memory_is_built_alone_in_the_next_size(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "memory", 3)
    run_out_of_memory(container)
    driver.green(run, limit=LIMIT)
    ended = opened(driver, run)
    first, *others = ended.runners()
    assert ended.endings()[first.number].out_of_memory
    alone = next(runner for runner in others if FCT in runner.nodes)
    assert (alone.kind, alone.size, alone.memory) == ("solo", "medium", 8192)
    log = driver.log(run, "models.fct.run")
    assert "starting a runner of size medium" in log
    assert "4 GB" in log


@pytest.mark.long
def test_the_local_aws_can_be_restarted_during_a_run(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "restarted", 4)
    driver.busco("aws", "down")
    assert container not in tasks.all(), "its containers end when it stops"
    driver.busco("aws", "up")
    assert_succeeds(driver, run, 2)


def test_a_triggerer_and_a_scheduler_that_are_killed_find_the_container_again(driver: Driver, tasks: Tasks) -> None:
    run, container = start_slow_run(driver, tasks, "triggerer", 5)
    settings = get_settings()
    for service in ("triggerer", "scheduler"):
        kill_service(service)
    assert tasks.running() == [container]
    airflow.up(settings, lambda _: None)
    assert_succeeds(driver, run, 1)


def test_a_running_model_that_is_cleared_gets_its_own_runner_and_the_late_write_is_fenced(
    driver: Driver, tasks: Tasks
) -> None:
    run, _ = start_slow_run(driver, tasks, "cleared", 6)
    driver.clear(run, "models.fct.run", downstream=False)
    driver.green(run, limit=LIMIT)
    entered = opened(driver, run).entries()["gold.fct"].version
    assert entered is not None
    made = [result for result in results(driver, run, FCT) if result.made == entered.version]
    assert len(made) == 1
    assert not made[0].fenced


def test_a_selection_is_resolved_by_an_ecs_task_and_only_selected_models_are_built(
    driver: Driver, tasks: Tasks
) -> None:
    deliver(driver, "selected", 18, 1)
    run = driver.start(select="orders customers")
    assert driver.finish(run, limit=LIMIT) == "success"
    states = driver.states(run)
    assert (states["models.customers.run"], states["models.fct.run"]) == ("success", "skipped")
    assert "started ECS task" in driver.log(run, "pin")
    assert not is_building(driver, run, FCT)
    run = driver.start(select="nothing_of_that_name")
    assert driver.finish(run, limit=LIMIT) == "failed"
    assert "matches nothing" in driver.log(run, "pin")
