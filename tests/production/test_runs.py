"""Runs of the DAG on ECS in production, started and followed through HTTPS."""

from __future__ import annotations

import json

import pytest

from tests.production.stack import DOMAIN, Production

pytestmark = pytest.mark.long


def test_a_run_on_ecs_is_green_and_its_log_is_shown(loaded: Production) -> None:
    run = loaded.runs()[0]["dag_run_id"]
    assert set(loaded.task_states(run).values()) == {"success"}
    assert "runner" in loaded.log(run, "models.fct_orders.run")


def test_the_docs_of_the_live_release_are_shown_in_a_sandbox_behind_the_login(loaded: Production) -> None:
    login = ["--user", f"{loaded.value('AIRFLOW_ADMIN_USERNAME')}:{loaded.value('AIRFLOW_ADMIN_PASSWORD')}"]
    assert loaded.get("/catalog/").status == 401
    page = loaded.get("/busco/dbt_docs_page?dag_id=lakehouse&project=busco")
    assert page.status in (302, 403)
    # the API's login does not open pages: only a session does
    assert loaded.get("/catalog/", *login).status == 401
    jar = loaded.home / "cookies"
    form = loaded.get("/login/", "--cookie-jar", str(jar))
    token = form.body.split('name="csrf_token" type="hidden" value="', 1)[1].split('"', 1)[0]
    answer = loaded.get(
        "/login/", "--cookie", str(jar), "--cookie-jar", str(jar), "--referer", f"https://{DOMAIN}/login/",
        "--data-urlencode", f"csrf_token={token}",
        "--data-urlencode", f"username={loaded.value('AIRFLOW_ADMIN_USERNAME')}",
        "--data-urlencode", f"password={loaded.value('AIRFLOW_ADMIN_PASSWORD')}",
    )  # fmt: skip
    assert answer.status == 302, answer.body
    assert loaded.get("/catalog/gold/mart_daily_sales", "--cookie", str(jar)).status == 200
    frame = loaded.get("/catalog/_frame", "--cookie", str(jar))
    assert frame.headers["content-security-policy"].startswith("sandbox")
    state = json.loads(loaded.get("/catalog/_data/state", "--cookie", str(jar)).body)
    assert state["tables"]["gold.mart_daily_sales"]["rows"] > 0
    assert state["projects"]["busco"]["has_site"]
    shown = loaded.get("/busco/dbt_docs_page?dag_id=lakehouse&project=busco", "--cookie", str(jar))
    assert shown.status == 200
    assert shown.headers["content-security-policy"].startswith("sandbox")
    assert "mart_" in shown.body
