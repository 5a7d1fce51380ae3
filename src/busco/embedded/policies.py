"""Roles may do here what their policies say, and nothing that no policy is asked about.

MiniStack evaluates them. Here is what it lacks for ours: the resources and the cluster of requests to ECS, log streams,
Glue's databases, the roles that RunTask passes, whom a role trusts, and that an operation of which it knows no
permission is not allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from busco.embedded import ministack_contract
from busco.embedded.door import CALLER, PRESIGNED, Refusal, Request

# What is wrapped or called of ministack, with the parameters that it had when this was written.
EXPECTED = {
    "app.pin_request_origin": ["source_ip", "secure_transport"],
    "core.iam_actions.extract_resource_arn": [
        *("service", "method", "path", "headers", "body", "query_params", "region", "account_id"),
    ],
    "core.iam_actions.request_tag_context": ["service", "iam_action", "body", "params"],
    "core.iam_actions.extract_iam_action": ["service", "method", "path", "headers", "body", "query_params"],
    "core.iam_evaluator.enforce": [
        *("access_key_id", "iam_action", "service", "region", "resource_arn", "service_context"),
    ],
    "core.iam_evaluator.evaluate_trust_policy": ["trust_doc", "caller_arn", "ctx"],
    "core.iam_evaluator.is_root_access_key": ["access_key_id"],
    "core.router.extract_access_key_id": ["headers", "query_params"],
}
# What a role may name of an S3 object or bucket besides its key, by method: of each request one, or a part and its
# upload. MiniStack asks its policies about the first of many that it finds, and does what the first of others says.
_SUBRESOURCES = {
    "GET": {
        *("", "encryption", "lifecycle", "list-type", "location", "notification", "policy", "tagging", "uploadId"),
        *("uploads", "versionId", "versioning", "versions"),
    },
    "HEAD": {"", "versionId"},
    "PUT": {"", "uploadId"},
    "POST": {"delete", "uploadId", "uploads"},
    "DELETE": {"", "uploadId", "versionId"},
}
# what says which of several, and how they are answered
_DETAILS = frozenset(
    {"continuation-token", "delimiter", "encoding-type", "fetch-owner", "key-marker", "marker", "max-keys", "max-parts"}
    | {"max-uploads", "part-number-marker", "partNumber", "prefix", "start-after", "upload-id-marker"}
    | {"version-id-marker", "x-id", *PRESIGNED, "X-Amz-Security-Token"}
)
# operations of Athena's that name a query alone
_OF_EXECUTIONS = ("GetQueryExecution", "GetQueryResults", "GetQueryRuntimeStatistics", "StopQueryExecution")
_COPY_SOURCE = re.compile(r"/?[^?]+(\?versionId=[A-Za-z0-9._-]+)?")


def install(owner: str) -> None:
    """Corrects `ministack` in this process, before it serves.

    Args:
        owner: the access key of the account's owner.

    Raises:
        RuntimeError: this MiniStack is not the one that the correction was written for.
    """
    from ministack import app
    from ministack.core import iam_actions, iam_evaluator
    from ministack.services import sts

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_aws_roles.py")
    original_origin, original_arn = app.pin_request_origin, iam_actions.extract_resource_arn
    original_context, original_root = iam_actions.request_tag_context, iam_evaluator.is_root_access_key

    def is_root(access_key_id: str) -> bool:
        # MiniStack takes no key, `test` and any account's number for root's, without a look at a signature
        caller = CALLER.get()
        return access_key_id == caller == owner if caller else bool(original_root(access_key_id))

    def resource(service: str, *given: Any) -> str:
        headers, body, region, account = given[2], given[3], given[5], given[6]
        if service == "logs":
            # as AWS words it, which `log-group:<name>:*` matches
            found = str(original_arn(service, *given))
            of_group = found.count(":") == 6 and ":log-group:" in found
            return f"{found}:log-stream:{_json(body).get('logStreamName') or ''}" if of_group else found
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        if service == "glue" and operation in ("GetDatabase", "UpdateDatabase", "DeleteDatabase"):
            # MiniStack takes it for a table of that name
            return f"arn:aws:glue:{region}:{account}:database/{_json(body).get('Name') or ''}"
        if service == "athena" and operation in _OF_EXECUTIONS:
            # as AWS says it: a query is its workgroup's (Service Authorization Reference, Athena)
            return f"arn:aws:athena:{region}:{account}:workgroup/{_workgroup(_json(body))}"
        if service != "ecs":
            return str(original_arn(service, *given))
        return ecs_resource(operation, _json(body), f"arn:aws:ecs:{region}:{account}")

    def context(service: str, action: str, body: bytes, params: Any) -> dict[str, Any]:
        found: dict[str, Any] = original_context(service, action, body, params)
        if service == "ecs":
            from ministack.core.responses import get_account_id, get_region

            found["ecs:cluster"] = ecs_cluster(_json(body), f"arn:aws:ecs:{get_region()}:{get_account_id()}")
        return found

    # loopback and Docker's networks stand for the TLS that policies ask for
    app.pin_request_origin = lambda source, _: original_origin(source, True)
    iam_actions.extract_resource_arn = resource
    iam_actions.request_tag_context = context
    iam_evaluator.is_root_access_key = sts.is_root_access_key = is_root


def same_caller(asked: Request, key: str) -> None:
    """Whether MiniStack finds the access key in a request that its signature was verified for.

    Raises:
        Refusal: it finds another one.
    """
    from ministack.core.router import extract_access_key_id

    if extract_access_key_id(asked.headers, asked.query) != key:
        raise Refusal("IncompleteSignature", "a request has one signature, of Signature Version 4", 400)


def decided(asked: Request) -> None:
    """Whether policies are asked about what a role asks for, and about nothing else.

    Raises:
        Refusal: MiniStack would allow it without asking them, or could take it for another request.
    """
    from ministack.core.iam_actions import extract_iam_action

    if asked.service == "monitoring":
        raise Refusal("AccessDenied", "monitoring is the owner's here")
    if asked.service == "s3":
        # MiniStack's policies and its store differ in what an empty part of a key is
        if "//" in asked.path:
            raise Refusal("AccessDenied", "a key has no empty parts here")
        if asked.method == "POST" and asked.path.strip("/").count("/") == 0 and "delete" not in asked.query:
            raise Refusal("AccessDenied", "forms are not offered here")
        _one_subresource(asked)
        _one_source(asked.headers.get("x-amz-copy-source", ""))
    action = extract_iam_action(
        asked.service, asked.method, asked.path, asked.headers, asked.body, {**asked.form, **asked.query}
    )
    if action is None or (asked.operation and action.rpartition(":")[2] != asked.operation):
        raise Refusal("AccessDenied", "no permission is known for this")


def _workgroup(given: dict[str, Any]) -> str:
    """The workgroup of the query that a request to Athena names; empty where there is no such query."""
    from ministack.services import athena

    execution = athena._executions.get(str(given.get("QueryExecutionId", ""))) or {}
    return str(execution.get("WorkGroup", ""))


def _one_subresource(asked: Request) -> None:
    """Whether an S3 request means one thing, and a part or the end of an upload its own upload.

    Raises:
        Refusal: it names several sub-resources, one of which no role needs, or another object's upload.
    """
    from ministack.services import s3

    named = set(asked.query) - _DETAILS
    if len(named) > 1 or not named <= _SUBRESOURCES.get(asked.method, set()) | {""}:
        raise Refusal("AccessDenied", f"a role may not ask S3 for {', '.join(sorted(named))} here")
    if not named and "" not in _SUBRESOURCES.get(asked.method, ()):
        raise Refusal("AccessDenied", f"a role may not ask S3 for a plain {asked.method} here")
    if len({*asked.query.get("uploadId", ())}) > 1:
        raise Refusal("AccessDenied", "a request has one upload")
    for name in asked.query.get("uploadId", ()):
        upload = s3._multipart_uploads.get(name)
        if upload is not None and f"/{upload['bucket']}/{upload['key']}" != asked.path:
            raise Refusal("AccessDenied", "this upload is another object's")


def _one_source(source: str) -> None:
    """Whether the source of a copy, as its header says it, is the one that policies are asked about.

    Raises:
        Refusal: a version of it is named in a way that the policies' side does not read.
    """
    if source and not _COPY_SOURCE.fullmatch(source):
        raise Refusal("AccessDenied", "a copy's source is a key, or a key and ?versionId=… here")


def ecs_cluster(given: dict[str, Any], arn: str) -> str:
    """The ARN of a request's cluster."""
    return f"{arn}:cluster/{str(given.get('cluster') or 'default').rpartition('/')[2]}"


