"""Has Airflow parse DAG files as soon as they, or the dbt projects that they build, have changed.

Airflow parses a DAG file again when the file itself changes, and otherwise every few minutes. The graph of a dbt
project is in its manifest, whose changes Airflow doesn't see; and it ignores a change of a file that it is parsing at
that moment. The triggerer therefore looks for changes once a second, and requests a parse of the files by the same rows
in Airflow's database as Airflow's API `PUT /parseDagFile` (`DagPriorityParsingRequest`; decision 039).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from airflow.configuration import conf
from airflow.models.dag import DagModel, DagTag
from airflow.models.dagbag import DagPriorityParsingRequest
from airflow.models.errors import ParseImportError
from airflow.utils.session import create_session
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from busco.orchestration.dag_names import PROJECT_TAG
from busco.settings import Settings

_LOOK_EVERY = 1.0  # seconds
# Seconds after a change at which its DAG files are requested. Airflow drops a request for a file that it is parsing,
# perhaps as it was before the change, so the requests end only after two parses.
_REQUESTS = (0.0, 5.0, 15.0, 30.0, 60.0)
_ENOUGH = 2
# Seconds between requests for files that could not be imported, perhaps only because the machine was busy.
_RETRY_ERRORS = 30.0
_CHECK = "parse_check.py"  # shows dbt's message while a project can't be parsed

Stamp = tuple[int, int]


@dataclass
class _Change:
    """A DAG file that has to be parsed: since when, how often it was requested, and the parses since then."""

    since: float
    requests: int = 0
    parses: int = 0
    parsed_at: datetime | None = None

    def saw(self, parsed_at: datetime | None) -> None:
        if self.requests and parsed_at != self.parsed_at:
            self.parses += 1
        self.parsed_at = parsed_at

    def is_due(self, now: float) -> bool:
        return now >= self.since + _REQUESTS[self.requests]

    @property
    def is_over(self) -> bool:
        return self.requests == len(_REQUESTS) or self.parses >= _ENOUGH


@dataclass
class GraphChanges:
    """Requests a parse of the DAG files that have changed and, if a manifest or dbt's error message has changed, of the
    DAG files of all dbt projects."""

    settings: Settings
    _changes: dict[str, _Change] = field(default_factory=dict)
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._graphs, self._files = self._graph_stamps(), _dag_stamps()
        # Airflow parses all files when it starts, but perhaps began before the last change
        self._begins = time.monotonic() + _REQUESTS[1]
        self._errors = time.monotonic() + _RETRY_ERRORS

    def look(self) -> list[str]:
        """Looks for changes, at most once a second. Returns the DAG files that were requested."""
        now = time.monotonic()
        if now < self._next:
            return []
        self._next = now + _LOOK_EVERY
        graphs, files = self._graph_stamps(), _dag_stamps()
        changed = [file for file, stamp in files.items() if file in self._files and self._files[file] != stamp]
        if graphs != self._graphs or now >= self._begins:
            changed += _of_projects()
            self._begins = float("inf")
        self._graphs, self._files = graphs, files
        self._changes |= {file: _Change(now) for file in changed}
        requested = self._due(now)
        if now >= self._errors:
            self._errors = now + _RETRY_ERRORS
            requested += [file for file in _not_imported() if file not in requested]
        for file in requested:
            _request(file)
        return requested

    def _due(self, now: float) -> list[str]:
        if not self._changes:
            return []
        parsed = _parsed(self._changes)
        requested = []
        for file, change in list(self._changes.items()):
            change.saw(parsed.get(file))
            if not change.is_over and change.is_due(now):
                change.requests += 1
                requested.append(file)
            elif change.is_over:
                del self._changes[file]
        return requested

    def _graph_stamps(self) -> dict[str, Stamp]:
        return _stamps((*self.settings.manifests_made_here, self.settings.parse_error_path))


def _of_projects() -> list[str]:
    """Returns the DAG files of dbt projects, those that could not be imported, and the one that shows dbt's message."""
    tagged = select(DagModel.fileloc).join(DagTag, DagTag.dag_id == DagModel.dag_id).where(DagModel.is_active)
    with create_session() as session:
        found = {*session.scalars(tagged.where(DagTag.name.startswith(PROJECT_TAG, autoescape=True)))}
    return _existing({*found, *_not_imported(), str(dags_folder() / _CHECK)})


def _not_imported() -> list[str]:
    with create_session() as session:
        return _existing(session.scalars(select(ParseImportError.filename)))


def _existing(files: Iterable[str]) -> list[str]:
    """Leaves out files that don't exist: a request for one of them can end Airflow's process that parses files."""
    return sorted(file for file in files if file in _stamps([Path(file)]))


def _parsed(files: Iterable[str]) -> dict[str, datetime]:
    """Returns when Airflow last parsed these files; only of those that define a DAG."""
    times = select(DagModel.fileloc, func.max(DagModel.last_parsed_time)).group_by(DagModel.fileloc)
    with create_session() as session:
        return dict(session.execute(times.where(DagModel.fileloc.in_(list(files)))).all())


def _request(file: str) -> None:
    try:
        with create_session() as session:
            session.add(DagPriorityParsingRequest(fileloc=file))
    except IntegrityError:
        pass  # it was requested already


def dags_folder() -> Path:
    """Returns Airflow's folder of DAG files."""
    return Path(conf.get_mandatory_value("core", "dags_folder")).expanduser()


def _dag_stamps() -> dict[str, Stamp]:
    return _stamps(dags_folder().rglob("*.py"))


def _stamps(files: Iterable[Path]) -> dict[str, Stamp]:
    found = {}
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue
        found[str(file)] = (stat.st_mtime_ns, stat.st_ino)
    return found
