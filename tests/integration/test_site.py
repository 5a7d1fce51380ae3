"""The site's files, and the data of its pages: from a real build, compared with queries."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from busco.aws import client
from busco.lake import releases
from busco.lake.engine import connect
from busco.lake.layout import EnvironmentLayout
from busco.lake.records import DOCS_NODE
from busco.site.offline import gather
from busco.site.release import Site
from busco.warehouse import profile, site
from tests.platforms import Platform, csv_text

ORDERS = ("id", "customer", "amount", "day", "n")
ROWS = [
    ("o1", "Ana Canary", "1.50", "2018-01-01", 1),
    ("o2", "Ana Canary", "2.50", "2018-01-01", 2),
    ("o3", "Bia Canary", "", "2018-01-02", 2),
]
GOLD, SILVER, BRONZE = "gold.fct", "silver.orders", "bronze.orders"
ENVIRONMENT = EnvironmentLayout("prod")


@pytest.fixture(autouse=True)
def _time_for_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of these tests take so little time that a twentieth of it profiles nothing."""
    monkeypatch.setattr(site, "_SHARE", 1000.0)


@pytest.fixture
def published(mini: Platform) -> Platform:
    mini.deliver(csv_text(ORDERS, ROWS))
    mini.write(
        "dbt_project/models/silver/orders.yml",
        "models:\n  - name: orders\n    description: \"One row **per order**.\\n\\n<script>alert(1)</script>\"\n"
        "    config: {tags: [sales], meta: {owner: Sales, grain: [id], cost_center: 12, synonyms: purchases}}\n"
        "    columns:\n      - {name: id, description: 'The key, [docs](javascript:alert(1))', data_tests: [unique],\n"
        "         config: {meta: {synonyms: [identifier, chave]}}}\n",
    )  # fmt: skip
    assert mini.build().good
    return mini


def of(platform: Platform, *projects: str) -> Site:
    return Site(platform.store, ENVIRONMENT, frozenset(projects or ("busco",)))


def content(platform: Platform, table: str, release: str = "") -> dict[str, Any]:
    body = of(platform).content("busco", table, release)
    assert body is not None, f"{table} has no content file"
    return dict(json.loads(body))


def columns(platform: Platform, table: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in content(platform, table)["columns"]}


def test_a_table_is_described_by_what_the_project_says_about_it(published: Platform) -> None:
    index = of(published).index("busco")
    assert index is not None
    assert sorted(index["tables"]) == [BRONZE, GOLD, SILVER]
    entry, found = index["tables"][SILVER], content(published, SILVER)
    assert (entry["summary"], entry["owner"], entry["tags"]) == ("One row **per order**.", "Sales", ["sales"])
    assert entry["upstream"] == [BRONZE]
    assert index["tables"][GOLD]["upstream"] == [SILVER], "a view in between is not a table"
    assert [name for name, *_ in entry["columns"]] == ["id", "customer", "amount", "day", "n", "_ingested_at"]
    (unique,) = entry["tests"]
    assert (unique["kind"], unique["column"], unique["status"]) == ("unique", "id", "success")
    assert unique["at"] is not None
    assert "<strong>per order</strong>" in found["description_html"]
    assert "<script" not in found["description_html"]
    assert 'href="javascript' not in json.dumps(found)
    assert (found["grain"], found["meta"], found["partition_by"]) == (["id"], {"cost_center": "12"}, ["day"])
    assert [one["name"] for one in found["columns"] if one["key"]] == ["id"]
    assert "source('bronze','orders')" in found["sql"]["source"]
    assert '"bronze"."orders"' in found["sql"]["compiled"]
    assert found["glue"]["database"] == "busco_silver"


def test_all_numbers_of_a_profile_are_those_that_queries_return(published: Platform) -> None:
    found = columns(published, SILVER)
    assert content(published, SILVER)["profile_from"] == "rows"
    for name in ("id", "amount", "day", "n"):
        ((nulls, distinct, least, greatest),) = published.duckdb(
            f"select count(*) - count({name}), count(distinct {name}), min({name})::varchar, max({name})::varchar "
            "from busco_silver.orders"
        )
        expected = {"nulls": nulls, "distinct": distinct, "exact": True, "min": least, "max": greatest}
        assert {key: found[name]["profile"][key] for key in expected} == expected, name
    assert found["n"]["profile"]["top"] == [["2", 2], ["1", 1]]
    assert found["id"]["profile"]["top"] is None, "each row has a value of its own"
    assert columns(published, GOLD)["ids"]["profile"]["min"] is None, "lists have no order"
    sample = content(published, GOLD)["sample"]
    assert sample["columns"] == ["day", "orders", "n", "amount", "ids"]
    assert sorted(sample["rows"]) == [
        ["2018-01-01", "2", "3", "4.00", "[o1, o2]"], ["2018-01-02", "1", "2", None, "[o3]"]
    ]  # fmt: skip


