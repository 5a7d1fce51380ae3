"""What Airflow's services need beside AWS: keys, the database, Celery's broker; Airflow's environment only.

Asked are the variables that Airflow itself reads, AIRFLOW__<SECTION>__<KEY>. Who has none is no service of Airflow's;
the embedded platform has keys and a database of its own, and no broker.
"""

from __future__ import annotations

import os

from busco.doctor import Skipped, Surroundings
from busco.errors import BuscoError
from busco.orchestration.access import refuse_known

_FERNET, _SECRET = "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__WEBSERVER__SECRET_KEY"
_DATABASE, _BROKER = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CELERY__BROKER_URL"
_NEW_KEY = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
_SHORT = 16  # characters; fewer can be guessed
_LIMIT = 5  # seconds to reach a server


def _service(around: Surroundings) -> None:
    """Raises Skipped where this process has nothing of a service of Airflow's."""
    if around.settings.platform == "embedded" or not os.environ.get(_DATABASE):
        raise Skipped(f"{_DATABASE} is not set: no service of Airflow's")


def keys(around: Surroundings) -> str:
    """The key of connections is one, sessions are signed with a secret, and no login is known to everybody."""
    from cryptography.fernet import Fernet

    _service(around)
    fernet, secret = os.environ.get(_FERNET, ""), os.environ.get(_SECRET, "")
    if not fernet:
        raise BuscoError(f"{_FERNET} is not set: connections would lie in the database as they are", _NEW_KEY)
    try:
        # several with commas between them while one is replaced (Airflow docs, "Rotating encryption keys")
        for one in fernet.split(","):
            Fernet(one.strip().encode())
    except ValueError as error:
        raise BuscoError(f"{_FERNET} is none: {error}", _NEW_KEY) from error
    if len(secret) < _SHORT:
        what = f"has fewer than {_SHORT} characters" if secret else "is not set"
        raise BuscoError(
            f"{_SECRET} {what}: sessions could be forged",
            "set it to a random one, the same for all webservers: openssl rand -hex 24",
        )
    refuse_known(os.environ.get("AIRFLOW_ADMIN_PASSWORD", "-"))
    return f"{_FERNET} and {_SECRET} are set"


def database(around: Surroundings) -> str:
    """Airflow's database answers, has Airflow's tables in the version of this one, and its secrets can be read."""
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
        raise BuscoError(f"{where} has no tables of Airflow's", "scripts/entrypoint.sh init makes them") from error
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[-1]
        raise BuscoError(f"{where}: {reason}", f"does it run? is {_DATABASE} right (host, user, password)?") from error
    finally:
        engine.dispose()
    try:
        check_migrations(0)  # type: ignore[no-untyped-call]
    except TimeoutError as error:
        raise BuscoError(
            f"{where} has Airflow's tables at revision {revision}, which is not this version's",
            "scripts/entrypoint.sh init brings them up to date",
        ) from error
    return f"{where}: tables at {revision}, {_readable()} of {connections} connections can be read"


def _readable() -> int:
    """How many connections of the database this process has the key of.

    Raises:
        BuscoError: of some it has not.
    """
    from airflow.exceptions import AirflowException
    from airflow.models import Connection
    from airflow.utils.session import create_session
    from cryptography.fernet import InvalidToken

    good, closed = 0, []
    with create_session() as session:
        for one in session.query(Connection):
            try:
                one.get_password()
                one.get_extra()
                good += 1
            except (InvalidToken, AirflowException):
                closed.append(str(one.conn_id))
    if closed:
        raise BuscoError(
            f"the connections {', '.join(closed)} were written with another {_FERNET}",
            "add that key behind this one, with a comma between them; or make them anew: scripts/setup_connections.py",
        )
    return good


def broker(around: Surroundings) -> str:
    """Celery's broker answers, and so do workers."""
    _service(around)
    if os.environ.get("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor") != "CeleryExecutor" or not os.environ.get(_BROKER):
        raise Skipped("no Celery: AIRFLOW__CELERY__BROKER_URL is not set")
    from celery import Celery
    from kombu.exceptions import OperationalError

    app = Celery(broker=os.environ[_BROKER])
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
        raise BuscoError(f"{where}: {error}", f"does it run? is {_BROKER} right (host, password)?") from error
    names = sorted(name for answer in answers for name in answer)
    if not names:
        raise BuscoError(f"{where} answers, but no worker does", "start one: docker compose up -d airflow-worker")
    return f"{where}: {len(names)} workers answer ({', '.join(names)})"
