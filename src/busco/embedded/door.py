"""Guards the local AWS: decides which requests are accepted, from whom, and for which services.

MiniStack determines a request's service and operation in several ways, which don't always agree. To ensure that this
guard and MiniStack's handlers interpret a request identically, only the exact form that the SDKs send is accepted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

# The services that our templates use or will use. All others (databases, Lambda, SFTP, message brokers …) are disabled.
SERVICES = "s3,sts,iam,cloudformation,glue,athena,logs,sqs,sns,ecs,ecs-metadata,ecr,monitoring,events"
# The services that our ECS tasks use, besides their metadata and their role's credentials.
TASK_SERVICES = ("s3", "glue", "logs", "sts")
IDENTITY_PATH = "/_busco/identity"
INSTANCE_PATH = "/_busco/instance/"
# The paths at which a container requests its task's metadata. These requests are not signed; instead, the path contains
# a per-container secret (ECS Developer Guide, "Task metadata endpoint version 4").
METADATA_PATH = re.compile(r"/v4/[A-Za-z0-9_-]{8,}(/task|/stats|/task/stats)?")
# Paths that MiniStack handles before it determines a request's service: its admin endpoints (where a single
# request could delete the lake), a registry, catalogs, load balancers, functions and access points.
CLOSED_PATHS = (
    "/_",
    "/v2/",
    "/v4",
    "/iceberg",
    "/v20180820",
    "/key-value-stores/",
    "/restapis/",
    "/WriteGetObjectResponse",
)
# X-Amz-Target prefixes of the services with AWS's JSON protocols (botocore's service models: targetPrefix)
TARGETS = {
    "athena": "AmazonAthena",
    "ecr": "AmazonEC2ContainerRegistry_V20150921",
    "ecs": "AmazonEC2ContainerServiceV20141113",
    "events": "AWSEvents",
    "glue": "AWSGlue",
    "logs": "Logs_20140328",
    "sqs": "AmazonSQS",
}
# Services with the query protocol, which puts the operation in the form parameters; SQS supports both protocols.
FORMS = ("cloudformation", "iam", "sns", "sqs", "sts")
# The only operations offered by services that could also run code, keep sessions open or deliver data elsewhere. These
# operations were reviewed and do none of that. Services that aren't listed here can't do any of that either, or are
# restricted elsewhere (CloudFormation: busco.embedded.provisioned).
OFFERED = {
    "athena": (
        r"(BatchGet|Create|Delete|Get|List|Start|Stop|Update)"
        r"(NamedQuer|PreparedStatement|Query(Execution|Results|RuntimeStatistics)|WorkGroup)\w*"
        r"|(Get|List)(Database|DataCatalog|TableMetadata)\w*|(Tag|Untag)Resource|ListTagsForResource"
    ),
    "ecs": (
        r"RunTask|StopTask|(Describe|List)\w+|(Deregister|Register)TaskDefinition|DeleteTaskDefinitions"
        r"|(Create|Delete|Update)Cluster|(Tag|Untag)Resource"
    ),
    "events": (
        r"PutEvents|TestEventPattern|(Describe|List)\w+|(Create|Delete|Update)EventBus"
        r"|(Delete|Disable|Enable|Put)Rule|RemoveTargets|(Tag|Untag)Resource"
    ),
    "glue": (
        r"(Batch)?(Create|Delete|Get|Search|Update)(Database|Partition|Table|ColumnStatistics)\w*"
        r"|GetCatalogs?|GetTags|(Tag|Untag)Resource"
    ),
    "logs": (
        r"(Create|Delete|Describe|List|Tag|Untag)(LogGroup|LogStream|TagsLogGroup|TagsForResource|Resource)\w*"
        r"|(Put|Get|Filter)LogEvents|(Delete|Put)RetentionPolicy"
    ),
}
# The maximum size of a request's body in bytes: for an S3 object or part (SDKs and DuckDB send parts of at most 80 MB),
# and for any other request.
MAX_OBJECT_BYTES = 512 << 20
MAX_BODY_BYTES = 16 << 20
SUBSCRIBERS = {"sqs", "email", "email-json"}  # messages to email subscribers are only written to the log
# The Authorization header, in the exact form that the SDKs write, so that every parser reads the same fields.
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<credential>[A-Za-z0-9/_-]+), ?SignedHeaders=[a-z0-9;_-]+, ?Signature=[0-9a-f]{64}"
)
# Headers that determine the caller and the operation: each may occur only once.
_DECIDING = ("authorization", "content-type", "host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token",
             "x-amz-target")  # fmt: skip

# The access key of the current request once the request is admitted, and NOBODY before that. It is empty while the
# local AWS does work of its own.
CALLER: ContextVar[str] = ContextVar("busco_caller", default="")
NOBODY = "nobody"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """A signed request.

    Args:
        service: the service that the request is signed for.
        operation: the operation, for services whose requests name it; empty for S3 and CloudWatch.
        form: the form parameters of a query protocol request.
    """

    service: str
    method: str
    path: str
    raw_path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    operation: str
    form: dict[str, list[str]]


class Refusal(Exception):
    """Raised to refuse a request, with AWS's error code, a message and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class Watch(Protocol):
    """Authenticates and authorizes requests; implemented by `busco.embedded.signatures` for the local AWS."""

    def metadata(self, method: str, path: str) -> tuple[int, str]:
        """Returns the response to an unsigned request under INSTANCE_PATH: status and text."""

    async def task_metadata(self, path: str) -> tuple[int, str, bytes]:
        """Returns the response to an unsigned request at METADATA_PATH: status, content type and body."""

    def expects(self, asked: Request) -> None:
        """Decides, before the body is read, whether to continue with a request; raises Refusal if not."""

    def proof(self, nonce: str, identity: Mapping[str, Any]) -> str:
        """Returns proof, for the client that chose `nonce`, that the owner's process serves the identity page."""

    def admit(self, asked: Request) -> None:
        """Admits a complete request, or raises Refusal."""


