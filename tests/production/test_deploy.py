"""Deployments to a machine that starts with nothing but SSH: first, again, upgrades, faults, rollback, backups.

The machine is a container that plays an EC2 host: BUSCO_TEST_EC2_HOST names the program that starts it.
"""

from __future__ import annotations

import base64
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.production.host import (
    PROGRAM,
    Checkout,
    Host,
    Registry,
    docker,
    host,
    operator,
    operator_of_instance,
    registry,
)

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


WITH_THE_ROLE = {
    "airflow-webserver", "airflow-scheduler", "airflow-worker", "airflow-triggerer", "events", "metrics",
}  # fmt: skip
WITHOUT_IT = {"redis", "flower", "nginx-proxy", "letsencrypt"}


def test_only_airflow_s_containers_reach_the_machine_s_role_also_after_a_restart_of_docker(machine: Host) -> None:
    assert machine.ssh("systemctl is-enabled busco-firewall.service") == "enabled"
    found = machine.reaching_metadata()
    assert (found & WITHOUT_IT, found & WITH_THE_ROLE) == (set(), WITH_THE_ROLE)
    machine.ssh("sudo systemctl restart docker")
    machine.wait(lambda: machine.get("/health")[0] == 200, 300)
    found = machine.reaching_metadata()
    assert (found & WITHOUT_IT, found & WITH_THE_ROLE) == (set(), WITH_THE_ROLE)
    # another network for Airflow's containers, or a flushed chain, is noticed within a minute
    machine.ssh("sudo iptables -F DOCKER-USER")
    machine.wait(lambda: machine.ssh("sudo iptables -S DOCKER-USER").count("BUSCO-METADATA") == 1, 90)


def test_an_instance_is_deployed_to_through_session_manager_with_a_key_that_expires(
    machine: Host, checkout: Checkout
) -> None:
    before = machine.containers()
    status, printed = operator_of_instance(checkout, machine)
    assert status == 0, printed
    assert "nothing has changed" in printed
    assert machine.containers() == before
    keys = machine.ssh("sudo cat /home/admin/.ssh/authorized_keys").splitlines()
    assert re.fullmatch(r'restrict,pty,expiry-time="\d{12}" ssh-ed25519 \S+ busco-temporary', keys[-1])
    assert len(keys) == 2, "the operator's own key is still there"
    assert machine.ssh("stat -c '%U %a' /home/admin/.ssh/authorized_keys") == "admin 600"
    # a key whose time has passed can't log in, and is removed by the next deployment
    machine.ssh('sudo sed -i \'s/expiry-time="[0-9]*"/expiry-time="202001010000"/\' /home/admin/.ssh/authorized_keys')
    status, printed = operator_of_instance(checkout, machine, "--status")
    assert status == 0, printed
    assert machine.current() in printed
    keys = machine.ssh("sudo cat /home/admin/.ssh/authorized_keys").splitlines()
    assert len(keys) == 2
    assert "202001010000" not in keys[-1]


def test_the_settings_of_the_release_that_runs_are_read(machine: Host, checkout: Checkout) -> None:
    env = checkout.home / ".env"
    own = env.read_text()
    env.unlink()
    try:
        status, printed = operator_of_instance(checkout, machine, "--get-env")
        assert status == 0, printed
        # versions are those of a release, not settings
        settings = [line for line in own.splitlines() if "_VERSION=" not in line]
        assert env.read_text().splitlines() == settings
        assert env.stat().st_mode & 0o777 == 0o600
    finally:
        env.write_text(own)
        env.chmod(0o600)


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
        "FROM busco-airflow:local\nUSER root\nRUN rm -r /opt/venv/lib/python3.11/site-packages/gunicorn\nUSER 50000:0\n"
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


def started(machine: Host, checkout: Checkout, step: str) -> threading.Thread:
    """Starts a deployment; returns as soon as its log shows a step."""
    newest = "ls -t /var/log/busco/deploy-* | head -n 1"
    before = machine.ssh(f"sudo sh -c '{newest}'")
    deploying = threading.Thread(target=operator, args=(checkout, machine))
    deploying.start()
    machine.wait(lambda: machine.ssh(f"sudo sh -c '{newest}'") != before)
    machine.wait(lambda: step in machine.ssh(f"sudo sh -c 'cat $({newest})'"))
    return deploying


