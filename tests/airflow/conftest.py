"""Fixtures for tests that go through Airflow: one embedded platform with a small project and its own services."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from busco.embedded.postgres import Postgres
from busco.orchestration import ecs
from busco.settings import get_settings
from tests.airflow.driver import ROOT, Driver, platform
from tests.airflow.fault_proxy import Proxy
from tests.loopback import PROXY_PORT, serving


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A running platform with ingested files, on which nothing has been built yet."""
    with platform(tmp_path_factory.mktemp("home"), ROOT / "tests/projects/mini/dbt_project") as made:
        yield made


@pytest.fixture
def sessions(driver: Driver) -> Callable[[], Any]:
    """Returns a function that opens sessions on the platform's PostgreSQL, like Airflow's own `create_session`."""
    dsn = Postgres(get_settings().state.resolve()).dsn.replace("postgresql://", "postgresql+psycopg2://")
    engine = create_engine(dsn)

    @contextmanager
    def opened() -> Iterator[Session]:
        with Session(engine) as session:
            yield session
            session.commit()

    with opened() as session:
        session.execute(text("drop table if exists busco_ecs_slot"))
    return opened


@pytest.fixture
def proxy(driver: Driver) -> Iterator[Proxy]:
    made = Proxy(str(get_settings().endpoint_url))
    with serving(made.handler(), PROXY_PORT) as url, mock.patch.dict("os.environ", {"BUSCO_ENDPOINT_URL": url}):
        get_settings.cache_clear()
        with mock.patch.object(ecs.asyncio, "sleep", _soon):
            yield made
        assert made.unconditional(str(get_settings().lake_bucket)) == []
    get_settings.cache_clear()


_sleep = asyncio.sleep


async def _soon(seconds: float) -> None:
    await _sleep(min(seconds, 0.02))
