"""Saving a file of the dbt project updates Airflow's graph; while it can't be parsed, the last good graph stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from busco.embedded import keeper, processes
from busco.settings import get_settings
from tests.airflow.driver import DAG, Driver

LIMIT = 60.0


@pytest.fixture
def kept(driver: Driver) -> Iterator[Driver]:
    """The platform with its keeper running, after its graph has been parsed."""
    settings = get_settings()
    state = settings.state.resolve()
    driver.api.wait_for_dag(DAG, LIMIT)
    processes.start(state, keeper.NAME, *keeper.command(settings), settings.home)
    yield driver
    processes.stop(state, keeper.NAME)
    driver.busco("dbt", "parse")


def graph(driver: Driver) -> set[str]:
    return {task["task_id"] for task in driver.api.call("GET", f"dags/{DAG}/tasks")["tasks"]}


def errors(driver: Driver) -> dict[str, str]:
    """Returns Airflow's import errors by file name."""
    found = driver.api.call("GET", "importErrors")["import_errors"]
    return {error["filename"].rpartition("/")[2]: error["stack_trace"] for error in found}


@pytest.mark.slow
def test_a_model_that_is_saved_is_in_the_graph_and_one_that_is_deleted_is_not(kept: Driver) -> None:
    before = graph(kept)
    model = kept.home / "dbt_project/models/gold/days.sql"
    model.write_text("select distinct day from {{ ref('fct') }}")
    try:
        kept.wait(lambda: graph(kept) != before, LIMIT)
        assert {task.split(".")[1].removesuffix("_run") for task in graph(kept) - before} == {"days"}
    finally:
        model.unlink()
    kept.wait(lambda: graph(kept) == before, LIMIT)


@pytest.mark.slow
def test_an_unparsable_project_is_an_import_error_and_the_last_good_graph_stays(
    kept: Driver,
) -> None:
    before = graph(kept)
    path = "dbt_project/models/gold/fct.yml"
    whole = kept.write(path, "models:\n  - name: fct\n    columns: [{name: day\n")
    try:
        kept.wait(lambda: bool(errors(kept)), LIMIT)
        assert list(errors(kept)) == ["parse_check.py"]
        message = errors(kept)["parse_check.py"]
        assert "dbt can't parse the project" in message
        assert "fct.yml" in message
        assert graph(kept) == before
    finally:
        kept.write(path, whole)
    kept.wait(lambda: not errors(kept), LIMIT)
    assert graph(kept) == before


def test_changes_saved_while_no_keeper_ran_are_parsed_when_it_starts(driver: Driver) -> None:
    settings = get_settings()
    state, manifest = settings.state.resolve(), settings.manifest_path
    driver.busco("dbt", "parse")
    before = manifest.stat().st_mtime_ns
    file = driver.home / "dbt_project/models/gold/fct.sql"
    file.touch()
    processes.start(state, keeper.NAME, *keeper.command(settings), settings.home)
    try:
        driver.wait(lambda: manifest.stat().st_mtime_ns != before, LIMIT)
    finally:
        processes.stop(state, keeper.NAME)
