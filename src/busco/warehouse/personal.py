"""Determines which columns contain personal data: those marked in the YAML and those derived from them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from busco.errors import BuscoError
from busco.lake.records import Version
from busco.project import Project, table_name
from busco.refusals import personal_partition
from busco.warehouse.redact import Redactor, engine_words

if TYPE_CHECKING:
    from busco.warehouse.lineage import Relation, Traced

Given = Sequence[tuple[str, str]]


# A word in a name: a sequence of letters and digits.
_PART = re.compile(r"[^\W_]+")
_SHORT_NUMBER = re.compile(r"\d{1,2}")


class Personal:
    """Tracks, for one dbt process, the personal data in the tables and views that its models read.

    Args:
        version: returns a table's visible version.
        redactor: determines which nodes' SQL is built from query results.
    """

    def __init__(
        self, project: Project, version: Callable[[str], Version | None], redactor: Redactor | None = None
    ) -> None:
        self.project, self.version, self._redactor = project, version, redactor or Redactor(project)
        self._views: dict[str, Relation] = {}
        self._traced: dict[str, tuple[Traced, ...] | None] = {}
        self._lock = threading.Lock()

    def columns(self, unique_id: str, sql: str, given: Given) -> frozenset[str]:
        """Returns the columns of a model or seed that contain, or may contain, personal data.

        These are the columns that its SQL derives from a personal column (`busco.warehouse.lineage`), or all columns if
        the lineage is undecided or the SQL is built from query results; and the columns that its YAML marks. A column
        marked `pii: false` is never personal.

        Args:
            sql: the compiled SQL.
            given: the name and type of each column of the SQL, according to DuckDB.
        """
        if not self._any:
            return frozenset()
        names = [name for name, _ in given]
        marks = {name.lower(): mark for name, mark in self.project.pii_marks(unique_id).items()}
        node = self.project.node(unique_id)
        found: frozenset[str] = frozenset()
        if node["resource_type"] != "seed":
            # imported here because SQLGlot slows down startup, and is needed only for a build
            from busco.warehouse.lineage import passed_on

            dynamic = self._redactor.hides(unique_id) and self._redactor.runs_queries(unique_id)
            found = frozenset(names) if dynamic else passed_on(self.traced(unique_id, sql), names)
        return frozenset(name for name in names if marks.get(name.lower(), name in found))

    def traced(
        self, unique_id: str, sql: str, relations: Mapping[tuple[str, str], Relation] | None = None
    ) -> tuple[Traced, ...] | None:
        """Returns the columns of a model's SQL with their origins, or None if the lineage is undecided.

        This takes up to half a second, so it happens once per process.

        Args:
            relations: the result of `relations`, for who traces many models; by default, that of now.
        """
        from busco.warehouse.lineage import traced

        if unique_id not in self._traced:
            self._traced[unique_id] = traced(sql, self.relations() if relations is None else relations)
        return self._traced[unique_id]

    def _is_open(self, unique_id: str) -> bool:
        """Whether the column names of a node's SQL may be personal values: its Jinja runs queries, or it reads what a
        hook has created from personal data."""
        redactor = self._redactor
        if not redactor.hides(unique_id):
            return False
        return redactor.runs_queries(unique_id) or redactor.is_indirect_reader(unique_id)

    def check_names(self, unique_id: str, given: Given) -> None:
        """Refuses column names, field names and ENUM values that may come from query results or from a hook's table.

        They would end up in the table's metadata, so they are refused before any message can show them. A name is
        refused if one of its words is neither in the code nor in the names and types of the relations that the SQL
        reads.

        Raises:
            BuscoError: there are such names; the message lists the positions of their columns and says what to change.
        """
        if not self._any or not self._is_open(unique_id):
            return
        relations = self.relations()
        read = {(schema.lower(), name.lower()) for schema, name in self.project.relations_read(unique_id)}
        texts = [text for key in read & {*relations} for column in relations[key].columns for text in column]
        texts += [*self.project.code(unique_id), *self.project.node(unique_id).get("columns", {}), *engine_words()]
        known = _parts("\n".join(texts))
        strange = [str(at) for at, column in enumerate(given, 1) if not _parts(" ".join(column)) <= known]
        if strange:
            raise BuscoError(
                f"the SQL's columns at these positions have names or types that are neither in the code nor in the "
                f"tables that the SQL reads: {', '.join(strange)}. They may contain personal data, which would end up "
                "in the table's metadata",
                "write the names in the SQL, or list them under the model's `columns:`",
            )

    def check_pivots(self, sql: str) -> None:
        """Refuses a pivot by personal data, before any message can show the column names that it creates.

        Raises:
            BuscoError: the SQL contains such a pivot; the hint says how to rewrite it.
        """
        if self._any and "pivot" in sql.lower():
            from busco.warehouse.lineage import named_by_values

            if named_by_values(sql, self.relations()):
                raise BuscoError(
                    "a pivot in the SQL names columns after values that are, or may be, personal data, and these names "
                    "would end up in the table's metadata",
                    "write the values in the SQL, `pivot … on column in ('a', 'b')`, or pivot by another column",
                )

    def add_view(self, unique_id: str, sql: str, given: Given) -> None:
        """Records a view, for models that read it later in this process."""
        from busco.warehouse.lineage import Relation

        relation = Relation(tuple(given), self.columns(unique_id, sql, given))
        with self._lock:
            self._views[unique_id] = relation

    def relations(self) -> Mapping[tuple[str, str], Relation]:
        """Returns the tables and views that SQL can read now, by schema and name in lower case."""
        from busco.warehouse.lineage import Relation

        found = {}
        for unique_id in (*self.project.sources, *self.project.nodes):
            node = self.project.node(unique_id)
            table = self.project.table_of(unique_id)
            version = self.version(table) if table else None
            if version is not None:
                typed = tuple((column.name, column.type) for column in version.columns)
                relation = Relation(typed, self.project.pii(unique_id) | of_version(self.project, version))
            elif unique_id in self._views:
                relation = self._views[unique_id]
            else:
                continue
            schema, name = table_name(node).lower().split(".", 1)
            found[schema, name] = relation
        return found

    @cached_property
    def _any(self) -> bool:
        return any(self.project.pii(uid) for uid in (*self.project.sources, *self.project.nodes))


def _parts(text: str) -> frozenset[str]:
    """Returns the words in a string, including those within names, in lower case.

    Numbers of one or two digits are left out.
    """
    found = frozenset(_PART.findall(text.lower()))
    return frozenset(part for part in found if not _SHORT_NUMBER.fullmatch(part))


def of_version(project: Project, version: Version) -> frozenset[str]:
    """Returns a version's columns with personal data.

    If its record doesn't list them, returns all columns, or none if the table is known to read no personal data.
    """
    if version.personal is not None:
        return frozenset(version.personal)
    known = version.unique_id in project.nodes or version.unique_id in project.sources
    if known and not project.reads_pii(version.unique_id):
        return frozenset()
    return frozenset(column.name for column in version.columns)


def partition_columns(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a model's `partition_by`."""
    names = node["config"].get("partition_by") or ()
    return (names,) if isinstance(names, str) else tuple(str(name) for name in names)


def partition_problem(name: str) -> str:
    """Returns what is wrong with a partition by personal data and what to do about it, in one line."""
    return (
        f"{personal_partition(name)}; partition by another column; if {name} is derived from personal data but "
        f"contains none, declare that in the model's YAML: {{name: {name}, config: {{meta: {{pii: false}}}}}}"
    )


def check_partitions(partition_by: Sequence[str], personal: frozenset[str]) -> None:
    """Refuses partitions by personal data.

    Raises:
        BuscoError: a partition column contains personal data.
    """
    for name in partition_by:
        if name in personal:
            problem, _, advice = partition_problem(name).partition("; ")
            raise BuscoError(problem, advice)
