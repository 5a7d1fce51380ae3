"""Only the user can access the state folder and its content, whatever the umask and any existing permissions."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from busco.embedded import processes
from busco.errors import BuscoError
from busco.settings import get_settings

ROOT = Path(__file__).parents[2]
# stands for what a platform process writes: server logs, records, data
WRITES = "import os; os.makedirs('made/inner'); open('made/inner/data', 'w').close(); print('a line')"


@pytest.fixture(params=[0o000, 0o022], ids=["umask 000", "umask 022"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    before = os.umask(request.param)
    (tmp_path / "dbt_project").mkdir()
    with mock.patch.dict(os.environ, {"BUSCO_HOME": str(tmp_path)}):
        for name in ("BUSCO_STATE_DIR", "BUSCO_PLATFORM", "BUSCO_GRAPH_DIR"):
            os.environ.pop(name, None)
        get_settings.cache_clear()
        yield tmp_path
    get_settings.cache_clear()
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """Returns the paths that other users can read, write or enter: the folder itself or anything in it."""
    paths = [folder, *folder.rglob("*")]
    return [str(path.relative_to(folder)) for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_a_new_state_folder_is_private_to_its_user(home: Path) -> None:
    assert open_to_others(get_settings().state) == []


def test_a_state_folder_that_was_open_to_everyone_is_closed_at_the_next_start(home: Path) -> None:
    for name in ("log", "run", "lakes/sample"):
        (home / ".busco" / name).mkdir(parents=True)
    for path in (home / ".busco").rglob("*"):
        path.chmod(0o755)
    (home / ".busco").chmod(0o777)
    state = get_settings().state
    # nobody else can reach what is below a closed folder
    assert open_to_others(state) == ["lakes/sample"]


def test_files_that_platform_processes_write_are_private_to_their_user(home: Path) -> None:
    log = home / ".busco/log/server.log"
    log.parent.mkdir(parents=True)
    log.write_text("before\n")
    state = get_settings().state
    process = processes.start(state, "server", [sys.executable, "-c", WRITES], dict(os.environ), state)
    try:
        with pytest.raises(BuscoError, match="exited while starting"):
            processes.wait_until(lambda: False, process, "it", limit=20)
    finally:
        processes.stop(state, "server")
    assert log.read_text() == "before\na line\n"
    assert open_to_others(state / "log") == open_to_others(state / "made") == []


def test_a_state_folder_that_belongs_to_another_user_is_refused(home: Path) -> None:
    """Its owner could read and change its content: PostgreSQL's password, and the graph that Airflow runs."""
    (home / ".busco").mkdir(mode=0o777)
    with (
        mock.patch("os.geteuid", return_value=(home / ".busco").stat().st_uid + 1),
        pytest.raises(BuscoError, match="belongs to another user"),
    ):
        get_settings()


def test_the_folder_of_the_airflow_graph_stays_open_to_the_airflow_containers(home: Path) -> None:
    (home / "graph").mkdir(mode=0o777)
    (home / "graph").chmod(0o777)
    with mock.patch.dict(os.environ, {"BUSCO_STATE_DIR": str(home / "graph"), "BUSCO_GRAPH_DIR": str(home / "graph")}):
        get_settings()
    assert stat.S_IMODE((home / "graph").stat().st_mode) == 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to switch to another user")
def test_another_user_of_the_machine_cannot_read_the_state_folder(home: Path) -> None:
    # not tmp_path, because pytest's folder is closed to other users as well
    state = Path("/var/tmp") / f"busco-{os.getpid()}"
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    try:
        log = state / "log/airflow.log"
        log.parent.mkdir(parents=True)
        log.write_text("canary")
        log.chmod(0o666)

        def read() -> int:
            nobody = pwd.getpwnam("nobody").pw_uid
            return subprocess.run(["cat", log], user=nobody, capture_output=True, check=False).returncode

        assert read() == 0
        with mock.patch.dict(os.environ, {"BUSCO_STATE_DIR": str(state)}):
            get_settings()
        assert read() != 0
    finally:
        subprocess.run(["rm", "-r", str(state)], check=True)
