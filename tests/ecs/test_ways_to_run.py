"""The warehouse has the same tables in each execution mode. Docker Compose's tests compare containers with the demo."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from busco.embedded import airflow
from busco.lake.layout import run_key
from busco.lake.runs import open_run
from busco.settings import get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, ROOT, Driver, platform

pytestmark = pytest.mark.long
LIMIT = 900.0
DOUBLE = re.compile(r"-?\d+\.\d{6,}(e[-+]?\d+)?")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with platform(
        tmp_path_factory.mktemp("ways"), ROOT / "dbt_project", files=None, BUSCO_EXECUTION="ecs_shared"
    ) as made:
        yield made


def built(driver: Driver, execution: str) -> tuple[dict[str, str], list[str]]:
    """Rebuilds all tables in an execution mode.

    Returns a hash of each table's rows, with doubles rounded to ten digits, and the run's runners.
    """
    os.environ["BUSCO_EXECUTION"] = execution
    get_settings.cache_clear()
    airflow.down(get_settings(), lambda _: None)
    airflow.up(get_settings(), lambda _: None)
    run = driver.start(full_refresh=True)
    driver.green(run, limit=LIMIT)
    release = driver.live()
    assert release is not None
    assert release.run == run_key(DAG, run)
    hashes = {}
    for table in sorted(table for table in release.tables if not table.startswith("bronze.")):
        rows = driver.busco(
            "query", "--engine", "duckdb", "--format", "csv", f"select * from busco_{table} order by all"
        )
        # the last digits of a mean of doubles depend on how many threads added them up
        rounded = DOUBLE.sub(lambda found: f"{float(found[0]):.10g}", rows)
        hashes[table] = hashlib.sha256(rounded.encode()).hexdigest()
    runners = open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).runners()
    return hashes, [f"{runner.launcher}/{runner.kind}" for runner in runners]


def test_a_container_builds_the_same_tables_of_the_warehouse_as_a_local_process(driver: Driver, tmp_path: Path) -> None:
    driver.busco("sample", "--orders", "2000", "--out", str(tmp_path / "sample"))
    driver.busco("ingest", str(tmp_path / "sample"))
    shared, runners = built(driver, "ecs_shared")
    assert runners == ["ecs/shared"]
    assert len(shared) == 20
    local, runners = built(driver, "local")
    assert runners == ["local/shared"]
    assert shared == local


@pytest.mark.skipif(not os.environ.get("OLIST_DIR"), reason="OLIST_DIR (the folder with Olist's CSV files) is not set")
def test_real_data_produces_identical_tables_in_all_three_execution_modes(driver: Driver) -> None:
    driver.busco("ingest", os.environ["OLIST_DIR"])
    local, _ = built(driver, "local")
    shared, runners = built(driver, "ecs_shared")
    assert runners == ["ecs/shared"]
    alone, runners = built(driver, "ecs")
    assert set(runners) == {"ecs/solo"}
    assert len(runners) > 20
    assert shared == local
    assert alone == local
