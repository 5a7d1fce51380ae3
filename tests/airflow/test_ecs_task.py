"""ECS tasks in a user's own DAG: the arguments of RunTask, and where the output is read from."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
import yaml
from airflow.exceptions import TaskDeferred
from airflow.providers.amazon.aws.operators.ecs import EcsRunTaskOperator
from airflow.utils.context import Context
from botocore.stub import Stubber

from busco.orchestration.ecs import EcsLauncher
from busco.orchestration.ecs_task import ecs_task_arguments
from busco.settings import Settings

ROOT = Path(__file__).parents[2]
ARN = "arn:aws:ecs:sa-east-1:123456789012:task/busco/0123456789abcdef"


class Cloudformation(yaml.SafeLoader):
    """Loads YAML with CloudFormation's tags; the tagged values are ignored."""


Cloudformation.add_multi_constructor("!", lambda loader, suffix, node: suffix)


def started(settings: Settings, command: str = "doctor", role: str = "", **expected: Any) -> TaskDeferred:
    """Executes the operator. RunTask must be called with exactly the usual arguments and these."""
    operator = EcsRunTaskOperator(
        task_id="t", owner="me", **ecs_task_arguments(settings, [command], timeout=timedelta(minutes=5))
    )  # fmt: skip
    ecs = boto3.client("ecs", region_name="sa-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    variables = [{"name": "BUSCO_ENVIRONMENT", "value": "prod"}]
    override = {"name": "dbt", "command": [command], "environment": variables}
    always = {
        "cluster": "busco",
        "taskDefinition": "busco-dbt-medium",
        "startedBy": "me",
        "overrides": {"containerOverrides": [override], **({"taskRoleArn": role} if role else {})},
    }
    operator.__dict__["client"] = ecs
    with Stubber(ecs) as stubbed, pytest.raises(TaskDeferred) as deferred:
        # ECS returns the task without containers at first
        stubbed.add_response("run_task", {"tasks": [{"taskArn": ARN}], "failures": []}, {**always, **expected})
        operator.do_xcom_push = False
        operator.execute(Context())
    return deferred.value


def a_settings(**values: Any) -> Settings:
    # ignore the roles in the environment, which a running platform may have set
    no_roles = dict.fromkeys(("runner_role_arn", "ingest_role_arn", "publisher_role_arn"), "")
    return Settings(home=ROOT, platform="aws", region="sa-east-1", **no_roles | values)


def test_by_default_it_runs_on_fargate_and_specifies_no_network() -> None:
    started(a_settings(), launchType="FARGATE")


def test_each_command_runs_with_the_role_for_its_duty() -> None:
    roles = {"runner_role_arn": "arn:aws:iam::1:role/runner", "ingest_role_arn": "arn:aws:iam::1:role/ingest"}
    settings = a_settings(publisher_role_arn="arn:aws:iam::1:role/publisher", **roles)
    started(settings, "ingest", roles["ingest_role_arn"], launchType="FARGATE")
    for command in ("doctor", "dbt", "run", "select"):
        started(settings, command, roles["runner_role_arn"], launchType="FARGATE")
    request = EcsLauncher(settings, mock.Mock()).request(["run", "shared"], "t")
    assert request["overrides"]["taskRoleArn"] == roles["runner_role_arn"]


def test_a_capacity_provider_replaces_the_launch_type() -> None:
    strategy = [{"capacityProvider": "FARGATE_SPOT", "weight": 1}]
    started(a_settings(ecs_capacity_provider="FARGATE_SPOT"), capacityProviderStrategy=strategy)


def test_its_network_and_platform_version_come_from_the_settings() -> None:
    network = {"subnets": ["subnet-1", "subnet-2"], "securityGroups": ["sg-1"], "assignPublicIp": "DISABLED"}
    started(
        a_settings(ecs_subnets="subnet-1, subnet-2", ecs_security_groups="sg-1", ecs_platform_version="1.4.0"),
        launchType="FARGATE",
        platformVersion="1.4.0",
        networkConfiguration={"awsvpcConfiguration": network},
    )


def test_its_output_is_read_from_the_log_stream_and_region_that_ecs_writes_it_to() -> None:
    deferred = started(a_settings(), launchType="FARGATE")
    _, arguments = deferred.trigger.serialize()
    assert (arguments["log_group"], arguments["log_stream"]) == ("/busco/dbt", "dbt/dbt/0123456789abcdef")
    assert (arguments["region"], arguments["aws_conn_id"]) == ("sa-east-1", None)


def test_it_waits_one_minute_longer_than_its_timeout_and_not_seventy_days() -> None:
    deferred = started(a_settings(), launchType="FARGATE")
    assert deferred.timeout == timedelta(minutes=6)


def test_the_settings_match_the_container_and_log_prefix_in_the_template() -> None:
    settings = a_settings()
    found = yaml.load((ROOT / "deploy/aws/ecs.yaml").read_text(), Cloudformation)["Resources"]
    for size in ("Small", "Medium", "Large"):
        (container,) = found[f"{size}TaskDefinition"]["Properties"]["ContainerDefinitions"]
        options = container["LogConfiguration"]["Options"]
        assert container["Name"] == settings.ecs_container
        assert options["awslogs-stream-prefix"] == settings.ecs_log_prefix
