"""An in-memory lake with a small dbt project, and the runs that the protocol tests perform on it."""

from __future__ import annotations

from collections.abc import Collection

from busco.lake import releases
from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, DataFile, Pin, Published, Release, Result, Version, utc_now
from busco.lake.runs import Run, save_pin
from tests.unit.memory_s3 import MemoryS3

ENVIRONMENT = EnvironmentLayout("prod")
COLUMNS = (Column(name="a", type="INTEGER"),)
# bronze.b → silver.s → gold.g; gold.h reads silver.s and bronze.b; no table reads bronze.c
PARENTS = {"silver.s": ("bronze.b",), "gold.g": ("silver.s",), "gold.h": ("silver.s", "bronze.b")}
TESTS = {f"test.{table}": frozenset({table}) for table in PARENTS} | {"test.joint": frozenset({"gold.g", "gold.h"})}


def audit_of(tables: Collection[str] = tuple(PARENTS), project: str = "busco") -> releases.Audit:
    """Returns the audit for code of the project that contains only `tables`."""
    defined = frozenset(tables)
    tests = {test: reads for test, reads in TESTS.items() if reads <= defined}
    return releases.Audit(tests, defined, project, manifest_hash(defined), {})


def manifest_hash(tables: Collection[str]) -> str:
    return "hash of " + ", ".join(sorted(tables))


AUDIT = audit_of()


def bronze(store: ObjectStore, number: int, table: str = "bronze.b") -> Published:
    """Writes the record of a bronze table's version that consists of its first `number` deliveries, and returns it."""
    deliveries = tuple(f"{table}/d{n}" for n in range(number))
    identity = f"{table[-1]}{number}"
    record = Version(
        table=table,
        version=identity,
        columns=COLUMNS,
        rows=number,
        bytes=number,
        files=tuple(DataFile(key=f"bronze/{d}", rows=1, bytes=1) for d in deliveries),
        deliveries=deliveries,
    )
    key = ENVIRONMENT.version(table, identity)
    if store.get(key) is None:
        store.create(key, record)
    return Published.of(record, key, metadata(store, table, identity))


def metadata(store: ObjectStore, table: str, identity: str) -> str:
    """Writes an object in the place of a version's Iceberg metadata, and returns its key."""
    key = ENVIRONMENT.metadata(table, identity)
    if store.missing([key]):
        store.create(key, b"{}")
    return key


def version(
    table: str, inputs: dict[str, str], identity: str = "", code: str = "f", store: ObjectStore | None = None
) -> Published:
    """Returns a new version of a table without files, as entries name it. Its record and metadata are written
    to `store`."""
    identity = identity or new_id()
    made = Version(
        table=table,
        version=identity,
        columns=COLUMNS,
        rows=1,
        bytes=1,
        inputs=inputs,
        fingerprint=code,
        project="busco",
        unique_id=f"model.busco.{table.split('.')[1]}",
    )
    key = ENVIRONMENT.version(table, identity)
    if store is not None:
        store.create(key, made)
        metadata(store, table, identity)
    return Published.of(made, key, ENVIRONMENT.metadata(table, identity))


class Lake:
    """An in-memory lake and the runs on it.

    `tables` are the tables in the project's current code; a run keeps the code that it was pinned with.
    """

    def __init__(self) -> None:
        self.s3 = MemoryS3()
        self.store = ObjectStore(self.s3, "lake")
        self.deliveries = 1
        self.other_deliveries = 1
        self.count = 0
        self.tables = frozenset(PARENTS)
        self.runs: dict[tuple[str, int], Run] = {}
        self.audits: dict[tuple[str, int], releases.Audit] = {}
        self.passed: set[tuple[str, frozenset[tuple[str, str]]]] = set()

    def pin(
        self, nodes: tuple[str, ...] | None = None, run: str | None = None, epoch: int = 1, project: str = "busco"
    ) -> Run:
        live = releases.read_live(self.store, ENVIRONMENT)
        self.count += 1
        audit = audit_of(self.tables, project)
        pin = Pin(
            run=run or f"run{self.count}",
            epoch=epoch,
            environment="prod",
            base=live.release.release if live else None,
            bronze={
                "bronze.b": bronze(self.store, self.deliveries),
                "bronze.c": bronze(self.store, self.other_deliveries, "bronze.c"),
            },
            manifest_hash=audit.manifest_hash,
            nodes=nodes,
            created_at=utc_now(),
            attempt=new_id(),
            project=project,
        )
        self.audits.setdefault((pin.run, pin.epoch), audit)
        return self.runs.setdefault((pin.run, pin.epoch), save_pin(self.store, ENVIRONMENT, pin))

    def audit(self, run: Run) -> releases.Audit:
        return self.audits[run.name, run.pin.epoch]

    def visible(self, run: Run) -> dict[str, str]:
        base = run.base()
        found = {t: v.version for t, v in base.tables.items()} if base else {}
        found.update({table: pinned.version for table, pinned in run.pin.bronze.items()})
        found.update({t: e.version.version for t, e in run.entries().items() if e.version})
        return found

    def build(self, run: Run, table: str, runner: int = 1, keep: bool = False, code: str = "f") -> None:
        seen = self.visible(run)
        if table not in self.audit(run).tables or any(parent not in seen for parent in PARENTS[table]):
            return
        token, inputs = run.take(table, runner), {p: seen[p] for p in PARENTS[table]}
        known = base.tables.get(table) if (base := run.base()) else None
        if keep and known is not None and (known.inputs, known.fingerprint) == (inputs, code):
            run.enter(table, token, known, kept=True)
        else:
            run.enter(table, token, version(table, inputs, code=code, store=self.store), kept=False)

    def test(self, run: Run, test: str, passed: bool = True, runner: int = 1) -> None:
        seen = self.visible(run)
        reads = {table: seen.get(table, "") for table in TESTS[test]}
        if passed:
            self.passed.add((test, frozenset(reads.items())))
        run.put_result(Result(node=test, runner=runner, status="success" if passed else "failed", reads=reads))

    def build_all(self, run: Run, keep: bool = False, code: str = "f", runner: int = 1) -> None:
        for table in PARENTS:
            self.build(run, table, runner, keep, code)
        for test in self.audit(run).tests:
            self.test(run, test, runner=runner)

    def publish(self, run: Run, take_over: bool = False) -> Release:
        return releases.publish(run, self.audit(run), "me", run.docs, take_over)

    def published(self, keep: bool = False, code: str = "f") -> Run:
        """Pins, builds and publishes a run of everything, and returns it."""
        run = self.pin()
        self.build_all(run, keep, code)
        self.publish(run)
        return run

    def live(self) -> Release:
        live = releases.read_live(self.store, ENVIRONMENT)
        assert live is not None
        return live.release


def others(lake: Lake, table: str = "gold.o") -> tuple[Run, releases.Audit]:
    """Builds a full run of another project, which has one table. Returns the run and its audit."""
    run = lake.pin(project="other")
    made = version(table, {}, store=lake.store).model_copy(update={"project": "other"})
    run.enter(table, run.take(table, 1), made, kept=False)
    audit = releases.Audit({}, frozenset({table}), "other", run.pin.manifest_hash)
    lake.audits[run.name, run.pin.epoch] = audit
    return run, audit
