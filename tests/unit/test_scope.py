"""A node's SQL can read only what the node declares, and can't create anything that shadows a table or function."""

from __future__ import annotations

from typing import Any

import duckdb
import pytest

from busco.errors import BuscoError
from busco.project import Project
from busco.warehouse.environment import GuardedCursor
from busco.warehouse.guard import Guard
from busco.warehouse.redact import Redactor
from busco.warehouse.scope import Scope

SUMS, OTHER, VIEW, SEED = "model.p.sums", "model.p.other", "model.p.v_people", "seed.p.codes"
TEST, UNIT, OF_EPHEMERAL = "test.p.no_sums", "unit_test.p.sums.adds", "model.p.of_e"


def node(uid: str, schema: str, *parents: str, **more: Any) -> dict[str, Any]:
    kind, _, name = uid.split(".")[:3]
    return {
        "unique_id": uid, "resource_type": kind, "language": "sql", "raw_code": "select 1", "columns": {}, "name": name,
        "schema": schema, "alias": name, "original_file_path": f"models/{name}.sql",
        "config": {"materialized": more.pop("materialized", "lake")},
        "depends_on": {"nodes": list(parents), "macros": []}, **more,
    }  # fmt: skip


def project() -> Project:
    """bronze.people (personal) → silver.people → gold.sums, a view, an ephemeral; bronze.things → gold.other."""
    people, things = "source.p.src.people", "source.p.src.things"
    sources = {
        uid: {
            "resource_type": "source", "source_name": "src", "name": uid.split(".")[-1], "schema": "bronze",
            "columns": {"email": {"config": {"meta": {"pii": uid == people}}}},
        }
        for uid in (people, things)
    }  # fmt: skip
    nodes = [
        node("model.p.people", "silver", people),
        node(SUMS, "gold", "model.p.people"),
        node(VIEW, "main", "model.p.people", materialized="view"),
        node("model.p.s_people", "silver", "model.p.people", materialized="view"),
        node("model.p.of_views", "gold", VIEW, "model.p.s_people"),
        node("model.p.e", "gold", "model.p.people", materialized="ephemeral"),
        node(OF_EPHEMERAL, "gold", "model.p.e"),
        node(OTHER, "gold", things),
        node(SEED, "silver", materialized="seed"),
        node(TEST, "dbt_test__audit", SUMS),
    ]
    unit = {"name": "adds", "model": "sums", "given": [], "expect": {"rows": []}, "depends_on": {"nodes": [SUMS]}}
    return Project(
        {
            "metadata": {"project_name": "p"}, "sources": sources, "nodes": {each["unique_id"]: each for each in nodes},
            "unit_tests": {UNIT: unit}, "macros": {},
        }
    )  # fmt: skip


class Guarded:
    """The project's guard, and the redactor to which it reports."""

    def __init__(self) -> None:
        self.redactor = Redactor(project())
        self.scope = Scope(self.redactor.project, self.redactor.hides)
        self.guard = Guard("lake", (), self.redactor, self.scope)

    def check(self, node: str, *texts: str) -> bool:
        return [self.guard.check(sql, node) for sql in texts][-1]


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


SHADOWS = [
    "create macro count_star() as 0",
    "create or replace macro count_star() as coalesce(sum(0), 0)::bigint",
    'create temp macro "COUNT"(x) as 0',
    "create function main.sum(x) as 0",
    'create macro memory.main."+"(a, b) as a',
    "create macro/* no comment helps */strip_accents(x) as (select 'a')",
    "create macro if not exists range(x) as table select 1",
    "create macro url_encode(x) as 'a', (x, y) as 'b'",
    "select 1; create macro lower(x) as x",
]
STORED = [
    "create type mood as enum (select distinct email from silver.people)",
    "create type if not exists mood as enum (from silver.people)",
    "create type mood as enum ((select 'a'))",
    "create type mood as enum (with a as (select 'a') select * from a)",
]
REPLACING = [
    "create or replace view gold.sums as select 1 as a",
    'create view "memory"."gold"."sums" as select 1',
    "create table silver.codes as select 1",
    "create or replace table GOLD.other as select 1",
    "create view gold.nobody as select 1",
    "create view if not exists bronze.things as select 1",
    "create view v_people as select 1",
    "create or replace view main.v_people as select 1",
    "create or replace view memory.v_people as select 1",
    "create view main.v_people__dbt_tmp as select 1",
    "alter view mine rename to v_people",
    "alter view silver.people rename to gone",
    "drop view silver.people",
    "drop view if exists v_people",
    "drop schema silver cascade",
    "drop schema if exists memory.gold",
]
ALLOWED = [
    "create or replace temp macro doubled(x) as x * 2",
    "create macro count_of(x) as count(x)",
    "create type mood as enum ('a', 'b')",
    "create type pair as struct(a integer)",
    "create temp table v_people as select 1",
    "create or replace table main.rates as select 1",
    "create view rates as select 1",
    "drop table if exists rates",
    "alter table rates rename to rates_of_today",
    "comment on view gold.sums is 'seen'",
    "create schema if not exists gold",
    "create schema mine; create table mine.sums as select 1; drop schema mine cascade",
]


