"""dbt's docs of a run's versions: manifest.json, catalog.json and a page that needs neither."""

from __future__ import annotations

import json
import re

from jinja2.utils import htmlsafe_json_dumps

from busco.errors import BuscoError
from busco.lake.runs import Run
from busco.project import Project
from busco.warehouse.dbt import Dbt
from busco.warehouse.session import Session

# How the page marks what a search has found: it takes all texts for HTML, and is called without a search too. In its
# place stands the same over text (the page of dbt-core 1.11; `n.highlight` of its search results).
_MARKS_FOUND = {
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


def make_docs(dbt: Dbt, project: Project, run: Run, session: Session) -> dict[str, str]:
    """Makes the docs and uploads them; gives the version of each table that they describe.

    Raises:
        BuscoError: dbt failed, or the catalog lacks a table that has a version: an empty catalog is an error, whatever
            dbt's exit status says.
    """
    # a view lives in the connection that made it, and `docs generate` describes relations
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
    wanted = {uid for table, uid in project.tables.items() if session.version(table)} | {*project.sources, *views}
    if missing := sorted(wanted - described):
        raise BuscoError(f"the docs' catalog lacks {', '.join(missing)}", "clear the docs task")
    prefix = run.docs
    store = run.store
    store.put(f"{prefix}manifest.json", json.dumps(project.manifest).encode())
    store.put(f"{prefix}catalog.json", (dbt.target / "catalog.json").read_bytes())
    inlined = {"MANIFEST": json.loads(dbt.without_answers("manifest.json")), "CATALOG": catalog}
    page = static_page((dbt.target / "index.html").read_text(), inlined)
    store.put(f"{prefix}index.html", page.encode(), "text/html; charset=utf-8")
    return {
        table: version.version
        for table in sorted({*project.tables, *run.pin.bronze})
        if (version := session.version(table)) is not None
    }


def static_page(page: str, documents: dict[str, object]) -> str:
    """dbt's docs page with its documents in it, as JSON that no markup of a description can end, and shown as text.

    dbt's own `--static` puts in the files as they are: `</script>` in a description ends the page's script, and a mark
    in the manifest is taken for the page's (dbt-core, task/docs/generate.py). The page itself takes names,
    descriptions, tags and SQL for HTML where it lists what a search has found (`_MARKS_FOUND`).

    Args:
        documents: by the mark that the page has for them, `MANIFEST` or `CATALOG`.

    Raises:
        BuscoError: the page has not each mark, and what is replaced in it, exactly once.
    """
    inlined = {f'"{name}.JSON INLINE DATA"': str(htmlsafe_json_dumps(said)) for name, said in documents.items()}
    replaced = {**_MARKS_FOUND, **inlined}
    parts = re.split("(" + "|".join(map(re.escape, replaced)) + ")", page)
    if sorted(parts[1::2]) != sorted(replaced):
        raise BuscoError(
            "dbt's docs page is not as it was: its marks for manifest and catalog, or its search, are missing",
            "install dbt as requirements/dbt.txt has it",
        )
    return "".join(replaced.get(part, part) for part in parts)
