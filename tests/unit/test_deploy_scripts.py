"""The scripts that deploy to the production host, without a host: their checks and messages, and what they upload.

Also the workflow that runs them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.compose.stack import Stack

ROOT = Path(__file__).parents[2]
SCRIPTS = ("ec2_deploy.sh", "host.sh", "backup.sh", "restore.sh", "setup_systemd.sh", "rotate_keys.sh", "ecr_push.sh")
REGISTRY = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
# Plays ssh: answers as FAKE_SSH says, records the command, and stores what is uploaded.
SSH = """#!/usr/bin/env bash
printf '%s\\n' "${@: -1}" >>"$FAKE/commands"
case ${FAKE_SSH:-} in
    '') ;;
    denied) echo "Permission denied (publickey)." >&2; exit 255 ;;
    ubuntu-only) [[ $* == *ubuntu@* ]] || { echo "Permission denied (publickey)." >&2; exit 255; } ;;
    *) echo "$FAKE_SSH" >&2; exit 255 ;;
esac
if [[ ${@: -1} == *"tar -C"* ]]; then cat >"$FAKE/upload.tar.gz"; echo /opt/busco/uploads/abcdefgh; fi
if [[ ${@: -1} == *readlink* ]]; then echo "$FAKE_RELEASE"; fi
if [[ ${@: -1} == *" deploy "* ]]; then cat >"$FAKE/logins"; fi
"""
AWS = """#!/usr/bin/env bash
printf 'token of %s' "${@: -1}"
"""
# Plays the AWS CLI for an instance: runs what Systems Manager would run as root there, in a home of the test's own, and
# updates the stack busco-ecs.
AWS_OF_AN_INSTANCE = """#!/usr/bin/env bash
set -eu
printf '%s\\n' "$*" >>"$FAKE/aws"
case "$1 $2 $*" in
    "ecr get-login-password "*) printf 'token of %s' "${@: -1}" ;;
    "ssm send-command "*)
        if [[ ${FAKE_SSM:-} == offline ]]; then echo "InvalidInstanceId" >&2; exit 254; fi
        while [[ $1 != --parameters ]]; do shift; done
        python3 -c 'import json, sys; print(json.load(sys.stdin)["commands"][0])' <"${2#file://}" >"$FAKE/script"
        echo Success >"$FAKE/status"
        PATH=$FAKE/host:$PATH sh "$FAKE/script" >"$FAKE/script.out" 2>"$FAKE/script.err" ||
            echo Failed >"$FAKE/status"
        echo 0123-command ;;
    *"--query Status "*) cat "$FAKE/status" ;;
    *"--query StandardOutputContent "*) cat "$FAKE/script.out" ;;
    *"--query StandardErrorContent "*) cat "$FAKE/script.err" ;;
    "sts get-caller-identity "*) echo '{"Account": "111122223333"}' ;;
    "cloudformation describe-stacks "*)
        echo '{"Stacks": [{"StackStatus": "UPDATE_COMPLETE", "Parameters": [
            {"ParameterKey": "Name", "ParameterValue": "busco"},
            {"ParameterKey": "DbtImage",
             "ParameterValue": "111122223333.dkr.ecr.eu-west-1.amazonaws.com/busco-dbt:old"}]}]}' ;;
    "cloudformation create-change-set "*)
        while [[ $1 != --parameters ]]; do shift; done
        cp "${2#file://}" "$FAKE/parameters" ;;
    "cloudformation describe-change-set "*) echo '{"Status": "CREATE_COMPLETE", "Changes": []}' ;;
    "cloudformation describe-stack-events "*) echo '{"StackEvents": []}' ;;
    "cloudformation "*) ;;
    *) echo "not expected: $*" >&2; exit 2 ;;
