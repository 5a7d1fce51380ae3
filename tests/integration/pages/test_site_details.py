"""What the pages of the consumers' site show of a table and of a release, and what they copy, in a real browser."""

from __future__ import annotations

import copy
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from tests.site_data import BEFORE, LIVE, NOW, Data, column, iso, marketplace, result
from tests.site_pages import Open, Shown
from tests.site_server import Served

FCT = "gold.fct_orders"
# each takes one of the two ways to the clipboard away from the page
NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
NO_SELECTION = "document.execCommand = () => false;"


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def cells(row: Locator) -> list[str]:
    """Returns the texts of a row's cells, as they are shown."""
    return [plain(text) for text in row.locator("> th, > td").all_inner_texts()]


def row(shown: Shown, table: str) -> Locator:
    """Returns a table's row on the start page."""
    link = shown.app.get_by_role("link", name=table, exact=True)
    return shown.app.locator("table.tables tbody tr").filter(has=link)


def column_row(shown: Shown, name: str) -> Locator:
    """Returns a column's row on its table's page."""
    link = shown.app.get_by_role("link", name=name, exact=True)
    return shown.app.locator("table.columns tbody tr:not(.detail)").filter(has=link)


def states(lists: Locator) -> dict[str, str]:
    """Returns the state that is shown next to each table in lists of tables; '' if none is shown."""
    found: dict[str, str] = lists.locator("li").evaluate_all(
        """items => Object.fromEntries(items.map(item => [
            item.querySelector("code").textContent, item.querySelector(".status")?.textContent || ""]))"""
    )
    return found


def pasted(shown: Shown) -> str:
    """Returns what somebody pastes in another tab."""
    other = shown.page.context.new_page()
    other.set_content("<textarea></textarea>")
    field = other.locator("textarea")
    field.press("Control+V")
    text = field.input_value()
    # the next test must not find it
    field.fill("-")
    field.press("Control+A")
    field.press("Control+C")
    other.close()
    return text


# -- the clipboard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [NO_SELECTION, NO_CLIPBOARD], ids=["clipboard", "selection"])
def test_a_ready_query_is_copied(opened: Open, form: str, without: str) -> None:
    shown = opened(form, "gold/fct_orders", script=without)
    query = shown.app.locator(".part-query")
    button = query.get_by_role("button", name="Copy")
    button.click()
    expect(query.get_by_role("button")).to_have_text("Copied")
    assert pasted(shown) == "select *\nfrom busco_gold.fct_orders\nlimit 100"
    query.get_by_role("tab", name="R", exact=True).click()
    button.click()
    expect(query.get_by_role("button")).to_have_text("Copied")
    assert pasted(shown) == query.locator("pre").inner_text()
    shown.app.get_by_role("button", name="Copy the name").click()
    expect(shown.app.locator(".table-heading").get_by_role("button")).to_have_text("Copied")
    assert pasted(shown) == "busco_gold.fct_orders"


def test_who_may_not_write_to_the_clipboard_is_told_to_copy_the_query_by_hand(opened: Open, form: str) -> None:
    shown = opened(form, "gold/fct_orders", script=NO_CLIPBOARD + NO_SELECTION)
    query = shown.app.locator(".part-query")
    query.get_by_role("button", name="Copy").click()
    expect(query.get_by_role("button")).to_have_text("Select and copy it yourself")
    # the query can be reached and selected without a mouse
    query.locator("pre").focus()
    expect(query.locator("pre")).to_be_focused()
    assert "from busco_gold.fct_orders" not in pasted(shown)


# -- the start page ---------------------------------------------------------------------------------------------------


def test_a_row_says_when_its_version_was_published(opened: Open, form: str) -> None:
    data = marketplace()
    tables = data["state"]["tables"]
    tables["gold.dim_dates"]["published_at"] = iso(NOW - timedelta(days=3))
    tables["gold.dim_regions"]["published_at"] = None
    shown = opened(form, data=data)
    assert cells(row(shown, "mart_daily_sales"))[3:] == ["3 hours ago", "634"]
    assert cells(row(shown, "dim_dates"))[3:] == ["3 days ago", "773"]
    assert cells(row(shown, "dim_regions"))[3:] == ["–", "27"]


