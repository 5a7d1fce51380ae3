"""`busco doctor` reports what it found, what is wrong, and how to fix it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from busco.aws import client
from tests import warm
from tests.integration.conftest import MINI
from tests.loopback import PROXY_PORT, Handler, serving
from tests.platforms import ROOT, Platform, platform

NAMES = [
    "variables", "files", "keys", "database", "broker", "endpoint", "clock", "role", "lake bucket",
    "conditional writes", "landing bucket", "queue", "Glue databases", "live release", "ECS cluster",
    "task definitions", "task roles", "image", "manifest", "dbt projects", "memory and CPU", "disk", "DuckDB",
    "DuckDB on S3",
]  # fmt: skip
OF_AIRFLOW = {"keys", "database", "broker", "ECS cluster", "manifest"}
# used only with models on ECS, with a landing bucket that notifies a queue about new files, and with a release
UNUSED = {"live release", "task definitions", "task roles", "image"}
OF_DBT = {"landing bucket", "dbt projects", "DuckDB", "DuckDB on S3"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A complete platform, on which nothing has been built."""
    with platform(tmp_path_factory.mktemp("doctor"), MINI) as made:
        made.busco("dbt", "parse")
        yield made


def run_doctor(live: Platform, status: int, side: str = "dbt", **variables: str) -> dict[str, dict[str, Any]]:
    """Runs `busco doctor --format json` in dbt's or Airflow's environment; returns the checks by name."""
    run = {"dbt": warm.run, "airflow": run_in_airflows_environment}[side]
    done = run("-m", "busco", "doctor", "--format", "json", cwd=live.home, environment={**os.environ, **variables})
    assert done.returncode == status, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"ok", "version", "environment", "checks"}
    assert (found["ok"], found["environment"]) == (status == 0, side)
    assert [check["name"] for check in found["checks"]] == NAMES
    assert all(check.keys() == {"name", "state", "seen", "fix", "seconds"} for check in found["checks"])
    return {check["name"]: check for check in found["checks"]}


