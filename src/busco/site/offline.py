"""Gathers all data of the site for one release, for a page that needs no server."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from busco.site.release import Site

_THREADS = 16
# The newest releases that the history in a file has: no server can add older ones to it.
_HISTORY = 500


def gather(
    site: Site, release: str, started: Callable[[int], Callable[[int], None]] = lambda _: lambda _: None
) -> dict[str, Any]:
    """Returns what the page needs to show a release: `state`, `history`, and the `sites` and `tables` by project.

    Args:
        started: called with the number of content files; returns a function that is called with 1 for each of them.
    """
    found = {project: site.index(project, release) for project in sorted(site.projects)}
    indexes = {project: index for project, index in found.items() if index is not None}
    progress = started(sum(len(index["tables"]) for index in indexes.values()))

    def read(project: str, table: str) -> Any:
        body = site.content(project, table, release)
        progress(1)
        return None if body is None else json.loads(body)

    tables: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for project, index in indexes.items():
            contents = pool.map(lambda table, project=project: (table, read(project, table)), index["tables"])
            tables[project] = {table: content for table, content in contents if content is not None}
    history = site.history(release, _HISTORY)
    return {"state": site.state(release), "history": history, "sites": indexes, "tables": tables}
