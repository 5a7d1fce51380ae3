"""Keeps DuckDB's S3 credentials in sync with those of this process while a connection is open."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any
from urllib.parse import urlparse

import boto3
import duckdb
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError

from busco.errors import BuscoError
from busco.lake.types import literal
from busco.settings import Settings

log = logging.getLogger(__name__)

# botocore refreshes credentials only when they are requested, and only if they expire within 15 minutes. So they are
# requested twice a minute, and more often if they are about to expire (because the credentials endpoint has failed, or
# because they are valid for only a few seconds).
_OFTEN, _SOON, _NEAR = 30.0, 2.0, 60
# The settings that are updated on renewal; `engine.close` leaves them writable when it locks the configuration.
RENEWED = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")


def give(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Configures DuckDB with this process's AWS credentials, endpoint and region.

    Credentials that expire are renewed for all connections to the same database until the last one is closed.

    The credentials are stored in global settings, which DuckDB reads each time it opens a file. They are not stored in
    a secret, because a secret is a catalog entry: a transaction keeps using the secret that existed when it started,
    however long it runs.

    Raises:
        BuscoError: no credentials were found.
    """
    credentials = boto3.session.Session(region_name=settings.region).get_credentials()
    if credentials is None:
        raise BuscoError("no AWS credentials found", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    options = {"s3_region": settings.region}
    if settings.endpoint_url:
        options |= {"s3_endpoint": urlparse(settings.endpoint_url).netloc, "s3_url_style": "path"}
    plain = settings.endpoint_url is not None and settings.endpoint_url.startswith("http://")
    connection.execute(_set_sql(options) + f"; set global s3_use_ssl = {str(not plain).lower()}")
    given = credentials.get_frozen_credentials()
    connection.execute(_keys_sql(given))
    if isinstance(credentials, RefreshableCredentials):
        _Renewal(connection, credentials, given).start()


class _Renewal(threading.Thread):
    """Updates a database's credentials whenever those of this process change."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, credentials: Any, given: Any) -> None:
        super().__init__(name="duckdb-credentials", daemon=True)
        self._credentials, self._given = credentials, given
        # A strong reference would keep the connection open forever.
        self._connection = weakref.ref(connection)
        self._ended = threading.Event()
        weakref.finalize(connection, self._ended.set)

    def run(self) -> None:
        while not self._ended.wait(_SOON if self._credentials.refresh_needed(refresh_in=_NEAR) else _OFTEN):
            try:
                fresh = self._credentials.get_frozen_credentials()
            except (BotoCoreError, ClientError, OSError, KeyError, ValueError) as error:
                # botocore has already retried; the current credentials may still be valid for a while.
                log.warning("could not renew the AWS credentials, will retry: %s", error)
                continue
            if fresh != self._given and not self._give(fresh):
                return

    def _give(self, fresh: Any) -> bool:
        connection = self._connection()
        if connection is None:
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute(_keys_sql(fresh))
        except duckdb.ConnectionException:
            # The connection was closed.
            return False
        self._given = fresh
        return True


def _keys_sql(frozen: Any) -> str:
    keys = (frozen.access_key, frozen.secret_key, frozen.token or "")
    return _set_sql(dict(zip(RENEWED, keys, strict=True)))


def _set_sql(options: dict[str, str]) -> str:
    return "; ".join(f"set global {name} = {literal(value)}" for name, value in options.items())
