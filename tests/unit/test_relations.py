"""What DuckDB's optimizer knows about a version (lake/relations.py), and which files it opens to find out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pytest

from busco.lake.engine import create_view
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, DataFile, Published, Release, Version
from busco.lake.relations import deferred_sql, select_sql, view_queries
from busco.project import Project
from busco.settings import Settings
from busco.warehouse import model_sql
from busco.warehouse.session import Session
from tests.unit.memory_s3 import MemoryS3

ENVIRONMENT = EnvironmentLayout("prod")
# the sizes of a table's 365 partitions are very different, and the first one is the smallest
PARTITIONS = [1, *(10 + day * 10 for day in range(1, 365))]


class FolderS3(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Serves `s3://lake/<key>` from a folder, and records which keys are opened."""

    protocol = "s3"
    cachable = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.opened = folder, set[str]()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": self._path(path).stat().st_size}

    def open(self, path: str, *_: Any, **__: Any) -> Any:
        self.opened.add(self._key(path))
        return self._path(path).open("rb")

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._path(path).stat().st_mtime, UTC)

    def _key(self, path: str) -> str:
        return path.removeprefix("s3://").removeprefix("lake/")

    def _path(self, path: str) -> Path:
        return self.folder / self._key(path)


class Lake:
    """Writes versions to a folder, as dbt's models do, and reads them with DuckDB."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.s3 = folder, FolderS3(folder)
        self.db = duckdb.connect(config={"threads": 1})
        self.db.register_filesystem(self.s3)

    def write(self, name: str, sql: str, partition_by: tuple[str, ...] = ()) -> Version:
        described = [(str(row[0]), str(row[1])) for row in self.db.execute(f"describe {sql}").fetchall()]
        columns, selected = model_sql.columns(described, ())
        folder = self.folder / ENVIRONMENT.data(f"gold.{name}", "v1")
        folder.parent.mkdir(parents=True, exist_ok=True)
        copy = model_sql.copy_sql(selected, columns, partition_by, sql, str(folder))
        self.db.execute("set partitioned_write_max_open_files = 1000")
        files = model_sql.written_files(self.db.execute(copy).fetchall(), f"{self.folder}/")
        return version(name, columns, *((file.key, file.rows) for file in files))

    def view(self, name: str, query: str) -> None:
        self.db.execute(f"create or replace view {name} as {query}")

    def estimate(self, query: str) -> int:
        """Returns the optimizer's estimate of the number of rows that a query returns."""
        plan = self.db.execute(f"explain {query}").fetchall()[0][1]
        if "EMPTY_RESULT" in plan:
            return 0
        found = re.search(r"~([\d,]+) rows?", plan)
        assert found, plan
        return int(found.group(1).replace(",", ""))

    def statistics(self, table: str, column: str) -> str:
        row = self.db.execute(f"select stats({column}) from {table} limit 1").fetchone()
        assert row is not None
        return str(row[0])


def version(name: str, columns: tuple[Column, ...], *files: tuple[str, int]) -> Version:
    return Version(
        table=f"gold.{name}",
        version="v1",
        columns=columns,
        rows=sum(rows for _, rows in files),
        bytes=0,
        files=tuple(DataFile(key=key, rows=rows, bytes=0) for key, rows in files),
        metadata="",
    )


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    made = Lake(tmp_path)
    with made.db:
        yield made


def days(lake: Lake) -> Version:
    """Writes a table of 365 partitions."""
    sizes = ", ".join(map(str, PARTITIONS))
    rows = f"from (select unnest([{sizes}]) as n, generate_subscripts([{sizes}], 1) as day), range(n) as r (i)"
    made = lake.write("days", f"select day::integer as day, i::integer as i {rows}", ("day",))
    assert sorted(file.rows for file in made.files) == sorted(PARTITIONS)
    # bronze and older records list files in different orders; the first file must not decide
    ordered = sorted(made.files, key=lambda file: file.rows)
    return made.model_copy(update={"files": tuple(ordered)})


# -- estimates --------------------------------------------------------------------------------------------------------


def test_the_estimates_for_one_file_are_those_for_the_file_alone(lake: Lake) -> None:
    made = lake.write("facts", "select range::integer as id, (range % 50)::integer as k from range(200000)")
    lake.view("facts", select_sql(made, "lake"))
    lake.view("alone", f"from read_parquet('{lake.folder / made.files[0].key}')")
    for query in (
        "from {}",
        "from {} where k = 5",
        "from {} where id between 10 and 20",
        "select k, count(*) from {} group by k",
        "select * from {} a join {} b on a.id = b.k",
    ):
        names = query.count("{}")
        assert lake.estimate(query.format(*["facts"] * names)) == lake.estimate(query.format(*["alone"] * names)), query
    assert lake.estimate("from facts") == 200_000
    assert "Min: 0, Max: 49" in lake.statistics("facts", "k") == lake.statistics("alone", "k")


