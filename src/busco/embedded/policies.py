"""Restricts roles to what their policies allow, and refuses requests for which no policy would be evaluated.

MiniStack evaluates the policies. This module adds what our policies need and MiniStack lacks: the resources and the
cluster of ECS requests, log streams, Glue databases, the workgroups of Athena queries, the roles passed to RunTask,
trust policies, and the refusal of operations that MiniStack maps to no permission.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from busco.embedded import ministack_contract
from busco.embedded.door import CALLER, PRESIGNED, Refusal, Request

# The MiniStack functions that this module wraps or calls, with the parameters that they had when it was written.
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
# The S3 sub-resources that roles can use, by HTTP method. A request can name only one: with several, MiniStack could
# authorize one of them and execute another, since it looks for them in different orders.
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
# query parameters that select a part, version or page of a sub-resource, control the response, or sign the URL
_DETAILS = frozenset(
    {"continuation-token", "delimiter", "encoding-type", "fetch-owner", "key-marker", "marker", "max-keys", "max-parts"}
    | {"max-uploads", "part-number-marker", "partNumber", "prefix", "start-after", "upload-id-marker"}
    | {"version-id-marker", "x-id", *PRESIGNED, "X-Amz-Security-Token"}
)
# Athena operations whose requests name a query but not its workgroup
_OF_EXECUTIONS = ("GetQueryExecution", "GetQueryResults", "GetQueryRuntimeStatistics", "StopQueryExecution")
_COPY_SOURCE = re.compile(r"/?[^?]+(\?versionId=[A-Za-z0-9._-]+)?")


_PUT_METRICS = "GraniteServiceVersion20100801.PutMetricData"


def install(owner: str) -> None:
    """Patches `ministack` in this process. Call this before serving requests.

    Args:
        owner: the access key of the account's owner.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    from ministack import app
    from ministack.core import iam_actions, iam_evaluator
    from ministack.services import sts

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_aws_roles.py")
    original_origin, original_arn = app.pin_request_origin, iam_actions.extract_resource_arn
    original_action = iam_actions.extract_iam_action
    original_context, original_root = iam_actions.request_tag_context, iam_evaluator.is_root_access_key

    def is_root(access_key_id: str) -> bool:
        # Without this, MiniStack treats a missing key, `test` and any account number as root, whatever the signature.
        caller = CALLER.get()
        return access_key_id == caller == owner if caller else bool(original_root(access_key_id))

    def action(service: str, *given: Any) -> str | None:
        found: str | None = original_action(service, *given)
        # The permission for a batch is that for one message (SQS Developer Guide, "Actions, resources, and condition
        # keys for Amazon SQS").
        return found.removesuffix("Batch") if service == "sqs" and found else found

    def resource(service: str, *given: Any) -> str:
        headers, body, region, account = given[2], given[3], given[5], given[6]
        if service == "logs":
            # AWS's format, which `log-group:<name>:*` matches
            found = str(original_arn(service, *given))
            of_group = found.count(":") == 6 and ":log-group:" in found
            return f"{found}:log-stream:{_json(body).get('logStreamName') or ''}" if of_group else found
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        if service == "glue" and operation in ("GetDatabase", "UpdateDatabase", "DeleteDatabase"):
            # MiniStack mistakes the database's name for a table's.
            return f"arn:aws:glue:{region}:{account}:database/{_json(body).get('Name') or ''}"
        if service == "athena" and operation in _OF_EXECUTIONS:
            # As on AWS, a query is authorized by its workgroup (Service Authorization Reference, Athena).
            return f"arn:aws:athena:{region}:{account}:workgroup/{_workgroup(_json(body))}"
        if service != "ecs":
            return str(original_arn(service, *given))
        return ecs_resource(operation, _json(body), f"arn:aws:ecs:{region}:{account}")

    def context(service: str, action: str, body: bytes, params: Any) -> dict[str, Any]:
        found: dict[str, Any] = original_context(service, action, body, params)
        if service == "ecs":
            from ministack.core.responses import get_account_id, get_region

            found["ecs:cluster"] = ecs_cluster(_json(body), f"arn:aws:ecs:{get_region()}:{get_account_id()}")
        if service == "monitoring" and action == "cloudwatch:PutMetricData":
            found["cloudwatch:namespace"] = str(_json(body).get("Namespace") or "")
        return found

    # Policies require TLS; traffic on loopback and Docker's networks counts as secure.
    app.pin_request_origin = lambda source, _: original_origin(source, True)
    iam_actions.extract_iam_action = action
    iam_actions.extract_resource_arn = resource
    iam_actions.request_tag_context = context
    iam_evaluator.is_root_access_key = sts.is_root_access_key = is_root


def check_caller(request: Request, key: str) -> None:
    """Checks that the access key that MiniStack reads from a request is the one whose signature was verified.

    Raises:
        Refusal: MiniStack reads a different key.
    """
    from ministack.core.router import extract_access_key_id

    if extract_access_key_id(request.headers, request.query) != key:
        raise Refusal("IncompleteSignature", "a request must have exactly one signature (Signature Version 4)", 400)


