"""Reads what Glue shows through another engine, for each release of a lake."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from busco.cli.releases import show_glue
from busco.lake import releases
from tests.engines.engine import Rows, Trino, by_duckdb
from tests.lakes.make import HEADER
from tests.platforms import ENVIRONMENT, Platform, csv_text

Tables = dict[str, Rows]


def deliver(made: Platform, rows: Sequence[Sequence[Any]], name: str = "") -> str:
    """Ingests a file of orders and returns its name, by default a new one.

    Trino keeps the content of metadata files in memory, by their URL. Lakes that follow one another in the same bucket
    must therefore not have the same deliveries, from whose names those of bronze tables' metadata are computed.
    """
    name = name or f"orders-{uuid.uuid4().hex}.csv"
    made.deliver(csv_text(HEADER, rows), name)
    return name


def history(made: Platform) -> list[str]:
    """Returns the ids of the releases that were live, oldest first."""
    return [release.release for release in releases.history(made.store, ENVIRONMENT)][::-1]


def by_duckdb_of_each(made: Platform) -> dict[str, Tables]:
    """Returns the rows of each table of each release, newest first."""
    return {
        release.release: {table: rows for table, (_, rows) in by_duckdb(made, release).items()}
        for release in releases.history(made.store, ENVIRONMENT)
    }


def by_trino(trino: Trino, made: Platform) -> Tables:
    """Returns the rows of each table that Glue shows for the live release."""
    return {table: trino.table(made.version(table)) for table in made.live().tables}


def roll_back(made: Platform, release: str) -> None:
    """Rolls back to a release, as `busco release rollback` does."""
    releases.rollback(made.store, ENVIRONMENT, release, "test", "a test")
    show_glue(made.settings, made.store, ENVIRONMENT)


def by_trino_after_rollbacks(trino: Trino, made: Platform, wanted: list[str]) -> dict[str, Tables]:
    """Rolls back to one release after another; returns the rows of each table in each of them."""
    found = {}
    for release in wanted:
        roll_back(made, release)
        found[release] = by_trino(trino, made)
    return found


def kinds(keys: Iterable[str]) -> set[str]:
    """Returns what kinds of objects have these keys: data, manifests, metadata, or another folder of the records."""
    return {key.split("/")[3] if key.startswith("_lake/env/") else "data" for key in keys}


def repair(made: Platform) -> str:
    """Undoes whatever other engines did to the lake; returns what the command printed."""
    return made.busco("release", "repair")
