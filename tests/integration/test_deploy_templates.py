"""`deploy/aws/deploy.sh` with the AWS CLI on a local AWS, the permissions of the host, and the alarms.

The local AWS has no networks, machines and databases, so network.yaml and host.yaml are left out here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cfnlint.decode.cfn_yaml
import pytest
from own_aws import Server
from policies import ACCOUNT, REGION, decision, managed

from busco.embedded import keys, stacks
from busco.orchestration.metrics import DIMENSION, METRICS, NAMESPACE
from tests.cloudwatch import state
from tests.compose.stack import Stack
from tests.platforms import ROOT

HERE = f"{REGION}:{ACCOUNT}"
# what the local AWS does not have
WITHOUT = ("--without", "network", "--without", "host")
# the local AWS has its own stacks and databases; its bucket policies are none, as in busco.embedded.stacks
OWN = ("GluePrefix=trial_", "WorkgroupName=trial", "BucketPolicies=none")
AIRFLOW = ROOT / "deploy/aws/airflow.yaml"
ECR, PARAMETERS = f"arn:aws:ecr:{HERE}:repository", f"arn:aws:ssm:{HERE}:parameter"
SECRETS = f"arn:aws:secretsmanager:{HERE}:secret"


@pytest.fixture(scope="module")
def cli(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pair = keys.owner(server.settings.state)
    outputs = tmp_path_factory.mktemp("outputs") / "stacks.json"
    environment = {
        "PATH": f"{ROOT / '.venv-dbt/bin'}:{os.environ['PATH']}",
        "HOME": str(outputs.parent),
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": pair.key,
        "AWS_SECRET_ACCESS_KEY": pair.secret,
        "AWS_REGION": REGION,
    }

    def deploy(*arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [ROOT / "deploy/aws/deploy.sh", "--name", "trial", *arguments, "--outputs", outputs],
            capture_output=True, text=True, env=environment, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    deploy.outputs = outputs  # type: ignore[attr-defined]
    return deploy


def stacks_of(server: Server) -> dict[str, str]:
    found = server.client("cloudformation").describe_stacks()["Stacks"]
    return {one["StackName"]: one["StackStatus"] for one in found if one["StackName"].startswith("trial-")}


@pytest.mark.slow
def test_templates_are_deployed_in_order_and_again_without_a_change(server: Server, cli: Any) -> None:
    first = cli(*WITHOUT, *OWN, "--dry-run")
    assert re.search(r"trial-events: create\n +add +AWS::SQS::Queue +DeadLetters\n", first)
    assert "trial-ecs: would be created after events and lake" in first
    assert stacks_of(server) == {}
    made = cli(*WITHOUT, *OWN)
    assert re.search(r"create complete +Dashboard\n", made)
    assert set(stacks_of(server).values()) == {"CREATE_COMPLETE"}
    assert list(stacks_of(server)) == ["trial-events", "trial-lake", "trial-ecs", "trial-airflow"]
    # what make_env.sh reads
    outputs = {
        item["OutputKey"]: item["OutputValue"]
        for stack in json.loads(cli.outputs.read_text())["Stacks"]
        for item in stack["Outputs"]
    }
    assert outputs["MetricsPlatform"] == "trial"
    assert outputs["GluePrefix"] == "trial_"
    assert outputs["AlertsTopic"] == f"arn:aws:sns:{HERE}:trial-alerts"
    again = cli(*WITHOUT)
    assert re.findall(r"trial-(\w+): nothing has changed", again) == ["events", "lake", "ecs", "airflow"]
    changed = cli(*WITHOUT, "LogRetentionDays=30", "--dry-run")
    assert re.search(r"trial-ecs: update\n(.*\n)* +update, perhaps replace +AWS::Logs::LogGroup +LogGroup\n", changed)
    # only the image of the tasks changes; without a value, it is that of this commit
    image = cli("--models-image", "registry.example.com:5000/trial-dbt:new")
    assert set(re.findall(r"AWS::\S+", image)) == {"AWS::ECS::TaskDefinition"}
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True)
    cli("--models-image")
    (ecs,) = server.client("cloudformation").describe_stacks(StackName="trial-ecs")["Stacks"]
    parameters = {one["ParameterKey"]: one["ParameterValue"] for one in ecs["Parameters"]}
    assert parameters["DbtImage"] == f"registry.example.com:5000/trial-dbt:{commit.stdout.decode().strip()}"
    assert parameters["GluePrefix"] == "trial_"
    assert "there is no stack other-ecs" in cli("--name", "other", "--models-image", "x", status=1)
    assert "no template that is deployed has the parameter Nmae" in cli(*WITHOUT, "Nmae=x", status=1)
    assert "ecs.yaml needs LakeBucket, LandingBucket, LogsBucket" in cli("--without", "lake", "--name", "t", status=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_templates_are_deployed_and_deleted_three_times_and_their_outputs_make_a_env(
    server: Server, cli: Any, tmp_path: Path
) -> None:
    cloudformation, s3, ecr = (server.client(name) for name in ("cloudformation", "s3", "ecr"))
    names = "airflow", "ecs", "lake", "events"  # the order in which docs/deploying.md deletes them

    def delete() -> None:
        for name in names:
            cloudformation.delete_stack(StackName=f"trial-{name}")
        # what the stacks keep, because it has data
        for bucket in s3.list_buckets()["Buckets"]:
            if bucket["Name"].startswith("trial-"):
                s3.delete_bucket(Bucket=bucket["Name"])
        for repository in ecr.describe_repositories()["repositories"]:
            if repository["repositoryName"].startswith("trial-"):
                ecr.delete_repository(repositoryName=repository["repositoryName"], force=True)

    delete()
    for _ in range(3):
        made = cli(*WITHOUT, *OWN)
        assert re.search(r"create complete +Dashboard\n", made)
        assert "trial-airflow: update" in cli(*WITHOUT, "ReleaseAgeLimit=7200")
        assert set(stacks_of(server).values()) == {"CREATE_COMPLETE", "UPDATE_COMPLETE"}
        made_env(cli.outputs, tmp_path)
        delete()
        assert set(stacks_of(server).values()) <= {"DELETE_COMPLETE"}


def made_env(outputs: Path, tmp_path: Path) -> None:
    """Makes .env from the outputs, and from what the host's template and the operator would give."""
    home = tmp_path / "checkout"
    if not home.exists():
        Stack.copied(home, "unused")
    (home / ".env").write_text(
        "BUSCO_DOMAIN=busco.example.com\nLETSENCRYPT_EMAIL=a@example.com\nBUSCO_ECS_SUBNETS=subnet-1\n"
        "BUSCO_ECS_SECURITY_GROUPS=sg-1\nDB_HOST=db.example.com\nDB_PASSWORD=a-password\n"
    )
    (home / ".env").chmod(0o600)
    # production refuses the account of the local AWS
    real = tmp_path / "stacks.json"
    real.write_text(outputs.read_text().replace(ACCOUNT, "111122223333"))
    done = subprocess.run(
        [home / "scripts/make_env.sh", "--production", "--outputs", real], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    env = (home / ".env").read_text()
    assert not [line for line in env.splitlines() if "<output:" in line and not line.startswith("#")]
    assert "BUSCO_METRICS_PLATFORM=trial\n" in env
    assert "BUSCO_ECS_TASK_DEFINITION_SMALL=trial-dbt-small\n" in env


# -- the host's permissions -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(server: Server) -> dict[str, str]:
    """Returns the outputs of airflow.yaml, which the local AWS has deployed."""
    (stack,) = server.client("cloudformation").describe_stacks(StackName=stacks.AIRFLOW)["Stacks"]
    return {item["OutputKey"]: item["OutputValue"] for item in stack["Outputs"]}


# (action, allowed resource, denied resource, context): one allowed and one denied request for each statement
STATEMENTS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "LogInToTheRegistry": ("ecr:GetAuthorizationToken", "*", "", {}),
    "PullItsImages": ("ecr:BatchGetImage", f"{ECR}/busco-airflow", f"{ECR}/busco-dbt", {}),
    "ReadItsSecrets": (
        "secretsmanager:GetSecretValue",
        f"{SECRETS}:busco/config-Ab12Cd",
        f"{SECRETS}:other-Ab12Cd",
        {},
    ),
    "ReadItsParameters": ("ssm:GetParameter", f"{PARAMETERS}/busco/config", f"{PARAMETERS}/other/config", {}),
    "PutItsMetrics": ("cloudwatch:PutMetricData", "*", "", {"cloudwatch:namespace": NAMESPACE}),
    "WriteItsContainersLogs": (
        "logs:PutLogEvents",
        f"arn:aws:logs:{HERE}:log-group:/busco/host:log-stream:busco-events-1",
        f"arn:aws:logs:{HERE}:log-group:/busco/dbt:log-stream:any",
        {},
    ),
    "UseSessionManager": ("ssmmessages:OpenDataChannel", "*", "", {}),
}


