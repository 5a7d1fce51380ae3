"""Measures 1,000 tasks in one triggerer: the longest time that its event loop is blocked, and the memory they use.

The triggers, the watch and the follower records are the real ones, on the local AWS; the runner is a process that
writes the results of 1,000 models as fast as the local AWS accepts them. There are two measurements: one with results
that arrive while all tasks are waiting, and one with results that all exist when the tasks start, as after a
triggerer's restart.

usage: .venv/bin/python -m bench.followers [--count N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

HOME = Path(__file__).parents[1]
STATE = HOME / ".busco" / "bench-followers"
DAG = "bench"
_BEAT = 0.005
_LIMIT = 900.0


def main() -> None:
    """Prints a line for each of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of tasks (default: %(default)s)")
    parser.add_argument("--runner", help=argparse.SUPPRESS)
    parser.add_argument("--triggerer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.runner:
        runner(given.runner, given.count)
    elif given.triggerer:
        print(json.dumps(asyncio.run(triggerer(given.triggerer, given.count))))
    else:
        for name, result in measure(given.count).items():
            print(f"{name}: {result}", flush=True)


def measure(count: int) -> dict[str, dict[str, Any]]:
    """Returns the figures of each measurement: `block` and `block_cpu` (longest, in seconds), `late` (number of blocks
    over 0.1 s), `rss` (MB before and at most), `cpu` and `wall` (seconds), and `states`."""
    os.environ.update(BUSCO_HOME=str(HOME), BUSCO_STATE_DIR=str(STATE))
    from busco.embedded.demo import command
    from busco.settings import get_settings

    command(get_settings(), "aws", "up", quiet=True)
    get_settings.cache_clear()
    try:
        return {way: _measure(way, count) for way in ("as they come", "all at once")}
    finally:
        command(get_settings(), "aws", "down", quiet=True)


def _measure(way: str, count: int) -> dict[str, Any]:
    run_id = f"{way.replace(' ', '-')}-{time.time_ns()}"
    _pin(run_id)
    base = [sys.executable, "-m", "bench.followers", "--count", str(count)]
    writer = subprocess.Popen([*base, "--runner", run_id], cwd=HOME, stdin=subprocess.PIPE, text=True)
    try:
        if way == "all at once":
            writer.communicate(timeout=_LIMIT)
        triggers = subprocess.Popen([*base, "--triggerer", run_id], cwd=HOME, stdout=subprocess.PIPE, text=True)
        assert triggers.stdout is not None
        for line in triggers.stdout:
            if line == "waiting\n" and writer.stdin is not None and not writer.stdin.closed:
                writer.stdin.close()
            elif line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit("the triggerer process exited without a result")
    finally:
        if writer.poll() is None:
            writer.terminate()
        writer.wait()


# -- the triggerer ----------------------------------------------------------------------------------------------------


async def triggerer(run_id: str, count: int) -> dict[str, Any]:
    """Runs a trigger for each task until all have finished, concurrently with a heartbeat."""
    from busco.orchestration import follow, watch  # noqa: F401 (the first trigger would import these)
    from busco.orchestration.triggers import FollowTrigger

    logging.disable(logging.CRITICAL)
    states: Counter[str] = Counter()
    wrong: list[str] = []

    async def one(node: str) -> None:
        where: dict[str, Any] = {"dag_id": DAG, "run_id": run_id, "attempt": 1, "end_task": False}
        trigger = FollowTrigger(task=node.rsplit(".", 1)[1], nodes=[node], along=[], label=f"model {node}", **where)
        async for event in trigger.run():
            states[event.payload["state"]] += 1
            if event.payload["state"] != "success":
                wrong.append(event.payload["text"])

    process = psutil.Process()
    heart = Heart()
    beating = asyncio.create_task(heart.beat())
    before = process.memory_info().rss
    begun, cpu = time.monotonic(), time.process_time()
    tasks = []
    for node in nodes(count):
        tasks.append(asyncio.create_task(one(node)))
        await asyncio.sleep(0)  # as Airflow's triggerer starts them
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.2)
        heart.rss = max(heart.rss, process.memory_info().rss)
        from busco.orchestration.watches import _watches

        if heart.rss and not heart.has_reported and any(len(w.followers) == count for w in _watches.values()):
            heart.has_reported = True
            print("waiting", flush=True)
        if time.monotonic() - begun > _LIMIT:
            break
    beating.cancel()
    wrong += [repr(task.exception()) for task in tasks if task.done() and task.exception()]
    return {
        "block": round(heart.block, 3),
        "block_cpu": round(heart.block_cpu, 3),
        "late": heart.late,
        "rss": [round(value / 2**20) for value in (before, heart.rss)],
        "cpu": round(time.process_time() - cpu, 1),
        "wall": round(time.monotonic() - begun, 1),
        "states": dict(states),
        "wrong": wrong[:3],
    }


class Heart:
    """A task that is due every 5 ms and records its delay, in wall time and in the CPU time that its thread has used
    meanwhile (which doesn't depend on how busy the machine is)."""

    def __init__(self) -> None:
        self.block = self.block_cpu = 0.0
        self.late = self.rss = 0
        self.has_reported = False

    async def beat(self) -> None:
        while True:
            wall, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(_BEAT)
            late, spent = time.perf_counter() - wall - _BEAT, time.thread_time() - cpu
            self.block, self.block_cpu = max(self.block, late), max(self.block_cpu, spent)
            self.late += spent > 0.1


# -- the runner ------------------------------------------------------------------------------------------------------


def nodes(count: int) -> list[str]:
    return [f"model.big.gold_{number}" for number in range(count)]


def _pin(run_id: str) -> None:
    from busco.lake.records import Pin, utc_now
    from busco.lake.runs import save_pin

    store, environment, key = _lake(run_id)
    pin = Pin(run=key, epoch=1, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=utc_now())
    save_pin(store, environment, pin)


def _lake(run_id: str) -> tuple[Any, Any, str]:
    from busco.aws import client
    from busco.lake.layout import EnvironmentLayout, run_key
    from busco.lake.objects import ObjectStore
    from busco.settings import get_settings

    settings = get_settings()
    store = ObjectStore(client("s3", settings), settings.lake_bucket)
    return store, EnvironmentLayout("prod"), run_key(DAG, run_id)


def runner(run_id: str, count: int) -> None:
    """Registers itself as the runner, waits for end of file on standard input, and writes a result for every node."""
    from busco.lake.layout import new_id
    from busco.lake.records import RUNNER_NODE, Result, Runner
    from busco.lake.runs import open_run
    from busco.processes import this_host
    from busco.settings import get_settings

    store, environment, key = _lake(run_id)
    run = open_run(store, environment, key)
    process = psutil.Process()
    host = this_host(get_settings().state)
    who = {"launcher": "local", "host": host, "pid": process.pid, "started": process.create_time(), "token": new_id()}
    store.create(run.layout.runner(1), Runner(number=1, kind="shared", **who))
    plan = tuple(nodes(count))
    run.put_result(Result(node=RUNNER_NODE, runner=1, status="running", plan=plan))
    sys.stdin.read()

    def build(node: str) -> None:
        run.put_result(Result(node=node, runner=1, status="running"))
        reads = {f"silver.parent_{number}": new_id() for number in range(3)}
        done = Result(node=node, runner=1, status="success", reads=reads, made=new_id(), rows=1, message="ok")
        run.put_result(done, "dbt's log\n" * 200)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(build, plan))
    run.put_result(Result(node=RUNNER_NODE, runner=1, status="success", plan=plan))


if __name__ == "__main__":
    main()
