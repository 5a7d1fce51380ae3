"""One production stack for all of these tests; if something is missing, they are skipped with a message."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.left_out import leave_out, missing_for_compose
from tests.production.stack import Production

BUILT = (
    "busco-dbt:local", "busco-local-aws:local", "busco-airflow:local", "busco-nginx:local", "busco-certbot:local",
)  # fmt: skip
PUBLIC = ("postgres:16.3-alpine", "redis:7.2-alpine", "ghcr.io/letsencrypt/pebble:2.6.0")


def _missing() -> str:
    return missing_for_compose(BUILT, PUBLIC, "scripts/local_build.sh dbt local-aws airflow nginx certbot")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_out(items, __file__, _missing)
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """A production stack that has obtained its certificate from Pebble."""
    made = Production.of(tmp_path_factory.mktemp("production"), f"busco-prod-{uuid.uuid4().hex[:8]}")
    began = time.monotonic()
    try:
        print(made.compose("up", "--detach", "--wait", "--wait-timeout", "300"))
        print(f"from nothing to healthy: {time.monotonic() - began:.0f} s")
        yield made
    finally:
        print(made.compose("logs", "--tail", "60", check=False))
        made.compose("down", "--volumes", "--timeout", "5", check=False)


@pytest.fixture(scope="session")
def loaded(stack: Production) -> Production:
    """The stack, after the DAG's first run on sample data."""
    stack.call("scripts/first_data.sh", "300", COMPOSE_FILE=":".join(stack.files))
    stack.wait(lambda: bool(stack.runs()), 60)
    run = stack.runs()[0]["dag_run_id"]
    assert stack.finish(run) == "success", stack.task_states(run)
    return stack
