"""Why an ECS task stopped or never started, in words, and what to do."""

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
    """Why a task stopped or never started: `text` says it, `hint` what to do.

    Attributes:
        kind: for whoever decides what comes next.
        passing: whether the same task started again may well succeed.
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


_ROLES = "deploy/aws/ecs.yaml has both roles; whoever starts tasks needs iam:PassRole for these two"
_EGRESS = "the tasks' subnets need a way out: a NAT gateway, a public IP address (BUSCO_ECS_ASSIGN_PUBLIC_IP), or "

# The first that matches counts. Sources, in the Amazon ECS Developer Guide: "Stopped tasks error messages" and its
# pages "CannotPullContainer task errors" and "ResourceInitializationError errors"; "API failure reasons"; in the API
# reference: Task (stopCode, stoppedReason), Container (reason, exitCode), Failure (reason).
_RULES = (
    _rule(
        "role",
        r"unable to assume the (service linked )?role|iam:PassRole",
        "ECS may not use a role of the task's: it is missing, may not be passed, or does not trust ecs-tasks",
        _ROLES,
    ),
    _rule(
        "spot",
        r"SpotInterruption|TerminationNotice|Spot Task was interrupted",
        "AWS took the Fargate Spot capacity back",
        "nothing is to be done: a new runner carries on; if it comes often, unset BUSCO_ECS_CAPACITY_PROVIDER",
        True,
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(access denied|not authorized|AccessDenied|no basic auth|403 Forbidden|401 Unauth)",
        "the image may not be pulled",
        "the execution role needs ecr:GetAuthorizationToken, ecr:BatchGetImage, ecr:GetDownloadUrlForLayer for it",
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(not found|does not exist|manifest unknown)",
        "the image does not exist",
        "push it under the tag that the task definition names, or deploy a task definition whose image is there",
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(toomanyrequests|rate limit)",
        "the image's registry lets no more pulls through now",
        "wait and clear the task; use a copy of the image in ECR",
        True,
    ),
    _rule(
        "image",
        r"CannotPullContainer.*(platform|architecture|exec format)",
        "the image is not built for the processor of the task",
        "build it for the architecture that the task definition's runtimePlatform names",
    ),
    _rule(
        "disk",
        r"CannotPullContainer.*no space left on device",
        "the image does not fit the task's disk",
        "give the size a larger ephemeralStorage in deploy/aws/ecs.yaml",
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
        "see whether the task definition names it right",
    ),
    _rule(
        "network",
        r"ResourceInitializationError.*(timeout|timed out|deadline exceeded|dial tcp|no such host|connection refused|"
        r"check your task network|request canceled)",
        "the task could not reach AWS's services while it was set up",
        _EGRESS + "endpoints for ecr.api, ecr.dkr, S3, logs and secretsmanager; security groups must let HTTPS out",
        True,
    ),
    _rule(
        "permission",
        r"ResourceInitializationError.*(log(ger|ging| stream| group)|cloudwatch).*(AccessDenied|not authorized)",
        "the task may not write its log",
        "the execution role needs logs:CreateLogStream and logs:PutLogEvents for BUSCO_ECS_LOG_GROUP's group",
    ),
    _rule(
        "setup",
        r"ResourceInitializationError.*(log group does not exist|ResourceNotFoundException.*log|log.*ResourceNotFound)",
        "the task's log group does not exist",
        "deploy deploy/aws/ecs.yaml, or set BUSCO_ECS_LOG_GROUP to the group that there is",
    ),
    _rule(
        "permission",
        r"ResourceInitializationError.*(secret|ssm|parameter|registry auth).*(AccessDenied|not authorized)",
        "the task may not read a secret, or the registry's login, that its definition names",
        "the execution role needs secretsmanager:GetSecretValue, ssm:GetParameters or ecr:GetAuthorizationToken for it",
    ),
    _rule(
        "setup",
        r"ResourceInitializationError.*(secret|ssm|parameter).*(not found|can't find|invalid)",
        "a secret that the task's definition names does not exist",
        "make it, or mend the task definition",
    ),
    _rule(
        "setup",
        r"ResourceInitializationError|CannotCreateVolumeError",
        "ECS could not set the task up",
        "see the reason; then clear the task",
    ),
    _rule(
        "memory",
        r"OutOfMemory|out of memory|OOM ?kill|killed due to memory",
        "the container ran out of memory{memory}",
        "give the model the next size (meta.ecs), or let it do with less: fewer columns, partitions, threads",
    ),
    _rule(
        "disk",
        r"no space left on device",
        "the task's disk is full",
        "give the size a larger ephemeralStorage in deploy/aws/ecs.yaml, or the model more memory: it spills less",
    ),
    _rule(
        "capacity",
        r"(?-i:\bRESOURCE:(?P<what>[A-Z_:]+))",
        "no instance of the cluster has room for the task ({what})",
        "wait, add an instance, or take a smaller size (meta.ecs)",
        True,
    ),
    _rule(
        "capacity",
        r"Capacity is unavailable at this time",
        "AWS has no capacity for this task now",
        "it is tried again; if it stays so, give BUSCO_ECS_SUBNETS subnets of further availability zones",
        True,
    ),
    _rule(
        "capacity",
        r"limit on the number of (tasks|vCPUs)|vCPU.* limit|LimitExceeded",
        "the account's limit of Fargate tasks or vCPUs is reached",
        "lower BUSCO_MAX_ECS_TASKS, or ask AWS for a higher quota",
        True,
    ),
    _rule(
        "capacity",
        r"(?-i:\bAGENT\b)|agent.{0,20}(not connected|disconnected)",
        "the instance that was to run the task has lost its ECS agent",
        "it is tried again; if it stays so, replace the instance",
        True,
    ),
    _rule(
        "api",
        r"Throttl|Rate exceeded|RequestLimitExceeded|TooManyRequests|ServerException|Service ?Unavailable",
        "AWS lets no more calls through now, or has trouble of its own",
        "it is tried again; if it stays so, lower BUSCO_MAX_ECS_TASKS, and see AWS's health dashboard",
        True,
    ),
    _rule(
        "setup",
        r"(?-i:\b(ATTRIBUTE|INACTIVE|LOCATION)\b)|TaskDefinition not found|ClusterNotFound|Cluster not found|"
        r"not a valid task definition",
        "the cluster or the task definition is not there, or does not fit the instances",
        "deploy deploy/aws/ecs.yaml, and see BUSCO_ECS_CLUSTER and BUSCO_ECS_TASK_DEFINITION_…",
    ),
    _rule(
        "permission",
        r"AccessDenied|not authorized to perform",
        "whoever starts tasks may not do this",
        "give it the policy of the starting role in deploy/aws/ecs.yaml",
    ),
    _rule(
        "network",
        r"network interface|EphemeralStorage provisioning",
        "AWS did not give the task its network or disk in time",
        "clear the task; if it comes again, see how many addresses the subnets have left",
        True,
    ),
    _rule(
        "health",
        r"health ?check",
        "the task was stopped since a health check failed",
        "a runner needs none: take the health check out of the task definition",
    ),
    _rule(
        "host",
        r"Host EC2.*(terminated|stopped)|instance i-\S+.*(terminated|stopped)|maintenance|(?-i:\bMISSING\b)|"
        r"InternalError|infrastructure",
        "the machine under the task is gone",
        "nothing is to be done: a new runner carries on; else clear the task",
        True,
    ),
    _rule(
        "start",
        r"ContainerRuntime(Timeout)?Error|DockerTimeoutError|CannotInspectContainer|CannotStopContainer",
        "the container runtime on the task's machine did not answer",
        "clear the task: it gets another machine",
        True,
    ),
    _rule(
        "command",
        r"CannotStartContainer|CannotCreateContainer|exec: |executable file not found",
        "the container could not be started",
        "see the reason: the image's entry point, its user, a mount that the task definition names",
    ),
)
_EXITS: dict[int, Stop] = {
    126: Stop("command", "the image's command may not be executed", "build the image anew from Dockerfile.dbt"),
    127: Stop("command", "the image has no such command", "build the image anew from Dockerfile.dbt"),
    139: Stop(
        "exit", "the process crashed (signal 11)", "clear the task; if it comes again, it is a bug of DuckDB's", True
    ),
    143: Stop("exit", "the process was asked to end (signal 15)", "clear the task: a new runner is started", True),
}


def stop_reason(
    stop_code: str, stopped_reason: str, container_reason: str = "", exit_code: int | None = None, memory_mib: int = 0
) -> Stop:
    """Why an ECS task stopped, or was not started, in words.

    Args:
        stop_code: the task's `stopCode`; '' for a failure of RunTask.
        stopped_reason: the task's `stoppedReason`; of RunTask the failure's `reason`, or the error's message.
        container_reason: the `reason` of the container that runs busco.
        exit_code: that container's; None where it never ran.
        memory_mib: what the task had, in MiB; 0 where it isn't known.
    """
    said = f"{stop_code}\n{stopped_reason}\n{container_reason}"
    had = f" (it had {_size(memory_mib)})" if memory_mib else ""
    # a person's reason is free text, which may hold any of the rules' words
    if stop_code == "UserInitiated":
        why = _first_line(stopped_reason)
        text = f"somebody stopped the task: {why}" if why else "somebody stopped the task, and gave no reason"
        return Stop("person", text, "clear the task when it may run again")
    for rule in _RULES:
        found = rule.pattern.search(said)
        if found is None:
            continue
        text = rule.text.format(memory=had, **{name: value.rstrip(":") for name, value in found.groupdict().items()})
        why = "" if rule.kind in ("memory", "spot") else _first_line(container_reason or stopped_reason)
        return Stop(rule.kind, f"{text}: {why}" if why else text, rule.hint, rule.passing)
    if exit_code == 137:
        return Stop(
            "exit",
            f"the process was killed (signal 9): by ECS, or for want of memory{had}",
            "clear the task: a new runner is started; if it comes again, give it the next size (meta.ecs)",
            True,
        )
    if exit_code in _EXITS:
        return _EXITS[exit_code]
    if exit_code is not None:
        more = f": {container_reason.strip()}" if container_reason.strip() else ""
        return Stop(
            "exit", f"the container ended with exit code {exit_code}{more}", "see the end of its log, then clear"
        )
    why = _first_line(container_reason or stopped_reason)
    return Stop("unknown", f"the task stopped: {why or 'ECS gave no reason'}", "see the ECS task, then clear this one")


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def _size(mib: int) -> str:
    return f"{mib / 1024:g} GB" if mib % 512 == 0 else f"{mib} MiB"
