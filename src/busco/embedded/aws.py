"""Starts, stops and inspects the local AWS: one background process per state folder, with its stacks deployed."""

from __future__ import annotations

import hmac
import http.client
import itertools
import json
import os
import re
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from botocore.config import Config

from busco.embedded import docker_engine, instances, keys, processes, provisioned, stacks
from busco.embedded.door import IDENTITY_PATH
from busco.embedded.local_aws_server import lake_folder
from busco.errors import BuscoError
from busco.settings import Settings, env_file, get_settings, read_env_file

NAME = "aws"
DEFAULT_LAKE = "sample"
START_LIMIT = 60.0
# Processes that read the local AWS's address only when they start.
CLIENTS = ("scheduler", "triggerer", "webserver")

Say = Callable[[str], None]


def up(
    settings: Settings,
    say: Say,
    lake: str | None = None,
    after_start: Callable[[], None] | None = None,
    docker: bool | None = None,
) -> str:
    """Starts the local AWS if it isn't running, and deploys its stacks if they differ from the templates.

    Writes `<state>/aws.env`, with the owner's keys, and `<state>/aws-<role>.env` for processes that have a role. Also
    sets the variables in this process's environment and clears the cache of `get_settings`, so that clients created
    from now on (including those that `after_start` creates) reach the local AWS. Safe to call twice, concurrently, and
    again after being killed at any point.

    Args:
        settings: the locations of the state and the templates, and the templates' parameters.
        say: receives a line for each step.
        lake: the local lake whose S3 objects are served, from `<state>/lakes/<lake>/`; None means the lake that was
            served last, initially `sample`. If the local AWS is serving another lake, it restarts with this one, on the
            same port.
        after_start: called once per start of the local AWS, after everything else, to restore the state that a restart
            loses: everything except the objects in S3. If the call fails, the next `up` repeats it.
        docker: whether the local ECS runs tasks as containers; None keeps the last choice, initially the one
            that BUSCO_EXECUTION requires. If the choice changes, the local AWS restarts.

    Returns:
        The endpoint, `http://127.0.0.1:<port>`.

    Raises:
        BuscoError: the local AWS did not start, a stack resource failed, or Docker can't be reached; the message
            includes the reason.
    """
    state = settings.state.resolve()
    with processes.locked(state, f"{NAME}-up"):
        served = lake or last_lake(settings)
        _check_lake_name(served)
        engine = docker_engine.wanted(state, docker, settings.execution, settings.starter)
        process, endpoint = _started(settings, state, served, engine, say)
        docker_engine.remember(state, engine, docker)
        wanted = stacks.of_settings(settings)
        completed = {
            "pid": process.pid,
            "started": process.started,
            "template": stacks.digest(wanted),
        }
        marker = state / "run" / f"{NAME}.completed.json"
        previous = _read_json(marker)
        restarted = (previous.get("pid"), previous.get("started")) != (process.pid, process.started)
        if previous == completed and all(file.is_file() for file in _files(state)):
            _use(_variables(settings))
            return endpoint
        began = time.monotonic()
        pair = keys.owner(state)
        outputs = stacks.deploy_all(client("cloudformation", endpoint, settings.region, pair), wanted)
        names = ", ".join(str(stack.path) for stack in wanted)
        say(f"deployed {names} in {time.monotonic() - began:.1f} s")
        variables = _variables_of(endpoint, settings.region, outputs)
        owner = {"AWS_ACCESS_KEY_ID": pair.key, "AWS_SECRET_ACCESS_KEY": pair.secret}
        _write_variables(env_file(state), variables | owner)
        for role in instances.ROLES:
            credentials = instances.variables(endpoint, keys.instance(state, role))
            _write_variables(env_file(state, role), variables | credentials)
        _write_variables(env_file(state, "none"), variables | instances.NOBODY)
        _use(variables | owner)
        if restarted and after_start is not None:
            after_start()
        _write(marker, json.dumps(completed))
        return endpoint


def down(settings: Settings, say: Say, grace: float = 10) -> None:
    """Stops the local AWS and keeps its lakes. If the local AWS isn't running, only cleans up what it left behind.

    Args:
        grace: how many seconds the local AWS has to stop its tasks and exit.
    """
    state = settings.state.resolve()
    with processes.locked(state, f"{NAME}-up"):
        stopped = processes.stop(state, NAME, grace=grace)
        docker_engine.end_left(state)
        for file in _files(state):
            file.unlink(missing_ok=True)
        # Running services keep sending requests to this port, so no other process may take it.
        if not set(processes.running(state)).intersection(CLIENTS):
            processes.release_port(state, NAME)
    say("the local AWS is stopped" if stopped else "the local AWS was not running")


