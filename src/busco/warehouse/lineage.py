"""Determines which columns of a model contain personal data, from SQLGlot's column lineage of the model's compiled SQL.

A column contains personal data if its expression reads a personal column, directly or through CTEs, subqueries, `*`,
aliases, joins and unions: `lower(email)`, `max(email)`, `{'mail': email}`. Clauses that only select, group or order
rows pass no values on: conditions, join keys, GROUP BY, a window's PARTITION BY and ORDER BY, FILTER. Row counts
(`count` and similar functions) pass none on either. Everything else passes values on, including `length(email)` and
`email is null`; a model's author who knows better can override the result in the YAML.

SQLGlot doesn't follow everything that DuckDB supports, and sometimes misses a column silently. So a query is undecided
if it contains anything that SQLGlot's lineage is known to miss (`_BLIND`, `_is_blind`) or that SQLGlot can't parse or
resolve. All columns of an undecided query count as personal. A test compares the columns of decided queries with
DuckDB's actual results.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlglot import MappingSchema, exp, parse
from sqlglot.lineage import Node, lineage
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import build_scope

from busco.warehouse.scope import functions

_DIALECT = "duckdb"
# SQLGlot warns about unknown functions and types; this module decides what they mean for the lineage
logging.getLogger("sqlglot").setLevel(logging.ERROR)

# Row counts, regardless of their arguments.
_COUNTS = (exp.Count, exp.CountIf, exp.ApproxDistinct)
# What SQLGlot's lineage can't follow: whole rows as values (`select t from t`), columns by position or pattern, column
# names derived from values, and summaries of a table's values.
_BLIND = (exp.TableColumn, exp.PositionalColumn, exp.Columns, exp.Star, exp.Pivot, exp.Summarize, exp.Command)
# Expressions in which an identifier is a name. (SQLGlot parses the identifiers in a comprehension's body as columns.)
_NAMING = (
    *(exp.Column, exp.Table, exp.Alias, exp.Aliases, exp.TableAlias, exp.PropertyEQ, exp.Kwarg, exp.Dot, exp.Lambda),
    *(exp.Comprehension, exp.DataType, exp.ColumnDef),
)
# Functions whose second argument is a lambda and for which SQLGlot has no class (DuckDB, "Lambda Functions").
_WITH_LAMBDAS = frozenset(
    {"list_transform", "array_transform", "list_apply", "array_apply", "apply"}
    | {"list_filter", "array_filter", "filter", "list_reduce", "array_reduce", "reduce"}
)
# Functions that read values from somewhere other than the query's columns.
_FROM_ELSEWHERE = frozenset({"getvariable", "getenv", "current_setting", "query", "query_table"})


@dataclass(frozen=True)
class Relation:
    """A table or view that SQL can read: the name and DuckDB type of each column, and which columns are personal."""

    columns: tuple[tuple[str, str], ...]
    personal: frozenset[str]

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the columns, in lower case."""
        return frozenset(name.lower() for name, _ in self.columns)

    @cached_property
    def hidden(self) -> frozenset[str]:
        """The names of the personal columns, in lower case."""
        return frozenset(name.lower() for name in self.personal)


# Schema and name → the relation.
Relations = Mapping[tuple[str, str], Relation]


class Undecided(Exception):
    """The lineage of a query can't be determined."""


@dataclass(frozen=True)
class Traced:
    """A column of a query: its name in lower case, whether it contains values of personal columns, and its origins.

    `origins` are the schema, relation and name of each column that its values are computed from, in lower case and
    sorted. A column without any, such as a constant or a count, has none.
    """

    name: str
    is_personal: bool
    origins: tuple[tuple[str, str, str], ...]


def passed_on(found: Sequence[Traced] | None, columns: Sequence[str]) -> frozenset[str]:
    """Returns the columns of a query that contain, or may contain, values of personal columns.

    Args:
        found: the query's columns as `traced` returns them; None if the query is undecided.
        columns: the names of the query's columns according to DuckDB, in order.
    """
    if (
        found is None
        or len(found) != len(columns)
        or any(
            name.lower() != one.name and not one.name.startswith("_col_")
            for name, one in zip(columns, found, strict=True)
        )
    ):
        return frozenset(columns)
    return frozenset(name for name, one in zip(columns, found, strict=True) if one.is_personal)


def traced(sql: str, relations: Relations) -> tuple[Traced, ...] | None:
    """Returns a query's columns; None if SQLGlot can't determine the lineage of part of the query."""
    try:
        return trace(sql, relations)
    except Undecided:
        return None


