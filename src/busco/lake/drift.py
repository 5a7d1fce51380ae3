"""Reports and repairs differences between the lake's objects and what the releases name (docs/protocol.md, G4).

Lost and changed objects are restored from the older versions that the bucket keeps. Iceberg metadata is recreated from
the records if the bucket has no older version of it. Versions made in format 1 get a record and a location of their
own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from shlex import quote
from typing import Any
from urllib.parse import unquote

from botocore.exceptions import BotoCoreError, ClientError

from busco.errors import BuscoError
from busco.lake.formats import upgrade
from busco.lake.inventory import METADATA, REPLACED, Broken, Inventory, Survey
from busco.lake.layout import SCRUBBING, EnvironmentLayout
from busco.lake.object_versions import DENIED, ObjectVersion, copy, read, rewrite, versions
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.records import Current, Published, Release

_THREADS = 16
# The bucket does not show who wrote an object: every object belongs to the bucket's owner.
UNKNOWN_WRITER = "see S3's access log or CloudTrail"
BACKUP = "restore it from a backup of the bucket"
UNFINISHED = "nothing is done about it until busco scrub has finished: run the scrub again, and then the repair"
# Older versions of these objects, and metadata that is recreated from them, can contain values that a scrub removes.
_SCRUBBED = ("format-1 version", *REPLACED, *METADATA)
# Errors that affect only one object or table; all others are still compared and repaired.
FAILURES = (BuscoError, ClientError, BotoCoreError, ValueError)


@dataclass(frozen=True)
class Finding:
    """A difference between what exists and what the releases name.

    Attributes:
        table: `<layer>.<name>`; for the record of a release, the release's id.
        kind: what differs, such as `data file` or `Glue table`.
        where: the object's URL in the lake, or the table's name in Glue (`busco_gold.fct_orders`).
        problem: what is wrong with it, such as `was deleted`.
        live: whether the live release names it; otherwise, only older releases do.
        expected, found: what should be there, and what is there; may be empty.
        when: when it was last changed (UTC), if known.
        who: who changed it, or where to find out.
        remedy: what `busco release repair` does about it or, if it can do nothing, what else to do.
        repairable: whether `busco release repair` can do something about it.
    """

    table: str
    kind: str
    where: str
    problem: str
    live: bool
    expected: str = ""
    found: str = ""
    when: datetime | None = None
    who: str = ""
    remedy: str = ""
    repairable: bool = False
    broken: Broken | None = field(default=None, compare=False, repr=False)
    source: ObjectVersion | None = field(default=None, compare=False, repr=False)
    shared: Published | None = field(default=None, compare=False, repr=False)

    def lines(self) -> list[str]:
        """Returns the finding as text: what is wrong, the details, and the remedy."""
        time = f"{self.when:%Y-%m-%d %H:%M:%S} UTC" if self.when else ""
        # only `was …` happened at that time; any other problem may have existed since then
        happened = bool(time) and self.problem.startswith("was ")
        of = "" if self.live else " (not in the live release)"
        details = "; ".join(
            f"{name}: {text}"
            for name, text in (
                ("expected", self.expected),
                ("found", self.found),
                ("last changed", "" if happened else time),
                ("by", self.who),
            )
            if text
        )
        first = f"{self.table}{of}: the {self.kind} {self.where} {self.problem}{f' at {time}' if happened else ''}"
        return [first, *([f"  {details}"] if details else []), f"  → {self.remedy}"]

    def as_json(self) -> dict[str, Any]:
        """Returns the finding as a dictionary for JSON output; `when` is an ISO 8601 time or None."""
        names = ("table", "kind", "where", "problem", "live", "expected", "found", "who", "remedy", "repairable")
        return {name: getattr(self, name) for name in names} | {"when": self.when.isoformat() if self.when else None}


def inspect(store: ObjectStore, survey: Survey) -> list[Finding]:
    """Returns a survey's results as findings, with the older versions that broken objects can be restored from."""
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        found = [one for one in pool.map(lambda one: _inspected(store, one), survey.broken) if one is not None]
    # Without their data files, delivery records would make each run fail; an administrator may have deleted them.
    lost = {
        one.broken.named.origin
        for one in found
        if one.kind == "data file" and one.source is None and one.broken is not None
    }
    found = [
        replace(one, source=None, repairable=False, remedy=_with_its_file(one.broken.named.key))
        if one.broken is not None and one.broken.named.key in lost and not one.broken.etag
        else one
        for one in found
    ]
    found += [
        Finding(
            table=one.table,
            kind="format-1 version",
            where=store.url(one.metadata),
            problem="shares its Iceberg location with other versions",
            live=survey.release is not None and survey.release.tables.get(one.table) == one,
            remedy="repair gives it a record and a location of its own",
            repairable=True,
            shared=one,
        )
        for one in survey.shared
    ]
    # This must be read after the survey. If the scrub ends in the meantime, it has already deleted the older versions.
    if not any(store.keys(SCRUBBING)):
        return found
    return [
        replace(one, source=None, shared=None, repairable=False, remedy=UNFINISHED) if one.kind in _SCRUBBED else one
        for one in found
    ]


