"""The helper that repeats what Chromium cancels, with a page that raises what Playwright raises."""

from __future__ import annotations

from typing import Any, cast

import pytest
from playwright.sync_api import Error, Page, Route

from tests.chromium import chromium, show, steady

INTERRUPTED = (
    'Page.goto: Navigation to "http://127.0.0.1:8080/docs" is interrupted by another navigation to '
    '"chrome-error://chromewebdata/"'
)


class Fails:
    """A page whose `goto` raises each of these errors once, then succeeds."""

    def __init__(self, *errors: str) -> None:
        self.errors = list(errors)

    def goto(self, url: str, **options: Any) -> str:
        if self.errors:
            raise Error(self.errors.pop(0))
        return url


@pytest.mark.parametrize("error", ["Page.goto: net::ERR_NETWORK_CHANGED at http://127.0.0.1:8080/docs", INTERRUPTED])
def test_a_cancelled_request_is_repeated(error: str) -> None:
    page = steady(cast(Page, Fails(error, error)))
    assert cast(Any, page.goto("http://127.0.0.1:8080/docs")) == "http://127.0.0.1:8080/docs"


@pytest.mark.parametrize(
    "error",
    [
        "Page.goto: net::ERR_CONNECTION_REFUSED at http://127.0.0.1:8080/docs",
        INTERRUPTED.replace("chrome-error://chromewebdata/", "http://127.0.0.1:8080/login/"),
    ],
)
def test_any_other_error_is_raised(error: str) -> None:
    page = steady(cast(Page, Fails(error)))
    with pytest.raises(Error, match="Page.goto"):
        page.goto("http://127.0.0.1:8080/docs")


def test_a_page_is_opened_again_only_if_a_request_of_it_was_cancelled() -> None:
    opened: list[str] = []
    with chromium() as browser:
        page = steady(browser.new_page())

        def serve(route: Route) -> None:
            if route.request.url.endswith(".js"):
                # the first load of the page is incomplete
                route.abort("internetdisconnected") if len(opened) == 1 else route.fulfill(body="document.write('all')")
                return
            opened.append(route.request.url)
            route.fulfill(body="<script src=/a.js></script>", content_type="text/html")

        page.route("http://site.test/**", serve)
        with pytest.raises(AssertionError):
            show(page, "http://site.test/", page.get_by_text("all"), 500)
        assert len(opened) == 1, "that was another error"
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr("tests.chromium._CANCELLED", "ERR_INTERNET_DISCONNECTED")
            opened.clear()
            show(page, "http://site.test/", page.get_by_text("all"), 500)
        assert len(opened) == 2
