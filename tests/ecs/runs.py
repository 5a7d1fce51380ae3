"""Runs of the small project on ECS: helpers that start a run for a test to disrupt, and check its outcome.

Each day that has orders is a row of gold.fct; the row that was delivered last determines how long that model takes.
"""

from __future__ import annotations

import psutil

from busco.embedded import processes
from busco.lake.layout import run_key
from busco.lake.records import GOOD, Result
from busco.lake.runs import Run, open_run
from busco.settings import get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, Driver
from tests.ecs.conftest import Tasks, docker

FCT, ORDERS = "model.busco.fct", "model.busco.orders"
SLOW = 400  # counting 4 billion numbers takes seconds, during which a test can disrupt the run
LIMIT = 500.0  # seconds, below the time limit of a test
# Allocates memory in a runner's container until the kernel kills a process there: the runner, whose score is raised.
HOG = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int(process.name) not in (1, os.getpid()) and b"busco" in (process / "cmdline").read_bytes():
        (process / "oom_score_adj").write_text("1000")
kept = [b"x" * (1 << 26) for _ in range(BLOCKS)]
"""


def run_out_of_memory(container: str, gib: int = 6) -> None:
    """Allocates so much memory in a runner's container that the kernel kills the runner."""
    docker("exec", container, "python3", "-c", HOG.replace("BLOCKS", str(gib * 16)), check=False)


def kill_service(service: str) -> None:
    """Kills one of Airflow's processes and its children with SIGKILL."""
    process = processes.find(get_settings().state.resolve(), service)
    assert process is not None
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        one.kill()


def deliver(driver: Driver, name: str, day: int, n: int) -> None:
    """Delivers an order; `n` determines how long models take from then on."""
    driver.write(f"in/orders-{name}.csv", f"id,customer,amount,day,n\n{name},x,1.00,2018-03-{day:02},{n}\n")
    driver.busco("ingest", str(driver.home / "in"))


def opened(driver: Driver, run: str) -> Run:
    return open_run(driver.store, ENVIRONMENT, run_key(DAG, run))


def results(driver: Driver, run: str, node: str) -> list[Result]:
    """Returns a node's results in the run's newest epoch, ordered by runner."""
    return sorted((r for r in opened(driver, run).results() if r.node == node), key=lambda result: result.runner)


def is_building(driver: Driver, run: str, node: str) -> bool:
    """Whether a runner is building a node."""
    try:
        return any(result.status == "running" for result in results(driver, run, node))
    except Exception:  # the run is not pinned yet
        return False


def start_slow_run(driver: Driver, tasks: Tasks, name: str, day: int) -> tuple[str, str]:
    """Starts a run and waits until its container builds a slow model and the model's task follows it.

    Returns the run and the container.
    """
    deliver(driver, name, day, SLOW)
    run = driver.start()
    driver.wait(lambda: is_building(driver, run, FCT), LIMIT)
    # Airflow can lag behind: a disruption before the task follows would appear in another task's log
    driver.wait(
        lambda: driver.states(run).get("models.fct.run") == "deferred" or not is_building(driver, run, FCT), LIMIT
    )
    return run, tasks.running()[0]


def assert_succeeds(driver: Driver, run: str, runners: int | None = None) -> Run:
    """Waits for the run to succeed (with that many runners), each model built once and gold correct; returns it."""
    driver.green(run, limit=LIMIT)
    ended = opened(driver, run)
    assert runners is None or len(ended.runners()) == runners
    for node in (ORDERS, FCT):
        good = [result for result in results(driver, run, node) if result.status == "success"]
        assert len(good) == 1, node
    assert_complete(driver, run)
    return ended


def assert_complete(driver: Driver, run: str) -> None:
    """The live release is the run's, gold contains all ingested orders, and Airflow's states match the records."""
    printed = driver.busco("query", "--format", "csv", "select sum(orders) as n from busco_gold.months")
    bronze = driver.busco("query", "--format", "csv", "select count(distinct id) as n from busco_bronze.orders")
    assert printed == bronze
    live = driver.live()
    assert live is not None
    assert live.run == run_key(DAG, run)
    assert_states_match(driver, run)


def assert_states_match(driver: Driver, run: str) -> None:
    """The task of each model is green if and only if the model's last result is good."""
    latest = opened(driver, run).latest_results()
    for task, state in driver.states(run).items():
        if task.startswith("models.") and task.endswith(".run"):
            result = latest.get(f"model.busco.{task.split('.')[1]}")
            is_good = result is not None and result.status in GOOD
            assert is_good == (state == "success"), (task, state, result)