def _with_its_file(record: str) -> str:
    """Returns what to do about a deleted delivery record whose data file can't be restored."""
    return (
        "not restored, because its data file can't be restored either, and without it each run would fail: ingest the "
        f"file {unquote(record.split('/')[-2])} again under another name, or {BACKUP}"
    )


def repair_objects(
    store: ObjectStore,
    environment: EnvironmentLayout,
    inventory: Inventory,
    remaker: Callable[[Sequence[Release]], Callable[[Broken], str]] | None,
    say: Callable[[Finding, str], None],
) -> list[Finding]:
    """Repairs what can be repaired, and returns the findings that are left.

    A restored object may reference other objects, so everything is compared again after each step.

    Args:
        remaker: returns a function that recreates lost metadata (`busco.lake.remake`), from the releases that exist;
            None in an environment without an Iceberg library.
        say: called with each finding that was repaired, and with a description of what was done.
    """
    tried: set[tuple[str, str]] = set()
    failed: dict[tuple[str, str], str] = {}  # why something could not be repaired, by its URL and kind

    def once(findings: Iterable[Finding], step: str) -> list[Finding]:
        further = [one for one in findings if (one.where, step) not in tried]
        tried.update((one.where, step) for one in further)
        return further

    while True:
        survey = inventory.survey()
        findings = inspect(store, survey)
        if restored := once((one for one in findings if one.source is not None), "restore"):
            with ThreadPoolExecutor(max_workers=_THREADS) as pool:
                for finding, (done, why) in zip(
                    restored, pool.map(lambda one: _restored(store, one), restored), strict=True
                ):
                    if done:
                        say(finding, done)
                    else:
                        failed[finding.where, finding.kind] = why
        elif remaker and (
            lost := once((one for one in findings if _can_be_made_again(one) and one.repairable), "remake")
        ):
            remake = remaker(survey.releases)
            for finding in sorted(lost, key=_version_of):  # the objects of a version one after the other
                assert finding.broken is not None
                try:
                    lacks = remake(finding.broken)
                except FAILURES as error:
                    failed[finding.where, finding.kind] = reason(error)
                    continue
                say(finding, f"recreated from the records. {lacks}".strip())
        elif shared := once((one for one in findings if one.shared is not None), "move"):
            for finding in shared:
                assert finding.shared is not None
                try:
                    upgrade(store, environment, {finding.table: finding.shared})
                except FAILURES as error:
                    failed[finding.where, finding.kind] = reason(error)
                    continue
                say(finding, "now has a record and a location of its own")
        else:
            return [
                replace(one, repairable=False, remedy=f"{failed[one.where, one.kind]}. {_otherwise(store, one)}")
                if (one.where, one.kind) in failed
                else one
                for one in findings
            ]


def _restored(store: ObjectStore, finding: Finding) -> tuple[str, str]:
    """Makes an older version current again; returns what was done or, if that is empty, why it was not possible."""
    broken, source = finding.broken, finding.source
    assert broken is not None
    assert source is not None
    try:
        if broken.named.kind == "data file":
            copy(store, source)
        else:
            rewrite(store, source, broken.etag or None)
    except (AlreadyExists, Moved):
        return "", "it was changed during the repair: run the repair again"
    except FAILURES as error:
        return "", f"not restored: {reason(error)}"
    return f"restored from S3 object version {source.version}, written {source.modified:%Y-%m-%d %H:%M:%S} UTC", ""


def reason(error: Exception) -> str:
    """Returns one of the `FAILURES` as a single line."""
    if isinstance(error, BuscoError):
        return " ".join(error.message.split())
    if isinstance(error, ClientError) and error.response["Error"]["Code"] in DENIED:
        return f"AWS refused {error.operation_name}"
    return " ".join(str(error).split()) or type(error).__name__


def _version_of(finding: Finding) -> tuple[str, str]:
    """Returns the table and the id of the version that lost metadata belongs to."""
    published = finding.broken.named.part_of if finding.broken else None
    return finding.table, published.version if published else ""


def _can_be_made_again(finding: Finding) -> bool:
    broken = finding.broken
    return broken is not None and broken.named.kind in METADATA and not broken.etag and finding.source is None


