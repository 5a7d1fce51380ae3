"""The platform's writes to the lake, as S3 receives them: records with a condition, data files without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from unittest import mock

import pytest

from busco.cli.data import _answer
from busco.cli.releases import show_glue
from busco.doctor import Surroundings
from busco.doctor import aws as doctor
from busco.events.consumer import new_order
from busco.ingest.orders import carry_out
from busco.lake import releases, replays
from busco.lake.layout import SWAPPED, WRITTEN_ONCE, ingest_order
from busco.lake.records import Selection
from busco.projects import all_contracts
from busco.settings import get_settings
from busco.warehouse.dbt import ensure_manifests
from tests.airflow.fault_proxy import Proxy
from tests.loopback import PROXY_PORT, serving
from tests.platforms import ENVIRONMENT, Platform, csv_text

HEADER = ("id", "customer", "amount", "day", "n")
# written only by Airflow's triggerer: tests/airflow checks them with an in-memory store, tests/ecs on the wire
BY_AIRFLOW = {"_lake/env/*/runs/*/ended-*.json", "_lake/env/*/runs/*/followers/*"}
# written only if there are several dbt projects, by the same function as docs/index.html
OF_SEVERAL = {"docs/projects/*"}
# written only for runs that were pinned in format 1 (tests/integration/test_older_lake.py)
OF_FORMAT_1 = {"_lake/env/*/iceberg/*"}


@pytest.fixture
def wire(mini: Platform) -> Iterator[Proxy]:
    """Logs everything that this process writes to the local AWS, with boto3 and with DuckDB."""
    log = Proxy(str(mini.settings.endpoint_url))
    with serving(log.handler(), PROXY_PORT) as url, mock.patch.dict(os.environ, {"BUSCO_ENDPOINT_URL": url}):
        get_settings.cache_clear()
        yield log
    get_settings.cache_clear()


def test_each_record_is_written_under_a_condition(mini: Platform, wire: Proxy) -> None:
    store, bucket = mini.store, str(mini.settings.lake_bucket)
    doctor.conditional_writes(Surroundings(mini.settings))
    mini.deliver(csv_text(HEADER, [("o1", "x", "1.50", "2018-01-01", 1), ("o2", "y", "2.50", "2018-01-02", 2)]))
    order = new_order()
    store.create(ingest_order(order.order), order)
    carry_out(mini.settings, store, all_contracts(ensure_manifests(mini.settings)), order.order)
    run, outcome = mini.built()
    assert outcome.good
    release = mini.publish(run)
    releases.rollback(store, ENVIRONMENT, release.release, "test", "the wire log")
    show_glue(mini.settings, store, ENVIRONMENT)
    assert releases.resume(store, ENVIRONMENT) is not None
    replays.order(replays.copy(run, replays.environment_of("somebody")), ["model.mini.fct"])
    _answer("a-token", Selection(select="fct"))

    assert wire.unconditional(bucket) == []
    keys = [path.partition("?")[0].removeprefix(f"/{bucket}/") for path, _ in wire.puts]
    patterns = {*WRITTEN_ONCE, *SWAPPED} - BY_AIRFLOW - OF_SEVERAL - OF_FORMAT_1
    assert [one for one in patterns if not any(fnmatchcase(key, one) for key in keys)] == []
    # DuckDB's COPY supports no conditions, so no pattern may require one for its files
    for layer in ("bronze/", "silver/", "gold/"):
        assert any(key.startswith(layer) for key in keys), layer
