"""DuckDB's S3 credentials, kept those of this process for as long as a connection lives."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any
from urllib.parse import urlparse

import boto3
import duckdb
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import BotoCoreError

from busco.errors import BuscoError
from busco.lake.types import literal
from busco.settings import Settings

log = logging.getLogger(__name__)

# botocore fetches new credentials once the old ones have 15 minutes left, whenever it is asked: so it is asked twice a
# minute, and more often where the end is near (an endpoint that failed, credentials of seconds).
_OFTEN, _SOON, _NEAR = 30.0, 2.0, 60
# The settings that are set again and again; they stay open where all others are locked (`engine.close`).
RENEWED = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")


def give(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Gives DuckDB this process's AWS credentials, endpoint and region; credentials that expire are renewed in all
    connections of the same database until the last of them is gone.

    They are global settings, not a secret: a secret is a catalog entry, and a transaction goes on with the one that it
    began with, as long as it runs. A setting is read whenever a file is opened.

    Raises:
        BuscoError: there are no credentials.
    """
    credentials = boto3.session.Session(region_name=settings.region).get_credentials()
    if credentials is None:
        raise BuscoError("no AWS credentials found", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret")
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
    """Gives a database new credentials whenever this process has others."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, credentials: Any, given: Any) -> None:
        super().__init__(name="duckdb-credentials", daemon=True)
        self._credentials, self._given = credentials, given
        # not the connection itself, which would then never end
        self._connection = weakref.ref(connection)
        self._ended = threading.Event()
        weakref.finalize(connection, self._ended.set)

    def run(self) -> None:
        while not self._ended.wait(_SOON if self._credentials.refresh_needed(refresh_in=_NEAR) else _OFTEN):
            try:
                fresh = self._credentials.get_frozen_credentials()
            except (BotoCoreError, OSError, KeyError, ValueError) as error:
                # botocore has tried several times; those at hand may still be good for a while
                log.warning("AWS credentials could not be renewed, tried again soon: %s", error)
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
            # closed
            return False
        self._given = fresh
        return True


def _keys_sql(frozen: Any) -> str:
    keys = (frozen.access_key, frozen.secret_key, frozen.token or "")
    return _set_sql(dict(zip(RENEWED, keys, strict=True)))


def _set_sql(options: dict[str, str]) -> str:
    return "; ".join(f"set global {name} = {literal(value)}" for name, value in options.items())
