"""The local CloudFormation registers a task definition as its template says.

MiniStack's drops the runtime platform and the size of the disk, and leaves nested names (volumes, Linux parameters) as
templates write them, where the ECS API and what runs the containers have camelCase.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from busco.embedded import ministack_contract

# What is wrapped of ministack, with the parameters that it had when this was written.
EXPECTED = {"services.cloudformation.provisioners._ecs_task_def_create": ["logical_id", "props", "stack_name"]}
# Maps, whose keys are their user's, not names of the API (ECS API reference, LogConfiguration and others).
_MAPS = ("Options", "DockerLabels", "DriverOpts", "Labels")
# Parameters are text; the API has numbers here.
_NUMBERS = ("SizeInGiB", "StopTimeout", "StartTimeout", "SoftLimit", "HardLimit", "SharedMemorySize")


def install(provisioners: Any) -> None:
    """Corrects `ministack.services.cloudformation.provisioners`, for creation and for each further revision.

    Raises:
        RuntimeError: this MiniStack is not the one that the correction was written for.
    """
    ministack_contract.check(__name__, EXPECTED, "tests/stack/test_local_ecs.py")
    original = provisioners._ecs_task_def_create

    def create(logical_id: str, properties: dict[str, Any], stack: str) -> Any:
        arn, attributes = original(logical_id, properties, stack)
        provisioners._ecs._task_defs[arn.rpartition("/")[2]].update(as_registered(properties))
        return arn, attributes

    # an update that makes a revision calls it by its name
    provisioners._ecs_task_def_create = create
    provisioners._RESOURCE_HANDLERS["AWS::ECS::TaskDefinition"]["create"] = create


def as_registered(properties: Mapping[str, Any]) -> dict[str, Any]:
    """A template's properties of a task definition as RegisterTaskDefinition's parameters, without its tags."""
    return {_camel(name): _value(name, value) for name, value in properties.items() if name != "Tags"}


def _value(name: str, value: Any) -> Any:
    if name in _MAPS:
        return value
    if isinstance(value, Mapping):
        return {_camel(key): _value(key, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_value(name, inner) for inner in value]
    return int(value) if name in _NUMBERS else value


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]
