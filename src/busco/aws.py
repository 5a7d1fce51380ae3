"""Creates the platform's AWS clients, with shared retry and timeout settings and the configured region and endpoint."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, RefreshableCredentials
from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.settings import Settings

log = logging.getLogger(__name__)

CLIENT_CONFIG: dict[str, Any] = {
    "retries": {"mode": "adaptive", "max_attempts": 8},
    "connect_timeout": 5,
    "read_timeout": 60,
    "max_pool_connections": 32,
    "s3": {"addressing_style": "path"},
}

_LOADER = botocore.loaders.create_loader()


def client(service: str, settings: Settings, **config: Any) -> Any:
    """Returns a boto3 client for `service`, with the platform's retries and timeouts unless `config` (options for
    botocore's Config) overrides them.

    The client is thread-safe, like all boto3 clients. It uses AWS's own endpoint if `settings.endpoint_url` is None.
    """
    return _client(service, settings.region, settings.endpoint_url, None, **config)


def publisher_client(service: str, settings: Settings, or_own: bool = False, **config: Any) -> Any:
    """Returns a client that uses the publisher role (BUSCO_PUBLISHER_ROLE_ARN), which this process assumes.

    If no role is configured, the client uses the process's own credentials. The role's credentials are refreshed before
    they expire, and shared within the process.

    Args:
        or_own: whether to fall back to the process's own credentials if the process is not allowed to assume the role.
            This is meant for people at the command line: S3 and Glue then check that person's own permissions.
        config: options for botocore's Config, as in `client`.

    Raises:
        BuscoError: this process is not allowed to assume the role, and `or_own` is False.
    """
    if not settings.publisher_role_arn:
        return client(service, settings, **config)
    try:
        given = assumed(settings.publisher_role_arn, settings.region, settings.endpoint_url)
        # refreshes credentials that are about to expire, which fails if this process can no longer assume the role
        given.get_frozen_credentials()
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("AccessDenied", "AccessDeniedException"):
            raise
        if or_own:
            log.debug("not allowed to assume %s; using this process's own credentials", settings.publisher_role_arn)
            return client(service, settings, **config)
        raise BuscoError(
            f"can't assume {settings.publisher_role_arn}: {error.response['Error'].get('Message', error)}",
            "run Airflow with the role AirflowRole from deploy/aws/ecs.yaml, the only role that can assume the "
            "publisher role, and set BUSCO_PUBLISHER_ROLE_ARN to that stack's PublisherRoleArn",
        ) from error
    return _client(service, settings.region, settings.endpoint_url, given, **config)


class _Given(CredentialProvider):  # type: ignore[misc, unused-ignore]
    """Provides existing credentials to botocore, so that it doesn't search for any."""

    METHOD = "assume-role"

    def __init__(self, credentials: Any) -> None:
        super().__init__()
        self.credentials = credentials

    def load(self) -> Any:
        return self.credentials


@lru_cache
def assumed(role: str, region: str, endpoint_url: str | None) -> Any:
    """Assumes a role and returns its credentials, which are refreshed before they expire.

    Raises:
        ClientError: this process is not allowed to assume the role.
    """
    sts = _client("sts", region, endpoint_url, None)

    def fetch() -> dict[str, str]:
        found = sts.assume_role(RoleArn=role, RoleSessionName="busco")["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }

    # fetched here rather than on first use: botocore logs any error in a refresh with its traceback, even if the error
    # is handled
    return RefreshableCredentials.create_from_metadata(fetch(), fetch, _Given.METHOD)


def _client(service: str, region: str, endpoint_url: str | None, credentials: Any, **config: Any) -> Any:
    # botocore reads megabytes of JSON for the first client of each session; with a shared loader, only once per process
    bare = botocore.session.Session()
    bare.register_component("data_loader", _LOADER)
    if credentials is not None:
        bare.register_component("credential_provider", CredentialResolver([_Given(credentials)]))
    session = boto3.session.Session(region_name=region, botocore_session=bare)
    return session.client(  # type: ignore[call-overload, unused-ignore]
        service, endpoint_url=endpoint_url, config=Config(**{**CLIENT_CONFIG, **config})
    )
