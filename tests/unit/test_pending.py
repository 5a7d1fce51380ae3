"""Whether deliveries need a run: decided from records and runs, whatever became of Airflow's dataset events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from busco.events.pending import Attempt, Code, CurrentSet, Published, Publishes, Standing, run_prefix, standing
from busco.lake import records
from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Current, Hold, Pin, Resumed, utc_now
from busco.lake.releases import read_live
from tests.unit.memory_s3 import MemoryS3

CODE = Code("c1", "m1")
NOW = {"bronze.orders": CurrentSet(frozenset({"v2", "v2-old"}), 3), "bronze.items": CurrentSet(frozenset({"w1"}), 1)}
PUBLISHED = {"bronze.orders": ("v1", 2), "bronze.items": ("w1", 1)}


def pinned(orders: str = "v2", nodes: tuple[str, ...] | None = None, code: str = "c1", manifest: str = "m1") -> Pin:
    def one(table: str, version: str) -> records.Published:
        return records.Published(table=table, version=version, record="r", rows=1, bytes=1, files=1, metadata="m")

    return Pin(
        run="r", epoch=1, environment="prod", base=None, manifest_hash=manifest, nodes=nodes, code_version=code,
        created_at=utc_now(),
        bronze={"bronze.orders": one("bronze.orders", orders), "bronze.items": one("bronze.items", "w1")},
    )  # fmt: skip


def tried(pin: Pin | None, active: bool = False, run: str = "run-1") -> Attempt:
    return Attempt(run, f"key-of-{run}", active, pin)


def lifted(*runs: str) -> Current:
    hold = Hold(who="me", when=utc_now(), reason="", skipped=runs)
    return Current(release="r1", serial=1, resumed=Resumed(hold=hold))


def decide(*attempts: Attempt, before: Any = PUBLISHED, current: Current | None = None, now: Any = NOW) -> Standing:
    return standing(now, Published(before), list(attempts), CODE, current)


def test_published_deliveries_need_nothing() -> None:
    assert decide(before={"bronze.orders": ("v2", 3), "bronze.items": ("w1", 1)}) == Standing("current", {})
    # the id that earlier releases of the platform gave the same deliveries
    assert decide(before={"bronze.orders": ("v2-old", 3), "bronze.items": ("w1", 1)}).state == "current"
    assert decide(now={}, before={}).state == "current"


def test_new_deliveries_need_a_run_and_are_counted_by_table() -> None:
    found = decide()
    assert (found.state, found.tables) == ("due", {"bronze.orders": 1})
    assert decide(before={}).tables == {"bronze.orders": 3, "bronze.items": 1}


def test_a_delivery_that_replaces_another_counts_too() -> None:
    assert decide(before={**PUBLISHED, "bronze.orders": ("v1", 3)}).tables == {"bronze.orders": 1}


@pytest.mark.parametrize(
    ("tries", "state"),
    [
        # a run that is not pinned yet will be based on the current deliveries
        ([tried(None, active=True)], "starting"),
        ([tried(None, active=True, run="run-2"), tried(pinned("v1"), active=True)], "starting"),
        ([tried(pinned(), active=True)], "running"),
        ([tried(pinned("v1"), active=True)], "waiting"),
        ([tried(pinned())], "blocked"),
        # a run that ended before it was pinned, or with older deliveries, says nothing about the current ones
        ([tried(None)], "due"),
        ([tried(None), tried(pinned())], "blocked"),
        ([tried(pinned("v1"))], "due"),
        # a run of selected models publishes only those
        ([tried(pinned(nodes=("model.a",)))], "due"),
        ([tried(pinned(nodes=("model.a",)), active=True)], "waiting"),
        ([tried(pinned(nodes=("model.a",))), tried(pinned())], "blocked"),
        # with other code, the same deliveries may succeed
        ([tried(pinned(code="c0"))], "due"),
        ([tried(pinned(manifest="m0"))], "due"),
        ([tried(pinned(code="c0"), active=True)], "running"),
        # somebody has returned to the code with which they failed before
        ([tried(pinned(code="c0"), run="run-2"), tried(pinned())], "blocked"),
        ([tried(pinned(code="c0"), run="run-2"), tried(pinned("v1"))], "due"),
        # only the newest run with all models counts: deliveries are never removed
        ([tried(pinned("v1"), run="run-2"), tried(pinned())], "due"),
    ],
)
def test_what_the_newest_runs_mean(tries: Sequence[Attempt], state: str) -> None:
    assert decide(*tries).state == state


def test_a_blocked_set_names_the_run_that_blocks_it() -> None:
    assert decide(tried(pinned(), run="run-7")).run_id == "run-7"


def test_a_run_that_was_skipped_by_a_hold_is_started_again_after_the_hold() -> None:
    assert decide(tried(pinned()), current=lifted("key-of-run-1")).state == "due"
    assert decide(tried(pinned()), current=lifted("another")).state == "blocked"


def test_a_run_that_failed_before_the_one_that_a_hold_skipped_blocks_nothing() -> None:
    tries = tried(pinned(), run="run-2"), tried(pinned(), run="run-1")
    assert decide(*tries, current=lifted("key-of-run-2")).state == "due"


def test_a_run_that_blocks_is_found_behind_any_number_of_partial_runs() -> None:
    partial = [tried(pinned(nodes=("model.a",)), run=f"partial-{number}") for number in range(200)]
    assert decide(*partial, tried(pinned(), run="run-1")).state == "blocked"


def test_the_id_of_a_set_changes_with_the_deliveries_and_only_then() -> None:
    assert decide().set_id == decide(tried(pinned())).set_id
    more = {**NOW, "bronze.items": CurrentSet(frozenset({"w2"}), 2)}
    assert decide().set_id != decide(now=more).set_id
    assert standing(NOW, Published(PUBLISHED), [], Code("c2", "m1"), None).set_id != decide().set_id
    assert decide(current=lifted()).set_id != decide().set_id


def test_a_run_that_was_rolled_back_is_repeated_when_there_is_no_hold() -> None:
    """A rollback restores older content of all projects; each gets its new content back only through a new run."""
    before = Published(rolled_back="key-of-run-1")
    held = Current(release="r1", serial=1, hold=Hold(who="me", when=utc_now(), reason=""))
    assert standing(NOW, before, [tried(pinned())], CODE, Current(release="r1", serial=1)).state == "due"
    assert standing(NOW, before, [tried(pinned())], CODE, held).state == "blocked"
    assert standing(NOW, before, [tried(pinned(), run="run-2")], CODE, lifted()).state == "blocked"


def test_a_set_whose_runs_are_never_pinned_is_tried_three_times() -> None:
    first = decide()
    ended = [tried(None, run=f"{run_prefix(first.set_id)}{number}") for number in range(3)]
    assert [decide(*ended[:number]).unpinned for number in range(3)] == [0, 1, 2]
    assert (decide(*reversed(ended)).state, decide(*reversed(ended)).run_id) == ("blocked", ended[-1].run_id)
    # another set starts over, and other runs that were never pinned don't count
    more = {**NOW, "bronze.items": CurrentSet(frozenset({"w2"}), 2)}
    assert decide(*ended, now=more).state == "due"
    assert decide(*[tried(None, run=f"manual-{number}") for number in range(5)]).state == "due"


# -- what a project published last ------------------------------------------------------------------------------------


class CountingS3(MemoryS3):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def get_object(self, **arguments: Any) -> Any:
        self.reads += 1
        return super().get_object(**arguments)


def release(
    store: ObjectStore, serial: int, project: str = "a", kind: Any = "publish", nodes: tuple[str, ...] | None = None
) -> None:
    """Makes a release live, and pins its run."""
    environment, name = EnvironmentLayout("prod"), f"r{serial:05}"
    run = f"run-{serial}"
    made = records.Release(
        release=name, serial=serial, kind=kind, environment="prod", project=project, run=run, epoch=1,
        previous=f"r{serial - 1:05}" if serial > 1 else None, created_at=utc_now(), who="me", tables={}, reason="",
    )  # fmt: skip
    store.create(environment.release(name), made)
    store.create(RunLayout(environment.epoch(run, 1)).pin, pinned(nodes=nodes))
    found = store.get(environment.current)
    current = Current(release=name, serial=serial)
    if found is None:
        store.create(environment.current, current)
    else:
        store.swap(environment.current, current, found.etag)


def test_only_releases_since_the_last_look_are_read() -> None:
    s3 = CountingS3()
    store, environment = ObjectStore(s3, "lake"), EnvironmentLayout("prod")
    publishes = Publishes(store, environment)
    release(store, 1, "a")
    for serial in range(2, 200):
        release(store, serial, "b")
    first = publishes.last("a", read_live(store, environment))
    assert first.run == "run-1"
    release(store, 200, "b")
    live = read_live(store, environment)
    s3.reads = 0
    assert publishes.last("a", live) == first
    assert s3.reads < 10
    assert publishes.last("a", live) == first
    assert publishes.last("nobody", None) == Published()


@pytest.mark.parametrize("looked", [True, False])
def test_a_rollback_since_the_last_look_counts(looked: bool) -> None:
    store, environment = ObjectStore(MemoryS3(), "lake"), EnvironmentLayout("prod")
    publishes = Publishes(store, environment)

    def last() -> Published:
        return publishes.last("a", read_live(store, environment))

    release(store, 1)
    if looked:
        assert last().versions
    release(store, 2, "b", kind="rollback")
    assert last() == Published(rolled_back="run-1", run="run-1")
    release(store, 3, "b")
    assert last().rolled_back == "run-1"
    release(store, 4, nodes=("model.a",))  # of selected models
    assert last().rolled_back == "run-1"
    release(store, 5)
    assert (last().run, last().rolled_back) == ("run-5", "")
