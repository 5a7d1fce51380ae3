"""Concurrent Glue syncs, and a sync that is overtaken at any of its calls, always end with the live release shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from busco.catalog import glue
from busco.lake import releases
from busco.lake.records import Release
from busco.settings import LAYERS
from tests.unit.lake import ENVIRONMENT, Lake, others
from tests.unit.memory_glue import MemoryGlue

PAGE = "docs/index.html"


class Catalog:
    """A lake and its Glue catalog.

    `meanwhile` is called once, right before call `at` (a number or a name) to S3 or Glue. `fail_after` makes calls
    after the named one fail.
    """

    def __init__(self) -> None:
        self.lake = Lake()
        self.glue = MemoryGlue(self.called)
        self.calls: list[str] = []
        self.pages: list[bytes] = []
        self.meanwhile: Callable[[], Any] | None = None
        self.at: int | str = 0
        self.fail_after = ""
        self._watch("get_object")
        self._watch("put_object")

    def _watch(self, name: str) -> None:
        original = getattr(self.lake.s3, name)

        def watched(**request: Any) -> Any:
            self.called(name)
            response = original(**request)
            if name == "put_object" and request["Key"] == PAGE:
                self.pages.append(request["Body"])
            return response

        setattr(self.lake.s3, name, watched)

    def called(self, name: str) -> None:
        if self.meanwhile is not None and self.at in (len(self.calls), name):
            meanwhile, self.meanwhile = self.meanwhile, None
            calls = self.calls
            meanwhile()
            self.calls = calls
        failing = self.fail_after in self.calls
        self.calls.append(name)
        if failing and self.meanwhile is None and name.startswith(("get_tables", "delete")):
            raise ClientError({"Error": {"Code": "ThrottlingException"}}, name)

    def interrupted(self, at: int | str, meanwhile: Callable[[], Any]) -> None:
        self.calls, self.at, self.meanwhile = [], at, meanwhile

    def publish(self, *missing: str) -> Release:
        """Publishes a full run whose code lacks the tables `missing`; its docs page lists the release's tables."""
        lake = self.lake
        lake.tables = frozenset({"silver.s", "gold.g", "gold.h"}) - set(missing)
        run = lake.pin()
        lake.build_all(run, keep=True)
        lake.store.put(f"{run.docs}index.html", json.dumps([run.name, sorted(lake.tables)]).encode())
        return lake.publish(run)

    def sync(self, layers: tuple[str, ...] = LAYERS) -> glue.Shown:
        shown = glue.sync(self.glue, self.lake.store, ENVIRONMENT, lambda layer: f"busco_{layer}", layers)
        assert shown is not None
        return shown

    def published(self, *missing: str) -> None:
        self.publish(*missing)
        self.sync()

    @property
    def shown(self) -> dict[str, str]:
        return {
            f"{database.removeprefix('busco_')}.{name}": table["Parameters"]["busco.version"]
            for (database, name), table in self.glue.tables.items()
        }

    @property
    def live(self) -> dict[str, str]:
        return {table: version.version for table, version in self.lake.live().tables.items()}

    @property
    def page(self) -> bytes:
        stored = self.lake.store.get(PAGE)
        assert stored is not None
        return stored.body


@pytest.fixture
def catalog() -> Catalog:
    """A catalog that shows three tables, one of which has been dropped by the live release."""
    made = Catalog()
    made.published()
    made.publish("gold.h")
    return made


def test_G1_a_sync_overtaken_at_any_call_shows_the_live_release_and_no_outdated_page() -> None:
    at = 0
    while True:
        catalog = Catalog()
        catalog.published()
        catalog.publish("gold.h")
        catalog.interrupted(at, catalog.published)
        catalog.sync()
        if catalog.meanwhile is not None:
            break
        assert catalog.shown == catalog.live, f"overtaken before call {at}"
        newest = catalog.pages.index(catalog.page)
        assert all(page == catalog.page for page in catalog.pages[newest:]), f"overtaken before call {at}"
        at += 1
    assert at > 10


def test_G1_a_newer_syncs_table_that_was_deleted_is_recreated_immediately(catalog: Catalog) -> None:
    """The table exists although the overtaken sync then fails.

    By that time a third release is live, so every other table also needs to be switched.
    """

    def newer() -> None:
        catalog.published()
        catalog.publish()

    catalog.interrupted("delete_table", newer)
    catalog.fail_after = "delete_table"
    with pytest.raises(ClientError, match="Throttling"):
        catalog.sync(("gold", "silver", "bronze"))
    assert catalog.calls.count("delete_table") == 1
    after = [call for call in catalog.calls[catalog.calls.index("delete_table") :] if not call.startswith("get_")]
    assert after[:2] == ["delete_table", "create_table"]
    assert catalog.shown == catalog.live


def test_G1_someone_elses_table_with_the_name_of_a_dropped_table_is_not_deleted(catalog: Catalog) -> None:
    theirs = {"Name": "h", "Parameters": {"classification": "csv"}}

    def replaced() -> None:
        catalog.glue.delete_table("busco_gold", "h")
        catalog.glue.create_table("busco_gold", theirs)

    listings = len(LAYERS)
    seen: list[str] = []

    def called(name: str) -> None:
        # right after gold's tables were listed
        if seen.count("get_tables") == listings and seen[-1] == "get_tables":
            seen.append("replaced")
            replaced()
        seen.append(name)

    catalog.glue.called = called
    shown = catalog.sync()
    assert "replaced" in seen
    assert catalog.glue.tables["busco_gold", "h"]["Parameters"] == theirs["Parameters"]
    assert shown.deleted == ()


def test_G1_a_table_that_another_sync_has_deleted_is_not_reported_as_deleted(catalog: Catalog) -> None:
    catalog.interrupted("delete_table", catalog.sync)
    assert catalog.sync().deleted == ()
    assert catalog.shown == catalog.live


def test_a_table_missing_from_the_newer_docs_is_described_by_the_run_that_built_it() -> None:
    """Of two concurrent runs, the second to publish adds a model, but the docs of the first one stay."""
    catalog = Catalog()
    catalog.published("gold.g", "gold.h")
    lake = catalog.lake
    lake.tables = frozenset({"silver.s", "gold.g"})
    late = lake.pin()
    lake.build_all(late, keep=True)
    node = {"schema": "gold", "name": "g", "description": "what g is", "columns": {}, "resource_type": "model"}
    manifest = {"nodes": {"model.busco.g": node}, "sources": {}, "metadata": {"project_name": "busco"}}
    lake.store.put(f"{late.docs}manifest.json", json.dumps(manifest).encode())
    catalog.publish("gold.g", "gold.h")
    lake.publish(late)
    catalog.sync()
    assert catalog.glue.tables["busco_gold", "g"]["Description"] == "what g is"


def test_G1_a_release_that_another_project_publishes_during_a_sync_is_shown_too(catalog: Catalog) -> None:
    catalog.interrupted("update_table", lambda: releases.publish(*others(catalog.lake), "me", "docs/other/"))
    catalog.sync()
    assert "gold.o" in catalog.shown
    assert catalog.shown == catalog.live
