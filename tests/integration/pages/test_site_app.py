"""The consumers' site in a real browser, both as one file and served in its frame."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from busco.site import page as assembled
from busco.site.page import away_html, frame_csp, frame_html, shell_csp, shell_html
from busco.site.states import STATES, states
from tests import site_data
from tests.chromium import steady
from tests.site_data import BEFORE, LIVE, NOW, iso, marketplace, release_id
from tests.site_pages import AXE, DESKTOP, PHONE, Open, Shown
from tests.site_server import Served

APP = Path(assembled.__file__).parent / "app"
# what encodeURIComponent leaves as it is
UNESCAPED = "-_.!~*'()"
MARKUP = """document.querySelectorAll("img, b, svg[onload], #busco-app script, #busco-app style, [onerror], [onclick], "
    + "a[href^='javascript']").length"""
# the paths of the pages, each with the name of its picture
PAGES = {
    "": "start",
    "gold/fct_orders": "table",
    "releases": "releases",
    "exposures": "exposures",
    "glossary": "glossary",
    "gold/nothing": "missing",
}


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def screen(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A desktop's screen in light colors, or a phone's in dark ones."""
    return dict(request.param)


def test_the_start_page_shows_each_table_by_layer_with_its_state(
    opened: Open, form: str, screen: dict[str, Any]
) -> None:
    shown = opened(form, **screen).at("Tables")
    layers = shown.app.locator("section.layer h2 > span:first-of-type").all_inner_texts()
    assert layers == ["gold", "silver", "bronze"]
    for table, state in {
        "fct_orders": "fresh",
        "dim_dates": "failed tests",
        "order_reviews": "late",
        "reviews": "late",
        "mart_payment_mix": "stale",
        "dim_regions": "warned",
    }.items():
        assert f" {state} " in shown.row(table), table
        mark = shown.app.locator("tr", has=shown.app.get_by_role("link", name=table, exact=True)).locator(".status svg")
        expect(mark).to_have_count(1)
    newest = iso(NOW - timedelta(hours=14))[:10]
    # a phone, which shows no heading of the column, says what is counted
    unit = " rows" if screen == PHONE else ""
    assert shown.row("mart_daily_sales").endswith(f" fresh {newest} purchased_on 3 hours ago 634{unit}")
    when = shown.app.locator("tr time").first
    assert re.search(r"\d{4}.*\d\d:\d\d", when.get_attribute("title") or "")
    shown.app.get_by_text("About this release").click()
    expect(shown.app.locator(".about-release code").first).to_have_text(LIVE)


def test_tables_are_filtered_by_tag_layer_and_state(opened: Open) -> None:
    shown = opened("file")
    shown.app.get_by_role("button", name="finance").click()
    expect(shown.app.get_by_text("3 of 12 tables")).to_be_visible()
    shown.app.get_by_role("button", name="stale").click()
    expect(shown.app.locator("tbody th code")).to_have_text(["mart_payment_mix"])
    shown.app.get_by_role("button", name="Clear the filters").click()
    shown.app.get_by_role("button", name="silver").click()
    expect(shown.app.locator("tbody tr")).to_have_count(3)


def test_filters_are_in_the_address(opened: Open, form: str) -> None:
    shown = opened(form)
    shown.app.get_by_role("button", name="finance").click()
    expect(shown.app.get_by_text("3 of 12 tables")).to_be_visible()
    address = shown.page.url
    shown.app.get_by_role("link", name="mart_daily_sales", exact=True).click()
    shown.at("mart_daily_sales")
    shown.app.locator(".crumbs").get_by_role("link").click()
    expect(shown.app.get_by_text("3 of 12 tables")).to_be_visible()
    shown.app.get_by_role("navigation", name="Pages").get_by_role("link", name="Tables").click()
    expect(shown.app.get_by_text("12 tables", exact=True)).to_be_visible()
    shown.page.goto("about:blank")
    shown.page.goto(address)
    app = shown.page.frames[-1]
    expect(app.get_by_text("3 of 12 tables")).to_be_visible()
    app.get_by_role("button", name="stale").click()
    expect(app.locator("tbody tr")).to_have_count(1)


def test_a_table_is_called_fresh_only_if_somebody_has_set_how_fresh_it_must_be(opened: Open) -> None:
    data = marketplace()
    for entry in data["sites"]["busco"]["tables"].values():
        entry.update(warn_after=None, error_after=None)
    shown = opened("file", data=data)
    assert " no problems " in shown.row("fct_orders")
    assert " no problems " in shown.row("orders"), "a source"
    assert " fresh " not in re.sub(r"\s+", " ", shown.text())
    assert " failed tests " in shown.row("dim_dates"), "a problem is one all the same"


def test_problems_of_the_tables_that_it_is_built_from_are_named(opened: Open) -> None:
    data = marketplace()
    tables = data["sites"]["busco"]["tables"]
    tables["silver.orders"]["tests"][0].update(status="warn", failures=4)
    tables["bronze.payments"]["tests"][0].update(status="error", failures=None)
    shown = opened("file", "gold/mart_daily_sales", data)
    reasons = shown.app.locator(".reasons")
    expect(reasons).to_contain_text("Tests reported warnings in silver.orders, which this table is built from.")
    expect(reasons).to_contain_text("Tests failed in bronze.payments, which this table is built from.")
    expect(shown.app.locator(".table-heading .status")).to_have_text("fresh")


def test_a_test_of_the_project_s_own_sql_is_called_by_its_name(opened: Open) -> None:
    data = marketplace()
    data["sites"]["busco"]["tables"]["gold.fct_orders"]["tests"].append(
        site_data.result("x", None, "sql", name="payments_cover_the_order")
    )
    shown = opened("file", "gold/fct_orders", data)
    names = shown.app.locator(".part-tests").get_by_role("rowheader").all_inner_texts()
    assert names == ["never null", "payments_cover_the_order", "no value twice"]


