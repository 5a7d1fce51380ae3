"""A container that plays an EC2 host, and deployments to it. Containers on it play RDS, AWS and Let's Encrypt."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.compose.stack import ROOT, free_port
from tests.production.stack import DOMAIN, Production, settings_of_the_example

# a script that starts a machine in a container: `up NAME` prints its address and the path of a private key for the user
# admin; `reboot`, `crash` and `down` do what they say
PROGRAM = os.environ.get("BUSCO_TEST_EC2_HOST", "")
GROUP = 2375  # of Docker's socket on the host, for the service that plays ECS
OURS = ("airflow", "nginx", "certbot")
# images that only the services of the tests use, by the names under which the host pulls them
OTHERS = {
    "postgres:16.3-alpine": "library/postgres:16.3-alpine",
    "redis:7.2-alpine": "library/redis:7.2-alpine",
    "busco-local-aws:local": "library/busco-local-aws:local",
    "busco-dbt:local": "library/busco-dbt:local",
    "ghcr.io/letsencrypt/pebble:2.6.0": "library/pebble:2.6.0",
}


# Starts a web server at the address of the instance metadata, in a network that the host can only reach by routing.
_METADATA = """
set -euo pipefail
docker rm --force metadata >/dev/null 2>&1 || true
ip link del imds0 2>/dev/null || true
image=$(docker ps --filter label=com.docker.compose.service=airflow-scheduler --format '{{.Image}}')
docker run --detach --name metadata --network none --user 0 --entrypoint python "$image" -m http.server 80 >/dev/null
pid=$(docker inspect --format '{{.State.Pid}}' metadata)
ip link add imds0 type veth peer name imds1
ip link set imds1 netns "$pid"
ip addr add 10.254.0.1/30 dev imds0
ip link set imds0 up
nsenter --target "$pid" --net sh -c '
    ip addr add 169.254.169.254/32 dev lo; ip addr add 10.254.0.2/30 dev imds1; ip link set imds1 up; ip link set lo up
    ip route add default via 10.254.0.1'
ip route replace 169.254.169.254/32 via 10.254.0.2
for attempt in $(seq 60); do
    if curl --silent --noproxy '*' --max-time 2 http://169.254.169.254/ >/dev/null; then exit; fi
    sleep 1
done
echo "the metadata can't be reached from the host" >&2
exit 1
"""


def docker(*arguments: str, given: bytes | None = None) -> str:
    done = subprocess.run(["docker", *arguments], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@dataclass
class Registry:
    """A registry on this machine's port, in ECR's place."""

    port: int

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def push(self, image: str, name: str) -> None:
        """Pushes a local image under a name such as `busco-airflow:<tag>`."""
        docker("tag", image, f"{self.name}/{name}")
        docker("push", "--quiet", f"{self.name}/{name}")


@contextmanager
def registry() -> Iterator[Registry]:
    name, port = f"busco-registry-{uuid.uuid4().hex[:8]}", free_port()
    docker("run", "--detach", "--name", name, "--publish", f"127.0.0.1:{port}:5000", "registry:2")
    try:
        made = Registry(port)
        curl = ["curl", "--silent", "--noproxy", "*", f"http://{made.name}/v2/"]
        for _ in range(60):
            if subprocess.run(curl, check=False, capture_output=True).returncode == 0:
                break
            threading.Event().wait(0.5)
        for image, kept in OTHERS.items():
            made.push(image, kept)
        made.push("redis:7.2-alpine", "busco-redis:7.2-alpine")
        made.push("postgres:16.3-alpine", "busco-postgres:16.3-alpine")
        yield made
    finally:
        docker("rm", "--force", "--volumes", name)


@dataclass
class Checkout:
    """A checkout from which an operator deploys."""

    home: Path
    registry: Registry

    def git(self, *arguments: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        done = subprocess.run(["git", *own, *arguments], cwd=self.home, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    @classmethod
    def made(cls, home: Path, registry: Registry) -> Checkout:
        """Copies the sources, with a .env for production, and with the authority of the tests' database as RDS's."""
        Production.of(home, "busco", **_values(registry))
        made = cls(home, registry)
        (home / "deploy/rds/global-bundle.pem").write_text((home / "test/tls/ca.pem").read_text())
        # a .env must not name the local AWS's account; the override on the host does
        env = (home / ".env").read_text().replace("000000000000", "111122223333")
        (home / ".env").write_text(env)
        made.git("init", "--quiet")
        (home / ".git/info/exclude").write_text("/test/\n")
        made.commit("the first release")
        return made

    def commit(self, message: str) -> str:
        """Commits everything; returns the version."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "--short=12", "HEAD")

    def release(self, message: str, airflow: str = "busco-airflow:local") -> str:
        """Commits, and pushes images as `ecr_push.sh` would; returns the version."""
        version = self.commit(message)
        self.registry.push(airflow, f"busco-airflow:{version}")
        for image in ("nginx", "certbot"):
            command = f". scripts/lib/images.sh; release_tag {image} {version}"
            done = subprocess.run(["bash", "-c", command], cwd=self.home, check=True, capture_output=True, text=True)
            self.registry.push(f"busco-{image}:local", f"busco-{image}:{done.stdout.strip()}")
        return version


