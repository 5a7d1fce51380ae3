"""The DAG of a foreign dbt project, next to the DAG of the platform's own project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from busco.embedded.airflow import environment
from busco.settings import Settings
from tests.airflow.driver import Driver
from tests.airflow.test_dags import PARSE, ROOT, UPDATE

SNAPSHOT = Path(__file__).with_name("bakery.graph.json")
DAG_FILE = '''"""The bakery's tables, by Airflow."""

from busco.orchestration.dag import lakehouse_dag

bakery = lakehouse_dag("bakery", "bakery", description="Builds the bakery's tables", tags=["bakery"], doc_md=__doc__)
'''
# nodes whose tasks could be taken for those of other nodes
ODD = {
    "odd/dbt_project.yml": "name: odd\nmodels: {+materialized: lake, odd: {+schema: gold}, pkgq: {+schema: silver}}",
    "odd/models/a.sql": "select 1 as id",
    "odd/models/a.test.sql": "{{ config(alias='a_test') }} select 2 as id",
    "odd/models/docs.sql": "select 3 as id",
    "odd/models/all.yml": "models: [{name: a, columns: [{name: id, data_tests: [unique]}]},"
    " {name: a.test, columns: [{name: id, data_tests: [unique]}]}]",
    "odd/tests/a.test.test.sql": "select * from {{ ref('odd', 'a') }} join {{ ref('docs') }} using (id)",
    "odd/packages.yml": "packages: [{local: dbt_packages/pkgq}]",
    "odd/dbt_packages/pkgq/dbt_project.yml": "name: pkgq",
    "odd/dbt_packages/pkgq/models/a.sql": "select 4 as id",
    "dags/odd.py": DAG_FILE.replace("bakery", "odd"),
}


def add_odd(home: Path) -> None:
    for path, text in ODD.items():
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def add_bakery(home: Path) -> None:
    """Adds the bakery's project, with its packages where `dbt deps` puts them, and its DAG."""
    shutil.copytree(ROOT / "tests/projects/foreign", home / "bakery")
    shutil.copytree(home / "bakery/vendor", home / "bakery/dbt_packages")
    (home / "dags/bakery.py").write_text(DAG_FILE)


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns what Airflow makes of the DAG files of both projects, parsed in a separate process."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "tests/projects/mini/dbt_project", home / "dbt_project")
    shutil.copytree(ROOT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    add_bakery(home)
    add_odd(home)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    own = {"BUSCO_HOME": str(home), "AIRFLOW_HOME": str(home / "airflow"), "BUSCO_DBT_PROJECTS": "bakery,odd"}
    command = [str(ROOT / ".venv-dbt/bin/python"), "-m", "busco", "dbt", "parse"]
    subprocess.run(command, env={**kept, **own}, check=True, capture_output=True, cwd=home)
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(home / "dags")],
        env={**kept, **own}, capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("platform", ["image", "embedded"])
def test_a_dag_file_that_does_not_mention_airflow_is_parsed_too(tmp_path: Path, platform: str) -> None:
    folder = tmp_path / "dags"
    folder.mkdir()
    (folder / "bakery.py").write_text(DAG_FILE.replace(", by Airflow", ""))
    own = {"AIRFLOW_CONFIG": str(ROOT / "config/airflow.cfg"), "AIRFLOW_HOME": str(tmp_path)}
    own |= {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db"}
    own |= {"AIRFLOW__LOGGING__REMOTE_LOGGING": "False"}
    if platform == "embedded":
        own = environment(Settings(home=tmp_path, platform="embedded"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    script = "import sys; from airflow.utils import file; print(file.list_py_file_paths(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env={**kept, **own}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str([str(folder / "bakery.py")])


def test_each_project_has_a_dag_of_its_own(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    shipped = {path.stem: path.name for path in (ROOT / "dags").glob("*.py") if path.stem != "parse_check"}
    assert {name: dag["file"] for name, dag in parsed["dags"].items()} == {
        "bakery": "bakery.py",
        "odd": "odd.py",
        **shipped,
    }
    both = {"models.fct.run", "models.revenue.run"}
    assert both & parsed["dags"]["lakehouse"]["tasks"].keys() == {"models.fct.run"}
    assert both & parsed["dags"]["bakery"]["tasks"].keys() == {"models.revenue.run"}
    assert len(DAG_FILE.splitlines()) <= 5


def test_the_graph_of_a_foreign_project_is_the_one_that_was_reviewed(parsed: dict[str, Any]) -> None:
    graph = json.dumps(parsed["dags"]["bakery"], indent=1, sort_keys=True) + "\n"
    if os.environ.get(UPDATE):
        SNAPSHOT.write_text(graph)
    assert json.loads(graph) == json.loads(SNAPSHOT.read_text()), f"{UPDATE}=1 rewrites it"


def test_the_tests_of_an_ephemeral_model_have_a_task_that_follows_them(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["bakery"]["tasks"]
    assert tasks["models.int_completed_orders.run"]["trigger"] is None
    followed = tasks["models.int_completed_orders.test"]["trigger"]["nodes"]
    assert [node.split(".")[2] for node in followed] == ["accepted_values_int_completed_orders_status__completed"]


def test_two_tasks_of_a_dag_never_share_a_key_in_the_run_s_records(parsed: dict[str, Any]) -> None:
    triggers = {name: task["trigger"] for name, task in parsed["dags"]["odd"]["tasks"].items() if task["trigger"]}
    tasks = {name: trigger["task"] for name, trigger in triggers.items()}
    nodes = {node for trigger in triggers.values() for node in trigger["nodes"]}
    assert {"model.odd.a", "model.odd.a.test", "model.odd.docs", "model.pkgq.a", "test.odd.a.test.test"} <= nodes
    assert (tasks["models.a.run"], tasks["models.a.test"]) == ("a", "a.test")
    assert len(tasks) == 8
    assert len(set(tasks.values())) == len(tasks), tasks


@pytest.mark.slow
def test_publishing_a_foreign_project_keeps_the_other_tables_and_works_for_a_selection(driver: Driver) -> None:
    add_bakery(driver.home)
    driver.busco("dbt", "--project-dir", "bakery", "parse")
    driver.api.wait_for_dag("bakery", limit=60)
    before = driver.live()
    run = driver.start("bakery")
    driver.green(run, "bakery")
    release = driver.live()
    assert release.project == "bakery"
    assert {"gold.customers", "gold.customers_v1", "gold.monthly_revenue", "silver.countries"} <= set(release.tables)
    own = {table: version.version for table, version in before.tables.items()} if before else {}
    assert {table: release.tables[table].version for table in own} == own
    again = driver.start("bakery", select="customers", full_refresh=True)
    driver.green(again, "bakery")
    states = driver.states(again, "bakery")
    assert (states["models.customers_v2.run"], states["models.revenue.run"]) == ("success", "skipped")
    assert driver.live().built == ("gold.customers", "gold.customers_v1")
