"""One embedded platform for the tests that go through Airflow: the small project, its own AWS, PostgreSQL, Airflow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from busco.embedded import airflow
from busco.settings import get_settings
from tests.airflow.driver import Driver

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A running platform with files ingested, nothing built."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "tests/projects/mini/dbt_project", home / "dbt_project")
    shutil.copytree(ROOT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    (home / "plugins").mkdir()
    (home / "deploy").symlink_to(ROOT / "deploy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW_"))}
    own = {"BUSCO_HOME": str(home), "BUSCO_DBT_PYTHON": str(ROOT / ".venv-dbt/bin/python")}
    with mock.patch.dict(os.environ, {**kept, **own}, clear=True):
        get_settings.cache_clear()
        made = Driver(home)
        try:
            made.busco("aws", "up")
            get_settings.cache_clear()
            made.write("in/orders.csv", "id,customer,amount,day,n\na,x,1.50,2018-01-01,1\nb,y,2.25,2018-01-02,2\n")
            made.busco("ingest", str(home / "in"))
            airflow.up(get_settings(), lambda _: None)
            yield made
        finally:
            airflow.down(get_settings(), lambda _: None)
            made.busco("aws", "down")
            get_settings.cache_clear()
