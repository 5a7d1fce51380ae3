"""Has Airflow parse the DAG files of dbt projects again as soon as a project has been parsed.

Airflow parses a DAG file again when the file itself changes, and otherwise every few minutes. The graph of a dbt
project is in its manifest, whose changes Airflow doesn't see. The triggerer therefore looks at the manifests twice a
second, and requests a parse of the files that read them, by the same rows in Airflow's database as Airflow's API `PUT
/parseDagFile` (`DagPriorityParsingRequest`; decision 039).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from airflow import settings as airflow_settings
from airflow.models.dag import DagModel, DagTag
from airflow.models.dagbag import DagPriorityParsingRequest
from airflow.models.errors import ParseImportError
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from busco.orchestration.dag_names import PROJECT_TAG
from busco.settings import Settings

_LOOK_EVERY = 0.5  # seconds
# Airflow drops a request for a file that it is parsing at that moment, perhaps with the old manifest. The request is
# therefore made again after this many seconds; a graph of 1,000 models is parsed in two (bench/RESULTS.md).
_AGAIN_AFTER = 5.0
_CHECK = "parse_check.py"  # shows dbt's message while a project can't be parsed


class GraphChanges:
    """Requests a parse of the dbt projects' DAG files whenever a manifest, or dbt's error message, has changed."""

    def __init__(self, settings: Settings) -> None:
        self._files = [one.manifest_path for one in settings.of_all_projects()] + [settings.parse_error_path]
        # Airflow parses every DAG file when it starts, so only a change from now on needs a request
        self._seen = self._state()
        self._next, self._due = 0.0, [time.monotonic() + _AGAIN_AFTER]

    def look(self) -> list[str]:
        """Looks for changes, at most twice a second. Returns the DAG files that were requested."""
        now = time.monotonic()
        if now < self._next:
            return []
        self._next = now + _LOOK_EVERY
        if (state := self._state()) != self._seen:
            self._seen, self._due = state, [now, now + _AGAIN_AFTER]
        if not self._due or now < self._due[0]:
            return []
        self._due.pop(0)
        return request_parse()

    def _state(self) -> list[tuple[int, int] | None]:
        return [_stamp(file) for file in self._files]


def request_parse() -> list[str]:
    """Requests that Airflow parse these files next: those of dbt projects, those that could not be imported, and the
    one that shows dbt's message. Returns their paths."""
    with create_session() as session:
        files = _of_projects(session)
    check = Path(airflow_settings.DAGS_FOLDER, _CHECK)
    if check.is_file():
        files.add(str(check))
    for file in files:
        _request(file)
    return sorted(files)


def _of_projects(session: Session) -> set[str]:
    tagged = select(DagModel.fileloc).join(DagTag, DagTag.dag_id == DagModel.dag_id)
    found: Iterable[str] = session.scalars(tagged.where(DagTag.name.startswith(PROJECT_TAG, autoescape=True)))
    return {*found, *session.scalars(select(ParseImportError.filename))}


def _request(file: str) -> None:
    try:
        with create_session() as session:
            session.add(DagPriorityParsingRequest(fileloc=file))
    except IntegrityError:
        pass  # it was requested already


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
