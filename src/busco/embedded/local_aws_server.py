"""Runs the local AWS: MiniStack on one port, with Athena and ECS patched, and with S3 stored in one lake's folder.

The server listens on loopback and, in a Compose stack, on the stack's own network. ECS tasks have fewer permissions
than other clients, so they connect to a separate address: this machine's address on Docker's bridge or, in a stack,
the server's address on the tasks' own network.

`busco.embedded.aws.up` starts the server as `python -m busco.embedded.local_aws_server`. The process writes only under
the state folder and connects to nothing outside of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import resource
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from busco.embedded import keys, processes, s3_intents, stacks
from busco.embedded.confinement import Address, confine
from busco.embedded.door import SERVICES, guarded
from busco.embedded.instances import ROLES, Instances
from busco.text import guard

# Days to keep old versions of objects. Fewer than lake.yaml's OldVersionDays, which is meant for AWS, because a
# laptop's disk is small.
OLD_VERSION_DAYS = 7
STACK_SECRET = "LOCAL_AWS_AIRFLOW_SECRET"  # noqa: S105 (a variable in a stack's .env)
# Seconds that ECS tasks get to stop when the container that runs this process is stopped. Less than serve.GRACE.
STACK_GRACE = 45


def lake_folder(state: Path, lake: str) -> Path:
    return state / "lakes" / lake


def environment(
    state: Path, lake: str, port: int, region: str, inherited: Mapping[str, str], name: str = ""
) -> dict[str, str]:
    """Returns the server's environment, free of the user's AWS, proxy, Docker and home directory settings.

    Args:
        state: the platform's state folder, absolute.
        lake: the lake to serve.
        port: port on 127.0.0.1.
        region: AWS region.
        inherited: the caller's environment; only the variables for finding programs and modules, and the locale, are
            kept.
        name: the server's host name if it runs in a container.
    """
    scratch, pair = state / "tmp" / "aws", keys.owner(state)
    kept = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
    return {
        **{name: inherited[name] for name in kept if name in inherited},
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "TZ": "UTC",  # like Athena's sessions
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": name or "127.0.0.1",
        "MINISTACK_REGION": region,
        "SERVICES": SERVICES,
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(lake_folder(state, lake) / "s3"),
        "PERSIST_STATE": "0",
        "STATE_DIR": str(scratch / "ministack-state"),
        "LOG_LEVEL": "WARNING",
        # No MQTT or SFTP listeners, and no access to Docker: only a starter runs containers.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "DOCKER_HOST": f"unix://{scratch}/no-docker.sock",
        # AUTH makes MiniStack evaluate policies; the key pair is its root user's.
        "AUTH": "true",
        "AWS_ACCESS_KEY_ID": pair.key,
        "AWS_SECRET_ACCESS_KEY": pair.secret,
    }


def adopt_buckets(provisioners: Any) -> None:
    """Lets a stack adopt existing buckets, as `ImportExistingResources` does on AWS.

    After a restart, MiniStack reloads the buckets but not the stack that created them, so creating the stack again
    would fail. The same happens after a failed first deployment, because the template retains its buckets. Unlike an
    import, adoption applies the template's properties, because MiniStack does not persist versioning.

    Args:
        provisioners: the module `ministack.services.cloudformation.provisioners`.
    """
    handler = provisioners._RESOURCE_HANDLERS["AWS::S3::Bucket"]
    create, update = handler["create"], handler["update"]

    def create_or_adopt(logical_id: str, properties: dict[str, Any], stack: str) -> Any:
        name = properties.get("BucketName")
        if name and name in provisioners._s3._buckets:
            return update(name, {}, properties, stack)
        return create(logical_id, properties, stack)

    handler["create"] = create_or_adopt
    provisioners.s3_bucket_name_conflict = lambda _: None


def lock_folder(lock: Path) -> None:
    """Locks a lake's folder for the lifetime of this process, so that no other process serves the lake.

    Raises:
        SystemExit: another process serves the lake, for example one whose parent was killed before recording its pid.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode()
        raise SystemExit(f"{lock.parent} is already served by process {holder}; stop it: kill {holder}") from None
    os.truncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())


def engine_addresses(docker_host: str) -> list[Address]:
    """Returns the addresses of a Docker engine or a starter; a TCP host is listed both by name and by IP address.

    `docker_host` is `unix:///var/run/docker.sock`, `starter:///run/busco/starter.sock` or `tcp://host:port`.
    """
    found = urlsplit(docker_host)
    if found.scheme in ("unix", "starter"):
        return [found.path]
    host, port = found.hostname or "", found.port or 2375
    return [(host, port), (socket.gethostbyname(host), port)]


def _listeners(port: int, *addresses: str) -> list[socket.socket]:
    """Returns a socket bound to the port for each non-empty address.

    Raises:
        SystemExit: another program uses the port.
    """
    hosts = [address for address in addresses if address]
    sockets = processes.bound(port, hosts)
    if sockets is None:
        raise SystemExit(f"port {port} on {' or '.join(hosts)} is used by another program: address already in use")
    return sockets


