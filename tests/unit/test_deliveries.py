"""Which deliveries make up a bronze table while its contract changes (R2, R3)."""

from __future__ import annotations

import json

import pytest

from busco.errors import BuscoError
from busco.lake import deliveries, layout, records
from busco.lake.contents import BRONZE, read_record, read_version
from busco.lake.deliveries import Contract, read_deliveries
from busco.lake.objects import ObjectStore
from busco.lake.records import FORMAT, Column, DataFile, Delivery, Published, Release, Version, utc_now
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


def published(store: ObjectStore, contract: Contract, base: Published | None = None) -> Published:
    release = None
    if base is not None:
        release = Release(
            release="r", previous=None, kind="publish", environment="prod", run="x", epoch=1,
            tables={"bronze.orders": base}, who="me", created_at=utc_now(),
        )  # fmt: skip
    return read_deliveries(store, [contract], release)["bronze.orders"]


def bronze(store: ObjectStore, contract: Contract, base: Published | None = None) -> Version:
    return read_version(store, published(store, contract, base))


def test_R3_a_bronze_version_is_identified_by_its_deliveries_and_contract(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    first = published(store, OLD)
    assert published(store, OLD) == first
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
    assert bronze(store, NEW).deliveries == (again,)
    base = published(store, NEW)
    another = deliver(store, NEW, "b.csv", 1)
    assert bronze(store, NEW, base).deliveries == (again, another)


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
    base = published(store, DATED)
    assert read_version(store, base).deliveries == (bad, good)
    corrected = deliver(store, DATED, "a.csv", 2, dated(GOOD))
    assert bronze(store, DATED, base).deliveries == (corrected, good)
    # an older release of the platform, which did not check dates, published both deliveries of the file
    files = tuple(DataFile(key=key, rows=1, bytes=1) for key in (bad, corrected, good))
    whole = bronze(store, DATED).model_copy(update={"deliveries": (bad, corrected, good), "files": files})
    both = Published.model_validate(whole.model_dump(exclude={"format", "pages"}))
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
    without = published(store, DATED)
    assert published(other, DATED).version != without.version
    monkeypatch.setattr(store, "read_many", lambda *_: pytest.fail("records are read although nothing has changed"))
    assert published(store, DATED, without) == without


def test_the_records_of_versions_and_pages_state_their_format(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(store, OLD, "a.csv", 1)
    version = published(store, OLD)
    keys = [version.record, BRONZE.page(version.table, read_record(store, version).pages[0].page)]
    bodies = [json.loads(store.client.objects[key]) for key in keys]
    assert [body.pop("format") for body in bodies] == [FORMAT, FORMAT]
    # the first such records stated no format, but there were none in format 1; the next format's code can read them
    for key, body in zip(keys, bodies, strict=True):
        store.client.objects[key] = json.dumps(body).encode()
    monkeypatch.setattr(records, "FORMAT", 3)
    whole = read_version(store, version)
    assert (whole.format, len(whole.files)) == (2, 1)


# -- delivery records that an administrator has deleted ---------------------------------------------------------------


@pytest.mark.parametrize("based", [True, False])
def test_a_file_that_was_withdrawn_and_delivered_again_is_in_the_table(store: ObjectStore, based: bool) -> None:
    first = deliver(store, OLD, "a.csv", 1)
    base = published(store, OLD)
    wrong = store.read(first, Delivery)
    assert wrong is not None
    del store.client.objects[first]
    assert published(store, OLD, base).files == 0
    # no delivery of the file is known any more, so the next one gets the same number
    store.create(first, wrong.model_copy(update={"object": "bronze/src/orders/right.parquet", "rows": 5}))
    version = bronze(store, OLD, base if based else None)
    assert version.version != base.version
    assert [file.key for file in version.files] == ["bronze/src/orders/right.parquet"]
    assert version.rows == 5


@pytest.mark.parametrize("outdated", [True, False])
def test_the_delivery_before_a_withdrawn_one_counts_again(store: ObjectStore, outdated: bool) -> None:
    older = OLD if outdated else DATED
    deliver(store, older, "a.csv", 1, INFINITE)
    deliver(store, DATED, "b.csv", 1, dated(GOOD))
    newest = deliver(store, DATED, "a.csv", 2, dated(GOOD))
    base = published(store, DATED)
    assert base.files == 2
    del store.client.objects[newest]
    if outdated:
        with pytest.raises(BuscoError, match=r"src\.orders: a\.csv"):
            published(store, DATED, base)
    else:
        assert bronze(store, DATED, base) == bronze(store, DATED), "the base release must not change the result"
        assert bronze(store, DATED, base).rows == 2


def test_a_version_from_before_etags_were_part_of_its_id_is_kept_until_something_changes(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(store, OLD, "a.csv", 1)
    monkeypatch.setattr(store, "sizes", lambda prefix: dict.fromkeys(store.keys(prefix), ("", 0)))
    current = deliveries._identity
    monkeypatch.setattr(
        deliveries, "_identity", lambda contract, _: current(contract, sorted(store.keys("_lake/deliveries/")))
    )
    base = published(store, OLD)
    whole = Published.model_validate(read_version(store, base).model_dump(exclude={"format", "pages"}))
    monkeypatch.undo()
    assert published(store, OLD, base) == base
    moved = published(store, OLD, whole)
    assert (moved.version, moved.inline) == (base.version, None)
    assert read_version(store, moved).files == read_version(store, base).files
    deliver(store, OLD, "b.csv", 1)
    assert published(store, OLD, base) == published(store, OLD, whole) == published(store, OLD)


def test_a_deleted_record_or_page_of_the_base_release_is_written_again(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    base = published(store, OLD)
    before = dict(store.client.objects)
    del store.client.objects[base.record]
    assert published(store, OLD, base) == base
    assert store.client.objects == before
    for lost in (base.record, BRONZE.page(base.table, read_record(store, base).pages[0].page)):
        del store.client.objects[lost]
    deliver(store, OLD, "b.csv", 1)
    assert published(store, OLD, base).files == 2


def test_a_page_with_different_content_is_not_used(store: ObjectStore) -> None:
    deliver(store, OLD, "a.csv", 1)
    base = published(store, OLD)
    key = BRONZE.page(base.table, read_record(store, base).pages[0].page)
    stored = json.loads(store.client.objects[key])
    stored["deliveries"][0]["object"] = "bronze/src/orders/other.parquet"
    store.client.objects[key] = json.dumps(stored).encode()
    with pytest.raises(BuscoError, match="already exists, but with different content"):
        published(store, OLD)