def status(settings: Settings) -> list[tuple[str, str]]:
    """Returns what `status` shows about the local AWS, as (name, value) pairs."""
    state = settings.state.resolve()
    process = processes.find(state, NAME)
    identity = _identity(state, process) if process else {}
    if process is None or not identity:
        return [("local AWS", "not running" if process is None else f"not responding, pid {process.pid}")]
    variables = _variables(settings)
    endpoint = variables["AWS_ENDPOINT_URL"]
    return [
        ("local AWS", f"running, pid {process.pid}"),
        ("endpoint", endpoint),
        *docker_engine.status(_arguments(process), client("ecs", endpoint, settings.region, keys.owner(state))),
        ("lake", f"{identity['lake']} ({lake_folder(state, identity['lake'])})"),
        ("lake bucket", variables["BUSCO_LAKE_BUCKET"]),
        ("landing bucket", variables["BUSCO_LANDING_BUCKET"]),
        ("logs bucket", variables["BUSCO_LOGS_BUCKET"]),
        ("Athena workgroup", variables["BUSCO_ATHENA_WORKGROUP"]),
        ("ECS cluster", variables["BUSCO_ECS_CLUSTER"]),
        ("log", process.log),
    ]


def env_lines(settings: Settings) -> str:
    """Returns lines for a shell to `eval`, so that `aws` and other tools in that shell reach the local AWS.

    Raises:
        BuscoError: the local AWS isn't running.
    """
    variables = _variables(settings)
    if not variables or processes.find(settings.state.resolve(), NAME) is None:
        raise BuscoError("the local AWS is not running", "start it: busco aws up")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    # Otherwise, SDKs would combine the shell's own profile or session token with these credentials.
    return "\n".join([*lines, "unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN"]) + "\n"


def last_lake(settings: Settings) -> str:
    """Returns the name of the lake that was served last, or of the default lake."""
    path = settings.state / "lake"
    return (path.read_text().strip() if path.is_file() else "") or DEFAULT_LAKE


def client(service: str, endpoint: str, region: str, pair: keys.Pair) -> Any:
    """Returns a client of the local AWS that ignores this machine's AWS profile, credentials and proxy."""
    # AWS_PROFILE may name a profile that doesn't exist, which would make botocore fail.
    unprofiled = botocore.session.Session({"profile": (None, [], None, None)})
    session = boto3.session.Session(pair.key, pair.secret, region_name=region, botocore_session=unprofiled)
    config = Config(proxies={}, s3={"addressing_style": "path"}, retries={"max_attempts": 3})
    return session.client(service, endpoint_url=endpoint, config=config)  # type: ignore[call-overload]


def _started(settings: Settings, state: Path, lake: str, engine: str, say: Say) -> tuple[processes.Process, str]:
    """Starts or restarts the server if necessary, and returns its process and endpoint."""
    process = processes.find(state, NAME)
    if process:
        arguments = _arguments(process)
        endpoint = _endpoint(arguments.get("--port", ""))
        identity = _identity(state, process)
        served = (identity.get("lake"), arguments.get("--docker-host", ""))
        image = arguments.get("--image", settings.dbt_image)
        # A server started by an earlier version may lack the owner's keys, or may provision other types of resources.
        reviewed = identity.get("reviewed") == provisioned.REVIEWED
        if served == (lake, engine) and image == settings.dbt_image and reviewed:
            return process, endpoint
    # This is done before anything is stopped, so that a running server is left alone if Docker can't be reached.
    own, for_tasks = _addresses(settings, engine)
    if process:
        without = "" if arguments.get("--docker-host") else ", without Docker"
        say(f"stopping the local AWS, which serves the lake {identity.get('lake', '(no response)')}{without}")
    # This is necessary even if no server is running, because it removes a killed server's record.
    processes.stop(state, NAME, grace=10)
    docker_engine.end_left(state)
    outside = [address for address in (own, for_tasks) if address]
    port = processes.hold_port(state, NAME, ("127.0.0.1", *outside), settings.local_aws_port)
    keys.renew_instances(state, port, instances.ROLES)
    endpoint = _endpoint(port)
    _write(state / "lake", f"{lake}\n")
    began = time.monotonic()
    command = [sys.executable, "-m", "busco.embedded.local_aws_server", "--state", str(state), "--lake", lake]
    command += ["--port", str(port), "--region", settings.region]
    if engine:
        command += ["--docker-host", engine, "--image", settings.dbt_image]
    if settings.aws_port:
        command += ["--published", str(settings.aws_port)]
    if own:
        command += ["--address", own, "--host-name", settings.local_aws_host]
    if for_tasks:
        name = settings.local_aws_tasks_host or for_tasks
        command += ["--tasks", f"{for_tasks}:{port}", "--tasks-name", name]
    process = processes.start(state, NAME, command, os.environ, settings.home)
    answers = lambda: bool(_identity(state, process))  # noqa: E731
    processes.wait_until(answers, process, "the local AWS", START_LIMIT, every=0.02)
    say(f"started the local AWS with the lake {lake} in {time.monotonic() - began:.1f} s")
    return process, endpoint


