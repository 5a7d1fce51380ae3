"""One factory for AWS clients: retries, time-outs, endpoint and region from settings."""

from __future__ import annotations

from typing import Any

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config

from busco.settings import Settings

CLIENT_CONFIG: dict[str, Any] = {
    "retries": {"mode": "adaptive", "max_attempts": 8},
    "connect_timeout": 5,
    "read_timeout": 60,
    "max_pool_connections": 32,
    "s3": {"addressing_style": "path"},
}

_LOADER = botocore.loaders.create_loader()


def client(service: str, settings: Settings, **config: Any) -> Any:
    """A boto3 client of `service` with the platform's retries and time-outs, or those in `config` (botocore's).

    Thread-safe, as boto3's clients are. `endpoint_url` None means AWS's own.
    """
    # botocore reads megabytes of JSON for each session's first client: here once for the process
    bare = botocore.session.Session()
    bare.register_component("data_loader", _LOADER)
    session = boto3.session.Session(region_name=settings.region, botocore_session=bare)
    return session.client(  # type: ignore[call-overload, unused-ignore]
        service, endpoint_url=settings.endpoint_url, config=Config(**{**CLIENT_CONFIG, **config})
    )