def run_in_airflows_environment(
    *arguments: str, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Does the same as `warm.run`, but in Airflow's environment."""
    command = [str(ROOT / ".venv/bin/python"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def named(checks: dict[str, dict[str, Any]], state: str) -> set[str]:
    return {name for name, check in checks.items() if check["state"] == state}


# -- all is well ------------------------------------------------------------------------------------------------------


def test_in_dbts_environment_only_airflows_checks_and_unused_features_are_skipped(live: Platform) -> None:
    checks = run_doctor(live, 0)
    assert named(checks, "skipped") == OF_AIRFLOW | UNUSED
    assert named(checks, "failed") == set()
    assert live.settings.endpoint_url in checks["endpoint"]["seen"]
    assert "credentials from env" in checks["role"]["seen"]
    assert "nothing is published yet in prod" in checks["lake bucket"]["seen"]
    assert checks["Glue databases"]["seen"] == "busco_bronze, busco_silver, busco_gold"
    assert checks["dbt projects"]["seen"].startswith("busco: 3 models, parsed here")
    assert str(live.settings.state) in checks["disk"]["seen"]
    assert checks["DuckDB"]["seen"].startswith("1.5")


def test_in_airflows_environment_only_dbts_checks_and_unused_features_are_skipped(live: Platform) -> None:
    checks = run_doctor(live, 0, "airflow", BUSCO_EXECUTION="ecs_shared")
    assert named(checks, "skipped") == OF_DBT | {"keys", "database", "broker", "image", "live release"}
    assert (
        checks["task definitions"]["seen"]
        == "small busco-dbt-small:1, medium busco-dbt-medium:1, large busco-dbt-large:1"
    )
    assert "busco-us-east-1-runner" in checks["task roles"]["seen"]
    assert checks["DuckDB"]["seen"] == "checked only in dbt's environment"
    assert checks["ECS cluster"]["seen"] == f"{live.settings.ecs_cluster}: 0 tasks running"


def test_the_table_has_a_line_for_each_check_and_a_summary(live: Platform) -> None:
    printed = live.busco("doctor")
    for name in NAMES:
        assert any(line.startswith(f"{name} ") for line in printed.splitlines()), printed
    assert printed.splitlines()[-1] == "15 ok, 0 failed, 9 skipped"


# -- something is wrong -----------------------------------------------------------------------------------------------


def test_an_unreachable_endpoint_is_the_only_failed_check(live: Platform) -> None:
    nowhere = {"BUSCO_ENDPOINT_URL": "http://127.0.0.1:1"}
    checks = run_doctor(live, 1, **nowhere)
    assert named(checks, "failed") == {"endpoint"}
    assert "http://127.0.0.1:1" in checks["endpoint"]["seen"]
    assert checks["endpoint"]["fix"] == "start it: busco aws up"
    assert checks["conditional writes"]["seen"] == "the check 'lake bucket' has to succeed first"
    printed = live.busco("doctor", status=1, environment=nowhere)
    assert "endpoint failed: the local AWS is not responding" in printed
    assert "→ start it: busco aws up" in printed


def test_a_missing_lake_bucket_is_named_with_the_template_to_deploy(live: Platform) -> None:
    checks = run_doctor(live, 1, BUSCO_LAKE_BUCKET="nobodys-bucket")
    assert named(checks, "failed") == {"lake bucket"}
    assert checks["lake bucket"]["seen"] == "the bucket nobodys-bucket does not exist"
    assert "deploy/aws/lake.yaml" in checks["lake bucket"]["fix"]
    assert {"conditional writes", "DuckDB on S3"} <= named(checks, "skipped")


def test_missing_glue_databases_are_named(live: Platform) -> None:
    checks = run_doctor(live, 1, BUSCO_GLUE_PREFIX="other_")
    assert named(checks, "failed") == {"Glue databases"}
    assert (
        checks["Glue databases"]["seen"] == "these Glue databases do not exist: other_bronze, other_silver, other_gold"
    )
    assert "BUSCO_GLUE_PREFIX" in checks["Glue databases"]["fix"]


def test_a_state_folder_that_can_t_be_written_fails_the_disk_check(live: Platform, tmp_path: Path) -> None:
    # a file in its place: nobody can write below it, not even root
    (tmp_path / "file").touch()
    checks = run_doctor(live, 1, BUSCO_PLATFORM="aws", BUSCO_STATE_DIR=str(tmp_path / "file"))
    assert "disk" in named(checks, "failed")
    assert str(tmp_path / "file") in checks["disk"]["seen"]
    assert "BUSCO_STATE_DIR" in checks["disk"]["fix"]


def test_a_project_that_dbt_can_t_parse_fails_with_dbts_message(live: Platform) -> None:
    broken = live.write("dbt_project/models/gold/broken.sql", "select * from {{ ref('nobody') }}")
    try:
        checks = run_doctor(live, 1)
    finally:
        broken.unlink()
    assert named(checks, "failed") == {"dbt projects"}
    assert "nobody" in checks["dbt projects"]["seen"]


def test_an_images_parse_of_a_project_that_has_changed_since_fails(live: Platform, tmp_path: Path) -> None:
    live.busco("bake", str(tmp_path))
    baked = {"BUSCO_BAKED_DIR": str(tmp_path)}
    assert "parsed in the image" in run_doctor(live, 0, **baked)["dbt projects"]["seen"]
    model = live.home / "dbt_project/models/gold/fct.sql"
    before = model.read_text()
    model.write_text(before + "\n-- changed\n")
    try:
        checks = run_doctor(live, 1, **baked)
    finally:
        model.write_text(before)
    assert named(checks, "failed") == {"dbt projects"}
    assert "make image" in checks["dbt projects"]["fix"]


def test_missing_credentials_fail_only_the_check_of_the_role(live: Platform) -> None:
    none = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    # the embedded platform would provide its own credentials
    checks = run_doctor(live, 1, BUSCO_PLATFORM="aws", **none)
    assert named(checks, "failed") == {"role"}
    assert checks["role"]["seen"] == "there are no AWS credentials"
    assert "RunnerRole" in checks["role"]["fix"]


# -- variables, keys, Airflow's servers -------------------------------------------------------------------------------

# an Airflow service with complete settings but without servers: nothing listens on these ports
SERVICE = {
    "BUSCO_PLATFORM": "development",
    "AIRFLOW__CORE__FERNET_KEY": "BNoVsGvwdLRRFbhzlPtnUwaKnShW_qIk-KI5Z6PCw1A=",
    "AIRFLOW__WEBSERVER__SECRET_KEY": "d7e1c50f6a1b4c2aa4ff",
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://airflow:canary-secret@127.0.0.1:1/airflow",
    "AIRFLOW__CELERY__BROKER_URL": "redis://:canary-secret@127.0.0.1:1/0",
}


def test_an_unknown_variable_is_named_with_the_one_that_was_probably_meant(live: Platform) -> None:
    checks = run_doctor(live, 1, BUSCO_LAKE_BUKET="x")
    assert named(checks, "failed") == {"variables"}
    assert checks["variables"]["seen"] == "unknown variables: BUSCO_LAKE_BUKET (did you mean BUSCO_LAKE_BUCKET?)"


def test_on_aws_variables_without_a_default_must_be_set(live: Platform) -> None:
    checks = run_doctor(live, 1, "airflow", BUSCO_PLATFORM="aws", BUSCO_LOGS_BUCKET="", BUSCO_AIRFLOW_URL="")
    assert checks["variables"]["seen"] == "not set: BUSCO_LOGS_BUCKET, BUSCO_AIRFLOW_URL"


def test_a_file_of_secrets_that_others_can_read_fails(live: Platform) -> None:
    secrets = live.write(".env", "AIRFLOW__CORE__FERNET_KEY=x")
    try:
        secrets.chmod(0o644)
        checks = run_doctor(live, 1)
        secrets.chmod(0o600)
        assert "files" in named(run_doctor(live, 0), "ok")
    finally:
        secrets.unlink()
    assert named(checks, "failed") == {"files"}
    assert checks["files"]["fix"] == f"chmod 600 {secrets}"


def test_an_unreachable_database_and_broker_are_named_without_their_passwords(live: Platform) -> None:
    checks = run_doctor(live, 1, "airflow", **SERVICE)
    assert named(checks, "failed") == {"database", "broker"}
    assert checks["database"]["seen"].startswith("127.0.0.1:1/airflow: ")
    assert checks["broker"]["seen"].startswith("redis://:**@127.0.0.1:1/0: ")
    assert "canary-secret" not in json.dumps(checks)


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("AIRFLOW__CORE__FERNET_KEY", "", "is not set: connections would be stored in the database unencrypted"),
        ("AIRFLOW__CORE__FERNET_KEY", "secret", "is not a valid key: "),
        ("AIRFLOW__WEBSERVER__SECRET_KEY", "", "is not set: sessions could be forged"),
        ("AIRFLOW__WEBSERVER__SECRET_KEY", "short", "has fewer than 16 characters: sessions could be forged"),
    ],
)
def test_a_missing_or_invalid_key_fails(live: Platform, name: str, value: str, seen: str) -> None:
    checks = run_doctor(live, 1, "airflow", **{**SERVICE, name: value})
    assert checks["keys"]["state"] == "failed"
    assert checks["keys"]["seen"].startswith(f"{name} {seen}")
    assert value == "" or value not in checks["keys"]["seen"]
    assert checks["database"]["seen"] == "the check 'keys' has to succeed first"


def test_on_aws_a_well_known_admin_password_fails(live: Platform) -> None:
    aws = {**SERVICE, "BUSCO_PLATFORM": "aws", "BUSCO_AIRFLOW_URL": "https://airflow.example.com"}
    assert run_doctor(live, 1, "airflow", **aws)["keys"]["state"] == "ok"
    checks = run_doctor(live, 1, "airflow", **aws, AIRFLOW_ADMIN_PASSWORD="admin")
    assert checks["keys"]["seen"] == "AIRFLOW_ADMIN_PASSWORD is a well-known password"


def test_a_graph_that_is_older_than_the_project_fails_in_airflow_s_environment(live: Platform) -> None:
    manifest = live.settings.manifest_path
    times = manifest.stat()
    os.utime(manifest, (times.st_atime, times.st_mtime - 86400))
    try:
        checks = run_doctor(live, 1, "airflow")
    finally:
        os.utime(manifest, (times.st_atime, times.st_mtime))
    assert named(checks, "failed") == {"manifest"}
    assert "Airflow's graph is outdated" in checks["manifest"]["seen"]
    assert "busco dbt parse" in checks["manifest"]["fix"]


# -- task definitions and images --------------------------------------------------------------------------------------

ON_ECS = {"BUSCO_EXECUTION": "ecs"}


@pytest.mark.parametrize(
    ("variable", "value", "seen"),
    [
        ("BUSCO_ECS_TASK_DEFINITION_LARGE", "nobodys", "the task definition nobodys does not exist"),
        ("BUSCO_ECS_CONTAINER", "other", "busco-dbt-small:1 has no container other"),
    ],
)
def test_a_task_definition_that_does_not_match_the_settings_fails(
    live: Platform, variable: str, value: str, seen: str
) -> None:
    checks = run_doctor(live, 1, **ON_ECS, **{variable: value})
    assert named(checks, "failed") == {"task definitions"}
    assert (checks["task definitions"]["seen"], variable in checks["task definitions"]["fix"]) == (seen, True)


def test_an_image_for_another_cpu_architecture_fails(live: Platform) -> None:
    there, elsewhere = live.settings.ecs_cpu_architecture, {"X86_64": "ARM64", "ARM64": "X86_64"}
    checks = run_doctor(live, 1, **ON_ECS, BUSCO_ECS_CPU_ARCHITECTURE=elsewhere[there])
    assert checks["task definitions"]["seen"] == (
        f"busco-dbt-small:1 is for {there}, but BUSCO_ECS_CPU_ARCHITECTURE is {elsewhere[there]}"
    )
    platforms = [{"platform": {"architecture": one, "os": "linux"}} for one in ("s390x", "unknown")]
    image = _pushed(live, {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": platforms})
    with _task_definitions(live, image):
        checks = run_doctor(live, 1, **ON_ECS)
    assert named(checks, "failed") == {"image"}
    assert f"{image} is built for s390x" in checks["image"]["seen"]
    image = _pushed(live, {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"platform": {"architecture": one, "os": "linux"}} for one in ("amd64", "arm64")
    ]})  # fmt: skip
    with _task_definitions(live, image):
        assert run_doctor(live, 0, **ON_ECS)["image"]["seen"] == f"{image}: ARM64, X86_64"


def test_an_image_that_was_never_pushed_fails(live: Platform) -> None:
    image = _pushed(live, {"manifests": []}).replace(":one", ":two")
    with _task_definitions(live, image):
        checks = run_doctor(live, 1, **ON_ECS)
    assert checks["image"]["seen"] == f"{image} is not in ECR"


def _pushed(live: Platform, manifest: dict[str, Any]) -> str:
    """Pushes an image with this manifest to the local AWS's ECR; returns its name."""
    ecr = client("ecr", live.settings)
    with suppress(ecr.exceptions.RepositoryAlreadyExistsException):
        ecr.create_repository(repositoryName="doctor")
    ecr.put_image(repositoryName="doctor", imageManifest=json.dumps(manifest), imageTag="one")
    return "000000000000.dkr.ecr.us-east-1.amazonaws.com/doctor:one"


# the fields that DescribeTaskDefinition returns and RegisterTaskDefinition accepts (ECS API reference)
REGISTERED = (
    "family", "taskRoleArn", "executionRoleArn", "networkMode", "containerDefinitions", "volumes",
    "requiresCompatibilities", "cpu", "memory", "ephemeralStorage", "runtimePlatform",
)  # fmt: skip


@contextmanager
def _task_definitions(live: Platform, image: str) -> Iterator[None]:
    """Registers a newer revision with this image for every size."""
    ecs = client("ecs", live.settings)
    families = [f"busco-dbt-{size}" for size in ("small", "medium", "large")]
    before = [ecs.describe_task_definition(taskDefinition=family)["taskDefinition"] for family in families]

    def register(image: str) -> None:
        for known in before:
            known["containerDefinitions"][0]["image"] = image
            ecs.register_task_definition(**{name: known[name] for name in REGISTERED if known.get(name)})

    own = before[0]["containerDefinitions"][0]["image"]
    try:
        register(image)
        yield
    finally:
        register(own)


# -- the queue of new files -------------------------------------------------------------------------------------------


@contextmanager
def _notifying(live: Platform, **notified: Any) -> Iterator[None]:
    """Replaces the landing bucket's notifications."""
    buckets, bucket = client("s3", live.settings), live.settings.landing_bucket
    before = buckets.get_bucket_notification_configuration(Bucket=bucket)
    before.pop("ResponseMetadata")
    buckets.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=notified)
    try:
        yield
    finally:
        buckets.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=before)