def trace(sql: str, relations: Relations) -> tuple[Traced, ...]:
    """Returns a query's columns, in order; unnamed ones are called `_col_0`, `_col_1`, and so on.

    Args:
        sql: one SELECT in DuckDB's dialect.
        relations: the relations that the query can read. Anything else that it reads counts as personal.

    Raises:
        Undecided: SQLGlot can't determine the lineage of part of the query.
    """
    found = []
    for name, node in _lineage(sql, relations).items():
        leaves = [(leaf, _origin(leaf)) for leaf in _leaves(node)]
        origins = {origin for _, origin in leaves if origin is not None}
        personal = any(_personal(leaf, origin, relations) for leaf, origin in leaves)
        found.append(Traced(name.lower(), personal, tuple(sorted(origins))))
    return tuple(found)


def _origin(leaf: Node) -> tuple[str, str, str] | None:
    """Returns the schema, relation and name of the column that a leaf of a lineage reads; None if it reads none."""
    end = leaf.expression
    if isinstance(end, exp.Table) and isinstance(end.this, exp.Identifier):
        return end.db.lower(), end.name.lower(), exp.to_column(leaf.name, dialect=_DIALECT).name.lower()
    return None


def _lineage(sql: str, relations: Relations) -> dict[str, Node]:
    """Returns SQLGlot's lineage of each column of a query, by the column's name, in order."""
    try:
        statements = parse(sql, dialect=_DIALECT)
        if len(statements) != 1 or not isinstance(statements[0], exp.Query):
            raise Undecided
        query = _counts_as_numbers(statements[0])
        _check_tables(query)
        schema = _schema(query, relations)
        query = qualify(query, schema=schema, dialect=_DIALECT, identify=False)
        if any(_is_blind(node) for node in query.walk()):
            raise Undecided
        scope = build_scope(query)
        if scope is None:
            raise Undecided
        nodes = lineage(None, query, schema, dialect=_DIALECT, scope=scope, copy=False, trim_selects=False)
        if list(nodes) != [select.alias_or_name for select in query.selects]:
            raise Undecided
    except Undecided:
        raise
    except Exception as error:
        # a failure of SQLGlot must not fail the model: only DuckDB decides whether the SQL is valid
        raise Undecided from error
    return dict(nodes)


def named_by_values(sql: str, relations: Relations) -> bool:
    """Returns whether a pivot in the SQL names, or may name, columns after the values of a personal column."""
    if "pivot" not in sql.lower():
        return False
    try:
        statements = [one for one in parse(sql, dialect=_DIALECT) if one is not None]
    except Exception:
        return True
    pivots = [(one, pivot) for one in statements for pivot in one.find_all(exp.Pivot)]
    return any(_is_named_by_values(pivot, statement, relations) for statement, pivot in pivots)


def _is_named_by_values(pivot: exp.Pivot, statement: exp.Expr, relations: Relations) -> bool:
    if pivot.args.get("unpivot"):
        # the column names of an unpivot are written in the SQL
        return False
    columns = [*pivot.expressions, *(pivot.args.get("fields") or ())]
    if not all(_is_literal_list(one) for one in columns if isinstance(one, exp.In)):
        return True
    unlisted = [one for one in pivot.expressions if not isinstance(one, exp.In)]
    if pivot.this is None or not unlisted:
        return False
    query = exp.select(*(exp.alias_(one.copy(), f"c{at}") for at, one in enumerate(unlisted)))
    query = query.from_(pivot.this.copy())
    ctes = _in_scope(pivot, statement)
    if len({cte.alias.lower() for cte in ctes}) < len(ctes):
        return True
    for cte in ctes:
        query = query.with_(cte.alias, as_=cte.this.copy())
    try:
        return any(one.is_personal for one in trace(query.sql(_DIALECT), relations))
    except Undecided:
        return True


def _is_literal_list(values: exp.In) -> bool:
    """Whether a pivot's values are listed in the SQL, `in ('a', 'b')`. An ENUM, `in mood`, can have any values."""
    walked = [node for one in values.expressions for node in one.walk()]
    return bool(walked) and not any(isinstance(node, exp.Query | exp.Star | exp.Func) for node in walked)


def _in_scope(pivot: exp.Pivot, statement: exp.Expr) -> list[exp.CTE]:
    """Returns the CTEs that a pivot can read, starting with those of the outermost query."""
    around: list[exp.Expr] = []
    node: exp.Expr | None = pivot
    while node is not None:
        around.insert(0, node)
        node = node.parent
    found: list[exp.CTE] = []
    for owner in around:
        for clause in statement.find_all(exp.With):
            if clause.parent is owner:
                # a pivot inside a CTE can read only the CTEs before that one
                before = itertools.takewhile(lambda cte: all(cte is not one for one in around), clause.expressions)
                found += before
    return found