def main() -> None:
    """Serves until SIGTERM. Sets the environment before importing MiniStack, which reads its settings on import."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="the platform's state folder")
    parser.add_argument("--lake", required=True, help="the lake whose S3 buckets to serve")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument(
        "--docker-host", default="", help="the Docker engine or starter that runs ECS tasks (default: no ECS tasks)"
    )
    parser.add_argument("--image", default="", help="the image that ECS tasks run")
    parser.add_argument("--address", default="", help="the server's address within the stack, besides loopback")
    parser.add_argument("--host-name", default="", help="the server's host name within the stack")
    parser.add_argument("--tasks", default="", help="address:port for ECS tasks, which can use fewer services")
    parser.add_argument("--tasks-name", default="", help="the host name or address that ECS tasks use for the server")
    parser.add_argument("--published", type=int, default=0, help="the port that Docker publishes on the host (0: none)")
    given = parser.parse_args()
    state = given.state.resolve()
    folder = lake_folder(state, given.lake)

    variables = environment(state, given.lake, given.port, given.region, os.environ, given.host_name)
    secret_of_stack = os.environ.get(STACK_SECRET, "")
    os.environ.clear()
    os.environ.update(variables)
    for path in (folder / "s3", Path(variables["TMPDIR"])):
        path.mkdir(parents=True, exist_ok=True)
    os.chdir(variables["TMPDIR"])
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    lock_folder(folder / "s3.lock")
    repaired = s3_intents.repair(folder / "s3-intents")
    s3_intents.expire_versions(folder / "s3", OLD_VERSION_DAYS)

    # Imported here because these dependencies are only in dbt's environment, while `busco.embedded.aws` also imports
    # this module in Airflow's environment.
    from hypercorn.asyncio import serve
    from hypercorn.config import Config
    from ministack.app import app

    # Importing s3 now loads the lake's objects before the first request.
    from ministack.services import s3
    from ministack.services.cloudformation import provisioners

    from busco.embedded import (
        athena_iceberg,
        athena_queries,
        athena_results,
        docker_engine,
        local_ecs,
        policies,
        provisioned,
        s3_limits,
        signatures,
        task_definitions,
    )
    from busco.embedded.ecs_roles import TaskRoles

    guard()  # after the imports, so that it also covers the logging that MiniStack has set up
    s3_intents.install(s3, folder / "s3-intents")
    s3_limits.install(s3)
    adopt_buckets(provisioners)
    task_definitions.install(provisioners)
    provisioned.install()
    policies.install(keys.owner(state).key)
    # The processes that start Airflow and the runners pass them these secrets; a stack's Airflow gets its from .env.
    instances = Instances()
    for who, output in ROLES.items():
        known = secret_of_stack if who == "airflow" and secret_of_stack else keys.instance(state, who)
        instances.add(known, f"busco-{who}", policies.output(stacks.ECS, output))
    endpoint = f"http://127.0.0.1:{given.port}"
    athena_queries.install()
    athena_iceberg.install(athena_iceberg.Reader(endpoint, given.region))
    athena_results.install()

    config = Config()
    tasks = urlsplit(f"//{given.tasks}")
    sockets = [
        *_listeners(given.port, "127.0.0.1", given.address),
        *_listeners(tasks.port or 0, tasks.hostname or ""),
    ]
    config.bind = [f"fd://{one.fileno()}" for one in sockets]
    starter = docker_engine.connect(given.docker_host, state, given.image) if given.docker_host else None
    if starter is not None:
        local_ecs.install(f"http://{given.tasks_name}:{tasks.port}", starter, TaskRoles(instances))
    config.keep_alive_timeout = 75
    config.graceful_timeout = 1
    config.loglevel = "WARNING"
    pid = os.getpid()
    print(f"event=local_aws_start lake={given.lake} endpoint={endpoint} pid={pid} repaired={repaired}", flush=True)
    names = [one for one in (given.address, given.host_name, tasks.hostname, given.tasks_name) if one]
    # Apart from itself, this process connects only to the Docker engine or starter that runs ECS tasks.
    others = engine_addresses(given.docker_host) if given.docker_host else []
    confine([("127.0.0.1", given.port), *others], [folder, Path(variables["TMPDIR"])])
    print("event=local_aws_confined", flush=True)
    served = {"lake": given.lake, "pid": pid, "port": given.port, "reviewed": provisioned.REVIEWED}
    watch = signatures.Signatures(keys.owner(state), instances)
    of_tasks = (tasks.hostname or "", tasks.port or 0) if given.tasks else None
    asyncio.run(serve(guarded(app, served, watch, names, of_tasks, [given.published]), config))  # type: ignore[arg-type]
    if starter is not None:
        # In a stack, `down` waits for tasks to stop; on a laptop, `make down` does not.
        starter.end_all(STACK_GRACE if given.host_name else local_ecs.SHUTDOWN_GRACE)


if __name__ == "__main__":
    main()
