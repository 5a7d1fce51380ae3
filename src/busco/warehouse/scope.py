"""Limits a node's SQL to the tables that the node declares, and keeps it from replacing tables and functions.

All visible tables exist as DuckDB views, which every node of a process can read. But the platform relies on a node's
declarations (`ref()`, `source()`) to determine whether it reads personal data, which versions it was made from, and
what must be built first. SQL that names any other table is therefore refused. So is SQL that would replace a table or
one of DuckDB's functions, because later models and tests would use the replacement.

Objects that a hook creates can be read by nodes that do not declare them. If the hook's node reads personal data, every
node that names such an object counts as reading personal data, too.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from itertools import pairwise

import duckdb

from busco.project import Project, table_name
from busco.warehouse.tokens import Token, names, word

Relation = tuple[str, str]

# the default schema, and the database that contains all tables
_MAIN, _DATABASE = "main", "memory"
# words between a statement's first word and the kind of object
_BETWEEN = frozenset({"or", "replace", "temp", "temporary", "unique", "recursive"})
_MADE = frozenset({"table", "view", "macro", "function", "type", "sequence"})
# the suffixes that dbt adds to the name of a view that it is creating and of a view that it has replaced
_OF_DBT = re.compile(r"__dbt_(?:tmp|backup)$")
# words that precede a table name
_BEFORE_TABLES = frozenset(
    {"from", "join", "describe", "summarize", "show", "pivot", "pivot_wider", "unpivot", "table"}
)
# functions that return variables, whose values may be personal
_VARIABLES = frozenset({"getvariable", "duckdb_variables"})


class Scope:
    """Checks the names in the SQL of a project's nodes, and tracks the objects that hooks create.

    Args:
        hides: returns whether a node reads personal data, according to its declarations.
    """

    def __init__(self, project: Project, hides: Callable[[str], bool]) -> None:
        self.project, self.hides = project, hides
        self._lock = threading.Lock()
        # the names of objects created by nodes that read personal data
        self._made: set[str] = set()
        # nodes that are creating their own view or seed now, and nodes that have ever started to do so
        self._making: set[str] = set()
        self._began: set[str] = set()

    # -- a node's own relation ----------------------------------------------------------------------------------------

    def begin(self, node: str) -> None:
        """Allows a node's SQL to create the node's relation, until `end` is called or dbt has put the view in place.

        Only the first call for a node has an effect.
        """
        with self._lock:
            if node not in self._began:
                self._began.add(node)
                self._making.add(node)

    def end(self, node: str) -> None:
        with self._lock:
            self._making.discard(node)

    # -- the rules ----------------------------------------------------------------------------------------------------

    def refused(self, node: str, statement: Sequence[Token]) -> tuple[Token, str] | None:
        """Returns the token at which a node's statement is refused, and why; None if it isn't refused."""
        if found := self._target_refused(node, statement):
            return found
        declared = self._declared(node)
        if declared is None:
            return None
        for index, name in _tables(statement, self._named(_MAIN)):
            if name in self._relations and name not in declared:
                reason = (
                    f"it names {'.'.join(name)}, which {node} does not declare; write {self._call(name)} instead, "
                    f"or declare it in a comment: -- depends_on: {{{{ {self._call(name)} }}}}"
                )
                return statement[index], reason
        return None

    def is_personal(self, statement: Sequence[Token]) -> bool:
        """Whether a statement's results may contain personal data, because the statement names a table that contains or
        is derived from such data, or an object created by a node that reads it. Column names and types are not data."""
        hidden = self._made_names() | self._views
        return any(
            any(pair in self._personal for pair in _pairs(parts)) or not hidden.isdisjoint(parts)
            for index, parts in names(statement)
            if not index or statement[index - 1].name != "describe"
        )

    def record(self, node: str, statement: Sequence[Token]) -> None:
        """Records what a statement creates or changes, if its node reads personal data."""
        found = target(statement)
        if found is not None and self._is_platforms(_schema_and_name(found[3])):
            # dbt is creating a view or seed, which the project's declarations already cover
            return
        made = set(_made(statement))
        if made and self.hides(node):
            with self._lock:
                self._made |= made

    def names_hook_objects(self, node: str, statement: Sequence[Token]) -> bool:
        """Whether a statement of `node` names an object created by a node that reads personal data, or refers to a view
        over personal data by its name alone, without declaring that view."""
        declared = {name for schema, name in self._declared(node) or () if schema == _MAIN}
        hidden = self._made_names() | (self._views - declared)
        return any(not hidden.isdisjoint(parts) for _, parts in names(statement))

    def _target_refused(self, node: str, statement: Sequence[Token]) -> tuple[Token, str] | None:
        found = target(statement)
        if found is None or word(statement[0]) not in ("create", "drop", "alter"):
            return None
        kind, is_temporary, index, parts = found
        token = statement[min(index, len(statement) - 1)]
        if kind == "schema":
            if word(statement[0]) == "drop" and {parts[-1]} & (self._schemas | {_MAIN}):
                return token, f"the schema {parts[-1]} contains the platform's tables"
            return None
        if kind not in ("table", "view") or (is_temporary and len(parts) == 1):
            return None
        touched = {_schema_and_name(parts)}
        if word(statement[0]) == "alter" and (renamed := _renamed(statement)):
            touched.add((_schema_and_name(parts)[0], renamed))
        theirs = {one for one in touched if self._is_platforms(one)}
        if not theirs or self._is_dbts_own(node, word(statement[0]), touched):
            return None
        name = ".".join(sorted(theirs)[0])
        return token, (
            f"{name} is reserved for the platform's tables, which hooks and Jinja must not change; create a temporary "
            f"table or view, or one with a different name in the schema {_MAIN}"
        )

    def _is_dbts_own(self, node: str, verb: str, touched: set[Relation]) -> bool:
        """Whether a statement is one that dbt itself runs to create the node's relation."""
        if node not in self.project.nodes:
            return False
        schema, name = _split(table_name(self.project.nodes[node]))
        if any(_final(one) != (schema, name) for one in touched):
            return False
        if verb == "drop" and (schema, name) not in touched:
            return True
        with self._lock:
            is_making = node in self._making
            if verb == "alter" and (schema, f"{name}__dbt_tmp") in touched:
                # the new view is now in place
                self._making.discard(node)
        return is_making

    def _is_platforms(self, name: Relation) -> bool:
        return name[0] in self._schemas or _final(name) in self._relations

    # -- the project's declarations -----------------------------------------------------------------------------------

    def _declared(self, node: str) -> frozenset[Relation] | None:
        """Returns the relations that `node` may name; None if `node` is not in the project."""
        project = self.project
        if node in project.unit_tests:
            model = project.unit_tests[node]
            return self._reads(node) | self._reads(model) | {_split(table_name(project.node(model)))}
        if node not in project.nodes:
            return None
        own = project.nodes[node]
        return self._reads(node) | ({_split(table_name(own))} if own["resource_type"] in ("model", "seed") else set())

    def _reads(self, node: str) -> frozenset[Relation]:
        return frozenset((schema.lower(), name.lower()) for schema, name in self.project.relations_read(node))

    @cached_property
    def _relations(self) -> dict[Relation, str]:
        """Each table and view of the project → its unique id."""
        project = self.project
        return {
            _split(table_name(project.node(uid))): uid
            for uid in (*project.sources, *project.nodes)
            if uid in project.sources
            or (
                project.nodes[uid]["resource_type"] in ("model", "seed")
                and project.nodes[uid]["config"]["materialized"] != "ephemeral"
            )
        }

    @cached_property
    def _schemas(self) -> frozenset[str]:
        """The schemas that are reserved for the platform's tables and views."""
        return frozenset(schema for schema, _ in self._relations) - {_MAIN}

    @cached_property
    def _personal(self) -> frozenset[Relation]:
        return frozenset(name for name, uid in self._relations.items() if self.project.reads_pii(uid))

    @cached_property
    def _views(self) -> frozenset[str]:
        """The names of views over personal data that can be read without a schema."""
        return frozenset(name for schema, name in self._personal if schema == _MAIN)

    def _made_names(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._made)

    def _named(self, schema: str) -> frozenset[str]:
        return frozenset(name for one, name in self._relations if one == schema)

    def _call(self, name: Relation) -> str:
        node = self.project.node(self._relations[name])
        if self._relations[name] in self.project.sources:
            return f"source('{node['source_name']}', '{node['name']}')"
        return f"ref('{node['name']}')"