def _inspected(store: ObjectStore, broken: Broken) -> Finding | None:
    """Returns a broken object as a finding, or None for the pointer to the live release if it never existed."""
    named = broken.named
    hidden = ""  # why the object's older versions can't be read
    known: list[ObjectVersion] = []
    source = None
    try:
        known = versions(store, named.key)
        source = _source(store, broken, known)
    except (ClientError, BotoCoreError) as error:
        denied = isinstance(error, ClientError) and error.response["Error"]["Code"] in DENIED
        hidden = (
            "to look for an older version, use the publisher role (Airflow's `drift` DAG) or an administrator's"
            if denied
            else f"its older versions can't be read: {reason(error)}. Run the repair again"
        )
    if named.kind == "pointer" and not broken.etag and not hidden and not known:
        return None
    finding = Finding(
        table=named.table,
        kind=named.kind,
        where=store.url(named.key),
        problem=broken.why or ("was overwritten" if broken.etag else "was deleted"),
        live=named.live,
        expected=_described(named.etag, named.bytes),
        found=_described(broken.etag, broken.bytes) if broken.etag else "",
        when=known[0].modified if known else None,
        who=UNKNOWN_WRITER,
        broken=broken,
        source=source,
    )
    if broken.why:
        finding = replace(finding, problem=f"is damaged: {broken.why}")
    elif not broken.etag and not hidden and not known:
        finding = replace(finding, problem="is missing", who="")
    if source is not None:
        when = f"{source.modified:%Y-%m-%d %H:%M:%S} UTC"
        return replace(
            finding, remedy=f"repair restores S3 object version {source.version}, written {when}", repairable=True
        )
    if hidden:
        return replace(finding, remedy=hidden)
    if _can_be_made_again(finding):
        return replace(
            finding,
            remedy="to recreate it from the records, run this in dbt's environment: busco release repair",
            repairable=True,
        )
    return replace(finding, remedy=f"no version in the bucket has the original content: {_otherwise(store, finding)}")


def _described(etag: str, size: int | None) -> str:
    """Returns an object's size and ETag as text, if they are known."""
    return ", ".join([*([f"{size:,} bytes"] if size is not None else []), *([f"ETag {etag}"] if etag else [])])


def _otherwise(store: ObjectStore, finding: Finding) -> str:
    """Returns what to do about an object that can't be restored here."""
    if finding.broken is None:  # a version made in format 1, whose metadata is among the findings, too
        return "Repair its metadata first, then run the repair again"
    named = finding.broken.named
    if finding.source is not None:  # on AWS, the bucket policy does not let anyone replace a record
        return (
            "An administrator can delete the versions that are newer than "
            f"{finding.source.version}: aws s3api delete-object --bucket {store.bucket} --key {quote(named.key)} "
            "--version-id <VERSION>"
        )
    table = named.table.partition(".")[2]
    if named.kind == "data file" and not named.table.startswith("bronze."):
        if not named.live:
            return f"{BACKUP}; until then, nobody can roll back to the releases that contain it"
        return f"rebuild the table (busco dbt build --select {table} --full-refresh --publish)"
    if named.kind in METADATA:
        return f"an administrator can delete it, so that a repair recreates it; or {BACKUP}"
    if named.origin:
        return (
            f"{BACKUP}; or have an administrator delete the delivery record {named.origin}, and ingest the file "
            f"{unquote(named.origin.split('/')[-2])} again under another name"
        )
    return BACKUP


def _source(store: ObjectStore, broken: Broken, known: list[ObjectVersion]) -> ObjectVersion | None:
    """Returns the S3 version that has the object's original content, or None.

    If no record contains an object's ETag, this is its first version, because all of these objects are written once. A
    record that `busco scrub` has written counts instead of the one that it replaced.
    """
    named = broken.named
    if named.kind == "pointer":  # the only one of these objects that is ever replaced: its newest version counts
        return next((one for one in known if not one.deleted and _points(store, one)), None)
    older = [one for one in known if not one.deleted and not (one.latest and broken.etag)]
    if named.etag:
        same = [one for one in older if one.etag == named.etag]
    else:
        same = [one for one in older if named.bytes is None or one.bytes == named.bytes]
    original = named.etag or (same[-1].etag if same else "")
    if named.kind in REPLACED:
        same = [one for one in older if _replaces(store, one, original)] or same
    return same[-1] if same else None


def _replaces(store: ObjectStore, version: ObjectVersion, etag: str) -> bool:
    """Returns whether an S3 version is the record that `busco scrub` wrote in place of the one with this ETag."""
    try:
        return bool(json.loads(read(store, version))["replaces"] == etag)
    except (KeyError, TypeError, ValueError):
        return False


def _points(store: ObjectStore, version: ObjectVersion) -> bool:
    """Returns whether an S3 version of current.json points to a release."""
    try:
        Current.model_validate_json(read(store, version))
    except (BuscoError, ValueError):
        return False
    return True
