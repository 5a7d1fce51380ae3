"""Which columns of a model have values of personal columns: column lineage of its compiled SQL, by SQLGlot.

A column has such values if the expression that makes it reads one: `lower(email)`, `max(email)`, `{'mail': email}`,
through CTEs, subqueries, `*`, aliases, joins and unions. What only selects, groups or orders rows passes no value on:
conditions, join keys, GROUP BY, a window's PARTITION BY and ORDER BY, FILTER. Nor does a number of rows: `count` and
its like. Everything else does, `length(email)` and `email is null` too; an author who knows better says so in the YAML.

SQLGlot follows less than DuckDB can do, and some of it without a word. So what its lineage is known to miss (`_BLIND`,
`_is_blind`) makes the whole of a SQL undecided, as does what it can't parse or resolve; a test compares both with what
DuckDB really gives. All columns of an undecided SQL count as having such values.
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
# it warns of functions and types that it doesn't know; what that means for the lineage is decided here
logging.getLogger("sqlglot").setLevel(logging.ERROR)

# Numbers of rows, whatever they are given.
_COUNTS = (exp.Count, exp.CountIf, exp.ApproxDistinct)
# Whole rows as a value (`select t from t`), columns by their place or by a pattern, names that are made of values, and
# what describes a table by its values.
_BLIND = (exp.TableColumn, exp.PositionalColumn, exp.Columns, exp.Star, exp.Pivot, exp.Summarize, exp.Command)
# What has an identifier as a name; the body of a comprehension has columns.
_NAMING = (
    *(exp.Column, exp.Table, exp.Alias, exp.Aliases, exp.TableAlias, exp.PropertyEQ, exp.Kwarg, exp.Dot, exp.Lambda),
    *(exp.Comprehension, exp.DataType, exp.ColumnDef),
)
# Functions whose second argument is a lambda, beside those that SQLGlot has a class for (DuckDB, "Lambda Functions").
_WITH_LAMBDAS = frozenset(
    {"list_transform", "array_transform", "list_apply", "array_apply", "apply"}
    | {"list_filter", "array_filter", "filter", "list_reduce", "array_reduce", "reduce"}
)
# Functions that read what no column of the SQL has.
_FROM_ELSEWHERE = frozenset({"getvariable", "getenv", "current_setting", "query", "query_table"})


@dataclass(frozen=True)
class Relation:
    """A table or view as SQL may read it: name and DuckDB's type of each column, and those with personal data."""

    columns: tuple[tuple[str, str], ...]
    personal: frozenset[str]

    @cached_property
    def names(self) -> frozenset[str]:
        """Of the columns, in lower case."""
        return frozenset(name.lower() for name, _ in self.columns)

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Of the personal columns, in lower case."""
        return frozenset(name.lower() for name in self.personal)


# Schema and name → the relation.
Relations = Mapping[tuple[str, str], Relation]


class Undecided(Exception):
    """Raised where the lineage of a SQL is not known."""


def passed_on(sql: str, columns: Sequence[str], relations: Relations) -> frozenset[str]:
    """The columns of a SQL that have, or may have, values of personal columns.

    Args:
        sql: one SELECT in DuckDB's dialect.
        columns: the names that DuckDB gives the SQL's columns, in order.
        relations: what it may read. Whatever else it reads counts as personal.
    """
    try:
        found = decided(sql, relations)
    except Undecided:
        return frozenset(columns)
    if len(found) != len(columns) or any(
        name.lower() != other.lower() and not name.startswith("_col_")
        for (name, _), other in zip(found, columns, strict=True)
    ):
        return frozenset(columns)
    return frozenset(name for name, (_, personal) in zip(columns, found, strict=True) if personal)


def decided(sql: str, relations: Relations) -> tuple[tuple[str, bool], ...]:
    """Each column of a SQL and whether it has values of personal columns.

    Names are in lower case, and `_col_0` where the SQL gives none.

    Raises:
        Undecided: the SQL has something of which SQLGlot does not know the lineage.
    """
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
        # whatever it is that SQLGlot fails on, the model is DuckDB's to judge
        raise Undecided from error
    return tuple((name, any(_personal(leaf, relations) for leaf in _leaves(node))) for name, node in nodes.items())


def named_by_values(sql: str, relations: Relations) -> bool:
    """Whether a pivot in the SQL names columns by values of a personal column, or by what can't be judged."""
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
        # its names stand in the SQL
        return False
    columns = [*pivot.expressions, *(pivot.args.get("fields") or ())]
    if not all(_stands_in_sql(one) for one in columns if isinstance(one, exp.In)):
        return True
    asked = [one for one in pivot.expressions if not isinstance(one, exp.In)]
    if pivot.this is None or not asked:
        return False
    query = exp.select(*(exp.alias_(one.copy(), f"c{at}") for at, one in enumerate(asked)))
    query = query.from_(pivot.this.copy())
    ctes = _in_scope(pivot, statement)
    if len({cte.alias.lower() for cte in ctes}) < len(ctes):
        return True
    for cte in ctes:
        query = query.with_(cte.alias, as_=cte.this.copy())
    try:
        return any(personal for _, personal in decided(query.sql(_DIALECT), relations))
    except Undecided:
        return True


