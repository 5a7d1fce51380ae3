"""The lake's rules as a state machine: interleaved runs, publishers and rollbacks, with kills at any write."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from busco.errors import BuscoError
from busco.lake import pins, releases
from busco.lake.records import Current, Published, Release, Result
from busco.lake.runs import Run, TakenAway
from tests.unit.lake import AUDIT, ENVIRONMENT, PARENTS, TESTS, Lake, audit_of, others, version
from tests.unit.memory_s3 import Killed


class Protocol(RuleBasedStateMachine):
    """Anything can happen in any order, and a process can be killed at any write."""

    def __init__(self) -> None:
        super().__init__()
        self.lake = Lake()
        self.runs: list[Run] = []
        self.serial = 0
        # runs whose publish ended with "put on hold", and runs that a `resume` has named
        self.held_back: set[str] = set()
        self.named: set[str] = set()
        # releases that the invariants have already checked, and the runs and epochs that were published
        self.checked: set[str] = set()
        self.published_runs: set[tuple[str, int]] = set()

    @contextlib.contextmanager
    def process(self, kill: tuple[int, bool] | None):
        self.lake.s3.kill_at, self.lake.s3.kill_after = kill or (None, False)
        try:
            yield
        except (Killed, TakenAway, BuscoError, releases.Skipped):
            pass
        finally:
            self.lake.s3.kill_at = None

    kills = st.one_of(st.none(), st.tuples(st.integers(0, 4), st.booleans()))

    # -- what the actors do -------------------------------------------------------------------------------------------

    def do_publish(self, run: Run) -> None:
        try:
            # without `take_over`, a project without an id cannot drop most of its tables
            self.lake.publish(run, take_over=True)
        except releases.OnHold:
            self.held_back.add(run.name)
            raise

    def do_whole_run(self) -> None:
        run = self.lake.pin()
        self.runs.append(run)
        self.lake.build_all(run, keep=True)
        self.do_publish(run)

    def do_rollback(self, position: int) -> None:
        known = [release.release for release in releases.history(self.lake.store, ENVIRONMENT)]
        if known:
            releases.rollback(self.lake.store, ENVIRONMENT, known[position % len(known)], "me", "bad")

    def do_resume(self) -> None:
        hold = releases.resume(self.lake.store, ENVIRONMENT)
        self.named.update(hold.skipped if hold else ())

    # -- sequential steps ---------------------------------------------------------------------------------------------

    @rule(read=st.booleans())
    def deliver(self, read: bool) -> None:
        """A file arrives, either for a table that models read or for one that no model reads."""
        self.lake.deliveries += read
        self.lake.other_deliveries += not read

    @rule(table=st.sampled_from(["gold.g", "gold.h"]))
    def add_or_remove_a_model(self, table: str) -> None:
        self.lake.tables ^= {table}

    @rule(partial=st.booleans())
    def pin(self, partial: bool) -> None:
        self.runs.append(self.lake.pin(("x",) if partial else None))

    @rule()
    def prepare(self) -> None:
        """A run is built completely, but not published yet."""
        run = self.lake.pin()
        self.runs.append(run)
        self.lake.build_all(run, keep=True)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def clear_pin(self, data) -> None:
        run = data.draw(self.a_run())
        self.runs.append(self.lake.pin(run.pin.nodes, run.name, run.pin.epoch + 1))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), table=st.sampled_from(sorted(PARENTS)), runner=st.integers(1, 3), kill=kills)
    def build(self, data, table, runner, kill) -> None:
        with self.process(kill):
            self.lake.build(data.draw(self.a_run()), table, runner)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), test=st.sampled_from(sorted(TESTS)), passed=st.booleans(), runner=st.integers(1, 3))
    def test(self, data, test, passed, runner) -> None:
        self.lake.test(data.draw(self.a_run()), test, passed, runner)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), kill=kills, keep=st.booleans())
    def whole_run(self, data, kill, keep) -> None:
        run = data.draw(self.a_run())
        with self.process(kill):
            self.lake.build_all(run, keep)
            self.do_publish(run)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), kill=kills)
    def publish(self, data, kill) -> None:
        run = data.draw(self.a_run())
        with self.process(kill):
            self.do_publish(run)

    @rule(kill=kills)
    def publish_the_current_code(self, kill) -> None:
        with self.process(kill):
            self.do_whole_run()

    @rule(kill=kills)
    def another_project(self, kill) -> None:
        run, audit = others(self.lake)
        with self.process(kill):
            releases.publish(run, audit, "me", run.docs)

    @rule(position=st.integers(0, 5), kill=kills)
    def rollback(self, position, kill) -> None:
        with self.process(kill):
            self.do_rollback(position)

    @rule(kill=kills)
    def resume(self, kill) -> None:
        with self.process(kill):
            self.do_resume()

    code = st.sets(st.sampled_from(["gold.g", "gold.h"])).map(frozenset)

    @rule(
        before=code, own=code, newer=st.lists(code, min_size=1, max_size=2), keep=st.booleans(), delivered=st.booleans()
    )
    def a_late_run(self, before, own, newer, keep, delivered) -> None:
        """A run is published after newer runs, each of which has its own code."""
        with self.process(None):
            self.do_resume()
            self.lake.tables = before | {"silver.s"}
            self.do_whole_run()
            self.lake.tables = own | {"silver.s"}
            late = self.lake.pin()
            self.lake.build_all(late, keep)
            for tables in newer:
                self.lake.other_deliveries += delivered
                self.lake.tables = tables | {"silver.s"}
                self.do_whole_run()
            self.do_publish(late)

    # -- interleaved steps --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), at=st.integers(0, 12))
    def one_actor_between_the_calls_of_another(self, data, at) -> None:
        """The second actor runs completely before some call of the first one."""
        actors = st.one_of(
            st.just(self.do_resume),
            st.just(self.do_whole_run),
            self.a_run().map(lambda one: lambda: self.do_publish(one)),
            st.integers(0, 5).map(lambda position: lambda: self.do_rollback(position)),
        )
        first: Callable[[], None] = data.draw(actors)
        second: Callable[[], None] = data.draw(actors)

        def interrupt() -> None:
            with contextlib.suppress(BuscoError, releases.Skipped):
                second()

        with self.process(None):
            self.lake.s3.interrupt, self.lake.s3.interrupt_at = interrupt, at
            first()
        self.lake.s3.interrupt = self.lake.s3.interrupt_at = None

    def a_run(self) -> st.SearchStrategy[Run]:
        """Returns a strategy for one of the newest runs, because those are still in progress."""
        return st.sampled_from(self.runs[-4:])

    # -- what a reader can see ----------------------------------------------------------------------------------------

    def current(self) -> Current | None:
        return self.lake.store.read(ENVIRONMENT.current, Current)

    def published(self) -> list[tuple[Release, Release | None]]:
        """Returns the releases published by runs since the last call, each with its predecessor."""
        found: list[Release | None] = []
        for release in releases.history(self.lake.store, ENVIRONMENT):
            found.append(release)
            if release.release in self.checked:
                break
        else:
            found.append(None)
        self.checked.update(release.release for release in found if release)
        return [(newer, older) for newer, older in itertools.pairwise(found) if newer and newer.kind == "publish"]

    @invariant()
    def the_live_release_is_complete_and_consistent(self) -> None:
        if self.current() is None:
            return
        live = self.lake.live()
        for table, version_ in live.tables.items():
            differs = {p for p, v in version_.inputs.items() if p not in live.tables or live.tables[p].version != v}
            assert not differs or table in live.stale, f"{table} was built from other versions of {differs}"

    @invariant()
    def the_serial_never_decreases(self) -> None:
        if (current := self.current()) is not None:
            assert current.serial >= self.serial
            self.serial = current.serial

    @invariant()
    def nothing_is_published_on_hold(self) -> None:
        current = self.current()
        if current is not None and current.hold is not None:
            assert self.lake.live().kind == "rollback"

    @invariant()
    def runs_that_were_held_back_are_named_by_resume(self) -> None:
        if (current := self.current()) is None:
            return
        # if a `resume` is killed right after its write, its caller repeats it and gets the same hold
        self.named.update(current.resumed.hold.skipped if current.resumed else ())
        waiting = current.hold.skipped if current.hold else ()
        assert self.held_back <= {*self.named, *waiting}

    @invariant()
    def each_change_of_a_version_is_attributed_to_the_release_that_made_it(self) -> None:
        """G1 relies on this: a table whose version has changed since an older release names a newer release."""
        for newer, older in itertools.pairwise([*releases.history(self.lake.store, ENVIRONMENT), None]):
            before = older.tables if older else {}
            for table, version_ in newer.tables.items():
                stays = table in before and before[table].version == version_.version
                assert version_.since == (before[table].since if stays else newer.release)

    @invariant()
    def newer_releases_are_not_undone(self) -> None:
        for newer, older in self.published():
            run = self.lake.runs[newer.run, newer.epoch]
            audit = self.lake.audit(run)
            assert (newer.run, newer.epoch) not in self.published_runs, "a run is never published twice"
            self.published_runs.add((newer.run, newer.epoch))
            self._nothing_newer_is_undone(newer, older, run.base())
            self._only_tables_that_its_code_no_longer_has_are_dropped(newer, older, run, audit)
            self._it_was_tested(newer, audit)

    def _nothing_newer_is_undone(self, newer: Release, older: Release | None, base: Release | None) -> None:
        """A run changes only what is still as in its base release, so it undoes nothing that was published since."""
        now, before, based = ({} if release is None else release.tables for release in (newer, older, base))
        for table in now.keys() | before.keys():
            if now.get(table) != before.get(table):
                was, base_was = (tables[table].version if table in tables else "" for tables in (before, based))
                assert was == base_was, f"{newer.release} changes {table}, which had moved"
            if table.startswith("bronze."):
                had, has = (tables[table].files if table in tables else 0 for tables in (before, now))
                assert has >= had, f"{newer.release} removes {had - has} deliveries of {table}"
        docs_now, docs_before, docs_based = (
            {} if release is None else release.all_docs for release in (newer, older, base)
        )
        for project, prefix in docs_now.items():
            if prefix != docs_before.get(project):
                assert docs_before.get(project) == docs_based.get(project), f"{newer.release} restores older docs"

    def _only_tables_that_its_code_no_longer_has_are_dropped(
        self, newer: Release, older: Release | None, run: Run, audit: releases.Audit
    ) -> None:
        gone = (older.tables.keys() if older else set()) - newer.tables.keys()
        assert set(newer.dropped) == gone
        assert not gone or (run.pin.nodes is None and not gone & audit.tables)
        for table, version_ in newer.tables.items():
            assert not gone & version_.inputs.keys(), f"{table} was built from a table that is dropped"

    def _it_was_tested(self, newer: Release, audit: releases.Audit) -> None:
        for test, reads in audit.tests.items():
            if reads & set(newer.built):
                shown = frozenset((table, newer.tables[table].version) for table in reads)
                assert (test, shown) in self.lake.passed, f"{test} has not passed on the versions in {newer.release}"


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def lake() -> Lake:
    return Lake()


def published(lake: Lake) -> Run:
    return lake.published()


def test_R4_a_late_write_by_a_fenced_runner_never_enters_the_run(lake: Lake) -> None:
    run = lake.pin()
    late = run.take("silver.s", 1)
    token = run.take("silver.s", 2)
    with pytest.raises(TakenAway):
        run.enter("silver.s", late, version("silver.s", {}), kept=False)
    run.enter("silver.s", token, version("silver.s", {}, "good"), kept=False)
    assert run.entries()["silver.s"].version.version == "good"
    with pytest.raises(TakenAway):
        run.take("silver.s", 1)


def test_R2_the_first_pin_of_an_epoch_is_kept(lake: Lake) -> None:
    first = lake.pin(run="r")
    lake.deliveries += 1
    assert lake.pin(run="r").pin == first.pin
    assert lake.pin(run="r", epoch=2).pin.bronze["bronze.b"].version == "b2"


def test_R1_a_dag_run_with_the_id_of_a_deleted_one_continues_its_epochs(lake: Lake) -> None:
    def begin(attempt: int, origin: str) -> Run:
        return pins.pin(lake.store, ENVIRONMENT, "r", attempt, (), "hash", origin=origin)

    first = begin(1, "7")
    assert begin(1, "7").pin == first.pin, "a retry of the same try after a lost reply must return the same pin"
    assert begin(2, "7").pin.epoch == 2
    recreated = begin(1, "8")
    assert recreated.pin.epoch == 3
    assert begin(1, "8").pin == recreated.pin
    assert begin(2, "8").pin.epoch == 4


def test_P2_a_lost_reply_to_the_swap_is_recognised(lake: Lake) -> None:
    run = lake.pin()
    lake.build_all(run)
    lake.s3.kill_at, lake.s3.kill_after = 1, True
    with pytest.raises(Killed):
        lake.publish(run)
    assert lake.live().run == run.name
    assert lake.publish(run).release == lake.live().release
    assert len(list(releases.history(lake.store, ENVIRONMENT))) == 1


def begun(lake: Lake) -> Run:
    return pins.pin(lake.store, ENVIRONMENT, "later", 1, (), "hash")


@pytest.mark.parametrize("published_before", [1, 2])
def test_P2_a_run_is_not_published_if_its_base_was_live_and_current_json_is_missing(
    lake: Lake, published_before: int
) -> None:
    for _ in range(published_before):
        published(lake)
    run = lake.pin()
    lake.build_all(run, keep=True)
    pointer, before = lake.s3.objects.pop(ENVIRONMENT.current), dict(lake.s3.objects)
    with pytest.raises(BuscoError, match=r"current.json is missing, although a release has been published") as refused:
        lake.publish(run)
    assert refused.value.hint == "restore it: busco release repair"
    assert lake.s3.objects == before
    lake.s3.objects[ENVIRONMENT.current] = pointer
    assert lake.publish(run).tables == lake.live().tables


def test_P2_nothing_is_pinned_published_or_rolled_back_to_if_current_json_is_missing(lake: Lake) -> None:
    first = lake.pin()
    lake.build_all(first)
    published(lake)
    release = lake.live().release
    published(lake)
    del lake.s3.objects[ENVIRONMENT.current]
    for act in (
        lambda: begun(lake),
        lambda: lake.publish(first),
        lambda: releases.rollback(lake.store, ENVIRONMENT, release, "ana", "wrong prices"),
        lambda: releases.resume(lake.store, ENVIRONMENT),
        lambda: list(releases.history(lake.store, ENVIRONMENT)),
    ):
        with pytest.raises(BuscoError, match=r"current.json is missing"):
            act()
    assert ENVIRONMENT.current not in lake.s3.objects


def test_P2_older_versions_of_current_json_show_that_the_only_release_was_live(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(lake)
    del lake.s3.objects[ENVIRONMENT.current]
    monkeypatch.setattr(releases, "versions", lambda _, key: ["a version"] if key == ENVIRONMENT.current else [])
    with pytest.raises(BuscoError, match=r"current.json is missing"):
        begun(lake)


def test_P2_a_first_publish_that_was_killed_before_the_swap_is_repeated(lake: Lake) -> None:
    run = lake.pin()
    lake.build_all(run)
    lake.s3.kill_at = 1
    with pytest.raises(Killed):
        lake.publish(run)
    assert list(lake.store.keys(ENVIRONMENT.releases))
    assert begun(lake).pin.base is None
    assert lake.publish(run).release == lake.live().release


def test_P2_a_first_release_that_goes_live_while_it_is_looked_for_is_found(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(lake)
    pointer = lake.s3.objects.pop(ENVIRONMENT.current)

    def written_meanwhile(*_: object) -> list[str]:
        lake.s3.objects[ENVIRONMENT.current] = pointer
        return ["a version"]

    monkeypatch.setattr(releases, "versions", written_meanwhile)
    assert begun(lake).pin.base == lake.live().release


def test_P3_a_hold_skips_and_names_the_run_for_resume(lake: Lake) -> None:
    published(lake)
    first = lake.live().release
    releases.rollback(lake.store, ENVIRONMENT, first, "ana", "wrong prices")
    run = lake.pin()
    lake.build_all(run)
    with pytest.raises(releases.Skipped, match="put on hold at .* by ana: wrong prices"):
        lake.publish(run)
    hold = releases.resume(lake.store, ENVIRONMENT)
    assert hold is not None
    assert hold.skipped == (run.name,)
    assert lake.publish(run).run == run.name


def test_P3_a_run_that_was_rolled_back_is_not_published_again(lake: Lake) -> None:
    published(lake)
    first = lake.live().release
    lake.deliveries += 1
    second = published(lake)
    releases.rollback(lake.store, ENVIRONMENT, first, "ana", "wrong")
    releases.resume(lake.store, ENVIRONMENT)
    with pytest.raises(releases.Skipped, match="published as .*, which was rolled back by"):
        lake.publish(second)


def test_P3_a_table_rebuilt_after_its_run_was_published_is_not_reported_as_live(lake: Lake) -> None:
    run = published(lake)
    live = lake.live()
    lake.build(run, "gold.g", runner=2)
    with pytest.raises(releases.Skipped, match=r"published as .*rebuilt since: gold\.g.*clear pin"):
        lake.publish(run)
    assert lake.live() == live


def test_P3_a_rolled_back_run_is_reported_as_such_even_if_others_were_published_since(lake: Lake) -> None:
    published(lake)
    first = lake.live().release
    lake.deliveries += 1
    second = published(lake)
    back = releases.rollback(lake.store, ENVIRONMENT, first, "ana", "wrong")
    releases.resume(lake.store, ENVIRONMENT)
    published(lake)
    with pytest.raises(releases.Skipped, match=f"rolled back by {back.release}"):
        lake.publish(second)


def test_R1_an_older_epoch_is_not_published(lake: Lake) -> None:
    older = lake.pin(run="r")
    lake.build_all(older)
    newer = lake.pin(run="r", epoch=2)
    with pytest.raises(BuscoError, match="epoch 1 of run r was replaced by a newer one"):
        lake.publish(older)
    lake.build_all(newer)
    assert lake.publish(newer).epoch == 2


def test_P4_a_failed_model_that_was_removed_from_the_project_does_not_block_publishing(lake: Lake) -> None:
    run = lake.pin()
    lake.build_all(run)
    run.take("gold.removed", 1)
    assert "gold.removed" not in lake.publish(run).tables


def test_P4_a_table_whose_unit_test_did_not_pass_is_not_published(lake: Lake) -> None:
    run = lake.pin()
    lake.build_all(run)
    audit = replace(AUDIT, unit_tests={"unit_test.g": "gold.g"})
    with pytest.raises(BuscoError, match=r"unit_test\.g: has not run"):
        releases.publish(run, audit, "me", "")
    run.put_result(Result(node="unit_test.g", runner=1, status="success"))
    releases.publish(run, audit, "me", "")


def test_P4_a_table_built_from_a_source_whose_test_failed_is_not_published(lake: Lake) -> None:
    run = lake.pin()
    lake.build_all(run)
    audit = replace(AUDIT, tests={**TESTS, "test.source": frozenset({"bronze.b"})})
    run.put_result(Result(node="test.source", runner=1, status="failed", reads={"bronze.b": "b1"}))
    with pytest.raises(BuscoError, match=r"test\.source: failed"):
        releases.publish(run, audit, "me", "")


def test_P4_a_table_rebuilt_after_its_tests_is_not_published_untested(lake: Lake) -> None:
    run = lake.pin()
    lake.build_all(run)
    lake.build(run, "gold.g", runner=2)
    with pytest.raises(BuscoError, match=r"test\.gold\.g: passed on different versions of gold\.g"):
        lake.publish(run)
    lake.test(run, "test.gold.g", runner=3)
    with pytest.raises(BuscoError, match=r"test\.joint: passed on different versions"):
        lake.publish(run)
    lake.test(run, "test.joint", runner=3)
    lake.publish(run)


def test_P4_a_table_built_from_another_version_of_its_parent_is_refused(lake: Lake) -> None:
    run = lake.pin()
    lake.build_all(run)
    lake.build(run, "silver.s", runner=2)
    lake.test(run, "test.silver.s", runner=2)
    with pytest.raises(BuscoError, match=r"gold\.g \(from a different version of silver\.s\)") as refused:
        lake.publish(run)
    assert "clear gold.g, gold.h" in str(refused.value)


def test_P5_publishing_a_selection_marks_outdated_downstream_tables_as_stale(lake: Lake) -> None:
    published(lake)
    lake.deliveries += 1
    run = lake.pin(nodes=("silver.s",))
    lake.build(run, "silver.s")
    lake.test(run, "test.silver.s")
    release = lake.publish(run)
    assert release.stale == {"gold.g": ("silver.s",), "gold.h": ("bronze.b", "silver.s")}
    assert release.tables["bronze.b"].version == "b2"


def test_P6_the_second_of_two_runs_on_one_base_is_refused_with_the_task_to_clear(lake: Lake) -> None:
    published(lake)
    one = lake.pin()
    lake.deliveries += 1
    two = lake.pin()
    lake.build_all(two)
    lake.build_all(one)
    lake.publish(one)
    with pytest.raises(BuscoError, match=r"published by another run.*gold\.g, gold\.h, silver\.s") as refused:
        lake.publish(two)
    assert "clear the pin task" in str(refused.value)


def test_P6_a_run_that_is_contained_in_a_newer_one_is_superseded(lake: Lake) -> None:
    published(lake)
    one = lake.pin()
    lake.deliveries += 1
    two = lake.pin()
    lake.build_all(one)
    lake.build_all(two)
    lake.publish(two)
    with pytest.raises(releases.Skipped, match="superseded by"):
        lake.publish(one)


def test_P6_tables_that_a_run_kept_never_replace_newer_published_ones(lake: Lake) -> None:
    published(lake)
    old = lake.live()
    one = lake.pin()
    for table in PARENTS:
        one.enter(table, one.take(table, 1), old.tables[table], kept=True)
    lake.deliveries += 1
    published(lake)
    newer = lake.live()
    for test in TESTS:
        lake.test(one, test)
    lake.publish(one)
    assert lake.live().tables == newer.tables, "all tables, including bronze, must stay as the newer run published them"


def test_P6_a_run_whose_kept_parent_has_moved_must_be_pinned_again(lake: Lake) -> None:
    published(lake)
    old = lake.live()
    one = lake.pin()
    one.enter("silver.s", one.take("silver.s", 1), old.tables["silver.s"], kept=True)
    one.enter("gold.h", one.take("gold.h", 1), old.tables["gold.h"], kept=True)
    lake.build(one, "gold.g")
    for test in TESTS:
        lake.test(one, test)
    two = lake.pin(nodes=("silver.s",))
    lake.build(two, "silver.s")
    lake.test(two, "test.silver.s")
    lake.publish(two)
    with pytest.raises(BuscoError, match=r"published by another run.*silver\.s") as refused:
        lake.publish(one)
    assert "clear the pin task" in str(refused.value)


def test_P7_a_full_run_drops_tables_that_its_project_no_longer_has(lake: Lake) -> None:
    published(lake)
    lake.tables -= {"gold.h"}
    run = lake.pin()
    lake.build_all(run)
    release = lake.publish(run)
    assert release.dropped == ("gold.h",)
    assert "gold.h" not in release.tables


def test_P7_nothing_is_dropped_when_the_project_changed_since_the_pin(lake: Lake) -> None:
    published(lake)
    run = lake.pin()
    for table in ("silver.s", "gold.g"):
        lake.build(run, table)
    for test in ("test.silver.s", "test.gold.g"):
        lake.test(run, test)
    changed = audit_of({"silver.s", "gold.g"})
    assert "gold.h" in releases.publish(run, changed, "me", "").tables


def test_P8_rolling_back_needs_a_reason_and_a_release_that_was_live(lake: Lake) -> None:
    published(lake)
    with pytest.raises(BuscoError, match="needs a reason"):
        releases.rollback(lake.store, ENVIRONMENT, lake.live().release, "me", " ")
    with pytest.raises(BuscoError, match="does not match any release that has been live"):
        releases.rollback(lake.store, ENVIRONMENT, "r2000", "me", "why")


@pytest.mark.parametrize("lost", ["record", "record of a bronze table", "page"])
def test_P9_a_release_without_a_record_or_page_is_neither_published_nor_rolled_back_to(lake: Lake, lost: str) -> None:
    published(lake)
    first = lake.live()
    lake.deliveries += 1
    run = lake.pin()
    lake.build_all(run)
    for tables in (run.pin.bronze | {t: e.version for t, e in run.entries().items() if e.version}, first.tables):
        lose(lake, tables["gold.g" if lost == "record" else "bronze.b"], lost)
    before = dict(lake.s3.objects)
    problem = r"the records or the Iceberg metadata of these tables do not exist: \w+\.\w \(s3://lake/_lake/env/prod/"
    with pytest.raises(BuscoError, match=problem) as refused:
        lake.publish(run)
    assert "clear the tasks of these tables" in refused.value.hint
    with pytest.raises(BuscoError, match=problem) as refused:
        releases.rollback(lake.store, ENVIRONMENT, first.release, "me", "wrong prices")
    assert "busco release repair" in refused.value.hint
    assert lake.s3.objects == before


def test_P9_a_damaged_record_of_a_bronze_table_blocks_a_rollback_to_it_but_no_newer_version(lake: Lake) -> None:
    published(lake)
    first = lake.live()
    lake.s3.objects[first.tables["bronze.b"].record] = b"not a record"
    lake.deliveries += 1
    published(lake)
    with pytest.raises(BuscoError, match=r"the record of version b1 of bronze.b is damaged: s3://lake/") as refused:
        releases.rollback(lake.store, ENVIRONMENT, first.release, "me", "wrong prices")
    assert "busco release repair" in refused.value.hint


def lose(lake: Lake, one: Published, lost: str) -> None:
    """Deletes a version's record, or makes the record name a page that does not exist."""
    body = lake.s3.objects.pop(one.record)
    if lost == "page":
        page = {"page": one.version, "deliveries": 1, "rows": 1, "bytes": 1}
        lake.s3.objects[one.record] = json.dumps({**json.loads(body), "pages": [page]}).encode()


