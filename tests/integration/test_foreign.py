"""A dbt project that was not written for the platform: what runs on the lake, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from busco.errors import BuscoError
from busco.lake.runs import open_run
from busco.warehouse.dbt import opened
from tests.platforms import BAKERY, ENVIRONMENT, ROOT, Platform, platform, with_bakery

MINI = ROOT / "tests/projects/mini"
TABLES = {
    "silver.countries", "silver.odd_values", "silver.raw_orders", "silver.raw_users", "gold.customers",
    "gold.customers_v1", "gold.days", "gold.monthly_revenue", "gold.ordering_customers", "gold.people",
    "gold.quarterly_orders", "gold.revenue_by_customer",
}  # fmt: skip


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The bakery's tables, built and published by the command; no test changes them."""
    with platform(tmp_path_factory.mktemp("home"), MINI) as made:
        printed = with_bakery(made).busco("dbt", "--project-dir", "bakery", "build", "--publish")
        assert "published" in printed
        yield made


def queried(made: Platform, sql: str) -> list[dict[str, Any]]:
    return json.loads(made.busco("query", "--format", "json", sql))


def versions(made: Platform, *tables: str) -> dict[str, str]:
    return {table: made.live().tables[table].version for table in tables}


# -- the project by itself --------------------------------------------------------------------------------------------


def test_a_project_not_written_for_the_platform_is_built_tested_and_published(bakery: Platform) -> None:
    assert set(bakery.live().tables) == TABLES
    assert bakery.live().project == "bakery"
    customers = queried(bakery, "select full_name, country, number_of_orders as n, is_vip from busco_gold.customers")
    assert sorted(tuple(row.values()) for row in customers) == [
        ("Ana Braun", "Germany", 3, True), ("Bo Costa", "Portugal", 2, False),
        ("Cy d'Arc, Jr.", "France", 1, False), ("Di Ek", "Sweden", 0, False),
    ]  # fmt: skip
    revenue = queried(bakery, "select month, currency, revenue, orders from busco_gold.monthly_revenue order by month")
    assert [tuple(row.values()) for row in revenue] == [
        ("2024-01-01", "EUR", "17.30", 2), ("2024-02-01", "EUR", "28.20", 2),
    ]  # fmt: skip
    assert queried(bakery, "select sum(number_of_orders) as n from busco_gold.customers_v1") == [{"n": 6}]
    assert queried(bakery, "select sum(revenue) as r from busco_gold.revenue_by_customer") == [{"r": "45.50"}]


def test_odd_values_of_a_seed_are_exactly_those_in_its_file(bakery: Platform) -> None:
    rows = queried(bakery, "select code, text, amount from busco_silver.odd_values")
    assert sorted((row["code"], row["text"], row["amount"]) for row in rows) == [
        (" 11 ", "</script>", "-1"), ("007", 'said "hi", then left', "1.50"), ("010", "two\nlines", "0"),
        ("NA", "null", None), ("é", None, "2e3"),
    ]  # fmt: skip


def test_all_of_its_tests_have_run_on_the_live_versions(bakery: Platform) -> None:
    run = open_run(bakery.store, ENVIRONMENT, bakery.live().run)
    tests = {node.split(".")[2]: result for node, result in run.latest_results().items() if node.startswith("test.")}
    assert len(tests) == 20
    assert {result.status for result in tests.values()} == {"success"}
    joint = tests["revenue_is_the_same_by_month_and_by_customer"].reads
    assert joint == versions(bakery, "gold.monthly_revenue", "gold.revenue_by_customer")
    through_ephemeral = tests["accepted_values_int_completed_orders_status__completed"].reads
    assert through_ephemeral == versions(bakery, "silver.raw_orders")
    assert run.latest_results()["unit_test.bakery.customers.three_orders_make_a_vip_v2"].status == "success"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("select", "node"),
    [
        ("countries", "seed.bakery.countries"),
        ("customers.v1", "model.bakery.customers.v1"),
        pytest.param("revenue", "model.bakery.revenue", marks=pytest.mark.long),
        pytest.param("people", "model.bakery.people", marks=pytest.mark.long),
        pytest.param(
            "test_type:singular",
            "test.bakery.revenue_is_the_same_by_month_and_by_customer",
            marks=pytest.mark.long,
        ),
        ("file:orders_?_items*", "test.bakery.orders_&_items(total),50%+more"),
        ("test_type:unit", "unit_test.bakery.customers.three_orders_make_a_vip_v2"),
    ],
)
def test_each_of_its_nodes_can_run_alone_in_a_new_process(bakery: Platform, select: str, node: str) -> None:
    run = open_run(bakery.store, ENVIRONMENT, bakery.live().run)
    number = len(run.runners()) + 1
    bakery.busco("dbt", "build", "--run", run.name, "--select", select)
    statuses = {result.node: result.status for result in run.results() if result.runner == number}
    assert statuses[node] == "success"
    # views that the node reads are created again; a model named like a folder does not select the folder's models
    built = {uid for uid in statuses if uid.startswith(("model.", "seed."))}
    assert built - {node} <= {"model.bakery.stg_orders", "model.bakery.stg_users"}


