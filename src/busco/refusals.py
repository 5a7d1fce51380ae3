"""Checks a parsed dbt project for features and names that the lake refuses because it can't support them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from busco.errors import BuscoError
from busco.fixes import fixes, yaml_file
from busco.lake import layout, types
from busco.lake.owners import ID_VARIABLE
from busco.problems import Problem, refusal
from busco.project import LAYERS, PLATFORM_PACKAGES, TABLE_KINDS, Project, meta_of, table_name
from busco.settings import PROJECT_ID, PROJECT_ID_WORDS, SIZES

_ALLOWED = frozenset({"lake", "view", "ephemeral", "seed"})
# the names that Glue and Athena accept unchanged; they convert other names (to lower case) or refuse them
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,254}")
_OWN_MACROS = re.compile(
    r"materialization_(lake|seed|view|test|unit)_\w+|busco_(make_version|step|check_names|load_seed)"
    r"|(duckdb__)?get_create_view_as_sql"
)
_WHY = {
    "incremental": "incremental models are not supported yet, because each run rewrites the whole table; ",
    "snapshot": "snapshots are not supported; ",
}

# the longest possible values of the other parts of an object key; settings.environment has at most 31 characters
_ENVIRONMENT = layout.EnvironmentLayout("e" * 31)
_MANY = 999_999
_RUN = layout.RunLayout(_ENVIRONMENT.epoch("r" * layout.MAX_RUN_BYTES, _MANY))
# what follows the node's name in the longest of its tasks' keys: a hash, and the suffix of the task for tests
_KEY_END = f".{'0' * 8}.test"


def check(
    project: Project,
    project_file: Mapping[str, Any] | None = None,
    verbose: bool = False,
    command: str = "busco dbt parse",
) -> None:
    """Refuses a project that the lake can't support.

    Args:
        project_file: the content of the project's dbt_project.yml.
        verbose, command: as for `problems.refusal`.

    Raises:
        BuscoError: the project has problems; the message lists them, and says how to fix each one.
    """
    problems = list(_problems(project))
    if problems:
        advice = fixes(project, problems, project_file or {})
        raise BuscoError(refusal(problems, project.name, verbose, command), "\n  → ".join(advice))


def _problems(project: Project) -> Iterator[Problem]:
    makers: dict[str, str] = {}
    for uid, node in project.nodes.items():
        kind = node["resource_type"]
        if kind == "snapshot":
            yield Problem(
                node,
                "snapshots are not supported; to keep history, write a model with materialized='lake' whose source has "
                "every version of each row",
            )
        elif kind == "operation":
            yield Problem(
                node,
                "on-run-start and on-run-end are not supported, because a run has several dbt processes, and nothing "
                "that these hooks write is kept; write a model, or a model's pre_hook, instead",
            )
        elif kind == "test":
            yield from _test_problems(node)
        elif kind in ("model", "seed"):
            yield from _model_problems(project, node)
            # DuckDB ignores the case of names
            relation = table_name(node).lower()
            is_relation = _is_table(node) or node["config"]["materialized"] == "view"
            if is_relation and (other := makers.setdefault(relation, uid)) != uid:
                text = "{} builds {} too; give one of them an alias"
                yield Problem.of(node, text, other, relation).fixed_by("alias")
        for parent in node.get("depends_on", {}).get("nodes", []):
            if parent.startswith("model.") and parent not in project.nodes:
                text = "{} reads {}, whose file is empty, so dbt never builds it; write its SQL, or delete the file"
                yield Problem.of(node, text, node["name"], parent)
    for function in project.manifest.get("functions", {}).values():
        text = "functions are not supported, because a model that runs alone can't use them; write a macro"
        yield Problem(function, text)
    for macro in project.manifest.get("macros", {}).values():
        if macro["package_name"] not in PLATFORM_PACKAGES and _OWN_MACROS.fullmatch(macro["name"]):
            text = "the macro {} is reserved for the platform; remove or rename it"
            yield Problem.of(macro, text, macro["name"])
    yield from _id_problems(project)
    yield from _source_problems(project)
    yield from _key_problems(project)


def _model_problems(project: Project, node: Mapping[str, Any]) -> Iterator[Problem]:
    config, materialized = node["config"], node["config"]["materialized"]
    if node.get("language", "sql") != "sql":
        yield Problem(node, "Python models are not supported; write the model in SQL")
        return
    if materialized not in _ALLOWED:
        text = f"is not allowed; {_WHY.get(materialized, '')}write materialized='lake' (or view, ephemeral)"
        yield Problem.of(node, f"materialization {{}} {text}", materialized).fixed_by("materialized")
    if "macro.dbt.is_incremental" in node.get("depends_on", {}).get("macros", []):
        yield Problem(node, "is_incremental() is always false for lake models, which are rebuilt in full; remove it")
    if (size := meta_of(node).get("ecs")) and size not in SIZES:
        text = f"is not a valid size; use {', '.join(SIZES[:-1])} or {SIZES[-1]}"
        yield Problem.of(node, f"`meta: {{{{ecs: {{}}}}}}` {text}", size)
    if config.get("database"):
        text = "database {} is not allowed; remove it, and set the table's layer with +schema"
        yield Problem.of(node, text, config["database"])
    if config.get("grants"):
        yield Problem(node, "grants are not supported, because AWS controls who can read a table (IAM, Lake Formation)")
    if config.get("sql_header"):
        yield Problem(node, "sql_header is not supported, because nothing would run it; write a pre_hook instead")
    if _is_table(node):
        schema, name = table_name(node).split(".", 1)
        if schema not in LAYERS:
            yield _schema_problem(project, node, schema)
        if not _NAME.fullmatch(name):
            yield _table_name_problem(project, node, name)
    elif materialized == "view" and node["schema"].lower() == "bronze":
        yield Problem(node, "schema bronze is reserved for sources; set a different +schema")
    by = config.get("partition_by") or ()
    hidden = {name.lower() for name, column in node.get("columns", {}).items() if meta_of(column).get("pii")}
    for name in [by] if isinstance(by, str) else by:
        if str(name).lower() in hidden:
            yield Problem.of(node, f"{personal_partition('{}')}; partition by another column", name)
    place = {**node, "original_file_path": yaml_file(node) or node["original_file_path"]}
    yield from _constraint_problems(node, place)
    yield from _type_problems(node, place)
    yield from _mark_problems(node, place)


def _is_table(node: Mapping[str, Any]) -> bool:
    """Whether a model or seed is a table, or will be one once its refused materialization is fixed.

    In both cases, it is checked as a table, so that all of its problems are reported together.
    """
    materialized = node["config"]["materialized"]
    return materialized in TABLE_KINDS or materialized not in _ALLOWED


def _schema_problem(project: Project, node: Mapping[str, Any], schema: str) -> Problem:
    layers = " or ".join(LAYERS)
    configured = node["config"].get("schema")
    macro = _deciding_macro(project, node, "schema") if configured and configured != schema else ""
    if not macro:
        text = f"schema {{}} is not a layer for tables; write +schema: {layers}"
        return Problem.of(node, text, schema).fixed_by("schema")
    text = f"schema {{}} is not a layer for tables: {macro} derives it from +schema: {{}}; "
    if configured in LAYERS:
        text = f"{text}make the macro return the value of +schema"
    else:
        text = f"{text}write +schema: {layers}, and make the macro return that value"
    return Problem.of(node, text, schema, configured).fixed_by("macro")


def _table_name_problem(project: Project, node: Mapping[str, Any], name: str) -> Problem:
    configured = node["config"].get("alias")
    macro = _deciding_macro(project, node, "alias") if configured and configured != name else ""
    if not macro:
        text = "{} is not a valid name in Glue and Athena; set an alias that has only a-z, 0-9 and _"
        return Problem.of(node, text, name).fixed_by("alias")
    text = f"{{}} is not a valid name in Glue and Athena: {macro} derives it from alias: {{}}; "
    return Problem.of(node, f"{text}make the macro return only a-z, 0-9 and _", name, configured).fixed_by("macro")


def _deciding_macro(project: Project, node: Mapping[str, Any], component: str) -> str:
    """Describes the macro of a project or package that replaces dbt's own in deriving a node's `schema` or `alias`.

    Returns '' if the macro is dbt's or the platform's own (dbt-core 1.11, parser/base.py, `RelationUpdate`). dbt's
    macro dispatches to any implementation in the project whose name has the adapter's name or `default` as a prefix.
    """
    package, name = node.get("package_name", project.name), f"generate_{component}_name"
    macros = {(one["package_name"], one["name"]): one for one in project.manifest.get("macros", {}).values()}
    candidates = ((package, name), *((project.name, f"{prefix}{name}") for prefix in ("", "duckdb__", "default__")))
    for owner, candidate in candidates:
        if owner not in PLATFORM_PACKAGES and (owner, candidate) in macros:
            file = Problem(macros[owner, candidate], "").file
            macro = f"the project's macro {candidate}" if owner == project.name else f"the macro {candidate} of {owner}"
            # the result becomes part of a format string
            return f"{macro} ({file})".replace("{", "{{").replace("}", "}}")
    return ""


def _constraint_problems(node: Mapping[str, Any], place: Mapping[str, Any]) -> Iterator[Problem]:
    constraints = [*(node.get("constraints") or [])]
    for column in node.get("columns", {}).values():
        constraints += column.get("constraints") or []
    others = sorted({str(c["type"]) for c in constraints if c["type"] != "not_null"})
    if others:
        text = "constraints {} can't be enforced on files (only not_null can); write dbt tests instead"
        yield Problem.of(place, text, ", ".join(others))


def personal_partition(name: str) -> str:
    """Returns why a table can't be partitioned by a column with personal data."""
    return f"partition_by names {name}, which contains personal data: its values would appear in file names"


