"""One dbt process's view of the lake: the versions that it reads and the versions that it creates."""

from __future__ import annotations

import csv
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from busco.errors import BuscoError
from busco.lake import bounds, engine, types
from busco.lake.budget import budget
from busco.lake.contents import (
    BRONZE,
    complete,
    read_pages,
    read_record,
    read_version,
    read_versions,
    write_record,
)
from busco.lake.formats import in_own_place, upgrade
from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.metadata_json import copy_metadata
from busco.lake.objects import ObjectStore
from busco.lake.records import FORMAT, Column, DataFile, Delivery, Published, Release, Version, utc_now
from busco.lake.relations import empty_sql, select_sql, view_queries
from busco.lake.runs import Run, TakenAway, visible_versions
from busco.project import Project, meta_of
from busco.settings import Settings
from busco.warehouse import column_names, date_range, model_sql
from busco.warehouse.personal import Personal, check_partitions
from busco.warehouse.redact import Redactor

# A message names at most this many files.
_NAMED_FILES = 3


@dataclass(frozen=True)
class Made:
    """The result of a model's materialization: the version, whether it was kept, and the versions that were read."""

    version: Version
    kept: bool
    reads: dict[str, str]


class Session:
    """A dbt process's view of the lake, shared by its threads.

    Args:
        run: the run that this process works for; if None, the process reads only `base` and writes nothing.
        base: the run's base release, or the live release; None for the empty release.
        runner: this process's number in the run.
        rebuild: the unique ids of models that are built even if a version could be kept.
        nodes: the unique ids of all nodes that this process runs; None if they are not known.
        redactor: filters dbt's messages; the platform registers its own messages there as safe to show.
    """

    def __init__(
        self,
        settings: Settings,
        project: Project,
        store: ObjectStore | None,
        run: Run | None,
        base: Release | None,
        runner: int = 0,
        rebuild: frozenset[str] = frozenset(),
        redactor: Redactor | None = None,
        nodes: Collection[str] | None = None,
    ) -> None:
        self.redactor = redactor or Redactor(project)
        self.settings, self.project, self.store = settings, project, store
        self.run, self.base, self.runner, self.rebuild = run, base, runner, rebuild
        self.nodes = nodes
        self.budget = budget(settings)
        self.made: dict[str, Made] = {}
        self.sql: dict[str, str] = {}
        # the results so far of the steps of each node's materialization, by unique id
        self.decided: dict[str, dict[str, Any]] = {}
        # columns that contain, or may contain, personal data although their YAML doesn't say so, by unique id
        self.unmarked: dict[str, tuple[str, ...]] = {}
        # nodes that another runner took over while this one was building them
        self.fenced: set[str] = set()
        self._lock = threading.Lock()
        self._unbuilt: set[str] = set()
        self._published: dict[str, Published] = {}
        # whole versions, read when they are needed
        self._versions: dict[str, Version] = {}
        self.personal = Personal(project, self.version, self.redactor)
        self.refresh()

    def refresh(self) -> None:
        """Reloads the visible versions: the run's or, failing that, the base release's, and bronze as pinned (Q3)."""
        if self.run is None:
            self._published = dict(self.base.tables) if self.base else {}
            return
        entries = self.run.entries()
        self._published = visible_versions(self.run, self.base, entries)
        self._unbuilt = {table for table, entry in entries.items() if entry.version is None}

    @property
    def environment(self) -> EnvironmentLayout:
        return EnvironmentLayout(self.settings.environment)

    def version(self, table: str) -> Version | None:
        """Returns a table's visible version, or None if it has none."""
        self._read([table])
        with self._lock:
            return self._versions.get(table) if table in self._published else None

    def _read(self, tables: Iterable[str]) -> None:
        """Reads the whole versions of those tables that have not been read yet."""
        with self._lock:
            wanted = [
                published
                for table in tables
                if (published := self._published.get(table)) is not None
                and (table not in self._versions or self._versions[table].version != published.version)
            ]
        if not wanted or self.store is None:
            return
        found = read_versions(self.store, wanted)
        with self._lock:
            self._versions.update(
                (table, version)
                for table, version in found.items()
                if self._published[table].version == version.version
            )

    def reads(self, unique_id: str) -> dict[str, str]:
        """Returns the exact versions of all tables that a node reads (R6, R8).

        Raises:
            BuscoError: a table has no version, or its version is still being built.
        """
        with self._lock:
            parents = self.project.parents(unique_id)
            missing = sorted(p for p in parents if p not in self._published or p in self._unbuilt)
            if missing:
                where = f"in run {self.run.name} or its base release" if self.run else "in the live release"
                tables = ", ".join(missing)
                raise BuscoError(f"there is no version of {tables} {where}", f"build {tables} first")
            return {parent: self._published[parent].version for parent in sorted(parents)}

    def is_upstream_current(self, model: str) -> bool:
        """Whether all tables upstream of a model were made by the project's current code; for sources, whether they
        have the columns of their current contract."""
        contracts = {contract.unique_id: contract.hash for contract in self.project.contracts}
        for unique_id in self.project.ancestors.get(model, frozenset()):
            if (table := self.project.table_of(unique_id)) is None:
                continue
            expected = contracts.get(unique_id) or self.project.fingerprint(unique_id, duckdb.__version__)
            with self._lock:
                published = None if table in self._unbuilt else self._published.get(table)
            if published is None or published.fingerprint != expected:
                return False
        return True

    # -- relations ----------------------------------------------------------------------------------------------------

    def relations(self) -> Iterator[tuple[str, str, tuple[str, ...], bool]]:
        """Yields every relation that models can read: its schema and name, the queries that create it
        (`engine.create_view`), and whether these queries are free of text from the project. The relations are created
        once, when dbt connects (Q3).

        A table without a version is a typed empty relation, created from its contract, since unit tests read its
        columns.

        Creating the relation of a table that `nodes` read opens the table's first file, so that DuckDB has the table's
        statistics. This also applies to all tables if the nodes are not known, but not to tables that `nodes` build:
        their relations are replaced before they are read.
        """
        project, bucket = self.project, self.store.bucket if self.store else ""
        found = (project.table_of(unique_id) for unique_id in (*project.sources, *project.nodes))
        self._read([table for table in found if table])
        read = self._tables_read()
        for unique_id in (*project.sources, *project.nodes):
            node = project.node(unique_id)
            if unique_id in project.nodes and node["resource_type"] not in ("model", "seed"):
                continue
            if unique_id in project.nodes and node["config"]["materialized"] == "ephemeral":
                continue
            table = project.table_of(unique_id)
            version = self.version(table) if table else None
            if version is not None:
                queries = view_queries(version, bucket, is_read=read is None or table in read)
                yield node["schema"], version.table.split(".", 1)[1], queries, True
            elif columns := project.columns(unique_id):
                name = node.get("identifier") or node.get("alias") or node["name"]
                yield node["schema"], name, (empty_sql(columns),), False

    def _tables_read(self) -> set[str] | None:
        """Returns the tables that `nodes` read and don't build; None if the nodes are not known."""
        if self.nodes is None:
            return None
        # a unit test reads its own rows, not those of its model's parents
        nodes = [node for node in self.nodes if node in self.project.nodes]
        read = {parent for node in nodes for parent in self.project.parents(node)}
        return read - {self.project.table_of(node) for node in nodes}

    def schemas(self) -> set[str]:
        return {schema for schema, _, _, _ in self.relations()}

    # -- creating a version -------------------------------------------------------------------------------------------

    def begin(self, job: dict[str, Any]) -> None:
        """Takes the table's entry, and decides whether the table's version from the base release is kept (R4, R7).

        `job` is the materialization's dictionary. Input: `node`, `sql`; output: `keep` and, if it is true, `view_sql`.
        """
        if self.run is None or self.store is None:
            raise BuscoError(
                "models with the `lake` materialization can be built only in a run", "use: busco dbt build"
            )
        unique_id = str(job["node"])
        self.sql[unique_id] = str(job["sql"])
        table = self.project.table_of(unique_id)
        if table is None:
            raise BuscoError(f"{unique_id} is not a table")
        reads = self.reads(unique_id)
        fingerprint = self.project.fingerprint(unique_id, duckdb.__version__)
        job.update(table=table, reads=reads, fingerprint=fingerprint, version=new_id())
        job["token"] = self._fenced(lambda run: run.take(table, self.runner), table)
        known = self.base.tables.get(table) if self.base else None
        job["keep"] = (
            known is not None
            and unique_id not in self.rebuild
            and not self.run.pin.full_refresh
            and not meta_of(self.project.node(unique_id)).get("volatile")
            and known.fingerprint == fingerprint
            # the unique id differs if the project was renamed, and docs and Glue comments refer to it
            and known.unique_id in ("", unique_id)
            and known.inputs == reads
            # a version that has lost its metadata can't be read, so the table is built again
            and self._has_metadata(known)
        )
        if job["keep"] and known is not None:
            self._keep(job, known)

    def check_header(self, job: Mapping[str, Any]) -> None:
        """Refuses a seed if dbt would load one of its columns under a different name than in the header (`a`, `a_2`).

        `job` has dbt's column names, and the file's path and delimiter, so that the file is read the way dbt reads it.
        """
        if job["file"] not in self.project.seed_files:
            raise BuscoError(f"{job['file']} is not a seed of this project", "do not call store_relation")
        with Path(str(job["file"])).open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=str(job["delimiter"])), [])
        column_names.check_header(header, [str(name) for name in job["names"]])

    def check_names(self, job: dict[str, Any]) -> None:
        """Refuses a model or view whose SQL returns a column name twice. For seeds, see `check_header`.

        Input: `described`; output: `known_sql`, a query whose result `check_renamed` needs, or ''.
        """
        node = self.project.node(str(job["node"]))
        self.personal.check_pivots(str(job["sql"]))
        job["given"] = [(str(row[0]), str(row[1])) for row in job.pop("described")]
        self.personal.check_names(str(job["node"]), job["given"])
        if node["config"]["materialized"] == "view":
            self.personal.add_view(str(job["node"]), str(job["sql"]), job["given"])
        if node["resource_type"] == "seed":
            job["known_sql"] = ""
            return
        names = [name for name, _ in job["given"]]
        column_names.check(names)
        job["renamed"] = column_names.perhaps_renamed(names, str(job["sql"]), node.get("columns") or ())
        relations = self.project.relations_read(str(job["node"]))
        job["known_sql"] = column_names.known_sql(job["renamed"], relations) if job["renamed"] and relations else ""
        if not job["known_sql"]:
            column_names.check_renamed(job["renamed"], ())

    def check_renamed(self, job: Mapping[str, Any]) -> None:
        """Refuses columns that a subquery in the SQL returned twice. Input: `known`, the result of `known_sql`."""
        column_names.check_renamed(job["renamed"], [str(name) for name in job["known"]])

    def describe(self, job: dict[str, Any]) -> None:
        """Determines the columns from the SQL and the contract. Output: `copy_sql`."""
        node = self.project.node(str(job["node"]))
        enforced = bool((node["config"].get("contract") or {}).get("enforced"))
        required = self.project.columns(str(job["node"])) if enforced else ()
        try:
            columns, expressions = model_sql.columns(job["given"], required)
        except BuscoError as error:
            if node["resource_type"] != "seed":
                raise
            hint = "set a different type in the seed's config: column_types: {column: type}"
            raise BuscoError(error.message, hint) from error
        partition_by = model_sql.partition_columns(node["config"].get("partition_by"), columns)
        personal = self.personal.columns(str(job["node"]), str(job["sql"]), job["given"])
        check_partitions(partition_by, personal)
        marked = {name.lower() for name in self.project.pii_marks(str(job["node"]))}
        if unmarked := tuple(sorted(name for name in personal if name.lower() not in marked)):
            self.unmarked[str(job["node"])] = unmarked
        folder = self.environment.data(str(job["table"]), str(job["version"]))
        store = self._store()
        job.update(
            columns=columns,
            partition_by=partition_by,
            personal=personal,
            copy_sql=model_sql.copy_sql(expressions, columns, partition_by, str(job["sql"]), store.url(folder)),
        )

    def wrote(self, job: dict[str, Any]) -> None:
        """Processes COPY's result. Input: `stats`; output: `count_sql`, queries that count rows in the written files.

        `count_sql` is usually empty. It has up to two queries, by name: `nulls` counts NULLs in nested not_null columns
        (docs/iceberg.md, "null counts"), and `beyond` counts rows with dates or times that are out of range.
        `commit` gets the results in `counted`.
        """
        store, columns = self._store(), job["columns"]
        job["files"] = model_sql.written_files(job.pop("stats"), store.url(""))
        # the result came through macros, which a project can override
        folder = self.environment.data(str(job["table"]), str(job["version"]))
        if strange := [file.key for file in job["files"] if not model_sql.is_below(folder, file.key)]:
            raise BuscoError(f"{strange[0]} is not a file of {job['table']}'s new version", "let the platform run COPY")
        job["suspects"] = suspects = date_range.suspects(columns, job["files"])
        queries = {
            "nulls": model_sql.null_sql(columns, [store.url(file.key) for file in job["files"]]),
            "beyond": suspects.count_sql(store.url) if suspects else "",
        }
        job["count_sql"] = {name: query for name, query in queries.items() if query}

    def commit(self, job: dict[str, Any]) -> None:
        """Creates a version from the files that COPY wrote, and enters it in the run (R4, R5).

        Before that, checks the values and writes the version's metadata. Output: `view_sql`.
        """
        from busco.lake import versions
        from busco.lake.manifests import manifests_of

        store, table, version_id = self._store(), str(job["table"]), str(job["version"])
        columns: tuple[Column, ...] = job["columns"]
        files, counted = job["files"], job["counted"]
        if job["suspects"] is not None:
            advice = "replace them with NULL or a date in range"
            date_range.check(table, job["suspects"], counted["beyond"], store.url, self._run().name, advice)
        model_sql.check_not_null(columns, files, counted.get("nulls") or {})
        folder = self.environment.data(table, version_id)
        etags = store.etags(f"{folder}/", {file.key: file.bytes for file in files})
        personal = tuple(sorted(job["personal"]))
        version = Version(
            table=table,
            version=version_id,
            columns=columns,
            partition_by=job["partition_by"],
            rows=sum(file.rows for file in files),
            bytes=sum(file.bytes for file in files),
            files=tuple(
                file.model_copy(
                    update={
                        "etag": etags[file.key],
                        "statistics": bounds.without_bounds(file.statistics, columns, personal),
                    }
                )
                for file in files
            ),
            inputs=job["reads"],
            fingerprint=str(job["fingerprint"]),
            unique_id=str(job["node"]),
            project=self.project.identity,
            personal=personal,
            made_at=utc_now(),
        )
        record = self.environment.version(table, version_id)
        etag = write_record(store, record, version)
        described = self.project.descriptions(str(job["node"]))
        metadata = self.environment.metadata(table, version_id, described.hash)
        version = version.model_copy(update={"metadata": metadata})
        versions.write_metadata(
            store,
            self.environment,
            version,
            manifests_of(store, version, ()),
            described,
            {"busco.version": version_id, "busco.run": self._run().name},
        )
        self._enter(job, Published.of(version, record, metadata, etag), version, kept=False)

    def _keep(self, job: dict[str, Any], known: Published) -> None:
        """Enters the version of the base release, with the project's current descriptions in its metadata (R7)."""
        store = self._store()
        if self._run().pin.format == FORMAT:
            known = upgrade(store, self.environment, {known.table: known})[known.table]
        descriptions = self.project.descriptions(str(job["node"]))
        metadata = self.environment.metadata(known.table, known.version, descriptions.hash)
        copy_metadata(store, known.metadata, metadata, descriptions)
        known = known.model_copy(update={"metadata": metadata})
        self._enter(job, known, read_version(store, known), kept=True)

    def _has_metadata(self, known: Published) -> bool:
        keys = {known.metadata, in_own_place(self.environment, known).metadata}
        return len(self._store().missing(keys)) < len(keys)

    def _enter(self, job: dict[str, Any], published: Published, version: Version, kept: bool) -> None:
        self._fenced(lambda run: run.enter(version.table, str(job["token"]), published, kept), version.table)
        with self._lock:
            self._published[version.table] = published
            self._versions[version.table] = version
            self._unbuilt.discard(version.table)
            self.made[str(job["node"])] = Made(version, kept, dict(job["reads"]))
        job["view_sql"] = select_sql(version, self._store().bucket)
        job["rows"] = version.rows

    def _fenced(self, write: Any, table: str) -> Any:
        try:
            return write(self._run())
        except TakenAway:
            self.fenced.add(self.project.tables[table])
            raise BuscoError(
                f"another runner has taken over {table} (its task was cleared or retried)",
                "no action is needed: this late write was discarded",
            ) from None

    def _run(self) -> Run:
        assert self.run is not None
        return self.run

    def _store(self) -> ObjectStore:
        assert self.store is not None
        return self.store


