"""Deployments to a machine that starts with nothing but SSH: first, again, upgrades, faults, rollback, backups.

The machine is a container that plays an EC2 host: BUSCO_TEST_EC2_HOST names the program that starts it.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.production.host import PROGRAM, Checkout, Host, Registry, docker, host, operator, registry

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PROGRAM, reason="BUSCO_TEST_EC2_HOST (a program that starts an EC2 host) is not set"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def images() -> Iterator[Registry]:
    with registry() as made:
        yield made


@pytest.fixture(scope="module")
def checkout(images: Registry, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout.made(tmp_path_factory.mktemp("operator") / "checkout", images)
    made.release("the first images")
    return made


@pytest.fixture(scope="module")
def machine(images: Registry, checkout: Checkout) -> Iterator[Host]:
    """A machine after its first deployment."""
    with host() as made:
        made.prepare(images, checkout)
        began = time.monotonic()
        status, printed = operator(checkout, made)
        assert status == 0, printed
        print(f"from nothing to healthy: {time.monotonic() - began:.0f} s")
        yield made


class Outage:
    """Requests a page each half second, and records for how long there was no answer, or none of Airflow's."""

    def __init__(self, machine: Host) -> None:
        self.machine, self.over = machine, threading.Event()
        self.silent = self.unhealthy = 0.0
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self.over.wait(0.5):
            status, _ = self.machine.get("/health")
            now = time.monotonic()
            if status == 0:
                self.silent += now - last
            if status != 200:
                self.unhealthy += now - last
            last = now

    def __enter__(self) -> Outage:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        print(f"no answer for {self.silent:.1f} s, Airflow's pages unavailable for {self.unhealthy:.1f} s")


def test_the_first_deployment_makes_a_healthy_platform_of_an_empty_machine(machine: Host) -> None:
    status, body = machine.get("/health")
    assert status == 200
    assert body.count('"healthy"') >= 3
    assert machine.current() == machine.ssh("sudo ls /opt/busco/releases")
    assert machine.ssh("systemctl is-enabled busco.service busco-check.timer").split() == ["enabled"] * 2
    assert machine.ssh("sudo stat -c %a /opt/busco/current/.env") == "600"
    assert "busco" in machine.ssh("ls /etc/cron.d")
    assert machine.ssh("sudo ls /opt/busco/uploads") == ""
    # Docker's packages are held, so that no automatic upgrade stops the platform
    assert "docker.io" in machine.ssh("apt-mark showhold")


def test_without_a_change_nothing_restarts(machine: Host, checkout: Checkout) -> None:
    before = machine.containers()
    status, printed = operator(checkout, machine)
    assert status == 0, printed
    assert "nothing has changed" in printed
    assert machine.containers() == before


def test_only_services_that_changed_are_replaced(machine: Host, checkout: Checkout) -> None:
    before = machine.containers()
    with (checkout.home / ".env").open("a") as env:
        env.write("OAUTH_NAME=example\n")
    status, printed = operator(checkout, machine)
    assert status == 0, printed
    after = machine.containers()
    assert {name for name in before if before[name] != after[name]} <= {"airflow-webserver", "airflow-init"}


def test_an_upgrade_keeps_https_and_airflow_is_back_within_20_seconds(machine: Host, checkout: Checkout) -> None:
    before = machine.containers()
    version = checkout.release("an upgrade")
    with Outage(machine) as outage:
        status, printed = operator(checkout, machine)
    assert status == 0, printed
    assert machine.current().startswith(version)
    after = machine.containers()
    assert before["nginx-proxy"] == after["nginx-proxy"]
    assert before["redis"] == after["redis"]
    assert before["airflow-worker"] != after["airflow-worker"]
    assert outage.silent == 0
    assert outage.unhealthy <= 20


def test_a_broken_image_is_rolled_back_while_the_old_release_serves(
    machine: Host, checkout: Checkout, tmp_path: Path
) -> None:
    before = machine.current()
    (tmp_path / "Dockerfile").write_text(
        "FROM busco-airflow:local\nUSER root\nRUN rm /opt/venv/bin/gunicorn\nUSER 50000:0\n"
    )
    docker("build", "--quiet", "--tag", "busco-airflow:broken", str(tmp_path))
    checkout.release("a broken release", airflow="busco-airflow:broken")
    with Outage(machine) as outage:
        status, printed = operator(checkout, machine)
    assert status == 1
    assert "did not become healthy" in printed
    assert before in printed
    assert machine.current() == before
    assert machine.get("/health")[0] == 200
    assert outage.silent == 0


def test_a_rollback_deploys_the_release_before(machine: Host, checkout: Checkout) -> None:
    first = machine.current()
    version = checkout.release("to be rolled back")
    assert operator(checkout, machine)[0] == 0
    assert machine.current().startswith(version)
    status, printed = operator(checkout, machine, "--rollback")
    assert status == 0, printed
    assert machine.current() == first


@pytest.mark.parametrize("step", ["pull the images", "set up the database", "start airflow-scheduler"])
def test_a_deployment_that_is_killed_is_finished_by_the_next(machine: Host, checkout: Checkout, step: str) -> None:
    version = checkout.release(f"killed at: {step}")
    deploying = threading.Thread(target=operator, args=(checkout, machine))
    deploying.start()
    machine.wait(lambda: step in machine.ssh("sudo sh -c 'cat $(ls -t /var/log/busco/deploy-* | head -n 1)'"))
    machine.ssh("sudo pkill -KILL -f '[h]ost.sh --detached'")
    deploying.join()
    # what it had started, such as a Docker command, keeps the lock until it has ended
    machine.wait(
        lambda: machine.ssh("sudo flock --nonblock /run/lock/busco.lock true && echo free", check=False) == "free"
    )
    status, printed = operator(checkout, machine)
    assert status == 0, printed
    assert machine.current().startswith(version)