def test_code_that_is_newer_than_the_rows_says_so(opened: Open) -> None:
    data = marketplace()
    shown = opened("file", "gold/fct_orders", data)
    expect(shown.app.locator(".part-sql")).not_to_contain_text("an earlier state")
    data["tables"]["busco"]["gold.fct_orders"]["sql"]["is_of_version"] = False
    shown = opened("file", "gold/fct_orders", data)
    expect(shown.app.locator(".part-sql")).to_contain_text("The rows were made by an earlier state of it")


def test_pages_that_would_be_empty_are_not_offered(opened: Open) -> None:
    data = marketplace()
    data["sites"]["busco"].update(exposures=[], pages=[])
    names = opened("file", data=data).app.locator("header nav").inner_text().split()
    assert names == ["Tables", "Releases", "Glossary"], "it has a group"
    data["sites"]["busco"].update(groups=[])
    names = opened("file", data=data).app.locator("header nav").inner_text().split()
    assert names == ["Tables", "Releases"]
    opened("file", "glossary", data).at("Glossary")


def test_a_project_can_have_any_name(opened: Open) -> None:
    data = marketplace()
    for part in (data["sites"], data["tables"], data["state"]["projects"]):
        part["__proto__"] = part.pop("busco")
    for table in data["state"]["tables"].values():
        table["project"] = "__proto__"
    shown = opened("shell", data=data)
    assert " fresh " in shown.row("fct_orders")
    shown.app.get_by_role("link", name="fct_orders", exact=True).click()
    expect(shown.app.locator("table.columns")).to_be_visible()


def test_on_paper_times_are_exact(opened: Open) -> None:
    shown = opened("file")
    shown.page.emulate_media(media="print")
    printed = shown.app.evaluate("getComputedStyle(document.querySelector('tr time'), '::after').content")
    assert re.search(r"\d{4}", printed)


def test_a_search_finds_tables_and_columns(opened: Open, screen: dict[str, Any]) -> None:
    shown = opened("file", **screen)
    for query, expected in {
        "late delivery": {"is_late", "delivery_days", "fct_orders"},
        "delivery LATE": {"is_late", "delivery_days", "fct_orders"},
        "entrega atrasada": {"mart_delivery_performance"},
        "atrasadas, entregas": {"mart_delivery_performance"},
        "prazo medio": {"mart_delivery_performance"},
        "avaliacoes": {"reviews"},
        "Avaliações": {"reviews"},
        "revnue": {"mart_daily_sales"},
        "deliv": {"delivery_days", "mart_delivery_performance"},
        "fct_orders": {"fct_orders"},
        "deliveryDays": {"delivery_days"},
        "logistics": {"fct_orders", "mart_delivery_performance"},
        "receita": {"mart_daily_sales"},
        "prazo de entrega": {"delivery_days"},
    }.items():
        assert expected <= set(shown.find(query)[:10]), query


def test_a_search_finds_whole_descriptions_terms_and_uses(opened: Open, served: Served) -> None:
    data = copy.deepcopy(served.data)
    site = data["sites"]["busco"]
    long = "It has one row per day. " * 20 + "Days without any purchase are missing from the warehouse."
    site["tables"]["gold.mart_daily_sales"]["more"] = long
    site["pages"][0]["text"] = "An order that is neither canceled nor unavailable."
    site["exposures"][0]["text"] = "The figures of the weekly meeting."
    shown = opened("file", data=data)
    assert shown.find("warehouse")[0] == "mart_daily_sales"
    expect(shown.app.locator("#hits li").first).to_contain_text("… day. It has one row per day. Days without")
    expect(shown.app.locator("#hits li mark").first).to_have_text("warehouse")
    assert shown.find("order that is neither")[0] == "sold order"
    shown.app.locator("#hits li").first.click()
    shown.at("Glossary")
    assert shown.page.url.endswith("#/glossary#sold_order")
    assert shown.find("weekly meeting")[0] == site["exposures"][0]["label"]
    shown.app.locator("#hits li").first.click()
    assert shown.page.url.endswith(f"#/exposures#{site['exposures'][0]['name']}")


def test_a_search_says_which_words_nothing_has(opened: Open) -> None:
    shown = opened("file")
    shown.find("revenue by warehouse day")
    expect(shown.app.locator(".found")).to_contain_text("Nothing has all of these words. Not found: warehouse.")
    shown.find("revenue day")
    expect(shown.app.locator(".found")).not_to_contain_text("Not found")


def test_the_best_result_is_first(opened: Open) -> None:
    shown = opened("file")
    assert shown.find("fct_orders")[0] == "fct_orders"
    assert shown.find("late delivery")[0] == "is_late"
    assert shown.find("revenue day")[0] == "mart_daily_sales"
    shown.app.locator(".search input").fill("zzzzqqqq")
    expect(shown.app.get_by_text("Nothing matches")).to_be_visible()


def test_a_search_works_by_keyboard_and_a_column_opens_its_row(opened: Open, form: str, screen: dict[str, Any]) -> None:
    shown = opened(form, **screen)
    shown.page.keyboard.press("/")
    expect(shown.app.locator(".search input")).to_be_focused()
    shown.page.keyboard.type("late delivery")
    expect(shown.app.locator("mark").first).to_be_visible()
    assert shown.app.locator("#hits li[aria-selected=true]").count() == 1
    shown.page.keyboard.press("Escape")
    expect(shown.app.locator("#hits")).to_be_hidden()
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("ArrowUp")
    field = shown.app.locator(".search input")
    while "is_late" not in shown.app.locator("#hits li[aria-selected=true]").inner_text():
        shown.page.keyboard.press("ArrowDown")
    assert field.get_attribute("aria-activedescendant") == shown.app.locator(
        "#hits li[aria-selected=true]"
    ).get_attribute("id")
    shown.page.keyboard.press("Enter")
    shown.at("fct_orders")
    expect(shown.app.locator("tr.target").first).to_be_in_viewport()
    expect(shown.app.get_by_role("button", name="Details of is_late")).to_have_attribute("aria-expanded", "true")
    assert shown.page.url.endswith("gold/fct_orders#is_late")