def _mark_problems(node: Mapping[str, Any], place: Mapping[str, Any]) -> Iterator[Problem]:
    for name, column in node.get("columns", {}).items():
        if not isinstance(meta_of(column).get("pii", False), bool):
            text = "column {} has `meta: {{pii: {}}}`; use true or false"
            yield Problem.of(place, text, name, repr(meta_of(column)["pii"]))


def _type_problems(node: Mapping[str, Any], place: Mapping[str, Any]) -> Iterator[Problem]:
    if _is_table(node):
        columns = node.get("columns", {}).items()
        refused = types.refused((name, column["data_type"]) for name, column in columns if column.get("data_type"))
        for names, error in refused:
            text = str(error).replace("\n  → ", "; ")
            yield Problem(place, f"{names}: {text}", f"column …: {text}")


def _test_problems(test: Mapping[str, Any]) -> Iterator[Problem]:
    config = test["config"]
    if config.get("store_failures") or config.get("store_failures_as") in ("table", "view"):
        text = "store_failures of {} is not supported, because the failing rows would not be kept; remove it"
        yield Problem.of(test, text, test["name"])
    if not test["depends_on"]["nodes"]:
        text = "{} reads no model or source, so it can't check what is published; remove it"
        yield Problem.of(test, text, test["name"])


