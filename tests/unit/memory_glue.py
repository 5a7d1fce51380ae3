"""An in-memory Glue catalog for tests that interleave syncs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from botocore.exceptions import ClientError


class MemoryGlue:
    """Implements the calls of boto3's Glue client that the sync makes, on a dictionary keyed by (database, name).

    As in AWS, UpdateTable checks VersionId, and DeleteTable has no such check. `called` receives the name of each call
    before the call is performed.
    """

    def __init__(self, called: Callable[[str], None]) -> None:
        self.tables: dict[tuple[str, str], dict[str, Any]] = {}
        self.versions = 0
        self.called = called

    def get_table(self, DatabaseName: str, Name: str) -> dict[str, Any]:
        self.called("get_table")
        if (DatabaseName, Name) not in self.tables:
            raise _error("EntityNotFoundException")
        return {"Table": self.tables[DatabaseName, Name]}

    def create_table(self, DatabaseName: str, TableInput: dict[str, Any]) -> None:
        self.called("create_table")
        if (DatabaseName, TableInput["Name"]) in self.tables:
            raise _error("AlreadyExistsException")
        self._put(DatabaseName, TableInput)

    def update_table(self, DatabaseName: str, TableInput: dict[str, Any], VersionId: str, SkipArchive: bool) -> None:
        self.called("update_table")
        found = self.tables.get((DatabaseName, TableInput["Name"]))
        if found is None:
            raise _error("EntityNotFoundException")
        if found["VersionId"] != VersionId:
            raise _error("ConcurrentModificationException")
        self._put(DatabaseName, TableInput)

    def delete_table(self, DatabaseName: str, Name: str) -> None:
        self.called("delete_table")
        if self.tables.pop((DatabaseName, Name), None) is None:
            raise _error("EntityNotFoundException")

    def get_paginator(self, name: str) -> MemoryGlue:
        assert name == "get_tables"
        return self

    def paginate(self, DatabaseName: str) -> Iterator[dict[str, Any]]:
        self.called("get_tables")
        yield {"TableList": [table for (database, _), table in self.tables.items() if database == DatabaseName]}

    def _put(self, database: str, given: dict[str, Any]) -> None:
        self.versions += 1
        self.tables[database, given["Name"]] = {**given, "VersionId": str(self.versions)}


def _error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "Glue")
