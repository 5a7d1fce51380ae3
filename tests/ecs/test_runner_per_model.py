"""BUSCO_EXECUTION=ecs: a container for each model, in the order that Airflow determines."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from busco.lake.layout import run_key
from busco.lake.runs import open_run
from tests.airflow.driver import DAG, ENVIRONMENT, Driver, platform
from tests.ecs.conftest import PROJECT, Tasks
from tests.ecs.runs import LIMIT


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Driver]:
    variables = {"BUSCO_EXECUTION": "ecs", "BUSCO_DBT_IMAGE": image, "BUSCO_MAX_ECS_TASKS": "1"}
    with platform(tmp_path_factory.mktemp("ecs"), PROJECT, BUSCO_ECS_SIZE="small", **variables) as made:
        yield made


@pytest.mark.long
def test_each_model_has_a_container_and_no_more_run_at_once_than_there_are_slots(driver: Driver) -> None:
    tasks, most, over = Tasks(driver), [0], threading.Event()

    def count() -> None:
        while not over.wait(0.3):
            most[0] = max(most[0], len(tasks.running()))

    counting = threading.Thread(target=count, daemon=True)
    counting.start()
    try:
        run = driver.start()
        driver.green(run, limit=LIMIT)
    finally:
        over.set()
        counting.join()
    runners = open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).runners()
    assert {runner.kind for runner in runners} == {"solo"}
    nodes = [node for runner in runners for node in runner.nodes]
    assert len(nodes) == len(set(nodes)), "no node belongs to two runners"
    made = {"orders", "fct", "months", "customers", "docs"}
    assert {runner.task for runner in runners} == made | {""}, "the runner of joint tests belongs to no task"
    assert most[0] == 1
    assert "waiting for a slot" in "".join(driver.log(run, f"models.{name}.run") for name in ("fct", "customers"))
    driver.wait(lambda: not tasks.all(), 60)
    # a test that is cleared alone gets a runner that only runs tests
    driver.clear(run, "models.fct.test", downstream=False)
    driver.green(run, limit=LIMIT)
    again = open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).runners()[len(runners) :]
    assert [runner.task for runner in again] == ["fct.test"]
    assert all(node.startswith("test.") for node in again[0].nodes)