def test_a_table_s_page_answers_what_a_consumer_asks(opened: Open, form: str) -> None:
    shown = opened(form, "gold/fct_orders#delivery_days").at("fct_orders")
    text = shown.text()
    newest = iso(NOW - timedelta(hours=14))[:19].replace("T", " ")
    assert re.search(rf"Newest data\s+{newest}\s+purchased_at", text), "how new the data is"
    assert re.search(r"Owner\s+Finance data", text)
    assert "data@example.com" in text
    assert re.search(r"One row per\s+order_id", text)
    assert "All 2 tests passed" in text
    assert "from busco_gold.fct_orders" in text
    assert "silver.orders.delivered_at" in text, "where the column comes from"
    assert "99,441" in text
    personal = shown.app.get_by_role("row").filter(has_text="customer_unique_id").first
    expect(personal).to_contain_text("personal data: no values are shown")
    for tab, part in {
        "DuckDB": "busco export duckdb lake.duckdb",
        "Python": "read_only=True",
        "R": "dbGetQuery",
    }.items():
        shown.app.get_by_role("tab", name=tab, exact=True).click()
        expect(shown.app.get_by_role("tabpanel").first).to_contain_text(part)
    assert 'workgroup="busco"' in shown.app.evaluate(
        "() => busco.queries.queries({glue: {database: 'a', name: 'b'}}, null).python_wrangler"
    )
    for id_ in ("silver.orders", "gold.mart_daily_sales"):
        expect(shown.app.locator(".part-lineage").get_by_role("link", name=id_)).to_be_visible()
    docs = shown.app.get_by_role("link", name="dbt docs")
    assert (docs.get_attribute("href") or "").endswith("project=busco#!/model/model.busco.fct_orders")
    assert docs.get_attribute("rel") == "noopener noreferrer"


def test_a_table_s_page_says_what_changed_and_since_when_a_column_exists(opened: Open) -> None:
    shown = opened("shell", "gold/fct_orders#delivery_days")
    changes = shown.app.locator(".part-changes")
    expect(changes).to_contain_text("137 rows more")
    expect(changes).to_contain_text("type of order_id changed: BIGINT → VARCHAR")
    expect(changes).to_contain_text("the description changed")
    expect(shown.app.locator("tr.detail")).to_contain_text(release_id(6))
    shown.app.get_by_role("button", name="Details of is_late").click()
    expect(shown.app.locator("tr.detail").first).to_contain_text("gold.mart_delivery_performance.late_share")


def test_what_is_said_about_a_table_can_change_without_a_new_version(opened: Open, served: Served) -> None:
    """The newest release has the version of the one before, with another description and another owner."""
    data = copy.deepcopy(served.data)
    newest, before, *_ = data["history"]["releases"]
    del newest["changes"]["gold.fct_orders"]
    newest["described"] = ["gold.fct_orders"]
    version = before["changes"]["gold.fct_orders"]["version"]
    data["state"]["tables"]["gold.fct_orders"]["version"] = version
    changes = opened("shell", "gold/fct_orders", data).app.locator(".part-changes")
    expect(changes.locator("h3").first).to_have_text("What is said about it has changed since")
    expect(changes.locator("ul").first).to_contain_text("the description changed")
    expect(changes.locator("ul").first).not_to_contain_text("row")
    # the content of the release before is compared with that of the release before it, not with what is said today
    expect(changes.locator("ul").nth(1)).to_contain_text("137 rows more")
    expect(changes.locator("ul").nth(1)).to_contain_text("type of order_id changed: VARCHAR → BIGINT")


def test_older_releases_are_loaded_when_they_are_asked_for(opened: Open, served: Served) -> None:
    served.most_releases = 6
    shown = opened("shell", "releases").at("Releases")
    entries, more = shown.app.locator(".releases > li"), shown.app.get_by_role("button", name="Show older releases")
    expect(entries).to_have_count(6)
    more.click()
    expect(entries).to_have_count(12)
    entries.nth(5).get_by_role("button").click()
    expect(entries.nth(5)).to_contain_text("137"), "it is compared with the first release of the next part"
    more.click()
    expect(entries).to_have_count(14)
    expect(more).to_have_count(0)
    expect(shown.app.get_by_text("Older releases are no longer known.")).to_be_visible()


def test_older_releases_can_be_asked_for_again_after_an_error(opened: Open, served: Served) -> None:
    served.most_releases = 6
    shown = opened("shell", "releases", expected="503").at("Releases")
    served.broken["history"] = 503
    shown.app.get_by_role("button", name="Show older releases").click()
    again = shown.app.get_by_role("button", name="Try again")
    expect(again).to_be_visible()
    expect(shown.app.locator(".releases > li")).to_have_count(6)
    served.broken.clear()
    again.click()
    expect(shown.app.locator(".releases > li")).to_have_count(12)


def test_a_file_says_that_it_does_not_have_all_releases(opened: Open, served: Served) -> None:
    data = copy.deepcopy(served.data)
    data["history"]["next"] = "r-older"
    shown = opened("file", "releases", data).at("Releases")
    expect(shown.app.get_by_text("Older releases are not in this file.")).to_be_visible()


def test_a_table_at_a_release_behind_many_newer_ones_has_its_own_versions(opened: Open, served: Served) -> None:
    served.most_releases = 3
    shown = opened("shell", f"gold/fct_orders?release={release_id(9)}").at("fct_orders")
    changes = shown.app.locator(".part-changes")
    changes.get_by_text("Show the numbers").click()
    expect(changes.get_by_role("row").nth(1)).to_contain_text(release_id(9))


