"""The installed Chromium, for tests of web pages.

Chromium cancels its requests when a network interface appears or disappears on the machine (ERR_NETWORK_CHANGED), which
happens each time that another test starts or stops a container. Such a request is repeated. Where the cancelled request
was a page that the test no longer waits for, its error page interrupts the next one, which is repeated too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, Request, expect, sync_playwright

_CANCELLED = "ERR_NETWORK_CHANGED"
_ERROR_PAGE = "chrome-error:"
_INTERRUPTED = f'interrupted by another navigation to "{_ERROR_PAGE}'
_TIMES = 10


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yields a browser; skips the test with a message if none is installed."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def steady(page: Page) -> Page:
    """Returns the page, whose `goto` repeats requests that Chromium cancels."""
    original = page.goto

    def goto(*arguments: Any, **options: Any) -> Any:
        for left in reversed(range(_TIMES)):
            try:
                return original(*arguments, **options)
            except Error as error:
                if not left or not any(reason in str(error) for reason in (_CANCELLED, _INTERRUPTED)):
                    raise
        raise AssertionError

    page.goto = goto  # type: ignore[method-assign]
    return page


def show(page: Page, url: str, shown: Locator, timeout: float) -> None:
    """Opens an address, and again if something is not visible in time because Chromium has cancelled a request.

    Args:
        page: a page that `steady` has returned.
        shown: what must become visible.
        timeout: the time that it may take, in milliseconds.
    """
    cancelled: list[str] = []

    def note(request: Request) -> None:
        if _CANCELLED in (request.failure or ""):
            cancelled.append(request.url)

    page.on("requestfailed", note)
    try:
        for left in reversed(range(_TIMES)):
            cancelled.clear()
            page.goto(url)
            try:
                expect(shown).to_be_visible(timeout=timeout)
                return
            except AssertionError:
                if not cancelled or not left:
                    raise
            # otherwise, another fragment of the same page would not load it again
            page.goto("about:blank")
    finally:
        page.remove_listener("requestfailed", note)


def submit(page: Page, act: Callable[[], None], done: Callable[[], bool]) -> None:
    """Calls `act`, which loads a form and submits it, and again if Chromium cancels that, until `done`."""
    for _ in range(_TIMES):
        act()
        for _ in range(120):
            if done():
                return
            page.wait_for_timeout(1000)
            # a page that is being loaded has no content yet
            with suppress(Error):
                if page.url.startswith(_ERROR_PAGE) or _CANCELLED in page.content():
                    break
        else:
            break
    raise AssertionError(f"submitting the form at {page.url} had no effect")