def test_a_selection_is_resolved_within_its_project(bakery: Platform) -> None:
    printed = bakery.busco("select", "--project-dir", "bakery", "tag:finance")
    named = json.loads(printed.splitlines()[-1])
    assert {"model.bakery.revenue", "model.bakery.revenue_by_customer"} <= set(named)
    assert "model.bakery.people" not in named


@pytest.mark.slow
def test_an_image_has_the_parse_of_each_project(bakery: Platform) -> None:
    bakery.busco("bake", str(bakery.home / "baked"), environment={"BUSCO_DBT_PROJECTS": "bakery"})
    run = bakery.live().run
    for baked, parsed_by in ({"BUSCO_BAKED_DIR": "baked"}, "parsed_by=image"), ({}, "parsed_by=dbt"):
        command = ["dbt", "--project-dir", "bakery", "build", "--run", run, "--select", "countries"]
        assert parsed_by in bakery.busco(*command, environment=baked)


@pytest.mark.slow
def test_R6_a_package_s_macro_is_part_of_a_table_s_fingerprint(bakery: Platform) -> None:
    file = bakery.home / "bakery/vendor/money/macros/cents.sql"
    whole = file.read_text()
    file.write_text(whole.replace("/ 100.0", "/ 10.0"))
    try:
        run, outcome = bakery.built(project="bakery")
    finally:
        file.write_text(whole)
    assert outcome.good
    kept = {table for table, entry in run.entries().items() if entry.kept}
    assert TABLES - kept == {
        "gold.customers", "gold.customers_v1", "gold.monthly_revenue", "gold.ordering_customers", "gold.people",
        "gold.quarterly_orders", "gold.revenue_by_customer",
    }  # fmt: skip


# -- names that other platforms would not accept ----------------------------------------------------------------------

ODD = {
    "odd/dbt_project.yml": """
name: odd
models:
  odd: {+materialized: lake, +schema: gold}
  pkgq: {+materialized: lake, +schema: gold, gold: {a: {+alias: pkgq_a}}}
""",
    "odd/models/gold/a.sql": "select 1 as id",
    "odd/models/gold/a.test.sql": "{{ config(alias='a_test') }} select id from {{ ref('a') }}",
    "odd/models/gold/docs.sql": "select 3 as id",
    "odd/models/gold/sources.sql": "select 4 as id",
    "odd/models/gold/shared.sql": "select 5 as id",
    "odd/models/gold/empty.sql": "",
    "odd/models/gold/all.yml": "models: [{name: a, columns: [{name: id, data_tests: [unique]}]}]",
    "odd/models/gold/commented.sql": "-- {{ ref('a') }}\n{% if false %} select 1 as id {% endif %} /* later */",
    "odd/tests/a.sql": "select * from {{ ref('a') }} join {{ ref('docs') }} using (id)",
    "odd/tests/b.test.sql": "select * from {{ ref('pkgq', 'a') }} join {{ ref('odd', 'a') }} using (id)",
    "odd/packages.yml": "packages: [{local: dbt_packages/pkgq}]",
    "odd/dbt_packages/pkgq/dbt_project.yml": "name: pkgq",
    "odd/dbt_packages/pkgq/models/gold/a.sql": "{{ config(materialized='table') }} select 2 as id",
}


@pytest.fixture(scope="module")
def odd(bakery: Platform) -> Platform:
    for path, text in ODD.items():
        bakery.write(path, text)
    return bakery


def test_nodes_with_the_same_name_are_all_built_and_a_package_s_table_has_the_alias_of_the_project(
    odd: Platform,
) -> None:
    run, outcome = odd.built("* commented", project="odd")
    assert outcome.statuses.pop("model.odd.commented") == "error"
    assert set(outcome.statuses.values()) == {"success"}, outcome.statuses
    tables = {"a", "a_test", "docs", "sources", "shared", "pkgq_a"}
    assert {f"gold.{name}" for name in tables} == {table for table, entry in run.entries().items() if entry.version}
    error = run.latest_results()["model.odd.commented"].error
    assert "model.odd.commented is empty: without comments and Jinja, no SQL is left" in error
    assert "→ write a select" in error
    assert "LINE" not in error


