"""The lake's JSON records: the contents of each object below `_lake/`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict


class LakeRecord(BaseModel):
    """An immutable record. Fields added by later versions of the platform are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Column(LakeRecord):
    """A column of a table; `type` is DuckDB's type name (`DECIMAL(12,2)`, `STRUCT(a INTEGER)`)."""

    name: str
    type: str
    required: bool = False


class DataFile(LakeRecord):
    """A Parquet file: its key in the lake bucket, row count, size in bytes, and the ETag that S3 returned for it.

    If the object has a different ETag, the file was overwritten (`busco.lake.overwritten`). The ETag is empty in
    records that were written before ETags were kept.
    """

    key: str
    rows: int
    bytes: int
    etag: str = ""


class Version(LakeRecord):
    """An immutable version of a table's content (docs/protocol.md, R5), with what readers and publishers need.

    `table` is `<layer>.<name>`; `inputs` maps each parent table to the exact version that was read (R6);
    `deliveries` are the keys of a bronze table's delivery records; `metadata` is the key of its Iceberg metadata.
    `project` is the identity of the dbt project that made the version. `personal` are the columns that contain, or
    might contain, personal data and for which the metadata has no bounds; None in records that were written before this
    field existed.
    """

    table: str
    version: str
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ()
    rows: int
    bytes: int
    files: tuple[DataFile, ...]
    metadata: str
    inputs: dict[str, str] = {}
    fingerprint: str = ""
    unique_id: str = ""
    project: str = ""
    deliveries: tuple[str, ...] = ()
    personal: tuple[str, ...] | None = None
    made_at: datetime | None = None


class Delivery(LakeRecord):
    """A delivery of a source file (D1, D3). Deliveries with the same file name are numbered (`number`). Times are UTC.

    `statistics` is COPY's `column_statistics`, from which Iceberg metadata is made without opening the file; for pii
    columns it contains only counts (`busco.lake.bounds`). `etag` is the Parquet file's ETag, as in `DataFile`.
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
    etag: str = ""


class Pin(LakeRecord):
    """What a run is based on (R2).

    `nodes` are the dbt unique ids of the selected nodes, or None if everything is selected. `origin` is Airflow's
    internal id of the DAG run, which distinguishes the DAG run from a deleted one with the same run id. `project` is
    the dbt project's identity (its id or its dbt name), and `project_dir` is the project's folder, relative to the
    platform's home directory; both are empty in records that were written before a lake could have several projects.
    `project_id` is the project's id, or empty if it has none.
    """

    run: str
    epoch: int
    environment: str
    base: str | None
    bronze: dict[str, Version]
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

    table: str
    token: str
    runner: int
    version: Version | None = None
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
    """An order to start a runner, written before the start (If-None-Match) so that all triggerers start the same one.

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
    epoch); `log` is the file on that host that contains the output. An ECS task is identified by its ARN; `cpu` is in
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
    the node (R4), so this result does not count. A runner's result about itself contains the `plan`: the nodes that the
    runner will report results for.
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
    plan: tuple[str, ...] | None = None


class Hold(LakeRecord):
    """While a hold is in effect, nothing is published (P8). `skipped` are the runs that would have been published."""

    who: str
    when: datetime
    reason: str
    skipped: tuple[str, ...] = ()

    def is_same(self, other: Hold) -> bool:
        """Returns whether both records are of the same hold, ignoring `skipped`, which grows during a hold."""
        return (self.who, self.when, self.reason) == (other.who, other.when, other.reason)


class Resumed(LakeRecord):
    """The hold that was lifted last, kept so that the request that lifted it (`request`) can safely be repeated."""

    hold: Hold
    request: str = ""


class Current(LakeRecord):
    """Points to the live release. For readers, no other object is ever replaced. `serial` increases with each swap."""

    release: str
    serial: int
    hold: Hold | None = None
    resumed: Resumed | None = None


class Release(LakeRecord):
    """A consistent mapping from tables to versions (P1).

    `stale` maps each stale table to its inputs that differ from this release or are stale themselves (P5). `project` is
    the identity of the dbt project that was published, and `docs` the key prefix of its run's docs. `all_docs` has the
    docs prefix of each project with tables in this release; for the published project it is `docs`, unless newer docs
    were already live. `names` maps the id of each of these projects that has one to the project's dbt name.
    """

    release: str
    previous: str | None
    kind: Literal["publish", "rollback"]
    environment: str
    run: str
    epoch: int
    tables: dict[str, Version]
    stale: dict[str, tuple[str, ...]] = {}
    dropped: tuple[str, ...] = ()
    built: tuple[str, ...] = ()
    docs: str = ""
    project: str = ""
    all_docs: dict[str, str] = {}
    names: dict[str, str] = {}
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
