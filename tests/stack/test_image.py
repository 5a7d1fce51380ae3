"""The runner's image in a container like a task's: its content, its rights, and that it starts without parsing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.platforms import ROOT, Platform, platform

# the same restrictions as in the task definitions
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
OFFLINE = ("--network", "none")
LARGEST = 350_000_000
PROJECT = "/opt/busco/dbt_project"


def docker(*arguments: str, status: int = 0) -> str:
    """Runs a Docker command; returns the output of both streams."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300)
    printed = done.stdout + done.stderr
    assert done.returncode == status, f"exit status {done.returncode}:\n{printed}"
    return printed


def run(image: str, *arguments: str, options: tuple[str, ...] = OFFLINE) -> str:
    """Runs `busco <arguments>` in a container."""
    return docker("run", "--rm", *HARDENED, *options, image, *arguments)


def shell(image: str, command: str, options: tuple[str, ...] = OFFLINE) -> str:
    """Runs a shell command in a container."""
    return docker("run", "--rm", *HARDENED, *options, "--entrypoint", "sh", image, "-ec", command)


def python(image: str, code: str, options: tuple[str, ...] = OFFLINE) -> Any:
    """Runs Python code in a container; returns what it printed, parsed as JSON."""
    printed = docker("run", "--rm", *HARDENED, *options, "--entrypoint", "python", image, "-c", code)
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def image() -> str:
    """Builds the image of the code under test."""
    built = subprocess.run([str(ROOT / "scripts/local_build.sh"), "dbt"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    print(built.stdout)
    name: str = re.findall(r"busco-dbt:[0-9a-f]+\S*(?=, )", built.stdout)[0]
    return name


@pytest.fixture
def inspected(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("image", "inspect", image))[0]
    return found


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A local AWS with some data in bronze."""
    home = tmp_path_factory.mktemp("lake")
    with platform(home, ROOT) as made:
        made.busco("sample", "--orders", "200", "--out", str(home / "files"))
        made.busco("ingest", str(home / "files"))
        yield made


def of(lake: Platform, **environment: str) -> tuple[str, ...]:
    """Returns the options of a container that uses this lake."""
    given = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    return ("--network", "host", "--env-file", str(lake.settings.state / "aws.env"), *given)


@pytest.fixture
def changed(tmp_path: Path) -> tuple[str, ...]:
    """Options that mount a project with one more model over the image's, as developers do."""
    folder = tmp_path / "dbt_project"
    shutil.copytree(ROOT / "dbt_project", folder, ignore=shutil.ignore_patterns("target", "logs"))
    (folder / "models/silver/half_written.sql").write_text(
        "{{ config(materialized='view', contract={'enforced': false}) }}\nselect 1 as one\n"
    )
    return ("--volume", f"{folder}:{PROJECT}:ro")


# -- its user and where it writes ------------------------------------------------------------------------------------


def test_it_runs_as_an_unprivileged_user(image: str) -> None:
    assert shell(image, "id -u; id -g").split() == ["10001", "10001"]


def test_its_root_file_system_can_be_read_only(image: str) -> None:
    assert "silver" in run(image, "dbt", "ls", "--resource-type", "model")


def test_a_volume_over_tmp_is_writable_by_its_user(image: str) -> None:
    volume = f"busco-test-{uuid.uuid4().hex[:12]}"
    docker("volume", "create", volume)
    try:
        options = (*OFFLINE, "--volume", f"{volume}:/tmp")
        assert shell(image, "touch /tmp/mine; stat -c %a /tmp", options).strip() == "1777"
        assert "silver" in run(image, "dbt", "ls", "--resource-type", "model", options=options)
        assert "busco" in shell(image, "ls /tmp", options).split(), "the state folder is on the volume"
    finally:
        docker("volume", "rm", volume)


def test_home_state_and_spilled_data_are_below_tmp(image: str) -> None:
    code = """if True:
        import json, pathlib
        from busco.lake.budget import budget
        from busco.lake.engine import config
        from busco.settings import get_settings
        settings = get_settings()
        spill = config(budget(settings))["temp_directory"]
        print(json.dumps([str(pathlib.Path.home()), str(settings.state), spill]))"""
    assert [Path(path).parts[1] for path in python(image, code)] == ["tmp", "tmp", "tmp"]


# -- what it contains ------------------------------------------------------------------------------------------------


def test_it_is_at_most_350_megabytes_larger_than_its_base(inspected: dict[str, Any]) -> None:
    base = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile.dbt").read_text(), re.MULTILINE)[0]
    beyond = inspected["Size"] - json.loads(docker("image", "inspect", base))[0]["Size"]
    print(f"{beyond / 1e6:.0f} MB larger than {base}")
    assert beyond <= LARGEST


def test_it_contains_no_tools_that_build_or_install(image: str) -> None:
    found = shell(image, "for tool in gcc cc g++ make ld git; do command -v $tool || true; done")
    assert found == ""
    code = "import importlib.util as i, json; print(json.dumps([n for n in %r if i.find_spec(n)]))"
    assert python(image, code % ["pip", "setuptools", "wheel", "ministack", "moto", "pytest"]) == []


def test_every_module_that_a_runner_imports_has_bytecode(image: str) -> None:
    code = """if True:
        import json, os, sys
        import busco.cli.data, busco.ingest.ingest, busco.lake.versions, busco.warehouse.runner
        cached = {name: m.__cached__ for name, m in sys.modules.items() if getattr(m, "__cached__", None)}
        print(json.dumps([len(cached), [name for name, path in cached.items() if not os.path.exists(path)]]))"""
    loaded, without = python(image, code)
    assert loaded > 1000
    assert without == []


def test_every_module_of_its_packages_has_bytecode(image: str) -> None:
    code = """if True:
        import importlib.util as util, json, pathlib
        files = [f for root in ("/opt/venv/lib", "/opt/busco/lib/busco") for f in pathlib.Path(root).rglob("*.py")]
        bare = [str(f) for f in files if not pathlib.Path(util.cache_from_source(str(f))).exists()]
        print(json.dumps([len(files), bare]))"""
    files, bare = python(image, code)
    assert files > 2000
    assert bare == []


def test_it_contains_exactly_the_files_that_git_tracks_or_would_add(image: str) -> None:
    known = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/busco", "dbt_project"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = {path.removeprefix("src/") for path in known if (ROOT / path).is_file()}
    found = shell(image, "cd /opt/busco; find dbt_project -type f; cd lib; find busco -type f -not -name '*.pyc'")
    assert set(found.split()) == expected


def test_its_environment_and_history_contain_no_secret(image: str, inspected: dict[str, Any]) -> None:
    names = {variable.split("=", 1)[0] for variable in inspected["Config"]["Env"]}
    secret = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|ACCESS_KEY|PRIVATE", re.IGNORECASE)
    assert [name for name in names if secret.search(name)] == []
    steps = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert "busco bake" not in steps, "the history must not include the other build stages"
    assert secret.findall(steps) == []


def test_it_reports_the_commit_that_it_was_built_from(image: str, inspected: dict[str, Any]) -> None:
    commit = image.removeprefix("busco-dbt:").replace("-dirty", "+")
    assert inspected["Config"]["Labels"]["org.opencontainers.image.revision"] == commit
    code = "import json; from busco.environments import code_version as v; from busco.settings import get_settings as s"
    assert python(image, f"{code}; print(json.dumps(v(s())))") == commit


def test_no_file_that_it_is_built_from_names_a_processor_architecture() -> None:
    named = re.compile(r"x86|amd64|arm64|aarch64|--platform", re.IGNORECASE)
    for name in (
        "Dockerfile.dbt",
        "Dockerfile.airflow",
        "requirements/dbt.in",
        "requirements/airflow.in",
        ".dockerignore",
    ):
        assert named.findall((ROOT / name).read_text()) == [], name


# -- what it does ----------------------------------------------------------------------------------------------------


def test_duckdb_loads_its_extensions_without_a_network(image: str) -> None:
    code = """if True:
        import json
        from busco.lake.engine import connect
        from busco.settings import get_settings
        sql = "select extension_name from duckdb_extensions() where loaded"
        print(json.dumps([name for name, in connect(get_settings(), iceberg=True).execute(sql).fetchall()]))"""
    keys = ("--env", "AWS_ACCESS_KEY_ID=any", "--env", "AWS_SECRET_ACCESS_KEY=any")
    assert {"httpfs", "avro", "iceberg"} <= set(python(image, code, (*OFFLINE, *keys)))


def test_it_starts_without_parsing_the_project(image: str, changed: tuple[str, ...]) -> None:
    # parsing would leave a partial_parse.msgpack
    command = "busco dbt ls > /dev/null; find /tmp -name partial_parse.msgpack"
    assert shell(image, command) == ""
    assert shell(image, command, (*OFFLINE, *changed)) != "", "parsing should leave a partial_parse.msgpack"


def test_a_project_that_is_mounted_over_its_own_is_used(image: str, changed: tuple[str, ...]) -> None:
    listed = ("dbt", "ls", "--resource-type", "model")
    assert "half_written" not in run(image, *listed)
    assert "half_written" in run(image, *listed, options=(*OFFLINE, *changed))


def test_each_environment_and_run_uses_the_parse_in_the_image(image: str, lake: Platform) -> None:
    runs = set()
    for environment in ("prod", "dev_ana"):
        printed = run(image, "dbt", "build", "--select", "orders", options=of(lake, BUSCO_ENVIRONMENT=environment))
        assert "parsed_by=image" in printed
        assert "OK created sql lake model silver.orders" in printed
        runs.add(re.findall(r"^run (\S+): .* success", printed, re.MULTILINE)[0])
    assert len(runs) == 2


# -- busco doctor -----------------------------------------------------------------------------------------------------


def test_doctor_reports_the_resources_of_the_container(image: str, lake: Platform) -> None:
    limits = ("--memory", "1g", "--memory-swap", "1g", "--cpus", "1")
    printed = run(image, "doctor", "--format", "json", options=(*limits, *of(lake)))
    checks = {check["name"]: check for check in json.loads(printed.splitlines()[-1])["checks"]}
    assert not [check for check in checks.values() if check["state"] == "failed"]
    skipped = {name for name, check in checks.items() if check["state"] == "skipped"}
    of_airflow = {"keys", "database", "broker", "ECS cluster", "manifest"}
    unused = {"task definitions", "task roles", "image"}
    # nothing is published in this lake
    assert skipped == of_airflow | unused | {"live release"}, "a runner uses none of these"
    assert re.match(r"busco: \d+ models, parsed in the image; code \w+", checks["dbt projects"]["seen"])
    assert checks["memory and CPU"]["seen"] == "1.0 GiB of memory, of which DuckDB may use 505.5 MiB; 1 CPUs"
    assert checks["disk"]["seen"].startswith("/tmp/busco/spill: ")


def test_doctor_fails_if_the_state_folder_is_not_writable(image: str, lake: Platform, tmp_path: Path) -> None:
    (tmp_path / "spill").mkdir()
    tmp_path.chmod(0o755)
    mounted = ("--volume", f"{tmp_path}:/state:ro", *of(lake, BUSCO_STATE_DIR="/state"))
    missing = of(lake, BUSCO_STATE_DIR="/opt/busco/state")
    for options in (mounted, missing):
        printed = docker("run", "--rm", *HARDENED, *options, image, "doctor", status=1)
        assert re.search(r"disk failed: .*Read-only file system.*\n  → set BUSCO_STATE_DIR to a folder", printed), (
            printed
        )
        assert "1 failed" in printed.splitlines()[-1]


def test_doctor_fails_if_the_image_has_no_parse_of_a_project_mounted_over_its_own(
    image: str, lake: Platform, changed: tuple[str, ...]
) -> None:
    printed = docker("run", "--rm", *HARDENED, *of(lake), *changed, image, "doctor", status=1)
    assert (
        "dbt projects failed: the parse stored in /opt/busco/baked does not match the current /opt/busco/dbt_project"
        in printed
    )
    assert "→ rebuild the image (make image)" in printed
