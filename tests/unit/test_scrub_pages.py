"""Scrubbing the site's files, in a bucket that keeps old versions, with damaged files among them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from busco.cli.scrub import require_publishes
from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.objects import ObjectStore
from busco.site.scrub import scrub_pages
from tests.unit.lake import ENVIRONMENT, Lake
from tests.unit.test_scrub import VersionedS3
from tests.unit.test_site_release import values

OLD = "docs/run1/1/tables/gold.g.{}.0f.json"


@pytest.fixture
def store() -> ObjectStore:
    made = ObjectStore(VersionedS3(), "lake")
    made.client.has_policy = False
    return made


def write(store: ObjectStore, number: int, **changes: Any) -> str:
    key = OLD.format(number)
    store.put(key, json.dumps(values(version="old", **changes)).encode())
    return key


def left(store: ObjectStore) -> bytes:
    """Returns everything in the bucket, with old versions."""
    return bytes(store.client.everything())


@pytest.mark.parametrize(
    "damaged",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        json.dumps(values(version="old", columns=7, sample=None)).encode(),
        b'{"version": "old"}',
    ],
)
def test_a_damaged_file_stops_no_other(store: ObjectStore, damaged: bytes) -> None:
    first, last = write(store, 1), write(store, 3)
    store.put(OLD.format(2), damaged)
    done = scrub_pages(store, {})
    assert (done.checked, done.with_values, done.unchecked) == (3, (first, last), (OLD.format(2),))
    assert b"ana@example.com" not in left(store)


def test_half_a_character_in_a_text_stops_nothing(store: ObjectStore) -> None:
    key = write(store, 1, description_html="\ud800")
    assert scrub_pages(store, {}).with_values == (key,)
    assert b"ana@example.com" not in left(store)


def test_a_dry_scrub_changes_nothing_and_a_second_one_finds_nothing(store: ObjectStore) -> None:
    key = write(store, 1)
    before = dict(store.client.objects)
    assert scrub_pages(store, {}, dry=True).with_values == (key,)
    assert store.client.objects == before
    assert scrub_pages(store, {}).with_values == (key,)
    assert scrub_pages(store, {}).with_values == ()


def test_old_versions_of_a_file_that_was_deleted_are_deleted_too(store: ObjectStore) -> None:
    key = write(store, 1)
    store.client.earlier.append((key, store.client.objects.pop(key)))
    assert b"ana@example.com" in left(store)
    scrub_pages(store, {})
    assert b"ana@example.com" not in left(store)


def test_a_scrub_is_refused_while_a_rollback_is_live() -> None:
    lake = Lake()
    lake.published()
    first = lake.live().release
    lake.published(code="g")
    require_publishes(lake.store)
    releases.rollback(lake.store, ENVIRONMENT, first, "ana", "wrong")
    with pytest.raises(BuscoError, match=f"is a rollback to {first}"):
        require_publishes(lake.store)
