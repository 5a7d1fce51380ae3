"""What metadata keeps about columns with personal data, and what is rebuilt when a column is marked as personal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from busco import refusals
from busco.errors import BuscoError
from busco.lake import dates
from busco.lake.bounds import without_bounds
from busco.lake.contents import read_version
from busco.lake.deliveries import Contract, bronze_version
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, Published, Version
from busco.project import Project
from busco.projects import all_contracts
from busco.warehouse.personal import Personal, of_version
from busco.warehouse.redact import Redactor
from tests.unit.lake import COLUMNS as ONE
from tests.unit.memory_s3 import MemoryS3

COLUMNS = (
    Column(name="id", type="VARCHAR"),
    Column(name="Born", type="DATE"),
    Column(name='a "b"', type="STRUCT(a VARCHAR, seen DATE[])"),
)
BOUNDS = {"min": "2001-01-01", "max": "2018-01-01"}
COUNTS = {"null_count": "1", "num_values": "3", "column_size_bytes": "9"}
# "most_frequent" represents statistics of a later DuckDB version, which could contain values
STATISTICS = {
    '"id"': {"min": "a", "max": "b", **COUNTS},
    '"Born"': {**BOUNDS, **COUNTS, "most_frequent": "2001-01-01"},
    '"a ""b"""."a"': {"min": "x", "max": "y", **COUNTS},
    '"a ""b"""."seen"."element"': {**BOUNDS, "max": "infinity", **COUNTS},
}


def test_statistics_of_personal_columns_are_reduced_to_counts_and_whether_dates_are_in_range() -> None:
    found = without_bounds(STATISTICS, COLUMNS, {"born", 'a "b"'})
    assert found == {
        '"id"': STATISTICS['"id"'],
        '"Born"': {**COUNTS, "in_range": "true"},
        '"a ""b"""."a"': COUNTS,
        '"a ""b"""."seen"."element"': {**COUNTS, "in_range": "false"},
    }
    assert without_bounds(found, COLUMNS, {"born", 'a "b"'}) == found
    for column in COLUMNS:
        fields = dates.paths([column])
        assert dates.in_range(fields, found) is dates.in_range(fields, STATISTICS)


def test_marking_a_column_creates_a_new_bronze_version_with_the_same_files() -> None:
    store = ObjectStore(MemoryS3(), "lake")
    plain = Contract("src", "orders", COLUMNS, ("id",), "rows")
    marked = replace(plain, pii=frozenset({"Born"}))
    before, after = (bronze_version(store, one, {}, None) for one in (plain, marked))
    assert isinstance(before, Published)
    assert isinstance(after, Published)
    assert before.version != after.version
    assert before.fingerprint == after.fingerprint
    assert [read_version(store, one).personal for one in (before, after)] == [(), ("Born",)]


