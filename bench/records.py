"""Measures what one more delivery costs: requests, bytes and CPU seconds of pinning and publishing, by table size.

    python -m bench.records

The bucket is in memory, so the seconds are those of this code alone; listings are not counted as requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from busco.lake import layout, pins, releases
from busco.lake.deliveries import Contract
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, Delivery, utc_now
from busco.lake.runs import Run
from tests.unit.memory_s3 import CountingS3, MemoryS3

PROD = EnvironmentLayout("prod")
CONTRACT = Contract("src", "b", (Column(name="a", type="INTEGER"),), ("a",), "rows")
AUDIT = releases.Audit({}, frozenset(), "busco", "hash")
SIZES = (0, 1_000, 10_000, 100_000)


def deliver(s3: MemoryS3, name: str) -> None:
    record = Delivery(
        table="bronze.b", file_name=name, number=1, object=f"bronze/src/b/{name}-0123456789abcdef.parquet", attempt="a",
        content_hash="0" * 64, contract_hash=CONTRACT.hash, columns=CONTRACT.columns, rows=2, quarantined=0, bytes=100,
        statistics={}, ingested_at=utc_now(), etag='"0123456789abcdef0123456789abcdef"',
    )  # fmt: skip
    key = layout.delivery("src", "b", name, 1)
    s3.objects[key], s3.stored_at[key] = record.model_dump_json(indent=1).encode(), utc_now()


def measured(s3: CountingS3, act: Callable[[], Any]) -> tuple[Any, int, int, float]:
    """Returns a call's result, its requests, the bytes that it wrote, and its CPU seconds."""
    s3.requests, s3.written, began = 0, 0, time.process_time()
    result = act()
    return result, s3.requests, s3.written, time.process_time() - began


def main() -> None:
    print("deliveries | pin: requests, bytes, s | publish: requests, bytes, s | release, bytes | pin.json, bytes")
    for size in SIZES:
        s3 = CountingS3()
        store = ObjectStore(s3, "lake")
        for number in range(size):
            deliver(s3, f"file-{number:06}.csv")

        def pinned(run: str, store: ObjectStore = store) -> Run:
            return pins.pin(store, PROD, run, 1, [CONTRACT], "hash", project="busco")

        def built(run: Run, s3: CountingS3 = s3) -> Run:
            """Adds the Iceberg metadata of the run's bronze versions, which its runner would write."""
            for version in run.pin.bronze.values():
                s3.objects[version.metadata], s3.stored_at[version.metadata] = b"{}", utc_now()
            return run

        first = built(pinned("first"))
        releases.publish(first, AUDIT, "me", first.docs)
        deliver(s3, "one-more.csv")
        run, *pin = measured(s3, lambda pinned=pinned: pinned("second"))
        built(run)
        release, *publish = measured(s3, lambda run=run: releases.publish(run, AUDIT, "me", run.docs))
        stored = len(s3.objects[PROD.release(release.release)])
        costs = [f"{requests}, {written:,}, {seconds:.2f}" for requests, written, seconds in (pin, publish)]
        print(f"{size:>7,} | {costs[0]} | {costs[1]} | {stored:,} | {len(s3.objects[run.layout.pin]):,}")


if __name__ == "__main__":
    main()
