"""What the dbt project says, read from its manifest: tables, parents, tests, contracts, fingerprints.

It reads the manifest's JSON (dbt's public artifact, schema v12) and imports nothing of dbt, so that it serves
Airflow's environment too.
"""

from __future__ import annotations

import hashlib
import json
import os.path
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.audits import Audit
from busco.lake.deliveries import TECHNICAL, Contract
from busco.lake.objects import canonical_json
from busco.lake.owners import ID_VARIABLE, Owner
from busco.lake.records import Column
from busco.settings import Settings

# Changes with every parse, or with compiling: no part of what the project says.
_VOLATILE = frozenset(
    {"created_at", "compiled", "compiled_code", "compiled_path", "extra_ctes", "extra_ctes_injected", "build_path"}
    | {"root_path", "contract_checksum", "relation_name", "injected_sql", "deferred", "defer_relation"}
)
TABLE_KINDS = frozenset({"lake", "seed"})
# How a seed's file becomes types and values: by dbt's own macros. It is part of a seed's fingerprint. Change it when
# the same file would give other types or values, so that no seed is kept with its former ones.
SEED_READER = "dbt"
# Of which columns a table's metadata has bounds (busco.warehouse.lineage). It is part of the fingerprint of what reads
# pii columns. Change it when the same SQL would have fewer of them, so that no version is kept with its former ones.
BOUNDS_RULE = 2
# what separates and what widens selections (dbt-core 1.11, graph/selector_spec.py; fnmatch's wildcards)
_SELECTION_SYNTAX = re.compile(r"[ ,+@*?\[\]]")
# the dbt package that the platform brings (busco.warehouse.package), and those that dbt and its adapter bring
PLATFORM_PACKAGE = "busco_lake"
PLATFORM_PACKAGES = frozenset({"dbt", "dbt_duckdb", PLATFORM_PACKAGE})


