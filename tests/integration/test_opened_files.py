"""Which data files are opened on S3 to plan queries, and how often: the first file of each table that is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from unittest import mock
from urllib.parse import unquote

import pytest

from busco.errors import BuscoError
from busco.lake.contents import read_version, read_versions
from busco.lake.reading import open_versions
from busco.lake.records import DOCS_NODE, Release
from busco.settings import get_settings
from tests.airflow.fault_proxy import Proxy
from tests.loopback import PROXY_PORT, serving
from tests.platforms import Platform, csv_text

HEADER = ("id", "customer", "amount", "day", "n")
ROWS = [(f"o{day}", "x", "1.50", f"2018-01-{day:02}", day) for day in range(1, 21)]


@pytest.fixture
def live(mini: Platform) -> Release:
    """A release in which silver.orders has a file for each of 20 days."""
    mini.deliver(csv_text(HEADER, ROWS))
    assert mini.build().good
    return mini.live()


@pytest.fixture
def wire(mini: Platform, live: Release) -> Iterator[Proxy]:
    """Records what this process reads from the local AWS, with boto3 and with DuckDB, once `live` is published."""
    log = Proxy(str(mini.settings.endpoint_url))
    with serving(log.handler(), PROXY_PORT) as url, mock.patch.dict(os.environ, {"BUSCO_ENDPOINT_URL": url}):
        get_settings.cache_clear()
        yield log
    get_settings.cache_clear()


def opened(platform: Platform, wire: Proxy, method: str = "HEAD") -> Counter[str]:
    """Returns how often each data file was read since the last call."""
    paths = [unquote(path).removeprefix(f"/{platform.settings.lake_bucket}/") for sent, path in wire.reads]
    found = Counter(
        path for path, (sent, _) in zip(paths, wire.reads, strict=True) if sent == method and ".parquet" in path
    )
    wire.reads.clear()
    return found


def keys(mini: Platform, release: Release, table: str) -> list[str]:
    return [file.key for file in read_version(mini.store, release.tables[table]).files]


def test_a_query_opens_the_first_file_of_each_table_that_it_names(mini: Platform, live: Release, wire: Proxy) -> None:
    orders = keys(mini, live, "silver.orders")
    assert len(orders) == len(ROWS)
    for sql, first in (
        ("select * from BUSCO_SILVER.Orders", {keys(mini, live, "bronze.orders")[0], orders[0]}),
        ("explain select * from fct", {keys(mini, live, "gold.fct")[0]}),
        ("show all tables", set()),
    ):
        with open_versions(mini.settings, read_versions(mini.store, live.tables.values()), sql) as connection:
            views = connection.execute("select view_name from duckdb_views() where not internal order by 1").fetchall()
        assert views == [("fct",), ("orders",), ("orders",)]
        assert opened(mini, wire) == Counter(first), sql


def test_a_query_looks_up_each_file_once(mini: Platform, live: Release, wire: Proxy) -> None:
    assert mini.duckdb("select count(distinct id), sum(n) from busco_silver.orders", live) == [(20, 210)]
    found = opened(mini, wire)
    assert {key: found[key] for key in keys(mini, live, "silver.orders")} == dict.fromkeys(
        keys(mini, live, "silver.orders"), 1
    )


def test_a_run_opens_only_what_its_models_read_and_looks_up_each_file_once(
    mini: Platform, live: Release, wire: Proxy
) -> None:
    mini.model("gold/fct", "select day, count(*) as n from {{ ref('v_orders') }} group by day", "models: [{name: fct}]")
    _, outcome = mini.built("fct")
    assert outcome.good
    assert outcome.statuses[DOCS_NODE] == "success"
    found = opened(mini, wire)
    # silver.orders is also read or planned to be read when the model's SQL is described, and for the docs
    assert {key: found[key] for key in keys(mini, live, "silver.orders")} == dict.fromkeys(
        keys(mini, live, "silver.orders"), 1
    )
    others = {key for table in ("bronze.orders", "gold.fct") for key in keys(mini, live, table)}
    assert not others & found.keys()


def test_a_missing_file_of_another_table_does_not_break_a_query(mini: Platform, live: Release) -> None:
    for key in keys(mini, live, "bronze.orders"):
        mini.store.client.delete_object(Bucket=mini.store.bucket, Key=key)
    # the name of the broken table, bronze.orders, occurs in the query as well
    assert mini.duckdb("select count(*) from busco_silver.orders", live) == [(20,)]
    with pytest.raises(BuscoError, match=r"DuckDB: .*404"):
        mini.duckdb("select count(distinct id) from busco_bronze.orders", live)
