"""The roles of the local ECS's tasks: who may be started with which, and how containers get the credentials."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from busco.embedded import ecs_containers, instances, policies

SERVICE = "ecs-tasks.amazonaws.com"


class TaskRoles:
    """Gives each task that runs the credentials of its role, and takes them back when it ends."""

    def __init__(self, known: instances.Instances) -> None:
        self._known = known
        self._secrets: dict[str, str] = {}  # task → what its containers are known by

    @staticmethod
    def refused(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[str, str] | None:
        """ECS's code and reason where a task may not have one of its roles, or the caller may not pass it."""
        from ministack.core.responses import get_account_id, get_region

        for role in ecs_containers.roles(definition, overrides):
            if why := policies.passed(role, SERVICE, f"arn:aws:ecs:{get_region()}:{get_account_id()}:*"):
                return "AccessDeniedException" if "iam:PassRole" in why else "ClientException", why
        return None

    def variables(self, task: Mapping[str, Any], definition: Mapping[str, Any], endpoint: str) -> dict[str, str]:
        """The environment by which a task's containers get its role's credentials at `endpoint`, as long as it lives.

        Args:
            task: its ARN, and what RunTask gave in place of the definition's.
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
