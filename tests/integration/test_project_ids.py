"""A dbt project keeps its tables whatever its folder and its name, and never takes another project's tables."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from busco.aws import client
from busco.errors import BuscoError
from busco.lake.owners import id_lines
from busco.lake.records import Release
from busco.project import Project
from busco.settings import get_settings
from busco.warehouse.session import write_bronze_metadata
from tests.platforms import Platform

pytestmark = pytest.mark.slow

ORDERS = "id,customer,amount,day,n\na,x,1.50,2018-01-01,1\nb,y,2.25,2018-01-02,2\n"


@pytest.fixture
def shop(mini: Platform) -> Platform:
    mini.deliver(ORDERS)
    fct = mini.home / "dbt_project/models/gold/fct.yml"
    fct.write_text(fct.read_text().replace("name: fct\n", "name: fct\n    description: Days of orders\n", 1))
    return mini


def other_folder(made: Platform, **models: str) -> None:
    """Writes another project with the same dbt name into the folder `other`."""
    (made.home / "other").mkdir()
    shutil.copy(made.home / "dbt_project/dbt_project.yml", made.home / "other")
    for name, sql in models.items():
        made.write(f"other/models/gold/{name}.sql", sql)


def identify(made: Platform, identity: str, folder: str = "dbt_project", under: str = "") -> None:
    """Writes the id into a project's dbt_project.yml, below the key `under` if one is given."""
    file = made.home / folder / "dbt_project.yml"
    text = re.sub(r"\nvars:\n(  .*\n)*", "\n", file.read_text())
    line = f"  {under}:\n    busco_project_id: {identity}\n" if under else f"  busco_project_id: {identity}\n"
    file.write_text(f"{text}\nvars:\n{line}")


def publish(made: Platform, folder: str = "", *options: str, status: int = 0, **environment: str) -> str:
    chosen = ["--project-dir", folder] if folder else []
    return made.busco("dbt", *chosen, "build", "--publish", *options, status=status, environment=environment)


def owners(release: Release) -> dict[str, str]:
    return {table: version.project for table, version in release.tables.items() if not table.startswith("bronze.")}


def versions(made: Platform) -> dict[str, str]:
    return {table: version.version for table, version in made.live().tables.items()}


OWN = ("silver.orders", "gold.fct")


def test_two_projects_with_one_name_do_not_drop_each_other_s_tables(shop: Platform) -> None:
    publish(shop)
    before = shop.live()
    other_folder(shop, visits="select 1 as n", views="select 2 as n")
    printed = publish(shop, "other", status=1)
    assert "would drop 2 of these 2 tables: gold.fct, silver.orders" in printed
    assert id_lines("busco-2") in printed
    assert "busco dbt --project-dir other build --publish --take-over" in printed
    assert shop.live() == before
    assert "vars" not in (shop.home / "other/dbt_project.yml").read_text()
    # the other project gets an id, this one still has none
    identify(shop, "busco-2", "other")
    printed = publish(shop, "other")
    assert "another dbt project is also named busco, but has no id" in printed
    assert owners(shop.live()) == dict.fromkeys(OWN, "busco") | {"gold.visits": "busco-2", "gold.views": "busco-2"}
    assert set(shop.live().all_docs) == {"busco", "busco-2"}
    printed = publish(shop, status=1)
    assert "the dbt project busco has no id, and its name is already used by the project with the id busco-2" in printed
    assert "START" not in printed, "nothing is built"
    # both have an id
    identify(shop, "busco", under="busco")
    kept = versions(shop)
    assert "drop" not in publish(shop)
    assert versions(shop) == kept
    assert shop.live().names == {"busco": "busco", "busco-2": "busco"}
    assert shop.query("select count(*) from busco_gold.fct") == [("2",)]
    assert shop.query("select n from busco_gold.visits") == [("1",)]
    for name in ("busco", "busco-2"):
        assert shop.store.get(f"docs/projects/{name}.html") is not None


def test_take_over_lists_the_tables_that_it_takes_over_and_drops(shop: Platform) -> None:
    publish(shop)
    other_folder(shop, visits="select 1 as n")
    assert "--take-over requires --publish" in shop.busco("dbt", "build", "--take-over", status=2)
    printed = publish(shop, "other", "--take-over")
    release = shop.live()
    lost = "gold.fct, silver.orders"
    places = [
        printed.index(line)
        for line in (
            f"taking over the live tables of the dbt project busco: {lost}\n",
            f"publishing drops tables that the dbt project no longer defines: {lost}\n",
            f"dropped by {release.release}: {lost}\n",
            f"{id_lines('busco')}\n",
            f"published {release.release}\n",
        )
    ]
    assert places == sorted(places)
    assert (owners(release), release.dropped) == ({"gold.visits": "busco"}, ("gold.fct", "silver.orders"))
    assert "vars" not in (shop.home / "other/dbt_project.yml").read_text()