def test_a_column_is_followed_into_releases_that_are_not_loaded_yet(opened: Open, served: Served) -> None:
    served.most_releases = 3
    shown = opened("shell", "gold/fct_orders#delivery_days").at("fct_orders")
    expect(shown.app.locator("tr.detail")).to_contain_text(release_id(6))
    shown.app.get_by_role("button", name="Details of is_late").click()
    expect(shown.app.locator("tr.detail").first).to_contain_text("or earlier; older releases are not known")


def test_no_releases_from_before_a_table_was_new_are_loaded(opened: Open, served: Served) -> None:
    data = copy.deepcopy(served.data)
    data["history"]["releases"][1]["changes"]["gold.fct_orders"]["new"] = True
    served.most_releases = 3
    shown = opened("shell", "gold/fct_orders#is_late", data).at("fct_orders")
    expect(shown.app.locator("tr.detail")).to_contain_text(f", release {release_id(1)}")
    expect(shown.app.locator("tr.detail")).not_to_contain_text("or earlier")
    assert len([each for each in served.asked if "/_data/history" in each]) == 1
    changes = shown.app.locator(".part-changes")
    changes.get_by_text("Show the numbers").click()
    expect(changes.get_by_role("row")).to_have_count(3)


def test_rows_over_releases_are_a_chart_and_a_table(opened: Open) -> None:
    changes = opened("file", "gold/fct_orders").app.locator(".part-changes")
    expect(changes.get_by_role("img").first).to_have_attribute("aria-label", re.compile("Rows in the last 14 versions"))
    expect(changes.locator("svg").first.locator("rect")).to_have_count(14)
    changes.get_by_text("Show the numbers").click()
    expect(changes.get_by_role("row")).to_have_count(15)


def test_the_reasons_for_a_state_are_named(opened: Open, screen: dict[str, Any]) -> None:
    shown = opened("file", **screen)
    for path, reason in {
        "gold/dim_dates": "1 test of this table failed",
        "gold/mart_payment_mix": "newer versions: silver.order_payments",
        "bronze/reviews": r"arrived 3 days ago; they are expected at least every 24 hours",
        "silver/order_reviews": "overdue in bronze.reviews",
        "gold/dim_regions": "reported a warning",
    }.items():
        shown.app.evaluate("path => busco.view.source.go({path, query: {}, fragment: ''})", path)
        expect(shown.app.locator(".reasons").get_by_text(re.compile(reason))).to_be_visible()


def test_tools_get_the_states_that_the_pages_show(opened: Open) -> None:
    """Two implementations of one rule: in Python for the catalog, and in the browser, where states change with time."""
    shown = opened("file")
    random = Random(22)
    seen: set[str] = set()
    for _ in range(200):
        now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        names = [f"{layer}.t{number}" for number, layer in enumerate(random.choices(("bronze", "silver", "gold"), k=6))]
        entries, published = {}, {}
        for at, name in enumerate(names):
            age = random.choice([None, timedelta(minutes=5), timedelta(hours=30), timedelta(days=9)])
            statuses = random.choices(["success", "warn", "failed", "error", None], [20, 2, 1, 1, 3], k=3)
            entries[name] = {
                "kind": random.choice(["source", "model"]),
                "upstream": random.sample([*names[:at], "gold.elsewhere"], k=min(at, random.choice([0, 1, 2]))),
                "warn_after": random.choice([None, 3600.0, 86400.0]),
                "error_after": random.choice([None, None, 172800.0]),
                "loaded_at": None if age is None else (now - age).isoformat(),
                "tests": [{"status": status} for status in statuses],
            }
            published[name] = {"project": "busco"} | ({"stale": names[:1]} if random.random() < 0.1 else {})
        is_held = random.random() < 0.3
        hold = {"who": "a", "when": now.isoformat(), "reason": ""} if is_held else None
        state = {"release": "r", "live": "r", "hold": hold, "tables": published}
        in_browser = shown.app.evaluate(
            """([state, tables, now]) => {
                const { tables: found } = busco.facts.world(state, { busco: { tables } }, now);
                return Object.fromEntries([...found].map(([name, table]) => [name, table.status]));
            }""",
            [state, entries, now.timestamp() * 1000],
        )
        found = states(entries, published, is_held=is_held, now=now)
        assert found == in_browser
        seen |= set(found.values())
    assert seen == set(STATES), "each state was compared"


def test_a_rollback_and_a_hold_are_shown_within_five_seconds(opened: Open, served: Served) -> None:
    shown = opened("shell", "gold/fct_orders").at("fct_orders")
    shown.page.wait_for_timeout(200)
    expect(shown.app.locator(".notice")).to_have_count(0)
    served.data = copy.deepcopy(served.data)
    served.data["state"].update(
        kind="rollback",
        rolled_back_to=BEFORE,
        reason="<b>doubled</b>",
        who="airflow:maria",
        hold={"who": "airflow:joão", "when": iso(NOW), "reason": "repairs"},
    )
    expect(shown.app.locator(".notices")).to_contain_text(f"Rolled back to the release {BEFORE}", timeout=5000)
    expect(shown.app.locator(".notices")).to_contain_text("Reason: <b>doubled</b>")
    expect(shown.app.locator(".notices")).to_contain_text("Publishing is on hold")
    expect(shown.app.locator(".notices")).to_contain_text("airflow:joão")
    expect(shown.app.locator(".table-heading .status")).to_have_text("held")


def test_a_rollback_and_a_hold_are_in_the_file_too(opened: Open) -> None:
    data = marketplace()
    data["state"].update(kind="rollback", rolled_back_to=BEFORE, hold={"who": "x", "when": iso(NOW), "reason": "y"})
    text = opened("file", data=data).text()
    assert f"Rolled back to the release {BEFORE}" in text
    assert "Publishing is on hold" in text


