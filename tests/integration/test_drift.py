"""What other programs change in the bucket and in Glue is found and repaired."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from busco.aws import client
from busco.catalog import repair
from busco.cli.releases import show_glue
from busco.doctor import Surroundings, aws
from busco.errors import BuscoError
from busco.lake import object_versions
from busco.lake.contents import read_versions
from busco.lake.layout import listing
from busco.lake.metadata_json import location_of
from busco.lake.objects import ObjectStore
from busco.lake.records import Release
from tests.lakes.make import INPUT
from tests.platforms import ENVIRONMENT, Platform, csv_text

HEADER = ("id", "customer", "amount", "day", "n")
ROWS = [("o1", "x", "1.50", "2018-01-01", 1), ("o2", "y", "2.50", "2018-01-02", 2)]
ALL = "select * from busco_gold.fct order by all"


@pytest.fixture
def published(mini: Platform) -> Platform:
    mini.deliver(csv_text(HEADER, ROWS))
    assert mini.build().good
    return mini


def objects(made: Platform) -> dict[str, str]:
    """Returns the ETag of each object in the lake's bucket."""
    pages = made.store.client.get_paginator("list_objects_v2").paginate(Bucket=made.store.bucket)
    return {one["Key"]: one["ETag"] for page in pages for one in page.get("Contents", [])}


def findings(made: Platform, status: int = 1) -> list[dict[str, Any]]:
    """Returns what a check finds; it must change nothing."""
    before = objects(made)
    printed = made.busco("release", "repair", "--check", "--format", "json", status=status)
    assert objects(made) == before
    report = json.loads(printed[: printed.rindex("}") + 1])
    return list(report["findings"])


def repaired(made: Platform, status: int = 0) -> str:
    printed = made.busco("release", "repair", status=status)
    if not status:
        assert findings(made, 0) == []
    return printed


def objects_of(made: Platform, release: Release) -> dict[str, str]:
    """Returns a key of each kind of object that a release names."""
    whole = read_versions(made.store, release.tables.values())
    fct, orders = release.tables["gold.fct"], release.tables["bronze.orders"]
    metadata = made.store.get(fct.metadata)
    assert metadata is not None
    (page,) = made.store.keys(ENVIRONMENT.page("bronze.orders", "").removesuffix(".json"))
    return {
        "release": ENVIRONMENT.release(release.release),
        "record of a version": fct.record,
        "page": page,
        "delivery record": whole["bronze.orders"].deliveries[0],
        "data file": whole["gold.fct"].files[0].key,
        "metadata": orders.metadata,
        "manifest list": made.store.key(json.loads(metadata.body)["snapshots"][0]["manifest-list"]),
        "manifest": next(made.store.keys(f"{ENVIRONMENT.manifests}silver.orders/")),
    }


def test_a_lake_without_drift_has_no_findings(published: Platform) -> None:
    assert findings(published, 0) == []
    printed = published.busco("release", "repair", "--check")
    assert "objects in 1 release are unchanged, and Glue shows its 3 tables" in printed


def test_an_object_of_each_kind_that_was_deleted_is_restored(published: Platform) -> None:
    before, release, s3 = published.duckdb(ALL), published.live(), published.store.client
    kinds = objects_of(published, release)
    had = {key: published.store.sizes(listing(key))[key] for key in kinds.values()}
    for key in kinds.values():
        s3.delete_object(Bucket=published.store.bucket, Key=key)
    # objects that a deleted one names are found once that one is back
    assert [one["kind"] for one in findings(published)] == ["release"]
    printed = repaired(published)
    for key in kinds.values():
        assert f"{published.store.url(key)} was deleted at " in printed
    assert {key: published.store.sizes(listing(key))[key] for key in had} == had
    assert published.duckdb(ALL) == before


def test_a_deleted_pointer_to_the_live_release_is_restored(published: Platform) -> None:
    assert published.build("fct").good
    live = published.live()
    published.store.client.delete_object(Bucket=published.store.bucket, Key=ENVIRONMENT.current)
    (found,) = findings(published)
    assert (found["kind"], found["problem"], found["repairable"]) == ("pointer", "was deleted", True)
    repaired(published)
    assert published.live() == live


