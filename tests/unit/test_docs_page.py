"""Descriptions in dbt's docs page remain text, whatever they contain."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dbt.task.docs
import pytest

from busco.errors import BuscoError
from busco.warehouse.docs import static_page

PAGE = (Path(dbt.task.docs.__file__).parent / "index.html").read_text()
EVIL = [
    "</script><script>alert(1)</script>", "<!--<script>", "]]>", "a\u2028b\u2029c", "</SCRIPT x>", "'\"&",
    '"CATALOG.JSON INLINE DATA"', "\\u003c",
]  # fmt: skip


class Scripts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


def tags(page: str) -> list[str]:
    parser = Scripts()
    parser.feed(page)
    return parser.found


@pytest.mark.parametrize("evil", EVIL)
def test_no_description_can_end_the_pages_script(evil: str) -> None:
    manifest = {"metadata": {}, "nodes": {f"model.p.{evil}": {"description": evil, evil: [evil]}}}
    page = static_page(PAGE, {"MANIFEST": manifest, "CATALOG": {"nodes": {evil: evil}}})
    assert tags(page) == tags(PAGE)
    begins = page.index("manifest:{") + len("manifest:")
    embedded, _ = json.JSONDecoder().raw_decode(page, begins)
    assert embedded == manifest
    literal = json.dumps(manifest)
    assert not re.search(r"[<>\u2028\u2029]", page[begins : begins + len(literal)])


def test_the_page_of_an_unsupported_dbt_version_is_an_error() -> None:
    for page in ("<html></html>", PAGE + PAGE):
        with pytest.raises(BuscoError, match="placeholders"):
            static_page(page, {"MANIFEST": {}, "CATALOG": {}})
