"""Which tables a dbt project may publish, drop and take over, by its id or by its dbt name."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from busco import refusals
from busco.errors import BuscoError
from busco.lake import pins, releases
from busco.lake.owners import id_lines, suggested_id
from busco.lake.records import Pin, Release
from busco.lake.runs import Run
from busco.project import Project
from busco.projects import all_contracts
from busco.settings import Settings
from tests.unit.lake import ENVIRONMENT, Lake, version


@dataclass
class Folder:
    """A dbt project in one folder, whose tables read nothing."""

    lake: Lake
    tables: Collection[str]
    name: str = "shop"
    id: str = ""
    messages: list[str] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return self.id or self.name

    def unique_id(self, table: str) -> str:
        return f"model.{self.name}.{table.split('.')[1]}"

    @property
    def audit(self) -> releases.Audit:
        return releases.Audit(
            {}, frozenset(self.tables), self.identity, "hash", dbt_name=self.name, has_id=bool(self.id),
            models=frozenset(map(self.unique_id, self.tables)),
        )  # fmt: skip

    def pin(self, take_over: bool = False, nodes: Collection[str] | None = None) -> Run:
        self.lake.count += 1
        return pins.pin(
            self.lake.store, ENVIRONMENT, f"run{self.lake.count}", 1, (), "hash", project=self.identity,
            project_id=self.id, dbt_name=self.name, tables=self.tables, take_over=take_over,
            nodes=None if nodes is None else tuple(nodes),
        )  # fmt: skip

    def build(self, run: Run, tables: Collection[str] | None = None) -> None:
        base = run.base()
        for table in self.tables if tables is None else tables:
            token = run.take(table, 1)
            known = base.tables.get(table) if base else None
            if known is not None and known.unique_id == self.unique_id(table):
                run.enter(table, token, known, kept=True)
            else:
                update = {"project": self.identity, "unique_id": self.unique_id(table)}
                run.enter(table, token, version(table, {}, store=run.store).model_copy(update=update), kept=False)

    def publish(self, take_over: bool = False, only: Collection[str] | None = None) -> Release:
        run = self.pin(take_over, only)
        self.build(run, only)
        return self.publish_run(run, take_over)

    def publish_run(self, run: Run, take_over: bool = False) -> Release:
        self.messages.clear()
        return releases.publish(run, self.audit, "me", run.docs, take_over, self.messages.append)


@pytest.fixture
def lake() -> Lake:
    return Lake()


def owners(release: Release) -> dict[str, str]:
    return {table: made.project for table, made in release.tables.items()}


A = ("gold.a", "gold.b", "gold.c", "gold.d")
OTHER = ("gold.x", "gold.y")


# -- two folders with one name -----------------------------------------------------------------------------------------


def test_two_folders_with_one_name_and_two_ids_publish_side_by_side(lake: Lake) -> None:
    first, second = Folder(lake, A, id="one"), Folder(lake, OTHER, id="two")
    first.publish()
    second.publish()
    release = first.publish()
    assert owners(release) == dict.fromkeys(A, "one") | dict.fromkeys(OTHER, "two")
    assert (release.dropped, release.project) == ((), "one")
    assert release.names == {"one": "shop", "two": "shop"}
    assert set(release.all_docs) == {"one", "two"}
    assert (first.messages, second.messages) == ([], [])


def test_two_folders_with_one_name_and_no_ids_are_not_mistaken_for_one_project(lake: Lake) -> None:
    Folder(lake, A).publish()
    before = lake.live()
    with pytest.raises(BuscoError, match="would drop 4 of these 4 tables: gold.a, gold.b, gold.c, gold.d") as refused:
        Folder(lake, OTHER).publish()
    assert str(refused.value).endswith(
        f"{id_lines('shop-2')}\n"
        "  → if it is the same project, or is meant to replace it, run: busco dbt build --publish --take-over"
    )
    assert lake.live() == before


def test_a_partial_run_of_another_folder_with_the_name_is_refused_although_it_drops_nothing(lake: Lake) -> None:
    Folder(lake, A).publish()
    other = Folder(lake, OTHER)
    with pytest.raises(
        BuscoError, match="none of its models built any of these tables: gold.a, gold.b, gold.c, gold.d"
    ):
        other.publish(only=["gold.x"])
    # a shared package is no evidence that they are the same project
    both = Folder(lake, A)
    run = other.pin(nodes=["gold.x"])
    other.build(run, ["gold.x"])
    shared = other.audit.models | {"model.dates.days"}
    days = version("gold.days", {}, store=lake.store).model_copy(
        update={"project": "shop", "unique_id": "model.dates.days"}
    )
    both.tables = (*A, "gold.days")
    packaged = both.pin()
    both.build(packaged, A)
    packaged.enter("gold.days", packaged.take("gold.days", 1), days, kept=False)
    both.publish_run(packaged)
    audit = releases.Audit({}, frozenset(OTHER), "shop", "hash", dbt_name="shop", models=shared)
    with pytest.raises(BuscoError, match="none of its models built any of these tables"):
        releases.publish(run, audit, "me", run.docs)


@pytest.mark.parametrize(("kept", "refused"), [(A[:1], True), (A[:2], False), (A[:3], False)])
def test_more_than_half_of_the_live_tables_are_dropped_only_with_take_over(
    lake: Lake, kept: tuple[str, ...], refused: bool
) -> None:
    Folder(lake, A).publish()
    smaller = Folder(lake, kept)
    if refused:
        with pytest.raises(BuscoError, match="would drop 3 of these 4 tables: gold.b, gold.c, gold.d"):
            smaller.publish()
    release = smaller.publish(take_over=refused)
    lost = ", ".join(sorted({*A} - {*kept}))
    assert release.dropped == tuple(sorted({*A} - {*kept}))
    expected = [
        f"publishing drops tables that the dbt project no longer defines: {lost}",
        f"dropped by {release.release}: {lost}",
    ]
    if refused:
        expected.insert(0, f"taking over the live tables of the dbt project shop: {', '.join(A)}")
        assert smaller.messages.pop().endswith(id_lines("shop"))
    assert smaller.messages == expected


def test_without_ids_take_over_gives_another_folder_the_name_and_suggests_an_id(lake: Lake) -> None:
    Folder(lake, A).publish()
    other = Folder(lake, OTHER)
    release = other.publish(take_over=True)
    assert owners(release) == dict.fromkeys(OTHER, "shop")
    listed = ", ".join(A)
    assert other.messages[:3] == [
        f"taking over the live tables of the dbt project shop: {listed}",
        f"publishing drops tables that the dbt project no longer defines: {listed}",
        f"dropped by {release.release}: {listed}",
    ]
    assert other.messages[3].endswith(id_lines("shop"))


def test_if_another_project_of_the_name_has_an_id_the_one_without_needs_one_and_keeps_its_tables(lake: Lake) -> None:
    first, second = Folder(lake, A), Folder(lake, OTHER, id="second")
    first.publish()
    with_id = second.publish()
    assert owners(with_id) == dict.fromkeys(A, "shop") | dict.fromkeys(OTHER, "second")
    (note,) = second.messages
    assert "another dbt project is also named shop, but has no id" in note
    assert note.endswith(id_lines("shop"))
    for refuse in (first.pin, first.publish, lambda: first.publish(take_over=True)):
        with pytest.raises(
            BuscoError, match="shop has no id, and its name is already used by .* the id second"
        ) as refused:
            refuse()
    assert str(refused.value).endswith(id_lines("shop"))
    release = Folder(lake, A, id="shop").publish()
    assert owners(release) == owners(with_id)
    assert (release.dropped, release.built) == ((), ())
    assert release.names == {"second": "shop", "shop": "shop"}
    assert second.publish().dropped == ()
    assert second.messages == []


def test_a_run_without_an_id_is_not_published_after_another_project_of_its_name_has_one(lake: Lake) -> None:
    first = Folder(lake, A)
    first.publish()
    late = first.pin()
    first.build(late)
    Folder(lake, OTHER, id="second").publish()
    with pytest.raises(BuscoError, match="shop has no id, and its name is already used by"):
        first.publish_run(late)


def test_a_project_without_an_id_is_refused_if_its_name_is_the_id_of_another_project(lake: Lake) -> None:
    Folder(lake, A, name="store", id="shop").publish()
    with pytest.raises(BuscoError, match="shop has no id, and its name is already used by"):
        Folder(lake, OTHER).pin()


def test_a_name_is_free_again_once_the_project_with_an_id_has_no_tables(lake: Lake) -> None:
    named, third = Folder(lake, A, id="one"), Folder(lake, ("gold.z",), name="third")
    named.publish()
    named.tables = ()
    assert named.publish().dropped == A
    third.publish()
    assert lake.live().names == {}
    assert owners(Folder(lake, OTHER).publish()) == {"gold.z": "third"} | dict.fromkeys(OTHER, "shop")


# -- a new id ---------------------------------------------------------------------------------------------------------


def test_a_project_whose_new_id_is_its_former_name_keeps_its_tables_even_if_it_is_renamed(lake: Lake) -> None:
    Folder(lake, A).publish()
    versions = {table: made.version for table, made in lake.live().tables.items()}
    release = Folder(lake, A, id="shop").publish()
    assert {table: made.version for table, made in release.tables.items()} == versions
    Folder(lake, OTHER, name="other").publish()
    Folder(lake, OTHER, name="better", id="other").publish()
    assert owners(lake.live()) == dict.fromkeys(A, "shop") | dict.fromkeys(OTHER, "other")
    assert lake.live().names == {"shop": "shop", "other": "better"}


def test_another_folder_does_not_get_a_project_s_tables_by_using_its_name_as_id(lake: Lake) -> None:
    Folder(lake, A).publish()
    for other in (Folder(lake, OTHER, id="shop"), Folder(lake, OTHER, name="better", id="shop")):
        with pytest.raises(BuscoError, match="would drop 4 of these 4 tables"):
            other.publish()
        with pytest.raises(BuscoError, match="none of its models built any of these tables"):
            other.publish(only=["gold.x"])
    assert owners(lake.live()) == dict.fromkeys(A, "shop")


def test_a_different_new_id_takes_all_tables_of_its_dbt_name_and_only_with_take_over(lake: Lake) -> None:
    Folder(lake, A).publish()
    named = Folder(lake, A[1:], id="new")
    for refuse in (named.pin, named.publish):
        with pytest.raises(
            BuscoError, match=r"another project in the live release: gold\.b \(owned by shop\)"
        ) as refused:
            refuse()
        assert id_lines("shop") in str(refused.value)
        assert str(refused.value).endswith("busco dbt build --publish --take-over")
    release = named.publish(take_over=True)
    assert owners(release) == dict.fromkeys(A[1:], "new"), "kept tables must change their owner too"
    assert (release.dropped, release.built) == (("gold.a",), ())
    assert named.messages == [
        "taking over the live tables of the dbt project shop: gold.a, gold.b, gold.c, gold.d",
        "publishing drops tables that the dbt project no longer defines: gold.a",
        f"dropped by {release.release}: gold.a",
    ]
    assert (release.names, set(release.all_docs)) == ({"new": "shop"}, {"new"})
    assert named.publish().dropped == ()
    assert named.messages == []


def test_a_partial_run_with_take_over_takes_all_tables_of_the_name_and_drops_none(lake: Lake) -> None:
    Folder(lake, A).publish()
    release = Folder(lake, A, id="new").publish(take_over=True, only=["gold.b"])
    assert owners(release) == dict.fromkeys(A, "new")
    assert release.dropped == ()


def test_take_over_does_not_apply_to_a_third_project_or_to_another_id(lake: Lake) -> None:
    Folder(lake, A, name="third").publish()
    Folder(lake, OTHER, name="x", id="shop").publish()
    for table in ("gold.a", "gold.x"):
        with pytest.raises(BuscoError, match="belong to another project in the live release"):
            Folder(lake, [table], id="new").publish(take_over=True)


def test_a_rollback_restores_the_former_owner_of_the_tables(lake: Lake) -> None:
    Folder(lake, A).publish()
    old = lake.live()
    named = Folder(lake, A, id="new")
    named.publish(take_over=True)
    releases.rollback(lake.store, ENVIRONMENT, old.release, "me", "why")
    releases.resume(lake.store, ENVIRONMENT)
    assert (owners(lake.live()), lake.live().names) == (dict.fromkeys(A, "shop"), {})
    assert owners(Folder(lake, A).publish()) == dict.fromkeys(A, "shop")


# -- one project ------------------------------------------------------------------------------------------------------


def test_a_project_with_an_id_can_be_renamed_and_drop_any_of_its_tables(lake: Lake) -> None:
    Folder(lake, A, id="one").publish()
    release = Folder(lake, A, name="store", id="one").publish()
    assert owners(release) == dict.fromkeys(A, "one")
    assert (release.dropped, release.names) == ((), {"one": "store"})
    smaller = Folder(lake, OTHER, name="store", id="one")
    assert smaller.publish().dropped == A
    assert smaller.messages[0].endswith("gold.a, gold.b, gold.c, gold.d")


def test_a_copy_with_the_same_id_and_another_name_is_not_mistaken_for_the_renamed_project(lake: Lake) -> None:
    Folder(lake, A, id="one").publish()
    with pytest.raises(BuscoError, match="tables of a dbt project one, but this may be another project: .* drop 4 of"):
        Folder(lake, OTHER, name="copy", id="one").publish()


def test_publishing_again_returns_the_same_release_and_reports_what_it_dropped(lake: Lake) -> None:
    Folder(lake, A, id="one").publish()
    smaller = Folder(lake, A[1:], id="one")
    run = smaller.pin()
    smaller.build(run)
    release = smaller.publish_run(run)
    assert smaller.publish_run(run) == release
    assert smaller.messages == [f"dropped by {release.release}: gold.a"]


def test_a_run_is_published_only_for_the_project_that_it_was_pinned_for(lake: Lake) -> None:
    first = Folder(lake, A)
    run = first.pin()
    first.build(run)
    first.id = "other"
    with pytest.raises(BuscoError, match="was pinned for the dbt project shop, but its tables belong to other"):
        first.publish_run(run)


def test_tables_built_by_a_runner_from_before_ids_belong_to_the_project_of_their_run(lake: Lake) -> None:
    named = Folder(lake, A, id="one")
    run = named.pin()
    for table in A:
        made = version(table, {}, store=run.store).model_copy(
            update={"project": "shop", "unique_id": named.unique_id(table)}
        )
        run.enter(table, run.take(table, 1), made, kept=False)
    assert owners(named.publish_run(run)) == dict.fromkeys(A, "one")


def test_records_from_before_ids_can_be_read(lake: Lake) -> None:
    Folder(lake, A).publish()
    live, run = lake.live(), Folder(lake, A).pin()
    release = Release.model_validate(live.model_dump(mode="json", exclude={"names"}))
    assert release.names == {}
    pin = Pin.model_validate(run.pin.model_dump(mode="json", exclude={"project_id"}))
    assert pin.project_id == ""
    for key in lake.s3.objects:
        if "/releases/" in key:
            record = json.loads(lake.s3.objects[key])
            del record["names"]
            lake.s3.objects[key] = json.dumps(record).encode()
    assert owners(Folder(lake, A, id="shop").publish()) == dict.fromkeys(A, "shop")


# -- ids in projects and settings -------------------------------------------------------------------------------------


def project(variables: Any, name: str = "shop", given: str = "") -> Project:
    node: dict[str, Any] = {
        "resource_type": "model", "config": {"materialized": "lake"}, "columns": {}, "depends_on": {}, "fqn": [name],
        "raw_code": "select 1", "schema": "gold", "alias": "a", "name": "a", "original_file_path": "models/a.sql",
    }  # fmt: skip
    made: dict[str, Any] = {
        "metadata": {"project_name": name}, "nodes": {f"model.{name}.a": node}, "sources": {}, "macros": {},
        "vars": variables,
    }  # fmt: skip
    return Project(made).with_id(given)


def test_a_project_s_id_is_its_own_var_or_a_global_var_or_the_setting() -> None:
    assert project({}).identity == "shop"
    assert project({}).id == ""
    assert project(None, given="set").identity == "set"
    assert project({"busco_project_id": "all"}, given="set").identity == "all"
    both = {"busco_project_id": "all", "shop": {"busco_project_id": "own"}, "pkg": {"busco_project_id": "pkg"}}
    assert project(both).identity == "own"
    assert project({"pkg": {"busco_project_id": "pkg"}}).identity == "shop"
    audit = project(both).audit()
    assert (audit.project, audit.dbt_name, audit.has_id, audit.models) == ("own", "shop", True, {"model.shop.a"})


@pytest.mark.parametrize("plain", [{}, None, {"x": 1}, {"shop": {"x": 1}}, {"shop": {}}, {"pkg": {"x": 1}}])
def test_a_project_id_does_not_change_a_fingerprint_but_any_other_var_does(plain: dict[str, Any] | None) -> None:
    variables, own = plain or {}, (plain or {}).get("shop", {})
    same = [
        variables, variables | {"busco_project_id": "one"}, variables | {"busco_project_id": "two"},
        variables | {"shop": own | {"busco_project_id": "one"}},
    ]  # fmt: skip
    made = {project(one, given=given).fingerprint("model.shop.a", "1.5.5") for one in same for given in ("", "set")}
    assert made == {project(plain).fingerprint("model.shop.a", "1.5.5")}
    changed = [
        variables | {"y": 2},
        variables | {"shop": own | {"y": 2}},
        variables | {"pkg": {"busco_project_id": "one"}},
    ]
    for other in changed:
        assert project(other).fingerprint("model.shop.a", "1.5.5") not in made


@pytest.mark.parametrize("value", ["", "Shop", "a b", "é", "x" * 64, "shop\n", 2024, None, True, ["a"], "../x"])
@pytest.mark.parametrize("nested", [False, True])
def test_an_invalid_id_is_refused_and_shown_when_the_project_is_parsed(value: Any, nested: bool) -> None:
    variables = {"busco_project_id": value}
    with pytest.raises(BuscoError) as refused:
        refusals.check(project({"shop": variables} if nested else variables))
    assert f"dbt_project.yml: busco_project_id {value!r} is not allowed; write 1 to 63 lower-case" in str(refused.value)


@pytest.mark.parametrize("value", ["a", "7", "-", "my_shop-2", "x" * 63])
def test_a_valid_id_is_accepted(value: str) -> None:
    refusals.check(project({"busco_project_id": value}))
    assert Settings(home=Path("/p"), project_id=value).project_id == value
    assert Settings(home=Path("/p")).project_id == ""


@pytest.mark.parametrize("value", ["Shop", "a b", "x" * 64, "shop\n"])
def test_an_invalid_id_in_the_settings_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="not a valid project id; use 1 to 63 lower-case letters"):
        Settings(home=Path("/p"), project_id=value)


def test_the_id_setting_applies_to_the_process_s_own_project_and_a_pin_has_its_own_id() -> None:
    settings = Settings(home=Path("/p"), project_id="mine", dbt_projects="bakery, ./dbt_project")
    assert [(each.dbt_project_dir.name, each.project_id) for each in settings.of_all_projects()] == [
        ("dbt_project", "mine"), ("bakery", ""),
    ]  # fmt: skip
    assert settings.of_project("/p/x/../dbt_project").project_id == "mine"
    assert settings.of_project("").project_id == "mine"
    assert settings.of_project("bakery", "pinned").project_id == "pinned"
    assert settings.of_project("", "").project_id == ""
    assert settings.of_project("dbt_project", "").project_id == ""


def test_projects_that_the_lake_could_not_tell_apart_are_refused_before_publishing() -> None:
    one, two = project({"busco_project_id": "one"}), project({"busco_project_id": "two"})
    assert all_contracts([one, two, project({}, name="third")]) == ()
    with pytest.raises(BuscoError, match=r"two dbt projects are named shop and have no id[\s\S]*shop-2"):
        all_contracts([project({}), project({})])
    with pytest.raises(BuscoError, match="two dbt projects have the id one"):
        all_contracts([one, project({"busco_project_id": "one"}, name="third")])
    with pytest.raises(
        BuscoError, match="the dbt project shop has no id, and its name is already used by .* the id one"
    ):
        all_contracts([project({}), one])
    named = project({"busco_project_id": "shop"}, name="third")
    for pair in (named, project({})), (project({}), project({}, given="shop")):
        with pytest.raises(
            BuscoError, match="the dbt project shop has no id, and its name is already used by .* the id shop"
        ):
            all_contracts(pair)


def test_a_suggested_id_is_valid_and_unused() -> None:
    assert suggested_id("shop", ()) == "shop"
    assert suggested_id("shop", {"shop", "shop-2"}) == "shop-3"
    refusals.check(project({"busco_project_id": suggested_id("Été" * 40, {""})}))


@pytest.mark.parametrize("identity", ["shop", "2024", "on"])
def test_the_lines_for_an_id_are_valid_yaml_and_say_what_to_do_if_the_project_has_vars(identity: str) -> None:
    assert yaml.safe_load(id_lines(identity)) == {"vars": {"busco_project_id": identity}}
    # YAML keeps only one of two keys `vars`, so a second one would remove the project's own
    assert "if dbt_project.yml already has vars, set the id there" in id_lines(identity)