def test_a_selection_of_only_an_empty_model_matches_nothing(odd: Platform) -> None:
    text = "the selection 'empty' matches nothing that dbt builds: left out, because the file is empty: model.odd.empty"
    assert text in odd.busco("dbt", "--project-dir", "odd", "build", "--select", "empty", status=1)
    # the DAG's pin runs this command
    assert text in odd.busco("select", "--project-dir", "odd", "--", "empty", status=1)


def test_a_selection_of_an_empty_model_and_others_notes_what_is_left_out(odd: Platform) -> None:
    printed = odd.busco("select", "--project-dir", "odd", "--", "empty docs")
    assert json.loads(printed.splitlines()[0]) == ["model.odd.docs"]
    assert "left out, because the file is empty: model.odd.empty" in printed


def test_a_project_that_is_missing_is_reported_with_the_variable_that_names_it(odd: Platform) -> None:
    environment = {"BUSCO_DBT_PROJECTS": "nope"}
    for command in (["dbt", "parse"], ["ingest", "dbt_project"]):
        printed = odd.busco(*command, status=1, environment=environment)
        assert "BUSCO_DBT_PROJECTS names nope, but there is no dbt_project.yml in it" in printed
        assert "→ correct the folder in BUSCO_DBT_PROJECTS" in printed


def test_dbt_s_error_about_two_nodes_for_one_table_says_how_to_name_a_package_s_table(odd: Platform) -> None:
    file = odd.home / "odd/dbt_project.yml"
    whole = file.read_text()
    file.write_text(whole.replace(", gold: {a: {+alias: pkgq_a}}", ""))
    try:
        printed = odd.busco("dbt", "--project-dir", "odd", "parse", status=1)
    finally:
        file.write_text(whole)
    assert "in dbt_project.yml: models: {pkgq: {gold: {a: {+alias: pkgq_a}}}}" in printed


# -- what can't run on the lake ---------------------------------------------------------------------------------------

REFUSED = {
    "models/a/table.sql": ("{{ config(materialized='table') }} select 1 as a", "write materialized='lake'"),
    "models/a/inc.sql": (
        "{{ config(materialized='incremental') }} select 1 as a",
        "incremental models are not supported yet",
    ),
    "models/a/mat.sql": (
        "{{ config(materialized='materialized_view') }} select 1 as a",
        "materialized_view is not allowed",
    ),
    "models/a/own.sql": ("{{ config(materialized='scd') }} select 1 as a", "materialization scd is not allowed"),
    "models/a/is_inc.sql": ("{% if is_incremental() %}{% endif %} select 1 as a", "is_incremental() is always false"),
    "models/a/py.py": ("def model(dbt, session):\n    return 1\n", "Python models are not supported"),
    "models/a/where.sql": ("{{ config(database='other') }} select 1 as a", "database other is not allowed"),
    "models/a/granted.sql": ("{{ config(grants={'select': ['bi']}) }} select 1 as a", "grants are not supported"),
    "models/a/header.sql": ("{{ config(sql_header='set x = 1;') }} select 1 as a", "sql_header is not supported"),
    "models/a/layer.sql": ("{{ config(schema='marts') }} select 1 as a", "schema marts is not a layer"),
    "models/a/no_layer.sql": ("select 1 as a", "schema main is not a layer"),
    "models/a/name.sql": (
        "{{ config(schema='gold', alias='Monthly Report') }} select 1 as a",
        "is not a valid name in Glue",
    ),
    "models/a/in_bronze.sql": (
        "{{ config(materialized='view', schema='bronze') }} select 1 as a",
        "schema bronze is reserved for sources",
    ),
    "models/a/keys.yml": (
        "models: [{name: people, constraints: [{type: primary_key, columns: [country]}]}]",
        "constraints primary_key can't be enforced",
    ),
    "models/a/gold.yml": (
        "sources: [{name: other, schema: gold, tables: [{name: fct}]}]",
        "tables of another dbt project can't be sources yet",
    ),
    "models/a/raw.yml": ("sources: [{name: raw, tables: [{name: t}]}]", "source schema raw is not allowed"),
    "models/a/db.yml": (
        "sources: [{name: far, schema: bronze, database: far, tables: [{name: t}]}]",
        "source database far is not allowed",
    ),
    "models/a/files.yml": (
        "sources: [{name: files, schema: bronze, config: {meta: {external_location: 's3://b/{name}'}},"
        " tables: [{name: u}]}]",
        "a run can't pin external data",
    ),
    "models/a/long_source.yml": (
        f"sources: [{{name: {'s' * 1000}, schema: bronze, tables: [{{name: w}}]}}]",
        "too long: one of its object keys would be",
    ),
    "models/a/long_test.yml": (
        f"unit_tests: [{{name: {'u' * 1000}, model: people, given: [], expect: {{rows: []}}}}]",
        "too long: one of its object keys would be",
    ),
    "models/a/twice.yml": (
        "sources: [{name: more, schema: bronze, tables: [{name: u}]}]",
        "uses the table bronze.u too",
    ),
    "snapshots/history.sql": (
        "{% snapshot history %}{{ config(unique_key='id', strategy='check', check_cols='all') }}"
        " select 1 as id {% endsnapshot %}",
        "snapshots are not supported",
    ),
    "functions/twice.sql": ("x * 2", "functions are not supported"),
    "macros/seed.sql": (
        "{% materialization seed, adapter='duckdb' %}{{ return({'relations': []}) }}{% endmaterialization %}",
        "materialization_seed_duckdb is reserved for the platform",
    ),
    "macros/view.sql": (
        "{% macro duckdb__get_create_view_as_sql(relation, sql) %}{{ create_view_as(relation, sql) }}{% endmacro %}",
        "duckdb__get_create_view_as_sql is reserved for the platform",
    ),
    "tests/kept.sql": ("{{ config(store_failures=true) }} select * from {{ ref('days') }}", "store_failures of kept"),
    "tests/nothing.sql": ("select 1 where false", "nothing reads no model"),
}
HELPERS = {
    "functions/twice.yml": (
        "functions: [{name: twice, arguments: [{name: x, data_type: int}], returns: {data_type: int}}]"
    ),
    "macros/scd.sql": (
        "{% materialization scd, adapter='duckdb' %}{{ return({'relations': []}) }}{% endmaterialization %}"
    ),
}


