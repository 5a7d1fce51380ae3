"""Opens a link to a column in a browser as a user whom an OpenID Connect provider logs in; run in dbt's environment,
which has Playwright.

usage: python -m tests.airflow.oauth_in_a_browser URL

The webserver has no lake, so its answers to the site's requests for data are replaced. Prints what the browser showed,
as JSON.
"""

from __future__ import annotations

import json
import sys
from urllib.parse import urlsplit

from playwright.sync_api import Request, Route, expect

from tests.chromium import chromium, steady
from tests.site_data import marketplace


def main(url: str) -> None:
    expect.set_options(timeout=30_000)
    data = marketplace()
    found = {
        "state": data["state"],
        "history": data["history"],
        "site": data["sites"]["busco"],
        "table": data["tables"]["busco"]["gold.fct_orders"],
    }
    visited: list[str] = []

    def note(request: Request) -> None:
        if request.is_navigation_request() and request.frame.parent_frame is None:
            visited.append(request.url.split("?")[0])

    def answer(route: Route) -> None:
        route.fulfill(json=found[urlsplit(route.request.url).path.rpartition("/")[2]])

    with chromium() as browser:
        page = steady(browser.new_page())
        page.on("request", note)
        page.route("**/catalog/_data/**", answer)
        page.goto(f"{url}/docs/gold/fct_orders#is_late")
        page.wait_for_url("**/login/?next=*")
        page.get_by_text("Sign In with").click()
        page.wait_for_url("**/catalog/**")
        app = page.frame_locator("iframe")
        expect(app.locator("tr.target").first).to_contain_text("is_late")
        expect(app.locator("tr.target").first).to_be_in_viewport()
        print(json.dumps({"landed": page.url, "title": page.title(), "visited": visited}))


if __name__ == "__main__":
    main(*sys.argv[1:])
