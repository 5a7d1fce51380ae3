"""Gathers all data of the site for one release, for a page that needs no server."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from busco.site.release import Site

_THREADS = 16


def content_count(site: Site, release: str) -> int:
    """Returns the number of content files of a release, which `gather` reads."""
    return sum(len(index["tables"]) for index in _indexes(site, release).values())


def gather(site: Site, release: str, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Returns what the page needs to show a release: `state`, `history`, and the `sites` and `tables` by project.

    Args:
        progress: called with 1 for each content file.
    """
    indexes = _indexes(site, release)

    def read(project: str, table: str) -> Any:
        body = site.content(project, table, release)
        progress(1)
        return None if body is None else json.loads(body)

    tables: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for project, index in indexes.items():
            found = pool.map(lambda table, project=project: (table, read(project, table)), index["tables"])
            tables[project] = {table: content for table, content in found if content is not None}
    return {"state": site.state(release), "history": site.history(), "sites": indexes, "tables": tables}


def _indexes(site: Site, release: str) -> dict[str, Any]:
    found = {project: site.index(project, release) for project in sorted(site.projects)}
    return {project: index for project, index in found.items() if index is not None}
