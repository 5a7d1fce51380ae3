"""The lake's JSON records: the contents of each object below `_lake/`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from busco.errors import BuscoError

# The format of the records that this code writes. It is raised when a change would keep older code from reading records
# correctly, but not when a field is added that older code may ignore. This code also reads the previous format, and
# writes it for runs that were pinned in that format (docs/protocol.md, "Formats").
FORMAT = 2


class LakeRecord(BaseModel):
    """An immutable record. Fields that a later release of the platform added are kept when a record is copied.

    Raises:
        BuscoError: the record's `format` is neither this code's nor the previous one.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    # The format of stored records that state none.
    unnumbered: ClassVar[int] = 1

    @model_validator(mode="before")
    @classmethod
    def _check_format(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict):
            return data
        if info.mode == "json" and "format" in cls.model_fields:
            data = {"format": cls.unnumbered, **data}
        found = data.get("format", FORMAT)
        if found not in (FORMAT - 1, FORMAT):
            kind = cls.__name__.lower()
            raise BuscoError(
                f"a {kind} record in the lake has format {found}, but this code reads only formats {FORMAT - 1} and "
                f"{FORMAT}",
                "nothing was changed; use the release of the platform that the lake was written with "
                "(docs/upgrading.md, Formats)",
            )
        return data


class Column(LakeRecord):
    """A column of a table; `type` is DuckDB's type name (`DECIMAL(12,2)`, `STRUCT(a INTEGER)`)."""

    name: str
    type: str
    required: bool = False


class DataFile(LakeRecord):
    """A Parquet file: its key in the lake bucket, row count, size in bytes, and the ETag that S3 returned for it.

    If the object has a different ETag, the file was overwritten (`busco.lake.inventory`). The ETag is empty in records
    that were written before ETags were recorded.

    `partition` maps each partition column to its value in this file, as text; NULL has no entry. `statistics` maps each
    quoted column path (`"st"."a"`) to what COPY's RETURN_STATS reports for it, as text: `min`, `max`, `null_count`,
    `num_values`, `column_size_bytes`, `has_nan`. Records have no bounds for personal columns. Both are empty for the
    files of bronze tables, whose statistics are in the delivery records, and in records of format 1.
    """

    key: str
    rows: int
    bytes: int
    etag: str = ""
    partition: dict[str, str] = {}
    statistics: dict[str, dict[str, str]] = {}


class PageOfDeliveries(LakeRecord):
    """A page as a bronze version's record names it: its id, and its numbers of deliveries, rows and bytes.

    `corrected` is the number of deliveries that the page leaves out because of their dates (`Page`). `etag` is the ETag
    that S3 returned for the page.
    """

    page: str
    deliveries: int
    rows: int
    bytes: int
    corrected: int = 0
    etag: str = ""


class Version(LakeRecord):
    """An immutable version of a table's content, with everything that is needed to read it (docs/protocol.md, R5).

    This is the version's own record, from which its Iceberg metadata can be recreated. `table` is `<layer>.<name>`.
    `inputs` maps each parent table to the exact version that was read (R6). A version of a bronze table names `pages`
    of deliveries instead of `files`.

    `project` is the identity of the dbt project that made the version. `personal` are the columns that contain, or
    might contain, personal data and for which the metadata has no bounds; None in records that were written before this
    field existed. If `busco scrub` has replaced the record, `replaces` is the ETag of the original record, which
    releases continue to name.

    `busco.lake.contents` fills three fields when it reads a version: `files` and `deliveries` (the keys of the delivery
    records) of a bronze version, and `metadata`, which is the key of the Iceberg metadata that the release names
    (`Published`). In format 1, where versions had no records of their own, these fields were stored. The first records
    in format 2 state no format.
    """

    unnumbered: ClassVar[int] = 2

    format: int = FORMAT
    table: str
    version: str
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ()
    rows: int
    bytes: int
    files: tuple[DataFile, ...] = ()
    pages: tuple[PageOfDeliveries, ...] = ()
    metadata: str = ""
    inputs: dict[str, str] = {}
    fingerprint: str = ""
    unique_id: str = ""
    project: str = ""
    deliveries: tuple[str, ...] = ()
    personal: tuple[str, ...] | None = None
    made_at: datetime | None = None
    replaces: str = ""