def own_problem(statement: Sequence[Token]) -> tuple[Token, str] | None:
    """Returns the token at which a statement is refused in any node, and why; None if it isn't refused."""
    found = target(statement)
    if found is None or word(statement[0]) != "create":
        return None
    kind, _, index, parts = found
    token = statement[min(index, len(statement) - 1)]
    if kind in ("macro", "function") and parts[-1] in functions():
        reason = (
            f"the macro would replace DuckDB's function {parts[-1]}, even in tests and in the platform's own "
            "statements; give the macro another name"
        )
        return token, reason
    if kind == "type":
        words = [word(one) for one in statement]
        at = next((at for at in range(index, len(words) - 1) if words[at : at + 2] == ["enum", "("]), None)
        if at is not None and at + 2 < len(words) and statement[at + 2].kind != "string_const" and words[at + 2] != ")":
            return token, "an enum can't be created from a query; list its values in the SQL: enum ('a', 'b')"
    return None


def target(statement: Sequence[Token]) -> tuple[str, bool, int, tuple[str, ...]] | None:
    """Returns what a statement creates, drops or alters: the kind of object, whether it is temporary, the index of the
    name's first token, and the name, which is `('',)` if it can't be read. Returns None for any other statement."""
    if not statement or word(statement[0]) not in ("create", "drop", "alter"):
        return None
    index = 1
    while index < len(statement) and word(statement[index]) in _BETWEEN:
        index += 1
    if index >= len(statement):
        return None
    is_temporary = any(word(one) in ("temp", "temporary") for one in statement[1:index])
    kind = word(statement[index])
    index += 1
    for words in (("if", "not", "exists"), ("if", "exists")):
        if tuple(word(one) for one in statement[index : index + len(words)]) == words:
            index += len(words)
    found = next((parts for at, parts in names(statement[index:]) if at == 0), ("",))
    return kind, is_temporary, index, found


