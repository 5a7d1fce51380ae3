"""`ecs.yaml` and `events.yaml` as the local AWS deploys them: what each role may do, and the other resources."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from own_aws import Server, quiet
from policies import ACCOUNT, REGION, decision, managed, resource_decision

from busco.embedded import aws, stacks
from busco.settings import SIZES, Settings, get_settings
from tests.platforms import ROOT

HERE = f"{REGION}:{ACCOUNT}"
LAKE, LANDING, LOGS = (f"arn:aws:s3:::busco-{kind}-{ACCOUNT}-{REGION}" for kind in ("lake", "landing", "logs"))
CLUSTER, OTHER_CLUSTER = f"arn:aws:ecs:{HERE}:cluster/busco", f"arn:aws:ecs:{HERE}:cluster/other"
GROUP, OTHER_GROUP = (f"arn:aws:logs:{HERE}:log-group:/busco/{name}" for name in ("dbt", "dbt-other"))
STREAM = ":log-stream:dbt/dbt/0f3c"
GLUE = f"arn:aws:glue:{HERE}"
ECR = f"arn:aws:ecr:{HERE}:repository"
ALERTS = f"arn:aws:sns:{HERE}:busco-alerts"
ROLE = f"arn:aws:iam::{ACCOUNT}:role"

# (stack output of a role or policy, action, resource, the request's context); {Names} stand for outputs of the stack
Case = tuple[str, str, str, dict[str, str]]


def definition(family: str, revision: int = 1, account: str = ACCOUNT) -> str:
    return f"arn:aws:ecs:{REGION}:{account}:task-definition/{family}:{revision}"


def cases(who: str, *requests: tuple[str, str] | tuple[str, str, dict[str, str]]) -> list[Any]:
    """Returns a test case for each request; its id consists of the role, the action, the resource and the context."""
    made = []
    for action, resource, *more in requests:
        context = more[0] if more else {}
        conditions = " ".join(f"{key}={value}" for key, value in context.items())
        made.append(pytest.param(who, action, resource, context, id=f"{who} {action} {resource} {conditions}".strip()))
    return made


ROLES = ("RunnerRoleArn", "IngestRoleArn", "PublisherRoleArn", "ExecutionRole", "StartTasksPolicy", "EventsPolicy")
MANAGED = ("StartTasksPolicy", "EventsPolicy", "HostPolicy")
QUEUE, DEAD_LETTERS = (f"arn:aws:sqs:{HERE}:busco-events{name}" for name in ("", "-dead-letters"))
ORDER, OUTCOME = (f"{LAKE}/_lake/ingest/20261201T101500-0f3c/{name}.json" for name in ("order", "outcome"))
IN = {"ecs:cluster": CLUSTER}
PASSED = {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
RUN = f"{LAKE}/_lake/env/prod/runs/r/1"
QUARANTINED = f"{LAKE}/_lake/quarantine/olist.orders/orders.csv/1a.parquet"
DELIVERY = f"{LAKE}/_lake/deliveries/olist.orders/orders.csv/1.json"
BRONZE, GOLD = f"{LAKE}/bronze/olist/orders/1a.parquet", f"{LAKE}/gold/fct_orders/prod-1a/a.parquet"
METADATA = f"{LAKE}/_lake/env/prod/iceberg/gold.fct_orders/metadata"
TABLES = ("catalog", "database/busco_gold", "table/busco_gold/fct_orders")
# Objects that make a release live and visible: only the publisher writes them.
PUBLISHING = [
    f"{LAKE}/_lake/env/prod/current.json",
    f"{LAKE}/_lake/env/dev_me/current.json",
    f"{LAKE}/_lake/env/prod/releases/r20261124T101500-0f3c.json",
    f"{LAKE}/_lake/env/prod/releases/iceberg/a",
    f"{LAKE}/docs/index.html",
    f"{LAKE}/docs/projects/bakery.html",
]
# Records of what a run is to do and of how its runners ended: only Airflow writes them.
STEERING = [f"{RUN}/{name}" for name in ("pin.json", "orders/shared/1.json", "ended-1.json", "followers/a.json")]
# Records that a runner writes about its work.
WORKING = [
    *(f"{RUN}/{name}" for name in ("runner-1.json", "heartbeat-1.json", "tables/gold.a.json", "results/a/1.json")),
    f"{LAKE}/_lake/env/prod/selections/0f3c.json",
    f"{METADATA}/00001-1a.metadata.json",
    f"{METADATA}/1a.avro",
    f"{LAKE}/docs/r/1/manifest.json",
    f"{LAKE}/docs/r/1/index.html",
]
# Records and metadata of versions.
RECORDED = [
    f"{METADATA}/00001-1a.metadata.json",
    f"{METADATA}/1a.avro",
    f"{LAKE}/_lake/env/prod/manifests/gold.fct_orders/1a.avro",
    f"{LAKE}/_lake/env/prod/metadata/gold.fct_orders/1a/metadata/00001-1a.metadata.json",
    f"{LAKE}/_lake/env/prod/pages/bronze.olist_orders/1a.json",
    f"{LAKE}/_lake/env/prod/versions/gold.fct_orders/1a.json",
]

ALLOWED = [
    *cases(
        "HostPolicy",
        ("ecr:GetAuthorizationToken", "*"),
        *(
            (f"ecr:{action}", f"{ECR}/busco-{name}")
            for action in ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
            for name in ("airflow", "nginx", "certbot", "redis", "postgres")
        ),
        ("secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:{HERE}:secret:busco/config-Ab12Cd"),
        ("ssm:GetParameter", f"arn:aws:ssm:{HERE}:parameter/busco/config"),
        ("ssm:GetParameters", f"arn:aws:ssm:{HERE}:parameter/busco/config"),
        ("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "Busco"}),
        *(
            (f"logs:{action}", f"arn:aws:logs:{HERE}:log-group:/busco/host:log-stream:busco-events-1")
            for action in ("CreateLogStream", "PutLogEvents")
        ),
        *(
            (action, "*")
            for action in (
                "ssm:UpdateInstanceInformation",
                "ssmmessages:CreateControlChannel",
                "ssmmessages:CreateDataChannel",
                "ssmmessages:OpenControlChannel",
                "ssmmessages:OpenDataChannel",
            )
        ),
    ),
    *cases(
        "RunnerRoleArn",
        *[("s3:GetObject", key) for key in (*PUBLISHING[:3], *STEERING, DELIVERY, BRONZE, GOLD, f"{METADATA}/1a.avro")],
        *[("s3:PutObject", key) for key in (*WORKING, GOLD, f"{LAKE}/silver/orders/prod-1a/a.parquet")],
        ("s3:PutObject", f"{LAKE}/_lake/env/prod/doctor.json"),
        ("s3:GetObject", f"{LAKE}/docs/r/1/site.json"),
        ("s3:AbortMultipartUpload", GOLD),
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/env/prod/runs/r/"}),
        # S3 checks this permission before it reports that an object doesn't exist
        ("s3:ListBucket", LAKE),
        ("glue:GetDatabase", f"{GLUE}:database/busco_bronze"),
        ("glue:GetTables", f"{GLUE}:table/busco_silver/orders"),
    ),
    *cases(
        "IngestRoleArn",
        ("s3:GetObject", f"{LANDING}/olist/orders/orders.csv"),
        ("s3:GetObjectVersion", f"{LANDING}/olist/orders/orders.csv"),
        ("s3:ListBucket", LANDING, {"s3:prefix": "olist/"}),
        ("s3:ListBucketVersions", LANDING, {"s3:prefix": "olist/"}),
        ("s3:PutObject", f"{LANDING}/_reports/olist/orders/orders.csv.json"),
        *[("s3:GetObject", key) for key in (ORDER, OUTCOME)],
        ("s3:PutObject", OUTCOME),
        *[
            (action, key)
            for key in (DELIVERY, BRONZE, QUARANTINED)
            for action in ("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload")
        ],
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/deliveries/olist.orders/orders.csv/"}),
        ("s3:ListBucket", LAKE),
    ),
    *cases(
        "PublisherRoleArn",
        *[("s3:GetObject", key) for key in (*PUBLISHING, *STEERING, *WORKING, DELIVERY)],
        *[("s3:PutObject", key) for key in PUBLISHING],
        # what was overwritten or deleted is restored from an earlier version
        *[
            (action, key)
            for key in (BRONZE, GOLD)
            for action in ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:AbortMultipartUpload")
        ],
        *[
            (action, key)
            for key in (DELIVERY, *RECORDED)
            for action in ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject")
        ],
        ("s3:ListBucketVersions", LAKE, {"s3:prefix": "gold/fct_orders/prod-1a/"}),
        ("s3:ListBucketVersions", LAKE, {"s3:prefix": "_lake/env/prod/versions/gold.fct_orders/"}),
        ("s3:ListBucketVersions", LAKE, {"s3:prefix": "_lake/deliveries/olist.orders/"}),
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/deliveries/olist.orders/"}),
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/env/prod/runs/r/"}),
        ("s3:ListBucket", LAKE),
        *[
            (f"glue:{verb}Table", f"{GLUE}:{resource}")
            for verb in ("Get", "Create", "Update", "Delete")
            for resource in TABLES
        ],
        ("glue:GetTables", f"{GLUE}:table/busco_bronze/olist_orders"),
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
        *[("iam:GetRole", role) for role in ("{ExecutionRole}", "{RunnerRoleArn}", "{IngestRoleArn}")],
        ("ecs:TagResource", f"arn:aws:ecs:{HERE}:task/busco/0f3c", {"ecs:CreateAction": "RunTask"}),
        *[("iam:PassRole", role, PASSED) for role in ("{ExecutionRole}", "{RunnerRoleArn}", "{IngestRoleArn}")],
        ("sts:AssumeRole", "{PublisherRoleArn}"),
        ("logs:GetLogEvents", GROUP + STREAM),
        ("logs:FilterLogEvents", f"{GROUP}:*"),
        ("logs:DescribeLogStreams", f"{GROUP}:*"),
        ("sns:Publish", ALERTS),
        *[("s3:GetObject", key) for key in (*PUBLISHING, *STEERING, *WORKING, DELIVERY)],
        *[("s3:PutObject", key) for key in (*STEERING, ORDER)],
        *[("s3:GetObject", key) for key in (ORDER, OUTCOME)],
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/ingest/"}),
        ("s3:PutObject", f"{LAKE}/_lake/env/prod/doctor.json"),
        ("s3:GetObject", f"{LOGS}/airflow/dag_id=lakehouse/attempt=1.log"),
        ("s3:PutObject", f"{LOGS}/airflow/dag_id=lakehouse/attempt=1.log"),
        ("s3:ListBucket", LOGS, {"s3:prefix": "airflow/dag_id=lakehouse/"}),
        # S3 checks this permission before it reports that an object doesn't exist
        ("s3:ListBucket", LOGS),
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/env/prod/runs/r/"}),
        ("s3:ListBucket", LAKE, {"s3:prefix": "_lake/deliveries/olist.orders/"}),
        ("s3:ListBucket", LAKE),
        *[("glue:GetTable", f"{GLUE}:{resource}") for resource in TABLES],
        ("glue:GetTables", f"{GLUE}:table/busco_bronze/olist_orders"),
    ),
    *cases(
        "EventsPolicy",
        *[
            (f"sqs:{verb}", queue)
            for queue in (QUEUE, DEAD_LETTERS)
            for verb in (
                "ChangeMessageVisibility",
                "DeleteMessage",
                "GetQueueAttributes",
                "ReceiveMessage",
                "SendMessage",
            )
        ],
        ("sqs:GetQueueUrl", QUEUE),
        ("s3:GetBucketNotification", LANDING),
    ),
]
FORBIDDEN_TO_ALL = [
    ("s3:DeleteBucket", LAKE),
    ("s3:PutBucketPolicy", LAKE),
    ("s3:PutBucketVersioning", LAKE),
    ("s3:PutLifecycleConfiguration", LAKE),
    *[
        (action, key)
        for key in (*PUBLISHING, *STEERING, *WORKING, DELIVERY, BRONZE, GOLD, QUARANTINED)
        for action in ("s3:DeleteObject", "s3:DeleteObjectVersion")
    ],
    ("s3:DeleteObjectVersion", f"{LANDING}/olist/orders/orders.csv"),
    ("s3:PutObject", f"{LANDING}/olist/orders/orders.csv"),
    *[("s3:PutBucketNotification", bucket) for bucket in (LANDING, LAKE)],
    ("s3:GetBucketNotification", LAKE),
    ("s3:PutObject", f"{LAKE}/elsewhere/a"),
    ("s3:PutObject", f"{LAKE}/silver"),
    ("s3:PutObject", f"{LAKE}/_lake/elsewhere"),
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
    *[
        (f"sqs:{verb}", queue)
        for queue in (QUEUE, DEAD_LETTERS)
        for verb in ("AddPermission", "DeleteQueue", "PurgeQueue", "SetQueueAttributes", "StartMessageMoveTask")
    ],
    ("sqs:ReceiveMessage", f"{QUEUE}-other"),
    ("sqs:SendMessage", f"arn:aws:sqs:{HERE}:other"),
    ("sqs:CreateQueue", QUEUE),
    ("ecr:PutImage", f"{ECR}/busco-dbt"),
    ("ecr:BatchDeleteImage", f"{ECR}/busco-dbt"),
    ("ecr:BatchGetImage", f"{ECR}/busco-airflow"),
    ("sns:Publish", f"arn:aws:sns:{HERE}:other"),
    ("sns:Subscribe", ALERTS),
    ("sns:SetTopicAttributes", ALERTS),
    ("sns:DeleteTopic", ALERTS),
    ("iam:PassRole", f"{ROLE}/admin", PASSED),
    ("iam:PassRole", "{PublisherRoleArn}", PASSED),
    ("iam:PassRole", "{AirflowRoleArn}", PASSED),
    ("iam:PassRole", "{RunnerRoleArn}", {"iam:PassedToService": "lambda.amazonaws.com"}),
    ("iam:PassRole", "{RunnerRoleArn}"),
    ("iam:GetRole", f"{ROLE}/admin"),
    ("iam:AttachRolePolicy", "{RunnerRoleArn}"),
    ("iam:PutRolePolicy", "{RunnerRoleArn}"),
    ("iam:UpdateAssumeRolePolicy", "{PublisherRoleArn}"),
    ("iam:CreateAccessKey", f"arn:aws:iam::{ACCOUNT}:user/anybody"),
    ("iam:CreatePolicyVersion", "{StartTasksPolicy}"),
    ("sts:AssumeRole", "{RunnerRoleArn}"),
    ("sts:AssumeRole", "{IngestRoleArn}"),
    ("sts:AssumeRole", "{AirflowRoleArn}"),
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
# Actions that only Airflow may take, and only under its own role.
STARTING = [
    *[("iam:PassRole", role, PASSED) for role in ("{ExecutionRole}", "{RunnerRoleArn}", "{IngestRoleArn}")],
    ("sts:AssumeRole", "{PublisherRoleArn}"),
    ("ecs:RunTask", definition("busco-dbt-small"), IN),
    ("ecs:StopTask", f"arn:aws:ecs:{HERE}:task/busco/0f3c", IN),
    ("logs:GetLogEvents", GROUP + STREAM),
    ("sns:Publish", ALERTS),
]
CHANGING_GLUE = [(f"glue:{verb}Table", f"{GLUE}:{one}") for verb in ("Create", "Update", "Delete") for one in TABLES]
PULLING_AND_LOGGING = [("ecr:BatchGetImage", f"{ECR}/busco-dbt"), ("logs:PutLogEvents", GROUP + STREAM)]
QUARANTINE = [(action, QUARANTINED) for action in ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject")]
QUARANTINE += [("s3:ListBucket", LAKE, {"s3:prefix": "_lake/quarantine/"})]
LANDED = [("s3:GetObject", f"{LANDING}/olist/orders/orders.csv"), ("s3:ListBucket", LANDING)]
# Older versions of objects: only the publisher reads them.
OLDER = [("s3:GetObjectVersion", key) for key in (DELIVERY, BRONZE, GOLD, *RECORDED)]
OLDER += [("s3:ListBucketVersions", LAKE, {"s3:prefix": prefix}) for prefix in ("gold/", "_lake/env/prod/versions/")]
OLDER += [("s3:ListBucketVersions", LAKE)]
DENIED = [
    *[case for who in ROLES for case in cases(who, *FORBIDDEN_TO_ALL)],
    *cases("RunnerRoleArn", *STARTING, *CHANGING_GLUE, *PULLING_AND_LOGGING, *QUARANTINE, *LANDED),
    *cases("RunnerRoleArn", *[("s3:PutObject", key) for key in (*PUBLISHING, *STEERING, DELIVERY, BRONZE)]),
    # a star in a pattern matches slashes too
    *cases(
        "RunnerRoleArn",
        ("s3:PutObject", f"{RUN}/orders/tables/1.json"),
        ("s3:PutObject", f"{RUN}/followers/results/a.json"),
        ("s3:PutObject", f"{LAKE}/_lake/env/prod/iceberg/current.json"),
        ("s3:PutObject", f"{LAKE}/docs/projects/a/b"),
    ),
    *cases("IngestRoleArn", *STARTING, *CHANGING_GLUE, *PULLING_AND_LOGGING),
    *cases("IngestRoleArn", *[("s3:PutObject", key) for key in (*PUBLISHING, *STEERING, *WORKING, GOLD)]),
    *cases("IngestRoleArn", ("s3:GetObject", GOLD), ("s3:GetObject", PUBLISHING[0]), ("s3:PutObject", ORDER)),
    *cases("PublisherRoleArn", *STARTING, *PULLING_AND_LOGGING, *QUARANTINE, *LANDED),
    *cases("PublisherRoleArn", *[("s3:PutObject", key) for key in (*STEERING, *WORKING) if key not in RECORDED]),
    *[case for who in ROLES if who != "PublisherRoleArn" for case in cases(who, *OLDER)],
    *cases("ExecutionRole", *STARTING, *CHANGING_GLUE, *QUARANTINE, *LANDED),
    *cases("ExecutionRole", ("s3:GetObject", GOLD), ("s3:ListBucket", LAKE), ("glue:GetTable", f"{GLUE}:{TABLES[2]}")),
    *cases("StartTasksPolicy", *CHANGING_GLUE, *PULLING_AND_LOGGING, *QUARANTINE, *LANDED),
    *cases("StartTasksPolicy", *[("s3:PutObject", key) for key in (*PUBLISHING, *WORKING, DELIVERY, BRONZE, GOLD)]),
    *cases("StartTasksPolicy", ("s3:GetObject", GOLD), ("s3:GetObject", BRONZE), ("s3:PutObject", OUTCOME)),
    *cases("EventsPolicy", *STARTING, *CHANGING_GLUE, *PULLING_AND_LOGGING, *QUARANTINE, *LANDED),
    *cases("EventsPolicy", *[(action, DELIVERY) for action in ("s3:GetObject", "s3:PutObject")]),
    # only the events service works with the queues, and sees what the landing bucket notifies
    *[
        case
        for who in ROLES
        if who != "EventsPolicy"
        for case in cases(
            who,
            ("sqs:ReceiveMessage", QUEUE),
            ("sqs:SendMessage", DEAD_LETTERS),
            ("s3:GetBucketNotification", LANDING),
        )
    ],
]


@pytest.fixture(scope="module")
def outputs(server: Server) -> dict[str, str]:
    cloudformation = server.client("cloudformation")
    described = [
        cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        for name in (stacks.EVENTS, stacks.ECS, stacks.AIRFLOW)
    ]
    return {output["OutputKey"]: output["OutputValue"] for one in described for output in one["Outputs"]}


@pytest.fixture(scope="module")
def policies(server: Server, outputs: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """All policies of each role, and the managed policies of Airflow's role, as they were deployed."""
    iam = server.client("iam")
    found: dict[str, list[dict[str, Any]]] = {}
    for who in [one for one in ROLES if one not in MANAGED]:
        role = outputs[who].rpartition("/")[2]
        names = iam.list_role_policies(RoleName=role)["PolicyNames"]
        assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
        found[who] = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    airflow = outputs["AirflowRoleArn"].rpartition("/")[2]
    assert iam.list_role_policies(RoleName=airflow)["PolicyNames"] == []
    attached = iam.list_attached_role_policies(RoleName=airflow)["AttachedPolicies"]
    assert {one["PolicyArn"] for one in attached} == {outputs[one] for one in MANAGED}
    return {**found, **{one: [managed(iam, outputs[one])] for one in MANAGED}}