def test_a_lost_connection_does_not_stop_a_deployment(machine: Host, checkout: Checkout) -> None:
    version = checkout.release("the connection is lost")
    deploying = threading.Thread(target=operator, args=(checkout, machine))
    deploying.start()
    machine.wait(
        lambda: "pull the images" in machine.ssh("sudo sh -c 'cat $(ls -t /var/log/busco/deploy-* | head -n 1)'")
    )
    # the second deployment is refused, and names the first
    status, printed = operator(checkout, machine)
    assert status == 75
    assert re.search(r"deployment of \S+, by \S+@\S+, since .* UTC", printed)
    subprocess.run(["pkill", "-f", f"ssh .*admin@{machine.address} sudo BUSCO_OPERATOR"], check=True)
    deploying.join()
    machine.wait(lambda: machine.current().startswith(version), 300)


def test_a_full_disk_is_refused_before_anything_is_pulled(machine: Host, checkout: Checkout) -> None:
    checkout.release("the disk is full")
    before = machine.current()
    free = int(machine.ssh("df --output=avail --block-size=1 /var/lib/docker | tail -n 1"))
    machine.ssh(f"sudo fallocate -l {free - 2_000_000_000} /var/lib/docker/ballast", check=False)
    try:
        status, printed = operator(checkout, machine)
    finally:
        machine.ssh("sudo rm -f /var/lib/docker/ballast")
    assert status == 1
    assert "MB are free" in printed
    assert "pull" not in printed
    assert machine.current() == before


def test_a_wrong_key_and_a_changed_host_key_are_named(machine: Host, checkout: Checkout, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", wrong], check=True)
    status, printed = operator(checkout, machine, key=wrong)
    assert status == 1
    assert "refuses the key" in printed
    known = checkout.home.parent / "home/.ssh/known_hosts"
    whole = known.read_text()
    other = (tmp_path / "wrong.pem.pub").read_text().split()
    known.write_text(f"{machine.address} {other[0]} {other[1]}\n")
    try:
        status, printed = operator(checkout, machine)
    finally:
        known.write_text(whole)
    assert status == 1
    assert "ssh-keygen -R" in printed


def test_a_backup_is_verified_and_restored_with_its_connections(machine: Host) -> None:
    machine.airflow("connections add kept --conn-type http --conn-password secret")
    name = machine.ssh("sudo busco-backup --quiet", limit=600)
    assert name in machine.ssh("sudo busco-restore --list")
    machine.airflow("connections delete kept")
    machine.airflow("variables set newer 1")
    assert "1 variable" in machine.ssh(f"sudo busco-restore --newer {name}")
    machine.ssh(f"sudo busco-restore --yes {name}", limit=900)
    machine.wait(lambda: machine.get("/health")[0] == 200)
    assert "secret" in machine.airflow("connections get kept -o json")
    assert "newer" not in machine.airflow("variables list")


def test_a_damaged_backup_is_refused_and_changes_nothing(machine: Host) -> None:
    name = machine.ssh("sudo busco-restore --list").splitlines()[0]
    before = machine.containers()
    machine.ssh(f"sudo truncate -s -1000 /var/backups/busco/{name}.dump")
    refused = machine.ssh(f"sudo busco-restore --yes {name} 2>&1", check=False, limit=600)
    assert "can't be restored" in refused
    assert machine.containers() == before
    machine.ssh(f"sudo rm /var/backups/busco/{name}.dump")


@pytest.mark.parametrize("action", ["reboot", "crash"])
def test_the_platform_is_back_after(machine: Host, images: Registry, action: str) -> None:
    machine.run(action)
    machine.connect(images)
    machine.wait(lambda: machine.get("/health")[0] == 200, 300)
    machine.wait(lambda: machine.get("/health")[1].count('"healthy"') >= 3, 120)


def test_a_dead_cron_and_an_old_backup_are_noticed(machine: Host) -> None:
    machine.ssh("sudo busco-backup --quiet && sudo busco-host renew", check=False, limit=600)
    machine.ssh("sudo systemctl stop cron")
    try:
        printed = machine.ssh("sudo busco-host check 2>&1", check=False)
    finally:
        machine.ssh("sudo systemctl start cron")
    assert "cron is not running" in printed


def test_a_service_that_hangs_is_restarted(machine: Host) -> None:
    container = machine.containers()["airflow-triggerer"]
    machine.ssh(f"sudo docker pause {container}")
    machine.wait(lambda: "Paused" not in machine.ssh(f"sudo docker ps --filter id={container}"), 240)
    machine.wait(lambda: "(healthy)" in machine.ssh(f"sudo docker ps --filter id={container}"), 240)


def test_twenty_releases_keep_five_and_the_disk_flat(machine: Host, checkout: Checkout) -> None:
    for number in range(6):
        checkout.release(f"release {number}")
        assert operator(checkout, machine)[0] == 0
    kept = machine.ssh("sudo ls /opt/busco/releases").splitlines()
    assert len(kept) <= 6
    tags = machine.ssh("sudo docker images --format '{{.Repository}}:{{.Tag}}' | grep busco-airflow").splitlines()
    assert len(tags) == len({one.partition("-")[0] for one in kept})


def test_a_fernet_key_is_rotated_and_connections_stay_readable(machine: Host, checkout: Checkout) -> None:
    machine.airflow("connections add of_the_old_key --conn-type http --conn-password secret")
    before = (checkout.home / ".env").read_text()
    status, printed = operator(checkout, machine, "fernet", script="rotate_keys.sh")
    assert status == 0, printed
    assert (checkout.home / ".env").read_text() != before
    assert "secret" in machine.airflow("connections get of_the_old_key -o json")
