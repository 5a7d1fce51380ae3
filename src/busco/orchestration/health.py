"""Checks whether the Airflow service in this container is healthy, for Docker's health check.

Usage: `python -m busco.orchestration.health scheduler|triggerer|worker`.

Querying Airflow's database, or pinging the Celery worker directly, takes a fraction of a second. `airflow jobs check`
and `celery inspect ping` would each use three seconds of CPU time, and Docker repeats the check every few seconds.
"""

from __future__ import annotations

import os
import socket
import sys

# The maximum age of a healthy service's last heartbeat, in seconds; services send a heartbeat every five seconds
# (Airflow 2.10, scheduler_heartbeat_sec, job_heartbeat_sec).
LIMIT = 30


def alive(service: str, dsn: str, host: str) -> bool:
    """Whether a scheduler or triggerer on this host has sent a recent heartbeat.

    Args:
        service: `scheduler` or `triggerer`.
        dsn: the URL of Airflow's database, in SQLAlchemy's or libpq's format.
    """
    import psycopg2

    plain = dsn.replace("postgresql+psycopg2://", "postgresql://")
    with psycopg2.connect(plain, connect_timeout=5) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select 1 from job where job_type = %s and hostname = %s and state = 'running'"
            " and latest_heartbeat > now() - make_interval(secs => %s) limit 1",
            [f"{service.capitalize()}Job", host, LIMIT],
        )
        return cursor.fetchone() is not None


def answers(broker: str, host: str) -> bool:
    """Whether the Celery worker on this host responds.

    Args:
        broker: the URL of Celery's broker.
    """
    from celery import Celery

    app = Celery(broker=broker, broker_connection_timeout=5)
    return bool(app.control.ping(destination=[f"celery@{host}"], timeout=5))


def main() -> int:
    """Runs the check, and returns the exit status: 0 if the service is alive."""
    service = sys.argv[1] if len(sys.argv) == 2 else ""
    if service not in ("scheduler", "triggerer", "worker"):
        print("usage: python -m busco.orchestration.health scheduler|triggerer|worker", file=sys.stderr)
        return 2
    host = socket.gethostname()
    if service == "worker":
        return 0 if answers(os.environ["AIRFLOW__CELERY__BROKER_URL"], host) else 1
    return 0 if alive(service, os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"], host) else 1


if __name__ == "__main__":
    sys.exit(main())
