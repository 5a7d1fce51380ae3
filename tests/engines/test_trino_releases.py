"""Trino reads every release of a lake after a rollback to it, however its metadata came about."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.engine import Trino, needs, shown
from tests.engines.releases import by_duckdb_of_each, by_trino, by_trino_after_rollbacks, deliver, history
from tests.lakes.make import restore
from tests.platforms import Platform

pytestmark = needs("BUSCO_TEST_TRINO")

OLDER = Path(__file__).parents[1] / "lakes/format_1.tar.xz"


def metadata(made: Platform) -> dict[str, str]:
    return {table: version.metadata for table, version in made.live().tables.items()}


@pytest.mark.long
def test_every_release_is_read_whether_its_manifests_are_new_or_shared(trino: Trino, mini: Platform) -> None:
    assert mini.build().good  # of no delivery: all tables are empty
    name = deliver(mini, [("o1", "x", "1.50", "2018-01-01", 1), ("o2", "", "2.50", "2018-01-02", 2)])
    assert mini.build().good
    deliver(mini, [("o3", "x", "-9.99", "2018-01-02", 3)])
    assert mini.build().good
    deliver(mini, [("o1", "z", "7.50", "2018-01-03", "")], name)
    assert mini.build().good
    before = metadata(mini)
    models = mini.home / "dbt_project/models"
    yaml = models / "gold/fct.yml"
    yaml.write_text(yaml.read_text().replace("- name: fct\n", "- name: fct\n    description: Orders per day.\n"))
    yaml = models / "bronze/s.yml"
    yaml.write_text(yaml.read_text().replace("{name: id,", "{name: id, description: The order's id.,"))
    assert mini.build().good
    after = metadata(mini)
    assert {table for table in after if after[table] != before[table]} == {"bronze.orders", "gold.fct"}
    assert by_trino(trino, mini) == by_duckdb_of_each(mini)[history(mini)[-1]]
    assert ("id", "varchar", "", "The order's id.") in trino.rows(f"show columns from {shown('bronze.orders')}")

    expected = by_duckdb_of_each(mini)
    assert [expected[release]["bronze.orders"].total() for release in history(mini)] == [0, 2, 3, 4, 4]
    assert by_trino_after_rollbacks(trino, mini, history(mini)) == expected


def test_every_release_that_older_code_made_is_read_after_a_rollback_to_it(trino: Trino, mini: Platform) -> None:
    restore(mini, OLDER)
    expected = by_duckdb_of_each(mini)
    assert len(expected) == 4
    assert by_trino_after_rollbacks(trino, mini, history(mini)) == expected
