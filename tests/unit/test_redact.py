"""Error messages never show values, whatever a value contains and however DuckDB quotes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from busco.project import Project
from busco.warehouse.redact import HIDDEN, Redactor

MODEL, CHILD, PLAIN = "model.p.m", "model.p.child", "model.p.plain"
CANARY = 'Zqcanary O\'Hara "7"'

# Each fails on the values below: `name` is text, `n` a number.
FAILING = """
select cast(name as integer) from silver.people
select cast(name as hugeint) from silver.people
select cast(name as double) from silver.people
select cast(name as decimal(10, 2)) from silver.people
select cast(name as date) from silver.people
select cast(name as timestamp) from silver.people
select cast(name as time) from silver.people
select cast(name as interval) from silver.people
select cast(name as boolean) from silver.people
select cast(name as uuid) from silver.people
select cast(name as bit) from silver.people
select cast(name as json) from silver.people
select cast(name as integer[]) from silver.people
select cast(name as struct(a integer)) from silver.people
select cast(name as map(varchar, integer)) from silver.people
select cast({'a': name} as struct(a integer)) from silver.people
select cast([name] as integer[]) from silver.people
select cast(name as enum ('a', 'b')) from silver.people
select cast(n as tinyint) from silver.people
select cast(n as decimal(5, 2)) from silver.people
select cast(cast(n as decimal(18, 2)) as decimal(5, 2)) from silver.people
select cast(n as double) * 1e300 * 1e300 // 1, cast(cast(n as double) * 1e200 as bigint) from silver.people
select n * n * n from silver.people
select make_date(n, 13, 45) from silver.people
select day + to_years(n) from silver.people
select 1 << n from silver.people
select chr(n) from silver.people
select strptime(name, '%Y-%m-%d') from silver.people
select name->>'$.a' from silver.people
select from_json(name, '{"a": "INTEGER"}') from silver.people
select from_json_strict(json_object('a', name), '{"a": "INTEGER"}') from silver.people
select date_trunc(name, day) from silver.people
select regexp_matches('a', '(' || name) from silver.people
select regexp_replace('a', '[' || name, '') from silver.people
select 'a' similar to '(' || name from silver.people
select from_base64(name || '!') from silver.people
select timezone(name, day::timestamp) from silver.people
select error('not allowed: ' || name) from silver.people
select error(name) from silver.people
select count(*) from silver.people where name = 5
insert into silver.keys select name from silver.people union all select name from silver.people
insert into silver.keys select 'short' || name from silver.people
select * from read_parquet('/nowhere/' || (select max(name) from silver.people))
select * from (pivot silver.people on name using sum(n)) where nosuch = 1
""".strip().splitlines()

# Parts of values: everything that could cause a message to be parsed incorrectly.
PIECES = (
    "'", '"', "\n", "\n\n", " ", "7", "(", "é", "🐍", "' to INT32", '" to DECIMAL(10,2)', "Conversion Error: ",
    "' when casting from source column name", "\nLINE 1: select name\n        ^", "\n  compiled code at x",
    "> in macro y (z)", "Runtime Error in model m (m.sql)\n  ", "' can't be cast to the destination type INT8",
    ", expected format is",
)  # fmt: skip
values = st.lists(st.sampled_from(PIECES), max_size=6).flatmap(
    lambda found: st.integers(0, len(found)).map(lambda at: "".join([*found[:at], "Zqcanary", *found[at:]]))
)


def model(uid: str, sql: str, *parents: str, **more: Any) -> dict[str, Any]:
    name = uid.split(".")[-1]
    return {
        "resource_type": "model", "language": "sql", "raw_code": sql, "columns": {}, "schema": "gold", "alias": name,
        "name": name, "original_file_path": f"models/{name}.sql", "config": {"materialized": "lake"},
        "depends_on": {"nodes": list(parents), "macros": []}, **more,
    }  # fmt: skip


def redactor(sql: str = "") -> Redactor:
    people = {
        "schema": "silver", "name": "people",
        "columns": {"name": {"config": {"meta": {"pii": True}}}, "n": {}, "day": {}},
    }  # fmt: skip
    nodes = {
        MODEL: model(MODEL, sql, "source.p.people"),
        CHILD: model(CHILD, sql, MODEL),
        PLAIN: model(PLAIN, sql, "source.p.things"),
    }
    sources = {"source.p.people": people, "source.p.things": {"schema": "silver", "name": "things", "columns": {}}}
    given = {"input": "source('s', 'people')", "rows": [{"name": "x"}], "format": "dict"}
    unit_tests = {
        f"unit_test.p.m.{form}": {
            "name": form, "model": "m", "given": [{**given, "format": form}], "expect": {"rows": [], "format": "dict"},
            "depends_on": {"nodes": [MODEL]},
        }
        for form in ("dict", "sql")
    }  # fmt: skip
    macros = {"macro.dbt.run_query": {"macro_sql": "", "depends_on": {}, "package_name": "dbt", "name": "run_query"}}
    manifest = {"sources": sources, "nodes": nodes, "macros": macros, "unit_tests": unit_tests}
    return Redactor(Project({"metadata": {"project_name": "p"}, **manifest}))


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("create schema silver")
        connection.execute("create table silver.keys (key varchar primary key check (length(key) < 5))")
        yield connection


def error(database: duckdb.DuckDBPyConnection, sql: str, value: str) -> str:
    """Returns DuckDB's error as dbt reports it."""
    database.execute(
        "create or replace table silver.people as select ?::varchar as name, 987654321 as n, date '2018-01-01' as day",
        [value],
    )
    # DuckDB may cut a long value in the middle of a character, which Python then can't decode
    with pytest.raises((duckdb.Error, UnicodeDecodeError)) as raised:
        database.execute(sql).fetchall()
    lines = "\n  ".join(str(raised.value).split("\n"))
    return f"Runtime Error in model m (models/m.sql)\n  {lines}\n  \n  compiled code at target/compiled/p/models/m.sql"