@pytest.mark.slow
def test_an_object_of_each_kind_that_was_overwritten_is_restored(published: Platform) -> None:
    before, release, s3 = published.duckdb(ALL), published.live(), published.store.client
    kinds = objects_of(published, release)
    had = {key: published.store.sizes(listing(key))[key] for key in kinds.values()}
    for key in kinds.values():
        s3.put_object(Bucket=published.store.bucket, Key=key, Body=b"x" * had[key][1])
    repaired(published)
    # releases and delivery records have no recorded ETag; what was written first counts
    assert {key: published.store.sizes(listing(key))[key] for key in had} == had
    assert published.duckdb(ALL) == before


# other engines, through Glue ---------------------------------------------------------------------------------------


def entry_of(made: Platform, name: str) -> dict[str, Any]:
    found = client("glue", made.settings).get_table(DatabaseName="busco_gold", Name=name)["Table"]
    return {part: found[part] for part in INPUT if part in found}


def commit(made: Platform, table: str = "gold.fct") -> None:
    """Commits to a table as Trino's INSERT does: new metadata below its location, an entry without our parameters."""
    before = made.live().tables[table].metadata
    stored = made.store.get(before)
    assert stored is not None
    metadata = json.loads(stored.body)
    (ours,) = metadata["snapshots"]
    metadata["snapshots"].append(
        {
            **ours,
            "snapshot-id": 7,
            "parent-snapshot-id": ours["snapshot-id"],
            "summary": {
                **ours["summary"],
                "engine-name": "trino",
                "trino_query_id": "20261130_1",
                "total-records": "9",
            },
        }
    )
    metadata["current-snapshot-id"] = metadata["refs"]["main"]["snapshot-id"] = 7
    after = f"{location_of(before)}/metadata/00002-0f3c.metadata.json"
    made.store.create(after, json.dumps(metadata).encode())
    changed = entry_of(made, "fct")
    changed["Parameters"] = {"table_type": "ICEBERG", "metadata_location": made.store.url(after)}
    client("glue", made.settings).update_table(DatabaseName="busco_gold", TableInput=changed)


def drop(made: Platform, table: str = "gold.fct") -> None:
    """Drops a table as Trino does: the entry, everything below the location, and all files that the metadata names."""
    published = made.live().tables[table]
    keys = [*made.store.keys(f"{location_of(published.metadata)}/"), *(f.key for f in made.version(table).files)]
    keys += made.store.keys(f"{ENVIRONMENT.manifests}{table}/")
    for key in keys:
        made.store.client.delete_object(Bucket=made.store.bucket, Key=key)
    client("glue", made.settings).delete_table(DatabaseName="busco_gold", Name="fct")


@pytest.mark.slow
def test_a_table_that_another_engine_committed_to_is_found_and_shown_as_released_again(published: Platform) -> None:
    before, entry = published.query(ALL), entry_of(published, "fct")
    commit(published)
    (found,) = findings(published)
    assert (found["kind"], found["where"], found["problem"]) == ("Glue table", "busco_gold.fct", "was changed")
    assert "00002-0f3c" in found["found"]
    assert entry["Parameters"]["metadata_location"] in found["expected"]
    assert "parameter busco.managed: true" in found["expected"]
    assert "engine-name trino; trino_query_id 20261130_1" in found["who"]
    assert found["when"]
    assert "corrected in Glue" in repaired(published)
    assert entry_of(published, "fct") == entry
    assert published.query(ALL) == before


@pytest.mark.slow
def test_a_dropped_table_is_found_and_comes_back_with_its_data(published: Platform) -> None:
    before, entry = published.query(ALL), entry_of(published, "fct")
    drop(published)
    assert {one["kind"] for one in findings(published)} == {"Glue table", "metadata", "data file"}
    repaired(published)
    assert published.query(ALL) == before
    assert entry_of(published, "fct") == entry


@pytest.mark.slow
def test_tables_that_are_left_over_are_removed_and_tables_of_others_are_named_and_left_alone(
    published: Platform,
) -> None:
    glue, entry = client("glue", published.settings), entry_of(published, "fct")
    commit(published)
    lost = entry_of(published, "fct")["Parameters"]
    location = entry["StorageDescriptor"]["Location"]
    own = lost["metadata_location"].replace("gold.fct", "gold.old")
    others = {
        # a table of an earlier release that an engine has committed to, which no sync recognized any more
        "old": {**lost, "metadata_location": own},
        # one of our tables, which somebody has registered under another name
        "registered": {**lost, "metadata_location": f"{location}/metadata/00002-0f3c.metadata.json"},
        "crawled": {"classification": "parquet", "CrawlerSchemaDeserializerVersion": "1.0"},
    }
    for name, parameters in others.items():
        glue.create_table(DatabaseName="busco_gold", TableInput={**entry, "Name": name, "Parameters": parameters})
    assert {(one["where"], one["problem"]) for one in findings(published)} == {
        ("busco_gold.fct", "was changed"),
        ("busco_gold.old", "is left over from an earlier release"),
    }
    printed = repaired(published)
    assert "belong to no release (not changed): busco_gold.crawled, busco_gold.registered" in published.busco(
        "release", "repair", "--check"
    )
    assert "busco_gold.old is left over from an earlier release" in printed
    names = {table["Name"] for table in glue.get_tables(DatabaseName="busco_gold")["TableList"]}
    assert names == {"fct", "crawled", "registered"}


