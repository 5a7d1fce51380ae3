"""Where each object of the lake lies: the only place that builds its keys.

What is made from a name that users choose raises `BuscoError` where S3 would refuse the key (`fitting`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from busco.errors import BuscoError

DELIVERIES = "_lake/deliveries/"
QUARANTINE = "_lake/quarantine/"
ENVIRONMENTS = "_lake/env/"
# what has nothing but the data files of tables below it: all that a model's SQL may read
TABLE_FOLDERS = ("bronze/", "silver/", "gold/")
# environments in which a person builds a run's models again: nothing is ever published in them
REPLAYS = "replay_"

# Keys that are never written without a condition, as patterns of a bucket policy's resources, in which `*` stands for
# any characters, slashes too (IAM user guide, "Resource"). What is written once carries If-None-Match, what is swapped
# carries If-Match, or If-None-Match for its first write. The bucket policy of deploy/aws/lake.yaml asks S3 for it.
WRITTEN_ONCE = (
    "_lake/deliveries/*",
    "_lake/env/*/iceberg/*",
    "_lake/env/*/releases/*",
    "_lake/env/*/runs/*/ended-*.json",
    "_lake/env/*/runs/*/orders/*",
    "_lake/env/*/runs/*/pin.json",
    "_lake/env/*/runs/*/runner-*.json",
    "_lake/env/*/selections/*",
)
SWAPPED = (
    "_lake/env/*/current.json",
    "_lake/env/*/doctor.json",
    "_lake/env/*/runs/*/followers/*",
    "_lake/env/*/runs/*/tables/*",
    "docs/index.html",
    "docs/projects/*",
)


# S3 user guide, "Naming Amazon S3 objects": a key is UTF-8 of at most so many bytes.
MAX_KEY_BYTES = 1024
# No run's key is longer, neither Airflow's nor a local one: what else is in a run's keys has the rest.
MAX_RUN_BYTES = 100


def fitting(key: str, kind: str, name: str) -> str:
    """The key, if S3 takes one that long.

    Args:
        kind, name: what of the key the user can change: `file`, and its name.

    Raises:
        BuscoError: it is too long; with the name, cut after 80 characters.
    """
    size = key_bytes(key)
    if size <= MAX_KEY_BYTES:
        return key
    shown = name if len(name) <= 80 else f"{name[:80]}…"
    raise BuscoError(
        f"the name of the {kind} {shown} is too long: one of its object keys would have {size:,} bytes, and S3 takes "
        f"{MAX_KEY_BYTES:,}",
        "shorten it",
    )


def key_bytes(key: str) -> int:
    """A key's length as S3 counts it. A name that is no UTF-8 is refused elsewhere, and counted all the same."""
    return len(key.encode(errors="surrogatepass"))


def new_id() -> str:
    """32 hexadecimal digits, fresh."""
    return secrets.token_hex(16)


