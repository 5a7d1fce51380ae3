"""Two dbt projects side by side in one lake."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from busco.aws import client
from busco.errors import BuscoError
from tests.platforms import ROOT, Platform, platform, with_bakery

MINI = ROOT / "tests/projects/mini"
ORDERS = "id,customer,amount,day,n\na,x,1.50,2018-01-01,1\nb,y,2.25,2018-01-02,2\n"
# the source of the small project, verbatim
SHARED = (MINI / "dbt_project/models/bronze/s.yml").read_text()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The small project and the bakery in one lake, both published."""
    with platform(tmp_path_factory.mktemp("home"), MINI) as made:
        fct = made.home / "dbt_project/models/gold/fct.yml"
        fct.write_text(fct.read_text().replace("name: fct\n", "name: fct\n    description: Days of orders\n", 1))
        with_bakery(made).deliver(ORDERS)
        assert made.build().good
        page = made.store.get("docs/index.html")
        assert page is not None
        assert page.body == made.store.get(f"{made.live().docs}index.html").body, "it is the only project"
        assert made.build(project="bakery").good
        yield made


@pytest.fixture
def both(pair: Platform) -> Iterator[Platform]:
    """The same lake; the projects' files are restored after each test."""
    kept = pair.home / "kept"
    for name in ("dbt_project", "bakery"):
        shutil.copytree(pair.home / name, kept / name, symlinks=True)
    yield pair
    for name in ("dbt_project", "bakery"):
        shutil.rmtree(pair.home / name)
        (kept / name).rename(pair.home / name)


def versions(made: Platform, *tables: str) -> dict[str, str]:
    return {table: made.live().tables[table].version for table in tables}


# -- two in one lake --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_projects_publish_side_by_side_and_leave_each_other_s_tables_alone(both: Platform) -> None:
    theirs = {table: version.version for table, version in both.live().tables.items() if version.project == "bakery"}
    assert {"gold.people", "silver.countries"} <= theirs.keys()
    before = versions(both, "gold.fct")
    both.deliver(ORDERS.replace("b,y", "c,y"), "orders-2.csv")
    assert both.build("+fct").good
    assert versions(both, *theirs) == theirs
    own = versions(both, "bronze.orders", "silver.orders", "gold.fct")
    assert own["gold.fct"] != before["gold.fct"]
    assert both.build("people", project="bakery").good
    assert versions(both, *own) == own
    assert both.query("select count(*) from busco_gold.people") == [("4",)]
    assert both.query("select count(*) from busco_silver.orders") == [("3",)]


@pytest.mark.slow
def test_P7_a_project_drops_only_its_own_tables(both: Platform) -> None:
    before = both.live().tables
    (both.home / "bakery/models/marts/calendar/days.sql").unlink()
    (both.home / "bakery/models/marts/calendar/_metrics.yml").unlink()
    assert both.build(project="bakery").good
    dropped = set(both.live().dropped)
    assert "gold.days" in dropped
    assert {before[table].project for table in dropped} == {"bakery"}
    assert set(both.live().tables) == before.keys() - dropped
    tables = client("glue", both.settings).get_tables(DatabaseName="busco_gold")["TableList"]
    assert {f"gold.{table['Name']}" for table in tables} == {t for t in both.live().tables if t.startswith("gold.")}


@pytest.mark.slow
def test_each_project_keeps_its_descriptions_while_the_other_publishes(pair: Platform) -> None:
    described = {
        name: client("glue", pair.settings).get_table(DatabaseName="busco_gold", Name=name)["Table"]["Description"]
        for name in ("fct", "customers")
    }
    assert described == {"fct": "Days of orders", "customers": "One row per customer"}


@pytest.mark.slow
def test_each_project_has_a_page_of_its_own_in_the_docs(pair: Platform) -> None:
    release = pair.live()
    assert set(release.all_docs) == {"busco", "bakery"}
    assert release.all_docs[release.project] == release.docs
    for name, prefix in release.all_docs.items():
        assert pair.store.get(f"docs/projects/{name}.html").body == pair.store.get(f"{prefix}index.html").body
        assert f'href="projects/{name}.html"' in pair.store.get("docs/index.html").body.decode()