@pytest.mark.parametrize("step", ["pull the images", "set up the database", "start airflow-scheduler"])
def test_a_deployment_that_is_killed_is_finished_by_the_next(machine: Host, checkout: Checkout, step: str) -> None:
    version = checkout.release(f"killed at: {step}")
    deploying = started(machine, checkout, step)
    machine.ssh("sudo pkill -KILL -f '[h]ost.sh --detached'")
    deploying.join()
    # what it had started, such as a Docker command, keeps the lock until it has ended
    machine.wait(lambda: machine.ssh("sudo flock --nonblock /run/busco/lock true && echo free", check=False) == "free")
    status, printed = operator(checkout, machine)
    assert status == 0, printed
    assert machine.current().startswith(version)


def test_a_lost_connection_does_not_stop_a_deployment(machine: Host, checkout: Checkout) -> None:
    version = checkout.release("the connection is lost")
    deploying = started(machine, checkout, "pull the images")
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
    found = machine.reaching_metadata()
    assert (found & WITHOUT_IT, found & WITH_THE_ROLE) == (set(), WITH_THE_ROLE)


def test_a_dead_cron_and_an_old_backup_are_noticed(machine: Host) -> None:
    machine.ssh("sudo busco-backup --quiet && sudo busco-host renew", check=False, limit=600)
    machine.ssh("sudo systemctl stop cron")
    try:
        printed = machine.ssh("sudo busco-host check 2>&1", check=False)
    finally:
        machine.ssh("sudo systemctl start cron")
    assert "cron is not running" in printed


def test_a_stopped_service_is_noticed(machine: Host) -> None:
    machine.ssh("sudo docker stop busco-airflow-triggerer-1")
    try:
        printed = machine.ssh("sudo busco-host check 2>&1", check=False)
    finally:
        machine.ssh("sudo docker start busco-airflow-triggerer-1")
    assert "airflow-triggerer is not running" in printed


def test_a_service_that_hangs_is_restarted(machine: Host) -> None:
    container = machine.containers()["airflow-triggerer"]
    started = f"sudo docker inspect --format '{{{{.State.StartedAt}}}}' {container}"
    # a service that has just been started is not restarted
    machine.wait(lambda: int(machine.ssh(f"echo $(($(date +%s) - $(date --date $({started}) +%s)))")) > 600, 700)
    before = machine.ssh(started)
    # all of its processes stop, and its health checks, which are other processes, fail
    machine.ssh(f"sudo kill -STOP $(sudo docker top {container} -o pid | tail -n +2)")
    machine.wait(lambda: machine.ssh(started) != before, 300)
    machine.wait(lambda: "(healthy)" in machine.ssh(f"sudo docker ps --filter id={container}"), 240)


def test_many_releases_keep_five_and_their_images(machine: Host, checkout: Checkout) -> None:
    for number in range(6):
        checkout.release(f"release {number}")
        assert operator(checkout, machine)[0] == 0
    kept = machine.ssh("sudo ls /opt/busco/releases").splitlines()
    assert len(kept) <= 6
    tags = machine.ssh("sudo docker images --format '{{.Repository}}:{{.Tag}}' | grep busco-airflow").splitlines()
    assert {tag.rpartition(":")[2] for tag in tags} == {one.partition("-")[0] for one in kept}
    assert machine.ssh("basename $(sudo readlink /opt/busco/previous)") in kept


def test_a_fernet_key_is_rotated_and_connections_stay_readable(machine: Host, checkout: Checkout) -> None:
    machine.airflow("connections add of_the_old_key --conn-type http --conn-password secret")
    before = (checkout.home / ".env").read_text()
    status, printed = operator(checkout, machine, "fernet", script="rotate_keys.sh")
    assert status == 0, printed
    assert (checkout.home / ".env").read_text() != before
    assert "secret" in machine.airflow("connections get of_the_old_key -o json")
    assert "," not in (checkout.home / ".env").read_text().split("AIRFLOW__CORE__FERNET_KEY=", 1)[1].splitlines()[0]


def test_a_key_that_cannot_decrypt_the_connections_is_refused(machine: Host, checkout: Checkout) -> None:
    machine.airflow("connections add of_the_right_key --conn-type http --conn-password secret")
    env = checkout.home / ".env"
    right, before = env.read_text(), machine.containers()
    wrong = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    env.write_text(re.sub(r"(?m)^(AIRFLOW__CORE__FERNET_KEY=).*$", rf"\g<1>{wrong}", right))
    try:
        status, printed = operator(checkout, machine)
    finally:
        env.write_text(right)
    assert status == 1
    assert "can't be decrypted" in printed
    assert "of_the_right_key" in printed
    assert machine.containers() == before