def test_a_new_release_and_a_source_that_becomes_late_are_shown_without_a_reload(opened: Open, served: Served) -> None:
    shown = opened("shell").at("Tables")
    served.data = copy.deepcopy(served.data)
    served.data["state"].update(release="20991231T000000Z-new", live="20991231T000000Z-new")
    served.data["state"]["tables"]["gold.fct_orders"]["rows"] = 123456
    entry = served.data["sites"]["busco"]["tables"]["bronze.payments"]
    entry["loaded_at"] = iso(NOW - timedelta(days=9))
    expect(shown.app.locator("tr", has_text="One row per order, with its totals")).to_contain_text(
        "123,456", timeout=5000
    )
    expect(shown.app.locator("tr", has_text="One row per order, with its totals")).to_contain_text("late")


def test_a_lost_server_is_reported_and_then_found_again(opened: Open, served: Served) -> None:
    shown = opened("shell", expected="503|Failed to load").at("Tables")
    served.broken["state"] = 503
    expect(shown.app.locator(".notices")).to_contain_text("The server has not answered since", timeout=9000)
    served.broken.clear()
    expect(shown.app.locator(".notices .notice")).to_have_count(0, timeout=15_000)


def test_a_lost_server_is_lost_since_its_last_answer_and_asked_less_often(browser: Browser, served: Served) -> None:
    context = browser.new_context(locale="en-GB", timezone_id="UTC")
    page = steady(context.new_page())
    page.clock.install(time=NOW)
    page.goto(served.url())
    app = page.frame_locator("iframe")
    expect(app.locator("h1")).to_be_visible()
    page.clock.pause_at(NOW + timedelta(minutes=1))

    def asked(seconds: int) -> int:
        """Returns how often the state was asked for within so many seconds."""
        before = len(served.asked)
        for _ in range(seconds):
            page.clock.run_for(1000)
            page.wait_for_timeout(20)
        return sum("_data/state" in one for one in served.asked[before:])

    # each answer is that nothing has changed
    assert asked(600) > 150
    served.broken["state"] = 503
    # 3 s until the first failure, then after 3, 6, 12, 24, 30, 30 s
    assert 4 <= asked(120) <= 9
    text = app.locator(".notices").inner_text()
    context.close()
    stamp = NOW + timedelta(minutes=11)
    assert "The server has not answered since" in text
    assert any(f"{stamp + timedelta(minutes=late):%H:%M}" in text for late in (-1, 0, 1)), text


def test_an_error_says_what_to_do_and_can_be_tried_again(opened: Open, served: Served) -> None:
    served.broken["table"] = 500
    shown = opened("shell", "gold/fct_orders", expected="500|Failed to load")
    expect(shown.app.get_by_role("alert")).to_contain_text("Try again in a minute")
    served.broken.clear()
    shown.app.get_by_role("button", name="Try again").click()
    expect(shown.app.locator("table.columns")).to_be_visible()


def test_300_columns_are_filtered_and_linked_at_once(opened: Open, screen: dict[str, Any]) -> None:
    data = marketplace()
    site_data.wide(data, "gold.fct_orders", 300)
    shown = opened("file", "gold/fct_orders#measure_250", data, **screen)
    expect(shown.app.locator("tr.target").first).to_be_in_viewport()
    expect(shown.app.locator("table.columns tbody tr:not(.detail)")).to_have_count(300)
    took = shown.app.evaluate(
        """async () => {
            const field = document.querySelector(".columns-filter"), start = performance.now();
            field.value = "measure 29";
            field.dispatchEvent(new Event("input", {bubbles: true}));
            while (document.querySelectorAll("table.columns tbody tr").length > 20)
                await new Promise(requestAnimationFrame);
            return performance.now() - start;
        }"""
    )
    expect(shown.app.get_by_text("11 of 300 columns")).to_be_visible()
    assert shown.is_within_its_width()
    print(f"filtering 300 columns took {took:.0f} ms")
    assert took < 1000


def test_a_thousand_tables_are_usable_in_a_second(opened: Open) -> None:
    data = site_data.many(1000, 20)
    shown = opened("file", data=data)
    shown.page.add_init_script(
        """(function look() {
            const isThere = document.querySelector("tbody tr") && document.querySelector(".search input");
            if (isThere) requestAnimationFrame(() => { window.drawn = performance.now(); });
            else requestAnimationFrame(look);
        })()"""
    )
    times = []
    for _ in range(3):
        shown.page.reload()
        shown.app.wait_for_function("() => window.drawn")
        times.append(shown.app.evaluate("window.drawn"))
    typed = shown.app.evaluate(
        """async () => {
            const field = document.querySelector("[role=combobox]"), start = performance.now();
            field.focus();
            field.value = "table 0500";
            field.dispatchEvent(new Event("input", {bubbles: true}));
            while (!document.querySelector("#hits li")) await new Promise(requestAnimationFrame);
            return performance.now() - start;
        }"""
    )
    print(f"1,000 tables of 20 columns: shown after {min(times):.0f} ms, found {typed:.0f} ms after that")
    assert min(times) < 1000
    assert typed < 2000
    expect(shown.app.locator("tbody tr")).to_have_count(1012)
    # every column is in the index in the end
    expect(shown.app.locator("#hits li").filter(has_text="table_0500").first).to_be_visible()


def test_no_text_of_a_project_runs_or_becomes_markup(opened: Open, form: str, screen: dict[str, Any]) -> None:
    data = site_data.hostile()
    text = f"{' '.join(site_data.EVIL.values())} {site_data.LETTERS}"
    table = f"gold/{quote(text, safe=UNESCAPED)}"
    # the address itself can be hostile too
    shown = opened(form, f"{table}#{quote(text, safe=UNESCAPED)}", data, **screen)
    for path, heading in {
        table: None,
        "": "Tables",
        "releases": "Releases",
        "exposures": "Uses",
        "glossary": "Glossary",
    }.items():
        shown.app.evaluate("path => busco.view.source.go({path, query: {}, fragment: ''})", path)
        expect(shown.app.locator("h1")).to_have_text(heading or re.compile("window"))
        if path == table:
            expect(shown.app.locator("table.columns")).to_be_visible()
        if path == "releases":
            shown.app.get_by_role("button", name=re.compile("changed")).first.click()
        assert "window" in " ".join(shown.find("window"))
        shown.page.keyboard.press("Escape")
        assert site_data.EVIL["script"] in shown.app.inner_text("main"), f"{path}: it is shown as text"
        assert shown.app.evaluate(MARKUP) == 0, path
        assert shown.is_within_its_width(), path
    assert shown.page.title() == "Glossary · Data catalog"


