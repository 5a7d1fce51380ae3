"""Opens the site in a browser as a user who has not logged in yet; run in dbt's environment, which has Playwright.

usage: python -m tests.airflow.site_in_a_browser URL USER PASSWORD

Prints what the browser showed, as JSON.
"""

from __future__ import annotations

import json
import sys

from playwright.sync_api import expect

from tests.chromium import chromium, steady


def main(url: str, user: str, password: str) -> None:
    """Follows a link to a column, through the login, and looks around."""
    expect.set_options(timeout=30_000)
    problems: list[str] = []
    with chromium() as browser:
        page = steady(browser.new_page())
        page.goto(f"{url}/docs/gold/fct#amount")
        page.wait_for_url("**/login/**")
        page.fill("#username", user)
        page.fill("#password", password)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(url) else None)
        page.click("input[type=submit]")
        app = page.frame_locator("iframe")
        expect(app.locator("h1")).to_have_text("fct")
        landed = page.url
        expect(app.get_by_role("rowheader", name="amount").first).to_be_visible()
        search = app.get_by_role("combobox")
        search.fill("silver orders")
        expect(app.get_by_role("option").first).to_be_visible()
        search.press("Enter")
        expect(app.locator("h1")).to_have_text("orders")
        found, title = page.url, page.title()
        page.go_back()
        expect(app.locator("h1")).to_have_text("fct")
        with page.expect_popup() as opened:
            app.get_by_role("link", name="dbt docs").first.click()
        docs = opened.value
        docs.wait_for_load_state()
        with page.expect_popup() as opened:
            app.get_by_role("link", name="The task in Airflow that made it").click()
        task = opened.value
        # Airflow's page about the task in a run, with the user's session
        expect(task.get_by_role("navigation", name="breadcrumb")).to_contain_text("Taskrun")
        shown = {"landed": landed, "found": found, "title": title, "docs": docs.url, "task": task.url}
        shown["problems"] = [*problems]
        page.goto(f"{url}/home")
        page.get_by_role("link", name="Data catalog").click()
        expect(app.locator("h1")).to_have_text("Tables")
        expect(app.get_by_role("link", name="fct", exact=True)).to_be_visible()
        shown["menu"] = page.url
        print(json.dumps(shown))


if __name__ == "__main__":
    main(*sys.argv[1:])
