"""Tests with real containers; if Docker can't be reached, they are skipped with a message."""

from __future__ import annotations

import os

import docker
import pytest

from busco.embedded.docker_engine import DEFAULT_HOST
from tests.left_out import leave_out

IMAGE = "python:3.11-slim-bookworm"


def _missing() -> str:
    engine = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    try:
        docker.DockerClient(base_url=engine, timeout=10).images.get(IMAGE)
    except docker.errors.ImageNotFound:
        return f"the image {IMAGE} is missing: docker pull {IMAGE}"
    except (docker.errors.DockerException, OSError):
        return f"Docker can't be reached at {engine}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_out(items, __file__, _missing)
