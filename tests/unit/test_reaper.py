"""Which ECS tasks the maintenance stops: runners that nobody follows, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st

from busco.lake.layout import run_key
from busco.lake.objects import ObjectStore
from busco.lake.records import Order, Pin, utc_now
from busco.orchestration.launch import command
from busco.orchestration.reaper import Reaper, RunnerTask, runner_task, unfollowed
from busco.settings import Settings
from tests.unit.memory_s3 import MemoryS3

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
RUN = run_key("lakehouse", "manual__2026-11-26")


def a_task(run: str = RUN, epoch: int = 1, minutes: float = 10, environment: str = "prod") -> RunnerTask:
    return RunnerTask("arn:1", environment, run, epoch, "shared/1", NOW - timedelta(minutes=minutes))


def stopped(task: RunnerTask, followed: set[str], newest: int | None = 1) -> list[str]:
    found = unfollowed([task], "prod", followed, {task.run: newest}, NOW)
    return [unneeded.why for unneeded in found]


def test_a_runner_whose_run_has_a_waiting_task_is_kept() -> None:
    assert stopped(a_task(), {RUN}) == []


def test_a_runner_whose_run_has_no_waiting_task_is_stopped() -> None:
    assert stopped(a_task(), {"another run"}) == ["no Airflow task of its run is waiting for it"]
    assert stopped(a_task(), set(), newest=None) == ["no Airflow task of its run is waiting for it"]


def test_a_runner_of_an_earlier_epoch_is_stopped_even_if_its_run_continues() -> None:
    assert stopped(a_task(epoch=1), {RUN}, newest=2) == ["epoch 2 of its run has begun"]
    assert stopped(a_task(epoch=2), {RUN}, newest=2) == []


def test_a_runner_that_was_just_started_is_always_kept() -> None:
    assert stopped(a_task(minutes=1.9), set()) == []
    assert stopped(a_task(minutes=1.9, epoch=1), set(), newest=2) == []
    assert stopped(a_task(minutes=2.1), set()) != []


def test_a_runner_of_another_environment_is_left_to_its_own_airflow() -> None:
    assert stopped(a_task(environment="dev_ana"), set()) == []
    assert stopped(a_task(environment=""), set()) == []


@given(st.sets(st.sampled_from("abcd")), st.dictionaries(st.sampled_from("abcd"), st.integers(1, 3)))
def test_exactly_the_runners_that_no_task_needs_are_stopped(followed: set[str], newest: dict[str, int]) -> None:
    tasks = [
        RunnerTask(f"arn:{run}{epoch}", "prod", run, epoch, "shared/1", NOW - timedelta(hours=1))
        for run in "abcd"
        for epoch in (1, 2, 3)
    ]
    stopped_arns = {unneeded.task.arn for unneeded in unfollowed(tasks, "prod", followed, newest, NOW)}
    for task in tasks:
        needed = task.run in followed and task.epoch >= newest.get(task.run, 0)
        assert (task.arn in stopped_arns) == (not needed)


# -- tasks as ECS describes them ---------------------------------------------------------------------------------------


def described(**changes: Any) -> dict[str, Any]:
    """Returns a runner's task as DescribeTasks does, with the command that the launcher sets."""
    pin = Pin(
        run=RUN, epoch=3, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=NOW
    )  # fmt: skip
    order = Order(name="orders.run/2", generation=4, kind="solo", nodes=("model.p.orders",), token="t")
    override = {
        "name": "dbt",
        "command": command(pin, order),
        "environment": [{"name": "BUSCO_ENVIRONMENT", "value": "prod"}],
    }
    task = {
        "taskArn": "arn:1",
        "startedBy": "busco-t",
        "createdAt": NOW,
        "overrides": {"containerOverrides": [override]},
    }
    return {**task, **changes}


def with_command(*words: str) -> dict[str, Any]:
    task = described()
    task["overrides"]["containerOverrides"][0]["command"] = list(words)
    return task


def test_a_runner_is_recognised_by_its_command() -> None:
    assert runner_task(described(), "dbt") == RunnerTask("arn:1", "prod", RUN, 3, "orders.run/2/4", NOW)


def test_a_task_that_others_started_is_never_taken_for_a_runner() -> None:
    assert runner_task(described(startedBy="ecs-svc/1"), "dbt") is None
    assert runner_task(described(startedBy=None), "dbt") is None
    assert runner_task(described(startedBy="data-platform"), "dbt") is None


def test_a_task_with_another_command_is_never_taken_for_a_runner() -> None:
    assert runner_task(with_command("doctor"), "dbt") is None
    assert runner_task(with_command("runner", "--run", RUN), "dbt") is None
    assert runner_task(with_command("runner", "--epoch", "3"), "dbt") is None
    assert runner_task(with_command("sh", "-c", "runner", "--run", RUN, "--epoch", "3"), "dbt") is None
    assert runner_task(described(), "another container") is None
    assert runner_task(described(overrides={}), "dbt") is None
    assert runner_task(described(overrides={"containerOverrides": []}), "dbt") is None


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_runner_that_is_followed_again_at_the_second_check_is_kept() -> None:
    """Between two levels of the graph, a run has no waiting task although its shared runner is still needed."""
    looks: list[frozenset[str]] = [frozenset(), frozenset({RUN})]
    ecs: Any = boto3.client("ecs", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    settings, slots = Settings(ecs_cluster="busco"), object()
    reaper = Reaper(settings, ecs, ObjectStore(MemoryS3(), "lake"), slots, lambda: looks.pop(0), again=0.0)  # type: ignore[arg-type]
    old = utc_now() - timedelta(hours=1)
    with Stubber(ecs) as stubbed:
        for _ in range(2):
            stubbed.add_response("list_tasks", {"taskArns": ["arn:1"]}, {"cluster": "busco"})
            response = {"tasks": [{**described(createdAt=old), "lastStatus": "RUNNING", "desiredStatus": "RUNNING"}]}
            stubbed.add_response("describe_tasks", response, {"cluster": "busco", "tasks": ["arn:1"]})
        # a StopTask call would fail, because the stub does not expect one
        assert reaper.reap() == []
        stubbed.assert_no_pending_responses()


def test_maintenance_is_scheduled_by_default_only_if_models_run_on_ecs() -> None:
    assert Settings(execution="local").maintenance_cron is None
    assert Settings(execution="ecs").maintenance_cron == "*/15 * * * *"
    assert Settings(execution="ecs_shared", maintenance_schedule="0 * * * *").maintenance_cron == "0 * * * *"
    assert Settings(execution="ecs", maintenance_schedule="").maintenance_cron is None
