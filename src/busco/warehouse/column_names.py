"""Column names: each stands once in what a model, a view or a seed gives, whatever its case.

DuckDB lets a SELECT give a name twice. Where such a SELECT becomes a table, a view, a subquery or a CTE, it renames the
second column: `a`, `a_1`. So the names are asked of the bare SELECT, where they are still the same. What was renamed
further inside is found by its name: `a_1` beside `a`, where neither the SQL, nor the YAML, nor a relation that is read
has the name `a_1`, as a column or as a struct's field. SQL whose names come from data or from a pattern (`pivot`,
`columns(…)`) can give any name, so it is not checked for renamed columns. DuckDB, Glue and Athena all take `a` and `A`
for one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from busco.errors import BuscoError
from busco.lake import types

_RENAMED = re.compile(r"(?s)(.+)[_:]\d+")
# What makes names of data or by a pattern.
_MAKES_NAMES = re.compile(r"\bpivot(_wider)?\b|\bcolumns\s*\(", re.IGNORECASE)
# Comments, string literals and quoted identifiers.
_NOT_KEYWORDS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
_HINT = "give each column a name of its own; with `select *`, exclude what is there twice or use `join … using (…)`"


def check(names: Sequence[str], what: str = "the SQL") -> None:
    """Checks that no name is there twice.

    Args:
        what: who gives the names, as the message calls it.

    Raises:
        BuscoError: with every name that is.
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.lower(), []).append(name)
    doubled = [found for found in spellings.values() if len(found) > 1]
    if not doubled:
        return
    same = [found[0] for found in doubled if len(set(found)) == 1]
    cased = [" and ".join(dict.fromkeys(found)) for found in doubled if len(set(found)) > 1]
    problems = [f"{', '.join(same)} more than once"] if same else []
    problems += [f"{pair}, which differ by case only" for pair in cased]
    raise BuscoError(f"{what} gives {'; '.join(problems)}", _HINT)


def check_header(header: Sequence[str], names: Sequence[str]) -> None:
    """Checks that dbt loads every column of a seed under the name that the header gives it.

    dbt (agate) calls a column without a name by the letter of its place, `a` for the first, and adds a number to a name
    that an earlier column has: `,a` becomes `a, a_2`.

    Args:
        header: the names in the file, '' where there is none.
        names: the names under which dbt loads the same columns.

    Raises:
        BuscoError: the header gives a name twice, or the name that dbt chose for a column is another column's.
    """
    check([name for name in header if name], "the seed's header")
    both = list(zip(header, names, strict=False))
    chosen = {now.lower(): place for place, (name, now) in enumerate(both, 1) if not name}
    for place, (name, now) in enumerate(both, 1):
        if name and (nameless := chosen.get(name.lower())):
            renamed = f": {name} would become {now}" if name != now else ""
            raise BuscoError(
                f"in the seed's header, column {nameless} has no name, so dbt calls it {name.lower()}, which is the "
                f"name of column {place}{renamed}",
                f"give column {nameless} a name",
            )


def perhaps_renamed(names: Sequence[str], sql: str, documented: Iterable[str] = ()) -> dict[str, str]:
    """Names that DuckDB may have made of another that is there too: each with that other one.

    Args:
        sql: the compiled SQL. Names in it, comments included, are never in the result; if it takes names from data or
            makes them by a pattern, the result is empty.
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
    """A query for those of the names, in lower case, that a relation has as a column or as a field of a struct.

    Args:
        relations: schema and name of each.
    """
    listed = ", ".join(f"({types.literal(n.lower())}, {types.literal(types.quoted(n.lower()))})" for n in names)
    among = ", ".join(f"({types.literal(schema)}, {types.literal(name)})" for schema, name in relations)
    # a type's text has a field's name, quoted where it must be, before the field's type: STRUCT(a INTEGER, "b c" DATE)
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
    """Checks the names that may have been renamed against those which the relations that are read have.

    Raises:
        BuscoError: with each name that nobody but DuckDB can have given.
    """
    had = {name.lower() for name in known}
    problems = [f"{name} is a second column {of}" for name, of in renamed.items() if name.lower() not in had]
    if problems:
        raise BuscoError(
            f"a subquery or CTE of the SQL gives a column twice, and DuckDB renamed it: {', '.join(problems)}",
            f"{_HINT}; if the column is right under this name, write the name in the SQL, or list it under the model's "
            "`columns:`",
        )
