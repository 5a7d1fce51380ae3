"""Whether deliveries need a run: decided from records and runs, whatever became of Airflow's dataset events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from busco.events.pending import Code, Standing, Try, Wanted, standing
from busco.lake.records import Current, Hold, Pin, Published, Resumed, utc_now

CODE = Code("c1", "m1")
NOW = {"bronze.orders": Wanted(frozenset({"v2", "v2-old"}), 3), "bronze.items": Wanted(frozenset({"w1"}), 1)}
PUBLISHED = {"bronze.orders": ("v1", 2), "bronze.items": ("w1", 1)}


def pinned(orders: str = "v2", nodes: tuple[str, ...] | None = None, code: str = "c1", manifest: str = "m1") -> Pin:
    def one(table: str, version: str) -> Published:
        return Published(table=table, version=version, record="r", rows=1, bytes=1, files=1, metadata="m")

    return Pin(
        run="r", epoch=1, environment="prod", base=None, manifest_hash=manifest, nodes=nodes, code_version=code,
        created_at=utc_now(),
        bronze={"bronze.orders": one("bronze.orders", orders), "bronze.items": one("bronze.items", "w1")},
    )  # fmt: skip


def tried(pin: Pin | None, active: bool = False, run: str = "run-1") -> Try:
    return Try(run, f"key-of-{run}", active, pin)


def lifted(*runs: str) -> Current:
    hold = Hold(who="me", when=utc_now(), reason="", skipped=runs)
    return Current(release="r1", serial=1, resumed=Resumed(hold=hold))


def decide(*tries: Try, before: Any = PUBLISHED, current: Current | None = None, now: Any = NOW) -> Standing:
    return standing(now, before, list(tries), CODE, current)


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
        # only the newest run with all models counts: deliveries are never removed
        ([tried(pinned("v1"), run="run-2"), tried(pinned())], "due"),
    ],
)
def test_what_the_newest_runs_mean(tries: Sequence[Try], state: str) -> None:
    assert decide(*tries).state == state


def test_a_blocked_set_names_the_run_that_blocks_it() -> None:
    assert decide(tried(pinned(), run="run-7")).run_id == "run-7"


def test_a_run_that_was_skipped_by_a_hold_is_started_again_after_the_hold() -> None:
    assert decide(tried(pinned()), current=lifted("key-of-run-1")).state == "due"
    assert decide(tried(pinned()), current=lifted("another")).state == "blocked"


def test_the_mark_changes_with_the_deliveries_and_only_then() -> None:
    assert decide().mark == decide(tried(pinned())).mark
    more = {**NOW, "bronze.items": Wanted(frozenset({"w2"}), 2)}
    assert decide().mark != decide(now=more).mark
