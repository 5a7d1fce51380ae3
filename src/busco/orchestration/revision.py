"""Compares Airflow's database with this image's Airflow: `python -m busco.orchestration.revision`.

Prints one of four words, by which the deployment decides what to do:

empty    the database has no Airflow tables
current  the tables are those of this image's Airflow
behind   this image must migrate them
ahead    a newer Airflow has migrated them: this image must not run on them

With --newest, prints the revision of this image's Airflow instead.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Literal

from busco.orchestration import database

State = Literal["empty", "current", "behind", "ahead"]


def state(dsn: str) -> State:
    """Returns how the database's revision compares with this Airflow's.

    Args:
        dsn: the URL of Airflow's database, in SQLAlchemy's or libpq's format.

    Raises:
        psycopg2.OperationalError: the database can't be reached, or rejects the password.
    """
    found = of_database(dsn)
    if found is None:
        return "empty"
    known, newest = of_airflow()
    if found == newest:
        return "current"
    return "behind" if found in known else "ahead"


def of_database(dsn: str) -> str | None:
    """Returns the revision of the tables in Airflow's database; None if it has none."""
    with database.connect(dsn, connect_timeout=10) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass('alembic_version')")
        if cursor.fetchone()[0] is None:
            return None
        cursor.execute("select version_num from alembic_version")
        row = cursor.fetchone()
        return str(row[0]) if row else None


def of_airflow() -> tuple[frozenset[str], str]:
    """Returns the revisions that this Airflow knows, and the newest."""
    import airflow
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(airflow.__path__[0]) / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    return frozenset(one.revision for one in scripts.walk_revisions()), str(newest)


def main(arguments: list[str]) -> int:
    """Prints the state of the database in AIRFLOW__DATABASE__SQL_ALCHEMY_CONN; returns the exit status."""
    # Airflow logs to stdout, which must contain only the answer
    logging.disable(logging.INFO)
    if arguments == ["--newest"]:
        print(of_airflow()[1])
        return 0
    if arguments:
        print("usage: python -m busco.orchestration.revision [--newest]", file=sys.stderr)
        return 2
    print(state(os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
