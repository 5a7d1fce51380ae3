"""Platforms for the integration tests: one for a module, fresh for a test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from busco.warehouse.dbt import ensure_manifest, replace_file
from tests.platforms import ROOT, Platform, platform

MINI = ROOT / "tests/projects/mini"


@pytest.fixture(scope="session")
def parsed() -> dict[str, bytes]:
    """What parsing the small project gives, so that each fresh copy of it need not be parsed again."""
    return {}


@pytest.fixture
def mini(tmp_path: Path, parsed: dict[str, bytes]) -> Iterator[Platform]:
    """A fresh platform with the small project: silver.orders → view silver.v_orders → gold.fct."""
    with platform(tmp_path, MINI) as made:
        kept = [made.settings.manifest_path, made.settings.state / "dbt/partial_parse.msgpack"]
        for file in kept:
            if file.name in parsed:
                replace_file(file, parsed[file.name])
        if not parsed:
            ensure_manifest(made.settings)
            parsed.update({file.name: file.read_bytes() for file in kept})
        yield made
