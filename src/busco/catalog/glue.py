"""Shows prod's live release in Glue; a single UpdateTable call switches a table's version (rules G1 to G4)."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from botocore.exceptions import ClientError

from busco.catalog.glue_calls import Calls, Unanswered, Unavailable, error_code
from busco.catalog.glue_calls import client_options as client_options
from busco.catalog.glue_entries import Entries, Unreadable
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout, docs_page, split_table
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.records import Current, Release
from busco.lake.releases import Live, missing_pointer, read_live
from busco.settings import GLUE_CALLS

_HTML = "text/html; charset=utf-8"
# The errors that mean that someone else has changed the table since it was read.
_CONFLICTS = frozenset({"ConcurrentModificationException", "AlreadyExistsException", "EntityNotFoundException"})
# While a sync still has tables to switch, it rechecks which release is live after this many seconds. The result does
# not depend on this check, but the sooner a sync starts over, the sooner readers see the newest release.
_CHECKED_EVERY = 1.0

# The entries in Glue, by table (such as `gold.fct_orders`).
Found = Mapping[str, dict[str, Any]]


class _MovedOn(Exception):
    """Another release went live while tables were being switched."""


@dataclass(frozen=True)
class Shown:
    """The changes that a sync made, as sorted table names such as `busco_gold.fct_orders`."""

    release: str
    created: tuple[str, ...]
    updated: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: tuple[str, ...]


def sync(
    glue: Any,
    store: ObjectStore,
    environment: EnvironmentLayout,
    database_of: Callable[[str], str],
    layers: tuple[str, ...],
    at_once: int = GLUE_CALLS,
) -> Shown | None:
    """Makes Glue and `docs/index.html` show the live release; returns None if nothing has been published yet.

    Only entries that differ from what they should be are written (G2), starting with those that must point to other
    data. If another release goes live in the meantime, the sync starts over. It can be killed and repeated safely.

    A sync that was overtaken never replaces what a newer release's sync has shown (G1). It reads all entries, with
    their VersionIds, before it reads current.json. If a release that goes live later has a different version of a
    table, the table's entry has to name a release that was not yet live when this sync read it (`Published.since`). So
    the newer sync writes the entry, which changes its VersionId, and this sync's UpdateTable fails.

    Args:
        glue: a boto3 Glue client with `client_options`.
        database_of: returns the Glue database of a layer.
        at_once: the number of concurrent calls to Glue.

    Raises:
        BuscoError: the environment is not prod (G1), a database or current.json is missing, or the records or metadata
            of some tables are missing; the entries of these tables are left unchanged (G4).
        ClientError: Glue refused calls for some tables; all others show the live release.
        ClientError, BotoCoreError: Glue is not responding, or has throttled every call for two minutes.
    """
    if environment.environment != "prod":
        raise BuscoError(f"Glue only shows prod, not {environment.environment}")
    if read_live(store, environment) is None:
        return None
    calls = Calls(glue, at_once)
    try:
        while True:
            found = read_entries(calls, database_of, layers)
            live = _read_live(store, environment)
            with contextlib.suppress(_MovedOn):
                return _Sync(calls, store, environment, database_of, live).run(found)
    except Unavailable as failed:
        raise failed.error from failed


def _read_live(store: ObjectStore, environment: EnvironmentLayout) -> Live:
    """Returns the live release of an environment in which one was already live.

    Raises:
        BuscoError: current.json has been deleted.
    """
    live = read_live(store, environment)
    if live is None:
        raise missing_pointer(store, environment)
    return live


def read_entries(calls: Calls, database_of: Callable[[str], str], layers: tuple[str, ...]) -> Found:
    """Returns all entries in the databases of all layers."""

    def of_layer(layer: str) -> list[tuple[str, dict[str, Any]]]:
        entries: list[tuple[str, dict[str, Any]]] = []
        more: dict[str, str] = {}
        while True:
            try:
                page = calls.read("get_tables", DatabaseName=database_of(layer), **more)
            except ClientError as error:
                if error_code(error) == "EntityNotFoundException":
                    raise _no_database(database_of(layer)) from error
                raise
            entries += ((f"{layer}.{entry['Name']}", entry) for entry in page["TableList"])
            if not page.get("NextToken"):
                return entries
            more = {"NextToken": page["NextToken"]}

    return dict(entry for entries in calls.each(of_layer, layers) for entry in entries)


class _Sync:
    """Shows one release."""

    def __init__(
        self,
        calls: Calls,
        store: ObjectStore,
        environment: EnvironmentLayout,
        database_of: Callable[[str], str],
        live: Live,
    ) -> None:
        self.calls, self.store, self.environment = calls, store, environment
        self.database_of, self.live = database_of, live
        self.entries = Entries(store, environment, live.release)
        self.done: dict[str, list[str]] = {"created": [], "updated": [], "deleted": [], "unchanged": []}
        self.unreadable: list[str] = []
        self.checked = time.monotonic()

    def run(self, found: Found) -> Shown:
        """Shows the release.

        Args:
            found: all entries, read before `live`.

        Raises:
            _MovedOn: another release has gone live.
        """
        release = self.live.release
        tables = sorted(release.tables)
        right = self.calls.each(lambda table: self._is_right(table, found.get(table)), tables)
        due = [table for table, is_right in zip(tables, right, strict=True) if not is_right]
        for table in release.tables.keys() - due:
            self._note("unchanged", table)
        due.sort(key=lambda table: not self.entries.moves(table, found.get(table)))
        self.unreadable += self._without_metadata(due)
        readable = [table for table in due if table not in self.unreadable]
        refused = self.calls.attempt(lambda table: self._switch_if_readable(table, found.get(table)), readable)
        others = [
            table
            for table, entry in found.items()
            if table not in release.tables and self.entries.is_ours(table, entry)
        ]
        refused += self.calls.attempt(self._delete, others)
        refused += self.calls.attempt(self._show_docs, [release])
        self._still_live()
        if refused:
            raise refused[0]
        if self.unreadable:
            raise BuscoError(
                "the records or the Iceberg metadata of these tables do not exist or can't be read: "
                f"{', '.join(sorted(self.unreadable))}; all other tables show the live release",
                "restore them: busco release repair",
            )
        done = {kind: tuple(sorted(names)) for kind, names in self.done.items()}
        return Shown(release=release.release, **done)

    def _is_right(self, table: str, found: dict[str, Any] | None) -> bool:
        """Returns whether a table's entry already shows the release; false if this can't be determined."""
        try:
            return found is not None and self.entries.shows(table, found)
        except (Unreadable, ClientError):
            return False  # `switch` will fail in the same way, and that failure is reported

    def _switch_if_readable(self, table: str, found: dict[str, Any] | None) -> None:
        """Switches a table, unless the record of its version is missing or damaged (G4)."""
        try:
            self.switch(table, found)
        except Unreadable:
            self.unreadable.append(table)

    def _without_metadata(self, tables: Sequence[str]) -> list[str]:
        """Returns which of these tables have no metadata: Glue must not point to metadata that does not exist (G4)."""
        by_key = {self.live.release.tables[table].metadata: table for table in tables}
        return [by_key[key] for key in self.store.missing(by_key)]

    def switch(self, table: str, found: dict[str, Any] | None) -> None:
        """Switches a table to the release's version.

        If someone else has changed the table since it was read, or a call gets no answer, the table is read again, then
        current.json, and only then is the table written again.

        Args:
            found: the table's entry, read before `live`; None if there was none.
        """
        if time.monotonic() - self.checked > _CHECKED_EVERY:
            self._still_live()
        unanswered = ""
        for attempt in itertools.count(1):
            try:
                self._note(self._write(table, found), table)
                return
            except Unanswered as lost:
                unanswered = "created" if found is None else "updated"
                self.calls.pause_after(attempt, lost)
            except ClientError as error:
                if error_code(error) == "EntityNotFoundException" and found is None:
                    raise _no_database(self._database(table)) from error
                if error_code(error) not in _CONFLICTS:
                    error.add_note(f"the table is {self._name(table)}")
                    raise
            found = self._get(table)
            self._still_live()
            if found is not None and self.entries.shows(table, found):
                self._note(unanswered or "unchanged", table)
                return

    def _write(self, table: str, found: dict[str, Any] | None) -> str:
        """Writes a table's entry if nobody has changed it since it was read, and returns what was done."""
        entry, database = self.entries.table_input(table, found), self._database(table)
        if found is None:
            self.calls.write("create_table", DatabaseName=database, TableInput=entry)
            return "created"
        # without VersionId, Glue would replace an entry that was written in the meantime
        self.calls.write(
            "update_table", DatabaseName=database, TableInput=entry, VersionId=found["VersionId"], SkipArchive=True
        )
        return "updated"

    def _delete(self, table: str) -> None:
        """Deletes a table that the release does not have.

        DeleteTable does not accept a VersionId. So the table is read again right before the call, because someone may
        have created a table of their own with that name. The live release is read again right after the call: if
        another release is live, its sync may have just created the table, so the table is created again at once.
        """
        lost: Unanswered | None = None
        for attempt in itertools.count():
            if lost is not None:
                self.calls.pause_after(attempt, lost)
            found = self._get(table)
            if found is None and lost is not None:
                self._note("deleted", table)
            if found is None or not self.entries.is_ours(table, found):
                return
            self._still_live()
            try:
                self.calls.write("delete_table", DatabaseName=self._database(table), Name=split_table(table)[1])
                self._note("deleted", table)
                return
            except Unanswered as error:
                lost = error
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    error.add_note(f"the table is {self._name(table)}")
                    raise
                return
            finally:
                self._restore_if_live(table)

    def _restore_if_live(self, table: str) -> None:
        """Recreates a table that was just deleted, if another release has gone live and has that table."""
        try:
            self._still_live()
        except _MovedOn:
            while True:
                found, live = self._get(table), _read_live(self.store, self.environment)
                with contextlib.suppress(_MovedOn):
                    if found is None and table in live.release.tables:
                        newer = _Sync(self.calls, self.store, self.environment, self.database_of, live)
                        newer._switch_if_readable(table, found)
                    break
            raise

    def _get(self, table: str) -> dict[str, Any] | None:
        try:
            answer = self.calls.read("get_table", DatabaseName=self._database(table), Name=split_table(table)[1])
        except ClientError as error:
            if error_code(error) == "EntityNotFoundException":
                return None
            raise
        return dict(answer["Table"])

    def _still_live(self) -> None:
        now = self.store.read(self.environment.current, Current)
        if now is None or now.release != self.live.current.release:
            raise _MovedOn
        self.checked = time.monotonic()

    def _note(self, done: str, table: str) -> None:
        self.done[done].append(self._name(table))

    def _name(self, table: str) -> str:
        """Returns a table's name in Glue, such as `busco_gold.fct_orders`."""
        return f"{self._database(table)}.{split_table(table)[1]}"

    def _database(self, table: str) -> str:
        return self.database_of(split_table(table)[0])

    def _show_docs(self, release: Release) -> None:
        """Shows a single project's page as `docs/index.html`.

        If there are several projects, `docs/index.html` links to a page for each of them.
        """
        pages = {
            name: stored.body
            for name, prefix in sorted(release.docs_by_project().items())
            if (stored := self.store.get(f"{prefix}index.html")) is not None
        }
        if len(pages) > 1:
            for name, page in pages.items():
                self._show_page(docs_page(name), page)
        if pages:
            self._show_page("docs/index.html", _contents(pages) if len(pages) > 1 else next(iter(pages.values())))

    def _show_page(self, key: str, page: bytes) -> None:
        """Writes a page; starts over if the stored page has changed since it was read.

        The stored page is read before the live release is checked, so a newer sync's page is never overwritten.
        """
        while True:
            shown = self.store.get(key)
            if shown is not None and shown.body == page:
                return
            self._still_live()
            with contextlib.suppress(AlreadyExists, Moved):
                if shown is None:
                    self.store.create(key, page, _HTML)
                else:
                    self.store.swap(key, page, shown.etag, _HTML)
                return


def _no_database(database: str) -> BuscoError:
    return BuscoError(f"the Glue database {database} does not exist", "deploy deploy/aws/lake.yaml")


def _contents(names: Iterable[str]) -> bytes:
    """Returns a page with links to each project's docs."""
    listed = "".join(f'<li><a href="projects/{quote(name)}.html">{escape(name)}</a></li>' for name in names)
    title = "dbt projects in this lake"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f"<body><h1>{title}</h1><ul>{listed}</ul></body></html>"
    ).encode()