def guarded(
    app: App,
    identity: Mapping[str, Any],
    watch: Watch,
    names: Collection[str] = (),
    tasks: tuple[str, int] | None = None,
    published: Collection[int] = (),
) -> App:
    """Wraps the app: adds the identity page, blocks MiniStack's admin endpoints, and rejects requests from web pages.

    A web page that is open in a browser on this machine must not use the local AWS. Browsers send the Origin header
    (Fetch standard, "Origin header"); SDKs never do. A page whose domain was pointed to this address (DNS rebinding)
    sends its own domain in the Host header, and that domain is not one of our names. The port in the Host header must
    match too. Otherwise, a process that took over a port where clients still expect the local AWS could forward their
    signed requests to us.

    Args:
        names: host names by which other machines and containers reach the app.
        tasks: the address and port for ECS tasks, where only TASK_SERVICES are available.
        published: further ports at which the app is reachable, because Docker publishes them on the host.
    """
    known = {"127.0.0.1", "localhost", "::1", *names}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # hypercorn rejects what the app doesn't accept
        CALLER.set(NOBODY)
        path, headers = scope.get("path", ""), _headers(scope)
        of_task = tasks is not None and tuple(scope.get("server") or ()) == tasks
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            await _reply(send, 403, {"message": "web pages can't use the local AWS"})
        elif not _is_ours(headers.get("host", ""), known, {*published, (scope.get("server") or ("", 80))[1]}):
            await _reply(send, 403, {"message": "the Host header does not name the local AWS and its port"})
        elif path == IDENTITY_PATH and not of_task:
            nonce = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("nonce", [""])[0]
            await _reply(send, 200, {**identity, "proof": watch.proof(nonce, identity)})
        elif path.startswith(INSTANCE_PATH):
            status, text = watch.metadata(scope["method"], path)
            await _send(send, status, "text/plain", text.encode())
        elif METADATA_PATH.fullmatch(path) and scope["method"] == "GET":
            # Only the path is passed on: from other parts of the request, MiniStack could infer another service.
            await _send(send, *await watch.task_metadata(path))
        elif path.startswith(CLOSED_PATHS) or path == "/v2":
            await _reply(send, 403, {"message": "not available here: see busco aws --help"})
        else:
            try:
                announced = heading(scope, headers)
                if of_task and announced.service not in TASK_SERVICES:
                    raise Refusal("AccessDenied", f"{announced.service} is not available to ECS tasks")
                # A body is kept in memory only for a caller with a valid key.
                watch.expects(announced)
                body = await _body(receive, headers, MAX_OBJECT_BYTES if announced.service == "s3" else MAX_BODY_BYTES)
                asked = request(scope, headers, body)
                offered(asked)
                watch.admit(asked)
            except Refusal as refusal:
                await _refuse(send, headers, refusal)
            else:
                await app(scope, _again(body, receive), send)

    return serve


