"""Manages the IAM roles of the local ECS's tasks: checks which roles a task may use, and issues their credentials."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from busco.embedded import ecs_containers, instances, policies

SERVICE = "ecs-tasks.amazonaws.com"


class TaskRoles:
    """Provides each running task with its role's credentials, and revokes them when the task ends."""

    def __init__(self, known: instances.Instances) -> None:
        self._known = known
        self._secrets: dict[str, str] = {}  # task ARN → the secret that identifies its containers

    @staticmethod
    def refused(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[str, str] | None:
        """Returns ECS's error code and reason if tasks can't use one of the roles, or the caller can't pass it."""
        from ministack.core.responses import get_account_id, get_region

        for role in ecs_containers.roles(definition, overrides):
            if why := policies.passed(role, SERVICE, f"arn:aws:ecs:{get_region()}:{get_account_id()}:*"):
                return "AccessDeniedException" if "iam:PassRole" in why else "ClientException", why
        return None

    def variables(self, task: Mapping[str, Any], definition: Mapping[str, Any], endpoint: str) -> dict[str, str]:
        """Returns the variables with which containers get the credentials of their task's role while the task runs.

        Args:
            task: the task, with its ARN and RunTask's overrides.
            definition: the task definition.
            endpoint: the endpoint of the local AWS.
        """
        role = (task.get("overrides") or {}).get("taskRoleArn") or definition.get("taskRoleArn")
        if not role:
            return dict(instances.NOBODY)
        arn = str(task["taskArn"])
        if arn not in self._secrets:
            self._secrets[arn] = secrets.token_urlsafe(32)
            self._known.add(self._secrets[arn], arn.rpartition("/")[2], lambda: str(role))
        return instances.variables(endpoint, self._secrets[arn])

    def forget(self, task_arn: str) -> None:
        self._known.remove(self._secrets.pop(task_arn, ""))
