"""A new key for connections, variables and triggers in Airflow's database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest
from cryptography.fernet import Fernet

from busco.errors import BuscoError
from busco.orchestration import rotation
from tests.airflow.test_backups import dsn, run, server

__all__ = ["dsn", "server"]

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
ROWS = 250
TABLES = """
create table connection (id serial primary key, conn_id varchar, password text, extra text, is_encrypted boolean,
    is_extra_encrypted boolean);
create table variable (id serial primary key, key varchar, val text, is_encrypted boolean);
create table trigger (id serial primary key, kwargs text);
"""


def encrypted(text: str, key: str = OLD) -> str:
    return Fernet(key).encrypt(text.encode()).decode()


@pytest.fixture
def filled(dsn: str) -> str:
    """A database with many rows of each kind, some of them not encrypted."""
    run(dsn, TABLES)
    lines = [
        f"insert into connection (conn_id, password, extra, is_encrypted, is_extra_encrypted) values"
        f" ('c{n}', '{encrypted(f'password {n}')}', '{encrypted(f'extra {n}')}', true, true);"
        f"insert into variable (key, val, is_encrypted) values ('v{n}', '{encrypted(f'value {n}')}', true);"
        f"insert into trigger (kwargs) values ('{encrypted(f'kwargs {n}')}');"
        for n in range(ROWS)
    ]
    run(dsn, "".join(lines))
    run(
        dsn,
        "insert into connection (conn_id, extra, is_encrypted, is_extra_encrypted) values ('bare', '', false, false)",
    )
    run(dsn, "insert into variable (key, val, is_encrypted) values ('plain', 'as it is', false)")
    return dsn


def values(dsn: str, key: str) -> set[str]:
    """Returns all encrypted values, decrypted with one key."""
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select password from connection where is_encrypted union select extra from connection where"
            " is_extra_encrypted union select val from variable where is_encrypted union select kwargs from trigger"
        )
        return {Fernet(key).decrypt(value.encode()).decode() for (value,) in cursor.fetchall()}


def test_all_rows_can_be_decrypted_with_the_new_key_alone(filled: str) -> None:
    before = values(filled, OLD)
    assert rotation.rotate(filled, [NEW, OLD]) == 4 * ROWS
    assert values(filled, NEW) == before
    assert rotation.rotate(filled, [NEW, OLD]) == 0


def test_rows_that_change_during_a_rotation_are_not_overwritten(filled: str) -> None:
    def changes() -> None:
        for number in range(ROWS):
            run(filled, f"update variable set val = '{encrypted('newer', NEW)}' where key = 'v{number}'")
            run(filled, f"delete from trigger where id = {number + 1}")

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(changes)
        rotation.rotate(filled, [NEW, OLD])
        changing.result()
    found = values(filled, NEW)
    assert "newer" in found
    assert not {value for value in found if value.startswith(("value", "kwargs"))}


def test_values_of_an_unknown_key_are_named_and_nothing_is_lost(filled: str) -> None:
    value = encrypted("x", Fernet.generate_key().decode())
    run(filled, f"insert into variable (key, val, is_encrypted) values ('lost', '{value}', true)")
    with pytest.raises(BuscoError, match="1 value can't be decrypted with any of the keys: variable lost"):
        rotation.rotate(filled, [NEW, OLD])
    run(filled, "delete from variable where key = 'lost'")
    assert len(values(filled, NEW)) == 4 * ROWS
