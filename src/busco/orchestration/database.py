"""Supplies the password of Airflow's database in production, where RDS may change it at any time.

In production, the database's URL contains no password. It comes from one of two variables:

DB_PASSWORD          the password
DB_PASSWORD_SECRET   the name or ARN of a secret in Secrets Manager, or the ARN of a parameter in SSM Parameter Store.
                     Its value is the password, or JSON with a `password`, as RDS writes it

A secret is read when the first connection is made, and again when the database rejects the password, because RDS
changes the passwords that it manages every seven days by default (RDS User Guide, "Password management with Secrets
Manager").
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PLAIN = "DB_PASSWORD"
SECRET = "DB_PASSWORD_SECRET"  # noqa: S105 (a variable's name)
# A copy for the container's other processes, so that not every command and health check reads the secret. In
# production, /tmp is in memory.
_KEPT = "busco-database-password"


def install() -> None:
    """Makes every SQLAlchemy engine of this process connect to PostgreSQL with that password, if its URL contains none.

    Does nothing if neither variable is set. Airflow's engine and Celery's result backend are both covered.
    """
    if not _is_set():
        return
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "do_connect", _connect)


def connect(dsn: str, **options: Any) -> Any:
    """Opens a connection with psycopg2.

    Args:
        dsn: the database's URL, in SQLAlchemy's or libpq's format.
        options: further parameters of libpq.

    Raises:
        psycopg2.OperationalError: the database can't be reached, or rejects the password.
    """
    import psycopg2

    plain = dsn.replace("postgresql+psycopg2://", "postgresql://")
    if not _is_set():
        return psycopg2.connect(plain, **options)
    return with_password(lambda password: psycopg2.connect(plain, password=password, **options))


def password(rejected: str | None = None) -> str:
    """Returns the database's password: DB_PASSWORD, or the secret's value, of which this container keeps a copy.

    Args:
        rejected: a password that the database has rejected; a copy that equals it is replaced.

    Raises:
        botocore.exceptions.ClientError: the secret can't be read.
        ValueError: the secret is JSON without a `password`.
    """
    if given := os.environ.get(PLAIN):
        return given
    path = Path(tempfile.gettempdir()) / _KEPT
    with suppress(OSError):
        # a file of another user is not ours
        if path.stat().st_uid == os.getuid() and (kept := path.read_text()) != rejected:
            return kept
    found = _read(os.environ[SECRET])
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{_KEPT}-")
    with os.fdopen(descriptor, "w") as file:
        file.write(found)
    Path(scratch).replace(path)
    return found


def _is_set() -> bool:
    return bool(os.environ.get(PLAIN) or os.environ.get(SECRET))


def _read(name: str) -> str:
    import boto3

    if name.startswith("arn:") and name.split(":")[2] == "ssm":
        value = boto3.client("ssm").get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
    else:
        value = boto3.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"]
    return password_of(str(value))


def password_of(secret: str) -> str:
    """Returns the password in a secret's value: the whole value, or the `password` of a JSON object.

    Raises:
        ValueError: the value is JSON without a `password`.
    """
    if not secret.lstrip().startswith("{"):
        return secret
    found = json.loads(secret).get("password")
    if not isinstance(found, str):
        raise ValueError(f"the secret in {SECRET} is JSON without a `password`")
    return found


def _connect(dialect: Any, record: Any, arguments: tuple[Any, ...], parameters: dict[str, Any]) -> Any:  # noqa: ARG001
    """Connects in SQLAlchemy's place (its documentation, "Generating dynamic authentication tokens")."""
    if dialect.name != "postgresql" or parameters.get("password"):
        return None
    return with_password(lambda password: dialect.connect(*arguments, **{**parameters, "password": password}))


def with_password(opened: Callable[[str], Any]) -> Any:
    """Calls `opened` with the password, and once more with the new password if the database rejects this one."""
    tried = password()
    try:
        return opened(tried)
    except _rejection() as error:
        # while connecting, psycopg2 reports no error code, only the server's message
        if "password authentication failed" not in str(error) or (now := password(rejected=tried)) == tried:
            raise
        return opened(now)


def _rejection() -> type[Exception]:
    import psycopg2

    rejection: type[Exception] = psycopg2.OperationalError
    return rejection
