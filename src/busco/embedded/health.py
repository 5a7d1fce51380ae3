"""Checks the health of the container that serves the local AWS; Docker runs `python -m busco.embedded.health`.

The check runs every few seconds while the container is running, so it imports only the standard library and takes
0.05 s of CPU time. As a `busco` command that imported boto3, it took 0.6 s.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

_TIMEOUT = 8.0  # seconds; less than the health check's own timeout in docker-compose.yml


def record(state: Path) -> Path:
    """Returns the path of a file that exists while everything is running, and contains `serve`'s pid and endpoint."""
    return state / "run" / "serve.ready.json"


def is_ready(state: Path) -> bool:
    """Whether `serve` has started everything, and the local AWS responds."""
    try:
        ready = json.loads(record(state).read_text())
        os.kill(int(ready["pid"]), 0)
        connection = http.client.HTTPConnection(urlsplit(ready["endpoint"]).netloc, timeout=_TIMEOUT)
        connection.request("GET", "/_busco/identity?nonce=health")
        return connection.getresponse().status == 200
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_ready(Path(os.environ["BUSCO_STATE_DIR"])) else 1)
