"""Compares the cost of parsing a graph of 1,000 models and 500 tests: ours, and Cosmos's own.

Ours is parsed from a new manifest, and from the outline of a known one. Each figure is the CPU time of a new process,
with imports counted separately; `serialize` is the scheduler's additional work after each parse.

usage: .venv/bin/python -m bench.graph [--models N] [--tests N] [--pairs N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.synthetic import PROJECT, manifest

HOME = Path(__file__).parents[1]

_CLOCK = """
import json, logging, os, sys, time
logging.disable(logging.CRITICAL)
clock = time.process_time
seconds, began = {}, clock()

def step(name):
    global began
    seconds[name], began = clock() - began, clock()

def done(dag):
    from airflow.serialization.serialized_objects import SerializedDAG
    step("parse")
    size = len(json.dumps(SerializedDAG.to_dict(dag)))
    step("serialize")
    print(json.dumps({**seconds, "tasks": len(dag.tasks), "bytes": size}))
"""
_OURS = f"""{_CLOCK}
import pendulum
from airflow.models import DagBag
import busco.orchestration.tasks
if sys.argv[2] == "new":
    import busco.orchestration.graph
step("import")
bag = DagBag(sys.argv[1], include_examples=False, read_dags_from_db=False)
assert not bag.import_errors, bag.import_errors
done(bag.dags["lakehouse"])
"""
_STOCK = f"""{_CLOCK}
from datetime import datetime
from pathlib import Path
from cosmos import DbtDag, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import ExecutionMode, LoadMode, TestBehavior
step("import")
state, project, mode = sys.argv[1:]
containers = {{"cluster": "c", "task_definition": "t", "container_name": "dbt", "aws_conn_id": "aws"}}
done(DbtDag(
    dag_id="stock", schedule=None, start_date=datetime(2024, 1, 1),
    project_config=ProjectConfig(manifest_path=Path(state) / "manifest.json", project_name={PROJECT!r}),
    profile_config=ProfileConfig(
        profile_name="busco", target_name="lake", profiles_yml_filepath=Path(project) / "profiles.yml"
    ),
    execution_config=ExecutionConfig(dbt_project_path=project, execution_mode=ExecutionMode[mode]),
    render_config=RenderConfig(
        load_method=LoadMode.DBT_MANIFEST, test_behavior=TestBehavior.AFTER_EACH,
        should_detach_multiple_parents_tests=True, emit_datasets=False,
    ),
    operator_args={{**containers, "launch_type": "FARGATE"}} if mode == "AWS_ECS" else {{}},
))
"""


def main() -> None:
    """Prints a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000, help="models (default: %(default)s)")
    parser.add_argument("--tests", type=int, default=500, help="tests (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each variant, in turn (default: %(default)s)")
    given = parser.parse_args()
    report(measure(given.models, given.tests, given.pairs))


def measure(models: int, tests: int, pairs: int) -> dict[str, dict[str, float]]:
    """Returns medians of `pairs` runs by variant: CPU seconds (`import`, `parse`, `serialize`), `tasks` and `bytes`."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        (state / "manifest.json").write_text(json.dumps(manifest(models, tests)))
        for _ in range(pairs):
            for outline in state.glob("*.outline.json"):
                outline.unlink()
            for way, code, arguments in (
                ("ours, new manifest", _OURS, ["dags/lakehouse.py", "new"]),
                ("ours, known manifest", _OURS, ["dags/lakehouse.py", "known"]),
                ("Cosmos, AWS_ECS", _STOCK, [str(state), "dbt_project", "AWS_ECS"]),
                ("Cosmos, LOCAL", _STOCK, [str(state), "dbt_project", "LOCAL"]),
            ):
                found.setdefault(way, []).append(_run(state, code, arguments))
    return {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for way, runs in found.items()
    }


def _run(state: Path, code: str, arguments: list[str]) -> dict[str, float]:
    cosmos = {f"AIRFLOW__COSMOS__{name}": "False" for name in ("ENABLE_CACHE", "ENABLE_TELEMETRY")}
    own = {"BUSCO_HOME": str(HOME), "BUSCO_STATE_DIR": str(state), "AIRFLOW_HOME": str(state / "airflow"), **cosmos}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env={**os.environ, **own}, cwd=HOME, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(found: dict[str, dict[str, float]]) -> None:
    """Prints the table, with parse plus serialization of each variant as a multiple of that for a known manifest."""
    least = sum(found["ours, known manifest"][name] for name in ("parse", "serialize"))
    print("| CPU seconds | import | parse | serialize | parse + serialize, ratio | tasks | serialized MB |")
    print("|---|---|---|---|---|---|---|")
    for way, result in found.items():
        ratio = (result["parse"] + result["serialize"]) / least
        row = f"{result['import']:.2f} | {result['parse']:.2f} | {result['serialize']:.2f} | {ratio:.1f}"
        print(f"| {way} | {row} | {result['tasks']:.0f} | {result['bytes'] / 1e6:.1f} |")


if __name__ == "__main__":
    main()
