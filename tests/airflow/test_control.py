"""The functions behind the pin, publish, rollback and resume tasks, called on a lake without Airflow."""

from __future__ import annotations

import json
import logging
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.models import DagBag

from busco.lake import releases
from busco.lake.layout import delivery, run_key
from busco.lake.owners import id_lines
from busco.lake.records import utc_now
from busco.orchestration import alerts, control
from busco.project import Project
from busco.settings import Settings
from tests.platforms import ROOT
from tests.unit.lake import ENVIRONMENT, Lake
from tests.unit.memory_glue import MemoryGlue


@pytest.fixture
def lake(monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake on hold, with a run that was skipped because of the hold."""
    made = Lake()
    made.published()
    releases.rollback(made.store, ENVIRONMENT, made.live().release, "ana", "wrong prices")
    run = made.pin(run="held_back")
    made.build_all(run)
    with pytest.raises(releases.Skipped):
        made.publish(run)
    monkeypatch.setattr(control, "_lake", lambda **_: (None, made.store, ENVIRONMENT))
    return made


@pytest.fixture
def roles(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The role and service of each client that was created, in order."""
    created: list[str] = []

    def as_role(role: str) -> Any:
        def made(service: str, settings: Settings, **_: Any) -> Any:
            created.append(f"{role} {service}")
            return lake.s3 if service == "s3" else MemoryGlue()

        return made

    monkeypatch.undo()
    monkeypatch.setattr(control, "get_settings", lambda: Settings(home=ROOT, lake_bucket="lake"))
    monkeypatch.setattr(control, "client", as_role("own"))
    monkeypatch.setattr(control, "publisher_client", as_role("publisher"))
    return created


def test_only_tasks_that_make_a_release_live_or_show_it_use_the_publisher_s_role(lake: Lake, roles: list[str]) -> None:
    control.live_release()
    assert roles == ["own s3"]
    roles.clear()
    control.resume(try_of("one"))
    control.rollback(lake.live().release, "wrong prices", "ana")
    with pytest.raises(AirflowFailException, match="there is no run"):
        control.publish("lakehouse", "one", "ana")
    control.show()
    assert roles == ["publisher s3"] * 4 + ["publisher glue"]


def test_a_run_that_a_hold_keeps_from_being_published_sends_one_alert(
    lake: Lake, roles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, str]] = []
    monkeypatch.setattr(alerts, "client", lambda *_: SimpleNamespace(publish=lambda **given: sent.append(given)))
    settings = Settings(home=ROOT, lake_bucket="lake", alerts_topic="topic", airflow_url="https://a.example/")
    monkeypatch.setattr(control, "get_settings", lambda: settings)
    run = lake.pin(run=run_key("lakehouse", "held"))
    lake.store.create(f"{run.docs}manifest.json", b"{}")
    monkeypatch.setattr(control, "Project", lambda _: SimpleNamespace(audit=lambda: None))
    with pytest.raises(AirflowSkipException, match="ana: wrong prices"):
        control.publish("lakehouse", "held", "ana")
    (alert,) = sent
    assert alert["Subject"] == "lakehouse was not published: publishing is on hold"
    assert "lakehouse / held is complete, but was not published: put on hold at" in alert["Message"]
    assert "ana: wrong prices (lift the hold with `busco release resume`)." in alert["Message"]
    assert "https://a.example/dags/lakehouse/grid" in alert["Message"]


