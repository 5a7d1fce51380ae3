"""Determines which Python environment (Airflow's or dbt's) this process runs in, and runs commands in the other one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal, NoReturn

from busco.errors import BuscoError
from busco.settings import Settings

Side = Literal["airflow", "dbt"]
_FOLDERS: dict[Side, str] = {"airflow": ".venv", "dbt": ".venv-dbt"}
_MARKS: dict[Side, str] = {"airflow": "airflow", "dbt": "duckdb"}
_VARIABLES: dict[Side, str] = {"airflow": "BUSCO_AIRFLOW_PYTHON", "dbt": "BUSCO_DBT_PYTHON"}


def here(side: Side) -> bool:
    """Whether this process runs in the given environment."""
    return importlib.util.find_spec(_MARKS[side]) is not None


def python(settings: Settings, side: Side) -> Path:
    """Returns an environment's Python interpreter.

    It is this process's own interpreter if the process runs in that environment; otherwise BUSCO_<SIDE>_PYTHON or, if
    that is not set, the interpreter in the project's `.venv` (Airflow) or `.venv-dbt` (dbt).

    Raises:
        BuscoError: the environment is not set up.
    """
    if here(side):
        return Path(sys.executable)
    given = os.environ.get(_VARIABLES[side])
    path = Path(given) if given else settings.home / _FOLDERS[side] / "bin" / "python"
    if not path.exists():
        raise BuscoError(f"{side}'s Python environment is not set up ({path.parent.parent.name})", "run: make setup")
    return path


def hand_over(settings: Settings, side: Side, arguments: list[str]) -> NoReturn:
    """Replaces this process with `busco <arguments>` in the given environment."""
    interpreter = str(python(settings, side))
    os.execv(interpreter, [interpreter, "-m", "busco", *arguments])  # noqa: S606 (deliberately without a shell)


def without_airflow(variables: dict[str, str]) -> dict[str, str]:
    """Returns `variables` without Airflow's own, which contain secrets that only Airflow's processes need."""
    return {name: value for name, value in variables.items() if not name.startswith("AIRFLOW_")}


def code_version(settings: Settings) -> str:
    """Returns the commit of the running code, followed by `+` if any file has changed since; '' outside of git."""
    if given := os.environ.get("BUSCO_CODE_VERSION"):
        return given
    # without locks, so that no command of the user finds the index locked
    git = ["git", "--no-optional-locks", "-C", str(settings.home)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