def test_a_hold_is_the_state_of_each_table_without_a_problem_of_its_own(opened: Open, form: str) -> None:
    data = marketplace()
    data["state"]["hold"] = {"who": "airflow:maria", "when": iso(NOW), "reason": "repairs"}
    # a table that no documentation describes
    data["state"]["tables"]["gold.extra"] = dict(data["state"]["tables"]["gold.fct_orders"])
    shown = opened(form, data=data)
    expected = {
        "fct_orders": "held",
        "orders": "held",
        "extra": "held",
        "dim_dates": "failed tests",
        "reviews": "late",
        "mart_payment_mix": "stale",
        "dim_regions": "warned",
    }
    assert {name: cells(row(shown, name).first)[1] for name in expected} == expected
    shown.app.get_by_role("button", name="held").click()
    expect(shown.app.get_by_text("8 of 13 tables")).to_be_visible()
    if form == "shell":
        shown = opened(form, f"?release={BEFORE}", data)
        assert cells(row(shown, "fct_orders"))[1] == "fresh", "a hold is of the live release only"


def test_the_start_page_says_who_made_the_release_when_and_from_what(opened: Open, form: str) -> None:
    shown = opened(form)
    about = shown.app.locator(".facts-line")
    expect(about.first).to_have_text("Published 3 hours ago by airflow:admin")
    expect(about.first.locator("time")).to_have_attribute("datetime", iso(NOW - timedelta(hours=3)))
    shown.app.get_by_text("About this release").click()
    assert [plain(text) for text in about.nth(1).locator("> span").all_inner_texts()] == [
        f"Release {LIVE} Copy", "run scheduled__2026-12-02", "code 4b0c1fe9a7d2",
    ]  # fmt: skip
    expect(about.nth(1).locator("> span").last).to_have_attribute("title", "4b0c1fe9a7d25")
    data = marketplace()
    data["state"].update(kind="rollback", rolled_back_to=BEFORE, who="airflow:maria", run=None, code_version=None)
    shown = opened(form, data=data)
    expect(shown.app.locator(".facts-line").first).to_have_text("Rolled back 3 hours ago by airflow:maria")
    shown.app.get_by_text("About this release").click()
    expect(shown.app.locator(".about-release .facts-line > span")).to_have_count(1)


# -- what changes while a page is open --------------------------------------------------------------------------------


