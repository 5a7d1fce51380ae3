"""Authentication in the local AWS: signatures, the owner's keys, and short-lived credentials of roles."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.exceptions
import botocore.session
import iceberg_helper
import psutil
import pytest
from botocore.config import Config
from botocore.credentials import Credentials
from own_aws import Server, code_of, quiet, started, wait_for

from busco.aws import client
from busco.embedded import aws, instances, keys
from busco.settings import env_file, get_settings, read_env_file

REGION = "us-east-1"


@pytest.fixture
def lake(server: Server) -> str:
    return read_env_file(env_file(server.settings.state))["BUSCO_LAKE_BUCKET"]


def credentials_of(server: Server, role: str) -> Credentials:
    """Returns a role's credentials, as an SDK finds them in the role's environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    variables = read_env_file(env_file(server.settings.state, role))
    with mock.patch.dict(os.environ, kept | variables, clear=True):
        found = botocore.session.Session().get_credentials()
        assert found is not None
        assert found.method == "iam-role"
        frozen = found.get_frozen_credentials()
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


def as_client(server: Server, service: str, who: Credentials) -> Any:
    session = boto3.session.Session(who.access_key, who.secret_key, who.token, region_name=REGION)
    config = Config(
        proxies={}, s3={"addressing_style": "path"}, retries={"max_attempts": 1},
        # boto3 still presigns URLs with signature version 2 by default
        signature_version="s3v4" if service == "s3" else None,
    )  # fmt: skip
    return session.client(service, endpoint_url=server.endpoint, config=config)


def owner(server: Server) -> Credentials:
    pair = keys.owner(server.settings.state)
    return Credentials(pair.key, pair.secret)


def send(
    server: Server,
    who: Credentials | None,
    service: str,
    method: str = "POST",
    path: str = "/",
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    change: Callable[[botocore.awsrequest.AWSRequest], None] = lambda _: None,
) -> tuple[int, str]:
    """Sends a request that is signed and then changed; returns the status and the body of the answer."""
    request = botocore.awsrequest.AWSRequest(method, f"{server.endpoint}{path}", headers=headers or {}, data=body)
    if service == "s3":
        request.headers["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
    if who is not None:
        signer = botocore.auth.S3SigV4Auth if service == "s3" else botocore.auth.SigV4Auth
        signer(who, service, REGION).add_auth(request)
    change(request)
    split = urlsplit(request.url)
    connection = http.client.HTTPConnection(split.netloc, timeout=10)
    target = f"{split.path}?{split.query}" if split.query else split.path
    connection.request(method, target, body=request.data, headers=dict(request.headers.items()))
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def set_header(name: str, value: str) -> Callable[[botocore.awsrequest.AWSRequest], None]:
    def change(request: botocore.awsrequest.AWSRequest) -> None:
        del request.headers[name]
        request.headers[name] = value

    return change


# signatures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["test", "busco-local", "123456789012", "000000000000", "AKIAAAAAAAAAAAAAAAAA", "ASIAAAAAAAAAAAAAAAAA"]
)
@pytest.mark.parametrize("secret", ["test", "busco-local", "{key}"])
def test_unknown_access_keys_are_refused(server: Server, key: str, secret: str) -> None:
    who = Credentials(key, secret.format(key=key))
    for service, call in (("s3", "list_buckets"), ("sts", "get_caller_identity"), ("glue", "get_databases")):
        with pytest.raises(botocore.exceptions.ClientError, match="busco aws env"):
            getattr(as_client(server, service, who), call)()


def test_the_owners_key_with_another_secret_is_refused(server: Server) -> None:
    who = dataclasses.replace(keys.owner(server.settings.state), secret="x" * 40)
    s3 = as_client(server, "s3", Credentials(who.key, who.secret))
    assert code_of(s3.list_buckets) == "SignatureDoesNotMatch"


def test_unsigned_requests_are_refused(server: Server, lake: str) -> None:
    for service, path in (("s3", f"/{lake}/a"), ("s3", "/"), ("sts", "/?Action=GetCallerIdentity"), ("iam", "/")):
        status, text = send(server, None, service, "GET", path)
        assert (status, "must be signed" in text) == (403, True), path


def test_a_request_that_was_changed_after_signing_is_refused(server: Server, lake: str) -> None:
    who, put = owner(server), {"service": "s3", "method": "PUT", "path": f"/{lake}/signed", "body": b"mine"}
    changes: dict[str, Callable[[botocore.awsrequest.AWSRequest], None]] = {
        "another body": lambda one: setattr(one, "data", b"evil"),
        "another path": lambda one: setattr(one, "url", one.url.replace("/signed", "/other")),
        "another parameter": lambda one: setattr(one, "url", f"{one.url}?acl"),
        "another hash": set_header("x-amz-content-sha256", hashlib.sha256(b"evil").hexdigest()),
        "another time": set_header("x-amz-date", time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - 60))),
        "a token": set_header("x-amz-security-token", "any"),
        "a second key": lambda one: setattr(one, "url", f"{one.url}?AWSAccessKeyId={who.access_key}&Signature=x"),
        "a second signature": lambda one: setattr(
            one, "url", f"{one.url}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={who.access_key}/a/b/s3/c"
        ),
    }
    assert send(server, who, **put)[0] == 200
    for name, change in changes.items():
        assert send(server, who, **put, change=change)[0] in (400, 403), name
    assert as_client(server, "s3", who).get_object(Bucket=lake, Key="signed")["Body"].read() == b"mine"


