"""Unit tests that have passed run again only if code has changed, or if their result may vary without that (R6, R7)."""

from __future__ import annotations

import duckdb
import pytest

from busco.lake.records import Result
from busco.lake.runs import Run
from busco.project import _VARYING
from busco.settings import get_settings
from busco.warehouse.dbt import opened
from busco.warehouse.runner import work
from tests.platforms import ENVIRONMENT, ROOT, Platform

SUMS, COUNTS, ONE = "unit_test.busco.fct.sums", "unit_test.busco.fct.counts", "unit_test.busco.v_orders.one"
ALL = {SUMS, COUNTS, ONE}
YAML = (ROOT / "tests/projects/mini/dbt_project/models/gold/fct.yml").read_text()
FIXTURE = """\
  - name: counts
    model: fct
    given:
      - {input: ref('v_orders'), format: csv, fixture: some_orders}
    expect: {rows: [{day: 2018-01-01, orders: 2}]}
"""
OF_VIEW = """\
unit_tests:
  - name: one
    model: v_orders
    given: [{input: ref('orders'), rows: [{id: a}]}]
    expect: {rows: [{id: a}]}
"""
HEADER = "id,customer,amount,day,n\n"
ORDERS = f"{HEADER}a,x,1.50,2018-01-01,1\n"
ROWS = "id,day,n,amount\na,2018-01-01,1,1\nb,2018-01-01,1,1\n"


@pytest.fixture
def built(mini: Platform) -> Platform:
    """The small project with three unit tests, one of which reads a fixture file, and one of which tests a view. All
    have passed, and the run is published."""
    mini.write("dbt_project/tests/fixtures/some_orders.csv", ROWS)
    mini.write("dbt_project/models/gold/fct.yml", YAML + FIXTURE)
    mini.write("dbt_project/models/silver/v_orders.yml", OF_VIEW)
    mini.deliver(ORDERS)
    assert ran(mini) == ALL
    return mini


def ran(platform: Platform, publish: bool = True) -> set[str]:
    """Builds a new run of everything; returns the unit tests that it ran instead of keeping them."""
    run, outcome = platform.built()
    if publish and outcome.good:
        platform.publish(run)
    return not_kept(run)


def not_kept(run: Run) -> set[str]:
    results = {node: result for node, result in run.latest_results().items() if node.startswith("unit_test.")}
    assert set(results) >= ALL
    return {node for node, result in results.items() if not result.kept}


def test_R7_unit_tests_are_kept_although_new_rows_are_built(built: Platform) -> None:
    assert ran(built) == set(), "nothing has changed"
    built.deliver(f"{HEADER}b,y,2.50,2018-01-02,1\n")
    before = built.live().tables["gold.fct"].version
    run, outcome = built.built()
    built.publish(run)
    assert not_kept(run) == set()
    assert built.live().tables["gold.fct"].version != before
    assert outcome.statuses[SUMS] == "success"
    result: Result = run.latest_results()[SUMS]
    assert result.message == "kept: it has passed, and no code has changed since"
    assert result.message in run.log(SUMS, result.runner)


@pytest.mark.slow
def test_R7_a_failed_unit_test_of_changed_code_is_not_kept_and_the_old_code_still_is(built: Platform) -> None:
    built.write("dbt_project/tests/fixtures/some_orders.csv", f"{ROWS}c,2018-01-01,1,1\n")
    for _ in range(2):
        run, outcome = built.built()
        assert outcome.statuses[COUNTS] == "failed"
        assert not_kept(run) == ALL
    built.write("dbt_project/tests/fixtures/some_orders.csv", ROWS)
    assert ran(built) == set(), "it passed for the live release"


@pytest.mark.slow
def test_R7_a_run_that_is_not_published_changes_nothing_for_the_next(built: Platform) -> None:
    built.write("dbt_project/models/gold/fct.yml", YAML + FIXTURE.replace("day: 2018-01-01, ", ""))
    assert ran(built, publish=False) == ALL
    assert ran(built) == ALL
    assert ran(built) == set()


@pytest.mark.slow
def test_R7_a_cleared_task_and_a_full_refresh_run_unit_tests(built: Platform) -> None:
    run, _ = built.built()
    work(built.settings, run.name, [SUMS], rebuild=True)
    assert not_kept(run) == {SUMS}
    refreshed = built.busco("dbt", "build", "--full-refresh")
    assert "PASS fct::sums" in refreshed
    assert "kept" not in refreshed


@pytest.mark.slow
def test_R7_unit_tests_whose_results_may_vary_run_in_each_run_and_others_are_kept(built: Platform) -> None:
    model = (built.home / "dbt_project/models/gold/fct.sql").read_text()
    built.write("dbt_project/models/gold/fct.sql", f"{model} -- {{{{ env_var('REGION', '') }}}}")
    assert ran(built) == ALL
    assert ran(built) == {SUMS, COUNTS}


