"""How the store interprets S3's responses to conditional writes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import ClientError

from busco.doctor.aws import conditional_writes
from busco.embedded import s3_intents
from busco.errors import BuscoError
from busco.lake import objects
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from tests.unit.memory_s3 import MemoryS3, _error


class AnsweringS3(MemoryS3):
    """Responds to the next writes with `answers`.

    An answer is an error code; 'lost' if the response was lost and the client repeated the write; 'deleted' if the
    write fails and the object is then deleted; or '' for S3's normal response.
    """

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = list(answers)

    def put_object(self, **call: Any) -> dict[str, Any]:
        answer = self.answers.pop(0) if self.answers else ""
        if answer == "deleted":
            self.objects.pop(call["Key"], None)
        if answer == "lost":
            super().put_object(**call)
        if answer in ("lost", "deleted"):
            raise _error("PreconditionFailed", 412)
        if answer:
            raise _error(answer, 409)
        return super().put_object(**call)


@pytest.fixture(autouse=True)
def _no_conflict_wait() -> Any:
    with mock.patch.object(objects, "_CONFLICT_WAIT", 0):
        yield


CONFLICT = "ConditionalRequestConflict"


@pytest.mark.parametrize("answers", [(), (CONFLICT,) * 3, ("lost",), (CONFLICT, "lost"), ("deleted",)])
def test_conditional_writes_work_despite_conflicts_lost_replies_and_deletions(answers: tuple[str, ...]) -> None:
    s3 = AnsweringS3(*answers)
    store = ObjectStore(s3, "lake")
    etag = store.create("key", b"mine")
    assert s3.objects == {"key": b"mine"}
    with pytest.raises(AlreadyExists):
        store.create("key", b"theirs")
    s3.answers = list(answers if answers != ("deleted",) else ())
    etag = store.swap("key", b"mine, later", etag)
    with pytest.raises(Moved):
        store.swap("key", b"theirs", '"another"')
    with pytest.raises(Moved):
        store.swap("no such key", b"theirs", etag)
    assert s3.objects == {"key": b"mine, later"}


def test_a_persistent_409_is_not_reported_as_an_existing_object() -> None:
    store = ObjectStore(AnsweringS3(*[CONFLICT] * 100), "lake")
    with pytest.raises(ClientError, match=CONFLICT):
        store.create("key", b"mine")


@pytest.mark.parametrize("ignored", ["IfNoneMatch", "IfMatch"])
def test_doctor_does_not_mistake_a_409_for_an_enforced_condition(ignored: str) -> None:
    class Careless(AnsweringS3):
        has_policy = False

        def put_object(self, **call: Any) -> dict[str, Any]:
            return super().put_object(**{name: value for name, value in call.items() if name != ignored})

    s3 = Careless(*["", CONFLICT] * 20)
    settings = SimpleNamespace(lake_bucket="lake", environment="prod")
    surroundings: Any = SimpleNamespace(settings=settings, s3=s3)
    with pytest.raises(BuscoError, match="ignores"):
        conditional_writes(surroundings)
    surroundings.s3 = AnsweringS3(*["", CONFLICT] * 20)
    assert "gets a 412" in conditional_writes(surroundings)


def test_a_file_that_was_overwritten_right_after_it_was_written_is_not_recorded() -> None:
    s3 = MemoryS3()
    store = ObjectStore(s3, "lake")
    s3.put_object("lake", "gold/t/v/a.parquet", b"1234")
    etag = store.etags("gold/t/v/", {"gold/t/v/a.parquet": 4})["gold/t/v/a.parquet"]
    assert etag == s3.get_object("lake", "gold/t/v/a.parquet")["ETag"]
    for written in ({"gold/t/v/a.parquet": 5}, {"gold/t/v/a.parquet": 4, "gold/t/v/b.parquet": 4}):
        with pytest.raises(BuscoError, match="S3 now has"):
            store.etags("gold/t/v/", written)


def test_old_object_versions_are_deleted_from_the_local_disk_after_their_retention_period(tmp_path: Path) -> None:
    for name, age in (("old", 8), ("young", 6)):
        folder = tmp_path / ".versions/000000000000/lake" / name / "gold"
        folder.mkdir(parents=True)
        (folder / "a.parquet").write_bytes(b"rows")
        moment = time.time() - age * 86_400
        os.utime(folder.parent, (moment, moment))
    assert s3_intents.expire_versions(tmp_path, 7) == 1
    assert [path.name for path in tmp_path.glob(".versions/*/*/*")] == ["young"]
