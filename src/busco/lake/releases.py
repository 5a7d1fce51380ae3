"""Releases: what readers see, how a run's versions become it, and the way back (rules P1 to P8)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake.audits import Audit as Audit
from busco.lake.audits import Skipped as Skipped
from busco.lake.audits import refuse_claimed, refuse_inconsistent, refuse_moved, refuse_untested
from busco.lake.layout import EnvironmentLayout, stamp
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.records import Current, Hold, Pin, Release, Version, utc_now
from busco.lake.runs import Run, newest_epoch


@dataclass(frozen=True)
class Live:
    """The live release as read: `etag` is that of current.json."""

    current: Current
    release: Release
    etag: str


def read_live(store: ObjectStore, environment: EnvironmentLayout) -> Live | None:
    """The live release, None where nothing was ever published."""
    stored = store.get(environment.current)
    if stored is None:
        return None
    current = stored.parse(Current)
    release = read_release(store, environment, current.release)
    return Live(current, release, stored.etag)


def read_release(store: ObjectStore, environment: EnvironmentLayout, release_id: str) -> Release:
    """A release by id.

    Raises:
        BuscoError: there is none.
    """
    release = store.read(environment.release(release_id), Release)
    if release is None:
        raise BuscoError(f"there is no release {release_id}", "see: busco release list")
    return release


def history(store: ObjectStore, environment: EnvironmentLayout) -> Iterator[Release]:
    """The releases that are reachable by `previous` from the live one, newest first (P1)."""
    live = read_live(store, environment)
    release = live.release if live else None
    while release is not None:
        yield release
        release = read_release(store, environment, release.previous) if release.previous else None


def resolve(store: ObjectStore, environment: EnvironmentLayout, release_id: str) -> Release:
    """The release of that id or unambiguous beginning, among those in the history (P1).

    Raises:
        BuscoError: none or several begin so.
    """
    found = []
    for release in history(store, environment):
        if release.release == release_id:
            return release
        if release.release.startswith(release_id):
            found.append(release)
    if len(found) == 1:
        return found[0]
    problem = "is not a release that was live" if not found else "begins several releases' ids"
    raise BuscoError(f"{release_id} {problem}", "see: busco release list")


def publish(run: Run, audit: Audit, who: str, docs: str) -> Release:
    """Makes a run's versions the live release, by one conditional write (P1 to P7).

    Safe to repeat: a run that is published already is found in the history. Of two publishers at once one wins;
    the other starts again on what it finds then.

    Returns the release: the new one, or the one that this run had already become.

    Raises:
        Skipped: on hold (P3), rolled back since (P3), or superseded (P6).
        BuscoError: a table moved since the run's pin, inputs differ, or a test is missing (P4, P6), with the
            tasks to clear; or the run is a replay.
    """
    store, environment = run.store, run.environment
    _refuse_replay(environment)
    base = run.base()
    while True:
        live = read_live(store, environment)
        if live is not None and (published := _already(store, environment, run, live)):
            return published
        if newest_epoch(store, environment, run.name) != run.pin.epoch:
            raise BuscoError(f"epoch {run.pin.epoch} of run {run.name} is over", "a newer one has begun: publish that")
        if live is not None and live.current.hold is not None:
            _note_skipped(store, environment, live, run)
            raise Skipped(_hold_text(live.current.hold))
        release = _compose(run, audit, who, docs, base, live)
        store.create(environment.release(release.release), release)
        current = Current(release=release.release, serial=live.current.serial + 1 if live else 1)
        try:
            if live is None:
                store.create(environment.current, current)
            else:
                store.swap(environment.current, current, live.etag)
            return release
        except (AlreadyExists, Moved):
            continue


def rollback(store: ObjectStore, environment: EnvironmentLayout, release_id: str, who: str, reason: str) -> Release:
    """Writes a new release with an older one's content and sets the hold, in one swap (P8).

    Raises:
        BuscoError: no such release, nothing published yet, or no reason given; or the environment is for replays.
    """
    _refuse_replay(environment)
    if not reason.strip():
        raise BuscoError("a rollback needs a reason", "give it with --reason: those who come after will read it")
    while True:
        target = resolve(store, environment, release_id)
        live = read_live(store, environment)
        if live is None:
            raise BuscoError("nothing is published yet")
        if live.current.hold is not None and live.release.rolled_back_to == target.release:
            return live.release
        release = target.model_copy(
            update={
                "release": new_release_id(),
                "previous": live.current.release,
                "kind": "rollback",
                "who": who,
                "reason": reason,
                "created_at": utc_now(),
                "rolled_back_to": target.release,
                "built": (),
                "dropped": tuple(sorted(set(live.release.tables) - set(target.tables))),
            }
        )
        store.create(environment.release(release.release), release)
        skipped = live.current.hold.skipped if live.current.hold else ()
        hold = Hold(who=who, when=utc_now(), reason=reason, skipped=skipped)
        current = Current(release=release.release, serial=live.current.serial + 1, hold=hold)
        try:
            store.swap(environment.current, current, live.etag)
            return release
        except Moved:
            continue


def resume(store: ObjectStore, environment: EnvironmentLayout) -> Hold | None:
    """Takes the hold away and gives it (with the runs that were skipped meanwhile), None where there was none."""
    while True:
        live = read_live(store, environment)
        if live is None or live.current.hold is None:
            return None
        current = Current(release=live.current.release, serial=live.current.serial + 1)
        try:
            store.swap(environment.current, current, live.etag)
            return live.current.hold
        except Moved:
            continue


def _refuse_replay(environment: EnvironmentLayout) -> None:
    """What is built again to look at it is for nobody else: it was pinned by a run of another environment."""
    if environment.is_replay:
        raise BuscoError(
            f"nothing is published in {environment.environment}: it is for replays",
            "mend the model, and clear its task in the run",
        )


def new_release_id() -> str:
    """`r<UTC time>-<8 hex>`: sorts by time, never comes twice."""
    return f"r{stamp(utc_now())}-{secrets.token_hex(4)}"


def _already(store: ObjectStore, environment: EnvironmentLayout, run: Run, live: Live) -> Release | None:
    """The release that this epoch has become, if it is in the history since the run's base (P3).

    Raises:
        Skipped: it is, but it was rolled back or followed by another since, or what the run has now isn't what it
            published.
    """
    release: Release | None = live.release
    newer: list[Release] = []
    while release is not None and release.release != run.pin.base:
        if release.kind == "publish" and (release.run, release.epoch) == (run.pin.run, run.pin.epoch):
            break
        newer.append(release)
        release = read_release(store, environment, release.previous) if release.previous else None
    if release is None or release.release == run.pin.base:
        return None
    # a run that built nothing has published its deliveries
    published = release.built or tuple(t for t in release.tables if _concerns(run.pin, release.tables[t]))
    mine = {table: release.tables[table].version for table in published}
    rebuilt = sorted(
        table
        for table, entry in run.entries().items()
        if table in mine and (entry.version is None or entry.version.version != mine[table])
    )
    if rebuilt:
        raise Skipped(
            f"published as {release.release}; built anew since: {', '.join(rebuilt)}. To publish that too, clear pin"
        )
    shown = {table: live.release.tables[table].version for table in mine if table in live.release.tables}
    if newer and shown != mine:
        rollback = next((one for one in reversed(newer) if one.kind == "rollback"), None)
        by = f"rolled back by {rollback.release}" if rollback else f"followed by {newer[-1].release}"
        raise Skipped(f"published as {release.release}, {by}")
    return release


def _concerns(pin: Pin, version: Version) -> bool:
    """Whether a table is of the run's project or a source of it."""
    return version.table in pin.bronze or not pin.project or version.project == pin.project


