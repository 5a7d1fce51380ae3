"""The parse that comes with an image: used for exactly the project that it was made of, and never for another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import MINI
from tests.platforms import Platform, platform


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The small project with an order in bronze; `baked` below its home has its parse."""
    with platform(tmp_path_factory.mktemp("image"), MINI) as made:
        made.deliver("id,customer,amount,day,n\n1,a,10.00,2024-01-01,1\n")
        assert "parsed for an image:" in made.busco("bake", str(made.home / "baked"))
        yield made


@pytest.fixture
def mini(image: Platform, tmp_path: Path) -> Iterator[Platform]:
    """The same, whose files a test may change: afterwards they are as they were."""
    project = image.home / "dbt_project"
    shutil.copytree(project, tmp_path / "before")
    yield image
    shutil.rmtree(project)
    shutil.copytree(tmp_path / "before", project)


@pytest.fixture
def baked(mini: Platform, tmp_path: Path) -> dict[str, str]:
    """The environment of an image's process, with a state folder of its own: another's partial parse isn't there."""
    shutil.copytree(mini.home / "baked", tmp_path / "baked")
    return {
        "BUSCO_BAKED_DIR": str(tmp_path / "baked"),
        "BUSCO_STATE_DIR": str(tmp_path / "container"),
        "BUSCO_PLATFORM": "aws",
    }


def parsed(environment: dict[str, str]) -> bool:
    """Whether a process of that environment has parsed: it leaves its partial parse for the next one."""
    return any(Path(environment["BUSCO_STATE_DIR"]).rglob("partial_parse.msgpack"))


def listed(mini: Platform, environment: dict[str, str]) -> list[str]:
    printed = mini.busco("dbt", "ls", "--resource-type", "model", environment=environment)
    return sorted(word.rpartition(".")[2] for word in printed.split() if word.startswith("busco."))


@pytest.mark.long
def test_runs_of_any_environment_parse_nothing(mini: Platform, baked: dict[str, str]) -> None:
    for environment in (baked, {**baked, "BUSCO_ENVIRONMENT": "dev_ana", "BUSCO_DBT_THREADS": "2"}):
        assert "parsed_by=image" in mini.busco("dbt", "build", environment=environment)
    assert not parsed(baked)


def test_its_project_is_the_one_that_a_parse_gives(mini: Platform, baked: dict[str, str]) -> None:
    by_image, by_dbt = (
        json.loads(mini.busco("select", "*", environment=environment).splitlines()[-1]) for environment in (baked, {})
    )
    assert by_image == by_dbt
    assert len(by_dbt) > 3


def test_what_it_builds_is_kept_by_a_process_that_parsed(mini: Platform, baked: dict[str, str]) -> None:
    """The same fingerprints: a release made in an image is the laptop's too (R7)."""
    mini.busco("dbt", "build", "--publish", environment=baked)
    before = {table: version.version for table, version in mini.live().tables.items()}
    assert "parsed_by=dbt" in mini.busco("dbt", "build", "--publish")
    assert {table: version.version for table, version in mini.live().tables.items()} == before


def test_a_model_that_is_new_or_differs_is_seen(mini: Platform, baked: dict[str, str]) -> None:
    before = listed(mini, baked)
    mini.model("gold/new", "{{ config(materialized='view') }} select 1 as one")
    assert listed(mini, baked) == sorted([*before, "new"])
    assert parsed(baked)


def test_a_file_that_is_gone_is_seen(mini: Platform, baked: dict[str, str]) -> None:
    mini.model("gold/new", "{{ config(materialized='view') }} select 1 as one")
    mini.busco("bake", baked["BUSCO_BAKED_DIR"])
    assert "new" in listed(mini, baked)
    (mini.home / "dbt_project/models/gold/new.sql").unlink()
    assert "new" not in listed(mini, baked)


def test_a_change_that_leaves_size_and_time_is_seen(mini: Platform, baked: dict[str, str]) -> None:
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


def test_another_target_of_dbt_s_is_not_the_one_that_was_parsed(mini: Platform, baked: dict[str, str]) -> None:
    listed(mini, {**baked, "DBT_TARGET": "lake"})
    assert parsed(baked)


def test_a_project_that_reads_the_environment_is_parsed_by_dbt(mini: Platform, baked: dict[str, str]) -> None:
    mini.model("gold/told", "{{ config(materialized='view') }} select '{{ env_var(\"TOLD\", \"a\") }}' as told")
    assert "env_var" in mini.busco("bake", baked["BUSCO_BAKED_DIR"])
    assert "told" in listed(mini, baked)
    assert parsed(baked)


def test_ingest_knows_the_tables_without_a_parse(mini: Platform, baked: dict[str, str]) -> None:
    file = mini.write("in/orders.csv", "id,customer,amount,day,n\n2,b,20.00,2024-01-02,1\n")
    assert "ingested" in mini.busco("ingest", str(file), environment=baked)
    assert not parsed(baked)
