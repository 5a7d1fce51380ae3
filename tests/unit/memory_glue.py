"""An in-memory Glue catalog for tests that interleave syncs, or that measure them."""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError


class MemoryGlue:
    """Implements the calls of boto3's Glue client that the sync makes, on a dictionary keyed by (database, name).

    As in AWS, UpdateTable checks VersionId, and DeleteTable has no such check. GetTables returns `page` tables a call.
    `called` receives the name of each call before the call is performed; what it raises, the call raises. `answering`
    receives the call's name after the call was performed: what it raises is raised instead of the answer, which is then
    lost. Each call takes `latency` seconds. `writes` counts the writes of each table, and `archived` the versions that
    were archived because a write did not set SkipArchive.
    """

    def __init__(self, called: Callable[[str], None] = lambda _: None, latency: float = 0.0, page: int = 100) -> None:
        self.tables: dict[tuple[str, str], dict[str, Any]] = {}
        self.versions = 0
        self.called = called
        self.answering: Callable[[str], None] = lambda _: None
        self.latency, self.page = latency, page
        self.writes: Counter[tuple[str, str]] = Counter()
        self.archived = 0
        self.lock = threading.RLock()

    def get_table(self, DatabaseName: str, Name: str) -> dict[str, Any]:
        def perform() -> dict[str, Any]:
            if (DatabaseName, Name) not in self.tables:
                raise refusal("EntityNotFoundException")
            return {"Table": copy.deepcopy(self.tables[DatabaseName, Name])}

        return self._call("get_table", perform)

    def get_tables(self, DatabaseName: str, NextToken: str = "0") -> dict[str, Any]:
        def perform() -> dict[str, Any]:
            names = sorted(name for database, name in self.tables if database == DatabaseName)
            start = int(NextToken)
            rest = {"NextToken": str(start + self.page)} if start + self.page < len(names) else {}
            page = names[start : start + self.page]
            return {"TableList": [copy.deepcopy(self.tables[DatabaseName, name]) for name in page], **rest}

        return self._call("get_tables", perform)

    def create_table(self, DatabaseName: str, TableInput: dict[str, Any]) -> dict[str, Any]:
        def perform() -> dict[str, Any]:
            if (DatabaseName, TableInput["Name"]) in self.tables:
                raise refusal("AlreadyExistsException")
            return self._put(DatabaseName, TableInput)

        return self._call("create_table", perform)

    def update_table(
        self, DatabaseName: str, TableInput: dict[str, Any], VersionId: str = "", SkipArchive: bool = False
    ) -> dict[str, Any]:
        def perform() -> dict[str, Any]:
            found = self.tables.get((DatabaseName, TableInput["Name"]))
            if found is None:
                raise refusal("EntityNotFoundException")
            if VersionId and found["VersionId"] != VersionId:
                raise refusal("ConcurrentModificationException")
            self.archived += not SkipArchive
            return self._put(DatabaseName, TableInput)

        return self._call("update_table", perform)

    def delete_table(self, DatabaseName: str, Name: str) -> dict[str, Any]:
        def perform() -> dict[str, Any]:
            if self.tables.pop((DatabaseName, Name), None) is None:
                raise refusal("EntityNotFoundException")
            return {}

        return self._call("delete_table", perform)

    def _call(self, name: str, perform: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.latency:
            time.sleep(self.latency)
        self.called(name)
        with self.lock:
            answer = perform()
        self.answering(name)
        return answer

    def _put(self, database: str, given: dict[str, Any]) -> dict[str, Any]:
        self._check(given)
        self.versions += 1
        self.writes[database, given["Name"]] += 1
        self.tables[database, given["Name"]] = {**copy.deepcopy(given), "VersionId": str(self.versions)}
        return {}

    @staticmethod
    def _check(given: dict[str, Any]) -> None:
        """Refuses text that is longer than Glue's limits, or has several lines (Glue API reference, `Column`)."""
        columns = given.get("StorageDescriptor", {}).get("Columns", [])
        comments = [column.get("Comment", "") for column in columns]
        if any(len(text) > 255 or "\n" in text for text in comments) or len(given.get("Description", "")) > 2048:
            raise refusal("InvalidInputException")


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "Glue")
