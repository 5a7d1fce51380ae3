"""Prints the URL of Celery's broker: `python -m busco.orchestration.broker`, for AIRFLOW__CELERY__BROKER_URL_CMD.

The URL is built here and not in a Compose file because the password may contain any character.
"""

from __future__ import annotations

import os
from urllib.parse import quote


def url() -> str:
    """Returns the broker's URL: Airflow's own setting, or the stack's Redis with the password in REDIS_PASSWORD."""
    if given := os.environ.get("AIRFLOW__CELERY__BROKER_URL"):
        return given
    return f"redis://:{quote(os.environ.get('REDIS_PASSWORD', ''), safe='')}@redis:6379/0"


if __name__ == "__main__":
    print(url())
