"""The site's data about releases: what it shows to whom, and how it reads files that a runner has written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from busco.lake import releases
from busco.lake.layout import new_id
from busco.lake.objects import ObjectStore
from busco.site import files
from busco.site.release import HISTORY, Site, _release_at
from tests.unit.lake import ENVIRONMENT, Lake, others

KEY = "docs/run1/1/tables/gold.g.1.0f.json"


@pytest.fixture
def lake() -> Lake:
    made = Lake()
    # caches are per bucket
    made.store = ObjectStore(made.s3, f"lake-{new_id()}")
    return made


def site(lake: Lake, *projects: str) -> Site:
    return Site(lake.store, ENVIRONMENT, frozenset(projects or ("busco",)))


def entry(table: str, key: str = KEY) -> dict[str, Any]:
    layer, name = table.split(".")
    return {
        "layer": layer, "name": name, "kind": "model", "unique_id": f"model.busco.{name}", "summary": "", "tags": [],
        "synonyms": [], "owner": "", "group": None, "columns": [["a", "", ""]], "upstream": [], "loaded_at": None,
        "newest": None, "warn_after": None, "error_after": None, "tests": [], "personal": [],
        "content": {"version": "1", "hash": "0f", "key": key},
    }  # fmt: skip


def write_index(lake: Lake, *tables: str, key: str = KEY, **changes: Any) -> None:
    """Writes the index of the live release's docs."""
    index = {
        "format": 1, "project": "busco", "title": "busco", "run": "r", "epoch": 1,
        "tables": {table: entry(table, key) for table in tables}, "exposures": [], "pages": [], "groups": [],
    }  # fmt: skip
    lake.store.put(f"{lake.live().docs}site.json", json.dumps({**index, **changes}).encode())


def write(lake: Lake, key: str, **content: Any) -> None:
    lake.store.put(key, json.dumps(content).encode())


def test_a_content_file_is_read_if_it_is_the_table_s(lake: Lake) -> None:
    lake.published()
    write_index(lake, "gold.g")
    write(lake, KEY, **values())
    assert site(lake).content("busco", "gold.g") is not None


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("_lake/quarantine/bronze.b/a/1.json", {"project": "busco", "table": "gold.g"}),
        ("docs/run1/1/manifest.json", {"project": "busco", "table": "gold.g"}),
        ("docs/run1/1/tables/../manifest.json", {"project": "busco", "table": "gold.g"}),
        ("docs/run9/1/tables/gold.g.1.0f.json", {"project": "other", "table": "gold.g"}),
        ("docs/run1/1/tables/gold.h.1.0f.json", {"project": "busco", "table": "gold.h"}),
    ],
)
def test_an_index_leads_to_no_other_object(lake: Lake, key: str, content: dict[str, str]) -> None:
    lake.published()
    write_index(lake, "gold.g", key=key)
    write(lake, key, **content)
    assert site(lake).content("busco", "gold.g") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"tables": []},
        {"tables": {"gold.g": {}}},
        {"tables": {"gold.g": entry("gold.g") | {"columns": 5}}},
        {"tables": {"gold.g": entry("gold.g") | {"content": "docs/a"}}},
        {"tables": {"gold.g": entry("gold.g") | {"loaded_at": "yesterday"}}},
        {"tables": {"gold.g": entry("gold.g") | {"loaded_at": "2026-01-01T00:00:00"}}},
        {"tables": {"gold.g": entry("gold.g") | {"types": ["DATE", "DATE"]}}},
        {"exposures": {"a": 1}},
        {"title": None},
    ],
)
def test_an_index_with_other_types_is_as_good_as_none(lake: Lake, changes: dict[str, Any]) -> None:
    lake.published()
    write_index(lake, "gold.g", **changes)
    state = site(lake).state()
    assert state is not None
    assert state["projects"]["busco"]["has_site"] is False
    assert "gold.g" in state["tables"]
    assert site(lake).index("busco") is None
    assert site(lake).content("busco", "gold.g") is None


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"null"])
def test_a_damaged_index_is_as_good_as_none(lake: Lake, body: bytes) -> None:
    lake.published()
    lake.store.put(f"{lake.live().docs}site.json", body)
    assert site(lake).index("busco") is None
    assert site(lake).state() is not None