def check_covered(request: Request) -> None:
    """Checks that MiniStack evaluates policies for exactly the action that a role's request performs.

    Raises:
        Refusal: MiniStack would allow the request without evaluating policies, or could mistake it for another one.
    """
    from ministack.core.iam_actions import extract_iam_action

    if request.service == "monitoring":
        if not _puts_metrics(request):
            raise Refusal("AccessDenied", "roles can only put metrics (PutMetricData) on the local AWS")
        return
    if request.service == "s3":
        # MiniStack's policy evaluation and its storage treat an empty part of a key differently.
        if "//" in request.path:
            raise Refusal("AccessDenied", "the local AWS does not support keys with empty parts (//)")
        if request.method == "POST" and request.path.strip("/").count("/") == 0 and "delete" not in request.query:
            raise Refusal("AccessDenied", "the local AWS does not support uploads from HTML forms")
        _one_subresource(request)
        _one_source(request.headers.get("x-amz-copy-source", ""))
    action = extract_iam_action(
        request.service, request.method, request.path, request.headers, request.body, {**request.form, **request.query}
    )
    operation = request.operation.removesuffix("Batch") if request.service == "sqs" else request.operation
    if action is None or (operation and action.rpartition(":")[2] != operation):
        raise Refusal("AccessDenied", "no permission on the local AWS covers this request")


def _puts_metrics(request: Request) -> bool:
    """Whether a request is PutMetricData as boto3 sends it, which MiniStack can't mistake for another operation."""
    headers = request.headers
    return (
        (request.method, request.path, request.query) == ("POST", "/", {})
        and headers.get("x-amz-target") == _PUT_METRICS
        and headers.get("content-type") == "application/x-amz-json-1.0"
        # policies could not be evaluated for a compressed body
        and not {"content-encoding", "smithy-protocol"} & headers.keys()
    )


def _workgroup(given: dict[str, Any]) -> str:
    """Returns the workgroup of the query that an Athena request names; empty if there is no such query."""
    from ministack.services import athena

    execution = athena._executions.get(str(given.get("QueryExecutionId", ""))) or {}
    return str(execution.get("WorkGroup", ""))


def _one_subresource(request: Request) -> None:
    """Checks that an S3 request names at most one sub-resource, and no upload of another object.

    Raises:
        Refusal: the request names several sub-resources, one that no role needs, or another object's upload.
    """
    from ministack.services import s3

    named = set(request.query) - _DETAILS
    if len(named) > 1 or not named <= _SUBRESOURCES.get(request.method, set()) | {""}:
        raise Refusal("AccessDenied", f"roles cannot request {', '.join(sorted(named))} from the local S3")
    if not named and "" not in _SUBRESOURCES.get(request.method, ()):
        raise Refusal("AccessDenied", f"roles cannot send a plain {request.method} request to the local S3")
    if len({*request.query.get("uploadId", ())}) > 1:
        raise Refusal("AccessDenied", "a request can name only one uploadId")
    for name in request.query.get("uploadId", ()):
        upload = s3._multipart_uploads.get(name)
        if upload is not None and f"/{upload['bucket']}/{upload['key']}" != request.path:
            raise Refusal("AccessDenied", "this upload belongs to another object")


def _one_source(source: str) -> None:
    """Checks that policies are evaluated for the source that a copy request's header names.

    Raises:
        Refusal: the header names the version in a form that MiniStack's policy evaluation does not parse.
    """
    if source and not _COPY_SOURCE.fullmatch(source):
        raise Refusal("AccessDenied", "x-amz-copy-source must be a key, optionally followed by ?versionId=…")


def ecs_cluster(given: dict[str, Any], arn: str) -> str:
    """Returns the ARN of a request's cluster."""
    return f"{arn}:cluster/{str(given.get('cluster') or 'default').rpartition('/')[2]}"


def ecs_resource(operation: str, given: dict[str, Any], arn: str) -> str:
    """Returns an ECS request's resource (Service Authorization Reference, ECS), `*` if the operation has none."""
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
    """Whether the caller's policies deny an action that the current request implies, such as `s3:GetObject`."""
    from ministack.core import iam_evaluator
    from ministack.core.responses import get_region

    key = CALLER.get()
    service = action.partition(":")[0]
    return bool(key) and iam_evaluator.enforce(key, action, service, get_region(), arn, context) is not None


def passed(role: str, service: str, arn: str) -> str:
    """Returns why the caller cannot pass a role to a service; empty if they can.

    Args:
        role: the role's ARN.
        service: the service principal, such as `ecs-tasks.amazonaws.com`.
        arn: the resource that will use the role, for the conditions of the role's trust policy.
    """
    if not trusts(role, service, arn):
        return f"ECS was unable to assume the role '{role}': it doesn't exist, or doesn't trust {service}"
    if denied("iam:PassRole", role, {"iam:PassedToService": service}):
        return f"the caller is not authorized to perform: iam:PassRole on resource: {role}"
    return ""


def trusts(role: str, service: str, arn: str = "") -> bool:
    """Whether a role exists and an AWS service can assume it for the resource `arn`."""
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
    """Returns a function that looks up a stack's current output, or '' if there is none."""

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
