"""The consumers' site in a browser: opens its pages in both forms, reads what they show, and takes pictures of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Frame, Page, expect

from busco.site.page import frame_html
from tests.chromium import steady
from tests.site_data import Data
from tests.site_server import Served

AXE = Path(__file__).parent / "vendor/axe.min.js"
DESKTOP = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}


@dataclass
class Shown:
    """The site in a page: `app` is the frame with the application, in both forms."""

    page: Page
    app: Frame

    def at(self, heading: str | re.Pattern[str]) -> Shown:
        expect(self.app.locator("h1")).to_have_text(heading)
        return self

    def text(self) -> str:
        return self.app.inner_text("body")

    def row(self, table: str) -> str:
        """Returns the text of a table's row on the start page."""
        link = self.app.get_by_role("link", name=table, exact=True)
        return re.sub(r"\s+", " ", self.app.get_by_role("row").filter(has=link).first.inner_text())

    def find(self, query: str) -> list[str]:
        """Searches, and returns the names of what was found."""
        field = self.app.locator(".search input")
        field.fill("")
        expect(self.app.locator(".search [role=status]")).to_have_text("")
        field.fill(query)
        expect(self.app.locator(".search [role=status]")).to_have_text(re.compile(r"\d+ result"))
        return [re.sub(r"\s+", " ", each) for each in self.app.locator("#hits li code").all_inner_texts()]

    def is_within_its_width(self) -> bool:
        """Says whether nobody has to scroll sideways."""
        return self.app.evaluate("document.documentElement.scrollWidth <= innerWidth") is True

    def violations(self) -> list[str]:
        """Returns what axe finds to be serious or critical."""
        if not self.app.evaluate("typeof axe === 'object'"):
            self.app.evaluate(AXE.read_text())
        found = self.app.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {node['html'][:200]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def picture(self, name: str) -> None:
        """Saves a picture of the whole page in the folder that BUSCO_TEST_SCREENSHOTS names, if it is set."""
        if folder := os.environ.get("BUSCO_TEST_SCREENSHOTS"):
            # playwright makes the folder
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


Open = Callable[..., Shown]


@contextmanager
def opening(browser: Browser, served: Served, folder: Path) -> Iterator[Open]:
    """Yields a function that opens an address in the form `shell` or `file`. At the end, no page may have reported an
    error, run text of a project, or asked for anything outside its own origin.

    Its arguments: the form, the address below the base, the data if it is not what `served` has, what errors may say
    (a regular expression), JavaScript that runs in each frame before its own, the time at which the page's clock
    starts, and the options of the browser's context.

    Args:
        folder: where pages of the form `file` are written.
    """
    contexts: list[BrowserContext] = []
    problems: list[str] = []
    own = ("file:", "data:", f"{served.origin}/")

    def open_(
        form: str,
        path: str = "",
        data: Data | None = None,
        expected: str = "",
        script: str = "",
        clock: datetime | None = None,
        **options: Any,
    ) -> Shown:
        context = browser.new_context(**{"locale": "en-GB", **DESKTOP, **options})
        contexts.append(context)
        page = steady(context.new_page())

        def report(text: str) -> None:
            if not expected or not re.search(expected, text):
                problems.append(text)

        page.on("console", lambda said: report(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: report(f"{error}\n{error.stack}"))
        page.on("request", lambda asked: None if asked.url.startswith(own) else report(asked.url))
        page.set_default_timeout(10_000)
        if script:
            page.add_init_script(script)
        if clock:
            page.clock.install(time=clock)
        if form == "file":
            file = folder / f"site-{len(contexts)}.html"
            file.write_text(frame_html(data or served.data))
            page.goto(f"{file.as_uri()}#/{path}")
            shown = Shown(page, page.main_frame)
        else:
            served.data = data or served.data
            page.goto(served.url(path))
            page.wait_for_selector("#busco-frame", state="attached")
            shown = Shown(page, page.frames[1])
        shown.app.wait_for_selector("h1")
        return shown

    yield open_
    for context in contexts:
        for page in context.pages:
            for frame in page.frames:
                if frame.evaluate("window.pwned"):
                    problems.append(f"text of a project ran in {frame.url}")
        context.close()
    assert not problems, problems