@pytest.mark.parametrize(("who", "action", "resource", "context"), ALLOWED)
def test_a_role_is_allowed_what_it_needs(
    policies: dict[str, list[dict[str, Any]]],
    outputs: dict[str, str],
    who: str,
    action: str,
    resource: str,
    context: dict[str, str],
) -> None:
    assert decision(policies[who], action, resource.format(**outputs), context) == "Allow"


@pytest.mark.parametrize(("who", "action", "resource", "context"), DENIED)
def test_a_role_is_denied_everything_else(
    policies: dict[str, list[dict[str, Any]]],
    outputs: dict[str, str],
    who: str,
    action: str,
    resource: str,
    context: dict[str, str],
) -> None:
    assert decision(policies[who], action, resource.format(**outputs), context) != "Allow"


# what supports no resources (Service Authorization Reference)
SESSIONS = [
    "ssm:UpdateInstanceInformation",
    *(f"ssmmessages:{name}" for name in ("CreateControlChannel", "CreateDataChannel")),
    *(f"ssmmessages:{name}" for name in ("OpenControlChannel", "OpenDataChannel")),
]
WITHOUT_RESOURCES = (
    ["ecr:GetAuthorizationToken"], ["ecs:ListTasks"], ["ecs:DescribeTaskDefinition"], ["cloudwatch:PutMetricData"],
    SESSIONS,
)  # fmt: skip


