"""Encrypts Airflow's connections, variables and triggers with a new key: `python -m busco.orchestration.rotation`.

The new key is the first of those in AIRFLOW__CORE__FERNET_KEY; the others are old ones. Airflow's own
`rotate-fernet-key` pages through rows that it updates at the same time, without an order, so it skips some if there are
more than 100; and it doesn't verify anything. Here, the command succeeds only after all rows can be decrypted with the
new key alone, so that the old one can be removed.
"""

from __future__ import annotations

import logging
import os
import sys

import psycopg2
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from busco.errors import BuscoError
from busco.orchestration import database
from busco.text import count, printable

# table, column with the encrypted text, column that says whether it is encrypted, column by which people know the row
_ENCRYPTED = (
    ("connection", "password", "is_encrypted", "conn_id"),
    ("connection", "extra", "is_extra_encrypted", "conn_id"),
    ("variable", "val", "is_encrypted", "key"),
    ("trigger", "kwargs", "kwargs not like '{%'", "id"),  # those of some triggers are plain JSON
)
# Services add and change rows during a rotation. They encrypt with the new key, so one further pass is normally enough.
_PASSES = 10


def rotate(dsn: str, keys: list[str]) -> int:
    """Encrypts everything with the first key; returns the number of values that were encrypted with another one.

    Args:
        dsn: the URL of Airflow's database, in SQLAlchemy's or libpq's format.
        keys: the new key and the old ones.

    Raises:
        BuscoError: some values can't be decrypted with any of the keys; or rows with an old key are still being added.
        psycopg2.OperationalError: the database can't be reached, or rejects the password.
    """
    new, all_keys = Fernet(keys[0]), MultiFernet([Fernet(key) for key in keys])
    changed = 0
    with database.connect(dsn, connect_timeout=10) as connection, connection.cursor() as cursor:
        for _ in range(_PASSES):
            found, unreadable = 0, []
            for table, column, encrypted, name in _ENCRYPTED:
                # the names are this module's own constants
                cursor.execute(
                    f"select id, {column}, {name} from {table} where {encrypted} and coalesce({column}, '') <> ''"
                    " order by id"
                )
                for row, value, known_as in cursor.fetchall():
                    if _readable(new, value):
                        continue
                    found += 1
                    if not _readable(all_keys, value):
                        unreadable.append(printable(f"{table} {known_as}"))
                        continue
                    rotated = all_keys.rotate(value.encode()).decode()
                    # a row that was changed or deleted meanwhile is left alone; the next pass reads it again
                    cursor.execute(
                        f"update {table} set {column} = %s where id = %s and {column} = %s", [rotated, row, value]
                    )
                    changed += cursor.rowcount
                    # otherwise, the services would wait for many rows at once
                    connection.commit()
            if unreadable:
                listed = ", ".join(unreadable)
                raise BuscoError(
                    f"{count(len(unreadable), 'value')} can't be decrypted with any of the keys: {listed}",
                    "add the key that encrypted them, or delete them and create them again; then rotate again",
                )
            if not found:
                return changed
    raise BuscoError(
        "values that are encrypted with an old key are still being added",
        "check that all services run with the new key, and rotate again",
    )


def _readable(key: Fernet | MultiFernet, value: str) -> bool:
    try:
        key.decrypt(value.encode())
    except InvalidToken:
        return False
    return True


def main() -> int:
    """Rotates with the keys in the environment; returns the exit status: 1 after an error message."""
    # Airflow logs to stdout
    logging.disable(logging.INFO)
    from airflow.configuration import conf

    keys = [key.strip() for key in str(conf.get("core", "fernet_key")).split(",")]
    try:
        changed = rotate(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"], keys)
    except (BuscoError, psycopg2.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count(changed, 'value')} encrypted with the new key; all can be decrypted with it alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
