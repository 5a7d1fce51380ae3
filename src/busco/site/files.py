"""Reads the site's files, which the runner of a run's docs writes (`busco.warehouse.site`; docs/catalog.md).

A runner executes a project's code, so its files are not trusted: they have a maximum size and the types that are read
here and in the page, and an index leads only to content files.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from busco.lake.objects import ObjectStore

# The format of the site's files. A reader ignores files of another format: the pages are then missing until a new run.
FORMAT = 1
# The name of a run's index, below the prefix of the run's docs.
INDEX = "site.json"
# A file with more bytes is not read. An index with 300,000 described columns has about 60 MB.
_MOST_OF_INDEX = 200_000_000
_MOST_OF_CONTENT = 50_000_000
_CONTENT = re.compile(r"docs/[^/]+/[0-9]+/tables/[^/]+\.json")


class _Content(BaseModel):
    version: str
    hash: str
    key: str


class _Test(BaseModel):
    unique_id: str
    name: str
    kind: str
    column: str | None
    status: str | None
    failures: int | None
    at: str | None
    seconds: float | None


class _Entry(BaseModel):
    layer: str
    name: str
    kind: str
    unique_id: str
    summary: str
    tags: list[str]
    owner: str
    group: str | None
    columns: list[tuple[str, str]]
    upstream: list[str]
    loaded_at: str | None
    warn_after: float | None
    error_after: float | None
    tests: list[_Test]
    content: _Content


class _Index(BaseModel):
    project: str
    title: str
    tables: dict[str, _Entry]
    exposures: list[dict[str, Any]]
    pages: list[dict[str, Any]]
    groups: list[dict[str, Any]]


def read_index(store: ObjectStore, prefix: str) -> dict[str, Any] | None:
    """Returns the index below a prefix of docs; None if there is none, or if it has another format.

    Raises:
        ValueError: it is damaged.
    """
    stored = store.get(f"{prefix}{INDEX}", _MOST_OF_INDEX) if prefix else None
    if stored is None:
        return None
    try:
        index = json.loads(stored.body)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        return None
    try:
        _Index.model_validate(index)
    except ValidationError as error:
        # the message would quote the values
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(f"the type of {place} is wrong") from None
    return index


def read_content(store: ObjectStore, key: str, project: str, table: str) -> bytes | None:
    """Returns a content file; None if there is none under this key, or if it is not the file of this project's table.

    Any object can be named in an index, and whoever reads it here may read more than the project's users.
    """
    stored = store.get(key, _MOST_OF_CONTENT) if _CONTENT.fullmatch(key) else None
    if stored is None:
        return None
    try:
        content = json.loads(stored.body)
    except (ValueError, RecursionError):
        return None
    is_its = isinstance(content, dict) and (content.get("project"), content.get("table")) == (project, table)
    return stored.body if is_its else None
