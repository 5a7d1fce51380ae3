"""Carries out orders to ingest objects of the landing bucket, which the events service writes (`busco events listen`).

An order can be carried out several times, and several orders can name the same object: an object that was delivered
before is not delivered again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from busco.aws import client
from busco.errors import BuscoError
from busco.ingest.ingest import load_all, require_prod
from busco.ingest.landing import (
    LandedObject,
    Version,
    landed_object,
    listed_versions,
    to_apply,
    version_id,
    versions_to_apply,
)
from busco.ingest.load import Loaded
from busco.ingest.s3_errors import is_about_object
from busco.lake.deliveries import Contract, deliveries_of
from busco.lake.layout import (
    MAX_KEY_BYTES,
    REPORTS,
    delivery_prefix,
    file_slug,
    ingest_order,
    ingest_outcome,
    key_bytes,
)
from busco.lake.objects import AlreadyExists, ObjectStore, canonical_json
from busco.lake.records import Arrival, Delivery, IngestedObject, IngestOrder, IngestOutcome, utc_now
from busco.settings import Settings
from busco.text import printable

log = logging.getLogger(__name__)

# the most versions of an object that its report lists, and that an order for everything looks at
_REPORTED = 20
# how many versions an order for everything lists, unless a single object has more: the events service, which reads the
# outcome, has little memory
_LISTED = 5_000


def carry_out(settings: Settings, store: ObjectStore, contracts: Sequence[Contract], order_id: str) -> IngestOutcome:
    """Ingests an order's objects, reports to the producers, and records the outcome.

    An object that is refused does not affect the others. An order for everything only lists what has no delivery.

    Raises:
        BuscoError: there is no such order, or the environment is not prod (D4).
    """
    require_prod(settings)
    order = store.read(ingest_order(order_id), IngestOrder)
    if order is None:
        hint = "the events service writes orders; to ingest objects yourself, give their URLs"
        raise BuscoError(f"there is no order {order_id} to ingest", hint)
    s3, bucket = client("s3", settings), settings.landing_bucket
    reports = _Reports.of(s3, settings, contracts)
    more = False
    if order.everything:
        found, more = _undelivered(s3, bucket, store, contracts, reports, order.after)
        objects = tuple(IngestedObject(**one.model_dump(), outcome="listed") for one in found)
    else:
        # permissions and the bucket's name are tried also if there is nothing to ingest: the events service finds out
        # in this way whether its objects are to blame for a failure, or the bucket
        s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
        arrivals = _in_order(s3, bucket, list(dict.fromkeys(order.objects)))
        objects = _ingested(settings, store, contracts, reports, arrivals)
    outcome = IngestOutcome(order=order_id, objects=objects, more=more, ended_at=utc_now())
    try:
        store.create(ingest_outcome(order_id), outcome)
    except AlreadyExists:
        # another process carried out the same order
        return store.read(ingest_outcome(order_id), IngestOutcome) or outcome
    return outcome


def _ingested(
    settings: Settings,
    store: ObjectStore,
    contracts: Sequence[Contract],
    reports: _Reports,
    arrivals: Sequence[Arrival],
) -> tuple[IngestedObject, ...]:
    s3, bucket = reports.s3, reports.bucket
    found = {
        one: landed_object(s3, bucket, one.key, version_id(one), one.etag, one.size, contracts) for one in arrivals
    }
    files = {one: landed for one, landed in found.items() if isinstance(landed, LandedObject)}
    same = _same_files(s3, store, files)
    files = {one: landed for one, landed in files.items() if one not in same}
    reasons = {one: landed for one, landed in found.items() if isinstance(landed, str)} | same
    results = {
        one: IngestedObject(
            **one.model_dump(), outcome="refused" if reason else "ignored", reason=reason, transient=one in same
        )
        for one, reason in reasons.items()
    }
    results |= _loaded(settings, store, reports, files)
    handled = [files[one] for one in files if results[one].outcome != "refused"]
    new: dict[str, set[str]] = {}
    for one, landed in files.items():
        if results[one].outcome == "ingested":
            new.setdefault(one.key, set()).add(landed.version)
    # of each object, once for all of its versions
    applied = _applied(settings, store, reports, list({one.label: one for one in handled}.values()), new)
    results |= applied
    for one in applied:
        if results[one].transient:  # the message of a version that was handled now comes back for this one
            last = [arrival for arrival in arrivals if arrival.key == one.key][-1]
            results[last] = results[last].model_copy(update={"transient": True})
    for one in arrivals:
        if one not in files:
            reports.write(one, results[one], ())
    return tuple(results[one] for one in dict.fromkeys([*arrivals, *applied]))


def _loaded(
    settings: Settings,
    store: ObjectStore,
    reports: _Reports,
    files: Mapping[Arrival, LandedObject],
    again: bool = False,
) -> dict[Arrival, IngestedObject]:
    """Loads objects, and reports each one as soon as it is loaded, since this process can be killed at any time.

    Returns the results.
    """
    arrivals = list(files)
    results: dict[Arrival, IngestedObject] = {}

    def done(position: int, loaded: Loaded) -> None:
        one = arrivals[position]
        results[one] = IngestedObject(
            **one.model_dump(),
            outcome=loaded.outcome,
            table=loaded.file.contract.name,
            rows=loaded.rows,
            quarantined=loaded.quarantined,
            reason=loaded.reason,
            transient=loaded.transient,
        )
        reports.write(one, results[one], loaded.examples)

    load_all(settings, store, list(files.values()), lambda _: lambda _: None, again, done)
    return results


def _applied(
    settings: Settings,
    store: ObjectStore,
    reports: _Reports,
    objects: Sequence[LandedObject],
    new: Mapping[str, Container[str]],
) -> dict[Arrival, IngestedObject]:
    """Delivers versions of the objects again if an older version was delivered after them (D5).

    Returns the results of those that became a delivery or were refused.

    Args:
        new: the ids of the versions that this order has delivered, by key.
    """
    files: dict[Arrival, LandedObject] = {}
    for one in objects:
        for version in versions_to_apply(store, one, new.get(one.key, ()), partial(reports.were_refused, one.key)):
            files[Arrival(key=one.key, version=version.version, etag=version.etag, size=version.size)] = version
    found = _loaded(settings, store, reports, files, again=True) if files else {}
    return {one: result for one, result in found.items() if result.outcome != "known"}


def _in_order(s3: Any, bucket: str, objects: Sequence[Arrival]) -> list[Arrival]:
    """Sorts the versions of each object from the oldest to the newest; events can arrive in any order."""
    versions: dict[str, list[Arrival]] = {}
    for one in objects:
        versions.setdefault(one.key, []).append(one)
    for key, several in versions.items():
        if len(several) > 1:
            order = {version.id: at for at, version in enumerate(listed_versions(s3, bucket, key))}
            several.sort(key=lambda one: order.get(version_id(one), -1))
    return [one for several in versions.values() for one in several]


def _undelivered(
    s3: Any, bucket: str, store: ObjectStore, contracts: Sequence[Contract], reports: _Reports, after: str
) -> tuple[list[Arrival], bool]:
    """Returns the versions in the landing bucket that need to be ingested, each object's oldest version first; and
    whether the listing ended early, after some thousands of them.

    These are the versions without a delivery, unless the object has since been deleted, or the version was refused
    under the same contracts and limits; and the versions to deliver again (D5).

    Args:
        after: the key after which the listing begins.
    """
    folders = {contract.name: _folders(store, contract) for contract in contracts}

    def needed(key: str, several: Sequence[Arrival]) -> list[Arrival]:
        found = landed_object(s3, bucket, key, "", several[-1].etag, several[-1].size, contracts)
        if not found:
            return []
        needed = list(several)
        if isinstance(found, LandedObject) and file_slug(found.name) in folders[found.contract.name]:
            needed = _without_delivery(several, found, deliveries_of(store, found.contract, found.name))
        refused = reports.were_refused(key) if needed else set()
        return [one for one in needed if (one.version, one.etag) not in refused]

    def needed_or_all(key: str, several: Sequence[Arrival]) -> list[Arrival]:
        try:
            return needed(key, several[-_REPORTED:])
        except (ClientError, BuscoError, ValueError) as error:
            if isinstance(error, ClientError) and not is_about_object(error):
                raise
            # what has a delivery is not ingested again
            log.warning("%s can't be compared with its deliveries, so it is ingested: %s", printable(key), error)
            return list(several[-_REPORTED:])

    found: list[Arrival] = []
    with ThreadPoolExecutor(max_workers=16) as pool:
        for objects in _objects(s3, bucket, after):
            for some in pool.map(needed_or_all, objects.keys(), objects.values()):
                if len(found) >= _LISTED and some:
                    return found, True
                found += some
    return found, False


def _objects(s3: Any, bucket: str, after: str) -> Iterator[dict[str, list[Arrival]]]:
    """Yields the objects of a bucket that have not been deleted and are no reports, with their versions from the oldest
    to the newest, in the order of keys, some at a time."""
    versions: dict[str, list[Arrival]] = {}
    deleted: set[str] = set()
    start = {"KeyMarker": after} if after else {}
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, **start):
        deleted |= {item["Key"] for item in page.get("DeleteMarkers", ()) if item["IsLatest"]}
        for item in page.get("Versions", ()):
            etag = item["ETag"].strip('"')
            one = Arrival(key=item["Key"], version=item["VersionId"], etag=etag, size=item["Size"])
            versions.setdefault(item["Key"], []).insert(0, one)
        # an object's further versions can be on the next page
        going_on = page.get("NextKeyMarker", "") if page.get("IsTruncated") else None
        complete = sorted(key for key in versions if going_on is None or key < going_on)
        listed = {key: versions.pop(key) for key in complete}
        yield {
            key: several
            for key, several in listed.items()
            if key not in deleted and key > after and not key.startswith(REPORTS)
        }


def _folders(store: ObjectStore, contract: Contract) -> set[str]:
    """Returns the file names, as they appear in keys, under which a table has deliveries."""
    prefix = delivery_prefix(contract.source, contract.table)
    return {key.removeprefix(prefix).partition("/")[0] for key in store.keys(prefix)}


def _without_delivery(several: Sequence[Arrival], found: LandedObject, deliveries: Sequence[Delivery]) -> list[Arrival]:
    """Returns which of an object's versions, given from the oldest to the newest, need to be ingested."""
    mine = sorted((one for one in deliveries if one.source == found.label), key=lambda one: one.number)
    made = {version_id(one): one.source_etag for one in mine}  # the newest delivery counts, for ids that return
    needed, before = [], ""
    for one in several:
        # content that was uploaded again unchanged became no delivery of its own
        if one.etag not in (made.get(one.version), before):
            needed.append(one)
        before = one.etag
    late = to_apply([Version(one.version, one.etag, one.size) for one in several], mine)
    return [one for one in several if one in needed or one.version in {version.id for version in late}]


