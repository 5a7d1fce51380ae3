"""The DAG files as Airflow parses them: the DAGs they define, what they import, and the sample warehouse's graph."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("lakehouse.graph.json")
# Set this to update the snapshot, then review the diff.
UPDATE = "BUSCO_UPDATE_SNAPSHOTS"

PARSE = """
import json, logging, socket, sys

def refuse(*_, **__):
    raise AssertionError("a DAG file opened a connection")

socket.socket.connect = refuse
logging.disable(logging.CRITICAL)
from airflow.models import DagBag

bag = DagBag(sys.argv[1], include_examples=False, read_dags_from_db=False)
dags, started_by = {}, {}
for dag in bag.dags.values():
    condition = dag.timetable.dataset_condition
    uris = sorted(uri for uri, _ in condition.iter_datasets())
    started_by[dag.dag_id] = {"condition": type(condition).__name__, "datasets": uris}
    tasks = {}
    for task in sorted(dag.tasks, key=lambda task: task.task_id):
        start = getattr(task, "start_trigger_args", None) if task.start_from_trigger else None
        tasks[task.task_id] = {
            "after": sorted(task.upstream_task_ids),
            "trigger_rule": str(task.trigger_rule.value),
            "retries": task.retries,
            "timeout": str(task.execution_timeout),
            "trigger": start.trigger_kwargs if start else None,
        }
    dags[dag.dag_id] = {
        "file": dag.fileloc.rsplit("/", 1)[1],
        "owner": dag.owner,
        "described": bool(dag.description and dag.doc_md),
        "tags": sorted(dag.tags),
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "params": {name: param.value for name, param in dag.params.items()},
        "tasks": tasks,
    }
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"dbt", "duckdb", "pyiceberg", "pandas", "pyarrow"})
print(json.dumps({"errors": bag.import_errors, "dags": dags, "heavy": heavy, "started_by": started_by}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs that Airflow parses from dags/ in a separate process, with the sample warehouse's manifest."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "dbt_project", home / "dbt_project", ignore=shutil.ignore_patterns("target", "logs"))
    (home / "dags").symlink_to(ROOT / "dags")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    environment = {**kept, "BUSCO_HOME": str(home), "AIRFLOW_HOME": str(home / "airflow")}
    command = [str(ROOT / ".venv-dbt/bin/python"), "-m", "busco", "dbt", "parse"]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=home)
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(home / "dags")],
        env=environment, capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads((home / ".busco/manifest.json").read_text())
    return {**json.loads(done.stdout.splitlines()[-1]), "manifest": manifest}