def test_markup_that_is_not_of_markdown_is_removed(opened: Open) -> None:
    data = marketplace()
    data["tables"]["busco"]["gold.fct_orders"]["description_html"] = (
        f"{''.join(site_data.EVIL.values())}<iframe srcdoc='<p>x'></iframe><style>p {{ display: none }}</style>"
        "<form>f</form>"
        "<p onclick='window.pwned=1' style='color: red' id='busco-app' class='x'>kept</p><h1>Title</h1>"
        "<p><img alt='the picture' src='https://example.com/x.png'>"
        "<a href='https://example.com/' target='_top'>out</a></p>"
    )
    shown = opened("file", "gold/fct_orders", data, expected="inline (event handler|style)")
    rich = shown.app.locator("main > .rich")
    assert rich.inner_html() == (
        "<p>kept</p><h4>Title</h4>"
        '<p>the picture<a href="https://example.com/" target="_blank" rel="noopener noreferrer">out</a></p>'
    )


def test_back_forward_and_deep_links_keep_the_address(opened: Open, form: str) -> None:
    shown = opened(form)
    shown.app.evaluate("window.scrollTo(0, 300)")
    shown.page.wait_for_timeout(50)
    shown.app.get_by_role("link", name="order_payments", exact=True).click()
    shown.at("order_payments")
    assert shown.page.title() == "silver.order_payments · Data catalog"
    assert shown.app.evaluate("window.scrollY") == 0
    shown.app.get_by_role("link", name="amount", exact=True).click()
    expect(shown.app.locator("tr.target").first).to_contain_text("amount")
    shown.app.get_by_role("link", name="Releases", exact=True).click()
    shown.at("Releases")
    shown.page.go_back()
    shown.at("order_payments")
    assert shown.page.url.endswith("silver/order_payments#amount")
    shown.page.go_back()
    shown.page.go_back()
    shown.at("Tables")
    expect(shown.app.locator("tbody tr")).to_have_count(12)
    shown.app.wait_for_function("() => Math.abs(window.scrollY - 300) < 2")
    shown.page.go_forward()
    shown.at("order_payments")


def test_a_table_that_is_not_there_is_explained(opened: Open, form: str) -> None:
    shown = opened(form, "gold/nothing").at("gold.nothing is not in this release")
    shown.app.get_by_role("button", name="Search tables and columns").click()
    expect(shown.app.locator(".search input")).to_be_focused()
    opened(form, "a/b/c").at("There is no page at this address.")


def test_an_older_release_is_shown_as_it_was_and_stays_in_the_links(opened: Open, served: Served) -> None:
    shown = opened("shell", f"?release={BEFORE}").at("Tables")
    expect(shown.app.locator(".notices")).to_contain_text(f"You see the release {BEFORE} as it was")
    assert "99,304" in shown.row("fct_orders")
    assert shown.app.get_by_role("link", name="dim_regions", exact=True).count() == 1, "the documentation knows it"
    shown.app.get_by_role("link", name="fct_orders", exact=True).click()
    shown.at("fct_orders")
    assert shown.page.url.endswith(f"gold/fct_orders?release={BEFORE}")
    expect(shown.app.get_by_text("An older description.")).to_be_visible()
    assert f"release={BEFORE}" in next(each for each in served.asked if each.startswith("/docs/_data/table"))
    shown.app.get_by_role("tab", name="DuckDB").click()
    expect(shown.app.get_by_role("tabpanel").first).to_contain_text(f"--release {BEFORE}")
    shown.app.get_by_role("link", name="Show the live release").click()
    expect(shown.app.locator(".notices .notice")).to_have_count(0)
    assert shown.page.url.endswith("gold/fct_orders")
    wrong = opened("shell", "?release=nothing", expected="404")
    wrong.at("There is no release with this id: nothing.")


def test_the_history_says_who_when_why_and_what_changed(opened: Open, served: Served, form: str) -> None:
    releases = served.data["history"]["releases"]
    for number, release in enumerate(releases):
        release["who"] = f"airflow:person-{number}"
    shown = opened(form, "releases", timezone_id="UTC").at("Releases")
    entries = shown.app.locator(".releases > li")
    expect(entries).to_have_count(14)
    for number in (0, 5, 13):
        when = datetime.fromisoformat(releases[number]["published_at"])
        exact = re.compile(rf"^{when.day} \w+ {when:%Y, %H:%M}$")
        expect(entries.nth(number).locator("h2")).to_have_text(exact)
        expect(entries.nth(number).locator(".facts-line > span").first).to_have_text(f"airflow:person-{number}")
    expect(entries.nth(0)).to_contain_text("live")
    expect(entries.nth(5)).to_contain_text("rolled back")
    expect(entries.nth(5)).to_contain_text("the payments of Tuesday were doubled")
    entries.nth(0).get_by_role("button", name="12 tables changed").click()
    row = entries.nth(0).get_by_role("row").filter(has_text="gold.fct_orders")
    assert row.inner_text().split() == ["gold.fct_orders", "99,304", "99,441", "+137"]
    if form == "shell":
        entries.nth(1).get_by_role("link", name="See the site at this release").click()
        expect(shown.app.locator(".notices")).to_contain_text(BEFORE)


