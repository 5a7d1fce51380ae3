"""When a service of our own is unhealthy, so that Docker restarts it and a deployment fails."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

from busco.cli.events import events_command
from busco.orchestration.service_health import Health, obstacle, unhealthy
from busco.settings import get_settings


def checked() -> tuple[int, str]:
    done = CliRunner().invoke(events_command, ["health"])
    return done.exit_code, done.output.strip()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    with mock.patch.dict(os.environ, BUSCO_STATE_DIR=str(tmp_path)):
        get_settings.cache_clear()
        yield tmp_path
    get_settings.cache_clear()


def test_a_service_that_cannot_reach_what_it_needs_is_not_restarted_and_says_so(state: Path) -> None:
    health = Health(state, "events")
    assert checked() == (0, "healthy")
    health.problem("the image's registry could not be reached")
    assert checked() == (0, "healthy, but the image's registry could not be reached")
    health.problem("")
    assert (checked(), obstacle(state, "events")) == ((0, "healthy"), "")


def test_a_service_that_hangs_or_has_not_started_is_unhealthy(state: Path) -> None:
    assert unhealthy(state, "events") == "it has not started"
    assert checked()[0] == 1
    Health(state, "events")
    Health(state, "metrics")
    for service, silence in (("events", 61), ("metrics", 301)):
        file = state / "run" / f"{service}.health.json"
        file.write_text(json.dumps({"beat": time.time() - silence, "problem": ""}))
        assert unhealthy(state, service) == f"no heartbeat for {silence} s"
    assert checked()[0] == 1