def _hold_text(hold: Hold) -> str:
    when = hold.when.strftime("%Y-%m-%d %H:%M UTC")
    return f"on hold since {when} by {hold.who}: {hold.reason} (end it with `busco release resume`)"


def _note_skipped(store: ObjectStore, environment: EnvironmentLayout, live: Live, run: Run) -> None:
    """Names the run in the hold, for `resume` to tell; losing a race here means that somebody else moved on."""
    hold = live.current.hold
    if hold is None or run.name in hold.skipped:
        return
    noted = hold.model_copy(update={"skipped": (*hold.skipped, run.name)})
    current = Current(release=live.current.release, serial=live.current.serial + 1, hold=noted)
    try:
        store.swap(environment.current, current, live.etag)
    except Moved:
        again = read_live(store, environment)
        if again is not None and again.current.hold is not None:
            _note_skipped(store, environment, again, run)


def _compose(run: Run, audit: Audit, who: str, docs: str, base: Release | None, live: Live | None) -> Release:
    """The release that publishing now would make, or the reason why not (P4 to P7)."""
    # a model that failed and was taken out of the project leaves an entry that nobody can finish
    entries = {table: entry for table, entry in run.entries().items() if table in audit.tables}
    unfinished = sorted(table for table, entry in entries.items() if entry.version is None)
    if unfinished:
        raise BuscoError(
            f"not built in this run: {', '.join(unfinished)}",
            "clear their tasks: a writer was taken away or died",
        )
    mine = {table: entry.version for table, entry in entries.items() if entry.version is not None}
    built = {table: version for table, version in mine.items() if not entries[table].kept}
    seen = live.release if live else None
    shown = seen.tables if seen else {}
    refuse_claimed(audit.project, audit.tables, seen)
    everything = run.pin.nodes is None
    missing = sorted(audit.tables - mine.keys()) if everything else []
    if missing:
        raise BuscoError(f"not built in this run: {', '.join(missing)}", "clear their tasks")
    refuse_moved(run, audit, base, seen, built)

    # what the run kept is the base's: where another run has published a newer one, that one stays
    tables = {**mine, **shown, **built}
    read = {parent for version in built.values() for parent in version.inputs}
    based = base.tables if base else {}
    for table, pinned in run.pin.bronze.items():
        stands = table in shown and (not everything or table not in based or shown[table] != based[table])
        if table in read or not stands:
            tables[table] = pinned
    dropped: tuple[str, ...] = ()
    if everything and audit.manifest_hash == run.pin.manifest_hash:
        gone = {t for t, v in shown.items() if v.project == audit.project and t not in audit.tables}
        dropped = tuple(sorted(gone - mine.keys()))
        tables = {table: version for table, version in tables.items() if table not in dropped}
    refuse_inconsistent(built, tables)
    refuse_untested(run, audit, entries, tables)
    described = {**(seen.docs_by_project() if seen else {}), audit.project: docs}
    projects = {version.project for version in tables.values()} | {audit.project}
    return Release(
        release=new_release_id(),
        previous=live.current.release if live else None,
        kind="publish",
        environment=run.environment.environment,
        run=run.pin.run,
        epoch=run.pin.epoch,
        tables=tables,
        stale=_stale(tables),
        dropped=dropped,
        built=tuple(sorted(built)),
        docs=docs,
        project=audit.project,
        all_docs={project: prefix for project, prefix in described.items() if project and project in projects},
        who=who,
        code_version=run.pin.code_version,
        created_at=utc_now(),
    )


def _stale(tables: dict[str, Version]) -> dict[str, tuple[str, ...]]:
    """Tables whose inputs differ from what the release holds, and which (P5); what lies behind them too."""
    stale: dict[str, tuple[str, ...]] = {}
    for table, version in tables.items():
        differ = tuple(sorted(p for p, v in version.inputs.items() if p not in tables or tables[p].version != v))
        if differ:
            stale[table] = differ
    changed = True
    while changed:
        changed = False
        for table, version in tables.items():
            behind = tuple(sorted(p for p in version.inputs if p in stale))
            if behind and table not in stale:
                stale[table] = behind
                changed = True
    return stale
