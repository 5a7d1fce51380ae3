"""A data file that somebody overwrites or deletes is found, and its content is restored from the bucket's versions."""

from __future__ import annotations

import shlex

from busco.lake.overwritten import overwritten
from tests.platforms import Platform, csv_text

HEADER = ("id", "customer", "amount", "day", "n")


def test_an_overwritten_and_a_deleted_file_are_found_and_restored(mini: Platform) -> None:
    mini.deliver(csv_text(HEADER, [("o1", "x", "1.50", "2018-01-01", 1), ("o2", "y", "2.50", "2018-01-02", 2)]))
    assert mini.build().good
    release, s3 = mini.live(), mini.store.client
    sql = "select * from busco_gold.fct order by all"
    before = mini.duckdb(sql)
    assert all(file.etag for version in release.tables.values() for file in version.files)
    assert overwritten(mini.store, release.tables.values()) == []

    fct, silver = (release.tables[table].files[0] for table in ("gold.fct", "silver.orders"))
    where = {"Bucket": mini.store.bucket}
    forged = b"x" * fct.bytes
    s3.put_object(**where, Key=fct.key, Body=forged)
    s3.delete_object(**where, Key=silver.key)
    (first, second) = overwritten(mini.store, release.tables.values())
    assert (first.table, first.file, second.table, second.etag) == ("gold.fct", fct, "silver.orders", "")
    for one in (first, second):
        assert s3.head_object(**where, Key=one.file.key, VersionId=one.kept)["ETag"] == one.file.etag

    printed = mini.busco("release", "check", status=1)
    assert "→ an administrator can restore them" in printed
    commands = [shlex.split(line) for line in printed.splitlines() if "aws s3api delete-object" in line]
    assert len(commands) == 2
    for _, _, _, _, bucket, _, key, _, version in commands:
        s3.delete_object(Bucket=bucket, Key=key, VersionId=version)
    assert overwritten(mini.store, release.tables.values()) == []
    assert mini.duckdb(sql) == before
    # older records have no ETags: only size and existence are compared
    old = release.tables["gold.fct"].model_copy(update={"files": (fct.model_copy(update={"etag": ""}),)})
    assert overwritten(mini.store, [old]) == []
    s3.put_object(**where, Key=fct.key, Body=b"short")
    assert [one.file.key for one in overwritten(mini.store, [old])] == [fct.key]