def stamp(moment: datetime) -> str:
    """UTC as `20261124T101500`, for ids that sort by time."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S")


def slug(text: str, most: int = 60) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)[:most].strip("-.")


def run_key(dag_id: str, run_id: str) -> str:
    """The run's key: a slug and hash of DAG and Airflow's run id (R1), so that no two collide."""
    digest = hashlib.sha256(f"{dag_id}\n{run_id}".encode()).hexdigest()[:8]
    return f"{slug(dag_id, 30)}.{slug(run_id)}.{digest}"


def local_run_key(now: datetime) -> str:
    """The key of a run without Airflow: `local.<UTC>.<8 hex>` (R1)."""
    return f"local.{stamp(now)}.{secrets.token_hex(4)}"


def file_slug(name: str) -> str:
    """A file name as one path segment, quoted, so that any name a producer chooses is safe (D1)."""
    return quote(name, safe="")


def split_table(table: str) -> tuple[str, str]:
    """`silver.orders` → (`silver`, `orders`)."""
    layer, _, name = table.partition(".")
    return layer, name


def delivery_prefix(source: str, table: str) -> str:
    return f"{DELIVERIES}{source}.{table}/"


def delivery(source: str, table: str, file_name: str, number: int) -> str:
    return fitting(f"{delivery_prefix(source, table)}{file_slug(file_name)}/{number}.json", "file", file_name)


def bronze_object(source: str, table: str, content_hash: str, attempt: str) -> str:
    key = f"bronze/{source}/{table}/{content_hash[:32]}-{attempt}.parquet"
    return fitting(key, "source table", f"{source}.{table}")


def quarantine(source: str, table: str, file_name: str, attempt: str) -> str:
    key = f"{QUARANTINE}{source}.{table}/{file_slug(file_name)}/{attempt}.parquet"
    return fitting(key, "file", file_name)


def docs_page(project: str) -> str:
    """The docs page of one of several dbt projects."""
    return fitting(f"docs/projects/{project}.html", "dbt project", project)


@dataclass(frozen=True)
class EnvironmentLayout:
    """The keys of one environment (`prod`, `dev_<user>`, …)."""

    environment: str

    @property
    def is_replay(self) -> bool:
        return self.environment.startswith(REPLAYS)

    @property
    def root(self) -> str:
        return f"{ENVIRONMENTS}{self.environment}/"

    @property
    def current(self) -> str:
        return f"{self.root}current.json"

    @property
    def doctor(self) -> str:
        """What `busco doctor` tries conditional writes on: both roles of deploy/aws/ecs.yaml may write it."""
        return f"{self.root}doctor.json"

    def selection(self, token: str) -> str:
        """What a selection names, as an ECS task has found it for a run that is about to be pinned."""
        return f"{self.root}selections/{token}.json"

    def release(self, release: str) -> str:
        return f"{self.root}releases/{release}.json"

    def iceberg(self, table: str) -> str:
        """A table's Iceberg `location`: metadata only, no data below it (iceberg.md)."""
        return f"{self.root}iceberg/{table}"

    def metadata(self, table: str, version: str) -> str:
        """The number in front is what ClickHouse wants to see (iceberg.md)."""
        return fitting(f"{self.iceberg(table)}/metadata/00001-{version}.metadata.json", "table", table)

    def data(self, table: str, version: str) -> str:
        """The folder of a version's data files."""
        layer, name = split_table(table)
        return fitting(f"{layer}/{name}/{self.environment}-{version}", "table", table)

    @property
    def all_runs(self) -> str:
        return f"{self.root}runs/"

    def runs(self, run: str) -> str:
        """The folder of a run.

        Raises:
            BuscoError: its key is longer than any run's.
        """
        if key_bytes(run) > MAX_RUN_BYTES:
            raise BuscoError(
                f"the run's key {run[:80]}… has {key_bytes(run):,} bytes, and none has more than {MAX_RUN_BYTES}",
                "copy it from the first line of the run's log",
            )
        return f"{self.all_runs}{run}/"

    def epoch(self, run: str, epoch: int) -> str:
        return f"{self.runs(run)}{epoch}/"


@dataclass(frozen=True)
class RunLayout:
    """The keys of one epoch of a run."""

    prefix: str

    @property
    def pin(self) -> str:
        return f"{self.prefix}pin.json"

    @property
    def tables(self) -> str:
        return f"{self.prefix}tables/"

    @property
    def results(self) -> str:
        return f"{self.prefix}results/"

    @property
    def followers(self) -> str:
        return f"{self.prefix}followers/"

    @property
    def manifest(self) -> str:
        return f"{self.prefix}manifest.json"

    def entry(self, table: str) -> str:
        return fitting(f"{self.tables}{table}.json", "table", table)

    def runner(self, number: int) -> str:
        return f"{self.prefix}runner-{number}.json"

    def ending(self, number: int) -> str:
        return f"{self.prefix}ended-{number}.json"

    def heartbeat(self, number: int) -> str:
        return f"{self.prefix}heartbeat-{number}.json"

    @property
    def orders(self) -> str:
        return f"{self.prefix}orders/"

    def order(self, name: str, generation: int) -> str:
        return fitting(f"{self.orders}{file_slug(name)}/{generation}.json", "task", name)

    def result(self, node: str, runner: int) -> str:
        return fitting(f"{self.results}{file_slug(node)}/{runner}.json", "node", node)

    def log(self, node: str, runner: int) -> str:
        return fitting(f"{self.results}{file_slug(node)}/{runner}.log", "node", node)

    def follower(self, task: str) -> str:
        return fitting(f"{self.followers}{file_slug(task)}.json", "task", task)
