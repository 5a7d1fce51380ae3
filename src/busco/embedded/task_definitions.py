"""Makes the local CloudFormation register task definitions with all of the properties in the template.

MiniStack drops the runtime platform and the disk size. It also leaves nested names (volumes, Linux parameters) in the
templates' PascalCase, while the ECS API and the code that runs containers use camelCase.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from busco.embedded import ministack_contract

# The MiniStack function that this module wraps, with the parameters that it had when the module was written.
EXPECTED = {"services.cloudformation.provisioners._ecs_task_def_create": ["logical_id", "props", "stack_name"]}
# Maps whose keys are chosen by the user and are not API names (ECS API reference, LogConfiguration and others).
_MAPS = ("Options", "DockerLabels", "DriverOpts", "Labels")
# Properties that are numbers in the API but text when a template takes them from a parameter.
_NUMBERS = ("SizeInGiB", "StopTimeout", "StartTimeout", "SoftLimit", "HardLimit", "SharedMemorySize")


def install(provisioners: Any) -> None:
    """Patches `ministack.services.cloudformation.provisioners`, for a definition's first revision and for later ones.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    ministack_contract.check(__name__, EXPECTED, "tests/stack/test_local_ecs.py")
    original = provisioners._ecs_task_def_create

    def create(logical_id: str, properties: dict[str, Any], stack: str) -> Any:
        arn, attributes = original(logical_id, properties, stack)
        provisioners._ecs._task_defs[arn.rpartition("/")[2]].update(as_registered(properties))
        return arn, attributes

    # An update that creates a new revision calls the function by this name.
    provisioners._ecs_task_def_create = create
    provisioners._RESOURCE_HANDLERS["AWS::ECS::TaskDefinition"]["create"] = create


def as_registered(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a template's task definition properties to RegisterTaskDefinition's parameters, without the tags."""
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
