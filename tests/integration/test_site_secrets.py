"""Plants secrets where a run's processes and a project's code can read them, and searches the pages for them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import pytest

from busco.warehouse import site
from tests.integration.conftest import MINI
from tests.platforms import Platform, csv_text, platform

ORDERS = ("id", "customer", "amount", "day", "n")
ROWS = [("o1", "Ana", "1.50", "2018-01-01", 1), ("o2", "Bia", "2.50", "2018-01-02", 2)]
# Secrets in the environment of the processes; the project's Jinja reads the ones of the warehouse.
SECRETS = {
    "WAREHOUSE_PASSWORD": "zqCanary/Pass+word=1",
    "DBT_ENV_SECRET_TOKEN": "zqCanaryToken2",
    "BUSCO_UNKNOWN_PASSWORD": "zqCanaryUnknown3",
    "AIRFLOW_CONN_WAREHOUSE": "postgres://user:zqCanaryConnection4@warehouse/db",
}
# Code that depends on a secret without writing it: in a condition, in a variable, and in a config.
CODE = """{% set password = env_var('WAREHOUSE_PASSWORD') %}
{{ config(enabled=env_var('WAREHOUSE_PASSWORD') != '', tags=['private' if env_var('WAREHOUSE_PASSWORD') else 'open']) }}
select id, {% if password %}n{% else %}0 as n{% endif %} from {{ ref('orders') }}"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, served: Path) -> Iterator[Platform]:
    with (
        platform(tmp_path_factory.mktemp("secrets"), MINI, served) as made,
        mock.patch.dict(os.environ, SECRETS),
        pytest.MonkeyPatch.context() as patch,
    ):
        # otherwise, no rows would be read
        patch.setattr(site, "_SHARE", 1000.0)
        made.model("gold/guarded", CODE)
        made.deliver(csv_text(ORDERS, ROWS))
        assert made.build().good
        yield made


def secrets() -> set[bytes]:
    """Returns the values that nothing may contain, in each form in which they could be written."""
    values = {*SECRETS.values(), "zqCanary", os.environ["AWS_SECRET_ACCESS_KEY"]}
    forms = {form for value in values for form in (value, json.dumps(value)[1:-1], quote(value, safe=""))}
    return {form.encode() for form in forms} | {base64.b64encode(value.encode()) for value in values}


def test_no_secret_of_the_environment_is_below_docs_or_in_the_page(published: Platform) -> None:
    file = published.home / "pages.html"
    published.busco("docs", "open", "--file", str(file), environment=SECRETS)
    keys = list(published.store.keys("docs/"))
    found = {key: published.store.get(key) for key in keys}
    texts = {key: one.body for key, one in found.items() if one is not None} | {"the page": file.read_bytes()}
    assert {"site.json", "manifest.json", "catalog.json", "index.html"} <= {key.rsplit("/", 1)[1] for key in keys}
    assert b'"guarded"' in texts["the page"]
    assert len([key for key in keys if "/tables/" in key]) == 4
    for key, text in texts.items():
        assert not [secret for secret in secrets() if secret in text], key


def test_a_variable_that_dbt_calls_a_secret_can_not_be_used_in_a_model(mini: Platform) -> None:
    mini.model("gold/told", "select '{{ env_var('DBT_ENV_SECRET_TOKEN') }}' as token")
    printed = mini.busco("dbt", "build", environment=SECRETS, status=1)
    assert "Secret env vars are allowed only in profiles.yml or packages.yml" in printed
    assert "zqCanary" not in printed