def test_an_open_page_turns_late_because_time_passes(opened: Open, form: str) -> None:
    shown = opened(form, clock=NOW)
    for hours, state in ((0, "fresh"), (18, "fresh"), (2, "late")):
        shown.page.clock.fast_forward(timedelta(hours=hours) // timedelta(milliseconds=1))
        # the page looks at the time once a minute
        shown.page.clock.fast_forward(60_000)
        for table in ("fct_orders", "payments"):
            expect(row(shown, table).locator(".status")).to_have_text(state)
    expect(row(shown, "fct_orders").locator(".when")).to_have_text("23 hours ago")
    row(shown, "payments").get_by_role("link").click()
    expect(shown.app.locator(".reasons")).to_contain_text(
        "The newest rows arrived 25 hours ago; they are expected at least every 24 hours."
    )


def test_the_notice_of_a_hold_disappears_within_five_seconds_of_a_resume(opened: Open, served: Served) -> None:
    served.data["state"]["hold"] = {"who": "airflow:maria", "when": iso(NOW), "reason": "repairs"}
    shown = opened("shell", "gold/fct_orders").at("fct_orders")
    expect(shown.app.locator(".notices")).to_contain_text("Publishing is on hold")
    expect(shown.app.locator(".table-heading .status")).to_have_text("held")
    served.data = copy.deepcopy(served.data)
    served.data["state"]["hold"] = None
    expect(shown.app.locator(".notice")).to_have_count(0, timeout=5000)
    expect(shown.app.locator(".table-heading .status")).to_have_text("fresh")
    assert "Publishing is on hold" not in shown.text()


def test_a_release_after_a_rollback_removes_its_notice(opened: Open, served: Served) -> None:
    served.data["state"].update(kind="rollback", rolled_back_to=BEFORE, who="airflow:maria", reason="doubled")
    shown = opened("shell").at("Tables")
    expect(shown.app.locator(".notices")).to_contain_text(f"Rolled back to the release {BEFORE}")
    served.data = copy.deepcopy(served.data)
    new = "20991231T000000Z-new"
    served.data["state"].update(
        kind="publish", release=new, live=new, rolled_back_to=None, who="airflow:joão", reason="", published_at=iso(NOW)
    )
    expect(shown.app.locator(".notice")).to_have_count(0, timeout=5000)
    expect(shown.app.locator(".facts-line").first).to_contain_text("by airflow:joão")


# -- a table's page ---------------------------------------------------------------------------------------------------


def test_added_and_removed_columns_are_named(opened: Open, form: str) -> None:
    data = marketplace()
    content = data["tables"]["busco"][FCT]
    before = copy.deepcopy(content)
    before["rows"] -= 137
    before["columns"].insert(2, column("coupon"))
    content["columns"] += [column("discount_amount"), column("is_gift")]
    data["earlier"] = {BEFORE: {FCT: before}}
    shown = opened(form, "gold/fct_orders", data)
    changes = shown.app.locator(".diff li")
    if form == "shell":
        expect(changes).to_have_count(4)
        assert [plain(text) for text in changes.all_inner_texts()] == [
            "137 rows more", "column added: discount_amount", "column added: is_gift", "column removed: coupon",
        ]  # fmt: skip
    else:
        # a file has the contents of one release
        expect(changes.last).to_have_text("The version before is no longer known, so only rows are compared.")
        expect(changes).to_have_count(2)


def test_each_column_is_shown_with_its_type(opened: Open) -> None:
    shown = opened("file", "gold/fct_orders")
    rows = shown.app.locator("table.columns tbody tr")
    expect(rows).to_have_count(12)
    assert [cells(rows.nth(at))[:2] for at in range(12)] == [
        ["order_id key", "VARCHAR"],
        ["customer_unique_id", "VARCHAR"],
        ["customer_state", "VARCHAR"],
        ["status", "VARCHAR"],
        ["purchased_at", "TIMESTAMP"],
        ["delivered_at", "TIMESTAMP"],
        ["estimated_delivery_on", "DATE"],
        ["order_amount", "DECIMAL(18,2)"],
        ["paid_amount", "DECIMAL(18,2)"],
        ["review_score", "INTEGER"],
        ["is_late", "BOOLEAN"],
        ["delivery_days", "DOUBLE"],
    ]


def with_results() -> Data:
    """Returns data in which the tests of a table have each of the results."""
    data = marketplace()
    long_ago = iso(NOW - timedelta(days=3))
    nothing: Data = {"failures": None, "at": None, "seconds": None}
    data["sites"]["busco"]["tables"][FCT]["tests"] = [
        result("a", "order_id"),
        result("b", "order_id", "unique", status="skipped", **nothing),
        result("c", "delivered_at", status="warn", failures=4, at=long_ago),
        result("d", "status", "accepted_values", status="error", failures=None, seconds=None),
        result("e", "customer_unique_id", "relationships", status="failed", failures=1234, seconds=2.34),
        result("f", None, "sql", name="payments_cover_the_order", status=None, **nothing),
    ]
    return data


def test_each_test_is_shown_with_its_result_its_failing_rows_its_time_and_its_seconds(opened: Open) -> None:
    shown = opened("file", "gold/fct_orders", with_results())
    rows = shown.app.locator(".part-tests tbody tr")
    expect(rows).to_have_count(6)
    assert [cells(rows.nth(at)) for at in range(6)] == [
        ["failed", "refers to an existing row", "customer_unique_id", "1,234", "3 hours ago", "2.3"],
        ["error", "only accepted values", "status", "", "3 hours ago", ""],
        ["warning", "never null", "delivered_at", "4", "3 days ago", "0.1"],
        ["skipped", "no value twice", "order_id", "", "–", ""],
        ["not run", "payments_cover_the_order", "–", "", "–", ""],
        ["passed", "never null", "order_id", "0", "3 hours ago", "0.1"],
    ]
    looks = [rows.nth(at).locator(".status").get_attribute("class") for at in range(6)]
    assert looks == [f"status {look}" for look in ("failed", "failed", "warned", "unknown", "unknown", "fresh")]
    expect(rows.first.locator("time")).to_have_attribute("datetime", iso(NOW - timedelta(hours=3)))
    expect(shown.app.locator(".reasons")).to_contain_text("2 tests of this table failed.")
    expect(shown.app.locator(".reasons")).to_contain_text("1 test of this table reported a warning.")


def test_a_column_s_tests_are_in_its_details_and_one_that_failed_is_in_its_row(opened: Open) -> None:
    shown = opened("file", "gold/fct_orders", with_results())
    expect(shown.app.locator("table.columns tbody tr")).to_have_count(12)
    for name, found in {
        "customer_unique_id": ["failed refers to an existing row"],
        "status": ["error only accepted values"],
        "delivered_at": ["warning never null"],
        "order_id": [],
        "order_amount": [],
    }.items():
        shown_there = column_row(shown, name).locator(".about p:has(.status)").all_inner_texts()
        assert [plain(text) for text in shown_there] == found, name
    for name, expected in {
        "order_id": "passed never null skipped no value twice never null",
        "customer_unique_id": "failed refers to an existing row",
        "order_amount": "no tests",
    }.items():
        shown.app.get_by_role("button", name=f"Details of {name}").click()
        tests = shown.app.locator("tr.detail div").filter(has=shown.app.locator("dt", has_text="Tests")).locator("dd")
        assert plain(tests.inner_text()) == expected
        shown.app.get_by_role("button", name=f"Details of {name}").click()


def test_what_is_known_of_a_column_s_values_is_shown_in_words(opened: Open) -> None:
    """All numbers are shares of 100,000 rows."""

    def profile(nulls: int, distinct: int | None = 2, exact: bool = True, **more: Any) -> Data:
        return {"nulls": nulls, "distinct": distinct, "exact": exact, "min": "a", "max": "z", "top": None, **more}

    expected: dict[str, tuple[Data | None, str]] = {
        "without": (profile(0, 1), "no nulls · 1 value a to z"),
        "few": (profile(3, 96_096, exact=False), "< 0.1% null · about 96,096 different a to z"),
        "some": (profile(1_500, 12_345), "1.5% null · 12,345 different a to z"),
        "a_quarter": (profile(25_000), "25% null · 2 different a to z"),
        "almost_all": (profile(99_950), "> 99.9% null · 2 different a to z"),
        "all": (profile(100_000, 0, min=None, max=None), "100% null · 0 different"),
        "of_statistics": (profile(0, None), "no nulls a to z"),
        "unread": (None, "not known"),
    }
    data = marketplace()
    data["tables"]["busco"][FCT].update(
        rows=100_000,
        profile_from="statistics",
        columns=[column(name, profile=given) for name, (given, _) in expected.items()],
    )
    shown = opened("file", "gold/fct_orders", data)
    expect(shown.app.locator("table.columns tbody tr")).to_have_count(len(expected))
    assert {name: cells(column_row(shown, name))[3] for name in expected} == {
        name: text for name, (_, text) in expected.items()
    }
    expect(column_row(shown, "few").locator(".nulls")).to_have_attribute("title", "3")
    expect(shown.app.locator(".part-columns")).to_contain_text("The values come from the files' statistics")
    shown.app.get_by_role("button", name="Details of few").click()
    details = plain(shown.app.locator("tr.detail").inner_text())
    assert "Smallest a Largest z" in details
    assert "Most frequent values" not in details


def test_the_most_frequent_values_have_bars_as_long_as_their_shares(opened: Open) -> None:
    data = marketplace()
    content = data["tables"]["busco"][FCT]
    content["rows"] = 100_000
    top = [["delivered", 60_000], ["shipped", 25_000], ["canceled", 1_500], ["unavailable", 50], ["invoiced", 3]]
    columns = {one["name"]: one for one in content["columns"]}
    columns["status"]["profile"].update(top=top, distinct=5)
    columns["customer_unique_id"]["profile"].update(top=top, min="a", max="z")
    shown = opened("file", "gold/fct_orders", data)
    expect(shown.app.locator("table.columns tbody tr")).to_have_count(12)
    words = ["delivered 60%", "shipped 25%", "canceled 1.5%", "unavailable < 0.1%", "invoiced < 0.1%"]
    widths = [60.0, 25.0, 1.5, 1.0, 1.0]

    def shown_in(place: Locator) -> tuple[list[str], list[float]]:
        bars = place.locator(".top li svg.share rect")
        return (
            [plain(text) for text in place.locator(".top li").all_inner_texts()],
            [float(bars.nth(at).get_attribute("width") or 0) for at in range(bars.count())],
        )

    assert shown_in(column_row(shown, "status")) == (words[:3], widths[:3])
    bars = column_row(shown, "status").locator("svg.share rect")
    drawn = [(bars.nth(at).bounding_box() or {"width": 0})["width"] for at in range(3)]
    assert drawn[0] / drawn[1] == pytest.approx(60 / 25, rel=0.05), "as it is drawn"
    shown.app.get_by_role("button", name="Details of status").click()
    assert shown_in(shown.app.locator("tr.detail")) == (words, widths)
    shown.app.get_by_role("button", name="Details of status").click()
    shown.app.get_by_role("button", name="Details of customer_unique_id").click()
    for place in (column_row(shown, "customer_unique_id"), shown.app.locator("tr.detail")):
        assert shown_in(place) == ([], []), "nothing of personal data"
    assert cells(column_row(shown, "customer_unique_id"))[3] == "personal data: no values are shown"
    assert "Smallest" not in shown.app.locator("tr.detail").inner_text()


# -- tables next to others --------------------------------------------------------------------------------------------


def test_tables_next_to_a_table_are_shown_with_their_states(opened: Open) -> None:
    data = marketplace()
    tables = data["sites"]["busco"]["tables"]
    tables["silver.orders"]["tests"][0].update(status="failed", failures=2)
    tables["gold.mart_delivery_performance"]["tests"][0].update(status="warn", failures=2)
    shown = opened("file", "gold/fct_orders", data)
    sides = shown.app.locator(".part-lineage .lineage > div")
    expect(sides).to_have_count(2)
    assert states(sides.nth(0).locator("> ul")) == {"silver.orders": "failed tests", "silver.order_payments": "fresh"}
    assert states(sides.nth(1).locator("> ul")) == {
        "gold.mart_daily_sales": "fresh", "gold.mart_delivery_performance": "warned", "gold.mart_payment_mix": "stale",
    }  # fmt: skip
    sides.nth(0).get_by_text("All in all it depends on 4 tables").click()
    assert states(sides.nth(0).locator("details ul")) == {
        "silver.orders": "failed tests", "silver.order_payments": "fresh", "bronze.orders": "fresh",
        "bronze.payments": "fresh",
    }  # fmt: skip


def test_the_tables_that_a_use_reads_are_shown_with_their_states(opened: Open, form: str) -> None:
    data = marketplace()
    data["sites"]["busco"]["exposures"][0]["tables"].append("gold.gone")
    shown = opened(form, "exposures", data).at("Uses")
    expect(shown.app.locator("section.card li")).to_have_count(4)
    assert states(shown.app.locator("section.card ul.with-states")) == {
        "gold.mart_daily_sales": "fresh", "gold.mart_payment_mix": "stale", "gold.dim_dates": "failed tests",
        "gold.gone": "",
    }  # fmt: skip
    shown.app.get_by_role("link", name="gold.mart_payment_mix").click()
    shown.at("mart_payment_mix")


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_kept_only_in_the_folder_that_a_variable_names(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = opened("file")
    monkeypatch.delenv("BUSCO_TEST_SCREENSHOTS", raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(shown.page, "screenshot", lambda **_: pytest.fail("it takes a picture"))
        shown.picture("start")
    monkeypatch.setenv("BUSCO_TEST_SCREENSHOTS", str(tmp_path / "pictures"))
    shown.picture("start")
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")]
    assert found == [Path("pictures/start.png")]
    assert (tmp_path / "pictures/start.png").read_bytes().startswith(b"\x89PNG")
