"""Releases: what readers see, how a run's versions become it, and the way back (rules P1 to P8)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake.audits import Audit as Audit
from busco.lake.audits import OnHold as OnHold
from busco.lake.audits import Skipped as Skipped
from busco.lake.compose import compose
from busco.lake.layout import EnvironmentLayout, stamp
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.owners import after, before
from busco.lake.records import Current, Entry, Hold, Pin, Release, Resumed, Version, utc_now
from busco.lake.runs import Run, newest_epoch
from busco.text import printable


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


def publish(
    run: Run,
    audit: Audit,
    who: str,
    docs: str,
    take_over: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Release:
    """Makes a run's versions the live release, by one conditional write (P1 to P7).

    Safe to repeat: a run that is published already is found in the history. Of two publishers at once one wins;
    the other starts again on what it finds then.

    Returns the release: the new one, or the one that this run had already become.

    Args:
        take_over: publish also what may be another project than the live one of its name (`busco.lake.owners`).
        say: takes the words on what is dropped or taken over, before the write and after it.

    Raises:
        OnHold: `resume` will name the run (P3).
        Skipped: rolled back since (P3), or superseded (P6).
        BuscoError: a table moved since the run's pin, inputs differ, or a test is missing (P4, P6), with the
            tasks to clear; tables are another project's, or may be, with the ways out; or the run is a replay.
    """
    store, environment = run.store, run.environment
    _refuse_replay(environment)
    base = run.base()
    while True:
        live = read_live(store, environment)
        if live is not None and (published := _already(store, environment, run, audit, live)):
            for words in after(audit.owner(), live.release, published):
                say(words)
            return published
        if newest_epoch(store, environment, run.name) != run.pin.epoch:
            raise BuscoError(f"epoch {run.pin.epoch} of run {run.name} is over", "a newer one has begun: publish that")
        if live is not None and (hold := live.current.hold) is not None:
            # The run ends skipped only if its name is in the hold that it read. If the hold was lifted or replaced in
            # between, the swap fails, and everything is decided again on what is there then.
            if run.name not in hold.skipped:
                noted = hold.model_copy(update={"skipped": (*hold.skipped, run.name)})
                if not _swap(store, environment, live, hold=noted):
                    continue
            raise OnHold(_hold_text(hold))
        shown = live.release if live else None
        release = compose(run, audit, who, docs, base, shown, new_release_id(), take_over)
        owner = audit.owner(run.pin.project_dir)
        for words in before(owner, shown, release, take_over):
            say(words)
        store.create(environment.release(release.release), release)
        if _swap(store, environment, live, release=release.release):
            for words in after(owner, shown, release, take_over):
                say(words)
            return release


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
        if _swap(store, environment, live, release=release.release, hold=hold):
            return release


def resume(store: ObjectStore, environment: EnvironmentLayout, request: str = "") -> Hold | None:
    """Lifts the hold, and returns it with the runs that were skipped while it stood; None if there was none (P8).

    Safe to repeat with the same `request`, also for a caller that was killed after the write: the last hold that was
    lifted stays in current.json with the request that lifted it, and is returned again.

    Args:
        request: identifies what asked for this, such as the DAG run; empty if it is never repeated.

    Raises:
        BuscoError: a hold stands that the caller cannot have meant, since it was set after the first one was read, or
            after this request lifted another.
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


def _other_hold(over: Hold, stands: Hold) -> BuscoError:
    skipped, by = ", ".join(over.skipped) or "none", printable(f"{over.who} ({over.reason})")
    return BuscoError(
        f"publishing is on hold again, since {_by(stands)}; the hold of {by} is over, and the runs skipped while it "
        f"stood are: {skipped}",
        "check that the new hold may be lifted, then resume again: busco release resume, or a new run of operations",
    )


def _swap(store: ObjectStore, environment: EnvironmentLayout, live: Live | None, **changes: object) -> bool:
    """Writes current.json if it is still what was read, and returns whether it was (P2).

    Args:
        changes: the fields of `Current` that differ from what was read. A hold is there only if it is among them.
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
    """What is built again to look at it is for nobody else: it was pinned by a run of another environment."""
    if environment.is_replay:
        raise BuscoError(
            f"nothing is published in {environment.environment}: it is for replays",
            "mend the model, and clear its task in the run",
        )


def new_release_id() -> str:
    """`r<UTC time>-<8 hex>`: sorts by time, never comes twice."""
    return f"r{stamp(utc_now())}-{secrets.token_hex(4)}"


def _already(store: ObjectStore, environment: EnvironmentLayout, run: Run, audit: Audit, live: Live) -> Release | None:
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
    rebuilt = sorted(
        table
        for table, entry in run.entries().items()
        if table in audit.tables and not _is_in(entry, release.tables.get(table), table in release.built)
    )
    if rebuilt:
        raise Skipped(
            f"published as {release.release}, but these tables were built again since: {', '.join(rebuilt)}. "
            "To publish them too, clear pin"
        )
    # a run that built nothing has published its deliveries
    published = release.built or tuple(t for t in release.tables if _concerns(run.pin, release.tables[t]))
    mine = {table: release.tables[table].version for table in published}
    shown = {table: live.release.tables[table].version for table in mine if table in live.release.tables}
    if newer and shown != mine:
        rollback = next((one for one in reversed(newer) if one.kind == "rollback"), None)
        by = f"rolled back by {rollback.release}" if rollback else f"followed by {newer[-1].release}"
        raise Skipped(f"published as {release.release}, {by}")
    return release


def _is_in(entry: Entry, published: Version | None, built: bool) -> bool:
    """Whether a run's entry is what its release was made of. A table that it kept may have another version there."""
    if entry.version is None:
        return False
    return published is not None and published.version == entry.version.version if built else entry.kept


def _concerns(pin: Pin, version: Version) -> bool:
    """Whether a table is of the run's project or a source of it."""
    return version.table in pin.bronze or not pin.project or version.project == pin.project


def _hold_text(hold: Hold) -> str:
    return f"on hold since {_by(hold)} (end it with `busco release resume`)"


def _by(hold: Hold) -> str:
    return f"{hold.when:%Y-%m-%d %H:%M} UTC by {printable(f'{hold.who}: {hold.reason}')}"
