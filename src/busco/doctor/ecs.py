"""Checks what ECS will run: task definitions, their roles, and the image's CPU architecture."""

from __future__ import annotations

import json
import re
from typing import Any

from busco.doctor import Skipped, Surroundings
from busco.doctor.aws import allowed
from busco.errors import BuscoError
from busco.settings import SIZES

_ECR = re.compile(
    r"^(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/(?P<name>[^:@]+)(:(?P<tag>[^@]+))?(@(?P<digest>.+))?$"
)
# Docker's names for architectures, and ECS's (OCI image specification, "platform"; ECS API, RuntimePlatform)
_ARCHITECTURES = {"amd64": "X86_64", "arm64": "ARM64"}
_INDEXES = (
    "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
)  # fmt: skip
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")


def task_definitions(around: Surroundings) -> str:
    """Each size has a task definition with the container that runs busco, for the configured architecture."""
    settings, lines = around.settings, []
    for size, found in _definitions(around).items():
        name = f"{found['family']}:{found['revision']}"
        if settings.ecs_container not in {one["name"] for one in found["containerDefinitions"]}:
            raise BuscoError(
                f"{name} has no container {settings.ecs_container}",
                "set BUSCO_ECS_CONTAINER to the name of the container that runs busco",
            )
        architecture = found.get("runtimePlatform", {}).get("cpuArchitecture", "X86_64")
        if architecture != settings.ecs_cpu_architecture:
            raise BuscoError(
                f"{name} is for {architecture}, but BUSCO_ECS_CPU_ARCHITECTURE is {settings.ecs_cpu_architecture}",
                "set CpuArchitecture in deploy/aws/ecs.yaml, and this variable, to the image's architecture",
            )
        lines.append(f"{size} {name}")
    return ", ".join(lines)


def roles(around: Surroundings) -> str:
    """Each task definition names the roles that its containers need; these roles and those in the settings exist."""
    names: dict[str, None] = {}
    for found in _definitions(around).values():
        for kind in ("taskRoleArn", "executionRoleArn"):
            if not found.get(kind):
                raise BuscoError(
                    f"{found['family']} has no {kind}: its containers "
                    + ("have no credentials" if kind == "taskRoleArn" else "can't be started on Fargate"),
                    "deploy deploy/aws/ecs.yaml (RunnerRole, ExecutionRole)",
                )
            names[found[kind].rpartition("/")[2]] = None
    settings = around.settings
    names |= {arn.rpartition("/")[2]: None for arn in (settings.runner_role_arn, settings.ingest_role_arn) if arn}
    iam = around.client("iam")
    for name in names:
        with allowed("iam:GetRole"):
            try:
                iam.get_role(RoleName=name)
            except iam.exceptions.NoSuchEntityException as error:
                raise BuscoError(f"the role {name} does not exist", "deploy deploy/aws/ecs.yaml") from error
    return ", ".join(names)


def image(around: Surroundings) -> str:
    """The image of each task definition exists, and is built for that definition's architecture."""
    lines = {}
    for found in _definitions(around).values():
        container = next(
            (one for one in found["containerDefinitions"] if one["name"] == around.settings.ecs_container), None
        )
        if container is None:
            raise Skipped(f"{found['family']} has no container {around.settings.ecs_container}")
        name, required = container["image"], found.get("runtimePlatform", {}).get("cpuArchitecture", "X86_64")
        built_for = _in_ecr(around, name) if _ECR.match(name) else _in_docker(around, name)
        if required not in built_for:
            raise BuscoError(
                f"{name} is built for {', '.join(sorted(built_for))}, but {found['family']} requires {required}: it "
                "would fail with 'exec format error'",
                "build it with scripts/local_build.sh --platform linux/arm64 (or linux/amd64), and push it",
            )
        lines[name] = f"{name}: {', '.join(sorted(built_for))}"
    return "; ".join(lines.values())


def _definitions(around: Surroundings) -> dict[str, dict[str, Any]]:
    """Returns each size's task definition from ECS."""
    settings, ecs = around.settings, around.client("ecs")
    if settings.execution == "local":
        raise Skipped("BUSCO_EXECUTION is local: models run on this machine")
    found: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        name = getattr(settings, f"ecs_task_definition_{size}")
        try:
            with allowed("ecs:DescribeTaskDefinition"):
                found[size] = ecs.describe_task_definition(taskDefinition=name)["taskDefinition"]
        except ecs.exceptions.ClientException as error:
            raise BuscoError(
                f"the task definition {name} does not exist",
                f"deploy deploy/aws/ecs.yaml, or set BUSCO_ECS_TASK_DEFINITION_{size.upper()} to yours",
            ) from error
    return found


def _in_ecr(around: Surroundings, name: str) -> set[str]:
    """Returns the architectures that an image in ECR is built for."""
    parts = _ECR.match(name)
    assert parts is not None
    ecr = around.client("ecr")
    image_id = {"imageDigest": parts["digest"]} if parts["digest"] else {"imageTag": parts["tag"] or "latest"}
    place = {"registryId": parts["account"], "repositoryName": parts["name"]}
    with allowed("ecr:BatchGetImage"):
        try:
            answer = ecr.batch_get_image(**place, imageIds=[image_id], acceptedMediaTypes=[*_INDEXES, *_MANIFESTS])
        except ecr.exceptions.RepositoryNotFoundException as error:
            raise BuscoError(f"the repository of {name} does not exist", "create it, and push the image") from error
    if not answer["images"]:
        raise BuscoError(f"{name} is not in ECR", "push it: docker push")
    manifest = json.loads(answer["images"][0]["imageManifest"])
    if "manifests" in manifest:
        # an attestation has the architecture `unknown`
        found = {one.get("platform", {}).get("architecture") for one in manifest["manifests"]} - {"unknown"}
    else:
        found = {_of_config(ecr, place, manifest["config"]["digest"])}
    return {_ARCHITECTURES.get(one, str(one)) for one in found}


def _of_config(ecr: Any, place: dict[str, str], digest: str) -> str:
    """Returns the architecture in an image's configuration (OCI image specification, "config")."""
    import urllib3

    with allowed("ecr:GetDownloadUrlForLayer"):
        url = ecr.get_download_url_for_layer(**place, layerDigest=digest)["downloadUrl"]
    answer = urllib3.PoolManager(timeout=10).request("GET", url)
    return str(json.loads(answer.data)["architecture"])


def _in_docker(around: Surroundings, name: str) -> set[str]:
    """Returns the architecture of an image in the Docker engine of the local ECS."""
    from busco.embedded import docker_engine

    try:
        found = docker_engine.architecture(around.settings.state, name)
    except ImportError:
        found = None
    if found is None:
        raise Skipped(f"{name} is not in ECR, and this process has no access to Docker")
    return {_ARCHITECTURES.get(found, found)}