class SignedInChunks(botocore.auth.S3SigV4Auth):
    """Signs a request whose body is signed in chunks, as the AWS SDK for Java sends it without TLS."""

    def payload(self, request: botocore.awsrequest.AWSRequest) -> str:
        return "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


def put_in_chunks(server: Server, who: Credentials, path: str, chunks: list[bytes], sent: list[bytes]) -> int:
    """Puts an object in these chunks, but sends others with their signatures; returns the status."""
    signer = SignedInChunks(who, "s3", REGION)
    headers = {"Content-Encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(b"".join(sent)))}
    request = botocore.awsrequest.AWSRequest("PUT", f"{server.endpoint}{path}", headers=headers)
    signer.add_auth(request)
    previous = request.headers["Authorization"].rpartition("Signature=")[2]
    moment, empty, body = request.headers["X-Amz-Date"], hashlib.sha256(b"").hexdigest(), b""
    for chunk, data in zip([*chunks, b""], [*sent, b""], strict=True):
        parts = ["AWS4-HMAC-SHA256-PAYLOAD", moment, f"{moment[:8]}/{REGION}/s3/aws4_request", previous, empty]
        previous = signer.signature("\n".join([*parts, hashlib.sha256(chunk).hexdigest()]), request)
        body += f"{len(data):x};chunk-signature={previous}\r\n".encode() + data + b"\r\n"
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=10)
    connection.request("PUT", path, body=body, headers=dict(request.headers.items()))
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("role", ["", "runner"])
def test_a_body_that_is_signed_in_chunks_is_stored_as_it_was_signed(server: Server, lake: str, role: str) -> None:
    who, path, chunks = (
        credentials_of(server, role) if role else owner(server),
        f"/{lake}/gold/chunks",
        [b"in ", b"two"],
    )
    assert put_in_chunks(server, who, path, chunks, chunks) == 200
    assert put_in_chunks(server, who, path, chunks, [b"in ", b"six"]) == 403
    assert put_in_chunks(server, Credentials(who.access_key, "x" * 40, who.token), path, chunks, chunks) == 403
    assert server.client("s3").get_object(Bucket=lake, Key="gold/chunks")["Body"].read() == b"in two"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("who", ["nobody", "an unknown key", "a wrong signature", "a long body"])
def test_unauthenticated_and_too_long_bodies_are_not_read(server: Server, lake: str, who: str, chunked: bool) -> None:
    signed: dict[str, str] = {}

    def keep(request: botocore.awsrequest.AWSRequest) -> None:
        signed.update(request.headers.items())

    pair = owner(server)
    if who == "an unknown key":
        pair = Credentials("AKIAAAAAAAAAAAAAAAAA", pair.secret_key)
    elif who == "a wrong signature":
        pair = Credentials(pair.access_key, "x" * 40)
    path = f"/{lake}/gold/long"
    signed_body = b"" if who == "a long body" else b"not the body that follows"
    assert send(server, None if who == "nobody" else pair, "s3", "PUT", path, signed_body, change=keep)[0] in (200, 403)
    signed.pop("Content-Length", None)
    host, port = urlsplit(server.endpoint).netloc.split(":")
    size = 600 << 20
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    # the signed long body: its length is checked before its hash
    headers = "".join(f"{name}: {value}\r\n" for name, value in signed.items() if name.lower() != "host")
    before = server.process.pid
    memory = psutil.Process(before).memory_info().rss
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}{length}\r\n\r\n".encode())
        sent, piece = 0, b"x" * (1 << 20)
        with contextlib.suppress(OSError):
            while sent < (size if chunked and who == "a long body" else 64 << 20):
                connection.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
                sent += len(piece)
            connection.sendall(b"0\r\n\r\n" if chunked else b"")
        answer = b""
        with contextlib.suppress(OSError):
            answer = connection.recv(65_536)
    assert answer.split(b" ")[1:2] in ([b"400"], [b"403"], []), answer[:200]
    grown = psutil.Process(before).memory_info().rss - memory
    assert grown < (700 << 20 if chunked and who == "a long body" else 32 << 20), f"{grown >> 20} MiB"
    assert code_of(lambda: server.client("s3").list_buckets()) == "ok"


def test_an_old_request_is_refused(server: Server) -> None:
    real = botocore.auth.get_current_datetime
    with mock.patch("botocore.auth.get_current_datetime", lambda *a, **k: real(*a, **k).replace(year=2020)):
        assert send(server, owner(server), "s3", "GET")[0] == 403