def _stands_in_sql(values: exp.In) -> bool:
    """Whether a pivot's list of values is one, `in ('a', 'b')`. An ENUM type, `in mood`, may be made of any values."""
    walked = [node for one in values.expressions for node in one.walk()]
    return bool(walked) and not any(isinstance(node, exp.Query | exp.Star | exp.Func) for node in walked)


def _in_scope(pivot: exp.Pivot, statement: exp.Expr) -> list[exp.CTE]:
    """The CTEs that a pivot may read, those of the queries around it first."""
    around: list[exp.Expr] = []
    node: exp.Expr | None = pivot
    while node is not None:
        around.insert(0, node)
        node = node.parent
    found: list[exp.CTE] = []
    for owner in around:
        for clause in statement.find_all(exp.With):
            if clause.parent is owner:
                # one that holds the pivot reads those before it
                before = itertools.takewhile(lambda cte: all(cte is not one for one in around), clause.expressions)
                found += before
    return found


def _counts_as_numbers(query: exp.Expr) -> exp.Query:
    """The query with a number in place of each count, and without what only selects or orders rows within an
    expression."""

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
    """Takes the database off the names of tables, of which there is one.

    Raises:
        Undecided: a table's columns are renamed by their place, a CTE reads itself, or a union goes by names.
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
    """The columns of the relations that a query names."""
    known: dict[str, Any] = {}
    for table in query.find_all(exp.Table):
        key = (table.db.lower(), table.name.lower())
        if relation := relations.get(key):
            known.setdefault(key[0], {})[key[1]] = {name.lower(): kind for name, kind in relation.columns}
    return MappingSchema(known, dialect=_DIALECT)


def _is_blind(node: exp.Expr) -> bool:
    """Whether SQLGlot's lineage looks past a part of the SQL."""
    if isinstance(node, exp.Anonymous | exp.AnonymousAggFunc):
        # of a macro, nobody knows what it reads
        return node.name.lower() not in functions() - _FROM_ELSEWHERE
    if isinstance(node, exp.Dot):
        # `trim(email).upper()`: what stands before a call's dot is the call's first argument
        return isinstance(node.this, exp.Identifier) or not isinstance(node.expression, exp.Identifier)
    if isinstance(node, exp.Lambda):
        return not _is_list_function_s(node)
    if isinstance(node, exp.Identifier):
        return not _is_name(node)
    if isinstance(node, exp.DataType) and node.this == exp.DataType.Type.USERDEFINED:
        # an ENUM has values, which `enum_range(null::mood)` gives
        return True
    return isinstance(node, _BLIND)


def _is_list_function_s(node: exp.Lambda) -> bool:
    """Whether `x -> …` is a function for the elements of a list. Anywhere else DuckDB takes the arrow for JSON's, which
    reads the column `x`."""
    parent = node.parent
    if isinstance(parent, exp.Transform | exp.ArrayFilter):
        return node.arg_key == "expression"
    return isinstance(parent, exp.Anonymous) and parent.name.lower() in _WITH_LAMBDAS and node.index == 1


def _is_name(node: exp.Identifier) -> bool:
    """Whether an identifier names something where SQLGlot knows it for a name. Where a value is expected, it is a
    column that SQLGlot has lost, unless it is the parameter of a lambda or comprehension around it."""
    if isinstance(node.parent, _NAMING) or (isinstance(node.parent, exp.Window) and _is_window_s_name(node)):
        return True
    around = node.parent
    while around is not None:
        if isinstance(around, exp.Lambda) and node.name.lower() in {one.name.lower() for one in around.expressions}:
            return True
        if isinstance(around, exp.Comprehension) and node.name.lower() == around.expression.name.lower():
            return True
        around = around.parent
    return False


def _is_window_s_name(node: exp.Identifier) -> bool:
    return node.arg_key == "alias" or (node.parent is not None and node.parent.arg_key == "windows")


def _leaves(node: Node) -> list[Node]:
    return [one for one in node.walk() if not one.downstream]


def _personal(leaf: Node, relations: Relations) -> bool:
    """Whether the end of a column's lineage is a personal column, or not known."""
    end = leaf.expression
    if isinstance(end, exp.Table) and isinstance(end.this, exp.Identifier):
        relation = relations.get((end.db.lower(), end.name.lower()))
        name = exp.to_column(leaf.name, dialect=_DIALECT).name.lower()
        return relation is None or name in relation.hidden or name not in relation.names
    if isinstance(end, exp.Table):
        # a table function: those that read files, or the catalog, are no series
        return not (isinstance(end.this, exp.GenerateSeries) and _is_constant(end))
    if isinstance(leaf.source, exp.UDTF):
        return not _is_constant(leaf.source)
    # a projection without columns
    return not (leaf.source.find(exp.Select) and _is_constant(end) and not isinstance(end, exp.Identifier))


def _is_constant(node: exp.Expr) -> bool:
    return not any(isinstance(one, exp.Column | exp.Query | exp.Placeholder) for one in node.walk())
