"""Refuses partitions by personal data when a project is parsed, as far as its SQL can be analyzed without data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from busco.errors import BuscoError
from busco.lake.records import Column
from busco.problems import Problem, refusal
from busco.project import TABLE_KINDS, Project, table_name
from busco.warehouse import plugin
from busco.warehouse.personal import partition_columns, partition_problem
from busco.warehouse.session import Session

if TYPE_CHECKING:
    from busco.warehouse.dbt import Dbt


def check(dbt: Dbt) -> None:
    """Refuses models that are partitioned by a column that their SQL derives from personal data.

    The partitioned models and their ancestors are compiled on empty tables. If a model's SQL is built from query
    results, or if the model reads a relation with undocumented columns, the model is checked later: when it is built,
    before it writes anything (`personal.check_partitions`).

    Raises:
        BuscoError: there are such models; the message lists each model and column.
    """
    project = dbt.project
    if project is None:
        return
    partitioned = [uid for uid in project.nodes if _is_partitioned(project, uid)]
    if not partitioned:
        return
    needed = {uid for one in partitioned for uid in project.ancestors[one] if uid in project.nodes} | set(partitioned)
    models = [uid for uid in sorted(needed, key=lambda uid: len(project.ancestors[uid])) if _is_model(project, uid)]
    found = _personal(project, models, _compiled(dbt, project, models))
    problems = [
        Problem(project.node(uid), partition_problem(name), partition_problem("…"))
        for uid in partitioned
        for name in partition_columns(project.node(uid))
        if name.lower() in found.get(uid, frozenset())
    ]
    if problems:
        raise BuscoError(refusal(problems, project.name, dbt.verbose, dbt.parse_command))


def _is_partitioned(project: Project, uid: str) -> bool:
    node = project.nodes[uid]
    is_table = _is_model(project, uid) and node["config"]["materialized"] in TABLE_KINDS
    return is_table and bool(partition_columns(node)) and project.reads_pii(uid)


def _is_model(project: Project, uid: str) -> bool:
    return bool(project.nodes[uid]["resource_type"] == "model")


def _compiled(dbt: Dbt, project: Project, models: list[str]) -> dict[str, str]:
    """Returns the compiled SQL of those models that compile on empty tables."""
    # leave nothing in the state folder, which several users may share (Docker Compose)
    own = dbt.settings.model_copy(update={"state_dir": dbt.target})
    plugin.activate(Session(own, project, None, None, None))
    try:
        chosen = ["--indirect-selection", "empty", "--select", *(project.selector(uid) for uid in models)]
        result = dbt.invoke(["compile", *chosen], shown="nothing")
    finally:
        plugin.activate(None)
    results = getattr(result.result, "results", None) or []
    return {str(one.node.unique_id): str(one.node.compiled_code) for one in results if one.node.compiled_code}


def _personal(project: Project, models: list[str], compiled: dict[str, str]) -> dict[str, frozenset[str]]:
    """Returns the personal columns, in lower case, of the models whose lineage can be determined."""
    from busco.warehouse.lineage import Relation, traced
    from busco.warehouse.redact import Redactor

    redactor, relations = Redactor(project), dict[tuple[str, str], Relation]()
    known = set(project.sources)
    for uid in project.sources:
        relations[_key(project, uid)] = Relation(_typed(project.columns(uid)), project.pii(uid))
    found = {}
    for uid in models:
        node = project.nodes[uid]
        if not set(node["depends_on"]["nodes"]) <= known or redactor.runs_queries(uid) or uid not in compiled:
            continue
        columns = traced(compiled[uid], relations)
        if columns is None:
            continue
        marks = {name.lower(): mark for name, mark in project.pii_marks(uid).items()}
        found[uid] = frozenset(one.name for one in columns if marks.get(one.name, one.is_personal))
        known.add(uid)
        kinds = {column.name.lower(): column.type for column in project.columns(uid)}
        typed = tuple((one.name, kinds.get(one.name, "VARCHAR")) for one in columns)
        relations[_key(project, uid)] = Relation(typed, found[uid])
    return found


def _key(project: Project, uid: str) -> tuple[str, str]:
    schema, name = table_name(project.node(uid)).lower().split(".", 1)
    return schema, name


def _typed(columns: tuple[Column, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((column.name, column.type) for column in columns)
