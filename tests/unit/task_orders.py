"""Orders for the starter: a container from our own template, and attacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from busco.embedded import task_definitions, task_shape
from busco.embedded.task_shape import OWNER_LABEL, Rules
from tests.unit.docker_memory import IMAGE

ROOT = Path(__file__).parents[2]
OWNER = "busco-1_tasks"
TASK = f"arn:aws:ecs:us-east-1:000000000000:task/busco/{'0' * 8}-1111-2222-3333-{'4' * 12}"
RULES = Rules(image=IMAGE, network=OWNER, owner=OWNER, folders={"/opt/busco/lib/busco": "/home/me/busco/src/busco"})


class _Template(yaml.SafeLoader):
    """Loads a template; a CloudFormation function is replaced by its parameter's default, or by a name."""


def _function(loader: _Template, _: str, node: yaml.Node) -> str:
    defaults = {"SmallCpu": "1024", "SmallMemory": "4096", "SmallStorage": "21", "StopTimeout": "60"}
    value = node.value if isinstance(node, yaml.ScalarNode) else "value"
    return {**defaults, "DbtImage": IMAGE, "CpuArchitecture": "X86_64"}.get(value, value.replace("${Name}", "busco"))


_Template.add_multi_constructor("!", _function)  # type: ignore[no-untyped-call]


def definition() -> dict[str, Any]:
    """Returns the small task definition from our template, as ECS describes it."""
    template = yaml.load((ROOT / "deploy/aws/ecs.yaml").read_text(), _Template)
    properties = template["Resources"]["SmallTaskDefinition"]["Properties"]
    described = {"status": "ACTIVE", "taskDefinitionArn": "arn", "registeredAt": "now", "compatibilities": ["EC2"]}
    empty = {"pidMode": "", "ipcMode": "", "placementConstraints": [], "proxyConfiguration": None, "revision": 1}
    return {**task_definitions.as_registered(properties), **described, **empty}


def order(**changed: Any) -> dict[str, Any]:
    given = {
        "task": TASK,
        "definition": task_shape.registered(definition()),
        "overrides": {"containerOverrides": [{"name": "dbt", "command": ["run", "x"]}], "taskRoleArn": "runner"},
        "container": "dbt",
        "environment": {"BUSCO_PLATFORM": "aws"},
    }
    return {**given, **changed}


def of_task(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda given: given["definition"].update(changed)


def of_container(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda given: given["definition"]["containerDefinitions"][0].update(changed)


def of_override(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda given: given["overrides"]["containerOverrides"][0].update(changed)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda given: given["definition"].pop(name)


ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "privileged": of_container(privileged=True),
    "a capability": of_container(linuxParameters={"capabilities": {"add": ["SYS_ADMIN"]}}),
    "a capability that Fargate has": of_container(linuxParameters={"capabilities": {"add": ["SYS_PTRACE"]}}),
    "a capability that is not dropped": of_container(linuxParameters={"capabilities": {"drop": ["NET_RAW"]}}),
    "a device": of_container(linuxParameters={"devices": [{"hostPath": "/dev/sda"}]}),
    "a tmpfs": of_container(linuxParameters={"tmpfs": [{"containerPath": "/run", "size": 64}]}),
    "root": of_container(user="0"),
    "the docker group": of_container(user="10001:999"),
    "a writable root": of_container(readonlyRootFilesystem=False),
    "another entry point": of_container(entryPoint=["sh", "-c"]),
    "another image": of_container(image="postgres:16.3-alpine"),
    "our image with another digest": of_container(image=f"{IMAGE}@sha256:{'0' * 64}"),
    "a security option": of_container(dockerSecurityOptions=["apparmor:unconfined"]),
    "a published port": of_container(portMappings=[{"containerPort": 80, "hostPort": 80}]),
    "an extra host": of_container(extraHosts=[{"hostname": "aws", "ipAddress": "1.2.3.4"}]),
    "a link": of_container(links=["postgres"]),
    "kernel parameters": of_container(systemControls=[{"namespace": "net.ipv4.ip_forward", "value": "1"}]),
    "another container's volumes": of_container(volumesFrom=[{"sourceContainer": "x"}]),
    "labels": of_container(dockerLabels={OWNER_LABEL: "another"}),
    "ulimits": of_container(ulimits=[{"name": "core", "softLimit": -1, "hardLimit": -1}]),
    "a mount elsewhere": of_container(mountPoints=[{"sourceVolume": "scratch", "containerPath": "/opt/busco/lib"}]),
    "a Docker log driver": of_container(logConfiguration={"logDriver": "syslog"}),
    "a folder of the host": of_task(volumes=[{"name": "scratch", "host": {"sourcePath": "/"}}]),
    "a folder that is mounted in any case": of_task(
        volumes=[{"name": "scratch", "host": {"sourcePath": "/home/me/busco/src/busco"}}]
    ),
    "Docker's socket": of_task(volumes=[{"name": "scratch", "host": {"sourcePath": "/var/run/docker.sock"}}]),
    "a Docker volume": of_task(volumes=[{"name": "busco_postgres", "dockerVolumeConfiguration": {"scope": "shared"}}]),
    "an EFS file system": of_task(volumes=[{"name": "scratch", "efsVolumeConfiguration": {"fileSystemId": "fs-1"}}]),
    "two volumes": of_task(volumes=[{"name": "scratch"}, {"name": "other"}]),
    "the host's network": of_task(networkMode="host"),
    "Docker's bridge": of_task(networkMode="bridge"),
    "the host's processes": of_task(pidMode="host"),
    "the host's IPC": of_task(ipcMode="host"),
    "a proxy": of_task(proxyConfiguration={"containerName": "dbt"}),
    "an unknown field": of_task(futureField=True),
    "no memory limit": without("memory"),
    "no CPU limit": without("cpu"),
    "a memory limit of zero": of_task(memory="0"),
    "a negative memory limit": of_task(memory="-1"),
    "more memory than there is": of_task(memory="999999"),
    "no containers": of_task(containerDefinitions=[]),
    "an entry point in overrides": of_override(entryPoint=["sh"]),
    "a user in overrides": of_override(user="0"),
    "privileges in overrides": of_override(privileged=True),
    "another container": lambda given: given.update(container="side"),
    "arguments of Docker's": lambda given: given.update(binds=["/:/host"]),
    "a path in the task's ARN": lambda given: given.update(task=f"{TASK[:-12]}/../../etc"),
    "no definition": lambda given: given.pop("definition"),
}