def _values(registry: Registry) -> dict[str, object]:
    return {
        **{f"{name.upper()}_IMAGE": f"{registry.name}/busco-{name}" for name in ("dbt", *OURS)},
        "REDIS_IMAGE": f"{registry.name}/busco-redis:7.2-alpine",
        "POSTGRES_IMAGE": f"{registry.name}/busco-postgres:16.3-alpine",
        "TEST_FOLDER": "/opt/busco/test",
        "BUSCO_ECS_SUBNETS": "subnet-1",
        "BUSCO_ECS_SECURITY_GROUPS": "sg-1",
        "DOCKER_GID": GROUP,
    }


@dataclass
class Host:
    """The machine, with its address and the key of the user admin."""

    name: str
    address: str
    key: Path
    tunnels: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def options(self) -> list[str]:
        known = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
        return ["-i", str(self.key), "-o", "BatchMode=yes", *known]

    def ssh(self, command: str, check: bool = True, given: bytes | None = None, limit: float = 300) -> str:
        """Runs a shell command as the user admin; returns its output."""
        done = subprocess.run(
            ["ssh", *self.options, f"admin@{self.address}", command], input=given, capture_output=True, check=False,
            timeout=limit,
        )  # fmt: skip
        assert done.returncode == 0 or not check, (done.stdout + done.stderr).decode()
        return done.stdout.decode().strip()

    def connect(self, registry: Registry) -> None:
        """Makes the registry reachable under the same address on the host, as long as the host is up."""
        forwarded = f"{registry.port}:{registry.name}"
        self.tunnels.append(
            subprocess.Popen(
                ["ssh", *self.options, "-N", "-R", forwarded, f"admin@{self.address}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def prepare(self, registry: Registry, checkout: Checkout) -> None:
        """Prepares what only tests need: the registry in Docker Hub's place, and the override with its services."""
        self.connect(registry)
        self.ssh(f"sudo groupadd --system --gid {GROUP} docker")
        daemon = f'{{"registry-mirrors": ["http://{registry.name}"]}}'
        self.ssh("sudo mkdir -p /etc/docker /opt/busco && sudo tee /etc/docker/daemon.json", given=daemon.encode())
        files = ["docker-compose.yml", "docker-compose.common.yml", "test"]
        packed = subprocess.run(["tar", "-C", checkout.home, "-c", *files], check=True, capture_output=True).stdout
        self.ssh("sudo tar -C /opt/busco -x --no-same-owner && sudo chmod 755 /opt/busco", given=packed)
        # the local AWS is not part of a release: its image has no tag of a release, and its sources are in the image
        self.ssh(r"sudo sed -i 's/busco-local-aws:.*/busco-local-aws:local/; /- \.\//d' /opt/busco/docker-compose.yml")
        self.ssh("sudo tee /opt/busco/override.yml", given=_override(checkout).encode())

    def run(self, action: str) -> None:
        """Reboots or crashes the machine."""
        for tunnel in self.tunnels:
            tunnel.terminate()
            tunnel.wait()
        self.tunnels.clear()
        printed = subprocess.run([PROGRAM, action, self.name], check=True, capture_output=True, text=True).stdout
        self.address = printed.split()[0]

    def get(self, path: str) -> tuple[int, str]:
        """Requests a page over HTTPS from this machine; returns the status (0: no answer) and the body."""
        done = subprocess.run(
            ["curl", "--silent", "--insecure", "--noproxy", "*", "--max-time", "5", "--write-out", "\n%{http_code}",
             "--resolve", f"{DOMAIN}:443:{self.address}", f"https://{DOMAIN}{path}"],
            capture_output=True, check=False, text=True,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    def containers(self) -> dict[str, str]:
        """Returns the id of each service's container."""
        listed = self.ssh(
            "sudo docker ps --filter label=com.docker.compose.project=busco --no-trunc "
            "--format '{{.Label \"com.docker.compose.service\"}} {{.ID}}'"
        )
        return dict(line.split() for line in listed.splitlines())

    def reaching_metadata(self) -> set[str]:
        """Returns the services whose containers reach the instance metadata.

        A container in a network of its own plays it, behind the host, as on EC2.
        """
        self.ssh("sudo bash -s", given=_METADATA.encode())
        found = set()
        for service, container in self.containers().items():
            pid = self.ssh(f"sudo docker inspect --format '{{{{.State.Pid}}}}' {container}")
            curl = "curl --silent --noproxy '*' --max-time 5 http://169.254.169.254/"
            if self.ssh(f"sudo nsenter --target {pid} --net {curl} || true"):
                found.add(service)
        return found

    def airflow(self, command: str) -> str:
        """Runs Airflow's command line in the scheduler's container; returns its output."""
        return self.ssh(f"sudo docker exec {self.containers()['airflow-scheduler']} airflow {command}")

    def sql(self, query: str) -> str:
        """Runs a query on Airflow's database; returns its values without headings."""
        container = self.containers()["postgres"]
        return self.ssh(f"sudo docker exec {container} psql -U airflow -Atc {shlex.quote(query)}")

    def current(self) -> str:
        return self.ssh("basename $(sudo readlink /opt/busco/current)")

    def wait(self, ready: Callable[[], bool], limit: float = 120) -> None:
        deadline = time.monotonic() + limit
        while not ready():
            assert time.monotonic() < deadline, f"the condition was not met within {limit} s"
            threading.Event().wait(1)


def _override(checkout: Checkout) -> str:
    """Returns the tests' override for the host: real ports, the settings of the local AWS, images of the registry."""
    text = (ROOT / "tests/production/override.yml").read_text()
    text = re.sub(r"^    ports: !override .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("ghcr.io/letsencrypt/pebble:2.6.0", "pebble:2.6.0")
    # Compose looks for extended files in the release's folder
    text = text.replace("{ file: docker-compose.yml,", "{ file: /opt/busco/docker-compose.yml,")
    given = "".join(f'  {name}: "{value}"\n' for name, value in _of_the_local_aws().items())
    return text.replace("\nx-airflow: &airflow", f"{given}\nx-airflow: &airflow", 1)


def _of_the_local_aws() -> dict[str, str]:
    found = {name: value for name, value in settings_of_the_example().items() if "000000000000" in value}
    return {**found, "AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER": f"s3://{found['BUSCO_LOGS_BUCKET']}/airflow"}


@contextmanager
def host() -> Iterator[Host]:
    """Starts a machine, and removes it with its disk at the end."""
    name = f"busco-{uuid.uuid4().hex[:8]}"
    printed = subprocess.run([PROGRAM, "up", name], check=True, capture_output=True, text=True).stdout
    address, key = printed.split()[:2]
    made = Host(name, address, Path(key))
    try:
        yield made
    finally:
        for tunnel in made.tunnels:
            tunnel.terminate()
        subprocess.run([PROGRAM, "down", name], check=False, capture_output=True)


def operator(
    checkout: Checkout, made: Host, *options: str, key: Path | None = None, script: str = "ec2_deploy.sh"
) -> tuple[int, str]:
    """Runs one of the operator's scripts; returns its exit status and its output."""
    known = checkout.home.parent / "home/.ssh"
    known.mkdir(parents=True, exist_ok=True)
    command = [str(checkout.home / "scripts" / script), *options, f"admin@{made.address}", str(key or made.key)]
    wrapper = ssh_with(checkout, known / "known_hosts")
    own = {**os.environ, "PATH": f"{wrapper}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, env=own, cwd=checkout.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=1200,
    )  # fmt: skip
    print(shlex.join(command), done.stdout, sep="\n")
    return done.returncode, done.stdout


# Plays the AWS CLI for a machine that is an instance: Systems Manager runs a command as root, and Session Manager
# forwards a connection to its port 22.
_AWS = """#!/usr/bin/env python3
import json, os, socket, subprocess, sys, threading

arguments, state = sys.argv[1:], os.environ["PLAYED_STATE"]
if arguments[:2] == ["ssm", "send-command"]:
    path = arguments[arguments.index("--parameters") + 1].removeprefix("file://")
    script = "\\n".join(json.load(open(path))["commands"])
    command = [*json.loads(os.environ["PLAYED_ROOT"]), "sudo sh -s"]
    done = subprocess.run(command, input=script, capture_output=True, text=True)
    json.dump(
        {
            "Status": "Failed" if done.returncode else "Success",
            "StandardOutputContent": done.stdout,
            "StandardErrorContent": done.stderr,
        },
        open(state, "w"),
    )
    print("0123-command")
elif arguments[:2] == ["ssm", "get-command-invocation"]:
    print(json.load(open(state))[arguments[arguments.index("--query") + 1]])
elif arguments[:2] == ["ssm", "start-session"]:
    connection = socket.create_connection((os.environ["PLAYED_ADDRESS"], 22))

    def send():
        while part := os.read(0, 65536):
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    while part := connection.recv(65536):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
else:
    print("a token")
"""
INSTANCE = "i-0123456789abcdef0"


def operator_of_instance(checkout: Checkout, made: Host, *options: str) -> tuple[int, str]:
    """Runs `ec2_deploy.sh` for the machine's id, without a key; returns its exit status and its output."""
    folder = checkout.home.parent / "instance"
    folder.mkdir(exist_ok=True)
    for name, text in (("aws", _AWS), ("session-manager-plugin", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    # a python3 that is a wrapper may put other programs first on the PATH
    (folder / "python3").unlink(missing_ok=True)
    (folder / "python3").symlink_to(sys.executable)
    own = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PLAYED_ADDRESS": made.address,
        "PLAYED_ROOT": json.dumps(["ssh", *made.options, f"admin@{made.address}"]),
        "PLAYED_STATE": str(folder / "command.json"),
    }  # fmt: skip
    done = subprocess.run(
        [str(checkout.home / "scripts/ec2_deploy.sh"), *options, INSTANCE], env=own, cwd=checkout.home,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=1200,
    )  # fmt: skip
    print(done.stdout)
    return done.returncode, done.stdout


def ssh_with(checkout: Checkout, known: Path) -> Path:
    """Returns a folder with an `ssh` that remembers hosts in a file of the test's own."""
    folder = checkout.home.parent / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "ssh"
    program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -o UserKnownHostsFile={known} "$@"\n')
    program.chmod(0o755)
    return folder
