"""Explains in plain words why an ECS task stopped or never started, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "memory", "disk", "image", "capacity", "role", "permission", "network", "setup", "spot", "person", "host", "health",
    "start", "command", "exit", "api", "unknown",
]  # fmt: skip


@dataclass(frozen=True)
class Stop:
    """Why a task stopped or never started: `text` states the reason, `hint` what to do.

    Attributes:
        kind: the category, for code that decides how to proceed.
        passing: whether the error is transient, so that starting the same task again may succeed.
    """

    kind: Kind
    text: str
    hint: str
    passing: bool = False

    def __str__(self) -> str:
        return f"{self.text}\n  → {self.hint}"


@dataclass(frozen=True)
class _Rule:
    kind: Kind
    pattern: re.Pattern[str]
    text: str
    hint: str
    passing: bool = False


def _rule(kind: Kind, pattern: str, text: str, hint: str, passing: bool = False) -> _Rule:
    return _Rule(kind, re.compile(pattern, re.IGNORECASE | re.DOTALL), text, hint, passing)


_ROLES = "deploy both roles from deploy/aws/ecs.yaml, and grant iam:PassRole on them to the role that starts tasks"
_EGRESS = "give the tasks' subnets a route out: a NAT gateway, a public IP address (BUSCO_ECS_ASSIGN_PUBLIC_IP), or "

# The first matching rule applies. Sources, in the Amazon ECS Developer Guide: "Stopped tasks error messages" and its
# pages "CannotPullContainer task errors" and "ResourceInitializationError errors"; "API failure reasons"; in the API
# reference: Task (stopCode, stoppedReason), Container (reason, exitCode), Failure (reason).
_RULES = (
    _rule(
        "role",
        r"unable to assume the (service linked )?role|iam:PassRole",
        "ECS cannot use one of the task's roles: it does not exist, does not trust ecs-tasks.amazonaws.com, or "
        "iam:PassRole is not granted",
        _ROLES,
    ),
    _rule(
        "spot",
        r"SpotInterruption|TerminationNotice|Spot Task was interrupted",
        "AWS reclaimed the Fargate Spot capacity",
        "no action needed: a new runner will take over; if this happens often, unset BUSCO_ECS_CAPACITY_PROVIDER",
        True,
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(access denied|not authorized|AccessDenied|no basic auth|403 Forbidden|401 Unauth)",
        "the task is not allowed to pull the image",
        "grant the execution role ecr:GetAuthorizationToken, ecr:BatchGetImage and ecr:GetDownloadUrlForLayer",
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(not found|does not exist|manifest unknown)",
        "the image does not exist",
        "push the image with the tag in the task definition, or deploy a task definition with an existing image",
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(toomanyrequests|rate limit)",
        "the image's registry is limiting the rate of pulls",
        "wait, then clear the task; to avoid this, use a copy of the image in ECR",
        True,
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(platform|architecture|exec format)",
        "the image is not built for the task's CPU architecture",
        "build the image for the architecture in the task definition's runtimePlatform",
    ),
    _rule(
        "disk",
        r"CannotPullContainer.*no space left on device",
        "the image does not fit on the task's disk",
        "increase ephemeralStorage for this task size in deploy/aws/ecs.yaml",
    ),
    _rule(
        "network",
        r"CannotPullContainer.*(timeout|timed out|deadline exceeded|request canceled|dial tcp|no such host|refused)",
        "the image's registry could not be reached",
        _EGRESS + "endpoints for ecr.api, ecr.dkr and S3",
        True,
    ),
    _rule(
        "image",
        r"CannotPullContainer",
        "the image could not be pulled",
        "check the image's name in the task definition",
    ),
    _rule(
        "network",
        r"ResourceInitializationError.*(timeout|timed out|deadline exceeded|dial tcp|no such host|connection refused|"
        r"check your task network|request canceled)",
        "the task could not reach AWS services during setup",
        _EGRESS
        + "endpoints for ecr.api, ecr.dkr, S3, logs and secretsmanager; security groups must allow outbound HTTPS",
        True,
    ),
    _rule(
        "permission",
        r"ResourceInitializationError.*(log(ger|ging| stream| group)|cloudwatch).*(AccessDenied|not authorized)",
        "the task is not allowed to write its log",
        "grant the execution role logs:CreateLogStream and logs:PutLogEvents on the log group in BUSCO_ECS_LOG_GROUP",
    ),
    _rule(
        "setup",
        r"ResourceInitializationError.*(log group does not exist|ResourceNotFoundException.*log|log.*ResourceNotFound)",
        "the task's log group does not exist",
        "deploy deploy/aws/ecs.yaml, or set BUSCO_ECS_LOG_GROUP to an existing group",
    ),
    _rule(
        "permission",
        r"ResourceInitializationError.*(secret|ssm|parameter|registry auth).*(AccessDenied|not authorized)",
        "the task is not allowed to read a secret or the registry credentials in its task definition",
        "grant the execution role secretsmanager:GetSecretValue, ssm:GetParameters or ecr:GetAuthorizationToken",
    ),
    _rule(
        "setup",
        r"ResourceInitializationError.*(secret|ssm|parameter).*(not found|can't find|invalid)",
        "a secret in the task definition does not exist",
        "create the secret, or fix the task definition",
    ),
    _rule(
        "setup",
        r"ResourceInitializationError|CannotCreateVolumeError",
        "ECS could not set up the task",
        "fix the problem that ECS reports, then clear the task",
    ),
    _rule(
        "memory",
        r"OutOfMemory|out of memory|OOM ?kill|killed due to memory",
        "the container ran out of memory{memory}",
        "give the model the next larger size (meta.ecs), or reduce its memory use with fewer columns, partitions or "
        "threads",
    ),
    _rule(
        "disk",
        r"no space left on device",
        "the task's disk is full",
        "increase ephemeralStorage for this task size in deploy/aws/ecs.yaml, or add memory so that DuckDB spills less",
    ),
    _rule(
        "capacity",
        r"(?-i:\bRESOURCE:(?P<what>[A-Z_:]+))",
        "no instance in the cluster has room for the task ({what})",
        "wait, add an instance, or use a smaller size (meta.ecs)",
        True,
    ),
    _rule(
        "capacity",
        r"Capacity is unavailable at this time",
        "AWS currently has no capacity for this task",
        "wait for a retry; if this persists, add subnets in other availability zones to BUSCO_ECS_SUBNETS",
        True,
    ),
    _rule(
        "capacity",
        r"limit on the number of (tasks|vCPUs)|vCPU.* limit|LimitExceeded",
        "the account has reached its limit on Fargate tasks or vCPUs",
        "lower BUSCO_MAX_ECS_TASKS, or request a higher quota from AWS",
        True,
    ),
    _rule(
        "capacity",
        r"(?-i:\bAGENT\b)|agent.{0,20}(not connected|disconnected)",
        "the ECS agent on the instance chosen for the task is disconnected",
        "wait for a retry; if this persists, replace the instance",
        True,
    ),
    _rule(
        "api",
        r"Throttl|Rate exceeded|RequestLimitExceeded|TooManyRequests|ServerException|Service ?Unavailable",
        "AWS is throttling requests or has an outage",
        "wait for a retry; if this persists, lower BUSCO_MAX_ECS_TASKS and check the AWS Health Dashboard",
        True,
    ),
    _rule(
        "setup",
        r"(?-i:\b(ATTRIBUTE|INACTIVE|LOCATION)\b)|TaskDefinition not found|ClusterNotFound|Cluster not found|"
        r"not a valid task definition",
        "the cluster or the task definition does not exist, or does not match the instances",
        "deploy deploy/aws/ecs.yaml, and check BUSCO_ECS_CLUSTER and BUSCO_ECS_TASK_DEFINITION_…",
    ),
    _rule(
        "permission",
        r"AccessDenied|not authorized to perform",
        "the role that starts tasks is not allowed to do this",
        "attach StartTasksPolicy from deploy/aws/ecs.yaml to that role",
    ),
    _rule(
        "network",
        r"network interface|EphemeralStorage provisioning",
        "AWS did not provision the task's network or disk in time",
        "clear the task; if it happens again, check how many free addresses the subnets have",
        True,
    ),
    _rule(
        "health",
        r"health ?check",
        "the task was stopped because a health check failed",
        "remove the health check from the task definition; runners do not need one",
    ),
    _rule(
        "host",
        r"Host EC2.*(terminated|stopped)|instance i-\S+.*(terminated|stopped)|maintenance|(?-i:\bMISSING\b)|"
        r"InternalError|infrastructure",
        "the machine that ran the task is gone",
        "no action needed if a new runner takes over; otherwise clear the task",
        True,
    ),
    _rule(
        "start",
        r"ContainerRuntime(Timeout)?Error|DockerTimeoutError|CannotInspectContainer|CannotStopContainer",
        "the container runtime on the task's machine did not respond",
        "clear the task to run it on another machine",
        True,
    ),
    _rule(
        "command",
        r"CannotStartContainer|CannotCreateContainer|exec: |executable file not found",
        "the container could not be started",
        "check the image's entry point, its user, and the mounts in the task definition",
    ),
)
_EXITS: dict[int, Stop] = {
    126: Stop("command", "the image's command is not executable", "rebuild the image from Dockerfile.dbt"),
    127: Stop("command", "the command does not exist in the image", "rebuild the image from Dockerfile.dbt"),
    139: Stop(
        "exit", "the process crashed (signal 11)", "clear the task; if it happens again, it is a bug in DuckDB", True
    ),
    143: Stop("exit", "the process was terminated (signal 15)", "clear the task to start a new runner", True),
}


def stop_reason(
    stop_code: str, stopped_reason: str, container_reason: str = "", exit_code: int | None = None, memory_mib: int = 0
) -> Stop:
    """Explains why an ECS task stopped or was not started.

    Args:
        stop_code: the task's `stopCode`; '' for a failed RunTask.
        stopped_reason: the task's `stoppedReason`; for RunTask, the failure's `reason` or the error message.
        container_reason: the `reason` of the container that runs busco.
        exit_code: that container's exit code; None if it never ran.
        memory_mib: the task's memory in MiB; 0 if unknown.
    """
    details = f"{stop_code}\n{stopped_reason}\n{container_reason}"
    had = f" (it had {_size(memory_mib)})" if memory_mib else ""
    # a user's reason is free text that may match any of the rules
    if stop_code == "UserInitiated":
        why = _first_line(stopped_reason)
        text = f"somebody stopped the task: {why}" if why else "somebody stopped the task without giving a reason"
        return Stop("person", text, "to run it again, clear the task")
    for rule in _RULES:
        found = rule.pattern.search(details)
        if found is None:
            continue
        text = rule.text.format(memory=had, **{name: value.rstrip(":") for name, value in found.groupdict().items()})
        why = "" if rule.kind in ("memory", "spot") else _first_line(container_reason or stopped_reason)
        return Stop(rule.kind, f"{text}: {why}" if why else text, rule.hint, rule.passing)
    if exit_code == 137:
        return Stop(
            "exit",
            f"the process was killed (signal 9), either by ECS or because it ran out of memory{had}",
            "clear the task to start a new runner; if it happens again, use the next larger size (meta.ecs)",
            True,
        )
    if exit_code in _EXITS:
        return _EXITS[exit_code]
    if exit_code is not None:
        more = f": {container_reason.strip()}" if container_reason.strip() else ""
        return Stop(
            "exit", f"the container exited with code {exit_code}{more}", "check the end of the log, then clear the task"
        )
    why = _first_line(container_reason or stopped_reason)
    return Stop(
        "unknown", f"the task stopped: {why or 'ECS gave no reason'}", "check the ECS task, then clear the Airflow task"
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def _size(mib: int) -> str:
    return f"{mib / 1024:g} GB" if mib % 512 == 0 else f"{mib} MiB"
