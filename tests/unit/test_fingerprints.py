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
