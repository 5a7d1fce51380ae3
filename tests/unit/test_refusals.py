"""How the refusals of a project with very many models are worded: short, with what to do that has an effect."""

from __future__ import annotations

from typing import Any

import pytest

from busco import refusals
from busco.errors import BuscoError
from busco.project import Project


def model(file: str, package: str = "shop", **more: Any) -> dict[str, Any]:
    """A model of `models/<file>.sql` with what `more` says of it; `config` is added to one that is right."""
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


def said(*nodes: dict[str, Any], macros: dict[str, Any] | None = None, **how: Any) -> list[str]:
    """The lines of the refusal of a project with these nodes, without the first."""
    uids = {f"{node['resource_type']}.{node['package_name']}.{node['name']}": node for node in nodes}
    manifest = {"metadata": {"project_name": "shop"}, "nodes": uids, "sources": {}, "macros": macros or {}}
    with pytest.raises(BuscoError) as refused:
        refusals.check(Project(manifest), **how)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


def tables(number: int, materialized: str = "table", folder: str = "a", **more: Any) -> list[dict[str, Any]]:
    config = {"materialized": materialized}
    return [model(f"{folder}/{materialized}_{place:04}", config=config, **more) for place in range(number)]


# -- one line a kind --------------------------------------------------------------------------------------------------


def test_a_thousand_models_with_one_problem_are_one_line_with_their_number_and_three_files() -> None:
    lines = said(*tables(1000))
    files = "models/a/table_0000.sql, models/a/table_0001.sql, models/a/table_0002.sql"
    assert lines[0] == (
        f"1,000 nodes ({files}, …): materialization table is refused; write materialized='lake' (or view, ephemeral)"
    )
    assert len(lines) < 5
    assert any("busco dbt parse --verbose" in line for line in lines)


def test_every_one_of_them_is_named_where_that_is_asked_for() -> None:
    lines = said(*tables(1000), verbose=True)
    assert len([line for line in lines if line.startswith("models/a/table_")]) == 1000
    assert not any("--verbose" in line for line in lines)


@pytest.mark.parametrize("number", [1, 3])
def test_up_to_three_models_of_a_kind_are_all_named(number: int) -> None:
    lines = said(*tables(number))
    assert [line.split(": ")[0] for line in lines[:number]] == [f"models/a/table_{n:04}.sql" for n in range(number)]
    assert not any("nodes (" in line or "--verbose" in line for line in lines)


def test_each_kind_has_its_own_line_and_a_rare_one_is_not_lost_among_many() -> None:
    granted = model("a/granted", config={"grants": {"select": ["bi"]}})
    schemas = [model(f"b/m{place}", schema="marts") for place in range(5)]
    lines = said(*tables(500), *tables(7, "incremental"), granted, *schemas, model("b/other", schema="other"))
    assert [line.split(" ")[0] for line in lines if "nodes (" in line] == ["500", "7", "5"]
    assert any(line.startswith("models/a/granted.sql: grants are refused") for line in lines)
    assert any(line.startswith("5 nodes (") and "schema marts is not a layer" in line for line in lines)
    assert any(line.startswith("models/b/other.sql: schema other is not a layer") for line in lines)


def test_what_is_each_node_s_own_makes_no_line_of_its_own() -> None:
    lines = said(model("a"), *(a_test(f"t{place}") for place in range(40)))
    assert lines[0].startswith("40 nodes (models/all.yml): store_failures of … is refused")
    assert len([line for line in lines if "store_failures" in line]) == 1
    lines = said(model("a"), *(a_test(f"t{place}") for place in range(3)))
    assert [line for line in lines if "store_failures of t1 is refused" in line]


def test_all_columns_of_a_model_with_a_type_that_is_not_kept_are_in_one_line() -> None:
    columns = {name: {"name": name, "data_type": kind} for name, kind in
               (("a", "hugeint"), ("b", "integer"), ("c", "hugeint"), ("d", "uuid"), ("e", "{odd}"))}  # fmt: skip
    lines = said(model("wide", columns=columns))
    assert any(line.startswith("models/wide.sql: columns a, c: tables can't store the type HUGEINT") for line in lines)
    assert any(line.startswith("models/wide.sql: column d: tables can't store the type UUID") for line in lines)
    assert any("column e: unknown type {odd}" in line for line in lines)


# -- for all models at once -------------------------------------------------------------------------------------------


def advice(*nodes: dict[str, Any], file: dict[str, Any] | None = None) -> list[str]:
    """What is said to do, after the arrow."""
    lines = said(*nodes, project_file={"models": file} if file else {})
    first = next(place for place, line in enumerate(lines) if line.startswith("→"))
    return [line.removeprefix("→ ") for line in lines[first:] if "--verbose" not in line]


AT_ONCE = "for all models at once, in dbt_project.yml"


def test_the_advice_names_the_package_that_the_models_belong_to() -> None:
    assert advice(*tables(5, package="dbt_utils")) == [f"{AT_ONCE}: models: {{dbt_utils: {{+materialized: lake}}}}"]


