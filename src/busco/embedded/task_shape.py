"""Validates ECS tasks before they run on the local AWS, and converts them to arguments for Docker.

Both places that start containers use this module: the local AWS's process on a laptop, and Docker Compose's starter. A
task definition can have only the properties that the definitions in `deploy/aws/ecs.yaml` have: a field that the models
below do not define is refused, with an error that names it. Settings with which a container could harm the machine
are constants, not fields.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from busco.embedded import ecs_containers

USER = "10001:10001"  # the image's user (Dockerfile.dbt)
SCRATCH = "/tmp"  # noqa: S108  (in the container: the task's own volume, the only place that is writable)
# the folders of our image that can be replaced by mounts in development (Dockerfile.dbt)
MOUNTED = ("/opt/busco/dbt_project", "/opt/busco/lib/busco")
MOST_PROCESSES = 4096
MOST_MEMORY = 122_880  # MiB; Fargate's largest task (ECS API reference, RegisterTaskDefinition)
OWNER_LABEL = "busco.owner"
TASK_LABEL = "com.amazonaws.ecs.task-arn"
_ADVICE = "see deploy/aws/ecs.yaml for what tasks can use"
# the fields that ECS adds to a registered task definition (ECS API reference, TaskDefinition)
_DESCRIBED = ("taskDefinitionArn", "status", "registeredAt", "registeredBy", "deregisteredAt", "compatibilities")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,255}$")]
Text = Annotated[str, StringConstraints(max_length=32_768)]
Arn = Annotated[str, StringConstraints(max_length=2048)]
# for example `1024`, `1 vCPU` or `0.5 GB`
Amount = Annotated[str, StringConstraints(pattern=r"(?i)^\d{1,6}(\.\d+)?( ?(vcpu|gb))?$")]


class RefusedError(Exception):
    """An order does not have the reviewed shape; the message names the field and the reason."""


class _Shape(BaseModel):
    """The base of all models: ignores fields that are null or empty, and refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: value for name, value in given.items() if value not in (None, "", [], {})}


class Variable(_Shape):
    """An environment variable."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
    value: Text = ""


class Capabilities(_Shape):
    drop: list[Literal["ALL"]] = []


class Linux(_Shape):
    initProcessEnabled: Literal[True] = True
    capabilities: Capabilities = Capabilities()


class MountPoint(_Shape):
    sourceVolume: Name
    containerPath: Literal["/tmp"]  # noqa: S108
    readOnly: Literal[False] = False


class Volume(_Shape):
    """A volume that is deleted with its task."""

    name: Name
    configuredAtLaunch: Literal[False] = False


class LogConfiguration(_Shape):
    """A container's logging. It is not passed to Docker: the local ECS itself copies the output to CloudWatch Logs."""

    logDriver: Literal["awslogs"]
    options: dict[str, Text] = {}


class Container(_Shape):
    name: Name
    image: Annotated[str, StringConstraints(max_length=512)]
    essential: bool = True
    cpu: Annotated[int, Field(ge=0, le=16_384)] = 0
    memory: Annotated[int, Field(ge=4, le=MOST_MEMORY)] | None = None
    user: Literal["10001", "10001:10001"] = "10001:10001"
    readonlyRootFilesystem: Literal[True] = True
    privileged: Literal[False] = False
    command: list[Text] | None = None
    environment: list[Variable] = []
    linuxParameters: Linux = Linux()
    logConfiguration: LogConfiguration | None = None
    mountPoints: Annotated[list[MountPoint], Field(max_length=1)] = []
    stopTimeout: Annotated[int, Field(ge=0, le=120)] = ecs_containers.STOP_TIMEOUT


class Storage(_Shape):
    sizeInGiB: int


class Platform(_Shape):
    operatingSystemFamily: Literal["LINUX"] = "LINUX"
    cpuArchitecture: Literal["X86_64", "ARM64"] = "X86_64"


class TaskDefinition(_Shape):
    family: Name
    revision: Annotated[int, Field(ge=1)]
    cpu: Amount
    memory: Amount
    networkMode: Literal["awsvpc"]
    requiresCompatibilities: list[Literal["FARGATE"]] = []
    runtimePlatform: Platform = Platform()
    ephemeralStorage: Storage | None = None
    taskRoleArn: Arn = ""
    executionRoleArn: Arn = ""
    volumes: Annotated[list[Volume], Field(max_length=1)] = []
    containerDefinitions: Annotated[list[Container], Field(min_length=1, max_length=10)]


class ContainerOverride(_Shape):
    name: Name
    command: list[Text] | None = None
    environment: list[Variable] = []
    cpu: Annotated[int, Field(ge=0, le=16_384)] = 0
    memory: Annotated[int, Field(ge=4, le=MOST_MEMORY)] | None = None


class Overrides(_Shape):
    """The parts of a task definition that RunTask can override."""

    cpu: Amount | None = None
    memory: Amount | None = None
    taskRoleArn: Arn = ""
    executionRoleArn: Arn = ""
    ephemeralStorage: Storage | None = None
    containerOverrides: list[ContainerOverride] = []


