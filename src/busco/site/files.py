"""Reads the site's files, which the runner of a run's docs writes (`busco.warehouse.site`; docs/catalog.md)."""

from __future__ import annotations

import json
from typing import Any

from busco.lake.objects import ObjectStore

# The format of the site's files. A reader ignores files of another format: the pages are then missing until a new run.
FORMAT = 1
# The name of a run's index, below the prefix of the run's docs.
INDEX = "site.json"


def read_index(store: ObjectStore, prefix: str) -> dict[str, Any] | None:
    """Returns the index below a prefix of docs; None if there is none that this code can read."""
    stored = store.get(f"{prefix}{INDEX}") if prefix else None
    if stored is None:
        return None
    index = json.loads(stored.body)
    return index if isinstance(index, dict) and index.get("format") == FORMAT else None
