"""Checks that the column names of a model, a view or a seed are unique, ignoring case.

DuckDB lets a SELECT return the same column name twice. When such a SELECT becomes a table, a view, a subquery or a CTE,
DuckDB renames the second column: `a`, `a_1`. The top-level SELECT is therefore described on its own, so that its
duplicate names are still visible. A column that was renamed in a subquery is recognized by its name: there is an `a_1`
beside `a`, and `a_1` appears neither in the SQL, nor in the YAML, nor as a column or struct field in a relation that
the SQL reads. SQL whose column names come from data or from a pattern (`pivot`, `columns(…)`) can return any name, so
it is not checked for renamed columns. DuckDB, Glue and Athena all treat `a` and `A` as the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from busco.errors import BuscoError
from busco.lake import types

_RENAMED = re.compile(r"(?s)(.+)[_:]\d+")
# SQL that derives column names from data or from a pattern.
_MAKES_NAMES = re.compile(r"\bpivot(_wider)?\b|\bcolumns\s*\(", re.IGNORECASE)
# Comments, string literals and quoted identifiers.
_NOT_KEYWORDS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
_HINT = "give each column a unique name; with `select *`, exclude the duplicate or use `join … using (…)`"


def check(names: Sequence[str], what: str = "the SQL") -> None:
    """Checks that the names are unique.

    Args:
        what: the subject of the message, such as `the seed's header`.

    Raises:
        BuscoError: some names are not unique; the message lists them.
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.lower(), []).append(name)
    doubled = [found for found in spellings.values() if len(found) > 1]
    if not doubled:
        return
    same = [found[0] for found in doubled if len(set(found)) == 1]
    cased = [" and ".join(dict.fromkeys(found)) for found in doubled if len(set(found)) > 1]
    problems = [", ".join(same)] if same else []
    problems += [f"{pair} (these differ only in case)" for pair in cased]
    raise BuscoError(f"{what} has duplicate columns: {'; '.join(problems)}", _HINT)


def check_header(header: Sequence[str], names: Sequence[str]) -> None:
    """Checks that dbt loads every column of a seed under the name that the header gives it.

    dbt (agate) names an unnamed column after the letter for its position (`a` for the first column), and appends a
    number to a name that an earlier column already has: the header `,a` becomes `a, a_2`.

    Args:
        header: the names in the file; '' for an unnamed column.
        names: the names under which dbt loads the same columns.

    Raises:
        BuscoError: the header contains a name twice, or dbt's name for an unnamed column is also another column's name.
    """
    check([name for name in header if name], "the seed's header")
    both = list(zip(header, names, strict=False))
    chosen = {now.lower(): at for at, (name, now) in enumerate(both, 1) if not name}
    for at, (name, now) in enumerate(both, 1):
        if name and (nameless := chosen.get(name.lower())):
            renamed = f": {name} would become {now}" if name != now else ""
            raise BuscoError(
                f"in the seed's header, column {nameless} has no name, so dbt calls it {name.lower()}, which is "
                f"already the name of column {at}{renamed}",
                f"give column {nameless} a name",
            )


def perhaps_renamed(names: Sequence[str], sql: str, documented: Iterable[str] = ()) -> dict[str, str]:
    """Returns the names that DuckDB may have derived from a duplicate, each mapped to the name it was derived from.

    Args:
        sql: the compiled SQL. Names that occur in it, even in comments, are never in the result; if the SQL derives
            names from data or from a pattern, the result is empty.
        documented: the columns in the YAML, which are never in the result either.
    """
    if _MAKES_NAMES.search(_NOT_KEYWORDS.sub(" ", sql)):
        return {}
    present = {name.lower(): name for name in names}
    meant = {name.lower() for name in documented}
    text = sql.replace('""', '"')
    found = {}
    for name in names:
        made = _RENAMED.fullmatch(name)
        if made is None or made.group(1).lower() not in present or name.lower() in meant:
            continue
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
            found[name] = present[made.group(1).lower()]
    return found


def known_sql(names: Iterable[str], relations: Iterable[tuple[str, str]]) -> str:
    """Returns a query for the names that are columns or struct fields in one of the relations, in lower case.

    Args:
        relations: the schema and name of each relation.
    """
    listed = ", ".join(f"({types.literal(n.lower())}, {types.literal(types.quoted(n.lower()))})" for n in names)
    among = ", ".join(f"({types.literal(schema)}, {types.literal(name)})" for schema, name in relations)
    # in a type's text, a field's name, quoted if necessary, precedes the field's type: STRUCT(a INTEGER, "b c" DATE)
    is_field = " or ".join(
        f"contains(lower(data_type), '{before}' || {spelled} || ' ')"
        for before in ("(", ", ")
        for spelled in ("name", "quoted")
    )
    return (
        f"select distinct name from (values {listed}) as asked (name, quoted), duckdb_columns() "
        f"where (schema_name, table_name) in ({among}) and (lower(column_name) = name or {is_field})"
    )


def check_renamed(renamed: dict[str, str], known: Iterable[str]) -> None:
    """Checks that each name that DuckDB may have made up is, in fact, a name in a relation that the SQL reads.

    Raises:
        BuscoError: some names can only come from DuckDB; the message lists them.
    """
    had = {name.lower() for name in known}
    problems = [f"{name} was a second column named {of}" for name, of in renamed.items() if name.lower() not in had]
    if problems:
        raise BuscoError(
            f"a subquery or CTE in the SQL returns a column name twice, and DuckDB renamed one: {', '.join(problems)}",
            f"{_HINT}; if the column really has this name, write the name in the SQL or list it under the model's "
            "`columns:`",
        )
