"""What the images contain, and what never gets into them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compose.stack import ROOT, Stack

IMAGES = {
    "busco-dbt:local": "10001", "busco-local-aws:local": "10001", "busco-airflow:local": "50000",
    "busco-nginx:local": "101", "busco-certbot:local": "101",
}  # fmt: skip
# those whose base image has Python and nothing else
OURS = [name for name, user in IMAGES.items() if user != "101"]
CANARY = "canary-4f1d-secret"
# files in which a developer's machine could have a secret: none of them may get into a build
PLANTED = (
    ".env", ".env.production", "src/.env", "config/.env.local", "dags/.env", ".busco/secrets/fernet",
    ".aws/credentials", "deploy/aws/key.pem", "plugins/tls.key", "dbt_project/target/run.sql",
    "dbt_project/logs/dbt.log", "requirements/.netrc", "scripts/private.sh", "notes.txt",
)  # fmt: skip
# patterns of an AWS access key, a private key and a password in a URL
SECRETS = (
    re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(rb"-----BEGIN (RSA |EC |OPENSSH |)PRIVATE KEY-----"),
    re.compile(rb"(postgresql|redis)(\+\w+)?://\w*:[^@/\s{$*<]+@"),
)


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def inspected(image: str) -> dict[str, Any]:
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=True)
    return dict(json.loads(done.stdout)[0])


def layers(image: str) -> Iterator[tarfile.TarFile]:
    """Yields each layer of an image, including files that later layers hide."""
    saved = subprocess.run(["docker", "save", image], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(saved)) as whole:
        for name in json.load(whole.extractfile("manifest.json"))[0]["Layers"]:  # type: ignore[arg-type]
            with tarfile.open(fileobj=whole.extractfile(name)) as layer:
                yield layer


def test_no_file_with_a_secret_reaches_the_build_context(tmp_path: Path) -> None:
    stack = Stack.copied(tmp_path / "copy", "none")
    for name in PLANTED:
        path = stack.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CANARY)
    subprocess.run(
        ["docker", "build", "--quiet", "--file", "-", "--output", f"type=local,dest={tmp_path / 'context'}", "."],
        cwd=stack.home, input=b"FROM scratch\nCOPY . /\n", check=True, capture_output=True,
    )  # fmt: skip
    received = [path for path in (tmp_path / "context").rglob("*") if path.is_file()]
    assert (tmp_path / "context/src/busco/settings.py") in received
    assert [path for path in received if CANARY in path.read_text(errors="ignore")] == []


def test_no_layer_and_no_setting_of_an_image_contains_a_secret(image: str) -> None:
    own = env_values()
    found = []
    for layer in layers(image):
        for member in layer:
            if not member.isfile() or member.size > 2_000_000 or "/site-packages/" in member.name:
                continue
            if not member.name.startswith(("opt/", "root/", "home/", "tmp/", "var/lib/busco", "build/")):
                continue
            content = layer.extractfile(member).read()  # type: ignore[union-attr]
            if any(pattern.search(content) for pattern in SECRETS) or any(value.encode() in content for value in own):
                found.append(member.name)
    assert found == []
    config = inspected(image)["Config"]
    assert [name for name in config["Env"] if re.search(r"PASSWORD|SECRET|TOKEN|FERNET|_KEY", name.split("=")[0])] == []
    history = subprocess.run(["docker", "history", "--no-trunc", image], capture_output=True, text=True, check=True)
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)=\S", history.stdout)


def env_values() -> list[str]:
    """Returns the random values in this checkout's .env, if it has one."""
    env = ROOT / ".env"
    if not env.is_file():
        return []
    pairs = [line.split("=", 1) for line in env.read_text().splitlines() if re.match(r"[A-Z_]+=", line)]
    return [value for name, value in pairs if re.search(r"PASSWORD|SECRET_KEY|FERNET", name) and "_ADMIN_" not in name]


def test_an_image_runs_as_an_ordinary_user_and_its_label_names_its_commit(image: str) -> None:
    config = inspected(image)["Config"]
    assert config["User"].split(":")[0] == IMAGES[image]
    assert re.fullmatch(r"[0-9a-f]{12}\+?", config["Labels"]["org.opencontainers.image.revision"])


def test_no_program_in_an_image_gives_another_user_s_rights(image: str) -> None:
    command = ["docker", "run", "--rm", "--network", "none", "--user", "0:0", "--entrypoint", "find", image]
    done = subprocess.run(
        [*command, "/", "-xdev", "-type", "f", "-perm", "/6000"], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


@pytest.mark.parametrize("image", OURS)
def test_an_image_has_no_build_tools(image: str) -> None:
    script = "command -v gcc cc make git curl; ls -d /build /opt/busco/.git /opt/busco/tests"
    command = ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""


def test_airflow_s_image_contains_dags_configuration_and_graph() -> None:
    """It needs no mounts and no network, and writes only to Airflow's home and /tmp."""
    program = (
        "from airflow.models import DagBag; bag = DagBag(include_examples=False);"
        " print(sorted(bag.dags), bag.import_errors)"
    )
    options = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/opt/airflow:mode=1777"]
    options += ["--env", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=sqlite:////opt/airflow/airflow.db"]
    options += ["--env", "AIRFLOW__CORE__EXECUTOR=SequentialExecutor", "--env", "BUSCO_LAKE_BUCKET=lake"]
    arguments = ["sh", "-c", f'airflow db migrate >/dev/null && python -c "{program}"']
    command = ["docker", "run", "--rm", *options, "busco-airflow:local", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ["drift", "ecs_check", "example", "freshness", "lakehouse", "landing", "maintenance", "operations"]
    assert done.stdout.splitlines()[-1] == f"{names} {{}}"
