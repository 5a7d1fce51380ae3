"""A local AWS with Docker, on which tests run tasks of their own."""

from __future__ import annotations

import io
import json
import uuid
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import docker
from conftest import IMAGE

from busco.embedded import docker_engine
from tests.integration.own_aws import Server, wait_for

CLUSTER = "test"
LOG_GROUP = "/test/ecs"
LIMIT = 40.0


@dataclass
class Lab:
    """A running local AWS whose ECS runs containers, and a Docker client that inspects them."""

    server: Server
    docker: Any
    image: str

    @cached_property
    def ecs(self) -> Any:
        return self.server.client("ecs")

    @cached_property
    def logs(self) -> Any:
        return self.server.client("logs")

    @property
    def bridge(self) -> str:
        """The local AWS's endpoint for containers."""
        state = [value for name, value in self.status() if name == "Docker"]
        return state[0].rpartition(" ")[2]

    def status(self) -> list[tuple[str, str]]:
        from busco.embedded import aws

        return aws.status(self.server.settings)

    def prepare(self) -> Lab:
        """Creates the cluster and the log group, which don't survive a restart of the local AWS."""
        self.ecs.create_cluster(clusterName=CLUSTER)
        self.logs.create_log_group(logGroupName=LOG_GROUP)
        return self

    def define(self, *containers: dict[str, Any], **task: Any) -> str:
        """Registers a task definition; the given fields of each container override useful defaults."""
        family = f"t{uuid.uuid4().hex[:12]}"
        log = {"awslogs-group": LOG_GROUP, "awslogs-region": "us-east-1", "awslogs-stream-prefix": "test"}
        defaults = {"name": "main", "image": self.image, "logConfiguration": {"logDriver": "awslogs", "options": log}}
        registered = self.ecs.register_task_definition(
            family=family,
            requiresCompatibilities=["FARGATE"],
            containerDefinitions=[{**defaults, **container} for container in containers],
            **{"networkMode": "awsvpc", "cpu": "512", "memory": "256", **task},
        )
        arn: str = registered["taskDefinition"]["taskDefinitionArn"]
        return arn

    def start(self, definition: str, **request: Any) -> list[str]:
        """Starts tasks of a task definition; returns their ARNs."""
        network = {"awsvpcConfiguration": {"subnets": ["subnet-1"]}}
        started = self.ecs.run_task(
            cluster=CLUSTER, taskDefinition=definition, launchType="FARGATE", networkConfiguration=network, **request
        )
        assert started["failures"] == []
        return [one["taskArn"] for one in started["tasks"]]

    def task(self, arn: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ecs.describe_tasks(cluster=CLUSTER, tasks=[arn])["tasks"][0]
        return found

    def wait(self, arn: str, status: str = "STOPPED") -> dict[str, Any]:
        wait_for(lambda: self.task(arn)["lastStatus"] in (status, "STOPPED"), LIMIT)
        found = self.task(arn)
        assert found["lastStatus"] == status, found
        return found

    def run(self, *containers: dict[str, Any], **task: Any) -> dict[str, Any]:
        """Runs a task with such a definition and returns it once it is STOPPED."""
        return self.wait(self.start(self.define(*containers, **task))[0])

    def output(self, arn: str, container: str = "main") -> list[str]:
        """Returns the current lines of a container's log stream."""
        stream = f"test/{container}/{arn.rpartition('/')[2]}"
        lines: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = self.logs.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, limit=10_000, **token
            )
            lines += [event["message"] for event in page["events"]]
            if not page["events"] or page["nextForwardToken"] == token.get("nextToken"):
                return lines
            token = {"nextToken": page["nextForwardToken"]}

    def wait_for_line(self, arn: str, line: str) -> None:
        """Waits until a running task has printed a line."""
        wait_for(lambda: self.task(arn)["lastStatus"] == "RUNNING", LIMIT)

        def printed() -> bool:
            try:
                return line in self.output(arn)
            except self.logs.exceptions.ResourceNotFoundException:
                return False

        wait_for(printed, LIMIT)

    def containers(self, arn: str | None = None) -> list[Any]:
        """Returns Docker's containers of a task, or of all tasks of this local AWS."""
        owner = docker_engine.owner_label(self.server.settings.state)
        label = f"com.amazonaws.ecs.task-arn={arn}" if arn else owner
        found: list[Any] = self.docker.containers.list(all=True, sparse=True, filters={"label": label})
        return found

    def volumes(self, arn: str) -> list[Any]:
        found: list[Any] = self.docker.volumes.list(filters={"label": f"com.amazonaws.ecs.task-arn={arn}"})
        return found


def built(client: Any, dockerfile: str) -> str:
    """Builds an image for the tests on top of the base image; returns its tag."""
    tag = f"busco-test:{uuid.uuid4().hex[:12]}"
    client.images.build(fileobj=io.BytesIO(f"FROM {IMAGE}\n{dockerfile}\n".encode()), tag=tag, rm=True)
    return tag


def python(code: str) -> dict[str, Any]:
    """Returns the fields of a container that runs this code."""
    return {"command": ["python3", "-u", "-c", code]}


def overrides(**container: Any) -> dict[str, Any]:
    return {"containerOverrides": [{"name": "main", **container}]}


def parsed(lines: list[str]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(lines[-1])
    return content


def engine() -> Any:
    return docker.from_env(timeout=30)