def test_every_granted_permission_is_tested_and_none_is_a_pattern(
    policies: dict[str, list[dict[str, Any]]],
) -> None:
    tested = {(case.values[0], case.values[1]) for case in ALLOWED}
    for who, documents in policies.items():
        for statement in (one for document in documents for one in document["Statement"] if one["Effect"] == "Allow"):
            assert set(statement) <= {"Sid", "Effect", "Action", "Resource", "Condition"}
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            assert not [action for action in actions if "*" in action]
            if statement["Resource"] == "*":
                assert actions in WITHOUT_RESOURCES
            assert {(who, action) for action in actions} <= tested


@pytest.mark.parametrize("name", MANAGED)
def test_a_managed_policy_is_within_iams_size_limit(policies: dict[str, list[dict[str, Any]]], name: str) -> None:
    # IAM user guide, "IAM and AWS STS quotas": 6,144 characters without white space
    assert len(json.dumps(policies[name][0], separators=(",", ":"))) <= 6144


@pytest.fixture
def trust(server: Server, outputs: dict[str, str], who: str) -> list[dict[str, Any]]:
    role = server.client("iam").get_role(RoleName=outputs[who].rpartition("/")[2])["Role"]
    statements: list[dict[str, Any]] = role["AssumeRolePolicyDocument"]["Statement"]
    return statements


