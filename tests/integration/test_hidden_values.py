"""Personal data is planted where it makes models and tests fail, and is looked for in everything written about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from busco.lake import pins
from busco.lake.layout import local_run_key
from busco.lake.records import Order, Result, utc_now
from busco.lake.runs import open_run
from busco.orchestration.launch import LocalLauncher
from busco.warehouse.dbt import ensure_manifest
from tests.integration.conftest import MINI
from tests.platforms import ENVIRONMENT, Platform, csv_text, platform

CANARY = "Zqcanary O'Hara"
HEADER = ("id", "customer", "amount", "day", "n")
MAX_CUSTOMER = "adapter.add_query('select max(customer) from ' ~ ref('orders'))[1].fetchall()[0][0]"
WHO = "{% set who = (" + MAX_CUSTOMER + " if execute else 'x') | replace(\"'\", \"''\") %}"
MODELS = {
    "gold/broken": "select id,\n    customer::integer as x\nfrom {{ source('bronze', 'orders') }}",
    # neither it nor its parents have a column marked as pii: orders and v_orders don't mark customer
    "gold/child": "select id, cast(customer as date) as d from {{ ref('v_orders') }}",
    "gold/grandchild": "select error('who is ' || id || '?') as x from {{ ref('ids') }}",
    "gold/leaf": "select customer from {{ ref('orders') }}",
    "gold/misspelt": "select customr from {{ ref('orders') }}",
    # its columns would be named after people
    "gold/pivoted": "pivot {{ ref('orders') }} on customer using count(*)",
    "gold/plain": "select code::integer as x from {{ ref('codes') }}",
    "gold/talks": "{% do log(run_query('select max(customer) from ' ~ ref('orders')).rows[0][0], info=True)"
    " if execute %}select id from {{ ref('orders') }}",
    # Jinja that queries without run_query, and SQL that reads a table created by another model's hook
    "gold/raises": "{% do exceptions.raise_compiler_error("
    + MAX_CUSTOMER
    + ") if execute %}select id from {{ ref('orders') }}",
    "gold/warns": "{% set a = adapter %}{% do exceptions.warn(a.execute('select max(customer) from ' ~ ref('orders'), "
    "fetch=True)[1].rows[0][0]) if execute %}select id from {{ ref('orders') }}",
    "gold/shares": '{{ config(pre_hook="create or replace table main.shared as select customer from '
    "{{ ref('orders') }}\") }} select 1 as one",
    "gold/takes": "-- depends_on: {{ ref('shares') }}\nselect customer::integer as x from main.shared",
    # columns and types that are named after values
    "gold/named": WHO + "select id, 1 as \"{{ who }}\" from {{ ref('orders') }}",
    "gold/twice": WHO + 'select 1 as "{{ who }}", 2 as "{{ who }}" from {{ ref(\'orders\') }}',
    "gold/fields": WHO + "select {'{{ who }}': 1::utinyint} as c from {{ ref('orders') }}",
    "gold/typed": WHO + "select cast('{{ who }}' as enum('{{ who }}')) as c from {{ ref('orders') }}",
    # their unit tests run the same Jinja
    "gold/logs": "{% do log('LOGGED ' ~ run_query('select max(customer) from silver.orders').rows[0][0], info=True)"
    " if execute %}select id from {{ ref('orders') }}",
    "gold/answers": "{% set who = run_query('select max(customer) from silver.orders').rows[0][0] if execute %}"
    "select id, '{{ who | default('x') | replace(\"'\", \"''\") }}' as greeted from {{ ref('orders') }}",
}
UNITS = """
models:
  - {name: typed, config: {contract: {enforced: true}}, columns: [{name: c, data_type: INTEGER}]}
  - {name: leaf, columns: [{name: customer, data_tests: [asks]}]}
unit_tests:
  - {name: logged, model: logs, given: [{input: ref('orders'), rows: [{id: a}]}], expect: {rows: [{id: a}]}}
  - name: answered
    model: answers
    given: [{input: ref('orders'), rows: [{id: a}]}]
    expect: {rows: [{id: a, greeted: nobody}]}
