"""An error about a missing table is explained: what the name refers to, or which tables there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from busco.cli.no_table import advice
from busco.settings import Settings

TABLES = ["busco_bronze.orders", "busco_gold.days", "busco_gold.fct_orders", "busco_silver.orders"]


def node(name: str, schema: str, kind: str, parents: list[str]) -> dict[str, Any]:
    return {"resource_type": "model", "name": name, "alias": name, "schema": schema, "config": {"materialized": kind},
            "depends_on": {"nodes": parents}}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    created = Settings(home=tmp_path, dbt_projects="bakery")
    own = {
        "model.busco.orders": node("orders", "silver", "lake", []),
        "model.busco.v_orders": node("v_orders", "silver", "view", ["model.busco.orders"]),
        "model.busco.late": node("late", "gold", "lake", []),
    }
    other = {"model.bakery.e": node("e", "main", "ephemeral", [])}
    for project, name, nodes in zip(created.of_all_projects(), ("busco", "bakery"), (own, other), strict=True):
        project.manifest_path.parent.mkdir(parents=True, exist_ok=True)
        manifest = {"metadata": {"project_name": name}, "nodes": nodes, "sources": {}}
        project.manifest_path.write_text(json.dumps(manifest))
    return created


ATHENA = "TABLE_NOT_FOUND: line 1:15: Table 'awsdatacatalog.{}' does not exist. If a data manifest file was generated…"
OLD = "SYNTAX_ERROR: line 1:15: Table awsdatacatalog.{} does not exist"
DUCKDB = 'Catalog Error: Table with name {} does not exist!\nDid you mean "orders"?\n\nLINE 1: select\n   ^'
NO_SCHEMA = 'Catalog Error: Table with name "{}" does not exist because schema "busco_silver" does not exist.'


@pytest.mark.parametrize(
    "error", [ATHENA.format("busco_silver.v_orders"), OLD.format("busco_silver.v_orders"), DUCKDB.format("v_orders"),
              NO_SCHEMA.format("busco_silver.v_orders")],
)  # fmt: skip
@pytest.mark.parametrize("sql", ["select * from busco_silver.v_orders", 'select * from "busco_silver"."v_orders" v'])
def test_a_view_of_the_project_is_identified_together_with_the_tables_that_it_reads(
    settings: Settings, error: str, sql: str
) -> None:
    assert advice(settings, error, sql, lambda: TABLES) == (
        "silver.v_orders is a view of the dbt project busco: Glue and Athena show only tables, not views; "
        "query what it reads (busco_silver.orders), or materialize it as a table"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ATHENA.format("busco_gold.fct_order"), "did you mean busco_gold.fct_orders? busco_gold has the tables days"),
        (DUCKDB.format("zzz"), "busco_gold has the tables days, fct_orders"),
        (ATHENA.format("busco_gold.late"), "gold.late is a table of the dbt project busco, but has not been published"),
        (ATHENA.format("busco_bronze.e"), "busco_bronze has the tables orders"),
        (ATHENA.format("main.e"), "main.e is an ephemeral model of the dbt project bakery"),
        ("SCHEMA_NOT_FOUND: line 1:15: Schema 'busco_golf' does not exist",
         "there is no database busco_golf; the databases are busco_bronze, busco_gold, busco_silver"),
        (NO_SCHEMA.format("busco_golf.x"), "there is no database busco_golf; the databases are"),
    ],
)  # fmt: skip
def test_a_missing_name_is_explained_with_what_it_refers_to_or_with_what_exists(
    settings: Settings, error: str, expected: str
) -> None:
    assert expected in advice(settings, error, "select * from x", lambda: TABLES)


def test_a_database_without_tables_and_an_empty_catalog_are_reported_as_such(settings: Settings) -> None:
    assert advice(settings, ATHENA.format("busco_gold.x"), "", lambda: []) == "busco_gold has no tables yet"
    assert "nothing is published yet" in advice(settings, "Schema 'x' does not exist", "", lambda: [])


@pytest.mark.parametrize(
    "error",
    ["COLUMN_NOT_FOUND: line 1:8: Column 'a' cannot be resolved", 'Binder Error: Referenced column "a" not found',
     "Catalog Error: Scalar Function with name f does not exist!", "the file does not exist"],
)  # fmt: skip
def test_other_errors_get_no_advice(settings: Settings, error: str) -> None:
    assert (
        advice(settings, error, "select a from busco_gold.days", lambda: pytest.fail("the tables must not be queried"))
        == ""
    )