@pytest.mark.parametrize("sql", [*SHADOWS, *STORED, *REPLACING])
def test_sql_that_shadows_or_replaces_a_table_or_function_is_refused(guarded: Guarded, sql: str) -> None:
    for origin in (SUMS, "", "operation.p.hook"):
        with pytest.raises(BuscoError, match="was rejected before it ran"):
            guarded.check(origin, sql)


@pytest.mark.parametrize("sql", ALLOWED)
def test_objects_with_names_of_their_own_can_be_created(guarded: Guarded, sql: str) -> None:
    guarded.check(SUMS, sql)


def test_no_macro_can_have_the_name_of_a_duckdb_function(guarded: Guarded) -> None:
    """In DuckDB, a macro takes precedence over a function of the same name."""
    with duckdb.connect() as connection:
        connection.execute("create macro count_star() as coalesce(sum(0), 0)::bigint")
        assert connection.execute("select count(*) from range(3)").fetchall() == [(0,)]
        found = connection.execute("select distinct function_name from duckdb_functions() where internal").fetchall()
    assert len(found) > 900
    for (name,) in found:
        with pytest.raises(BuscoError, match="give the macro another name|it reads|it shows|it runs SQL"):
            guarded.check(SUMS, f'create macro "{name}"() as 0')


READS = [
    (OTHER, "select email::integer as x from bronze.people", r"bronze\.people.*source\('src', 'people'\)"),
    (OTHER, 'select * from "memory" . "silver"/* */."People"', r"silver\.people.*ref\('people'\)"),
    (OTHER, "with a as (select 1) select (select max(email) from silver.people) from a", r"silver\.people"),
    (OTHER, "select 1; create temp table t as from silver.people", r"silver\.people"),
    (OTHER, "create macro m() as (select max(email) from silver.people)", r"silver\.people"),
    (OTHER, "from main.v_people", r"main\.v_people"),
    (OTHER, "select * from v_people as v", r"main\.v_people"),
    (OTHER, "from memory.v_people", r"main\.v_people"),
    (OTHER, "select * from 'v_people' as v", r"main\.v_people"),
    (OTHER, "from $$V_people$$", r"main\.v_people"),
    (OTHER, "summarize silver.people", r"silver\.people"),
    (SUMS, "select * from bronze.people", "bronze.people"),
    (TEST, "select 1 from silver.people where email::integer > 0", r"silver\.people"),
    (UNIT, "select * from bronze.people", r"bronze\.people"),
    (SEED, "select * from silver.people", r"silver\.people"),
    (OF_EPHEMERAL, "select * from gold.sums", r"gold\.sums"),
]


@pytest.mark.parametrize(("node", "sql", "name"), READS)
def test_a_table_that_the_node_does_not_declare_is_refused(guarded: Guarded, node: str, sql: str, name: str) -> None:
    with pytest.raises(BuscoError, match=f"it names {name}"):
        guarded.check(node, sql)
    if sql.startswith("select") and ";" not in sql:
        with pytest.raises(BuscoError, match=f"it names {name}"):
            guarded.guard.check_question(sql, node)


@pytest.mark.parametrize(
    ("node", "sql"),
    [
        (SUMS, "select p.email from silver.people as p"),
        (SUMS, "select people.email from memory.silver.people"),
        (SUMS, "with v_people as (select 1 as a) select * from v_people"),
        (SUMS, "select v_people, count(v_people) from silver.people"),
        (SUMS, "select 'bronze.people' as a -- bronze.people"),
        (SUMS, "comment on view gold.sums is 'x'"),
        (OF_EPHEMERAL, "with __dbt__cte__e as (select * from silver.people) select * from __dbt__cte__e"),
        (TEST, "select count(*) as failures from (select * from gold.sums) dbt_internal_test"),
        (UNIT, "select * from silver.people, gold.sums"),
        ("", "select * from silver.people"),
        ("sql_operation.p.inline_query", "select * from silver.people"),
    ],
)
def test_a_node_can_read_what_it_declares(guarded: Guarded, node: str, sql: str) -> None:
    guarded.check(node, sql)


