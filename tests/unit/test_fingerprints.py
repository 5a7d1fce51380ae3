"""Fingerprints: what must be built again where the code that makes it changed (R6)."""

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


def test_R6_seeds_that_are_read_in_another_way_are_built_again_with_what_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprints()
    monkeypatch.setattr(project, "SEED_READER", "another")
    after = fingerprints()
    assert {uid for uid in before if before[uid] != after[uid]} == {"seed.p.codes", "model.p.of_codes"}


def test_R6_a_seed_of_a_release_whose_types_were_duckdbs_guess_is_not_kept() -> None:
    """Such releases have fingerprints of content and configuration alone."""
    said = [{"name": "sha256", "checksum": "c"}, {}, CONFIG, [], {}, "1.5", {}]
    assert fingerprints()["seed.p.codes"] != hashlib.sha256(canonical_json(said)).hexdigest()[:32]
