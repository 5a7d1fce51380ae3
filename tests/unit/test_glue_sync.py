"""Concurrent Glue syncs, and a sync that is overtaken at any of its calls, always end with the live release shown."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from busco.catalog import glue, glue_calls
from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.objects import ObjectStore
from busco.lake.records import Release
from busco.settings import LAYERS
from tests.unit.lake import ENVIRONMENT, Lake, others
from tests.unit.memory_glue import MemoryGlue, refusal
from tests.unit.memory_s3 import MemoryS3
from tests.unit.wide_lake import publish

PAGE = "docs/index.html"


class Catalog:
    """A lake and its Glue catalog.

    `meanwhile` is called once, right before call `at` (a number or a name) to S3 or Glue. `fail_after` makes calls
    after the named one fail.
    """

    def __init__(self) -> None:
        self.lake = Lake()
        self.glue = MemoryGlue(self.called)
        self.calls: list[str] = []
        self.pages: list[bytes] = []
        self.meanwhile: Callable[[], Any] | None = None
        self.at: int | str = 0
        self.fail_after = ""
        self._watch("get_object")
        self._watch("put_object")

    def _watch(self, name: str) -> None:
        original = getattr(self.lake.s3, name)

        def watched(**request: Any) -> Any:
            self.called(name)
            response = original(**request)
            if name == "put_object" and request["Key"] == PAGE:
                self.pages.append(request["Body"])
            return response

        setattr(self.lake.s3, name, watched)

    def called(self, name: str) -> None:
        if self.meanwhile is not None and self.at in (len(self.calls), name):
            meanwhile, self.meanwhile = self.meanwhile, None
            calls = self.calls
            meanwhile()
            self.calls = calls
        failing = self.fail_after in self.calls
        self.calls.append(name)
        if failing and self.meanwhile is None and name.startswith(("get_tables", "delete")):
            raise refusal("AccessDeniedException")

    def interrupted(self, at: int | str, meanwhile: Callable[[], Any]) -> None:
        self.calls, self.at, self.meanwhile = [], at, meanwhile

    def publish(self, *missing: str) -> Release:
        """Publishes a full run whose code lacks the tables `missing`; its docs page lists the release's tables."""
        lake = self.lake
        lake.tables = frozenset({"silver.s", "gold.g", "gold.h"}) - set(missing)
        run = lake.pin()
        lake.build_all(run, keep=True)
        lake.store.put(f"{run.docs}index.html", json.dumps([run.name, sorted(lake.tables)]).encode())
        return lake.publish(run)

    def sync(self, layers: tuple[str, ...] = LAYERS, at_once: int = 1) -> glue.Shown:
        """Shows the live release; with one call at once, the order of the calls is always the same."""
        shown = glue.sync(self.glue, self.lake.store, ENVIRONMENT, lambda layer: f"busco_{layer}", layers, at_once)
        assert shown is not None
        return shown

    def published(self, *missing: str) -> None:
        self.publish(*missing)
        self.sync()

    @property
    def shown(self) -> dict[str, str]:
        return {
            f"{database.removeprefix('busco_')}.{name}": table["Parameters"]["busco.version"]
            for (database, name), table in self.glue.tables.items()
        }

    @property
    def live(self) -> dict[str, str]:
        return {table: version.version for table, version in self.lake.live().tables.items()}

    @property
    def page(self) -> bytes:
        stored = self.lake.store.get(PAGE)
        assert stored is not None
        return stored.body


@pytest.fixture
def catalog() -> Catalog:
    """A catalog that shows three tables, one of which has been dropped by the live release."""
    made = Catalog()
    made.published()
    made.publish("gold.h")
    return made


def test_G1_a_sync_overtaken_at_any_call_shows_the_live_release_and_no_outdated_page() -> None:
    at = 0
    while True:
        catalog = Catalog()
        catalog.published()
        catalog.publish("gold.h")
        catalog.interrupted(at, catalog.published)
        catalog.sync()
        if catalog.meanwhile is not None:
            break
        assert catalog.shown == catalog.live, f"overtaken before call {at}"
        newest = catalog.pages.index(catalog.page)
        assert all(page == catalog.page for page in catalog.pages[newest:]), f"overtaken before call {at}"
        at += 1
    assert at > 10