def test_uses_and_the_glossary_name_their_owners(opened: Open) -> None:
    uses = opened("file", "exposures").at("Uses").text()
    assert "Weekly sales review" in uses
    assert "sales@example.com" in uses
    assert "gold.mart_daily_sales" in uses
    glossary = opened("file", "glossary").at("Glossary").text()
    assert "An order that is neither canceled nor unavailable." in glossary
    assert "Finance data" in glossary


def test_a_project_without_documentation_is_listed_by_name(opened: Open, form: str) -> None:
    data = marketplace()
    data["state"]["projects"]["busco"]["has_site"] = False
    shown = opened(form, data=data)
    assert "The project Marketplace has no documentation at this release" in shown.text()
    assert "not known" in shown.row("fct_orders")


def test_an_empty_lake_says_when_tables_appear(opened: Open, form: str) -> None:
    data = marketplace()
    data["state"].update(release=None, live=None, tables={}, projects={}, published_at=None)
    data.update(history={"format": 1, "releases": [], "complete": True}, sites={}, tables={})
    assert "Nothing has been published yet" in opened(form, data=data).text()


def test_the_first_release_appears_without_a_reload(opened: Open, served: Served) -> None:
    served.broken["state"] = 404
    shown = opened("shell", expected="404").at("Tables")
    expect(shown.app.get_by_text("Nothing has been published yet")).to_be_visible()
    served.broken.clear()
    expect(shown.app.get_by_role("link", name="fct_orders", exact=True)).to_be_visible(timeout=5000)


def test_a_raw_table_s_content_is_asked_of_a_project_that_describes_it(opened: Open, served: Served) -> None:
    served.data["state"]["tables"]["bronze.orders"]["project"] = "another"
    shown = opened("shell", "bronze/orders").at("orders")
    expect(shown.app.locator("table.columns")).to_be_visible()
    assert not any("project=another" in each for each in served.asked)


def test_the_words_follow_the_browser_s_language(opened: Open) -> None:
    shown = opened("file", "gold/fct_orders", locale="pt-BR")
    assert "De onde vem e para onde vai" in shown.text()
    assert "99.441" in shown.text()
    assert shown.app.evaluate("document.documentElement.lang") == "pt-BR"
    keys = shown.app.evaluate(
        "Object.fromEntries(Object.entries(busco.words.languages).map(([k, v]) => [k, Object.keys(v)]))"
    )
    assert keys["en"] == keys["pt"]
    holes = shown.app.evaluate(
        """Object.keys(busco.words.languages.en).filter(key => {
            const holes = text => [...text.matchAll(/\\{(\\w+)\\}/g)].map(m => m[1]).sort().join();
            return holes(busco.words.languages.en[key]) !== holes(busco.words.languages.pt[key]);
        })"""
    )
    assert holes == []