def _made(statement: Sequence[Token]) -> Iterator[str]:
    """Yields the names of the objects that a statement creates or writes values to."""
    words = [word(one) for one in statement]
    if words[:1] == ["set"]:
        yield from _VARIABLES
    elif (found := target(statement)) is not None:
        if found[0] in _MADE and words[0] != "drop":
            yield found[3][-1]
        if renamed := _renamed(statement):
            yield renamed
    elif words[:1] in (["insert"], ["merge"], ["update"]):
        at = words.index("into") + 1 if "into" in words else 1
        yield from (parts[-1] for index, parts in names(statement[at:]) if index == 0)


def _renamed(statement: Sequence[Token]) -> str:
    """Returns the new name in `alter … rename to name`; '' for any other statement."""
    words = [word(one) for one in statement]
    for at in range(1, len(words) - 2):
        if words[at : at + 2] == ["rename", "to"]:
            return words[at + 2]
    return ""


def _tables(statement: Sequence[Token], in_main: frozenset[str]) -> Iterator[tuple[int, Relation]]:
    """Yields possible table names in a statement, with their positions: any two adjacent parts of a name, and a
    one-part name where a table is expected and no CTE has that name."""
    words, found = [word(one) for one in statement], target(statement)
    made = found[2] if found else 0
    for index, parts in names(statement):
        yield from ((index, pair) for pair in _pairs(parts))
        # the word `table` before the name in `create temp table name` is not the query `table name`
        is_table = len(parts) == 1 and parts[0] in in_main and index != made and words[index - 1] in _BEFORE_TABLES
        if is_table and not any(_is_cte(words[at : at + 4], parts[0]) for at in range(len(words))):
            yield index, (_MAIN, parts[0])


def _is_cte(words: list[str], name: str) -> bool:
    """Whether four words are the start of the CTE `name`: `with name as (`, `, name (`."""
    before, found, after, then = (*words, "", "", "", "")[:4]
    if before not in ("with", "recursive", ",") or found != name:
        return False
    return after == "(" or (after == "as" and then in ("(", "not", "materialized"))


def _pairs(parts: tuple[str, ...]) -> Iterator[Relation]:
    for before, after in pairwise(parts):
        yield before, after
        if before == _DATABASE:
            yield _MAIN, after


def _schema_and_name(parts: tuple[str, ...]) -> Relation:
    """Returns the schema and name of a relation that is written with or without its schema."""
    if len(parts) == 1 or (len(parts) == 2 and parts[0] == _DATABASE):
        return _MAIN, parts[-1]
    return parts[-2], parts[-1]


def _final(name: Relation) -> Relation:
    """Returns the final relation for a name that dbt uses while it creates or replaces the relation."""
    return name[0], _OF_DBT.sub("", name[1])


def _split(name: str) -> Relation:
    schema, _, table = name.lower().partition(".")
    return schema, table


@cache
def functions() -> frozenset[str]:
    """Returns the names of DuckDB's own functions and operators, in lower case."""
    with duckdb.connect() as connection:
        found = connection.execute("select distinct lower(function_name) from duckdb_functions()").fetchall()
    return frozenset(str(name) for (name,) in found)
