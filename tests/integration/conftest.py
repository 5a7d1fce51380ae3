"""Fixtures for the integration tests: a local AWS for a module, or an empty platform for a single test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from own_aws import Server, quiet, started
from playwright.sync_api import Browser

from busco.embedded import aws
from busco.settings import get_settings
from tests.chromium import chromium
from tests.platforms import ROOT, Platform, neutral_environment, platform, with_parse

MINI = ROOT / "tests/projects/mini"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="session")
def parsed() -> dict[str, bytes]:
    """The files that parsing the small project produces, so new copies of it needn't be parsed again."""
    return {}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a local AWS that the platforms of single tests share; it is emptied for each of them."""
    state = tmp_path_factory.mktemp("served")
    with mock.patch.dict(os.environ, neutral_environment(), clear=True):
        server = started(state)
    get_settings.cache_clear()
    yield state
    aws.down(server.settings, quiet)


@pytest.fixture(scope="module", autouse=True)
def _own_environment() -> Iterator[None]:
    """Restores the environment, which a module's local AWS changes, at the end of the module."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A local AWS that only this module uses."""
    running = started(tmp_path_factory.mktemp("state"))
    yield running
    aws.down(running.settings, quiet)


@pytest.fixture
def mini(tmp_path: Path, parsed: dict[str, bytes], served: Path) -> Iterator[Platform]:
    """The small project on an empty lake: silver.orders → view silver.v_orders → gold.fct."""
    with platform(tmp_path, MINI, served) as made:
        yield with_parse(made, parsed)


@pytest.fixture
def alone(tmp_path: Path, parsed: dict[str, bytes]) -> Iterator[Platform]:
    """The same, but with its own local AWS, for tests that restart it."""
    with platform(tmp_path, MINI) as made:
        yield with_parse(made, parsed)