@contextmanager
def _arrivals(live: Platform) -> Iterator[tuple[str, str]]:
    """Creates a further queue that the landing bucket may notify; yields its URL and ARN."""
    sqs = client("sqs", live.settings)
    url = sqs.create_queue(QueueName="arrivals")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    s3 = {"Service": "s3.amazonaws.com"}
    statement = {"Effect": "Allow", "Principal": s3, "Action": "sqs:SendMessage", "Resource": arn}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    try:
        yield url, arn
    finally:
        with suppress(sqs.exceptions.QueueDoesNotExist):
            sqs.delete_queue(QueueUrl=url)


EVENTS = "arn:aws:sqs:us-east-1:000000000000:busco-events"


def to(arn: str, *events: str, **more: Any) -> dict[str, Any]:
    return {"QueueConfigurations": [{"QueueArn": arn, "Events": list(events or ["s3:ObjectCreated:*"]), **more}]}


def test_the_landing_bucket_must_notify_the_queue_of_all_new_files(live: Platform) -> None:
    good = f"s3://{live.settings.landing_bucket} notifies {EVENTS} of all new objects; \\d+ messages? waiting"
    assert re.fullmatch(good, run_doctor(live, 0)["queue"]["seen"])
    rules = {"Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "orders/"}]}}}
    with _arrivals(live) as (_, other):
        for notified, instead in (
            ({}, "nothing"),
            (to(other), f"{other} of s3:ObjectCreated:*"),
            (to(EVENTS, "s3:ObjectCreated:Put"), f"{EVENTS} of s3:ObjectCreated:Put"),
            (to(EVENTS, **rules), f"{EVENTS} of s3:ObjectCreated:* (prefix orders/)"),
        ):
            with _notifying(live, **notified):
                checks = run_doctor(live, 1)
            assert named(checks, "failed") == {"queue"}
            assert checks["queue"]["seen"].endswith(
                f"does not notify {EVENTS} of all new objects; it notifies {instead}"
            )
            assert f"busco events attach {EVENTS}" in checks["queue"]["fix"]
    with _notifying(live, EventBridgeConfiguration={}):
        checks = run_doctor(live, 0)
    assert f"whether a rule there notifies {EVENTS} can't be checked here" in checks["queue"]["seen"]


def test_a_notification_that_was_removed_is_back_after_the_command_of_the_failed_check(live: Platform) -> None:
    with _notifying(live):
        command = re.search(r"busco (events attach \S+)", run_doctor(live, 1)["queue"]["fix"])
        assert command
        words = ("-m", "busco", *command[1].split())
        done = run_in_airflows_environment(*words, cwd=live.home, environment=os.environ)
        assert "now notifies" in done.stdout, done.stderr
        assert run_doctor(live, 0)["queue"]["state"] == "ok"


def test_the_configured_queue_must_exist(live: Platform) -> None:
    checks = run_doctor(live, 1, BUSCO_EVENTS_QUEUE=f"{live.settings.events_queue}-other")
    assert named(checks, "failed") == {"queue"}
    assert checks["queue"]["seen"] == f"there is no queue {live.settings.events_queue}-other"
    assert "BUSCO_EVENTS_QUEUE" in checks["queue"]["fix"]


def test_without_a_configured_queue_those_that_the_landing_bucket_notifies_must_exist(live: Platform) -> None:
    none = {"BUSCO_EVENTS_QUEUE": ""}
    with _arrivals(live) as (url, arn), _notifying(live, **to(arn)):
        assert run_doctor(live, 0, **none)["queue"]["seen"].startswith("arrivals: ")
        client("sqs", live.settings).delete_queue(QueueUrl=url)
        checks = run_doctor(live, 1, **none)
    assert named(checks, "failed") == {"queue"}
    assert "arrivals of new files, but there is no such queue" in checks["queue"]["seen"]
    with _notifying(live):
        assert "queue" in named(run_doctor(live, 0, **none), "skipped")


# -- AWS services that misbehave --------------------------------------------------------------------------------------


def signed_again(method: str, url: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
    """Returns a request's headers with a new signature for S3, made with this process's keys."""
    request = AWSRequest(method, url, data=body, headers=headers)
    pair = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    S3SigV4Auth(pair, "s3", "us-east-1").add_auth(request)
    return dict(request.headers.items())


@contextmanager
def altered(upstream: str, drop: tuple[str, ...] = (), date: str = "", refuse: str = "") -> Iterator[str]:
    """A proxy for the local AWS that drops request headers, replaces the date in responses, or refuses an action of the
    JSON protocols, such as `ListTasks: ClusterNotFoundException`."""
    action, _, code = refuse.partition(": ")
    target = urlparse(upstream)

    class Proxy(Handler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if action and self.headers.get("X-Amz-Target", "").endswith(f".{action}"):
                refusal = json.dumps({"__type": code, "message": "no"}).encode()
                self.answer(400, refusal, {"Content-Type": "application/x-amz-json-1.1"})
                return
            unwanted = {"connection", "transfer-encoding", "content-length", *drop}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in unwanted}
            if set(drop) & {name.lower() for name in self.headers}:
                headers = signed_again(self.command, f"http://{self.headers['Host']}{self.path}", body, headers)
            connection = http.client.HTTPConnection(target.netloc, timeout=30)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in {"server", "date", *unwanted}}
            self.answer(answer.status, content, kept)
            connection.close()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date or super().date_time_string(timestamp)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

    with serving(Proxy, PROXY_PORT) as url:
        yield url


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_an_s3_that_ignores_a_condition_fails(live: Platform, header: str) -> None:
    with altered(live.settings.endpoint_url or "", drop=(header.lower(),)) as url:
        checks = run_doctor(live, 1, BUSCO_ENDPOINT_URL=url)
    assert named(checks, "failed") == {"conditional writes"}
    assert f"ignores {header}" in checks["conditional writes"]["seen"]


def test_a_clock_that_differs_too_much_from_s3s_fails(live: Platform) -> None:
    with altered(live.settings.endpoint_url or "", date="Mon, 01 Jan 2024 00:00:00 GMT") as url:
        checks = run_doctor(live, 1, BUSCO_ENDPOINT_URL=url)
    assert named(checks, "failed") == {"clock"}
    assert "ahead of S3's" in checks["clock"]["seen"]


def test_a_missing_cluster_is_named(live: Platform) -> None:
    # the emulator lists the tasks of any cluster
    with altered(live.settings.endpoint_url or "", refuse="ListTasks: ClusterNotFoundException") as url:
        checks = run_doctor(live, 1, "airflow", BUSCO_EXECUTION="ecs", BUSCO_ECS_CLUSTER="ours", BUSCO_ENDPOINT_URL=url)
    assert named(checks, "failed") == {"ECS cluster"}
    assert checks["ECS cluster"]["seen"] == "the cluster ours does not exist"


def test_a_role_need_not_read_glue_databases_but_any_other_error_fails(live: Platform) -> None:
    with altered(live.settings.endpoint_url or "", refuse="GetDatabase: AccessDeniedException") as url:
        assert named(run_doctor(live, 0, BUSCO_ENDPOINT_URL=url), "failed") == set(), (
            "a role that can list the tables is sufficient"
        )
    with altered(live.settings.endpoint_url or "", refuse="GetDatabase: InternalServiceException") as url:
        checks = run_doctor(live, 1, BUSCO_ENDPOINT_URL=url)
    assert named(checks, "failed") == {"Glue databases"}
    assert "InternalServiceException" in checks["Glue databases"]["seen"]
    assert "RunnerRole" in checks["Glue databases"]["fix"]
