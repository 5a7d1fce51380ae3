"""Publishing a run late does not undo what other runs have published since it was pinned."""

from __future__ import annotations

import pytest

from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.records import Release
from busco.lake.runs import Run
from tests.unit.lake import ENVIRONMENT, PARENTS, TESTS, Lake, others, version


@pytest.fixture
def lake() -> Lake:
    """A lake whose project has been published once."""
    made = Lake()
    made.published()
    return made


def kept(lake: Lake) -> Run:
    """Returns a full run that kept every table and is ready to be published."""
    run = lake.pin()
    lake.build_all(run, keep=True)
    assert all(entry.kept for entry in run.entries().values())
    return run


def differences(newer: Release, older: Release) -> set[str]:
    return {t for t in newer.tables.keys() | older.tables.keys() if newer.tables.get(t) != older.tables.get(t)}


# -- tables -----------------------------------------------------------------------------------------------------------


def test_P7_an_older_run_does_not_drop_a_table_that_newer_code_added(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    lake.published()
    late = kept(lake)
    lake.tables |= {"gold.h"}
    lake.published(keep=True)
    newer = lake.live()
    release = lake.publish(late)
    assert release.dropped == ()
    assert differences(release, newer) == set()


def test_P7_a_run_that_kept_a_table_does_not_restore_it_after_newer_code_removed_it(lake: Lake) -> None:
    late = kept(lake)
    lake.tables -= {"gold.h"}
    lake.published(keep=True)
    assert "gold.h" not in lake.publish(late).tables


def test_P7_a_removed_table_is_not_dropped_if_newer_code_has_built_it_again(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    late = kept(lake)
    lake.tables |= {"gold.h"}
    lake.published(code="changed")
    newer = lake.live()
    release = lake.publish(late)
    assert release.dropped == ()
    assert release.tables["gold.h"] == newer.tables["gold.h"]


def test_P7_a_table_that_a_newer_run_has_read_is_not_dropped_and_neither_are_its_parents(lake: Lake) -> None:
    """The older code has no tables, but a newer run has built gold.n from gold.g, which is built from silver.s."""
    lake.tables = frozenset()
    late = lake.pin()
    newer = lake.pin(nodes=("gold.n",))
    inputs = {"gold.g": lake.live().tables["gold.g"].version}
    newer.enter("gold.n", newer.take("gold.n", 1), version("gold.n", inputs, store=lake.store), kept=False)
    releases.publish(newer, releases.Audit({}, frozenset({*PARENTS, "gold.n"}), "busco", "newer"), "me", newer.docs)
    release = lake.publish(late)
    assert release.dropped == ("gold.h",)
    assert release.stale == {}


def test_P7_a_run_drops_removed_tables_even_if_another_project_was_published_in_between(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    late = kept(lake)
    releases.publish(*others(lake), "me", "docs/other/")
    release = lake.publish(late)
    assert release.dropped == ("gold.h",)
    assert "gold.o" in release.tables


def test_P7_a_run_that_kept_a_table_does_not_restore_it_after_a_rollback_removed_it(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    lake.published()
    without = lake.live().release
    lake.tables |= {"gold.h"}
    lake.published(keep=True)
    late = kept(lake)
    releases.rollback(lake.store, ENVIRONMENT, without, "ana", "gold.h is wrong")
    releases.resume(lake.store, ENVIRONMENT)
    assert "gold.h" not in lake.publish(late).tables


def test_P7_a_removed_table_is_dropped_if_a_rollback_has_restored_the_version_of_the_base(lake: Lake) -> None:
    base = lake.live()
    lake.tables -= {"gold.h"}
    late = kept(lake)
    lake.tables |= {"gold.h"}
    lake.published()
    releases.rollback(lake.store, ENVIRONMENT, base.release, "ana", "the newer versions are wrong")
    releases.resume(lake.store, ENVIRONMENT)
    assert lake.publish(late).dropped == ("gold.h",)


def test_P3_publishing_a_run_that_took_newer_tables_can_be_repeated(lake: Lake) -> None:
    late = kept(lake)
    lake.deliveries += 1
    lake.published()
    assert lake.publish(late) == lake.live()
    assert lake.publish(late) == lake.live(), (
        "a retry after a lost reply or a cleared task must return the same release"
    )


def test_P3_a_kept_table_that_is_built_after_its_run_was_published_is_not_reported_as_live(lake: Lake) -> None:
    run = lake.pin()
    for table in PARENTS:
        lake.build(run, table, keep=table != "gold.h")
    for test in TESTS:
        lake.test(run, test)
    live = lake.publish(run)
    assert live.built == ("gold.h",)
    lake.build(run, "gold.g", runner=2)
    with pytest.raises(releases.Skipped, match=r"published as .*: gold\.g.*clear pin"):
        lake.publish(run)
    assert lake.live() == live


# -- deliveries -------------------------------------------------------------------------------------------------------


def test_P5_a_run_that_built_nothing_does_not_restore_a_bronze_table_that_was_rolled_back(lake: Lake) -> None:
    """The first release is replaced by one without bronze.c, to which the test rolls back."""
    first = lake.live()
    without = first.model_copy(update={"release": "r1", "tables": {**first.tables}})
    del without.tables["bronze.c"]
    lake.store.create(ENVIRONMENT.release("r1"), without)
    current = lake.store.get(ENVIRONMENT.current)
    assert current is not None
    lake.store.swap(ENVIRONMENT.current, current.body.replace(first.release.encode(), b"r1"), current.etag)
    lake.published(keep=True)
    assert "bronze.c" in lake.live().tables
    late = kept(lake)
    releases.rollback(lake.store, ENVIRONMENT, "r1", "ana", "bronze.c is wrong")
    releases.resume(lake.store, ENVIRONMENT)
    assert "bronze.c" not in lake.publish(late).tables


def test_P5_deliveries_are_taken_over_if_a_rollback_has_restored_the_set_of_the_base(lake: Lake) -> None:
    base = lake.live()
    lake.other_deliveries += 1
    late = kept(lake)
    lake.other_deliveries += 1
    lake.published(keep=True)
    releases.rollback(lake.store, ENVIRONMENT, base.release, "ana", "the newest delivery is wrong")
    releases.resume(lake.store, ENVIRONMENT)
    assert lake.publish(late).tables["bronze.c"].files == 2


def test_P5_newer_deliveries_stay_when_an_older_run_is_published(lake: Lake) -> None:
    late = kept(lake)
    lake.other_deliveries += 1
    lake.published(keep=True)
    newer = lake.live()
    assert newer.tables["bronze.c"].files == 2
    assert differences(lake.publish(late), newer) == set()


def test_P5_tables_that_a_newer_run_made_stale_stay_stale(lake: Lake) -> None:
    late = kept(lake)
    lake.deliveries += 1
    partial = lake.pin(nodes=("silver.s",))
    lake.build(partial, "silver.s")
    lake.test(partial, "test.silver.s")
    stale = lake.publish(partial).stale
    assert set(stale) == {"gold.g", "gold.h"}
    assert lake.publish(late).stale == stale


# -- docs -------------------------------------------------------------------------------------------------------------


def test_P7_newer_docs_stay_when_an_older_run_is_published(lake: Lake) -> None:
    late = kept(lake)
    newer = lake.published(keep=True)
    releases.publish(*others(lake), "me", "docs/other/")
    release = lake.publish(late)
    assert release.all_docs == {"busco": newer.docs, "other": "docs/other/"}
    assert release.docs == late.docs, "the run's docs, because they cover tables that the newer docs do not"


def test_P7_a_run_replaces_the_docs_of_its_base(lake: Lake) -> None:
    release = lake.publish(kept(lake))
    assert release.all_docs == {"busco": release.docs}


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_P4_a_run_is_refused_if_its_tests_read_a_table_that_newer_code_has_removed(lake: Lake) -> None:
    late = lake.pin()
    lake.build(late, "silver.s", keep=True)
    lake.build(late, "gold.h", keep=True)
    lake.build(late, "gold.g", code="changed")
    for test in lake.audit(late).tests:
        lake.test(late, test)
    lake.tables -= {"gold.h"}
    lake.published(keep=True)
    # gold.g's joint test has read gold.h, which the live release no longer has
    with pytest.raises(BuscoError, match=r"published by another run.*gold\.h") as refused:
        lake.publish(late)
    assert "clear the pin task" in str(refused.value)