def test_each_statement_of_the_host_s_policy_allows_what_it_is_for_and_no_more(
    server: Server, outputs: dict[str, str]
) -> None:
    document = managed(server.client("iam"), outputs["HostPolicy"])
    assert [one["Sid"] for one in document["Statement"]] == list(STATEMENTS)
    for action, allowed, denied, context in STATEMENTS.values():
        assert decision([document], action, allowed, context) == "Allow", action
        if denied:
            assert decision([document], action, denied, context) == "ImplicitDeny", action
    # actions whose resources can't be limited
    assert decision([document], "cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "AWS/EC2"}) == "ImplicitDeny"
    for action in ("ssm:SendCommand", "ssm:StartSession", "ecr:PutImage", "ec2:DescribeInstances", "iam:PassRole"):
        assert decision([document], action, "*", {}) == "ImplicitDeny", action
    attached = server.client("iam").list_attached_role_policies(RoleName=f"busco-{REGION}-airflow")["AttachedPolicies"]
    assert outputs["HostPolicy"] in [one["PolicyArn"] for one in attached]


# -- the permissions of the workflow that deploys ---------------------------------------------------------------------

MACHINE = f"arn:aws:ec2:{HERE}:instance/i-0123456789abcdef0"
CHANGED, TASKS = f"arn:aws:cloudformation:{HERE}:stack", f"arn:aws:ecs:{HERE}:task-definition"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/busco-{REGION}"
DEPLOYS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "LogInToTheRegistry": ("ecr:GetAuthorizationToken", "*", "", {}),
    "PushImages": ("ecr:PutImage", f"{ECR}/busco-dbt", f"{ECR}/other", {}),
    "AuthorizeAKeyOnTheMachine": ("ssm:SendCommand", MACHINE, MACHINE.replace("i-0", "i-1"), {}),
    "ReadTheCommandsResult": ("ssm:GetCommandInvocation", "*", "", {}),
    "ConnectToTheMachine": (
        "ssm:StartSession",
        f"arn:aws:ssm:{REGION}::document/AWS-StartSSHSession",
        f"arn:aws:ssm:{REGION}::document/SSM-SessionManagerRunShell",
        {"ssm:SessionDocumentAccessCheck": "true"},
    ),
    "EndItsSessions": (
        "ssm:TerminateSession",
        f"arn:aws:ssm:{HERE}:session/AROAEXAMPLE:GitHubActions-0a1b2c",
        f"arn:aws:ssm:{HERE}:session/somebody-0a1b2c",
        {},
    ),
    "UpdateTheStackOfTheTasks": (
        "cloudformation:ExecuteChangeSet", f"{CHANGED}/busco-ecs/0a1b", f"{CHANGED}/busco-host/0a1b", {},
    ),
    "ReplaceTaskDefinitions": ("ecs:RegisterTaskDefinition", "*", "", {}),
    "TagTaskDefinitions": ("ecs:TagResource", f"{TASKS}/busco-dbt-small:7", f"{TASKS}/other:7", {}),
    "PassTheRolesOfTheTasks": (
        "iam:PassRole", f"{ROLE}-runner", f"{ROLE}-airflow", {"iam:PassedToService": "ecs-tasks.amazonaws.com"},
    ),
}  # fmt: skip
GITHUB = {
    "Name": "busco", "GitHubRepository": "owner/fork", "GitHubEnvironment": "production", "GitHubProviderArn": "",
    "HostInstance": MACHINE.rpartition("/")[2], "AWS::Partition": "aws", "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
}  # fmt: skip


