"""Derives what the site shows about a release, and about the releases before it, from the lake's records.

None of this is stored: it follows from `current.json`, the records of releases, and the site's files. So a rollback or
a hold shows up with the next request (docs/decisions/042-pages-for-data-consumers.md).
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Current, Published, Release, utc_now
from busco.lake.releases import missing_pointer
from busco.site.files import FORMAT, NOTHING, Shown, content_with, entry_with, read_content, read_index
from busco.site.states import states

# The newest releases that the history has.
HISTORY = 50
_THREADS = 16
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# The clocks of two machines that publish can differ by this much.
_SKEW = timedelta(days=1)


@dataclass(frozen=True)
class Site:
    """The site's data, for somebody who may read some of the lake's dbt projects, at one moment.

    Records of releases and the site's files never change, so they are read once per object.

    Args:
        projects: the identities of the projects. Tables of other projects are left out, except for bronze tables that
            one of these projects reads.
    """

    store: ObjectStore
    environment: EnvironmentLayout
    projects: frozenset[str]

    @property
    def revision(self) -> str:
        """A text that changes whenever the state of a release may have changed: another release is live, or a hold."""
        stored = self.store.get(self.environment.current)
        return stored.etag if stored is not None else ""

    # -- data -----------------------------------------------------------------------------------------------------

    def state(self, release_id: str = "") -> dict[str, Any] | None:
        """Returns a release's tables and state; the live release's if no id is given.

        Returns None if nothing has been published yet, or if the release isn't in the history.
        """
        current = self._current
        if current is None:
            return None
        shown = self._shown(current, release_id)
        if shown is None:
            return None
        tables = self._tables(shown)
        with ThreadPoolExecutor(_THREADS) as pool:
            since = list(pool.map(self._since, tables.values()))
        return {
            "format": FORMAT,
            "environment": self.environment.environment,
            "live": current.release,
            "hold": None if current.hold is None else {
                "who": current.hold.who, "when": current.hold.when.isoformat(), "reason": current.hold.reason,
            },
            "previous": shown.previous,
            **self._about(shown),
            "tables": {
                table: {
                    "version": one.version,
                    "rows": one.rows,
                    "bytes": one.bytes,
                    "published_at": then.published_at if then is not None else None,
                    "run": then.run if then is not None else None,
                    "project": one.project,
                    **({"stale": list(shown.stale[table])} if table in shown.stale else {}),
                }
                for (table, one), then in zip(tables.items(), since, strict=True)
            },
            "projects": {
                project: {"title": shown.names.get(project, project), "has_site": self._brief(prefix) is not None}
                for project, prefix in shown.docs_by_project().items()
                if project in self.projects
            },
        }  # fmt: skip

    def history(self, release_id: str = "", limit: int = HISTORY) -> dict[str, Any] | None:
        """Returns the releases that were live until this one, newest first, each with the tables that it changed, of
        which those that the release before did not have are `new`.

        `next` is the release with which the history goes on, or None. `complete` says whether the first release of all
        is in the list: records of releases can be missing. Returns None if the release isn't in the history.

        Args:
            release_id: the release with which the list begins; the live one if it is empty.
            limit: the most releases that are returned.
        """
        current = self._current
        if current is None:
            return {"format": FORMAT, "releases": [], "next": None, "complete": True} if not release_id else None
        release = self._shown(current, release_id)
        if release is None:
            return None
        found: list[dict[str, Any]] = []
        is_complete = False
        while release is not None and len(found) < limit:
            before = self._release(release.previous) if release.previous else None
            now, then = self._tables(release), self._tables(before) if before else {}
            # a raw table is listed only if an index has it, so it can be in a release without being listed there
            old = before.tables if before else {}
            is_known = before is not None or not release.previous
            found.append(
                {
                    **self._about(release),
                    "project": release.project if release.project in self.projects else "",
                    "changes": {
                        table: {
                            "version": one.version,
                            "rows": one.rows,
                            "bytes": one.bytes,
                            **({"new": True} if is_known and table not in old else {}),
                        }
                        for table, one in now.items()
                        if table not in old or old[table].version != one.version
                    },
                    "described": self._redescribed(now, release, before) if before else [],
                    "dropped": sorted(set(then) - set(release.tables)),
                }
            )
            is_complete = not release.previous
            release = before
        return {
            "format": FORMAT,
            "releases": found,
            "next": release.release if release is not None else None,
            "complete": is_complete,
        }

    def _redescribed(self, tables: Iterable[str], release: Release, before: Release) -> list[str]:
        """Returns which of these tables have other descriptions than in the release before, but the same version."""
        found = set()
        old = before.docs_by_project()
        for project, prefix in release.docs_by_project().items():
            if project in self.projects and old.get(project) not in (None, prefix):
                then, now = self._brief(old[project]) or {}, self._brief(prefix) or {}
                for table in tables:
                    if table in then and table in now and then[table].is_other_text(now[table]):
                        found.add(table)
        return sorted(found)

    def index(self, project: str, release_id: str = "") -> dict[str, Any] | None:
        """Returns a project's index in a release; None if there is none, or it may not be read.

        It has values only of columns that may be shown today (`_shown_today`).
        """
        index = self._index(self._docs(project, release_id))
        if index is None:
            return None
        tables = {table: entry_with(entry, self._shown_today(table)) for table, entry in index["tables"].items()}
        return {**index, "tables": tables}

    def content(self, project: str, table: str, release_id: str = "") -> bytes | None:
        """Returns the content file of a project's table in a release, as JSON; None if there is none.

        It has values only of columns that may be shown today (`_shown_today`).
        """
        described = (self._brief(self._docs(project, release_id)) or {}).get(table)
        body = read_content(self.store, described.key, project, table) if described is not None else None
        if body is None or described is None:
            return None
        shown = self._shown_today(table)
        if self._is_live(project, table, described) and shown.personal <= described.personal:
            return body
        try:
            clean = content_with(json.loads(body), shown)
        except ValueError:
            # what may not be shown can't be found in it
            return None
        return json.dumps(clean, ensure_ascii=False).encode(errors="replace")

    def tables_of(self, project: str, release_id: str = "") -> dict[str, str]:
        """Returns the tables that a project's index in a release has, by the unique ids of their nodes."""
        brief = self._brief(self._docs(project, release_id)) or {}
        return {one.unique_id: table for table, one in brief.items()}

    def catalog(self, release_id: str = "") -> dict[str, Any] | None:
        """Returns a release's tables, columns and states in one document, for tools (docs/catalog.md)."""
        state = self.state(release_id)
        if state is None:
            return None
        entries: dict[str, dict[str, Any]] = {}
        for project in state["projects"]:
            index = self.index(project, state["release"])
            for table, entry in (index or {"tables": {}})["tables"].items():
                is_own = table in state["tables"] and state["tables"][table]["project"] == project
                # several projects can describe a raw table; what its own project says is best
                if is_own or table not in entries:
                    entries[table] = entry
        published, is_live = state["tables"], state["release"] == state["live"]
        # an older release is as late as it was when it was published
        now = utc_now() if is_live else datetime.fromisoformat(state["published_at"])
        found = states(entries, published, is_held=is_live and state["hold"] is not None, now=now)
        tables = {
            table: {
                **published[table],
                **{key: entry[key] for key in entry if key not in ("content", "columns", "types")},
                "columns": _columns(entry),
                "state": found[table],
            }
            for table, entry in entries.items()
            if table in published
        }
        about = ("format", "environment", "release", "published_at", "kind", "who", "reason", "hold")
        return {**{key: state[key] for key in about}, "tables": tables}

    def _about(self, release: Release) -> dict[str, Any]:
        """Returns what a release says about itself; the run and the code only if its project may be read."""
        is_readable = release.project in self.projects
        return {
            "release": release.release,
            "kind": release.kind,
            "published_at": release.created_at.isoformat(),
            "who": release.who,
            "reason": release.reason,
            "run": release.run if is_readable else "",
            "code_version": release.code_version if is_readable else "",
            "rolled_back_to": release.rolled_back_to,
        }

    # -- what may be shown ----------------------------------------------------------------------------------------

    def _shown_today(self, table: str) -> Shown:
        """Returns which columns of a table may have values on the pages of any release, older ones too.

        A column may have been marked as personal since a release. So columns have values only if the live release has
        them, and no project that describes the live version says that they are personal. After a rollback, marks of
        the releases that were rolled back count too. A table that is not in the live release, or whose live version no
        index describes, has no values.
        """
        if table not in self._shown_columns:
            self._shown_columns[table] = self._determined(table)
        return self._shown_columns[table]

    def _determined(self, table: str) -> Shown:
        live = self._chain[0] if self._chain else None
        published = live.tables.get(table) if live is not None else None
        if live is None or published is None:
            return NOTHING
        columns: set[str] = set()
        for prefix in live.docs_by_project().values():
            entry = (self._index(prefix) or {"tables": {}})["tables"].get(table)
            if entry is not None and entry["content"]["version"] == published.version:
                columns |= {column[0] for column in entry["columns"]}
        personal: set[str] = set()
        for release in self._chain:
            for prefix in release.docs_by_project().values():
                described = (self._brief(prefix) or {}).get(table)
                personal |= described.personal if described is not None else set()
        return Shown.but(columns, personal)

    def _is_live(self, project: str, table: str, described: _Described) -> bool:
        """Returns whether this is how the live release, and the newest one that a run made, describe the live version
        of a table."""
        briefs = [self._brief(release.docs_by_project().get(project, "")) for release in self._chain]
        published = self._chain[0].tables.get(table) if self._chain else None
        return (
            published is not None
            and published.version == described.version
            and all((brief or {}).get(table) == described for brief in briefs)
        )

    @cached_property
    def _shown_columns(self) -> dict[str, Shown]:
        return {}

    @cached_property
    def _chain(self) -> tuple[Release, ...]:
        """The live release, and if it is a rollback, the releases before it up to the newest one that a run made."""
        found: list[Release] = []
        current = self._current
        release = self._release(current.release) if current is not None else None
        while release is not None:
            found.append(release)
            is_rollback = release.kind == "rollback" and release.previous
            release = self._release(release.previous) if is_rollback and release.previous else None
        return tuple(found)

    # -- records --------------------------------------------------------------------------------------------------

    @cached_property
    def _current(self) -> Current | None:
        """The pointer to the live release, as it was when it was first needed."""
        return self.store.read(self.environment.current, Current)

    def _shown(self, current: Current, release_id: str) -> Release | None:
        """Returns a release that is or was live; None if there is no such release (P1)."""
        live = self._release(current.release)
        if live is None:
            raise missing_pointer(self.store, self.environment)
        if release_id in ("", current.release):
            return live
        # the history can have thousands of releases, so it is followed only for a release that exists, and only so far
        wanted = self._release(release_id) if _RELEASE.fullmatch(release_id) else None
        release: Release | None = live if wanted is not None else None
        while release is not None and wanted is not None and release.release != release_id:
            is_older = release.created_at < wanted.created_at - _SKEW
            release = self._release(release.previous) if release.previous and not is_older else None
        return release

    def _docs(self, project: str, release_id: str) -> str:
        """Returns the prefix of a project's docs in a release; '' if there are none, or they may not be read."""
        current = self._current if project in self.projects else None
        shown = self._shown(current, release_id) if current is not None else None
        return shown.docs_by_project().get(project, "") if shown is not None else ""

    def _tables(self, release: Release) -> dict[str, Published]:
        """Returns the tables of a release that may be read."""
        docs = release.docs_by_project()
        described: set[str] = set()
        for project in self.projects & docs.keys():
            described |= (self._brief(docs[project]) or {}).keys()
        return {
            table: one
            for table, one in sorted(release.tables.items())
            if one.project in self.projects or (table.startswith("bronze.") and table in described)
        }

    def _since(self, published: Published) -> _Since | None:
        """Returns the release with which a version went live; None if that is not known."""
        with contextlib.suppress(_Missing):
            return _since_at(_Key(self.store, self.environment.release(published.since))) if published.since else None
        return None

    def _release(self, release_id: str) -> Release | None:
        with contextlib.suppress(_Missing):
            return _release_at(_Key(self.store, self.environment.release(release_id)))
        return None

    def _index(self, prefix: str) -> dict[str, Any] | None:
        with contextlib.suppress(_Missing):
            return _index_at(_Key(self.store, prefix))
        return None

    def _brief(self, prefix: str) -> Mapping[str, _Described] | None:
        with contextlib.suppress(_Missing):
            return _brief_at(_Key(self.store, prefix))
        return None