@pytest.mark.parametrize("who", ["ExecutionRole", "RunnerRoleArn", "IngestRoleArn"])
def test_only_ecs_tasks_of_this_account_can_assume_the_roles(trust: list[dict[str, Any]]) -> None:
    assert trust == [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ecs-tasks.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {
                "StringEquals": {"aws:SourceAccount": ACCOUNT},
                "ArnLike": {"aws:SourceArn": f"arn:aws:ecs:{HERE}:*"},
            },
        }
    ]


@pytest.mark.parametrize("who", ["PublisherRoleArn"])
def test_only_airflows_role_can_assume_the_publishers(trust: list[dict[str, Any]], outputs: dict[str, str]) -> None:
    assert trust == [{"Effect": "Allow", "Principal": {"AWS": outputs["AirflowRoleArn"]}, "Action": "sts:AssumeRole"}]


@pytest.mark.parametrize("who", ["AirflowRoleArn"])
def test_only_ec2_instances_of_this_account_can_assume_airflows_role(trust: list[dict[str, Any]]) -> None:
    assert trust == [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEqualsIfExists": {"aws:SourceAccount": ACCOUNT}},
        }
    ]


# the queue's own policy ------------------------------------------------------------------------------------------

# who may send messages to the queue: the service, the ARN for which it sends them, and one for which it may not
SENDERS = {
    "s3.amazonaws.com": (f"arn:aws:s3:::trial-landing-{ACCOUNT}-{REGION}", f"{LANDING}-other"),
    "sns.amazonaws.com": (f"arn:aws:sns:{HERE}:arrivals", f"arn:aws:sns:{HERE}:arrivals-other"),
    "events.amazonaws.com": (f"arn:aws:events:{HERE}:rule/arrivals", f"arn:aws:events:{HERE}:rule/other"),
}
PARAMETERS = {"sns.amazonaws.com": "TopicArn", "events.amazonaws.com": "RuleArn"}