@pytest.mark.parametrize("sql", FAILING)
def test_no_error_from_duckdb_shows_a_personal_value(database: duckdb.DuckDBPyConnection, sql: str) -> None:
    message = error(database, sql, CANARY)
    shown = redactor(sql).text(MODEL, message)
    assert not re.search("Zqcanary|Hara|987654321|975461|\\d{5}", shown.replace(sql, "")), shown
    head, first = shown.split("\n")[:2]
    assert head == "Runtime Error in model m (models/m.sql)"
    assert first.split(": ")[0] == message.split("\n")[1].split(": ")[0], "the kind of error must stay"
    assert shown.endswith("\n  compiled code at target/compiled/p/models/m.sql")


@settings(max_examples=150, deadline=None)
@given(values, st.sampled_from([sql for sql in FAILING if "name" in sql]))
@example("Could not convert string 'x' to Zqcanary", "select error(name) from silver.people")
@example("x\n\nLINE 1: select Zqcanary\n        ^", "select error(name) from silver.people")
@example("x\n  > in macro Zqcanary (y)", "select error(name) from silver.people")
@example('"Zqcanary"', "select name->>'$.a' from silver.people")
def test_no_value_is_shown_whatever_it_contains(value: str, sql: str) -> None:
    with duckdb.connect() as connection:
        connection.execute("create schema silver")
        connection.execute("create table silver.keys (key varchar primary key check (length(key) < 5))")
        try:
            message = error(connection, sql, value)
        except pytest.fail.Exception:
            # the statement is valid for this value: `"Zqcanary"` is JSON
            return
        assert "Zqcanary" not in redactor(sql).text(MODEL, message)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["Conversion", "Invalid Input", "Binder", "IO", "Constraint"]))
def test_only_words_from_the_code_stay_in_free_text(text: str, kind: str) -> None:
    filter_ = redactor("select name from silver.people")
    shown = filter_.text(MODEL, f"{kind} Error: {text} Zqcanary")
    assert "Zqcanary" not in shown
    if kind not in ("Binder",):
        assert shown == f"{kind} Error: {HIDDEN}"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "Conversion Error: Could not convert string 'x' to INT32 when casting from source column name\n\n"
            "LINE 2: select name::integer\n            ^",
            "Conversion Error: Could not convert string '•••' to INT32 when casting from source column name\n\n"
            "LINE 2: select name::integer\n            ^",
        ),
        (
            "Conversion Error: Could not convert string 'x' to DECIMAL(10,2)\n\nLINE 2: select 'Maria'\n       ^",
            "Conversion Error: Could not convert string '•••' to DECIMAL(10,2)",
        ),
        (
            'Binder Error: Referenced column "nam" not found in FROM clause!\nCandidate bindings: "name", "n"',
            'Binder Error: Referenced column "•••" not found in FROM clause!\nCandidate bindings: "name", "n"',
        ),
        (
            'Binder Error: Referenced column "name" not found in FROM clause!\nCandidate bindings: "n", "S Maria T"',
            'Binder Error: Referenced column "name" not found in FROM clause!\nCandidate bindings: "•••"',
        ),
        (
            "Conversion Error: Could not convert string 'O'Hara \"\n' to INT32",
            "Conversion Error: Could not convert string '•••' to INT32",
        ),
        ("Out of Memory Error: failed to allocate data of size 16.0 MiB (244.0 MiB/244.1 MiB used)", None),
        ("Got 2 results, configured to fail if != 0", None),
        (
            "An error occurred (SlowDown) when calling the PutObject operation: x=Maria",
            "An error occurred (SlowDown) when calling the PutObject operation: •••",
        ),
        ("something that nobody knows", "•••"),
    ],
)
def test_the_parts_of_a_message_that_are_not_data_stay_readable(message: str, shown: str | None) -> None:
    assert redactor("select name::integer, '10'").text(MODEL, message) == (message if shown is None else shown)