def _counts_as_numbers(query: exp.Expr) -> exp.Query:
    """Returns the query with each count replaced with a number, and without the parts of expressions that only select,
    group or order rows."""

    def plain(node: exp.Expr) -> exp.Expr:
        if isinstance(node, _COUNTS):
            return exp.Literal.number(1)
        if isinstance(node, exp.Filter):
            return plain(node.this)
        if isinstance(node, exp.Window):
            node.set("partition_by", None)
            node.set("order", None)
        return node

    found = query.transform(plain, copy=False)
    if not isinstance(found, exp.Query):
        raise Undecided
    return found


def _check_tables(query: exp.Query) -> None:
    """Checks that SQLGlot can follow the query's tables. Removes the database from their names, as there is only one.

    Raises:
        Undecided: a table alias renames columns by position, a CTE is recursive, or a union matches columns by name.
    """
    for node in query.walk():
        if isinstance(node, exp.Table):
            if isinstance(node.this, exp.Identifier) and node.alias_column_names:
                raise Undecided
            node.set("catalog", None)
        elif (isinstance(node, exp.With) and node.recursive) or (
            isinstance(node, exp.SetOperation) and any(node.args.get(key) for key in ("by_name", "side", "kind", "on"))
        ):
            raise Undecided


def _schema(query: exp.Query, relations: Relations) -> MappingSchema:
    """Returns the columns of the relations that a query names."""
    known: dict[str, Any] = {}
    for table in query.find_all(exp.Table):
        key = (table.db.lower(), table.name.lower())
        if relation := relations.get(key):
            known.setdefault(key[0], {})[key[1]] = {name.lower(): kind for name, kind in relation.columns}
    return MappingSchema(known, dialect=_DIALECT)


def _is_blind(node: exp.Expr) -> bool:
    """Whether SQLGlot's lineage would miss what this part of the query reads."""
    if isinstance(node, exp.Anonymous | exp.AnonymousAggFunc):
        # a function that isn't DuckDB's own may be a macro, which can read anything
        return node.name.lower() not in functions() - _FROM_ELSEWHERE
    if isinstance(node, exp.Dot):
        # in `trim(email).upper()`, what precedes the dot is the call's first argument
        return isinstance(node.this, exp.Identifier) or not isinstance(node.expression, exp.Identifier)
    if isinstance(node, exp.Lambda):
        return not _is_list_lambda(node)
    if isinstance(node, exp.Identifier):
        return not _is_name(node)
    if isinstance(node, exp.DataType) and node.this == exp.DataType.Type.USERDEFINED:
        # an ENUM has values, which `enum_range(null::mood)` returns
        return True
    return isinstance(node, _BLIND)


def _is_list_lambda(node: exp.Lambda) -> bool:
    """Whether `x -> …` is a lambda over a list's elements. Elsewhere, DuckDB parses `->` as the JSON operator, which
    reads the column `x`."""
    parent = node.parent
    if isinstance(parent, exp.Transform | exp.ArrayFilter):
        return node.arg_key == "expression"
    return isinstance(parent, exp.Anonymous) and parent.name.lower() in _WITH_LAMBDAS and node.index == 1


def _is_name(node: exp.Identifier) -> bool:
    """Whether SQLGlot parsed an identifier as a name. An identifier that is used as a value is a column that SQLGlot
    overlooks, unless it is a parameter of an enclosing lambda or comprehension."""
    if isinstance(node.parent, _NAMING) or (isinstance(node.parent, exp.Window) and _is_window_name(node)):
        return True
    around = node.parent
    while around is not None:
        if isinstance(around, exp.Lambda) and node.name.lower() in {one.name.lower() for one in around.expressions}:
            return True
        if isinstance(around, exp.Comprehension) and node.name.lower() == around.expression.name.lower():
            return True
        around = around.parent
    return False


def _is_window_name(node: exp.Identifier) -> bool:
    return node.arg_key == "alias" or (node.parent is not None and node.parent.arg_key == "windows")


def _leaves(node: Node) -> list[Node]:
    return [one for one in node.walk() if not one.downstream]


def _personal(leaf: Node, origin: tuple[str, str, str] | None, relations: Relations) -> bool:
    """Whether a leaf of a column's lineage, which reads this column if any, is a personal column or unknown."""
    end = leaf.expression
    if origin is not None:
        schema, table, name = origin
        relation = relations.get((schema, table))
        return relation is None or name in relation.hidden or name not in relation.names
    if isinstance(end, exp.Table):
        # a table function: only a series of constants is harmless; other functions read files or the catalog
        return not (isinstance(end.this, exp.GenerateSeries) and _is_constant(end))
    if isinstance(leaf.source, exp.UDTF):
        return not _is_constant(leaf.source)
    # of all other leaves, only a projection without columns is harmless
    return not (leaf.source.find(exp.Select) and _is_constant(end) and not isinstance(end, exp.Identifier))


def _is_constant(node: exp.Expr) -> bool:
    return not any(isinstance(one, exp.Column | exp.Query | exp.Placeholder) for one in node.walk())