def rendered(value: Any) -> Any:
    """Resolves Fn::Sub with the values of GITHUB."""
    if isinstance(value, dict):
        if value.keys() == {"Fn::Sub"}:
            text = re.sub(r"\$\{([^!}]+)\}", lambda match: GITHUB[match[1]], value["Fn::Sub"])
            # the emulator's evaluator has no variables
            return text.replace("${!aws:userid}", "AROAEXAMPLE:GitHubActions")
        return {key: rendered(one) for key, one in value.items()}
    return [rendered(one) for one in value] if isinstance(value, list) else value


def test_each_statement_of_the_workflow_s_policy_allows_what_it_is_for_and_no_more() -> None:
    template = cfnlint.decode.cfn_yaml.load(str(ROOT / "deploy/aws/github.yaml"))
    document = rendered(template["Resources"]["DeployPolicy"]["Properties"]["PolicyDocument"])
    assert [one["Sid"] for one in document["Statement"]] == list(DEPLOYS)
    for action, allowed, denied, context in DEPLOYS.values():
        assert decision([document], action, allowed, context) == "Allow", action
        if denied:
            assert decision([document], action, denied, context) == "ImplicitDeny", action
    # a session of another kind on the machine is not a matter of its ARN alone
    assert decision([document], "ssm:StartSession", MACHINE, {"ssm:SessionDocumentAccessCheck": "false"}) != "Allow"
    for action in ("iam:CreatePolicyVersion", "iam:AttachRolePolicy", "s3:GetObject", "ecr:BatchDeleteImage"):
        assert decision([document], action, "*", {}) == "ImplicitDeny", action
    assert (
        decision([document], "iam:PassRole", f"{ROLE}-runner", {"iam:PassedToService": "ec2.amazonaws.com"}) != "Allow"
    )