def test_a_presigned_url_is_valid_only_for_its_operation_and_time(server: Server, lake: str) -> None:
    s3 = as_client(server, "s3", owner(server))
    s3.put_object(Bucket=lake, Key="shared", Body=b"x")
    url = s3.generate_presigned_url("get_object", {"Bucket": lake, "Key": "shared"}, ExpiresIn=60)
    split = urlsplit(url)
    path = f"{split.path}?{split.query}"
    assert send(server, None, "s3", "GET", path) == (200, "x")
    assert send(server, None, "s3", "GET", path.replace("/shared", "/signed"))[0] == 403
    assert send(server, None, "s3", "PUT", path)[0] == 403
    assert send(server, None, "s3", "GET", path.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))[0] == 403
    real = botocore.auth.get_current_datetime
    with mock.patch("botocore.auth.get_current_datetime", lambda *a, **k: real(*a, **k).replace(year=2020)):
        late = s3.generate_presigned_url("get_object", {"Bucket": lake, "Key": "shared"}, ExpiresIn=60)
    assert send(server, None, "s3", "GET", late.removeprefix(server.endpoint))[0] == 403


def test_the_owners_keys_are_private_and_survive_a_restart(tmp_path: Path) -> None:
    first = started(tmp_path / "one")
    pair = keys.owner(first.settings.state)
    aws.down(first.settings, quiet)
    second = started(tmp_path / "one")
    other = keys.owner(tmp_path / "two")
    try:
        assert keys.owner(second.settings.state) == pair
        assert other != pair
        assert (second.settings.state / "secrets" / "local-aws-owner").stat().st_mode & 0o777 == 0o600
        arn = second.client("sts").get_caller_identity()["Arn"]
        assert arn == "arn:aws:iam::000000000000:root"
        lines = aws.env_lines(second.settings)
        assert f"export AWS_ACCESS_KEY_ID={pair.key}\n" in lines
        for role in (*instances.ROLES, "none"):
            file = env_file(second.settings.state, role)
            assert file.stat().st_mode & 0o777 == 0o600
            assert pair.secret not in file.read_text(), role
    finally:
        aws.down(second.settings, quiet)
    assert not list((tmp_path / "one").glob("aws*.env"))


# roles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "logical"), [("airflow", "AirflowRole"), ("runner", "RunnerRole")])
def test_a_process_with_a_role_has_that_role(server: Server, who: str, logical: str) -> None:
    cloudformation = server.client("cloudformation")
    found = cloudformation.describe_stack_resource(StackName="busco-ecs", LogicalResourceId=logical)
    name = found["StackResourceDetail"]["PhysicalResourceId"]
    role = credentials_of(server, who)
    arn = as_client(server, "sts", role).get_caller_identity()["Arn"]
    assert arn == f"arn:aws:sts::000000000000:assumed-role/{name}/busco-{who}"


def test_settings_with_a_role_ignore_the_owners_keys(server: Server) -> None:
    state, pair = server.settings.state, keys.owner(server.settings.state)
    shell = {"BUSCO_STATE_DIR": str(state), "BUSCO_LOCAL_ROLE": "runner", "AWS_ACCESS_KEY_ID": pair.key,
             "AWS_SECRET_ACCESS_KEY": pair.secret, "AWS_PROFILE": "absent"}  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BUSCO_"))}
    with mock.patch.dict(os.environ, kept | shell, clear=True):
        get_settings.cache_clear()
        settings = get_settings()
        assert pair.secret not in os.environ.values()
        assert ":assumed-role/" in client("sts", settings).get_caller_identity()["Arn"]
    get_settings.cache_clear()


def test_a_role_can_do_only_what_its_policy_allows(server: Server, lake: str) -> None:
    runner, airflow = credentials_of(server, "runner"), credentials_of(server, "airflow")
    s3 = as_client(server, "s3", runner)
    s3.put_object(Bucket=lake, Key="gold/t/a.parquet", Body=b"x")
    assert s3.get_object(Bucket=lake, Key="gold/t/a.parquet")["Body"].read() == b"x"
    denied: list[tuple[str, Credentials, Callable[[Any], Any]]] = [
        ("s3", runner, lambda c: c.put_object(Bucket=lake, Key="elsewhere/a")),
        ("s3", runner, lambda c: c.delete_object(Bucket=lake, Key="gold/t/a.parquet")),
        ("s3", runner, lambda c: c.list_buckets()),
        ("s3", runner, lambda c: c.put_bucket_policy(Bucket=lake, Policy="{}")),
        ("glue", runner, lambda c: c.create_table(DatabaseName="busco_gold", TableInput={"Name": "a"})),
        ("iam", runner, lambda c: c.create_user(UserName="a")),
        ("iam", airflow, lambda c: c.create_access_key(UserName="a")),
        ("cloudformation", runner, lambda c: c.list_stacks()),
        ("cloudformation", airflow, lambda c: c.delete_stack(StackName="busco-lake")),
        ("sts", runner, lambda c: c.assume_role(RoleArn=role_of(server, "AirflowRoleArn"), RoleSessionName="attack")),
        ("sts", airflow, lambda c: c.assume_role(RoleArn=role_of(server, "RunnerRoleArn"), RoleSessionName="attack")),
        ("athena", runner, lambda c: c.start_query_execution(QueryString="select 1", WorkGroup="busco")),
        ("sqs", runner, lambda c: c.list_queues()),
        ("ecs", runner, lambda c: c.run_task(cluster="busco", taskDefinition="busco-dbt-small")),
        ("ecs", airflow, lambda c: c.run_task(cluster="other", taskDefinition="busco-dbt-small")),
        ("ecs", airflow, lambda c: c.register_task_definition(family="a", containerDefinitions=[{"name": "a"}])),
        ("cloudwatch", airflow, lambda c: c.list_metrics()),
    ]
    for service, who, call in denied:
        with pytest.raises(botocore.exceptions.ClientError, match=r"AccessDenied|AuthorizationError|not authorized"):
            call(as_client(server, service, who))


