"""Which deliveries a bronze table is made of, over changes of its contract (R2, R3)."""

from __future__ import annotations

import pytest

from busco.errors import BuscoError
from busco.lake import layout
from busco.lake.deliveries import Contract, read_deliveries
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, Delivery, Release, Version, utc_now
from tests.unit.memory_s3 import MemoryS3

OLD = Contract("src", "orders", (Column(name="a", type="INTEGER"),), ("a",), "rows")
NEW = Contract("src", "orders", (Column(name="a", type="BIGINT"),), ("a",), "rows")


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(MemoryS3(), "lake")


def deliver(store: ObjectStore, contract: Contract, name: str, number: int) -> str:
    key = layout.delivery("src", "orders", name, number)
    said = Delivery(
        table="bronze.orders",
        file_name=name,
        number=number,
        object=f"bronze/src/orders/{name}-{number}.parquet",
        attempt="a",
        content_hash="c",
        contract_hash=contract.hash,
        columns=contract.columns,
        rows=1,
        quarantined=0,
        bytes=1,
        statistics={},
        ingested_at=utc_now(),
    )
    store.create(key, said)
    return key


def bronze(store: ObjectStore, contract: Contract, base: Version | None = None) -> Version:
    release = None
    if base is not None:
        release = Release(
            release="r", previous=None, kind="publish", environment="prod", run="x", epoch=1,
            tables={"bronze.orders": base}, who="me", created_at=utc_now(),
        )  # fmt: skip
    return read_deliveries(store, [contract], release)["bronze.orders"]


def test_R3_a_bronze_version_is_named_by_its_deliveries_and_contract(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    first = bronze(store, OLD)
    assert bronze(store, OLD) == first
    second = deliver(store, OLD, "b.csv", 1)
    both = bronze(store, OLD, first)
    assert both.version != first.version
    assert second in both.deliveries
    assert both == bronze(store, OLD), "from the base's files or from the records"


def test_R2_files_of_another_contract_stop_the_pin_with_their_names(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    deliver(store, NEW, "b.csv", 1)
    with pytest.raises(BuscoError, match=r"another contract than today's:\n    src\.orders: a\.csv"):
        bronze(store, NEW)


def test_R2_a_file_ingested_again_under_the_new_contract_is_good_in_every_later_pin(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    again = deliver(store, NEW, "a.csv", 2)
    published = bronze(store, NEW)
    assert published.deliveries == (again,)
    another = deliver(store, NEW, "b.csv", 1)
    assert bronze(store, NEW, published).deliveries == (again, another)


def test_R2_a_contract_that_is_taken_back_does_not_bring_older_content_back(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    deliver(store, NEW, "a.csv", 2)
    with pytest.raises(BuscoError, match=r"a\.csv"):
        bronze(store, OLD)
    back = deliver(store, OLD, "a.csv", 3)
    assert back in bronze(store, OLD).deliveries


def test_the_tenth_delivery_is_newer_than_the_ninth(store: ObjectStore) -> None:
    for number in range(1, 10):
        deliver(store, OLD, "a.csv", number)
    deliver(store, NEW, "a.csv", 10)
    with pytest.raises(BuscoError, match=r"a\.csv"):
        bronze(store, OLD)
    assert len(bronze(store, NEW).deliveries) == 1
