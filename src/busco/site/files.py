"""Reads the site's files, which the runner of a run's docs writes (`busco.warehouse.site`; docs/catalog.md).

A runner executes a project's code, so its files are not trusted: they have a maximum size and the types that are read
here and in the page, and an index leads only to content files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from busco.lake.objects import ObjectStore

# The format of the site's files. A reader ignores files of another format: the pages are then missing until a new run.
FORMAT = 1
# The name of a run's index, below the prefix of the run's docs.
INDEX = "site.json"
# A file with more bytes is not read. An index with 300,000 described columns has about 60 MB.
_MOST_OF_INDEX = 200_000_000
_MOST_OF_CONTENT = 50_000_000
# Each run's docs are below this prefix.
DOCS = "docs/"
_INDEX = re.compile(rf"{DOCS}[^/]+/[0-9]+/{re.escape(INDEX)}")
_CONTENT = re.compile(rf"{DOCS}[^/]+/[0-9]+/tables/[^/]+\.json")


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
    more: str = ""
    tags: list[str]
    synonyms: list[str]
    owner: str
    group: str | None
    columns: list[tuple[str, str, str]]
    types: list[str] = []
    key: list[str] = []
    upstream: list[str]
    loaded_at: str | None
    newest: tuple[str, str] | None
    warn_after: float | None
    error_after: float | None
    tests: list[_Test]
    personal: list[str]
    content: _Content

    @model_validator(mode="after")
    def _usable(self) -> _Entry:
        if self.types and len(self.types) != len(self.columns):
            raise ValueError("there is another number of types than of columns")
        if self.loaded_at and datetime.fromisoformat(self.loaded_at).tzinfo is None:
            raise ValueError("the time of the newest rows has no time zone")
        return self


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
    index = load(stored.body)
    if index.get("format") != FORMAT:
        return None
    try:
        _Index.model_validate(index)
    except ValidationError as error:
        raise ValueError(_explained(error)) from None
    return index


def read_content(store: ObjectStore, key: str, project: str, table: str) -> bytes | None:
    """Returns a content file; None if there is none under this key, or if it is not the file of this project's table.

    Any object can be named in an index, and whoever reads it here may read more than the project's users.
    """
    stored = store.get(key, _MOST_OF_CONTENT) if _CONTENT.fullmatch(key) else None
    if stored is None:
        return None
    try:
        content = load(stored.body)
    except ValueError:
        return None
    return stored.body if (content.get("project"), content.get("table")) == (project, table) else None


def load(body: bytes) -> dict[str, Any]:
    """Returns a file's JSON object.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def is_content(key: str) -> bool:
    """Returns whether a key is that of a content file."""
    return _CONTENT.fullmatch(key) is not None


def is_index(key: str) -> bool:
    """Returns whether a key is that of a run's index."""
    return _INDEX.fullmatch(key) is not None


@dataclass(frozen=True)
class Shown:
    """Which columns of a table have values on its pages.

    Attributes:
        columns: these columns, in lower case.
        personal: the columns that are known to contain personal data, in lower case.
    """

    columns: frozenset[str] = frozenset()
    personal: frozenset[str] = frozenset()

    @staticmethod
    def but(names: Iterable[str], personal: Iterable[str]) -> Shown:
        """Returns that all columns with these names are shown, but the personal ones."""
        hidden = frozenset(name.lower() for name in personal)
        return Shown(frozenset(name.lower() for name in names) - hidden, hidden)


NOTHING = Shown()


def entry_with(entry: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    """Returns a table's entry in an index without the values of columns that are not shown."""
    newest = entry.get("newest")
    known = {name.lower() for name in entry["personal"]}
    names = [column[0] for column in entry["columns"]]
    return {
        **entry,
        "newest": newest if newest is not None and newest[0].lower() in shown.columns else None,
        "personal": [name for name in names if name.lower() in known | shown.personal],
    }


def content_with(content: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    """Returns a content file without the profiles and sample values of columns that are not shown.

    The compiled SQL is left out too: it can contain values that the project's Jinja has queried.

    Raises:
        ValueError: the file has other types.
    """
    try:
        parsed = _Values.model_validate(content)
    except ValidationError as error:
        raise ValueError(_explained(error)) from None
    columns = [
        column
        if column["name"].lower() in shown.columns
        else {**column, "personal": column["personal"] or column["name"].lower() in shown.personal, "profile": None}
        for column in content["columns"]
    ]
    sample = None
    if parsed.sample is not None:
        kept = [at for at, name in enumerate(parsed.sample.columns) if name.lower() in shown.columns]
        names = [parsed.sample.columns[at] for at in kept]
        sample = {"columns": names, "rows": [[row[at] for at in kept] for row in parsed.sample.rows]} if kept else None
    sql = {**content["sql"], "compiled": None} if parsed.sql is not None else None
    profile_from = content.get("profile_from") if any(column["profile"] for column in columns) else None
    return {**content, "columns": columns, "sample": sample, "sql": sql, "profile_from": profile_from}


class _Column(BaseModel):
    name: str
    personal: bool
    profile: dict[str, Any] | None


class _Sample(BaseModel):
    columns: list[str]
    rows: list[list[str | None]]

    @model_validator(mode="after")
    def _rectangular(self) -> _Sample:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("a row has another number of values than there are columns")
        return self


class _Sql(BaseModel):
    path: str
    source: str
    compiled: str | None


class _Values(BaseModel):
    """The parts of a content file that contain values of rows, or say which of them must not be shown."""

    columns: list[_Column]
    sample: _Sample | None
    sql: _Sql | None


def _explained(error: ValidationError) -> str:
    """Returns what is wrong with a file's types. Pydantic's own message would quote the values."""
    place = ".".join(map(str, error.errors()[0]["loc"]))
    return f"the type of {place} is wrong"