def role_of(server: Server, output: str) -> str:
    outputs = server.client("cloudformation").describe_stacks(StackName="busco-ecs")["Stacks"][0]["Outputs"]
    return next(str(one["OutputValue"]) for one in outputs if one["OutputKey"] == output)


def test_the_requests_that_airflow_sends_to_ecs_and_logs_are_allowed(server: Server) -> None:
    airflow = credentials_of(server, "airflow")
    ecs, logs = as_client(server, "ecs", airflow), as_client(server, "logs", airflow)
    assert code_of(lambda: ecs.describe_task_definition(taskDefinition="busco-dbt-small")) == "ok"
    assert code_of(lambda: ecs.list_tasks(cluster="busco")) == "ok"
    task = "arn:aws:ecs:us-east-1:000000000000:task/busco/0123456789abcdef0123456789abcdef"
    assert code_of(lambda: ecs.describe_tasks(cluster="busco", tasks=[task])) == "ok"
    assert code_of(lambda: ecs.stop_task(cluster="busco", task=task)) == "InvalidParameterException"
    assert code_of(lambda: ecs.describe_tasks(cluster="other", tasks=[task.replace("busco", "other")])) != "ok"
    server.client("logs").create_log_stream(logGroupName="/busco/dbt", logStreamName="dbt/dbt/a")
    stream = {"logGroupName": "/busco/dbt", "logStreamName": "dbt/dbt/a"}
    assert code_of(lambda: logs.get_log_events(**stream)) == "ok"
    assert code_of(lambda: logs.describe_log_streams(logGroupName="/busco/dbt")) == "ok"
    server.client("logs").create_log_group(logGroupName="/other")
    assert code_of(lambda: logs.describe_log_streams(logGroupName="/other")) == "AccessDeniedException"


