"""A run that is published late: what other runs have published since it was pinned stays as it is."""

from __future__ import annotations

import pytest

from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.records import Release
from busco.lake.runs import Run
from tests.unit.lake import ENVIRONMENT, PARENTS, TESTS, Lake, others, version


@pytest.fixture
def lake() -> Lake:
    """A lake whose project was published once."""
    made = Lake()
    made.published()
    return made


def kept(lake: Lake) -> Run:
    """A run of everything that keeps everything, ready to be published."""
    run = lake.pin()
    lake.build_all(run, keep=True)
    assert all(entry.kept for entry in run.entries().values())
    return run


def differences(newer: Release, older: Release) -> set[str]:
    return {t for t in newer.tables.keys() | older.tables.keys() if newer.tables.get(t) != older.tables.get(t)}


# -- tables -----------------------------------------------------------------------------------------------------------


def test_P7_a_table_that_newer_code_has_added_is_not_dropped_by_an_older_run(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    lake.published()
    late = kept(lake)
    lake.tables |= {"gold.h"}
    lake.published(keep=True)
    newer = lake.live()
    release = lake.publish(late)
    assert release.dropped == ()
    assert differences(release, newer) == set()


def test_P7_a_table_that_newer_code_has_removed_is_not_brought_back_by_a_run_that_kept_it(lake: Lake) -> None:
    late = kept(lake)
    lake.tables -= {"gold.h"}
    lake.published(keep=True)
    assert "gold.h" not in lake.publish(late).tables


def test_P7_a_removed_table_that_newer_code_has_built_again_is_not_dropped(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    late = kept(lake)
    lake.tables |= {"gold.h"}
    lake.published(code="changed")
    newer = lake.live()
    release = lake.publish(late)
    assert release.dropped == ()
    assert release.tables["gold.h"] == newer.tables["gold.h"]


def test_P7_a_table_that_a_newer_run_has_read_is_not_dropped_nor_what_that_was_made_from(lake: Lake) -> None:
    """The older code has neither gold.g nor silver.s behind it; a newer run has made gold.n from gold.g."""
    lake.tables = frozenset()
    late = lake.pin()
    newer = lake.pin(nodes=("gold.n",))
    inputs = {"gold.g": lake.live().tables["gold.g"].version}
    newer.enter("gold.n", newer.take("gold.n", 1), version("gold.n", inputs), kept=False)
    releases.publish(newer, releases.Audit({}, frozenset({*PARENTS, "gold.n"}), "busco", "newer"), "me", newer.docs)
    release = lake.publish(late)
    assert release.dropped == ("gold.h",)
    assert release.stale == {}


def test_P7_a_run_still_drops_what_its_base_had_where_others_were_published_in_between(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    late = kept(lake)
    releases.publish(*others(lake), "me", "docs/other/")
    release = lake.publish(late)
    assert release.dropped == ("gold.h",)
    assert "gold.o" in release.tables


def test_P7_a_table_that_was_rolled_back_is_not_brought_back_by_a_run_that_kept_it(lake: Lake) -> None:
    lake.tables -= {"gold.h"}
    lake.published()
    without = lake.live().release
    lake.tables |= {"gold.h"}
    lake.published(keep=True)
    late = kept(lake)
    releases.rollback(lake.store, ENVIRONMENT, without, "ana", "gold.h is wrong")
    releases.resume(lake.store, ENVIRONMENT)
    assert "gold.h" not in lake.publish(late).tables


def test_P3_a_run_that_follows_newer_tables_can_be_published_again(lake: Lake) -> None:
    late = kept(lake)
    lake.deliveries += 1
    lake.published()
    assert lake.publish(late) == lake.live()
    assert lake.publish(late) == lake.live(), "its reply was lost, or its task was cleared"


def test_P3_a_kept_table_that_was_built_after_its_run_was_published_is_not_said_to_be_live(lake: Lake) -> None:
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


def test_P5_bronze_that_was_rolled_back_is_not_brought_back_by_a_run_that_built_nothing(lake: Lake) -> None:
    """The first release had no bronze.c at all."""
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


def test_P5_newer_deliveries_stay_where_an_older_run_is_published(lake: Lake) -> None:
    late = kept(lake)
    lake.other_deliveries += 1
    lake.published(keep=True)
    newer = lake.live()
    assert len(newer.tables["bronze.c"].deliveries) == 2
    assert differences(lake.publish(late), newer) == set()


def test_P5_stale_marks_that_a_newer_run_has_made_stay(lake: Lake) -> None:
    late = kept(lake)
    lake.deliveries += 1
    partial = lake.pin(nodes=("silver.s",))
    lake.build(partial, "silver.s")
    lake.test(partial, "test.silver.s")
    stale = lake.publish(partial).stale
    assert set(stale) == {"gold.g", "gold.h"}
    assert lake.publish(late).stale == stale


# -- docs -------------------------------------------------------------------------------------------------------------


def test_P7_newer_docs_stay_where_an_older_run_is_published(lake: Lake) -> None:
    late = kept(lake)
    newer = lake.published(keep=True)
    releases.publish(*others(lake), "me", "docs/other/")
    release = lake.publish(late)
    assert release.all_docs == {"busco": newer.docs, "other": "docs/other/"}
    assert release.docs == late.docs, "those of the run, for tables that the newer docs do not know"


def test_P7_a_run_replaces_the_docs_of_its_base(lake: Lake) -> None:
    release = lake.publish(kept(lake))
    assert release.all_docs == {"busco": release.docs}


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_P4_a_table_made_from_one_that_newer_code_has_removed_is_refused(lake: Lake) -> None:
    late = lake.pin()
    lake.build(late, "silver.s", keep=True)
    lake.build(late, "gold.h", keep=True)
    lake.build(late, "gold.g", code="changed")
    for test in lake.audit(late).tests:
        lake.test(late, test)
    lake.tables -= {"gold.h"}
    lake.published(keep=True)
    # its joint test has read gold.h, which is no longer there
    with pytest.raises(BuscoError, match=r"published by another run.*gold\.h") as refused:
        lake.publish(late)
    assert "clear the pin task" in str(refused.value)
