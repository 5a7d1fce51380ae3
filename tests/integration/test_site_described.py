"""What the site says beyond rows: uses, terms, groups and keys of a real project, tests that ran earlier, releases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from busco.aws import client
from busco.lake.layout import EnvironmentLayout
from busco.lake.records import Release, Result
from busco.lake.runs import Run
from busco.site.release import Site
from busco.warehouse import profile, site
from tests.integration.conftest import MINI
from tests.platforms import Platform, csv_text, platform

ORDERS = ("id", "customer", "amount", "day", "n")
ROWS = [("o1", "Ana", "1.50", "2018-01-01", 1), ("o2", "Bia", "", "2018-01-01", 2), ("o3", "Bia", "", "2018-01-02", 2)]
ENVIRONMENT = EnvironmentLayout("prod")
GOLD, SILVER, BRONZE = "gold.fct", "silver.orders", "bronze.orders"
FILES = {
    "models/exposures.yml": """exposures:
  - name: board
    label: Sales board
    type: dashboard
    maturity: high
    url: https://bi.example.com/board?id=1&x=<b>
    description: "{{ doc('sold') }}"
    owner: {name: Ana, email: ana@example.com}
    depends_on: ["ref('v_orders')", "ref('fct')"]
  - name: trap
    type: notebook
    url: "javascript:alert(1)"
    owner: {email: bia@example.com}
    depends_on: ["source('bronze', 'orders')"]
""",
    "models/glossary.md": "{% docs sold %}An order that **is sold**. <script>alert(1)</script>{% enddocs %}\n"
    "{% docs late %}Late is [late](https://example.com).{% enddocs %}\n",
    "models/groups.yml": """groups:
  - name: sales
    owner: {name: Sales team, email: sales@example.com}
  - name: platform
    owner: {name: Platform team, email: platform@example.com}
""",
    "models/silver/orders.yml": """models:
  - name: orders
    config: {group: sales}
    columns:
      - name: id
        data_tests: [unique]
      - name: amount
        data_tests: [{not_null: {config: {severity: warn}}}]
""",
    "models/bronze/s.yml": """sources:
  - name: bronze
    schema: bronze
    tables:
      - name: orders
        config:
          meta: {grain: [id], delivery: rows}
          loaded_at_field: _ingested_at
          freshness: {warn_after: {count: 24, period: hour}, error_after: {count: 2, period: day}}
        columns:
          - {name: id, data_type: VARCHAR}
          - {name: customer, data_type: VARCHAR}
          - {name: amount, data_type: "DECIMAL(12,2)"}
          - {name: day, data_type: DATE}
          - {name: n, data_type: INTEGER}
