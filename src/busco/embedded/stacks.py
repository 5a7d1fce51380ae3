"""Deploys the CloudFormation templates in `deploy/aws/`, unmodified and in order, to the local AWS."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import botocore.exceptions

from busco.errors import BuscoError
from busco.settings import Settings

EVENTS, LAKE, ECS, AIRFLOW = "busco-events", "busco-lake", "busco-ecs", "busco-airflow"
TEMPLATES = {
    EVENTS: Path("deploy/aws/events.yaml"),
    LAKE: Path("deploy/aws/lake.yaml"),
    ECS: Path("deploy/aws/ecs.yaml"),
    AIRFLOW: Path("deploy/aws/airflow.yaml"),
}
DEPLOY_LIMIT = 60.0


@dataclass(frozen=True)
class Stack:
    """A stack to deploy.

    Args:
        name: the stack's name, one of TEMPLATES.
        template: its template's text.
        parameters: values of the template's parameters; parameters not listed here use their defaults.
        inputs: further parameters, each with the name of the output of an earlier stack that it is set to.
    """

    name: str
    template: str
    parameters: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return TEMPLATES[self.name]


def of_settings(settings: Settings) -> list[Stack]:
    """Returns the stacks in the order in which they must be deployed.

    Raises:
        BuscoError: a template is missing.
    """
    lake = {
        "GluePrefix": settings.glue_prefix,
        "WorkgroupName": settings.athena_workgroup,
        # The bucket policies reject plain HTTP, which the local AWS uses, and use condition keys that the local AWS
        # does not have.
        "BucketPolicies": "none",
    }
    ecs = {"DbtImage": settings.dbt_image, "CpuArchitecture": settings.ecs_cpu_architecture}
    from_others = {"LakeBucket": "LakeBucket", "LandingBucket": "LandingBucket", "LogsBucket": "LogsBucket"}
    from_others |= {"GluePrefix": "GluePrefix", "EventsPolicyArn": "EventsPolicy"}
    airflow = {"AirflowRoleArn": "AirflowRoleArn", "AlertsTopic": "AlertsTopic"}
    return [
        Stack(EVENTS, _read(settings.home, EVENTS), {}),
        Stack(LAKE, _read(settings.home, LAKE), lake, {"EventsQueueArn": "EventsQueueArn"}),
        Stack(ECS, _read(settings.home, ECS), ecs, from_others),
        Stack(AIRFLOW, _read(settings.home, AIRFLOW), {}, airflow),
    ]


def digest(stacks: Sequence[Stack]) -> str:
    """Returns a hash that identifies a set of templates and parameters."""
    return hashlib.sha256(json.dumps([astuple(stack) for stack in stacks]).encode()).hexdigest()


def deploy_all(cloudformation: Any, stacks: Sequence[Stack]) -> dict[str, str]:
    """Deploys the stacks in order; returns the outputs of all of them.

    Raises:
        BuscoError: see `deploy`.
    """
    outputs: dict[str, str] = {}
    for stack in stacks:
        inputs = {name: outputs[output] for name, output in stack.inputs.items()}
        outputs |= deploy(cloudformation, stack.name, stack.template, stack.parameters | inputs)
    return outputs


def deploy(cloudformation: Any, stack: str, template: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Creates or updates a stack and waits until the operation is done.

    Returns:
        The stack's outputs.

    Raises:
        BuscoError: a resource failed; the message includes its name and the reason.
    """
    found = _describe(cloudformation, stack)
    if found is not None and found["StackStatus"] in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED"):
        # A stack whose first deployment failed can only be deleted. Its buckets are retained.
        cloudformation.delete_stack(StackName=stack)
        _settled(cloudformation, stack)
        found = None
    request = {
        "StackName": stack,
        "TemplateBody": template,
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
    }
    good = {"CREATE_COMPLETE", "UPDATE_COMPLETE"}
    try:
        if found is None:
            cloudformation.create_stack(**request)
        else:
            cloudformation.update_stack(**request)
    except botocore.exceptions.ClientError as error:
        if "No updates are to be performed" not in str(error):
            raise BuscoError(f"stack {stack}: {error}", f"fix {TEMPLATES[stack]}") from error
        # An earlier update failed and was rolled back to this same template.
        good.add("UPDATE_ROLLBACK_COMPLETE")
    settled = _settled(cloudformation, stack)
    if settled is None or settled["StackStatus"] not in good:
        status = settled["StackStatus"] if settled else "missing"
        raise BuscoError(f"stack {stack} is {status}\n{_failures(cloudformation, stack)}", f"fix {TEMPLATES[stack]}")
    return {output["OutputKey"]: output["OutputValue"] for output in settled.get("Outputs", [])}


def _read(home: Path, stack: str) -> str:
    path = home / TEMPLATES[stack]
    if not path.is_file():
        raise BuscoError(f"{path} is missing", "restore it from the repository")
    return path.read_text()


def _describe(cloudformation: Any, stack: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return None if found["StackStatus"] == "DELETE_COMPLETE" else found


def _settled(cloudformation: Any, stack: str) -> dict[str, Any] | None:
    """Waits until no operation on the stack is in progress; returns the stack, or None if it no longer exists."""
    deadline = time.monotonic() + DEPLOY_LIMIT
    while (found := _describe(cloudformation, stack)) and found["StackStatus"].endswith("_IN_PROGRESS"):
        if time.monotonic() > deadline:
            raise BuscoError(f"stack {stack} is still {found['StackStatus']} after {DEPLOY_LIMIT:.0f} s", "try again")
        time.sleep(0.03)
    return found


def _failures(cloudformation: Any, stack: str) -> str:
    """Describes what failed, oldest first: the first line is the cause, the others are mostly its consequences."""
    pages = cloudformation.get_paginator("describe_stack_events").paginate(StackName=stack)
    events = [event for page in pages for event in page["StackEvents"]][::-1]
    # If a template is rejected before any resource is touched, only the stack's own events have a reason.
    failed = [event for event in events if event["ResourceStatus"].endswith("_FAILED")] or events
    lines = [
        f"{event['LogicalResourceId']} ({event['ResourceType']}): {event['ResourceStatusReason']}"
        for event in failed
        if event.get("ResourceStatusReason")
    ]
    return "\n".join(lines[:3]) or "no resource reported a reason"