@pytest.fixture(scope="module", params=[(), *((one,) for one in PARAMETERS), tuple(PARAMETERS)], ids="+".join)
def accepted(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[set[str], dict[str, Any]]]:
    """The services that the queue of a further stack is to accept messages from, and the queue's policy."""
    name, path = "trial-events", stacks.TEMPLATES[stacks.EVENTS]
    parameters = {"Name": "trial", **{PARAMETERS[service]: SENDERS[service][0] for service in request.param}}
    cloudformation, sqs = server.client("cloudformation"), server.client("sqs")
    with mock.patch.dict(stacks.TEMPLATES, {name: path}):
        made = stacks.deploy(cloudformation, name, (ROOT / path).read_text(), parameters)
    found = sqs.get_queue_attributes(QueueUrl=made["EventsQueue"], AttributeNames=["Policy"])["Attributes"]["Policy"]
    yield {"s3.amazonaws.com", *request.param}, json.loads(found)
    cloudformation.delete_stack(StackName=name)


@pytest.mark.parametrize("service", SENDERS)
def test_the_queue_accepts_messages_only_for_the_bucket_the_topic_and_the_rule_that_it_names(
    accepted: tuple[set[str], dict[str, Any]], service: str
) -> None:
    services, policy = accepted
    ours, others = SENDERS[service]
    queue = f"arn:aws:sqs:{HERE}:trial-events"

    def sent(source: str, by: str = service, action: str = "sqs:SendMessage") -> str:
        context = {"aws:SourceAccount": ACCOUNT, "aws:SourceArn": source}
        return resource_decision(policy, action, queue, context, service=by)

    assert sent(ours) == ("Allow" if service in services else "ImplicitDeny")
    assert sent(others) == "ImplicitDeny"
    assert sent("") == "ImplicitDeny"
    # a service can't use what another one may
    assert [sent(ours, by=one) for one in SENDERS if one != service] == ["ImplicitDeny"] * 2
    assert sent(ours, action="sqs:ReceiveMessage") == "ImplicitDeny"


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ("TopicArn", SENDERS["sns.amazonaws.com"][0], f"arn:aws:sns:{HERE}:*"),
        ("TopicArn", "", f"arn:aws:events:{HERE}:rule/arrivals"),
        ("RuleArn", SENDERS["events.amazonaws.com"][0], f"arn:aws:events:{HERE}:rule/*"),
        ("RuleArn", f"arn:aws:events:{HERE}:rule/own-bus/arrivals", f"arn:aws:sns:{HERE}:arrivals"),
    ],
)
def test_the_arn_of_a_topic_or_rule_is_no_pattern_and_not_that_of_something_else(
    parameter: str, good: str, bad: str
) -> None:
    template = (ROOT / stacks.TEMPLATES[stacks.EVENTS]).read_text()
    found = re.search(rf"^  {parameter}:\n(?:    .*\n)*?    AllowedPattern: \"(.*)\"$", template, re.MULTILINE)
    assert found
    pattern = found[1].replace("\\\\", "\\")
    assert re.fullmatch(pattern, good)
    assert not re.fullmatch(pattern, bad)


