"""Checks what Airflow's services need besides AWS: keys, the database, Celery's broker.

These checks run only in Airflow's environment. They read Airflow's own variables, AIRFLOW__<SECTION>__<KEY>. They are
skipped in a process without these variables, because it is not an Airflow service, and on the embedded platform,
which has its own keys and database, and no broker.
"""

from __future__ import annotations

import os

from busco.doctor import Skipped, Surroundings
from busco.errors import BuscoError
from busco.orchestration.access import refuse_known
from busco.orchestration.broker import url as broker_url
from busco.text import count

_FERNET, _SECRET = "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY"
_DATABASE, _BROKER = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CELERY__BROKER_URL"
_NEW_KEY = "generate one: python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
_SHORT = 16  # characters; a shorter secret can be guessed
_LIMIT = 5  # seconds to wait for a server


def _service(around: Surroundings) -> None:
    """Raises Skipped if this process is not set up as an Airflow service."""
    if around.settings.platform == "embedded" or not os.environ.get(_DATABASE):
        raise Skipped(f"{_DATABASE} is not set, so this is not an Airflow service")


def keys(around: Surroundings) -> str:
    """The key for connections is valid, a secret signs sessions, and the admin's password is not a well-known one."""
    from cryptography.fernet import Fernet

    _service(around)
    fernet, secret = _value(_FERNET), _value(_SECRET)
    if not fernet:
        raise BuscoError(f"{_FERNET} is not set: connections would be stored in the database unencrypted", _NEW_KEY)
    try:
        # during a rotation, there are several keys, separated by commas (Airflow docs, "Rotating encryption keys")
        for one in fernet.split(","):
            Fernet(one.strip().encode())
    except ValueError as error:
        raise BuscoError(f"{_FERNET} is not a valid key: {error}", _NEW_KEY) from error
    if len(secret) < _SHORT:
        what = f"has fewer than {_SHORT} characters" if secret else "is not set"
        raise BuscoError(
            f"{_SECRET} {what}: sessions could be forged",
            "set it to a random value, the same for all webservers: openssl rand -hex 24",
        )
    refuse_known(os.environ.get("AIRFLOW_ADMIN_PASSWORD", "-"))
    return f"{_FERNET} and {_SECRET} are set"


def _value(name: str) -> str:
    """Returns one of Airflow's settings from its variable, or, as Airflow does, from the secret that it names."""
    if not os.environ.get(f"{name}_SECRET"):
        return os.environ.get(name, "")
    from airflow.configuration import conf

    _, section, key = name.lower().split("__")
    return str(conf.get(section, key))


def database(around: Surroundings) -> str:
    """Airflow's database responds and has the tables of this Airflow version, and its connections can be decrypted."""
    _service(around)
    from airflow.utils.db import check_migrations
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import OperationalError, ProgrammingError

    url = make_url(os.environ[_DATABASE])
    wait = {"connect_timeout": _LIMIT} if url.get_backend_name() == "postgresql" else {}
    engine = create_engine(url, connect_args=wait)
    where = f"{url.host}:{url.port or 5432}/{url.database}"
    try:
        with engine.connect() as connection:
            revision = connection.execute(text("select version_num from alembic_version")).scalar()
            connections = connection.execute(text("select count(*) from connection")).scalar()
    except ProgrammingError as error:
        raise BuscoError(f"{where} has no Airflow tables", "create them: scripts/entrypoint.sh init") from error
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[-1]
        raise BuscoError(
            f"{where}: {reason}", f"check that it is running, and check {_DATABASE} (host, user, password)"
        ) from error
    finally:
        engine.dispose()
    try:
        check_migrations(0)  # type: ignore[no-untyped-call]
    except TimeoutError as error:
        raise BuscoError(
            f"{where} has Airflow tables at revision {revision}, which does not match this Airflow version",
            "update them: scripts/entrypoint.sh init",
        ) from error
    return f"{where}: tables at {revision}, {_readable()} of {connections} connections can be decrypted"


def _readable() -> int:
    """Decrypts the connections in the database; returns their number.

    Raises:
        BuscoError: some of them can't be decrypted with this process's key.
    """
    from airflow.models import Connection
    from airflow.utils.session import create_session
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet

    # without a key, a new one decrypts nothing
    keys = [Fernet(one.strip().encode()) for one in _value(_FERNET).split(",") if one.strip()]
    key = MultiFernet(keys or [Fernet(Fernet.generate_key())])
    columns = Connection.__table__.c
    good, closed = 0, []
    with create_session() as session:
        # only the columns: a Connection decrypts its password as soon as it is loaded, and then none could be listed
        for row in session.query(columns.conn_id, columns.password, columns.extra, columns.is_encrypted,
                                 columns.is_extra_encrypted):  # fmt: skip
            texts = ((row.password, row.is_encrypted), (row.extra, row.is_extra_encrypted))
            try:
                for value, is_encrypted in texts:
                    if value and is_encrypted:
                        key.decrypt(value.encode())
                good += 1
            except InvalidToken:
                closed.append(str(row.conn_id))
    if closed:
        raise BuscoError(
            f"{count(len(closed), 'connection')} can't be decrypted with this {_FERNET}: {', '.join(closed)}",
            "append the key that encrypted them to this one, after a comma; or recreate them: "
            "scripts/setup_connections.py",
        )
    return good


def broker(around: Surroundings) -> str:
    """Celery's broker responds, and so does at least one worker."""
    _service(around)
    is_set = os.environ.get(_BROKER) or os.environ.get(f"{_BROKER}_CMD")
    if os.environ.get("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor") != "CeleryExecutor" or not is_set:
        raise Skipped(
            "Celery is not used: the executor is not CeleryExecutor, or AIRFLOW__CELERY__BROKER_URL is not set"
        )
    from celery import Celery
    from kombu.exceptions import OperationalError

    app = Celery(broker=broker_url())
    app.conf.update(
        broker_connection_timeout=_LIMIT,
        broker_transport_options={"socket_connect_timeout": _LIMIT, "socket_timeout": _LIMIT},
    )
    try:
        with app.connection_for_write() as connection:
            where = connection.as_uri()
            connection.ensure_connection(max_retries=1, timeout=_LIMIT)
            answers = app.control.ping(timeout=2, connection=connection)
    except (OperationalError, OSError) as error:
        raise BuscoError(
            f"{where}: {error}", f"check that it is running, and check {_BROKER} (host, password)"
        ) from error
    names = sorted(name for answer in answers for name in answer)
    if not names:
        raise BuscoError(f"{where} responds, but no worker does", "start one: docker compose up -d airflow-worker")
    return f"{where}: {count(len(names), 'worker')} responding ({', '.join(names)})"
