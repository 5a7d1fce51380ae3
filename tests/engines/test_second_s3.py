"""The lake on a second, independent S3 server: what the protocol relies on is not a property of one emulator."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from busco.aws import client
from busco.embedded import aws, keys
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.settings import get_settings
from tests.engines.engine import needs
from tests.engines.releases import by_duckdb_of_each, deliver, history, roll_back
from tests.engines.split import split
from tests.platforms import ENVIRONMENT, ROOT, Platform, platform

pytestmark = [pytest.mark.long, needs("BUSCO_TEST_S3")]

# the platform of a test has no BUSCO_ variables but its own
URL = os.environ.get("BUSCO_TEST_S3", "")
WRITERS, RACES = 16, 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, served: Path) -> Iterator[Platform]:
    """The small project on a lake whose objects are on the second server, with a local AWS of its own for the rest."""
    home = tmp_path_factory.mktemp("home")
    # the second server knows the keys of the local AWS that the engines were started with
    secrets = home / ".busco/secrets"
    secrets.mkdir(parents=True, mode=0o700)
    shutil.copy2(served / "secrets/local-aws-owner", secrets)
    with platform(home, ROOT / "tests/projects/mini") as made:
        others = made.settings.endpoint_url
        assert others is not None
        with split(URL, others) as url:
            variables = {"AWS_ENDPOINT_URL": url, "BUSCO_ENDPOINT_URL": url}
            # as a child process would read them again from the file of the local AWS
            env = made.settings.state / "aws.env"
            env.write_text(env.read_text().replace(others, url))
            with mock.patch.dict(os.environ, variables):
                get_settings.cache_clear()
                assert made.settings.endpoint_url == url
                prepare(made)
                yield made
            env.write_text(env.read_text().replace(url, others))


def prepare(made: Platform) -> None:
    """Empties the buckets of the second server, and creates them if they don't exist."""
    s3 = client("s3", made.settings)
    existing = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for bucket in (made.settings.lake_bucket, made.settings.landing_bucket, made.settings.logs_bucket):
        if bucket not in existing:
            s3.create_bucket(Bucket=bucket)
        store = ObjectStore(s3, bucket)
        for key in list(store.keys("")):
            s3.delete_object(Bucket=bucket, Key=key)


def race(write: Callable[[int], str]) -> list[str]:
    """Starts WRITERS writers at once; returns what each of them returned."""
    start = threading.Barrier(WRITERS)

    def run(writer: int) -> str:
        start.wait()
        return write(writer)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(run, range(WRITERS)))


def test_conditional_writes_have_one_winner(made: Platform) -> None:
    store = made.store
    for _ in range(RACES):
        key = f"race/{uuid.uuid4().hex}"

        def create(writer: int, key: str = key) -> str:
            try:
                return store.create(key, f"created by {writer}".encode())
            except AlreadyExists:
                return ""

        winners = [etag for etag in race(create) if etag]
        stored = store.get(key)
        assert stored is not None
        assert winners == [stored.etag]

        def swap(writer: int, key: str = key, etag: str = stored.etag) -> str:
            try:
                return store.swap(key, f"swapped by {writer}".encode(), etag)
            except Moved:
                return ""

        winners = [etag for etag in race(swap) if etag]
        stored = store.get(key)
        assert stored is not None
        assert winners == [stored.etag]


def test_a_write_under_a_condition_that_is_not_met_changes_nothing(made: Platform) -> None:
    store, key = made.store, f"conditions/{uuid.uuid4().hex}"
    with pytest.raises(Moved):  # a 404 on AWS
        store.swap(key, b"swapped", '"d41d8cd98f00b204e9800998ecf8427e"')
    assert store.get(key) is None
    etag = store.create(key, b"first")
    assert store.create(key, b"first") == etag, "a lost reply: the same content is already there"
    with pytest.raises(AlreadyExists):
        store.create(key, b"second")
    later = store.swap(key, b"third", etag)
    assert later != etag
    with pytest.raises(Moved):
        store.swap(key, b"fourth", etag)
    assert (found := store.get(key)) is not None
    assert (found.body, found.etag) == (b"third", later)
    store.client.delete_object(Bucket=store.bucket, Key=key)
    with pytest.raises(Moved):
        store.swap(key, b"fifth", later)


def test_files_are_ingested_built_published_queried_and_rolled_back(made: Platform) -> None:
    name = deliver(made, [("o1", "x", "1.50", "2018-01-01", 1), ("o2", "y", "2.50", "2018-01-02", 2)])
    assert made.build().good
    deliver(made, [("o3", "z", "3.50", "2018-01-02", 3)])
    deliver(made, [("o1", "x", "9.50", "2018-01-01", 1), ("o2", "y", "2.50", "2018-01-02", 2)], name)
    assert made.build().good
    expected = by_duckdb_of_each(made)
    first, second = history(made)
    total = "select sum(amount), sum(orders) from busco_gold.fct"
    assert made.busco("query", "--engine", "duckdb", "--format", "csv", total).splitlines()[1:] == ["15.50,3"]
    roll_back(made, first)
    assert made.busco("query", "--engine", "duckdb", "--format", "csv", total).splitlines()[1:] == ["4.00,2"]
    again = by_duckdb_of_each(made)
    assert again[history(made)[-1]] == expected[first] != expected[second]
    assert "all" in made.busco("release", "check")
    on_second = aws.client("s3", URL, made.settings.region, keys.owner(made.settings.state))
    assert ENVIRONMENT.current in ObjectStore(on_second, made.settings.lake_bucket).keys(ENVIRONMENT.current)