""",
    "macros/tests.sql": "{% test unique_combination(model, columns) %}select {{ columns | join(', ') }} "
    "from {{ model }} group by all having count(*) > 1{% endtest %}\n",
}
# A model for each way to say what a row is, and what its grain, its owner and the contact are then.
SAME = "select id, day, n from {{ ref('orders') }}"
WAYS: dict[str, tuple[str, tuple[list[str], str, str]]] = {
    "by_meta": (
        "config: {meta: {grain: id, owner: platform, contact: 'https://chat.example.com/data'}}",
        (["id"], "platform", "https://chat.example.com/data"),
    ),
    "by_column": (
        "config: {meta: {owner: platform}}\n    columns: [{name: day}, {name: id, data_tests: [not_null, unique]}]",
        (["id"], "platform", "platform@example.com"),
    ),
    "by_list": ("config: {meta: {grain: [day, id], owner: Caio}}", (["day", "id"], "Caio", "")),
    "by_combination": (
        "config: {meta: {owner: {name: Dora, email: dora@example.com}}}\n"
        "    data_tests: [{unique_combination: {arguments: {columns: [id, day]}}}]",
        (["id", "day"], "Dora", ""),
    ),
    "by_nothing": ("config: {group: sales}", ([], "Sales team", "sales@example.com")),
}


@dataclass
class Told:
    """A platform with two releases: one of everything, and one of a run of `gold.fct` only."""

    made: Platform
    runs: list[Run]
    releases: list[Release]
    # the seconds that each run gave to profiles
    given: list[float] = field(default_factory=list)

    def index(self, release: int = -1) -> dict[str, Any]:
        found = self.site.index("busco", self.releases[release].release)
        assert found is not None
        return found

    def content(self, table: str) -> dict[str, Any]:
        body = self.site.content("busco", table)
        assert body is not None, table
        return dict(json.loads(body))

    @property
    def site(self) -> Site:
        return Site(self.made.store, ENVIRONMENT, frozenset({"busco"}))

    def stored(self) -> dict[str, tuple[str, Any]]:
        """Returns the ETag and the time of each object below docs/, but for the page of dbt's docs of the live release,
        which publishing and a rollback copy."""
        pages = client("s3", self.made.settings).get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.made.settings.lake_bucket, Prefix="docs/")
        objects = [one for page in found for one in page.get("Contents", [])]
        return {one["Key"]: (one["ETag"], one["LastModified"]) for one in objects if one["Key"] != "docs/index.html"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, served: Path) -> Iterator[Told]:
    with (
        platform(tmp_path_factory.mktemp("described"), MINI, served) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        for path, text in FILES.items():
            made.write(f"dbt_project/{path}", text)
        for name, (yaml, _) in WAYS.items():
            made.model(f"gold/{name}", SAME, f"models:\n  - name: {name}\n    {yaml}\n")
        found = Told(made, [], [])

        def noted(connection: Any, bucket: str, seconds: float) -> profile.Profiler:
            found.given.append(seconds)
            return profile.Profiler(connection, bucket, 60)

        patch.setattr(site, "Profiler", noted)
        made.deliver(csv_text(ORDERS, ROWS))
        for select in ("", "fct"):
            run, outcome = made.built(select)
            assert outcome.good, outcome.statuses
            found.runs.append(run)
            found.releases.append(made.publish(run))
        yield found


def test_uses_name_their_tables_even_if_they_read_them_through_a_view(told: Told) -> None:
    board, trap = told.index()["exposures"]
    assert board["tables"] == [GOLD, SILVER]
    assert (board["name"], board["label"], board["type"], board["maturity"]) == (
        "board", "Sales board", "dashboard", "high",
    )  # fmt: skip
    assert board["owner"] == {"name": "Ana", "email": "ana@example.com"}
    assert board["url"] == "https://bi.example.com/board?id=1&x=<b>"
    assert "<strong>is sold</strong>" in board["description_html"]
    assert (trap["label"], trap["tables"], trap["owner"]["email"]) == ("trap", [BRONZE], "bia@example.com")
    assert trap["url"] is None, "a browser would run it"


def test_the_glossary_has_the_project_s_terms_as_html_and_none_of_dbt_s_own(told: Told) -> None:
    assert [(one["package"], one["name"]) for one in told.index()["pages"]] == [("busco", "late"), ("busco", "sold")]
    late, sold = (one["html"] for one in told.index()["pages"])
    assert late == '<p>Late is <a href="https://example.com">late</a>.</p>'
    assert sold.startswith("<p>An order that <strong>is sold</strong>.")
    assert "<script" not in sold


def test_groups_have_their_owners_and_addresses(told: Told) -> None:
    assert [(one["name"], one["owner"], one["email"]) for one in told.index()["groups"]] == [
        ("platform", "Platform team", "platform@example.com"), ("sales", "Sales team", "sales@example.com"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_a_table_s_key_owner_and_contact_come_from_all_places_where_dbt_has_them(told: Told, name: str) -> None:
    found = told.content(f"gold.{name}")
    assert (found["grain"], found["owner"], found["contact"]) == WAYS[name][1]
    assert {one["name"] for one in found["columns"] if one["key"]} == set(found["grain"])


def test_a_column_s_unique_test_makes_it_the_key_and_a_group_the_owner(told: Told) -> None:
    found = told.content(SILVER)
    assert (found["grain"], found["owner"], found["contact"]) == (["id"], "Sales team", "sales@example.com")
    assert (found["group"], told.index()["tables"][SILVER]["group"]) == ("sales", "sales")


def test_columns_have_the_types_of_the_table_in_duckdb(told: Told) -> None:
    for table in (BRONZE, SILVER, GOLD):
        described = told.made.duckdb(f"describe busco_{table}")
        assert [(one["name"], one["type"]) for one in told.content(table)["columns"]] == [row[:2] for row in described]


def test_the_limits_of_a_source_s_freshness_are_in_the_index(told: Told) -> None:
    tables = told.index()["tables"]
    assert (tables[BRONZE]["warn_after"], tables[BRONZE]["error_after"]) == (86400, 172800)
    assert (tables[SILVER]["warn_after"], tables[SILVER]["error_after"]) == (None, None)


def results_of(told: Told, table: str, release: int) -> dict[tuple[str, str | None], dict[str, Any]]:
    return {(one["kind"], one["column"]): one for one in told.index(release)["tables"][table]["tests"]}


def results(told: Told, run: int) -> dict[str, Result]:
    return told.runs[run].latest_results()


def test_tests_have_the_results_of_the_run(told: Told) -> None:
    found = results_of(told, SILVER, 0)
    assert found.keys() == {("unique", "id"), ("not_null", "amount")}
    assert (found["unique", "id"]["status"], found["unique", "id"]["failures"]) == ("success", None)
    assert (found["not_null", "amount"]["status"], found["not_null", "amount"]["failures"]) == ("warn", 2)
    for one in found.values():
        result = results(told, 0)[one["unique_id"]]
        assert result.finished_at is not None
        assert (one["at"], one["seconds"]) == (result.finished_at.isoformat(), result.seconds)


def test_a_run_of_one_table_keeps_the_results_of_tests_that_it_did_not_run(told: Told) -> None:
    before, after = results_of(told, SILVER, 0), results_of(told, SILVER, 1)
    assert not {one["unique_id"] for one in before.values()} & results(told, 1).keys()
    assert after == before
    own, earlier = results_of(told, GOLD, 1), results_of(told, GOLD, 0)
    assert own.keys() == earlier.keys()
    assert all(own[key]["at"] > earlier[key]["at"] for key in own), "these ran"


def test_profiles_get_a_twentieth_of_the_time_of_the_models_that_were_built(told: Told) -> None:
    # the second run only kept the version that it was to build
    assert [one.kept for one in results(told, 1).values() if one.made] == [True]
    spans = sorted(
        (one.finished_at.timestamp() - one.seconds, one.finished_at.timestamp())
        for one in results(told, 0).values()
        if one.made and one.finished_at is not None
    )
    assert len(spans) == 2 + len(WAYS)
    # models that are built at the same time count once
    marks = sorted({time for span in spans for time in span})
    pairs = pairwise(marks)
    busy = sum(end - begin for begin, end in pairs if any(one <= begin and end <= other for one, other in spans))
    assert busy > 0
    assert told.given == [pytest.approx(0.05 * busy), 0]


def test_a_page_in_a_file_shows_the_release_that_was_asked_for(told: Told) -> None:
    first, last = told.releases
    file = told.made.home / "pages.html"
    for asked, expected in (((), last), (("--release", first.release), first)):
        printed = told.made.busco("docs", "open", *asked, "--file", str(file))
        assert f"release {expected.release}" in printed
        inside = re.search(r'id="busco-data">(.*?)</script>', file.read_text(), re.DOTALL)
        assert inside is not None
        data = json.loads(inside[1])
        assert (data["state"]["release"], data["state"]["live"]) == (expected.release, last.release)
        assert data["sites"]["busco"]["run"] == expected.run


def test_a_rollback_writes_no_page_and_a_resume_takes_its_notice_away(told: Told) -> None:
    before = told.stored()
    assert len([key for key in before if "/tables/" in key]) == 3 + len(WAYS)
    told.made.busco("release", "rollback", told.releases[0].release, "--reason", "wrong")
    state = told.site.state()
    assert state is not None
    assert (state["kind"], state["rolled_back_to"]) == ("rollback", told.releases[0].release)
    assert state["hold"]["reason"] == "wrong"
    assert told.stored() == before
    told.made.busco("release", "resume", "--no-start")
    state = told.site.state()
    assert state is not None
    assert state["hold"] is None
    assert (state["live"], state["kind"]) == (told.made.live().release, "rollback"), "its content stays as it was"
    assert told.stored() == before