def _source_problems(project: Project) -> Iterator[Problem]:
    makers: dict[str, str] = {}
    for uid, source in sorted(project.sources.items()):
        if source["schema"] in LAYERS:
            yield Problem.of(
                source,
                "source schema {} is not allowed: ingest writes only to bronze, and tables of another dbt project "
                "can't be sources yet",
                source["schema"],
            )
        elif source["schema"] != "bronze":
            yield Problem.of(source, "source schema {} is not allowed: ingest writes only to bronze", source["schema"])
        if source.get("database") not in (None, "", "memory"):
            text = "source database {} is not allowed: ingest writes only to bronze; remove it"
            yield Problem.of(source, text, source["database"])
        if not _NAME.fullmatch(name := table_name(source).split(".", 1)[1]):
            text = "{} is not a valid name in Glue and Athena; set an identifier that has only a-z, 0-9 and _"
            yield Problem.of(source, text, name)
        if (other := makers.setdefault(table_name(source), uid)) != uid:
            text = "{} uses the table {} too; give one of them a different identifier"
            yield Problem.of(source, text, other, table_name(source))
        settings = {**source.get("config", {}), **(source.get("source_meta") or {}), **meta_of(source)}
        for key in sorted({"external_location", "plugin"} & {key for key, value in settings.items() if value}):
            text = f"{key} is not supported, because a run can't pin external data; remove it, and ingest the files"
            yield Problem(source, text)
        yield from _mark_problems(source, source)


def _id_problems(project: Project) -> Iterator[Problem]:
    for found in project.configured_ids:
        if not isinstance(found, str) or not re.fullmatch(PROJECT_ID, found):
            text = f"{ID_VARIABLE} {found!r} is not allowed; write {PROJECT_ID_WORDS}, in quotes if it is a number"
            yield Problem({"original_file_path": "dbt_project.yml"}, text)


def _key_problems(project: Project) -> Iterator[Problem]:
    """Yields a problem for each name that makes an object key too long in some environment, run or runner."""
    for uid, node in (*project.nodes.items(), *project.manifest.get("unit_tests", {}).items()):
        task = f"{uid.split('.', 2)[-1]}{_KEY_END}/{_MANY}"
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
        kind = f"a name is too long: one of its object keys would be longer than S3 allows; {error.hint}"
        yield Problem(node, f"{error.message}; {error.hint}", kind)