def project(name: str = "p", marks: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Project:
    """bronze.people → silver.people → gold.sums; gold.other reads nothing. `marks` has the columns' `pii`."""

    def node(uid: str, schema: str, parents: list[str], **more: Any) -> dict[str, Any]:
        return {
            "resource_type": "model", "name": uid.split(".")[-1], "alias": uid.split(".")[-1], "schema": schema,
            "config": {"materialized": "lake"}, "columns": {}, "depends_on": {"nodes": parents, "macros": []},
            "raw_code": "select 1", "original_file_path": f"models/{uid}.sql", "constraints": [], **more,
        }  # fmt: skip

    marked = {name: {} if mark is None else {"config": {"meta": {"pii": mark}}} for name, mark in (marks or {}).items()}
    columns = {name: {"name": name, **more} for name, more in marked.items()}
    return Project(
        {
            "metadata": {"project_name": name},
            "nodes": {
                "model.p.people": node("model.p.people", "silver", ["source.p.bronze.people"], columns=columns,
                                       config={"materialized": "lake", **(config or {})}),
                "model.p.sums": node("model.p.sums", "gold", ["model.p.people"]),
                "model.p.other": node("model.p.other", "gold", []),
            },
            "sources": {
                "source.p.bronze.people": {
                    "source_name": "bronze", "name": "people", "schema": "bronze", "database": "memory",
                    "original_file_path": "s.yml", "config": {"meta": {"delivery": "full"}},
                    "columns": {"id": {"data_type": "VARCHAR"}} | {
                        name: {"data_type": "VARCHAR", **more} for name, more in marked.items()
                    },
                }
            },
            "macros": {},
        }
    )  # fmt: skip


def test_marking_a_column_rebuilds_its_model_and_downstream_models_only() -> None:
    before, marked, unmarked = (project(marks=marks) for marks in ({"email": None}, {"email": True}, {"email": False}))
    engine = "1.5.5"
    for uid, changes in (("model.p.people", True), ("model.p.sums", True), ("model.p.other", False)):
        assert (before.fingerprint(uid, engine) != marked.fingerprint(uid, engine)) is changes, uid
        assert before.fingerprint(uid, engine) == unmarked.fingerprint(uid, engine), uid


def whole(table: str) -> Version:
    return Version(table=table, version="v", columns=ONE, rows=1, bytes=1)


def test_all_columns_of_a_version_without_a_personal_record_are_personal_if_any_can_be() -> None:
    marked = project(marks={"email": True})
    people, other = (
        whole(table).model_copy(update={"unique_id": f"model.p.{table.split('.')[1]}"})
        for table in ("silver.people", "gold.other")
    )
    assert of_version(marked, people) == {"a"}
    assert of_version(marked, other) == set()
    assert of_version(project(), people) == set()
    assert of_version(project(), people.model_copy(update={"unique_id": "model.elsewhere.people"})) == {"a"}
    assert of_version(marked, people.model_copy(update={"personal": ("b",)})) == {"b"}


def test_a_column_mark_takes_precedence_over_its_lineage() -> None:
    tables = {"bronze.people": whole("bronze.people").model_copy(update={"personal": ("a",)})}
    sql, given = 'select a as email, a as b, 1 as c from "bronze"."people"', [("email", "INTEGER"), ("b", "INTEGER")]
    given.append(("c", "INTEGER"))

    def found(marks: dict[str, bool]) -> frozenset[str]:
        return Personal(project(marks={"x": True, **marks}), tables.get).columns("model.p.people", sql, given)

    assert found({}) == {"email", "b"}
    assert found({"email": False, "C": True}) == {"b", "c"}


def test_two_projects_must_mark_the_columns_of_a_source_the_same_way() -> None:
    one, other = project("one", {"email": True}), project("other", {"email": False})
    assert len(all_contracts([one, project("other", {"email": True})])) == 1
    with pytest.raises(BuscoError, match="declare the source bronze.people differently") as clash:
        all_contracts([one, other])
    assert "identifier: other_people" in clash.value.hint
    other = project("other", {"email": False})
    other.manifest["sources"]["source.p.bronze.people"]["identifier"] = "other_people"
    assert {one.name for one in all_contracts([one, other])} == {"bronze.people", "bronze.other_people"}


@pytest.mark.parametrize(
    ("marks", "config", "problem"),
    [
        ({"email": True}, {"partition_by": ["day", "email"]}, "partition_by names email, which contains personal data"),
        ({"Email": True}, {"partition_by": "email"}, "partition_by names email, which contains personal data"),
        ({"email": "false"}, {}, "column email has `meta: {pii: 'false'}`; use true or false"),
    ],
)
def test_invalid_marks_and_partitions_by_personal_columns_are_refused_at_parse(
    marks: dict[str, Any], config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BuscoError, match=problem):
        refusals.check(project(marks=marks, config=config))


def test_partitioning_by_an_unmarked_column_is_allowed() -> None:
    refusals.check(project(marks={"email": False, "born": True}, config={"partition_by": ["email"]}))


ASKS = "{% set who = run_query('select 1') %} select id, 1 as \"{{ who }}\""


@pytest.mark.parametrize(
    ("names", "strange"),
    [
        ([("id", "VARCHAR"), ("Zqcanary Souza", "INTEGER")], "2"),
        ([("id", "VARCHAR"), ("c", 'STRUCT("Zqcanary Souza" INTEGER)')], "2"),
        ([("id", "ENUM('Zqcanary Silva', 'Zqcanary Souza')"), ("who", "VARCHAR"), ("zqcanary_n", "BIGINT")], "1, 3"),
        ([("5511999990000", "INTEGER")], "1"),
        (
            [("a_1", "DECIMAL(38,2)[]"), ("who_id", "STRUCT(a TIMESTAMP WITH TIME ZONE)"), ("count_star()", "HUGEINT")],
            "",
        ),
        ([("listed name", "MAP(VARCHAR, DOUBLE)"), ("of_things", "BIGINT")], ""),
    ],
)
def test_a_column_name_that_may_come_from_a_query_result_is_refused_without_being_shown(
    names: list[tuple[str, str]], strange: str
) -> None:
    asking = project(marks={"email": True})
    asking.nodes["model.p.people"].update(raw_code=ASKS, columns={"Listed Name": {}, "email": {}, "a": {}})
    asking.manifest["vars"] = {"kind": "of_things"}  # type: ignore[index]
    tables = {"bronze.people": whole("bronze.people")}
    personal = Personal(asking, tables.get)
    if not strange:
        personal.check_names("model.p.people", names)
        return
    with pytest.raises(BuscoError, match=f"tables that the SQL reads: {strange}") as refusal:
        personal.check_names("model.p.people", names)
    assert "anary" not in str(refusal.value)
    # column names are not checked for a model whose SQL is not generated from query results
    Personal(project(marks={"email": True}), tables.get).check_names("model.p.people", names)
    asking.nodes["model.p.other"].update(raw_code=ASKS)
    personal.check_names("model.p.other", names)


def test_all_columns_are_personal_if_jinja_received_query_results() -> None:
    tables = {"bronze.people": whole("bronze.people").model_copy(update={"personal": ("email",)})}
    sql, given = 'select a as b from "bronze"."people"', [("b", "INTEGER")]
    redactor = Redactor(project(marks={"email": True}))
    personal = Personal(redactor.project, tables.get, redactor)
    assert personal.columns("model.p.people", sql, given) == set()
    personal.check_names("model.p.people", [("Zqcanary", "INTEGER")])
    redactor.mark_indirect_reader("model.p.people")
    # lineage finds the columns that come from a table created by a hook, but the names of those columns are unknown
    assert personal.columns("model.p.people", sql, given) == set()
    with pytest.raises(BuscoError, match="tables that the SQL reads: 1"):
        personal.check_names("model.p.people", [("Zqcanary", "INTEGER")])
    redactor.mark_queried("model.p.people")
    assert personal.columns("model.p.people", sql, given) == {"b"}