@pytest.mark.slow
def test_take_over_moves_tables_to_a_new_project_id_without_rebuilding_them(shop: Platform) -> None:
    publish(shop)
    before = versions(shop)
    identify(shop, "market")
    printed = publish(shop, status=1)
    assert (
        "market defines tables that belong to another project in the live release: gold.fct (owned by busco)" in printed
    )
    assert "→ to move them to the id market, run: busco dbt build --publish --take-over" in printed
    printed = publish(shop, "", "--take-over")
    assert "taking over the live tables of the dbt project busco: gold.fct, silver.orders\n" in printed
    assert versions(shop) == before
    assert owners(shop.live()) == dict.fromkeys(OWN, "market")
    assert shop.live().names == {"market": "busco"}
    assert "taking over" not in publish(shop)


@pytest.mark.long
def test_a_project_keeps_its_tables_at_any_path_and_however_its_id_is_set(
    shop: Platform, tmp_path_factory: pytest.TempPathFactory
) -> None:
    publish(shop, BUSCO_PROJECT_ID="market")
    assert owners(shop.live()) == dict.fromkeys(OWN, "market")
    before = versions(shop)
    paths = [shop.home / "checkout/of/ci", tmp_path_factory.mktemp("image") / "opt/project"]
    for path, under in zip(paths, ("", "busco"), strict=True):
        shutil.copytree(shop.home / "dbt_project", path)
        identify(shop, "market", str(path), under)
        assert "drop" not in publish(shop, str(path))
        assert versions(shop) == before, "the id is not part of a fingerprint"
        assert owners(shop.live()) == dict.fromkeys(OWN, "market")
    renamed = paths[0] / "dbt_project.yml"
    renamed.write_text(renamed.read_text().replace("name: busco", "name: store").replace("  busco:\n", "  store:\n"))
    assert "drop" not in publish(shop, str(paths[0]))
    release = shop.live()
    assert (owners(release), release.names) == (dict.fromkeys(OWN, "market"), {"market": "store"})
    assert release.all_docs.keys() == {"market"}
    assert {release.tables[table].unique_id for table in OWN} == {"model.store.orders", "model.store.fct"}
    shown = client("glue", shop.settings).get_table(DatabaseName="busco_gold", Name="fct")["Table"]
    assert shown["Description"] == "Days of orders"


def test_a_renamed_project_s_sources_get_the_descriptions_that_the_key_of_their_metadata_names(shop: Platform) -> None:
    identify(shop, "market")
    publish(shop)
    before = shop.live().tables["bronze.orders"]
    settings, sources = shop.home / "dbt_project/dbt_project.yml", shop.home / "dbt_project/models/bronze/s.yml"
    settings.write_text(settings.read_text().replace("name: busco", "name: store").replace("  busco:\n", "  store:\n"))
    described = "- name: orders\n        description: All orders\n"
    sources.write_text(sources.read_text().replace("- name: orders\n", described, 1))
    run, outcome = shop.built()
    assert outcome.good
    pinned = run.pin.bronze["bronze.orders"]
    assert pinned.version == before.version
    assert pinned.metadata != before.metadata
    metadata = shop.store.get(pinned.metadata)
    assert metadata is not None
    assert json.loads(metadata.body)["properties"]["comment"] == "All orders"
    # the metadata that a run was pinned with is not written with different descriptions
    shop.store.purge(pinned.metadata, whole=True)
    sources.write_text(sources.read_text().replace("All orders", "Every order"))
    shop.busco("dbt", "parse")
    project = Project.of(shop.settings)
    with pytest.raises(BuscoError, match="the descriptions of bronze.orders have changed since the run was pinned"):
        write_bronze_metadata(shop.settings, project, run, run.pin.bronze, run.base())
    assert shop.store.missing([pinned.metadata])


def test_a_run_uses_the_project_id_of_its_pin_wherever_it_is_built(
    shop: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSCO_PROJECT_ID", "market")
    get_settings.cache_clear()
    run, outcome = shop.built()
    assert outcome.good
    assert (run.pin.project, run.pin.project_id) == ("market", "market")
    monkeypatch.delenv("BUSCO_PROJECT_ID")
    get_settings.cache_clear()
    # like an ECS task, whose environment doesn't set the project id
    printed = shop.busco("dbt", "build", "--run", run.name, "--select", "fct orders")
    assert "success" in printed
    assert {entry.version.project for entry in run.entries().values() if entry.version} == {"market"}
    assert owners(shop.publish(run)) == dict.fromkeys(OWN, "market")


def test_an_invalid_project_id_is_refused_at_parse_and_in_the_settings(shop: Platform) -> None:
    identify(shop, "My-Shop")
    printed = shop.busco("dbt", "parse", status=1)
    assert "dbt_project.yml: busco_project_id 'My-Shop' is not allowed; write 1 to 63 lower-case letters" in printed
    printed = shop.busco("dbt", "parse", status=1, environment={"BUSCO_PROJECT_ID": "My-Shop"})
    assert "BUSCO_PROJECT_ID is 'My-Shop': not a valid project id" in printed


def test_a_parse_from_an_image_uses_the_project_id_of_the_process(shop: Platform) -> None:
    baked = Path(shop.home / "baked")
    shop.busco("bake", str(baked))
    publish(shop, BUSCO_BAKED_DIR=str(baked), BUSCO_PROJECT_ID="market")
    assert owners(shop.live()) == dict.fromkeys(OWN, "market")