def test_a_file_that_is_too_large_is_not_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.published()
    write_index(lake, "gold.g")
    write(lake, KEY, project="busco", table="gold.g")
    monkeypatch.setattr(files, "_MOST_OF_CONTENT", 10)
    assert site(lake).content("busco", "gold.g") is None
    monkeypatch.setattr(files, "_MOST_OF_INDEX", 10)
    assert files.read_index(lake.store, lake.live().docs) is None


def test_an_index_shows_no_tables_of_other_projects_but_raw_ones(lake: Lake) -> None:
    lake.published()
    run, audit = others(lake)
    releases.publish(run, audit, "me", run.docs)
    busco = lake.live().docs_by_project()["busco"]
    index = {
        "format": 1, "project": "busco", "title": "busco", "exposures": [], "pages": [], "groups": [],
        "tables": {table: entry(table) for table in ("gold.g", "gold.o", "bronze.b")},
    }  # fmt: skip
    lake.store.put(f"{busco}site.json", json.dumps(index).encode())
    state = site(lake).state()
    assert state is not None
    assert "gold.o" not in state["tables"]
    assert {"gold.g", "bronze.b"} <= {*state["tables"]}


def test_a_release_without_pages_changes_nothing_about_raw_tables(lake: Lake) -> None:
    lake.published()
    lake.published(keep=True)
    write_index(lake, "gold.g", "bronze.b")
    lake.published(keep=True)
    newest, middle, _ = history(lake)["releases"]
    assert middle["changes"] == {}, "its index is the first with this table, which was there before"
    assert newest["dropped"] == [], "it has no index, but still the table"


def history(lake: Lake, release: str = "", limit: int = HISTORY) -> dict[str, Any]:
    found = site(lake).history(release, limit)
    assert found is not None
    return found


def test_a_long_history_is_read_in_parts_that_join(lake: Lake) -> None:
    for _ in range(7):
        lake.published()
    whole = history(lake)
    assert (len(whole["releases"]), whole["next"], whole["complete"]) == (7, None, True)
    parts, following = [], ""
    for size in (3, 3, 1):
        part = history(lake, following, 3)
        assert len(part["releases"]) == size
        parts += part["releases"]
        following = part["next"]
    assert parts == whole["releases"], "what a release changed is told although the one before is in the next part"
    assert (following, part["complete"]) == (None, True)


def test_a_history_that_misses_a_release_is_not_complete(lake: Lake) -> None:
    for _ in range(3):
        lake.published()
    oldest = history(lake)["releases"][-1]["release"]
    del lake.s3.objects[ENVIRONMENT.release(oldest)]
    _release_at.cache_clear()
    found = history(lake)
    assert (len(found["releases"]), found["next"], found["complete"]) == (2, None, False)


def test_a_table_that_the_release_before_did_not_have_is_new(lake: Lake) -> None:
    for _ in range(3):
        lake.published()
    third, second, first = ({t: one.get("new") for t, one in r["changes"].items()} for r in history(lake)["releases"])
    assert set(first.values()) == {True}
    assert {*second.values(), *third.values()} == {None}
    del lake.s3.objects[ENVIRONMENT.release(history(lake)["releases"][-1]["release"])]
    _release_at.cache_clear()
    oldest = history(lake)["releases"][-1]["changes"]
    assert oldest
    assert not any(one.get("new") for one in oldest.values()), "the release before is not known any more"


def test_the_history_of_an_unknown_release_is_missing(lake: Lake) -> None:
    assert site(lake).history() == {"format": 1, "releases": [], "next": None, "complete": True}
    assert site(lake).history("r20200101T000000-0f3c0f3c") is None
    lake.published()
    assert site(lake).history("r20200101T000000-0f3c0f3c") is None


