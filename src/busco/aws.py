"""One factory for AWS clients: retries, time-outs, endpoint and region from settings."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.config import Config

from busco.settings import Settings

CLIENT_CONFIG: dict[str, Any] = {
    "retries": {"mode": "adaptive", "max_attempts": 8},
    "connect_timeout": 5,
    "read_timeout": 60,
    "max_pool_connections": 32,
    "s3": {"addressing_style": "path"},
}


def client(service: str, settings: Settings) -> Any:
    """A boto3 client of `service` with the platform's retries and time-outs.

    Thread-safe, as boto3's clients are. `endpoint_url` None means AWS's own.
    """
    session = boto3.session.Session(region_name=settings.region)
    return session.client(  # type: ignore[call-overload, unused-ignore]
        service, endpoint_url=settings.endpoint_url, config=Config(**CLIENT_CONFIG)
    )
