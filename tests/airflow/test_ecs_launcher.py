"""The ECS launcher survives faults of ECS's API, which a proxy in front of the local AWS injects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any
from unittest import mock

import pytest

from busco.lake.layout import new_id
from busco.lake.records import Order, Pin, Runner, utc_now
from busco.orchestration import async_aws, ecs, places
from busco.orchestration.ecs import EcsLauncher, ending_of
from busco.orchestration.ecs_task import started_by
from busco.orchestration.launch import CannotStart, client_token, command
from busco.orchestration.reaper import Reaper
from busco.orchestration.slots import Slots
from busco.settings import Settings, get_settings
from tests.airflow.driver import Driver
from tests.airflow.fault_proxy import Answer, Fault, Proxy, error, failure, lost

_sleep = asyncio.sleep  # the original one, which the proxy fixture replaces with a shorter one
PIN = Pin(run="r.x", epoch=1, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=utc_now())


def of(settings: Settings, sessions: Any, limit: int = 10) -> EcsLauncher:
    return EcsLauncher(settings, Slots(limit, sessions))


def order(name: str = "fct/1", generation: int = 1, **more: Any) -> Order:
    token = client_token("prod", PIN.model_copy(update={"origin": new_id()}), name, generation)
    return Order(name=name, generation=generation, kind="solo", size="small", token=token, **more)


def run(story: Coroutine[Any, Any, None]) -> None:
    # a later event loop can have the same id() as an earlier one, whose client uses another endpoint
    async_aws._clients.clear()
    asyncio.run(story)


async def started(proxy: Proxy, an_order: Order) -> list[str]:
    """Returns the ARNs of the tasks that ECS has for an order."""
    client = await ecs.async_client("ecs", get_settings())
    answer = await client.list_tasks(cluster=get_settings().ecs_cluster, startedBy=started_by(an_order.token))
    return list(answer["taskArns"])


@pytest.mark.parametrize(
    "fault",
    [
        failure("RESOURCE:MEMORY"),
        failure("AGENT"),
        failure("Capacity is unavailable at this time. Please try again later or in a different availability zone"),
        error("ThrottlingException", "Rate exceeded"),
        error("ClientException", "Rate exceeded"),
        error("ServerException", "Service Unavailable. Please try again later.", 500),
        lost,
    ],
    ids=["memory", "agent", "capacity", "throttled", "throttled-as-text", "server", "answer-lost"],
)
def test_a_transient_error_is_retried_and_one_task_is_started(proxy: Proxy, sessions: Any, fault: Fault) -> None:
    async def story() -> None:
        messages: list[str] = []
        launcher, an_order = of(get_settings(), sessions), order()
        proxy.fail("RunTask", *[fault] * (1 if fault is lost else 2))
        handle = await launcher.start(PIN, an_order, messages.append)
        assert await started(proxy, an_order) == [handle.arn]
        assert handle.alive()
        assert messages[-1].startswith("started ECS task")

    run(story())


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (error("ClientException", "ECS was unable to assume the role 'arn:aws:iam::1:role/gone'"), "role"),
        (error("AccessDeniedException", "User is not authorized to perform: iam:PassRole on resource"), "iam:PassRole"),
        (error("ClientException", "Unable to find task definition: nothing"), "Unable to find task definition"),
        (error("InvalidParameterException", "Network Configuration must be provided"), "Network Configuration"),
    ],
    ids=["role", "pass-role", "definition", "network"],
)
def test_a_permanent_error_fails_at_once_with_its_reason_and_frees_the_slot(
    proxy: Proxy, sessions: Any, fault: Fault, text: str
) -> None:
    async def story() -> None:
        launcher, an_order = of(get_settings(), sessions), order()
        proxy.fail("RunTask", fault)
        with pytest.raises(CannotStart, match=text):
            await launcher.start(PIN, an_order, print)
        assert proxy.calls.count("RunTask") == 1
        assert launcher.slots.holders() == []

    run(story())


def test_an_order_that_is_started_again_gets_the_same_task(proxy: Proxy, sessions: Any) -> None:
    async def story() -> None:
        settings, an_order = get_settings(), order()
        first = await of(settings, sessions).start(PIN, an_order, print)
        # another triggerer, or this one after a restart
        assert (await of(settings, sessions).resume(PIN, an_order, print)).arn == first.arn
        assert proxy.calls.count("RunTask") == 1
        await of(settings, sessions).discard(an_order, "no longer needed")
        assert await started(proxy, an_order) == []

    run(story())


def test_fifty_starts_with_a_limit_of_four_run_four_at_a_time_in_order_of_arrival(proxy: Proxy, sessions: Any) -> None:
    async def story() -> None:
        settings = get_settings()
        # two triggerers that share a database
        launchers = [of(settings, sessions, limit=4), of(settings, sessions, limit=4)]
        begun: list[int] = []
        messages: list[str] = []

        async def one(number: int) -> None:
            launcher = launchers[number % 2]
            handle = await launcher.start(PIN, order(f"m{number}/1"), messages.append)
            begun.append(number)
            assert len(launcher.slots.holders()) <= 4
            await launcher.stop_task(handle.arn, "done")
            while handle.alive():
                await launcher.look([], [handle])
                await _sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(one(number))
                await _sleep(0.02)
        assert sorted(begun) == list(range(50))
        # the four concurrent ones can overtake one another, but no others
        assert all(abs(place - number) < 8 for place, number in enumerate(begun)), begun
        assert any("ahead of this one (BUSCO_MAX_ECS_TASKS=4)" in line for line in messages)
        assert launchers[0].slots.holders() == []

    with mock.patch.object(ecs, "_EVERY", 0.0):
        run(story())


def test_the_slot_of_a_task_that_is_gone_is_freed_by_an_order_that_waits_for_one(proxy: Proxy, sessions: Any) -> None:
    async def story() -> None:
        settings = get_settings()
        dead = await of(settings, sessions, limit=1).start(PIN, order("dead/1"), print)
        client = await ecs.async_client("ecs", settings)
        await client.stop_task(cluster=settings.ecs_cluster, task=dead.arn, reason="its triggerer has died")
        handle = await asyncio.wait_for(of(settings, sessions, limit=1).start(PIN, order(), print), 20)
        assert handle.arn != dead.arn

    with mock.patch.object(places, "FULL", 0.0):
        run(story())


def test_an_order_that_ecs_has_no_capacity_for_keeps_its_slot(proxy: Proxy, sessions: Any) -> None:
    async def story() -> None:
        settings, first, second = get_settings(), order("first/1"), order("second/1")
        # a slot is stale only after several missed heartbeats, and none is missed while ECS refuses thirty times
        launchers = [EcsLauncher(settings, Slots(1, sessions), stale=0.4) for _ in range(2)]
        proxy.fail("RunTask", *[failure("Capacity is unavailable at this time")] * 30)
        begun = asyncio.create_task(launchers[0].start(PIN, first, print))
        while "RunTask" not in proxy.calls:
            await _sleep(0.01)
        waits = asyncio.create_task(launchers[1].start(PIN, second, print))
        handle = await begun
        assert not waits.done()
        assert [holder.token for holder in launchers[0].slots.holders()] == [first.token]
        await launchers[0].stop_task(handle.arn, "done")
        await asyncio.wait_for(waits, 20)
        assert await started(proxy, first) == []

    with mock.patch.multiple(places, FULL=0.0, _BEAT=0.02):
        run(story())


def test_maintenance_frees_the_slots_of_stopped_tasks_and_of_orders_whose_triggerer_died(
    proxy: Proxy, sessions: Any
) -> None:
    settings, slots = get_settings(), Slots(10, sessions)
    running, over, unknown = order("runs/1"), order("over/1"), order("unknown/1")

    async def story() -> list[str]:
        launcher = of(settings, sessions)
        arns = [(await launcher.start(PIN, one, print)).arn for one in (running, over)]
        await launcher.stop_task(arns[1], "its triggerer has died")
        await async_aws.forget_clients()
        return arns

    arns = asyncio.run(story())
    # one triggerer died before it recorded the task that it had started, another one before it called RunTask
    slots.gone([arns[0]])
    for one in (running, unknown):
        slots.ask(one.token, "label", "start")
    reaper = Reaper(settings, mock.Mock(), mock.Mock(), slots, frozenset, stale=0.0)
    assert reaper.free_places() == 2
    assert [(holder.token, holder.arn) for holder in slots.holders()] == [(running.token, arns[0])]


def test_a_task_that_ecs_does_not_return_is_gone_unless_it_was_only_just_started(proxy: Proxy, sessions: Any) -> None:
    def unknown(request: dict[str, Any]) -> Answer:
        return 200, {"tasks": [], "failures": [{"arn": arn, "reason": "MISSING"} for arn in request["tasks"]]}

    async def story() -> None:
        launcher = of(get_settings(), sessions)
        handle = await launcher.start(PIN, order(), print)
        # right after RunTask, DescribeTasks may not return the task yet
        proxy.fail("DescribeTasks", unknown, unknown)
        for _ in range(3):
            await launcher.look([], [handle])
            assert handle.alive()
        proxy.fail("DescribeTasks", unknown)
        await launcher.look([], [handle])
        assert not handle.alive()
        assert handle.passing()
        assert "ECS no longer has the runner's task" in await handle.why()
        assert launcher.slots.holders() == []

    with mock.patch.multiple(ecs, _EVERY=0.0, _VANISHED=0.0):
        run(story())


def test_a_stopped_task_without_containers_or_log_stream_has_ended_and_its_reason_is_reported(
    proxy: Proxy, sessions: Any
) -> None:
    async def story() -> None:
        settings = get_settings()
        launcher = of(settings, sessions)
        handle = await launcher.start(PIN, order(), print)
        stopped = {
            "taskArn": handle.arn,
            "lastStatus": "STOPPED",
            "stopCode": "TaskFailedToStart",
            "stoppedReason": "CannotPullContainerError: pull image manifest has been retried 1 time(s): not found",
            "containers": [],
        }
        proxy.fail("DescribeTasks", lambda _: (200, {"tasks": [stopped], "failures": []}))
        with mock.patch.object(ecs, "_EVERY", 0.0):
            await launcher.look([], [handle])
        assert not handle.alive()
        assert "image" in await handle.why()
        assert await launcher.output(handle.arn) == ""

    run(story())


def test_overrides_stay_far_below_their_limit_and_contain_no_secret(driver: Driver) -> None:
    settings = get_settings().model_copy(update={"environment": "e" * 31})
    nodes = tuple(f"test.project.a_test_with_a_rather_long_name_{number:04}.0123456789" for number in range(1000))
    pin = PIN.model_copy(update={"run": f"{'d' * 30}.{'r' * 60}.12345678"})
    launcher = EcsLauncher(settings, mock.Mock())
    an_order = order("m" * 250 + "/12", nodes=nodes)
    canary = {"AWS_SECRET_ACCESS_KEY": "canary-secret", "AIRFLOW__CORE__FERNET_KEY": "canary-key"}
    with mock.patch.dict("os.environ", canary):
        request = launcher.request(command(pin, an_order), an_order.token)
    text = json.dumps(request)
    assert len(json.dumps(request["overrides"])) < 1000
    assert "canary" not in text
    assert request["overrides"]["containerOverrides"][0]["name"] == "dbt"
    assert len(request["clientToken"]) <= 64
    assert len(request["startedBy"]) <= 128


def test_a_task_uses_the_capacity_provider_and_network_from_the_settings(driver: Driver) -> None:
    update = {
        "ecs_capacity_provider": "FARGATE_SPOT",
        "ecs_subnets": "subnet-1, subnet-2",
        "ecs_security_groups": "sg-1",
    }
    settings = get_settings().model_copy(update=update)
    request = EcsLauncher(settings, mock.Mock()).request(["doctor"], "t")
    assert request["capacityProviderStrategy"] == [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
    assert "launchType" not in request
    assert request["networkConfiguration"]["awsvpcConfiguration"] == {
        "subnets": ["subnet-1", "subnet-2"],
        "securityGroups": ["sg-1"],
        "assignPublicIp": "DISABLED",
    }


@pytest.mark.parametrize(
    ("task", "out_of_memory", "passing", "text"),
    [
        (
            {
                "stopCode": "EssentialContainerExited",
                "stoppedReason": "Essential container in task exited",
                "memory": "4096",
                "containers": [
                    {"name": "dbt", "exitCode": 137, "reason": "OutOfMemoryError: Container killed due to memory usage"}
                ],
            },
            True,
            False,
            "4 GB",
        ),
        ({"stopCode": "SpotInterruption", "stoppedReason": "Your Spot Task was interrupted."}, False, True, "pot"),
        ({"stopCode": "UserInitiated", "stoppedReason": "maintenance"}, False, True, "maintenance"),
        (
            {"stopCode": "EssentialContainerExited", "containers": [{"name": "dbt", "exitCode": 1}]},
            False,
            False,
            "exited with code 1",
        ),
    ],
)
def test_the_stop_code_decides_whether_an_ending_is_transient_or_out_of_memory(
    task: dict[str, Any], out_of_memory: bool, passing: bool, text: str
) -> None:
    ending = ending_of({"containers": [], **task}, "dbt")
    assert (ending.out_of_memory, ending.passing) == (out_of_memory and not passing, passing)
    assert text in ending.reason


def test_a_local_runner_is_gone_if_models_run_on_ecs(proxy: Proxy, sessions: Any) -> None:
    async def story() -> None:
        local = Runner(number=3, kind="shared", launcher="local", host="h", pid=1, started=0, token="t")
        assert list(await of(get_settings(), sessions).look([local], [])) == [3]

    run(story())
