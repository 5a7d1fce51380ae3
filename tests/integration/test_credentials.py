"""Credentials of a container's role expire; a run that lasts longer does not notice."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from busco.lake import engine
from busco.settings import get_settings, read_env_file
from tests.expiring import Expiring, expiring
from tests.integration.own_aws import wait_for
from tests.platforms import Platform

# botocore keeps the time of expiry in whole seconds, and asks at most every two seconds where it is near
SECONDS = 8.0


@contextmanager
def in_container(platform: Platform, seconds: float) -> Iterator[Expiring]:
    """What runs within has the environment of a container on AWS, whose S3 refuses keys that have expired."""
    own = read_env_file(platform.settings.state / "aws.env")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    kept |= {name: value for name, value in own.items() if name.startswith("BUSCO_")}
    with expiring(seconds, str(platform.settings.endpoint_url)) as given:
        changed = {**kept, **given.variables, "BUSCO_PLATFORM": "aws", "BUSCO_ENDPOINT_URL": given.s3}
        with mock.patch.dict(os.environ, changed, clear=True):
            get_settings.cache_clear()
            yield given
    get_settings.cache_clear()


def renewals() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "duckdb-credentials"]


FILES = 60
PARTS = f"""{{{{ config(partition_by=['part']) }}}}
select i::integer as id, (i // 10)::integer as part from range({10 * FILES}) t(i)"""
TOTALS = "select part // 10 as part, sum(id)::bigint as ids from {{ ref('parts') }} group by all"
TOTAL = "select sum(ids)::bigint as ids from {{ ref('totals') }}"


def test_a_run_and_a_statement_that_last_over_several_expiries_are_green(mini: Platform) -> None:
    mini.model("silver/parts", PARTS)
    mini.model("silver/totals", TOTALS)
    mini.model("silver/total", TOTAL)
    with in_container(mini, SECONDS) as given:
        given.slow["silver/parts"] = 0.25
        printed = mini.busco("dbt", "build", "--select", "parts totals total")
        print(printed, given.used, given.refused, given.keys)
    assert not given.refused
    assert len(given.used) > 2, "the run was over before two keys had expired"
    assert mini.duckdb("select ids from busco_silver.total") == [(sum(range(10 * FILES)),)]
