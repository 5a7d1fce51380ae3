"""Which columns of each table have personal data: marked in the YAML, or made from such a column."""

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
    from busco.warehouse.lineage import Relation

Given = Sequence[tuple[str, str]]


# What may be part of a name: letters and digits between all else.
_PART = re.compile(r"[^\W_]+")
_SHORT_NUMBER = re.compile(r"\d{1,2}")


class Personal:
    """What a dbt process knows of personal data in the tables and views that its models read.

    Args:
        version: gives a table's visible version.
        redactor: what knows which nodes' SQL is made of what a query gives.
    """

    def __init__(
        self, project: Project, version: Callable[[str], Version | None], redactor: Redactor | None = None
    ) -> None:
        self.project, self.version, self._redactor = project, version, redactor or Redactor(project)
        self._views: dict[str, Relation] = {}
        self._lock = threading.Lock()

    def columns(self, unique_id: str, sql: str, given: Given) -> frozenset[str]:
        """The columns of a model or seed that have, or may have, personal data.

        Those that its SQL passes on from such a column (`busco.warehouse.lineage`); all, if the SQL can't be judged or
        is made of what a query gives; and those that its YAML marks. A column that is marked `pii: false` is none.

        Args:
            sql: compiled.
            given: name and type of each column that DuckDB says the SQL gives.
        """
        if not self._any:
            return frozenset()
        names = [name for name, _ in given]
        marks = {name.lower(): said for name, said in self.project.pii_marks(unique_id).items()}
        node = self.project.node(unique_id)
        found: frozenset[str] = frozenset()
        if node["resource_type"] != "seed":
            # SQLGlot is a part of a start's imports, and needed only where something is built
            from busco.warehouse.lineage import passed_on

            dynamic = self._redactor.hides(unique_id) and self._redactor.asks(unique_id)
            found = frozenset(names) if dynamic else passed_on(sql, names, self._relations())
        return frozenset(name for name in names if marks.get(name.lower(), name in found))

    def _is_open(self, unique_id: str) -> bool:
        """Whether a node's SQL may have names of columns that are values of personal ones: Jinja makes it of a query's
        answer, or it reads what a hook has made of some."""
        redactor = self._redactor
        return redactor.hides(unique_id) and (redactor.asks(unique_id) or redactor.names_made(unique_id))

    def check_names(self, unique_id: str, given: Given) -> None:
        """Refuses names of columns and fields, and values of ENUM types, that a query's answer or a hook's table may
        have given, before they stand in a message: they would be in the table's metadata.

        That is a name with a word in it which is neither in the code, nor in the names and types of what is read.

        Raises:
            BuscoError: with the columns' places, and the way to write it.
        """
        if not self._any or not self._is_open(unique_id):
            return
        relations = self._relations()
        read = {(schema.lower(), name.lower()) for schema, name in self.project.relations_read(unique_id)}
        texts = [text for key in read & {*relations} for column in relations[key].columns for text in column]
        texts += [*self.project.code(unique_id), *self.project.node(unique_id).get("columns", {}), *engine_words()]
        known = _parts("\n".join(texts))
        strange = [str(at) for at, column in enumerate(given, 1) if not _parts(" ".join(column)) <= known]
        if strange:
            raise BuscoError(
                f"column {', '.join(strange)} of the SQL has a name or a type that stands neither in the code nor in "
                "what it reads: it may be made of personal data, and would be in the table's metadata",
                "write the names in the SQL, or list them under the model's `columns:`",
            )

    def check_pivots(self, sql: str) -> None:
        """Refuses a pivot by personal data, before the names that it makes stand in a message.

        Raises:
            BuscoError: with the way to write it.
        """
        if self._any and "pivot" in sql.lower():
            from busco.warehouse.lineage import named_by_values

            if named_by_values(sql, self._relations()):
                raise BuscoError(
                    "a pivot of the SQL names columns by the values of a column that has, or may have, personal data: "
                    "these names would be in the table's metadata",
                    "write the values in the SQL, `pivot … on column in ('a', 'b')`, or pivot by another column",
                )

    def saw_view(self, unique_id: str, sql: str, given: Given) -> None:
        """Takes note of a view, for what reads it later in this process."""
        from busco.warehouse.lineage import Relation

        relation = Relation(tuple(given), self.columns(unique_id, sql, given))
        with self._lock:
            self._views[unique_id] = relation

    def _relations(self) -> Mapping[tuple[str, str], Relation]:
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
    """The words of a text and of the names in it, in lower case, but for numbers of one or two digits."""
    found = frozenset(_PART.findall(text.lower()))
    return frozenset(part for part in found if not _SHORT_NUMBER.fullmatch(part))


def of_version(project: Project, version: Version) -> frozenset[str]:
    """The columns of a version that have personal data; of one whose record doesn't say, all if there can be any."""
    if version.personal is not None:
        return frozenset(version.personal)
    known = version.unique_id in project.nodes or version.unique_id in project.sources
    if known and not project.reads_pii(version.unique_id):
        return frozenset()
    return frozenset(column.name for column in version.columns)


def partition_columns(node: Mapping[str, Any]) -> tuple[str, ...]:
    """A model's `partition_by`."""
    said = node["config"].get("partition_by") or ()
    return (said,) if isinstance(said, str) else tuple(str(name) for name in said)


def partition_problem(name: str) -> str:
    """What is wrong with a partition by personal data, and what to do, in one line."""
    return (
        f"{personal_partition(name)}; partition by another column; if it has no personal data, though it is made from "
        f"a column that has, write so in the model's YAML: {{name: {name}, config: {{meta: {{pii: false}}}}}}"
    )


def check_partitions(partition_by: Sequence[str], personal: frozenset[str]) -> None:
    """Refuses partitions by personal data.

    Raises:
        BuscoError: a partition column has it.
    """
    for name in partition_by:
        if name in personal:
            problem, _, advice = partition_problem(name).partition("; ")
            raise BuscoError(problem, advice)