def test_nothing_of_a_personal_column_and_no_path_of_the_machine_is_in_the_site_s_files(published: Platform) -> None:
    for table in (BRONZE, SILVER):
        found = content(published, table)
        (customer,) = [one for one in found["columns"] if one["name"] == "customer"]
        assert (customer["personal"], customer["profile"]) == (True, None)
        assert "customer" not in found["sample"]["columns"]
        assert len(found["sample"]["rows"]) == 3, "the other columns are there"
    prefix = published.live().docs
    keys = [key for key in published.store.keys(prefix) if key.endswith(".json")]
    assert len(keys) >= 6
    for key in keys:
        stored = published.store.get(key)
        assert stored is not None
        assert b"Canary" not in stored.body, key
        assert str(published.home).encode() not in stored.body, key


def test_values_of_a_column_that_is_marked_later_disappear_from_older_releases(published: Platform) -> None:
    first, old = published.live().release, content(published, GOLD)
    assert [one["profile"]["max"] for one in old["columns"] if one["name"] == "n"] == ["3"]
    assert ["n" in content(published, table)["sample"]["columns"] for table in (SILVER, GOLD)] == [True, True]
    file = published.home / "dbt_project/models/silver/orders.yml"
    file.write_text(file.read_text() + "      - {name: n, config: {meta: {pii: true}}}\n")
    assert published.build().good
    assert published.live().release != first
    for table in (SILVER, GOLD):
        found = content(published, table, first)
        by_name = {one["name"]: one for one in found["columns"]}
        assert (by_name["n"]["personal"], by_name["n"]["profile"]) == (True, None)
        assert "n" not in found["sample"]["columns"]
        assert {len(row) for row in found["sample"]["rows"]} == {len(found["sample"]["columns"])}
        assert by_name["day"]["profile"] is not None, "the other columns are as they were"

    s3 = client("s3", published.settings)
    s3.put_bucket_versioning(Bucket=published.settings.lake_bucket, VersioningConfiguration={"Status": "Enabled"})
    keys = [key for key in published.store.keys("docs/") if "/tables/" in key]
    assert len(keys) == 5, "two of three tables have a new content file"
    before = {key: stored(published, key) for key in keys}
    # the older index has the newest values of versions that are not live any more
    assert "3 of 7 files of the data catalog have values to remove" in published.busco("scrub", "--dry-run")
    assert {key: stored(published, key) for key in keys} == before
    assert "3 of 7 files of the data catalog had values, which were removed" in published.busco("scrub")
    changed = [key for key in keys if stored(published, key) != before[key]]
    assert len(changed) == 2
    assert not {key for key in changed if published.live().docs in key}
    for key in changed:
        found = json.loads(stored(published, key))
        assert (found["sample"], {one["profile"] is None for one in found["columns"]}) == (None, {True})
        assert len(s3.list_object_versions(Bucket=published.settings.lake_bucket, Prefix=key)["Versions"]) == 1
    assert content(published, GOLD, first)["rows"] == 2
    assert "0 of 7 files of the data catalog" in published.busco("scrub")


def releases_of(site: Site) -> list[dict[str, Any]]:
    history = site.history()
    assert history is not None
    return list(history["releases"])


def test_the_lineage_of_a_column_leads_through_views_to_tables(published: Platform) -> None:
    found = {name: one["lineage"] for name, one in columns(published, GOLD).items()}
    assert found == {
        "day": [[SILVER, "day"]], "n": [[SILVER, "n"]], "amount": [[SILVER, "amount"]],
        "orders": [], "ids": [[SILVER, "id"]],
    }  # fmt: skip
    assert columns(published, SILVER)["amount"]["lineage"] == [[BRONZE, "amount"]]