JSON = {"Content-Type": "application/x-amz-json-1.1"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("service", "method", "path", "headers", "body"),
    [
        # requests for which the policies could check another operation than the one that is executed
        ("s3", "PUT", "/{lake}/gold/t/a.parquet?Action=GetObject", {}, b"evil"),
        ("s3", "DELETE", "/{lake}/gold/t/a.parquet?Action=GetObject", {}, b""),
        ("s3", "DELETE", "/{lake}/gold/t/a.parquet", FORM, b"Action=GetObject"),
        ("s3", "DELETE", "/{lake}/gold/t/a.parquet", {"X-Amz-Target": "S3.GetObject"}, b""),
        ("s3", "PUT", "/{lake}//gold/t/a.parquet", {}, b"evil"),
        ("s3", "PUT", "/iceberg/v1/any", {}, b"{}"),
        ("s3", "GET", "/v20180820/accesspoint", {}, b""),
        ("s3", "POST", "/{lake}", {"Content-Type": "multipart/form-data; boundary=a"}, b"--a--"),
        ("glue", "POST", "/?Action=GetTable", {**JSON, "X-Amz-Target": "AWSGlue.DeleteTable"},
         b'{"DatabaseName": "busco_gold", "Name": "kept"}'),
        ("glue", "POST", "/", {**JSON, "X-Amz-Target": "AWSGlue.GetTable.DeleteTable"},
         b'{"DatabaseName": "busco_gold", "Name": "kept"}'),
        ("glue", "POST", "/", {**JSON, "X-Amz-Target": "Other.DeleteTable"},
         b'{"DatabaseName": "busco_gold", "Name": "kept"}'),
        ("glue", "POST", "/", {**JSON, "X-Amz-Target": "AmazonAthena.ListWorkGroups"}, b"{}"),
        ("sts", "POST", "/?Action=GetCallerIdentity", FORM, b"Action=AssumeRole&RoleArn=a&RoleSessionName=a"),
        ("sts", "POST", "/", FORM, b"Action=GetCallerIdentity&Action=AssumeRole&RoleArn=a&RoleSessionName=a"),
        ("sts", "POST", "/", {**JSON, "X-Amz-Target": "AWSSecurityTokenServiceV20110615.AssumeRole"}, b"{}"),
        ("iam", "GET", "/?Action=ListUsers", {}, b""),
        ("ecs", "POST", "/tasks", JSON, b"{}"),
        ("sts", "PUT", "/_ministack/cfn-response/any", {}, b"{}"),
        ("sts", "GET", "/_aws/sqs/messages", {}, b""),
    ],
)  # fmt: skip
def test_ambiguous_requests_are_refused(
    server: Server, lake: str, service: str, method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    server.client("s3").put_object(Bucket=lake, Key="gold/t/a.parquet", Body=b"kept")
    glue, table = server.client("glue"), {"DatabaseName": "busco_gold", "Name": "kept"}
    if code_of(lambda: glue.get_table(**table)) != "ok":
        glue.create_table(DatabaseName="busco_gold", TableInput={"Name": "kept"})
    status, text = send(
        server, credentials_of(server, "runner"), service, method, path.format(lake=lake), body, headers
    )
    assert status in (400, 403), text
    kept = server.client("s3").get_object(Bucket=lake, Key="gold/t/a.parquet")["Body"].read()
    assert kept == b"kept"
    assert code_of(lambda: glue.get_table(**table)) == "ok"


FORGED = "AWS4-HMAC-SHA256 Credential={key}/20261130/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=0"


@pytest.mark.parametrize("key", ["test", "000000000000", "123456789012", ""])
@pytest.mark.parametrize(
    "path", ["/v4/anything", "/v4/anything/task", "/v4/", "/v4", "/v4/a/../..", "//v4/anything", "/v4/anything?x=1"]
)
def test_no_path_is_served_as_root_without_its_signature(server: Server, path: str, key: str) -> None:
    for service, headers, body in (
        ("sts", FORM, b"Action=GetSessionToken&Version=2011-06-15"),
        ("iam", FORM, b"Action=CreateUser&UserName=evil&Version=2010-05-08"),
        ("glue", {**JSON, "X-Amz-Target": "AWSGlue.GetDatabases"}, b"{}"),
        ("s3", {}, b""),
    ):
        forged = {**headers, "Authorization": FORGED.format(key=key, service=service)}
        for method in ("POST", "GET", "PUT", "DELETE"):
            status, text = send(server, None, service, method, path, body, forged)
            assert status in (400, 403, 404), (service, method, text)
    address = f"/v4/anything?Action=CreateUser&UserName=evil&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={key}"
    assert send(server, None, "iam", "GET", f"{address}/20261130/us-east-1/iam/aws4_request")[0] in (400, 403, 404)
    assert code_of(lambda: server.client("iam").get_user(UserName="evil")) == "NoSuchEntity"


@pytest.mark.parametrize("role", ["runner", "airflow"])
@pytest.mark.parametrize(
    "header",
    [
        "AWS4-HMAC-SHA256 Credential=test/{scope}, Credential={own}, {rest}",
        "AWS4-HMAC-SHA256 x=Credential=test/, Credential={own}, {rest}",
        "AWS4-HMAC-SHA256 Credential={own}, {rest}, Credential=test/{scope}",
        "AWS4-HMAC-SHA256 Credential=test/{scope},Credential={own},{rest}",
        "AWS4-HMAC-SHA256  Credential={own}, {rest}, credential=test/{scope}",
        "AWS4-HMAC-SHA256 Credential={own}, {rest} Credential=test/{scope}",
    ],
)
def test_a_role_cannot_become_root_with_a_second_key_in_its_signature(
    server: Server, lake: str, role: str, header: str
) -> None:
    key = f"/{lake}/_lake/env/prod/current.json"

    def twice(request: botocore.awsrequest.AWSRequest) -> None:
        own, rest = request.headers["Authorization"].removeprefix("AWS4-HMAC-SHA256 Credential=").split(", ", 1)
        changed = header.format(own=own, rest=rest, scope=own.split("/", 1)[1])
        set_header("Authorization", changed)(request)

    for method, body in (("PUT", b"evil"), ("DELETE", b"")):
        assert send(server, credentials_of(server, role), "s3", method, key, body, change=twice)[0] in (400, 403)
    body = b"Action=GetSessionToken&Version=2011-06-15"
    assert send(server, credentials_of(server, role), "sts", body=body, headers=FORM, change=twice)[0] in (400, 403)


@pytest.mark.parametrize("role", ["runner", "ingest", "airflow"])
@pytest.mark.parametrize("other", ["select", "acl", "tagging", "versionId", "uploads", "annotation", "%73elect"])
def test_a_role_cannot_combine_two_s3_operations_in_one_request(
    server: Server, lake: str, role: str, other: str
) -> None:
    who, key = credentials_of(server, role), f"/{lake}/_lake/env/prod/current.json"
    own = {"runner": "silver/x", "ingest": "bronze/x"}.get(role, "silver/x")
    for method, named in (("POST", "uploads="), ("POST", "uploadId=x"), ("PUT", "partNumber=1&uploadId=x")):
        assert send(server, who, "s3", method, f"{key}?{other}=&{named}", b"evil")[0] in (400, 403, 404), named
    # the role can't add a part to the owner's upload, or complete it, under either key
    s3 = server.client("s3")
    s3.put_object(Bucket=lake, Key=own, Body=b"evil")
    upload = s3.create_multipart_upload(Bucket=lake, Key="_lake/env/prod/current.json")["UploadId"]
    try:
        for path in (f"/{lake}/{own}", key):
            copied = {"x-amz-copy-source": f"/{lake}/{own}"}
            part = send(server, who, "s3", "PUT", f"{path}?partNumber=1&uploadId={upload}", headers=copied)
            done = send(server, who, "s3", "POST", f"{path}?uploadId={upload}", b"<CompleteMultipartUpload/>")
            assert (part[0], done[0]) == (403, 403), path
    finally:
        s3.abort_multipart_upload(Bucket=lake, Key="_lake/env/prod/current.json", UploadId=upload)


def test_a_role_cannot_copy_a_version_that_it_cannot_read(server: Server, lake: str) -> None:
    s3, who = server.client("s3"), credentials_of(server, "runner")
    version = s3.put_object(Bucket=lake, Key="silver/t/old", Body=b"secret")["VersionId"]
    s3.put_object(Bucket=lake, Key="silver/t/old", Body=b"clean")
    for query in ("versionId", "%76ersionId", "x=1&versionId", "versionId=a&versionId", "VersionId"):
        source = {"x-amz-copy-source": f"/{lake}/silver/t/old?{query}={version}"}
        assert send(server, who, "s3", "PUT", f"/{lake}/silver/t/out", headers=source)[0] == 403, query
    copied = {"x-amz-copy-source": f"/{lake}/silver/t/old"}
    assert send(server, who, "s3", "PUT", f"/{lake}/silver/t/out", headers=copied)[0] == 200
    assert s3.get_object(Bucket=lake, Key="silver/t/out")["Body"].read() == b"clean"


@pytest.mark.parametrize("encoding", ["aws-chunked", "gzip", "identity", "aws-chunked,gzip"])
def test_requests_with_a_content_encoding_are_refused(server: Server, encoding: str) -> None:
    headers = {**FORM, "Content-Encoding": encoding}
    body = b"1a;Action=GetCallerIdentity\r\nAction=AssumeRole&RoleArn=a\r\n0\r\n\r\n"
    for who in (owner(server), credentials_of(server, "runner")):
        assert send(server, who, "sts", body=body, headers=headers)[0] == 400


def test_no_key_makes_athena_copy_an_object_outside_of_its_own_folder(
    server: Server, lake: str, tmp_path: Path
) -> None:
    s3, glue = server.client("s3"), server.client("glue")
    for number, key in enumerate((f"odd/{tmp_path}/written", f"odd/../../../../../../../..{tmp_path}/written")):
        upload = s3.create_multipart_upload(Bucket=lake, Key=key)["UploadId"]
        part = s3.upload_part(Bucket=lake, Key=key, UploadId=upload, PartNumber=1, Body=b"evil")
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        s3.complete_multipart_upload(Bucket=lake, Key=key, UploadId=upload, MultipartUpload=parts)
        place = {"Location": f"s3://{lake}/odd/", "Columns": [{"Name": "a", "Type": "string"}]}
        table = {"Name": f"odd_{number}", "StorageDescriptor": place}
        glue.create_table(DatabaseName="busco_gold", TableInput=table)
        # the query fails, or finds no such object
        with contextlib.suppress(AssertionError):
            assert server.query(f"select count(*) from odd_{number}") == [["0"]]
        assert not list(tmp_path.iterdir())
        s3.delete_object(Bucket=lake, Key=key)


def test_credentials_survive_a_restart_and_expire(tmp_path: Path) -> None:
    first = started(tmp_path / "state")
    role = credentials_of(first, "runner")
    assert code_of(as_client(first, "sts", role).get_caller_identity) == "ok"
    first.kill()
    second = started(tmp_path / "state")
    try:
        assert code_of(as_client(second, "sts", role).get_caller_identity) == "ok"
        bucket = read_env_file(env_file(second.settings.state))["BUSCO_LAKE_BUCKET"]
        assert code_of(lambda: as_client(second, "s3", role).put_object(Bucket=bucket, Key="gold/a")) == "ok"
        secret = keys.instance(second.settings.state, "runner")
        ended = instances.issued(secret, int(time.time()) // instances.WINDOW - 2)
        old = Credentials(ended.key, ended.secret, ended.token)
        with pytest.raises(botocore.exceptions.ClientError, match="busco aws env"):
            as_client(second, "sts", old).get_caller_identity()
        for wrong in (Credentials(role.access_key, role.secret_key), Credentials(role.access_key, "x", role.token)):
            assert code_of(as_client(second, "s3", wrong).list_buckets) != "ok"
    finally:
        aws.down(second.settings, quiet)


def test_nobody_gets_credentials_without_the_secret(server: Server) -> None:
    role = "latest/meta-data/iam/security-credentials/"
    for path in ("/_busco/instance/", "/_busco/instance/guessed/", "/_busco/instance//"):
        assert send(server, None, "s3", "GET", f"{path}{role}")[0] == 404
    for path in ("/latest/meta-data/iam/security-credentials/", "/v2/credentials/any", "/v4/guessed-token/task"):
        assert send(server, None, "s3", "GET", path)[0] in (403, 404), path


def test_an_athena_query_can_read_only_what_its_caller_can_read(server: Server, lake: str) -> None:
    s3, iam = server.client("s3"), server.client("iam")
    metadata, columns = iceberg_helper.write_table(s3, lake, "gold/read", "SELECT 7 AS x")
    iceberg_helper.show(server.client("glue"), "busco_gold", "read", metadata, columns)
    assert server.query("SELECT x FROM read") == [["7"]]
    trust = {"Statement": [{"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"},
                            "Action": "sts:AssumeRole"}]}  # fmt: skip
    arn = iam.create_role(RoleName="asks", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    policy = {"Statement": [{"Effect": "Allow", "Action": ["athena:*", "glue:*"], "Resource": "*"}]}
    iam.put_role_policy(RoleName="asks", PolicyName="a", PolicyDocument=json.dumps(policy))
    found = server.client("sts").assume_role(RoleArn=arn, RoleSessionName="asks")["Credentials"]
    who = Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"])
    athena = as_client(server, "athena", who)
    identifier = athena.start_query_execution(
        QueryString="SELECT x FROM read", QueryExecutionContext={"Database": "busco_gold"}, WorkGroup="busco"
    )["QueryExecutionId"]

    def status() -> dict[str, Any]:
        execution: dict[str, Any] = athena.get_query_execution(QueryExecutionId=identifier)["QueryExecution"]
        return dict(execution["Status"])

    wait_for(lambda: status()["State"] in ("SUCCEEDED", "FAILED"))
    assert status()["State"] == "FAILED"
    assert "403" in status()["StateChangeReason"]


@pytest.mark.parametrize("role", ["runner", "ingest"])
def test_only_airflow_can_send_alerts(server: Server, role: str) -> None:
    topic = read_env_file(env_file(server.settings.state))["BUSCO_ALERTS_TOPIC"]
    sns = as_client(server, "sns", credentials_of(server, role))
    for call in (
        lambda: sns.publish(TopicArn=topic, Message="all is well"),
        lambda: sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="a@example.com"),
        lambda: sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue="{}"),
        lambda: sns.delete_topic(TopicArn=topic),
    ):
        assert code_of(call) in ("AuthorizationError", "AccessDenied")
    airflow = as_client(server, "sns", credentials_of(server, "airflow"))
    assert code_of(lambda: airflow.publish(TopicArn=topic, Message="a run failed")) == "ok"


