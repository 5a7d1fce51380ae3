"""What ECS is to run: task definitions, their roles, and the image's processor architecture."""

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
# Docker's names of what ECS calls otherwise (OCI image specification, "platform"; ECS API, RuntimePlatform)
_ARCHITECTURES = {"amd64": "X86_64", "arm64": "ARM64"}
_INDEXES = (
    "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json",
)  # fmt: skip
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")


def task_definitions(around: Surroundings) -> str:
    """Each size has its task definition, with the container that runs busco, for the architecture that was said."""
    settings, told = around.settings, []
    for size, found in _definitions(around).items():
        name = f"{found['family']}:{found['revision']}"
        if settings.ecs_container not in {one["name"] for one in found["containerDefinitions"]}:
            raise BuscoError(f"{name} has no container {settings.ecs_container}", "set BUSCO_ECS_CONTAINER to its name")
        said = found.get("runtimePlatform", {}).get("cpuArchitecture", "X86_64")
        if said != settings.ecs_cpu_architecture:
            raise BuscoError(
                f"{name} is for {said}, BUSCO_ECS_CPU_ARCHITECTURE says {settings.ecs_cpu_architecture}",
                "deploy deploy/aws/ecs.yaml with CpuArchitecture as the image is, and set the variable to the same",
            )
        told.append(f"{size} {name}")
    return ", ".join(told)


def roles(around: Surroundings) -> str:
    """Each task definition names the roles that its containers need, and they exist; so do those of the settings."""
    wanted: dict[str, None] = {}
    for found in _definitions(around).values():
        for kind in ("taskRoleArn", "executionRoleArn"):
            if not found.get(kind):
                raise BuscoError(
                    f"{found['family']} has no {kind}: its containers "
                    + ("have no credentials" if kind == "taskRoleArn" else "can't be started on Fargate"),
                    "deploy deploy/aws/ecs.yaml (RunnerRole, ExecutionRole)",
                )
            wanted[found[kind].rpartition("/")[2]] = None
    settings = around.settings
    wanted |= {arn.rpartition("/")[2]: None for arn in (settings.runner_role_arn, settings.ingest_role_arn) if arn}
    iam = around.client("iam")
    for name in wanted:
        with allowed("iam:GetRole"):
            try:
                iam.get_role(RoleName=name)
            except iam.exceptions.NoSuchEntityException as error:
                raise BuscoError(f"the role {name} does not exist", "deploy deploy/aws/ecs.yaml") from error
    return ", ".join(wanted)


def image(around: Surroundings) -> str:
    """The image of the task definitions is there, for their architecture."""
    told = {}
    for found in _definitions(around).values():
        container = next(
            (one for one in found["containerDefinitions"] if one["name"] == around.settings.ecs_container), None
        )
        if container is None:
            raise Skipped("no container that runs busco")
        name, wanted = container["image"], found.get("runtimePlatform", {}).get("cpuArchitecture", "X86_64")
        has = _in_ecr(around, name) if _ECR.match(name) else _in_docker(around, name)
        if wanted not in has:
            raise BuscoError(
                f"{name} is for {', '.join(sorted(has))}, {found['family']} wants {wanted}: it would end with "
                "'exec format error'",
                "scripts/local_build.sh --platform linux/arm64 (or linux/amd64), and push that one",
            )
        told[name] = f"{name}: {', '.join(sorted(has))}"
    return "; ".join(told.values())


def _definitions(around: Surroundings) -> dict[str, dict[str, Any]]:
    """The task definition of each size, as ECS has it."""
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
    """For which architectures an image is in ECR."""
    words = _ECR.match(name)
    assert words is not None
    ecr = around.client("ecr")
    asked = {"imageDigest": words["digest"]} if words["digest"] else {"imageTag": words["tag"] or "latest"}
    place = {"registryId": words["account"], "repositoryName": words["name"]}
    with allowed("ecr:BatchGetImage"):
        try:
            answer = ecr.batch_get_image(**place, imageIds=[asked], acceptedMediaTypes=[*_INDEXES, *_MANIFESTS])
        except ecr.exceptions.RepositoryNotFoundException as error:
            raise BuscoError(f"the repository of {name} does not exist", "make it, and push the image") from error
    if not answer["images"]:
        raise BuscoError(f"{name} is not in ECR", "push it: docker push")
    manifest = json.loads(answer["images"][0]["imageManifest"])
    if "manifests" in manifest:
        # an attestation has the architecture `unknown`
        said = {one.get("platform", {}).get("architecture") for one in manifest["manifests"]} - {"unknown"}
    else:
        said = {_of_config(ecr, place, manifest["config"]["digest"])}
    return {_ARCHITECTURES.get(one, str(one)) for one in said}


def _of_config(ecr: Any, place: dict[str, str], digest: str) -> str:
    """The architecture in an image's configuration (OCI image specification, "config")."""
    import urllib3

    with allowed("ecr:GetDownloadUrlForLayer"):
        url = ecr.get_download_url_for_layer(**place, layerDigest=digest)["downloadUrl"]
    answer = urllib3.PoolManager(timeout=10).request("GET", url)
    return str(json.loads(answer.data)["architecture"])


def _in_docker(around: Surroundings, name: str) -> set[str]:
    """For which architecture the local ECS's Docker engine has an image."""
    from busco.embedded import docker_engine

    try:
        said = docker_engine.architecture(around.settings.state, name)
    except ImportError:
        said = None
    if said is None:
        raise Skipped(f"{name} is not in ECR, and this process has no Docker")
    return {_ARCHITECTURES.get(said, said)}
