"""Whether what a process of the platform needs is there: one check after another, each with what was seen.

A check is a function of a module in this package. It gives what it saw; it raises `Skipped` where there is nothing to
look at, and whatever error it meets where something is wrong.
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

# Whoever runs it waits for it: an answer that takes longer is one that a person should know of.
_HASTE: dict[str, Any] = {
    "retries": {"mode": "standard", "total_max_attempts": 2},
    "connect_timeout": 2,
    "read_timeout": 10,
}


class Skipped(Exception):
    """There is nothing to look at here; the text says why."""


@dataclass(frozen=True)
class Check:
    """A check: `function` is `<module of this package>.<name>`.

    Args:
        side: the Python environment that it needs, None: either.
        needs: the checks without which this one would only repeat what they say.
        mend: what to do where the error itself doesn't say.
    """

    name: str
    function: str
    side: Side | None = None
    needs: tuple[str, ...] = ()
    mend: str = ""


@dataclass(frozen=True)
class Finding:
    """What a check has found: what was seen, and what to mend where that is wrong."""

    name: str
    state: State
    seen: str
    mend: str = ""
    seconds: float = 0.0


@dataclass
class Surroundings:
    """What the checks look at; a client is made once."""

    settings: Settings

    @cached_property
    def s3(self) -> Any:
        return client("s3", self.settings, **_HASTE)

    def client(self, service: str, **config: Any) -> Any:
        return client(service, self.settings, **_HASTE, **config)

    @cached_property
    def answered(self) -> tuple[str, str, float]:
        """S3's first answer: its endpoint, its Date header, and when it came, in seconds since the epoch."""
        from busco.doctor import aws

        return aws.first_answer(self)


_ROLE = "let this role do it: deploy/aws/ecs.yaml, RunnerRole in a container, AirflowRole for Airflow"
CHECKS: tuple[Check, ...] = (
    Check("variables", "machine.variables"),
    Check("files", "machine.files"),
    Check("keys", "airflow.keys", "airflow"),
    Check("database", "airflow.database", "airflow", needs=("keys",)),
    Check("broker", "airflow.broker", "airflow"),
    Check("endpoint", "aws.endpoint", mend="is the network up? a way to S3 (VPC endpoint, NAT)? BUSCO_ENDPOINT_URL?"),
    Check("clock", "aws.clock", needs=("endpoint",)),
    Check("role", "aws.role", needs=("endpoint",), mend="give the task a role (RunnerRole of deploy/aws/ecs.yaml)"),
    Check("lake bucket", "aws.lake_bucket", needs=("endpoint", "role"), mend=_ROLE),
    Check("conditional writes", "aws.conditional_writes", needs=("lake bucket",), mend=_ROLE),
    Check("landing bucket", "aws.landing_bucket", "dbt", needs=("endpoint", "role"), mend=_ROLE),
    Check("queue", "aws.queue", needs=("endpoint", "role"), mend=_ROLE),
    Check("Glue databases", "aws.glue_databases", needs=("endpoint", "role"), mend=_ROLE),
    Check("ECS cluster", "aws.ecs_cluster", "airflow", needs=("endpoint", "role"), mend=_ROLE),
    Check("task definitions", "ecs.task_definitions", needs=("endpoint", "role"), mend=_ROLE),
    Check("task roles", "ecs.roles", needs=("task definitions",), mend=_ROLE),
    Check("image", "ecs.image", needs=("task definitions",), mend=_ROLE),
    Check("manifest", "machine.manifest", "airflow", mend="busco dbt parse"),
    Check("dbt projects", "dbt.projects", "dbt", mend="busco dbt parse says more"),
    Check("memory and CPU", "machine.memory_and_cpu"),
    Check("disk", "machine.disk", mend="set BUSCO_STATE_DIR to a folder on a disk that may be written"),
    Check("DuckDB", "dbt.extensions", "dbt", mend="make setup; build the image anew"),
    Check("DuckDB on S3", "dbt.lake", "dbt", needs=("DuckDB", "disk", "conditional writes"), mend=_ROLE),
)


def examine(settings: Settings, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Makes the checks in their order; never raises for what a check meets."""
    around = Surroundings(settings)
    states: dict[str, State] = {}
    for check in checks:
        finding = _made(check, around, states)
        states[check.name] = finding.state
        yield finding


def _made(check: Check, around: Surroundings, states: dict[str, State]) -> Finding:
    missing = next((name for name in check.needs if states.get(name) != "ok"), None)
    if check.side is not None and not here(check.side):
        return Finding(check.name, "skipped", f"is looked at in {check.side}'s environment")
    if missing is not None:
        return Finding(check.name, "skipped", f"needs: {missing}")
    began = time.monotonic()
    module, _, name = check.function.partition(".")
    try:
        function: Callable[[Surroundings], str] = getattr(importlib.import_module(f"busco.doctor.{module}"), name)
        state, seen, mend = "ok", function(around), ""
    except Skipped as skipped:
        state, seen, mend = "skipped", str(skipped), ""
    except BuscoError as error:
        state, seen, mend = "failed", error.message, error.hint or check.mend
    except Exception as error:
        state, seen, mend = "failed", _told(error), check.mend
    return Finding(check.name, state, seen, mend, round(time.monotonic() - began, 2))  # type: ignore[arg-type]


def _told(error: Exception) -> str:
    if isinstance(error, ClientError):
        said = error.response.get("Error", {})
        return f"{error.operation_name}: {said.get('Code', '')}: {said.get('Message', '')}"
    return str(error) if isinstance(error, BotoCoreError | OSError) else f"{type(error).__name__}: {error}"
