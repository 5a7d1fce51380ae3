"""The policies for the buckets and readers in `deploy/aws/lake.yaml`, and for the key in `ecs.yaml`.

Usually, the local AWS is deployed without the bucket policies, because it doesn't support the condition keys of
conditional writes. Here they are deployed and evaluated, but not enforced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import yaml
from own_aws import ROOT, Server, quiet, started
from policies import ACCOUNT, REGION, decision, managed, resource_decision

from busco.embedded import aws, stacks
from busco.lake import layout
from busco.lake.layout import EnvironmentLayout, RunLayout

HERE = f"{REGION}:{ACCOUNT}"
LAKE, LOGS = "arn:aws:s3:::strict-lake", "arn:aws:s3:::strict-logs"
PROD = EnvironmentLayout("prod")
RUN = RunLayout(PROD.epoch("r", 1))
# The condition under which the protocol writes each record. The platform's own functions build the keys.
ONCE = [
    layout.delivery("olist", "orders", "orders.csv", 1),
    PROD.metadata("gold.fct_orders", "1a"),
    PROD.manifest("gold.fct_orders", "1a"),
    PROD.version("gold.fct_orders", "1a"),
    PROD.page("bronze.orders", "1a"),
    f"{PROD.shared_location('gold.fct_orders')}/metadata/1a.avro",
    PROD.release("r20261124T101500-0f3c"),
    PROD.selection("0f3c"),
    RUN.pin,
    RUN.order("shared", 1),
    RUN.runner(1),
    RUN.ending(1),
]
SWAPPED = [
    PROD.current,
    EnvironmentLayout("dev_me").current,
    PROD.doctor,
    RUN.entry("gold.fct_orders"),
    RUN.follower("models.fct_orders_run"),
    "docs/index.html",
    layout.docs_page("bakery"),
]
# Objects with a single writer or a unique name: they are written without a condition.
FREE = [
    f"{PROD.data('gold.fct_orders', '1a')}/a.parquet",
    layout.bronze_object("olist", "orders", "1a", "2b"),
    layout.quarantine("olist", "orders", "orders.csv", "2b"),
    RUN.heartbeat(1),
    RUN.result("model.busco.fct_orders", 1),
    RUN.log("model.busco.fct_orders", 1),
    "docs/r/1/manifest.json",
    "docs/r/1/index.html",
]
CREATES = {"s3:ObjectCreationOperation": "true"}
NEW, SAME = {**CREATES, "s3:if-none-match": "*"}, {**CREATES, "s3:if-match": '"0f3c"'}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with mock.patch.dict(os.environ):
        running = started(tmp_path_factory.mktemp("state"))
        yield running
        aws.down(running.settings, quiet)


@pytest.fixture(scope="module")
def outputs(server: Server) -> dict[str, str]:
    """The outputs of the lake's stack, which is deployed again under other names, with the parameters used on AWS."""
    parameters = {f"{kind}BucketName": f"strict-{kind.lower()}" for kind in ("Lake", "Landing", "Logs")}
    parameters |= {"GluePrefix": "strict_", "WorkgroupName": "strict"}
    cloudformation, template = server.client("cloudformation"), (ROOT / stacks.TEMPLATES[stacks.LAKE]).read_text()
    # if something fails, deploy looks up the template's path by the stack's name
    with mock.patch.dict(stacks.TEMPLATES, {"strict": stacks.TEMPLATES[stacks.LAKE]}):
        return stacks.deploy(cloudformation, "strict", template, parameters)


@pytest.fixture(scope="module")
def bucket(server: Server, outputs: dict[str, str]) -> dict[str, Any]:
    policy = server.client("s3").get_bucket_policy(Bucket=outputs["LakeBucket"])["Policy"]
    found: dict[str, Any] = json.loads(policy)
    return found


def refuses(bucket: dict[str, Any], key: str, context: dict[str, str], action: str = "s3:PutObject") -> bool:
    return resource_decision(bucket, action, f"{LAKE}/{key}", context) == "Deny"


def test_the_policy_requires_the_conditions_that_the_protocol_uses(bucket: dict[str, Any]) -> None:
    required = {
        one["Sid"]: {name.removeprefix(f"{LAKE}/") for name in one["Resource"]} for one in bucket["Statement"][1:]
    }
    assert required == {
        "RecordsThatAreWrittenOnce": set(layout.WRITTEN_ONCE),
        "RecordsThatAreSwapped": set(layout.SWAPPED),
    }


@pytest.mark.parametrize("key", ONCE)
def test_a_record_that_is_written_once_is_never_overwritten(bucket: dict[str, Any], key: str) -> None:
    assert refuses(bucket, key, CREATES)
    assert refuses(bucket, key, SAME)
    assert not refuses(bucket, key, NEW)


@pytest.mark.parametrize("key", SWAPPED)
def test_a_record_that_is_swapped_is_never_written_unconditionally(bucket: dict[str, Any], key: str) -> None:
    assert refuses(bucket, key, CREATES)
    assert not refuses(bucket, key, SAME)
    assert not refuses(bucket, key, NEW)


