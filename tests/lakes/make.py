"""Makes an archive of a small lake with this code, so that later code can be tested on it.

    python -m tests.lakes.make tests/lakes/format_<n>.tar.xz

The lake has three releases, a rollback with a hold, a quarantined row, a run that was built but not published, and a
run that was only pinned. `format_1.tar.xz` was made by commit 9f0bc84.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from busco.aws import client
from busco.lake import pins
from busco.lake.layout import local_run_key
from busco.lake.records import utc_now
from busco.project import Project
from busco.settings import LAYERS
from tests.platforms import ENVIRONMENT, ROOT, Platform, csv_text, platform

HEADER = ("id", "customer", "amount", "day", "n")
# The fields of a Glue table that CreateTable accepts.
INPUT = ("Name", "Description", "TableType", "Parameters", "PartitionKeys", "StorageDescriptor")


def fill(made: Platform) -> None:
    """Fills an empty lake."""
    first = [("o1", "x", "1.50", "2018-01-01", 1), ("o2", "y", "2.50", "2018-01-02", 2)]
    made.deliver(csv_text(HEADER, first), "orders-a.csv")
    assert made.build().good
    bad = [("o3", "z", "3.50", "2018-01-02", 3), ("o4", "w", "4.50", "no day", 4)]
    made.write("in/orders-b.csv", csv_text(HEADER, bad))
    made.take(made.home / "in/orders-b.csv")
    assert made.build().good
    second = made.live().release
    model = made.home / "dbt_project/models/gold/fct.sql"
    sql = model.read_text()
    model.write_text(f"{sql}\n-- a comment, so that a further version is built\n")
    made.deliver(csv_text(HEADER, [("o5", "x", "5.50", "2018-01-03", 5)]), "orders-c.csv")
    assert made.build().good
    model.write_text(sql)
    made.busco("release", "rollback", second, "--reason", "wrong amounts")
    made.deliver(csv_text(HEADER, [("o6", "y", "6.50", "2018-01-03", 6)]), "orders-d.csv")
    _, outcome = made.built()
    assert outcome.good
    project = Project.read(made.settings.manifest_path)
    pins.pin(
        made.store, ENVIRONMENT, local_run_key(utc_now()), 1, project.contracts, project.hash, project=project.identity,
        project_dir=str(made.settings.dbt_project_dir), tables=project.tables, project_id=project.id,
        dbt_name=project.name,
    )  # fmt: skip


def archive(made: Platform, file: Path) -> None:
    """Writes the lake's objects and Glue's tables to a file; the pages of dbt docs, which are large, are left out."""
    s3, glue, settings = client("s3", made.settings), client("glue", made.settings), made.settings
    tables = [
        {"database": settings.database(layer), "input": {name: table[name] for name in INPUT if name in table}}
        for layer in LAYERS
        for table in glue.get_tables(DatabaseName=settings.database(layer))["TableList"]
    ]
    with tarfile.open(file, "w:xz") as tar:

        def add(name: str, body: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))

        add("glue.json", json.dumps(tables, indent=1, default=str).encode())
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=settings.lake_bucket):
            for item in page.get("Contents", []):
                body = s3.get_object(Bucket=settings.lake_bucket, Key=item["Key"])["Body"].read()
                is_page = item["Key"].endswith("index.html")
                add(f"lake/{item['Key']}", b"<!doctype html><title>dbt docs</title>" if is_page else body)


def restore(made: Platform, file: Path) -> None:
    """Puts the objects and tables of an archive into an empty lake."""
    s3, glue = client("s3", made.settings), client("glue", made.settings)
    with tarfile.open(file) as tar:
        for member in tar:
            stored = tar.extractfile(member)
            assert stored is not None
            if member.name.startswith("lake/"):
                key = member.name.removeprefix("lake/")
                s3.put_object(Bucket=made.settings.lake_bucket, Key=key, Body=stored.read())
            elif member.name == "glue.json":
                for table in json.loads(stored.read()):
                    glue.create_table(DatabaseName=table["database"], TableInput=table["input"])


if __name__ == "__main__":
    with platform(Path(tempfile.mkdtemp()), ROOT / "tests/projects/mini") as made:
        fill(made)
        archive(made, Path(sys.argv[1]))