def test_each_word_that_is_used_exists_and_each_is_used() -> None:
    sources = "".join(file.read_text() for file in APP.glob("*.js") if file.name != "words.js")
    dictionary = (APP / "words.js").read_text().split("const pt")[0]
    keys = set(re.findall(r"^    (\w+): ", dictionary, re.MULTILINE))
    used = set(re.findall(r"(?:word|count)\((?:[^()\"]*\? )?\"(\w+)\"", sources)) | set(
        re.findall(r'"((?:nav|changes)_\w+)"', sources)
    )
    missing = {key for key in used if key not in keys and f"{key}_one" not in keys}
    assert not missing
    stems = {key.removesuffix("_one").removesuffix("_other") for key in keys}
    built = ("state_", "layer_", "test_", "nav_")
    assert not {stem for stem in stems if f'"{stem}"' not in sources and not stem.startswith(built)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_every_page_fits_and_is_accessible(opened: Open, device: str, scheme: str) -> None:
    data = marketplace()
    # each device and each scheme, once with notices and once without
    if (device, scheme) in (("desktop", "dark"), ("phone", "light")):
        data["state"].update(kind="rollback", rolled_back_to=BEFORE, hold={"who": "x", "when": iso(NOW), "reason": "y"})
    shown = opened("file", data=data, **{**(PHONE if device == "phone" else DESKTOP), "color_scheme": scheme})
    for path, name in PAGES.items():
        shown.app.evaluate("path => { location.hash = `#/${path}`; }", path)
        shown.app.wait_for_function("path => document.querySelector('h1') && busco.view.at.path === path", arg=path)
        if path == "gold/fct_orders":
            shown.app.get_by_role("button", name="Details of is_late").click()
        shown.picture(f"{name}-{device}-{scheme}")
        if path == "":
            shown.find("delivery")
            shown.picture(f"search-{device}-{scheme}")
        assert shown.is_within_its_width(), path
        assert shown.violations() == [], path
        if path == "":
            # the first closes the list, and the second empties the field
            shown.page.keyboard.press("Escape")
            shown.page.keyboard.press("Escape")
    background = shown.app.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


def test_the_shell_fits_and_is_accessible(opened: Open) -> None:
    shown = opened("shell", "gold/fct_orders", **PHONE)
    assert shown.is_within_its_width()
    assert Shown(shown.page, shown.page.main_frame).is_within_its_width()
    page = Shown(shown.page, shown.page.main_frame)
    page.app.evaluate(AXE.read_text())
    found = page.app.evaluate("axe.run(document, {iframes: false})")
    assert [each["id"] for each in found["violations"] if each["impact"] in ("serious", "critical")] == []


HOSTILE = """<!DOCTYPE html><title>x</title><script>
const heard = [];
addEventListener("message", event => heard.push(event.data));
const send = message => parent.postMessage(message, "*");
const paths = ["../login", "..", "%2e%2e/x", "/login", "//example.com/", "gold/../../login", "_data/state", "_frame",
    "https://example.com", "gold/a b", "gold/%zz", "gold//x", "javascript:window.pwned=1", "gold\\\\..\\\\x",
    "x?next=1", "x#y", "%5f..%2f..", ["gold"], {}, null, 7, "a/".repeat(2000)];
for (const path of paths) send({type: "go", path, query: {}, fragment: ""});
for (const release of ["../x", "a b", "x&y=1", {}, "-x"]) send({type: "go", path: "releases", query: {release}});
send({type: "ready"});
send({type: "title", text: "<img src=x onerror=window.pwned=1>"});
send({type: "height", pixels: "1px; background: red"});
for (const what of ["../../login", "login", "state/../../x", "__proto__", "constructor", "", null, {}])
    send({type: "get", id: 1, what});
send({type: "get", id: 2, what: "table", project: {}, table: ["x"]});
send({type: "get", id: 3, what: "site", project: "../../../login?x=", release: "&x=1#"});
send({type: "get", id: "4", what: "state"});
send(null); send("go"); send([]);
let stored = "no";
try { sessionStorage.length; stored = "yes"; } catch {}
let read = "no";
try { read = parent.document.title; } catch {}
fetch("/docs/_data/state").then(() => heard.push("fetched"), () => heard.push("not fetched"));
try { top.location = "https://example.com/"; } catch {}
window.report = () => ({heard, stored, read});
</script>"""


def test_a_hostile_frame_reaches_nothing(opened: Open, served: Served, browser: Browser) -> None:
    digest = assembled._hash(HOSTILE.split("<script>")[1].split("</script>")[0])
    policy = f"sandbox allow-scripts; default-src 'none'; script-src {digest}"
    served.frame = (HOSTILE, policy)
    context = browser.new_context()
    page = steady(context.new_page())
    page.goto(served.url("gold/fct_orders"))
    page.wait_for_function("document.title.startsWith('<img')")
    page.wait_for_timeout(500)
    report = page.frames[1].evaluate("report()")
    assert page.url == served.url("gold/fct_orders"), "the address did not change"
    assert page.evaluate("history.length") <= 2
    assert not page.evaluate("window.pwned")
    assert page.locator("img").count() == 0
    assert report["stored"] == "no"
    assert report["read"] == "no"
    assert "not fetched" in report["heard"]
    asked = {each.split("?")[0] for each in served.asked}
    assert asked <= {"/docs/gold/fct_orders", "/docs/_frame", "/docs/_data/site", "/docs/_data/state"}, asked
    answers = [each["id"] for each in report["heard"] if isinstance(each, dict) and each.get("type") == "got"]
    assert sorted(answers) == [2, 3], "only well-formed requests are answered"
    strange = next(each for each in served.asked if each.startswith("/docs/_data/site"))
    assert strange == "/docs/_data/site?project=..%2F..%2F..%2Flogin%3Fx%3D&release=%26x%3D1%23"
    context.close()


def test_a_message_from_another_window_is_ignored(opened: Open) -> None:
    shown = opened("shell").at("Tables")
    shown.page.evaluate("window.postMessage({type: 'title', text: 'other'}, '*')")
    shown.page.evaluate("window.postMessage({type: 'go', path: 'releases', query: {}, fragment: ''}, '*')")
    shown.page.wait_for_timeout(200)
    assert shown.page.title() == "Data catalog"
    shown.at("Tables")


def test_the_fragment_of_an_address_survives_the_login(opened: Open, served: Served) -> None:
    served.is_logged_in = False
    shown = opened("shell", "gold/fct_orders#is_late")
    assert any(each.startswith("/login") for each in served.asked)
    assert shown.page.url == served.url("gold/fct_orders#is_late")
    expect(shown.app.locator("tr.target").first).to_contain_text("is_late")
    shown.page.goto(served.url("glossary"))
    shown.page.goto(served.url("gold/fct_orders"))
    assert shown.page.url == served.url("gold/fct_orders"), "it is restored once"


def test_a_session_that_ends_leads_to_the_login_and_back(opened: Open, served: Served) -> None:
    shown = opened("shell", "gold/fct_orders#is_late").at("fct_orders")
    served.is_logged_in = False
    shown.page.wait_for_event("load", timeout=8000)
    shown.page.wait_for_url(served.url("gold/fct_orders#is_late"))
    expect(shown.page.frame_locator("#busco-frame").locator("tr.target").first).to_contain_text("is_late")
    assert any(each.startswith("/login") for each in served.asked)


def test_the_pages_contain_no_address_of_another_server() -> None:
    for page in (frame_html(), frame_html({"state": {}}), shell_html("/docs/", "/docs/_frame"), away_html("/login")):
        assert not re.search(r"""(src|href|action|url)\s*[=(]\s*["']?(https?:)?//""", page)
        assert not re.search(r"<[^>]+\s(style|on\w+)=", re.sub(r"<script.*?</script>", "", page, flags=re.S))
        assert "sourceMappingURL" not in page
    assert "script-src 'sha256-" in frame_csp()
    assert "unsafe" not in frame_csp() + shell_csp()
    assert frame_csp().startswith("sandbox allow-scripts allow-popups")
    assert "allow-same-origin" not in frame_csp() + shell_html("/docs/", "/x")


def test_addresses_that_make_no_sense_are_refused() -> None:
    for base in ("docs/", "/docs", "//example.com/", ""):
        with pytest.raises(ValueError, match="folder"):
            shell_html(base, "/x")
    with pytest.raises(ValueError, match="login"):
        away_html("javascript:alert(1)")
    assert '"><b>' not in shell_html("/docs/", '"><b>')


def test_kept_libraries_are_those_that_their_list_names() -> None:
    listed = (APP / "vendor/README.md").read_text()
    for file in (APP / "vendor").glob("*.js"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in listed, file.name
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() in (AXE.parent / "README.md").read_text()


def test_the_data_in_a_file_can_contain_any_text(opened: Open) -> None:
    page = frame_html({"state": {"x": "</script><!--\u2028&"}})
    inside = page.split('id="busco-data">')[1].split("</script>")[0]
    assert json.loads(inside) == {"state": {"x": "</script><!--\u2028&"}}
    assert not set(inside) & set("<>&\u2028")