def test_a_release_that_says_something_else_about_a_version_is_in_the_history(lake: Lake) -> None:
    lake.published()
    write_index(lake, "gold.g", "silver.s")
    lake.published(keep=True)
    other = entry("gold.g")
    other["content"] = other["content"] | {"hash": "1f", "key": KEY.replace("0f", "1f")}
    write_index(lake, tables={"gold.g": other, "silver.s": entry("silver.s", KEY.replace("run1", "run2"))})
    newest, oldest = history(lake)["releases"]
    assert newest["described"] == ["gold.g"], "the hash counts, not where the file is"
    assert oldest["described"] == []


def test_an_unknown_release_takes_few_requests(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(10):
        lake.published(keep=True)
    asked: list[str] = []
    get = lake.s3.get_object

    def counted(**given: Any) -> Any:
        asked.append(given["Key"])
        return get(**given)

    monkeypatch.setattr(lake.s3, "get_object", counted)
    for unknown in ("nothing-of-that-name", "r20200101T000000-0f3c0f3c", "../current"):
        assert site(lake).state(unknown) is None
    assert len(asked) <= 6


def test_only_releases_that_were_live_are_shown(lake: Lake) -> None:
    for _ in range(3):
        lake.published(keep=True)
    # its publisher was killed before it went live
    left = lake.live().model_copy(update={"release": f"{lake.live().release}-left"})
    lake.store.create(ENVIRONMENT.release(left.release), left)
    assert site(lake).state(left.release) is None
    for release in releases.history(lake.store, ENVIRONMENT):
        shown = site(lake).state(release.release)
        assert shown is not None
        assert shown["release"] == release.release


def test_the_caches_are_small_enough_for_large_lakes() -> None:
    """A release with 1,000 tables takes about 3 MB, and an index with 300,000 columns about 150 MB."""
    from busco.site import release

    assert (release._release_at.cache_info().maxsize or 0) in range(1, 65)
    assert (release._index_at.cache_info().maxsize or 0) in range(1, 5)


def values(**changes: Any) -> dict[str, Any]:
    """Returns the parts of a content file that have values of rows."""
    columns = [{"name": name, "personal": False, "profile": {"max": name}} for name in ("id", "Email")]
    sample = {"columns": ["id", "Email"], "rows": [["1", "ana@example.com"], ["2", None]]}
    found = {"project": "busco", "table": "gold.g", "columns": columns, "sample": sample, "profile_from": "rows"}
    found["sql"] = None
    return {**found, **changes}


def test_a_content_keeps_the_values_of_columns_that_are_shown_and_loses_its_compiled_sql() -> None:
    sql = {"path": "a.sql", "source": "select 1", "compiled": "select 'ana@example.com'"}
    found = files.content_with(values(sql=sql), files.Shown.but(["id", "email"], ["EMAIL"]))
    assert found["columns"] == [
        {"name": "id", "personal": False, "profile": {"max": "id"}},
        {"name": "Email", "personal": True, "profile": None},
    ]
    assert found["sample"] == {"columns": ["id"], "rows": [["1"], ["2"]]}
    assert found["sql"] == {"path": "a.sql", "source": "select 1", "compiled": None}
    everything = files.content_with(values(), files.Shown.but(["id", "email"], []))
    assert everything == values()


def test_a_column_that_is_not_shown_is_personal_only_if_that_is_known() -> None:
    found = files.content_with(values(), files.NOTHING)
    assert [(one["personal"], one["profile"]) for one in found["columns"]] == [(False, None), (False, None)]
    assert (found["sample"], found["profile_from"]) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": None},
        {"columns": [{"name": "id", "profile": None}]},
        {"columns": [{"name": 1, "personal": True, "profile": None}]},
        {"sample": {"columns": ["Email"], "rows": [["1", "ana@example.com"]]}},
        {"sample": [["ana@example.com"]]},
        {"sql": {"compiled": ["ana@example.com"]}},
    ],
)
def test_a_content_in_which_values_can_not_be_found_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the type of") as raised:
        files.content_with(values(**changes), files.NOTHING)
    assert "ana@example.com" not in str(raised.value)


