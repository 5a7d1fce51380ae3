"""An ECS task in the platform's cluster, a runner or one of any DAG: what RunTask needs, from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from busco.settings import Settings, Size

# how ECS is told who has started a task of the platform's own
STARTED_BY = "busco-"

_EVERY = 5  # seconds between two looks of the trigger


def ecs_task_arguments(
    settings: Settings, command: Sequence[str], size: Size | None = None, timeout: timedelta = timedelta(hours=1)
) -> dict[str, Any]:
    """Arguments of `EcsRunTaskOperator` for `busco <command>` in dbt's image; its output is in the task's log.

    The credentials and the endpoint are those of the process's environment, as for all of the platform.

    Args:
        size: of the task definition, BUSCO_ECS_SIZE if not said.
        timeout: for a deferred task Airflow's `execution_timeout` counts only while a worker has it.
    """
    where = placement(settings)
    return {
        "aws_conn_id": None,
        "region_name": settings.region,
        "cluster": settings.ecs_cluster,
        "task_definition": task_definition(settings, size),
        "overrides": overrides(settings, command),
        # the operator's own default is EC2; a strategy goes before it
        "launch_type": settings.ecs_launch_type,
        "capacity_provider_strategy": where.get("capacityProviderStrategy"),
        "platform_version": where.get("platformVersion"),
        "network_configuration": where.get("networkConfiguration"),
        # not asked of ECS, which may name no container yet: without it the log's stream would not be found
        "container_name": settings.ecs_container,
        "awslogs_group": settings.ecs_log_group,
        "awslogs_region": settings.region,
        "awslogs_stream_prefix": settings.ecs_log_prefix,
        "deferrable": True,
        "waiter_delay": _EVERY,
        "waiter_max_attempts": max(1, int(timeout.total_seconds() / _EVERY)),
    }


def overrides(settings: Settings, words: Sequence[str]) -> dict[str, Any]:
    """RunTask's `overrides` for `busco <words>`: the command, and the role of its duty. Nothing in them is secret: ECS
    shows them to whoever may DescribeTasks."""
    override = {
        "name": settings.ecs_container,
        "command": list(words),
        "environment": [{"name": "BUSCO_ENVIRONMENT", "value": settings.environment}],
    }
    role = settings.ingest_role_arn if words[0] == "ingest" else settings.runner_role_arn
    return {"containerOverrides": [override], **({"taskRoleArn": role} if role else {})}


def task_definition(settings: Settings, size: Size | str | None = None) -> str:
    """The family or ARN of the task definition of a size."""
    return str(getattr(settings, f"ecs_task_definition_{size or settings.ecs_size}"))


def started_by(token: str) -> str:
    """`startedBy` of a runner's task: by it the platform's own are known from others in the cluster."""
    return f"{STARTED_BY}{token}"


def placement(settings: Settings) -> dict[str, Any]:
    """RunTask's arguments that say where a task runs, and in which network."""
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
