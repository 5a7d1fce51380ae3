"""Users who already have buckets, databases, roles and a cluster name them in .env and deploy none of our templates."""

from __future__ import annotations

import json
from typing import Any

import pytest

from busco.embedded.aws import client
from busco.embedded.keys import Pair
from tests.compose.stack import Stack

REGION = "us-east-1"
BUCKETS = {kind: f"acme-{kind}-of-2019" for kind in ("lake", "landing", "logs")}
SIZES = {"small": ("1024", "2048"), "medium": ("1024", "4096"), "large": ("2048", "8192")}


@pytest.mark.long
def test_a_run_uses_existing_resources_that_env_names_instead_of_our_templates(stack: Stack) -> None:
    text = stack.compose("exec", "-T", "local-aws", "cat", "/var/lib/busco/aws.env")
    variables = dict(line.split("=", 1) for line in text.splitlines())
    owner = Pair(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])

    def aws(service: str) -> Any:
        return client(service, f"http://127.0.0.1:{stack.value('BUSCO_AWS_PORT')}", REGION, owner)

    # the local AWS restarts and deploys our templates with this prefix; only the content of S3 outlives the restart,
    # after which the events service would look for missed objects in our lake
    stack.compose("stop", "events")
    stack.set(BUSCO_GLUE_PREFIX="acme_")
    stack.compose("up", "--detach", "--wait", "local-aws")
    cluster, definitions, topic, roles = made(aws, "busco-dbt:local")
    own = {
        **{f"BUSCO_{kind.upper()}_BUCKET": name for kind, name in BUCKETS.items()},
        **{f"BUSCO_ECS_TASK_DEFINITION_{size.upper()}": arn for size, arn in definitions.items()},
        "BUSCO_GLUE_PREFIX": "acme_",
        "BUSCO_ATHENA_WORKGROUP": "analysts",
        "BUSCO_ECS_CLUSTER": cluster,
        "BUSCO_ECS_CONTAINER": "runner",
        "BUSCO_ECS_LOG_GROUP": "/acme/models",
        "BUSCO_ECS_LOG_PREFIX": "models",
        "BUSCO_ALERTS_TOPIC": topic,
        # nothing is notified of new objects in their landing bucket
        "BUSCO_EVENTS_QUEUE": "",
        "BUSCO_EVENTS_DEAD_LETTERS": "",
        "BUSCO_RUNNER_ROLE_ARN": roles["acme-models"],
        "BUSCO_INGEST_ROLE_ARN": roles["acme-models"],
        "BUSCO_PUBLISHER_ROLE_ARN": roles["acme-publish"],
    }
    ours = objects(aws, "busco-lake-000000000000-us-east-1")
    stack.set(**own)
    stack.compose("up", "--detach", "--wait")
    with_names = ["exec", "-T", *[part for name, value in own.items() for part in ("-e", f"{name}={value}")]]
    report = json.loads(stack.compose("exec", "-T", "airflow-worker", "busco", "doctor", "--format", "json"))
    assert report["ok"], report
    stack.compose(*with_names, "local-aws", "busco", "sample", "--orders", "500", "--out", "/var/lib/busco/own")
    stack.compose(*with_names, "local-aws", "busco", "ingest", "/var/lib/busco/own")
    run = stack.start()
    assert stack.finish(run) == "success", stack.task_states(run)

    glue = aws("glue")
    tables = {table["Name"]: table for table in glue.get_tables(DatabaseName="acme_gold")["TableList"]}
    assert len(tables) == 12
    for table in tables.values():
        assert table["StorageDescriptor"]["Location"].startswith(f"s3://{BUCKETS['lake']}/")
    query = ["busco", "query", "--format", "csv", "select count(*) as n from acme_gold.fct_orders"]
    assert stack.compose(*with_names, "local-aws", *query).split() == ["n", "500"]
    assert any(key.startswith("airflow/dag_id=lakehouse") for key in objects(aws, BUCKETS["logs"]))
    streams = aws("logs").describe_log_streams(logGroupName="/acme/models")["logStreams"]
    assert streams
    assert all(stream["logStreamName"].startswith("models/runner/") for stream in streams)
    assert objects(aws, "busco-lake-000000000000-us-east-1") == ours, "nothing was written to our lake"


def objects(aws: Any, bucket: str) -> set[str]:
    pages = aws("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
    # doctor writes its own object each time
    return {one["Key"] for page in pages for one in page.get("Contents", []) if not one["Key"].endswith("doctor.json")}


def made(aws: Any, image: str) -> tuple[str, dict[str, str], str, dict[str, str]]:
    """Creates all resources of our templates with plain API calls.

    Returns the ARNs of the cluster, of the task definitions by size, of the topic, and of the roles by name.
    """
    for name in BUCKETS.values():
        aws("s3").create_bucket(Bucket=name)
    aws("s3").put_bucket_versioning(Bucket=BUCKETS["landing"], VersioningConfiguration={"Status": "Enabled"})
    for layer in ("bronze", "silver", "gold"):
        aws("glue").delete_database(Name=f"acme_{layer}")
        aws("glue").create_database(DatabaseInput={"Name": f"acme_{layer}"})
    output = {"ResultConfiguration": {"OutputLocation": f"s3://{BUCKETS['logs']}/athena/"}}
    aws("athena").create_work_group(Name="analysts", Configuration=output)
    aws("logs").create_log_group(logGroupName="/acme/models")
    topic = aws("sns").create_topic(Name="acme-on-call")["TopicArn"]
    cluster = aws("ecs").create_cluster(clusterName="acme")["cluster"]["clusterArn"]
    everything = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    # users with an Airflow role of their own grant it what it needs
    outputs = aws("cloudformation").describe_stacks(StackName="busco-ecs")["Stacks"][0]["Outputs"]
    airflow = next(one["OutputValue"] for one in outputs if one["OutputKey"] == "AirflowRoleArn")
    aws("iam").put_role_policy(
        RoleName=airflow.rpartition("/")[2], PolicyName="acme", PolicyDocument=json.dumps(everything)
    )
    tasks = {"Service": "ecs-tasks.amazonaws.com"}
    roles = {}
    for name, principal in (("acme-models", tasks), ("acme-start", tasks), ("acme-publish", {"AWS": airflow})):
        trust = {"Statement": [{"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}]}
        role = aws("iam").create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        aws("iam").put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(everything))
        roles[name] = role["Arn"]
    environment = {
        "BUSCO_PLATFORM": "aws",
        "BUSCO_REGION": REGION,
        "BUSCO_GLUE_PREFIX": "acme_",
        **{f"BUSCO_{kind.upper()}_BUCKET": name for kind, name in BUCKETS.items()},
    }
    definitions = {}
    for size, (cpu, memory) in SIZES.items():
        container = {
            "name": "runner", "image": image, "essential": True,
            "environment": [{"name": name, "value": value} for name, value in environment.items()],
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": "/acme/models", "awslogs-region": REGION, "awslogs-stream-prefix": "models",
                },
            },
        }  # fmt: skip
        made = aws("ecs").register_task_definition(
            family=f"acme-{size}", cpu=cpu, memory=memory, networkMode="awsvpc", requiresCompatibilities=["FARGATE"],
            taskRoleArn=roles["acme-models"], executionRoleArn=roles["acme-start"], containerDefinitions=[container],
        )  # fmt: skip
        definitions[size] = made["taskDefinition"]["taskDefinitionArn"]
    return cluster, definitions, topic, roles
