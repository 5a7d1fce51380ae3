"""What the lake refuses of a dbt project when it is parsed, since it could not keep its promises for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from busco.errors import BuscoError
from busco.lake import layout, types
from busco.lake.owners import ID_VARIABLE
from busco.lake.records import DOCS_NODE
from busco.project import PLATFORM_PACKAGES, TABLE_KINDS, Project, meta_of, table_name
from busco.settings import PROJECT_ID, PROJECT_ID_WORDS, SIZES

_ALLOWED = frozenset({"lake", "view", "ephemeral", "seed"})
_LAYERS = ("silver", "gold")
# Glue's and Athena's names: they would fold anything else into this, or refuse it
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,254}")
# by these names the platform's own tasks are known in a run; the tests of a model `sources` would be the sources' own
_TAKEN = {DOCS_NODE: "the task of the docs", "sources": "the task of the sources' tests"}
_OWN_MACROS = re.compile(
    r"materialization_(lake|seed|view|test|unit)_\w+|busco_(make_version|step|check_names|load_seed)"
    r"|(duckdb__)?get_create_view_as_sql"
)
_WHY = {
    "incremental": "there are no incremental models yet, each run writes a table anew; ",
    "snapshot": "there are no snapshots; ",
}

# the longest names that the rest of a key can have: settings.environment takes 31 characters
_ENVIRONMENT = layout.EnvironmentLayout("e" * 31)
_MANY = 999_999
_RUN = layout.RunLayout(_ENVIRONMENT.epoch("r" * layout.MAX_RUN_BYTES, _MANY))
# what a DAG may put before a model's name in its task's id
_GROUP = "g" * 60 + "."

Problem = tuple[Mapping[str, Any], str]


def check(project: Project) -> None:
    """Refuses what the lake can't keep its promises for.

    Raises:
        BuscoError: with every model in question and the way to write it.
    """
    problems = [f"{_file(node)}: {text}" for node, text in _problems(project)]
    if not problems:
        return
    advice = ""
    if any("materialized='lake'" in text for text in problems):
        advice = f"for all models at once, in dbt_project.yml: models: {{{project.name}: {{+materialized: lake}}}}"
    raise BuscoError("the dbt project has models that the lake refuses:\n    " + "\n    ".join(problems), advice)


def _problems(project: Project) -> Iterator[Problem]:
    makers: dict[str, str] = {}
    for uid, node in project.nodes.items():
        kind = node["resource_type"]
        if kind == "snapshot":
            yield node, "snapshots are not supported; write a model of materialization lake over the history"
        elif kind == "operation":
            yield (
                node,
                (
                    "on-run-start and on-run-end are refused: a run has many dbt processes, and what they write is "
                    "kept nowhere; write a model, or a model's pre_hook"
                ),
            )
        elif kind == "test":
            yield from ((node, text) for text in _test_problems(node))
        elif kind in ("model", "seed"):
            yield from _model_problems(node)
            is_table = node["config"]["materialized"] in TABLE_KINDS
            if is_table and (other := makers.setdefault(table_name(node), uid)) != uid:
                yield node, f"{other} makes the table {table_name(node)} too; give one of them an alias"
        for parent in node.get("depends_on", {}).get("nodes", []):
            if parent.startswith("model.") and parent not in project.nodes:
                yield node, f"reads {parent}, whose file is empty: dbt never builds it; write its SQL, or delete it"
    for function in project.manifest.get("functions", {}).values():
        yield function, "functions are refused: a model that runs alone would not find them; write a macro"
    for macro in project.manifest.get("macros", {}).values():
        if macro["package_name"] not in PLATFORM_PACKAGES and _OWN_MACROS.fullmatch(macro["name"]):
            yield macro, f"the macro {macro['name']} is the platform's own; take it out, or name it otherwise"
    yield from _id_problems(project)
    yield from _source_problems(project)
    yield from _name_problems(project)
    yield from _key_problems(project)


def _model_problems(node: Mapping[str, Any]) -> Iterator[Problem]:
    config, materialized = node["config"], node["config"]["materialized"]
    if node.get("language", "sql") != "sql":
        yield node, "Python models are refused; write it in SQL"
        return
    if materialized not in _ALLOWED:
        why = _WHY.get(materialized, "")
        yield node, f"materialization {materialized} is refused; {why}write materialized='lake' (or view, ephemeral)"
        return
    if "macro.dbt.is_incremental" in node.get("depends_on", {}).get("macros", []):
        yield node, "is_incremental() is always false for lake models; leave it out: they are rebuilt whole"
    if (size := meta_of(node).get("ecs")) and size not in SIZES:
        yield node, f"meta ecs {size} is no size; write {', '.join(SIZES[:-1])} or {SIZES[-1]}"
    if config.get("database"):
        yield node, f"database {config['database']} is refused: a table's place is its layer, by +schema"
    if config.get("grants"):
        yield node, "grants are refused: who may read a table is said by AWS (IAM, Lake Formation)"
    if config.get("sql_header"):
        yield node, "sql_header is refused: nothing would run it; write a pre_hook"
    if materialized in TABLE_KINDS:
        schema, name = table_name(node).split(".", 1)
        if schema not in _LAYERS:
            yield node, f"schema {schema} is no layer for tables; write +schema: {' or '.join(_LAYERS)}"
        if not _NAME.fullmatch(name):
            yield node, f"{name} is no name that Glue and Athena keep; write a-z, 0-9 and _ only (alias)"
    elif materialized == "view" and node["schema"] == "bronze":
        yield node, "schema bronze has the sources alone; write another +schema"
    by = config.get("partition_by") or ()
    hidden = {name.lower() for name, column in node.get("columns", {}).items() if meta_of(column).get("pii")}
    for name in [by] if isinstance(by, str) else by:
        if str(name).lower() in hidden:
            yield node, f"{personal_partition(str(name))}; partition by another column"
    said = {"original_file_path": (node.get("patch_path") or "").split("://")[-1] or node["original_file_path"]}
    yield from ((said, text) for text in (*_constraint_problems(node), *_type_problems(node)))
    yield from ((said, text) for text in _mark_problems(node))


def _constraint_problems(node: Mapping[str, Any]) -> Iterator[str]:
    constraints = [*(node.get("constraints") or [])]
    for column in node.get("columns", {}).values():
        constraints += column.get("constraints") or []
    others = sorted({str(c["type"]) for c in constraints if c["type"] != "not_null"})
    if others:
        yield f"constraints {', '.join(others)} can't be enforced on files; write dbt tests instead (not_null can)"


def personal_partition(name: str) -> str:
    """Why a table can't be partitioned by a column with personal data."""
    return f"partition_by names {name}, which has personal data: its values would be in the names of files"


