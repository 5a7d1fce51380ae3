"""The two Python environments: which one this is, and how to reach the other."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn

from busco.errors import BuscoError
from busco.settings import Settings

Side = Literal["airflow", "dbt"]
_FOLDERS: dict[Side, str] = {"airflow": ".venv", "dbt": ".venv-dbt"}
_MARKS: dict[Side, str] = {"airflow": "airflow", "dbt": "duckdb"}
_VARIABLES: dict[Side, str] = {"airflow": "BUSCO_AIRFLOW_PYTHON", "dbt": "BUSCO_DBT_PYTHON"}


def here(side: Side) -> bool:
    """Whether this process runs in that environment."""
    return importlib.util.find_spec(_MARKS[side]) is not None


def python(settings: Settings, side: Side) -> Path:
    """The interpreter of an environment: this one, BUSCO_<SIDE>_PYTHON, or the project's own.

    Raises:
        BuscoError: there is none.
    """
    if here(side):
        return Path(sys.executable)
    given = os.environ.get(_VARIABLES[side])
    path = Path(given) if given else settings.home / _FOLDERS[side] / "bin" / "python"
    if not path.exists():
        raise BuscoError(f"{side}'s Python environment is not set up ({path.parent.parent.name})", "run: make setup")
    return path


def hand_over(settings: Settings, side: Side, arguments: list[str]) -> NoReturn:
    """Becomes `busco <arguments>` in the other environment; standard streams and exit status are the command's."""
    interpreter = str(python(settings, side))
    os.execv(interpreter, [interpreter, "-m", "busco", *arguments])  # noqa: S606 (no shell is meant)


def without_airflow(variables: dict[str, str]) -> dict[str, str]:
    """An environment for children that are not Airflow: its variables hold secrets that nobody else needs."""
    return {name: value for name, value in variables.items() if not name.startswith("AIRFLOW_")}


def code_version(settings: Settings) -> str:
    """The commit of the code that runs, with `+` where files differ from it; '' outside of git."""
    if given := os.environ.get("BUSCO_CODE_VERSION"):
        return given
    git = ["git", "-C", str(settings.home)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")


def ask_for_parse(settings: Settings) -> None:
    """Has Airflow parse the DAG files anew: it does so at once with a file that is younger than its last parse
    (`file_parsing_sort_mode`), with others once in a while. Where they can't be touched it takes that while."""
    for file in (settings.home / "dags").glob("*.py"):
        with suppress(OSError):
            file.touch()