def test_an_unchanged_table_s_content_file_is_not_made_again(published: Platform) -> None:
    before = of(published).index("busco")
    assert before is not None
    file = published.home / "dbt_project/models/gold/fct.yml"
    file.write_text(file.read_text().replace("- name: fct\n", "- name: fct\n    description: Another text.\n", 1))
    assert published.build().good
    after = of(published).index("busco")
    assert after is not None
    assert after["run"] != before["run"]
    # the run repeats the test, and nothing else about the table differs
    (then,), (now,) = before["tables"][SILVER]["tests"], after["tables"][SILVER]["tests"]
    assert now["at"] > then["at"]
    repeated = {"at": now["at"], "seconds": now["seconds"]}
    assert after["tables"][SILVER] == before["tables"][SILVER] | {"tests": [then | repeated]}
    assert after["tables"][GOLD]["content"]["key"] != before["tables"][GOLD]["content"]["key"]
    assert "Another text." in content(published, GOLD)["description_html"]
    written = list(published.store.keys(f"{published.live().docs}tables/"))
    assert written == [after["tables"][GOLD]["content"]["key"]]
    assert (
        "Another text." not in content(published, GOLD, releases_of(of(published))[1]["release"])["description_html"]
    ), "the site at an older release shows what it showed then"
    newest = releases_of(of(published))[0]
    assert (newest["changes"], newest["described"]) == ({}, [GOLD]), "no new version, but another description"


def test_the_state_follows_a_rollback_and_a_hold_at_once(published: Platform) -> None:
    first = published.live()
    published.deliver(csv_text(ORDERS, [("o4", "Caio Canary", "3.00", "2018-01-03", 5)]), "orders-more.csv")
    assert published.build().good
    second = published.live()
    state = of(published).state()
    assert state is not None
    assert (state["live"], state["release"], state["hold"]) == (second.release, second.release, None)
    assert state["tables"][SILVER]["rows"] == 4
    assert state["tables"][SILVER]["published_at"] == second.created_at.isoformat()
    older = of(published).state(first.release)
    assert older is not None
    assert (older["live"], older["release"], older["tables"][SILVER]["rows"]) == (second.release, first.release, 3)
    releases.rollback(published.store, ENVIRONMENT, first.release, "ana", "wrong amounts")
    state = of(published).state()
    assert state is not None
    assert (state["kind"], state["rolled_back_to"], state["who"]) == ("rollback", first.release, "ana")
    assert (state["hold"]["who"], state["hold"]["reason"]) == ("ana", "wrong amounts")
    assert state["tables"][SILVER]["rows"] == 3
    assert content(published, SILVER)["rows"] == 3
    newest, middle, oldest = releases_of(of(published))
    assert [one["kind"] for one in (newest, middle, oldest)] == ["rollback", "publish", "publish"]
    assert newest["changes"][SILVER]["rows"] == 3
    assert middle["changes"][SILVER]["rows"] == 4
    assert sorted(oldest["changes"]) == [BRONZE, GOLD, SILVER]
    assert of(published).state("no-such-release") is None


def test_a_project_that_may_not_be_read_is_not_there(published: Platform) -> None:
    other = of(published, "another")
    state = other.state()
    assert state is not None
    assert (state["tables"], state["projects"]) == ({}, {})
    assert (state["run"], state["code_version"]) == ("", "")
    assert other.index("busco") is None
    assert other.content("busco", SILVER) is None
    assert [one["changes"] for one in releases_of(other)] == [{}]
    catalog, own = other.catalog(), of(published).catalog()
    assert catalog is not None
    assert own is not None
    assert catalog == own | {"tables": {}}, "about the release itself it says the same"
    assert "orders" in json.dumps(own)
    assert "orders" not in json.dumps([catalog, state, other.history()])


def test_the_catalog_has_all_tables_with_their_columns_and_states(published: Platform) -> None:
    printed = json.loads(published.busco("docs", "catalog"))
    assert sorted(printed["tables"]) == [BRONZE, GOLD, SILVER]
    found = printed["tables"][SILVER]
    assert (found["rows"], found["owner"], found["kind"]) == (3, "Sales", "model")
    assert found["columns"][0] == {
        "name": "id", "type": "VARCHAR", "key": True, "description": "The key, [docs](javascript:alert(1))",
        "synonyms": "identifier · chave",
    }  # fmt: skip
    assert {table: one["state"] for table, one in printed["tables"].items()} == {BRONZE: "ok", GOLD: "ok", SILVER: "ok"}
    assert found["synonyms"] == ["purchases"]
    assert found["newest"] == ["day", "2018-01-02"]
    loaded = printed["tables"][BRONZE]["loaded_at"]
    ((newest,),) = published.duckdb("select strftime(max(_ingested_at), '%Y-%m-%dT%H:%M:%S') from busco_bronze.orders")
    assert loaded.startswith(newest)


