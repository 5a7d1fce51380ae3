"""The webserver's access log, escaped by `busco.text`: clients can send anything as a path or a header.

GUNICORN_CMD_ARGS (`--logger-class`) makes gunicorn use it; Airflow's command leaves that variable alone.
"""

from __future__ import annotations

from typing import Any

from gunicorn import glogging

from busco.text import printable


class Logger(glogging.Logger):  # type: ignore[misc, unused-ignore]
    """gunicorn's logger, with each part of a line escaped."""

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        made = super().atoms(resp, req, environ, request_time)
        return {name: printable(value) if isinstance(value, str) else value for name, value in made.items()}
