"""What a backup of Airflow's database needs besides PostgreSQL's own tools; scripts/backup.sh and restore.sh use it.

python -m busco.orchestration.backups [--output FILE] COMMAND

pgpass        prints a line for libpq's password file with the database's password
contents      prints, as JSON, what the database contains now, for `newer`
newer         reads such JSON from stdin and prints how many rows of the database are newer than it
put NAME      stores stdin as a backup in the logs bucket
get NAME      prints a stored backup
list          prints the names of the stored backups, the newest first

A backup is two objects below `airflow-database/` in the logs bucket: <name>.dump, in pg_dump's custom format, and
<name>.json, the contents. A name begins with the time in UTC, so names sort by age.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from busco.errors import BuscoError
from busco.orchestration import database, revision
from busco.text import count

PREFIX = "airflow-database/"
_NAME = re.compile(r"\d{8}T\d{6}Z-[a-z0-9]+\.(dump|json)")
# the tables that people fill, and by which column they know a row
_NAMED = {"users": ("ab_user", "username"), "variables": ("variable", "key"), "connections": ("connection", "conn_id")}
# logging in changes these columns of a user
_OF_LOGINS = ("last_login", "login_count", "fail_login_count")
_ONE = {"dag_runs": "DAG run", "users": "user", "variables": "variable", "connections": "connection"}


def pgpass(dsn: str) -> str:
    """Returns the database's line in libpq's password file (PostgreSQL's documentation, "The Password File")."""
    url = urlsplit(dsn)
    fields = (url.hostname, str(url.port or 5432), url.path.lstrip("/"), url.username, database.password())
    return ":".join(re.sub(r"([\\:])", r"\\\1", str(field)) for field in fields)


def contents(dsn: str, columns: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """Returns what the database contains: its revision, the newest DAG run, and a hash of each row that people made.

    Args:
        columns: the columns to hash, by kind; by default all that the tables have. They are part of the result, because
            a migration can add columns, and rows that nobody has changed must keep their hashes.

    Raises:
        BuscoError: the database has no Airflow tables.
    """
    found = revision.of_database(dsn)
    if found is None:
        raise BuscoError("the database has no Airflow tables", "deploy first: scripts/ec2_deploy.sh")
    with database.connect(dsn, connect_timeout=10) as connection, connection.cursor() as cursor:
        cursor.execute("select coalesce(max(id), 0) from dag_run")
        held: dict[str, Any] = {"revision": found, "dag_runs": cursor.fetchone()[0], "columns": {}}
        for name, (table, key) in _NAMED.items():
            if columns is not None:
                chosen = list(columns[name])
            else:
                cursor.execute(
                    "select column_name from information_schema.columns where table_schema = 'public'"
                    " and table_name = %s and column_name <> all(%s) order by 1",
                    [table, list(_OF_LOGINS)],
                )
                chosen = [column for (column,) in cursor.fetchall()]
            # the names are this module's own constants
            cursor.execute(
                f"select {key}, md5((select jsonb_object_agg(e.key, e.value)::text from jsonb_each(to_jsonb(t)) e"
                f" where e.key = any(%s))) from {table} t",
                [chosen],
            )
            held[name] = dict(cursor.fetchall())
            held["columns"][name] = chosen
    return held


def newer(dsn: str, backup: Mapping[str, Any]) -> dict[str, int]:
    """Returns how many rows were added or changed since a backup, by kind: dag_runs, users, variables, connections.

    Args:
        backup: what `contents` returned when the backup was made.
    """
    now = contents(dsn, backup["columns"])
    with database.connect(dsn, connect_timeout=10) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from dag_run where id > %s", [backup["dag_runs"]])
        found = {"dag_runs": int(cursor.fetchone()[0])}
    for name in _NAMED:
        found[name] = sum(backup[name].get(key) != value for key, value in now[name].items())
    return found


def put(name: str, body: BinaryIO) -> None:
    """Stores a backup, encrypted with the bucket's default key."""
    bucket().upload_fileobj(body, _key(name))


def get(name: str, into: BinaryIO) -> None:
    """Writes a stored backup to a file.

    Raises:
        BuscoError: there is no such backup.
    """
    from botocore.exceptions import ClientError

    try:
        bucket().download_fileobj(_key(name), into)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            raise BuscoError(f"there is no backup {name}", "list the backups: scripts/restore.sh --list") from error
        raise


def names() -> list[str]:
    """Returns the names of the complete backups, the newest first."""
    found = {one.key.removeprefix(PREFIX) for one in bucket().objects.filter(Prefix=PREFIX)}
    dumps = {one.removesuffix(".dump") for one in found if one.endswith(".dump")}
    return sorted(dumps & {one.removesuffix(".json") for one in found if one.endswith(".json")}, reverse=True)


def bucket() -> Any:
    """Returns the logs bucket.

    Raises:
        BuscoError: BUSCO_LOGS_BUCKET is not set.
    """
    import boto3

    name = os.environ.get("BUSCO_LOGS_BUCKET", "")
    if not name:
        raise BuscoError("BUSCO_LOGS_BUCKET is not set", "set it in .env")
    return boto3.resource("s3").Bucket(name)


@contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    """Opens the file for its owner only; stdout if there is none. A file that could not be completed is removed."""
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _key(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BuscoError(f"{name!r} is not the name of a backup", "list the backups: scripts/restore.sh --list")
    return PREFIX + name


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit status: 1 after an error message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pgpass", "contents", "newer", "put", "get", "list"))
    parser.add_argument("name", nargs="?", default="")
    parser.add_argument("--output", type=Path, help="write to this file, with mode 600, instead of stdout")
    given = parser.parse_args(arguments)
    from botocore.exceptions import BotoCoreError, ClientError

    dsn = os.environ.get("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "")
    try:
        match given.command:
            case "pgpass":
                with _output(given.output) as file:
                    file.write(f"{pgpass(dsn)}\n".encode())
            case "contents":
                print(json.dumps(contents(dsn)))
            case "newer":
                found = newer(dsn, json.load(sys.stdin))
                print(", ".join(count(number, _ONE[kind]) for kind, number in found.items()))
            case "put":
                put(given.name, sys.stdin.buffer)
            case "get":
                with _output(given.output) as file:
                    get(given.name, file)
            case "list":
                print("\n".join(names()))
    except BuscoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (BotoCoreError, ClientError) as error:
        hint = f"Airflow's role needs access to {PREFIX}* in the logs bucket (deploy/aws/ecs.yaml)"
        print(f"error: {error}\n  → {hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
