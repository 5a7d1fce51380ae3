"""Fixtures for tests of the site's pages on made-up data: a server for a module, and its pages in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.site_data import marketplace
from tests.site_pages import Open, opening
from tests.site_server import Served, server


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with server() as served:
        yield served


@pytest.fixture
def served(running: Served) -> Served:
    running.data, running.frame, running.is_logged_in = marketplace(), None, True
    running.broken.clear()
    running.most_releases = 50
    running.asked.clear()
    return running


@pytest.fixture
def opened(browser: Browser, served: Served, tmp_path: Path) -> Iterator[Open]:
    with opening(browser, served, tmp_path) as open_:
        yield open_


@pytest.fixture(params=["shell", "file"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)