def _same_files(s3: Any, store: ObjectStore, files: Mapping[Arrival, LandedObject]) -> dict[Arrival, str]:
    """Returns the objects that can't be ingested because another object is the same file of its table, with the reason.

    Each of the two would replace the other's rows whenever it is ingested. Of two new ones, the first is ingested. One
    that has a delivery is not in the result, since it is not ingested again.
    """
    first: dict[tuple[str, str], str] = {}
    for landed in files.values():
        first.setdefault((landed.contract.name, landed.name), landed.label)

    def elsewhere(landed: LandedObject) -> str:
        deliveries = deliveries_of(store, landed.contract, landed.name)
        if landed.delivery_in(deliveries):  # its event can arrive again after the file was moved
            return ""
        others = {first[landed.contract.name, landed.name], *(one.source for one in deliveries)}
        prefix = f"s3://{landed.bucket}/"
        urls = sorted(one for one in others - {landed.label} if one.startswith(prefix))
        return ", ".join(one for one in urls if _exists(s3, landed.bucket, one))

    with ThreadPoolExecutor(max_workers=16) as pool:
        found = dict(zip(files, pool.map(elsewhere, files.values()), strict=True))
    return {
        one: f"the same file of {files[one].contract.table} is also at {urls}; delete one of them"
        for one, urls in found.items()
        if urls
    }


