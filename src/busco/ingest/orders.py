"""Carries out orders to ingest objects of the landing bucket, which the events service writes (`busco events listen`).

An order can be carried out several times, and several orders can name the same object: an object that was delivered
before is not delivered again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from busco.aws import client
from busco.errors import BuscoError
from busco.ingest.ingest import load_all
from busco.ingest.landing import REPORTS, LandedObject, landed_object, version_order
from busco.lake.deliveries import Contract, deliveries_of
from busco.lake.layout import MAX_KEY_BYTES, ingest_order, ingest_outcome, key_bytes
from busco.lake.objects import AlreadyExists, ObjectStore, canonical_json
from busco.lake.records import Arrival, IngestedObject, IngestOrder, IngestOutcome, utc_now
from busco.settings import Settings

# the most versions of an object that its report lists
_REPORTED = 20


def carry_out(settings: Settings, store: ObjectStore, contracts: Sequence[Contract], order_id: str) -> IngestOutcome:
    """Ingests an order's objects, reports to the producers, and records the outcome.

    An object that is refused does not affect the others.

    Raises:
        BuscoError: there is no such order.
    """
    order = store.read(ingest_order(order_id), IngestOrder)
    if order is None:
        raise BuscoError(f"there is no order {order_id} to ingest", "let the events service write it")
    s3, bucket = client("s3", settings), settings.landing_bucket
    reports = _Reports.of(s3, bucket, contracts)
    if order.everything:
        arrivals = list(_undelivered(s3, bucket, store, contracts, reports))
    else:
        arrivals = _in_order(s3, bucket, list(dict.fromkeys(order.objects)))
    found = {one: landed_object(s3, bucket, one.key, one.version, one.etag, one.size, contracts) for one in arrivals}
    files = {one: landed for one, landed in found.items() if isinstance(landed, LandedObject)}
    reasons = {one: landed for one, landed in found.items() if isinstance(landed, str)}
    reasons |= _same_files(s3, store, files)
    files = {one: landed for one, landed in files.items() if one not in reasons}
    results = {
        one: IngestedObject(**one.model_dump(), outcome="refused" if reason else "ignored", reason=reason)
        for one, reason in reasons.items()
    }
    loaded = load_all(settings, store, list(files.values()), lambda _: lambda _: None)
    for one, result in zip(files, loaded, strict=True):
        results[one] = IngestedObject(
            **one.model_dump(),
            outcome=result.outcome,
            table=result.file.contract.name,
            rows=result.rows,
            quarantined=result.quarantined,
            reason=result.reason,
        )
    examples = {one: result.examples for one, result in zip(files, loaded, strict=True)}
    for one in arrivals:
        reports.write(one, results[one], examples.get(one, ()))
    outcome = IngestOutcome(order=order_id, objects=tuple(results[one] for one in arrivals), ended_at=utc_now())
    try:
        store.create(ingest_outcome(order_id), outcome)
    except AlreadyExists:
        # another process carried out the same order
        return store.read(ingest_outcome(order_id), IngestOutcome) or outcome
    return outcome


def _in_order(s3: Any, bucket: str, objects: Sequence[Arrival]) -> list[Arrival]:
    """Sorts the versions of each object from the oldest to the newest; events can arrive in any order."""
    versions: dict[str, list[Arrival]] = {}
    for one in objects:
        versions.setdefault(one.key, []).append(one)
    for key, several in versions.items():
        if len(several) > 1:
            order = version_order(s3, bucket, key)
            several.sort(key=lambda one: order.get(one.version, -1))
    return [one for several in versions.values() for one in several]


def _undelivered(
    s3: Any, bucket: str, store: ObjectStore, contracts: Sequence[Contract], reports: _Reports
) -> Iterator[Arrival]:
    """Yields the versions in the landing bucket that need to be ingested, each object's oldest version first.

    Objects that were deleted since are left out, and so are versions that were refused under the same contracts.
    """
    versions: dict[str, list[Arrival]] = {}
    deleted: set[str] = set()
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        deleted |= {item["Key"] for item in page.get("DeleteMarkers", ()) if item["IsLatest"]}
        for item in page.get("Versions", ()):
            etag = item["ETag"].strip('"')
            version = "" if item["VersionId"] == "null" else item["VersionId"]
            one = Arrival(key=item["Key"], version=version, etag=etag, size=item["Size"])
            versions.setdefault(item["Key"], []).insert(0, one)
    for key, several in versions.items():
        if key in deleted or key.startswith(REPORTS):
            continue
        found = landed_object(s3, bucket, key, "", several[-1].etag, several[-1].size, contracts)
        if isinstance(found, LandedObject):
            deliveries = deliveries_of(store, found.contract, found.name)
            made = {one.source_version for one in deliveries if one.source == found.label}
            several = [one for one in several if not one.version or one.version not in made]
        refused = reports.were_refused(key) if several and found else ()
        yield from (one for one in several if found and (one.version, one.etag) not in refused)


def _same_files(s3: Any, store: ObjectStore, files: Mapping[Arrival, LandedObject]) -> dict[Arrival, str]:
    """Returns the objects that can't be ingested because another object is the same file of its table, with the reason.

    Each of the two would replace the other's rows whenever it is ingested. Of two new ones, the first is ingested.
    """
    first: dict[tuple[str, str], str] = {}
    for landed in files.values():
        first.setdefault((landed.contract.name, landed.name), landed.label)

    def elsewhere(landed: LandedObject) -> str:
        others = {first[landed.contract.name, landed.name]}
        others |= {one.source for one in deliveries_of(store, landed.contract, landed.name)}
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
    try:
        s3.head_object(Bucket=bucket, Key=url.removeprefix(f"s3://{bucket}/"))
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return False
        raise
    return True


def report_key(key: str) -> str:
    """Returns the key of the report about an object: below `_reports/`, where the object is in the bucket."""
    whole = f"{REPORTS}{key}.json"
    if key_bytes(whole) <= MAX_KEY_BYTES:
        return whole
    folder = "".join(f"{part}/" for part in key.split("/")[:-1][:2])
    return f"{REPORTS}{folder}{hashlib.sha256(key.encode()).hexdigest()}.json"


@dataclass(frozen=True)
class _Reports:
    """The reports for producers. A report has an entry for each of the object's versions, the newest entry first.

    Reports have no values of tables with pii columns (`Loaded.examples`).

    Attributes:
        mark: identifies the contracts; when they change, objects that were refused may be accepted.
    """

    s3: Any
    bucket: str
    mark: str

    @classmethod
    def of(cls, s3: Any, bucket: str, contracts: Sequence[Contract]) -> _Reports:
        known = sorted((contract.source, contract.table, contract.hash) for contract in contracts)
        return cls(s3, bucket, hashlib.sha256(canonical_json(known)).hexdigest()[:16])

    def entries(self, key: str) -> list[dict[str, Any]]:
        """Returns the entries of the report about an object; none if there is no report."""
        try:
            body = self.s3.get_object(Bucket=self.bucket, Key=report_key(key))["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return []
            raise
        try:
            return list(json.loads(body)["versions"])
        except (ValueError, KeyError, TypeError):
            return []  # somebody else has written it

    def were_refused(self, key: str) -> set[tuple[str, str]]:
        """Returns the version ids and ETags that were refused under the present contracts."""
        entries = [one for one in self.entries(key) if isinstance(one, dict)]
        refused = [one for one in entries if (one.get("outcome"), one.get("contracts")) == ("refused", self.mark)]
        return {(str(one.get("version")), str(one.get("etag"))) for one in refused}

    def write(self, arrival: Arrival, result: IngestedObject, examples: Sequence[str]) -> None:
        """Reports an object that was refused or has quarantined rows, or that is good now but was reported before."""
        if result.outcome in ("known", "ignored"):
            return
        before = self.entries(arrival.key)
        if result.outcome == "ingested" and not result.quarantined and not before:
            return
        entry = {
            "version": arrival.version,
            "etag": arrival.etag,
            "outcome": result.outcome,
            "table": result.table,
            "rows": result.rows,
            "quarantined": result.quarantined,
            "reason": result.reason,
            "examples": list(examples),
            "contracts": self.mark,
            "at": utc_now().isoformat(timespec="seconds"),
        }
        others = [one for one in before if one.get("version") != arrival.version or not arrival.version]
        content = {"object": f"s3://{self.bucket}/{arrival.key}", "versions": [entry, *others][:_REPORTED]}
        body = json.dumps(content, indent=1, ensure_ascii=False).encode()
        self.s3.put_object(Bucket=self.bucket, Key=report_key(arrival.key), Body=body, ContentType="application/json")
