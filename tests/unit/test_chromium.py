"""The helper that repeats what Chromium cancels, with a page that raises what Playwright raises."""

from __future__ import annotations

from typing import Any, cast

import pytest
from playwright.sync_api import Error, Page

from tests.chromium import steady

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
