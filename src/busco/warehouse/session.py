"""One dbt process's view of the lake: the versions that it reads and the versions that it creates."""

from __future__ import annotations

import csv
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from busco.errors import BuscoError
from busco.lake import engine, types
from busco.lake.budget import budget
from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, DataFile, Delivery, Release, Version, utc_now
from busco.lake.relations import empty_sql, select_sql
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
        run: the run that this process works for; if None, it reads `base` only and writes nothing.
        base: the run's base release, or the live release; None for the empty release.
        runner: this process's number in the run.
        rebuild: the unique ids of models that are built even if a version could be kept.
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
    ) -> None:
        self.redactor = redactor or Redactor(project)
        self.settings, self.project, self.store = settings, project, store
        self.run, self.base, self.runner, self.rebuild = run, base, runner, rebuild
        self.budget = budget(settings)
        self.made: dict[str, Made] = {}
        self.sql: dict[str, str] = {}
        # the results of the steps of each node's materialization so far, by unique id
        self.decided: dict[str, dict[str, Any]] = {}
        # nodes that another runner took over while this one was building them
        self.fenced: set[str] = set()
        self._lock = threading.Lock()
        self._unbuilt: set[str] = set()
        self._versions: dict[str, Version] = {}
        self.personal = Personal(project, self.version, self.redactor)
        self.refresh()

    def refresh(self) -> None:
        """Reloads the visible versions: the run's, otherwise the base release's, and bronze as pinned (Q3)."""
        if self.run is None:
            self._versions = dict(self.base.tables) if self.base else {}
            return
        entries = self.run.entries()
        self._versions = visible_versions(self.run, self.base, entries)
        self._unbuilt = {table for table, entry in entries.items() if entry.version is None}

    @property
    def environment(self) -> EnvironmentLayout:
        return EnvironmentLayout(self.settings.environment)

    def version(self, table: str) -> Version | None:
        with self._lock:
            return self._versions.get(table)

    def reads(self, unique_id: str) -> dict[str, str]:
        """Returns the exact versions of all tables that a node reads (R6, R8).

        Raises:
            BuscoError: a table has no version, or its version is still being built.
        """
        with self._lock:
            parents = self.project.parents(unique_id)
            missing = sorted(p for p in parents if p not in self._versions or p in self._unbuilt)
            if missing:
                where = f"in run {self.run.name} or its base release" if self.run else "in the live release"
                raise BuscoError(f"{', '.join(missing)} has no version {where}", "build it first")
            return {parent: self._versions[parent].version for parent in sorted(parents)}

    # -- relations ----------------------------------------------------------------------------------------------------

    def relations(self) -> Iterator[tuple[str, str, str, bool]]:
        """Yields the schema, name and query of every relation that models can read, and whether the query is free of
        text from the project. The relations are created once, when dbt connects (Q3).

        A table without a version is a typed empty relation, created from its contract, since unit tests read its
        columns.
        """
        project, bucket = self.project, self.store.bucket if self.store else ""
        for unique_id in (*project.sources, *project.nodes):
            node = project.node(unique_id)
            if unique_id in project.nodes and node["resource_type"] not in ("model", "seed"):
                continue
            if unique_id in project.nodes and node["config"]["materialized"] == "ephemeral":
                continue
            table = project.table_of(unique_id)
            version = self.version(table) if table else None
            if version is not None:
                yield node["schema"], version.table.split(".", 1)[1], select_sql(version, bucket), True
            elif columns := project.columns(unique_id):
                name = node.get("identifier") or node.get("alias") or node["name"]
                yield node["schema"], name, empty_sql(columns), False

    def schemas(self) -> set[str]:
        return {schema for schema, _, _, _ in self.relations()}

    # -- creating a version -------------------------------------------------------------------------------------------

    def begin(self, job: dict[str, Any]) -> None:
        """Takes the table's entry, and decides whether its version from the base release is kept (R4, R7).

        `job` is the materialization's dictionary. Input: `node`, `sql`; output: `keep`, and `view_sql` if it is kept.
        """
        if self.run is None or self.store is None:
            raise BuscoError(
                "models with the materialization `lake` can be built only in a run", "use: busco dbt build"
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
        )
        if job["keep"] and known is not None:
            self._enter(job, known, kept=True)

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
        """Refuses columns that a subquery of the SQL returned twice. Input: `known`, the result of `known_sql`."""
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

        `count_sql` has up to two queries, by name: `nulls` counts NULLs in nested not_null columns (docs/iceberg.md,
        "null counts"), and `beyond` counts dates and times that may be out of range. It is usually empty. `commit`
        gets the results in `counted`.
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

        store, table, version_id = self._store(), str(job["table"]), str(job["version"])
        columns: tuple[Column, ...] = job["columns"]
        files, counted = job["files"], job["counted"]
        if job["suspects"] is not None:
            advice = "replace them with NULL or a date in range"
            date_range.check(table, job["suspects"], counted["beyond"], store.url, self._run().name, advice)
        model_sql.check_not_null(columns, files, counted.get("nulls") or {})
        folder = self.environment.data(table, version_id)
        etags = store.etags(f"{folder}/", {file.key: file.bytes for file in files})
        location = self.environment.iceberg(table)
        metadata = self.environment.metadata(table, version_id)
        versions.write_metadata(
            store,
            location,
            metadata,
            table_uuid(location),
            columns,
            job["partition_by"],
            files,
            {"busco.version": version_id, "busco.run": self._run().name},
            job["personal"],
        )
        version = Version(
            table=table,
            version=version_id,
            columns=columns,
            partition_by=job["partition_by"],
            rows=sum(file.rows for file in files),
            bytes=sum(file.bytes for file in files),
            files=tuple(
                DataFile(key=file.key, rows=file.rows, bytes=file.bytes, etag=etags[file.key]) for file in files
            ),
            metadata=metadata,
            inputs=job["reads"],
            fingerprint=str(job["fingerprint"]),
            unique_id=str(job["node"]),
            project=self.project.identity,
            personal=tuple(sorted(job["personal"])),
            made_at=utc_now(),
        )
        self._enter(job, version, kept=False)

    def _enter(self, job: dict[str, Any], version: Version, kept: bool) -> None:
        self._fenced(lambda run: run.enter(version.table, str(job["token"]), version, kept), version.table)
        with self._lock:
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


