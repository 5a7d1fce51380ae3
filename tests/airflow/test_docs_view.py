"""The live release's dbt docs in the Airflow UI, which only logged-in users can see."""

from __future__ import annotations

import pytest
import requests

from busco.embedded import airflow
from busco.embedded.airflow_api import logged_in
from busco.settings import get_settings
from tests.airflow.driver import DAG, Driver

PAGE = f"busco/dbt_docs_page?dag_id={DAG}&project=busco"


@pytest.fixture(scope="module")
def published(driver: Driver) -> str:
    """The URL of Airflow, after a run has published the project and its docs."""
    run = driver.start()
    driver.green(run)
    user = {"username": "reader", "password": "reader", "first_name": "r", "last_name": "r", "email": "r@example.com"}
    driver.api.session.post(
        f"{driver.api.base}/auth/fab/v1/users", json={**user, "roles": [{"name": "Viewer"}]}, timeout=60
    ).raise_for_status()
    return airflow.url(get_settings())


@pytest.mark.slow
def test_a_viewer_sees_the_live_release_s_docs_with_all_tables_and_types(driver: Driver, published: str) -> None:
    browser = logged_in(published, "reader", "reader")
    assert "<iframe" in browser.get(f"{published}/cosmos/dbt_docs", timeout=60).text
    page = browser.get(f"{published}/{PAGE}", timeout=60)
    assert page.status_code == 200
    live = driver.live()
    assert live is not None
    for table in live.tables:
        assert f'"name": "{table.split(".")[1]}"' in page.text, table
    assert "VARCHAR[]" in page.text, "a column's type, which comes from the catalog"


def test_a_visitor_who_has_not_logged_in_sees_no_docs(published: str) -> None:
    visitor = requests.Session()
    visitor.trust_env = False
    for path in (
        "cosmos/dbt_docs",
        "cosmos/dbt_docs_index.html",
        "cosmos/manifest.json",
        "busco/docs",
        "busco/events",
        PAGE,
    ):
        answer = visitor.get(f"{published}/{path}", timeout=60)
        assert "/login" in answer.url
        assert "fct" not in answer.text
