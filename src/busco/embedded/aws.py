"""The local AWS: one background process per state folder, its stack deployed, its variables in a file."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import botocore.session
from botocore.config import Config

from busco.embedded import docker_engine, processes
from busco.embedded.local_aws_server import IDENTITY_PATH, lake_folder
from busco.errors import BuscoError
from busco.settings import Settings, get_settings, read_env_file

NAME = "aws"
STACK = "busco-lake"
DEFAULT_LAKE = "sample"
TEMPLATE = Path("deploy/aws/lake.yaml")
CREDENTIAL = "busco-local"  # key and secret: the local AWS checks neither
START_LIMIT = 60.0
DEPLOY_LIMIT = 60.0

Say = Callable[[str], None]


def up(
    settings: Settings,
    say: Say,
    lake: str | None = None,
    after_start: Callable[[], None] | None = None,
    docker: bool | None = None,
) -> str:
    """Starts the local AWS if it isn't running, deploys its stack if that is not as the template says, and writes
    `<state>/aws.env`.

    Safe to run twice, at once, and after a kill at any point. This process's environment gets the variables too, and
    `get_settings` reads them anew, so that clients made from now on, by `after_start` too, find the local AWS.

    Args:
        settings: says where the state and the template are, and the names to deploy.
        say: gets a line for each thing done.
        lake: which local lake's S3 to serve, `<state>/lakes/<lake>/`; None is the last one, at first `sample`.
            Where another one is being served, the local AWS restarts with this one, on the same port.
        after_start: called once per start, when all else is done, to put back what a start loses: everything
            but S3's objects. Until it has returned, each `up` calls it again.
        docker: whether its ECS runs tasks as containers; None is as it was last, at first as BUSCO_EXECUTION needs.
            Where that changes, the local AWS restarts.

    Returns:
        The endpoint, `http://127.0.0.1:<port>`.

    Raises:
        BuscoError: it did not start, a resource of the stack failed, or Docker can't be reached, with the reason.
    """
    state = settings.state.resolve()
    with processes.locked(state, f"{NAME}-up"):
        served = lake or last_lake(settings)
        _check_lake_name(served)
        engine = docker_engine.wanted(state, docker, settings.execution)
        process, endpoint = _started(settings, state, served, engine, say)
        docker_engine.remember(state, engine, docker)
        template = _template(settings)
        completed = {
            "pid": process.pid,
            "started": process.started,
            "template": hashlib.sha256(json.dumps([template, _parameters(settings)]).encode()).hexdigest(),
        }
        marker = state / "run" / f"{NAME}.completed.json"
        before = _read_json(marker)
        restarted = (before.get("pid"), before.get("started")) != (process.pid, process.started)
        if before == completed and (state / "aws.env").is_file():
            _use(_variables(settings))
            return endpoint
        began = time.monotonic()
        outputs = deploy(client("cloudformation", endpoint, settings.region), STACK, template, _parameters(settings))
        say(f"deployed {TEMPLATE} in {time.monotonic() - began:.1f} s")
        variables = _variables_of(endpoint, settings.region, outputs)
        _write(state / "aws.env", "".join(f"{name}={value}\n" for name, value in variables.items()))
        _use(variables)
        if restarted and after_start is not None:
            after_start()
        _write(marker, json.dumps(completed))
        return endpoint


def down(settings: Settings, say: Say) -> None:
    """Stops the local AWS; its lakes stay. Nothing happens where it isn't running."""
    state = settings.state.resolve()
    with processes.locked(state, f"{NAME}-up"):
        stopped = processes.stop(state, NAME, grace=10)
        docker_engine.end_left(state)
        (state / "aws.env").unlink(missing_ok=True)
    say("the local AWS is stopped" if stopped else "the local AWS was not running")


def status(settings: Settings) -> list[tuple[str, str]]:
    """What to show of the local AWS: pairs of a name and its value."""
    state = settings.state.resolve()
    process = processes.find(state, NAME)
    identity = _identity(_variables(settings).get("AWS_ENDPOINT_URL", "")) if process else {}
    if process is None or identity.get("pid") != process.pid:
        return [("local AWS", "not running" if process is None else f"not answering, pid {process.pid}")]
    variables = _variables(settings)
    return [
        ("local AWS", f"running, pid {process.pid}"),
        ("endpoint", variables["AWS_ENDPOINT_URL"]),
        *docker_engine.status(_arguments(process), client("ecs", variables["AWS_ENDPOINT_URL"], settings.region)),
        ("lake", f"{identity['lake']} ({lake_folder(state, identity['lake'])})"),
        ("lake bucket", variables["BUSCO_LAKE_BUCKET"]),
        ("landing bucket", variables["BUSCO_LANDING_BUCKET"]),
        ("logs bucket", variables["BUSCO_LOGS_BUCKET"]),
        ("Athena workgroup", variables["BUSCO_ATHENA_WORKGROUP"]),
        ("log", process.log),
    ]


