"""Fixtures of the tests with other engines: the local AWS that the engines were started with, and lakes in it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from busco.embedded.sample import write_sample
from busco.settings import env_file, read_env_file
from tests.engines.engine import Spark, Trino
from tests.engines.server import STATE
from tests.extremes import MODELS
from tests.platforms import ROOT, Platform, platform, with_parse

MINI = ROOT / "tests/projects/mini"
DESCRIBED = """models:
  - name: nested
    description: |
      Nested columns, each with a description.

      This one has several lines, a "quotation", and an accent: é.
    columns:
      - {name: k, description: The key.}
      - {name: a_struct, description: "A struct. __LONG__"}
      - {name: a_struct.a, description: A number within a struct.}
      - {name: structs.x, description: An amount within a list of structs.}
      - {name: maps.v, description: "A moment within\\na list\\nof structs within a map."}
"""


@pytest.fixture(scope="session")
def served() -> Path:
    """The state folder of the local AWS that the engines were started with."""
    hint = 'start it, and then the engines again: eval "$(scripts/test_engines.sh env)"'
    assert env_file(STATE).is_file(), f"the local AWS of these tests is not running; {hint}"
    return STATE


@pytest.fixture(scope="session")
def trino(served: Path) -> Trino:
    engine = Trino(os.environ["BUSCO_TEST_TRINO"])
    assert ("busco_gold",) in engine.rows("show schemas"), "Trino's catalog is not the tests' Glue: start it again"
    return engine


@pytest.fixture(scope="session")
def spark(served: Path) -> Iterator[Spark]:
    """One session for all tests."""
    engine = Spark(os.environ["BUSCO_TEST_SPARK"], read_env_file(env_file(served)))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def parsed() -> dict[str, bytes]:
    """The files that parsing the small project produces, so new copies of it needn't be parsed again."""
    return {}


@pytest.fixture
def mini(tmp_path: Path, parsed: dict[str, bytes], served: Path) -> Iterator[Platform]:
    """The small project on an empty lake: silver.orders → view silver.v_orders → gold.fct."""
    with platform(tmp_path, MINI, served) as made:
        yield with_parse(made, parsed)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, served: Path) -> Iterator[Platform]:
    """The sample warehouse and a table for each of MODELS, published."""
    with platform(tmp_path_factory.mktemp("lake"), ROOT, served) as made:
        for name, (partition_by, sql) in MODELS.items():
            config = f"{{{{ config(partition_by={list(partition_by)}, contract={{'enforced': false}}) }}}}"
            made.model(f"gold/{name}", f"{config}\n{sql}")
        made.write("dbt_project/models/gold/nested.yml", DESCRIBED.replace("__LONG__", "It is long. " * 40))
        data = tmp_path_factory.mktemp("sample")
        # the folder's name is a part of the deliveries' names (tests.engines.releases.deliver says why it is a new one)
        (data / uuid.uuid4().hex).mkdir()
        write_sample(300, 7, *data.iterdir())
        assert made.take(data).good
        outcome = made.build()
        assert outcome.good, {node: status for node, status in outcome.statuses.items() if status != "success"}
        yield made
