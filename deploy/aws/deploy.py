#!/usr/bin/env python3
"""Deploys the CloudFormation templates in deploy/aws/, in order, and writes their outputs for make_env.sh.

The outputs of a stack are passed to the later stacks that need them. A parameter that is not given keeps its value, or
has its default in a new stack. A stack without changes is left alone, so it is safe to run this again, also after a
failure or an interruption. The replacement or removal of what has data or a state is refused, unless you allow it.

It needs Python 3.11, Git, and the AWS CLI with credentials and a region.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
CHANGE_SET = "busco-deploy"
# Debian's publisher (https://wiki.debian.org/Cloud/AmazonEC2Image), and its names for processor architectures
DEBIAN, ARCHITECTURES = "136693071363", {"X86_64": ("amd64", "t3.large"), "ARM64": ("arm64", "t4g.large")}
# Types whose resources have data or a state that a replacement or removal loses.
KEPT = frozenset(
    {
        "AWS::EC2::EIP",
        "AWS::EC2::Instance",
        "AWS::EC2::SecurityGroup",
        "AWS::EC2::Subnet",
        "AWS::EC2::VPC",
        "AWS::ECR::Repository",
        "AWS::Glue::Database",
        "AWS::KMS::Key",
        "AWS::Logs::LogGroup",
        "AWS::RDS::DBInstance",
        "AWS::S3::Bucket",
        "AWS::SNS::Topic",
        "AWS::SQS::Queue",
    }
)
# Properties whose change CloudFormation calls a conditional replacement, but which replaces nothing here: the machine
# has an EBS volume and is in a VPC, and the database is a single PostgreSQL (CloudFormation Template Reference).
HARMLESS = {
    "AWS::EC2::Instance": {"EbsOptimized", "InstanceType", "SecurityGroupIds", "UserData"},
    "AWS::RDS::DBInstance": {
        *("AutoMinorVersionUpgrade", "BackupRetentionPeriod", "DBParameterGroupName", "MultiAZ"),
        "PreferredMaintenanceWindow",
    },
}
# Resources of these types without data or a state of their own: they come and go with TasksReachAws.
WITHOUT_STATE = frozenset({"EndpointSecurityGroup", "NatAddress"})
# Properties for which CloudFormation stops the machine and starts it again.
RESTARTS = frozenset({"EbsOptimized", "InstanceType", "UserData"})
BUNDLE = ROOT / "deploy/rds/global-bundle.pem"
_PAUSE = 3.0  # seconds between two looks at a stack
_LIMIT = 3600.0  # seconds for one stack; a database takes about ten minutes
Found = TypeVar("Found")
_GOOD = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE"})


class Failed(Exception):
    """The deployment can't go on; the message says why, and what to do."""