def test_G1_a_newer_syncs_table_that_was_deleted_is_recreated_immediately(catalog: Catalog) -> None:
    """The table exists although the overtaken sync then fails.

    By that time a third release is live, so every other table also needs to be switched.
    """

    def newer() -> None:
        catalog.published()
        catalog.publish()

    catalog.interrupted("delete_table", newer)
    catalog.fail_after = "delete_table"
    with pytest.raises(ClientError, match="AccessDenied"):
        catalog.sync(("gold", "silver", "bronze"))
    assert catalog.calls.count("delete_table") == 1
    after = [call for call in catalog.calls[catalog.calls.index("delete_table") :] if not call.startswith("get_")]
    assert after[:2] == ["delete_table", "create_table"]
    assert catalog.shown == catalog.live


def test_G1_someone_elses_table_with_the_name_of_a_dropped_table_is_not_deleted(catalog: Catalog) -> None:
    theirs = {"Name": "h", "Parameters": {"classification": "csv"}}

    def replaced() -> None:
        catalog.glue.delete_table("busco_gold", "h")
        catalog.glue.create_table("busco_gold", theirs)

    listings = len(LAYERS)
    seen: list[str] = []

    def called(name: str) -> None:
        # right after gold's tables were listed
        if seen.count("get_tables") == listings and seen[-1] == "get_tables":
            seen.append("replaced")
            replaced()
        seen.append(name)

    catalog.glue.called = called
    shown = catalog.sync()
    assert "replaced" in seen
    assert catalog.glue.tables["busco_gold", "h"]["Parameters"] == theirs["Parameters"]
    assert shown.deleted == ()


def test_G1_a_table_that_another_sync_has_deleted_is_not_reported_as_deleted(catalog: Catalog) -> None:
    catalog.interrupted("delete_table", catalog.sync)
    assert catalog.sync().deleted == ()
    assert catalog.shown == catalog.live


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before the sync", "during the sync"])
def test_G1_no_table_is_deleted_if_current_json_is_missing(catalog: Catalog, meanwhile: bool) -> None:
    shown = catalog.shown

    def lost() -> None:
        del catalog.lake.s3.objects[ENVIRONMENT.current]

    catalog.interrupted("get_tables", lost) if meanwhile else lost()
    with pytest.raises(BuscoError, match=r"current.json is missing"):
        catalog.sync()
    assert catalog.shown == shown


def test_a_table_missing_from_the_newer_docs_is_described_by_the_run_that_built_it() -> None:
    """Of two concurrent runs, the second to publish adds a model, but the docs of the first one stay."""
    catalog = Catalog()
    catalog.published("gold.g", "gold.h")
    lake = catalog.lake
    lake.tables = frozenset({"silver.s", "gold.g"})
    late = lake.pin()
    lake.build_all(late, keep=True)
    node = {"schema": "gold", "name": "g", "description": "what g is", "columns": {}, "resource_type": "model"}
    manifest = {"nodes": {"model.busco.g": node}, "sources": {}, "metadata": {"project_name": "busco"}}
    lake.store.put(f"{late.docs}manifest.json", json.dumps(manifest).encode())
    catalog.publish("gold.g", "gold.h")
    lake.publish(late)
    catalog.sync()
    assert catalog.glue.tables["busco_gold", "g"]["Description"] == "what g is"


def test_G1_a_release_that_another_project_publishes_during_a_sync_is_shown_too(catalog: Catalog) -> None:
    catalog.interrupted("delete_table", lambda: releases.publish(*others(catalog.lake), "me", "docs/other/"))
    catalog.sync()
    assert "gold.o" in catalog.shown
    assert catalog.shown == catalog.live


# -- overtaken by a release with different versions ------------------------------------------------------------------


def changed(catalog: Catalog) -> None:
    catalog.lake.deliveries += 1
    catalog.publish()


