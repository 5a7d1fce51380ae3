"""Which deliveries make up a bronze table while its contract changes (R2, R3)."""

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


DATED = Contract(
    "src", "orders", (Column(name="at", type="TIMESTAMPTZ"), Column(name="days", type="DATE[]")), (), "rows"
)
GOOD = {"min": "2018-01-01 00:00:00+00", "max": "2018-01-02 00:00:00+00", "null_count": "0", "num_values": "2"}
NULLS = {"null_count": "2", "num_values": "2"}


def dated(at: dict[str, str] | None, days: dict[str, str] | None = NULLS) -> dict[str, dict[str, str]]:
    """Returns COPY's statistics for a file of `DATED`; pass None for a column without statistics."""
    statistics = {'"at"': at, '"days"."element"': days}
    return {path: known for path, known in statistics.items() if known is not None}


INFINITE = dated(GOOD | {"max": "infinity"})


def deliver(
    store: ObjectStore, contract: Contract, name: str, number: int, statistics: dict[str, dict[str, str]] | None = None
) -> str:
    key = layout.delivery("src", "orders", name, number)
    delivery = Delivery(
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
        statistics=statistics or {},
        ingested_at=utc_now(),
    )
    store.create(key, delivery)
    return key


def bronze(store: ObjectStore, contract: Contract, base: Version | None = None) -> Version:
    release = None
    if base is not None:
        release = Release(
            release="r", previous=None, kind="publish", environment="prod", run="x", epoch=1,
            tables={"bronze.orders": base}, who="me", created_at=utc_now(),
        )  # fmt: skip
    return read_deliveries(store, [contract], release)["bronze.orders"]


def test_R3_a_bronze_version_is_identified_by_its_deliveries_and_contract(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    first = bronze(store, OLD)
    assert bronze(store, OLD) == first
    second = deliver(store, OLD, "b.csv", 1)
    both = bronze(store, OLD, first)
    assert both.version != first.version
    assert second in both.deliveries
    assert both == bronze(store, OLD), "the base release must not change the result"


def test_R2_pinning_fails_and_names_the_files_with_another_contract(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    deliver(store, NEW, "b.csv", 1)
    with pytest.raises(BuscoError, match=r"an outdated contract:\n    src\.orders: a\.csv"):
        bronze(store, NEW)


def test_R2_a_file_ingested_again_under_the_new_contract_is_valid_in_every_later_pin(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    again = deliver(store, NEW, "a.csv", 2)
    published = bronze(store, NEW)
    assert published.deliveries == (again,)
    another = deliver(store, NEW, "b.csv", 1)
    assert bronze(store, NEW, published).deliveries == (again, another)


def test_R2_a_reverted_contract_does_not_bring_older_content_back(store: ObjectStore) -> None:
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


# -- deliveries with dates or times that readers don't support, which an earlier ingest accepted ----------------------


@pytest.mark.parametrize(
    "bad",
    [
        INFINITE,
        dated(GOOD | {"min": "-infinity"}),
        dated(GOOD | {"max": "10000-01-01 00:00:00+00"}),
        dated(GOOD | {"min": "0044-03-15 (BC) 10:00:00+00"}),
        dated(GOOD, {"min": "2018-01-01", "max": "infinity"}),
        dated(None, {"min": "0001-12-31 (BC)", "max": "2018-01-01"}),
    ],
)
def test_a_corrected_file_replaces_a_delivery_with_an_unsupported_date(
    store: ObjectStore, bad: dict[str, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    deliver(store, DATED, "a.csv", 1, bad)
    other = deliver(store, DATED, "b.csv", 1, dated(GOOD))
    corrected = deliver(store, DATED, "a.csv", 2, dated(GOOD))
    version = bronze(store, DATED)
    assert version.deliveries == (corrected, other)
    assert [file.key for file in version.files] == [
        "bronze/src/orders/a.csv-2.parquet",
        "bronze/src/orders/b.csv-1.parquet",
    ]
    assert (version.rows, version.bytes) == (2, 2)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "table=bronze.orders file=a.csv delivery=1 rows=1" in message


def test_the_newest_delivery_of_a_file_is_in_the_table_whatever_its_dates(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """So the run is rejected with a message on what to correct, rather than continuing without the file."""
    deliver(store, DATED, "a.csv", 1, INFINITE)
    newest = deliver(store, DATED, "a.csv", 2, INFINITE)
    assert bronze(store, DATED).deliveries == (newest,)
    assert "delivery=1 " in caplog.text
    assert "delivery=2 " not in caplog.text


@pytest.mark.parametrize(
    "unclear", [dated(None), dated({"null_count": "0", "num_values": "2"}), dated(GOOD | {"max": "?"})]
)
def test_an_older_delivery_is_kept_unless_its_statistics_prove_an_unsupported_date(
    store: ObjectStore, unclear: dict[str, dict[str, str]]
) -> None:
    first = deliver(store, DATED, "a.csv", 1, unclear)
    second = deliver(store, DATED, "a.csv", 2, dated(GOOD))
    third = deliver(store, DATED, "a.csv", 3, dated(NULLS))
    assert bronze(store, DATED).deliveries == (first, second, third)


def test_a_delivery_with_an_unsupported_date_is_dropped_even_from_the_base_release(store: ObjectStore) -> None:
    bad = deliver(store, DATED, "a.csv", 1, INFINITE)
    good = deliver(store, DATED, "b.csv", 1, dated(GOOD))
    base = bronze(store, DATED)
    assert base.deliveries == (bad, good)
    corrected = deliver(store, DATED, "a.csv", 2, dated(GOOD))
    assert bronze(store, DATED, base).deliveries == (corrected, good)
    # an older release of the platform, which did not check dates, published both deliveries of the file
    both = base.model_copy(
        update={"deliveries": (bad, corrected, good), "files": (base.files[0], *bronze(store, DATED).files)}
    )
    another = deliver(store, DATED, "c.csv", 1, dated(GOOD))
    version = bronze(store, DATED, both)
    assert version.deliveries == (corrected, good, another)
    assert version == bronze(store, DATED), "the base release must not change the result"


def test_R3_dropping_a_delivery_changes_the_version_id(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version id identifies Iceberg metadata, which an earlier release of the platform may have already written."""
    other = ObjectStore(MemoryS3(), "lake")
    for one, first in ((store, INFINITE), (other, dated(GOOD))):
        deliver(one, DATED, "a.csv", 1, first)
        deliver(one, DATED, "a.csv", 2, dated(GOOD))
    without = bronze(store, DATED)
    assert bronze(other, DATED).version != without.version
    monkeypatch.setattr(store, "read_many", lambda *_: pytest.fail("records are read although nothing has changed"))
    assert bronze(store, DATED, without) is without
