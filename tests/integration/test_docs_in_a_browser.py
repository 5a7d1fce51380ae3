"""dbt's docs page in a real browser: a project's text is displayed as text and never executed."""

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
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The docs page of a project with these strings wherever a project can have text, and in the catalog's comments."""
    home = tmp_path_factory.mktemp("docs")
    raw = f"{{% raw %}}{ALL}{{% endraw %}}"
    properties = {
        "models": [{"name": "a", "description": raw, "columns": [{"name": "c", "description": raw}], "config": {
            "tags": [ALL], "meta": {"owner": ALL}}}],
        "seeds": [{"name": "s", "description": raw}],
    }  # fmt: skip
    files = {
        "dbt_project.yml": "{name: shop, version: '1.0', config-version: 2, models: {+materialized: lake, "
        "+schema: gold}, seeds: {+schema: silver}}",
        "models/a.sql": f"{{% raw %}}select '{ALL.replace(chr(39), chr(39) * 2)}' as c{{% endraw %}}",
        "models/a.yml": yaml.safe_dump(properties),
        "seeds/s.csv": "a\n1\n",
    }
    for path, text in files.items():
        file = home / "dbt_project" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with opened(Settings(home=home)) as project:
        project.parse()
        manifest = json.loads((project.target / "manifest.json").read_text())
    # a file's name can't contain a slash, but a node's name can come from elsewhere
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
    # an error handler runs after the browser has tried to load the image
    page.wait_for_timeout(500)
    return page.inner_text("body")


def check_nothing_runs(page: Page) -> None:
    assert "it ran" not in page.title()
    made = page.evaluate("document.querySelectorAll('img[src=x], svg[onload], script:not([defer])').length")
    assert made == 0, "text became part of the page's markup"


@pytest.mark.parametrize("place", PLACES)
def test_no_text_from_a_project_runs_as_code_in_its_docs(docs: Path, page: Page, place: str) -> None:
    shown(page, f"{docs.as_uri()}{place}", "Projects")
    check_nothing_runs(page)


def test_a_project_s_text_is_displayed_literally(docs: Path, page: Page) -> None:
    text = shown(page, f"{docs.as_uri()}#!/model/model.shop.a", EVIL["script"])
    # owner, description, column
    assert text.count(EVIL["script"]) >= 3
    assert EVIL["image"] in text
    assert f"s {EVIL['script']}" in shown(page, f"{docs.as_uri()}#!/seed/seed.shop.s", EVIL["script"])


@pytest.mark.parametrize("searched", ["script", "39", "img"])
def test_search_results_are_displayed_as_text_too(docs: Path, page: Page, searched: str) -> None:
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
