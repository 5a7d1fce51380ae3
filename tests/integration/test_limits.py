"""A model that needs more memory or disk space than is available fails with an error that says so and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from unittest import mock

import pytest

from busco.lake.budget import budget
from busco.lake.runs import open_run
from tests.platforms import ENVIRONMENT, ROOT, Platform

pytestmark = pytest.mark.slow

NODE = "model.busco.big"
# DuckDB can spill rows that it sorts, but not a list that it is building
LISTED = "select list(md5(i::varchar)) as texts from range(3000000) t(i)"
SORTED = "select i, md5(i::varchar) as text from range(3000000) t(i) order by text"
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


def error_of_build(platform: Platform, wrapped_in: str = "", **variables: str) -> str:
    """Builds the model `big`; returns its error from the run's records."""
    command = [str(ROOT / ".venv-dbt/bin/python"), "-m", "busco", "dbt", "build", "--select", "big"]
    if wrapped_in:
        command = [*OWN_MOUNTS, "sh", "-c", f'{wrapped_in} && exec "$@"', "sh", *command]
    environment = {**os.environ, **{f"BUSCO_{name.upper()}": value for name, value in variables.items()}}
    done = subprocess.run(command, cwd=platform.home, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stdout + done.stderr
    (name,) = platform.store.folders(ENVIRONMENT.runs("")[:-1])[-1:]
    run = open_run(platform.store, ENVIRONMENT, name)
    result = run.latest_results()[NODE]
    assert result.status == "error"
    assert result.message == result.error.splitlines()[0]
    return result.error


@pytest.fixture
def big(mini: Platform) -> Platform:
    shutil.rmtree(mini.home / "dbt_project/models/gold")
    (mini.home / "dbt_project/models/silver/v_orders.sql").unlink()
    mini.model("silver/big", SORTED)
    return mini


def test_an_out_of_memory_error_reports_the_limit_and_what_to_do(big: Platform) -> None:
    big.model("silver/big", LISTED)
    with mock.patch.dict(os.environ, {"ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:1/v4/token"}):
        error = error_of_build(big, duckdb_memory_limit="60MB")
    assert error.startswith("not enough memory: DuckDB may use 57.2 MiB")
    assert "→ use a larger task: `meta: {ecs: large}` for this model, or BUSCO_ECS_SIZE=large" in error
    assert "SET threads" not in error, "DuckDB's own advice, which doesn't apply here"


def test_the_error_of_a_reached_spill_limit_names_the_folder_and_the_limit(big: Platform) -> None:
    error = error_of_build(big, duckdb_memory_limit="60MB", duckdb_spill_limit="10MB")
    folder = big.settings.state / "spill"
    assert error.startswith(f"the disk that DuckDB spills to is full: {folder} had ")
    assert "of which DuckDB may use 9.5 MiB" in error
    assert "→ free up space there" in error
    assert "BUSCO_DUCKDB_SPILL_LIMIT" in error
    assert not list(folder.iterdir()), "the process deletes its spilled data when it ends"


def own_mounts() -> bool:
    """Whether this user can mount a file system that only the user's own processes see."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode
    )


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("", "failed to offload data block"), ("10GB", "No space left on device")],
    ids=["default limit", "limit above the free space"],
)
@pytest.mark.skipif(not own_mounts(), reason="this user can't create mount namespaces (unshare)")
def test_the_error_of_a_full_disk_names_its_folder_and_free_space(big: Platform, limit: str, reason: str) -> None:
    folder = big.settings.state / "spill"
    folder.mkdir(exist_ok=True)
    mounted = f"mount -t tmpfs -o size=40m tmpfs {folder} && head -c 20m /dev/zero > {folder}/other"
    error = error_of_build(big, mounted, duckdb_memory_limit="60MB", duckdb_spill_limit=limit)
    assert error.startswith(f"the disk that DuckDB spills to is full: {folder} had 20.0 MiB free")
    assert reason in error


def test_two_duckdb_connections_can_spill_at_the_same_time(mini: Platform) -> None:
    script = mini.write("two.py", TWO)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "BUSCO_DUCKDB_MEMORY_LIMIT": "50MB"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0 1999999000000\n1 2000001000000\n"), done.stderr


TWO = """
from busco.lake.engine import connect
from busco.settings import get_settings

both = [connect(get_settings()) for _ in range(2)]
for add, connection in enumerate(both):
    connection.execute(f"create table t as select i + {add} as i, md5(i::varchar) as m from range(2000000) t(i)")
assert all(connection.execute("select count(*) from duckdb_temporary_files()").fetchone()[0] for connection in both)
for add, connection in enumerate(both):
    print(add, connection.execute("select sum(i) from (select i, m from t order by m)").fetchone()[0])
"""


def test_data_that_a_killed_process_spilled_is_deleted_by_the_next_one(mini: Platform) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = budget(mini.settings).folder
    mine.mkdir()
    left = mine.with_name(mine.name.replace(str(os.getpid()), str(ended.pid)))
    (left / "inner").mkdir(parents=True)
    budget(mini.settings)
    assert mine.is_dir()
    assert not left.exists()