def table_uuid(location: str) -> uuid.UUID:
    """Returns a table's Iceberg UUID, which is the same for all of its versions."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"busco:{location}")


def write_bronze_metadata(settings: Settings, run: Run, pinned: Mapping[str, Version], base: Release | None) -> None:
    """Writes the Iceberg metadata of those pinned bronze versions that have none yet (R3).

    Raises:
        BuscoError: a delivery has dates or times that readers do not support; an older `busco ingest` accepted them.
    """
    known = {version.version for version in base.tables.values()} if base else set()
    fresh = [version for version in pinned.values() if version.version not in known]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda version: _bronze_metadata(settings, run, version), fresh))


def _bronze_metadata(settings: Settings, run: Run, version: Version) -> None:
    store = run.store
    if store.get(version.metadata) is not None:
        return
    from busco.lake import versions

    deliveries: Sequence[Delivery] = store.read_many(list(version.deliveries), Delivery)
    files = [
        versions.WrittenFile(delivery.object, delivery.rows, delivery.bytes, delivery.statistics, {})
        for delivery in deliveries
    ]
    if (suspects := date_range.suspects(version.columns, files)) is not None:
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
    location = EnvironmentLayout("prod").iceberg(version.table)
    versions.write_metadata(
        store,
        location,
        version.metadata,
        table_uuid(location),
        version.columns,
        (),
        files,
        {"busco.version": version.version},
        # an older pin doesn't list the personal columns, so any column may be one
        [column.name for column in version.columns] if version.personal is None else version.personal,
    )


def quoted_relation(schema: str, name: str) -> str:
    return f"{types.quoted(schema)}.{types.quoted(name)}"
