"""Reads a dbt project from its manifest: tables, parents, tests, contracts, fingerprints.

This module reads the manifest's JSON (dbt's public artifact, schema v12) and does not import dbt, so that it also works
in Airflow's environment.
"""

from __future__ import annotations

import hashlib
import json
import os.path
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.audits import Audit
from busco.lake.deliveries import TECHNICAL, Contract
from busco.lake.freshness import Freshness
from busco.lake.metadata_json import Descriptions
from busco.lake.objects import canonical_json
from busco.lake.owners import ID_VARIABLE, Owner
from busco.lake.records import Column
from busco.settings import Settings

# The values of these keys depend on the parse or compilation, so they are not part of the project's content.
_VOLATILE = frozenset(
    {"created_at", "compiled", "compiled_code", "compiled_path", "extra_ctes", "extra_ctes_injected", "build_path"}
    | {"root_path", "contract_checksum", "relation_name", "injected_sql", "deferred", "defer_relation"}
)
TABLE_KINDS = frozenset({"lake", "seed"})
# the schemas of the project's tables
LAYERS = ("silver", "gold")
# The code that converts a seed's file to types and values: dbt's own macros. This constant is part of every seed's
# fingerprint. Change it when the same file would produce different types or values, so that no version with the old
# ones is kept.
SEED_READER = "dbt"
# The version of the rule that decides which columns have bounds in a table's metadata (busco.warehouse.lineage). This
# constant is part of the fingerprint of every node that reads pii columns. Change it when the same SQL would produce
# fewer bounds, so that no version with the old ones is kept.
BOUNDS_RULE = 2
# what can make the same code produce other results: DuckDB's functions that are not deterministic (`stability` in
# duckdb_functions(); a test compares them), columns that come from data, and dbt's context that is not code
_VARYING = re.compile(
    r"\b(current_\w+|local(time|timestamp)|now|today|get_current_\w+|transaction_timestamp|age|random|setseed|uuid\w*"
    r"|gen_random_uuid|nextval|currval|getvariable|txid_current|in_search_path|stats|version|(un)?pivot\w*"
    r"|env_var|run_started_at|invocation_id|modules|run_query|statement|load_result|execute|graph|target|flags"
    r"|adapter(?!\s*\.\s*dispatch))\b|\bcolumns\s*\(",
    re.IGNORECASE,
)
# characters with a special meaning in selections (dbt-core 1.11, graph/selector_spec.py; fnmatch's wildcards)
_SELECTION_SYNTAX = re.compile(r"[ ,+@*?\[\]]")
# the platform's own dbt package (busco.warehouse.package), and the packages from dbt and its adapter
PLATFORM_PACKAGE = "busco_lake"
PLATFORM_PACKAGES = frozenset({"dbt", "dbt_duckdb", PLATFORM_PACKAGE})


