"""One platform in Docker Compose for all of these tests; if something is missing, they are skipped with a message."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.chromium import chromium, steady, submit
from tests.compose.stack import Stack
from tests.left_out import leave_out, missing_for_compose

ORDERS = "2000"
BUILT = (
    "busco-dbt:local", "busco-local-aws:local", "busco-airflow:local", "busco-nginx:local", "busco-certbot:local",
)  # fmt: skip
PUBLIC = ("postgres:16.3-alpine", "redis:7.2-alpine")
SCREENSHOTS = Path(os.environ.get("BUSCO_SCREENSHOTS") or Path(__file__).parents[2] / ".busco/screenshots")


def _missing() -> str:
    return missing_for_compose(BUILT, PUBLIC, "scripts/local_build.sh dbt local-aws airflow nginx certbot")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_out(items, __file__, _missing)
    for item in items:
        # the first test starts the platform, loads the sample data and waits for a complete run
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform that `make up` has started and filled with sample data, after its first run."""
    made = Stack.made(tmp_path_factory.mktemp("stack"), f"busco-test-{uuid.uuid4().hex[:8]}")
    try:
        began = time.monotonic()
        print(made.call("make", "up", f"ORDERS={ORDERS}", "BUSCO_BUILD=0"))
        print(f"first start: {time.monotonic() - began:.0f} s")
        made.wait(lambda: bool(made.runs()), 300)
        run = made.runs()[0]["dag_run_id"]
        assert made.finish(run) == "success", made.task_states(run)
        print(f"sample data and first run: {time.monotonic() - began:.0f} s since the beginning")
        yield made
    finally:
        print(made.compose("logs", "--tail", "40", check=False))
        made.call("make", "destroy", check=False, given="y\n")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture
def page(browser: Browser, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page with the admin logged in; a screenshot of its final state is saved."""
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    opened = steady(context.new_page())
    log_in(opened, stack, stack.value("AIRFLOW_ADMIN_USERNAME"), stack.value("AIRFLOW_ADMIN_PASSWORD"))
    yield opened
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    context.close()


def log_in(page: Page, stack: Stack, user: str, password: str) -> None:
    def form() -> None:
        page.goto(f"{stack.url}/login/")
        page.fill("input[name=username]", user)
        page.fill("input[name=password]", password)
        page.click("input[type=submit]")

    submit(page, form, lambda: page.url.startswith(stack.url) and "/login" not in page.url)