class Published(LakeRecord):
    """A table's version as pins, entries and releases name it. Its size does not depend on the number of files.

    `record` is the key of the version's own record, and `etag` is the ETag that S3 returned for it. `files` is the
    number of its data files, which for a bronze table is the number of its deliveries. `metadata` is the key of the
    Iceberg metadata that readers get. `since` is the release that introduced the version, or the rollback that made it
    live again; it is set only in releases, and is empty for versions that are older than this field. `inputs`,
    `fingerprint`, `unique_id` and `project` are copied from the version, because P4 to P7 compare them for all tables;
    `project` changes if another project takes over the table.

    `inline` is the whole version, which records of format 1 contain; such a version has no record of its own, and
    `record` is empty. It can only be written by `formats.encode`, so that a version without its files is never stored.
    """

    table: str
    version: str
    record: str = ""
    etag: str = ""
    rows: int
    bytes: int
    files: int
    metadata: str
    inputs: dict[str, str] = {}
    fingerprint: str = ""
    unique_id: str = ""
    project: str = ""
    since: str = ""
    inline: Version | None = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _from_format_1(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "columns" not in data:
            return data
        version = Version.model_validate({name: one for name, one in data.items() if name != "since"} | {"format": 1})
        return cls._fields_of(version) | {"inline": version, "since": data.get("since", "")}

    @model_serializer(mode="wrap")
    def _refuse_inline(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        if self.inline is not None:
            raise ValueError(f"{self.table} has no record of its own, so it must be encoded in format 1")
        return dict(serialize(self))

    @classmethod
    def of(cls, version: Version, record: str, metadata: str, etag: str = "") -> Self:
        """Returns a version as a release names it.

        Args:
            record, etag: the key and ETag of the version's own record.
            metadata: the key of its Iceberg metadata.
        """
        return cls.model_validate({**cls._fields_of(version), "record": record, "metadata": metadata, "etag": etag})

    @staticmethod
    def _fields_of(version: Version) -> dict[str, Any]:
        names = ("table", "version", "rows", "bytes", "metadata", "inputs", "fingerprint", "unique_id", "project")
        count = sum(page.deliveries for page in version.pages) if version.pages else len(version.files)
        return {name: getattr(version, name) for name in names} | {"files": count}


class DeliveredFile(LakeRecord):
    """A delivery in a page. `record` is the key of its delivery record, and `object` that of its Parquet file.

    `etag` is the file's ETag, and `record_etag` that of the delivery record; the latter is empty in pages that were
    written before it was recorded.

    `in_range` says whether all dates and times are in the range that readers support; None if the statistics can't tell
    or the contract has no dates or times.
    """

    record: str
    object: str
    rows: int
    bytes: int
    etag: str = ""
    record_etag: str = ""
    in_range: bool | None = None


class Page(LakeRecord):
    """A page of a bronze table's deliveries (R3), written once, under an id that is derived from its content.

    Some deliveries in the page's range are not part of the table, because newer deliveries of the same files replace
    them: `outdated` are the keys of the records that were made under another contract, and `corrected` are the keys of
    those with dates or times that readers don't support.
    """

    unnumbered: ClassVar[int] = 2

    format: int = FORMAT
    table: str
    deliveries: tuple[DeliveredFile, ...]
    outdated: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()


class Delivery(LakeRecord):
    """A delivery of a source file (D1, D3). Deliveries with the same file name are numbered (`number`). Times are UTC.

    `statistics` is COPY's `column_statistics`, from which Iceberg metadata is made without opening the file; for pii
    columns it contains only counts (`busco.lake.bounds`). `etag` is the Parquet file's ETag, as in `DataFile`. If
    `busco scrub` has replaced the record, `replaces` is the ETag of the original record. `source` is what was ingested:
    a file's base name, or the URL of an object in the landing bucket. `source_version` and `source_etag` are the id and
    the ETag of the object's version that was read.
    """

    table: str
    file_name: str
    number: int
    object: str
    attempt: str
    content_hash: str
    contract_hash: str
    columns: tuple[Column, ...]
    rows: int
    quarantined: int
    bytes: int
    statistics: dict[str, dict[str, str]]
    ingested_at: datetime
    source: str = ""
    source_version: str = ""
    source_etag: str = ""
    etag: str = ""
    replaces: str = ""


class Arrival(LakeRecord):
    """An object that arrived in the landing bucket, as one version of it.

    `version` is the version's id; in a bucket without versions, it is empty or `null`. `etag` has no quotes; `size` is
    in bytes.
    """

    key: str
    version: str
    etag: str
    size: int


class IngestOrder(LakeRecord):
    """An order to ingest objects of the landing bucket, for a process or ECS task that runs `busco ingest --order`.

    If `everything` is set, the order only lists the objects without a delivery whose keys come after `after`; `objects`
    is empty.
    """

    format: int = FORMAT
    order: str
    objects: tuple[Arrival, ...] = ()
    everything: bool = False
    after: str = ""
    ordered_at: datetime


class IngestedObject(LakeRecord):
    """The result for one object of an order.

    `key`, `version`, `etag` and `size` are those of the order (`Arrival`). `outcome` is `ingested`, `known` (a delivery
    had been made from it before), `refused` (with the `reason`), `ignored` (it is not a delivery), or `listed` (by an
    order for everything). `transient` means that the same object may be accepted later (`busco.ingest.refused`).
    `table` is the bronze table's full name, empty if the object is for none; `rows` and `quarantined` are counts of
    rows.
    """

    key: str
    version: str
    etag: str
    size: int
    outcome: Literal["ingested", "known", "refused", "ignored", "listed"]
    transient: bool = False
    table: str = ""
    rows: int = 0
    quarantined: int = 0
    reason: str = ""


class IngestOutcome(LakeRecord):
    """The result of an order. The record is written once, after all of the order's objects have been handled.

    `more` means that an order for everything has not listed everything: the next one begins after the last key.
    """

    format: int = FORMAT
    order: str
    objects: tuple[IngestedObject, ...]
    more: bool = False
    ended_at: datetime


class Pin(LakeRecord):
    """What a run is based on (R2).

    `nodes` are the dbt unique ids of the selected nodes, or None if everything is selected. `origin` is Airflow's
    internal id of the DAG run, which distinguishes the DAG run from a deleted one with the same run id. `project` is
    the dbt project's identity (its id or its dbt name), and `project_dir` is the project's folder, relative to the
    platform's home directory; both are empty in records that were written before a lake could have several projects.
    `project_id` is the project's id, or empty if it has none.
    """

    format: int = FORMAT
    run: str
    epoch: int
    environment: str
    base: str | None
    bronze: dict[str, Published]
    manifest_hash: str
    select: str = ""
    nodes: tuple[str, ...] | None = None
    full_refresh: bool = False
    code_version: str = ""
    created_at: datetime
    attempt: str = ""
    origin: str = ""
    project: str = ""
    project_dir: str = ""
    project_id: str = ""


class Entry(LakeRecord):
    """A table's entry in a run. It also fences off runners (R4): only the runner that has `token` can set `version`."""

    format: int = FORMAT
    table: str
    token: str
    runner: int
    version: Published | None = None
    kept: bool = False


class Selection(LakeRecord):
    """The result of resolving a selection (in dbt's syntax), written by a process that has dbt for one that doesn't.

    `nodes` are the dbt unique ids; if there are none, `error` states why. `notes` has a sentence for each part of the
    selection that matched nothing or was left out.
    """

    select: str
    nodes: tuple[str, ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()


class Order(LakeRecord):
    """An order to start a runner, written first (with If-None-Match) so that all triggerers start the same one.

    `name` identifies the requester: `shared`, or a task's key and try. Under each name, `generation` n + 1 is written
    only after the runner of generation n has ended. `written` is a unique id of the write, which shows which
    triggerer's order was stored if two of them wrote the same order. `kind` is `shared` (the runner handles everything
    in the run that has no result yet) or `solo` (it reports results for `nodes`, which are dbt unique ids). With
    `rebuild`, models are built even if a version could be kept (R7). `size` is the size of the runner's ECS task;
    `token` is part of that task's `startedBy`, and the task's ECS client token starts with `token`.
    """

    name: str
    generation: int
    kind: Literal["shared", "solo"]
    nodes: tuple[str, ...] = ()
    task: str = ""
    attempt: int = 0
    rebuild: bool = False
    size: str = ""
    token: str = ""
    written: str = ""


class Runner(LakeRecord):
    """Runner n of a run (R9), with the information needed to check whether it is alive.

    `kind` is `shared` (the runner handles everything in the run that has no result yet; `nodes` is empty, and the
    result of RUNNER_NODE contains the plan) or `solo` (`nodes` are the unique ids that the runner will report results
    for, usually for try `attempt` of the task `task`). `order` and `generation` identify the order that the runner was
    started for. A process is identified by its host (`processes.this_host`), pid and start time (seconds since the Unix
    epoch); `log` is the file on that host with the process's output. An ECS task is identified by its ARN; `cpu` is in
    CPU units (1024 per vCPU), `memory` in MiB.
    """

    number: int
    kind: Literal["shared", "solo"]
    nodes: tuple[str, ...] = ()
    task: str = ""
    attempt: int = 0
    order: str = ""
    generation: int = 0
    launcher: str
    host: str
    pid: int
    started: float
    token: str
    log: str = ""
    arn: str = ""
    size: str = ""
    cpu: int = 0
    memory: int = 0


class Heartbeat(LakeRecord):
    """A runner's heartbeat. It is overwritten regularly, each time with different content; times are UTC."""

    number: int
    beat: int
    written_at: datetime


class Ending(LakeRecord):
    """How runner `number` ended. The record is written once, by the first process that notices the end.

    Only then can another runner of the same kind be started. `reason` describes the end in words, and `hint` states
    what to do. `out_of_memory` means that the container was killed for using too much memory; `passing` means that a
    retry may succeed (after a spot interruption, a kill from outside, or an ECS restart). `started_at` is the start
    of the image pull, which is when Fargate's billing begins, and `stopped_at` is the end of the task; both are UTC, as
    reported by ECS.
    """

    number: int
    reason: str
    hint: str = ""
    out_of_memory: bool = False
    passing: bool = False
    exit_code: int | None = None
    started_at: datetime | None = None
    stopped_at: datetime | None = None


# The node name of a runner's result about itself: its plan, or why it ended before it could report on any node (for
# example, because the project doesn't parse).
RUNNER_NODE = "runner"
# The node name of results for the docs, which are handled like a node of the graph; no dbt unique id looks like this.
DOCS_NODE = "docs"


class Follower(LakeRecord):
    """An Airflow task's progress in following its run's runners, across all of its tries in an epoch.

    `attempt` is Airflow's try number. Results of runners with numbers up to `after` do not count for this try. `runner`
    is the last runner whose result the task has used, or 0 if there is none yet. `again` means that an earlier try in
    the epoch had a result, so this try must produce a new one.

    The other fields describe the state when this try began: `before` is the newest runner at that time (0 if there was
    none), `past` are the runners that had ended, and `orders` maps each order that several tasks share to its newest
    generation. With these fields, a try that continues in another triggerer makes the same decisions. `before` is None
    in records that were written before these fields existed.
    """

    task: str
    attempt: int
    after: int = 0
    runner: int = 0
    again: bool = False
    before: int | None = None
    past: tuple[int, ...] = ()
    orders: dict[str, int] = {}


Status = Literal["running", "success", "warn", "failed", "error", "skipped"]
FINAL: frozenset[str] = frozenset({"success", "warn", "failed", "error", "skipped"})
GOOD: frozenset[str] = frozenset({"success", "warn"})


class Result(LakeRecord):
    """The result that a runner reports for a node (R8, R9).

    `reads` are the versions of all tables that the node read, and `made` is the version that it made or kept. `seconds`
    is wall time; `message` is one line, and `error` is the full text. `fenced` means that another runner has taken over
    the node (R4), so this result does not count. `tested` is the code that a unit test has tested (R6). A runner's
    result about itself contains the `plan`: the nodes that the runner will report results for.
    """

    node: str
    runner: int
    status: Status
    reads: dict[str, str] = {}
    made: str | None = None
    kept: bool = False
    rows: int | None = None
    failures: int | None = None
    message: str = ""
    error: str = ""
    where: str = ""
    seconds: float = 0.0
    finished_at: datetime | None = None
    code_version: str = ""
    fenced: bool = False
    tested: str = ""
    plan: tuple[str, ...] | None = None


class Hold(LakeRecord):
    """While a hold is in effect, nothing is published (P8). `skipped` are the runs that would have been published."""

    who: str
    when: datetime
    reason: str
    skipped: tuple[str, ...] = ()

    def is_same(self, other: Hold) -> bool:
        """Returns whether both records describe the same hold, ignoring `skipped`, which grows during a hold."""
        return (self.who, self.when, self.reason) == (other.who, other.when, other.reason)


class Resumed(LakeRecord):
    """The most recently lifted hold, kept so that the request that lifted it (`request`) can safely be repeated."""

    hold: Hold
    request: str = ""


class Current(LakeRecord):
    """Points to the live release; `serial` increases with each swap.

    Of all the objects that readers read, only this one is ever replaced.
    """

    release: str
    serial: int
    hold: Hold | None = None
    resumed: Resumed | None = None


class Release(LakeRecord):
    """A consistent mapping from tables to versions (P1).

    `stale` maps each stale table to its inputs that differ from this release or are stale themselves (P5). `project` is
    the identity of the dbt project that was published, and `docs` the key prefix of its run's docs. `all_docs` has the
    docs prefix of each project with tables in this release; for the published project it is `docs`, unless newer docs
    were already live. `names` maps the ids of these projects, if they have one, to dbt names. `tested_code` is
    the code of each project with which all of its unit tests have passed (R7).
    """

    format: int = FORMAT
    release: str
    previous: str | None
    kind: Literal["publish", "rollback"]
    environment: str
    run: str
    epoch: int
    tables: dict[str, Published]
    stale: dict[str, tuple[str, ...]] = {}
    dropped: tuple[str, ...] = ()
    built: tuple[str, ...] = ()
    docs: str = ""
    project: str = ""
    all_docs: dict[str, str] = {}
    names: dict[str, str] = {}
    tested_code: dict[str, str] = {}
    who: str
    reason: str = ""
    code_version: str = ""
    created_at: datetime
    rolled_back_to: str | None = None

    def docs_by_project(self) -> dict[str, str]:
        """Returns docs prefixes by project identity. Records without `all_docs` have the docs of only one project."""
        if self.all_docs or not self.docs:
            return self.all_docs
        return {version.project: self.docs for version in self.tables.values() if version.project}


def utc_now() -> datetime:
    """Returns the current time in UTC, to the microsecond."""
    return datetime.now(UTC)
