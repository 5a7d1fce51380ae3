"""What `deploy/aws/ecs.yaml` gives a task and whoever starts it: as the local AWS deployed it, allowed and denied."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document
from own_aws import Server, quiet, started

from busco.embedded import aws, stacks
from busco.settings import SIZES, Settings, get_settings

ACCOUNT, REGION = "000000000000", "us-east-1"
HERE = f"{REGION}:{ACCOUNT}"
LAKE, LANDING, LOGS = (f"arn:aws:s3:::busco-{kind}-{ACCOUNT}-{REGION}" for kind in ("lake", "landing", "logs"))
CLUSTER, OTHER_CLUSTER = f"arn:aws:ecs:{HERE}:cluster/busco", f"arn:aws:ecs:{HERE}:cluster/other"
GROUP, OTHER_GROUP = (f"arn:aws:logs:{HERE}:log-group:/busco/{name}" for name in ("dbt", "dbt-other"))
STREAM = ":log-stream:dbt/dbt/0f3c"
GLUE = f"arn:aws:glue:{HERE}"
ECR = f"arn:aws:ecr:{HERE}:repository"
ALERTS = f"arn:aws:sns:{HERE}:busco-alerts"
ROLE = f"arn:aws:iam::{ACCOUNT}:role"

# (role or policy, action, resource, what the request says besides); {Names} are outputs of the stack
Case = tuple[str, str, str, dict[str, str]]


def definition(family: str, revision: int = 1, account: str = ACCOUNT) -> str:
    return f"arn:aws:ecs:{REGION}:{account}:task-definition/{family}:{revision}"


def cases(who: str, *asked: tuple[str, str] | tuple[str, str, dict[str, str]]) -> list[Any]:
    """One test case for each thing asked; its id says who does what to what."""
    made = []
    for action, resource, *more in asked:
        context = more[0] if more else {}
        said = " ".join(f"{key}={value}" for key, value in context.items())
        made.append(pytest.param(who, action, resource, context, id=f"{who} {action} {resource} {said}".strip()))
    return made


IN = {"ecs:cluster": CLUSTER}
ALLOWED = [
    *cases(
        "TaskRole",
        *[
            (action, f"{LAKE}/{prefix}/a/b")
            for prefix in ("_lake", "bronze", "silver", "gold", "docs")
            for action in ("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload")
        ],
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/deliveries/olist.orders/"}),
        # what S3 asks itself before it says that an object isn't there
        ("s3:ListBucket", LAKE),
        ("s3:GetObject", f"{LANDING}/olist/orders/orders.csv"),
        ("s3:GetObjectVersion", f"{LANDING}/olist/orders/orders.csv"),
        ("s3:ListBucket", LANDING, {"s3:prefix": "olist/"}),
        *[
            ("glue:GetTable", f"{GLUE}:{resource}")
            for resource in ("catalog", "database/busco_gold", "table/busco_gold/fct_orders")
        ],
        ("glue:GetTables", f"{GLUE}:table/busco_silver/orders"),
        ("glue:GetDatabase", f"{GLUE}:database/busco_bronze"),
        ("logs:CreateLogStream", f"{GROUP}:*"),
        ("logs:PutLogEvents", GROUP + STREAM),
    ),
    *cases(
        "ExecutionRole",
        ("ecr:GetAuthorizationToken", "*"),
        ("ecr:BatchCheckLayerAvailability", f"{ECR}/busco-dbt"),
        ("ecr:GetDownloadUrlForLayer", f"{ECR}/busco-dbt"),
        ("ecr:BatchGetImage", f"{ECR}/busco-dbt"),
        ("logs:CreateLogStream", f"{GROUP}:*"),
        ("logs:PutLogEvents", GROUP + STREAM),
    ),
    *cases(
        "StartTasksPolicy",
        *[("ecs:RunTask", definition(f"busco-dbt-{size}"), IN) for size in SIZES],
        ("ecs:RunTask", definition("busco-dbt-small", 17), IN),
        ("ecs:DescribeTasks", f"arn:aws:ecs:{HERE}:task/busco/0f3c", IN),
        ("ecs:StopTask", f"arn:aws:ecs:{HERE}:task/busco/0f3c", IN),
        ("ecs:ListTasks", "*", IN),
        ("ecs:DescribeTaskDefinition", "*"),
        *[("iam:GetRole", role) for role in ("{ExecutionRole}", "{TaskRole}")],
        ("ecs:TagResource", f"arn:aws:ecs:{HERE}:task/busco/0f3c", {"ecs:CreateAction": "RunTask"}),
        *[
            ("iam:PassRole", role, {"iam:PassedToService": "ecs-tasks.amazonaws.com"})
            for role in ("{ExecutionRole}", "{TaskRole}")
        ],
        ("logs:GetLogEvents", GROUP + STREAM),
        ("logs:FilterLogEvents", f"{GROUP}:*"),
        ("logs:DescribeLogStreams", f"{GROUP}:*"),
        ("sns:Publish", ALERTS),
        ("s3:GetObject", f"{LAKE}/_lake/deliveries/olist.orders/orders.csv/1.json"),
        ("s3:GetObject", f"{LAKE}/docs/r/1/manifest.json"),
        ("s3:PutObject", f"{LAKE}/_lake/env/prod/current.json"),
        ("s3:PutObject", f"{LAKE}/_lake/env/prod/runs/r/1/pin.json"),
        ("s3:PutObject", f"{LAKE}/docs/index.html"),
        ("s3:PutObject", f"{LAKE}/docs/projects/bakery.html"),
        ("s3:GetObject", f"{LOGS}/airflow/dag_id=lakehouse/attempt=1.log"),
        ("s3:PutObject", f"{LOGS}/airflow/dag_id=lakehouse/attempt=1.log"),
        ("s3:ListBucket", LOGS, {"s3:prefix": "airflow/dag_id=lakehouse/"}),
        # what S3 asks itself before it says that an object isn't there
        ("s3:ListBucket", LOGS),
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/env/prod/runs/r/"}),
        ("s3:ListBucket", LAKE),
        *[
            (f"glue:{verb}Table", f"{GLUE}:{resource}")
            for verb in ("Get", "Create", "Update", "Delete")
            for resource in ("catalog", "database/busco_gold", "table/busco_gold/fct_orders")
        ],
        ("glue:GetTables", f"{GLUE}:table/busco_bronze/olist_orders"),
    ),
]
NOBODY_MAY = [
    ("s3:DeleteBucket", LAKE),
    ("s3:PutBucketPolicy", LAKE),
    ("s3:PutLifecycleConfiguration", LAKE),
    ("s3:DeleteObject", f"{LAKE}/gold/a/b"),
    ("s3:DeleteObject", f"{LAKE}/_lake/env/prod/current.json"),
    ("s3:DeleteObjectVersion", f"{LANDING}/olist/orders/orders.csv"),
    ("s3:PutObject", f"{LANDING}/olist/orders/orders.csv"),
    ("s3:PutObject", f"{LAKE}/elsewhere/a"),
    ("s3:PutObject", f"{LAKE}/silver"),
    ("s3:GetObject", f"{LAKE}/elsewhere/a"),
    ("s3:ListBucket", LAKE, {"s3:prefix": "elsewhere/"}),
    ("s3:ListBucket", LAKE, {"s3:prefix": ""}),
    ("s3:ListBucket", LOGS, {"s3:prefix": "athena/"}),
    ("s3:GetObject", f"{LOGS}/athena/a.csv"),
    ("s3:GetObject", f"{LAKE}-other/gold/a"),
    ("s3:PutObject", f"{LAKE}-other/_lake/env/prod/current.json"),
    ("s3:ListBucket", f"{LAKE}-other"),
    ("s3:ListAllMyBuckets", "*"),
    ("glue:GetTable", f"{GLUE}:database/finance"),
    ("glue:GetTable", f"{GLUE}:table/finance/salaries"),
    ("glue:GetTable", f"{GLUE}:table/busco_gold_copy/fct_orders"),
    ("glue:UpdateTable", f"{GLUE}:table/finance/salaries"),
    ("glue:UpdateTable", f"{GLUE}:table/busco_gold_copy/fct_orders"),
    ("glue:DeleteDatabase", f"{GLUE}:database/busco_gold"),
    ("glue:CreateDatabase", f"{GLUE}:database/busco_gold"),
    ("logs:PutLogEvents", OTHER_GROUP + STREAM),
    ("logs:CreateLogStream", f"{OTHER_GROUP}:*"),
    ("logs:GetLogEvents", OTHER_GROUP + STREAM),
    ("logs:DeleteLogGroup", f"{GROUP}:*"),
    ("logs:PutRetentionPolicy", f"{GROUP}:*"),
    ("logs:CreateLogGroup", f"arn:aws:logs:{HERE}:log-group:/busco/new:*"),
    ("ecr:PutImage", f"{ECR}/busco-dbt"),
    ("ecr:BatchDeleteImage", f"{ECR}/busco-dbt"),
    ("ecr:BatchGetImage", f"{ECR}/busco-airflow"),
    ("sns:Publish", f"arn:aws:sns:{HERE}:other"),
    ("sns:Subscribe", ALERTS),
    ("iam:PassRole", f"{ROLE}/admin", {"iam:PassedToService": "ecs-tasks.amazonaws.com"}),
    ("iam:PassRole", "{TaskRole}", {"iam:PassedToService": "lambda.amazonaws.com"}),
    ("iam:PassRole", "{TaskRole}"),
    ("iam:GetRole", f"{ROLE}/admin"),
    ("iam:AttachRolePolicy", "{TaskRole}"),
    ("iam:PutRolePolicy", "{TaskRole}"),
    ("iam:CreateAccessKey", f"arn:aws:iam::{ACCOUNT}:user/anybody"),
    ("iam:CreatePolicyVersion", "{StartTasksPolicy}"),
    ("sts:AssumeRole", "{TaskRole}"),
    ("sts:AssumeRole", f"{ROLE}/admin"),
    ("secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:{HERE}:secret:airflow"),
    ("ssm:GetParameter", f"arn:aws:ssm:{HERE}:parameter/airflow"),
    ("kms:Decrypt", f"arn:aws:kms:{HERE}:key/0f3c"),
    ("ec2:RunInstances", "*"),
    ("lambda:InvokeFunction", f"arn:aws:lambda:{HERE}:function:any"),
    ("cloudformation:UpdateStack", f"arn:aws:cloudformation:{HERE}:stack/busco-ecs/0f3c"),
    ("ecs:RunTask", definition("other"), IN),
    ("ecs:RunTask", definition("busco-dbt-small-other"), IN),
    ("ecs:RunTask", definition("busco-dbt-huge"), IN),
    ("ecs:RunTask", definition("busco-dbt-small", account="111111111111"), IN),
    ("ecs:RunTask", definition("busco-dbt-small"), {"ecs:cluster": OTHER_CLUSTER}),
    ("ecs:RunTask", definition("busco-dbt-small")),
    ("ecs:StartTask", definition("busco-dbt-small"), IN),
    ("ecs:StopTask", f"arn:aws:ecs:{HERE}:task/other/0f3c", {"ecs:cluster": OTHER_CLUSTER}),
    ("ecs:DescribeTasks", f"arn:aws:ecs:{HERE}:task/other/0f3c", {"ecs:cluster": OTHER_CLUSTER}),
    ("ecs:ListTasks", "*", {"ecs:cluster": OTHER_CLUSTER}),
    ("ecs:TagResource", f"arn:aws:ecs:{HERE}:task/busco/0f3c"),
    ("ecs:TagResource", CLUSTER, {"ecs:CreateAction": "CreateCluster"}),
    ("ecs:ExecuteCommand", f"arn:aws:ecs:{HERE}:task/busco/0f3c", IN),
    ("ecs:RegisterTaskDefinition", "*"),
    ("ecs:DeregisterTaskDefinition", "*"),
    ("ecs:DeleteCluster", CLUSTER),
    ("ecs:UpdateService", f"arn:aws:ecs:{HERE}:service/busco/airflow", IN),
]
DENIED = [
    *cases("TaskRole", *NOBODY_MAY),
    *cases(
        "TaskRole",
        ("glue:UpdateTable", f"{GLUE}:table/busco_gold/fct_orders"),
        ("glue:CreateTable", f"{GLUE}:database/busco_gold"),
        ("glue:DeleteTable", f"{GLUE}:table/busco_gold/fct_orders"),
        ("iam:PassRole", "{TaskRole}", {"iam:PassedToService": "ecs-tasks.amazonaws.com"}),
        ("ecs:RunTask", definition("busco-dbt-small"), IN),
        ("ecs:StopTask", f"arn:aws:ecs:{HERE}:task/busco/0f3c", IN),
        ("ecr:BatchGetImage", f"{ECR}/busco-dbt"),
        ("logs:GetLogEvents", GROUP + STREAM),
        ("sns:Publish", ALERTS),
    ),
    *cases("ExecutionRole", *NOBODY_MAY),
    *cases(
        "ExecutionRole",
        ("s3:GetObject", f"{LAKE}/gold/a/b"),
        ("s3:ListBucket", LAKE),
        ("s3:GetObject", f"{LANDING}/olist/orders/orders.csv"),
        ("glue:GetTable", f"{GLUE}:table/busco_gold/fct_orders"),
        ("logs:GetLogEvents", GROUP + STREAM),
        ("iam:PassRole", "{TaskRole}", {"iam:PassedToService": "ecs-tasks.amazonaws.com"}),
        ("ecs:RunTask", definition("busco-dbt-small"), IN),
    ),
    *cases("StartTasksPolicy", *NOBODY_MAY),
    *cases(
        "StartTasksPolicy",
        ("s3:PutObject", f"{LAKE}/gold/a/b"),
        ("s3:PutObject", f"{LAKE}/_lake/deliveries/olist.orders/orders.csv/1.json"),
        ("s3:PutObject", f"{LAKE}/docs/r/1/manifest.json"),
        ("s3:GetObject", f"{LAKE}/gold/a/b"),
        ("s3:GetObject", f"{LANDING}/olist/orders/orders.csv"),
        ("s3:ListBucket", LANDING),
        ("logs:PutLogEvents", GROUP + STREAM),
        ("ecr:BatchGetImage", f"{ECR}/busco-dbt"),
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _own_environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = started(tmp_path_factory.mktemp("state"))
    yield running
    aws.down(running.settings, quiet)


@pytest.fixture(scope="module")
def outputs(server: Server) -> dict[str, str]:
    described = server.client("cloudformation").describe_stacks(StackName=stacks.ECS)["Stacks"][0]
    return {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}


@pytest.fixture(scope="module")
def policies(server: Server, outputs: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """All policies of each role, and of whoever has the managed one, as they were deployed."""
    iam = server.client("iam")
    found: dict[str, list[dict[str, Any]]] = {}
    for who in ("ExecutionRole", "TaskRole"):
        role = outputs[who].rpartition("/")[2]
        names = iam.list_role_policies(RoleName=role)["PolicyNames"]
        assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
        found[who] = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    arn = outputs["StartTasksPolicy"]
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    return {**found, "StartTasksPolicy": [document]}


def decision(documents: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> str:
    """IAM's word, by the emulator's evaluator: its SimulatePrincipalPolicy takes no context and one resource."""
    request = EvalContext(
        principal_arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/any/any",
        principal_type="AssumedRole",
        principal_account=ACCOUNT,
        action=action,
        resource_arn=resource,
        region=REGION,
        service_context={key.lower(): value for key, value in context.items()},
    )
    return evaluate(request, [parse_policy_document(document) for document in documents]).decision


@pytest.mark.parametrize(("who", "action", "resource", "context"), ALLOWED)
def test_it_may(
    policies: dict[str, list[dict[str, Any]]],
    outputs: dict[str, str],
    who: str,
    action: str,
    resource: str,
    context: dict[str, str],
) -> None:
    assert decision(policies[who], action, resource.format(**outputs), context) == "Allow"


@pytest.mark.parametrize(("who", "action", "resource", "context"), DENIED)
def test_it_may_not(
    policies: dict[str, list[dict[str, Any]]],
    outputs: dict[str, str],
    who: str,
    action: str,
    resource: str,
    context: dict[str, str],
) -> None:
    assert decision(policies[who], action, resource.format(**outputs), context) != "Allow"


def test_each_permission_that_is_given_is_asked_for_and_none_is_a_pattern(
    policies: dict[str, list[dict[str, Any]]],
) -> None:
    asked = {(case.values[0], case.values[1]) for case in ALLOWED}
    for who, documents in policies.items():
        for statement in (one for document in documents for one in document["Statement"]):
            assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            assert not [action for action in actions if "*" in action]
            if statement["Resource"] == "*":
                assert actions in (["ecr:GetAuthorizationToken"], ["ecs:ListTasks"], ["ecs:DescribeTaskDefinition"])
            given = {(who, action) for action in actions} - {("TaskRole", "logs:DescribeLogStreams")}
            assert given <= asked


def test_the_managed_policy_is_as_short_as_iam_takes_it(policies: dict[str, list[dict[str, Any]]]) -> None:
    # IAM user guide, "IAM and AWS STS quotas": 6,144 characters without white space
    assert len(json.dumps(policies["StartTasksPolicy"][0], separators=(",", ":"))) <= 6144


@pytest.mark.parametrize("who", ["ExecutionRole", "TaskRole"])
def test_only_tasks_of_ecs_get_the_roles(server: Server, outputs: dict[str, str], who: str) -> None:
    role = server.client("iam").get_role(RoleName=outputs[who].rpartition("/")[2])["Role"]
    statements = role["AssumeRolePolicyDocument"]["Statement"]
    assert [(one["Effect"], one["Principal"], one["Action"]) for one in statements] == [
        ("Allow", {"Service": "ecs-tasks.amazonaws.com"}, "sts:AssumeRole")
    ]


# what runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def definitions(server: Server) -> list[dict[str, Any]]:
    """The task definitions, the smallest first, found by the settings that the local AWS wrote."""
    ecs = server.client("ecs")
    families = [os.environ[f"BUSCO_ECS_TASK_DEFINITION_{size.upper()}"] for size in SIZES]
    return [ecs.describe_task_definition(taskDefinition=family)["taskDefinition"] for family in families]


@pytest.fixture(params=SIZES)
def task(request: pytest.FixtureRequest, definitions: list[dict[str, Any]]) -> dict[str, Any]:
    return definitions[SIZES.index(request.param)]


@pytest.fixture
def container(task: dict[str, Any]) -> dict[str, Any]:
    (only,) = task["containerDefinitions"]
    found: dict[str, Any] = only
    return found


def test_the_container_is_nobody_special(container: dict[str, Any]) -> None:
    assert container["user"].partition(":")[0] not in ("", "0", "root")
    assert container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in container


def test_only_the_tasks_own_disk_is_writable(task: dict[str, Any], container: dict[str, Any]) -> None:
    assert container["readonlyRootFilesystem"] is True
    assert container["mountPoints"] == [{"sourceVolume": "scratch", "containerPath": "/tmp", "readOnly": False}]
    assert task["volumes"] == [{"name": "scratch"}]


def test_the_environment_is_settings_by_name_and_nothing_secret(server: Server, container: dict[str, Any]) -> None:
    assert "secrets" not in container
    assert "environmentFiles" not in container
    given = {one["name"]: one["value"] for one in container["environment"]}
    assert set(given) <= {f"BUSCO_{name.upper()}" for name in Settings.model_fields}
    assert given.pop("BUSCO_PLATFORM") == "aws"
    shown = {name: os.environ.get(name, server.settings.glue_prefix) for name in given}
    assert given == shown
    assert {"BUSCO_LAKE_BUCKET", "BUSCO_LANDING_BUCKET", "BUSCO_REGION", "BUSCO_GLUE_PREFIX"} <= set(given)


def test_a_task_ends_in_order(container: dict[str, Any]) -> None:
    assert container["linuxParameters"]["initProcessEnabled"] is True
    assert 30 <= container["stopTimeout"] <= 120


def test_the_image_gives_the_command(server: Server, container: dict[str, Any]) -> None:
    assert container["image"] == server.settings.dbt_image
    assert container["name"] == server.settings.ecs_container
    assert "entryPoint" not in container
    assert "command" not in container


def test_output_goes_to_the_log_group_and_never_holds_a_container_up(server: Server, container: dict[str, Any]) -> None:
    assert container["logConfiguration"]["logDriver"] == "awslogs"
    options = container["logConfiguration"]["options"]
    assert options["awslogs-group"] == os.environ["BUSCO_ECS_LOG_GROUP"]
    assert options["awslogs-stream-prefix"] == server.settings.ecs_log_prefix
    assert options["awslogs-region"] == REGION
    assert options["mode"] == "non-blocking"


def test_a_task_has_the_roles_and_runs_on_fargate(
    server: Server, task: dict[str, Any], outputs: dict[str, str]
) -> None:
    assert (task["executionRoleArn"], task["taskRoleArn"]) == (outputs["ExecutionRole"], outputs["TaskRole"])
    assert (task["requiresCompatibilities"], task["networkMode"]) == (["FARGATE"], "awsvpc")
    assert task["runtimePlatform"] == {
        "operatingSystemFamily": "LINUX",
        "cpuArchitecture": server.settings.ecs_cpu_architecture,
    }


def test_each_size_is_larger_than_the_one_before(definitions: list[dict[str, Any]]) -> None:
    sizes = [(int(one["cpu"]), int(one["memory"]), one["ephemeralStorage"]["sizeInGiB"]) for one in definitions]
    assert sizes == [(1024, 4096, 21), (2048, 8192, 50), (4096, 16384, 100)]


@pytest.mark.parametrize("repository", ["busco-dbt", "busco-airflow"])
def test_images_are_scanned_and_keep_their_tags(server: Server, repository: str) -> None:
    ecr = server.client("ecr")
    (found,) = ecr.describe_repositories(repositoryNames=[repository])["repositories"]
    assert found["imageTagMutability"] == "IMMUTABLE"
    assert found["imageScanningConfiguration"] == {"scanOnPush": True}
    rules = json.loads(ecr.get_lifecycle_policy(repositoryName=repository)["lifecyclePolicyText"])["rules"]
    assert [rule["selection"]["countNumber"] for rule in rules] == [14, 100]


def test_output_is_kept_for_a_time(server: Server) -> None:
    groups = server.client("logs").describe_log_groups()["logGroups"]
    assert {one["logGroupName"]: one["retentionInDays"] for one in groups} == {os.environ["BUSCO_ECS_LOG_GROUP"]: 90}


def test_the_cluster_has_spot_and_alerts_have_a_topic(server: Server) -> None:
    (cluster,) = server.client("ecs").describe_clusters(clusters=[os.environ["BUSCO_ECS_CLUSTER"]])["clusters"]
    assert set(cluster["capacityProviders"]) == {"FARGATE", "FARGATE_SPOT"}
    assert server.client("sns").get_topic_attributes(TopicArn=os.environ["BUSCO_ALERTS_TOPIC"])["Attributes"]
    assert ("ECS cluster", "busco") in aws.status(server.settings)


def test_another_image_is_the_families_next_revision_and_nothing_else_is_deployed_again(server: Server) -> None:
    ecs = server.client("ecs")
    said: list[str] = []
    other = server.settings.model_copy(update={"dbt_image": "busco-dbt:other"})
    aws.up(other, said.append)
    aws.up(other, said.append)
    assert [line.partition(" in ")[0] for line in said] == ["deployed deploy/aws/lake.yaml and deploy/aws/ecs.yaml"]
    now = ecs.describe_task_definition(taskDefinition=get_settings().ecs_task_definition_large)["taskDefinition"]
    assert (now["revision"], now["containerDefinitions"][0]["image"]) == (2, "busco-dbt:other")
    assert now["ephemeralStorage"] == {"sizeInGiB": 100}
    aws.up(server.settings, quiet)
