"""Isolation in Docker Compose: what a compromised task and a compromised local AWS can reach."""

from __future__ import annotations

import json
import socket
from socket import AF_INET

import psutil

from tests.compose.stack import SERVICES, Stack
from tests.unit.test_compose_files import SECRETS

# the random secrets of .env, which can be recognized wherever they appear
RANDOM = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY"}


def test_each_container_has_its_own_secrets_and_no_others(stack: Stack) -> None:
    for service in (*SERVICES, "airflow-init"):
        variables = json.loads(stack.call("docker", "inspect", stack.container(service)))[0]["Config"]["Env"]
        assert {name for name in RANDOM if stack.value(name) in " ".join(variables)} == SECRETS[service] & RANDOM
        has_password = any(line.startswith("AIRFLOW_ADMIN_PASSWORD=") for line in variables)
        assert has_password == (service in ("airflow-init", "flower"))


# what a compromised ECS task tries: places (host and port) → those that accept a connection
REACH = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def answers(place):
    host, port = place
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False

places = json.loads(sys.argv[1])
with ThreadPoolExecutor(256) as pool:
    print(json.dumps([place for place, found in zip(places, pool.map(answers, places)) if found]))
"""
PORTS = (2375, 4566, 5432, 5555, 6379, 8080, 8793, 8794)


def test_a_task_reaches_the_local_aws_and_neither_airflow_nor_its_database_nor_this_machine(stack: Stack) -> None:
    networks = {
        service: json.loads(stack.call("docker", "inspect", stack.container(service)))[0]["NetworkSettings"]["Networks"]
        for service in SERVICES
    }
    hosts = {*SERVICES, "tasks-aws", "host.docker.internal", "1.1.1.1"}
    hosts |= {one[name] for own in networks.values() for one in own.values() for name in ("IPAddress", "Gateway")}
    for name in ("default", "data", "tasks"):
        network = json.loads(stack.call("docker", "network", "inspect", f"{stack.project}_{name}"))[0]
        hosts |= {one.get("Gateway", "") for one in network["IPAM"]["Config"]}
    hosts |= {one.address for all_of in psutil.net_if_addrs().values() for one in all_of if one.family == AF_INET}
    published = [int(stack.value(name)) for name in ("AIRFLOW_PORT", "FLOWER_PORT", "BUSCO_AWS_PORT")]
    own = networks["local-aws"][stack.network]["IPAddress"]
    # a program on this machine that listens on all interfaces, as many do
    with socket.create_server(("", 0)) as everywhere:
        ports = (*PORTS, *published, everywhere.getsockname()[1])
        places = json.dumps([(host, port) for host in sorted(hosts - {"", "127.0.0.1"}) for port in ports])

        def reached(network: str) -> set[tuple[str, int]]:
            command = ["docker", "run", "--rm", "--network", network, "--entrypoint", "python", "busco-dbt:local"]
            return {(host, port) for host, port in json.loads(stack.call(*command, "-c", REACH, places))}

        # Compose resolves a service's own name on each of its networks
        assert reached(stack.network) == {(name, 4566) for name in ("tasks-aws", "local-aws", own)}
        # a container on the network `data` does reach these services, so the tested places are right
        assert reached(f"{stack.project}_data") >= {
            ("postgres", 5432), ("redis", 6379), ("airflow-webserver", 8080), ("flower", 5555),
        }  # fmt: skip


# what a compromised local AWS tries: it doesn't have Docker's socket, and the starter refuses all of these requests
COMPROMISED = """
import os, sys
from busco.embedded.starter import LostError, StartError
from busco.embedded.starter_client import SocketStarter
from pathlib import Path

starter = SocketStarter(Path(os.environ["BUSCO_STARTER"]))
assert not Path("/var/run/docker.sock").exists()
assert os.getgroups() in ([], [10001]), os.getgroups()
definition = {
    "family": "busco-dbt-small", "revision": 1, "cpu": "256", "memory": "512", "networkMode": "awsvpc",
    "containerDefinitions": [{"name": "dbt", "image": os.environ["BUSCO_DBT_IMAGE"], "command": ["--version"]}],
}
task = "arn:aws:ecs:us-east-1:000000000000:task/busco/" + "0" * 32
order = {"task": task, "definition": definition, "container": "dbt"}

def refused(**changed):
    container = {**definition["containerDefinitions"][0], **changed.pop("container", {})}
    given = {**order, "definition": {**definition, "containerDefinitions": [container], **changed}}
    try:
        print("started", starter.start(given))
    except StartError as error:
        return str(error)

print(refused(volumes=[{"name": "root", "host": {"sourcePath": "/"}}]))
print(refused(container={"privileged": True}))
print(refused(container={"entryPoint": ["sh"]}))
print(refused(container={"image": "postgres:16.3-alpine"}))
print(refused(networkMode="host"))
for container in sys.argv[1:]:
    try:
        print("ended", starter.end(container))
    except LostError as error:
        print(error)
    starter.remove(container)
try:
    Path(os.environ["BUSCO_STARTER"]).unlink()
except OSError as error:
    print(error.strerror)
"""


def test_a_compromised_local_aws_can_start_nothing_but_ordinary_tasks(stack: Stack) -> None:
    others = [stack.container(service) for service in ("postgres", "airflow-webserver")]
    printed = stack.compose("exec", "-T", "local-aws", "python", "-", *others, given=COMPROMISED).splitlines()
    expected = [
        "definition.volumes.0.host: is not supported here",
        "definition.containerDefinitions.0.privileged: ",
        "definition.containerDefinitions.0.entryPoint: is not supported here",
        "postgres:16.3-alpine is not the image",
        "definition.networkMode: ",
        *[f"No such container: {one}" for one in others],
        "Read-only file system",
    ]
    for line, start in zip(printed, expected, strict=True):
        assert line.startswith(start)
    assert stack.states() == dict.fromkeys(SERVICES, "healthy")


def assert_tasks_are_confined(stack: Stack) -> None:
    """Asserts that the running tasks have what a task needs and no other access to the machine."""
    for container in stack.tasks():
        inspected = json.loads(stack.call("docker", "inspect", container))[0]
        assert list(inspected["NetworkSettings"]["Networks"]) == [stack.network]
        assert {one["Destination"]: one["RW"] for one in inspected["Mounts"]} == {
            "/tmp": True, "/opt/busco/lib/busco": False, "/opt/busco/dbt_project": False,
        }  # fmt: skip
        host = inspected["HostConfig"]
        assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
        assert (host["ReadonlyRootfs"], host["SecurityOpt"]) == (True, ["no-new-privileges:true"])
        assert (inspected["Config"]["User"], inspected["Config"]["Entrypoint"]) == ("10001:10001", ["busco"])
        assert host["Memory"] > 0
        assert host["NanoCpus"] > 0
        variables = " ".join(inspected["Config"]["Env"])
        assert not [name for name in RANDOM if stack.value(name) in variables]