class Order(_Shape):
    """A container to start.

    Args:
        task: the task's ARN.
        definition: the task's definition, as registered.
        overrides: RunTask's overrides of the definition.
        container: the name of the container to start.
        environment: all environment variables of the container.
    """

    task: Annotated[
        str,
        StringConstraints(pattern=r"^arn:aws:ecs:[a-z0-9-]{1,32}:\d{12}:task/[A-Za-z0-9_-]{1,255}/[0-9a-f-]{32,36}$"),
    ]
    definition: TaskDefinition
    overrides: Overrides = Overrides()
    container: Name
    environment: dict[str, Text] = {}

    @property
    def container_definition(self) -> Container:
        """The container's definition."""
        found = [one for one in self.definition.containerDefinitions if one.name == self.container]
        if len(found) != 1:
            raise RefusedError(f"{self.definition.family} has {len(found)} containers named {self.container}")
        return found[0]


@dataclass(frozen=True)
class Rules:
    """The settings that are the same for all containers of a starter.

    Args:
        image: the only image that tasks can run.
        network: the only network that tasks are on.
        owner: the value of the label by which the starter recognizes its own containers.
        folders: folders mounted read-only into each container: path in the container → folder on Docker's host.
    """

    image: str
    network: str
    owner: str
    folders: Mapping[str, str]


def registered(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a task definition from DescribeTaskDefinition back to its registered form, with its revision."""
    return {name: value for name, value in definition.items() if name not in _DESCRIBED}


def refused(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """Returns why a task cannot run here, regardless of its image; an empty string if it can.

    Args:
        definition: the task definition as ECS describes it.
        overrides: RunTask's overrides.
    """
    try:
        TaskDefinition.model_validate(registered(definition))
        Overrides.model_validate(overrides)
    except ValidationError as error:
        return _explained(error)
    return ""


def order(given: Mapping[str, Any]) -> Order:
    """Validates an order.

    Raises:
        RefusedError: the order does not have the reviewed shape.
    """
    try:
        return Order.model_validate(given)
    except ValidationError as error:
        raise RefusedError(_explained(error)) from None


def docker_arguments(given: Order, rules: Rules, cpus: int, declared: Collection[str]) -> dict[str, Any]:
    """Returns the arguments for docker-py's `containers.create`, except for the image.

    Args:
        given: the validated order.
        rules: the starter's rules.
        cpus: the number of CPUs that Docker has. A container gets at most that many, because Docker refuses a container
            that requests more, while ECS would place it elsewhere.
        declared: the folders that the image declares as volumes. As on Fargate, a volume mounted at one of these starts
            with the image's content and ownership; a volume mounted elsewhere starts empty.

    Raises:
        RefusedError: the image is not the one in the rules, or a limit is missing or out of range.
    """
    from docker.types import Mount

    container = given.container_definition
    if container.image != rules.image:
        raise RefusedError(f"{container.image} is not the image {rules.image} that BUSCO_DBT_IMAGE allows for tasks")
    override = next((one for one in given.overrides.containerOverrides if one.name == container.name), None)
    limits = _limits(given, container, override)
    labels = {
        OWNER_LABEL: rules.owner,
        TASK_LABEL: given.task,
        "com.amazonaws.ecs.container-name": container.name,
        "com.amazonaws.ecs.task-definition-family": given.definition.family,
        "com.amazonaws.ecs.task-definition-version": str(given.definition.revision),
        ecs_containers.STOP_TIMEOUT_LABEL: str(container.stopTimeout),
    }
    scratch = Mount(target=SCRATCH, source=f"busco-scratch-{task_id(given.task)}", type="volume", no_copy=True)
    scratch["VolumeOptions"] = {"NoCopy": SCRATCH not in declared, "Labels": dict(labels)}
    code = [Mount(target=to, source=source, type="bind", read_only=True) for to, source in rules.folders.items()]
    command = override.command if override is not None and override.command is not None else container.command
    return {
        "name": f"busco-task-{task_id(given.task)}-{container.name}",
        "labels": labels,
        "command": command,
        "environment": dict(given.environment),
        "network": rules.network,
        "mounts": [scratch, *code],
        "mem_limit": f"{limits.memory}m",
        "memswap_limit": f"{limits.memory}m",  # Fargate has no swap
        "nano_cpus": int(min(limits.cpu, cpus) * 1e9),
        "pids_limit": MOST_PROCESSES,
        "user": USER,
        "read_only": True,
        "init": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def task_id(arn: str) -> str:
    return arn.rpartition("/")[2]


def _limits(given: Order, container: Container, override: ContainerOverride | None) -> ecs_containers.Limits:
    task = ecs_containers.task_limits(given.definition.model_dump(), given.overrides.model_dump())
    own = {} if override is None else override.model_dump()
    limits = ecs_containers.container_limits(container.model_dump(), task, own)
    if not 0 < limits.memory <= MOST_MEMORY or limits.cpu <= 0:
        raise RefusedError(f"{limits.memory} MiB of memory and {limits.cpu} vCPU are not valid limits")
    return limits


def _explained(error: ValidationError) -> str:
    """Describes the first invalid field without its value, which may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the task"
    why = "is not supported here" if first["type"] == "extra_forbidden" else first["msg"]
    return f"{place}: {why}; {_ADVICE}"
