"""Which roles the local ECS can start tasks with, and what their containers and other clients have access to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from busco.embedded import door, ecs_containers, instances, policies
from busco.embedded.door import CALLER, Refusal, Request, guarded
from busco.embedded.instances import Instances

ACCOUNT = "000000000000"
TASKS = "ecs-tasks.amazonaws.com"
HERE = f"arn:aws:ecs:us-east-1:{ACCOUNT}:*"


def trust(principal: dict[str, str], account: str = ACCOUNT) -> str:
    condition = {"StringEquals": {"aws:SourceAccount": account}, "ArnLike": {"aws:SourceArn": HERE}}
    given = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole", "Condition": condition}
    return json.dumps({"Statement": [given]})


@pytest.fixture(autouse=True)
def roles() -> Iterator[None]:
    from ministack.services import iam, sts

    made = {
        "runner": trust({"Service": TASKS}),
        "publisher": trust({"AWS": f"arn:aws:iam::{ACCOUNT}:role/airflow"}),
        "machine": trust({"Service": "ec2.amazonaws.com"}),
        "elsewhere": trust({"Service": TASKS}, account="111111111111"),
        "airflow": trust({"Service": "ec2.amazonaws.com"}),
    }
    for name, document in made.items():
        iam._roles[name] = {"RoleName": name, "Arn": arn(name), "AssumeRolePolicyDocument": document}
    yield
    for name in made:
        iam._roles.pop(name, None)
    sts._sessions.clear()


def arn(name: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"


@pytest.mark.parametrize(("role", "good"), [("runner", True), ("publisher", False), ("machine", False),
                                            ("elsewhere", False), ("absent", False)])  # fmt: skip
def test_a_task_cannot_have_a_role_that_does_not_trust_ecs(role: str, good: bool) -> None:
    assert (policies.passed(arn(role), TASKS, HERE) == "") == good


def test_a_role_can_pass_only_the_roles_that_its_policy_names() -> None:
    from ministack.services import iam, sts

    iam._roles["other"] = {**iam._roles["runner"], "RoleName": "other", "Arn": arn("other")}
    statement = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": arn("runner"),
           "Condition": {"StringEquals": {"iam:PassedToService": TASKS}}}  # fmt: skip
    iam._roles["airflow"]["InlinePolicies"] = {"start": json.dumps({"Statement": [statement]})}
    sts.register_session(
        "ASIAAIRFLOW",
        {
            "Arn": f"arn:aws:sts::{ACCOUNT}:assumed-role/airflow/a", "UserId": "a", "SecretAccessKey": "a",
            "SessionToken": "a", "Expiration": 2**40, "AccountId": ACCOUNT, "PrincipalType": "AssumedRole",
        },
    )  # fmt: skip
    token = CALLER.set("ASIAAIRFLOW")
    try:
        assert policies.passed(arn("runner"), TASKS, HERE) == ""
        assert "iam:PassRole" in policies.passed(arn("other"), TASKS, HERE)
    finally:
        CALLER.reset(token)
        iam._roles.pop("other")


def test_roles_come_from_the_overrides_or_else_from_the_definition() -> None:
    definition = {"taskRoleArn": "a", "executionRoleArn": "b"}
    assert ecs_containers.roles(definition, {}) == ["a", "b"]
    assert ecs_containers.roles(definition, {"taskRoleArn": "c"}) == ["c", "b"]
    assert ecs_containers.roles({}, {}) == []


def test_a_container_gets_the_endpoint_of_its_roles_credentials_but_no_keys() -> None:
    known = instances.variables("http://10.0.0.1:1", "secret")
    environment = ecs_containers.environment(
        {"OWN": "stays", "AWS_REGION": "eu-west-1"}, "http://10.0.0.1:1", "r", "F", known
    )
    assert environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == "http://10.0.0.1:1/_busco/instance/secret"
    assert (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]) == ("", "")
    assert (environment["OWN"], environment["AWS_REGION"]) == ("stays", "eu-west-1")


def test_credentials_are_reused_for_half_an_hour_and_stay_valid_for_another_half_hour() -> None:
    now = [instances.WINDOW * 1000.0]
    known = Instances(lambda: now[0])
    known.add("secret", "session", lambda: arn("runner"))
    path = "/_busco/instance/secret/latest/meta-data/iam/security-credentials/runner"
    first = json.loads(known.answer("GET", path)[1])
    now[0] += instances.WINDOW - 1
    assert json.loads(known.answer("GET", path)[1])["AccessKeyId"] == first["AccessKeyId"]
    now[0] += 1
    second = json.loads(known.answer("GET", path)[1])
    assert second["AccessKeyId"] != first["AccessKeyId"]
    assert known.session(first["AccessKeyId"]) is not None
    now[0] += instances.WINDOW
    assert known.session(first["AccessKeyId"]) is None
    known.remove("secret")
    assert known.session(second["AccessKeyId"]) is None
    assert known.answer("GET", path)[0] == 404


class _AdmitsAll:
    def metadata(self, method: str, path: str) -> tuple[int, str]:
        return 200, f"{method} {path}"

    async def task_metadata(self, path: str) -> tuple[int, str, bytes]:
        return 200, "text/plain", path.encode()

    def expects(self, request: Request) -> None: ...

    def proof(self, nonce: str, identity: Mapping[str, Any]) -> str:
        return nonce

    def admit(self, request: Request) -> None: ...


def request_at(server: tuple[str, int], path: str, target: str = "", service: str = "s3") -> tuple[int, str]:
    """Sends a request to a listener. Returns status and body; status 299 means that the request reached MiniStack."""

    async def app(scope: door.Scope, receive: door.Receive, send: door.Send) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b"asked"})

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    signed = (
        f"AWS4-HMAC-SHA256 Credential=k/20200101/r/{service}/aws4_request, SignedHeaders=host, Signature={'0' * 64}"
    )
    headers = {"host": f"{server[0]}:{server[1]}", "authorization": signed}
    if target:
        headers |= {"x-amz-target": target, "content-type": "application/x-amz-json-1.1"}
    scope = {"type": "http", "method": "POST" if target else "GET", "path": path, "query_string": b"", "server": server,
             "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}  # fmt: skip
    of_tasks = ("172.17.0.1", 4567)
    asyncio.run(guarded(app, {"pid": 1}, _AdmitsAll(), ("172.17.0.1",), of_tasks)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize(
    ("service", "target"),
    [
        ("ecs", "AmazonEC2ContainerServiceV20141113.RunTask"),
        ("athena", "AmazonAthena.StartQueryExecution"),
        ("sqs", "AmazonSQS.SendMessage"),
        ("ecr", "AmazonEC2ContainerRegistry_V20150921.PutImage"),
        ("events", "AWSEvents.PutEvents"),
    ],
)
def test_tasks_get_the_services_they_need_and_a_refusal_names_any_other_service(service: str, target: str) -> None:
    tasks, others = ("172.17.0.1", 4567), ("172.17.0.1", 4566)
    status, text = request_at(tasks, "/", target, service)
    assert (status, f"{service} is not available to ECS tasks" in text) == (403, True)
    assert request_at(others, "/", target, service)[0] == 299
    for needed, operation in (("glue", "AWSGlue.GetTable"), ("logs", "Logs_20140328.PutLogEvents")):
        assert request_at(tasks, "/", operation, needed)[0] == 299
    assert request_at(tasks, "/bucket/key")[0] == 299
    assert request_at(tasks, "/v4/token-of-ecs/task") == (200, "/v4/token-of-ecs/task")
    for path in ("/v4/token-of-ecs/task/", "/v4/short/task", "/v4/token-of-ecs/other", "/v4"):
        assert request_at(tasks, path)[0] == 403, path
    assert request_at(tasks, "/_busco/instance/secret/latest/api/token")[0] == 200
    assert request_at(tasks, "/_busco/identity")[0] == 403
    assert request_at(others, "/_busco/identity")[0] == 200
    for form in ("iam", "cloudformation", "sns"):
        assert request_at(tasks, "/", "", form)[0] in (400, 403)


def test_ecs_operations_are_authorized_for_the_resources_that_they_name() -> None:
    arns = f"arn:aws:ecs:us-east-1:{ACCOUNT}"
    task = {"cluster": f"{arns}:cluster/busco", "tasks": ["one", f"{arns}:task/busco/two"]}
    assert policies.ecs_resource("DescribeTasks", task, arns) == f"{arns}:task/busco/one"
    mixed = {"cluster": "busco", "tasks": ["one", f"{arns}:task/other/two"]}
    assert policies.ecs_resource("DescribeTasks", mixed, arns) == "*"
    assert policies.ecs_resource("StopTask", {"cluster": "busco", "task": "one"}, arns) == f"{arns}:task/busco/one"
    assert policies.ecs_resource("ListTasks", {"cluster": "busco"}, arns) == "*"
    assert policies.ecs_cluster({"cluster": "busco"}, arns) == f"{arns}:cluster/busco"


def test_a_role_cannot_use_a_service_without_known_permissions() -> None:
    request = Request("monitoring", "POST", "/", "/", {}, {}, b"", "", {})
    with pytest.raises(Refusal, match="roles can only put metrics"):
        policies.check_covered(request)


def test_the_docker_engine_has_an_address_by_name_and_by_ip() -> None:
    from busco.embedded.local_aws_server import engine_addresses

    assert engine_addresses("unix:///var/run/docker.sock") == ["/var/run/docker.sock"]
    assert engine_addresses("tcp://localhost:2375") == [("localhost", 2375), ("127.0.0.1", 2375)]
