"""What a backup of Airflow's database contains, what is newer than it, and how its revision compares with Airflow's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from busco.embedded.postgres import Postgres
from busco.errors import BuscoError
from busco.orchestration import backups, revision

TABLES = """
create table alembic_version (version_num varchar primary key);
create table dag_run (id serial primary key, run_id varchar);
create table ab_user (id serial primary key, username varchar, email varchar, last_login timestamp, login_count int,
    fail_login_count int);
create table variable (id serial primary key, key varchar, val text);
create table connection (id serial primary key, conn_id varchar, password varchar);
insert into dag_run (run_id) values ('one'), ('two');
insert into ab_user (username, email, login_count) values ('ana', 'ana@example.com', 1);
insert into variable (key, val) values ('team', 'a');
insert into connection (conn_id, password) values ('lake', 'x');
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    # pytest's own folders are private to their owner, but PostgreSQL runs as another user if this one is root
    state = Path(tempfile.mkdtemp(prefix="busco-backups-"))
    state.chmod(0o755)
    made = Postgres(state)
    made.up()
    yield made
    made.down()
    shutil.rmtree(state)


@pytest.fixture
def dsn(server: Postgres) -> str:
    """The URL of a database without tables."""
    url = server.dsn
    run(url, "drop schema public cascade; create schema public")
    return url


def run(dsn: str, statements: str) -> None:
    connection = psycopg2.connect(dsn)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statements)
    finally:
        connection.close()


def test_a_database_without_tables_is_empty(dsn: str) -> None:
    assert revision.state(dsn) == "empty"
    with pytest.raises(BuscoError, match="no Airflow tables"):
        backups.contents(dsn)


def test_the_revision_is_compared_with_those_that_airflow_knows(dsn: str) -> None:
    known, newest = revision.of_airflow()
    assert len(known) > 50
    run(dsn, TABLES)
    for found, state in (
        (newest, "current"),
        (min(known - {newest}), "behind"),
        ("0123456789ab", "ahead"),
    ):
        run(dsn, f"truncate alembic_version; insert into alembic_version values ('{found}')")
        assert revision.state(dsn) == state


def test_what_was_added_or_changed_since_a_backup_is_counted(dsn: str) -> None:
    run(dsn, TABLES + "insert into alembic_version values ('abc')")
    before = backups.contents(dsn)
    assert before["revision"] == "abc"
    assert set(backups.newer(dsn, before).values()) == {0}
    # a login does not make a user newer
    run(dsn, "update ab_user set last_login = now(), login_count = 7, fail_login_count = 1")
    assert set(backups.newer(dsn, before).values()) == {0}
    run(
        dsn,
        "insert into dag_run (run_id) values ('three'); update ab_user set email = 'b@example.com';"
        "insert into variable (key, val) values ('new', '1'); update variable set val = 'b' where key = 'team';"
        "delete from connection",
    )
    assert backups.newer(dsn, before) == {"dag_runs": 1, "users": 1, "variables": 2, "connections": 0}


def test_the_contents_of_a_backup_contain_no_values(dsn: str) -> None:
    run(dsn, TABLES + "insert into alembic_version values ('abc')")
    run(dsn, "update variable set val = 'canary'; update connection set password = 'canary'")
    assert "canary" not in str(backups.contents(dsn))


def test_a_password_with_special_characters_is_escaped_for_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", r"a$b?c#d%e@f:g\h")
    line = backups.pgpass("postgresql+psycopg2://airflow@db.example.com:5433/air?sslmode=verify-full")
    assert line == r"db.example.com:5433:air:airflow:a$b?c#d%e@f\:g\\h"


@pytest.mark.parametrize("name", ["../x.dump", "20260101T000000Z-abc.sql", "", "20260101T000000Z-abc.dump/x"])
def test_only_names_of_backups_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSCO_LOGS_BUCKET", "logs")
    with pytest.raises(BuscoError, match="is not the name of a backup"):
        backups._key(name)


def test_a_migration_that_adds_columns_makes_no_row_newer(dsn: str) -> None:
    run(dsn, TABLES)
    run(dsn, f"insert into alembic_version values ('{revision.of_airflow()[1]}')")
    before = backups.contents(dsn)
    run(dsn, "alter table variable add column team varchar; alter table ab_user add column phone varchar")
    assert backups.newer(dsn, before) == {"dag_runs": 0, "users": 0, "variables": 0, "connections": 0}
    run(dsn, "update variable set val = 'b'; insert into connection (conn_id) values ('new')")
    assert backups.newer(dsn, before) == {"dag_runs": 0, "users": 0, "variables": 1, "connections": 1}