def heading(scope: Scope, headers: Mapping[str, str]) -> Request:
    """Parses a request except for its body and its operation, which can be in the body.

    Raises:
        Refusal: the request isn't signed, or isn't in the form that the SDKs send.
    """
    counted = [name.decode("latin-1").lower() for name, _ in scope.get("headers", ())]
    if twice := [name for name in _DECIDING if counted.count(name) > 1]:
        raise Refusal("InvalidRequest", f"the header {twice[0]} occurs more than once", 400)
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    service = _signed_service(headers, query)
    # Compressed bodies can't be checked here, because MiniStack decompresses them only later. SDKs compress requests to
    # CloudWatch, so these are accepted.
    if "content-encoding" in headers and service not in ("s3", "monitoring"):
        raise Refusal("InvalidRequest", f"Content-Encoding is not supported for {service} here", 400)
    raw_path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    return Request(service, scope["method"], scope["path"], raw_path, query, dict(headers), b"", "", {})


def request(scope: Scope, headers: Mapping[str, str], body: bytes) -> Request:
    """Parses a complete request, including its operation.

    Raises:
        Refusal: the request isn't signed, or isn't in the form that the SDKs send.
    """
    announced = heading(scope, headers)
    service, query = announced.service, announced.query
    target, kind = headers.get("x-amz-target", ""), headers.get("content-type", "")
    form: dict[str, list[str]] = {}
    operation = ""
    plain = scope["method"] == "POST" and not query and (scope["path"] == "/" or service == "sqs")
    if service in TARGETS and target:
        prefix, _, operation = target.partition(".")
        if not plain or prefix != TARGETS[service] or not operation.isalnum() or "json" not in kind:
            raise Refusal("InvalidAction", f"not a request in {service}'s JSON protocol", 400)
    elif service in FORMS:
        form = parse_qs(body.decode("utf-8", errors="replace"), keep_blank_values=True)
        (operation, *more) = form.get("Action", [""])
        if not plain or more or target or not operation or not kind.startswith("application/x-www-form-urlencoded"):
            raise Refusal("InvalidAction", f"not a request in {service}'s query protocol", 400)
    elif service == "s3":
        if target or "Action" in query or ("x-www-form-urlencoded" in kind and body):
            raise Refusal("InvalidRequest", "not a request in S3's protocol", 400)
    elif service in TARGETS:
        raise Refusal("InvalidAction", f"not a request in {service}'s JSON protocol", 400)
    return replace(announced, body=body, operation=operation, form=form)


def offered(asked: Request) -> None:
    """Checks that the local AWS offers the requested operation at all, regardless of the caller.

    Raises:
        Refusal: the operation isn't offered; the message names the service or the operation.
    """
    from ministack.core.router import detect_service

    if asked.service not in SERVICES.split(","):
        raise Refusal("AccessDenied", f"{asked.service} is not available here")
    routed = detect_service(asked.method, asked.path, asked.headers, asked.query)
    if routed != asked.service:
        raise Refusal("AccessDenied", f"the request is signed for {asked.service}, not for {routed}")
    if asked.service in OFFERED and not re.fullmatch(OFFERED[asked.service], asked.operation):
        raise Refusal("AccessDenied", f"{asked.operation} is not available here")
    subscribing = (asked.service, asked.operation) == ("sns", "Subscribe")
    if subscribing and not SUBSCRIBERS.issuperset(asked.form.get("Protocol", [""])):
        raise Refusal("InvalidParameter", "Invalid parameter: Protocol: topics here deliver only to sqs and email", 400)