# -- migrations: an image whose Airflow has a further revision of the database's tables

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "0123456789ab"
down_revision = "{head}"
branch_labels = None
depends_on = None
airflow_version = "2.10.6"


def upgrade():
    op.add_column("variable", sa.Column("of_the_test", sa.Integer(), nullable=True))


def downgrade():
    op.drop_column("variable", "of_the_test")
"""


def migrating(folder: Path, tag: str, further: str = "") -> str:
    """Builds an image with a further migration; returns its name."""
    command = ("python", "-m", "busco.orchestration.revision", "--newest")
    head = docker("run", "--rm", "busco-airflow:local", *command).splitlines()[-1]
    (folder / "migration.py").write_text(MIGRATION.format(head=head))
    versions = "/opt/venv/lib/python3.11/site-packages/airflow/migrations/versions/9999_of_the_test.py"
    (folder / "Dockerfile").write_text(
        f"FROM busco-airflow:local\nUSER root\nCOPY --chmod=644 migration.py {versions}\n{further}\nUSER 50000:0\n"
    )
    docker("build", "--quiet", "--tag", f"busco-airflow:{tag}", str(folder))
    return f"busco-airflow:{tag}"


def columns(machine: Host) -> str:
    return machine.sql("select count(*) from information_schema.columns where column_name = 'of_the_test'")


def test_a_migration_that_does_not_become_healthy_is_undone_with_its_backup(
    machine: Host, checkout: Checkout, tmp_path: Path
) -> None:
    before = machine.current()
    machine.airflow("variables set before_the_migration 1")
    broken = migrating(tmp_path, "migrating-broken", "RUN rm -r /opt/venv/lib/python3.11/site-packages/gunicorn")
    checkout.release("a broken release that migrates", airflow=broken)
    with Outage(machine) as outage:
        status, printed = operator(checkout, machine)
    assert status == 1
    assert "restore the database from" in printed
    assert machine.current() == before
    assert machine.get("/health")[0] == 200
    assert columns(machine) == "0"
    assert "before_the_migration" in machine.airflow("variables list")
    assert outage.silent == 0


def test_a_rollback_over_a_migration_names_what_would_be_lost_and_restores_the_backup(
    machine: Host, checkout: Checkout, tmp_path: Path
) -> None:
    before = machine.current()
    version = checkout.release("a release that migrates", airflow=migrating(tmp_path, "migrating"))
    status, printed = operator(checkout, machine)
    assert status == 0, printed
    assert machine.current().startswith(version)
    assert columns(machine) == "1"
    machine.airflow("variables set after_the_migration 1")
    status, printed = operator(checkout, machine, "--rollback")
    assert status == 1
    assert "1 variable" in printed
    assert "--restore-database" in printed
    assert machine.current().startswith(version)
    assert "after_the_migration" in machine.airflow("variables list")
    status, printed = operator(checkout, machine, "--rollback", "--restore-database")
    assert status == 0, printed
    assert machine.current() == before
    assert columns(machine) == "0"
    assert "after_the_migration" not in machine.airflow("variables list")
    # what was newer can still be read in the backup that was made before
    assert "back up the present database" in printed


def test_an_upgrade_under_load_loses_no_task_and_tries_none_twice(machine: Host, checkout: Checkout) -> None:
    checkout.release("an upgrade under load")
    machine.airflow("dags trigger load --run-id under_load")
    machine.wait(
        lambda: int(machine.sql("select count(*) from task_instance where dag_id = 'load' and state = 'success'")) > 3
    )
    status, printed = operator(checkout, machine)
    assert status == 0, printed
    ended = "select count(*) from dag_run where dag_id = 'load' and state in ('success', 'failed')"
    machine.wait(lambda: machine.sql(ended) == "1", 600)
    found = machine.sql("select distinct state || ' ' || try_number from task_instance where dag_id = 'load'")
    assert found == "success 1"


def test_the_services_start_by_themselves_when_the_database_is_back(machine: Host, images: Registry) -> None:
    """After a reboot, the database can be unreachable for minutes."""
    machine.ssh("sudo touch /opt/busco/test/tls/unreachable")
    machine.run("reboot")
    machine.connect(images)
    machine.wait(lambda: machine.get("/health")[0] != 0, 300)
    assert not threading.Event().wait(180)
    assert machine.get("/health")[0] == 502
    machine.ssh("sudo rm /opt/busco/test/tls/unreachable")
    machine.wait(lambda: machine.get("/health")[1].count('"healthy"') >= 3, 300)