@pytest.mark.long
def test_publishing_a_run_again_returns_its_release_after_another_project_has_published(both: Platform) -> None:
    run, _ = both.built()
    release = both.publish(run)
    assert release.built == ()
    both.write("bakery/models/marts/people.sql", "select 'none' as country, 1 as customers")
    both.build("people", project="bakery")
    assert both.publish(run).release == release.release


# -- one name, two projects -------------------------------------------------------------------------------------------


def claim(made: Platform, table: str) -> None:
    made.write("bakery/models/claim.sql", f"{{{{ config(schema='silver', alias='{table}') }}}} select 1 as id")


def test_a_table_of_another_project_in_the_live_release_is_refused_before_anything_is_built(both: Platform) -> None:
    before = both.live()
    claim(both, "orders")
    printed = both.busco("dbt", "--project-dir", "bakery", "build", "--publish", status=1)
    assert (
        "bakery defines tables that belong to another project in the live release: silver.orders (owned by busco)"
        in printed
    )
    assert "give the model an alias" in printed
    assert "START" not in printed
    assert both.live() == before


@pytest.mark.slow
def test_the_second_of_two_projects_that_build_the_same_table_is_refused_at_publish(both: Platform) -> None:
    claim(both, "late")
    run, outcome = both.built("claim", project="bakery")
    assert outcome.good
    both.model("silver/late", "select 2 as id")
    both.build("late")
    before = both.live()
    with pytest.raises(BuscoError) as refusal:
        both.publish(run)
    assert "belong to another project in the live release: silver.late (owned by busco)" in str(refusal.value)
    assert both.live() == before


# -- sources ----------------------------------------------------------------------------------------------------------


def test_two_projects_can_read_the_same_source(both: Platform) -> None:
    both.write("bakery/models/sources.yml", SHARED)
    both.write("bakery/models/marts/bought.sql", "select count(*) as orders from {{ source('bronze', 'orders') }}")
    both.build("bought", project="bakery")
    rows = both.query("select count(*) from busco_bronze.orders")
    assert both.query("select orders from busco_gold.bought") == rows
    assert both.live().tables["gold.bought"].inputs == versions(both, "bronze.orders")
    assert both.live().stale == {}


def test_ingest_accepts_the_files_of_every_configured_project(both: Platform) -> None:
    both.write("bakery/models/sources.yml", SHARED.replace("name: orders", "name: deliveries"))
    file = str(both.write("in/deliveries.csv", ORDERS))
    for arguments in ([file], [file, "--table", "deliveries"]):
        printed = both.busco("ingest", *arguments, status=1)
        assert "deliveries" in printed
        assert "BUSCO_DBT_PROJECTS" in printed, "the variable that adds its project"
    both.busco("ingest", file, environment={"BUSCO_DBT_PROJECTS": "bakery"})
    both.write("bakery/models/marts/brought.sql", "select count(*) as n from {{ source('bronze', 'deliveries') }}")
    both.build("brought", project="bakery")
    assert both.query("select n from busco_gold.brought") == [("2",)]


@pytest.mark.slow
def test_a_source_that_two_projects_declare_differently_is_refused_with_both_names(both: Platform) -> None:
    both.write("bakery/models/sources.yml", SHARED.replace("grain: [id]", "grain: [id, day]"))
    file = str(both.write("in/orders.csv", ORDERS))
    for command in (["dbt", "parse"], ["ingest", file]):
        printed = both.busco(*command, status=1, environment={"BUSCO_DBT_PROJECTS": "bakery"})
        assert "the dbt projects busco and bakery declare the source bronze.orders differently" in printed


def test_two_projects_with_the_same_name_are_refused(both: Platform) -> None:
    shutil.copytree(both.home / "bakery", both.home / "copy", ignore=shutil.ignore_patterns("dbt_packages"))
    shutil.copytree(both.home / "copy/vendor", both.home / "copy/dbt_packages")
    try:
        printed = both.busco("dbt", "parse", status=1, environment={"BUSCO_DBT_PROJECTS": "bakery, copy"})
    finally:
        shutil.rmtree(both.home / "copy")
    assert "two dbt projects are named bakery" in printed
