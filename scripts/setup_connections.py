#!/usr/bin/env python3
"""Makes Airflow's connections and variables as the environment says (.env). Safe to run twice: what is right stays.

AIRFLOW_CONNECTIONS  JSON: id → a URI, or an object of conn_type, host, login, password, schema, port, extra
AIRFLOW_VARIABLES    JSON: name → value

Connections and variables of other names are left alone. No value is ever printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

FIELDS = ("conn_type", "description", "host", "login", "password", "schema", "port", "extra")


def main() -> int:
    """Gives the exit status: 2 where the environment can't be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        connections, variables = read("AIRFLOW_CONNECTIONS"), read("AIRFLOW_VARIABLES")
        wanted = {name: connection(name, said) for name, said in connections.items()}
    except ValueError as error:
        print(f"setup_connections: {error}", file=sys.stderr)
        return 2
    changed = [f"connection {name}" for name in keep_connections(wanted)]
    changed += [f"variable {name}" for name in keep_variables(variables)]
    print(f"setup_connections: {', '.join(changed) if changed else 'nothing to change'}")
    return 0


def read(name: str) -> dict[str, Any]:
    """The JSON object in a variable of the environment, empty where it is not set.

    Raises:
        ValueError: it is none; what stands there is not told, since it may be a secret.
    """
    text = os.environ.get(name, "").strip()
    try:
        found = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON (line {error.lineno}, column {error.colno})") from None
    if not isinstance(found, dict):
        raise ValueError(f'{name} is no JSON object: {{"name": …}}')
    return found


def connection(name: str, said: object) -> Any:
    """A connection of Airflow's.

    Raises:
        ValueError: it is neither a URI nor an object of known fields.
    """
    from airflow.models import Connection

    if isinstance(said, str):
        return Connection(conn_id=name, uri=said)
    if not isinstance(said, dict):
        raise ValueError(f"AIRFLOW_CONNECTIONS: {name} is neither a URI nor an object")
    if unknown := sorted(said.keys() - set(FIELDS)):
        raise ValueError(f"AIRFLOW_CONNECTIONS: {name} has {', '.join(unknown)}; known are {', '.join(FIELDS)}")
    return Connection(conn_id=name, **{field: _text(field, said[field]) for field in said})


def _text(field: str, value: object) -> object:
    return json.dumps(value) if field == "extra" and not isinstance(value, str) else value


def keep_connections(wanted: dict[str, Any]) -> list[str]:
    """Makes or mends connections; gives the names of those that were not as they should be."""
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
    """Makes or mends variables; gives the names of those that were not as they should be."""
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
