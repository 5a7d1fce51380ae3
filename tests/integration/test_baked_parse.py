"""The parse that is baked into an image is used for exactly the project that it was made from, and for no other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import MINI
from tests.platforms import Platform, platform

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The small project with one order in bronze; its parse is in `baked` under its home."""
    with platform(tmp_path_factory.mktemp("image"), MINI) as made:
        made.deliver("id,customer,amount,day,n\n1,a,10.00,2024-01-01,1\n")
        assert "parsed for an image:" in made.busco("bake", str(made.home / "baked"))
        yield made


@pytest.fixture
def mini(image: Platform, tmp_path: Path) -> Iterator[Platform]:
    """The same platform for a test that changes the project's files; they are restored afterwards."""
    project = image.home / "dbt_project"
    shutil.copytree(project, tmp_path / "before")
    yield image
    shutil.rmtree(project)
    shutil.copytree(tmp_path / "before", project)


@pytest.fixture
def baked(mini: Platform, tmp_path: Path) -> dict[str, str]:
    """The environment of a process in the image, with its own state folder, which contains no partial parse."""
    shutil.copytree(mini.home / "baked", tmp_path / "baked")
    return {
        "BUSCO_BAKED_DIR": str(tmp_path / "baked"),
        "BUSCO_STATE_DIR": str(tmp_path / "container"),
        "BUSCO_PLATFORM": "aws",
    }


def parsed(environment: dict[str, str]) -> bool:
    """Whether a process in that environment has parsed the project: it then leaves a partial parse for the next one."""
    return any(Path(environment["BUSCO_STATE_DIR"]).rglob("partial_parse.msgpack"))


def listed(mini: Platform, environment: dict[str, str]) -> list[str]:
    printed = mini.busco("dbt", "ls", "--resource-type", "model", environment=environment)
    return sorted(word.rpartition(".")[2] for word in printed.split() if word.startswith("busco."))


@pytest.mark.long
def test_runs_in_any_environment_parse_nothing(mini: Platform, baked: dict[str, str]) -> None:
    for environment in (baked, {**baked, "BUSCO_ENVIRONMENT": "dev_ana", "BUSCO_DBT_THREADS": "2"}):
        assert "parsed_by=image" in mini.busco("dbt", "build", environment=environment)
    assert not parsed(baked)


def test_the_project_from_the_image_equals_the_one_that_dbt_parses(mini: Platform, baked: dict[str, str]) -> None:
    by_image, by_dbt = (
        json.loads(mini.busco("select", "*", environment=environment).splitlines()[-1]) for environment in (baked, {})
    )
    assert by_image == by_dbt
    assert len(by_dbt) > 3


@pytest.mark.slow
def test_tables_that_an_image_built_are_kept_by_a_process_that_parsed(mini: Platform, baked: dict[str, str]) -> None:
    """The fingerprints are equal, so a laptop keeps the tables of a release that was built in an image (R7)."""
    mini.busco("dbt", "build", "--publish", environment=baked)
    before = {table: version.version for table, version in mini.live().tables.items()}
    assert "parsed_by=dbt" in mini.busco("dbt", "build", "--publish")
    assert {table: version.version for table, version in mini.live().tables.items()} == before


def test_a_new_model_is_noticed(mini: Platform, baked: dict[str, str]) -> None:
    before = listed(mini, baked)
    mini.model("gold/new", "{{ config(materialized='view') }} select 1 as one")
    assert listed(mini, baked) == sorted([*before, "new"])
    assert parsed(baked)


def test_a_deleted_file_is_noticed(mini: Platform, baked: dict[str, str]) -> None:
    mini.model("gold/new", "{{ config(materialized='view') }} select 1 as one")
    mini.busco("bake", baked["BUSCO_BAKED_DIR"])
    assert "new" in listed(mini, baked)
    (mini.home / "dbt_project/models/gold/new.sql").unlink()
    assert "new" not in listed(mini, baked)


def test_a_change_that_keeps_a_file_s_size_and_time_is_noticed(mini: Platform, baked: dict[str, str]) -> None:
    file = mini.home / "dbt_project/dbt_project.yml"
    time = file.stat()
    text = file.read_text()
    changed = text.replace("materialized: lake", "materialized: view", 1)
    assert changed != text
    assert len(changed) == len(text)
    file.write_text(changed)
    os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns))
    listed(mini, baked)
    assert parsed(baked)


def test_the_parse_in_the_image_is_not_used_for_another_dbt_target(mini: Platform, baked: dict[str, str]) -> None:
    listed(mini, {**baked, "DBT_TARGET": "lake"})
    assert parsed(baked)


def test_a_project_that_reads_the_environment_is_parsed_by_dbt(mini: Platform, baked: dict[str, str]) -> None:
    mini.model("gold/told", "{{ config(materialized='view') }} select '{{ env_var(\"TOLD\", \"a\") }}' as told")
    assert "env_var" in mini.busco("bake", baked["BUSCO_BAKED_DIR"])
    assert "told" in listed(mini, baked)
    assert parsed(baked)


def test_ingest_finds_the_tables_without_parsing(mini: Platform, baked: dict[str, str]) -> None:
    file = mini.write("in/orders.csv", "id,customer,amount,day,n\n2,b,20.00,2024-01-02,1\n")
    assert "ingested" in mini.busco("ingest", str(file), environment=baked)
    assert not parsed(baked)
