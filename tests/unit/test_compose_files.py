"""What docker-compose.yml, .env.example and the scripts around them promise, read without Docker."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from busco.embedded.door import INSTANCE_PATH
from busco.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LONG = sorted(SERVICES.keys() - {"airflow-init"})
AIRFLOW = [name for name in LONG if name.startswith("airflow-") or name == "flower"]
EXAMPLE = (ROOT / ".env.example").read_text().splitlines()
VARIABLE = re.compile(r"^(# )?([A-Z][A-Z0-9_]*)=(.*)$")


def variables() -> dict[str, tuple[bool, str]]:
    """Of each variable in .env.example: whether it is set there, and its value."""
    found = {}
    for line in EXAMPLE:
        if match := VARIABLE.match(line):
            found[match[2]] = (match[1] is None, match[3])
    return found


# -- docker-compose.yml -----------------------------------------------------------------------------------------------


def test_it_has_the_services_that_operators_know() -> None:
    assert set(SERVICES) == {
        "postgres", "redis", "airflow-webserver", "airflow-scheduler", "airflow-worker", "airflow-triggerer",
        "airflow-init", "flower", "local-aws", "starter",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_and_what_is_published_is_so_on_this_machine_alone(name: str) -> None:
    service = SERVICES[name]
    image = service["image"]
    assert ":" in image
    assert "latest" not in image
    for port in service.get("ports", []):
        assert str(port).startswith("127.0.0.1:")
    has_socket = any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    assert has_socket == (name == "starter")
    assert ("group_add" in service) == (name == "starter")
    assert service.get("privileged") is None
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


@pytest.mark.parametrize("name", LONG)
def test_each_service_has_a_health_check_a_limit_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]


def test_the_limits_fit_a_machine_of_8_gb() -> None:
    units = {"m": 1, "g": 1024}
    total = sum(int(SERVICES[name]["mem_limit"][:-1]) * units[SERVICES[name]["mem_limit"][-1]] for name in LONG)
    assert total <= 8 * 1024


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_s_services_wait_for_all_that_they_need(name: str) -> None:
    needs = SERVICES[name]["depends_on"]
    assert needs["airflow-init"] == {"condition": "service_completed_successfully"}
    for other in ("postgres", "redis", "local-aws"):
        assert needs[other] == {"condition": "service_healthy"}
    assert SERVICES[name]["user"] == "${AIRFLOW_UID:-50000}:0"


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        environment = service.get("environment") or {}
        for variable, value in environment.items():
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN", variable) and value is not None:
                assert str(value).startswith("${"), f"{name}: {variable}"
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"://[^$\s]*:[^$@\s]+@", text), "a password in a URL"


# -- who reaches whom, and who is told what ---------------------------------------------------------------------------

NETWORKS = {
    **{name: {"default", "data"} for name in AIRFLOW},
    "airflow-init": {"default", "data"},
    "postgres": {"data"},
    "redis": {"data"},
    "local-aws": {"default", "tasks"},
}


# internal: no way out of it; the other: this machine has no address on it
TASKS = {"internal": True, "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"}}


def test_ecs_tasks_are_on_a_network_that_only_the_local_aws_is_on_too() -> None:
    for name, service in SERVICES.items():
        if name == "starter":
            assert service["network_mode"] == "none"
            assert "networks" not in service
        else:
            assert set(service.get("networks", ["default"])) == NETWORKS[name], name
            assert "network_mode" not in service
    assert COMPOSE["networks"] == {"default": None, "data": {"internal": True}, "tasks": TASKS}
    assert "--network=${COMPOSE_PROJECT_NAME:-busco}_tasks" in SERVICES["starter"]["command"]
    assert SERVICES["local-aws"]["networks"]["tasks"] == {"aliases": ["tasks-aws"]}
    assert SERVICES["local-aws"]["environment"]["BUSCO_LOCAL_AWS_TASKS_HOST"] == "tasks-aws"


def test_the_starter_may_do_nothing_but_ask_docker() -> None:
    starter = SERVICES["starter"]
    assert (starter["read_only"], starter["cap_drop"]) == (True, ["ALL"])
    assert starter["security_opt"] == ["no-new-privileges:true"]
    assert "ports" not in starter
    assert "environment" not in starter
    # its socket is the starter's to make, and the local AWS's to use
    assert [volume for volume in starter["volumes"] if ":ro" not in volume] == [
        "/var/run/docker.sock:/var/run/docker.sock", "starter:/run/busco",
    ]  # fmt: skip
    users = {name for name, service in SERVICES.items() for one in service.get("volumes", []) if "/run/busco" in one}
    assert users == {"starter", "local-aws"}
    assert "starter:/run/busco:ro" in SERVICES["local-aws"]["volumes"]


# Which secrets a service is told, by the variables of .env that they come from. A line that is added needs a reason.
SECRETS = {
    "postgres": {"POSTGRES_PASSWORD"},
    "redis": {"REDIS_PASSWORD"},
    # connections in the database are encrypted; it makes the admin, and loads the settings of logins
    "airflow-init": {
        "POSTGRES_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_ADMIN_PASSWORD", "OAUTH_CLIENT_SECRET",
        "AIRFLOW_CONNECTIONS", "AIRFLOW_VARIABLES",
    },
    # sessions
    "airflow-webserver": {
        "POSTGRES_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY", "OAUTH_CLIENT_SECRET",
        "LOCAL_AWS_AIRFLOW_SECRET",
    },
    "airflow-scheduler": {
        "POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "LOCAL_AWS_AIRFLOW_SECRET",
    },
    # those who have logs of tasks at work check by the session key who asks for them
    "airflow-worker": {
        "POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY",
        "LOCAL_AWS_AIRFLOW_SECRET",
    },
    "airflow-triggerer": {
        "POSTGRES_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY", "LOCAL_AWS_AIRFLOW_SECRET",
    },
    # it shows what the broker tells, to the admin, or to a login of its own
    "flower": {"REDIS_PASSWORD", "AIRFLOW__CELERY__FLOWER_BASIC_AUTH", "AIRFLOW_ADMIN_PASSWORD"},
    # it knows Airflow by it, and gives it its role's credentials
    "local-aws": {"LOCAL_AWS_AIRFLOW_SECRET"},
    "starter": set(),
}  # fmt: skip
IS_SECRET = re.compile(r"PASSWORD|SECRET|FERNET|BASIC_AUTH|AIRFLOW_CONNECTIONS|AIRFLOW_VARIABLES")
# what a service of Airflow's has no use for: the local AWS's and the runners' own settings, and what an image says
NOT_AIRFLOW_S = {
    "BUSCO_HOME", "BUSCO_STATE_DIR", "BUSCO_BAKED_DIR", "BUSCO_KEEP_GRAPH", "BUSCO_DBT_THREADS", "BUSCO_DBT_IMAGE",
    "BUSCO_DUCKDB_MEMORY_LIMIT", "BUSCO_DUCKDB_SPILL_LIMIT", "BUSCO_INGEST_ROW_BYTES", "BUSCO_INGEST_FILE_BYTES",
    "BUSCO_LOCAL_ROLE",
    "BUSCO_LOCAL_AWS_HOST", "BUSCO_LOCAL_AWS_PORT", "BUSCO_LOCAL_AWS_TASKS_HOST", "BUSCO_STARTER", "BUSCO_GRAPH_DIR",
    "BUSCO_AWS_PORT",
    # AWS_ENDPOINT_URL says it
    "BUSCO_ENDPOINT_URL",
}  # fmt: skip


def resolved(service: dict[str, Any], given: dict[str, str]) -> dict[str, str]:
    """A service's variables as Compose resolves them (Compose file reference, "Interpolation" and "environment")."""
    found = {}
    for name, value in (service.get("environment") or {}).items():
        if value is None:
            if name in given:
                found[name] = given[name]
            continue
        text = str(value)
        while match := re.search(r"\$\{([A-Z_a-z0-9]+)(?::-([^${}]*))?\}", text):
            text = text.replace(match[0], given.get(match[1]) or match[2] or "")
        found[name] = text
    return found


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_is_told_its_own_secrets_and_no_others(name: str) -> None:
    assert "env_file" not in SERVICES[name]
    # what somebody has in a shell that calls Compose, and has no business in a container
    elsewhere = {one: f"canary-{one}-" for one in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    secrets = [one for one in variables() if IS_SECRET.search(one)]
    assert len(secrets) >= 8
    told = resolved(SERVICES[name], {**elsewhere, **{one: f"canary-{one}-" for one in secrets}})
    text = " ".join(told.values())
    assert {one for one in secrets if f"canary-{one}-" in text} == SECRETS[name]
    assert not [one for one in elsewhere if f"canary-{one}-" in text]


@pytest.mark.parametrize("name", [name for name in AIRFLOW if name != "flower"])
def test_airflow_s_services_are_told_each_setting_that_they_may_need(name: str) -> None:
    told = {one for one in SERVICES[name]["environment"] if one.startswith("BUSCO_")}
    assert told == {f"BUSCO_{one.upper()}" for one in Settings.model_fields} - NOT_AIRFLOW_S


def test_the_local_aws_parses_the_dbt_projects_with_airflow_s_settings_of_them() -> None:
    wanted = {"BUSCO_DBT_PROJECT_DIR", "BUSCO_DBT_PROJECTS", "BUSCO_PROJECT_ID"}
    given = resolved(SERVICES["local-aws"], {one: f"canary-{one}" for one in wanted})
    assert {one: given.get(one) for one in wanted} == {one: f"canary-{one}" for one in wanted}
    assert resolved(SERVICES["local-aws"], {})["BUSCO_PROJECT_ID"] == ""


# -- .env.example -----------------------------------------------------------------------------------------------------


def test_every_setting_is_in_the_example_with_a_line_of_meaning() -> None:
    ours = {name for name in variables() if name.startswith("BUSCO_")} - {"BUSCO_VERSION"}
    assert ours == {f"BUSCO_{name.upper()}" for name in Settings.model_fields}
    for number, line in enumerate(EXAMPLE):
        if (match := VARIABLE.match(line)) and match[2].startswith("BUSCO_"):
            before = EXAMPLE[number - 1]
            assert before.startswith("# ") or VARIABLE.match(before), f"{match[2]}: what is it?"


def test_a_setting_that_is_not_set_in_the_example_is_shown_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        is_set, value = variables()[f"BUSCO_{name.upper()}"]
        if is_set or field.default_factory is not None:
            continue
        default = "" if field.default is None else str(field.default)
        assert value == (default.lower() if isinstance(field.default, bool) else default), name


def test_every_variable_that_compose_wants_is_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)", (ROOT / "docker-compose.yml").read_text()))
    # POSTGRES_IMAGE and REDIS_IMAGE come from images.lock, where it is there (scripts/compose_up.sh)
    assert wanted - {"PWD", "BUSCO_DBT_IMAGE", "POSTGRES_IMAGE", "REDIS_IMAGE"} <= variables().keys()


