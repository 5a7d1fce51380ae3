"""Forbidden statements in a project's SQL are refused before they run, however they are written."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from busco.errors import BuscoError
from busco.lake import credentials, engine
from busco.warehouse import model_sql
from busco.warehouse.environment import GuardedCursor
from busco.warehouse.guard import REFUSED, Guard

LAKE = "lake-bucket"
POINTER = f"s3://{LAKE}/_lake/env/prod/current.json"
SPACE, ZERO_WIDTH = "\u00a0", "\u200b"
SERIALIZED = str(duckdb.execute("select json_serialize_sql('from duckdb_settings()')").fetchall()[0][0])

WRITES = [
    f"copy (select 1) to '{POINTER}' (format csv)",
    f"CoPy/* a /* nested */ comment */(select 1) to '{POINTER}'",
    f"-- copy\ncopy (select 1) to '{POINTER}'",
    f"select 1; copy (select 1) to '{POINTER}'",
    f"select ';'; copy (select $$;$$) to $${POINTER}$$",
    f"begin; copy (select 1) to '{POINTER}'; commit",
    f"copy{SPACE}(select 1) to '{POINTER}'",
    f"\ufeffcopy (select 1) to '{POINTER}'",
    f"explain analyze copy (select 1) to '{POINTER}'",
    f"explain (analyze, format json) copy (select 1) to '{POINTER}'",
    f"prepare p as copy (select 1) to '{POINTER}'",
    "execute p",
    "deallocate p",
    "copy t to stdout",
    "copy t from '/etc/passwd'",
    f"copy t from '{POINTER}'",
    "copy from database memory to x",
    "export database '/tmp/x'",
    "import database '/tmp/x'",
    "pragma import_database('/tmp/x')",
    f"export database 's3://{LAKE}/gold/'",
]
REACHES = [
    "attach '/tmp/x.db' as x",
    "attach ':memory:' as x",
    f"attach 's3://{LAKE}/gold/x.db' as x",
    "detach x",
    "use x",
    "install httpfs",
    "force install httpfs from 'http://127.0.0.1/'",
    "load httpfs",
    "load '/tmp/x.duckdb_extension'",
    "update extensions",
    "create secret x (type s3, key_id 'a', secret 'b')",
    "create or replace persistent secret x (type s3)",
    "create temporary secret x (type s3)",
    "drop secret x",
    "drop persistent secret x",
    "alter database memory set alias to x",
    "set s3_endpoint = 'evil.example'",
    "set global s3_access_key_id = 'x'",
    "set session search_path = 'x'",
    "set schema 'silver'",
    "set time zone 'UTC'",
    f"set{ZERO_WIDTH}memory_limit = '1GB'",
    "reset s3_endpoint",
    "pragma memory_limit = '1GB'",
    "pragma enable_profiling = 'json'",
    "pragma table_info('t')",
    f"pragma json_execute_serialized_sql('{SERIALIZED}')",
    "pragma show_tables",
    "call enable_logging(storage = 'file', storage_config = {'path': '/tmp/l'})",
    "call duckdb_settings()",
    "checkpoint",
]
READS = [
    "from read_text('/proc/self/environ')",
    "select * from read_text ('/proc/self/environ')",
    "select * from read_text/* here */('/proc/self/environ')",
    "select * from read_text -- here\n('/proc/self/environ')",
    "select * from \"read_text\"('/etc/passwd')",
    "select * from \"READ_text\"('/etc/passwd')",
    "select * from main.read_text('/etc/passwd')",
    "select * from system.main.\"read_blob\"('/etc/passwd')",
    f"select * from read_text{SPACE}('/etc/passwd')",
    f"select{ZERO_WIDTH}*{ZERO_WIDTH}from{ZERO_WIDTH}read_text{ZERO_WIDTH}('/etc/passwd')",
    f"select '{SPACE}' from{SPACE}read_csv{SPACE}('/etc/passwd')",
    "select * from glob('/etc/*')",
    "select (select content from read_text('/etc/passwd'))",
    "with a as (from read_csv('/etc/passwd')) select * from a",
    "create temp table t as select * from read_json('/etc/passwd')",
    "create macro m() as table from read_parquet('x')",
    "create macro m() as (select current_setting('s3_secret_access_key'))",
    "create table t (a varchar default current_setting('s3_secret_access_key'))",
    "insert into t select current_setting('s3_session_token')",
    "update t set a = current_setting('s3_secret_access_key')",
    "set variable x = current_setting('s3_secret_access_key')",
    "select current_setting(getvariable('x'))",
    "from duckdb_settings()",
    "from duckdb_secrets(redact = false)",
    "select * from pg_settings",
    'select * from pg_catalog."pg_settings"',
    "from which_secret('s3://x', 's3')",
    "pivot (from read_csv('x')) on a",
    "select * from (pivot (from duckdb_settings()) on name using first(value))",
    f"pivot{SPACE}t on a using first(current_setting{SPACE}('s3_region'))",
    "from query('copy (select 1) to ''/tmp/x''')",
    "from query_table('/etc/passwd')",
    "from json_execute_serialized_sql('{}')",
    "select list_transform([1], x -> current_setting('s3_region'))",
    "select list_transform([1], lambda x: current_setting('s3_region'))",
    "from duckdb_logs",
    "select write_log('x')",
    "from arrow_scan(1, 2, 3)",
    "from enable_profiling(save_location = '/tmp/x', format = 'json')",
    f"from '{POINTER}'",
    f"from 's3://{LAKE}/_lake/quarantine/a.parquet'",
    f"from t, 's3://{LAKE}/gold/x/data.parquet?s3_endpoint=evil.example'",
    f'from "s3://{LAKE}/gold/x/data.parquet"',
    'from "s3://lake-with"."dots/gold/x.parquet"',
    f"from $${POINTER}$$",
    f"from E'\\x733://{LAKE}/gold/x.parquet'",
    f"from E'\\s3://{LAKE}/gold/x.parquet'",
    f"from 's3:'\n'//{LAKE}/gold/x.parquet'",
    f"from 's3:'\r'//{LAKE}/gold/x.parquet' as t",
    f"from 's3:' \r\t '//{LAKE}/gold/x.parquet?s3_endpoint=127.0.0.1:7' as t",
    f"from 's3:'--\r'//{LAKE}/gold/x.parquet' as t",
    f"from 's3:'\f\r'//{LAKE}/gold/x.parquet' as t",
    f"from '' \r 's3:'\r'//{LAKE}/gold/x.parquet', t",
    f"select 1 from $a$s3://{LAKE}/gold/x.parquet$a$ as t",
    f"create temp table t as from 's3://{LAKE}/gold/x.parquet'",
    f"summarize 's3://{LAKE}/gold/x.parquet'",
    f"describe 's3://{LAKE}/gold/x.parquet'",
]
ALLOWED = [
    "select 1",
    "select 1;",
    "from t",
    "values (1)",
    "table t",
    "(select 1) union all (select 2)",
    "with a as (select 1) select * from a",
    "select * from (pivot t on a using sum(b))",
    "pivot t on a",
    "unpivot t on a, b",
    "describe select 1",
    "show tables",
    "summarize t",
    "select query, read_csv from (select 1 as query, 2 as read_csv) as read_text",
    "select 'copy t to x; attach y' as text, 's3://other/x' as path, \"copy\" from t",
    f"select 's3:/{LAKE}/' || bucket, E'\\n' from t -- copy",
    f"select 'é{SPACE}' as{SPACE}é from t",
    "select * from range(3), unnest([1]), generate_series(1, 2), repeat('a', 2)",
    "select * from duckdb_tables() join information_schema.tables on true",
    "select * from pragma_table_info('t')",
    "analyze",
    "vacuum analyze t",
    "create temp table t as select 1",
    "create or replace temp macro f(x) as x + 1",
    "create or replace temporary macro g() as table select 1",
    "create function f(x) as x",
    "create or replace view a.b as (select 1)",
    "create schema if not exists s",
    "create type mood as enum ('a')",
    "create temp sequence s",
    "insert into t values (1, ?)",
    "update t set a = 1",
    "delete from t",
    "truncate t",
    "drop view if exists t cascade",
    "drop macro f",
    "alter table t rename to u",
    "comment on column t.a is 'x'",
    "comment on table t is 'x'",
    "set variable a = (select 1)",
    "reset variable a",
    "begin",
    "BEGIN TRANSACTION",
    "commit",
    "rollback",
    "/* {\"app\": \"dbt\"} */\nselect 1",
    "create temp table a as select 1; create temp table b as select 2",
    "",
    "-- the pinned release's version is kept",
]  # fmt: skip


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard(LAKE, ["/project/seeds/a.csv"])


@pytest.mark.parametrize("sql", [*WRITES, *REACHES, *READS])
def test_statements_that_write_reach_out_or_read_anything_but_tables_are_refused(guard: Guard, sql: str) -> None:
    with pytest.raises(BuscoError, match="was rejected before it ran"):
        guard.check(sql, "model.x.a")


@pytest.mark.parametrize("sql", ALLOWED)
def test_statements_that_models_hooks_and_dbt_need_are_allowed(guard: Guard, sql: str) -> None:
    guard.check(sql)


def test_a_refusal_names_the_model_the_line_and_the_reason(guard: Guard) -> None:
    with pytest.raises(BuscoError) as refusal:
        guard.check(f"select 'é';\n\n  copy (select 1)\n to '{POINTER}'", "model.shop.orders")
    message = str(refusal.value)
    assert "model.shop.orders was rejected before it ran: COPY reads and writes files" in message
    assert "LINE 3: copy (select 1)" in message
    assert "docs/modelling.md" in message
    with pytest.raises(BuscoError, match=r"read_text: it reads or lists files\nLINE 2: from read_text"):
        guard.check("select *\nfrom read_text('x')")


def test_a_syntax_error_is_reported_by_duckdb_itself(guard: Guard) -> None:
    with pytest.raises(duckdb.ParserException, match="LINE 2"):
        guard.check("select 1\nfrom from t")


@pytest.mark.parametrize(
    "sql",
    [
        "select 1) to 's3://x'; --",
        "select 1; select 2",
        "select 1)); copy (select 1",
        "create temp table t as select 1",
        "insert into t values (1)",
        "with a as (select 1) insert into t from a",
        "begin",
        "analyze",
        "show tables",
        "set variable a = 1",
        "",
        "-- nothing",
        "select 1 /*",
        "select $$",
    ],
)
def test_sql_other_than_a_single_query_is_refused_as_a_model(guard: Guard, sql: str) -> None:
    with pytest.raises((BuscoError, duckdb.ParserException)):
        guard.check_question(sql)


def test_a_refusal_speaks_of_models_only_to_those_who_write_them(guard: Guard) -> None:
    for sql, of_a_model, of_a_query in (
        ("show tables", "a model's SQL must be a single query", "only a query can run here"),
        (f"select * from '{POINTER}'", "use ref() and source()", "it names a path; read tables by name"),
    ):
        with pytest.raises(BuscoError, match=re.escape(of_a_model)):
            guard.check_question(sql, "model.p.m")
        with pytest.raises(BuscoError, match=re.escape(of_a_query)):
            guard.check_question(sql)


def test_explain_is_refused_for_what_it_does_with_or_without_analyze(guard: Guard) -> None:
    for sql in ("explain select 1", "explain analyze select 1"):
        with pytest.raises(BuscoError, match="EXPLAIN returns a plan, and EXPLAIN ANALYZE runs the query"):
            guard.check(sql)


@pytest.mark.parametrize(
    "sql",
    ["select 1", "from t -- c", "(select 1) union (select 2)", "pivot t on a", "from (pivot t on a)", "values (1)"],
)
def test_a_single_query_is_accepted_as_a_model(guard: Guard, sql: str) -> None:
    guard.check_question(sql)


def test_a_granted_statement_is_allowed_once_and_only_by_itself() -> None:
    guard = Guard(LAKE)
    sql = f"copy (select 1) to 's3://{LAKE}/gold/x/1'"
    guard.grant(f"\n  {sql}\n")
    for other in (
        f"{sql}; {sql}",
        f"/* a */ select 1; {sql}",
        f"{sql} --",
        f"/* /* */ {sql}",
        sql.replace("gold", "_lake"),
    ):
        with pytest.raises((BuscoError, duckdb.ParserException)):
            guard.check(other)
    guard.check(f'/* {{"app": "dbt"}} */\n{sql}\n')
    with pytest.raises(BuscoError):
        guard.check(sql)


def test_a_seed_can_load_its_own_file_and_no_other(guard: Guard) -> None:
    load = '\n  COPY "memory"."silver"."a" FROM \'{}\' (FORMAT CSV, HEADER TRUE, DELIMITER \',\')\n'
    guard.check("/* dbt */" + load.format("/project/seeds/a.csv"))
    for sql in (
        load.format("/etc/passwd"),
        load.format("/project/seeds/a.csv") + "; copy t to '/tmp/x'",
        "copy (select 1) to '/project/seeds/a.csv' (format csv, header true, delimiter ',')",
    ):
        with pytest.raises(BuscoError):
            guard.check(sql)


@pytest.mark.parametrize(
    ("key", "is_ours"),
    [
        ("gold/x/prod-1/data_0.parquet", True),
        ("gold/x/prod-1/day=2018-01-01%20x/na%C3%AFve=~a/data_0.parquet", True),
        ("gold/x/prod-2/data_0.parquet", False),
        ("_lake/quarantine/a.parquet", False),
        ("gold/x/prod-1/../../../_lake/a.parquet", False),
        ("gold/x/prod-1/data_0.parquet?s3_endpoint=evil.example", False),
    ],
)
def test_a_version_has_only_files_in_its_own_folder(key: str, is_ours: bool) -> None:
    assert model_sql.is_below("gold/x/prod-1", key) is is_ours


# Table functions of DuckDB that were reviewed: they read no files, no settings, and no memory except that of tables.
HARMLESS = """
    checkpoint force_checkpoint collations duckdb_approx_database_count duckdb_columns duckdb_connection_count
    duckdb_constraints duckdb_coordinate_systems duckdb_databases duckdb_dependencies duckdb_extensions
    duckdb_external_file_cache duckdb_functions duckdb_indexes duckdb_keywords duckdb_memory duckdb_optimizers
    duckdb_prepared_statements duckdb_profiling_settings duckdb_schemas duckdb_secret_types duckdb_sequences
    duckdb_table_sample duckdb_tables duckdb_temporary_files duckdb_types duckdb_variables duckdb_views
    generate_series histogram histogram_values icu_calendar_names json_each json_tree pg_timezone_names
    pragma_collations pragma_database_size pragma_metadata_info pragma_platform pragma_show pragma_storage_info
    pragma_table_info pragma_user_agent pragma_version range repeat repeat_row summary test_all_types
    test_vector_types unnest disable_profile disable_profiling