@dataclass(frozen=True)
class Project:
    """A dbt project, from its manifest as parsed JSON."""

    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Project:
        """The project of a manifest file.

        Raises:
            BuscoError: there is no such file, or it is no manifest.
        """
        try:
            return cls(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise BuscoError(
                "the dbt project was never parsed here", "run: busco dbt parse (another one: --project-dir FOLDER)"
            ) from error
        except ValueError as error:
            raise BuscoError(f"{path.name} is not a dbt manifest: {error}", "run: busco dbt parse") from error

    @classmethod
    def of(cls, settings: Settings) -> Project:
        """The project that these settings name, as it was parsed last.

        Raises:
            BuscoError: as `read`.
        """
        return cls.read(settings.manifest_path).with_id(settings.project_id)

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["project_name"])

    @property
    def said_ids(self) -> list[Any]:
        """What dbt_project.yml has as the var `busco_project_id`: among the project's own, then among all projects'.
        dbt takes the first."""
        said = self.manifest.get("vars") or {}
        places = (said.get(self.name), said) if said else ()
        return [place[ID_VARIABLE] for place in places if isinstance(place, dict) and ID_VARIABLE in place]

    @property
    def id(self) -> str:
        """What the lake knows it by: `busco_project_id` of its dbt_project.yml, else the setting BUSCO_PROJECT_ID; ''
        where neither says one."""
        return str((self.said_ids or [self.manifest.get("project_id") or ""])[0])

    @property
    def identity(self) -> str:
        """Its id, or its dbt name where it has none: by this all records of the lake name it."""
        return self.id or self.name

    @property
    def owner(self) -> Owner:
        return Owner(self.identity, self.name, bool(self.id))

    def with_id(self, given: str) -> Project:
        """The same for a process whose setting BUSCO_PROJECT_ID is `given`, which may be empty."""
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
        """Each table that the project builds, `<layer>.<name>` → unique id of its model or seed."""
        return {
            table_name(node): unique_id
            for unique_id, node in self.nodes.items()
            if node["resource_type"] in ("model", "seed") and node["config"]["materialized"] in TABLE_KINDS
        }

    @cached_property
    def seed_files(self) -> frozenset[str]:
        """The paths of the seeds' files, to the letter as dbt-duckdb puts them into the statement that loads one."""
        seeds = [node for node in self.nodes.values() if node["resource_type"] == "seed"]
        return frozenset(os.path.join(node.get("root_path") or "", node["original_file_path"]) for node in seeds)  # noqa: PTH118

    def table_of(self, unique_id: str) -> str | None:
        """The table of a source, model or seed; None for views, ephemerals, tests."""
        if unique_id in self.sources:
            return table_name(self.sources[unique_id])
        node = self.nodes.get(unique_id)
        if node is None or node["resource_type"] not in ("model", "seed"):
            return None
        return table_name(node) if node["config"]["materialized"] in TABLE_KINDS else None

    def parents(self, unique_id: str) -> frozenset[str]:
        """The tables that a node reads, through views and ephemerals (R6)."""
        found: set[str] = set()
        for parent in self.node(unique_id).get("depends_on", {}).get("nodes", []):
            table = self.table_of(parent)
            if table is not None:
                found.add(table)
            elif parent in self.nodes:
                found |= self.parents(parent)
        return frozenset(found)

    def relations_read(self, unique_id: str) -> frozenset[tuple[str, str]]:
        """Schema and name of the tables and views that a node's SQL reads, through ephemerals."""
        found: set[tuple[str, str]] = set()
        for parent in self.node(unique_id).get("depends_on", {}).get("nodes", []):
            if self.nodes.get(parent, {}).get("config", {}).get("materialized") == "ephemeral":
                found |= self.relations_read(parent)
            else:
                schema, name = table_name(self.node(parent)).split(".", 1)
                found.add((schema, name))
        return frozenset(found)

    def size(self, unique_id: str) -> str:
        """The size of a model's own ECS task (`meta: {ecs: large}`); '' where it has none of its own."""
        return str(meta_of(self.node(unique_id)).get("ecs") or "")

    def views_above(self, unique_id: str) -> frozenset[str]:
        """The views that a node reads, directly or through views and ephemerals."""
        found: set[str] = set()
        for parent in self.node(unique_id).get("depends_on", {}).get("nodes", []):
            if parent in self.nodes and self.table_of(parent) is None:
                if self.nodes[parent]["config"]["materialized"] == "view":
                    found.add(parent)
                found |= self.views_above(parent)
        return frozenset(found)

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """Each node's parents at any distance, sources included."""
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
        """A selection (dbt's syntax) of exactly one node: by its fully qualified name and, where that is the beginning
        of another's too (a folder named like a model, a test like a model), by what it is and its file."""
        node = self.node(unique_id)
        name = _selectable(".".join(node["fqn"]))
        if self._beginnings[name] < 2:
            return f"fqn:{name}"
        file = _selectable(Path(node["original_file_path"]).name)
        return f"fqn:{name},resource_type:{node['resource_type']},file:{file}"

    @cached_property
    def _beginnings(self) -> Counter[str]:
        """How many nodes' fully qualified names begin with a name."""
        names = [node["fqn"] for node in self.nodes.values()]
        return Counter(_selectable(".".join(name[:length])) for name in names for length in range(1, len(name) + 1))

    def columns(self, unique_id: str) -> tuple[Column, ...]:
        """A node's columns as its YAML says them, with a source's technical ones; empty where no types are said."""
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

    def pii(self, unique_id: str) -> frozenset[str]:
        """Columns of a node that identify a person (`meta: {pii: true}`)."""
        return frozenset(name for name, said in self.pii_marks(unique_id).items() if said)

    def pii_marks(self, unique_id: str) -> dict[str, bool]:
        """Columns of a node whose YAML says whether they identify a person."""
        columns = self.node(unique_id).get("columns", {})
        return {name: bool(meta_of(column)["pii"]) for name, column in columns.items() if "pii" in meta_of(column)}

    def reads_pii(self, unique_id: str) -> bool:
        """Whether a node or one of its parents, at any distance within the project, has pii columns."""
        above = self.ancestors.get(unique_id, frozenset())
        return any(self.pii(uid) for uid in (unique_id, *above) if uid in self.nodes or uid in self.sources)

    # -- tests ----------------------------------------------------------------------------------------------------

    @cached_property
    def tests(self) -> dict[str, Mapping[str, Any]]:
        return {uid: node for uid, node in self.nodes.items() if node["resource_type"] == "test"}

    @cached_property
    def unit_tests(self) -> dict[str, str]:
        """Unit test's unique id → the model that it tests."""
        found = {}
        for uid, unit in self.manifest.get("unit_tests", {}).items():
            for parent in unit["depends_on"]["nodes"]:
                if self.nodes.get(parent, {}).get("name") == unit["model"]:
                    found[uid] = parent
        return found

    @cached_property
    def own_tests(self) -> dict[str, tuple[str, ...]]:
        """A model's or source's own tests: those whose only parent it is."""
        found: dict[str, list[str]] = {}
        for uid, test in self.tests.items():
            parents = set(test["depends_on"]["nodes"])
            if len(parents) == 1:
                found.setdefault(parents.pop(), []).append(uid)
        return {uid: tuple(sorted(tests)) for uid, tests in found.items()}

    @cached_property
    def joint_tests(self) -> tuple[str, ...]:
        """Tests over several models or sources: each runs once, after all of them."""
        return tuple(sorted(uid for uid, test in self.tests.items() if len(set(test["depends_on"]["nodes"])) > 1))

    @cached_property
    def gates(self) -> dict[str, frozenset[str]]:
        """Each test → the models and seeds that `dbt build` begins only when it has passed: those which have all of the
        test's parents among their ancestors."""
        return {
            test: frozenset(
                uid
                for uid, node in self.nodes.items()
                if node["resource_type"] != "test" and set(said["depends_on"]["nodes"]) <= self.ancestors[uid]
            )
            for test, said in self.tests.items()
        }

    def audit(self) -> Audit:
        """What must be true before this project's tables are published (P4, P7)."""
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
            tests, frozenset(self.tables), self.identity, self.hash, names, units, self.name, bool(self.id), models
        )

    # -- contracts ------------------------------------------------------------------------------------------------

    @cached_property
    def contracts(self) -> tuple[Contract, ...]:
        """The sources' contracts: names, types, grain, delivery (D1).

        Raises:
            BuscoError: a source column without a type, or a grain or delivery mode that makes no sense.
        """
        return tuple(_contract(self, uid, source) for uid, source in sorted(self.sources.items()))

    # -- identity -------------------------------------------------------------------------------------------------

    @cached_property
    def hash(self) -> str:
        """Of all that the project says: the same for two parses of the same files."""
        said = {
            kind: {uid: _stable(node) for uid, node in self.manifest.get(kind, {}).items()}
            for kind in ("nodes", "sources", "unit_tests", "exposures", "macros")
        }
        return hashlib.sha256(canonical_json(said)).hexdigest()[:32]

    @cached_property
    def graph_mark(self) -> str:
        """How a DAG's documentation names the graph that it was made from: a hash of the nodes and their parents,
        whatever the models' SQL says."""
        said = {
            # a seed depends on nothing
            uid: [sorted(node["depends_on"].get("nodes", [])), node["config"].get("materialized")]
            for uid, node in self.nodes.items()
        }
        return f"Graph `{hashlib.sha256(canonical_json(said)).hexdigest()[:12]}`"

    def fingerprint(self, unique_id: str, engine: str) -> str:
        """Of the code that makes a table (R6): raw SQL, macros, variables, contract, configuration, the
        fingerprints of view, ephemeral and seed parents, the engine's minor version, how seeds are read, and what the
        metadata may have of columns with personal data."""
        return self._fingerprint(unique_id, ".".join(engine.split(".")[:2]))

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
                parents[parent] = self._fingerprint(parent, engine)
        content = node.get("raw_code") or node.get("checksum")
        said = [content, self._macros(node), config, columns, parents, engine, self._variables]
        if node["resource_type"] == "seed":
            said.append(SEED_READER)
        if self.reads_pii(unique_id):
            said.append({"bounds": BOUNDS_RULE, "pii": self.pii_marks(unique_id)})
        return hashlib.sha256(canonical_json(said)).hexdigest()[:32]

    @cached_property
    def _variables(self) -> Mapping[str, Any]:
        """The vars of dbt_project.yml that models may read: without the id, which changes no table."""
        said = {name: value for name, value in (self.manifest.get("vars") or {}).items() if name != ID_VARIABLE}
        if said and isinstance(own := said.get(self.name), dict):
            left = {name: value for name, value in own.items() if name != ID_VARIABLE}
            said = {name: value for name, value in said.items() if name != self.name} | (
                {self.name: left} if left else {}
            )
        return said

    def _macros(self, node: Mapping[str, Any]) -> dict[str, str]:
        """The SQL of all macros of the project and its packages that a node uses, directly or not; dbt's own and the
        platform's go with their versions."""
        macros = self.manifest["macros"]
        own = [uid for uid in self.macros_used(node) if macros[uid]["package_name"] not in PLATFORM_PACKAGES]
        return {uid: macros[uid]["macro_sql"] for uid in sorted(own) if macros[uid]["macro_sql"]}

    def code(self, unique_id: str) -> list[str]:
        """What people wrote of which a node's SQL is made: its own text, that of ephemerals which are a part of it and
        of the macros that these use, dbt's own excepted, and the project's variables."""
        node = self.nodes[unique_id]
        variables = json.dumps(self.manifest.get("vars", {}), ensure_ascii=False)
        found = [str(node.get("raw_code", "")), *self._macros(node).values(), variables]
        for parent in node.get("depends_on", {}).get("nodes", []):
            if self.nodes.get(parent, {}).get("config", {}).get("materialized") == "ephemeral":
                found += self.code(parent)
        return found

    def macros_used(self, node: Mapping[str, Any]) -> frozenset[str]:
        """The unique ids of all macros that a node uses, directly or not."""
        macros = self.manifest["macros"]
        found = set[str]()
        waiting = list(node.get("depends_on", {}).get("macros", []))
        while waiting:
            uid = waiting.pop()
            if uid in found or uid not in macros:
                continue
            found.add(uid)
            waiting += macros[uid].get("depends_on", {}).get("macros", [])
            if macros[uid]["package_name"] not in PLATFORM_PACKAGES:
                # a dispatched macro's implementations are found by name only when it runs
                stem = macros[uid]["name"]
                waiting += [other for other, m in macros.items() if m["name"] == f"duckdb__{stem}"]
                waiting += [other for other, m in macros.items() if m["name"] == f"default__{stem}"]
        return frozenset(found)


