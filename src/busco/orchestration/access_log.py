"""Escapes the webserver's access log (`busco.text`), since clients can send anything as a path or a header.

gunicorn uses the class below because GUNICORN_CMD_ARGS specifies it (`--logger-class`); Airflow's command, which starts
gunicorn, does not change that variable.
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