def test_a_source_without_a_recent_delivery_fails_and_one_to_warn_about_does_not(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hours = {"warn_after": {"count": 24, "period": "hour"}, "error_after": {"count": 2, "period": "day"}}
    nothing = {"warn_after": {"count": None, "period": None}, "error_after": {"count": None, "period": None}}
    limits: dict[str, Any] = {"silent": hours, "slow": hours, "recent": hours, "unlimited": nothing, "none": None}

    def project(which: dict[str, Any]) -> Any:
        sources = {
            f"source.p.shop.{name}": {
                "source_name": "shop", "name": name, "freshness": freshness, "meta": {"grain": ["id"]}, "config": {},
                "columns": {"id": {"name": "id", "data_type": "VARCHAR"}},
            }
            for name, freshness in which.items()
        }  # fmt: skip
        return Project({"metadata": {"project_name": "p"}, "sources": sources, "nodes": {}})

    settings = SimpleNamespace(of_all_projects=lambda: [None])
    monkeypatch.setattr(control, "_lake", lambda **_: (settings, lake.store, ENVIRONMENT))
    now = utc_now()
    for name, age in (("slow", 30), ("recent", 1), ("unlimited", 500)):
        key = delivery("shop", name, "a.csv", 1)
        lake.store.create(key, b"{}")
        lake.s3.stored_at[key] = now - timedelta(hours=age)
    monkeypatch.setattr(control, "Project", SimpleNamespace(of=lambda _: project(limits)))
    with pytest.raises(
        AirflowException, match=r"bronze\.silent: there is no delivery; error_after is 2\.0 days"
    ) as found:
        control.check_freshness()
    assert "slow" not in str(found.value)
    assert "bronze.slow: its newest delivery is 30.0 hours old; warn_after is 24.0 hours" in caplog.text
    assert not {"bronze.recent", "bronze.unlimited", "bronze.none"} & set(re.findall(r"bronze\.\w+", caplog.text))
    del limits["silent"]
    control.check_freshness()
    assert "checked sources=2 late=1" in caplog.text
    limits.clear()
    with pytest.raises(AirflowSkipException, match="no source has"):
        control.check_freshness()


def test_the_check_of_the_sources_alerts_if_one_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    dag = DagBag(str(ROOT / "dags/freshness.py"), include_examples=False, read_dags_from_db=False).dags["freshness"]
    called: list[Any] = []
    monkeypatch.setattr(alerts, "failed_check", called.append)
    (check,) = dag.tasks
    check.on_failure_callback({"a": check.task_id})
    assert called == [{"a": "check"}]


def try_of(run_id: str) -> dict[str, Any]:
    return {"dag_run": SimpleNamespace(dag_id="operations", run_id=run_id)}


def test_a_resume_that_is_retried_returns_the_same_runs_and_a_later_one_finds_no_hold(lake: Lake) -> None:
    assert [control.resume(try_of("one")) for _ in range(2)] == [["held_back"]] * 2
    assert control.resume(try_of("two")) == []


def test_a_resume_that_is_retried_fails_if_publishing_is_on_hold_again(lake: Lake) -> None:
    control.resume(try_of("one"))
    releases.rollback(lake.store, ENVIRONMENT, lake.live().release, "bob", "wrong currency")
    with pytest.raises(AirflowFailException, match=r"bob: wrong currency.*are: held_back"):
        control.resume(try_of("one"))
    assert control.resume(try_of("two")) == []


@pytest.mark.parametrize("select", ["fct --record-timing-info /tmp/x", "fct\n--vars {}", ["fct", "--target-path", "/"]])
def test_a_run_whose_selection_contains_an_option_fails_before_anything_is_started(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, select: Any
) -> None:
    settings = SimpleNamespace(of_project=lambda folder: settings)
    monkeypatch.setattr(control, "_lake", lambda: (settings, lake.store, ENVIRONMENT))
    monkeypatch.setattr(control, "selected", lambda *arguments: pytest.fail(f"started for {arguments[2]}"))
    with pytest.raises(AirflowFailException, match="begins with a dash|must be text"):
        control.pin("lakehouse", "manual", 1, "1", select, False)


def pinned(lake: Lake, tables: tuple[str, ...], run_id: str) -> None:
    """Builds a run of all models of the dbt project busco, which has no id and defines exactly these tables."""
    lake.tables = frozenset(tables)
    run = lake.pin(run=run_key("lakehouse", run_id))
    lake.build_all(run)
    nodes: dict[str, Any] = {
        f"model.busco.{table.split('.')[1]}": {
            "resource_type": "model", "config": {"materialized": "lake"}, "schema": table.split(".")[0],
            "name": table.split(".")[1], "depends_on": {"nodes": []},
        }
        for table in tables
    }  # fmt: skip
    manifest = {"metadata": {"project_name": "busco"}, "nodes": nodes, "sources": {}, "macros": {}}
    lake.store.put(f"{run.docs}manifest.json", json.dumps(manifest).encode())
    lake.s3.objects[run.layout.pin] = (
        run.pin.model_copy(update={"manifest_hash": Project(manifest).hash}).model_dump_json().encode()
    )


@pytest.fixture
def publishing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    releases.resume(lake.store, ENVIRONMENT)
    settings = SimpleNamespace(execution="local")
    monkeypatch.setattr(control, "_lake", lambda **_: (settings, lake.store, ENVIRONMENT))
    return lake


def test_a_publish_that_may_belong_to_another_project_fails_and_suggests_both_fixes(
    publishing: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    pinned(publishing, ("silver.s",), "other")
    before = publishing.live()
    with pytest.raises(AirflowFailException, match="would drop 2 of these 3 tables: gold.g, gold.h") as refused:
        control.publish("lakehouse", "other", "ana")
    for text in (str(refused.value), caplog.text):
        assert id_lines("busco-2") in text
        assert "busco dbt build --publish --take-over" in text
    assert publishing.live() == before


def test_publish_logs_the_dropped_tables_before_and_after_the_write(
    publishing: Lake, caplog: pytest.LogCaptureFixture
) -> None:
    pinned(publishing, ("silver.s", "gold.g"), "smaller")
    with caplog.at_level(logging.INFO):
        release = control.publish("lakehouse", "smaller", "ana")
    assert publishing.live().dropped == ("gold.h",)
    expected = [
        "publishing drops tables that the dbt project no longer defines: gold.h", f"dropped by {release}: gold.h",
        f"published release={release}",
    ]  # fmt: skip
    messages = [line for line in caplog.messages if any(text in line for text in expected)]
    assert [next(text for text in expected if text in line) for line in messages] == expected


def test_a_run_on_an_empty_lake_logs_how_to_ingest_data(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"id": {"name": "id", "data_type": "VARCHAR"}}
    source = {
        "resource_type": "source", "source_name": "shop", "name": "orders", "identifier": "orders", "schema": "bronze",
        "package_name": "busco", "columns": columns, "config": {"meta": {"grain": ["id"]}},
    }  # fmt: skip
    made = Lake()
    file = tmp_path / "manifest.json"
    place = {"manifest_path": file, "dbt_project_dir": Path("dbt_project"), "project_id": ""}
    settings = SimpleNamespace(of_project=lambda *_: settings, **place)
    monkeypatch.setattr(control, "_lake", lambda **_: (settings, made.store, ENVIRONMENT))
    monkeypatch.setattr(control, "code_version", lambda _: "")
    for sources, is_logged in (({"source.busco.shop.orders": source}, True), ({}, False)):
        caplog.clear()
        manifest = {"metadata": {"project_name": "busco"}, "nodes": {}, "sources": sources, "macros": {}}
        file.write_text(json.dumps(manifest))
        control.pin("lakehouse", f"run_{is_logged}", 1, "1", "", False)
        assert ("Ingest data with `busco ingest PATH`" in caplog.text) == is_logged
