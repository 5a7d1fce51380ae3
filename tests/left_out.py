"""Skips the tests of a folder, with a message, if something that they need is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


def leave_out(items: Iterable[pytest.Item], conftest: str, missing: Callable[[], str]) -> None:
    """Skips the tests beside or below a conftest file if something is missing.

    Args:
        items: the tests that pytest has collected.
        conftest: the conftest file, `__file__`.
        missing: returns what is missing, or an empty text; called only if there are such tests.
    """
    ours = [item for item in items if Path(conftest).parent in item.path.parents]
    if ours and (reason := missing()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))


def missing_for_compose(built: Iterable[str], public: Iterable[str], build: str) -> str:
    """Returns what tests with Docker Compose lack, or an empty text.

    Args:
        built: images that `build`, a command, builds.
        public: images that are pulled if they are missing.
    """
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], check=False).returncode:
        return "Docker with Compose v2 can't be reached"
    for image in built:
        if not _succeeds("docker", "image", "inspect", image):
            return f"the image {image} is missing: {build}"
    for image in public:
        if not _succeeds("docker", "image", "inspect", image) and not _succeeds("docker", "pull", "--quiet", image):
            return f"the image {image} is missing and can't be pulled"
    return ""


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