def _signed_service(headers: Mapping[str, str], query: Mapping[str, list[str]]) -> str:
    """Returns the service that a request's signature (Version 4) names, in a header or, for S3, in the URL."""
    authorization = headers.get("authorization", "")
    in_query = [name for name in query if name.lower().startswith("x-amz-") or name in ("AWSAccessKeyId", "Signature")]
    presigned = any(name.lower() in ("x-amz-algorithm", "x-amz-credential", "x-amz-signature") for name in in_query)
    if not authorization and not presigned:
        raise Refusal("MissingAuthenticationToken", 'requests must be signed; set the keys: eval "$(busco aws env)"')
    if (authorization and presigned) or not set(in_query).isdisjoint(("AWSAccessKeyId", "Signature")):
        raise Refusal("AccessDenied", "a request must be signed exactly once, with AWS Signature Version 4")
    credential = query.get("X-Amz-Credential", [""])[0]
    if authorization:
        found = _AUTHORIZATION.fullmatch(authorization)
        credential = found["credential"] if found else ""
    elif any(len(query.get(name, ())) != 1 for name in PRESIGNED) or query[PRESIGNED[0]] != ["AWS4-HMAC-SHA256"]:
        raise Refusal("AccessDenied", "a request must be signed exactly once, with AWS Signature Version 4")
    key, *scope = credential.split("/")
    if not key or len(scope) != 4 or scope[3] != "aws4_request":
        raise Refusal("IncompleteSignature", "a request must be signed exactly once, with AWS Signature Version 4", 400)
    if not authorization and scope[2] != "s3":
        raise Refusal("AccessDenied", f"presigned URLs are not supported for {scope[2]} here")
    return scope[2]


# AWS Signature Version 4 for API requests, "Add the signature to the query string"
PRESIGNED = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders",
             "X-Amz-Signature")  # fmt: skip


def _headers(scope: Scope) -> dict[str, str]:
    """Returns headers by lower-case name; repeated headers are joined with commas."""
    headers: dict[str, str] = {}
    for name, value in scope.get("headers", ()):
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


def _is_ours(host: str, known: Collection[str], ports: Collection[int]) -> bool:
    """Whether a Host header names this server (bucket names are in the path, not the host); a missing port means 80."""
    named = urlsplit(f"//{host}")
    try:
        return not host or ((named.hostname or "") in known and (80 if named.port is None else named.port) in ports)
    except ValueError:  # not a valid port
        return False


async def _body(receive: Receive, headers: Mapping[str, str], most: int) -> bytes:
    """Reads a request's whole body into memory, as MiniStack does.

    Args:
        most: the maximum number of bytes.

    Raises:
        Refusal: the client disconnected, or the body is too large.
    """
    announced = headers.get("content-length", "0")
    parts, size = [], int(announced) if announced.isdigit() else 0
    if size > most:
        raise Refusal("EntityTooLarge", f"the body exceeds the limit of {most} bytes", 400)
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal("RequestTimeout", "the client disconnected before the end of the body", 400)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise Refusal("EntityTooLarge", f"the body exceeds the limit of {most} bytes", 400)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Returns a receive function that replays a body that was already read, then passes on further messages."""
    replayed = False

    async def replay() -> Any:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, headers: Mapping[str, str], refusal: Refusal) -> None:
    """Sends a refusal in the request's protocol, so that SDKs show it."""
    code, message, target = refusal.code, str(refusal), headers.get("x-amz-target", "")
    if target or "json" in headers.get("content-type", ""):
        code = "AccessDeniedException" if code == "AccessDenied" else code
        await _reply(send, refusal.status, {"__type": code, "message": message})
        return
    error = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    if "x-www-form-urlencoded" in headers.get("content-type", ""):
        error = f"<ErrorResponse>{error}</ErrorResponse>"
    await _send(send, refusal.status, "application/xml", error.encode())


async def _reply(send: Send, status: int, content: Mapping[str, Any]) -> None:
    await _send(send, status, "application/json", json.dumps(dict(content)).encode())


async def _send(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"date", formatdate(usegmt=True).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
