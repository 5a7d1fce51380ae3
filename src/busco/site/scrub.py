"""Removes values of personal data from the site's files of runs in which a column was not marked as personal yet."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from busco.lake.objects import ObjectStore
from busco.site.files import DOCS, is_content, is_index, without_newest, without_values


@dataclass(frozen=True)
class ScrubbedPages:
    """How many of the site's files were checked, and the keys of those with values to remove, and of damaged ones."""

    checked: int
    with_values: tuple[str, ...]
    unchecked: tuple[str, ...]


def scrub_pages(store: ObjectStore, live: Mapping[str, Collection[str]], dry: bool = False) -> ScrubbedPages:
    """Removes values of personal data from all of the site's files, and can be killed and repeated safely.

    The pages of a live version lose the values of its personal columns. Those of any other version lose all values,
    because it is no longer certain which of its columns are personal. If the bucket keeps old versions of the replaced
    files, these are deleted.

    Args:
        live: the personal columns of each live version, by the version's id.
        dry: only report what would be done.
    """
    found, unchecked = [], []
    keys = [key for key in store.keys(DOCS) if is_content(key) or is_index(key)]
    for key in keys:
        stored = store.get(key)
        if stored is None:
            continue
        try:
            content = json.loads(stored.body)
            clean = (_index if is_index(key) else _content)(content, live)
        except (AttributeError, ValueError, LookupError, TypeError, RecursionError):
            unchecked.append(key)
            continue
        if clean != content:
            found.append(key)
            if not dry:
                store.swap(key, json.dumps(clean, separators=(",", ":"), ensure_ascii=False).encode(), stored.etag)
        if not dry:
            # also where nothing was found: an earlier scrub may have been killed between its swap and its purge
            store.purge(key)
    return ScrubbedPages(len(keys), tuple(found), tuple(unchecked))


def _content(content: dict[str, Any], live: Mapping[str, Collection[str]]) -> dict[str, Any]:
    return without_values(content, live.get(content["version"]))


def _index(index: dict[str, Any], live: Mapping[str, Collection[str]]) -> dict[str, Any]:
    tables = {
        table: without_newest(entry, live.get(entry["content"]["version"])) for table, entry in index["tables"].items()
    }
    return {**index, "tables": tables}
