"""Refusals of projects with very many models are short, and the fixes that they suggest are effective."""

from __future__ import annotations

from typing import Any

import pytest

from busco import refusals
from busco.errors import BuscoError
from busco.project import Project


def model(file: str, package: str = "shop", **more: Any) -> dict[str, Any]:
    """Returns the node of `models/<file>.sql`, updated with `more`; `config` is merged into a valid config."""
    name = file.split("/")[-1]
    config = {"materialized": "lake", "schema": "gold", **more.pop("config", {})}
    return {
        "resource_type": "model", "name": name, "alias": name, "schema": "gold", "package_name": package,
        "fqn": [package, *file.split("/")], "original_file_path": f"models/{file}.sql", "raw_code": "select 1",
        "columns": {}, "depends_on": {"nodes": [], "macros": []}, "config": config, **more,
    }  # fmt: skip


def a_test(name: str) -> dict[str, Any]:
    return {
        "resource_type": "test", "name": name, "original_file_path": "models/all.yml", "package_name": "shop",
        "config": {"store_failures": True}, "depends_on": {"nodes": ["model.shop.a"], "macros": []},
    }  # fmt: skip


def refusal(*nodes: dict[str, Any], macros: dict[str, Any] | None = None, **how: Any) -> list[str]:
    """Returns the lines of the error for a project with these nodes, without the first line."""
    uids = {f"{node['resource_type']}.{node['package_name']}.{node['name']}": node for node in nodes}
    manifest = {"metadata": {"project_name": "shop"}, "nodes": uids, "sources": {}, "macros": macros or {}}
    with pytest.raises(BuscoError) as refused:
        refusals.check(Project(manifest), **how)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


def tables(number: int, materialized: str = "table", folder: str = "a", **more: Any) -> list[dict[str, Any]]:
    config = {"materialized": materialized}
    return [model(f"{folder}/{materialized}_{n:04}", config=config, **more) for n in range(number)]


# -- one line per kind ------------------------------------------------------------------------------------------------


def test_a_problem_of_a_thousand_models_is_one_line_with_their_number_and_three_files() -> None:
    lines = refusal(*tables(1000))
    files = "models/a/table_0000.sql, models/a/table_0001.sql, models/a/table_0002.sql"
    assert lines[0] == (
        f"1,000 nodes ({files}, …): materialization table is not allowed; "
        "write materialized='lake' (or view, ephemeral)"
    )
    assert len(lines) < 5
    assert any("busco dbt parse --verbose" in line for line in lines)


def test_verbose_output_names_every_model() -> None:
    lines = refusal(*tables(1000), verbose=True)
    assert len([line for line in lines if line.startswith("models/a/table_")]) == 1000
    assert not any("--verbose" in line for line in lines)


def test_the_files_in_a_line_are_in_order() -> None:
    nodes = tables(5)
    assert refusal(*nodes[3:], *nodes[:3])[0] == refusal(*nodes)[0]


@pytest.mark.parametrize("number", [1, 3])
def test_up_to_three_models_of_a_kind_are_all_named(number: int) -> None:
    lines = refusal(*tables(number))
    assert [line.split(": ")[0] for line in lines[:number]] == [f"models/a/table_{n:04}.sql" for n in range(number)]
    assert not any("nodes (" in line or "--verbose" in line for line in lines)


def test_each_kind_has_its_own_line_and_a_rare_one_is_not_lost_among_many() -> None:
    granted = model("a/granted", config={"grants": {"select": ["bi"]}})
    schemas = [model(f"b/m{n}", schema="marts") for n in range(5)]
    lines = refusal(*tables(500), *tables(7, "incremental"), granted, *schemas, model("b/other", schema="other"))
    assert [line.split(" ")[0] for line in lines if "nodes (" in line] == ["500", "7", "5"]
    assert any(line.startswith("models/a/granted.sql: grants are not supported") for line in lines)
    assert any(line.startswith("5 nodes (") and "schema marts is not a layer" in line for line in lines)
    assert any(line.startswith("models/b/other.sql: schema other is not a layer") for line in lines)


def test_problems_that_differ_only_in_the_node_s_name_share_a_line() -> None:
    lines = refusal(model("a"), *(a_test(f"t{n}") for n in range(40)))
    assert lines[0].startswith("40 nodes (models/all.yml): store_failures of … is not supported")
    assert len([line for line in lines if "store_failures" in line]) == 1
    lines = refusal(model("a"), *(a_test(f"t{n}") for n in range(3)))
    assert [line for line in lines if "store_failures of t1 is not supported" in line]


