"""Unit tests that have passed run again only if something that affects them has changed (R6, R7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from busco.lake.records import Result
from busco.lake.runs import Run, open_run
from busco.warehouse.dbt import opened
from busco.warehouse.runner import work
from tests.platforms import ENVIRONMENT, ROOT, Platform

SUMS, COUNTS = "unit_test.busco.fct.sums", "unit_test.busco.fct.counts"
YAML = (ROOT / "tests/projects/mini/dbt_project/models/gold/fct.yml").read_text()
FIXTURE = """\
  - name: counts
    model: fct
    given:
      - {input: ref('v_orders'), format: csv, fixture: some_orders}
    expect: {rows: [{day: 2018-01-01, orders: 2}]}
"""
HEADER = "id,customer,amount,day,n\n"
ORDERS = f"{HEADER}a,x,1.50,2018-01-01,1\n"
ROWS = "id,day,n,amount\na,2018-01-01,1,1\nb,2018-01-01,1,1\n"


@pytest.fixture
def built(mini: Platform) -> Platform:
    """The small project with two unit tests, one of which reads a fixture file; both have passed and are published."""
    mini.write("dbt_project/tests/fixtures/some_orders.csv", ROWS)
    mini.write("dbt_project/models/gold/fct.yml", YAML + FIXTURE)
    mini.deliver(ORDERS)
    assert ran(mini) == {SUMS, COUNTS}
    return mini


def ran(platform: Platform, publish: bool = True) -> set[str]:
    """Builds a new run of everything; returns the unit tests that it ran instead of keeping them."""
    run, outcome = platform.built()
    if publish and outcome.good:
        platform.publish(run)
    return not_kept(run)


def not_kept(run: Run) -> set[str]:
    results = {node: result for node, result in run.latest_results().items() if node.startswith("unit_test.")}
    assert set(results) == {SUMS, COUNTS}
    assert all(result.tested for result in results.values())
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
    assert result.message == "kept: it has passed, and neither it nor its model has changed since"
    assert result.message in run.log(SUMS, result.runner)


def test_R6_a_fingerprint_changes_with_all_that_determines_a_unit_test_s_result(mini: Platform) -> None:
    yaml, silver, both = "models/gold/fct.yml", "models/silver", {SUMS, COUNTS}
    cases = [
        (yaml, "{day: 2018-01-01, orders: 2}", "{day: 2018-01-01, orders: 2, n: 2}", {COUNTS}),
        (yaml, "n: 1, amount: 2}", "n: 1, amount: 3}", {SUMS}),
        (yaml, "  - name: sums\n", "  - name: sums\n    overrides: {vars: {a: 1}}\n", {SUMS}),
        ("tests/fixtures/some_orders.csv", "b,2018-01-01,1,1", "b,2018-01-01,1,2", {COUNTS}),
        ("models/gold/fct.sql", "select day", "select /* another */ day", both),
        (f"{silver}/v_orders.sql", "select *", "select /* another */ *", both),
        (f"{silver}/orders.sql", "select id", "select /* another */ id", both),
        ("models/bronze/s.yml", "DECIMAL(12,2)", "DECIMAL(12,3)", both),
        ("dbt_project.yml", "profile: busco", "profile: busco\nvars: {a: 2}", both),
        (yaml, "  - name: fct\n", "  - name: fct\n    description: described\n", set()),
        (yaml, "  - name: sums\n", "  - name: sums\n    description: described\n", set()),
    ]
    mini.write("dbt_project/tests/fixtures/some_orders.csv", ROWS)
    mini.write(f"dbt_project/{yaml}", YAML + FIXTURE)
    before = fingerprints(mini)
    for file, old, new, expected in cases:
        text = (mini.home / "dbt_project" / file).read_text()
        assert old in text, file
        mini.write(f"dbt_project/{file}", text.replace(old, new))
        after = fingerprints(mini)
        assert {unit for unit in before if after[unit] != before[unit]} == expected, (file, new)
        mini.write(f"dbt_project/{file}", text)


def fingerprints(platform: Platform) -> dict[str, str]:
    with opened(platform.settings) as dbt:
        project = dbt.parse()
    return {unit: project.unit_test_fingerprint(unit, "1.5.5") for unit in project.unit_tests}


def test_R7_only_a_unit_test_that_has_changed_runs_again(built: Platform) -> None:
    built.write("dbt_project/models/gold/fct.yml", YAML + FIXTURE.replace("orders: 2}", "orders: 2, n: 2}"))
    assert ran(built) == {COUNTS}
    assert ran(built) == set()


def test_R7_a_unit_test_whose_name_dbt_can_t_tell_from_another_one_runs_with_it(mini: Platform) -> None:
    """In dbt's selection syntax, `sums?1` stands for both names, and `sums` for what is below it."""
    more = "\n".join(
        YAML[YAML.index("  - name: sums") :].replace("sums", name) for name in ("sums+1", "sums_1", "sums.2")
    )
    mini.write("dbt_project/models/gold/fct.yml", YAML + more)
    mini.deliver(ORDERS)
    assert mini.build().good
    mini.write(
        "dbt_project/models/gold/fct.yml", YAML + more.replace("sums_1\n", "sums_1\n    overrides: {vars: {a: 1}}\n")
    )
    run, outcome = mini.built()
    assert outcome.good
    results = run.latest_results()
    names = {
        node.removeprefix("unit_test.busco.fct.")
        for node, one in results.items()
        if "unit_test" in node and not one.kept
    }
    assert names == {"sums+1", "sums_1"}


