"""If models run on ECS, an ECS task resolves a run's selection, so Airflow's machine does not need dbt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from busco.errors import BuscoError
from busco.lake.records import Selection
from busco.orchestration import async_aws, ecs
from busco.orchestration.launch import token_of
from busco.orchestration.selections import selected
from busco.orchestration.slots import Slots
from busco.project import Project
from busco.settings import get_settings
from tests.airflow.driver import ENVIRONMENT, Driver
from tests.airflow.fault_proxy import Answer, Fault, Proxy, error
from tests.synthetic import manifest


@pytest.fixture
def select(proxy: Proxy, sessions: Any) -> Iterator[Callable[[str], list[str]]]:
    """Yields a function that resolves the selection `fct` for the given run with ECS tasks."""
    settings = get_settings().model_copy(update={"execution": "ecs", "runner_restarts": 1})
    project = Project(manifest(20, 0))
    async_aws._clients.clear()
    slots = Slots(1, sessions)
    with mock.patch.object(Slots, "of_airflow", return_value=slots), mock.patch.object(ecs, "_EVERY", 0.0):
        yield lambda run: selected(settings, project, "fct", attempt(run))
    assert slots.holders() == []


def attempt(run: str) -> list[str]:
    return ["lakehouse", run, "1", "origin"]


def answer(driver: Driver, run: str, generation: int, **fields: Any) -> None:
    """Writes the record that the ECS task of a generation would write."""
    token = token_of("prod", *attempt(run), "select", generation)
    driver.store.create(ENVIRONMENT.selection(token), Selection(select="fct", **fields))


def gone(code: str, reason: str, exit_code: int | None = None) -> Fault:
    """Returns a fault that makes ECS report every task as stopped."""
    containers = [{"name": "dbt", "exitCode": exit_code}] if exit_code is not None else []

    def stopped(request: dict[str, Any]) -> Answer:
        state = {"lastStatus": "STOPPED", "stopCode": code, "stoppedReason": reason, "containers": containers}
        return 200, {"tasks": [{"taskArn": arn, **state} for arn in request["tasks"]], "failures": []}

    return stopped


DONE = gone("EssentialContainerExited", "Essential container in task exited", 0)
SPOT = gone("SpotInterruption", "Your Spot Task was interrupted.")


def test_if_models_run_on_ecs_an_ecs_task_resolves_the_selection(
    driver: Driver, proxy: Proxy, select: Callable[[str], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    models = list(Project(manifest(20, 0)).nodes)
    answer(driver, "good", 1, nodes=tuple(models), notes=("'typo' in the selection matches nothing",))
    proxy.fail("DescribeTasks", DONE, DONE)
    assert select("good") == models
    assert "'typo' in the selection matches nothing" in caplog.text
    # the same try again, after its worker was killed: it uses the task that was already started
    assert select("good") == models
    assert proxy.calls.count("RunTask") == 1
    answer(driver, "nothing", 1, error="the selection 'fct' matches nothing\n  → try it")
    proxy.fail("DescribeTasks", DONE)
    with pytest.raises(BuscoError, match="matches nothing"):
        select("nothing")
    answer(driver, "newer", 1, nodes=("model.other.of_a_newer_commit",))
    proxy.fail("DescribeTasks", DONE)
    with pytest.raises(BuscoError, match=r"model\.other\.of_a_newer_commit, but the project in Airflow does not"):
        select("newer")


def test_an_interrupted_ecs_task_of_a_selection_is_replaced(
    driver: Driver, proxy: Proxy, select: Callable[[str], list[str]]
) -> None:
    models = list(Project(manifest(20, 0)).nodes)
    answer(driver, "spot", 2, nodes=tuple(models))
    proxy.fail("DescribeTasks", SPOT, DONE)
    assert select("spot") == models


def test_a_selection_that_no_ecs_task_can_resolve_fails_the_pin_with_ecs_s_message(
    driver: Driver, proxy: Proxy, select: Callable[[str], list[str]]
) -> None:
    proxy.fail("RunTask", error("ClientException", "ECS was unable to assume the role 'arn:aws:iam::1:role/gone'"))
    with pytest.raises(BuscoError, match="ECS cannot use one of the task's roles"):
        select("role")
    proxy.fail("DescribeTasks", gone("EssentialContainerExited", "Essential container in task exited", 2))
    with pytest.raises(BuscoError, match="ended without a result: .*exited with code 2"):
        select("died")
