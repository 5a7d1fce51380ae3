"""Checks whether the Airflow service in this container is healthy, for Docker's health check.

Usage: `python -m busco.orchestration.health scheduler|triggerer|worker|webserver|flower`.

Querying Airflow's database, or pinging the Celery worker directly, takes a fraction of a second. `airflow jobs check`
and `celery inspect ping` would each use three seconds of CPU time, and Docker repeats the check every few seconds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from http.client import HTTPConnection

from busco.orchestration import broker, database

# The maximum age of a healthy service's last heartbeat, in seconds; services send a heartbeat every five seconds
# (Airflow 2.10, scheduler_heartbeat_sec, job_heartbeat_sec).
LIMIT = 30
SERVICES = ("scheduler", "triggerer", "worker", "webserver", "flower")


def alive(service: str, dsn: str, host: str) -> bool:
    """Whether a scheduler or triggerer on this host has sent a recent heartbeat.

    Args:
        service: `scheduler` or `triggerer`.
        dsn: the URL of Airflow's database, in SQLAlchemy's or libpq's format.
    """
    with database.connect(dsn, connect_timeout=5) as connection, connection.cursor() as cursor:
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


def serves(service: str) -> bool:
    """Whether the web server in this container works, according to the body of its health page.

    Airflow's page has status 200 even if the webserver can't reach the database.

    Args:
        service: `webserver` or `flower`.
    """
    if service == "webserver":
        return bool(json.loads(_page(8080, "/health")).get("metadatabase", {}).get("status") == "healthy")
    prefix = os.environ.get("AIRFLOW__CELERY__FLOWER_URL_PREFIX", "").strip("/")
    return _page(5555, f"/{prefix}/healthcheck" if prefix else "/healthcheck") == b"OK"


def _page(port: int, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=8)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.read() if response.status == 200 else b"{}"


def main() -> int:
    """Runs the check, and returns the exit status: 0 if the service is healthy."""
    service = sys.argv[1] if len(sys.argv) == 2 else ""
    if service not in ("scheduler", "triggerer", "worker", "webserver", "flower"):
        print(
            "usage: python -m busco.orchestration.health scheduler|triggerer|worker|webserver|flower", file=sys.stderr
        )
        return 2
    host = socket.gethostname()
    if service == "worker":
        return 0 if answers(broker.url(), host) else 1
    if service in ("webserver", "flower"):
        return 0 if serves(service) else 1
    return 0 if alive(service, os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"], host) else 1


if __name__ == "__main__":
    sys.exit(main())
