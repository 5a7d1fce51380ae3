"""Keeps Airflow's graph fresh: parses the dbt projects when one of their files is saved. Runs in dbt's environment.

A parse that succeeds replaces the manifest in one step. While one fails, the last good graph stays, and dbt's message
is kept for the DAG file `dags/parse_check.py`, whose import error it is.
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

from busco.environments import ask_for_parse, python, without_airflow
from busco.output import echo
from busco.settings import Settings, get_settings

NAME = "keeper"
Say = Callable[[str], None]

# what dbt reads of a project (dbt reference, "dbt_project.yml": its paths)
_READ = {".sql", ".yml", ".yaml", ".csv", ".md", ".py"}
_WRITTEN = {"target", "logs", "dbt_packages", "dbt_internal_packages"}  # what it writes into one
_SETTLED = 300  # milliseconds without a further change: an editor saves several files at once, or one of them twice
_LOOK = 500  # milliseconds after which it looks whether it is to end


def command(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The keeper's command line and environment.

    Raises:
        BuscoError: dbt's environment is not set up.
    """
    variables = without_airflow(dict(os.environ)) | {"BUSCO_LOCAL_ROLE": "none"}
    return [str(python(settings, "dbt")), "-m", "busco.embedded.keeper"], variables


def keep(settings: Settings, stop: threading.Event, say: Say) -> None:
    """Parses if anything was saved since the last parse, and then whenever something is, until `stop` is set."""
    from watchfiles import watch

    projects = {one.dbt_project.resolve(): one for one in settings.of_all_projects()}

    def counts(_: object, path: str) -> bool:
        return any(_counts(folder, Path(path)) for folder in projects)

    changes = watch(
        *projects, watch_filter=counts, stop_event=stop, step=_SETTLED, raise_interrupt=False, rust_timeout=_LOOK,
        yield_on_timeout=True,
    )  # fmt: skip
    # nothing is watched before the first of them is asked for: what is saved during the first parse comes after it
    next(changes, None)
    if any(is_stale(folder, one.manifest_path) for folder, one in projects.items()):
        parse(settings, say)
    for saved in changes:
        if saved:
            parse(settings, say)


def parse(settings: Settings, say: Say) -> bool:
    """One parse, in a process of its own: whatever a project's macros do, the keeper goes on. Whether it succeeded."""
    began = time.monotonic()
    words = [sys.executable, "-m", "busco", "dbt", "parse"]
    # whatever a project's macros do, they do it without credentials, as where an image is built
    variables = {**os.environ, "BUSCO_STATE_DIR": str(settings.state), "BUSCO_LOCAL_ROLE": "none"}
    done = subprocess.run(words, cwd=settings.home, env=variables, capture_output=True, text=True, check=False)
    file = settings.parse_error_path
    if done.returncode == 0:
        file.unlink(missing_ok=True)
        say(f"{done.stdout.strip().splitlines()[-1]} in {time.monotonic() - began:.1f} s")
    else:
        said = (done.stderr.strip() or done.stdout.strip()).removeprefix("error: ")
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        scratch.write_text(f"{said}\n")
        scratch.replace(file)
        say(f"the last good graph stays:\n{said}")
    ask_for_parse(settings)
    return done.returncode == 0


def _counts(folder: Path, path: Path) -> bool:
    """Whether a file is one that dbt reads of the project in `folder`."""
    if not path.is_relative_to(folder) or path.suffix not in _READ:
        return False
    return not any(part.startswith(".") or part in _WRITTEN for part in path.relative_to(folder).parts)


def is_stale(folder: Path, manifest: Path) -> bool:
    """Whether there is no manifest, or something was saved, added or deleted after it was written."""
    if not manifest.is_file():
        return True
    written = manifest.stat().st_mtime
    return any(path.stat().st_mtime > written for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    """What dbt reads of a project, and the folders that it is in: what was deleted changes its folder."""
    yield folder
    for path in folder.rglob("*"):
        if path.is_file() and _counts(folder, path):
            yield path
            yield path.parent


def main() -> None:
    """Runs until SIGTERM."""
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    keep(get_settings(), stop, echo)


if __name__ == "__main__":
    main()