@pytest.mark.parametrize("key", FREE)
def test_data_files_and_records_with_a_single_writer_need_no_condition(bucket: dict[str, Any], key: str) -> None:
    assert not refuses(bucket, key, CREATES)


def test_parts_of_multipart_uploads_and_reads_need_no_condition(bucket: dict[str, Any]) -> None:
    for key in (*ONCE, *SWAPPED):
        # CreateMultipartUpload and UploadPart take no condition (S3 user guide, "Enforce conditional writes")
        assert not refuses(bucket, key, {"s3:ObjectCreationOperation": "false"})
        assert not refuses(bucket, key, {}, "s3:GetObject")


def test_each_bucket_refuses_plain_http(server: Server, outputs: dict[str, str]) -> None:
    s3 = server.client("s3")
    for name in ("LakeBucket", "LandingBucket", "LogsBucket"):
        statement = json.loads(s3.get_bucket_policy(Bucket=outputs[name])["Policy"])["Statement"][0]
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "s3:*")
        assert statement["Resource"] == [f"arn:aws:s3:::{outputs[name]}", f"arn:aws:s3:::{outputs[name]}/*"]


# -- readers ----------------------------------------------------------------------------------------------------------

GLUE = f"arn:aws:glue:{HERE}"
DATA = f"{LAKE}/{PROD.data('gold.fct_orders', '1a')}/a.parquet"
WORKGROUP = f"arn:aws:athena:{HERE}:workgroup/strict"
# the widest policy that a reader could have in addition
ADMIN = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
READS: list[tuple[str, str]] = [
    ("athena:StartQueryExecution", WORKGROUP),
    ("athena:GetQueryExecution", WORKGROUP),
    ("athena:GetQueryResults", WORKGROUP),
    ("athena:StopQueryExecution", WORKGROUP),
    ("athena:GetWorkGroup", WORKGROUP),
    ("athena:ListWorkGroups", "*"),
    ("athena:GetDataCatalog", f"arn:aws:athena:{HERE}:datacatalog/AwsDataCatalog"),
    *[
        ("glue:GetTable", f"{GLUE}:{one}")
        for one in ("catalog", "database/strict_gold", "table/strict_gold/fct_orders")
    ],
    ("glue:GetDatabases", f"{GLUE}:catalog"),
    ("glue:GetDatabase", f"{GLUE}:database/default"),
    ("s3:GetObject", DATA),
    ("s3:GetObject", f"{LAKE}/{layout.bronze_object('olist', 'orders', '1a', '2b')}"),
    ("s3:GetObject", f"{LAKE}/{PROD.metadata('gold.fct_orders', '1a')}"),
    ("s3:GetObject", f"{LAKE}/docs/index.html"),
    ("s3:ListBucket", LAKE),
    ("s3:GetBucketLocation", LAKE),
    ("s3:PutObject", f"{LOGS}/athena/a.csv"),
    ("s3:GetObject", f"{LOGS}/athena/a.csv"),
]
WRITES: list[tuple[str, str]] = [
    *[
        (f"glue:{verb}", f"{GLUE}:{one}")
        for verb in (
            "CreateTable",
            "UpdateTable",
            "DeleteTable",
            "BatchDeleteTable",
            "BatchCreatePartition",
            "TagResource",
        )
        for one in ("catalog", "database/strict_gold", "table/strict_gold/fct_orders")
    ],
    ("glue:CreateDatabase", f"{GLUE}:database/mine"),
    ("glue:PutResourcePolicy", f"{GLUE}:catalog"),
    *[
        (f"s3:{verb}", f"{LAKE}/{key}")
        for verb in ("PutObject", "DeleteObject", "DeleteObjectVersion", "PutObjectTagging", "RestoreObject")
        for key in (*ONCE, *SWAPPED, *FREE)
    ],
    ("s3:PutBucketPolicy", LAKE),
    ("s3:PutBucketVersioning", LAKE),
    ("s3:GetObject", f"{LAKE}/{layout.quarantine('olist', 'orders', 'orders.csv', '2b')}"),
    ("s3:GetObjectVersion", f"{LAKE}/{layout.quarantine('olist', 'orders', 'orders.csv', '2b')}"),
]
NOT_GRANTED: list[tuple[str, str]] = [
    ("s3:GetObjectVersion", f"{LAKE}/{PROD.data('gold.fct_orders', '1a')}/a.parquet"),
    ("s3:GetObjectVersion", f"{LAKE}/{PROD.metadata('gold.fct_orders', '1a')}"),
    ("s3:ListBucketVersions", LAKE),
    ("s3:GetObject", f"{LAKE}/{layout.delivery('olist', 'orders', 'orders.csv', 1)}"),
    ("s3:GetObject", f"{LAKE}/{RUN.pin}"),
    ("s3:GetObject", f"{LAKE}/{EnvironmentLayout('dev_me').data('gold.fct_orders', '1a')}/a.parquet"),
    ("s3:GetObject", f"{LOGS}/airflow/a.log"),
    ("s3:GetObject", "arn:aws:s3:::strict-landing/olist/orders/orders.csv"),
    ("athena:StartQueryExecution", f"arn:aws:athena:{HERE}:workgroup/primary"),
    ("glue:GetTable", f"{GLUE}:table/finance/salaries"),
]