def rolled_back(catalog: Catalog) -> None:
    """Rolls back to the release that Glue shows, so that some entries are right before they are written."""
    shown = next(one for one in releases.history(catalog.lake.store, ENVIRONMENT) if one.previous is None)
    releases.rollback(catalog.lake.store, ENVIRONMENT, shown.release, "ana", "wrong prices")


@pytest.mark.parametrize("newer", [changed, rolled_back])
def test_G1_a_sync_overtaken_at_any_call_replaces_nothing_that_a_newer_sync_has_shown(
    newer: Callable[[Catalog], None],
) -> None:
    """Even if the overtaken sync is killed before it notices: every table shows the live release after each call."""
    at = 0
    while True:
        catalog = Catalog()
        catalog.published()
        changed(catalog)

        def meanwhile(catalog: Catalog = catalog, at: int = at) -> None:
            newer(catalog)
            catalog.sync()

            def answering(name: str) -> None:
                assert catalog.shown == catalog.live, f"overtaken before call {at}: {name}"

            catalog.glue.answering = answering

        catalog.interrupted(at, meanwhile)
        catalog.sync()
        if catalog.meanwhile is not None:
            break
        assert catalog.shown == catalog.live, f"overtaken before call {at}"
        at += 1
    assert at > 10


def test_G1_syncs_of_several_releases_with_many_calls_at_once_end_with_the_live_release() -> None:
    store, api = ObjectStore(MemoryS3(), "lake"), MemoryGlue(latency=0.001)
    publish(store, {f"gold.t{n}": "v1" for n in range(30)})
    shown(store, api)
    publish(store, {f"gold.t{n}": "v2" for n in range(20)})
    releases_left = iter([{f"gold.t{n}": f"v{n % 3}" for n in range(10, 40)}, {f"gold.t{n}": "v1" for n in range(35)}])

    one_publisher = threading.Lock()

    def called(name: str) -> None:
        if name == "update_table":
            with one_publisher:
                if (tables := next(releases_left, None)) is None:
                    return
                publish(store, tables)
            shown(store, api)

    api.called = called
    shown(store, api)
    live = releases.read_live(store, ENVIRONMENT)
    assert live is not None
    assert live.release.release == "r4"
    assert versions(api) == {table: version.version for table, version in live.release.tables.items()}


def test_G1_a_sync_that_takes_long_starts_over_soon_after_another_release_went_live(
    wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glue, "_CHECKED_EVERY", 0.0)
    publish(wide.store, dict.fromkeys(wide.tables, "v2"))

    def newer(name: str) -> None:
        if name == "update_table":
            wide.glue.called = lambda _: None
            publish(wide.store, dict.fromkeys(wide.tables, "v3"))

    wide.glue.called = newer
    wide.glue.writes.clear()
    assert shown(wide.store, wide.glue, at_once=1).release == "r3"
    assert wide.glue.writes.total() == 251, "one table was already being written"


# -- what is written --------------------------------------------------------------------------------------------------


def shown(store: ObjectStore, api: MemoryGlue, at_once: int = 32) -> glue.Shown:
    made = glue.sync(api, store, ENVIRONMENT, lambda layer: f"busco_{layer}", LAYERS, at_once)
    assert made is not None
    return made


def versions(api: MemoryGlue) -> dict[str, str]:
    return {
        f"{database.removeprefix('busco_')}.{name}": table["Parameters"]["busco.version"]
        for (database, name), table in api.tables.items()
    }


class Wide:
    """A lake with 250 tables, whose first release Glue shows; `calls` are the calls to Glue since then."""

    def __init__(self) -> None:
        self.store, self.glue = ObjectStore(MemoryS3(), "lake"), MemoryGlue()
        self.tables = {f"{layer}.t{n:03}": "v1" for layer in ("silver", "gold") for n in range(125)}
        publish(self.store, self.tables)
        self.show()
        self.calls: list[str] = []
        self.glue.called = self.calls.append

    def show(self) -> glue.Shown:
        self.glue.writes.clear()
        return shown(self.store, self.glue)


@pytest.fixture
def wide() -> Wide:
    return Wide()


LISTED = ["get_tables"] * 5  # none in bronze; 125 each in silver and gold, 100 a page


