"""Defines the keys of the lake's objects. Other modules build only docs folders and the names of Avro files.

Functions that build a key from a user-chosen name raise `BuscoError` if S3 would reject the key (`fitting`).
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
INGEST = "_lake/ingest/"
# The reports for producers in the landing bucket, which the platform itself writes.
REPORTS = "_reports/"

QUARANTINE = "_lake/quarantine/"
ENVIRONMENTS = "_lake/env/"
# Exists from the beginning of a scrub to its end. If it exists while no scrub is active, a scrub was interrupted.
SCRUBBING = f"{ENVIRONMENTS}scrubbing.json"
# The folders that contain only tables' data files; the SQL of a model may read nothing else.
TABLE_FOLDERS = ("bronze/", "silver/", "gold/")
# The value in the key of a partition's files if the partition column is NULL. DuckDB percent-encodes all other values.
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
# The prefix of environments in which a user rebuilds a run's models; nothing is ever published in them.
REPLAYS = "replay_"

# Keys that are only ever written conditionally, as resource patterns for a bucket policy, in which `*` matches any
# characters, including slashes (IAM User Guide, "Resource"). Objects that are written once are written with
# If-None-Match; objects that are swapped are written with If-Match, or If-None-Match the first time. The bucket policy
# in deploy/aws/lake.yaml makes S3 enforce this.
WRITTEN_ONCE = (
    "_lake/deliveries/*",
    "_lake/env/*/iceberg/*",
    "_lake/env/*/manifests/*",
    "_lake/env/*/metadata/*",
    "_lake/env/*/pages/*",
    "_lake/env/*/releases/*",
    "_lake/env/*/runs/*/ended-*.json",
    "_lake/env/*/runs/*/orders/*",
    "_lake/env/*/runs/*/pin.json",
    "_lake/env/*/runs/*/runner-*.json",
    "_lake/env/*/selections/*",
    "_lake/env/*/versions/*",
    "_lake/ingest/*",
)
SWAPPED = (
    "_lake/env/*/current.json",
    "_lake/env/*/doctor.json",
    "_lake/env/*/runs/*/followers/*",
    "_lake/env/*/runs/*/tables/*",
    "docs/index.html",
    "docs/projects/*",
)


# The maximum length of a key in UTF-8 (S3 User Guide, "Naming Amazon S3 objects").
MAX_KEY_BYTES = 1024
# The maximum length of a run's key in UTF-8, for Airflow's runs and local runs alike. The rest of an object key's
# length is left for the key's other parts.
MAX_RUN_BYTES = 100


def is_delivery(key: str, size: int) -> bool:
    """Whether an object of the landing bucket is to be ingested.

    It is not if it is a report of the platform, or an empty object that stands for a folder, as the S3 console creates.

    Args:
        size: in bytes.
    """
    return not key.startswith(REPORTS) and not (key.endswith("/") and size == 0)


def fitting(key: str, kind: str, name: str) -> str:
    """Returns the key, if it is not too long for S3.

    Args:
        kind, name: the part of the key that the user can change: its kind, such as `file`, and its name.

    Raises:
        BuscoError: the key is too long; the message shows the name, cut to 80 characters.
    """
    size = key_bytes(key)
    if size <= MAX_KEY_BYTES:
        return key
    shown = name if len(name) <= 80 else f"{name[:80]}…"
    raise BuscoError(
        f"the name of the {kind} {shown} is too long: one of its object keys would be {size:,} bytes long, but S3 "
        f"allows only {MAX_KEY_BYTES:,}",
        "shorten the name",
    )


def key_bytes(key: str) -> int:
    """Returns a key's length as S3 counts it, even if the key contains a name that can't be encoded in UTF-8."""
    return len(key.encode(errors="surrogatepass"))


def new_id() -> str:
    """Returns a new random id of 32 hexadecimal digits."""
    return secrets.token_hex(16)


def stamp(moment: datetime) -> str:
    """Formats a time in UTC as `20261124T101500`, for ids that sort by time."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%S")


def slug(text: str, most: int = 60) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)[:most].strip("-.")


def run_key(dag_id: str, run_id: str) -> str:
    """Returns an Airflow run's key (R1): slugs of the DAG id and run id, and a hash of both to avoid collisions."""
    digest = hashlib.sha256(f"{dag_id}\n{run_id}".encode()).hexdigest()[:8]
    return f"{slug(dag_id, 30)}.{slug(run_id)}.{digest}"


def local_run_key(now: datetime) -> str:
    """Returns a key for a run outside of Airflow: `local.<UTC>.<8 hex>` (R1)."""
    return f"local.{stamp(now)}.{secrets.token_hex(4)}"


def file_slug(name: str) -> str:
    """Quotes a file name as a single path segment, so that any name a producer chooses is safe (D1)."""
    return quote(name, safe="")


def split_table(table: str) -> tuple[str, str]:
    """Splits `silver.orders` into (`silver`, `orders`)."""
    layer, _, name = table.partition(".")
    return layer, name


def delivery_prefix(source: str, table: str) -> str:
    return f"{DELIVERIES}{source}.{table}/"


def delivery(source: str, table: str, file_name: str, number: int) -> str:
    return fitting(f"{delivery_prefix(source, table)}{file_slug(file_name)}/{number}.json", "file", file_name)