def test_a_failure_of_the_site_does_not_hold_up_a_release(
    published: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("the disk of the profiler is full")

    monkeypatch.setattr(profile.Profiler, "profile", fail)
    published.deliver(csv_text(ORDERS, [("o4", "Caio", "3.00", "2018-01-03", 5)]), "orders-more.csv")
    run, outcome = published.built()
    assert outcome.good
    published.publish(run)
    assert published.live().run == run.name
    assert "the site will have no pages for this release" in capsys.readouterr().out
    assert "the disk of the profiler is full" in run.log(DOCS_NODE, 1)
    state = of(published).state()
    assert state is not None
    assert state["projects"]["busco"]["has_site"] is False
    assert SILVER in state["tables"], "its state is known all the same"


def test_an_index_that_can_not_be_read_only_makes_the_pages_again(
    published: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    before = of(published).index("busco")
    assert before is not None
    published.store.put(f"{published.live().docs}site.json", b"{")
    assert published.build().good
    after = of(published).index("busco")
    assert after is not None
    assert after["tables"].keys() == before["tables"].keys()
    assert "pages are made again" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda index, _: index["tables"][SILVER]["content"].update(key="_lake/env/prod/current.json"),
        lambda index, _: index["tables"][SILVER]["content"].update(key=index["tables"][GOLD]["content"]["key"]),
        lambda index, other: index["tables"][SILVER]["content"].update(key=other),
        lambda index, _: index["tables"][SILVER]["content"].update(key=7),
        lambda index, _: index["tables"].update({SILVER: []}),
        lambda index, _: index.update(tables=None),
        lambda index, _: index.update(format=2),
    ],
)
def test_an_index_that_a_project_s_code_has_changed_leads_to_no_other_object(
    published: Platform, change: Callable[[dict[str, Any], str], Any]
) -> None:
    prefix = published.live().docs
    index = json.loads(stored(published, f"{prefix}site.json"))
    # another project's content file about a table with the same name
    other = f"{prefix}tables/other.json"
    published.store.put(other, json.dumps({"project": "other", "table": SILVER}).encode())
    change(index, other)
    published.store.put(f"{prefix}site.json", json.dumps(index).encode())
    assert of(published).content("busco", SILVER) is None
    assert of(published).state() is not None, "the state needs no index"


def stored(platform: Platform, key: str) -> bytes:
    found = platform.store.get(key)
    assert found is not None, key
    return found.body


def test_without_time_a_profile_comes_from_the_statistics(published: Platform) -> None:
    version = published.version(SILVER)
    with connect(published.settings) as connection:
        late = profile.Profiler(connection, published.settings.lake_bucket, 0).profile(version, frozenset({"customer"}))
    assert (late.source, late.sample) == ("statistics", None)
    assert late.columns["amount"] == {
        "nulls": 1, "distinct": None, "exact": False, "min": "1.50", "max": "2.50", "top": None
    }  # fmt: skip
    assert late.columns["day"]["max"] == "2018-01-02", "over both files"
    assert "customer" not in late.columns


def test_everything_for_a_page_without_a_server_is_gathered(published: Platform) -> None:
    data = gather(of(published), published.live().release)
    assert sorted(data["tables"]["busco"]) == [BRONZE, GOLD, SILVER]
    assert data["sites"]["busco"]["title"] == "busco"
    assert data["state"]["release"] == data["history"]["releases"][0]["release"]


def test_the_pages_are_written_to_a_file_that_shows_one_release(published: Platform) -> None:
    file = published.home / "pages.html"
    printed = published.busco("docs", "open", SILVER, "--file", str(file))
    release = published.live().release
    assert f"release {release}, 3 tables" in printed
    assert file.stat().st_mode & 0o777 == 0o600, "it contains rows"
    page = file.read_text()
    assert release in page
    assert "connect-src" in page, "its policy is in the file"
    assert "Canary" not in page
    before = page
    refused = published.busco("docs", "open", "gold.nothing", "--file", str(file), status=1)
    assert f"release {release} has no table gold.nothing" in refused
    assert "is not a table's name" in published.busco("docs", "open", "orders", "--file", str(file), status=1)
    assert "can't be written" in published.busco("docs", "open", "--file", "/proc/pages.html", status=1)
    assert file.read_text() == before
