"""Computes what a run's ECS tasks used, and approximately what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from busco.aws import client
from busco.lake.records import Runner, utc_now
from busco.lake.runs import Run
from busco.orchestration.words import Cost, cost
from busco.settings import Settings


@dataclass(frozen=True)
class RunCost:
    """The cost of a run's ECS tasks so far; `unknown` counts the tasks whose times ECS no longer has."""

    tasks: int
    cost: Cost
    unknown: int = 0

    def __str__(self) -> str:
        known = (
            f"ecs_tasks={self.tasks} vcpu_seconds={self.cost.vcpu_seconds:.0f} "
            f"gb_seconds={self.cost.gb_seconds:.0f} price={self.cost.price:.4f}"
        )
        return f"{known} unknown={self.unknown}" if self.unknown else known


def run_cost(settings: Settings, run: Run) -> RunCost:
    """Returns the total usage and approximate cost of the ECS tasks of the run's epoch.

    Each task counts from the start of its image pull until its end, or until now if it is still running.
    """
    endings, runners = run.endings(), [runner for runner in run.runners() if runner.arn]
    open_ones = [runner for runner in runners if runner.number not in endings]
    times = {runner.arn: times for runner, times in _times(settings, open_ones).items()}
    for runner in runners:
        if ending := endings.get(runner.number):
            times[runner.arn] = (ending.started_at, ending.stopped_at)
    total, unknown = Cost(0, 0, 0), 0
    for runner in runners:
        began, ended = times.get(runner.arn, (None, None))
        if began is None or ended is None:
            unknown += 1
            continue
        seconds = (ended - began).total_seconds()
        total += cost(runner.cpu, runner.memory, seconds, settings.price_vcpu_hour, settings.price_gb_hour)
    return RunCost(len(runners), total, unknown)


def _times(settings: Settings, runners: list[Runner]) -> dict[Runner, tuple[datetime | None, datetime | None]]:
    """Returns the start and end times of tasks whose end is not recorded yet; for a running task, the end is now."""
    found: dict[Runner, tuple[datetime | None, datetime | None]] = {}
    ecs: Any = client("ecs", settings) if runners else None
    for start in range(0, len(runners), 100):
        asked = {runner.arn: runner for runner in runners[start : start + 100]}
        answer: dict[str, Any] = ecs.describe_tasks(cluster=settings.ecs_cluster, tasks=list(asked))
        for task in answer.get("tasks") or []:
            began = task.get("pullStartedAt") or task.get("startedAt")
            found[asked[task["taskArn"]]] = (began, task.get("stoppedAt") or utc_now())
    return found
