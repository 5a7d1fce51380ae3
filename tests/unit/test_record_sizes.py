"""Pins, entries and releases stay small, however many deliveries and files a table has (R3, R5)."""

from __future__ import annotations

import random

import pytest

from busco.lake import layout, pins, releases
from busco.lake.contents import contains, read_record, read_version
from busco.lake.deliveries import Contract, read_deliveries
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, DataFile, Delivery, Published, Release, Version, utc_now
from busco.lake.runs import Run
from tests.unit.lake import AUDIT, ENVIRONMENT, PARENTS
from tests.unit.lake import version as built_version
from tests.unit.memory_s3 import CountingS3, MemoryS3

CONTRACT = Contract("src", "b", (Column(name="a", type="INTEGER"), Column(name="day", type="DATE")), ("a",), "rows")
STATISTICS = {'"day"': {"min": "2018-01-01", "max": "2018-01-02", "null_count": "0", "num_values": "2"}}


def delivered(s3: MemoryS3, name: str, number: int = 1) -> str:
    """Stores a delivery record, without the cost of a request."""
    key = layout.delivery("src", "b", name, number)
    record = Delivery(
        table="bronze.b", file_name=name, number=number, object=f"bronze/src/b/{hash(name):x}-{number}.parquet",
        attempt="a", content_hash="c", contract_hash=CONTRACT.hash, columns=CONTRACT.columns, rows=2, quarantined=0,
        bytes=100, statistics=STATISTICS, ingested_at=utc_now(), etag='"0123456789abcdef0123456789abcdef"',
    )  # fmt: skip
    store_body(s3, key, record.model_dump_json(indent=1).encode())
    return key


def store_body(s3: MemoryS3, key: str, body: bytes) -> None:
    s3.objects[key], s3.stored_at[key] = body, utc_now()


def lake_of(count: int) -> ObjectStore:
    s3 = CountingS3()
    body = s3.objects[delivered(s3, "daily/2018-01-01/file-000000.csv")]
    for n in range(1, count):
        name = f"daily/2018-{n % 12 + 1:02}-01/file-{n:06}.csv"
        own = body.replace(b"2018-01-01/file-000000.csv", name[6:].encode())
        store_body(s3, layout.delivery("src", "b", name, 1), own)
    return ObjectStore(s3, "lake")


def pinned(store: ObjectStore, run: str) -> Run:
    return pins.pin(store, ENVIRONMENT, run, 1, [CONTRACT], AUDIT.manifest_hash, project="busco", tables=AUDIT.tables)


def finished(run: Run, files: int = 1) -> Run:
    """Enters new versions, and the results of their tests, which are not part of what is measured."""
    from busco.lake.records import Result

    seen = {table: version.version for table, version in run.pin.bronze.items()}
    for pinned_version in run.pin.bronze.values():
        store_body(run.store.client, pinned_version.metadata, b"{}")
    for table, parents in PARENTS.items():
        made = built_version(table, {parent: seen[parent] for parent in parents})
        made = made.model_copy(update={"files": files})
        store_body(run.store.client, made.record, b"{}")
        store_body(run.store.client, made.metadata, b"{}")
        run.enter(table, run.take(table, 1), made, kept=False)
        seen[table] = made.version
    for test, tables in AUDIT.tests.items():
        run.put_result(Result(node=test, runner=1, status="success", reads={table: seen[table] for table in tables}))
    return run


def published(store: ObjectStore, run: Run) -> Release:
    return releases.publish(run, AUDIT, "me", run.docs)