def ingest_order(order: str) -> str:
    return f"{INGEST}{order}/order.json"


def ingest_outcome(order: str) -> str:
    return f"{INGEST}{order}/outcome.json"


def bronze_object(source: str, table: str, content_hash: str, attempt: str) -> str:
    key = f"bronze/{source}/{table}/{content_hash[:32]}-{attempt}.parquet"
    return fitting(key, "source table", f"{source}.{table}")


def quarantine(source: str, table: str, file_name: str, attempt: str) -> str:
    key = f"{QUARANTINE}{source}.{table}/{file_slug(file_name)}/{attempt}.parquet"
    return fitting(key, "file", file_name)


def docs_page(project: str) -> str:
    """Returns the key of a dbt project's own docs page, for lakes with several projects."""
    return fitting(f"docs/projects/{project}.html", "dbt project", project)


def version_of(metadata: str) -> str:
    """Returns the id of the version that a metadata file with this key describes."""
    return metadata.rpartition("/00001-")[2].removesuffix(".metadata.json").partition("-")[0]


def listing(key: str) -> str:
    """Returns a prefix whose listing contains an object together with all others of the same kind and table.

    For silver and gold data files, the listing contains only files of the same environment.
    """
    parts = key.split("/")
    if key.startswith(ENVIRONMENTS):  # _lake/env/<environment>/<kind>/<layer>.<table>/…, or …/releases/…
        return "/".join(parts[: 4 if parts[3] == "releases" else 5]) + "/"
    if key.startswith((DELIVERIES, "bronze/")):
        return "/".join(parts[:3]) + "/"
    environment, _, _ = parts[2].rpartition("-")
    return f"{parts[0]}/{parts[1]}/{environment}-"


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
        """The key of the object that `busco doctor` uses to test conditional writes.

        Both roles in deploy/aws/ecs.yaml can write this object.
        """
        return f"{self.root}doctor.json"

    def selection(self, token: str) -> str:
        """Returns the key of a selection's record, which an ECS task writes for a run that is about to be pinned."""
        return f"{self.root}selections/{token}.json"

    @property
    def releases(self) -> str:
        """The folder of all releases."""
        return f"{self.root}releases/"

    def release(self, release: str) -> str:
        return f"{self.releases}{release}.json"

    def version(self, table: str, version: str) -> str:
        """Returns the key of a version's own record."""
        return fitting(f"{self.root}versions/{table}/{version}.json", "table", table)

    @property
    def versions(self) -> str:
        """The folder of all versions' own records."""
        return f"{self.root}versions/"

    @property
    def all_metadata(self) -> tuple[str, str]:
        """The folders of all Iceberg metadata: the current one, and the one that was used in format 1."""
        return f"{self.root}metadata/", f"{self.root}iceberg/"

    def page(self, table: str, page: str) -> str:
        """Returns the key of a page of a bronze table's deliveries."""
        return fitting(f"{self.root}pages/{table}/{page}.json", "table", table)

    def manifest(self, table: str, name: str) -> str:
        """Returns the key of an Iceberg manifest, which several metadata files can share (docs/iceberg.md)."""
        return fitting(f"{self.manifests}{table}/{name}.avro", "table", table)

    def location(self, table: str, name: str) -> str:
        """Returns the Iceberg `location` of one metadata file (R5): no other metadata and no data is stored below it.

        Args:
            name: the version's id, and a hash of its descriptions if it has any (`metadata`).
        """
        return f"{self.root}metadata/{table}/{name}"

    def metadata(self, table: str, version: str, descriptions: str = "") -> str:
        """Returns the key of a version's metadata. ClickHouse requires the leading number (docs/iceberg.md).

        Args:
            descriptions: the hash of the descriptions that the metadata contains; empty if it contains none.
        """
        name = f"{version}-{descriptions}" if descriptions else version
        return fitting(f"{self.location(table, name)}/metadata/00001-{name}.metadata.json", "table", table)

    @property
    def manifests(self) -> str:
        """The folder of all Iceberg manifests."""
        return f"{self.root}manifests/"

    def shared_location(self, table: str) -> str:
        """Returns the Iceberg `location` that all of a table's versions shared in format 1.

        The table's Iceberg UUID is still derived from it.
        """
        return f"{self.root}iceberg/{table}"

    def shared_metadata(self, table: str, version: str) -> str:
        """Returns the key of the metadata that a version made in format 1 has in that location."""
        return f"{self.shared_location(table)}/metadata/00001-{version}.metadata.json"

    def data(self, table: str, version: str) -> str:
        """Returns the folder of a version's data files."""
        layer, name = split_table(table)
        return fitting(f"{layer}/{name}/{self.environment}-{version}", "table", table)

    @property
    def all_runs(self) -> str:
        return f"{self.root}runs/"

    def runs(self, run: str) -> str:
        """Returns the folder of a run.

        Raises:
            BuscoError: `run` is too long to be the key of a run.
        """
        if key_bytes(run) > MAX_RUN_BYTES:
            raise BuscoError(
                f"the run key {run[:80]}… is {key_bytes(run):,} bytes long, but at most {MAX_RUN_BYTES} are allowed",
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