def ecs_resource(operation: str, given: dict[str, Any], arn: str) -> str:
    """The resource of a request to ECS (Service Authorization Reference, ECS), `*` for what has none."""
    from ministack.services import ecs

    if operation == "RunTask":
        key = ecs._resolve_td_key(str(given.get("taskDefinition", "")))
        return f"{arn}:task-definition/{key}"
    named = given.get("tasks") if operation == "DescribeTasks" else [given.get("task")]
    if operation in ("DescribeTasks", "StopTask") and isinstance(named, list) and named:
        cluster = ecs_cluster(given, arn).rpartition("/")[2]
        arns = [str(one) if str(one).startswith("arn:") else f"{arn}:task/{cluster}/{one}" for one in named]
        within = {one.rpartition("/")[0] for one in arns}
        return arns[0] if len(within) == 1 else "*"
    if operation.endswith("Cluster"):
        return ecs_cluster(given, arn)
    return "*"


def denied(action: str, arn: str, context: dict[str, Any] | None = None) -> bool:
    """Whether the caller's policies do not allow an action (`s3:GetObject`) that a request of his brings along."""
    from ministack.core import iam_evaluator
    from ministack.core.responses import get_region

    key = CALLER.get()
    service = action.partition(":")[0]
    return bool(key) and iam_evaluator.enforce(key, action, service, get_region(), arn, context) is not None