def _columns(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the columns of an entry of an index for the catalog. An older index has no types and no key."""
    types = entry.get("types") or [None] * len(entry["columns"])
    return [
        {"name": name, "type": kind, "key": name in entry.get("key", ()), "description": text, "synonyms": synonyms}
        for (name, text, synonyms), kind in zip(entry["columns"], types, strict=True)
    ]


class _Missing(Exception):
    """There is no such object. (`lru_cache` keeps no exceptions, so it is looked for again at the next request.)"""


@dataclass(frozen=True)
class _Key:
    """An object that never changes, as the key of a cache. The client of the store is not part of its identity."""

    store: ObjectStore
    key: str

    def __hash__(self) -> int:
        return hash((self.store.bucket, self.key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.store.bucket, self.key) == (other.store.bucket, other.key)


@dataclass(frozen=True, slots=True)
class _Since:
    published_at: str
    run: str


@dataclass(frozen=True, slots=True)
class _Described:
    """What is needed of a table's entry in an index: its node's unique id, its version, the hash of what the project
    says about it, its content file, and its personal columns in lower case."""

    unique_id: str
    version: str
    hash: str
    key: str
    personal: frozenset[str]

    def is_other_text(self, other: _Described) -> bool:
        """Returns whether the project says something else about the same version."""
        return self.version == other.version and self.hash != other.hash


# A release with 1,000 tables takes about 3 MB, and an index with 300,000 columns about 150 MB. So only a few of them
# are kept in each of the webserver's processes, besides the parts that are needed of many.


@functools.lru_cache(maxsize=64)
def _release_at(key: _Key) -> Release:
    release = key.store.read(key.key, Release)
    if release is None:
        raise _Missing
    return release


@functools.lru_cache(maxsize=4096)
def _since_at(key: _Key) -> _Since:
    release = _release_at(key)
    return _Since(release.created_at.isoformat(), release.run)


@functools.lru_cache(maxsize=4)
def _index_at(key: _Key) -> dict[str, Any] | None:
    """Returns an index; None if it is damaged."""
    try:
        index = read_index(key.store, key.key)
    except ValueError:
        return None
    if index is None:
        raise _Missing
    return index


@functools.lru_cache(maxsize=256)
def _brief_at(key: _Key) -> Mapping[str, _Described] | None:
    index = _index_at(key)
    if index is None:
        return None
    return {
        table: _Described(
            entry["unique_id"],
            entry["content"]["version"],
            entry["content"]["hash"],
            entry["content"]["key"],
            frozenset(name.lower() for name in entry["personal"]),
        )
        for table, entry in index["tables"].items()
    }
