"""Keeps Airflow's graph up to date: parses the dbt projects whenever one of their files is saved.

Runs in dbt's environment. A successful parse replaces the manifest atomically. If a parse fails, Airflow keeps the last
good graph until a parse succeeds, and dbt's message is saved for the DAG file `dags/parse_check.py`, which shows it as
an import error.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from busco.environments import python, without_airflow
from busco.output import echo
from busco.settings import Settings, get_settings

NAME = "keeper"
Say = Callable[[str], None]

# The suffixes of the files that dbt reads in a project (dbt reference, "dbt_project.yml": the settings for paths).
_READ = {".sql", ".yml", ".yaml", ".csv", ".md", ".py"}
_WRITTEN = {"target", "logs", "dbt_packages", "dbt_internal_packages"}  # folders that dbt writes to
_SETTLED = 300  # milliseconds to wait for more changes: editors may save several files at once, or a file twice
_LOOK = 500  # milliseconds between checks of the stop event


def command(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Returns the keeper's command line and environment.

    Raises:
        BuscoError: dbt's environment is not set up.
    """
    variables = without_airflow(dict(os.environ)) | {"BUSCO_LOCAL_ROLE": "none"}
    return [str(python(settings, "dbt")), "-m", "busco.embedded.keeper"], variables


def keep(settings: Settings, stop: threading.Event, say: Say) -> None:
    """Parses now if a file was saved since the last parse, and then after every save until `stop` is set."""
    from watchfiles import watch

    projects = {one.dbt_project.resolve(): one for one in settings.of_all_projects()}

    def counts(_: object, path: str) -> bool:
        return any(_counts(folder, Path(path)) for folder in projects)

    changes = watch(
        *projects, watch_filter=counts, stop_event=stop, step=_SETTLED, raise_interrupt=False, rust_timeout=_LOOK,
        yield_on_timeout=True,
    )  # fmt: skip
    # Watching begins with the first `next`, so that files saved during the first parse are reported after that parse.
    next(changes, None)
    if any(is_stale(folder, one.manifest_path) for folder, one in projects.items()):
        parse(settings, say)
    for saved in changes:
        if saved:
            parse(settings, say)


def parse(settings: Settings, say: Say) -> bool:
    """Parses once, in a separate process so that no macro can end the keeper; returns whether the parse succeeded."""
    began = time.monotonic()
    command_line = [sys.executable, "-m", "busco", "dbt", "parse"]
    # A project's macros run without credentials, as in an image build.
    variables = {**os.environ, "BUSCO_STATE_DIR": str(settings.state), "BUSCO_LOCAL_ROLE": "none"}
    done = subprocess.run(command_line, cwd=settings.home, env=variables, capture_output=True, text=True, check=False)
    file = settings.parse_error_path
    if done.returncode == 0:
        file.unlink(missing_ok=True)
        say(f"{done.stdout.strip().splitlines()[-1]} in {time.monotonic() - began:.1f} s")
    else:
        message = (done.stderr.strip() or done.stdout.strip()).removeprefix("error: ")
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        scratch.write_text(f"{message}\n")
        scratch.replace(file)
        say(f"parsing failed (Airflow keeps the last good graph):\n{message}")
    return done.returncode == 0


def _counts(folder: Path, path: Path) -> bool:
    """Whether dbt reads this file when it parses the project in `folder`."""
    if not path.is_relative_to(folder) or path.suffix not in _READ:
        return False
    return not any(part.startswith(".") or part in _WRITTEN for part in path.relative_to(folder).parts)


def is_stale(folder: Path, manifest: Path) -> bool:
    """Whether the manifest is missing, or a file was saved, added or deleted after the manifest was written."""
    if not manifest.is_file():
        return True
    written = manifest.stat().st_mtime
    return any(path.stat().st_mtime > written for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files that dbt reads in a project, and their folders, whose mtime changes when a file is deleted."""
    yield folder
    for path in folder.rglob("*"):
        if path.is_file() and _counts(folder, path):
            yield path
            yield path.parent


def main() -> None:
    """Runs the keeper until SIGTERM or SIGINT."""
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    keep(get_settings(), stop, echo)


if __name__ == "__main__":
    main()