def passed(role: str, service: str, arn: str) -> str:
    """Why the caller can't have `service` run something with a role; empty if he can.

    Args:
        role: the role's ARN.
        service: its principal, `ecs-tasks.amazonaws.com`.
        arn: what is made with it, for the conditions of the role's trust.
    """
    if not trusts(role, service, arn):
        return f"ECS was unable to assume the role '{role}': it doesn't exist, or doesn't trust {service}"
    if denied("iam:PassRole", role, {"iam:PassedToService": service}):
        return f"the caller is not authorized to perform: iam:PassRole on resource: {role}"
    return ""


def trusts(role: str, service: str, arn: str = "") -> bool:
    """Whether a role exists and may be assumed by a service of AWS's, for `arn`."""
    from ministack.core import iam_evaluator
    from ministack.services import iam

    found = iam._roles.get(role.rpartition("/")[2])
    if found is None or found.get("Arn") != role:
        return False
    document = found.get("AssumeRolePolicyDocument") or {}
    if isinstance(document, str):
        document = json.loads(document)
    account = role.split(":")[4]
    statements = [one for one in document.get("Statement", []) if service in _services(one)]
    root = f"arn:aws:iam::{account}:root"
    context = iam_evaluator.EvalContext(
        principal_arn=root, principal_type="Root", principal_account=account, action="sts:AssumeRole",
        resource_arn=role, region="", service_context={"aws:sourceaccount": account, "aws:sourcearn": arn},
    )  # fmt: skip
    return bool(iam_evaluator.evaluate_trust_policy({"Statement": statements}, root, context))


def output(stack: str, name: str) -> Callable[[], str]:
    """An output of a stack as it is when it is asked for; empty where there is none."""

    def value() -> str:
        from ministack.services import cloudformation

        outputs = (cloudformation._stacks.get(stack) or {}).get("Outputs", [])
        return next((str(one["OutputValue"]) for one in outputs if one["OutputKey"] == name), "")

    return value


def _services(statement: Any) -> list[str]:
    principal = statement.get("Principal") if isinstance(statement, dict) else None
    found = principal.get("Service", []) if isinstance(principal, dict) else []
    return [found] if isinstance(found, str) else list(found)


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
