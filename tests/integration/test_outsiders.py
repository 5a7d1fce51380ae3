"""The first errors that users see when they bring their own dbt project, and whether the advice in them works."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from busco.errors import BuscoError
from busco.settings import Settings, get_settings
from busco.warehouse.dbt import opened
from tests.command import in_process
from tests.platforms import BAKERY, neutral_environment

pytestmark = pytest.mark.slow

TABLE = "{{ config(materialized='table') }} select 1 as a"


def write(folder: Path, **files: str) -> Path:
    """Writes a dbt project named shop with the given files (path → text)."""
    given = {"dbt_project.yml": "{name: shop, version: '1.0', config-version: 2, profile: none}", **files}
    for path, text in given.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def refused(home: Path, project: str = "dbt_project", verbose: bool = False) -> BuscoError:
    with opened(Settings(home=home).of_project(project), verbose) as dbt, pytest.raises(BuscoError) as refusal:
        dbt.parse()
    return refusal.value


def parsed(home: Path) -> None:
    with opened(Settings(home=home)) as dbt:
        dbt.parse()


@pytest.fixture
def busco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """The command in this process, in a home without a lake; returns its exit status and the output of both streams."""
    for name in set(os.environ) - set(neutral_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("BUSCO_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    yield in_process(capfd)
    get_settings.cache_clear()


# -- many models ------------------------------------------------------------------------------------------------------


def test_many_refused_models_share_one_line_and_verbose_lists_each_of_them(tmp_path: Path, busco) -> None:
    write(tmp_path / "dbt_project", **{f"models/m{place}.sql": TABLE for place in range(12)})
    status, printed = busco("dbt", "parse")
    assert status == 1
    for problem in ("materialization table is not allowed", "schema main is not a layer"):
        lines = [line for line in printed.splitlines() if problem in line]
        assert len(lines) == 1
        assert re.match(r"\s+12 nodes \(models/m\d+\.sql, models/m\d+\.sql, models/m\d+\.sql, …\): ", lines[0])
    assert "busco dbt parse --verbose" in printed
    for command in (["parse", "--verbose"], ["--project-dir", "dbt_project", "parse", "--verbose"]):
        status, printed = busco("dbt", *command)
        assert status == 1
        for problem in ("materialization table", "schema main"):
            assert len(re.findall(rf"^\s+models/m\d+\.sql: {problem} ", printed, re.MULTILINE)) == 12
    assert busco("dbt", "parse", "--nonsense")[0] == 2


# -- following the advice ---------------------------------------------------------------------------------------------


def test_the_advice_for_a_package_works_although_its_models_set_another_materialization(tmp_path: Path) -> None:
    home = tmp_path / "dbt_project"
    write(home / "dbt_packages/utils", **{"models/a.sql": TABLE, "models/b.sql": TABLE})
    package = {"name": "utils", "version": "1.0", "config-version": 2, "models": {"utils": {"+materialized": "table"}}}
    (home / "dbt_packages/utils/dbt_project.yml").write_text(yaml.safe_dump(package))
    write(home, **{"models/own.sql": "select 1 as a"})
    file = home / "dbt_project.yml"
    own = {"name": "shop", "version": "1.0", "config-version": 2, "profile": "none", "models": {"+schema": "gold"}}
    file.write_text(yaml.safe_dump(own))
    hint = refused(tmp_path).hint
    assert hint == "for all models at once, in dbt_project.yml: models: {utils: {+materialized: lake}}"
    own["models"] |= yaml.safe_load(hint.partition("models: ")[2])
    file.write_text(yaml.safe_dump(own))
    parsed(tmp_path)


def test_the_advice_works_if_a_folder_sets_another_materialization(tmp_path: Path) -> None:
    home = write(tmp_path / "dbt_project", **{"models/marts/a.sql": "select 1 as a", "models/b.sql": "select 1 as a"})
    own = {"name": "shop", "version": "1.0", "config-version": 2, "profile": "none"}
    models = {"+schema": "gold", "+materialized": "lake", "marts": {"+materialized": "table"}}
    (home / "dbt_project.yml").write_text(yaml.safe_dump({**own, "models": {"shop": models}}))
    hint = refused(tmp_path).hint
    assert hint.endswith("models: {shop: {marts: {+materialized: lake}}}")
    models |= yaml.safe_load(hint.partition("models: ")[2])["shop"]
    (home / "dbt_project.yml").write_text(yaml.safe_dump({**own, "models": {"shop": models}}))
    parsed(tmp_path)


def test_models_that_override_a_correct_project_file_are_named(tmp_path: Path) -> None:
    home = write(
        tmp_path / "dbt_project",
        **{
            "models/in_sql.sql": TABLE,
            "models/in_yaml.sql": "select 1 as a",
            "models/more.yml": "models: [{name: in_yaml, config: {materialized: table}}]",
        },
    )
    own = {"name": "shop", "version": "1.0", "config-version": 2, "profile": "none"}
    models = {"shop": {"+materialized": "lake", "+schema": "gold"}}
    (home / "dbt_project.yml").write_text(yaml.safe_dump({**own, "models": models}))
    hint = refused(tmp_path).hint
    assert "for all models at once" not in hint
    assert "models/in_sql.sql" in hint
    assert "models/more.yml" in hint
    (home / "models/in_sql.sql").write_text(TABLE.replace("table", "lake"))
    (home / "models/more.yml").write_text("models: [{name: in_yaml, config: {materialized: lake}}]")
    parsed(tmp_path)


# -- schemas ----------------------------------------------------------------------------------------------------------

RIGHT = "{{ custom_schema_name or target.schema }}"


@pytest.mark.parametrize(
    "name", ["generate_schema_name", "default__generate_schema_name", "duckdb__generate_schema_name"]
)
def test_a_macro_that_changes_the_schema_is_named_and_the_advice_works(tmp_path: Path, name: str) -> None:
    macro = "{{% macro {}(custom_schema_name, node) %}}{}{{% endmacro %}}"
    home = write(
        tmp_path / "dbt_project",
        **{
            "models/a.sql": "{{ config(materialized='lake', schema='gold') }} select 1 as a",
            "macros/names.sql": macro.format(name, "{{ target.schema }}_{{ custom_schema_name }}"),
        },
    )
    (line,) = refused(tmp_path).message.splitlines()[1:]
    assert "write +schema" not in line
    assert f"the project's macro {name} (macros/names.sql) derives it from +schema: gold" in line
    assert "make the macro return the value of +schema" in line
    (home / "macros/names.sql").write_text(macro.format(name, RIGHT))
    parsed(tmp_path)


# -- packages ---------------------------------------------------------------------------------------------------------


def test_the_suggested_command_installs_missing_packages(tmp_path: Path, busco) -> None:
    write(tmp_path / "dbt_project")
    shutil.copytree(BAKERY, tmp_path / "bakery")
    status, printed = busco("dbt", "--project-dir", "bakery", "parse")
    assert (status, printed.splitlines()[-1]) == (1, "  → run: busco dbt --project-dir bakery deps")
    assert busco("dbt", "--project-dir", "bakery", "deps")[0] == 0
    status, printed = busco("dbt", "--project-dir", "bakery", "parse")
    assert status == 0, printed


def test_the_command_for_the_platform_s_own_project_names_no_folder(tmp_path: Path, busco) -> None:
    shutil.copytree(BAKERY, tmp_path / "dbt_project")
    assert busco("dbt", "parse")[1].splitlines()[-1] == "  → run: busco dbt deps"
    assert busco("dbt", "deps")[0] == 0
    assert busco("dbt", "parse")[0] == 0


def test_the_suggested_command_names_the_right_folder_from_any_working_directory(
    tmp_path: Path, busco, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "dbt_project")
    shutil.copytree(BAKERY, tmp_path / "a bakery")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    hint = busco("dbt", "--project-dir", "../a bakery", "parse")[1].splitlines()[-1]
    assert hint == f"  → run: busco dbt --project-dir '{tmp_path}/a bakery' deps"
    monkeypatch.chdir(tmp_path / "a bakery")
    assert busco("dbt", "--project-dir", ".", "parse")[1].splitlines()[-1] == "  → run: busco dbt --project-dir . deps"


def test_the_command_is_also_suggested_for_packages_in_dependencies_yml(tmp_path: Path) -> None:
    write(tmp_path / "dbt_project", **{"dependencies.yml": "packages: [{local: utils}]"})
    assert refused(tmp_path).hint == "run: busco dbt deps"


@pytest.mark.parametrize(
    "files",
    [
        {"models/a.sql": "{{ utils.surrogate('a') }}"},
        {"models/a.sql": "select 1 as a", "models/a.yml": "models: [{name: a, data_tests: [utils.is_right]}]"},
    ],
    ids=["macro", "test"],
)
def test_the_command_is_also_suggested_for_an_unknown_macro_that_a_package_could_define(
    tmp_path: Path, busco, files: dict[str, str]
) -> None:
    """dbt notices the missing macro only when it compiles."""
    schema = "{name: shop, version: '1.0', config-version: 2, models: {+materialized: view}}"
    for folder in ("dbt_project", "shop"):
        write(tmp_path / folder, **{"dbt_project.yml": schema, **files})
    assert busco("dbt", "compile")[1].splitlines()[-1].endswith("then run: busco dbt deps")
    assert (
        busco("dbt", "--project-dir", "shop", "compile")[1]
        .splitlines()[-1]
        .endswith("then run: busco dbt --project-dir shop deps")
    )


def test_the_command_is_not_suggested_for_other_errors(tmp_path: Path) -> None:
    write(tmp_path / "dbt_project", **{"models/a.sql": "{{ ref('nothing') }}"})
    assert "deps" not in refused(tmp_path).hint