esac
"""
INSTANCE = "i-0123456789abcdef0"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a .env for production, and a PATH on which ssh and aws are played."""
    home = tmp_path / "checkout"
    Stack.copied(home, "unused")
    values = [
        "BUSCO_DOMAIN=busco.example.com", "LETSENCRYPT_EMAIL=a@example.com", "DB_HOST=db.example.com",
        "DB_NAME=airflow", "DB_USER=airflow", "DB_PASSWORD='a$b?c#d%e@f'", "BUSCO_VERSION=of-no-release",
        "BUSCO_REGION=eu-west-1", "BUSCO_ECS_SUBNETS=subnet-1", "BUSCO_ECS_SECURITY_GROUPS=sg-1",
        "BUSCO_ECS_CPU_ARCHITECTURE=ARM64",
    ]  # fmt: skip
    values += [f"{name}_IMAGE={REGISTRY}/busco-{name.lower()}" for name in ("DBT", "AIRFLOW", "NGINX", "CERTBOT")]
    values += [
        f"REDIS_IMAGE={REGISTRY}/busco-redis:7.2-alpine",
        f"POSTGRES_IMAGE={REGISTRY}/busco-postgres:16.3-alpine",
    ]
    (home / ".env").write_text("\n".join(values) + "\n")
    (home / ".env").chmod(0o600)
    committed = ["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "--allow-empty"]
    subprocess.run(["git", "-C", str(home), "init", "--quiet"], check=True)
    subprocess.run(["git", "-C", str(home), "add", "--all"], check=True)
    subprocess.run(["git", "-C", str(home), *committed, "--message", "of the test"], check=True)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in (("ssh", SSH), ("aws", AWS)):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    (tmp_path / "key.pem").write_text("a key")
    (tmp_path / "key.pem").chmod(0o600)
    return home


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def deploy(checkout: Path, tmp_path: Path) -> Run:
    def run(*options: str, ssh: str = "", host: str = "host.example.com") -> subprocess.CompletedProcess[str]:
        own = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FAKE": str(tmp_path), "FAKE_SSH": ssh}
        return subprocess.run(
            [checkout / "scripts/ec2_deploy.sh", *options, host, tmp_path / "key.pem"],
            env=own, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_prints_its_usage(name: str) -> None:
    done = subprocess.run([ROOT / "scripts" / name, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
    assert "set -euo" not in done.stdout
    refused = subprocess.run([ROOT / "scripts" / name, "--nonsense"], capture_output=True, text=True, check=False)
    assert refused.returncode in (1, 2)


def test_a_release_has_the_files_that_the_host_needs_and_nothing_else(deploy: Run, tmp_path: Path) -> None:
    done = deploy()
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "upload.tar.gz") as archive:
        names = {member.name.removeprefix("./") for member in archive if member.isfile()}
        modes = {member.mode & 0o077 for member in archive}
        archive.extractall(tmp_path / "release", filter="data")
    assert modes == {0}, "only root may read a release"
    env = (tmp_path / "release/.env").read_text()
    version = subprocess.run(
        ["git", "-C", str(tmp_path / "checkout"), "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True,
        text=True,
    ).stdout.strip()  # fmt: skip
    assert f"BUSCO_VERSION={version}\n" in env
    assert "of-no-release" not in env
    assert "DB_PASSWORD='a$b?c#d%e@f'" in env
    assert not [name for name in names if name.startswith(("src/", "tests/", "dags/", ".git/"))]
    # each file that a script of the release sources or runs is there
    assert {"docker-compose.common.yml", "scripts/host.sh", "scripts/lib/drop_tables.sql", ".env"} <= names
    used = re.findall(r"(docker-compose\.prod\S*\.yml)\b", (tmp_path / "release/scripts/lib/host.sh").read_text())
    assert len(used) == 4
    assert set(used) <= names
    for script in [name for name in names if name.endswith(".sh")]:
        for line in (tmp_path / "release" / script).read_text().splitlines():
            if line.startswith(". scripts/lib/"):
                assert line.split()[1] in names, (script, line)
    assert (tmp_path / "logins").read_text() == f"{REGISTRY} AWS token of eu-west-1\n"


def test_no_secret_is_in_an_argument(deploy: Run, tmp_path: Path) -> None:
    assert deploy().returncode == 0
    commands = (tmp_path / "commands").read_text()
    assert "token of" not in commands
    assert "a$b?c#d%e@f" not in commands


def test_nginx_and_certbot_have_the_commit_that_changed_them_last(deploy: Run, tmp_path: Path, checkout: Path) -> None:
    def versions() -> dict[str, str]:
        assert deploy().returncode == 0
        with tarfile.open(tmp_path / "upload.tar.gz") as archive:
            member = archive.extractfile("./.env")
            assert member is not None
            lines = member.read().decode().splitlines()
        return dict(line.split("=", 1) for line in lines if "_VERSION=" in line)

    def commit(file: str) -> None:
        with (checkout / file).open("a") as opened:
            opened.write("\n")
        own = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", str(checkout), *own, "commit", "--quiet", "-am", file], check=True)

    before = versions()
    commit("README.md")
    after = versions()
    assert after["BUSCO_VERSION"] != before["BUSCO_VERSION"]
    assert after["NGINX_VERSION"] == before["NGINX_VERSION"]
    assert after["CERTBOT_VERSION"] == before["CERTBOT_VERSION"]
    commit("deploy/nginx/nginx.conf")
    last = versions()
    assert last["NGINX_VERSION"] == last["BUSCO_VERSION"]
    assert last["CERTBOT_VERSION"] == before["CERTBOT_VERSION"]


def test_uncommitted_changes_are_refused_unless_a_trial_version_is_named(deploy: Run, checkout: Path) -> None:
    (checkout / "README.md").write_text("changed")
    refused = deploy()
    assert refused.returncode == 1
    assert "no commit describes this release" in refused.stderr
    assert deploy("--version", "dev-abc").returncode == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("BUSCO_TEST_ENDPOINT_ACCEPTED=true", "BUSCO_TEST_ENDPOINT_ACCEPTED"),
        ("AWS_ENDPOINT_URL=http://local-aws:4566", "AWS_ENDPOINT_URL is set"),
        ("AIRFLOW_ADMIN_PASSWORD=admin", "AIRFLOW_ADMIN_PASSWORD is a well-known password"),
        ("AIRFLOW__CORE__FERNET_KEY=short", "is not a Fernet key"),
    ],
)
def test_what_production_refuses_is_refused_before_anything_is_uploaded(
    deploy: Run, checkout: Path, tmp_path: Path, line: str, message: str
) -> None:
    with (checkout / ".env").open("a") as env:
        env.write(line + "\n")
    refused = deploy()
    assert refused.returncode == 1
    assert message in refused.stderr
    assert not (tmp_path / "upload.tar.gz").exists()


def test_a_readable_env_is_refused(deploy: Run, checkout: Path, tmp_path: Path) -> None:
    (checkout / ".env").chmod(0o640)
    refused = deploy()
    assert refused.returncode == 1
    assert "chmod 600 .env" in refused.stderr
    assert not (tmp_path / "upload.tar.gz").exists()


@pytest.mark.parametrize(
    ("ssh", "message"),
    [
        ("denied", "refuses the key"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "ssh-keygen -R host.example.com"),
        ("WARNING: UNPROTECTED PRIVATE KEY FILE! Load key: bad permissions. Permission denied", "chmod 600"),
        ("ssh: connect to host host.example.com port 22: Connection timed out", "security group"),
    ],
)
def test_a_login_that_fails_says_why(deploy: Run, ssh: str, message: str) -> None:
    refused = deploy(ssh=ssh)
    assert refused.returncode == 1
    assert message in refused.stderr


def test_the_user_of_the_distribution_is_found(deploy: Run) -> None:
    assert "ubuntu@host.example.com" in deploy(ssh="ubuntu-only").stdout
    refused = deploy(ssh="ubuntu-only", host="eve@host.example.com")
    assert refused.returncode == 1
    assert "for eve" in refused.stderr


def test_options_of_a_rollback_need_a_rollback(deploy: Run, tmp_path: Path) -> None:
    assert deploy("--restore-database").returncode == 2
    assert deploy("--release", "abc-123").returncode == 2
    assert deploy("--rollback", "--release", "abc-123").returncode == 0
    assert "host.sh rollback --release abc-123" in (tmp_path / "commands").read_text()


def test_a_key_is_replaced_without_deploying_the_code_that_is_checked_out(checkout: Path, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        own = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@example.com", *arguments]
        return subprocess.run(own, check=True, capture_output=True, text=True).stdout.strip()

    with (checkout / ".env").open("a") as env:
        env.write("REDIS_PASSWORD=old\n")
    deployed = git("rev-parse", "--short=12", "HEAD")
    with (checkout / "docker-compose.prod.yml").open("a") as compose:
        compose.write("# not deployed yet\n")
    git("commit", "--quiet", "--all", "--message", "not deployed yet")
    with (checkout / "scripts/host.sh").open("a") as script:
        script.write("# not even committed\n")
    own = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FAKE": str(tmp_path)}
    done = subprocess.run(
        [checkout / "scripts/rotate_keys.sh", "redis", "host.example.com", tmp_path / "key.pem"],
        env={**own, "FAKE_RELEASE": f"releases/{deployed}-0123456789ab"}, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "upload.tar.gz") as archive:
        member = archive.extractfile("./.env")
        assert member is not None
        uploaded = member.read().decode()
        files = {
            name: archive.extractfile(f"./{name}").read() for name in ("docker-compose.prod.yml", "scripts/host.sh")
        }  # type: ignore[union-attr]
    assert b"not deployed yet" not in files["docker-compose.prod.yml"]
    assert b"not even committed" not in files["scripts/host.sh"]
    assert git("worktree", "list").count("\n") == 0, "the copy of the deployed commit is removed"
    assert f"BUSCO_VERSION={deployed}\n" in uploaded
    assert re.search(r"^REDIS_PASSWORD=[0-9a-f]{48}$", uploaded, re.MULTILINE)


def test_files_of_a_deployment_are_no_changes_of_the_checkout(checkout: Path) -> None:
    for name in ("stacks.json", "stacks-ecs.json", "aws.env", "busco.env", "key.pem", "files/orders.csv"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("of an operator")
    status = subprocess.run(
        ["git", "-C", str(checkout), "status", "--porcelain"], check=True, capture_output=True, text=True
    )
    assert status.stdout == ""


@pytest.mark.parametrize(("option", "platform"), [((), "linux/arm64"), (("--platform", "linux/amd64"), "linux/amd64")])
def test_images_are_built_for_the_platform_of_the_tasks(
    checkout: Path, tmp_path: Path, option: tuple[str, ...], platform: str
) -> None:
    built = '#!/usr/bin/env bash\nprintf \'%s\\n\' "$*" >"$FAKE/built"\nexit 3\n'
    (checkout / "scripts/local_build.sh").write_text(built)
    (tmp_path / "bin/docker").write_text("#!/usr/bin/env bash\n[[ $1 == login ]] && cat >/dev/null\n")
    (tmp_path / "bin/docker").chmod(0o755)
    own = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FAKE": str(tmp_path)}
    done = subprocess.run(
        [checkout / "scripts/ecr_push.sh", *option, "dev"], env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "built").read_text() == f"--platform {platform} dbt airflow nginx certbot\n"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("192.168.0.0/16", "192.168.3.0/24", True),
        ("192.168.3.0/24", "192.168.0.0/16", True),
        ("172.31.0.0/16", "172.17.0.0/16", False),
        ("172.16.0.0/12", "172.18.0.0/16", True),
        ("192.168.0.0/16", "172.18.0.0/16", False),
        ("192.168.0.0/25", "192.168.0.128/25", False),
        ("0.0.0.0/0", "172.16.0.0/12", True),
    ],
)
def test_ranges_that_have_addresses_in_common_overlap(one: str, other: str, expected: bool) -> None:
    command = f". scripts/lib/host.sh; overlap {one} {other}"
    assert (subprocess.run(["bash", "-c", command], cwd=ROOT, check=False).returncode == 0) is expected


@pytest.mark.parametrize(("status", "ends"), [(0, "commit;"), (137, "of the backup")])
def test_a_restore_is_committed_only_after_the_whole_backup(tmp_path: Path, status: int, ends: str) -> None:
    """The database gets everything up to the point at which pg_restore dies, and no COMMIT."""
    (tmp_path / "dump").write_text("")
    command = (
        "set -euo pipefail; . scripts/lib/host.sh; . scripts/lib/postgres.sh;"
        f" restore_statements() {{ echo 'of the backup'; return {status}; }};"
        f" postgres() {{ cat >{tmp_path}/received; }}; replace_database {tmp_path}/dump"
    )
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False)
    assert done.returncode == status
    received = (tmp_path / "received").read_text().splitlines()
    assert received[0] == "begin;"
    assert "drop table" in "".join(received)
    assert received[-1] == ends


def test_names_that_people_choose_do_not_change_what_a_backup_is_called() -> None:
    line = re.search(r"^revision=\$\((sed .*) <<<", (ROOT / "scripts/backup.sh").read_text(), re.MULTILINE)
    assert line
    contents = '{"revision": "5f2621c13b39", "variables": {"revision": "0123456789abcdef"}}'
    done = subprocess.run(["bash", "-c", f"{line[1]} <<<'{contents}'"], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "5f2621c13b39"


@pytest.mark.parametrize("signal", ["HUP", "INT", "TERM"])
def test_a_signal_is_a_failure_for_what_must_be_undone(signal: str) -> None:
    undo = "trap 'echo \"status $?\"' EXIT; signals_are_failures"
    command = f"set -euo pipefail; . scripts/lib/host.sh; {undo}; kill -{signal} $$"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False, capture_output=True, text=True)
    assert re.fullmatch(r"status 1(29|30|43)\n", done.stdout)


# -- an instance that is reached through Session Manager --------------------------------------------------------------


@pytest.fixture
def instance(checkout: Path, tmp_path: Path) -> dict[str, str]:
    """An instance without a key; returns the environment for the operator's commands."""
    played = {
        "bin/aws": AWS_OF_AN_INSTANCE,
        "bin/session-manager-plugin": "#!/bin/sh\n",
        # a python3 that is a wrapper may put other programs first on the PATH
        "bin/python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        # the current user plays admin, since only root can write for somebody else
        "host/getent": f"#!/bin/sh\n[ $2 = admin ] && echo admin:x:0:0::{tmp_path}/home:/bin/bash\n",
        "host/id": f"#!/bin/sh\nexec {shutil.which('id')} -gn\n",
        "host/install": f"#!/bin/sh\nmkdir -p {tmp_path}/home/.ssh\n",
        "host/chown": "#!/bin/sh\n",
    }
    for name, text in played.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        **os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FAKE": str(tmp_path), "AWS_REGION": "eu-west-1",
        "FAKE_RELEASE": "",
    }  # fmt: skip


