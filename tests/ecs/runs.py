"""Runs of the small project on ECS: brought to where a test can do its worst, and held against what they must come to.

Every day of its orders is a row of gold.fct; the row that was delivered last says for how long that model is built.
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
SLOW = 400  # tens of millions of numbers to count: seconds in which a test does its worst
LIMIT = 240.0
# Takes memory in a runner's container until the kernel ends a process there: the runner, which offers itself first.
HOG = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int(process.name) not in (1, os.getpid()) and b"busco" in (process / "cmdline").read_bytes():
        (process / "oom_score_adj").write_text("1000")
kept = [b"x" * (1 << 26) for _ in range(BLOCKS)]
"""


def run_out_of_memory(container: str, gib: int = 6) -> None:
    """Takes so much memory in a runner's container that the kernel ends it."""
    docker("exec", container, "python3", "-c", HOG.replace("BLOCKS", str(gib * 16)), check=False)


def kill_service(service: str) -> None:
    """Ends one of Airflow's processes and its children with SIGKILL."""
    process = processes.find(get_settings().state.resolve(), service)
    assert process is not None
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        one.kill()


def deliver(driver: Driver, name: str, day: int, n: int) -> None:
    """An order; `n` says for how long models are built from then on."""
    driver.write(f"in/orders-{name}.csv", f"id,customer,amount,day,n\n{name},x,1.00,2018-03-{day:02},{n}\n")
    driver.busco("ingest", str(driver.home / "in"))


def opened(driver: Driver, run: str) -> Run:
    return open_run(driver.store, ENVIRONMENT, run_key(DAG, run))


def results(driver: Driver, run: str, node: str) -> list[Result]:
    """A node's results in the run's newest epoch, by runner."""
    return sorted((r for r in opened(driver, run).results() if r.node == node), key=lambda result: result.runner)


def is_at(driver: Driver, run: str, node: str) -> bool:
    """Whether a runner is building a node."""
    try:
        return any(result.status == "running" for result in results(driver, run, node))
    except Exception:  # the run is not pinned yet
        return False


def at_work(driver: Driver, tasks: Tasks, name: str, day: int) -> tuple[str, str]:
    """A run whose container is building a slow model, which its task follows: the run and the container."""
    deliver(driver, name, day, SLOW)
    run = driver.start()
    driver.wait(lambda: is_at(driver, run, FCT), LIMIT)
    # Airflow may be behind: what happens before that is told in the log of the task that follows then
    driver.wait(lambda: driver.states(run).get("models.fct.run") == "deferred" or not is_at(driver, run, FCT), LIMIT)
    return run, tasks.running()[0]


def ends_right(driver: Driver, run: str, runners: int | None = None) -> Run:
    """The run ends green (with so many runners), each model built once; gold is what it must be."""
    driver.green(run, limit=LIMIT)
    ended = opened(driver, run)
    assert runners is None or len(ended.runners()) == runners
    for node in (ORDERS, FCT):
        good = [result for result in results(driver, run, node) if result.status == "success"]
        assert len(good) == 1, node
    shows_all_that_was_delivered(driver, run)
    return ended


def shows_all_that_was_delivered(driver: Driver, run: str) -> None:
    """The live release is the run's, gold equals what was ingested, and Airflow's states agree with the records."""
    printed = driver.busco("query", "--format", "csv", "select sum(orders) as n from busco_gold.months")
    bronze = driver.busco("query", "--format", "csv", "select count(distinct id) as n from busco_bronze.orders")
    assert printed == bronze
    live = driver.live()
    assert live is not None
    assert live.run == run_key(DAG, run)
    agree(driver, run)


def agree(driver: Driver, run: str) -> None:
    """Each model's task is green where its last result is good, and only there."""
    latest = opened(driver, run).latest_results()
    for task, state in driver.states(run).items():
        if task.startswith("models.") and task.endswith(".run"):
            result = latest.get(f"model.busco.{task.split('.')[1]}")
            is_good = result is not None and result.status in GOOD
            assert is_good == (state == "success"), (task, state, result)
