"""Reads, publishes and rolls back releases (rules P1 to P9)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.lake.audits import Audit as Audit
from busco.lake.audits import OnHold as OnHold
from busco.lake.audits import Skipped as Skipped
from busco.lake.compose import compose, with_since
from busco.lake.contents import require_readable
from busco.lake.formats import encode, in_own_place, upgrade
from busco.lake.layout import ENVIRONMENTS, EnvironmentLayout, stamp
from busco.lake.object_versions import DENIED, versions
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.owners import after, before
from busco.lake.records import FORMAT, Current, Entry, Hold, Pin, Published, Release, Resumed, utc_now
from busco.lake.runs import Run, newest_epoch
from busco.text import printable


@dataclass(frozen=True)
class Live:
    """The live release as read; `etag` is the ETag of current.json."""

    current: Current
    release: Release
    etag: str


def read_live(store: ObjectStore, environment: EnvironmentLayout) -> Live | None:
    """Returns the live release, or None if nothing has been published yet.

    Raises:
        BuscoError: the release's record or current.json is missing, although a release was live (P2).
    """
    stored = store.get(environment.current)
    if stored is None and _was_live(store, environment):
        stored = store.get(environment.current)  # the first release may have gone live in the meantime
        if stored is None:
            raise missing_pointer(store, environment)
    if stored is None:
        return None
    current = stored.parse(Current)
    release = read_release(store, environment, current.release)
    return Live(current, release, stored.etag)


def live_releases(store: ObjectStore) -> dict[str, Release]:
    """Returns the live release of each environment in which something has been published.

    Raises:
        BuscoError: see `read_live`.
    """
    found = {name: read_live(store, EnvironmentLayout(name)) for name in store.folders(ENVIRONMENTS)}
    return {name: live.release for name, live in found.items() if live is not None}


def missing_pointer(store: ObjectStore, environment: EnvironmentLayout) -> BuscoError:
    """Returns the error for a missing current.json in an environment in which a release was live."""
    return BuscoError(
        f"{store.url(environment.current)} is missing, although a release has been published; without this file, there "
        "is no way to tell which release is live",
        "restore it: busco release repair",
    )


def _was_live(store: ObjectStore, environment: EnvironmentLayout) -> bool:
    """Returns whether a release was live, for an environment without current.json.

    The record of a release also exists if its publisher was killed before it wrote current.json, but only the record of
    a first release can have been written then. A caller without permission to list object versions can't tell this case
    from a first release that did go live; publishers have that permission.
    """
    keys = list(store.keys(environment.releases))
    if not keys:
        return False
    try:
        if versions(store, environment.current):
            return True
    except ClientError as error:
        if error.response["Error"]["Code"] not in DENIED:
            raise
    return any(release.previous for release in store.read_many(keys, Release))


def read_release(store: ObjectStore, environment: EnvironmentLayout, release_id: str) -> Release:
    """Returns a release by id.

    Raises:
        BuscoError: it does not exist.
    """
    release = store.read(environment.release(release_id), Release)
    if release is None:
        raise BuscoError(f"there is no release {release_id}", "see: busco release list")
    return release


def history(store: ObjectStore, environment: EnvironmentLayout) -> Iterator[Release]:
    """Yields the live release and those reachable from it through `previous`, newest first (P1)."""
    live = read_live(store, environment)
    release = live.release if live else None
    while release is not None:
        yield release
        release = read_release(store, environment, release.previous) if release.previous else None


def resolve(store: ObjectStore, environment: EnvironmentLayout, release_id: str) -> Release:
    """Returns the release in the history whose id is, or unambiguously starts with, `release_id` (P1).

    Raises:
        BuscoError: no release or several releases match.
    """
    found = []
    for release in history(store, environment):
        if release.release == release_id:
            return release
        if release.release.startswith(release_id):
            found.append(release)
    if len(found) == 1:
        return found[0]
    problem = "does not match any release that has been live" if not found else "matches several releases"
    raise BuscoError(f"{release_id} {problem}", "see: busco release list")


def publish(
    run: Run,
    audit: Audit,
    who: str,
    docs: str,
    take_over: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Release:
    """Makes a run's versions the live release, with a single conditional write (P1 to P7).

    Safe to repeat: a run that has already been published is found in the history. If two publishers write at the same
    time, one of them wins; the other starts over from the new live release.

    Returns the new release, or the one that this run was already published as.

    Args:
        take_over: publish even if the live project with the same name may be a different one (`busco.lake.owners`).
        say: receives messages about tables that are dropped or taken over, before and after the write.

    Raises:
        OnHold: publishing is on hold; `resume` will list the run (P3).
        Skipped: the run's release was rolled back (P3), or the run was superseded (P6).
        BuscoError: a table has changed since the run was pinned, inputs differ, a test is missing (P4, P6), or a
            table's records or metadata are missing (P9), with the tasks to clear; current.json is missing (P2); tables
            belong, or may belong, to another project, with suggested fixes; or the run is a replay.
    """
    store, environment = run.store, run.environment
    _refuse_replay(environment)
    base = run.base()
    while True:
        live = read_live(store, environment)
        if live is None and run.pin.base is not None:
            raise missing_pointer(store, environment)
        if live is not None and (published := _already(store, environment, run, audit, live)):
            for message in after(audit.owner(), live.release, published):
                say(message)
            return published
        if newest_epoch(store, environment, run.name) != run.pin.epoch:
            raise BuscoError(f"epoch {run.pin.epoch} of run {run.name} was replaced by a newer one", "publish that one")
        if live is not None and (hold := live.current.hold) is not None:
            # The run ends as skipped only if its name has been added to this hold. If the hold was lifted or replaced
            # in the meantime, the swap fails and the loop starts over from the current state.
            if run.name not in hold.skipped:
                noted = hold.model_copy(update={"skipped": (*hold.skipped, run.name)})
                if not _swap(store, environment, live, hold=noted):
                    continue
            raise OnHold(_hold_text(hold))
        shown = live.release if live else None
        release = compose(run, audit, who, docs, base, shown, new_release_id(), take_over)
        owner = audit.owner(run.pin.project_dir)
        for message in before(owner, shown, release, take_over):
            say(message)
        if run.pin.format == FORMAT:
            release = release.model_copy(update={"tables": upgrade(store, environment, release.tables)})
        shows = shown.tables if shown else {}
        fresh = [
            one for table, one in release.tables.items() if table not in shows or shows[table].metadata != one.metadata
        ]
        hint = "clear the tasks of these tables with Downstream; for bronze tables, clear pin"
        require_readable(store, fresh, hint, [shows[one.table] for one in fresh if one.table in shows])
        store.create(environment.release(release.release), encode(store, release, run.pin.format))
        if _swap(store, environment, live, release=release.release):
            for message in after(owner, shown, release, take_over):
                say(message)
            return release


def rollback(store: ObjectStore, environment: EnvironmentLayout, release_id: str, who: str, reason: str) -> Release:
    """Publishes the content of an older release as a new release and sets a hold, in one swap (P8).

    Raises:
        BuscoError: there is no such release, nothing has been published yet, no reason is given, the records or the
            metadata of one of its tables are missing (P9), or the environment is for replays.
    """
    _refuse_replay(environment)
    if not reason.strip():
        raise BuscoError("a rollback needs a reason", "give one with --reason, so that others can understand it later")
    while True:
        target = resolve(store, environment, release_id)
        live = read_live(store, environment)
        if live is None:
            raise BuscoError("nothing is published yet")
        if live.current.hold is not None and live.release.rolled_back_to == target.release:
            return live.release
        made = new_release_id()
        release = target.model_copy(
            update={
                "format": FORMAT,
                "release": made,
                "previous": live.current.release,
                "tables": upgrade(store, environment, with_since(target.tables, live.release.tables, made)),
                "kind": "rollback",
                "who": who,
                "reason": reason,
                "created_at": utc_now(),
                "rolled_back_to": target.release,
                "built": (),
                "dropped": tuple(sorted(set(live.release.tables) - set(target.tables))),
            }
        )
        require_readable(store, release.tables.values(), "restore them: busco release repair; then roll back again")
        store.create(environment.release(release.release), release)
        skipped = live.current.hold.skipped if live.current.hold else ()
        hold = Hold(who=who, when=utc_now(), reason=reason, skipped=skipped)
        if _swap(store, environment, live, release=release.release, hold=hold):
            return release


def renew(store: ObjectStore, environment: EnvironmentLayout, who: str) -> Release | None:
    """Publishes the live release's content again, in the current format, if parts of it are in format 1.

    A hold stays in effect. The new release names the same run as the one that it replaces.

    Returns the new release, or None if there was nothing to publish.
    """
    while True:
        live = read_live(store, environment)
        if live is None or all(in_own_place(environment, one) is one for one in live.release.tables.values()):
            return None
        release = live.release.model_copy(
            update={
                "format": FORMAT,
                "release": new_release_id(),
                "previous": live.release.release,
                "tables": upgrade(store, environment, live.release.tables),
                "who": who,
                "reason": live.release.reason or "the same content in the current format",
                "created_at": utc_now(),
            }
        )
        require_readable(store, release.tables.values(), "restore them: busco release repair")
        store.create(environment.release(release.release), release)
        if _swap(store, environment, live, release=release.release, hold=live.current.hold):
            return release


def resume(store: ObjectStore, environment: EnvironmentLayout, request: str = "") -> Hold | None:
    """Lifts the hold and returns it, with the runs that were skipped during it; returns None if there is no hold (P8).

    Safe to repeat with the same `request`, even if the caller was killed after the write: current.json keeps the
    most recently lifted hold and the request that lifted it, and that hold is returned again.

    Args:
        request: identifies the source of the request, such as a DAG run; empty if it is never repeated.

    Raises:
        BuscoError: the caller cannot have meant the current hold, because it was set after another hold was read here,
            or after this request lifted another hold.
    """
    meant: Hold | None = None
    while True:
        live = read_live(store, environment)
        if live is None:
            return None
        hold, resumed = live.current.hold, live.current.resumed
        mine = resumed is not None and bool(request) and resumed.request == request
        if hold is None:
            if resumed is not None and (mine or (meant is not None and resumed.hold.is_same(meant))):
                return resumed.hold
            return None
        if mine and resumed is not None:
            raise _other_hold(resumed.hold, hold)
        if meant is not None and not hold.is_same(meant):
            raise _other_hold(meant, hold)
        meant = hold
        if _swap(store, environment, live, resumed=Resumed(hold=hold, request=request)):
            return hold


def _other_hold(lifted: Hold, current: Hold) -> BuscoError:
    skipped, by = ", ".join(lifted.skipped) or "none", printable(f"{lifted.who} ({lifted.reason})")
    return BuscoError(
        f"publishing was put on hold again at {_by(current)}; the hold set by {by} was lifted, and the runs skipped "
        f"during it are: {skipped}",
        "check that the new hold can be lifted, then resume again: busco release resume, or a new run of the "
        "`operations` DAG",
    )


def _swap(store: ObjectStore, environment: EnvironmentLayout, live: Live | None, **changes: object) -> bool:
    """Writes current.json if it has not changed since it was read (P2); returns whether it was written.

    Args:
        changes: the fields of `Current` to change. The hold is removed unless it is one of them.
    """
    try:
        if live is None:
            store.create(environment.current, Current.model_validate({"serial": 1, **changes}))
        else:
            serial = live.current.serial + 1
            written = live.current.model_copy(update={"hold": None, "serial": serial, **changes})
            store.swap(environment.current, written, live.etag)
        return True
    except (AlreadyExists, Moved):
        return False


def _refuse_replay(environment: EnvironmentLayout) -> None:
    """Rejects replays: they are copies of runs in another environment, and only for the user who started them."""
    if environment.is_replay:
        raise BuscoError(
            f"nothing can be published in {environment.environment}: it is a replay environment",
            "fix the model, then clear its task in the original run",
        )


def new_release_id() -> str:
    """Returns a unique id that sorts by time: `r<UTC time>-<8 hex>`."""
    return f"r{stamp(utc_now())}-{secrets.token_hex(4)}"


def _already(store: ObjectStore, environment: EnvironmentLayout, run: Run, audit: Audit, live: Live) -> Release | None:
    """Returns the release that this epoch was published as, if it is in the history since the run's base (P3).

    Raises:
        Skipped: that release has been rolled back or replaced, or the run has rebuilt tables since it was published.
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
    rebuilt = sorted(
        table
        for table, entry in run.entries().items()
        if table in audit.tables and not _is_in(entry, release.tables.get(table), table in release.built)
    )
    if rebuilt:
        raise Skipped(
            f"already published as {release.release}, but these tables have been rebuilt since: {', '.join(rebuilt)}. "
            "To publish them too, clear pin"
        )
    # A run that built no tables has published only its deliveries.
    published = release.built or tuple(t for t in release.tables if _concerns(run.pin, release.tables[t]))
    mine = {table: release.tables[table].version for table in published}
    shown = {table: live.release.tables[table].version for table in mine if table in live.release.tables}
    if newer and shown != mine:
        rollback = next((one for one in reversed(newer) if one.kind == "rollback"), None)
        by = f"rolled back by {rollback.release}" if rollback else f"replaced by {newer[-1].release}"
        raise Skipped(f"published as {release.release}, which was {by}")
    return release


def _is_in(entry: Entry, published: Published | None, built: bool) -> bool:
    """Returns whether a run's release matches this entry. For kept tables, the release may have a different version."""
    if entry.version is None:
        return False
    return published is not None and published.version == entry.version.version if built else entry.kept


def _concerns(pin: Pin, version: Published) -> bool:
    """Returns whether a table belongs to the run's project or is one of its sources."""
    return version.table in pin.bronze or not pin.project or version.project == pin.project


def _hold_text(hold: Hold) -> str:
    return f"put on hold at {_by(hold)} (lift the hold with `busco release resume`)"


def _by(hold: Hold) -> str:
    return f"{hold.when:%Y-%m-%d %H:%M} UTC by {printable(f'{hold.who}: {hold.reason}')}"