def test_the_advice_has_a_line_for_each_of_several_packages() -> None:
    lines = advice(*tables(2, package="shop"), *tables(2, "incremental", package="jaffle"))
    assert lines == [f"{AT_ONCE}, under models:", "shop: {+materialized: lake}", "jaffle: {+materialized: lake}"]


def test_the_advice_is_where_the_project_says_otherwise_now() -> None:
    """A word for the whole project would lose to one for the folder."""
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
def test_a_model_s_own_config_wins_and_is_what_is_to_be_changed(call: str, file: dict[str, Any] | None) -> None:
    (line,) = advice(*tables(1, raw_code=call), file=file)
    assert AT_ONCE not in line
    assert "models/a/table_0000.sql" in line
    assert "which overrides dbt_project.yml" in line


@pytest.mark.parametrize("code", NO_CALLS)
def test_a_model_that_only_names_the_word_has_no_config_of_its_own(code: str) -> None:
    (line,) = advice(*tables(1, raw_code=code), file={"shop": {"+materialized": "table"}})
    assert line == f"{AT_ONCE}: models: {{shop: {{+materialized: lake}}}}"


def test_a_config_in_a_model_s_yaml_is_named_by_that_file() -> None:
    (line,) = advice(*tables(1, patch_path="shop://models/all.yml"), file={"shop": {"+materialized": "lake"}})
    assert AT_ONCE not in line
    assert "models/all.yml" in line
    (line,) = advice(*tables(1, raw_code="select 1 as materialized", patch_path="shop://models/all.yml"))
    assert "models/all.yml" in line, "nothing in dbt_project.yml has made a table of it"


def test_the_project_s_word_wins_over_a_package_s_own_files() -> None:
    """dbt applies the root project's dbt_project.yml after all that a package says itself."""
    nodes = tables(5, package="dbt_utils", raw_code=CALLS[0])
    assert advice(*nodes) == [f"{AT_ONCE}: models: {{dbt_utils: {{+materialized: lake}}}}"]


def test_both_are_said_where_both_are_needed_and_many_files_are_cut_short() -> None:
    own = [model(f"own/m{place}", config={"materialized": "table"}, raw_code=CALLS[0]) for place in range(30)]
    at_once, files = advice(*tables(2), *own, file={"shop": {"a": {"+materialized": "table"}}})
    assert at_once == f"{AT_ONCE}: models: {{shop: {{a: {{+materialized: lake}}}}}}"
    assert "30 models (models/own/m0.sql, models/own/m1.sql, models/own/m2.sql, …)" in files


def test_nothing_is_advised_for_all_where_no_materialization_is_refused() -> None:
    lines = said(model("a", schema="marts"))
    assert not [line for line in lines if line.startswith("→")]


# -- a project's own macro --------------------------------------------------------------------------------------------


def macro(name: str, package: str = "shop") -> dict[str, Any]:
    return {f"macro.{package}.{name}": {
        "name": name, "package_name": package, "original_file_path": f"macros/{name}.sql", "macro_sql": "",
    }}  # fmt: skip


@pytest.mark.parametrize("name", ["generate_schema_name", "default__generate_schema_name"])
def test_the_macro_that_ignores_the_schema_is_named_with_what_it_must_return(name: str) -> None:
    (line,) = said(model("a", schema="dev_gold"), macros=macro(name))
    assert line == (
        f"models/a.sql: schema dev_gold is not a layer for tables: the project's macro {name} "
        f"(macros/{name}.sql) derives it from +schema: gold; make the macro return the value of +schema"
    )


def test_a_schema_that_is_no_layer_and_is_changed_by_a_macro_says_both() -> None:
    (line,) = said(model("a", schema="dev_marts", config={"schema": "marts"}), macros=macro("generate_schema_name"))
    assert "derives it from +schema: marts" in line
    assert "write +schema: silver or gold" in line
    assert "make the macro return that value" in line


def test_a_macro_that_changes_nothing_or_is_not_asked_is_not_blamed() -> None:
    plain = "models/a.sql: schema marts is not a layer for tables; write +schema: silver or gold"
    own = macro("generate_schema_name")
    assert said(model("a", schema="marts", config={"schema": "marts"}), macros=own) == [plain]
    assert said(model("a", schema="marts", config={"schema": None}), macros=own) == [plain]
    assert said(model("a", schema="marts"), macros=macro("generate_schema_name", "dbt_utils")) == [plain]
    assert said(model("a", schema="marts"), macros=macro("generate_schema_name", "dbt")) == [plain]


def test_a_package_s_own_macro_decides_of_its_models() -> None:
    macros = {**macro("generate_schema_name"), **macro("generate_schema_name", "dbt_utils")}
    (line,) = said(model("a", "dbt_utils", schema="x_gold"), macros=macros)
    assert "the macro generate_schema_name of dbt_utils" in line


def test_the_macro_that_makes_a_table_s_name_is_named_too() -> None:
    node = model("a", alias="Gold Report", config={"alias": "report"})
    (line,) = said(node, macros=macro("generate_alias_name"))
    assert "Gold Report is not a valid name in Glue and Athena" in line
    assert "the project's macro generate_alias_name (macros/generate_alias_name.sql) derives it" in line
    assert "alias: report" in line
