"""An image of a small project, built from the shipped image; without Docker, these tests are skipped with a message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from busco.embedded import docker_engine
from tests.airflow.driver import ROOT, Driver, platform
from tests.left_out import leave_out

IMAGE = os.environ.get("BUSCO_DBT_IMAGE") or "busco-dbt:local"
# a task with this folder in its PYTHONPATH sleeps, whatever its command, and ends like a runner that is stopped
SLEEPERS = "/opt/sleepers"
SLEEP = "import os, signal, time\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(3))\nwhile True: time.sleep(1)\n"
PROJECT = ROOT / "tests/projects/stack/dbt_project"


def docker(*arguments: str, check: bool = True) -> str:
    """Runs a Docker command and returns its output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


def _missing() -> str:
    if shutil.which("docker") is None or not docker("version", "--format", "{{.Server.Version}}", check=False):
        return "Docker can't be reached"
    if not docker("image", "ls", "--quiet", IMAGE):
        return f"the image {IMAGE} is missing: make image"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_out(items, __file__, _missing)
    # this file's own platform stops before the one that the others share starts
    items.sort(key=lambda item: item.path.name != "test_runner_per_model.py")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Builds the shipped image with the small project instead of its own."""
    folder, tag = tmp_path_factory.mktemp("image"), f"busco-test:{uuid.uuid4().hex[:12]}"
    shutil.copytree(PROJECT, folder / "dbt_project")
    (folder / "sitecustomize.py").write_text(SLEEP)
    (folder / "Dockerfile").write_text(
        f"FROM {IMAGE}\nUSER root\nCOPY sitecustomize.py {SLEEPERS}/\n"
        "RUN rm -r /opt/busco/dbt_project /opt/busco/baked\n"
        "COPY dbt_project /opt/busco/dbt_project\n"
        "RUN BUSCO_STATE_DIR=/var/tmp/state busco bake /opt/busco/baked && chmod -R a+rX /opt/busco\nUSER 10001:10001\n"
    )
    docker("build", "--quiet", "--tag", tag, str(folder))
    yield tag
    docker("image", "rm", "--force", tag)


@pytest.fixture(scope="session")
def shared_runners(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[Driver]:
    """A platform whose runs use a shared runner in a small container; several modules use this platform."""
    variables = {"BUSCO_EXECUTION": "ecs_shared", "BUSCO_DBT_IMAGE": image, "BUSCO_ECS_SIZE": "small"}
    variables |= {"BUSCO_RUNNER_SILENCE": "20", "BUSCO_MAINTENANCE_SCHEDULE": ""}
    with platform(tmp_path_factory.mktemp("shared"), PROJECT, **variables) as made:
        yield made


class Tasks:
    """The containers of a platform's ECS tasks, as Docker reports them."""

    def __init__(self, driver: Driver) -> None:
        self.label = f"label={docker_engine.owner_label(driver.home / '.busco')}"

    def running(self) -> list[str]:
        return docker("ps", "--quiet", "--no-trunc", "--filter", self.label).split()

    def all(self) -> list[str]:
        return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", self.label).split()

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", container))[0]
        return found


@pytest.fixture
def tasks(driver: Driver) -> Iterator[Tasks]:
    """The containers of the module's platform; after the test, waits until none is left."""
    found = Tasks(driver)
    yield found
    driver.wait(lambda: not found.all(), 60)
