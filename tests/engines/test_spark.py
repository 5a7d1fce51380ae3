"""Spark reads every table from Glue alone, with DuckDB's values and with the descriptions of nested fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from busco.project import Project, table_name
from tests.engines.engine import Spark, by_duckdb, in_spark, needs
from tests.platforms import Platform

pytestmark = [pytest.mark.long, needs("BUSCO_TEST_SPARK")]


def test_every_table_has_duckdbs_rows(spark: Spark, lake: Platform) -> None:
    different = {}
    for table, (version, rows) in by_duckdb(lake).items():
        if (found := spark.table(version)) != rows:
            different[table] = (rows - found, found - rows)
    assert different == {}


Path = tuple[str, ...]


def fields(kind: Any, path: Path = (), short: Path = ()) -> Iterator[tuple[Path, Path, str]]:
    """Yields each field of a type in Spark's JSON, also nested ones: its path, its path without the names of list and
    map contents, and its description."""
    if not isinstance(kind, dict):
        return
    for field in kind.get("fields", ()):
        paths = (*path, field["name"]), (*short, field["name"])
        yield *paths, field["metadata"].get("comment", "")
        yield from fields(field["type"], *paths)
    for part, name in (("elementType", "element"), ("keyType", "key"), ("valueType", "value")):
        yield from fields(kind.get(part), (*path, name), short)


def test_every_column_has_its_description_whole_and_nested_fields_too(spark: Spark, lake: Platform) -> None:
    project = Project.read(lake.settings.manifest_path)
    uids = {table_name(project.node(uid)): uid for uid in (*project.tables.values(), *project.sources)}
    found, expected = {}, {}
    for table in lake.live().tables:
        described = project.descriptions(uids[table])
        listed = list(fields(spark.schema(table)))
        columns = {path: text for path, _, text in listed}
        details = {name: text for name, text, _ in spark.rows(f"describe extended {in_spark(table)}")}
        found[table] = (details.get("Comment", ""), columns)
        expected[table] = (described.table, {path: described.of(path, short) for path, short, _ in listed})
    assert found == expected
    comment, columns = found["gold.nested"]
    assert comment.count("\n") > 2
    assert len(columns["a_struct",]) > 255
    assert columns["a_struct", "a"] == "A number within a struct."
    assert columns["structs", "element", "x"] == "An amount within a list of structs."
    assert columns["maps", "value", "element", "v"] == "A moment within\na list\nof structs within a map."