def test_doctor_sees_that_glue_or_the_metadata_differs_from_the_live_release(published: Platform) -> None:
    around = Surroundings(published.settings)
    assert aws.live_release(around) == f"{published.live().release}: all 3 tables match the release"
    commit(published)
    with pytest.raises(BuscoError, match="Glue does not show the released version of gold.fct") as found:
        aws.live_release(around)
    assert "busco release repair" in found.value.hint
    drop(published)
    with pytest.raises(BuscoError, match=r"Glue does not show gold.fct; the Iceberg metadata of gold.fct does not"):
        aws.live_release(around)


def test_glue_never_points_to_metadata_that_does_not_exist(published: Platform) -> None:
    drop(published)
    with pytest.raises(BuscoError, match=r"the Iceberg metadata of these tables do not .* read: gold.fct;") as refused:
        show_glue(published.settings, published.store, ENVIRONMENT)
    assert refused.value.hint == "restore them: busco release repair"
    names = [
        one["Name"] for one in client("glue", published.settings).get_tables(DatabaseName="busco_gold")["TableList"]
    ]
    assert names == []


@pytest.mark.slow
def test_a_run_builds_a_table_again_that_has_lost_its_metadata(published: Platform) -> None:
    before = published.query(ALL)
    lost = [published.live().tables[table].metadata for table in ("gold.fct", "bronze.orders")]
    for key in lost:
        published.store.client.delete_object(Bucket=published.store.bucket, Key=key)
    assert published.build().good
    assert published.live().built == ("gold.fct",)
    # a bronze version's metadata is recreated under the same key
    assert published.store.missing(lost) == [lost[0]]
    assert published.query(ALL) == before


@pytest.mark.slow
def test_a_release_without_its_metadata_is_neither_published_nor_rolled_back_to(published: Platform) -> None:
    first = published.live()
    run, outcome = published.built()
    assert outcome.good
    published.model("gold/fct", f"{(published.home / 'dbt_project/models/gold/fct.sql').read_text()}\n-- changed")
    changed, outcome = published.built()
    assert outcome.good
    entry = changed.entries()["gold.fct"].version
    assert entry is not None
    s3, bucket = published.store.client, published.store.bucket
    s3.delete_object(Bucket=bucket, Key=entry.metadata)
    with pytest.raises(BuscoError, match="nothing was published") as refused:
        published.publish(changed)
    assert "clear the tasks of these tables" in refused.value.hint
    assert published.live() == first
    published.publish(run)
    s3.delete_object(Bucket=bucket, Key=first.tables["silver.orders"].metadata)
    printed = published.busco("release", "rollback", first.release, "--reason", "test", status=1)
    assert "the Iceberg metadata of these tables do not exist: silver.orders" in printed
    assert "busco release repair" in printed
    assert published.live().kind == "publish"
    repaired(published)
    published.busco("release", "rollback", first.release, "--reason", "test")


# what no version of the bucket holds ---------------------------------------------------------------------------------


def metadata_of(made: Platform, key: str) -> dict[str, Any]:
    stored = made.store.get(key)
    assert stored is not None
    content = dict(json.loads(stored.body))
    for times in (content, *content["snapshots"], *content["snapshot-log"]):
        times.pop("last-updated-ms", None)
        times.pop("timestamp-ms", None)
    return content