def test_every_file_defines_one_dag_with_the_name_of_the_file(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    # this file defines no DAG; it only shows dbt's message as an import error
    files = {path.name for path in (ROOT / "dags").glob("*.py")} - {"parse_check.py"}
    assert {f"{dag_id}.py": dag["file"] for dag_id, dag in parsed["dags"].items()} == {name: name for name in files}
    for path in (ROOT / "dags").glob("*.py"):
        assert not path.name.startswith("dbt_"), "dbt would load this file as a plugin"
        assert len(path.read_text().splitlines()) <= 60


def test_every_dag_has_an_owner_and_instructions_for_on_call(parsed: dict[str, Any]) -> None:
    for dag in parsed["dags"].values():
        assert dag["described"]
        assert dag["tags"]
        assert dag["owner"] != "airflow"
        assert (dag["catchup"], dag["max_active_runs"]) == (False, 1)


def test_parsing_a_dag_file_imports_no_heavy_packages_and_opens_no_connection(parsed: dict[str, Any]) -> None:
    assert parsed["heavy"] == []


def test_the_graph_matches_the_reviewed_snapshot(parsed: dict[str, Any]) -> None:
    graph = json.dumps(parsed["dags"]["lakehouse"], indent=1, sort_keys=True) + "\n"
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text(graph)
    assert json.loads(graph) == json.loads(SNAPSHOT.read_text()), f"to update the snapshot, set {UPDATE}=1"


def test_new_deliveries_of_any_source_table_start_a_project_s_dag_and_no_other(parsed: dict[str, Any]) -> None:
    sources = {source["identifier"] for source in parsed["manifest"]["sources"].values()}
    started_by = parsed["started_by"]
    assert started_by.pop("lakehouse") == {
        "condition": "DatasetAny",
        "datasets": sorted(f"busco://lake/bronze/{name}" for name in sources),
    }
    assert all(one["datasets"] == [] for one in started_by.values())


def test_each_model_has_one_task_followed_by_one_for_its_own_tests(parsed: dict[str, Any]) -> None:
    tasks, nodes = parsed["dags"]["lakehouse"]["tasks"], parsed["manifest"]["nodes"]
    models = {uid for uid, node in nodes.items() if node["resource_type"] == "model"}
    own: dict[str, set[str]] = {}
    for uid, node in nodes.items():
        parents = set(node["depends_on"]["nodes"])
        if node["resource_type"] == "test" and len(parents) == 1:
            own.setdefault(parents.pop(), set()).add(uid)
    made = {task["trigger"]["nodes"][0]: name for name, task in tasks.items() if task["trigger"]}
    assert models <= made.keys()
    for model in models:
        name = nodes[model]["name"]
        test = tasks[f"models.{name}.test"]
        assert set(test["trigger"]["nodes"]) == own[model]
        assert test["after"] == [f"models.{name}.run"]


def test_a_joint_test_is_one_task_after_all_its_models_and_before_the_models_downstream(
    parsed: dict[str, Any],
) -> None:
    tasks, nodes = parsed["dags"]["lakehouse"]["tasks"], parsed["manifest"]["nodes"]

    def upstream(task: str) -> set[str]:
        found = set(tasks[task]["after"])
        return found.union(*(upstream(other) for other in found))

    joint = {
        uid: node["depends_on"]["nodes"]
        for uid, node in nodes.items()
        if node["resource_type"] == "test" and len(set(node["depends_on"]["nodes"])) > 1
    }
    assert len(joint) > 5
    for uid, parents in joint.items():
        (task,) = [name for name, found in tasks.items() if found["trigger"] and found["trigger"]["nodes"] == [uid]]
        built = [parent for parent in parents if parent.startswith("model.")]
        assert {f"models.{nodes[parent]['name']}.test" for parent in built} <= upstream(task)
        for other in (name for name, found in tasks.items() if found["trigger"] and name.endswith(".run")):
            downstream = {f"models.{nodes[parent]['name']}.run" for parent in built} <= upstream(other)
            # a test of one model and a source need not precede the models downstream of that model
            if downstream and len(built) > 1:
                assert task in upstream(other), f"{other} can start before {task} has passed"


def test_tasks_of_the_graph_have_a_time_limit_and_no_airflow_retries(parsed: dict[str, Any]) -> None:
    for name, task in parsed["dags"]["lakehouse"]["tasks"].items():
        if task["trigger"]:
            assert (task["retries"], task["timeout"], task["trigger_rule"]) == (0, "6:00:00", "none_failed"), name
        else:
            assert task["retries"] == 3, name


def test_the_broker_delivers_no_task_twice_while_it_runs(parsed: dict[str, Any]) -> None:
    """Redis delivers a task again that was not acknowledged within the visibility timeout."""
    common = yaml.safe_load((ROOT / "docker-compose.common.yml").read_text())
    settings = next(
        value for value in common.values() if isinstance(value, dict) and "AIRFLOW__CELERY__BROKER_URL_CMD" in value
    )
    visible = timedelta(seconds=int(settings["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]))
    limits = []
    for dag in parsed["dags"].values():
        for name, task in dag["tasks"].items():
            assert task["timeout"] != "None", name
            hours, minutes, seconds = map(int, task["timeout"].split(":"))
            limits.append(timedelta(hours=hours, minutes=minutes, seconds=seconds))
    assert visible > 2 * max(limits)