def _addresses(settings: Settings, engine: str) -> tuple[str, str]:
    """Returns the server's two addresses besides loopback: the one in the Compose stack, and the one for ECS tasks.

    An address is '' if there is none. On a laptop, tasks reach the server at this machine's address on Docker's bridge.
    If the server runs in a container, the container has a name on the tasks' own network, and its other address is the
    one in the stack. The address in the stack can't be looked up by name, because Docker resolves the container's name
    in the stack to both addresses.
    """
    if not settings.local_aws_tasks_host:
        return "", docker_engine.bridge_address(engine) if engine else ""
    import psutil

    tasks = socket.gethostbyname(settings.local_aws_tasks_host)
    own = [one for addresses in psutil.net_if_addrs().values() for one in addresses if one.family == socket.AF_INET]
    others = sorted({one.address for one in own if not one.address.startswith("127.")} - {tasks})
    if len(others) != 1:
        raise BuscoError(
            f"this container has {', '.join(others) or 'no address'} besides {tasks}, which is for ECS tasks",
            "attach it to exactly two networks: the stack's and the tasks'",
        )
    return others[0], tasks


def _endpoint(port: int | str) -> str:
    return f"http://127.0.0.1:{port}"


def _identity(state: Path, process: processes.Process) -> dict[str, Any]:
    """Returns what the server reports about itself (lake, pid, port).

    The result is empty if the server doesn't respond, or if the response comes from another process.

    Any user on this machine could have taken the port, and a pid is no secret. So the server must prove that it has the
    owner's secret, with an HMAC over its response and a random nonce. The HMAC is valid for this request to this port
    only. The listening socket must also belong to the process.
    """
    port = _arguments(process).get("--port", "0")
    nonce = secrets.token_hex(16)
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
    try:
        connection.request("GET", f"{IDENTITY_PATH}?nonce={nonce}")
        content = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    if not isinstance(content, dict):
        return {}
    proof = str(content.pop("proof", ""))
    is_owners = hmac.compare_digest(proof.encode(), keys.proof(keys.owner(state), nonce, content).encode())
    is_same = (content.get("pid"), content.get("port")) == (process.pid, int(port))
    return content if is_owners and is_same and processes.listens(process, int(port)) else {}


def _arguments(process: processes.Process) -> dict[str, str]:
    """Returns the running server's command-line arguments; unlike files, they can't be out of date."""
    import psutil

    try:
        words = psutil.Process(process.pid).cmdline()
    except psutil.NoSuchProcess:
        return {}
    return dict(itertools.pairwise(words))


def _variables_of(endpoint: str, region: str, outputs: Mapping[str, str]) -> dict[str, str]:
    around = ",".join(dict.fromkeys(["127.0.0.1", "localhost", *_no_proxy()]))
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "BUSCO_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "BUSCO_REGION": region,
        "BUSCO_LAKE_BUCKET": outputs["LakeBucket"],
        "BUSCO_LANDING_BUCKET": outputs["LandingBucket"],
        "BUSCO_LOGS_BUCKET": outputs["LogsBucket"],
        "BUSCO_ATHENA_WORKGROUP": outputs["Workgroup"],
        "BUSCO_ECS_CLUSTER": outputs["Cluster"],
        "BUSCO_ECS_TASK_DEFINITION_SMALL": outputs["TaskDefinitionSmall"],
        "BUSCO_ECS_TASK_DEFINITION_MEDIUM": outputs["TaskDefinitionMedium"],
        "BUSCO_ECS_TASK_DEFINITION_LARGE": outputs["TaskDefinitionLarge"],
        "BUSCO_ECS_LOG_GROUP": outputs["LogGroup"],
        "BUSCO_ALERTS_TOPIC": outputs["AlertsTopic"],
        "BUSCO_EVENTS_QUEUE": outputs["EventsQueue"],
        "BUSCO_EVENTS_DEAD_LETTERS": outputs["DeadLetters"],
        "BUSCO_RUNNER_ROLE_ARN": outputs["RunnerRoleArn"],
        "BUSCO_INGEST_ROLE_ARN": outputs["IngestRoleArn"],
        "BUSCO_PUBLISHER_ROLE_ARN": outputs["PublisherRoleArn"],
        # Requests to loopback must bypass the machine's proxy; programs differ in which of the two variables they read.
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
    return read_env_file(env_file(settings.state))


def _files(state: Path) -> list[Path]:
    """Returns the paths of the files with a running local AWS's variables: for its owner, each role, and no role."""
    return [env_file(state), *(env_file(state, role) for role in (*instances.ROLES, "none"))]


def _write_variables(path: Path, variables: Mapping[str, str]) -> None:
    _write(path, "".join(f"{name}={value}\n" for name, value in variables.items()))


def _check_lake_name(lake: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,40}", lake):
        raise BuscoError(f"{lake!r} is not a valid lake name", "use up to 41 characters from a-z, 0-9, _ and -")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    """Replaces a file atomically; only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    scratch.replace(path)
