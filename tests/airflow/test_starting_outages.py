"""Starting a runner while ECS or Airflow's database cannot be reached: tasks wait instead of failing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from sqlalchemy.exc import OperationalError

from busco.orchestration import ecs
from busco.orchestration.ecs import EcsLauncher
from busco.orchestration.launch import CannotStart
from busco.orchestration.patience import start_patiently
from busco.settings import Settings
from tests.airflow import lab as the_lab
from tests.airflow import simulation
from tests.airflow.lab import Lab, a_model
from tests.airflow.simulation import simulate
from tests.unit.places_world import Memory

UNREACHABLE: list[type[BotoCoreError]] = [
    EndpointConnectionError,
    ConnectTimeoutError,
    ReadTimeoutError,
    SSLError,
    ProxyConnectionError,
    NoCredentialsError,
    CredentialRetrievalError,
]
_WORDS = {
    "endpoint_url": "https://ecs", "error": "refused", "proxy_url": "http://proxy", "provider": "container-role",
    "error_msg": "throttled", "report": "cluster is no string",
}  # fmt: skip
MINUTE = 60.0


@pytest.fixture(autouse=True)
def _stories_may_take_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_LONGEST", 1e6)
    monkeypatch.setattr(the_lab, "_LIMIT", 1e5)


def now() -> float:
    return asyncio.get_running_loop().time()


class Client:
    """ECS or CloudWatch Logs; every call raises `error` until `until`."""

    def __init__(self, error: type[BotoCoreError], until: float) -> None:
        self.error, self.until, self.started = error, until, list[str]()

    def __getattr__(self, name: str) -> Any:
        async def call(**arguments: Any) -> dict[str, Any]:
            await asyncio.sleep(0.01)
            if now() < self.until:
                raise self.error(**_WORDS)
            if name == "run_task":
                self.started.append(arguments["clientToken"])
            return {"tasks": [{"taskArn": "arn:1"}]} if name == "run_task" else {}

        return call


@pytest.fixture
def in_one_thread() -> Iterator[None]:
    async def call(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    with mock.patch.object(asyncio, "to_thread", call):
        yield


async def on_ecs(error: type[BotoCoreError], seconds: float) -> tuple[EcsLauncher, Client]:
    client = Client(error, now() + seconds)

    async def async_client(*_: Any) -> Client:
        return client

    # for the current test only, because the client belongs to its event loop
    mock.patch.object(ecs, "async_client", async_client).start()
    slots: Any = Memory(1, now)
    return EcsLauncher(Settings(ecs_cluster="c", ecs_container="dbt"), slots), client


@pytest.fixture(autouse=True)
def _real_clients_afterwards() -> Iterator[None]:
    yield
    mock.patch.stopall()


@pytest.mark.usefixtures("in_one_thread")
@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda error: error.__name__)
def test_a_start_waits_half_an_hour_while_ecs_cannot_be_reached(error: type[BotoCoreError]) -> None:
    async def story() -> None:
        messages: list[str] = []
        launcher, client = await on_ecs(error, 10 * MINUTE)
        await launcher.start_command(["doctor"], "token", "label", messages.append)
        assert len(client.started) == 1
        assert "no response from ECS" in messages[0]
        launcher, _ = await on_ecs(error, 60 * MINUTE)
        began = now()
        with pytest.raises(CannotStart, match="tried for 30 minutes"):
            await launcher.start_command(["doctor"], "token", "label", messages.append)
        assert now() - began < 35 * MINUTE

    simulate(story())


@pytest.mark.usefixtures("in_one_thread")
def test_an_invalid_request_fails_a_start_at_once() -> None:
    async def story() -> None:
        launcher, _ = await on_ecs(ParamValidationError, 60 * MINUTE)
        began = now()
        with pytest.raises(CannotStart, match="cluster is no string"):
            await launcher.start_command(["doctor"], "token", "label", print)
        assert now() - began < 1

    simulate(story())


@pytest.mark.usefixtures("in_one_thread")
@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda error: error.__name__)
def test_an_order_keeps_its_place_in_line_while_ecs_cannot_be_reached(error: type[BotoCoreError]) -> None:
    async def story() -> None:
        launcher, client = await on_ecs(error, 10 * MINUTE)
        launcher.slots.ask("other", "label", "start")
        launcher.slots.started("other", "arn:other")
        waits = asyncio.create_task(launcher.start_command(["doctor"], "token", "label", print))
        await asyncio.sleep(5 * MINUTE)
        assert not waits.done()
        launcher.slots.gone(["arn:other"])
        await waits
        assert len(client.started) == 1

    simulate(story())


@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda error: error.__name__)
def test_output_that_cannot_be_read_is_empty(error: type[BotoCoreError]) -> None:
    async def story() -> None:
        launcher, _ = await on_ecs(error, MINUTE)
        assert await launcher.output("arn:aws:ecs:::task/c/1") == ""

    simulate(story())


class Unavailable(Lab):
    """A lab whose database is unavailable until `until` when a runner is started."""

    until = 0.0

    async def start(self, pin: Any, order: Any, say: Any) -> Any:
        if now() < self.until:
            raise OperationalError("select", {}, Exception("the database is away"))
        return await super().start(pin, order, say)


NODES = {uid: node for number in range(2) for uid, node in a_model(f"m{number}").items()}


@pytest.mark.parametrize("is_resumed", [False, True])
def test_all_tasks_wait_while_the_database_is_unavailable_for_ten_minutes(is_resumed: bool) -> None:
    async def story() -> None:
        lab = Unavailable(NODES, ecs=True)
        lab.until = now() + 10 * MINUTE
        if is_resumed:
            begun = asyncio.create_task(lab.follow("model.p.m0"))
            await asyncio.sleep(5)
            begun.cancel()
            await asyncio.wait([begun])
            await lab.restart()
        ended = await asyncio.gather(*(lab.follow(node) for node in NODES))
        assert [end.state for end in ended] == ["success"] * len(NODES)

    simulate(story())


def test_a_database_that_stays_unavailable_fails_all_tasks_together_with_its_error() -> None:
    async def story() -> None:
        lab = Unavailable(NODES, ecs=True)
        lab.until, began = 1e6, now()
        ended = await asyncio.gather(*(lab.follow(node) for node in NODES))
        assert {end.state for end in ended} == {"failed"}
        assert all("the database is away" in end.text for end in ended)
        assert 30 * MINUTE <= now() - began < 31 * MINUTE

    simulate(story())


def test_a_start_that_fails_after_hours_in_line_is_retried_for_the_full_time() -> None:
    async def story() -> None:
        outages = [(120 * MINUTE, 140 * MINUTE), (260 * MINUTE, 289 * MINUTE)]

        async def started() -> str:
            """Waits in line until the next outage, and joins the line again after it."""
            at = now() - began
            if any(since <= at < until for since, until in outages):
                raise OperationalError("select", {}, Exception("the database is away"))
            if line := [since - at for since, _ in outages if at < since]:
                await asyncio.sleep(line[0])
                raise OperationalError("select", {}, Exception("the database is away"))
            return "started"

        began = now()
        assert await start_patiently("starting a runner", started) == "started"
        assert now() - began >= 289 * MINUTE

    simulate(story())