def _mark_problems(node: Mapping[str, Any]) -> Iterator[str]:
    for name, column in node.get("columns", {}).items():
        if not isinstance(meta_of(column).get("pii", False), bool):
            yield f"meta pii of {name} is {meta_of(column)['pii']}; write true or false"


def _type_problems(node: Mapping[str, Any]) -> Iterator[str]:
    for name, column in node.get("columns", {}).items():
        if column.get("data_type") and node["config"]["materialized"] in TABLE_KINDS:
            try:
                types.parse(column["data_type"], name)
            except BuscoError as error:
                yield str(error).replace("\n  → ", "; ")


def _test_problems(test: Mapping[str, Any]) -> Iterator[str]:
    config = test["config"]
    if config.get("store_failures") or config.get("store_failures_as") in ("table", "view"):
        yield f"store_failures of {test['name']} is refused: the rows would be kept nowhere; leave it out"
    if not test["depends_on"]["nodes"]:
        yield f"{test['name']} reads no model and no source: it says nothing of what is published; leave it out"


def _source_problems(project: Project) -> Iterator[Problem]:
    makers: dict[str, str] = {}
    for uid, source in sorted(project.sources.items()):
        if source["schema"] in _LAYERS:
            yield (
                source,
                f"source schema {source['schema']} is refused: tables of another dbt project can't be sources yet; "
                "ingest writes bronze only",
            )
        elif source["schema"] != "bronze":
            yield source, f"source schema {source['schema']} is refused; ingest writes bronze only"
        if source.get("database") not in (None, "", "memory"):
            yield (
                source,
                f"source database {source['database']} is refused; leave it out: ingest writes bronze only",
            )
        if not _NAME.fullmatch(name := table_name(source).split(".", 1)[1]):
            yield source, f"{name} is no name that Glue and Athena keep; write a-z, 0-9 and _ only (identifier)"
        if (other := makers.setdefault(table_name(source), uid)) != uid:
            yield source, f"{other} is the table {table_name(source)} too; name one of them otherwise"
        said = {**source.get("config", {}), **(source.get("source_meta") or {}), **meta_of(source)}
        for key in sorted({"external_location", "plugin"} & {key for key, value in said.items() if value}):
            yield source, f"{key} is refused: no run could pin what lies there; leave it out, and ingest its files"
        yield from ((source, text) for text in _mark_problems(source))


def _id_problems(project: Project) -> Iterator[Problem]:
    for said in project.said_ids:
        if not isinstance(said, str) or not re.fullmatch(PROJECT_ID, said):
            yield (
                {"original_file_path": "dbt_project.yml"},
                f"{ID_VARIABLE} {said!r} is refused; write {PROJECT_ID_WORDS}, in quotes if it is a number",
            )


def _name_problems(project: Project) -> Iterator[Problem]:
    """Airflow's tasks and a run's records go by a node's name without its package."""
    known = dict(_TAKEN)
    tested = {uid for uid, node in project.nodes.items() if node["resource_type"] in ("model", "seed")}
    for uid in (*sorted(tested), *project.joint_tests):
        name = uid.split(".", 2)[2]
        if (other := known.setdefault(name, uid)) != uid:
            yield project.node(uid), f"the name {name} is {other}'s too; rename it (alias keeps a table's name)"


def _key_problems(project: Project) -> Iterator[Problem]:
    """Names that are too long for the key of one of their objects, in any environment, run and runner."""
    for uid, node in (*project.nodes.items(), *project.manifest.get("unit_tests", {}).items()):
        task = f"{_GROUP}{uid.split('.', 2)[-1]}.test/{_MANY}"
        table = project.table_of(uid)
        metadata = partial(_ENVIRONMENT.metadata, table, layout.new_id()) if table else str
        yield from _too_long(node, partial(_RUN.log, uid, _MANY), partial(_RUN.order, task, _MANY), metadata)
    for source in project.sources.values():
        names = source["source_name"], source.get("identifier") or source["name"]
        yield from _too_long(source, partial(layout.bronze_object, *names, layout.new_id(), layout.new_id()))
    yield from _too_long({"original_file_path": "dbt_project.yml"}, partial(layout.docs_page, project.identity))


def _too_long(node: Mapping[str, Any], *keys: Callable[[], str]) -> Iterator[Problem]:
    try:
        for key in keys:
            key()
    except BuscoError as error:
        yield node, f"{error.message}; {error.hint}"


def _file(node: Mapping[str, Any]) -> str:
    return str(node["original_file_path"]).removeprefix("./")
