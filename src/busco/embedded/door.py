"""Who may ask the local AWS, and for what: nothing reaches MiniStack that its guards and its handlers read differently.

MiniStack finds out in several ways which service and which operation a request means, and not everywhere in the same
one. Here a request has the one form in which the SDKs send it, and is refused by name otherwise.
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

# What our templates deploy, now or later; the rest (databases, Lambda, SFTP, message brokers …) is never served.
SERVICES = "s3,sts,iam,cloudformation,glue,athena,logs,sqs,sns,ecs,ecs-metadata,ecr,monitoring,events"
# What a task of ours asks for, besides its metadata and its role's credentials.
TASK_SERVICES = ("s3", "glue", "logs", "sts")
IDENTITY_PATH = "/_busco/identity"
INSTANCE_PATH = "/_busco/instance/"
# Asked without a signature: what a container asks about its task, in whose path is a secret of its own (ECS Developer
# Guide, "Task metadata endpoint version 4").
METADATA_PATH = re.compile(r"/v4/[A-Za-z0-9_-]{8,}(/task|/stats|/task/stats)?")
# What MiniStack serves before it asks which service is meant: its own switches (one request would delete the lake),
# a registry, catalogs, load balancers, functions and access points.
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
# X-Amz-Target of the services of AWS's JSON protocols (botocore's service models: targetPrefix)
TARGETS = {
    "athena": "AmazonAthena",
    "ecr": "AmazonEC2ContainerRegistry_V20150921",
    "ecs": "AmazonEC2ContainerServiceV20141113",
    "events": "AWSEvents",
    "glue": "AWSGlue",
    "logs": "Logs_20140328",
    "sqs": "AmazonSQS",
}
# those of the query protocol, whose operation is in the form; SQS speaks either
FORMS = ("cloudformation", "iam", "sns", "sqs", "sts")
# What was looked at of services that can also run code, keep sessions, or deliver to somebody: the operations that
# don't. Services that aren't here do no such thing, or are held elsewhere (CloudFormation: busco.embedded.provisioned).
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
# Bytes of a body: of an object or a part of one (SDKs and DuckDB send parts of at most 80 MB), and of anything else.
MOST_OF_OBJECT = 512 << 20
MOST_OF_BODY = 16 << 20
SUBSCRIBERS = {"sqs", "email", "email-json"}  # e-mail is written to the log
# A request's signature, in the one form in which the SDKs write it: whoever reads one field of it reads the same.
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<credential>[A-Za-z0-9/_-]+), ?SignedHeaders=[a-z0-9;_-]+, ?Signature=[0-9a-f]{64}"
)
# Header fields by which it is decided who asks for what: each once.
_DECIDING = ("authorization", "content-type", "host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token",
             "x-amz-target")  # fmt: skip

# The access key of the request that is being answered, once it is admitted; NOBODY before that. Empty for what the
# local AWS does by itself.
CALLER: ContextVar[str] = ContextVar("busco_caller", default="")
NOBODY = "nobody"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Request:
    """A request with a signature.

    Args:
        service: the service that it is signed for.
        operation: the operation of services that name it; empty for S3 and CloudWatch.
        form: parameters of a query protocol's form.
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
    """Why a request is not answered: AWS's code and a sentence."""

    def __init__(self, code: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class Watch(Protocol):
    """Who looks at requests: `busco.embedded.signatures` for the local AWS."""

    def metadata(self, method: str, path: str) -> tuple[int, str]:
        """What is answered without a signature, below INSTANCE_PATH."""

    async def task_metadata(self, path: str) -> tuple[int, str, bytes]:
        """What is answered without a signature at METADATA_PATH: status, content type and body."""

    def expects(self, asked: Request) -> None:
        """Lets a request's body be read, of which all else is known, or raises Refusal."""

    def proof(self, nonce: str, identity: Mapping[str, Any]) -> str:
        """What shows an asker that the page of the identity is the owner's: he has chosen `nonce`."""

    def admit(self, asked: Request) -> None:
        """Lets a request pass, or raises Refusal."""


def guarded(
    app: App,
    identity: Mapping[str, Any],
    watch: Watch,
    names: Collection[str] = (),
    tasks: tuple[str, int] | None = None,
    published: Collection[int] = (),
) -> App:
    """The app with a page that says who serves, without MiniStack's own switches, and closed to web pages.

    A page that is open in a browser on this machine must not reach it. Browsers say where a request comes from (Origin:
    Fetch standard, "Origin header"), which no SDK does; and a page whose own name was made to mean this address says
    that name (Host), which is none of ours. A request names the port too, so that nobody who has taken another one,
    where it is still asked for, can pass on what was signed for it.

    Args:
        names: what others than this machine call it.
        tasks: the address and port at which ECS tasks reach it, who are answered for TASK_SERVICES alone.
        published: ports at which others reach it beside its own, as Docker publishes it on a machine.
    """
    known = {"127.0.0.1", "localhost", "::1", *names}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # hypercorn refuses what is not accepted
        CALLER.set(NOBODY)
        path, said = scope.get("path", ""), _headers(scope)
        of_task = tasks is not None and tuple(scope.get("server") or ()) == tasks
        if "origin" in said or said.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            await _reply(send, 403, {"message": "web pages may not ask the local AWS"})
        elif not _is_ours(said.get("host", ""), known, {*published, (scope.get("server") or ("", 80))[1]}):
            await _reply(send, 403, {"message": "the local AWS is not known by that name and port"})
        elif path == IDENTITY_PATH and not of_task:
            nonce = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("nonce", [""])[0]
            await _reply(send, 200, {**identity, "proof": watch.proof(nonce, identity)})
        elif path.startswith(INSTANCE_PATH):
            status, text = watch.metadata(scope["method"], path)
            await _send(send, status, "text/plain", text.encode())
        elif METADATA_PATH.fullmatch(path) and scope["method"] == "GET":
            # by its path alone: whatever else is in the request could be taken for another service's
            await _send(send, *await watch.task_metadata(path))
        elif path.startswith(CLOSED_PATHS) or path == "/v2":
            await _reply(send, 403, {"message": "not offered here: see busco aws --help"})
        else:
            try:
                announced = heading(scope, said)
                if of_task and announced.service not in TASK_SERVICES:
                    raise Refusal("AccessDenied", f"{announced.service} is not offered to ECS tasks")
                # nothing is kept in memory for somebody who has no key
                watch.expects(announced)
                body = await _body(receive, said, MOST_OF_OBJECT if announced.service == "s3" else MOST_OF_BODY)
                asked = request(scope, said, body)
                offered(asked)
                watch.admit(asked)
            except Refusal as refusal:
                await _refuse(send, said, refusal)
            else:
                await app(scope, _again(body, receive), send)

    return serve


def heading(scope: Scope, said: Mapping[str, str]) -> Request:
    """A request without its body, and so without its operation.

    Raises:
        Refusal: it is not signed, or not in the form in which the SDKs send it.
    """
    counted = [name.decode("latin-1").lower() for name, _ in scope.get("headers", ())]
    if twice := [name for name in _DECIDING if counted.count(name) > 1]:
        raise Refusal("InvalidRequest", f"the header {twice[0]} stands there twice", 400)
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    service = _signed_service(said, query)
    # MiniStack undoes it after this was read; SDKs compress what they tell CloudWatch
    if "content-encoding" in said and service not in ("s3", "monitoring"):
        raise Refusal("InvalidRequest", f"a request to {service} has no Content-Encoding here", 400)
    raw_path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    return Request(service, scope["method"], scope["path"], raw_path, query, dict(said), b"", "", {})


def request(scope: Scope, said: Mapping[str, str], body: bytes) -> Request:
    """What a request asks for.

    Raises:
        Refusal: it is not signed, or not in the form in which the SDKs send it.
    """
    announced = heading(scope, said)
    service, query = announced.service, announced.query
    target, kind = said.get("x-amz-target", ""), said.get("content-type", "")
    form: dict[str, list[str]] = {}
    operation = ""
    plain = scope["method"] == "POST" and not query and (scope["path"] == "/" or service == "sqs")
    if service in TARGETS and target:
        prefix, _, operation = target.partition(".")
        if not plain or prefix != TARGETS[service] or not operation.isalnum() or "json" not in kind:
            raise Refusal("InvalidAction", f"this is no request of {service}'s JSON protocol", 400)
    elif service in FORMS:
        form = parse_qs(body.decode("utf-8", errors="replace"), keep_blank_values=True)
        (operation, *more) = form.get("Action", [""])
        if not plain or more or target or not operation or not kind.startswith("application/x-www-form-urlencoded"):
            raise Refusal("InvalidAction", f"this is no request of {service}'s query protocol", 400)
    elif service == "s3":
        if target or "Action" in query or ("x-www-form-urlencoded" in kind and body):
            raise Refusal("InvalidRequest", "this is no request of S3's protocol", 400)
    elif service in TARGETS:
        raise Refusal("InvalidAction", f"this is no request of {service}'s JSON protocol", 400)
    return replace(announced, body=body, operation=operation, form=form)


def offered(asked: Request) -> None:
    """Whether the local AWS does what is asked for, whoever asks.

    Raises:
        Refusal: it does not, with the name of the service or the operation.
    """
    from ministack.core.router import detect_service

    if asked.service not in SERVICES.split(","):
        raise Refusal("AccessDenied", f"{asked.service} is not offered here")
    routed = detect_service(asked.method, asked.path, asked.headers, asked.query)
    if routed != asked.service:
        raise Refusal("AccessDenied", f"{routed} is not what this is signed for")
    if asked.service in OFFERED and not re.fullmatch(OFFERED[asked.service], asked.operation):
        raise Refusal("AccessDenied", f"{asked.operation} is not offered here")
    subscribing = (asked.service, asked.operation) == ("sns", "Subscribe")
    if subscribing and not SUBSCRIBERS.issuperset(asked.form.get("Protocol", [""])):
        raise Refusal("InvalidParameter", "Invalid parameter: Protocol: topics deliver to sqs here", 400)


def _signed_service(said: Mapping[str, str], query: Mapping[str, list[str]]) -> str:
    """The service that a request is signed for: Signature Version 4, in a header or, for S3, in the address."""
    authorization = said.get("authorization", "")
    in_query = [name for name in query if name.lower().startswith("x-amz-") or name in ("AWSAccessKeyId", "Signature")]
    signed_address = any(
        name.lower() in ("x-amz-algorithm", "x-amz-credential", "x-amz-signature") for name in in_query
    )
    if not authorization and not signed_address:
        raise Refusal("MissingAuthenticationToken", 'requests must be signed: eval "$(busco aws env)"')
    if (authorization and signed_address) or not set(in_query).isdisjoint(("AWSAccessKeyId", "Signature")):
        raise Refusal("AccessDenied", "a request has one signature, of Signature Version 4")
    credential = query.get("X-Amz-Credential", [""])[0]
    if authorization:
        found = _AUTHORIZATION.fullmatch(authorization)
        credential = found["credential"] if found else ""
    elif any(len(query.get(name, ())) != 1 for name in PRESIGNED) or query[PRESIGNED[0]] != ["AWS4-HMAC-SHA256"]:
        raise Refusal("AccessDenied", "a request has one signature, of Signature Version 4")
    key, *scope = credential.split("/")
    if not key or len(scope) != 4 or scope[3] != "aws4_request":
        raise Refusal("IncompleteSignature", "a request has one signature, of Signature Version 4", 400)
    if not authorization and scope[2] != "s3":
        raise Refusal("AccessDenied", f"addresses are not signed for {scope[2]} here")
    return scope[2]


# AWS Signature Version 4 for API requests, "Add the signature to the query string"
PRESIGNED = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders",
             "X-Amz-Signature")  # fmt: skip


