"""Fingerprints: a table is built again if the code that makes it has changed (R6)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from busco import project
from busco.lake.objects import canonical_json
from busco.project import Project

CONFIG = {"materialized": "seed", "column_types": {}}


def node(kind: str, parents: list[str], **more: Any) -> dict[str, Any]:
    materialized = "seed" if kind == "seed" else "lake"
    return {"resource_type": kind, "config": {"materialized": materialized, "column_types": {}}, "columns": {},
            "depends_on": {"nodes": parents, "macros": []}, **more}  # fmt: skip


MANIFEST: dict[str, Any] = {
    "nodes": {
        "seed.p.codes": node("seed", [], checksum={"name": "sha256", "checksum": "c"}, raw_code=""),
        "model.p.of_codes": node("model", ["seed.p.codes"], raw_code="select 1"),
        "model.p.other": node("model", [], raw_code="select 1"),
    },
    "sources": {},
    "macros": {},
}


def fingerprints() -> dict[str, str]:
    made = Project(MANIFEST)
    return {uid: made.fingerprint(uid, "1.5.5") for uid in MANIFEST["nodes"]}


def test_R6_seeds_and_their_children_are_built_again_if_the_seed_reader_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprints()
    monkeypatch.setattr(project, "SEED_READER", "another")
    after = fingerprints()
    assert {uid for uid in before if before[uid] != after[uid]} == {"seed.p.codes", "model.p.of_codes"}


def test_R6_a_seed_whose_types_duckdb_inferred_in_an_older_release_is_not_kept() -> None:
    """In such releases, the fingerprint covers only the seed's content and configuration."""
    covered = [{"name": "sha256", "checksum": "c"}, {}, CONFIG, [], {}, "1.5", {}]
    assert fingerprints()["seed.p.codes"] != hashlib.sha256(canonical_json(covered)).hexdigest()[:32]


def test_R6_a_macro_with_which_a_project_replaces_one_of_dbt_s_is_part_of_a_fingerprint() -> None:
    def made(sql: str) -> str:
        macros = {
            "macro.dbt.safe_cast": {"name": "safe_cast", "package_name": "dbt", "macro_sql": "dispatch"},
            "macro.dbt.default__safe_cast": {"name": "default__safe_cast", "package_name": "dbt", "macro_sql": "cast"},
            "macro.p.duckdb__safe_cast": {"name": "duckdb__safe_cast", "package_name": "p", "macro_sql": sql},
        }
        macros["macro.dbt.safe_cast"]["depends_on"] = {"macros": ["macro.dbt.default__safe_cast"]}  # type: ignore[assignment]
        of = node("model", [], raw_code="select {{ dbt.safe_cast('a', 'int') }}")
        of["depends_on"]["macros"] = ["macro.dbt.safe_cast"]
        return Project({"nodes": {"model.p.a": of}, "sources": {}, "macros": macros}).fingerprint("model.p.a", "1.5.5")

    assert made("try_cast") == made("try_cast")
    assert made("try_cast") != made("cast")


def test_R6_the_search_order_of_macros_is_part_of_a_fingerprint() -> None:
    before = fingerprints()
    order = [{"macro_namespace": "dbt", "search_order": ["p", "dbt"]}]
    after = {uid: Project({**MANIFEST, "dispatch": order}).fingerprint(uid, "1.5.5") for uid in MANIFEST["nodes"]}
    assert not {*before.values()} & {*after.values()}
