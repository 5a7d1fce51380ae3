"""The Airflow code that `busco.orchestration.triggerer` replaces is still the code that was reviewed for it."""

from __future__ import annotations

import hashlib
import inspect

import pytest
from airflow.jobs.triggerer_job_runner import TriggererJobRunner, TriggerRunner


@pytest.mark.parametrize(
    ("function", "digest"),
    [
        (TriggererJobRunner._run_trigger_loop, "215466e459f40f30"),
        (TriggerRunner.arun, "d9c379bca13378e4"),
        (TriggerRunner.update_triggers, "878b4ee644407d56"),
        (TriggerRunner.create_triggers, "48f43bae547bb7cd"),
        (TriggerRunner.cancel_triggers, "33e2bac9f2448436"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_loops_that_we_replace_are_unchanged_in_airflow(function: object, digest: str) -> None:
    """If a digest differs, read Airflow's loop again, change ours where necessary, and update the digest."""
    source = inspect.getsource(function)  # type: ignore[arg-type]
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, source
