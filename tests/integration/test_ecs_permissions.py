"""The permissions of `deploy/aws/ecs.yaml` are enough: a run on a local AWS that checks each request against them.

The emulator checks S3, Glue and SNS so, not what a request to ECS names: that is only simulated, in
test_ecs_template.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import psutil
import pytest
from own_aws import code_of, wait_for

from busco.aws import client
from busco.cli.releases import show_glue
from busco.embedded import aws, processes, stacks
from busco.lake import pins, releases
from busco.lake.layout import local_run_key
from busco.lake.records import utc_now
from busco.lake.runs import open_run
from busco.settings import Settings, get_settings
from busco.warehouse.dbt import opened
from busco.warehouse.runner import work
from tests.platforms import ENVIRONMENT, ROOT, Platform, csv_text

# The local AWS's own process with the emulator's authorization switched on; our credential stays root's.
CHECKING = f"""
import busco.embedded.local_aws_server as server
plain = server.environment
root = {{"AUTH": "true", "AWS_ACCESS_KEY_ID": "{aws.CREDENTIAL}", "AWS_SECRET_ACCESS_KEY": "{aws.CREDENTIAL}"}}
server.environment = lambda *given: plain(*given) | root
server.main()
"""
ANYBODY_HERE = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "Action": "sts:AssumeRole"}
    ],
}


@dataclass
class Checked:
    """A project, and a local AWS that checks permissions; `task` and `starter` are credentials for `being`."""

    platform: Platform
    endpoint: str
    outputs: dict[str, str]

    def __post_init__(self) -> None:
        iam = self.root("iam")
        role = self.outputs["TaskRole"].rpartition("/")[2]
        self.task = self._credentials("task", iam.get_role_policy(RoleName=role, PolicyName="lake")["PolicyDocument"])
        arn = self.outputs["StartTasksPolicy"]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        policy = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
        self.starter = self._credentials("starter", policy)

    def root(self, service: str) -> Any:
        return aws.client(service, self.endpoint, "us-east-1")

    def _credentials(self, name: str, policy: dict[str, Any]) -> dict[str, str]:
        """Those of a new role with this policy: the template's own are given to tasks of ECS alone."""
        iam = self.root("iam")
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(ANYBODY_HERE))["Role"]
        iam.put_role_policy(RoleName=name, PolicyName="given", PolicyDocument=json.dumps(policy))
        given = self.root("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
            "AWS_SESSION_TOKEN": given["SessionToken"],
        }

    @contextmanager
    def being(self, credentials: dict[str, str]) -> Iterator[Settings]:
        variables = {
            "BUSCO_HOME": str(self.platform.home),
            "BUSCO_PLATFORM": "aws",
            "BUSCO_ENDPOINT_URL": self.endpoint,
            "BUSCO_LAKE_BUCKET": self.outputs["LakeBucket"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_"))}
        with mock.patch.dict(os.environ, kept | variables | credentials, clear=True):
            get_settings.cache_clear()
            yield get_settings()
        get_settings.cache_clear()


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    folder = tmp_path_factory.mktemp("checked")
    home = folder / "home"
    shutil.copytree(ROOT / "tests/projects/mini/dbt_project", home / "dbt_project")
    state = (home / ".busco").resolve()
    port = processes.pick_port(state, "checking")
    command = [sys.executable, "-c", CHECKING, "--state", str(state), "--lake", "sample", "--port", str(port)]
    endpoint = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_for(lambda: _serves(server.pid, port), limit=60)
            cloudformation = aws.client("cloudformation", endpoint, "us-east-1")
            made = stacks.deploy_all(cloudformation, stacks.of_settings(Settings(home=ROOT)))
            found = Checked(Platform(home), endpoint, made)
            for bucket in ("LakeBucket", "LandingBucket"):
                # it refuses plain HTTP, which is what the local AWS speaks
                found.root("s3").delete_bucket_policy(Bucket=made[bucket])
            yield found
        finally:
            server.terminate()


def _serves(pid: int, port: int) -> bool:
    sockets = psutil.Process(pid).net_connections(kind="inet")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)


def test_ingest_and_a_run_need_no_more_than_the_two_policies(checked: Checked) -> None:
    platform, key = checked.platform, local_run_key(utc_now())
    with checked.being(checked.task):
        platform.deliver(csv_text(("id", "customer", "amount", "day", "n"), [("o1", "x", "1.50", "2018-01-01", 1)]))
    with checked.being(checked.starter) as settings:
        with opened(settings) as dbt:
            project = dbt.parse()
        pins.pin(platform.store, ENVIRONMENT, key, 1, project.contracts, project.hash)
    with checked.being(checked.task) as settings:
        outcome = work(settings, key)
        assert outcome is not None
        assert outcome.good
    with checked.being(checked.starter) as settings:
        run = open_run(platform.store, ENVIRONMENT, key)
        releases.publish(run, platform.audit(run), "test", run.docs)
        shown = show_glue(settings, platform.store, ENVIRONMENT)
        assert shown is not None
        assert shown.created == ("busco_bronze.orders", "busco_gold.fct", "busco_silver.orders")
    with checked.being(checked.task):
        assert platform.duckdb("select count(*) from busco_gold.fct") == [(1,)]


def test_what_the_policies_lack_is_refused(checked: Checked) -> None:
    lake, table = checked.outputs["LakeBucket"], {"DatabaseName": "busco_gold", "Name": "kept"}
    kept = {"Bucket": lake, "Key": "gold/kept/part-0.parquet"}
    checked.root("s3").put_object(**kept, Body=b"rows")
    checked.root("glue").create_table(DatabaseName="busco_gold", TableInput={"Name": "kept"})
    with checked.being(checked.task) as settings:
        s3, glue = client("s3", settings), client("glue", settings)
        assert s3.get_object(**kept)["Body"].read() == b"rows"
        assert code_of(lambda: s3.get_object(Bucket=lake, Key="gold/none")) == "NoSuchKey"
        assert code_of(lambda: s3.delete_object(**kept)) == "AccessDenied"
        assert code_of(lambda: s3.put_object(Bucket=lake, Key="elsewhere/a")) == "AccessDenied"
        assert code_of(lambda: s3.list_objects_v2(Bucket=lake, Prefix="elsewhere/")) == "AccessDenied"
        assert glue.get_table(**table)["Table"]["Name"] == "kept"
        assert code_of(lambda: glue.delete_table(**table)) == "AccessDeniedException"
    with checked.being(checked.starter) as settings:
        s3, sns = client("s3", settings), client("sns", settings)
        assert code_of(lambda: s3.get_object(**kept)) == "AccessDenied"
        assert code_of(lambda: s3.put_object(**kept)) == "AccessDenied"
        topic = checked.outputs["AlertsTopic"]
        assert sns.publish(TopicArn=topic, Message="a run failed")["MessageId"]
        assert code_of(lambda: sns.publish(TopicArn=topic + "-other", Message="x")) == "AuthorizationError"


@pytest.mark.parametrize("side", ["dbt", "airflow"])
def test_doctor_needs_no_more_than_the_policy_of_its_side(checked: Checked, side: str) -> None:
    landing = checked.outputs["LandingBucket"]
    who, folder = {"dbt": (checked.task, ".venv-dbt"), "airflow": (checked.starter, ".venv")}[side]
    with checked.being(who):
        checked.platform.busco("dbt", "parse")
        done = subprocess.run(
            [str(ROOT / folder / "bin/python"), "-m", "busco", "doctor", "--format", "json"],
            env={
                **os.environ, "BUSCO_LANDING_BUCKET": landing, "BUSCO_LOGS_BUCKET": checked.outputs["LogsBucket"],
                "BUSCO_AIRFLOW_URL": "https://airflow.example.com",
            },
            cwd=checked.platform.home, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        said = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert [check for check in said.values() if check["state"] == "failed"] == []
        assert f":assumed-role/{'task' if side == 'dbt' else 'starter'}/" in said["role"]["seen"]
        assert said["conditional writes"]["state"] == "ok"
    with checked.being(checked.starter):
        refused = checked.platform.busco("doctor", status=1, environment={"BUSCO_LANDING_BUCKET": landing})
        assert "landing bucket failed: ListObjectsV2: AccessDenied" in refused
        assert "TaskRole in a container" in refused