def _headers(scope: Scope) -> dict[str, str]:
    """Header fields by their names in lower case; what stands there several times is one value, with commas."""
    said: dict[str, str] = {}
    for name, value in scope.get("headers", ()):
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        said[key] = f"{said[key]},{text}" if key in said else text
    return said


def _is_ours(host: str, known: Collection[str], ports: Collection[int]) -> bool:
    """Whether a Host header names this server; buckets are in paths. Port 80 goes without saying."""
    named = urlsplit(f"//{host}")
    try:
        return not host or ((named.hostname or "") in known and (80 if named.port is None else named.port) in ports)
    except ValueError:  # no port that there is
        return False


async def _body(receive: Receive, said: Mapping[str, str], most: int) -> bytes:
    """A request's whole body, as MiniStack takes it too.

    Args:
        most: bytes that it may have.

    Raises:
        Refusal: whoever sends it has gone, or it is too long.
    """
    announced = said.get("content-length", "0")
    parts, size = [], int(announced) if announced.isdigit() else 0
    if size > most:
        raise Refusal("EntityTooLarge", f"a body of more than {most} bytes is not taken here", 400)
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal("RequestTimeout", "the request ended before its body", 400)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise Refusal("EntityTooLarge", f"a body of more than {most} bytes is not taken here", 400)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read once more, then what comes."""
    given = False

    async def once_more() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once_more


async def _refuse(send: Send, said: Mapping[str, str], refusal: Refusal) -> None:
    """A refusal in the words of the protocol that was spoken, so that SDKs show it."""
    code, message, target = refusal.code, str(refusal), said.get("x-amz-target", "")
    if target or "json" in said.get("content-type", ""):
        code = "AccessDeniedException" if code == "AccessDenied" else code
        await _reply(send, refusal.status, {"__type": code, "message": message})
        return
    error = f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    if "x-www-form-urlencoded" in said.get("content-type", ""):
        error = f"<ErrorResponse>{error}</ErrorResponse>"
    await _send(send, refusal.status, "application/xml", error.encode())


async def _reply(send: Send, status: int, content: Mapping[str, Any]) -> None:
    await _send(send, status, "application/json", json.dumps(dict(content)).encode())


async def _send(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"date", formatdate(usegmt=True).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
