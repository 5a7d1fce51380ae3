"""Measures speed: the demo by step, a DAG run compared with a plain `busco dbt build`, and parsing 1,000 models.

Run it with `make bench`; it has its own platform under `.busco/bench`. A slow result is not a failure. Copy the
figures to RESULTS.md by hand, with a description of the machine.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
STATE = HOME / ".busco" / "bench"


def main() -> None:
    """Prints each measurement as it is taken, and tables with the ratios at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000, help="orders in the sample (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of a DAG run and a build (default: %(default)s)")
    given = parser.parse_args()
    os.environ.update(BUSCO_HOME=str(HOME), BUSCO_STATE_DIR=str(STATE))
    print(f"machine: {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}", flush=True)
    try:
        steps = demo(given.orders)
        again = demo(given.orders)
        pairs = [(build(), dag_run()) for _ in range(given.pairs)]
        levels = depth()
        parse = parse_seconds()
    finally:
        busco("down")
    report(given.orders, steps, again, pairs, levels, parse)


def busco(*arguments: str) -> str:
    done = subprocess.run(
        [str(HOME / ".venv/bin/busco"), *arguments], capture_output=True, text=True, check=False, cwd=HOME
    )
    if done.returncode != 0:
        sys.exit(f"busco {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def demo(orders: int) -> dict[str, float]:
    """Runs the demo and returns the seconds that it reports by step, and in total as `whole`."""
    output = busco("demo", "--orders", str(orders))
    steps = {name: float(seconds) for name, seconds in re.findall(r"^\[ *[\d.]+ s\] (.*): ([\d.]+) s$", output, re.M)}
    whole = re.search(r"the whole demo: ([\d.]+) s", output)
    assert whole is not None
    steps["whole"] = float(whole.group(1))
    print("demo:", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items()), flush=True)
    return steps


def build() -> float:
    began = time.monotonic()
    busco("dbt", "build", "--full-refresh")
    seconds = time.monotonic() - began
    print(f"busco dbt build --full-refresh: {seconds:.1f} s", flush=True)
    return seconds


def dag_run() -> float:
    from busco.embedded.airflow_api import AirflowApi
    from busco.embedded.demo import DAG
    from busco.settings import get_settings

    api = AirflowApi(get_settings())
    api.wait_for_dag(DAG)
    began = time.monotonic()
    run = api.trigger(DAG, {"full_refresh": True})
    while (state := api.dag_run(DAG, run)["state"]) not in ("success", "failed"):
        time.sleep(0.2)
    seconds = time.monotonic() - began
    assert state == "success"
    print(f"DAG run with full_refresh: {seconds:.1f} s", flush=True)
    return seconds


def depth() -> int:
    """Returns the number of tasks on the longest path through the DAG."""
    from busco.embedded.airflow_api import AirflowApi
    from busco.embedded.demo import DAG
    from busco.settings import get_settings

    tasks = AirflowApi(get_settings()).call("GET", f"dags/{DAG}/tasks")["tasks"]
    below: dict[str, list[str]] = {task["task_id"]: task["downstream_task_ids"] for task in tasks}

    @functools.cache
    def longest(task: str) -> int:
        return 1 + max((longest(other) for other in below[task]), default=0)

    return max(longest(task) for task in below)


def parse_seconds() -> tuple[int, float, float]:
    """Returns a model count, and the seconds to parse `dags/lakehouse.py` with the sample and with that many models."""
    manifest = json.loads((STATE / "manifest.json").read_text())
    small = _parse(manifest)
    models = [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]
    number = 0
    while sum(node["resource_type"] == "model" for node in manifest["nodes"].values()) < 1000:
        number += 1
        for node in models:
            clone: dict[str, Any] = copy.deepcopy(node)
            clone.update(name=f"{node['name']}_{number}", alias=f"{node['name']}_{number}")
            clone["unique_id"] = f"{node['unique_id']}_{number}"
            clone["fqn"] = [*node["fqn"][:-1], clone["name"]]
            clone["depends_on"]["nodes"] = [
                f"{parent}_{number}" if parent.startswith("model.") else parent
                for parent in node["depends_on"]["nodes"]
            ]
            manifest["nodes"][clone["unique_id"]] = clone
    return 1000, small, _parse(manifest)


def _parse(manifest: dict[str, Any]) -> float:
    state = STATE / "parse"
    state.mkdir(parents=True, exist_ok=True)
    (state / "manifest.json").write_text(json.dumps(manifest))
    code = (
        "import logging, time; logging.disable(logging.CRITICAL)\n"
        "from airflow.models import DagBag\nimport busco.orchestration.graph\nbegun = time.monotonic()\n"
        "bag = DagBag('dags', include_examples=False, read_dags_from_db=False)\n"
        "assert not bag.import_errors, bag.import_errors\nprint(time.monotonic() - begun)"
    )
    environment = {**os.environ, "BUSCO_STATE_DIR": str(state), "AIRFLOW_HOME": str(state / "airflow")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=HOME
    )
    return float(done.stdout.splitlines()[-1])


def report(
    orders: int,
    first: dict[str, float],
    again: dict[str, float],
    pairs: Sequence[tuple[float, float]],
    levels: int,
    parse: tuple[int, float, float],
) -> None:
    built, dag = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"\n| demo on {orders:,} orders, seconds | first | again |\n|---|---|---|")
    for name in first:
        print(f"| {name} | {first[name]:.1f} | {again.get(name, 0.0):.1f} |")
    print("\n| measure | figure |\n|---|---|")
    print(f"| `busco dbt build --full-refresh`, median of {len(pairs)} | {built:.1f} s |")
    print(f"| DAG run with full_refresh, median of {len(pairs)} | {dag:.1f} s |")
    print(f"| DAG run / build | {dag / built:.2f} |")
    print(f"| tasks on the longest path through the DAG | {levels} |")
    print(f"| target: 1.15 × build + 2.5 s × depth | {1.15 * built + 2.5 * levels:.1f} s |")
    print(f"| overhead over the build, per level | {(dag - built) / levels:.2f} s |")
    print(f"| parsing the DAG file: {parse[0]:,} models / the sample's | {parse[2]:.1f} s / {parse[1]:.2f} s |")


if __name__ == "__main__":
    main()
