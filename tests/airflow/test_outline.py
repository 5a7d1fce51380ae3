"""The graph that Airflow builds from a cached outline is the one that Cosmos renders from the same manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.synthetic import manifest

ROOT = Path(__file__).parents[2]

# Parses the DAG file as Airflow does, in a separate process, and reports whether Cosmos was involved.
PARSE = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from airflow.models import DagBag
from airflow.serialization.serialized_objects import SerializedDAG

bag = DagBag(sys.argv[1], include_examples=False, read_dags_from_db=False)
result = {"errors": bag.import_errors, "rendered": "cosmos.converter" in sys.modules}
if "lakehouse" in bag.dags:
    result["dag"] = SerializedDAG.to_dict(bag.dags["lakehouse"])["dag"]
print(json.dumps(result))
"""
# For each manifest, builds the graph as Cosmos renders it into a DAG, and as it comes from the outline.
COMPARE = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from pathlib import Path
import pendulum
from airflow.models.dag import DAG
from airflow.models.param import Param
from airflow.operators.empty import EmptyOperator
from airflow.serialization.serialized_objects import SerializedDAG
from busco.orchestration import graph, outline, tasks
from busco.settings import get_settings

def dag_of(make):
    start = pendulum.datetime(2024, 1, 1, tz="UTC")
    params = {"select": Param("", type="string")}
    with DAG("d", schedule=None, start_date=start, default_args={"owner": "o"}, params=params, doc_md="d") as dag:
        EmptyOperator(task_id="before") >> make(get_settings(), "models") >> EmptyOperator(task_id="after")
    return SerializedDAG.to_dict(dag)["dag"]

def by_outline(settings, name):
    return outline.group_of(tasks.dbt_outline(settings, name))

found = []
for path in sys.argv[1:]:
    get_settings().manifest_path.write_text(Path(path).read_text())
    found.append([dag_of(make) for make in (graph.dbt_tasks, by_outline, by_outline)])
print(json.dumps(found))
"""


def run(home: Path, code: str, *arguments: str) -> Any:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    own = {"BUSCO_HOME": str(ROOT), "BUSCO_STATE_DIR": str(home), "AIRFLOW_HOME": str(home / "airflow")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env={**kept, **own}, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def parse(home: Path) -> dict[str, Any]:
    result: dict[str, Any] = run(home, PARSE, str(ROOT / "dags/lakehouse.py"))
    return result


def tasks_of(dag: dict[str, Any]) -> dict[str, Any]:
    return {task["__var"]["task_id"]: task["__var"] for task in dag["tasks"]}


@dataclass(frozen=True)
class Rendered:
    """A state folder whose project was rendered once, and the result of that."""

    home: Path
    result: dict[str, Any]

    @property
    def outline(self) -> Path:
        (found,) = self.home.glob("*.outline.json")
        return found


def small_project(home: Path) -> Path:
    (home / "manifest.json").write_text(json.dumps(manifest(20, 14)))
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder with the manifest of a small project."""
    return small_project(tmp_path)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    home = small_project(tmp_path_factory.mktemp("rendered"))
    return Rendered(home, parse(home))


def test_the_graph_from_an_outline_is_the_one_that_cosmos_renders_task_by_task(home: Path) -> None:
    sizes = [(1, 0, 0), (7, 4, 1), (40, 30, 2), (40, 60, 3), (90, 45, 4), (40, 1, 5)]
    paths = []
    for models, tests, seed in sizes:
        paths.append(home / f"made-{seed}.json")
        paths[-1].write_text(json.dumps(manifest(models, tests, seed=seed)))
    for (rendered, fresh, kept), size in zip(run(home, COMPARE, *map(str, paths)), sizes, strict=True):
        assert fresh == kept
        assert kept["_task_group"] == rendered["_task_group"]
        assert {**kept, "tasks": None} == {**rendered, "tasks": None}
        # except for the DAG's params, which Airflow copies into each task
        expected = {
            name: {key: value for key, value in task.items() if key != "params" or name in ("before", "after")}
            for name, task in tasks_of(rendered).items()
        }
        assert tasks_of(kept) == expected
        assert len(expected) >= size[0] + 2


def test_an_unchanged_manifest_is_not_rendered_again(rendered: Rendered) -> None:
    first, again = rendered.result, parse(rendered.home)
    assert (first["errors"], again["errors"]) == ({}, {})
    assert (first["rendered"], again["rendered"]) == (True, False)
    assert again["dag"] == first["dag"]
    assert {param[0] for param in again["dag"]["params"]} == {"select", "full_refresh"}
    assert {task["owner"] for task in tasks_of(again["dag"]).values()} == {"data-platform"}


def test_a_changed_manifest_is_rendered_again(home: Path) -> None:
    before = tasks_of(parse(home)["dag"])
    changed = manifest(20, 14)
    renamed = json.dumps(changed).replace("silver_0_0", "silver_new")
    (home / "manifest.json").write_text(renamed)
    result = parse(home)
    assert result["rendered"]
    assert {name.replace("silver_0_0", "silver_new") for name in before} == tasks_of(result["dag"]).keys()
    # the outline of the previous manifest is still cached
    (home / "manifest.json").write_text(json.dumps(changed))
    result = parse(home)
    assert (result["rendered"], tasks_of(result["dag"])) == (False, before)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("cut off", marks=pytest.mark.long),
        "edited",
        pytest.param("not text", marks=pytest.mark.long),
        "a folder",
    ],
)
def test_an_outline_that_was_damaged_is_not_used(rendered: Rendered, damage: str) -> None:
    path = rendered.outline
    written = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(written[: len(written) // 2])
    elif damage == "edited":
        path.write_bytes(written.replace(b"silver_0_0", b"silver_0_x"))
    elif damage == "not text":
        path.write_bytes(b"\xff\xfe\x00" + written[3:])
    else:
        path.unlink()
        path.mkdir()
    result = parse(rendered.home)
    assert (result["errors"], result["rendered"], result["dag"]) == ({}, True, rendered.result["dag"])
    if damage == "a folder":
        path.rmdir()
        path.write_bytes(written)
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("name", "value"),
    [("BUSCO_EXECUTION", "ecs"), pytest.param("AIRFLOW__COSMOS__ENABLE_CACHE", "False", marks=pytest.mark.long)],
)
def test_the_graph_is_rendered_again_if_our_or_cosmos_s_settings_change(
    rendered: Rendered, name: str, value: str
) -> None:
    other = f"import os; os.environ[{name!r}] = {value!r}\n{PARSE}"
    assert run(rendered.home, other, str(ROOT / "dags/lakehouse.py"))["rendered"]


def test_a_project_that_was_never_parsed_is_an_import_error(home: Path) -> None:
    (home / "manifest.json").unlink()
    (error,) = parse(home)["errors"].values()
    assert "the dbt project has not been parsed here" in error


def test_outlines_of_old_manifests_are_removed(home: Path) -> None:
    for number in range(12):
        old = home / f"manifest.{number}.outline.json"
        old.write_text("old")
        os.utime(old, (number, number))
    parse(home)
    left = {path.name for path in home.glob("*.outline.json")}
    assert len(left) == 8
    assert {f"manifest.{number}.outline.json" for number in range(5, 12)} < left