@dataclass(frozen=True)
class Project:
    """A dbt project, represented by its manifest as parsed JSON."""

    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Project:
        """Reads a project from a manifest file.

        Raises:
            BuscoError: the file does not exist, or is not a manifest.
        """
        try:
            return cls(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise BuscoError(
                "the dbt project has not been parsed here",
                "run: busco dbt parse (for another project, add --project-dir FOLDER)",
            ) from error
        except ValueError as error:
            raise BuscoError(f"{path.name} is not a dbt manifest: {error}", "run: busco dbt parse") from error

    @classmethod
    def of(cls, settings: Settings) -> Project:
        """Returns the configured project, as of its last parse.

        Raises:
            BuscoError: as for `read`.
        """
        return cls.read(settings.manifest_path).with_id(settings.project_id)

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["project_name"])

    @property
    def configured_ids(self) -> list[Any]:
        """The values of the var `busco_project_id` in dbt_project.yml: first the one for this project, then the one for
        all projects. dbt uses the first that is set."""
        variables = self.manifest.get("vars") or {}
        places = (variables.get(self.name), variables) if variables else ()
        return [place[ID_VARIABLE] for place in places if isinstance(place, dict) and ID_VARIABLE in place]

    @property
    def id(self) -> str:
        """The id that identifies the project in the lake: `busco_project_id` in its dbt_project.yml, otherwise the
        setting BUSCO_PROJECT_ID; '' if neither is set."""
        return str((self.configured_ids or [self.manifest.get("project_id") or ""])[0])

    @property
    def identity(self) -> str:
        """The name of the project in all of the lake's records: its id, or its dbt name if it has no id."""
        return self.id or self.name

    @property
    def owner(self) -> Owner:
        return Owner(self.identity, self.name, bool(self.id))

    def with_id(self, given: str) -> Project:
        """Returns this project with `given`, which can be empty, as the value of the setting BUSCO_PROJECT_ID."""
        return Project({**self.manifest, "project_id": given})

    @property
    def nodes(self) -> Mapping[str, Any]:
        return self.manifest["nodes"]  # type: ignore[no-any-return]

    @property
    def sources(self) -> Mapping[str, Any]:
        return self.manifest["sources"]  # type: ignore[no-any-return]

    def node(self, unique_id: str) -> Mapping[str, Any]:
        for kind in ("nodes", "sources", "unit_tests", "exposures"):
            if unique_id in self.manifest.get(kind, {}):
                return self.manifest[kind][unique_id]  # type: ignore[no-any-return]
        raise KeyError(unique_id)

    # -- tables ---------------------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> dict[str, str]:
        """The tables that the project builds: `<layer>.<name>` → unique id of its model or seed."""
        return {
            table_name(node): unique_id
            for unique_id, node in self.nodes.items()
            if node["resource_type"] in ("model", "seed") and node["config"]["materialized"] in TABLE_KINDS
        }

    @cached_property
    def seed_files(self) -> frozenset[str]:
        """The paths of the seeds' files, exactly as dbt-duckdb writes them into the statement that loads a seed."""
        seeds = [node for node in self.nodes.values() if node["resource_type"] == "seed"]
        return frozenset(os.path.join(node.get("root_path") or "", node["original_file_path"]) for node in seeds)  # noqa: PTH118

    def table_of(self, unique_id: str) -> str | None:
        """Returns the table of a source, model or seed; None for views, ephemeral models and tests."""
        if unique_id in self.sources:
            return table_name(self.sources[unique_id])
        node = self.nodes.get(unique_id)
        if node is None or node["resource_type"] not in ("model", "seed"):
            return None
        return table_name(node) if node["config"]["materialized"] in TABLE_KINDS else None

    def nodes_of(self, unique_id: str, table: str) -> list[str]:
        """Returns the unique ids of this project's nodes that can describe a table, the best one first.

        They are `unique_id`, and the sources with this table: a source's unique id contains its project's name, which
        may have changed since, or be another project's.
        """
        candidates = dict.fromkeys([unique_id, *self.sources])
        return [uid for uid in candidates if self._has(uid) and table_name(self.node(uid)) == table]

    def _has(self, unique_id: str) -> bool:
        return unique_id in self.sources or unique_id in self.nodes

    def parents(self, unique_id: str) -> frozenset[str]:
        """Returns the tables that a node reads, directly or through views and ephemeral models (R6)."""
        found: set[str] = set()
        for parent in self.node(unique_id).get("depends_on", {}).get("nodes", []):
            table = self.table_of(parent)
            if table is not None:
                found.add(table)
            elif parent in self.nodes:
                found |= self.parents(parent)
        return frozenset(found)

    def relations_read(self, unique_id: str) -> frozenset[tuple[str, str]]:
        """Returns the schema and name of each table and view that a node's SQL reads, directly or through ephemeral
        models."""
        found: set[tuple[str, str]] = set()
        for parent in self.node(unique_id).get("depends_on", {}).get("nodes", []):
            if self.nodes.get(parent, {}).get("config", {}).get("materialized") == "ephemeral":
                found |= self.relations_read(parent)
            else:
                schema, name = table_name(self.node(parent)).split(".", 1)
                found.add((schema, name))
        return frozenset(found)

    def size(self, unique_id: str) -> str:
        """Returns the size of a model's own ECS task (`meta: {ecs: large}`), or '' if the model doesn't set one."""
        return str(meta_of(self.node(unique_id)).get("ecs") or "")

    def views_above(self, unique_id: str) -> frozenset[str]:
        """Returns the views that a node reads, directly or through views and ephemeral models."""
        found: set[str] = set()
        for parent in self.node(unique_id).get("depends_on", {}).get("nodes", []):
            if parent in self.nodes and self.table_of(parent) is None:
                if self.nodes[parent]["config"]["materialized"] == "view":
                    found.add(parent)
                found |= self.views_above(parent)
        return frozenset(found)

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """Each node's direct and indirect parents, including sources."""
        found: dict[str, frozenset[str]] = {}

        def above(uid: str) -> frozenset[str]:
            if uid not in found:
                direct = self.nodes.get(uid, {}).get("depends_on", {}).get("nodes", [])
                found[uid] = frozenset(direct).union(*(above(parent) for parent in direct))
            return found[uid]

        for uid in self.nodes:
            above(uid)
        return found

    def selector(self, unique_id: str) -> str:
        """Returns a selection, in dbt's syntax, that matches exactly one node.

        The selection consists of the node's fully qualified name. If another node's name begins with that name (because
        a folder or a test has the same name as a model), the resource type and the file are added.
        """
        node = self.node(unique_id)
        name = _selectable(".".join(node["fqn"]))
        if self._beginnings[name] < 2:
            return f"fqn:{name}"
        file = _selectable(Path(node["original_file_path"]).name)
        return f"fqn:{name},resource_type:{node['resource_type']},file:{file}"

    @cached_property
    def _beginnings(self) -> Counter[str]:
        """For each name, the number of nodes whose fully qualified name begins with it."""
        names = [node["fqn"] for node in self.nodes.values()]
        return Counter(_selectable(".".join(name[:length])) for name in names for length in range(1, len(name) + 1))

    def columns(self, unique_id: str) -> tuple[Column, ...]:
        """Returns the columns that a node's YAML declares with a type; for a source, also the technical columns."""
        node = self.node(unique_id)
        required = not_null_columns(node)
        columns = tuple(
            Column(name=name, type=column["data_type"], required=name in required)
            for name, column in node.get("columns", {}).items()
            if column.get("data_type")
        )
        if unique_id in self.sources:
            own = {column.name for column in TECHNICAL}
            return (*(c for c in columns if c.name not in own), *TECHNICAL)
        return columns

    def descriptions(self, unique_id: str) -> Descriptions:
        """Returns the descriptions of a node and its columns; none if the project has no such node."""
        try:
            node = self.node(unique_id)
        except KeyError:
            return Descriptions()
        columns = {name: str(column.get("description") or "") for name, column in node.get("columns", {}).items()}
        return Descriptions(str(node.get("description") or ""), columns)

    def pii(self, unique_id: str) -> frozenset[str]:
        """Returns a node's columns that identify a person (`meta: {pii: true}`)."""
        return frozenset(name for name, is_pii in self.pii_marks(unique_id).items() if is_pii)

    def pii_marks(self, unique_id: str) -> dict[str, bool]:
        """Returns the value of `pii` for each of a node's columns whose YAML sets it."""
        columns = self.node(unique_id).get("columns", {})
        return {name: bool(meta_of(column)["pii"]) for name, column in columns.items() if "pii" in meta_of(column)}

    def reads_pii(self, unique_id: str) -> bool:
        """Whether a node, or any of its direct or indirect parents in the project, has pii columns."""
        above = self.ancestors.get(unique_id, frozenset())
        return any(self.pii(uid) for uid in (unique_id, *above) if uid in self.nodes or uid in self.sources)

    # -- tests ----------------------------------------------------------------------------------------------------

    @cached_property
    def tests(self) -> dict[str, Mapping[str, Any]]:
        return {uid: node for uid, node in self.nodes.items() if node["resource_type"] == "test"}

    @cached_property
    def unit_tests(self) -> dict[str, str]:
        """Unit test → the model that it tests, by unique id."""
        found = {}
        for uid, unit in self.manifest.get("unit_tests", {}).items():
            for parent in unit["depends_on"]["nodes"]:
                if self.nodes.get(parent, {}).get("name") == unit["model"]:
                    found[uid] = parent
        return found

    @cached_property
    def own_tests(self) -> dict[str, tuple[str, ...]]:
        """Model or source → its own tests: those that have no other parent."""
        found: dict[str, list[str]] = {}
        for uid, test in self.tests.items():
            parents = set(test["depends_on"]["nodes"])
            if len(parents) == 1:
                found.setdefault(parents.pop(), []).append(uid)
        return {uid: tuple(sorted(tests)) for uid, tests in found.items()}

    @cached_property
    def joint_tests(self) -> tuple[str, ...]:
        """Tests over several models or sources; each runs once, after all of them."""
        return tuple(sorted(uid for uid, test in self.tests.items() if len(set(test["depends_on"]["nodes"])) > 1))

    @cached_property
    def gates(self) -> dict[str, frozenset[str]]:
        """Test → the models and seeds that `dbt build` starts only after the test has passed.

        These are the nodes that have all of the test's parents as ancestors.
        """
        return {
            test: frozenset(
                uid
                for uid, node in self.nodes.items()
                if node["resource_type"] != "test" and set(found["depends_on"]["nodes"]) <= self.ancestors[uid]
            )
            for test, found in self.tests.items()
        }

    def audit(self) -> Audit:
        """Returns the conditions for publishing this project's tables (P4, P7)."""
        tests = {
            uid: self.parents(uid)
            for uid, test in self.tests.items()
            if str(test["config"].get("severity", "error")).lower() == "error"
        }
        names = {uid: str(test["name"]) for uid, test in self.tests.items()}
        names |= {uid: str(self.node(uid)["name"]) for uid in self.unit_tests}
        units = {uid: table for uid, model in self.unit_tests.items() if (table := self.table_of(model))}
        models = frozenset(uid for uid, node in self.nodes.items() if node["resource_type"] in ("model", "seed"))
        return Audit(
            tests, frozenset(self.tables), self.identity, self.hash, names, units, self.name, bool(self.id), models,
            frozenset(self.unit_tests),
        )  # fmt: skip

    # -- contracts ------------------------------------------------------------------------------------------------

    @cached_property
    def contracts(self) -> tuple[Contract, ...]:
        """The sources' contracts: names, types, grain, delivery (D1).

        Raises:
            BuscoError: a source column has no type, or a grain or delivery mode is invalid.
        """
        return tuple(_contract(self, uid, source) for uid, source in sorted(self.sources.items()))

    @cached_property
    def freshness(self) -> dict[str, Freshness]:
        """The `freshness` of each source table that has one, by the bronze table's name."""
        found = {}
        for contract in self.contracts:
            given = self.sources[contract.unique_id].get("freshness") or {}
            limits = {name: _age(given.get(name)) for name in ("warn_after", "error_after")}
            if any(limits.values()):
                found[contract.name] = Freshness(**limits)
        return found

    # -- identity -------------------------------------------------------------------------------------------------

    @cached_property
    def hash(self) -> str:
        """A hash of the project's content: the same for any two parses of the same files."""
        content = {
            kind: {uid: _stable(node) for uid, node in self.manifest.get(kind, {}).items()}
            for kind in ("nodes", "sources", "unit_tests", "exposures", "macros")
        }
        return hashlib.sha256(canonical_json(content)).hexdigest()[:32]

    @cached_property
    def graph_mark(self) -> str:
        """The line in a DAG's documentation that identifies the graph from which the DAG was rendered: a hash of the
        nodes and of their parents and materializations, but not of the models' SQL."""
        graph = {
            # the `depends_on` of a seed has no `nodes`
            uid: [sorted(node["depends_on"].get("nodes", [])), node["config"].get("materialized")]
            for uid, node in self.nodes.items()
        }
        return f"Graph `{hashlib.sha256(canonical_json(graph)).hexdigest()[:12]}`"

    def fingerprint(self, unique_id: str, engine: str) -> str:
        """Returns a hash of the code that builds a table (R6).

        The hash covers the raw SQL, macros, variables, contract, configuration, the fingerprints of parents that are
        views, ephemeral models or seeds, the engine's minor version, how seeds are read, and what the metadata can
        contain about columns with personal data.
        """
        version = ".".join(engine.split(".")[:2])
        if (unique_id, version) not in self._fingerprints:
            self._fingerprints[unique_id, version] = self._fingerprint(unique_id, version)
        return self._fingerprints[unique_id, version]

    @cached_property
    def _fingerprints(self) -> dict[tuple[str, str], str]:
        return {}

    def _fingerprint(self, unique_id: str, engine: str) -> str:
        node = self.nodes[unique_id]
        config = {
            key: value
            for key, value in node["config"].items()
            if key not in ("meta", "tags", "docs", "group", "access", "persist_docs", "severity", "on_error")
        }
        columns = [(name, c.get("data_type"), c.get("constraints")) for name, c in node.get("columns", {}).items()]
        parents = {}
        for parent in node.get("depends_on", {}).get("nodes", []):
            kind = self.nodes.get(parent, {}).get("config", {}).get("materialized")
            if kind in ("view", "ephemeral", "seed"):
                parents[parent] = self.fingerprint(parent, engine)
        content = node.get("raw_code") or node.get("checksum")
        parts = [content, self._macros(node), config, columns, parents, engine, self._variables]
        if dispatch := self.manifest.get("dispatch"):
            parts.append({"dispatch": dispatch})
        if node["resource_type"] == "seed":
            parts.append(SEED_READER)
        if self.reads_pii(unique_id):
            parts.append({"bounds": BOUNDS_RULE, "pii": self.pii_marks(unique_id)})
        return hashlib.sha256(canonical_json(parts)).hexdigest()[:32]

    def unit_tests_code(self, versions: Sequence[str]) -> str:
        """Returns a hash of all code that the results of the project's unit tests can depend on (R6): the whole project
        with its packages, including dbt's and the platform's macros, and `versions`, those of the programs."""
        parts = [self.hash, self.manifest.get("vars") or {}, self.manifest.get("dispatch") or [], list(versions)]
        return hashlib.sha256(canonical_json(parts)).hexdigest()[:32]

    def may_vary(self, unit_test: str) -> bool:
        """Whether the result of a unit test may change although no code changes (R7).

        That is the case if its rows, its model, or anything upstream, from which its rows get their types, uses the
        time, random values, environment variables, the results of queries in Jinja, or columns whose names come from
        data; or if one of these models is volatile.
        """
        test, model = self.node(unit_test), self.unit_tests[unit_test]
        models = [uid for uid in (model, *self.ancestors.get(model, frozenset())) if uid in self.nodes]
        if any(meta_of(self.nodes[uid]).get("volatile") for uid in models):
            return True
        rows = [test.get("expect") or {}, *(test.get("given") or ())]
        # rows in SQL are rendered when the test runs, and can call any macro
        if any(isinstance(one.get("rows"), str) and "{" in one["rows"] for one in rows):
            return True
        code = [
            piece
            for uid in models
            for piece in (str(self.nodes[uid].get("raw_code", "")), *self._macros(self.nodes[uid]).values())
        ]
        return any(_VARYING.search(piece) for piece in (*code, *(str(one.get("rows")) for one in rows)))

    @cached_property
    def _variables(self) -> Mapping[str, Any]:
        """The vars of dbt_project.yml that models can read, except the project's id, which doesn't affect any table."""
        found = {name: value for name, value in (self.manifest.get("vars") or {}).items() if name != ID_VARIABLE}
        if found and isinstance(own := found.get(self.name), dict):
            left = {name: value for name, value in own.items() if name != ID_VARIABLE}
            found = {name: value for name, value in found.items() if name != self.name} | (
                {self.name: left} if left else {}
            )
        return found

    def _macros(self, node: Mapping[str, Any]) -> dict[str, str]:
        """Returns the SQL of all macros of the project and its packages that a node uses, directly or indirectly.

        Macros from dbt and the platform are left out: they change only with the version of dbt or of the platform.
        """
        macros = self.manifest["macros"]
        own = [uid for uid in self.macros_used(node) if macros[uid]["package_name"] not in PLATFORM_PACKAGES]
        return {uid: macros[uid]["macro_sql"] for uid in sorted(own) if macros[uid]["macro_sql"]}

    def code(self, unique_id: str) -> list[str]:
        """Returns the pieces of source code from which a node's SQL is made.

        This is the code of the node itself, of the ephemeral models that become part of it, and of the macros that
        any of them use (except dbt's and the platform's), and the project's variables.
        """
        node = self.nodes[unique_id]
        variables = json.dumps(self.manifest.get("vars", {}), ensure_ascii=False)
        found = [str(node.get("raw_code", "")), *self._macros(node).values(), variables]
        for parent in node.get("depends_on", {}).get("nodes", []):
            if self.nodes.get(parent, {}).get("config", {}).get("materialized") == "ephemeral":
                found += self.code(parent)
        return found

    def macros_used(self, node: Mapping[str, Any]) -> frozenset[str]:
        """Returns the unique ids of all macros that a node uses, directly or indirectly."""
        macros = self.manifest["macros"]
        found = set[str]()
        waiting = list(node.get("depends_on", {}).get("macros", []))
        while waiting:
            uid = waiting.pop()
            if uid in found or uid not in macros:
                continue
            found.add(uid)
            waiting += macros[uid].get("depends_on", {}).get("macros", [])
            # A dispatched macro looks up its implementations by name at run time, so the manifest doesn't list them. A
            # project can also replace those of dbt's macros.
            stem = macros[uid]["name"]
            waiting += [*self._macros_named.get(f"duckdb__{stem}", ()), *self._macros_named.get(f"default__{stem}", ())]
        return frozenset(found)

    @cached_property
    def _macros_named(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for uid, macro in self.manifest["macros"].items():
            found.setdefault(macro["name"], []).append(uid)
        return found


def _selectable(name: str) -> str:
    """Returns a name for dbt's selection syntax, which has no escapes: each special character is replaced by `?`."""
    return _SELECTION_SYNTAX.sub("?", name)


def is_ignored(node: Mapping[str, Any]) -> bool:
    """Whether dbt never runs a node of the manifest, because the node's file is empty or the node is disabled, as every
    test of a disabled model is (dbt-core 1.11, graph/selector.py, `_is_empty_node` and `_is_graph_member`)."""
    empty = node["resource_type"] != "seed" and "raw_code" in node and not (node["raw_code"] or "").strip()
    return empty or node["config"].get("enabled") is False


def table_name(node: Mapping[str, Any]) -> str:
    """Returns `<layer>.<name>` for a source, model or seed."""
    return f"{node['schema']}.{node.get('identifier') or node.get('alias') or node['name']}"


def meta_of(thing: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a node's or column's meta, which dbt 1.10 and later keep in `config`, and earlier versions next to it."""
    return {**(thing.get("meta") or {}), **((thing.get("config") or {}).get("meta") or {})}


def not_null_columns(node: Mapping[str, Any]) -> frozenset[str]:
    """Returns the columns with a not_null constraint in the contract."""
    found = {
        name
        for name, column in node.get("columns", {}).items()
        if any(constraint["type"] == "not_null" for constraint in column.get("constraints") or [])
    }
    for constraint in node.get("constraints") or []:
        if constraint["type"] == "not_null":
            found |= set(constraint.get("columns") or [])
    return frozenset(found)


def _age(given: Mapping[str, Any] | None) -> timedelta | None:
    """Returns a limit of dbt's `freshness`, such as `{count: 24, period: hour}`."""
    if not given or not given.get("count") or not given.get("period"):
        return None
    return timedelta(**{f"{given['period']}s": float(given["count"])})


def _contract(project: Project, uid: str, source: Mapping[str, Any]) -> Contract:
    where = f"source {source['source_name']}.{source['name']}"
    meta = meta_of(source)
    own = {column.name for column in TECHNICAL}
    untyped = [name for name, column in source["columns"].items() if not column.get("data_type")]
    if untyped or not source["columns"]:
        raise BuscoError(f"{where}: no data_type for {', '.join(untyped) or 'any column'}", "add it to the YAML")
    typed = [(name, str(column["data_type"])) for name, column in source["columns"].items() if name not in own]
    try:
        kinds = types.parse_all(typed)
    except BuscoError as error:
        raise BuscoError(f"{where}: {error.message}", error.hint) from error
    columns = tuple(Column(name=name, type=str(kind)) for name, kind in kinds)
    grain = tuple(meta.get("grain") or ())
    delivery = str(meta.get("delivery") or "rows")
    unknown = sorted(set(grain) - {column.name for column in columns})
    if unknown:
        raise BuscoError(f"{where}: unknown columns in the grain: {', '.join(unknown)}", "fix meta.grain")
    if delivery not in ("rows", "full"):
        raise BuscoError(f"{where}: delivery is {delivery}", "set meta.delivery to rows or full")
    if delivery == "rows" and not grain:
        raise BuscoError(f"{where}: delivery mode 'rows' requires a grain", "set meta.grain, or meta.delivery to full")
    return Contract(
        source=str(source["source_name"]),
        table=str(source.get("identifier") or source["name"]),
        columns=columns,
        grain=grain,
        delivery=delivery,
        pii=project.pii(uid),
        unique_id=uid,
        descriptions=project.descriptions(uid).hash,
    )


def _stable(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _stable(value) for key, value in node.items() if key not in _VOLATILE}
    if isinstance(node, list):
        return [_stable(value) for value in node]
    return node