def test_all_columns_of_a_model_with_the_same_unsupported_type_are_in_one_line() -> None:
    columns = {name: {"name": name, "data_type": kind} for name, kind in
               (("a", "hugeint"), ("b", "integer"), ("c", "hugeint"), ("d", "uuid"), ("e", "{odd}"))}  # fmt: skip
    lines = refusal(model("wide", columns=columns))
    assert any(line.startswith("models/wide.sql: columns a, c: tables can't store the type HUGEINT") for line in lines)
    assert any(line.startswith("models/wide.sql: column d: tables can't store the type UUID") for line in lines)
    assert any("column e: unknown type {odd}" in line for line in lines)


# -- for all models at once -------------------------------------------------------------------------------------------


def advice(*nodes: dict[str, Any], file: dict[str, Any] | None = None) -> list[str]:
    """Returns the suggested fixes, which follow the arrow."""
    lines = refusal(*nodes, project_file={"models": file} if file else {})
    first = next(n for n, line in enumerate(lines) if line.startswith("→"))
    return [line.removeprefix("→ ") for line in lines[first:] if "--verbose" not in line]


AT_ONCE = "for all models at once, in dbt_project.yml"


def test_the_advice_names_the_package_that_the_models_belong_to() -> None:
    assert advice(*tables(5, package="dbt_utils")) == [f"{AT_ONCE}: models: {{dbt_utils: {{+materialized: lake}}}}"]


def test_the_advice_has_a_line_for_each_of_several_packages() -> None:
    lines = advice(*tables(2, package="shop"), *tables(2, "incremental", package="jaffle"))
    assert lines == [f"{AT_ONCE}, under models:", "shop: {+materialized: lake}", "jaffle: {+materialized: lake}"]


def test_the_advice_names_the_folder_whose_setting_must_change() -> None:
    """A setting for the whole project would be overridden by the folder's setting."""
    file = {"shop": {"+materialized": "lake", "a": {"+materialized": "table"}, "b": {"materialized": "table"}}}
    assert advice(*tables(5), file=file) == [f"{AT_ONCE}: models: {{shop: {{a: {{+materialized: lake}}}}}}"]
    both = advice(*tables(2), *tables(2, "incremental", folder="b"), file=file)
    assert both == [f"{AT_ONCE}: models: {{shop: {{a: {{+materialized: lake}}, b: {{+materialized: lake}}}}}}"]
    assert advice(*tables(1), file={"+materialized": "table"}) == [f"{AT_ONCE}: models: {{+materialized: lake}}"]