def test_docs_of_a_release_from_before_several_projects_are_attributed_to_its_project(lake: Lake) -> None:
    published(lake)
    made = lake.live()
    assert made.all_docs == {"busco": made.docs}
    before = releases.Release.model_validate(made.model_dump(mode="json", exclude={"all_docs", "project"}))
    assert before.docs_by_project() == {"busco": made.docs}


# -- two dbt projects in one lake -------------------------------------------------------------------------------------


def test_P7_a_full_run_of_one_project_leaves_the_tables_and_docs_of_another_alone(lake: Lake) -> None:
    own = published(lake)
    before = lake.live()
    run, audit = others(lake)
    release = releases.publish(run, audit, "me", "docs/other/")
    assert release.dropped == ()
    assert {table: release.tables[table] for table in before.tables} == before.tables
    assert release.all_docs == {"busco": own.docs, "other": "docs/other/"}


def test_a_table_of_another_project_is_refused_with_both_names_at_pin_and_at_publish(lake: Lake) -> None:
    run, audit = others(lake, "gold.g")
    published(lake)
    text = r"other defines tables that belong to another project in the live release: gold\.g \(owned by busco\)"
    with pytest.raises(BuscoError, match=text):
        releases.publish(run, audit, "me", "")
    with pytest.raises(BuscoError, match=text):
        pins.pin(lake.store, ENVIRONMENT, "run", 1, (), "hash", project="other", tables=("gold.g",))


def test_P3_a_run_that_kept_everything_is_published_whatever_another_project_has_published(lake: Lake) -> None:
    published(lake)
    releases.publish(*others(lake), "me", "")
    run = lake.pin()
    lake.build_all(run, keep=True)
    release = lake.publish(run)
    assert release.built == ()
    releases.publish(*others(lake), "me", "")
    assert lake.publish(run) == release
