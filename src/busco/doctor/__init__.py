"""Checks that a platform process has what it needs, and reports what each check found.

A check is a function in a module of this package; its docstring states what the check verifies. It returns a
description of what it found, and raises `Skipped` if there is nothing to check, or another error if something is wrong.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from busco.aws import client
from busco.environments import Side, here
from busco.errors import BuscoError
from busco.settings import Settings

State = Literal["ok", "failed", "skipped"]

# Someone is waiting for the result, so a response that takes longer than this is reported as an error.
_FAIL_FAST: dict[str, Any] = {
    "retries": {"mode": "standard", "total_max_attempts": 2},
    "connect_timeout": 2,
    "read_timeout": 10,
}


class Skipped(Exception):
    """There is nothing to check here; the message states the reason."""


@dataclass(frozen=True)
class Check:
    """A check: `function` is `<module of this package>.<name>`.

    Args:
        side: the Python environment that the check needs; None if it runs in both.
        needs: the checks that must succeed first; otherwise, this check would only repeat their errors.
        fix: what to do if the error itself doesn't say.
    """

    name: str
    function: str
    side: Side | None = None
    needs: tuple[str, ...] = ()
    fix: str = ""


@dataclass(frozen=True)
class Finding:
    """The result of a check: what it found, and how to fix what is wrong."""

    name: str
    state: State
    seen: str
    fix: str = ""
    seconds: float = 0.0


@dataclass
class Surroundings:
    """What the checks examine; the S3 client is created once."""

    settings: Settings

    @cached_property
    def s3(self) -> Any:
        return client("s3", self.settings, **_FAIL_FAST)

    def client(self, service: str, **config: Any) -> Any:
        return client(service, self.settings, **_FAIL_FAST, **config)

    @cached_property
    def answered(self) -> tuple[str, str, float]:
        """S3's first response: the endpoint, the Date header, and the time of arrival as a Unix timestamp."""
        from busco.doctor import aws

        return aws.first_answer(self)


_ROLE = "grant this role the permission (deploy/aws/ecs.yaml: RunnerRole in a container, AirflowRole for Airflow)"
CHECKS: tuple[Check, ...] = (
    Check("variables", "machine.variables"),
    Check("files", "machine.files"),
    Check("keys", "airflow.keys", "airflow"),
    Check("database", "airflow.database", "airflow", needs=("keys",)),
    Check("broker", "airflow.broker", "airflow"),
    Check(
        "endpoint",
        "aws.endpoint",
        fix="check the network, the route to S3 (VPC endpoint, NAT), and BUSCO_ENDPOINT_URL",
    ),
    Check("clock", "aws.clock", needs=("endpoint",)),
    Check("role", "aws.role", needs=("endpoint",), fix="give the task a role (RunnerRole in deploy/aws/ecs.yaml)"),
    Check("lake bucket", "aws.lake_bucket", needs=("endpoint", "role"), fix=_ROLE),
    Check("conditional writes", "aws.conditional_writes", needs=("lake bucket",), fix=_ROLE),
    Check("landing bucket", "aws.landing_bucket", "dbt", needs=("endpoint", "role"), fix=_ROLE),
    Check("queue", "aws.queue", needs=("endpoint", "role"), fix=_ROLE),
    Check("Glue databases", "aws.glue_databases", needs=("endpoint", "role"), fix=_ROLE),
    Check("live release", "aws.live_release", needs=("lake bucket", "Glue databases"), fix=_ROLE),
    Check("ECS cluster", "aws.ecs_cluster", "airflow", needs=("endpoint", "role"), fix=_ROLE),
    Check("task definitions", "ecs.task_definitions", needs=("endpoint", "role"), fix=_ROLE),
    Check("task roles", "ecs.roles", needs=("task definitions",), fix=_ROLE),
    Check("image", "ecs.image", needs=("task definitions",), fix=_ROLE),
    Check("manifest", "machine.manifest", "airflow", fix="run: busco dbt parse"),
    Check("dbt projects", "dbt.projects", "dbt", fix="for details, run: busco dbt parse"),
    Check("memory and CPU", "machine.memory_and_cpu"),
    Check("disk", "machine.disk", fix="set BUSCO_STATE_DIR to a folder on a writable disk"),
    Check("DuckDB", "dbt.extensions", "dbt", fix="run make setup, or rebuild the image"),
    Check("DuckDB on S3", "dbt.lake", "dbt", needs=("DuckDB", "disk", "conditional writes"), fix=_ROLE),
)


def examine(settings: Settings, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Runs the checks in order, and yields a finding for each; an error in a check becomes a finding too."""
    around = Surroundings(settings)
    states: dict[str, State] = {}
    for check in checks:
        finding = _run(check, around, states)
        states[check.name] = finding.state
        yield finding


def _run(check: Check, around: Surroundings, states: dict[str, State]) -> Finding:
    missing = next((name for name in check.needs if states.get(name) != "ok"), None)
    if check.side is not None and not here(check.side):
        return Finding(check.name, "skipped", f"checked only in {check.side}'s environment")
    if missing is not None:
        return Finding(check.name, "skipped", f"the check '{missing}' has to succeed first")
    began = time.monotonic()
    module, _, name = check.function.partition(".")
    try:
        function: Callable[[Surroundings], str] = getattr(importlib.import_module(f"busco.doctor.{module}"), name)
        state, seen, fix = "ok", function(around), ""
    except Skipped as skipped:
        state, seen, fix = "skipped", str(skipped), ""
    except BuscoError as error:
        state, seen, fix = "failed", error.message, error.hint or check.fix
    except Exception as error:
        state, seen, fix = "failed", _message(error), check.fix
    return Finding(check.name, state, seen, fix, round(time.monotonic() - began, 2))  # type: ignore[arg-type]


def _message(error: Exception) -> str:
    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        return f"{error.operation_name}: {details.get('Code', '')}: {details.get('Message', '')}"
    return str(error) if isinstance(error, BotoCoreError | OSError) else f"{type(error).__name__}: {error}"