def test_messages_are_encrypted_with_sqs_s_own_key_which_every_sender_can_use(
    server: Server, outputs: dict[str, str]
) -> None:
    for url in (outputs["EventsQueue"], outputs["DeadLetters"]):
        found = server.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert (found["SqsManagedSseEnabled"], found.get("KmsMasterKeyId")) == ("true", None)


# the other resources ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def definitions(server: Server) -> list[dict[str, Any]]:
    """The task definitions, the smallest first, as named by the settings that the local AWS wrote."""
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


def test_the_container_has_no_root_user_and_no_capabilities(container: dict[str, Any]) -> None:
    assert container["user"].partition(":")[0] not in ("", "0", "root")
    assert container["linuxParameters"]["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in container


def test_only_the_tasks_own_disk_is_writable(task: dict[str, Any], container: dict[str, Any]) -> None:
    assert container["readonlyRootFilesystem"] is True
    assert container["mountPoints"] == [{"sourceVolume": "scratch", "containerPath": "/tmp", "readOnly": False}]
    assert task["volumes"] == [{"name": "scratch"}]


def test_the_environment_contains_only_settings_and_no_secrets(server: Server, container: dict[str, Any]) -> None:
    assert "secrets" not in container
    assert "environmentFiles" not in container
    variables = {one["name"]: one["value"] for one in container["environment"]}
    assert set(variables) <= {f"BUSCO_{name.upper()}" for name in Settings.model_fields}
    assert variables.pop("BUSCO_PLATFORM") == "aws"
    shown = {name: os.environ.get(name, server.settings.glue_prefix) for name in variables}
    assert variables == shown
    assert {"BUSCO_LAKE_BUCKET", "BUSCO_LANDING_BUCKET", "BUSCO_REGION", "BUSCO_GLUE_PREFIX"} <= set(variables)


def test_a_task_can_shut_down_cleanly(container: dict[str, Any]) -> None:
    assert container["linuxParameters"]["initProcessEnabled"] is True
    assert 30 <= container["stopTimeout"] <= 120


def test_the_command_comes_from_the_image(server: Server, container: dict[str, Any]) -> None:
    assert container["image"] == server.settings.dbt_image
    assert container["name"] == server.settings.ecs_container
    assert "entryPoint" not in container
    assert "command" not in container


def test_output_goes_to_the_log_group_and_never_blocks_a_container(server: Server, container: dict[str, Any]) -> None:
    assert container["logConfiguration"]["logDriver"] == "awslogs"
    options = container["logConfiguration"]["options"]
    assert options["awslogs-group"] == os.environ["BUSCO_ECS_LOG_GROUP"]
    assert options["awslogs-stream-prefix"] == server.settings.ecs_log_prefix
    assert options["awslogs-region"] == REGION
    assert options["mode"] == "non-blocking"


def test_a_task_has_the_roles_and_runs_on_fargate(
    server: Server, task: dict[str, Any], outputs: dict[str, str]
) -> None:
    assert (task["executionRoleArn"], task["taskRoleArn"]) == (outputs["ExecutionRole"], outputs["RunnerRoleArn"])
    assert (task["requiresCompatibilities"], task["networkMode"]) == (["FARGATE"], "awsvpc")
    assert task["runtimePlatform"] == {
        "operatingSystemFamily": "LINUX",
        "cpuArchitecture": server.settings.ecs_cpu_architecture,
    }


def test_each_size_is_larger_than_the_one_before(definitions: list[dict[str, Any]]) -> None:
    sizes = [(int(one["cpu"]), int(one["memory"]), one["ephemeralStorage"]["sizeInGiB"]) for one in definitions]
    assert sizes == [(1024, 4096, 21), (2048, 8192, 50), (4096, 16384, 100)]


@pytest.mark.parametrize("repository", ["busco-dbt", "busco-airflow", "busco-nginx", "busco-certbot"])
def test_images_are_scanned_and_keep_their_tags(server: Server, repository: str) -> None:
    ecr = server.client("ecr")
    (found,) = ecr.describe_repositories(repositoryNames=[repository])["repositories"]
    assert found["imageTagMutability"] == "IMMUTABLE"
    assert found["imageScanningConfiguration"] == {"scanOnPush": True}
    rules = json.loads(ecr.get_lifecycle_policy(repositoryName=repository)["lifecyclePolicyText"])["rules"]
    assert [rule["selection"]["countNumber"] for rule in rules] == [14, 100]


def test_output_is_kept_for_90_days(server: Server) -> None:
    groups = server.client("logs").describe_log_groups()["logGroups"]
    kept = {one["logGroupName"]: one["retentionInDays"] for one in groups}
    # the second one is airflow.yaml's, for the output of the host's containers
    assert kept == {os.environ["BUSCO_ECS_LOG_GROUP"]: 90, "/busco/host": 30}


def test_the_cluster_has_spot_and_alerts_have_a_topic(server: Server) -> None:
    (cluster,) = server.client("ecs").describe_clusters(clusters=[os.environ["BUSCO_ECS_CLUSTER"]])["clusters"]
    assert set(cluster["capacityProviders"]) == {"FARGATE", "FARGATE_SPOT"}
    assert server.client("sns").get_topic_attributes(TopicArn=os.environ["BUSCO_ALERTS_TOPIC"])["Attributes"]
    assert ("ECS cluster", "busco") in aws.status(server.settings)


def test_a_new_image_becomes_the_next_revision_and_is_deployed_only_once(server: Server) -> None:
    ecs = server.client("ecs")
    printed: list[str] = []
    other = server.settings.model_copy(update={"dbt_image": "busco-dbt:other"})
    aws.up(other, printed.append)
    aws.up(other, printed.append)
    assert [line.partition(" in ")[0] for line in printed] == [
        "deployed deploy/aws/events.yaml, deploy/aws/lake.yaml, deploy/aws/ecs.yaml, deploy/aws/airflow.yaml"
    ]
    now = ecs.describe_task_definition(taskDefinition=get_settings().ecs_task_definition_large)["taskDefinition"]
    assert (now["revision"], now["containerDefinitions"][0]["image"]) == (2, "busco-dbt:other")
    assert now["ephemeralStorage"] == {"sizeInGiB": 100}
    aws.up(server.settings, quiet)