def test_G2_a_release_that_changes_no_table_is_shown_without_a_write(wide: Wide) -> None:
    publish(wide.store, wide.tables)
    done = wide.show()
    assert (done.release, len(done.unchanged)) == ("r2", 250)
    assert wide.calls == LISTED


def test_G2_only_changed_tables_are_written_and_name_the_release_that_introduced_their_version(wide: Wide) -> None:
    new = {"gold.t007": "v2", "silver.t124": "v2", "gold.new": "v1"}
    publish(wide.store, wide.tables | new)
    done = wide.show()
    assert done.created == ("busco_gold.new",)
    assert done.updated == ("busco_gold.t007", "busco_silver.t124")
    assert sorted(wide.calls) == sorted([*LISTED, "update_table", "update_table", "create_table"])
    named = {key: table["Parameters"]["busco.release"] for key, table in wide.glue.tables.items()}
    assert {key for key, release in named.items() if release == "r2"} == set(wide.glue.writes)
    assert set(named.values()) == {"r1", "r2"}


def test_tables_that_are_gone_from_the_release_are_deleted_and_others_are_not(wide: Wide) -> None:
    wide.glue.tables["busco_gold", "theirs"] = {"Name": "theirs", "VersionId": "1"}
    rest = {table: version for table, version in wide.tables.items() if table.startswith("silver.")}
    publish(wide.store, rest)
    done = wide.show()
    assert done.deleted == tuple(f"busco_gold.t{n:03}" for n in range(125))
    del wide.glue.tables["busco_gold", "theirs"]
    assert versions(wide.glue) == rest


def test_G2_tables_whose_data_changes_are_written_before_those_whose_description_changes(wide: Wide) -> None:
    publish(wide.store, wide.tables | {"silver.t124": "v2"}, description="all are described now")
    order: list[str] = []
    put = wide.glue._put
    wide.glue._put = lambda database, given: (order.append(given["Name"]), put(database, given))[1]
    assert len(shown(wide.store, wide.glue, at_once=1).updated) == 250
    assert order[0] == "t124"
    order.clear()
    assert wide.show().updated == ()
    assert order == []


def test_G2_releases_that_do_not_record_who_introduced_a_version_change_no_entry(wide: Wide) -> None:
    publish(wide.store, wide.tables | {"gold.t001": "v2"}, has_since=False)
    assert wide.show().updated == ("busco_gold.t001",)
    assert wide.glue.tables["busco_gold", "t001"]["Parameters"]["busco.release"] == "r2"
    publish(wide.store, wide.tables | {"gold.t001": "v2"}, has_since=False)
    assert wide.show().updated == ()
    assert wide.glue.tables["busco_gold", "t001"]["Parameters"]["busco.release"] == "r2"


def test_G2_an_entry_from_before_there_were_checksums_is_written_only_if_it_is_wrong(wide: Wide) -> None:
    for name in ("t001", "t002", "t003"):
        del wide.glue.tables["busco_gold", name]["Parameters"]["busco.checksum"]
    wide.glue.tables["busco_gold", "t002"]["StorageDescriptor"]["Columns"][0]["Type"] = "int"
    del wide.glue.tables["busco_gold", "t003"]["StorageDescriptor"]["Columns"][2]
    assert wide.show().updated == ("busco_gold.t002", "busco_gold.t003")