@dataclass(frozen=True)
class Template:
    """A template, and the outputs of earlier stacks that are its parameters.

    Attributes:
        name: the name of its file, without the suffix; the stack's name is `<Name>-<name>`.
        inputs: by parameter: the earlier template, and the name of its output.
        needs: for a template that not everybody needs: the parameter with which it is deployed for the first time.
    """

    name: str
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    needs: str = ""

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.yaml"

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters. (The templates' layout is fixed, so no YAML parser is needed.)"""
        section = re.search(r"^Parameters:\n(.*?)^\S", self.path.read_text(), re.M | re.S)
        return re.findall(r"^  (\w+):$", section[1], re.M) if section else []


TEMPLATES = (
    Template("events"),
    Template("lake", {"EventsQueueArn": ("events", "EventsQueueArn")}),
    Template(
        "ecs",
        {
            **{name: ("lake", name) for name in ("LakeBucket", "LandingBucket", "LogsBucket", "GluePrefix")},
            "EventsPolicyArn": ("events", "EventsPolicy"),
        },
    ),
    Template("network"),
    # before the machine, whose agent for Session Manager gives up for half an hour if it has no permission at its start
    Template(
        "airflow",
        {name: ("ecs", name) for name in ("AirflowRoleArn", "AlertsTopic")},
    ),
    Template(
        "host",
        {
            **{name: ("network", name) for name in ("VpcId", "HostSubnet", "DatabaseSubnets")},
            "AlertsTopic": ("ecs", "AlertsTopic"),
        },
    ),
    Template("github", {"HostInstance": ("host", "HostInstance")}, needs="GitHubRepository"),
)


@dataclass(frozen=True)
class Stack:
    """A stack as CloudFormation describes it; `status` is '' if there is none."""

    name: str
    status: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether the stack has resources. A change set that was never executed leaves one that has none."""
        return self.status not in ("", "REVIEW_IN_PROGRESS", "DELETE_COMPLETE")


def main() -> int:
    """Deploys; returns the exit status: 1 after an error message."""
    names = ", ".join(template.name for template in TEMPLATES)
    parser = argparse.ArgumentParser(
        prog="deploy/aws/deploy.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parameters",
        nargs="*",
        metavar="Parameter=Value",
        help="a parameter's value, for each template that has this parameter; for one template: host.Name=Value",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    parser.add_argument(
        "--name", default="busco", help="prefix of the names of the stacks and their resources (default: %(default)s)"
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=[template.name for template in TEMPLATES],
        help=f"leave out a template, for what you bring yourself; can be given several times. In order: {names}",
    )
    parser.add_argument(
        "--create",
        action="append",
        default=[],
        choices=["network", "host"],
        help="create this stack although the platform exists already, and may have a network or a machine of your own",
    )
    parser.add_argument(
        "--outputs",
        type=Path,
        default=ROOT / "stacks.json",
        metavar="FILE",
        help="where to write the outputs of all stacks (default: stacks.json, in the checkout)",
    )
    parser.add_argument(
        "--replace",
        action="append",
        default=[],
        metavar="RESOURCE",
        help="allow the replacement or removal of this resource (its logical id), although it has data or a state",
    )
    parser.add_argument(
        "--models-image",
        nargs="?",
        const="",
        metavar="IMAGE",
        help="only let new ECS tasks run this image, and change nothing else: the templates stay as they are deployed. "
        "Without a value: the image of this commit, in the same repository as before",
    )
    given = parser.parse_args()
    try:
        if given.models_image is not None:
            if given.parameters:
                raise Failed("--models-image takes no parameters: it changes nothing but the image")
            change_image(given)
        else:
            deploy(given)
    except Failed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; CloudFormation continues with the current stack. Run the command again", file=sys.stderr)
        return 130
    return 0


def deploy(given: argparse.Namespace) -> None:
    """Deploys all templates but those that are left out, and writes the outputs.

    Raises:
        Failed: see its message.
    """
    templates = [template for template in TEMPLATES if template.name not in given.without]
    values = _given(given.parameters, templates)
    account, region = _account()
    print(f"account {account}, region {region}", flush=True)
    stacks = {template.name: describe(f"{given.name}-{template.name}") for template in TEMPLATES}
    templates = [
        one for one in templates
        if not one.needs or stacks[one.name].exists or one.needs in values.get(one.name, {})
    ]  # fmt: skip
    absent = [
        name
        for name in ("network", "host")
        if stacks["ecs"].exists and not stacks[name].exists and name not in (*given.without, *given.create)
    ]
    if absent:
        raise Failed(
            f"the platform {given.name} exists, but not {' and '.join(stacks[name].name for name in absent)}. "
            f"To create what is missing, also after a first deployment that failed: {_options('--create', absent)}. "
            f"If you bring these resources yourself: {_options('--without', absent)}"
        )
    if "host" not in given.without and f"Amazon RDS {region} Root CA" not in BUNDLE.read_text():
        raise Failed(
            f"{BUNDLE.relative_to(ROOT)} has no certificate authority of RDS in {region}, with which Airflow verifies "
            "its database. Update it (deploy/rds/bundle.py --help), or choose another region"
        )
    before = dict(stacks)
    missing: set[str] = set()
    for template in templates:
        stack = stacks[template.name]
        needed = {source for source, _ in template.inputs.values() if source not in given.without}
        if given.dry_run and needed & missing:
            missing.add(template.name)
            print(f"{stack.name}: would be created after {' and '.join(sorted(needed & missing))}", flush=True)
            continue
        own = values.get(template.name, {})
        parameters = {"Name": given.name, **_inputs(template, stacks, before), **own}
        machine = {
            "CpuArchitecture": stacks["ecs"].outputs.get("CpuArchitecture", "X86_64"), **values.get("host", {}),
        }  # fmt: skip
        parameters = {**_defaults(template, stack, parameters, account, region, machine), **parameters}
        _check_complete(template, stack, parameters)
        protected = template.name == "host" and parameters.get("DeletionProtection", "true")
        if protected == "true" and not stack.exists:
            # CloudFormation can't delete protected resources, so a creation that fails could not be rolled back
            apply(template, stack, {**parameters, "DeletionProtection": "false"}, given)
            if not given.dry_run:
                apply(template, describe(stack.name), {**parameters, "DeletionProtection": "true"}, given)
        else:
            apply(template, stack, parameters, given)
            if protected and {**stack.parameters, **parameters}.get("DeletionProtection") == "false":
                print("the machine and the database can be deleted; to protect them: host.DeletionProtection=true")
        if not given.dry_run:
            stacks[template.name] = describe(stack.name)
        elif not stack.exists:
            missing.add(template.name)
    if not given.dry_run:
        described = [stack.described for stack in stacks.values() if stack.exists]
        given.outputs.write_text(json.dumps({"Stacks": described}, indent=1, default=str) + "\n")
        print(f"the outputs are in {given.outputs}; next: scripts/make_env.sh --production --outputs {given.outputs}")


def change_image(given: argparse.Namespace) -> None:
    """Lets new ECS tasks run another image, with the template that is deployed.

    Raises:
        Failed: see its message.
    """
    account, region = _account()
    print(f"account {account}, region {region}", flush=True)
    template = next(one for one in TEMPLATES if one.name == "ecs")
    stack = describe(f"{given.name}-ecs")
    if not stack.exists:
        raise Failed(f"there is no stack {stack.name}; give the platform's name with --name")
    image = given.models_image or f"{_repository(stack.parameters['DbtImage'])}:{_commit()}"
    apply(template, stack, {"DbtImage": image}, given, keep_template=True)


def _repository(image: str) -> str:
    """`registry:5000/busco-dbt:tag@sha256:…` → `registry:5000/busco-dbt`."""
    return re.sub(r":[^/:]*$", "", image.partition("@")[0])


def _commit() -> str:
    return _call("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD").strip()


def _given(arguments: list[str], templates: list[Template]) -> dict[str, dict[str, str]]:
    """Returns the parameters on the command line, by template."""
    found: dict[str, dict[str, str]] = {}
    for argument in arguments:
        match = re.fullmatch(r"(?:([a-z]+)\.)?(\w+)=(.*)", argument, re.S)
        if match is None:
            raise Failed(f"{argument} is not Parameter=Value, such as AlertsEmail=somebody@example.com")
        only, name, value = match.groups()
        takers = [one for one in templates if only in (None, one.name) and name in one.parameters]
        if not takers or name == "Name":
            hint = "the name is given with --name" if name == "Name" else "deploy/aws/*.yaml describe their parameters"
            raise Failed(f"no template that is deployed has the parameter {argument.partition('=')[0]}; {hint}")
        for template in takers:
            found.setdefault(template.name, {})[name] = value
    return found


def _options(name: str, values: list[str]) -> str:
    return " ".join(f"{name} {value}" for value in values)


def _inputs(template: Template, stacks: Mapping[str, Stack], before: Mapping[str, Stack]) -> dict[str, str]:
    """Returns the parameters that are outputs of earlier stacks, including stacks that are left out but exist.

    A parameter that was given another value keeps it, such as a landing bucket that lake.yaml did not create.

    Args:
        before: the stacks before this deployment.
    """
    found = {}
    for parameter, (source, output) in template.inputs.items():
        present = before[template.name].parameters.get(parameter, "")
        if present not in ("", before[source].outputs.get(output)) and before[source].exists:
            continue
        if (value := stacks[source].outputs.get(output)) is not None:
            found[parameter] = value
    return found


def _defaults(
    template: Template,
    stack: Stack,
    parameters: Mapping[str, str],
    account: str,
    region: str,
    machine: Mapping[str, str],
) -> dict[str, str]:
    """Returns values for a new stack that the template can't have itself. An existing stack keeps its own.

    Args:
        machine: the platform's CpuArchitecture, and the parameters of host.yaml that are given.
    """
    if stack.exists:
        return {}
    if template.name == "ecs" and "DbtImage" not in parameters:
        registry = f"{account}.dkr.ecr.{region}.amazonaws.com"
        return {"DbtImage": f"{registry}/{parameters['Name']}-dbt:{_commit()}"}
    architecture, size = _machine(machine)
    if template.name == "network" and not {"FirstZone", "SecondZone"} & parameters.keys():
        return _zones(size)
    if template.name == "host":
        found = {"InstanceType": size}
        return found if "ImageId" in parameters else {**found, "ImageId": _debian(architecture)}
    return {}


def _machine(given: Mapping[str, str]) -> tuple[str, str]:
    """Returns the architecture of a new machine in Debian's words, and its type."""
    architecture, size = ARCHITECTURES[given.get("CpuArchitecture", "X86_64")]
    size = given.get("InstanceType", size)
    # the generation of a Graviton type ends in g: t4g, m7g, c7gd
    return ARCHITECTURES["ARM64"][0] if re.match(r"[a-z]+\d+g", size) else architecture, size


def _zones(size: str) -> dict[str, str]:
    """Returns two availability zones that have machines of a type."""
    offered = _aws(
        *("ec2", "describe-instance-type-offerings", "--location-type", "availability-zone"),
        *("--filters", f"Name=instance-type,Values={size}"),
    )["InstanceTypeOfferings"]
    zones = sorted(one["Location"] for one in offered)
    if len(zones) < 2:
        raise Failed(
            f"fewer than two availability zones of this region have machines of type {size}; choose another type"
        )
    return {"FirstZone": zones[0], "SecondZone": zones[1]}


def _debian(architecture: str) -> str:
    """Returns the id of the newest AMI of Debian 13."""
    images = _aws(
        *("ec2", "describe-images", "--owners", DEBIAN),
        *("--filters", f"Name=name,Values=debian-13-{architecture}-*", "Name=state,Values=available"),
    )["Images"]
    if not images:
        raise Failed("this region has no AMI of Debian 13; give the id of one with ImageId=ami-…")
    newest = max(images, key=lambda image: str(image["CreationDate"]))
    print(f"Debian 13: {newest['ImageId']} ({newest['Name']})")
    return str(newest["ImageId"])


def _check_complete(template: Template, stack: Stack, parameters: Mapping[str, str]) -> None:
    text = template.path.read_text()
    absent = [
        name
        for name in template.parameters
        if name not in parameters
        and name not in stack.parameters
        and not re.search(rf"^  {name}:\n(?:    .*\n)*?    Default:", text, re.M)
    ]
    if absent:
        sources = {source for name in absent for source, _ in [template.inputs.get(name, ("", ""))] if source}
        hint = f", or deploy {' and '.join(sorted(sources))} first" if sources else ""
        raise Failed(f"{template.name}.yaml needs {', '.join(absent)}: give {absent[0]}=…{hint}")


def apply(
    template: Template,
    stack: Stack,
    parameters: Mapping[str, str],
    given: argparse.Namespace,
    keep_template: bool = False,
) -> None:
    """Creates or updates one stack, or only shows what would change.

    Args:
        keep_template: update it with the template that it has, and not with the one in this folder.

    Raises:
        Failed: the stack can't be deployed, or its resources can't.
    """
    _check_status(stack)
    _discard(stack)
    changes = _change_set(template, stack, parameters, keep_template)
    if changes is None:
        print(f"{stack.name}: nothing has changed", flush=True)
        return
    print(f"{stack.name}: {'update' if stack.exists else 'create'}", flush=True)
    lost = []
    for change in changes:
        words = {"True": "replace", "Conditional": "update, perhaps replace"}
        action = words.get(change.get("Replacement", ""), change["Action"].lower())
        if _restarts(change):
            action = "update, stop and start"
        print(f"  {action:24}{change['ResourceType']:36}{change['LogicalResourceId']}", flush=True)
        if _loses(change):
            lost.append(change["LogicalResourceId"])
    if given.dry_run:
        _discard(stack, also_empty=True)
        return
    if refused := [name for name in lost if name not in given.replace]:
        _discard(stack)
        raise Failed(
            f"{stack.name} would replace or remove {', '.join(refused)}, whose data or state would be lost. Give the "
            f"parameters that they have now, or allow it: {_options('--replace', refused)}"
        )
    if {"Host", "Database"} & {*lost} and stack.parameters.get("DeletionProtection") == "true":
        # CloudFormation would create the new machine, and leave the old one, which it can't delete, beside it
        _discard(stack)
        raise Failed(
            f"{' and '.join(lost)} can't be replaced while they are protected: first deploy "
            "host.DeletionProtection=false"
        )
    started = _newest_event(stack.name)
    _aws("cloudformation", "execute-change-set", "--stack-name", stack.name, "--change-set-name", CHANGE_SET)
    follow(stack.name, started)


def _loses(change: Mapping[str, Any]) -> bool:
    """Whether a change can remove or replace a resource that has data or a state."""
    kind, replacement = change["ResourceType"], change.get("Replacement")
    if kind not in KEPT or change["Action"] == "Add" or change["LogicalResourceId"] in WITHOUT_STATE:
        return False
    if change["Action"] == "Remove" or replacement == "True":
        return True
    if replacement != "Conditional":
        return False
    targets = [detail.get("Target", {}) for detail in change.get("Details", [])]
    changed = {target.get("Name", "") for target in targets if target.get("RequiresRecreation", "Always") != "Never"}
    return not changed or not changed <= HARMLESS.get(kind, set())


def _restarts(change: Mapping[str, Any]) -> bool:
    """Whether a change stops the machine and starts it again, for some minutes."""
    if (change["ResourceType"], change["Action"]) != ("AWS::EC2::Instance", "Modify"):
        return False
    changed = {detail.get("Target", {}).get("Name", "") for detail in change.get("Details", [])}
    return change.get("Replacement") != "True" and bool(changed & RESTARTS)


def _check_status(stack: Stack) -> None:
    if stack.status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"):
        raise Failed(
            f"{stack.name} is in the state {stack.status}, because it could not be created or deleted. Delete it (aws "
            f"cloudformation delete-stack --stack-name {stack.name}), and the buckets and repositories that it kept, "
            "and run this again"
        )
    if stack.status.endswith("_IN_PROGRESS") and stack.status != "REVIEW_IN_PROGRESS":
        print(f"{stack.name}: waiting for {stack.status}", flush=True)
        follow(stack.name, _newest_event(stack.name), is_ours=False)


def _change_set(
    template: Template, stack: Stack, parameters: Mapping[str, str], keep_template: bool
) -> list[dict[str, Any]] | None:
    """Creates a change set; returns its changes, or None if there are none."""
    known = list(stack.parameters) if keep_template else template.parameters
    listed: list[dict[str, Any]] = [
        {"ParameterKey": name, "ParameterValue": parameters[name]} for name in known if name in parameters
    ]
    listed += [
        {"ParameterKey": name, "UsePreviousValue": True}
        for name in known
        if name not in parameters and stack.exists and name in stack.parameters
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(listed, file)
        file.flush()
        _aws(
            *("cloudformation", "create-change-set", "--stack-name", stack.name, "--change-set-name", CHANGE_SET),
            *("--change-set-type", "UPDATE" if stack.exists else "CREATE", "--capabilities", "CAPABILITY_NAMED_IAM"),
            # not as_uri(): the AWS CLI decodes no percent signs
            *(("--use-previous-template",) if keep_template else ("--template-body", f"file://{template.path}")),
            *("--parameters", f"file://{file.name}"),
        )

    def described() -> dict[str, Any] | None:
        found = _aws("cloudformation", "describe-change-set", *_of(stack))
        return None if found["Status"].startswith("CREATE_") and found["Status"] != "CREATE_COMPLETE" else found

    found = _until(described, f"the change set of {stack.name}")
    if found["Status"] == "FAILED":
        reason = str(found.get("StatusReason", ""))
        if "didn't contain changes" in reason or "No updates are to be performed" in reason:
            _discard(stack)
            return None
        _discard(stack, also_empty=True)
        raise Failed(f"{stack.name}: {reason}")
    return [change["ResourceChange"] for change in found.get("Changes", []) if "ResourceChange" in change]


def _of(stack: Stack) -> tuple[str, ...]:
    return "--stack-name", stack.name, "--change-set-name", CHANGE_SET


def _discard(stack: Stack, also_empty: bool = False) -> None:
    """Deletes a change set that an earlier call left; with `also_empty`, also a new stack that has no resources."""
    if stack.status or also_empty:
        _aws("cloudformation", "delete-change-set", *_of(stack), may_fail=("ChangeSetNotFound", "ValidationError"))
    # looked at again, because somebody else may have executed a change set in the meantime
    if also_empty and describe(stack.name).status == "REVIEW_IN_PROGRESS":
        _aws("cloudformation", "delete-stack", "--stack-name", stack.name)


def describe(name: str) -> Stack:
    """Returns a stack as it is now."""
    found = _aws("cloudformation", "describe-stacks", "--stack-name", name, may_fail=("ValidationError",))
    if not found:
        return Stack(name)
    one = found["Stacks"][0]
    return Stack(
        name,
        one["StackStatus"],
        {item["ParameterKey"]: item.get("ParameterValue", "") for item in one.get("Parameters", [])},
        {item["OutputKey"]: item["OutputValue"] for item in one.get("Outputs", [])},
        one,
    )


def _events(name: str) -> Iterator[dict[str, Any]]:
    """Yields a stack's events, newest first."""
    found = _aws("cloudformation", "describe-stack-events", "--stack-name", name, may_fail=("ValidationError",))
    yield from (found or {}).get("StackEvents", [])


def _newest_event(name: str) -> str:
    return next((str(event["EventId"]) for event in _events(name)), "")


def follow(name: str, after: str, is_ours: bool = True) -> None:
    """Prints what CloudFormation does until the stack is complete.

    Args:
        after: the id of the newest event that is not printed.
        is_ours: whether this deployment changed the stack, so that a rollback is a failure.

    Raises:
        Failed: the stack was not created or updated.
    """
    reasons: list[str] = []
    last = after

    def status() -> str | None:
        nonlocal last
        new = []
        for event in _events(name):
            if event["EventId"] == last:
                break
            new.append(event)
        for event in reversed(new):
            reason = str(event.get("ResourceStatusReason", ""))
            text = f"  {event['ResourceStatus'].lower().replace('_', ' '):24}{event['LogicalResourceId']}"
            if event["ResourceStatus"].endswith("_FAILED"):
                reasons.append(f"{event['LogicalResourceId']}: {reason}")
            print(text, flush=True)
        if new:
            last = str(new[0]["EventId"])
        found = describe(name).status
        return None if found.endswith("_IN_PROGRESS") else found or "DELETE_COMPLETE"

    found = _until(status, name)
    if found == "DELETE_COMPLETE":
        raise Failed(f"{name} was deleted; run this again to create it")
    if found not in _GOOD or (found == "UPDATE_ROLLBACK_COMPLETE" and is_ours):
        # resources whose creation was cancelled only say so
        causes = [reason for reason in reasons if "cancelled" not in reason] or reasons
        raise Failed(f"{name} is in the state {found}:\n  " + "\n  ".join(causes or ["see its events in the console"]))


def _until(look: Callable[[], Found | None], what: str) -> Found:
    deadline = time.monotonic() + _LIMIT
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise Failed(f"{what} is not complete after {_LIMIT / 60:.0f} minutes; run this again to wait longer")
        time.sleep(_PAUSE)
    return found


def _account() -> tuple[str, str]:
    """Returns the account and the region that the AWS CLI uses."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    region = region or _call("aws", "configure", "get", "region", may_fail=True).strip()
    if not region:
        raise Failed("the AWS CLI has no region: set AWS_REGION, or run aws configure")
    # version 1 of the CLI doesn't know AWS_REGION
    os.environ["AWS_DEFAULT_REGION"] = region
    account = str(_aws("sts", "get-caller-identity")["Account"])
    return account, region


def _aws(*arguments: str, may_fail: tuple[str, ...] = ()) -> Any:
    """Calls the AWS CLI; returns its answer, or None if it failed with one of the error codes `may_fail`."""
    command = ["aws", *arguments, "--output", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Failed("the AWS CLI is not installed: https://docs.aws.amazon.com/cli/") from None
    if done.returncode:
        error = done.stderr.strip()
        if any(f"({code})" in error for code in may_fail):
            return None
        raise Failed(f"aws {' '.join(arguments[:2])}: {error}")
    return json.loads(done.stdout) if done.stdout.strip() else {}


def _call(*command: str, may_fail: bool = False) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
