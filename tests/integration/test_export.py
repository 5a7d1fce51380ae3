"""`busco export duckdb`: a DuckDB file of views, opened by somebody who has nothing but DuckDB and credentials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from busco.aws import client
from busco.lake.engine import extension_file
from tests.platforms import Platform, csv_text

ORDERS = ("id", "customer", "amount", "day", "n")
READ = """
import json, sys
import duckdb

file, extension, *queries = sys.argv[1:]
with duckdb.connect(file, read_only=True) as connection:
    connection.execute(f"load '{extension}'")
    print(json.dumps([connection.execute(query).fetchall() for query in queries], default=str))
"""


@pytest.fixture
def published(mini: Platform) -> Platform:
    mini.write("files/orders.csv", csv_text(ORDERS, [("o1", "x", "1.50", "2018-01-01", 1)]))
    described = "models:\n  - name: orders\n    description: It's one row per order.\n    columns:\n"
    mini.write(
        "dbt_project/models/silver/orders.yml", f"{described}      - {{name: id, description: The order's key.}}\n"
    )
    mini.busco("ingest", "files/orders.csv")
    mini.busco("dbt", "build", "--publish")
    return mini


def read(platform: Platform, file: Path, *queries: str, status: int = 0) -> Any:
    """Opens the file in a new process, whose environment has AWS's variables and nothing of the platform's."""
    settings = platform.settings
    given = {
        name: os.environ[name]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        if name in os.environ
    }
    assert settings.endpoint_url is not None
    # DuckDB's httpfs extension reads these and AWS's variables when it is loaded
    given |= {"AWS_REGION": settings.region, "DUCKDB_S3_ENDPOINT": urlparse(settings.endpoint_url).netloc}
    given |= {"DUCKDB_S3_USE_SSL": "false", "PATH": os.environ["PATH"]}
    set_style = "set s3_url_style = 'path'"
    done = subprocess.run(
        [sys.executable, "-c", READ, file, extension_file("httpfs"), set_style, *queries],
        env=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (status == 0), done.stderr
    return json.loads(done.stdout)[1:] if status == 0 else done.stderr


def test_the_views_show_the_live_release_with_its_descriptions(
    published: Platform, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("exports")
    file = tmp_path / "lake.duckdb"
    printed = published.busco("export", "duckdb", str(file))
    release = published.live()
    assert f"release {release.release}, {len(release.tables)} tables" in printed
    assert "create secret (type s3, provider credential_chain" in printed
    rows, of_release, tables, of_table, of_column, kinds, stored = read(
        published, file, "select id, amount from busco_silver.orders", "from busco.release",
        "select table_name, row_count, stale from busco.tables order by all",
        "select comment from duckdb_views() where view_name = 'orders' and schema_name = 'busco_silver'",
        "select comment from duckdb_columns() where table_name = 'orders' and schema_name = 'busco_silver'"
        " and column_name = 'id'",
        "select table_schema, table_type from information_schema.tables group by all order by all",
        "select table_name, estimated_size from duckdb_tables() order by all",
    )  # fmt: skip
    assert rows == [["o1", "1.50"]]
    assert of_release[0][:2] == [release.release, "prod"]
    assert of_release[0][4] == f"s3://{published.settings.lake_bucket}"
    expected = sorted([f"busco_{name}", table.rows, False] for name, table in release.tables.items())
    assert tables == expected
    assert (of_table, of_column) == ([["It's one row per order."]], [["The order's key."]])
    assert kinds == [
        ["busco", "BASE TABLE"], ["busco_bronze", "VIEW"], ["busco_gold", "VIEW"], ["busco_silver", "VIEW"]
    ]  # fmt: skip
    assert stored == [["release", 1], ["tables", len(tables)]], "no rows of the lake are in the file"
    # an export is replaced, and another file is not
    published.busco("export", "duckdb", str(file))
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    refused = published.busco("export", "duckdb", str(other), status=1)
    assert "exists, and is no export" in refused
    assert other.read_text() == "mine"
    nowhere = published.busco("export", "duckdb", str(tmp_path / "missing/lake.duckdb"), status=1)
    assert "can't be written" in nowhere
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake.duckdb", "notes.txt"]


@pytest.mark.slow
def test_an_older_release_is_exported_and_refused_once_its_files_are_gone(published: Platform, tmp_path: Path) -> None:
    first = published.live()
    published.write("files/orders-2.csv", csv_text(ORDERS, [("o2", "x", "2.50", "2018-01-02", 1)]))
    published.busco("ingest", "--table", "orders", "files/orders-2.csv")
    published.busco("dbt", "build", "--publish")
    file = tmp_path / "old.duckdb"
    published.busco("export", "duckdb", str(file), "--release", first.release)
    assert read(published, file, "select count(*) from busco_silver.orders") == [[[1]]]
    published.busco("export", "duckdb", str(tmp_path / "new.duckdb"))
    assert read(published, tmp_path / "new.duckdb", "select count(*) from busco_silver.orders") == [[[2]]]
    from busco.lake.contents import read_version

    key = read_version(published.store, first.tables["silver.orders"]).files[0].key
    client("s3", published.settings).delete_object(Bucket=published.settings.lake_bucket, Key=key)
    refused = published.busco("export", "duckdb", str(tmp_path / "gone.duckdb"), "--release", first.release, status=1)
    assert f"files of release {first.release} no longer exist, in silver.orders" in refused
    assert "404" in read(published, file, "select count(*) from busco_silver.orders", status=1)
    assert "release matches" not in refused
    assert "does not match any release" in published.busco("export", "duckdb", str(file), "--release", "rx", status=1)


def test_with_nothing_published_the_message_says_what_to_do(mini: Platform, tmp_path: Path) -> None:
    environment = {"BUSCO_ENVIRONMENT": "dev_nobody"}
    refused = mini.busco("export", "duckdb", str(tmp_path / "a.duckdb"), status=1, environment=environment)
    assert "nothing is published yet" in refused