def test_R7_a_unit_test_that_failed_runs_in_each_run_until_it_passes(built: Platform) -> None:
    built.write("dbt_project/models/gold/fct.yml", YAML + FIXTURE.replace("orders: 2", "orders: 3"))
    for _ in range(2):
        run, outcome = built.built()
        assert outcome.statuses[COUNTS] == "failed"
        assert outcome.statuses["model.busco.fct"] == "skipped", "as in any run whose unit test fails"
        assert run.latest_results()[SUMS].kept
    built.write("dbt_project/models/gold/fct.yml", YAML + FIXTURE)
    assert ran(built) == set(), "it passed for the live release"


def test_R7_a_run_that_is_not_published_changes_nothing_for_the_next(built: Platform) -> None:
    built.write(
        "dbt_project/models/gold/fct.yml", YAML + FIXTURE.replace("{day: 2018-01-01, orders: 2}", "{orders: 2}")
    )
    assert ran(built, publish=False) == {COUNTS}
    assert ran(built) == {COUNTS}
    assert ran(built) == set()


def test_R7_a_cleared_task_a_full_refresh_and_volatile_models_run_their_unit_tests(built: Platform) -> None:
    run, _ = built.built()
    work(built.settings, run.name, [SUMS], rebuild=True)
    assert not_kept(run) == {SUMS}
    refreshed = built.busco("dbt", "build", "--full-refresh")
    assert "PASS fct::sums" in refreshed
    assert "kept 2 unit tests" not in refreshed
    built.write(
        "dbt_project/models/gold/fct.yml",
        (YAML + FIXTURE).replace("  - name: fct\n", "  - name: fct\n    meta: {volatile: true}\n", 1),
    )
    assert ran(built) == {SUMS, COUNTS}
    assert ran(built) == {SUMS, COUNTS}


def test_R7_a_selection_keeps_unit_tests_too_and_the_release_still_knows_the_others(built: Platform) -> None:
    built.model("gold/days", "select day from {{ ref('fct') }}")
    printed = built.busco("dbt", "build", "--select", "fct+", "--publish")
    assert "kept 2 unit tests: neither they nor their models have changed since they passed" in printed
    assert "unit_test" not in printed.replace("2 unit tests", "")
    before = built.live().unit_tests
    assert len(before["busco"]) == 2
    built.busco("dbt", "build", "--select", "days", "--publish")
    assert built.live().unit_tests == before
    assert ran(built) == set()


def test_R6_the_versions_of_dbt_duckdb_and_the_platform_are_part_of_a_fingerprint(
    built: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from busco import project as module
    from busco.project import Project

    made = Project.of(built.settings)
    manifest: dict[str, Any] = {**made.manifest, "metadata": {**made.manifest["metadata"], "dbt_version": "1.99.0"}}
    known = made.unit_test_fingerprint(SUMS, "1.5.5")
    assert made.unit_test_fingerprint(SUMS, "1.5.6") == known
    assert made.unit_test_fingerprint(SUMS, "1.6.0") != known
    assert replace(made, manifest=manifest).unit_test_fingerprint(SUMS, "1.5.5") != known
    assert made.unit_test_fingerprint(COUNTS, "1.5.5") != known
    monkeypatch.setattr(module, "__version__", "0.0.0")
    assert made.unit_test_fingerprint(SUMS, "1.5.5") != known


def test_R7_a_lake_whose_live_release_has_no_fingerprints_runs_all_unit_tests(built: Platform) -> None:
    """Such as one that an older platform has published."""
    live = built.live()
    stripped = {**live.model_dump(mode="json"), "unit_tests": {}}
    key = ENVIRONMENT.release(live.release)
    built.store.put(key, type(live).model_validate(stripped))
    assert ran(built) == {SUMS, COUNTS}
    assert open_run(built.store, ENVIRONMENT, built.live().run).latest_results()[SUMS].status == "success"
