"""One factory for AWS clients: retries, time-outs, endpoint and region from settings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, DeferredRefreshableCredentials
from botocore.exceptions import ClientError

from busco.errors import BuscoError
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
    return _client(service, settings.region, settings.endpoint_url, None, **config)


def publisher_client(service: str, settings: Settings, or_own: bool = False) -> Any:
    """A client with the credentials of the role that publishes (BUSCO_PUBLISHER_ROLE_ARN), which this process assumes;
    with its own where the settings name none. They are renewed before they end, and shared by all of the process.

    Args:
        or_own: whether somebody who may not assume the role goes on as himself: a person at the command line, whose own
            rights S3 and Glue then look at.

    Raises:
        BuscoError: this process's role may not assume that one.
    """
    if not settings.publisher_role_arn:
        return client(service, settings)
    given = assumed(settings.publisher_role_arn, settings.region, settings.endpoint_url)
    try:
        given.get_frozen_credentials()
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("AccessDenied", "AccessDeniedException"):
            raise
        if or_own:
            return client(service, settings)
        raise BuscoError(
            f"{settings.publisher_role_arn} may not be assumed: {error.response['Error'].get('Message', error)}",
            "Airflow runs with AirflowRole of deploy/aws/ecs.yaml, which alone may; BUSCO_PUBLISHER_ROLE_ARN is that "
            "stack's PublisherRoleArn",
        ) from error
    return _client(service, settings.region, settings.endpoint_url, given)


class _Given(CredentialProvider):  # type: ignore[misc, unused-ignore]
    """Credentials that are there already, in place of botocore's search for some."""

    METHOD = "assume-role"

    def __init__(self, credentials: Any) -> None:
        super().__init__()
        self.credentials = credentials

    def load(self) -> Any:
        return self.credentials


@lru_cache
def assumed(role: str, region: str, endpoint_url: str | None) -> Any:
    """The credentials of a role, fetched when they are first asked for and whenever they are about to end."""
    sts = _client("sts", region, endpoint_url, None)

    def fetch() -> dict[str, str]:
        found = sts.assume_role(RoleArn=role, RoleSessionName="busco")["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }

    return DeferredRefreshableCredentials(fetch, _Given.METHOD)


def _client(service: str, region: str, endpoint_url: str | None, credentials: Any, **config: Any) -> Any:
    # botocore reads megabytes of JSON for each session's first client: here once for the process
    bare = botocore.session.Session()
    bare.register_component("data_loader", _LOADER)
    if credentials is not None:
        bare.register_component("credential_provider", CredentialResolver([_Given(credentials)]))
    session = boto3.session.Session(region_name=region, botocore_session=bare)
    return session.client(  # type: ignore[call-overload, unused-ignore]
        service, endpoint_url=endpoint_url, config=Config(**{**CLIENT_CONFIG, **config})
    )