def env_lines(settings: Settings) -> str:
    """Lines for a shell's `eval`, so that `aws` and other tools there reach the local AWS.

    Raises:
        BuscoError: it isn't running.
    """
    variables = _variables(settings)
    if not variables or processes.find(settings.state.resolve(), NAME) is None:
        raise BuscoError("the local AWS is not running", "start it: busco aws up")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    # The shell's own profile or session would be mixed with these credentials.
    return "\n".join([*lines, "unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN"]) + "\n"


def last_lake(settings: Settings) -> str:
    """The lake that was served last, or the default's name."""
    path = settings.state / "lake"
    return (path.read_text().strip() if path.is_file() else "") or DEFAULT_LAKE


def client(service: str, endpoint: str, region: str) -> Any:
    """A client of the local AWS at `endpoint`, whatever profile, credentials and proxy this machine is set up with."""
    # AWS_PROFILE may name a profile that isn't there, and botocore would stop at that.
    unprofiled = botocore.session.Session({"profile": (None, [], None, None)})
    session = boto3.session.Session(CREDENTIAL, CREDENTIAL, region_name=region, botocore_session=unprofiled)
    config = Config(proxies={}, s3={"addressing_style": "path"}, retries={"max_attempts": 3})
    return session.client(service, endpoint_url=endpoint, config=config)  # type: ignore[call-overload]


def deploy(cloudformation: Any, stack: str, template: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Creates or updates a stack and waits for it.

    Returns:
        The stack's outputs.

    Raises:
        BuscoError: a resource failed; with its name and the reason.
    """
    found = _describe(cloudformation, stack)
    if found is not None and found["StackStatus"] in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED"):
        # The first deployment failed: such a stack can only be deleted. Its buckets stay.
        cloudformation.delete_stack(StackName=stack)
        _settled(cloudformation, stack)
        found = None
    request = {
        "StackName": stack,
        "TemplateBody": template,
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
    }
    good = {"CREATE_COMPLETE", "UPDATE_COMPLETE"}
    try:
        if found is None:
            cloudformation.create_stack(**request)
        else:
            cloudformation.update_stack(**request)
    except botocore.exceptions.ClientError as error:
        if "No updates are to be performed" not in str(error):
            raise BuscoError(f"stack {stack}: {error}", f"mend {TEMPLATE}") from error
        # An update that failed was rolled back to this very template.
        good.add("UPDATE_ROLLBACK_COMPLETE")
    settled = _settled(cloudformation, stack)
    if settled is None or settled["StackStatus"] not in good:
        now = settled["StackStatus"] if settled else "gone"
        raise BuscoError(f"stack {stack} is {now}\n{_failures(cloudformation, stack)}", f"mend {TEMPLATE}")
    return {output["OutputKey"]: output["OutputValue"] for output in settled.get("Outputs", [])}


def _started(settings: Settings, state: Path, lake: str, engine: str, say: Say) -> tuple[processes.Process, str]:
    """The server's process and endpoint, started if need be, with that Docker engine or none."""
    process = processes.find(state, NAME)
    if process:
        arguments = _arguments(process)
        endpoint = _endpoint(arguments.get("--port", ""))
        identity = _identity(endpoint)
        served = (identity.get("lake"), identity.get("pid"), arguments.get("--docker-host", ""))
        if served == (lake, process.pid, engine):
            return process, endpoint
    # Asked before anything is stopped: where Docker is missing, what runs goes on.
    bridge = [docker_engine.bridge_address(engine)] if engine else []
    if process:
        without = "" if arguments.get("--docker-host") else ", without Docker"
        say(f"stopping the local AWS, which serves the lake {identity.get('lake', '(no answer)')}{without}")
    # Also where no process is recorded as running: the record of a killed one goes.
    processes.stop(state, NAME, grace=10)
    docker_engine.end_left(state)
    port = processes.pick_port(state, NAME, ("127.0.0.1", *bridge))
    endpoint = _endpoint(port)
    _write(state / "lake", f"{lake}\n")
    began = time.monotonic()
    command = [sys.executable, "-m", "busco.embedded.local_aws_server", "--state", str(state), "--lake", lake]
    command += ["--port", str(port), "--region", settings.region]
    if engine:
        command += ["--docker-host", engine, "--docker-address", *bridge]
    process = processes.start(state, NAME, command, os.environ, settings.home)
    answers = lambda: _identity(endpoint).get("pid") == process.pid  # noqa: E731
    processes.wait_until(answers, process, "the local AWS", START_LIMIT, every=0.02)
    say(f"started the local AWS with the lake {lake} at {endpoint} in {time.monotonic() - began:.1f} s")
    return process, endpoint


def _endpoint(port: int | str) -> str:
    return f"http://127.0.0.1:{port}"


def _identity(endpoint: str) -> dict[str, Any]:
    """Who serves at the endpoint: lake and pid; empty if nobody of ours does."""
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", IDENTITY_PATH)
        content = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return content if isinstance(content, dict) else {}


def _arguments(process: processes.Process) -> dict[str, str]:
    """The server's own arguments: unlike files, they are true of the process that runs."""
    import psutil

    try:
        words = psutil.Process(process.pid).cmdline()
    except psutil.NoSuchProcess:
        return {}
    return dict(itertools.pairwise(words))


def _template(settings: Settings) -> str:
    path = settings.home / TEMPLATE
    if not path.is_file():
        raise BuscoError(f"{path} is missing", "restore it from the repository")
    return path.read_text()


def _parameters(settings: Settings) -> dict[str, str]:
    return {"GluePrefix": settings.glue_prefix, "WorkgroupName": settings.athena_workgroup}


def _variables_of(endpoint: str, region: str, outputs: Mapping[str, str]) -> dict[str, str]:
    around = ",".join(dict.fromkeys(["127.0.0.1", "localhost", *_no_proxy()]))
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "BUSCO_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": CREDENTIAL,
        "AWS_SECRET_ACCESS_KEY": CREDENTIAL,
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "BUSCO_REGION": region,
        "BUSCO_LAKE_BUCKET": outputs["LakeBucket"],
        "BUSCO_LANDING_BUCKET": outputs["LandingBucket"],
        "BUSCO_LOGS_BUCKET": outputs["LogsBucket"],
        "BUSCO_ATHENA_WORKGROUP": outputs["Workgroup"],
        # Loopback never goes through the machine's proxy; programs differ in which of the two they read.
        "NO_PROXY": around,
        "no_proxy": around,
    }


