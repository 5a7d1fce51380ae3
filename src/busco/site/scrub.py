"""Removes values of personal data from the site's files of runs in which a column was not marked as personal yet."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from busco.lake.objects import Moved, ObjectStore
from busco.lake.releases import live_releases
from busco.site.files import (
    DOCS,
    INDEX,
    NOTHING,
    Shown,
    content_with,
    entry_with,
    is_content,
    is_index,
    load,
    read_index,
)

_THREADS = 16


@dataclass(frozen=True)
class ScrubbedPages:
    """How many of the site's files were checked, and the keys of those with values to remove, and of those that could
    not be checked."""

    checked: int
    with_values: tuple[str, ...]
    unchecked: tuple[str, ...]


def scrub_pages(store: ObjectStore, live: Mapping[str, Collection[str]], dry: bool = False) -> ScrubbedPages:
    """Removes values of personal data from all of the site's files, and can be killed and repeated safely.

    The files of the live releases lose the values of their personal columns. All others lose all values and the
    compiled SQL, because it is no longer certain which of their columns are personal. If the bucket keeps old versions
    of replaced or deleted files, these are deleted.

    Args:
        live: the personal columns of each live version, by the version's id.
        dry: only report what would be done.
    """
    keys = sorted(key for key in store.keys_of_versions(DOCS) if is_content(key) or is_index(key))
    kept = _of_live_releases(store)

    def clean(key: str) -> str:
        """Cleans a file; returns `values` if there were any, `unchecked` if it is damaged, otherwise an empty text."""
        stored, found = store.get(key), ""
        if stored is not None:
            try:
                before = load(stored.body)
                after = (_index if is_index(key) else _content)(before, live if key in kept else {})
                if after != before:
                    found = "values"
                    if not dry:
                        text = json.dumps(after, separators=(",", ":"), ensure_ascii=False)
                        store.swap(key, text.encode(errors="replace"), stored.etag)
            except (AttributeError, LookupError, Moved, TypeError, ValueError):
                return "unchecked"
        if not dry:
            # also where nothing was found: an earlier scrub may have been killed between its swap and its purge
            store.purge(key)
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        results = dict(zip(keys, pool.map(clean, keys), strict=True))

    def those(what: str) -> tuple[str, ...]:
        return tuple(key for key, result in results.items() if result == what)

    return ScrubbedPages(len(keys), those("values"), those("unchecked"))


def _of_live_releases(store: ObjectStore) -> set[str]:
    """Returns the keys of the site's files of all live releases."""
    found: set[str] = set()
    for release in live_releases(store).values():
        for prefix in release.docs_by_project().values():
            try:
                index = read_index(store, prefix)
            except ValueError:
                continue
            if index is not None:
                found.add(f"{prefix}{INDEX}")
                found |= {entry["content"]["key"] for entry in index["tables"].values()}
    return found


def _content(content: dict[str, Any], live: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """Returns a content file without values of personal columns, or as it is if it has none; without any values if its
    version is not live."""
    personal = live.get(content.get("version", ""))
    if personal is None:
        return content_with(content, NOTHING)
    shown = Shown.but((column["name"] for column in content["columns"]), personal)
    clean = content_with(content, shown)
    # its SQL was compiled when these columns were known to be personal
    return content if {**clean, "sql": content["sql"]} == content else clean


def _index(index: dict[str, Any], live: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """Returns an index without values of personal columns, and without any values of versions that are not live."""
    tables = {}
    for table, entry in index["tables"].items():
        personal = live.get(entry["content"]["version"])
        names = (column[0] for column in entry["columns"])
        tables[table] = entry_with(entry, Shown.but(names, personal) if personal is not None else NOTHING)
    return {**index, "tables": tables}
