"""The webserver's access log, shown as `busco.text` says: addresses and headers are whatever a client sends.

gunicorn is told of it by GUNICORN_CMD_ARGS (`--logger-class`), which Airflow's command leaves alone.
"""

from __future__ import annotations

from typing import Any

from gunicorn import glogging

from busco.text import printable


class Logger(glogging.Logger):  # type: ignore[misc, unused-ignore]
    """gunicorn's, with each part of a line escaped."""

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        made = super().atoms(resp, req, environ, request_time)
        return {name: printable(value) if isinstance(value, str) else value for name, value in made.items()}