@pytest.mark.parametrize("count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_one_more_delivery_costs_about_the_same_however_many_there_are(count: int) -> None:
    costs = {}
    for size in (0, count):
        store = lake_of(size) if size else ObjectStore(CountingS3(), "lake")
        published(store, finished(pinned(store, "first")))
        delivered(store.client, "daily/2018-06-01/one-more.csv")
        runs: list[Run] = []
        pin = store.client.cost(lambda store=store, runs=runs: runs.append(pinned(store, "second")))
        finished(runs[0])
        publish = store.client.cost(lambda store=store, runs=runs: published(store, runs[0]))
        costs[size] = (pin[0] + publish[0], pin[1] + publish[1])
        assert runs[0].pin.bronze["bronze.b"].files == size + 1
    assert costs[count][0] - costs[0][0] <= 20
    assert costs[count][1] <= 1_000_000
    pin_size = len(store.client.objects[runs[0].layout.pin])
    live = releases.read_live(store, ENVIRONMENT)
    assert live is not None
    assert max(pin_size, len(store.client.objects[ENVIRONMENT.release(live.release.release)])) < 10_000
    pages = [read_record(store, live.release.tables["bronze.b"]).pages]
    assert all(page.deliveries <= 1000 for page in pages[0])
    before = store.client.requests
    assert len(list(releases.history(store, ENVIRONMENT))) == 2
    assert store.client.requests - before == 3, "the history reads current.json and the releases, but no pages"


def test_a_release_of_20_tables_with_1000_partitions_is_under_100_kb() -> None:
    store = ObjectStore(CountingS3(), "lake")
    tables = {}
    for number in range(20):
        table = f"gold.some_table_with_a_rather_long_name_{number}"
        files = tuple(
            DataFile(key=f"{ENVIRONMENT.data(table, 'v')}/day={n}/data_0.parquet", rows=1, bytes=1) for n in range(1000)
        )
        version = Version(
            table=table, version="0123456789abcdef0123456789abcdef", columns=CONTRACT.columns, files=files, rows=1000,
            bytes=1000, inputs={f"silver.input_{n}": "0123456789abcdef0123456789abcdef" for n in range(5)},
            fingerprint="f" * 64, unique_id=f"model.busco.{table}", project="busco",
        )  # fmt: skip
        key = ENVIRONMENT.version(table, version.version)
        store.create(key, version)
        tables[table] = Published.of(version, key, ENVIRONMENT.metadata(table, version.version))
    release = Release(
        release="r", previous=None, kind="publish", environment="prod", run="r", epoch=1, tables=tables, who="me",
        created_at=utc_now(),
    )  # fmt: skip
    store.create(ENVIRONMENT.release("r"), release)
    assert len(store.client.objects[ENVIRONMENT.release("r")]) < 100_000
    assert len(read_version(store, tables[table]).files) == 1000


def test_the_pages_of_a_table_depend_only_on_its_deliveries_and_not_on_the_releases_before() -> None:
    store = lake_of(1_200)
    names = [f"daily/2018-{month:02}-01/more-{number}.csv" for month in range(1, 13) for number in range(4)]
    random.Random(3).shuffle(names)
    base = None
    for name in names:
        delivered(store.client, name)
        version = read_deliveries(store, [CONTRACT], base)["bronze.b"]
        base = Release(
            release="r", previous=None, kind="publish", environment="prod", run="x", epoch=1,
            tables={"bronze.b": version}, who="me", created_at=utc_now(),
        )  # fmt: skip
    fresh = ObjectStore(CountingS3(), "lake")
    for key in store.keys(layout.DELIVERIES):
        store_body(fresh.client, key, store.client.objects[key])
    assert read_deliveries(fresh, [CONTRACT], None)["bronze.b"] == version
    made = {key: body for key, body in fresh.client.objects.items() if "/env/" in key}
    assert made == {key: store.client.objects[key] for key in made}
    assert version.files == 1_200 + len(names)
    assert len({file.key for file in read_version(store, version).files}) > len(names)
    assert set(read_version(store, version).deliveries) == set(store.keys(layout.DELIVERIES))


def test_a_second_delivery_of_a_file_changes_its_page() -> None:
    store = lake_of(1_000)
    first = read_deliveries(store, [CONTRACT], None)["bronze.b"]
    delivered(store.client, "daily/2018-01-01/file-000000.csv", 2)
    second = read_deliveries(store, [CONTRACT], None)["bronze.b"]
    before, after = ({page.page for page in read_record(store, one).pages} for one in (first, second))
    assert 1 <= len(after - before) <= 3
    assert contains(store, second, first)
    assert not contains(store, first, second)
