"""One embedded platform for the tests that go through Airflow: the small project, its own AWS, PostgreSQL, Airflow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.airflow.driver import ROOT, Driver, platform


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A running platform with files ingested, nothing built."""
    with platform(tmp_path_factory.mktemp("home"), ROOT / "tests/projects/mini/dbt_project") as made:
        yield made
