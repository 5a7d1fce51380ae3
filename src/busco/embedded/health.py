"""The Docker health check of the container that serves the local AWS: `python -m busco.embedded.health`.

It runs every few seconds for as long as the container does, so it imports nothing but the standard library: with the
command `busco` and boto3 each check took 0.6 s of CPU time, now it takes 0.05 s.
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
    """Returns the file that exists while `serve` has everything running: its process id and the endpoint."""
    return state / "run" / "serve.ready.json"


def is_ready(state: Path) -> bool:
    """Whether the local AWS in the foreground has started completely and responds."""
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