@pytest.fixture
def reader(server: Server) -> Credentials:
    """A user who has ReadersPolicy and nothing else."""
    iam = server.client("iam")
    outputs = [one for stack in server.client("cloudformation").describe_stacks()["Stacks"] for one in stack["Outputs"]]
    policy = next(one["OutputValue"] for one in outputs if one["OutputKey"] == "ReadersPolicy")
    if code_of(lambda: iam.get_user(UserName="reader")) != "ok":
        iam.create_user(UserName="reader")
        iam.attach_user_policy(UserName="reader", PolicyArn=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    return Credentials(key["AccessKeyId"], key["SecretAccessKey"])


def run_query(server: Server, who: Credentials, sql: str, place: str = "") -> tuple[str, str]:
    """Runs a query; returns its state, and the reason that its caller sees or, if it succeeded, the first value."""
    athena = as_client(server, "athena", who)
    more: Any = {"ResultConfiguration": {"OutputLocation": place}} if place else {}
    identifier = athena.start_query_execution(
        QueryString=sql, QueryExecutionContext={"Database": "busco_gold"}, WorkGroup="busco", **more
    )["QueryExecutionId"]

    def status() -> dict[str, Any]:
        execution: dict[str, Any] = athena.get_query_execution(QueryExecutionId=identifier)["QueryExecution"]
        return dict(execution["Status"])

    wait_for(lambda: status()["State"] in ("SUCCEEDED", "FAILED"))
    found = status()
    if found["State"] == "FAILED":
        return "FAILED", str(found["StateChangeReason"])
    rows = athena.get_query_results(QueryExecutionId=identifier)["ResultSet"]["Rows"]
    return "SUCCEEDED", str(rows[1]["Data"][0].get("VarCharValue"))


def test_a_reader_s_queries_read_only_allowed_data_and_change_nothing(
    server: Server, lake: str, reader: Credentials
) -> None:
    s3, glue = server.client("s3"), server.client("glue")
    metadata, columns = iceberg_helper.write_table(s3, lake, "gold/for_readers", "SELECT 7 AS x")
    iceberg_helper.show(glue, "busco_gold", "for_readers", metadata, columns)
    # the helper writes outside of the keys that ReadersPolicy allows; what it denies stays denied
    files = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [files]})
    server.client("iam").put_user_policy(UserName="reader", PolicyName="files", PolicyDocument=policy)
    assert run_query(server, reader, "SELECT x FROM for_readers") == ("SUCCEEDED", "7")
    s3.put_object(Bucket=lake, Key="_lake/quarantine/s.t/a.csv/1.csv", Body=b"Maria,maria@example.com\n")
    place = {"Location": f"s3://{lake}/_lake/quarantine/s.t/a.csv/", "Columns": [{"Name": "a", "Type": "string"}]}
    if code_of(lambda: glue.get_table(DatabaseName="busco_gold", Name="peek")) != "ok":
        glue.create_table(DatabaseName="busco_gold", TableInput={"Name": "peek", "StorageDescriptor": place})
    assert run_query(server, owner(server), "SELECT a FROM peek")[0] == "SUCCEEDED"
    state, reason = run_query(server, reader, "SELECT a FROM peek")
    assert (state, "403" in reason) == ("FAILED", True)
    for sql in (
        f"CREATE EXTERNAL TABLE mine (a string) LOCATION 's3://{lake}/_lake/quarantine/s.t/a.csv/'",
        "DROP TABLE for_readers",
    ):
        state, reason = run_query(server, reader, sql)
        assert (state, "only the account owner" in reason) == ("FAILED", True), sql
    assert code_of(lambda: glue.get_table(DatabaseName="busco_gold", Name="for_readers")) == "ok"
    releases = f"s3://{lake}/_lake/env/prod/releases/"
    assert run_query(server, reader, "SELECT 1 AS evil", releases) == ("SUCCEEDED", "1")
    assert "Contents" not in s3.list_objects_v2(Bucket=lake, Prefix="_lake/env/prod/releases/"), (
        "results go to the workgroup's location"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT content FROM read_text('s3:' || '//a/b?s3_endpoint=127.0.0.1:9&s3_use_ssl=false')",
        "SELECT content FROM read_text('http://127.0.0.1:9/x'), for_owner",
        "SELECT * FROM duckdb_secrets(), for_owner",
        "SELECT * FROM 's3://{lake}/_lake/quarantine/s.t/a.csv/1.csv'",
        "SELECT * FROM for_owner JOIN 's3://{lake}/gold/a.parquet' ON true",
        "SELECT * FROM for_owner, 's3://{lake}/gold/a.parquet'",
        'SELECT * FROM "s3://{lake}/gold/a.parquet"',
        "SELECT * FROM query('select 1'), for_owner",
        "SELECT x FROM for_owner; SELECT 1",
        "SET s3_endpoint = '127.0.0.1:9'",
    ],
)
def test_a_query_can_read_nothing_but_tables(server: Server, lake: str, sql: str) -> None:
    if code_of(lambda: server.client("glue").get_table(DatabaseName="busco_gold", Name="for_owner")) != "ok":
        metadata, columns = iceberg_helper.write_table(server.client("s3"), lake, "gold/for_owner", "SELECT 7 AS x")
        iceberg_helper.show(server.client("glue"), "busco_gold", "for_owner", metadata, columns)
    state, reason = run_query(server, owner(server), sql.format(lake=lake))
    assert state == "FAILED"
    assert "rejected before it ran" in reason or "a string is not a table" in reason, reason


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_airflow_puts_metrics_into_its_own_namespace_and_uses_nothing_else_of_cloudwatch(server: Server) -> None:
    airflow = credentials_of(server, "airflow")
    cloudwatch = as_client(server, "cloudwatch", airflow)
    metric = {"MetricName": "Heartbeat", "Value": 1}
    cloudwatch.put_metric_data(Namespace="Busco", MetricData=[metric])
    for namespace in ("AWS/EC2", "busco"):
        call = partial(cloudwatch.put_metric_data, Namespace=namespace, MetricData=[metric])
        assert "AccessDenied" in code_of(call), namespace
    assert "AccessDenied" in code_of(cloudwatch.describe_alarms)
    assert "AccessDenied" in code_of(lambda: cloudwatch.delete_alarms(AlarmNames=["busco-disk-full"]))
    runner = as_client(server, "cloudwatch", credentials_of(server, "runner"))
    assert "AccessDenied" in code_of(lambda: runner.put_metric_data(Namespace="Busco", MetricData=[metric]))
    # what MiniStack would read as another operation, and a body that policies can't be evaluated for
    headers = {
        "content-type": "application/x-amz-json-1.0",
        "x-amz-target": "GraniteServiceVersion20100801.PutMetricData",
    }
    body = json.dumps({"Namespace": "Busco", "MetricData": [metric]}).encode()
    assert send(server, airflow, "monitoring", body=body, headers=headers)[0] == 200
    for path, given in (
        ("/", {**headers, "x-amz-target": "GraniteServiceVersion20100801.DeleteAlarms"}),
        ("/", {**headers, "x-amz-target": "Other.PutMetricData"}),
        ("/", {**headers, "content-encoding": "gzip"}),
        ("/", {**headers, "content-type": "application/cbor"}),
        ("/", {**headers, "smithy-protocol": "rpc-v2-cbor"}),
        ("/service/GraniteServiceVersion20100801/operation/DeleteAlarms", headers),
        ("/?Action=DeleteAlarms", headers),
    ):
        status, answer = send(server, airflow, "monitoring", path=path, body=body, headers=given)
        assert (status, "AccessDenied" in answer) == (403, True), (path, given)
