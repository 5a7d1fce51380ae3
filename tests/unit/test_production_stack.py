"""Checks docker-compose.prod.yml and the scripts that create its .env, without Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from busco.doctor import machine
from busco.orchestration import production
from busco.settings import Settings
from tests import compose_files

ROOT = Path(__file__).parents[2]
COMPOSE = compose_files.load("docker-compose.prod.yml")
SERVICES = compose_files.services("docker-compose.prod.yml")
AIRFLOW = (
    "airflow-init",
    "airflow-webserver",
    "airflow-scheduler",
    "airflow-worker",
    "airflow-triggerer",
    "events",
    "metrics",
    "flower",
)
ONCE = ("airflow-init",)
LONG = sorted(SERVICES.keys() - set(ONCE))


def test_the_stack_has_the_services_of_development_without_the_local_ones_and_https() -> None:
    development = compose_files.services("docker-compose.yml").keys()
    assert SERVICES.keys() == development - {"postgres", "local-aws", "starter"} | {
        "nginx-proxy",
        "letsencrypt",
        "metrics",
    }


def test_only_the_proxy_publishes_ports() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert published == {"nginx-proxy": ["0.0.0.0:80:80", "0.0.0.0:443:443"]}
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]
    assert COMPOSE["networks"]["data"] == {"internal": True}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_nothing_of_the_machine_is_mounted_and_every_image_is_a_variable(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"], volume
    assert re.match(r"\$\{[A-Z_]+_IMAGE:-[a-z0-9:.-]+\}", service["image"])
    assert "build" not in service


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("privileged") is None
    assert service["mem_limit"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}


@pytest.mark.parametrize("name", LONG)
def test_each_lasting_service_is_checked_and_restarted(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ONCE)
def test_a_service_that_runs_once_is_not_restarted(name: str) -> None:
    # a migration that failed is not repeated
    assert SERVICES[name]["restart"] == "no"


def test_flower_counts_guesses_by_the_client_s_address_only_behind_the_proxy() -> None:
    """Otherwise anybody who guesses would lock everybody out, or a client could say that it is another one."""
    assert SERVICES["flower"]["environment"]["FLOWER_XHEADERS"] == "True"
    assert "ports" not in SERVICES["flower"]
    assert "FLOWER_XHEADERS" not in (ROOT / "docker-compose.yml").read_text()
    assert "FLOWER_XHEADERS" not in (ROOT / "docker-compose.common.yml").read_text()


def test_the_page_of_a_starting_airflow_has_the_same_security_headers_as_all_others() -> None:
    """In nginx, a location that has headers of its own inherits none (ngx_http_headers_module)."""
    text = (ROOT / "deploy/nginx/nginx.conf").read_text()
    server = text[text.index("listen 443 ssl http2") :]
    first = re.findall(r"^        (@HSTS@|add_header .*;)$", server, re.MULTILINE)
    assert len(first) == 4
    locations = re.findall(r"^        location [^{]*\{\n(.*?)^        \}", server, re.MULTILINE | re.DOTALL)
    own = [one for one in locations if "add_header" in one]
    assert own
    for location in own:
        assert set(first) <= set(re.findall(r"@HSTS@|add_header .*;", location))


def test_the_memory_limits_fit_a_machine_with_8_gb() -> None:
    units = {"m": 1, "g": 1024}
    limits = [SERVICES[name]["mem_limit"] for name in LONG]
    assert sum(int(limit[:-1]) * units[limit[-1]] for limit in limits) <= 7 * 1024


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_refuses_to_start_without_what_it_needs(name: str) -> None:
    required = set(str((SERVICES[name].get("environment") or {}).get("BUSCO_REQUIRES") or "").split())
    assert required == REQUIRED[name]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_requires_only_variables_that_it_gets(name: str) -> None:
    environment = SERVICES[name].get("environment") or {}
    # a password is in the broker's or the database's URL, or in a variable of its own
    assert set(str(environment.get("BUSCO_REQUIRES", "")).split()) <= environment.keys()


def test_a_running_task_may_end_during_a_deploy() -> None:
    assert SERVICES["airflow-worker"]["stop_grace_period"] == "10m"


# What a service must have to start: a service that loses a line here would start without a secret.
_DATABASE = {"DB_PASSWORD", "AIRFLOW__CORE__FERNET_KEY"}
_LAKE = {"BUSCO_LAKE_BUCKET", "BUSCO_LOGS_BUCKET"}
_SESSIONS = {"AIRFLOW__WEBSERVER__SECRET_KEY"}
REQUIRED = {
    "redis": set(),
    "airflow-init": {*_DATABASE, "AIRFLOW_ADMIN_PASSWORD"},
    "airflow-webserver": {*_DATABASE, *_SESSIONS, *_LAKE},
    "airflow-scheduler": {*_DATABASE, "REDIS_PASSWORD", *_LAKE},
    "airflow-worker": {*_DATABASE, *_SESSIONS, "REDIS_PASSWORD", *_LAKE, "BUSCO_LANDING_BUCKET"},
    "airflow-triggerer": {*_DATABASE, *_SESSIONS, *_LAKE},
    "events": {*_DATABASE, "BUSCO_LAKE_BUCKET", "BUSCO_LANDING_BUCKET"},
    "metrics": {"DB_PASSWORD", "BUSCO_LAKE_BUCKET"},
    "flower": {"REDIS_PASSWORD", "AIRFLOW_ADMIN_PASSWORD"},
    "nginx-proxy": set(),
    "letsencrypt": set(),
}  # fmt: skip
# The secrets that each service gets. An added line needs a reason.
DATABASE = {"DB_PASSWORD", "DB_PASSWORD_SECRET", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__CORE__FERNET_KEY_SECRET"}
SESSIONS = {"AIRFLOW__WEBSERVER__SECRET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY_SECRET"}
AWS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
SECRETS = {
    "redis": {"REDIS_PASSWORD"},
    "airflow-init": {
        *DATABASE, *AWS, "AIRFLOW_ADMIN_PASSWORD", "OAUTH_CLIENT_SECRET", "AIRFLOW_CONNECTIONS", "AIRFLOW_VARIABLES",
    },
    "airflow-webserver": {*DATABASE, *AWS, *SESSIONS, "OAUTH_CLIENT_SECRET"},
    "airflow-scheduler": {*DATABASE, *AWS, "REDIS_PASSWORD"},
    "airflow-worker": {*DATABASE, *AWS, *SESSIONS, "REDIS_PASSWORD"},
    "airflow-triggerer": {*DATABASE, *AWS, *SESSIONS},
    "events": {*DATABASE, *AWS},
    "metrics": {*DATABASE - {"AIRFLOW__CORE__FERNET_KEY"}, *AWS},
    "flower": {"REDIS_PASSWORD", "AIRFLOW__CELERY__FLOWER_BASIC_AUTH", "AIRFLOW_ADMIN_PASSWORD"},
    "nginx-proxy": set(),
    "letsencrypt": set(),
}  # fmt: skip
IS_SECRET = re.compile(r"PASSWORD|SECRET(?!S__)|FERNET|BASIC_AUTH|ACCESS_KEY|AIRFLOW_CONNECTIONS|AIRFLOW_VARIABLES")


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_gets_its_own_secrets_and_no_others(name: str) -> None:
    assert "env_file" not in SERVICES[name]
    environment = SERVICES[name].get("environment") or {}
    used = {one for one, value in environment.items() if value is None}
    used |= {one for value in environment.values() for one in re.findall(r"\$\{([A-Z_0-9]+)", str(value or ""))}
    assert {one for one in used if IS_SECRET.search(one)} == SECRETS[name]


@pytest.mark.parametrize("name", [name for name in AIRFLOW if name not in ("airflow-init", "metrics", "flower")])
def test_airflow_services_get_the_same_settings_as_in_development(name: str) -> None:
    def settings(services: dict[str, Any]) -> set[str]:
        return {one for one in services[name]["environment"] if one.startswith("BUSCO_")}

    development = settings(compose_files.services("docker-compose.yml"))
    assert settings(SERVICES) - {production.REQUIRES} == development
    assert {f"BUSCO_{one.upper()}" for one in Settings.model_fields} >= development


def test_the_override_for_lets_encrypt_changes_only_the_authority_and_the_first_issue() -> None:
    override = compose_files.load("docker-compose.prod.letsencrypt.yml")
    assert override.keys() == {"services"}
    assert override["services"].keys() == {"letsencrypt"}
    assert override["services"]["letsencrypt"].keys() == {"environment"}
    assert override["services"]["letsencrypt"]["environment"].keys() == {
        "LETSENCRYPT_ISSUE", "LETSENCRYPT_SERVER", "LETSENCRYPT_STAGING", "LETSENCRYPT_EMAIL",
    }  # fmt: skip


def test_the_override_for_logs_in_cloudwatch_covers_every_service_and_never_makes_one_wait() -> None:
    override = compose_files.load("docker-compose.prod.logs.yml")
    assert override["services"].keys() == SERVICES.keys()
    for service in override["services"].values():
        assert service.keys() == {"logging"}
        assert service["logging"]["driver"] == "awslogs"
        assert service["logging"]["options"]["mode"] == "non-blocking"


@pytest.mark.parametrize(("line", "used"), [("", False), ("CONTAINER_LOG_GROUP=/busco/host", True)])
def test_the_host_uses_it_if_a_log_group_is_set(tmp_path: Path, line: str, used: bool) -> None:
    for name in ("docker-compose.prod.yml", "docker-compose.prod.logs.yml", "docker-compose.prod.host.yml"):
        (tmp_path / name).touch()
    (tmp_path / ".env").write_text(f"{line}\n")
    (tmp_path / "docker").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    command = f". {ROOT}/scripts/lib/env.sh; . {ROOT}/scripts/lib/host.sh; compose ps"
    done = subprocess.run(
        ["bash", "-euc", command], cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("docker-compose.prod.logs.yml" in done.stdout) is used
    assert "docker-compose.prod.host.yml" in done.stdout


def test_nothing_that_is_deployed_accepts_a_local_aws() -> None:
    deployed = [*ROOT.glob("docker-compose*.yml"), *ROOT.glob("Dockerfile*"), *ROOT.glob(".env*.example")]
    deployed += [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    assert len(deployed) > 10
    assert not [path.name for path in deployed if production.TEST_ENDPOINT in path.read_text(errors="replace")]


# -- .env -------------------------------------------------------------------------------------------------------------

EXAMPLE = (ROOT / ".env.production.example").read_text()
OUTPUTS = re.findall(r"<output:([A-Za-z]+)(?:\|[^>]*)?>", EXAMPLE)
ANSWERS = {"BUSCO_DOMAIN": "data.example.com", "LETSENCRYPT_EMAIL": "a@example.com", "BUSCO_REGION": "eu-west-1"}
PASSWORD = "a$b?c#d%e@f'\"\\ x"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / ".env.production.example", tmp_path)
    for name in ("__init__.py", "orchestration/__init__.py", "orchestration/production.py"):
        (tmp_path / "src/busco" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "src/busco" / name, tmp_path / "src/busco" / name)
    return tmp_path


def made(copy: Path, *options: str, **before: str) -> subprocess.CompletedProcess[str]:
    """Runs the script after writing variables to .env, without a terminal."""
    if before:
        lines = [f"{name}={value}" for name, value in before.items()]
        (copy / ".env").write_text("\n".join(lines) + "\n")
    return subprocess.run(
        ["scripts/make_env.sh", "--production", *options],
        cwd=copy, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def outputs(copy: Path) -> list[str]:
    """Writes the outputs of two stacks, and of Terraform; returns the options that name these files."""
    values = {name: f"value-of-{name}" for name in OUTPUTS}
    first = dict(list(values.items())[:5])
    stack = {"Stacks": [{"Outputs": [{"OutputKey": name, "OutputValue": value} for name, value in first.items()]}]}
    (copy / "stack.json").write_text(json.dumps(stack))
    snake = {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): name for name in values if name not in first}
    terraform: dict[str, Any] = {name: {"value": values[camel]} for name, camel in snake.items()}
    terraform["task_subnets"] = {"value": ["subnet-1", "subnet-2"]}
    (copy / "terraform.json").write_text(json.dumps(terraform))
    return ["--outputs", "stack.json", "--outputs", "terraform.json"]


def values(copy: Path) -> dict[str, str]:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import production_env
    finally:
        sys.path.pop(0)
    return dict(production_env.read((copy / ".env").read_text()))


def test_outputs_and_answers_become_an_env_file_for_its_owner_only(copy: Path) -> None:
    quoted = '"' + re.sub(r'([\\"$`])', r"\\\1", PASSWORD) + '"'
    done = made(copy, *outputs(copy), **ANSWERS, DB_PASSWORD=quoted)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((copy / ".env").stat().st_mode) == 0o600
    found = values(copy)
    assert found["DB_PASSWORD"] == PASSWORD
    assert found["BUSCO_ECS_SUBNETS"] == "subnet-1,subnet-2"
    assert found["BUSCO_LAKE_BUCKET"] == "value-of-LakeBucket"
    assert len(found["REDIS_PASSWORD"]) == 48
    assert found["REDIS_PASSWORD"] != found["AIRFLOW_ADMIN_PASSWORD"]
    assert not any("<" in value for value in found.values())
    assert "4566" not in (copy / ".env").read_text()
    before = (copy / ".env").read_text()
    again = made(copy, *outputs(copy))
    assert again.returncode == 0
    assert (copy / ".env").read_text() == before


def test_a_key_that_is_a_secret_is_not_generated(copy: Path) -> None:
    done = made(
        copy, *outputs(copy), **ANSWERS,
        AIRFLOW__CORE__FERNET_KEY_SECRET="fernet", DB_PASSWORD_SECRET="arn:aws:secretsmanager:eu-west-1:1:secret:db",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = values(copy)
    assert found["AIRFLOW__CORE__FERNET_KEY_SECRET"] == "fernet"
    assert found["DB_PASSWORD_SECRET"].endswith("secret:db")
    assert not {"AIRFLOW__CORE__FERNET_KEY", "DB_PASSWORD"} & found.keys()


def test_without_a_terminal_all_missing_values_are_listed_and_nothing_is_written(copy: Path) -> None:
    done = made(copy)
    assert done.returncode == 1
    for name in ("BUSCO_DOMAIN", "DB_HOST", "DB_PASSWORD", "BUSCO_LAKE_BUCKET"):
        assert f"  {name}: " in done.stderr
    assert not (copy / ".env").exists()


@pytest.mark.parametrize(
    ("name", "value", "reported"),
    [
        (production.TEST_ENDPOINT, "true", "is for tests only"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:4566", "production uses AWS's own endpoints"),
        ("AIRFLOW_ADMIN_PASSWORD", "admin", "well-known"),
        ("BUSCO_LAKE_BUCKET", "busco-lake-000000000000-us-east-1", "account 000000000000"),
        ("AIRFLOW__CORE__FERNET_KEY", "abc", "not a Fernet key"),
        ("BUSCO_DOMAIN", "Data.example.com", "host name in lower case"),
        ("DB_USER", "a b", "letters, digits"),
        ("DB_HOST", "", "is empty"),
        ("BUSCO_ECS_SUBNETS", "", "is empty"),
        ("AWS_ACCESS_KEY_ID", "AKIA", "together"),
    ],
)
def test_what_production_refuses_is_refused_before_it_is_deployed(
    copy: Path, name: str, value: str, reported: str
) -> None:
    done = made(copy, *outputs(copy), **{**ANSWERS, "DB_PASSWORD": "x" * 20, name: value})
    assert done.returncode == 1
    assert f"error: {name}" in done.stderr
    assert reported in done.stderr
    assert values(copy).keys() == {*ANSWERS, "DB_PASSWORD", name}, "the file was not changed"


def test_the_example_names_outputs_of_the_templates_and_what_the_operator_brings() -> None:
    texts = [
        (ROOT / "deploy/aws" / name).read_text().partition("\nOutputs:\n")[2]
        for name in ("events.yaml", "lake.yaml", "ecs.yaml", "network.yaml", "host.yaml", "airflow.yaml")
    ]
    known = {name for text in texts for name in re.findall(r"^  ([A-Za-z]+):$", text, re.MULTILINE)}
    assert {"LakeBucket", "RedisImage"} <= known
    assert set(OUTPUTS) <= known


def test_a_file_without_outputs_is_named(copy: Path) -> None:
    (copy / "empty.json").write_text("[]")
    done = made(copy, "--outputs", "empty.json")
    assert done.returncode == 1
    assert "empty.json has no outputs of CloudFormation or Terraform" in done.stderr


def test_values_of_host_yaml_are_taken_and_without_it_the_network_s_have_defaults(copy: Path) -> None:
    given = outputs(copy)
    terraform = json.loads((copy / "terraform.json").read_text())
    for name in ("task_public_ip", "metrics_platform"):
        del terraform[name]
    terraform["database_secret"] = {"value": "arn:aws:secretsmanager:eu-west-1:1:secret:rds!db-1-Ab"}
    (copy / "terraform.json").write_text(json.dumps(terraform))
    done = made(copy, *given, **ANSWERS)
    assert done.returncode == 0, done.stderr
    found = values(copy)
    assert (found["BUSCO_ECS_ASSIGN_PUBLIC_IP"], found["BUSCO_METRICS_PLATFORM"]) == ("false", "")
    # RDS manages the password: none is asked for
    assert (found["DB_PASSWORD"], found["DB_PASSWORD_SECRET"]) == ("", terraform["database_secret"]["value"])
    assert made(copy, *given).returncode == 0
    assert values(copy) == found, "it is safe to run again"
    # what the stacks have in the meantime: a default is replaced, and a value is kept, with a note
    terraform |= {"metrics_platform": {"value": "busco"}, "task_subnets": {"value": "subnet-9"}}
    (copy / "terraform.json").write_text(json.dumps(terraform))
    done = made(copy, *given)
    assert "note: .env keeps BUSCO_ECS_SUBNETS=subnet-1,subnet-2; the outputs have subnet-9." in done.stdout
    assert values(copy) == {**found, "BUSCO_METRICS_PLATFORM": "busco"}


UNUSUAL = ("BUSCO_VERSION", "NGINX_VERSION", "CERTBOT_VERSION", "COMPOSE_PROJECT_NAME", "LETSENCRYPT_SERVER")


def test_every_variable_that_the_stack_requires_is_in_the_example() -> None:
    shown = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", EXAMPLE, re.MULTILINE))
    texts = [(ROOT / name).read_text() for name in ("docker-compose.prod.yml", "docker-compose.prod.letsencrypt.yml")]
    used = {name for text in texts for name in re.findall(r"\$\{([A-Z][A-Z0-9_]*)", text)}
    required = {
        one for service in SERVICES.values() for one in service["environment"].get("BUSCO_REQUIRES", "").split()
    }
    # ec2_deploy.sh sets the versions; the project's name has a default; another authority can be named
    assert used | required <= shown | set(UNUSUAL)


@pytest.mark.parametrize("name", AIRFLOW)
def test_doctor_knows_every_variable_of_a_service(name: str) -> None:
    given = {one for one in SERVICES[name]["environment"] if one.startswith("BUSCO_")} | {production.TEST_ENDPOINT}
    assert given - {f"BUSCO_{one.upper()}" for one in Settings.model_fields} <= machine._NOT_SETTINGS