@pytest.mark.slow
def test_metadata_that_no_version_holds_is_made_again_from_the_records(published: Platform) -> None:
    # the table is kept, and gets a further metadata file over the manifest list of the first one
    described = published.home / "dbt_project/models/gold/fct.yml"
    described.write_text(described.read_text().replace("{name: orders,", "{name: orders, description: how many,"))
    assert published.build().good
    before, tables = published.query(ALL), published.live().tables
    keys = {table: one.metadata for table, one in tables.items()}
    contents = {table: metadata_of(published, key) for table, key in keys.items()}
    lists = {table: published.store.key(one["snapshots"][0]["manifest-list"]) for table, one in contents.items()}
    manifests = {table: next(published.store.keys(f"{ENVIRONMENT.manifests}{table}/")) for table in tables}
    assert any(one.get("doc") == "how many" for one in contents["gold.fct"]["schemas"][0]["fields"])
    assert location_of(keys["gold.fct"]) not in lists["gold.fct"]
    lost = [*keys.values(), lists["gold.fct"], lists["bronze.orders"], *manifests.values()]
    for key in lost:
        published.store.purge(key, whole=True)
    assert {(one["problem"], one["repairable"]) for one in findings(published)} == {("is missing", True)}
    printed = repaired(published)
    assert printed.count("recreated from the records.") == len(keys) + 1  # and the list of the first release's metadata
    assert published.store.missing(lost) == []
    again = {table: metadata_of(published, key) for table, key in keys.items()}
    # its manifest list lies in its own location now; the one that it shared with the first metadata file is back, too
    assert again["gold.fct"]["snapshots"][0].pop("manifest-list") != contents["gold.fct"]["snapshots"][0].pop(
        "manifest-list"
    )
    assert again == contents
    assert published.query(ALL) == before


@pytest.mark.slow
def test_data_that_no_version_holds_is_named_with_what_to_do(published: Platform) -> None:
    files = {table: published.version(table).files[0].key for table in ("bronze.orders", "gold.fct")}
    for key in files.values():
        published.store.purge(key, whole=True)
    printed = published.busco("release", "repair", status=1)
    assert "busco dbt build --select fct --full-refresh --publish" in printed
    assert "ingest the file orders.csv again under another name" in printed
    assert "2 differences left" in printed
    published.busco("dbt", "build", "--select", "fct", "--full-refresh", "--publish")
    (record,) = published.version("bronze.orders").deliveries
    published.store.client.delete_object(Bucket=published.store.bucket, Key=record)
    published.deliver(csv_text(HEADER, ROWS), "orders-again.csv")
    assert published.build().good
    assert published.query("select count(*) from busco_gold.fct") == [("2",)]
    # Older releases still name the lost files. The delivery record is not restored, because runs would fail.
    published.busco("release", "repair", status=1)
    assert published.store.missing([record]) == [record]
    assert [one["where"] for one in findings(published) if one["live"]] == []


@pytest.mark.slow
def test_a_record_that_the_bucket_policy_protects_is_left_with_what_an_administrator_does(
    published: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = published.live().tables["gold.fct"].record
    published.store.put(record, b"{}")

    def refuse(*_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied"}}, "PutObject")

    monkeypatch.setattr(ObjectStore, "swap", refuse)
    report = repair.repair(published.store, ENVIRONMENT, None, "test", can_make_metadata=True)
    (left,) = report.findings
    assert (left.kind, left.problem) == ("record of a version", "was overwritten")
    assert f"aws s3api delete-object --bucket {published.store.bucket} --key {record} --version-id" in left.remedy
    assert report.repaired == ()


@pytest.mark.parametrize("sizes", [[], [7], [5 << 20, 5 << 20, 11]])
def test_an_older_version_is_copied_with_the_etag_that_it_had(mini: Platform, sizes: list[int]) -> None:
    s3, where = mini.store.client, {"Bucket": mini.store.bucket, "Key": "gold/t/prod-1a/a.parquet"}
    if sizes:
        upload = s3.create_multipart_upload(**where)["UploadId"]
        parts = [
            {"PartNumber": number, "ETag": s3.upload_part(
                **where, UploadId=upload, PartNumber=number, Body=bytes([number]) * size)["ETag"]}
            for number, size in enumerate(sizes, 1)
        ]  # fmt: skip
        s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    else:
        s3.put_object(**where, Body=b"x" * 7)
    (before,) = object_versions.versions(mini.store, where["Key"])
    assert before.etag.strip('"').partition("-")[2] == (str(len(sizes)) if sizes else "")
    s3.put_object(**where, Body=b"overwritten")
    object_versions.copy(mini.store, before)
    newest, *_ = object_versions.versions(mini.store, where["Key"])
    assert (newest.etag, newest.bytes, newest.version != before.version) == (before.etag, before.bytes, True)
    assert s3.list_multipart_uploads(Bucket=mini.store.bucket).get("Uploads", []) == []