def test_only_jobs_of_one_environment_of_one_repository_get_the_role() -> None:
    template = cfnlint.decode.cfn_yaml.load(str(ROOT / "deploy/aws/github.yaml"))
    (trust,) = rendered(template["Resources"]["DeployRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"])
    assert trust["Action"] == "sts:AssumeRoleWithWebIdentity"
    assert trust["Condition"] == {
        "StringEquals": {
            "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
            "token.actions.githubusercontent.com:sub": "repo:owner/fork:environment:production",
        }
    }


# -- alarms and dashboard ---------------------------------------------------------------------------------------------


def test_each_alarm_and_each_widget_has_a_metric_that_the_platform_puts(
    server: Server, outputs: dict[str, str]
) -> None:
    cloudwatch = server.client("cloudwatch")
    alarms = described(cloudwatch)
    template = cfnlint.decode.cfn_yaml.load(str(AIRFLOW))
    assert len(alarms) == sum(one["Type"] == "AWS::CloudWatch::Alarm" for one in template["Resources"].values())
    platform, topic = outputs["MetricsPlatform"], f"arn:aws:sns:{HERE}:busco-alerts"
    for alarm in alarms:
        assert alarm["Namespace"] == NAMESPACE
        assert alarm["MetricName"] in METRICS, alarm["AlarmName"]
        assert alarm["Dimensions"] == [{"Name": DIMENSION, "Value": platform}]
        assert alarm["TreatMissingData"] in ("breaching", "notBreaching", "ignore"), alarm["AlarmName"]
        assert alarm["AlarmDescription"].endswith((".", "?"))
        assert alarm["AlarmActions"] == alarm["OKActions"] == [topic], alarm["AlarmName"]
    body = json.loads(cloudwatch.get_dashboard(DashboardName=f"busco-{REGION}")["DashboardBody"])
    shown = [metric for widget in body["widgets"] for metric in widget["properties"].get("metrics", [])]
    assert all(metric[0] == NAMESPACE and metric[2:] == [DIMENSION, platform] for metric in shown)
    # these are for alarms only
    assert {metric[1] for metric in shown} == METRICS.keys() - {"Heartbeat", "ImportErrors"}


# by alarm: a value with which all is well, and one with which the alarm fires; None means that nothing is reported
FIRES: dict[str, tuple[float, float | None]] = {
    "metrics-missing": (1, None),
    "scheduler-silent": (5, 90),
    "triggerer-silent": (5, 90),
    "tasks-failed": (0, 1),
    "import-errors": (0, 1),
    "tasks-queued": (20, 21),
    "slots-exhausted": (0, 1),
    "release-stale": (93600, 93601),
    "producers-silent": (93600, 93601),
    "deliveries-waiting": (10800, 10801),
    "messages-waiting": (0, 1),
    "dead-letters": (0, 1),
    "disk-full": (85, 86),
    "memory-full": (90, 91),
    "certificate-expires": (14, 13.9),
}


@pytest.mark.usefixtures("outputs")
def test_each_alarm_fires_and_ends(server: Server) -> None:
    cloudwatch = server.client("cloudwatch")
    alarms = {one["AlarmName"].removeprefix("busco-"): one for one in described(cloudwatch)}
    assert alarms.keys() == FIRES.keys()
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    good, bad, silent = now - timedelta(hours=4), now - timedelta(hours=2), now
    for name, values in FIRES.items():
        for end, value in zip((good, bad), values, strict=True):
            # a value each minute for 70 minutes
            times = [end - timedelta(minutes=minute, seconds=30) for minute in range(70)] if value is not None else []
            data = [
                {"MetricName": alarms[name]["MetricName"], "Dimensions": alarms[name]["Dimensions"], "Timestamp": time,
                 "Value": value}
                for time in times
            ]  # fmt: skip
            if data:
                cloudwatch.put_metric_data(Namespace=NAMESPACE, MetricData=data)
        assert state(cloudwatch, alarms[name], good) == "OK", name
        assert state(cloudwatch, alarms[name], bad) == "ALARM", name
        # nothing is reported any more
        treated = alarms[name]["TreatMissingData"]
        assert state(cloudwatch, alarms[name], silent, "ALARM") == ("OK" if treated == "notBreaching" else "ALARM"), (
            name
        )


def described(cloudwatch: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cloudwatch.describe_alarms(AlarmNamePrefix="busco-")["MetricAlarms"]
    return found