"""


def test_every_table_function_of_this_duckdb_version_was_reviewed() -> None:
    with duckdb.connect() as connection:
        connection.execute(f"load '{engine.extension_file('httpfs')}'")
        found = connection.execute(
            "select distinct function_name from duckdb_functions() where function_type in ('table', 'table_macro')"
        ).fetchall()
    names = {str(name) for (name,) in found}
    assert names - set(HARMLESS.split()) - set(REFUSED) == set(), "new functions must be added to HARMLESS or REFUSED"
    assert not set(HARMLESS.split()) & set(REFUSED)


# -- DuckDB's own settings, without the guard -------------------------------------------------------------------------


@pytest.fixture
def closed(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    (tmp_path / "seed.csv").write_text("a\n1\n")
    connection = duckdb.connect(config={**engine.CLOSED, "temp_directory": str(tmp_path / "spill")})
    connection.execute(f"load '{engine.extension_file('httpfs')}'")
    connection.execute("set global http_retries = 0; set global s3_endpoint = '127.0.0.1:9'")
    engine.close(connection, [f"s3://{LAKE}/gold/"], [str(tmp_path / "seed.csv")])
    return connection


@pytest.mark.parametrize(
    "sql",
    [
        "from read_text('/proc/self/environ')",
        "from glob('/etc/*')",
        "copy (select 1) to '/tmp/busco-guard.csv'",
        f"copy (select 1) to '{POINTER}'",
        f"from read_text('{POINTER}')",
        "from read_text('http://127.0.0.1:9/')",
        "attach '/tmp/busco-guard.db' as x",
        "install httpfs",
        "load '/tmp/x.duckdb_extension'",
        "export database '/tmp/busco-guard'",
        "create persistent secret x (type s3, key_id 'a', secret 'b')",
        "from duckdb_secrets(redact = false)",
        "set global s3_endpoint = 'evil.example'",
        "set global enable_external_access = true",
        "set global allowed_directories = ['/']",
        "set global lock_configuration = false",
    ],
)
def test_duckdb_itself_refuses_forbidden_statements_too(closed: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises(duckdb.Error, match=r"disabled|locked|Cannot|cannot|persistent"):
        closed.execute(sql)


def test_operations_that_the_platform_needs_are_still_allowed(
    closed: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    for name in credentials.RENEWED:
        closed.cursor().execute(f"set global {name} = 'new'")
    assert closed.execute(f"from read_csv('{tmp_path}/seed.csv')").fetchall() == [(1,)]
    with pytest.raises(duckdb.Error, match="127.0.0.1"):
        # the request is made, although nothing is listening
        closed.execute(f"from read_text('s3://{LAKE}/gold/x')")


def test_variables_of_the_python_process_cannot_be_read_as_tables(closed: duckdb.DuckDBPyConnection) -> None:
    secret = closed.sql("select 1 as a")
    with pytest.raises(duckdb.CatalogException):
        closed.execute("from secret")
    assert secret


def test_the_cursor_that_jinja_gets_cannot_bypass_the_guard(closed: duckdb.DuckDBPyConnection) -> None:
    cursor = GuardedCursor(closed, lambda sql: not sql, lambda names: names.clear())
    public = {name for name in dir(cursor) if not name.startswith("_")}
    allowed = "execute description rowcount fetchone fetchmany fetchall rollback interrupt close"
    assert public == set(allowed.split())
    assert cursor.execute("select 1") is cursor