NO_CALLS = ["{{ config(tags=['materialized']) }} select 1", "select 1 as materialized", "-- config\nselect (1)"]
CALLS = [
    "{{ config(materialized='table') }} select 1",
    "{{ config(\n    tags=['a', var('b')],\n    materialized = 'table'\n) }} select 1",
    "{% do config({'tags': [], 'materialized': 'table'}) %} select 1",
    "{{- config (pre_hook=set_up(var('a', (1))), materialized=var('kind')) -}} select 1",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("file", [None, {"shop": {"+materialized": "lake"}}], ids=["not set", "set"])
def test_a_model_s_own_config_takes_precedence_and_is_named_as_what_to_change(
    call: str, file: dict[str, Any] | None
) -> None:
    (line,) = advice(*tables(1, raw_code=call), file=file)
    assert AT_ONCE not in line
    assert "models/a/table_0000.sql" in line
    assert "which overrides dbt_project.yml" in line


@pytest.mark.parametrize("code", NO_CALLS)
def test_a_model_that_only_mentions_materialized_has_no_config_of_its_own(code: str) -> None:
    (line,) = advice(*tables(1, raw_code=code), file={"shop": {"+materialized": "table"}})
    assert line == f"{AT_ONCE}: models: {{shop: {{+materialized: lake}}}}"


def test_a_config_in_a_model_s_yaml_is_reported_with_that_file() -> None:
    (line,) = advice(*tables(1, patch_path="shop://models/all.yml"), file={"shop": {"+materialized": "lake"}})
    assert AT_ONCE not in line
    assert "models/all.yml" in line
    (line,) = advice(*tables(1, raw_code="select 1 as materialized", patch_path="shop://models/all.yml"))
    assert "models/all.yml" in line, (
        "the YAML file must be named, because dbt_project.yml does not set the materialization"
    )


def test_the_project_s_settings_take_precedence_over_a_package_s_own_files() -> None:
    """dbt applies the root project's dbt_project.yml after all of a package's own settings."""
    nodes = tables(5, package="dbt_utils", raw_code=CALLS[0])
    assert advice(*nodes) == [f"{AT_ONCE}: models: {{dbt_utils: {{+materialized: lake}}}}"]


def test_both_fixes_are_suggested_if_both_are_needed_and_long_file_lists_are_shortened() -> None:
    own = [model(f"own/m{n}", config={"materialized": "table"}, raw_code=CALLS[0]) for n in range(30)]
    at_once, files = advice(*tables(2), *own, file={"shop": {"a": {"+materialized": "table"}}})
    assert at_once == f"{AT_ONCE}: models: {{shop: {{a: {{+materialized: lake}}}}}}"
    assert "30 models (models/own/m0.sql, models/own/m1.sql, models/own/m10.sql, …)" in files


# -- a table's schema -------------------------------------------------------------------------------------------------


def test_a_schema_that_is_no_layer_is_reported_with_the_file_and_the_key_that_set_it() -> None:
    marts = model("a/m", schema="marts", config={"schema": "marts"})
    assert advice(marts, file={"shop": {"a": {"+schema": "marts"}}}) == [
        f"{AT_ONCE}: models: {{shop: {{a: {{+schema: gold}}}}}} (or +schema: silver)"
    ]
    unset = model("a/m", schema="main", config={"schema": None})
    assert advice(unset) == [f"{AT_ONCE}: models: {{shop: {{+schema: gold}}}} (or +schema: silver)"]
    call = {"raw_code": "{{ config(schema='marts') }} select 1"}
    (line,) = advice(model("a/m", schema="marts", config={"schema": "marts"}, **call))
    assert line == (
        "1 model (models/a/m.sql) has its own config, which overrides dbt_project.yml: "
        "write schema='silver' or schema='gold' in that config"
    )
    (line,) = advice({**unset, "patch_path": "shop://models/all.yml"})
    assert line.startswith(AT_ONCE), "a YAML file that sets no schema is not where to change it"


def test_a_seed_s_schema_is_set_in_the_section_for_seeds() -> None:
    seed = {**model("ref", schema="main", config={"materialized": "seed", "schema": None}), "resource_type": "seed"}
    assert advice(seed) == [
        "for all seeds at once, in dbt_project.yml: seeds: {shop: {+schema: gold}} (or +schema: silver)"
    ]


# -- packages ---------------------------------------------------------------------------------------------------------


def test_a_package_s_models_are_reported_with_the_package_and_all_that_they_need_at_once() -> None:
    node = model("gold/pkm", "pkgm", schema="main", config={"materialized": "table", "schema": None})
    lines = refusal(node)
    assert lines == [
        "pkgm: models/gold/pkm.sql: materialization table is not allowed; "
        "write materialized='lake' (or view, ephemeral)",
        "pkgm: models/gold/pkm.sql: schema main is not a layer for tables; write +schema: silver or gold",
        f"→ {AT_ONCE}: models: {{pkgm: {{+materialized: lake, +schema: gold}}}} (or +schema: silver)",
    ]


def test_a_package_is_named_if_many_of_its_models_share_a_line() -> None:
    lines = refusal(*tables(5, package="pkgm"))
    files = ", ".join(f"pkgm: models/a/table_000{n}.sql" for n in range(3))
    assert lines[0].startswith(f"5 nodes ({files}, …): materialization table")


def test_a_package_s_table_gets_its_alias_in_dbt_project_yml() -> None:
    """A view and a table whose names differ only in case are the same relation to DuckDB, but not to dbt."""
    view = model("gold/a", "pkgq", alias="A", config={"materialized": "view"})
    assert refusal(model("gold/a"), view) == [
        "pkgq: models/gold/a.sql: model.shop.a builds gold.a too; give one of them an alias",
        "→ package files can't be edited (pkgq); in dbt_project.yml, set the nodes' aliases: "
        "models: {pkgq: {gold: {a: {+alias: pkgq_a}}}}",
    ]


def test_a_node_of_a_package_that_no_setting_fixes_is_to_be_disabled() -> None:
    python = model("gold/p", "pkgq", language="python")
    granted = [model(f"gold/g{n}", "pkgq", config={"grants": {"select": ["bi"]}, "materialized": "table"})
               for n in range(5)]  # fmt: skip
    assert refusal(python)[-1] == (
        "→ package files can't be edited (pkgq); in dbt_project.yml, disable the refused nodes: "
        "models: {pkgq: {gold: {p: {+enabled: false}}}}"
    )
    lines = refusal(*granted)
    assert not [line for line in lines if AT_ONCE in line], "a disabled model needs no materialization"
    assert lines[-5:] == [
        "→ package files can't be edited (pkgq); in dbt_project.yml, disable the refused nodes:",
        *(f"models: {{pkgq: {{gold: {{g{n}: {{+enabled: false}}}}}}}}" for n in range(3)),
        "… (5 in total)",
    ]


def test_two_nodes_of_different_packages_can_have_the_same_name() -> None:
    other = model("gold/a", "pkgq", schema="silver", config={"schema": "silver"})
    assert refusal(model("gold/a"), other, model("b", schema="marts"))[0].startswith("models/b.sql: ")


# -- empty models -----------------------------------------------------------------------------------------------------


def test_each_test_of_an_empty_model_is_named() -> None:
    tests = [{**a_test(name), "config": {}, "depends_on": {"nodes": ["model.shop.empty"]}} for name in ("one", "two")]
    text = "reads model.shop.empty, whose file is empty, so dbt never builds it; write its SQL, or delete the file"
    assert refusal(*tests) == [f"models/all.yml: {name} {text}" for name in ("one", "two")]


# -- a project's own macro --------------------------------------------------------------------------------------------


def macro(name: str, package: str = "shop") -> dict[str, Any]:
    return {f"macro.{package}.{name}": {
        "name": name, "package_name": package, "original_file_path": f"macros/{name}.sql", "macro_sql": "",
    }}  # fmt: skip


@pytest.mark.parametrize("name", ["generate_schema_name", "default__generate_schema_name"])
def test_a_macro_that_ignores_the_schema_is_named_with_what_it_must_return(name: str) -> None:
    (line,) = refusal(model("a", schema="dev_gold"), macros=macro(name))
    assert line == (
        f"models/a.sql: schema dev_gold is not a layer for tables: the project's macro {name} "
        f"(macros/{name}.sql) derives it from +schema: gold; make the macro return the value of +schema"
    )


def test_both_problems_are_reported_if_a_schema_is_no_layer_and_a_macro_changes_it() -> None:
    (line,) = refusal(model("a", schema="dev_marts", config={"schema": "marts"}), macros=macro("generate_schema_name"))
    assert "derives it from +schema: marts" in line
    assert "write +schema: silver or gold" in line
    assert "make the macro return that value" in line


def test_a_macro_that_changes_nothing_or_is_not_used_is_not_blamed() -> None:
    plain = "models/a.sql: schema marts is not a layer for tables; write +schema: silver or gold"
    own = macro("generate_schema_name")
    assert refusal(model("a", schema="marts", config={"schema": "marts"}), macros=own)[0] == plain
    assert refusal(model("a", schema="marts", config={"schema": None}), macros=own)[0] == plain
    assert refusal(model("a", schema="marts"), macros=macro("generate_schema_name", "dbt_utils"))[0] == plain
    assert refusal(model("a", schema="marts"), macros=macro("generate_schema_name", "dbt"))[0] == plain


def test_a_package_s_own_macro_decides_for_its_models() -> None:
    macros = {**macro("generate_schema_name"), **macro("generate_schema_name", "dbt_utils")}
    (line,) = refusal(model("a", "dbt_utils", schema="x_gold"), macros=macros)
    assert "the macro generate_schema_name of dbt_utils" in line


def test_the_macro_that_derives_a_table_s_name_is_named_too() -> None:
    node = model("a", alias="Gold Report", config={"alias": "report"})
    (line,) = refusal(node, macros=macro("generate_alias_name"))
    assert "Gold Report is not a valid name in Glue and Athena" in line
    assert "the project's macro generate_alias_name (macros/generate_alias_name.sql) derives it" in line
    assert "alias: report" in line


@pytest.mark.parametrize("kind", ["lake", "seed", "source"])
def test_a_table_whose_name_has_a_capital_letter_is_refused_because_glue_would_change_it(kind: str) -> None:
    if kind == "source":
        source = {**model("Fct"), "resource_type": "source", "schema": "bronze", "source_name": "shop"}
        manifest = {"metadata": {"project_name": "shop"}, "nodes": {}, "sources": {"source.shop.shop.Fct": source}}
        with pytest.raises(BuscoError, match="Fct is not a valid name in Glue and Athena; set an identifier"):
            refusals.check(Project(manifest))
    else:
        node = model("Fct", resource_type="seed" if kind == "seed" else "model", config={"materialized": kind})
        (line,) = refusal(node)
        assert "Fct is not a valid name in Glue and Athena; set an alias" in line