def test_values_are_hidden_only_for_models_with_personal_columns_or_ancestors_with_some() -> None:
    filter_, message = redactor(), "Conversion Error: Could not convert string 'x' to INT32"
    assert filter_.text(CHILD, message) == message.replace("'x'", "'•••'")
    assert filter_.text(PLAIN, message) == message
    assert filter_.text("operation.p.hook", message) != message, "the tables that a hook reads are not known"
    assert filter_.text("", message) != message


def test_rows_of_a_unit_test_are_code_unless_they_come_from_a_query() -> None:
    message = "Could not convert string 'x' to INT32"
    assert redactor().text("unit_test.p.m.dict", f"Conversion Error: {message}") == f"Conversion Error: {message}"
    assert "'•••'" in redactor().text("unit_test.p.m.sql", f"Conversion Error: {message}")


def test_messages_of_the_platform_itself_are_shown_unchanged() -> None:
    filter_ = redactor()
    message = "not_null constraint failed: name is NULL in 1 row\n  → fix the SQL or the constraint"
    framed = "Runtime Error in model m (models/m.sql)\n  " + message.replace("\n", "\n  ")
    assert "NULL in 1 row" not in filter_.text(MODEL, framed)
    filter_.allow(message)
    assert filter_.text(MODEL, framed) == framed


def test_messages_that_jinja_logs_or_raises_are_hidden_if_it_queries_the_database() -> None:
    message = "Compilation Error in model m (models/m.sql)\n  no such city: Maria"
    querying = "{{ run_query('select 1') }}"
    for sql, hidden in (("select 1", False), (querying, True)):
        assert ("Maria" in redactor(sql).text(MODEL, message)) is not hidden
        assert (redactor(sql).free(MODEL, "Maria") == HIDDEN) is hidden
    assert redactor(querying).free(PLAIN, "a thing") == "a thing"


@pytest.mark.parametrize(
    ("sql", "queries"),
    [
        ("{% set who = adapter.add_query('select 1')[1].fetchall() %}", True),
        ("{% set a = adapter %}{% set who = a.execute('select 1', fetch=True) %}", True),
        ("{% set who = context['adapter'].execute('select 1', fetch=True) %}", True),
        ("{{ asking(adapter) }}", True),
        ("{% set ask = adapter . execute %}", True),
        ("{% set columns = adapter.get_columns_in_relation(this) %}", False),
        ("{{ adapter.dispatch('x')() }} {{ adapter.quote('y') }}", False),
        ("select 1 as adapters", False),
    ],
)
def test_queries_in_jinja_are_detected_by_whatever_name_it_uses_the_adapter(sql: str, queries: bool) -> None:
    assert redactor(sql).runs_queries(MODEL) is queries
    assert (redactor(sql).free(MODEL, "Maria") == HIDDEN) is queries


def test_a_query_in_a_dispatched_macro_counts_for_the_model() -> None:
    filter_ = redactor("{{ shop.values_of('x') }}")
    macros: Any = filter_.project.manifest["macros"]
    for name, sql, uses in (
        ("values_of", "{{ adapter.dispatch('values_of')() }}", []),
        ("default__values_of", "{{ run_query('select 1') }}", ["macro.dbt.run_query"]),
    ):
        uid = f"macro.shop.{name}"
        macros[uid] = {"name": name, "package_name": "shop", "macro_sql": sql, "depends_on": {"macros": uses}}
    assert not filter_.runs_queries(MODEL)
    filter_.project.nodes[MODEL]["depends_on"]["macros"].append("macro.shop.values_of")
    assert filter_.runs_queries(MODEL)


def test_a_node_whose_jinja_received_values_counts_as_querying_whatever_its_code() -> None:
    filter_, unit = redactor(), "unit_test.p.m.dict"
    assert (filter_.runs_queries(MODEL), filter_.hides(unit)) == (False, False)
    filter_.mark_queried(unit)
    assert filter_.hides(unit)
    assert unit in filter_.built_from_results()
    filter_.mark_queried(MODEL)
    assert filter_.free(MODEL, "Maria") == HIDDEN
    assert MODEL in filter_.built_from_results()


def test_a_unit_test_is_hidden_if_its_model_runs_queries() -> None:
    unit, message = "unit_test.p.m.dict", "actual differs from expected: nobody→Maria"
    for sql, shown in (("select 1", message), ("{{ run_query('select 1') }}", HIDDEN)):
        assert redactor(sql).text(unit, message) == shown
        assert redactor(sql).free(unit, "LOGGED") == (HIDDEN if shown == HIDDEN else "LOGGED")


def test_results_contain_no_compiled_sql_that_was_built_from_query_results() -> None:
    filter_ = redactor("{{ run_query('select 1') }}")
    nodes = (MODEL, PLAIN, "unit_test.p.m.dict")
    results = {"results": [{"unique_id": uid, "status": "fail", "compiled_code": "select 'Maria'"} for uid in nodes]}
    found = [result["compiled_code"] for result in json.loads(filter_.artifact(json.dumps(results)))["results"]]
    assert found == [HIDDEN, "select 'Maria'", HIDDEN]