def test_nothing_in_the_example_is_a_secret() -> None:
    for name, (_, value) in variables().items():
        # the admin's is for this machine alone, as README says
        if re.search(r"PASSWORD|SECRET|FERNET", name) and name != "AIRFLOW_ADMIN_PASSWORD":
            assert value in ("<random>", "<fernet>", ""), name


# -- scripts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / ".env.example", tmp_path / ".env.example")
    return tmp_path


def run(copy: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 or not check, done.stderr
    return done


def test_make_env_drops_the_keys_of_earlier_versions_and_no_others(copy: Path) -> None:
    (copy / ".env").write_text("AWS_ACCESS_KEY_ID=busco-local\nAWS_SECRET_ACCESS_KEY=busco-local\nAIRFLOW_UID=7\n")
    run(copy, "scripts/make_env.sh")
    text = (copy / ".env").read_text()
    assert "busco-local\n" not in text
    assert "AIRFLOW_UID=7\n" in text
    (copy / ".env").write_text("AWS_ACCESS_KEY_ID=mine\nAWS_SECRET_ACCESS_KEY=mine\n")
    run(copy, "scripts/make_env.sh")
    assert "AWS_ACCESS_KEY_ID=mine\nAWS_SECRET_ACCESS_KEY=mine\n" in (copy / ".env").read_text()


def test_airflow_is_known_to_the_local_aws_by_a_secret_of_the_example() -> None:
    name = "LOCAL_AWS_AIRFLOW_SECRET"
    assert SERVICES["local-aws"]["environment"][name] == f"${{{name}}}"
    asked = SERVICES["airflow-worker"]["environment"]["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
    assert asked == f"http://local-aws:4566{INSTANCE_PATH}${{{name}}}"
    assert "AWS_ACCESS_KEY_ID" not in variables()


def test_make_env_has_fresh_keys_that_only_their_owner_reads_and_changes_nothing_the_second_time(copy: Path) -> None:
    run(copy, "scripts/make_env.sh")
    env = copy / ".env"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    text = env.read_text()
    assert "<" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    made = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert made["AIRFLOW_UID"] == str(os.getuid() or 50000)
    assert len(made["POSTGRES_PASSWORD"]) == 48
    assert made["POSTGRES_PASSWORD"] != made["REDIS_PASSWORD"]
    assert len(made["AIRFLOW__CORE__FERNET_KEY"]) == 44
    assert run(copy, "scripts/make_env.sh").stdout == ""
    assert env.read_text() == text


def test_make_env_keeps_what_is_there_and_adds_what_is_new(copy: Path) -> None:
    (copy / ".env").write_text("POSTGRES_PASSWORD=mine\n")
    run(copy, "scripts/make_env.sh")
    lines = (copy / ".env").read_text().splitlines()
    assert lines[0] == "POSTGRES_PASSWORD=mine"
    assert len([line for line in lines if line.startswith("POSTGRES_PASSWORD=")]) == 1
    assert any(line.startswith("REDIS_PASSWORD=") for line in lines)


def test_a_copy_of_the_example_is_filled_in_before_images_are_built_and_nothing_else_of_it_changes(copy: Path) -> None:
    assert run(copy, "scripts/make_env.sh", "--fill").stdout == ""
    assert not (copy / ".env").exists(), "there was none to fill in"
    example = (copy / ".env.example").read_text()
    mine = example.replace("FLOWER_PORT=5555", "FLOWER_PORT=6000").replace(
        "REDIS_PASSWORD=<random>", "REDIS_PASSWORD=mine"
    )
    mine += "\nAWS_ACCESS_KEY_ID=busco-local\r\n# <random>\nMINE=<mine>"
    (copy / ".env").write_text(mine, newline="")
    assert "filled in" in run(copy, "scripts/make_env.sh", "--fill").stdout
    filled = (copy / ".env").read_bytes().decode()
    changed = [(a, b) for a, b in zip(mine.split("\n"), filled.split("\n"), strict=False) if a != b]
    assert {before.split("=")[0] for before, _ in changed} == {
        name for name, (_, value) in variables().items() if value.startswith("<") and name != "REDIS_PASSWORD"
    }
    assert not any("<" in after for _, after in changed)
    assert stat.S_IMODE((copy / ".env").stat().st_mode) == 0o600
    assert run(copy, "scripts/make_env.sh", "--fill").stdout == ""
    assert (copy / ".env").read_bytes().decode() == filled
    # as `make up` does it: the whole of it
    run(copy, "scripts/make_env.sh")
    assert "busco-local" not in (copy / ".env").read_text().replace("busco-local-", "")


@pytest.mark.parametrize(
    "script", [*sorted(path.name for path in (ROOT / "scripts").glob("*.sh")), "setup_connections.py"]
)
def test_each_script_says_what_it_is_for(script: str) -> None:
    done = run(ROOT, f"scripts/{script}", "-h")
    assert "usage" in done.stdout.lower()


def test_wait_for_it_says_whom_it_waited_for_in_vain(copy: Path) -> None:
    done = run(copy, "scripts/wait-for-it.sh", "-t", "1", "127.0.0.1:9", "--", "true", check=False)
    assert done.returncode == 124
    assert "nothing is listening on 127.0.0.1:9 after 1 s" in done.stderr
    done = run(copy, "scripts/wait-for-it.sh", "nonsense", check=False)
    assert (done.returncode, "is not HOST:PORT" in done.stderr) == (2, True)


def test_folders_are_made_readable_to_all_and_given_to_airflow_s_user(copy: Path) -> None:
    folder = copy / "dags"
    folder.mkdir()
    (folder / "a.py").touch(mode=0o600)
    owner = str(os.getuid() or 50000)
    assert run(copy, "env", f"AIRFLOW_UID={owner}", "scripts/set_local_dir_permission.sh", "dags").returncode == 0
    found = (folder / "a.py").stat()
    assert (str(found.st_uid), stat.S_IMODE(found.st_mode)) == (owner, 0o644)
    assert run(copy, "env", f"AIRFLOW_UID={owner}", "scripts/set_local_dir_permission.sh", "dags").stdout == ""


def test_the_entrypoint_tells_airflow_of_a_proxy_only_where_there_is_one(copy: Path) -> None:
    for value, wanted in (("true", "True"), ("false", ""), ("", "")):
        done = run(copy, "env", f"AIRFLOW_BEHIND_PROXY={value}", "scripts/entrypoint.sh", "env")
        said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        assert said.get("AIRFLOW__WEBSERVER__COOKIE_SECURE", "") == wanted
        assert said.get("AIRFLOW__WEBSERVER__ENABLE_PROXY_FIX", "") == wanted


def test_make_env_takes_a_file_of_windows_and_one_without_a_last_line_end(copy: Path) -> None:
    (copy / ".env").write_bytes(b"AIRFLOW_PORT=9090\r\nFLOWER_PORT=6000")
    run(copy, "scripts/make_env.sh")
    lines = (copy / ".env").read_text().splitlines()
    assert lines[:2] == ["AIRFLOW_PORT=9090", "FLOWER_PORT=6000"]


def test_two_checkouts_on_a_machine_have_containers_and_volumes_of_their_own(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(copy / "scripts", other / "scripts")
    shutil.copy(copy / ".env.example", other)
    names = set()
    for folder in (copy, other):
        run(folder, "scripts/make_env.sh")
        names |= {
            line for line in (folder / ".env").read_text().splitlines() if line.startswith("COMPOSE_PROJECT_NAME=")
        }
    assert len(names) == 2


def test_the_entrypoint_says_which_url_is_none_and_not_what_is_in_it(copy: Path) -> None:
    url = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=postgresql://airflow:can/ary@postgres:5432/airflow"
    done = run(copy, "env", url, "scripts/entrypoint.sh", "airflow", "version", check=False)
    assert done.returncode != 0
    assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN is not a valid URL" in done.stderr
    assert "can" not in done.stderr.replace("can't", "")


DOCKER = """#!/bin/sh
case "$2" in
    up) exit 1 ;;
    ps) printf '%s\\n' 'local-aws restarting - 1' 'postgres running healthy 0' 'airflow-init exited - 0' ;;
    logs) shift 5; echo "the log of $*" ;;
esac
"""


@pytest.fixture
def up(copy: Path) -> tuple[str, ...]:
    """What `make up` runs, where Docker's services do not come up."""
    for folder in ("dags", "plugins", "config", "deploy", "src", "dbt_project", "bin"):
        (copy / folder).mkdir()
    (copy / "dags/a.py").touch()
    (copy / "bin/docker").write_text(DOCKER)
    (copy / "bin/docker").chmod(0o755)
    return "env", f"PATH={copy / 'bin'}:{os.environ['PATH']}", "BUSCO_BUILD=0", "scripts/compose_up.sh"


def test_up_shows_the_log_of_the_service_that_did_not_come_up_and_of_no_other(copy: Path, up: tuple[str, ...]) -> None:
    done = run(copy, *up, check=False)
    assert done.returncode == 1
    assert done.stderr == "\nlocal-aws is restarting; the end of its log:\nthe log of local-aws\n"


def test_an_editor_s_swap_file_holds_up_nothing(copy: Path, up: tuple[str, ...]) -> None:
    (copy / "dbt_project/.fct_orders.sql.swp").touch(mode=0o600)
    assert "is not readable" not in run(copy, *up, check=False).stderr


@pytest.mark.parametrize(("path", "mode"), [("dags/a.py", 0o600), ("dbt_project", 0o711)])
def test_up_says_which_file_the_containers_can_not_read_and_what_opens_it(
    copy: Path, up: tuple[str, ...], path: str, mode: int
) -> None:
    (copy / path).chmod(mode)
    done = run(copy, *up, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path} is not readable by the containers' users")
    assert "scripts/set_local_dir_permission.sh" in done.stderr
    run(copy, "env", f"AIRFLOW_UID={os.getuid()}", "scripts/set_local_dir_permission.sh")
    assert "is not readable" not in run(copy, *up, check=False).stderr
