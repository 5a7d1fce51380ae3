"""Generates the dbt docs of a run's versions: manifest.json, catalog.json and a self-contained page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

from busco.errors import BuscoError
from busco.lake.runs import Run
from busco.project import Project
from busco.warehouse.dbt import Dbt
from busco.warehouse.session import Session

# The code that highlights search results in the docs page of dbt-core 1.11 (`n.highlight`), and its replacement. The
# original treats all text as HTML, even when there is no search; the replacement escapes the text.
_HIGHLIGHTING = {
    "if(!n.query||!t)return e.trustAsHtml(t);let i=": (
        "const busco=t=>String(t).replace(/[&<>\"']/g,(t=>`&#${t.charCodeAt(0)};`));"
        "if(!n.query||!t)return e.trustAsHtml(t&&busco(t));let i="
    ),
    'return e.trustAsHtml(t.replace(new RegExp(i,"gi"),\'<span class="search-result-match">$&</span>\'))': (
        'let a="",l=0;for(const e of String(t).matchAll(new RegExp(i,"gi")))a+=busco(t.slice(l,e.index))'
        '+`<span class="search-result-match">${busco(e[0])}</span>`,l=e.index+e[0].length;'
        "return e.trustAsHtml(a+busco(t.slice(l)))"
    ),
}


@dataclass(frozen=True)
class Docs:
    """The docs of a run: the version of each table that they describe, and dbt's manifest with the compiled SQL."""

    described: dict[str, str]
    manifest: dict[str, Any]


def make_docs(dbt: Dbt, project: Project, run: Run, session: Session) -> Docs:
    """Generates and uploads the docs.

    Raises:
        BuscoError: dbt failed, or the catalog lacks a table that has a version. In particular, an empty catalog is an
            error even if dbt reports success.
    """
    # `docs generate` describes existing relations, and a view exists only in the connection that created it
    views = [
        uid
        for uid, node in project.nodes.items()
        if node["resource_type"] == "model"
        and node["config"]["materialized"] == "view"
        and all(session.version(parent) for parent in project.parents(uid))
    ]
    if views:
        chosen = ["--indirect-selection", "empty", "--select", *(project.selector(uid) for uid in views)]
        dbt.invoke(["build", *chosen], shown="errors")
    result = dbt.invoke(["docs", "generate", "--threads", str(dbt.settings.dbt_threads)], shown="errors")
    if not result.success:
        reason = dbt.reason(result)
        raise BuscoError(f"dbt docs generate failed: {reason}", dbt.advice(reason))
    catalog = json.loads((dbt.target / "catalog.json").read_text())
    described = {*catalog["nodes"], *catalog["sources"]}
    expected = {uid for table, uid in project.tables.items() if session.version(table)} | {*project.sources, *views}
    if missing := sorted(expected - described):
        raise BuscoError(f"the docs' catalog is missing {', '.join(missing)}", "clear the docs task")
    prefix = run.docs
    store = run.store
    store.put(f"{prefix}manifest.json", json.dumps(project.manifest).encode())
    store.put(f"{prefix}catalog.json", (dbt.target / "catalog.json").read_bytes())
    manifest = json.loads(dbt.without_results("manifest.json"))
    page = static_page((dbt.target / "index.html").read_text(), {"MANIFEST": manifest, "CATALOG": catalog})
    store.put(f"{prefix}index.html", page.encode(), "text/html; charset=utf-8")
    versions = {table: session.version(table) for table in sorted({*project.tables, *run.pin.bronze})}
    return Docs({table: found.version for table, found in versions.items() if found is not None}, manifest)


def static_page(page: str, documents: dict[str, object]) -> str:
    """Returns dbt's docs page with its documents embedded as escaped JSON, and with their text never shown as HTML.

    dbt's own `--static` embeds the files verbatim: `</script>` in a description ends the page's script, and a
    placeholder that occurs in the manifest is replaced too (dbt-core, task/docs/generate.py). The page itself renders
    names, descriptions, tags and SQL as HTML in its list of search results (`_HIGHLIGHTING`).

    Args:
        documents: the documents by their placeholder in the page, `MANIFEST` or `CATALOG`.

    Raises:
        BuscoError: a placeholder, or code that must be replaced, doesn't occur exactly once in the page.
    """
    inlined = {f'"{name}.JSON INLINE DATA"': str(htmlsafe_json_dumps(document)) for name, document in documents.items()}
    replaced = {**_HIGHLIGHTING, **inlined}
    parts = re.split("(" + "|".join(map(re.escape, replaced)) + ")", page)
    if sorted(parts[1::2]) != sorted(replaced):
        raise BuscoError(
            "dbt's docs page has an unknown format: its placeholders or its search code were not found",
            "install the dbt version that is pinned in requirements/dbt.txt",
        )
    return "".join(replaced.get(part, part) for part in parts)