def write_bronze_metadata(
    settings: Settings, project: Project, run: Run, pinned: Mapping[str, Published], base: Release | None
) -> None:
    """Writes the Iceberg metadata of those pinned bronze versions that have none yet (R3).

    Raises:
        BuscoError: a delivery that an older version of `busco ingest` accepted has dates or times that readers do not
            support; or a source's descriptions have changed since the run was pinned.
    """
    known = base.tables if base else {}
    missing = {*run.store.missing([one.metadata for one in pinned.values()])}
    fresh = [one for one in pinned.values() if one.metadata in missing]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda one: _bronze_metadata(settings, project, run, one, known.get(one.table)), fresh))


def _bronze_metadata(
    settings: Settings, project: Project, run: Run, published: Published, known: Published | None
) -> None:
    store = run.store
    # a kept version has the unique id that the source had when the version was made
    unique_id = next((one.unique_id for one in project.contracts if one.name == published.table), published.unique_id)
    descriptions = project.descriptions(unique_id)
    described = BRONZE.metadata(published.table, published.version, descriptions.hash)
    if published.metadata not in (described, BRONZE.shared_metadata(published.table, published.version)):
        raise BuscoError(
            f"the descriptions of {published.table} have changed since the run was pinned",
            "start a new run (in Airflow, clear the pin task)",
        )
    if known is not None and known.version == published.version and not store.missing([known.metadata]):
        copy_metadata(store, known.metadata, published.metadata, descriptions)
        return
    from busco.lake import versions
    from busco.lake.manifests import manifests_of

    record = read_record(store, published)
    pages = read_pages(store, record.table, record.pages)
    version = complete(published, record, pages)
    unclear = [one.record for page in pages for one in page.deliveries if one.in_range is not True]
    _check_dates(settings, run, version, unclear if pages else version.deliveries)
    versions.write_metadata(
        store,
        BRONZE,
        version,
        manifests_of(store, version, pages),
        descriptions,
        {"busco.version": version.version},
        known.metadata if known is not None else "",
    )


def _check_dates(settings: Settings, run: Run, version: Version, records: Sequence[str]) -> None:
    """Refuses a bronze version if one of these deliveries has dates or times that readers don't support."""
    store = run.store
    deliveries = store.read_many(list(records), Delivery)
    files = [DataFile(key=one.object, rows=one.rows, bytes=one.bytes, statistics=one.statistics) for one in deliveries]
    suspects = date_range.suspects(version.columns, files)
    if suspects is None:
        return
    with engine.connect(settings) as connection:
        counts = connection.execute(suspects.count_sql(store.url)).fetchone()
    counted = dict(zip(suspects.columns, counts or (), strict=True))
    names = sorted({one.file_name for one in deliveries if one.object in suspects.files})
    more = f" and {len(names) - _NAMED_FILES} more" if len(names) > _NAMED_FILES else ""
    advice = (
        f"correct the dates in {', '.join(names[:_NAMED_FILES])}{more}, ingest the whole file again under the "
        "same name, and start a new run (in Airflow, clear the pin task)"
    )
    date_range.check(version.table, suspects, counted, store.url, run.name, advice)


def quoted_relation(schema: str, name: str) -> str:
    return f"{types.quoted(schema)}.{types.quoted(name)}"