def _selectable(name: str) -> str:
    """A name in dbt's selection syntax, which has no escape: `?` stands for each character with a meaning in it."""
    return _SELECTION_SYNTAX.sub("?", name)


def is_ignored(node: Mapping[str, Any]) -> bool:
    """Whether dbt never runs a node of a manifest: one whose file is empty, or that is disabled, as each test of a
    disabled model is (dbt-core 1.11, graph/selector.py, `_is_empty_node` and `_is_graph_member`)."""
    empty = node["resource_type"] != "seed" and "raw_code" in node and not (node["raw_code"] or "").strip()
    return empty or node["config"].get("enabled") is False


def table_name(node: Mapping[str, Any]) -> str:
    """`<layer>.<name>` of a source, model or seed."""
    return f"{node['schema']}.{node.get('identifier') or node.get('alias') or node['name']}"


def meta_of(thing: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node's or column's meta: dbt 1.10 and later keep it in `config`, earlier ones beside it."""
    return {**(thing.get("meta") or {}), **((thing.get("config") or {}).get("meta") or {})}


def not_null_columns(node: Mapping[str, Any]) -> frozenset[str]:
    """Columns with a not_null constraint in the contract."""
    found = {
        name
        for name, column in node.get("columns", {}).items()
        if any(constraint["type"] == "not_null" for constraint in column.get("constraints") or [])
    }
    for constraint in node.get("constraints") or []:
        if constraint["type"] == "not_null":
            found |= set(constraint.get("columns") or [])
    return frozenset(found)


def _contract(project: Project, uid: str, source: Mapping[str, Any]) -> Contract:
    where = f"source {source['source_name']}.{source['name']}"
    meta = meta_of(source)
    own = {column.name for column in TECHNICAL}
    untyped = [name for name, column in source["columns"].items() if not column.get("data_type")]
    if untyped or not source["columns"]:
        raise BuscoError(f"{where}: no data_type for {', '.join(untyped) or 'any column'}", "say it in the YAML")
    typed = [(name, str(said["data_type"])) for name, said in source["columns"].items() if name not in own]
    try:
        kinds = types.parse_all(typed)
    except BuscoError as error:
        raise BuscoError(f"{where}: {error.message}", error.hint) from error
    columns = tuple(Column(name=name, type=str(kind)) for name, kind in kinds)
    grain = tuple(meta.get("grain") or ())
    delivery = str(meta.get("delivery") or "rows")
    unknown = sorted(set(grain) - {column.name for column in columns})
    if unknown:
        raise BuscoError(f"{where}: grain names {', '.join(unknown)}, which is no column", "mend meta.grain")
    if delivery not in ("rows", "full"):
        raise BuscoError(f"{where}: delivery is {delivery}", "write meta.delivery: rows, or full")
    if delivery == "rows" and not grain:
        raise BuscoError(f"{where}: delivery by rows needs a grain", "write meta.grain, or meta.delivery: full")
    return Contract(
        source=str(source["source_name"]),
        table=str(source.get("identifier") or source["name"]),
        columns=columns,
        grain=grain,
        delivery=delivery,
        pii=project.pii(uid),
        unique_id=uid,
    )


def _stable(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _stable(value) for key, value in node.items() if key not in _VOLATILE}
    if isinstance(node, list):
        return [_stable(value) for value in node]
    return node
