"""Checks docker-compose.yml, .env.example and the scripts around them, without Docker."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from busco.embedded.door import INSTANCE_PATH
from busco.settings import Settings
from tests import compose_files

ROOT = Path(__file__).parents[2]
COMPOSE = compose_files.load("docker-compose.yml")
SERVICES = compose_files.services("docker-compose.yml")
LONG = sorted(SERVICES.keys() - {"airflow-init"})
AIRFLOW = [name for name in LONG if name.startswith("airflow-") or name in ("events", "flower")]
EXAMPLE = (ROOT / ".env.example").read_text().splitlines()
VARIABLE = re.compile(r"^(# )?([A-Z][A-Z0-9_]*)=(.*)$")


def variables() -> dict[str, tuple[bool, str]]:
    """Returns, for each variable in .env.example, whether it is set there, and its value."""
    found = {}
    for line in EXAMPLE:
        if match := VARIABLE.match(line):
            found[match[2]] = (match[1] is None, match[3])
    return found


# -- docker-compose.yml -----------------------------------------------------------------------------------------------


def test_compose_defines_the_services_that_operators_know() -> None:
    assert set(SERVICES) == {
        "postgres", "redis", "airflow-webserver", "airflow-scheduler", "airflow-worker", "airflow-triggerer",
        "airflow-init", "events", "flower", "local-aws", "starter",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_and_ports_are_published_only_on_this_machine(name: str) -> None:
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
def test_each_service_has_a_health_check_and_a_memory_limit_and_is_restarted(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]


def test_the_memory_limits_fit_a_machine_with_8_gb() -> None:
    units = {"m": 1, "g": 1024}
    total = sum(int(SERVICES[name]["mem_limit"][:-1]) * units[SERVICES[name]["mem_limit"][-1]] for name in LONG)
    assert total <= 8 * 1024


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_services_wait_for_everything_that_they_need(name: str) -> None:
    needs = SERVICES[name]["depends_on"]
    assert needs["airflow-init"] == {"condition": "service_completed_successfully"}
    for other in ("postgres", "redis", "local-aws"):
        assert needs[other] == {"condition": "service_healthy"}
    assert SERVICES[name]["user"] == "${AIRFLOW_UID:-50000}:0"


def test_the_compose_file_contains_no_secret() -> None:
    for name, service in SERVICES.items():
        environment = service.get("environment") or {}
        for variable, value in environment.items():
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN", variable) and value is not None:
                assert str(value).startswith("${"), f"{name}: {variable}"
    for path in ROOT.glob("docker-compose*.yml"):
        assert not re.search(r"://[^$\s]*:[^$@\s]+@", path.read_text()), f"a password in a URL of {path.name}"


# -- networks, secrets and settings -----------------------------------------------------------------------------------

NETWORKS = {
    **{name: {"default", "data"} for name in AIRFLOW},
    "airflow-init": {"default", "data"},
    "postgres": {"data"},
    "redis": {"data"},
    "local-aws": {"default", "tasks"},
}


# internal: no route leads out of the network; inhibit_ipv4: this machine has no address in it
TASKS = {"internal": True, "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"}}


def test_ecs_tasks_share_their_network_only_with_the_local_aws() -> None:
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


def test_the_starter_can_do_nothing_except_call_docker() -> None:
    starter = SERVICES["starter"]
    assert (starter["read_only"], starter["cap_drop"]) == (True, ["ALL"])
    assert starter["security_opt"] == ["no-new-privileges:true"]
    assert "ports" not in starter
    assert "environment" not in starter
    # the starter creates the socket, and the local AWS uses it
    assert [volume for volume in starter["volumes"] if ":ro" not in volume] == [
        "/var/run/docker.sock:/var/run/docker.sock", "starter:/run/busco",
    ]  # fmt: skip
    users = {name for name, service in SERVICES.items() for one in service.get("volumes", []) if "/run/busco" in one}
    assert users == {"starter", "local-aws"}
    assert "starter:/run/busco:ro" in SERVICES["local-aws"]["volumes"]


# The secrets that each service gets, by the names of their variables in .env. An added line needs a reason.
SECRETS = {
    "postgres": {"POSTGRES_PASSWORD"},
    "redis": {"REDIS_PASSWORD"},
    # encrypts connections in the database, creates the admin, and loads the login settings
    "airflow-init": {
        "POSTGRES_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_ADMIN_PASSWORD", "OAUTH_CLIENT_SECRET",
        "AIRFLOW_CONNECTIONS", "AIRFLOW_VARIABLES",
    },
    # signs sessions
    "airflow-webserver": {
        "POSTGRES_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY", "OAUTH_CLIENT_SECRET",
        "LOCAL_AWS_AIRFLOW_SECRET",
    },
    "airflow-scheduler": {
        "POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "LOCAL_AWS_AIRFLOW_SECRET",
    },
    # serves the logs of running tasks and authenticates the requests for them with the session key
    "airflow-worker": {
        "POSTGRES_PASSWORD", "REDIS_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY",
        "LOCAL_AWS_AIRFLOW_SECRET",
    },
    "airflow-triggerer": {
        "POSTGRES_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY", "LOCAL_AWS_AIRFLOW_SECRET",
    },
    # records dataset events and starts runs in Airflow's database
    "events": {"POSTGRES_PASSWORD", "AIRFLOW__CORE__FERNET_KEY", "LOCAL_AWS_AIRFLOW_SECRET"},
    # shows data from the broker to the admin or to a separate login
    "flower": {"REDIS_PASSWORD", "AIRFLOW__CELERY__FLOWER_BASIC_AUTH", "AIRFLOW_ADMIN_PASSWORD"},
    # authenticates Airflow with it, and returns the credentials of Airflow's role
    "local-aws": {"LOCAL_AWS_AIRFLOW_SECRET"},
    "starter": set(),
}  # fmt: skip
IS_SECRET = re.compile(r"PASSWORD|SECRET|FERNET|BASIC_AUTH|AIRFLOW_CONNECTIONS|AIRFLOW_VARIABLES")
# settings that Airflow's services don't need: those of the local AWS and of the runners, and those set in an image
NOT_FOR_AIRFLOW = {
    "BUSCO_HOME", "BUSCO_STATE_DIR", "BUSCO_BAKED_DIR", "BUSCO_KEEP_GRAPH", "BUSCO_LISTEN", "BUSCO_DBT_THREADS",
    "BUSCO_DBT_IMAGE",
    "BUSCO_DUCKDB_MEMORY_LIMIT", "BUSCO_DUCKDB_SPILL_LIMIT", "BUSCO_INGEST_ROW_BYTES", "BUSCO_INGEST_FILE_BYTES",
    "BUSCO_LOCAL_ROLE",
    "BUSCO_LOCAL_AWS_HOST", "BUSCO_LOCAL_AWS_PORT", "BUSCO_LOCAL_AWS_TASKS_HOST", "BUSCO_STARTER", "BUSCO_GRAPH_DIR",
    "BUSCO_AWS_PORT",
    # of a service of production alone
    "BUSCO_METRICS_PLATFORM", "BUSCO_METRICS_SERVER",
    # AWS_ENDPOINT_URL is set instead
    "BUSCO_ENDPOINT_URL",
}  # fmt: skip


def resolved(service: dict[str, Any], given: dict[str, str]) -> dict[str, str]:
    """Resolves a service's variables like Compose (Compose file reference, "Interpolation" and "environment")."""
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
def test_each_service_gets_its_own_secrets_and_no_others(name: str) -> None:
    assert "env_file" not in SERVICES[name]
    # variables of the shell that runs Compose, which must not reach a container
    elsewhere = {one: f"canary-{one}-" for one in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    secrets = [one for one in variables() if IS_SECRET.search(one)]
    assert len(secrets) >= 8
    environment = resolved(SERVICES[name], {**elsewhere, **{one: f"canary-{one}-" for one in secrets}})
    text = " ".join(environment.values())
    assert {one for one in secrets if f"canary-{one}-" in text} == SECRETS[name]
    assert not [one for one in elsewhere if f"canary-{one}-" in text]


@pytest.mark.parametrize("name", [name for name in AIRFLOW if name != "flower"])
def test_airflow_services_get_every_setting_that_they_can_need(name: str) -> None:
    names = {one for one in SERVICES[name]["environment"] if one.startswith("BUSCO_")}
    assert names == {f"BUSCO_{one.upper()}" for one in Settings.model_fields} - NOT_FOR_AIRFLOW


def test_the_local_aws_parses_the_dbt_projects_with_the_same_settings_as_airflow() -> None:
    names = {"BUSCO_DBT_PROJECT_DIR", "BUSCO_DBT_PROJECTS", "BUSCO_PROJECT_ID"}
    environment = resolved(SERVICES["local-aws"], {one: f"canary-{one}" for one in names})
    assert {one: environment.get(one) for one in names} == {one: f"canary-{one}" for one in names}
    assert resolved(SERVICES["local-aws"], {})["BUSCO_PROJECT_ID"] == ""


# -- .env.example -----------------------------------------------------------------------------------------------------


def test_every_setting_is_in_the_example_with_a_comment() -> None:
    ours = {name for name in variables() if name.startswith("BUSCO_")} - {"BUSCO_VERSION"}
    assert ours == {f"BUSCO_{name.upper()}" for name in Settings.model_fields}
    for number, line in enumerate(EXAMPLE):
        if (match := VARIABLE.match(line)) and match[2].startswith("BUSCO_"):
            before = EXAMPLE[number - 1]
            assert before.startswith("# ") or VARIABLE.match(before), f"{match[2]} has no comment"


def test_a_setting_that_is_not_set_in_the_example_is_shown_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        is_set, value = variables()[f"BUSCO_{name.upper()}"]
        if is_set or field.default_factory is not None:
            continue
        default = "" if field.default is None else str(field.default)
        assert value == (default.lower() if isinstance(field.default, bool) else default), name


def test_every_variable_that_compose_uses_is_in_the_example() -> None:
    texts = [(ROOT / name).read_text() for name in ("docker-compose.yml", "docker-compose.common.yml")]
    used = {name for text in texts for name in re.findall(r"\$\{([A-Z][A-Z0-9_]*)", text)}
    # POSTGRES_IMAGE and REDIS_IMAGE come from images.lock, if it exists (scripts/compose_up.sh)
    assert used - {"PWD", "BUSCO_DBT_IMAGE", "POSTGRES_IMAGE", "REDIS_IMAGE"} <= variables().keys()


def test_nothing_in_the_example_is_a_secret() -> None:
    for name, (_, value) in variables().items():
        # the admin's default password is for this machine only (README)
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


def test_airflow_authenticates_to_the_local_aws_with_a_secret_from_the_example() -> None:
    name = "LOCAL_AWS_AIRFLOW_SECRET"
    assert SERVICES["local-aws"]["environment"][name] == f"${{{name}}}"
    endpoint = SERVICES["airflow-worker"]["environment"]["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
    assert endpoint == f"http://local-aws:4566{INSTANCE_PATH}${{{name}}}"
    assert "AWS_ACCESS_KEY_ID" not in variables()


def test_make_env_generates_secrets_for_their_owner_only_and_then_changes_nothing(copy: Path) -> None:
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


def test_make_env_keeps_existing_values_and_adds_new_variables(copy: Path) -> None:
    (copy / ".env").write_text("POSTGRES_PASSWORD=mine\n")
    run(copy, "scripts/make_env.sh")
    lines = (copy / ".env").read_text().splitlines()
    assert lines[0] == "POSTGRES_PASSWORD=mine"
    assert len([line for line in lines if line.startswith("POSTGRES_PASSWORD=")]) == 1
    assert any(line.startswith("REDIS_PASSWORD=") for line in lines)


def test_filling_in_a_copy_of_the_example_changes_only_its_placeholders(copy: Path) -> None:
    assert run(copy, "scripts/make_env.sh", "--fill").stdout == ""
    assert not (copy / ".env").exists(), "there was no file to fill in"
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
    # without --fill, as `make up` runs it
    run(copy, "scripts/make_env.sh")
    assert "busco-local" not in (copy / ".env").read_text().replace("busco-local-", "")


# Each line, and what replaces the placeholder in it; the forms are those that Compose reads as NAME=VALUE
# (compose-go, dotenv/parser.go).
FILLED = {
    'COMPOSE_PROJECT_NAME="<project>"': 'COMPOSE_PROJECT_NAME="{}"',
    "A=<random> ": "A={} ",
    "B=<random> # mine": "B={} # mine",
    "export DOCKER_GID=<docker-group>": "export DOCKER_GID={}",
    "KEY = <random>": "KEY = {}",
    "\tC: '<fernet>'# mine": "\tC: '{}'# mine",
    "D=<random>\r": "D={}\r",
    "\ufeffE=<random>": "\ufeffE={}",
}
# Lines that Compose reads as another value, or not at all.
NOT_FILLED = {
    "A=<random># mine": "A=<random>",
    "A=<random>\t# mine": "A=<random>",
    'A=" <random>"': "A=<random>",
    'A="<random>': "A=<random>",
    "export URL=redis://:<random>@redis": "URL=<random>",
    "A=${B:-<user>}": "A=<user>",
    "A B=<random>": "NAME=<random>",
    'A="1" B=<random>': "A=<random>",
}
UNCHANGED = ["A='x' # <random>", "A=x # <random>", "  # A=<random>", "A=<mine>", "A=", "A", "A=a<b", 'A="<b>"']


@pytest.mark.parametrize("line", FILLED)
def test_a_placeholder_is_filled_in_however_compose_lets_it_be_written(copy: Path, line: str) -> None:
    env = copy / ".env"
    env.write_bytes(f"{line}\nZ=1\n".encode())
    assert run(copy, "scripts/make_env.sh", "--fill").stdout == "filled in 1 placeholder in .env\n"
    filled = env.read_bytes().decode()
    before, _, after = FILLED[line].partition("{}")
    assert re.fullmatch(rf"{re.escape(before)}[\w=-]+{re.escape(after)}\nZ=1\n", filled)
    assert stat.S_IMODE(env.stat().st_mode) == 0o600


@pytest.mark.parametrize("options", [["--fill"], []])
def test_placeholders_that_cannot_be_filled_in_are_refused_with_their_lines(copy: Path, options: list[str]) -> None:
    env = copy / ".env"
    env.write_text("\n".join(["B=<random>", *NOT_FILLED, *UNCHANGED]))
    before = env.read_bytes()
    done = run(copy, "scripts/make_env.sh", *options, check=False)
    assert done.returncode == 1
    reported = done.stderr.splitlines()
    assert len(reported) == len(NOT_FILLED)
    for number, (line, written) in enumerate(zip(reported, NOT_FILLED.values(), strict=True), start=2):
        assert line.startswith(f".env, line {number}: ")
        assert f"write {written}" in line
    assert env.read_bytes() == before
    env.write_text("\n".join(UNCHANGED))
    assert run(copy, "scripts/make_env.sh", "--fill").stdout == ""
    assert env.read_text() == "\n".join(UNCHANGED)


@pytest.mark.parametrize("options", [["--fill"], []])
def test_a_linked_env_file_stays_a_link_and_its_target_is_filled_in(
    copy: Path, tmp_path_factory: pytest.TempPathFactory, options: list[str]
) -> None:
    target = tmp_path_factory.mktemp("secrets") / "mine.env"
    target.write_text("REDIS_PASSWORD=<random>\n")
    (copy / ".env").symlink_to(target)
    run(copy, "scripts/make_env.sh", *options)
    assert (copy / ".env").readlink() == target
    assert re.match(r"REDIS_PASSWORD=\w{48}\n", target.read_text())
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [path.name for path in target.parent.iterdir()] == ["mine.env"]


def test_a_variable_that_is_set_in_another_form_is_not_set_a_second_time(copy: Path) -> None:
    # Compose uses the last value
    (copy / ".env").write_text("export AIRFLOW_UID=7\nREDIS_PASSWORD = mine\n")
    run(copy, "scripts/make_env.sh")
    text = (copy / ".env").read_text()
    assert (text.count("AIRFLOW_UID"), text.count("REDIS_PASSWORD")) == (1, 1)


@pytest.mark.parametrize(
    "script", [*sorted(path.name for path in (ROOT / "scripts").glob("*.sh")), "setup_connections.py"]
)
def test_each_script_prints_its_usage(script: str) -> None:
    done = run(ROOT, f"scripts/{script}", "-h")
    assert "usage" in done.stdout.lower()


def test_wait_for_it_reports_the_unreachable_address(copy: Path) -> None:
    done = run(copy, "scripts/wait-for-it.sh", "-t", "1", "127.0.0.1:9", "--", "true", check=False)
    assert done.returncode == 124
    assert "nothing is listening on 127.0.0.1:9 after 1 s" in done.stderr
    done = run(copy, "scripts/wait-for-it.sh", "nonsense", check=False)
    assert (done.returncode, "is not HOST:PORT" in done.stderr) == (2, True)


def test_folders_are_made_readable_by_all_and_owned_by_the_airflow_user(copy: Path) -> None:
    folder = copy / "dags"
    folder.mkdir()
    (folder / "a.py").touch(mode=0o600)
    owner = str(os.getuid() or 50000)
    assert run(copy, "env", f"AIRFLOW_UID={owner}", "scripts/set_local_dir_permission.sh", "dags").returncode == 0
    found = (folder / "a.py").stat()
    assert (str(found.st_uid), stat.S_IMODE(found.st_mode)) == (owner, 0o644)
    assert run(copy, "env", f"AIRFLOW_UID={owner}", "scripts/set_local_dir_permission.sh", "dags").stdout == ""


@pytest.mark.parametrize("line", ["AIRFLOW_UID=7", 'export AIRFLOW_UID = "7" # Airflow'])
def test_the_airflow_user_is_read_from_the_env_file(copy: Path, line: str) -> None:
    (copy / "dags").mkdir()
    (copy / ".env").write_text(f"{line}\n")
    done = run(copy, "env", "-u", "AIRFLOW_UID", "scripts/set_local_dir_permission.sh", "dags", check=False)
    # only root can change the owner
    assert ("now owned by user 7" if os.getuid() == 0 else "doesn't belong to user 7") in done.stdout + done.stderr


def test_the_entrypoint_sets_airflows_proxy_options_only_behind_a_proxy(copy: Path) -> None:
    for value, expected in (("true", "True"), ("false", ""), ("", "")):
        done = run(copy, "env", f"AIRFLOW_BEHIND_PROXY={value}", "scripts/entrypoint.sh", "env")
        environment = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        assert environment.get("AIRFLOW__WEBSERVER__COOKIE_SECURE", "") == expected
        assert environment.get("AIRFLOW__WEBSERVER__ENABLE_PROXY_FIX", "") == expected


def test_make_env_accepts_windows_line_ends_and_a_missing_final_line_end(copy: Path) -> None:
    (copy / ".env").write_bytes(b"AIRFLOW_PORT=9090\r\nFLOWER_PORT=6000")
    run(copy, "scripts/make_env.sh")
    lines = (copy / ".env").read_text().splitlines()
    assert lines[:2] == ["AIRFLOW_PORT=9090", "FLOWER_PORT=6000"]


def test_two_checkouts_on_one_machine_have_separate_containers_and_volumes(copy: Path, tmp_path: Path) -> None:
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


def test_the_entrypoint_names_the_variable_with_an_invalid_url_but_hides_its_value(copy: Path) -> None:
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
    """Returns the command that `make up` runs, with a Docker whose services do not start."""
    for folder in ("dags", "plugins", "config", "deploy", "src", "dbt_project", "bin"):
        (copy / folder).mkdir()
    (copy / "dags/a.py").touch()
    (copy / "bin/docker").write_text(DOCKER)
    (copy / "bin/docker").chmod(0o755)
    return "env", f"PATH={copy / 'bin'}:{os.environ['PATH']}", "BUSCO_BUILD=0", "scripts/compose_up.sh"


def test_up_shows_the_log_of_the_service_that_did_not_start_and_no_others(copy: Path, up: tuple[str, ...]) -> None:
    done = run(copy, *up, check=False)
    assert done.returncode == 1
    assert done.stderr == "\nlocal-aws is restarting; the end of its log:\nthe log of local-aws\n"


def test_an_editors_unreadable_swap_file_is_ignored(copy: Path, up: tuple[str, ...]) -> None:
    (copy / "dbt_project/.fct_orders.sql.swp").touch(mode=0o600)
    assert "is not readable" not in run(copy, *up, check=False).stderr


@pytest.mark.parametrize(("path", "mode"), [("dags/a.py", 0o600), ("dbt_project", 0o711)])
def test_up_names_a_file_that_the_containers_cannot_read_and_the_script_that_fixes_it(
    copy: Path, up: tuple[str, ...], path: str, mode: int
) -> None:
    (copy / path).chmod(mode)
    done = run(copy, *up, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path} is not readable by the containers' users")
    assert "scripts/set_local_dir_permission.sh" in done.stderr
    run(copy, "env", f"AIRFLOW_UID={os.getuid()}", "scripts/set_local_dir_permission.sh")
    assert "is not readable" not in run(copy, *up, check=False).stderr