def test_G2_an_unchanged_release_is_recognized_without_the_versions_columns(
    wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    full = glue.Entries._version
    monkeypatch.setattr(glue.Entries, "_version", lambda self, table: (read.append(table), full(self, table))[1])
    wide.show()
    assert read == []
    publish(wide.store, wide.tables | {"gold.t001": "v2"})
    wide.show()
    assert read == ["gold.t001"]


def other_type(entry: dict[str, Any]) -> None:
    entry["StorageDescriptor"]["Columns"][0]["Type"] = "int"


def other_comment(entry: dict[str, Any]) -> None:
    entry["StorageDescriptor"]["Columns"][0]["Comment"] = "nonsense"


def column_added(entry: dict[str, Any]) -> None:
    entry["StorageDescriptor"]["Columns"].append({"Name": "more", "Type": "int"})


def column_removed(entry: dict[str, Any]) -> None:
    del entry["StorageDescriptor"]["Columns"][1]


def other_description(entry: dict[str, Any]) -> None:
    entry["Description"] = "nonsense"


def other_location(entry: dict[str, Any]) -> None:
    entry["StorageDescriptor"]["Location"] = "s3://elsewhere/"


def other_pointer(entry: dict[str, Any]) -> None:
    entry["Parameters"]["metadata_location"] = "s3://lake/elsewhere.json"


def other_partitions(entry: dict[str, Any]) -> None:
    entry["Parameters"]["busco.partition_by"] = "day"


def parameter_added(entry: dict[str, Any]) -> None:
    entry["Parameters"]["classification"] = "csv"


def other_table_type(entry: dict[str, Any]) -> None:
    entry["TableType"] = "VIRTUAL_VIEW"


def partition_key_added(entry: dict[str, Any]) -> None:
    entry["PartitionKeys"].append({"Name": "day", "Type": "date"})


def other_input_format(entry: dict[str, Any]) -> None:
    entry["StorageDescriptor"]["InputFormat"] = "org.apache.hadoop.mapred.TextInputFormat"


def other_serde(entry: dict[str, Any]) -> None:
    entry["StorageDescriptor"]["SerdeInfo"] = {"SerializationLibrary": "org.openx.data.jsonserde.JsonSerDe"}


@pytest.mark.parametrize(
    "change",
    [
        other_type, other_comment, column_added, column_removed, other_description, other_location, other_pointer,
        other_partitions, parameter_added, other_table_type, partition_key_added, other_input_format, other_serde,
    ],
)  # fmt: skip
def test_G2_what_somebody_else_changed_in_an_entry_is_put_right(wide: Wide, change: Callable[[Any], None]) -> None:
    before = wide.glue.tables["busco_gold", "t005"]
    right = {**json.loads(json.dumps(before)), "VersionId": None}
    change(before)
    before["VersionId"] = "changed"
    assert wide.show().updated == ("busco_gold.t005",)
    assert {**wide.glue.tables["busco_gold", "t005"], "VersionId": None} == right


def test_glue_has_the_columns_of_the_version_that_it_shows(wide: Wide) -> None:
    columns = (("id", "INTEGER"), ("x", "STRUCT(a INTEGER, b VARCHAR)"), ("Day", "DATE"))
    publish(wide.store, wide.tables | {"gold.t001": "v2"}, columns=columns)
    wide.show()
    found = wide.glue.tables["busco_gold", "t001"]["StorageDescriptor"]["Columns"]
    assert [(column["Name"], column["Type"]) for column in found] == [
        ("id", "int"), ("x", "struct<a:int,b:string>"), ("Day", "date"),
    ]  # fmt: skip


def test_long_and_multi_line_texts_arrive_shortened_and_stay_as_they_are(wide: Wide) -> None:
    text = "several\n  lines\r\n" + "long " * 1000
    publish(wide.store, wide.tables, description=text, comment=text)
    assert len(wide.show().updated) == 250
    entry = wide.glue.tables["busco_gold", "t001"]
    comment = entry["StorageDescriptor"]["Columns"][0]["Comment"]
    assert comment.startswith("several lines long long")
    assert (len(comment), len(entry["Description"])) == (255, 2048)
    assert wide.show().updated == ()


def test_fifty_publishes_archive_no_version_of_a_table() -> None:
    store, api = ObjectStore(MemoryS3(), "lake"), MemoryGlue()
    for number in range(50):
        publish(store, {"gold.t": f"v{number}"})
        shown(store, api)
    assert (api.writes["busco_gold", "t"], api.archived) == (50, 0)


def refuse_table(glue: MemoryGlue, name: str) -> None:
    """Makes Glue refuse whatever is written to tables with this name."""
    put = glue._put

    def refusing(database: str, given: dict[str, Any]) -> dict[str, Any]:
        if given["Name"] == name:
            raise refusal("InvalidInputException")
        return put(database, given)

    glue._put = refusing


def test_a_table_that_glue_refuses_does_not_keep_the_others_from_being_switched(wide: Wide) -> None:
    publish(wide.store, dict.fromkeys(wide.tables, "v2"))
    refuse_table(wide.glue, "t003")
    with pytest.raises(ClientError, match="InvalidInput") as raised:
        wide.show()
    assert raised.value.__notes__ in (["the table is busco_gold.t003"], ["the table is busco_silver.t003"])
    assert {table for table, version in versions(wide.glue).items() if version == "v1"} == {"gold.t003", "silver.t003"}


def test_tables_that_are_gone_are_deleted_and_the_docs_are_shown_although_glue_refuses_a_table(wide: Wide) -> None:
    wide.tables.pop("gold.t124")
    release = publish(wide.store, wide.tables | {"gold.t003": "v2"})
    wide.store.put(f"{release.docs}index.html", b"the newest page")
    refuse_table(wide.glue, "t003")
    with pytest.raises(ClientError, match="InvalidInput"):
        wide.show()
    assert versions(wide.glue) == wide.tables
    shown_page = wide.store.get(PAGE)
    assert shown_page is not None
    assert shown_page.body == b"the newest page"


@pytest.mark.parametrize("body", [None, b"not a record", b'{"format": 9}'], ids=["missing", "damaged", "other format"])
def test_G4_a_table_whose_record_can_not_be_read_does_not_keep_the_others_from_being_switched(
    wide: Wide, body: bytes | None
) -> None:
    released = dict.fromkeys(wide.tables, "v2")
    publish(wide.store, released)
    change_record(wide.store, "gold.t003", "v2", body)
    with pytest.raises(BuscoError, match=r"or can't be read: gold.t003; all other tables show") as failed:
        wide.show()
    assert failed.value.hint == "restore them: busco release repair"
    assert versions(wide.glue) == released | {"gold.t003": "v1"}


def test_G4_a_changed_entry_whose_record_is_missing_is_left_and_the_others_are_put_right(wide: Wide) -> None:
    change_record(wide.store, "gold.t003", "v1", None)
    for name in ("t003", "t004"):
        other_comment(wide.glue.tables["busco_gold", name])
    with pytest.raises(BuscoError, match=r"or can't be read: gold.t003; all other tables show"):
        wide.show()
    assert list(wide.glue.writes) == [("busco_gold", "t004")]


def change_record(store: ObjectStore, table: str, version: str, body: bytes | None) -> None:
    key = ENVIRONMENT.version(table, version)
    del store.client.objects[key]
    if body is not None:
        store.client.objects[key] = body


def test_the_records_that_entries_without_checksums_are_compared_with_are_read_at_once(
    wide: Wide, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in wide.glue.tables.values():
        del entry["Parameters"]["busco.checksum"]
    meeting, full = threading.Barrier(5, timeout=30), glue.Entries._version
    monkeypatch.setattr(glue.Entries, "_version", lambda self, table: (meeting.wait(), full(self, table))[1])
    assert shown(wide.store, wide.glue, at_once=5).updated == ()


# -- answers that are lost, and throttling ----------------------------------------------------------------------------


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(glue_calls, "_FIRST_PAUSE", 0.0)
    return


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    "error",
    [ReadTimeoutError(endpoint_url="x"), refusal("OperationTimeoutException"), refusal("InternalServiceException")],
)
@pytest.mark.parametrize("is_performed", [True, False])
def test_a_call_at_any_point_whose_answer_is_lost_leads_to_one_write_of_each_table(
    error: Exception, is_performed: bool
) -> None:
    at = 0
    while True:
        store, api = ObjectStore(MemoryS3(), "lake"), MemoryGlue()
        publish(store, {"gold.changed": "v1", "gold.gone": "v1", "gold.same": "v1"})
        shown(store, api)
        api.writes.clear()
        publish(store, {"gold.changed": "v2", "gold.new": "v1", "gold.same": "v1"})
        seen: list[str] = []

        def lost(name: str, seen: list[str] = seen, at: int = at) -> None:
            seen.append(name)
            if len(seen) == at + 1:
                raise error

        setattr(api, "answering" if is_performed else "called", lost)
        done = shown(store, api, at_once=1)
        if len(seen) <= at:
            break
        assert (done.created, done.updated, done.deleted) == (
            ("busco_gold.new",), ("busco_gold.changed",), ("busco_gold.gone",),
        ), f"the answer of call {at} was lost: {seen}"  # fmt: skip
        assert versions(api) == {"gold.changed": "v2", "gold.new": "v1", "gold.same": "v1"}
        assert dict(api.writes) == {("busco_gold", "changed"): 1, ("busco_gold", "new"): 1}
        at += 1
    assert at > 5


@pytest.mark.usefixtures("no_pauses")
def test_a_table_that_is_written_by_a_newer_sync_after_a_lost_answer_is_left_alone(wide: Wide) -> None:
    publish(wide.store, wide.tables | {"gold.t001": "v2"})

    def lost(name: str) -> None:
        if name == "update_table":
            wide.glue.answering = lambda _: None
            publish(wide.store, wide.tables | {"gold.t001": "v3"})
            shown(wide.store, wide.glue)
            raise ReadTimeoutError(endpoint_url="x")

    wide.glue.answering = lost
    assert wide.show().release == "r3"
    assert versions(wide.glue)["gold.t001"] == "v3"
    assert wide.glue.writes["busco_gold", "t001"] == 2


@pytest.mark.usefixtures("no_pauses")
def test_a_table_that_a_newer_sync_created_and_a_delete_without_an_answer_removed_is_created_again(wide: Wide) -> None:
    rest = {table: version for table, version in wide.tables.items() if table != "gold.t001"}
    publish(wide.store, rest)

    def newer(name: str) -> None:
        if name == "delete_table":
            wide.glue.called = lambda _: None
            publish(wide.store, wide.tables)
            shown(wide.store, wide.glue)

    def lost(name: str) -> None:
        if name == "delete_table":
            wide.glue.answering = lambda _: None
            raise ReadTimeoutError(endpoint_url="x")

    wide.glue.called, wide.glue.answering = newer, lost
    wide.show()
    assert versions(wide.glue) == wide.tables


def test_a_service_that_accepts_20_calls_a_second_gets_each_write_once_and_little_more() -> None:
    """The rate itself is tested in simulated time (test_glue_calls.py)."""
    store, api = ObjectStore(MemoryS3(), "lake"), MemoryGlue(latency=0.03)
    publish(store, {f"gold.t{n}": "v1" for n in range(60)})
    shown(store, api, at_once=64)
    publish(store, {f"gold.t{n}": "v2" for n in range(60)})
    api.writes.clear()
    accepted, tokens, filled = 0, 20.0, time.monotonic()

    def called(name: str) -> None:
        nonlocal accepted, tokens, filled
        with api.lock:
            now = time.monotonic()
            tokens, filled = min(20.0, tokens + (now - filled) * 20), now
            if tokens < 1:
                raise refusal("ThrottlingException")
            tokens, accepted = tokens - 1, accepted + 1

    api.called = called
    began = time.monotonic()
    assert len(shown(store, api).updated) == 60
    seconds = time.monotonic() - began
    assert set(api.writes.values()) == {1}
    assert len(api.writes) == 60
    assert accepted == 60 + 3
    assert seconds <= 1.2 * accepted / 20


# -- speed ------------------------------------------------------------------------------------------------------------


def fastest(tables: int, times: int) -> float:
    """Returns the seconds in which a release is shown that changes all tables, with 30 ms a call: the least of some."""
    store, api = ObjectStore(MemoryS3(), "lake"), MemoryGlue()
    publish(store, {f"gold.t{n}": "v0" for n in range(tables)})
    shown(store, api)
    api.latency = 0.03
    found = []
    for number in range(times):
        publish(store, {f"gold.t{n}": f"v{number + 1}" for n in range(tables)})
        began = time.monotonic()
        assert len(shown(store, api).updated) == tables
        found.append(time.monotonic() - began)
    return min(found)


def test_twenty_changed_tables_are_shown_within_0_3_seconds() -> None:
    assert fastest(20, times=5) <= 0.3


@pytest.mark.slow
def test_a_thousand_changed_tables_are_shown_within_10_seconds() -> None:
    assert fastest(1000, times=1) <= 10