"""
GENERIC_TEST = """{% test asks(model, column_name) %}
{% set who = run_query('select max(customer) from ' ~ model).rows[0][0] if execute else 'x' %}
select * from {{ model }} where {{ column_name }} != '{{ who | replace("'", "''") }}'
{% endtest %}"""


@dataclass
class Written:
    """Everything that a run wrote: the runner's output, its records by key, the kept files, the command's output."""

    platform: Platform
    run: str
    output: str
    records: dict[str, str]
    kept: dict[str, str]
    printed: str

    def result(self, node: str) -> Result:
        return open_run(self.platform.store, ENVIRONMENT, self.run).latest_results()[node]

    def log(self, name: str) -> str:
        (found,) = [text for key, text in self.records.items() if f".{name}/" in key and key.endswith(".log")]
        return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    with platform(tmp_path_factory.mktemp("hidden"), MINI) as made:
        for path, sql in MODELS.items():
            made.model(path, sql)
        made.model("gold/ids", "{{ config(materialized='ephemeral') }} select customer as id from {{ ref('orders') }}")
        made.write("dbt_project/models/gold/units.yml", UNITS)
        made.write("dbt_project/macros/asks.sql", GENERIC_TEST)
        made.write("dbt_project/seeds/codes.csv", "code\nPlain77\n")
        made.write("dbt_project/seeds/codes.yml", "seeds: [{name: codes, config: {schema: silver}}]")
        made.write(
            "dbt_project/tests/assert_numbers.sql", "select 1 from {{ ref('leaf') }} where customer::integer > 0"
        )
        made.write("dbt_project/tests/assert_nobody.sql", "select customer from {{ ref('leaf') }}")
        made.deliver(csv_text(HEADER, [("a", CANARY, "1.50", "2018-01-01", 1)]))
        key = local_run_key(utc_now())
        project = ensure_manifest(made.settings)
        pins.pin(made.store, ENVIRONMENT, key, 1, project.contracts, project.hash)
        output = run_as_airflow_does(made, key)
        last = made.home / ".busco/dbt/last"
        kept = {str(file.relative_to(last)): file.read_text() for file in last.rglob("*") if file.is_file()}
        keys = made.store.keys(f"_lake/env/prod/runs/{key}/")
        records = {name: made.store.get(name).body.decode() for name in keys if "/results/" in name}
        printed = made.busco("dbt", "build", "--select", "+broken", status=1)
        yield Written(made, key, output, records, kept, printed)


def run_as_airflow_does(made: Platform, key: str) -> str:
    """Starts a shared runner as Airflow does; returns its output."""

    run = open_run(made.store, ENVIRONMENT, key)
    order = Order(name="shared", generation=1, kind="shared")
    run.store.create(run.layout.order(order.name, order.generation), order)

    async def start() -> Path:
        started = await LocalLauncher(made.settings).start(run.pin, order, print)
        await asyncio.to_thread(started.process.wait, 300)
        return started.log

    return asyncio.run(start()).read_text()


@pytest.mark.slow
def test_personal_data_on_which_models_and_tests_fail_appears_in_none_of_their_output(written: Written) -> None:
    for node in ("broken", "child", "grandchild", "misspelt", "pivoted", "assert_numbers"):
        assert written.result(f"{'test' if 'assert' in node else 'model'}.busco.{node}").status == "error", node
    assert len(written.records) > 20
    assert "run_results.json" in written.kept
    everything = {"output": written.output, "printed": written.printed, **written.records, **written.kept}
    assert [place for place, text in everything.items() if "Zqcanary" in text] == []


def test_the_error_of_a_model_with_personal_data_shows_everything_but_the_value(written: Written) -> None:
    result = written.result("model.busco.broken")
    shown = "Could not convert string '•••' to INT32 when casting from source column customer"
    assert shown in result.error
    assert result.where == "target/compiled/busco/models/gold/broken.sql:2"
    for text in (written.output, written.printed, written.log("broken"), written.kept["run_results.json"]):
        assert shown in text.replace("\\u2022", "•")
    assert 'invalid date field format: "•••"' in written.result("model.busco.child").error
    assert "Invalid Input Error: •••" in written.result("model.busco.grandchild").error
    assert 'Candidate bindings: "customer"' in written.result("model.busco.misspelt").error
    assert "to INT32" in written.result("test.busco.assert_numbers").error


def test_the_error_of_a_model_without_personal_data_shows_the_value(written: Written) -> None:
    assert "'Plain77'" in written.result("model.busco.plain").error
    for text in (written.output, written.log("plain"), written.kept["run_results.json"]):
        assert "'Plain77'" in text


def test_the_result_of_a_models_own_query_is_hidden_in_its_log(written: Written) -> None:
    assert written.result("model.busco.talks").status == "success"
    assert "•••" in written.log("talks")


def test_query_results_in_errors_warnings_and_logs_from_jinja_are_hidden(written: Written) -> None:
    assert "Compilation Error" in written.result("model.busco.raises").error
    assert "•••" in written.result("model.busco.raises").error
    assert written.result("model.busco.warns").status == "success"
    assert "LOGGED" not in written.output


def test_personal_data_in_a_hook_s_table_is_hidden_in_other_models_that_read_it(written: Written) -> None:
    assert written.result("model.busco.shares").status == "success", written.result("model.busco.shares").error
    assert "Could not convert string '•••' to INT32" in written.result("model.busco.takes").error


@pytest.mark.parametrize("name", ["named", "twice", "fields", "typed"])
def test_a_column_named_after_a_value_is_refused_without_showing_its_name(written: Written, name: str) -> None:
    assert "have names or types that are neither in the code" in written.result(f"model.busco.{name}").error


def test_a_unit_test_of_a_model_that_runs_queries_shows_no_values(written: Written) -> None:
    results = {
        uid.split(".")[-1]: uid for uid in open_run(written.platform.store, ENVIRONMENT, written.run).latest_results()
    }
    assert written.result(results["logged"]).status == "success"
    assert written.result(results["answered"]).status in ("error", "failed")
    assert "compiled/busco/models/gold/units.yml/models/gold/answered.sql" in written.kept
    assert any(file.startswith("compiled/busco/models/gold/units.yml/asks") for file in written.kept)
    # SQL without values is kept as it is
    assert "customer::integer" in written.kept["compiled/busco/models/gold/broken.sql"]


def test_a_failing_test_reports_how_many_rows_failed_but_shows_none_of_them(written: Written) -> None:
    result = written.result("test.busco.assert_nobody")
    assert (result.status, result.failures) == ("failed", 1)
    assert "Got 1 result, configured to fail if != 0" in result.error


def test_the_output_shows_dbts_lines_in_order_and_without_colours(written: Written) -> None:
    lines = written.output.splitlines()

    def places(*texts: str) -> list[int]:
        return [next(place for place, line in enumerate(lines) if text in line) for text in texts]

    model = places("START sql lake model gold.broken", "ERROR creating sql lake model gold.broken", "Finished running")
    summary = places("Finished running", "Completed with", "Failure in model broken", "Done. PASS=")
    assert (model, summary) == (sorted(model), sorted(summary))
    assert "\x1b" not in written.output
    assert written.output.count("Done. PASS=") == 1


def test_dbts_own_options_control_how_much_of_its_log_is_shown(written: Written) -> None:
    busco = written.platform.busco
    assert busco("dbt", "ls", "--select", "fct", "--resource-type", "model", "--quiet") == "busco.gold.fct\n"
    assert "Running with dbt" in busco("dbt", "ls", "--select", "fct", "--resource-type", "model")
    assert "asked for" in busco("dbt", "show", "--inline", "select 'asked for' as a", environment={"DBT_DEBUG": "1"})
    typed = busco("dbt", "show", "--inline", "select typd from (select 1 as a)", status=1)
    assert 'Referenced column "typd" not found' in typed
    assert "--debug would show values" in busco("dbt", "compile", "--debug", status=2)
