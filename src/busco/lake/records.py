"""The records that the lake keeps in JSON: what each object below `_lake/` holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict


class LakeRecord(BaseModel):
    """An immutable record; fields that a later version of the platform adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Column(LakeRecord):
    """A table's column: `type` is DuckDB's name for it (`DECIMAL(12,2)`, `STRUCT(a INTEGER)`)."""

    name: str
    type: str
    required: bool = False


class DataFile(LakeRecord):
    """A Parquet file: its key in the lake bucket, its rows, its bytes, and the ETag that S3 gave it.

    A file with another ETag was overwritten (`busco.lake.overwritten`); records that were written before ETags were
    kept have an empty one.
    """

    key: str
    rows: int
    bytes: int
    etag: str = ""


class Version(LakeRecord):
    """One table's content, once written, for ever (protocol.md, R5): what readers and publishers need of it.

    `table` is `<layer>.<name>`; `inputs` maps each parent table to the exact version that was read (R6);
    `deliveries` are the keys of a bronze table's delivery records; `metadata` is the key of its Iceberg metadata.
    `project` is the identity of the dbt project that made it.
    `personal` are the columns that have, or may have, personal data, of which the metadata has no bounds; None in
    records of before that was kept.
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
    """One delivery of a source file (D1, D3). `number` is n under its file name; times are UTC.

    `statistics` is COPY's `column_statistics`, from which Iceberg metadata is made without opening the file; of pii
    columns it has counts only (`busco.lake.bounds`). `etag` is the Parquet file's, as in `DataFile`.
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
    """What a run is based on (R2). `nodes` are the dbt unique ids of the selection, None for everything; `origin` is
    Airflow's own id of the DAG run, which tells it from an earlier one of the same run id that was deleted; `project`
    is the dbt project's identity (its id, or its dbt name) and `project_dir` its folder below the platform's home
    (records of before there were several have neither); `project_id` is its id, empty where it has none."""

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
    """A table's place in a run, and the fence (R4): `version` is set only while `token` stands."""

    table: str
    token: str
    runner: int
    version: Version | None = None
    kept: bool = False


class Selection(LakeRecord):
    """What a selection (dbt's syntax) names, written by who has dbt for who has not: the dbt unique ids in `nodes`, or
    in `error` why there are none; in `notes` a sentence for each part of it that matched nothing or was left out."""

    select: str
    nodes: tuple[str, ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()


class Order(LakeRecord):
    """What a runner is started for, written before it is (If-None-Match), so that every triggerer starts the same one.

    `name` is what asks for it: `shared`, or a task's key and try; `generation` n + 1 under a name is written only after
    n is gone; `written` is an id of the write, which tells whose order it is where two triggerers write the same one.
    `kind` is `shared` (whatever of the run has no result yet) or `solo` (`nodes`, the dbt unique ids that it
    gives results for). `rebuild`: models are built even where a version could be kept (R7). `size` is that of its ECS
    task; `token` is in its `startedBy`, and its ECS client token begins with it.
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
    """Runner n of a run (R9): who it is, so that anybody can see whether it lives.

    `kind` is `shared` (whatever of the run has no result yet: `nodes` is empty, and the result of RUNNER_NODE says what
    it is going to do) or `solo` (`nodes` are the unique ids that it will give results for, mostly for try `attempt` of
    the task `task`); `order` and `generation` name the order that it was started by. A process is known by host
    (`processes.this_host`), pid and start time (seconds since the epoch); `log` is its output's file on that host. An
    ECS task is known by its ARN; `cpu` is in CPU units (1024 a vCPU), `memory` in MiB.
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
    """A runner's sign of life, written over and over: its content has changed since the last one (UTC)."""

    number: int
    beat: int
    written_at: datetime


class Ending(LakeRecord):
    """How runner n was seen gone, written once by whoever saw it first: n + 1 of its kind is started only after that.

    `reason` says it in words; `out_of_memory` that its container was killed for memory, `passing` that the same again
    may go well: a spot interruption, a kill from outside, ECS restarted; `hint` what to do. Times are UTC, as ECS has
    them: of the image's pull, from where Fargate bills, and of the task's end.
    """

    number: int
    reason: str
    hint: str = ""
    out_of_memory: bool = False
    passing: bool = False
    exit_code: int | None = None
    started_at: datetime | None = None
    stopped_at: datetime | None = None


# A runner's word on itself, where it ends before it can give one on its nodes (the project doesn't parse, …).
RUNNER_NODE = "runner"
# The docs have results like a node of the graph; no dbt unique id looks so.
DOCS_NODE = "docs"


class Follower(LakeRecord):
    """How far an Airflow task has come in following its run's runners, over all of its tries in an epoch.

    `attempt` is Airflow's try number; results of runners up to `after` are not for this try any more; `runner` is the
    last one whose result it took, 0 while it has none; `again` says that an earlier try of the epoch had a result, so
    that this one builds again. `before` is the newest runner when this try began (0 where there was none), and `past`
    are those that were gone then; `orders` has the newest generation of each order for several tasks that there was. A
    try that goes on in another triggerer judges by these, as it did when it began. Records that were written before
    these were kept have None in `before`.
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
    """What a runner says of a node (R8, R9): `reads` are the versions of all tables that it read, `made` the
    version that it made or kept. `seconds` is wall time; `message` is one line, `error` all of it; `fenced` says that
    another runner has taken the node over (R4), so that this word on it counts for nothing. A runner's word on itself
    has the `plan`: the nodes that it is going to give results for."""

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
    """Nothing is published while it stands (P8); `skipped` are the runs that would have been."""

    who: str
    when: datetime
    reason: str
    skipped: tuple[str, ...] = ()

    def is_same(self, other: Hold) -> bool:
        """Whether both are one hold, at two times: runs are added to it while it stands."""
        return (self.who, self.when, self.reason) == (other.who, other.when, other.reason)


class Resumed(LakeRecord):
    """The hold that was lifted last, so that whoever did it can ask again which runs it names; `request` says who."""

    hold: Hold
    request: str = ""


class Current(LakeRecord):
    """The live release: the only object that is swapped in place for readers. `serial` grows with each swap."""

    release: str
    serial: int
    hold: Hold | None = None
    resumed: Resumed | None = None


class Release(LakeRecord):
    """Every table → version, consistent (P1). `stale` names tables whose inputs differ from this release's (P5);
    `project` is the identity of the dbt project that was published, and `docs` the prefix of its run's docs. `all_docs`
    has the prefix of each project with tables here: for that project it is `docs`, unless newer ones were live already.
    `names` has the dbt name of each of these projects that has an id, by that id."""

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
        """Where each project's docs lie, by its identity; of a record that doesn't say, the one project's."""
        if self.all_docs or not self.docs:
            return self.all_docs
        return {version.project: self.docs for version in self.tables.values() if version.project}


def utc_now() -> datetime:
    """Now in UTC, to the microsecond."""
    return datetime.now(UTC)
