"""Runs SHOW and DESCRIBE in the local Athena, for the databases and tables that the caller's policies allow.

The syntax follows the Athena User Guide, "DDL statements". In a pattern, `*` matches any characters, and `|` separates
alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from busco.embedded import policies
from busco.embedded.athena_checks import refusal

CATALOG = "awsdatacatalog"

Result = dict[str, Any]


def is_utility(first: str) -> bool:
    """Whether a statement whose first word is `first` lists or explains something instead of running a query."""
    return first in ("show", "describe", "desc", "explain")


def result_of(query: str, database: str) -> Result | None:
    """Returns the result of a SHOW or DESCRIBE statement; None for any other statement.

    Args:
        database: the database that unqualified names refer to.

    Raises:
        ValueError: the statement has a form that isn't available here.
        LookupError: there is no such database or table.
        PermissionError: the caller isn't allowed to see the database or table.
    """
    from ministack.services import athena

    cursor = athena._Cursor(query)
    if cursor.tokens and cursor.tokens[-1][:2] == ("punct", ";"):
        cursor.tokens.pop()
    if cursor.keywords("show"):
        return _show(cursor, database)
    if cursor.keywords("describe") or cursor.keywords("desc"):
        _ = cursor.keywords("extended") or cursor.keywords("formatted")
        name = cursor.dotted_name(2)
        if name is None or not cursor.at_end():
            raise refusal("DESCRIBE is not available here in this form; name a table: DESCRIBE busco_gold.orders")
        columns = _columns(name[0] or database, name[1])
        rows = [[one["Name"], one.get("Type", ""), one.get("Comment", "")] for one in columns]
        return _result(("col_name", "data_type", "comment"), rows)
    return None


def _show(cursor: Any, database: str) -> Result:
    if cursor.keywords("databases") or cursor.keywords("schemas"):
        pattern = cursor.string() if cursor.keywords("like") else None
        if cursor.at_end():
            return _result(("database_name",), _named(_databases(), pattern))
    elif cursor.keywords("tables"):
        within = cursor.identifier() if _is_in(cursor) else database
        pattern = cursor.string()
        if within and cursor.at_end():
            return _result(("tab_name",), _named(_tables(within.lower()), pattern))
    elif cursor.keywords("columns") and _is_in(cursor):
        name = cursor.dotted_name(2)
        within = cursor.identifier() if _is_in(cursor) else None
        if name and cursor.at_end():
            columns = _columns(within or name[0] or database, name[1])
            return _result(("field",), [[one["Name"]] for one in columns])
    cursor.reset()
    words = [text for kind, text, _, _ in cursor.tokens[:2] if kind == "name"]
    raise refusal(f"{' '.join(words).upper()} is not available here in this form")


def _is_in(cursor: Any) -> bool:
    return bool(cursor.keywords("in") or cursor.keywords("from"))


def _named(names: Iterable[str], pattern: str | None) -> list[list[str]]:
    if pattern is not None:
        alternatives = (".*".join(map(re.escape, one.split("*"))) for one in pattern.lower().split("|"))
        matches = re.compile("|".join(alternatives))
        names = (name for name in names if matches.fullmatch(name))
    return [[name] for name in sorted(names)]


def _result(names: tuple[str, ...], rows: list[list[str]]) -> Result:
    return {"columns": list(names), "column_types": ["string"] * len(names), "rows": rows}


def _databases() -> list[str]:
    from ministack.services import glue

    found = [str(name) for name in list(glue._databases)]
    return [name.lower() for name in found if not _denied("GetDatabases", f"database/{name}")]


def _tables(database: str) -> list[str]:
    from ministack.services import glue

    _check("GetTables", f"database/{database}")
    if database not in {str(name).lower() for name in list(glue._databases)}:
        raise LookupError(f"SCHEMA_NOT_FOUND: Schema '{database}' does not exist")
    keys = [str(key).lower().partition("/") for key in list(glue._tables)]
    return [name for of, _, name in keys if of == database and not _denied("GetTables", f"table/{of}/{name}")]


def _columns(database: str, table: str) -> list[dict[str, str]]:
    from ministack.services import glue

    database, table = database.lower(), table.lower()
    for resource in (f"database/{database}", f"table/{database}/{table}"):
        _check("GetTable", resource)
    found = glue._tables.get(f"{database}/{table}")
    if found is None:
        raise LookupError(f"TABLE_NOT_FOUND: Table '{CATALOG}.{database}.{table}' does not exist")
    return [*((found.get("StorageDescriptor") or {}).get("Columns") or []), *(found.get("PartitionKeys") or [])]


def _arn(resource: str) -> str:
    from ministack.core.responses import get_account_id, get_region

    return f"arn:aws:glue:{get_region()}:{get_account_id()}:{resource}"


def _denied(action: str, resource: str) -> bool:
    return policies.denied(f"glue:{action}", _arn(resource))


def _check(action: str, resource: str) -> None:
    if _denied(action, resource):
        raise PermissionError(f"the caller is not authorized to perform: glue:{action} on resource: {_arn(resource)}")
