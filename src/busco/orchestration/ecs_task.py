"""Builds the arguments of RunTask from the settings, for runners and for the ECS tasks of any DAG."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from busco.settings import Settings, Size

# prefix of `startedBy`; it identifies the tasks that the platform started
STARTED_BY = "busco-"

_EVERY = 5  # seconds between two checks by the trigger


def ecs_task_arguments(
    settings: Settings, command: Sequence[str], size: Size | None = None, timeout: timedelta = timedelta(hours=1)
) -> dict[str, Any]:
    """Returns the arguments for an `EcsRunTaskOperator` that runs `busco <command>` in the dbt image.

    The operator copies the command's output to the log of the Airflow task. The credentials and the endpoint come from
    the process's environment, as everywhere in the platform.

    Args:
        size: the task definition's size; BUSCO_ECS_SIZE by default.
        timeout: the time limit for the ECS task; Airflow's `execution_timeout` does not include the time during
            which a task is deferred.
    """
    where = placement(settings)
    return {
        "aws_conn_id": None,
        "region_name": settings.region,
        "cluster": settings.ecs_cluster,
        "task_definition": task_definition(settings, size),
        "overrides": overrides(settings, command),
        # the operator's default is EC2; a capacity provider strategy overrides the launch type
        "launch_type": settings.ecs_launch_type,
        "capacity_provider_strategy": where.get("capacityProviderStrategy"),
        "platform_version": where.get("platformVersion"),
        "network_configuration": where.get("networkConfiguration"),
        # the operator needs the name to find the log stream; ECS may not list a new task's containers yet
        "container_name": settings.ecs_container,
        "awslogs_group": settings.ecs_log_group,
        "awslogs_region": settings.region,
        "awslogs_stream_prefix": settings.ecs_log_prefix,
        "deferrable": True,
        "waiter_delay": _EVERY,
        "waiter_max_attempts": max(1, int(timeout.total_seconds() / _EVERY)),
    }


def overrides(settings: Settings, words: Sequence[str]) -> dict[str, Any]:
    """Returns RunTask's `overrides` for `busco <words>`: the command, its environment and its IAM role.

    ECS shows the overrides to anyone who can call DescribeTasks, so they contain no secrets.
    """
    override = {
        "name": settings.ecs_container,
        "command": list(words),
        "environment": [{"name": "BUSCO_ENVIRONMENT", "value": settings.environment}],
    }
    role = settings.ingest_role_arn if words[0] == "ingest" else settings.runner_role_arn
    return {"containerOverrides": [override], **({"taskRoleArn": role} if role else {})}


def task_definition(settings: Settings, size: Size | str | None = None) -> str:
    """Returns the family or ARN of the task definition for a size."""
    return str(getattr(settings, f"ecs_task_definition_{size or settings.ecs_size}"))


def started_by(token: str) -> str:
    """Returns a task's `startedBy`, which distinguishes the platform's tasks from others in the cluster."""
    return f"{STARTED_BY}{token}"


def placement(settings: Settings) -> dict[str, Any]:
    """Returns the RunTask arguments that determine where a task runs, and in which network."""
    found: dict[str, Any] = {}
    if settings.ecs_capacity_provider:
        found["capacityProviderStrategy"] = [{"capacityProvider": settings.ecs_capacity_provider, "weight": 1}]
    else:
        found["launchType"] = settings.ecs_launch_type
    if settings.ecs_platform_version:
        found["platformVersion"] = settings.ecs_platform_version
    if settings.ecs_subnets:
        found["networkConfiguration"] = {
            "awsvpcConfiguration": {
                "subnets": _listed(settings.ecs_subnets),
                "securityGroups": _listed(settings.ecs_security_groups),
                "assignPublicIp": "ENABLED" if settings.ecs_assign_public_ip else "DISABLED",
            }
        }
    return found


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