def _use(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    get_settings.cache_clear()


def _no_proxy() -> list[str]:
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return [host.strip() for host in given.split(",") if host.strip()]


def _variables(settings: Settings) -> dict[str, str]:
    return read_env_file(settings.state / "aws.env")


def _describe(cloudformation: Any, stack: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return None if found["StackStatus"] == "DELETE_COMPLETE" else found


def _settled(cloudformation: Any, stack: str) -> dict[str, Any] | None:
    """The stack once nothing is in progress; None if it is gone."""
    deadline = time.monotonic() + DEPLOY_LIMIT
    while (found := _describe(cloudformation, stack)) and found["StackStatus"].endswith("_IN_PROGRESS"):
        if time.monotonic() > deadline:
            raise BuscoError(f"stack {stack} is still {found['StackStatus']} after {DEPLOY_LIMIT:.0f} s", "try again")
        time.sleep(0.03)
    return found


def _failures(cloudformation: Any, stack: str) -> str:
    """What failed, oldest first: the first line is the cause, the others mostly its consequences."""
    pages = cloudformation.get_paginator("describe_stack_events").paginate(StackName=stack)
    events = [event for page in pages for event in page["StackEvents"]][::-1]
    # Some templates are refused before any resource is touched; then only the stack's own events have a reason.
    failed = [event for event in events if event["ResourceStatus"].endswith("_FAILED")] or events
    lines = [
        f"{event['LogicalResourceId']} ({event['ResourceType']}): {event['ResourceStatusReason']}"
        for event in failed
        if event.get("ResourceStatusReason")
    ]
    return "\n".join(lines[:3]) or "no resource says why"


def _check_lake_name(lake: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,40}", lake):
        raise BuscoError(f"{lake!r} is no name for a lake", "use a-z, 0-9, _ and -, at most 41 of them")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    """Replaces a file in one step, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    scratch.replace(path)