class TwoReleases:
    """A table in two releases, of which the older one has values of a column that was not marked yet."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        lake.published()
        self.first = lake.live()
        self.describe(KEY, {"newest": ["Email", "zoe@example.com"]})
        lake.store.put(KEY, json.dumps(values(sql=SQL)).encode())
        lake.published(code="g")
        self.second = lake.live()

    def describe(self, key: str, changes: dict[str, Any], **index: Any) -> None:
        """Writes the index of the live release's docs."""
        described = entry("gold.g", key)
        described["columns"] = [["id", "", ""], ["Email", "", ""]]
        described["content"]["version"] = self.lake.live().tables["gold.g"].version
        write_index(self.lake, "gold.g", **{"tables": {"gold.g": described | changes}, **index})

    def shown(self, release: str = "") -> tuple[list[str], str | None, bool]:
        """Returns what is shown of a release, by default the first: the columns of the sample, the newest value's
        column, and whether there is compiled SQL."""
        # caches are per bucket, and files are only written once
        store = ObjectStore(self.lake.s3, f"lake-{new_id()}")
        found = Site(store, ENVIRONMENT, frozenset({"busco"}))
        body = found.content("busco", "gold.g", release or self.first.release)
        index = found.index("busco", release or self.first.release)
        assert body is not None
        assert index is not None
        content, newest = json.loads(body), index["tables"]["gold.g"]["newest"]
        return (content["sample"] or {"columns": []})["columns"], newest and newest[0], bool(content["sql"]["compiled"])


SQL = {"path": "a.sql", "source": "select 1", "compiled": "select 'ana@example.com'"}
SECOND = "docs/run2/1/tables/gold.g.2.0f.json"
NO_VALUES: tuple[list[str], None, bool] = ([], None, False)


@pytest.fixture
def two(lake: Lake) -> TwoReleases:
    return TwoReleases(lake)


def test_an_older_release_shows_no_values_of_a_column_that_is_personal_now(two: TwoReleases) -> None:
    two.describe(SECOND, {})
    assert two.shown() == (["id", "Email"], "Email", False)
    two.describe(SECOND, {"personal": ["EMAIL"]})
    assert two.shown() == (["id"], None, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"tables": 7},
        {"tables": {}},
        {"tables": {"gold.g": entry("gold.g", SECOND)}},
    ],
    ids=["damaged", "dropped", "of another version"],
)
def test_an_older_release_shows_no_values_if_the_live_one_does_not_say_what_is_personal(
    two: TwoReleases, changes: dict[str, Any]
) -> None:
    two.describe(SECOND, {}, **changes)
    assert two.shown() == NO_VALUES


def test_an_older_release_shows_no_values_of_a_column_that_has_another_name_now(two: TwoReleases) -> None:
    two.describe(SECOND, {"columns": [["id", "", ""], ["mail", "", ""]], "personal": ["mail"]})
    assert two.shown() == (["id"], None, False)


def test_a_rollback_does_not_bring_values_back(two: TwoReleases) -> None:
    two.describe(SECOND, {"personal": ["Email"]})
    releases.rollback(two.lake.store, ENVIRONMENT, two.first.release, "ana", "wrong")
    assert two.shown(two.lake.live().release) == (["id"], None, False)
    assert two.shown() == (["id"], None, False)


def test_the_live_release_shows_everything_that_its_run_wrote(two: TwoReleases) -> None:
    two.describe(SECOND, {"newest": ["Email", "zoe@example.com"]})
    two.lake.store.put(SECOND, json.dumps(values(sql=SQL)).encode())
    assert two.shown(two.second.release) == (["id", "Email"], "Email", True)


def test_a_live_table_that_another_project_calls_personal_shows_no_values(two: TwoReleases) -> None:
    two.describe(SECOND, {"newest": ["Email", "zoe@example.com"]})
    two.lake.store.put(SECOND, json.dumps(values(sql=SQL)).encode())
    run, audit = others(two.lake)
    releases.publish(run, audit, "me", run.docs)
    live = two.lake.live()
    assert len(live.docs_by_project()) == 2
    marked = entry("gold.g", "docs/other/1/tables/gold.g.1.0f.json") | {"personal": ["email"]}
    index = {"format": 1, "project": "other", "title": "other", "exposures": [], "pages": [], "groups": []}
    two.lake.store.put(f"{run.docs}site.json", json.dumps({**index, "tables": {"gold.g": marked}}).encode())
    assert two.shown(live.release) == (["id"], None, False)
