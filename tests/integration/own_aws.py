"""Starts a local AWS for a test or a module, and provides clients of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import botocore.exceptions
import psutil

from busco.embedded import aws, keys, processes
from busco.settings import Settings
from tests.loopback import PROXY_PORT

ROOT = Path(__file__).parents[2]


def quiet(_: str) -> None:
    pass


def settings_of(state: Path, home: Path = ROOT) -> Settings:
    return Settings(home=home, state_dir=state, aws_port=PROXY_PORT)


@dataclass
class Server:
    """A running local AWS and clients of it."""

    settings: Settings
    endpoint: str

    def client(self, service: str) -> Any:
        return aws.client(service, self.endpoint, "us-east-1", keys.owner(self.settings.state))

    @property
    def process(self) -> processes.Process:
        process = processes.find(self.settings.state, aws.NAME)
        assert process is not None
        return process

    def kill(self) -> None:
        pid = self.process.pid
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)

    def query(self, sql: str, database: str = "busco_gold") -> list[list[str | None]]:
        """Runs a query in Athena and returns its rows as text, without the header."""
        athena = self.client("athena")
        identifier = athena.start_query_execution(
            QueryString=sql, QueryExecutionContext={"Database": database}, WorkGroup="busco"
        )["QueryExecutionId"]

        def status() -> dict[str, Any]:
            found: dict[str, Any] = athena.get_query_execution(QueryExecutionId=identifier)["QueryExecution"]["Status"]
            return found

        wait_for(lambda: status()["State"] in ("SUCCEEDED", "FAILED"))
        assert status()["State"] == "SUCCEEDED", status()["StateChangeReason"]
        rows = athena.get_query_results(QueryExecutionId=identifier)["ResultSet"]["Rows"]
        return [[datum.get("VarCharValue") for datum in row["Data"]] for row in rows[1:]]


def wait_for(ready: Callable[[], bool], limit: float = 20.0) -> None:
    deadline = time.monotonic() + limit
    pause = threading.Event()
    while not ready():
        assert time.monotonic() < deadline, "the condition was not met within the limit"
        pause.wait(0.01)


def started(state: Path, **options: Any) -> Server:
    settings = settings_of(state)
    return Server(settings, aws.up(settings, quiet, **options))


def code_of(call: Callable[[], Any]) -> str:
    """Returns the error code of an AWS call, or `ok`."""
    try:
        call()
    except botocore.exceptions.ClientError as error:
        return str(error.response["Error"]["Code"])
    return "ok"


@contextmanager
def owners_environment(server: Server) -> Iterator[None]:
    """Gives this process the variables with which the owner's AWS clients reach a local AWS."""
    pair = keys.owner(server.settings.state)
    variables = {
        "AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": pair.key, "AWS_SECRET_ACCESS_KEY": pair.secret,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_S3_ADDRESSING_STYLE": "path",
    }  # fmt: skip
    # awswrangler uses boto3's default session, which would keep the credentials of an earlier test module
    with mock.patch.dict(os.environ, variables), mock.patch.object(boto3, "DEFAULT_SESSION", None):
        yield
