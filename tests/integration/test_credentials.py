"""Runs are not affected when the credentials of their container's role expire."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import duckdb
import pytest
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.exceptions import ClientError

from busco.lake import credentials, engine
from busco.settings import get_settings, read_env_file
from tests.expiring import Expiring, expiring
from tests.integration.own_aws import wait_for
from tests.platforms import Platform

# botocore stores the expiry time in whole seconds and, shortly before it, tries to renew at most every two seconds
SECONDS = 8.0


@contextmanager
def in_container(platform: Platform, seconds: float) -> Iterator[Expiring]:
    """Provides the environment of a container on AWS, with an S3 that refuses expired keys."""
    own = read_env_file(platform.settings.state / "aws.env")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    kept |= {name: value for name, value in own.items() if name.startswith("BUSCO_")}
    owner = Credentials(own["AWS_ACCESS_KEY_ID"], own["AWS_SECRET_ACCESS_KEY"])
    with expiring(seconds, str(platform.settings.endpoint_url), owner) as container:
        changed = {**kept, **container.variables, "BUSCO_PLATFORM": "aws", "BUSCO_ENDPOINT_URL": container.s3}
        with mock.patch.dict(os.environ, changed, clear=True):
            get_settings.cache_clear()
            yield container
    get_settings.cache_clear()


def renewals() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "duckdb-credentials"]


FILES = 50
PARTS = f"""{{{{ config(partition_by=['part']) }}}}
select i::integer as id, (i // 10)::integer as part from range({10 * FILES}) t(i)"""
TOTALS = "select part // 10 as part, sum(id)::bigint as ids from {{ ref('parts') }} group by all"
TOTAL = "select sum(ids)::bigint as ids from {{ ref('totals') }}"


@pytest.mark.long
def test_a_run_and_a_single_statement_can_outlast_several_sets_of_credentials(mini: Platform) -> None:
    mini.model("silver/parts", PARTS)
    mini.model("silver/totals", TOTALS)
    mini.model("gold/total", TOTAL)
    with in_container(mini, SECONDS) as container:
        # one statement opens these files one after another, which takes longer than the lifetime of two keys
        container.slow["silver/parts"] = 0.25
        mini.busco("dbt", "build", "--publish", "--select", "parts totals total")
        expired = [key for key in container.used if container.keys[key] < time.time()]
    assert not container.refused
    assert len(expired) >= 2, "the run ended before enough keys had expired"
    assert mini.duckdb("select ids from busco_gold.total") == [(sum(range(10 * FILES)),)]


def test_a_connection_gets_new_keys_before_the_old_ones_expire(mini: Platform) -> None:
    with in_container(mini, SECONDS) as container:
        connection = engine.connect(get_settings())
        in_transaction = connection.cursor()
        in_transaction.execute("begin")

        def key(cursor: duckdb.DuckDBPyConnection) -> str:
            (found,) = cursor.execute("select current_setting('s3_access_key_id')").fetchall()
            return str(found[0])

        first = key(in_transaction)
        wait_for(lambda: key(in_transaction) != first, limit=SECONDS)
        assert time.time() < container.keys[first]
        assert key(connection.cursor()) == key(connection)


def test_keys_are_renewed_after_aws_has_refused_a_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = ClientError({"Error": {"Code": "Throttling", "Message": "rate exceeded"}}, "AssumeRole")
    source = mock.Mock(spec=RefreshableCredentials)
    source.get_frozen_credentials.side_effect = itertools.chain(
        [refusal], itertools.repeat(ReadOnlyCredentials("new", "s", "t"))
    )
    monkeypatch.setattr(credentials, "_SOON", 0.01)
    with duckdb.connect() as connection:
        connection.execute(f"load '{engine.extension_file('httpfs')}'")
        credentials._Renewal(connection, source, None).start()
        wait_for(lambda: connection.cursor().sql("select current_setting('s3_access_key_id')").fetchall() == [("new",)])


def test_the_renewal_thread_of_a_deleted_connection_ends(mini: Platform) -> None:
    with in_container(mini, SECONDS):
        connection = engine.connect(get_settings())
        assert renewals()
        del connection
        gc.collect()
        wait_for(lambda: not renewals())


def test_keys_that_do_not_expire_are_not_renewed(mini: Platform) -> None:
    with engine.connect(mini.settings):
        assert not renewals()