def on_the_host(tmp_path: Path) -> list[str]:
    return (tmp_path / "home/.ssh/authorized_keys").read_text().splitlines()


def run(checkout: Path, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", shlex.join(command)], cwd=checkout, env=environment, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_an_instance_is_deployed_to_with_a_key_that_expires(
    checkout: Path, instance: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home/.ssh"
    home.mkdir(parents=True)
    kept = ["ssh-ed25519 AAAA somebody", 'restrict,pty,expiry-time="299912312359" ssh-ed25519 AAAA busco-temporary']
    expired = 'restrict,pty,expiry-time="202001010000" ssh-ed25519 AAAA busco-temporary'
    (home / "authorized_keys").write_text("\n".join([*kept, expired]) + "\n")
    began = datetime.now()
    done = run(checkout, instance, "scripts/ec2_deploy.sh", INSTANCE)
    assert done.returncode == 0, done.stderr
    *before, added = on_the_host(tmp_path)
    assert before == kept, "the keys of others stay, and expired ones are removed"
    match = re.fullmatch(r'restrict,pty,expiry-time="(\d{12})" ssh-ed25519 \S+ busco-temporary', added)
    assert match
    lasts = datetime.strptime(match[1], "%Y%m%d%H%M") - began
    assert timedelta(minutes=115) < lasts < timedelta(minutes=125)
    assert f"admin@{INSTANCE}" in done.stdout
    assert (tmp_path / "upload.tar.gz").exists()


def test_a_path_of_a_key_is_used_for_an_instance(checkout: Path, instance: dict[str, str], tmp_path: Path) -> None:
    done = run(checkout, instance, "scripts/ec2_deploy.sh", f"admin@{INSTANCE}", str(tmp_path / "key.pem"))
    assert done.returncode == 0, done.stderr
    assert "ssm" not in (tmp_path / "aws").read_text()


def test_an_instance_that_can_not_be_reached_is_named(checkout: Path, instance: dict[str, str], tmp_path: Path) -> None:
    offline = run(checkout, {**instance, "FAKE_SSM": "offline"}, "scripts/ec2_deploy.sh", INSTANCE)
    assert offline.returncode == 1
    assert "aws ssm describe-instance-information" in offline.stderr
    (tmp_path / "host/getent").write_text("#!/bin/sh\nexit 2\n")
    strange = run(checkout, instance, "scripts/ec2_deploy.sh", INSTANCE)
    assert strange.returncode == 1
    assert "this machine has none of the users admin ubuntu ec2-user" in strange.stderr
    (tmp_path / "bin/session-manager-plugin").unlink()
    bare = run(checkout, instance, "scripts/ec2_deploy.sh", INSTANCE)
    if shutil.which("session-manager-plugin") is None:
        assert bare.returncode == 1
        assert "needs the AWS CLI's plugin" in bare.stderr
    nameless = run(checkout, instance, "scripts/ec2_deploy.sh", "host.example.com")
    assert nameless.returncode == 2
    assert "give the path of the SSH key" in nameless.stderr


def test_settings_of_the_host_are_not_written_over_those_of_the_checkout(
    checkout: Path, instance: dict[str, str]
) -> None:
    before = (checkout / ".env").read_text()
    refused = run(checkout, instance, "scripts/ec2_deploy.sh", "--get-env", INSTANCE)
    assert refused.returncode == 1
    assert "move it away" in refused.stderr
    assert (checkout / ".env").read_text() == before


def test_the_workflow_deploys_with_the_settings_of_the_host_and_stores_nothing(
    checkout: Path, instance: dict[str, str], tmp_path: Path
) -> None:
    """Runs the commands of `.github/workflows/deploy.yml` as they are, in a new checkout without a .env."""
    settings = (checkout / ".env").read_text()
    (tmp_path / "host.env").write_text(settings)
    (checkout / ".env").unlink()
    # ssh returns what the host has; docker records what is pushed
    (tmp_path / "bin/ssh").write_text(
        SSH.replace("case ", 'if [[ ${@: -1} == "sudo cat "* ]]; then cat "$FAKE/host.env"; exit; fi\ncase ', 1)
    )
    (tmp_path / "bin/docker").write_text(
        "#!/usr/bin/env bash\n[[ $1 == login ]] && cat >/dev/null\n"
        '[[ $1 == manifest ]] && exit 1\n[[ $1 == push ]] && echo "${@: -1}" >>"$FAKE/pushed"\n'
        "[[ $1 == image ]] && echo linux/arm64\nexit 0\n"
    )
    (tmp_path / "bin/docker").chmod(0o755)
    (checkout / "scripts/local_build.sh").write_text("#!/bin/sh\n")
    head = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*head, "commit", "--quiet", "-am", "images are built elsewhere"], check=True)
    commit = subprocess.run([*head, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True)
    version = commit.stdout.strip()
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["deploy"]["steps"] if "run" in step]
    for step in steps:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", step], cwd=checkout,
            env={**instance, "HOST_INSTANCE": INSTANCE, "PLATFORM": "busco"}, capture_output=True, text=True,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, (step, done.stdout, done.stderr)
        assert "d%e@f" not in done.stdout + done.stderr, "a workflow's log has no secret"
    env = checkout / ".env"
    assert env.read_text() == settings.replace("BUSCO_VERSION=of-no-release\n", "")
    assert env.stat().st_mode & 0o777 == 0o600
    pushed = (tmp_path / "pushed").read_text().split()
    assert f"{REGISTRY}/busco-dbt:{version}" in pushed
    assert len(pushed) == 6
    with tarfile.open(tmp_path / "upload.tar.gz") as archive:
        member = archive.extractfile("./.env")
        assert member is not None
        assert f"BUSCO_VERSION={version}\n" in member.read().decode()
    calls = (tmp_path / "aws").read_text()
    (created,) = [line for line in calls.splitlines() if "create-change-set" in line]
    assert "--use-previous-template" in created
    assert "--template-body" not in created
    assert "execute-change-set --stack-name busco-ecs" in calls
    assert json.loads((tmp_path / "parameters").read_text()) == [
        {"ParameterKey": "DbtImage", "ParameterValue": f"{REGISTRY}/busco-dbt:{version}"},
        {"ParameterKey": "Name", "UsePreviousValue": True},
    ]
