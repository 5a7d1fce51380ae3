"""An upload starts the DAG of each dbt project that reads its table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.airflow.driver import DAG, ROOT, Driver, platform
from tests.airflow.test_events import Producer, rows_of
from tests.airflow.test_foreign_dag import add_bakery

pytestmark = pytest.mark.slow
# the source of the small project, verbatim
SOURCE = ROOT / "tests/projects/mini/dbt_project/models/bronze/s.yml"
MODEL = "select id, amount from {{ source('bronze', 'orders') }}"


def with_a_second_project(home: Path) -> None:
    """Adds the bakery, with a model that reads the source of the small project."""
    add_bakery(home)
    (home / "bakery/models/shared.yml").write_text(SOURCE.read_text())
    (home / "bakery/models/marts/finance/amounts.sql").write_text(MODEL)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    home = tmp_path_factory.mktemp("projects")
    project = ROOT / "tests/projects/mini/dbt_project"
    own = {"BUSCO_LISTEN": "true", "BUSCO_DBT_PROJECTS": "bakery"}
    with platform(home, project, None, with_a_second_project, **own) as made:
        made.busco("dbt", "parse")
        for dag in (DAG, "bakery"):
            made.api.wait_for_dag(dag)
        yield made


def amounts(driver: Driver) -> int:
    live = driver.live()
    return live.tables["gold.amounts"].rows if live is not None and "gold.amounts" in live.tables else 0


def test_both_projects_publish_what_one_upload_brought(driver: Driver) -> None:
    producer = Producer(driver)

    def are_shown(rows: int) -> bool:
        live = driver.live()
        return live is not None and amounts(driver) == rows == rows_of(live)

    producer.put("1.csv", ("a", "1.00"))
    driver.wait(lambda: are_shown(1), 300)
    producer.put("2.csv", ("b", "2.00"), ("c", "3.00"))
    driver.wait(lambda: are_shown(3), 300)
    driver.wait(
        lambda: all(run["state"] == "success" for dag in (DAG, "bakery") for run in driver.api.dag_runs(dag)),
        120,
    )
    assert [len(driver.api.dag_runs(dag)) for dag in (DAG, "bakery")] == [2, 2]
    status = driver.busco("events", "status")
    assert "busco: published" in status
    assert "bakery: published" in status