@pytest.fixture(scope="module")
def readers(server: Server, outputs: dict[str, str]) -> dict[str, Any]:
    return managed(server.client("iam"), outputs["ReadersPolicy"])


@pytest.mark.parametrize(("action", "resource"), READS)
def test_readers_are_allowed_to_read_and_query(readers: dict[str, Any], action: str, resource: str) -> None:
    assert decision([readers], action, resource, {}) == "Allow"


@pytest.mark.parametrize(("action", "resource"), WRITES)
def test_readers_can_t_write_whatever_other_policies_they_have(
    readers: dict[str, Any], action: str, resource: str
) -> None:
    assert decision([readers, ADMIN], action, resource, {}) == "Deny"


@pytest.mark.parametrize(("action", "resource"), NOT_GRANTED)
def test_readers_are_granted_only_the_live_tables(readers: dict[str, Any], action: str, resource: str) -> None:
    assert decision([readers], action, resource, {}) == "ImplicitDeny"


def test_the_readers_policy_is_within_iams_size_limit(readers: dict[str, Any]) -> None:
    # IAM user guide, "IAM and AWS STS quotas": 6,144 characters without white space
    assert len(json.dumps(readers, separators=(",", ":"))) <= 6144


# -- the alerts topic -------------------------------------------------------------------------------------------------


class Resolved(yaml.SafeLoader):
    """Loads CloudFormation's YAML and replaces references with their values in this account."""


def _resolved(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if suffix == "GetAtt" and isinstance(node, yaml.ScalarNode):
        return f"arn:aws:iam::{ACCOUNT}:role/{node.value.partition('.')[0]}"
    if not isinstance(node, yaml.ScalarNode):
        return None
    text = str(node.value)
    known = {"Partition": "aws", "AccountId": ACCOUNT, "Region": REGION, "URLSuffix": "amazonaws.com"}
    for name, value in known.items():
        text = text.replace(f"${{AWS::{name}}}", value)
        text = value if text == f"AWS::{name}" else text
    return text


Resolved.add_multi_constructor("!", _resolved)
TO_PUBLISH = ("kms:Decrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyPair")
ALARM = {"aws:SourceAccount": ACCOUNT, "aws:SourceArn": f"arn:aws:cloudwatch:{HERE}:alarm:disk"}
OTHERS = {"aws:SourceAccount": "111111111111", "aws:SourceArn": f"arn:aws:cloudwatch:{REGION}:111111111111:alarm:a"}
BY_SNS = {"kms:ViaService": f"sns.{REGION}.amazonaws.com"}


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    """The resources in ecs.yaml. The local AWS deploys its key, but has no KMS that returns the key's policy."""
    template = yaml.load((ROOT / stacks.TEMPLATES[stacks.ECS]).read_text(), Resolved)
    found: dict[str, Any] = template["Resources"]
    return found


def test_each_topic_is_encrypted_with_the_customer_key(resources: dict[str, Any]) -> None:
    topics = {name: one["Properties"] for name, one in resources.items() if one["Type"] == "AWS::SNS::Topic"}
    assert set(topics) == {"AlertsTopic"}
    assert all(one["KmsMasterKeyId"].endswith("role/AlertsKey") for one in topics.values()), "!GetAtt AlertsKey.Arn"
    assert resources["AlertsKey"]["Properties"]["EnableKeyRotation"] is True


@pytest.mark.parametrize("action", TO_PUBLISH)
def test_only_alarms_and_airflow_can_use_the_key(resources: dict[str, Any], action: str) -> None:
    policy = resources["AlertsKey"]["Properties"]["KeyPolicy"]
    delegated = policy["Statement"][0]
    assert (delegated["Principal"], delegated["Sid"]) == (
        {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
        "TheAccountManagesIt",
    )
    named = {**policy, "Statement": policy["Statement"][1:]}

    def allowed(context: dict[str, str], who: str, service: str = "") -> bool:
        return resource_decision(named, action, f"arn:aws:kms:{HERE}:key/0f3c", context, who, service) == "Allow"

    assert allowed(ALARM, "service", "cloudwatch.amazonaws.com")
    assert not allowed(OTHERS, "service", "cloudwatch.amazonaws.com")
    assert not allowed({}, "service", "cloudwatch.amazonaws.com")
    assert allowed(BY_SNS, "AirflowRole")
    assert not allowed({}, "AirflowRole")
    assert not allowed(BY_SNS, "RunnerRole")