def test_only_dbt_can_create_a_view_and_only_once_per_materialization(guarded: Guarded) -> None:
    made = 'create view "memory"."main"."v_people__dbt_tmp" as (select * from silver.people)'
    moves = [
        'alter view "memory"."main"."v_people" rename to "v_people__dbt_backup"',
        'alter view "memory"."main"."v_people__dbt_tmp" rename to "v_people"',
    ]
    drop = 'drop view if exists "memory"."main"."v_people__dbt_backup" cascade'
    with pytest.raises(BuscoError, match="platform's tables"):
        guarded.check(VIEW, made)
    guarded.scope.begin(VIEW)
    with pytest.raises(BuscoError):
        guarded.check(OTHER, "create view main.v_people__dbt_tmp as select 1")
    guarded.check(VIEW, made, *moves, drop)
    guarded.scope.begin(VIEW)
    for sql in (made, *moves, "create or replace view v_people as select 1", "drop view v_people"):
        with pytest.raises(BuscoError, match="platform's tables"):
            guarded.check(VIEW, sql)


def test_reading_a_declared_view_does_not_count_as_reading_a_table_created_by_a_hook(guarded: Guarded) -> None:
    for schema, name in (("main", "v_people"), ("silver", "s_people")):
        guarded.scope.begin(f"model.p.{name}")
        made = f"create view {schema}.{name}__dbt_tmp as select * from silver.people"
        guarded.check(f"model.p.{name}", made, f"alter view {schema}.{name}__dbt_tmp rename to {name}")
    guarded.check(
        "model.p.of_views", 'select * from "memory"."main"."v_people" join "memory"."silver"."s_people" on true'
    )
    assert not guarded.redactor.is_indirect_reader("model.p.of_views")
    guarded.check("model.p.of_views", "create temp table t as from silver.s_people")
    guarded.check("model.p.of_views", "from t")
    assert guarded.redactor.is_indirect_reader("model.p.of_views")


def test_a_seed_can_be_loaded_only_once(guarded: Guarded) -> None:
    load = ["drop view if exists silver.codes", "create table silver.codes (a varchar)"]
    guarded.scope.begin(SEED)
    guarded.check(SEED, *load)
    guarded.scope.end(SEED)
    for sql in load:
        with pytest.raises(BuscoError):
            guarded.check(SEED, sql)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ("create table main.shared as select email from silver.people", "select email::integer from main.shared"),
        ("create temp view shared as from silver.people", "select * from SHARED"),
        ("create temp view shared as from silver.people", "select * from 'shared'"),
        ("create macro of_all() as (select max(email) from silver.people)", "select of_all()"),
        ("create table shared (a varchar); insert into main.shared from silver.people", "from shared"),
        ("create table a as from silver.people; alter table a rename to b", "from b"),
        ("set variable v = (select max(email) from silver.people)", "select getvariable('v')::integer"),
        ("set variable v = (select max(email) from silver.people)", "select value from duckdb_variables()"),
    ],
)
def test_values_are_hidden_for_nodes_that_read_what_others_created_from_personal_data(
    guarded: Guarded, made: str, named: str
) -> None:
    message = "Conversion Error: Could not convert string 'Maria' to INT32"
    guarded.check(OTHER, named)
    assert guarded.redactor.text(OTHER, message) == message
    guarded.check(OF_EPHEMERAL, made)
    assert guarded.check(OTHER, named) is True
    assert "Maria" not in guarded.redactor.text(OTHER, message)
    # and so is a node that reads what OTHER has created
    guarded.check(OTHER, "create table main.third as " + (named if named.startswith(("select", "from")) else "from t"))
    guarded.check(SEED, "from third")
    assert guarded.redactor.hides(SEED)


@pytest.mark.parametrize(
    ("sql", "is_personal"),
    [
        ("select max(email) from silver.people", True),
        ("select a from (describe silver.people)", False),
        ("select column_name from information_schema.columns where table_name = 'people'", False),
        ("summarize silver.people", True),
        ("select 1", False),
    ],
)
def test_jinja_that_fetches_rows_of_personal_data_is_detected_when_it_does(
    guarded: Guarded, sql: str, is_personal: bool
) -> None:
    received: list[list[str]] = []
    with duckdb.connect() as connection:
        connection.execute("create schema silver; create table silver.people as select 'Maria' as email, 1 as a")
        connection.execute("create table main.t as select 1")
        cursor = GuardedCursor(
            connection, lambda text: guarded.check(SUMS, text), lambda names: received.append([*names])
        )
        if "describe" in sql:
            sql = sql.replace("select a", "select column_name")
        for fetch in (cursor.fetchone, cursor.fetchall, cursor.fetchmany):
            cursor.execute(sql)
            assert fetch()
        assert bool(received) is is_personal
        cursor.execute(f"{sql} limit 0" if sql.startswith("select max") else "select 1 where false").fetchall()
    assert len(received) == (3 if is_personal else 0)
