"""The sample warehouse end to end: each of its 20 tables equals a second computation that shares no code with it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from busco.aws import client
from busco.catalog import athena
from busco.embedded.sample import write_sample
from busco.lake.contents import read_versions
from busco.lake.runs import open_run
from busco.warehouse.dbt import opened
from tests.oracle import COLUMNS, KEYS
from tests.oracle.compare import differences
from tests.oracle.tables import recompute
from tests.platforms import ENVIRONMENT, ROOT, Platform, platform

OLIST = os.environ.get("OLIST_DIR")
needs_olist = pytest.mark.skipif(not OLIST, reason="OLIST_DIR (the folder with Olist's CSV files) is not set")
TYPES = {
    "text": "VARCHAR",
    "timestamp": "TIMESTAMP",
    "date": "DATE",
    "bigint": "BIGINT",
    "integer": "INTEGER",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "money": "DECIMAL(12,2)",
    "sum": "DECIMAL(18,2)",
}
# An order whose customer, product and seller are missing, as lines for the sample's files.
EARLY = {
    "olist_orders_dataset.csv.gz": b"early,nobody,delivered,2018-01-01 00:00:00,,,2018-01-05 00:00:00,"
    b"2018-01-04 00:00:00\n",
    "olist_order_items_dataset.csv.gz": b"early,1,nothing,no_one,2018-01-02 00:00:00,10.00,1.50\n",
}
# The columns that record where silver's rows come from; the second computation only has the last one.
TECHNICAL = ("_ingested_at", "_source_file", "_source_row")


def published(home: Path, data: Path) -> Iterator[Platform]:
    with platform(home, ROOT) as made:
        report = made.take(data)
        assert report.good
        assert all(one.quarantined == 0 for one in report.loaded)
        outcome = made.build()
        assert outcome.good, {node: status for node, status in outcome.statuses.items() if status != "success"}
        yield made


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, dict[str, pl.DataFrame]]]:
    """A synthetic marketplace with all of its quirks and an early order, published, and the expected tables."""
    data = tmp_path_factory.mktemp("sample")
    write_sample(3000, 7, data)
    for name, row in EARLY.items():
        whole = gzip.decompress((data / name).read_bytes())
        (data / name).write_bytes(gzip.compress(whole + row))
    for made in published(tmp_path_factory.mktemp("home"), data):
        yield made, recompute(data)


@pytest.fixture(scope="module")
def olist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, dict[str, pl.DataFrame]]]:
    """The real data, published, and the expected tables."""
    data = Path(str(OLIST))
    for made in published(tmp_path_factory.mktemp("home"), data):
        yield made, recompute(data)


def by_athena(made: Platform, table: str, columns: list[str]) -> list[tuple[str | None, ...]]:
    sql = f"select {', '.join(columns)} from busco_{table}"
    return athena.query(client("athena", made.settings), sql, "busco", "busco_gold").rows


def compare(made: Platform, right: dict[str, pl.DataFrame]) -> None:
    release = made.live()
    assert set(KEYS) == {table for table in release.tables if not table.startswith("bronze.")}
    versions = read_versions(made.store, release.tables.values())
    problems = []
    for table, key in KEYS.items():
        columns = [column.name for column in versions[table].columns]
        found = differences(right[table], columns, by_athena(made, table, columns), key)
        problems += [f"{table}: {problem}" for problem in found]
    assert problems == []


def test_sources_have_limits_that_the_pages_and_dbt_know(sample: tuple[Platform, dict[str, pl.DataFrame]]) -> None:
    made, _ = sample
    catalog = json.loads(made.busco("docs", "catalog"))["tables"]
    limits = {name for name, one in catalog.items() if one["warn_after"]}
    assert limits == {f"bronze.{name}" for name in ("orders", "order_items", "order_payments", "order_reviews")}
    assert catalog["bronze.orders"]["warn_after"] == 36 * 3600
    assert {catalog[name]["state"] for name in ("silver.order_payments", "bronze.orders")} == {"fresh"}
    assert catalog["bronze.sellers"]["state"] == "ok", "nobody has said how often its rows must arrive"
    printed = made.busco("dbt", "source", "freshness", "--select", "source:bronze.orders")
    assert "PASS freshness of bronze.orders" in printed


def test_all_20_tables_of_the_sample_equal_their_second_computation(
    sample: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    compare(*sample)


def test_tables_have_the_expected_columns_in_order_with_the_expected_types(
    sample: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    made = sample[0]
    versions = read_versions(made.store, made.live().tables.values())
    for table, groups in COLUMNS.items():
        expected = [
            (name, TYPES[kind])
            for kind, *names in (group.split() for group in groups.split(";"))
            for name in names
            if name not in TECHNICAL
        ]
        found = [(c.name, c.type) for c in versions[table].columns if c.name not in TECHNICAL]
        assert found == expected, table
        technical = [c.name for c in versions[table].columns if c.name in TECHNICAL]
        silver = table.startswith("silver.") and table != "silver.locations"
        assert technical == (list(TECHNICAL) if silver else []), table


def test_all_tables_with_a_purchase_month_but_marts_are_partitioned_by_it(
    sample: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    versions = read_versions(sample[0].store, sample[0].live().tables.values())
    partitioned = {table: version.partition_by for table, version in versions.items() if version.partition_by}
    tables = ("silver.orders", "silver.order_items", "silver.order_payments", "gold.fct_orders", "gold.fct_order_items")
    assert partitioned == dict.fromkeys(tables, ("purchase_month",))


def test_columns_with_personal_data_are_marked_all_the_way_to_gold(
    sample: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    with opened(sample[0].settings) as dbt:
        project = dbt.parse()
    named = {"customer_unique_id", "zip_prefix", "title", "message"}
    for table, uid in project.tables.items():
        columns = {column.name for column in project.columns(uid)}
        sellers = {"zip_prefix"} if table in ("silver.locations",) else set()
        assert (columns & named) - sellers <= project.pii(uid), table


def test_every_model_has_descriptions_an_owner_a_contract_and_tests_of_its_key(
    sample: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    with opened(sample[0].settings) as dbt:
        project = dbt.parse()
    tested: dict[str, set[str]] = {}
    for test in project.tests.values():
        kind = (test.get("test_metadata") or {}).get("name", "")
        for parent in test["depends_on"]["nodes"]:
            tested.setdefault(parent, set()).add(kind)
    for table, uid in project.tables.items():
        node = project.node(uid)
        assert node["description"].strip(), table
        assert node["config"]["meta"]["owner"], table
        assert node["config"]["contract"]["enforced"], table
        assert all(column["description"].strip() and column["data_type"] for column in node["columns"].values()), table
        assert {"unique", "unique_combination"} & tested[uid], f"{table} has no test of its key"
        assert uid in project.unit_tests.values() or table in ("silver.customers",), f"{table} has no unit test"
    assert len(project.manifest["exposures"]) == 2


@pytest.mark.long
def test_each_node_runs_alone_in_a_new_process_with_parents_from_its_run_or_pin(
    sample: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    made, _ = sample
    base = made.live()
    printed = made.busco("dbt", "build", "--select", "orders", "--full-refresh")
    key = printed.split("run ", 1)[1].split()[0]
    rebuilt = open_run(made.store, ENVIRONMENT, key).entries()["silver.orders"].version
    for node in ("order_items", "fct_orders", "mart_daily_sales", "assert_daily_sales_add_up_to_sold_orders"):
        made.busco("dbt", "build", "--run", key, "--select", node)
    entries = {t: e.version for t, e in open_run(made.store, ENVIRONMENT, key).entries().items()}
    assert entries["silver.order_items"].inputs["silver.orders"] == rebuilt.version, "from the run"
    assert entries["gold.fct_orders"].inputs["silver.order_items"] == entries["silver.order_items"].version
    assert entries["gold.fct_orders"].inputs["silver.customers"] == base.tables["silver.customers"].version, "pinned"
    result = open_run(made.store, ENVIRONMENT, key).latest_results()
    joint = result["test.busco.assert_daily_sales_add_up_to_sold_orders"]
    assert joint.reads["gold.mart_daily_sales"] == entries["gold.mart_daily_sales"].version


def test_an_order_whose_customer_product_and_seller_are_missing_is_kept(
    sample: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    made, _ = sample
    assert made.query("select order_amount from busco_gold.fct_orders where order_id = 'early'") == [("11.50",)]
    assert made.query("select items from busco_gold.mart_category_sales where category is null") == [("1",)]
    late = "select late_orders from busco_gold.mart_delivery_performance where customer_state is null"
    assert made.query(late) == [("1",)]


@pytest.mark.long
@needs_olist
def test_all_20_tables_of_the_real_data_equal_their_second_computation(
    olist: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    compare(*olist)


@pytest.mark.long
@needs_olist
def test_both_engines_return_the_known_numbers_of_the_real_data(
    olist: tuple[Platform, dict[str, pl.DataFrame]],
) -> None:
    made, _ = olist
    orders = (
        "select count(*), count(*) filter (where is_sold), count(*) filter (where is_delivered), "
        "count(*) filter (where is_late), sum(items_amount), sum(freight_amount), sum(paid_amount) "
        "from busco_gold.fct_orders"
    )
    known = ("8135", "6901", "5164", "342", "1093264.35", "172288.39", "1428602.81")
    assert made.query(orders) == [known]
    assert [tuple(str(value) for value in row) for row in made.duckdb(orders)] == [known]
    lifetime = "select sum(lifetime_amount) from busco_gold.dim_customers"
    assert made.query(lifetime) == [("1157526.53",)]
    assert made.duckdb(lifetime) == [(Decimal("1157526.53"),)]
    bronze = {
        "orders": 8135, "order_items": 8365, "order_payments": 8924, "order_reviews": 8225, "customers": 8135,
        "products": 5460, "sellers": 1610, "geolocation": 45928, "product_category_name_translation": 71,
    }  # fmt: skip
    for table, rows in bronze.items():
        assert made.query(f"select count(*) from busco_bronze.{table}") == [(str(rows),)], table
