"""dbt's docs page in a real browser: what a project says is shown as text, and nothing of it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dbt.task.docs
import pytest
import yaml
from playwright.sync_api import Browser, Page

from busco.settings import Settings
from busco.warehouse.dbt import opened
from busco.warehouse.docs import static_page
from tests.chromium import chromium

RUN = "document.title='it ran'"
EVIL = {
    "script": f"</script><script>{RUN}</script>",
    "image": f'<img src=x onerror="{RUN}">',
    "svg": f'<svg onload="{RUN}">',
    "comment": f"<!--><script>{RUN}</script>",
}
ALL = " ".join(EVIL.values())
PLACES = ("#!/overview", "#!/model/model.shop.a", "#!/seed/seed.shop.s", "#!/model/model.shop.a?g_v=1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a project that says such things wherever a project can, and where a catalog has a comment."""
    home = tmp_path_factory.mktemp("docs")
    raw = f"{{% raw %}}{ALL}{{% endraw %}}"
    said = {
        "models": [{"name": "a", "description": raw, "columns": [{"name": "c", "description": raw}], "config": {
            "tags": [ALL], "meta": {"owner": ALL}}}],
        "seeds": [{"name": "s", "description": raw}],
    }  # fmt: skip
    files = {
        "dbt_project.yml": "{name: shop, version: '1.0', config-version: 2, models: {+materialized: lake, "
        "+schema: gold}, seeds: {+schema: silver}}",
        "models/a.sql": f"{{% raw %}}select '{ALL.replace(chr(39), chr(39) * 2)}' as c{{% endraw %}}",
        "models/a.yml": yaml.safe_dump(said),
        "seeds/s.csv": "a\n1\n",
    }
    for path, text in files.items():
        file = home / "dbt_project" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with opened(Settings(home=home)) as project:
        project.parse()
        manifest = json.loads((project.target / "manifest.json").read_text())
    # no file's name has a slash in it, but what is said of a node may come from elsewhere
    manifest["nodes"]["seed.shop.s"]["name"] = manifest["nodes"]["seed.shop.s"]["alias"] = f"s {ALL}"
    column = {"c": {"type": ALL, "index": 1, "name": f"c {ALL}", "comment": ALL}}
    table = {"type": "VIEW", "schema": "gold", "name": ALL, "comment": ALL, "owner": ALL, "database": "memory"}
    node = {"metadata": table, "columns": column, "stats": {}, "unique_id": "model.shop.a"}
    catalog = {"metadata": {}, "nodes": {"model.shop.a": node}, "sources": {}, "errors": None}
    page = (Path(dbt.task.docs.__file__).parent / "index.html").read_text()
    (home / "index.html").write_text(static_page(page, {"MANIFEST": manifest, "CATALOG": catalog}))
    return home / "index.html"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    made = browser.new_page()
    yield made
    made.close()


def shown(page: Page, place: str, text: str) -> str:
    page.goto(place)
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=60_000)
    # a handler runs when its picture was looked for
    page.wait_for_timeout(500)
    return page.inner_text("body")


def check_nothing_runs(page: Page) -> None:
    assert "it ran" not in page.title()
    made = page.evaluate("document.querySelectorAll('img[src=x], svg[onload], script:not([defer])').length")
    assert made == 0, "text became a part of the page"


@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_a_project_says_runs_in_its_docs(docs: Path, page: Page, place: str) -> None:
    shown(page, f"{docs.as_uri()}{place}", "Projects")
    check_nothing_runs(page)


def test_it_is_shown_as_what_it_is(docs: Path, page: Page) -> None:
    text = shown(page, f"{docs.as_uri()}#!/model/model.shop.a", EVIL["script"])
    # owner, description, column
    assert text.count(EVIL["script"]) >= 3
    assert EVIL["image"] in text
    assert f"s {EVIL['script']}" in shown(page, f"{docs.as_uri()}#!/seed/seed.shop.s", EVIL["script"])


@pytest.mark.parametrize("searched", ["script", "39", "img"])
def test_what_is_found_by_a_search_is_text_too(docs: Path, page: Page, searched: str) -> None:
    shown(page, f"{docs.as_uri()}#!/overview", "Projects")
    page.locator("#search").fill(searched)
    page.wait_for_timeout(1500)
    check_nothing_runs(page)
    if searched == "script":
        marked: list[Any] = page.evaluate(
            "[...document.querySelectorAll('.search-result-match')].map(one => one.innerText)"
        )
        assert "script" in marked
        assert "&#" not in page.inner_text("body")
