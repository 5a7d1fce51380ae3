"""Parts of the site's files: which columns are personal, how long profiles may take, and when raw rows arrived."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from busco.lake.objects import ObjectStore
from busco.lake.records import Column, Result, Version
from busco.warehouse import site
from tests.unit.memory_s3 import MemoryS3
from tests.unit.test_personal import project

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


def version(**changes: object) -> Version:
    columns = (Column(name="id", type="VARCHAR"), Column(name="Email", type="VARCHAR"))
    return Version(table="silver.people", version="1", columns=columns, rows=1, bytes=1).model_copy(update=changes)


@pytest.mark.parametrize("written", ["Email", "email", "EMAIL"])
def test_a_column_that_is_marked_after_its_version_was_made_is_personal_in_any_case(written: str) -> None:
    marked = project(marks={written: True})
    assert site.personal_columns(marked, "model.p.people", version(personal=())) == {"Email"}
    assert site.personal_columns(project(), "model.p.people", version(personal=("Email",))) == {"Email"}


def test_models_that_are_built_at_the_same_time_count_once() -> None:
    def result(ended: int, seconds: float) -> Result:
        finished = NOON + timedelta(seconds=ended)
        return Result(node="a", runner=1, status="success", seconds=seconds, finished_at=finished)

    assert site._time_of_models([]) == 0
    assert site._time_of_models([result(100, 100) for _ in range(50)]) == 100
    assert site._time_of_models([result(100, 100), result(90, 10), result(150, 100)]) == 150
    assert site._time_of_models([result(100, 100), result(86_400, 100)]) == 200, "a pause does not count"


def test_the_time_of_a_delivery_is_known_without_its_rows() -> None:
    s3 = MemoryS3()
    store = ObjectStore(s3, "lake")
    records = [f"_lake/deliveries/bronze.people/{name}/1.json" for name in ("b", "a", "later")]
    for at, record in enumerate(records):
        s3.now = partial(NOON.__add__, timedelta(hours=at))
        store.create(record, b"{}")
    found = site._delivered_at(store, version(table="bronze.people", deliveries=tuple(records[:2])))
    assert found == "2026-12-01T13:00:00+00:00", "the run was pinned before the last one came"
    assert site._delivered_at(store, version()) is None