def _exists(s3: Any, bucket: str, url: str) -> bool:
    key = url.removeprefix(f"s3://{bucket}/")
    # a HEAD request would fail for an object that its producer has encrypted with a key of their own (SSE-C)
    found = s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(one["Key"] == key for one in found.get("Contents", ()))


def report_key(key: str) -> str:
    """Returns the key of the report about an object: `_reports/<key>.json`.

    If that is too long for S3, the name is a hash of the object's key, in as many of its first two folders as fit: a
    producer may read only the reports in the table's folder.
    """
    folders, hashed = key.split("/")[:-1], hashlib.sha256(key.encode()).hexdigest()
    names = [key, *("/".join([*folders[:depth], hashed]) for depth in (2, 1, 0))]
    keys = [f"{REPORTS}{name}.json" for name in names]
    return next(one for one in keys if key_bytes(one) <= MAX_KEY_BYTES)


@dataclass(frozen=True)
class _Reports:
    """The reports for producers. A report has an entry for each of the object's versions, the newest entry first, and
    at most 20 entries. Times are in UTC.

    Reports have no values of tables with pii columns (`Loaded.examples`).

    Attributes:
        mark: identifies the contracts and limits; when they change, objects that were refused may be accepted.
    """

    s3: Any
    bucket: str
    mark: str

    @classmethod
    def of(cls, s3: Any, settings: Settings, contracts: Sequence[Contract]) -> _Reports:
        known = sorted((contract.source, contract.table, contract.hash) for contract in contracts)
        limits = (settings.ingest_row_bytes, settings.ingest_file_bytes)
        return cls(s3, settings.landing_bucket, hashlib.sha256(canonical_json([known, limits])).hexdigest()[:16])

    def entries(self, key: str) -> list[dict[str, Any]]:
        """Returns the entries of the report about an object; none if there is no report, or if S3 doesn't return it."""
        try:
            body = self.s3.get_object(Bucket=self.bucket, Key=report_key(key))["Body"].read()
        except ClientError as error:
            if not is_about_object(error):
                raise
            if error.response["Error"]["Code"] not in ("NoSuchKey", "404"):
                log.warning("the report about %s can't be read: %s", printable(key), error)
            return []
        try:
            return [one for one in json.loads(body)["versions"] if isinstance(one, dict)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []  # somebody else has written it

    def were_refused(self, key: str) -> set[tuple[str, str]]:
        """Returns the version ids and ETags that were permanently refused under the current contracts and limits."""
        return {
            (str(one.get("version")), str(one.get("etag")))
            for one in self.entries(key)
            if (one.get("outcome"), one.get("contracts"), one.get("transient")) == ("refused", self.mark, False)
        }

    def write(self, arrival: Arrival, result: IngestedObject, examples: Sequence[str]) -> None:
        """Reports an object that was refused or has quarantined rows, or that is good now but was reported before.

        Quarantined rows of a known object are reported too, unless they were: the process that has ingested it can have
        been killed before it wrote the report.

        A report that can't be written is logged: it must not prevent the objects from being ingested.
        """
        if result.outcome == "ignored" or (result.outcome == "known" and not result.quarantined):
            return
        try:
            self._write(arrival, result, examples)
        except (ClientError, BotoCoreError) as error:
            log.warning("the report about %s can't be written: %s", printable(arrival.key), error)

    def _write(self, arrival: Arrival, result: IngestedObject, examples: Sequence[str]) -> None:
        before = self.entries(arrival.key)
        if result.outcome == "ingested" and not result.quarantined and not before:
            return
        version = version_id(arrival)
        same = [one for one in before if (one.get("version"), one.get("etag")) == (version, arrival.etag)]
        if result.outcome == "known" and any(one.get("outcome") == "ingested" for one in same):
            return
        entry = {
            "version": version,
            "etag": arrival.etag,
            "outcome": "ingested" if result.outcome == "known" else result.outcome,
            "transient": result.transient,
            "table": result.table,
            "rows": result.rows,
            "quarantined": result.quarantined,
            "reason": result.reason,
            "examples": list(examples),
            "contracts": self.mark,
            "at": utc_now().isoformat(timespec="seconds"),
        }
        others = [one for one in before if one not in same]
        content = {"object": f"s3://{self.bucket}/{arrival.key}", "versions": [entry, *others][:_REPORTED]}
        body = json.dumps(content, indent=1, ensure_ascii=False).encode()
        self.s3.put_object(Bucket=self.bucket, Key=report_key(arrival.key), Body=body, ContentType="application/json")
