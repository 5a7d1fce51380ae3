#!/usr/bin/env python3
"""Creates and updates Airflow's connections and variables from the environment (.env). Safe to run twice.

AIRFLOW_CONNECTIONS  JSON: id → a URI, or an object with conn_type, host, login, password, schema, port, extra
AIRFLOW_VARIABLES    JSON: name → value

Other connections and variables are left alone. Values are never printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

FIELDS = ("conn_type", "description", "host", "login", "password", "schema", "port", "extra")


def main() -> int:
    """Creates and updates connections and variables; returns the exit status: 2 if the environment can't be parsed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        connections, variables = read("AIRFLOW_CONNECTIONS"), read("AIRFLOW_VARIABLES")
        wanted = {name: connection(name, given) for name, given in connections.items()}
    except ValueError as error:
        print(f"setup_connections: {error}", file=sys.stderr)
        return 2
    changed = [f"connection {name}" for name in keep_connections(wanted)]
    changed += [f"variable {name}" for name in keep_variables(variables)]
    print(f"setup_connections: {', '.join(changed) if changed else 'nothing to change'}")
    return 0


def read(name: str) -> dict[str, Any]:
    """Returns the JSON object in an environment variable; an empty object if the variable is not set.

    Raises:
        ValueError: the value isn't a JSON object; the message doesn't show it because it may be secret.
    """
    text = os.environ.get(name, "").strip()
    try:
        found = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not valid JSON (line {error.lineno}, column {error.colno})") from None
    if not isinstance(found, dict):
        raise ValueError(f'{name} is not a JSON object like {{"name": …}}')
    return found


def connection(name: str, given: object) -> Any:
    """Builds an Airflow connection.

    Raises:
        ValueError: `given` is neither a URI nor an object that has only known fields.
    """
    from airflow.models import Connection

    if isinstance(given, str):
        return Connection(conn_id=name, uri=given)
    if not isinstance(given, dict):
        raise ValueError(f"AIRFLOW_CONNECTIONS: {name} is neither a URI nor an object")
    if unknown := sorted(given.keys() - set(FIELDS)):
        valid = ", ".join(FIELDS)
        raise ValueError(f"AIRFLOW_CONNECTIONS: {name} has unknown fields: {', '.join(unknown)}; valid fields: {valid}")
    return Connection(conn_id=name, **{field: _text(field, given[field]) for field in given})


def _text(field: str, value: object) -> object:
    return json.dumps(value) if field == "extra" and not isinstance(value, str) else value


def keep_connections(wanted: dict[str, Any]) -> list[str]:
    """Creates or updates connections; returns the names of those that changed."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    changed = []
    with create_session() as session:
        known = {one.conn_id: one for one in session.query(Connection).filter(Connection.conn_id.in_(wanted or [""]))}
        for name, made in wanted.items():
            old = known.get(name)
            if old is not None and all(getattr(old, field) == getattr(made, field) for field in FIELDS):
                continue
            if old is not None:
                session.delete(old)
                session.flush()
            session.add(made)
            changed.append(name)
    return changed


def keep_variables(wanted: dict[str, Any]) -> list[str]:
    """Creates or updates variables; returns the names of those that changed."""
    from airflow.models import Variable

    changed = []
    for name, value in wanted.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if Variable.get(name, default_var=None) != text:
            Variable.set(name, text)
            changed.append(name)
    return changed


if __name__ == "__main__":
    raise SystemExit(main())