def test_R7_what_may_vary_is_found_in_all_code_that_a_unit_test_depends_on(mini: Platform) -> None:
    yaml, of_fct = "models/gold/fct.yml", {SUMS, COUNTS}
    given = "        rows: [{id: a, day: 2018-01-01, n: 1, amount: 2}]\n"
    cases = [
        ("models/silver/orders.sql", "select id", "select /* now() */ id", ALL),
        ("models/silver/v_orders.sql", "select *", "select /* {{ a_macro() }} */ *", ALL),
        ("models/gold/fct.sql", "select day", "select /* {{ run_started_at }} */ day", of_fct),
        ("models/gold/fct.sql", "select day", "select /* nowhere */ day", set()),
        (yaml, "  - name: fct\n", "  - name: fct\n    meta: {volatile: true}\n", of_fct),
        (yaml, given, '        format: sql\n        rows: "select random() as n"\n', {SUMS}),
        (yaml, given, '        format: sql\n        rows: "select {% raw %}{{ one() }}{% endraw %} as n"\n', {SUMS}),
        (yaml, given, '        format: sql\n        rows: "select 1 as n"\n', set()),
    ]
    mini.write("dbt_project/tests/fixtures/some_orders.csv", ROWS)
    mini.write(f"dbt_project/{yaml}", YAML + FIXTURE)
    mini.write("dbt_project/models/silver/v_orders.yml", OF_VIEW)
    macros = "{% macro a_macro() %}{% do run_query('select 1') %}{% endmacro %}{% macro one() %}1{% endmacro %}"
    mini.write("dbt_project/macros/m.sql", macros)
    for file, old, new, expected in cases:
        text = (mini.home / "dbt_project" / file).read_text()
        assert old in text, file
        mini.write(f"dbt_project/{file}", text.replace(old, new))
        with opened(mini.settings) as dbt:
            project = dbt.parse()
        assert {unit for unit in project.unit_tests if project.may_vary(unit)} == expected, (file, new)
        mini.write(f"dbt_project/{file}", text)


def test_R7_a_pass_with_the_types_of_older_tables_does_not_count(built: Platform) -> None:
    """The rows of a unit test get the types of the tables that its model reads, as they are in the run."""
    model = (built.home / "dbt_project/models/silver/orders.sql").read_text()
    built.model("silver/orders", model.replace("select id", "select /* another */ id"))
    run, outcome = built.built("fct")
    assert outcome.good
    assert {run.latest_results()[unit].tested for unit in (SUMS, COUNTS)} == {""}
    built.publish(run)
    assert ran(built) == ALL
    assert ran(built) == set()


@pytest.mark.slow
def test_R7_a_selection_keeps_unit_tests_too(built: Platform) -> None:
    printed = built.busco("dbt", "build", "--select", "fct", "--publish")
    assert "kept 2 unit tests: no code has changed since they passed" in printed
    assert "START unit_test" not in printed
    built.model("gold/days", "select day from {{ ref('fct') }}")
    before = built.live().tested_code
    assert "kept" not in built.busco("dbt", "build", "--select", "days", "--publish").replace("KEPT", "")
    assert built.live().tested_code == before, "what passed with the earlier code"
    assert ran(built) == ALL
    assert ran(built) == set()


@pytest.mark.slow
def test_R7_unit_tests_run_and_are_kept_with_the_parse_of_an_image(
    built: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = (YAML + FIXTURE).replace("  - name: fct\n", "  - name: fct\n    meta: {volatile: true}\n")
    built.write("dbt_project/models/gold/fct.yml", yaml)
    folder = built.home / "baked"
    with opened(built.settings) as dbt:
        assert dbt.bake(folder)
    monkeypatch.setenv("BUSCO_BAKED_DIR", str(folder))
    get_settings.cache_clear()
    with opened(built.settings) as dbt:
        dbt.parse()
        assert dbt.parsed_by == "image"
    for expected in (ALL, {SUMS, COUNTS}):
        run, outcome = built.built()
        assert outcome.good, outcome.statuses
        built.publish(run)
        assert not_kept(run) == expected


@pytest.mark.slow
def test_R7_a_lake_whose_live_release_does_not_state_the_code_runs_all_unit_tests(built: Platform) -> None:
    """Such as one that an older platform has published."""
    live = built.live()
    stripped = {**live.model_dump(mode="json"), "tested_code": {}}
    built.store.put(ENVIRONMENT.release(live.release), type(live).model_validate(stripped))
    assert ran(built) == ALL
    assert ran(built) == set()


def test_R7_every_function_of_duckdb_that_is_not_deterministic_is_known() -> None:
    sql = "select distinct function_name from duckdb_functions() where stability <> 'CONSISTENT'"
    names = {str(row[0]) for row in duckdb.sql(sql).fetchall()}
    # these return nothing that varies
    assert {name for name in names if not _VARYING.search(name)} == {"error", "sleep_ms", "write_log"}
    for code in ("pivot a on b", "columns(*)", "adapter.get_columns_in_relation(x)", "{{ modules.datetime }}"):
        assert _VARYING.search(code), code
    for code in ("adapter.dispatch('x')", "select nowhere, columns_a, aged"):
        assert not _VARYING.search(code), code