def test_the_estimate_for_many_partitions_is_the_number_of_rows(lake: Lake) -> None:
    made = days(lake)
    lake.view("days", select_sql(made, "lake"))
    assert lake.estimate("from days") == sum(PARTITIONS) == made.rows
    # what DuckDB assumes without the record
    lake.view("alone", "from read_parquet([" + ", ".join(f"'{lake.folder / f.key}'" for f in made.files) + "])")
    assert lake.estimate("from alone") != made.rows


@pytest.mark.parametrize("query", [select_sql, deferred_sql])
def test_the_estimate_for_a_version_without_rows_is_at_most_one_row(lake: Lake, query: Any) -> None:
    without_files = version("nothing", (Column(name="a", type="INTEGER"),))
    empty_file = lake.write("empty", "select 1::integer as a where false")
    for made in (without_files, empty_file):
        lake.view("nothing", query(made, "lake"))
        assert lake.estimate("from nothing") <= 1
        assert lake.db.execute("from nothing").fetchall() == []


def test_the_smaller_table_of_a_join_is_held_in_memory(lake: Lake) -> None:
    facts = lake.write("facts", "select (range % 365)::integer as day, range as amount from range(100000)")
    calendar = "select range::integer as day, (range % 7)::integer as weekday from range(365)"
    lake.view("facts", select_sql(facts, "lake"))
    lake.view("calendar", select_sql(lake.write("calendar", calendar, ("day",)), "lake"))
    for join in ("calendar join facts using (day)", "facts join calendar using (day)"):
        sql = f"explain (format json) select weekday, sum(amount) from {join} group by weekday"
        pending = json.loads(lake.db.execute(sql).fetchall()[0][1])
        while (operator := pending.pop())["name"] != "HASH_JOIN":
            pending += operator["children"]
        probed, in_memory = map(str, operator["children"])
        assert ("amount" in probed, "weekday" in in_memory) == (True, True), join


def test_a_deferred_relation_has_the_number_of_rows_but_no_minima(lake: Lake) -> None:
    made = lake.write("facts", "select range::integer as id from range(1000)")
    lake.view("facts", deferred_sql(made, "lake"))
    assert lake.estimate("from facts") == 1000
    assert "Min: NULL" in lake.statistics("facts", "id")


# -- files that are opened --------------------------------------------------------------------------------------------


def test_at_most_the_first_file_is_opened_to_create_and_to_plan(lake: Lake) -> None:
    made = days(lake)
    lake.s3.opened.clear()
    lake.view("days", select_sql(made, "lake"))
    lake.estimate("select day, sum(i) from days where day > 5 group by day")
    assert lake.s3.opened == {made.files[0].key}