@pytest.fixture(scope="module")
def refusal(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The error when the bakery's project is parsed with everything added that the lake doesn't support, in lines."""
    from busco.settings import Settings

    home = tmp_path_factory.mktemp("refused")
    shutil.copytree(BAKERY, home / "dbt_project")
    shutil.copytree(home / "dbt_project/vendor", home / "dbt_project/dbt_packages")
    for path, text in {**{path: text for path, (text, _) in REFUSED.items()}, **HELPERS}.items():
        file = home / "dbt_project" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    project = home / "dbt_project/dbt_project.yml"
    project.write_text(project.read_text() + '\non-run-end: ["select 1"]\n')
    with opened(Settings(home=home), verbose=True) as dbt, pytest.raises(BuscoError) as refusal:
        dbt.parse()
    return str(refusal.value).splitlines()


@pytest.mark.parametrize("path", REFUSED)
def test_an_unsupported_feature_is_refused_at_parse_with_the_reason(refusal: list[str], path: str) -> None:
    found = [line for line in refusal if line.strip().startswith(f"{path}: ")]
    assert any(REFUSED[path][1] in line for line in found), "\n".join(refusal)


def test_hooks_for_a_whole_run_are_refused_at_parse(refusal: list[str]) -> None:
    assert any("dbt_project.yml: on-run-start and on-run-end are not supported" in line for line in refusal)


def test_the_fix_that_all_models_need_is_stated_once(refusal: list[str]) -> None:
    """dbt_project.yml already sets the materialization, but these models override it in their own files."""
    advice = [line for line in refusal if line.startswith("  → ")]
    assert advice[0] == (
        "  → for all models at once, in dbt_project.yml: models: {bakery: {+schema: gold}} (or +schema: silver)"
    )
    assert advice[1].startswith("  → 4 models (models/a/")
    assert "which override dbt_project.yml: write materialized='lake' in those configs" in advice[1]
    assert advice[2] == (
        "  → 1 model (models/a/layer.sql) has its own config, which overrides dbt_project.yml: "
        "write schema='silver' or schema='gold' in that config"
    )
    assert len(advice) == 3


def test_nothing_in_the_original_project_is_refused(refusal: list[str]) -> None:
    named = {line.strip().split(": ")[0] for line in refusal[1:] if not line.startswith("  → ")}
    assert named == {*REFUSED, "dbt_project.yml"}


def test_two_models_for_one_table_are_refused_at_parse(tmp_path: Path) -> None:
    from busco.settings import Settings

    shutil.copytree(BAKERY, tmp_path / "dbt_project")
    shutil.copytree(tmp_path / "dbt_project/vendor", tmp_path / "dbt_project/dbt_packages")
    alias = "{{ config(alias='customers') }} select 1 as customer_id"
    (tmp_path / "dbt_project/models/marts/clients.sql").write_text(alias)
    with opened(Settings(home=tmp_path)) as dbt, pytest.raises(BuscoError) as refusal:
        dbt.parse()
    assert "clients.sql" in str(refusal.value)
    assert "customers_v2.sql" in str(refusal.value)