def test_no_file_is_opened_to_create_a_deferred_relation(lake: Lake) -> None:
    nested = lake.write("nested", "select 1 as k, {'a': [1, null]} as s, map {'x': 1} as m")
    made = days(lake)
    lake.s3.opened.clear()
    lake.view("days", deferred_sql(made, "lake"))
    lake.view("nested", deferred_sql(nested, "lake"))
    lake.estimate("select day, s from days, nested")
    assert not lake.s3.opened
    assert lake.db.execute("select count(*), sum(i) from days").fetchone() == (
        made.rows,
        sum(n * (n - 1) // 2 for n in PARTITIONS),
    )
    assert lake.db.execute("from nested").fetchall() == [(1, {"a": [1, None]}, {"x": 1})]


def test_a_view_of_a_file_that_cannot_be_opened_fails_only_where_it_is_read(lake: Lake) -> None:
    made = lake.write("facts", "select range::integer as id from range(1000)")
    (lake.folder / made.files[0].key).write_text("not Parquet")
    create_view(lake.db, "facts", view_queries(made, "lake", is_read=True))
    assert lake.db.execute("describe facts").fetchall()[0][:2] == ("id", "INTEGER")
    with pytest.raises(duckdb.Error, match=r"data_0\.parquet"):
        lake.db.execute("select sum(id) from facts")


# -- which relations dbt's connection has ----------------------------------------------------------------------------


def node(kind: str, schema: str, name: str, *parents: str, materialized: str = "lake") -> dict[str, Any]:
    config = {"materialized": materialized}
    return {"resource_type": kind, "schema": schema, "name": name, "config": config, "depends_on": {"nodes": parents}}


@pytest.mark.parametrize(
    ("nodes", "opened"),
    [
        (None, {"raw", "cleaned", "facts"}),
        ((), set()),
        (("model.p.cleaned",), {"raw"}),
        # through the view
        (("model.p.facts",), {"cleaned"}),
        # the runner replaces the relation of `cleaned` before it builds `facts`
        (("model.p.cleaned", "model.p.view", "model.p.facts"), {"raw"}),
        (("test.p.facts_are_right",), {"raw", "facts"}),
        (("unit_test.p.facts.sums",), set()),
    ],
)
def test_relations_are_opened_that_nodes_read_and_do_not_build(nodes: tuple[str, ...] | None, opened: set[str]) -> None:
    manifest = {
        "metadata": {"project_name": "p"},
        "sources": {"source.p.raw": {"resource_type": "source", "schema": "bronze", "name": "raw"}},
        "nodes": {
            "model.p.cleaned": node("model", "silver", "cleaned", "source.p.raw"),
            "model.p.view": node("model", "silver", "view", "model.p.cleaned", materialized="view"),
            "model.p.facts": node("model", "gold", "facts", "model.p.view"),
            "test.p.facts_are_right": node("test", "tests", "facts_are_right", "model.p.facts", "source.p.raw"),
        },
        "unit_tests": {"unit_test.p.facts.sums": {"depends_on": {"nodes": ["model.p.facts", "model.p.view"]}}},
    }
    columns = (Column(name="a", type="INTEGER"),)
    store, tables = ObjectStore(MemoryS3(), "lake"), {}
    for table in ("bronze.raw", "silver.cleaned", "gold.facts"):
        made = version(table.split(".")[1], columns, ("a.parquet", 1)).model_copy(update={"table": table})
        key = ENVIRONMENT.version(table, made.version)
        store.create(key, made)
        tables[table] = Published.of(made, key, made.metadata)
    base = Release.model_construct(tables=tables)
    session = Session(Settings(), Project(manifest), store, None, base, nodes=nodes)
    relations = {name: len(queries) for _, name, queries, _ in session.relations()}
    assert relations.keys() == {"raw", "cleaned", "facts"}
    # the first of two queries opens a file; the second one is for a file that can't be opened
    assert {name for name, queries in relations.items() if queries == 2} == opened


# -- files that don't have the version's schema -----------------------------------------------------------------------


def mixed(lake: Lake, *queries: str) -> Version:
    """Returns a version of columns a and b whose files were not written by the platform."""
    names = []
    for number, query in enumerate(queries):
        names.append((f"{number}.parquet", 1))
        lake.db.execute(f"copy ({query}) to '{lake.folder}/{number}.parquet'")
    columns = (Column(name="a", type="INTEGER"), Column(name="b", type="DECIMAL(5,2)"))
    return version("mixed", columns, *names)


GOOD = "select 1::integer as a, 1.5::decimal(5, 2) as b"


@pytest.mark.parametrize(
    "other",
    [
        "select 2.5::decimal(5, 2) as b, 2::integer as a",
        "select 'x' as more, 2::integer as a, 2.5::decimal(5, 2) as b",
        "select 2::bigint as a, 2.5::decimal(9, 4) as b",
    ],
    ids=["another order", "one more column", "wider types"],
)
def test_columns_are_matched_by_name_and_have_the_types_of_the_version(lake: Lake, other: str) -> None:
    for queries in ((GOOD, other), (other, GOOD)):
        lake.view("mixed", select_sql(mixed(lake, *queries), "lake"))
        rows = lake.db.execute("select a::varchar, b::varchar from mixed order by a").fetchall()
        assert rows == [("1", "1.50"), ("2", "2.50")]
        described = lake.db.execute("describe mixed").fetchall()
        assert [row[1] for row in described] == ["INTEGER", "DECIMAL(5,2)"]


@pytest.mark.parametrize(
    "other",
    ["select 2::integer as a", "select 3000000000 as a, 2.5 as b", "select 2 as a, 12345.5 as b"],
    ids=["one column less", "an integer out of range", "a decimal out of range"],
)
def test_a_file_that_does_not_fit_the_version_is_an_error(lake: Lake, other: str) -> None:
    for queries in ((GOOD, other), (other, GOOD)):
        with pytest.raises(duckdb.Error):
            lake.db.execute(select_sql(mixed(lake, *queries), "lake")).fetchall()


def test_columns_can_have_the_names_of_duckdbs_virtual_columns(lake: Lake) -> None:
    sql = 'select 1 as filename, 2 as file_row_number, 3 as file_index, 4 as rowid, 5 as "it\'s ""odd"" ü", 6 as A'
    made = lake.write("odd", sql)
    for query in (select_sql, deferred_sql):
        lake.view("odd", query(made, "lake"))
        assert lake.db.execute("from odd").fetchall() == [(1, 2, 3, 4, 5, 6)]
        assert [row[0] for row in lake.db.execute("describe odd").fetchall()][-2:] == ['it\'s "odd" ü', "A"]
