"""Where each object of the lake lies: the only place that builds its keys."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

DELIVERIES = "_lake/deliveries/"
QUARANTINE = "_lake/quarantine/"
# environments in which a person builds a run's models again: nothing is ever published in them
REPLAYS = "replay_"


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
    return f"{delivery_prefix(source, table)}{file_slug(file_name)}/{number}.json"


def bronze_object(source: str, table: str, content_hash: str, attempt: str) -> str:
    return f"bronze/{source}/{table}/{content_hash[:32]}-{attempt}.parquet"


def quarantine(source: str, table: str, file_name: str, attempt: str) -> str:
    return f"{QUARANTINE}{source}.{table}/{file_slug(file_name)}/{attempt}.parquet"


@dataclass(frozen=True)
class EnvironmentLayout:
    """The keys of one environment (`prod`, `dev_<user>`, …)."""

    environment: str

    @property
    def is_replay(self) -> bool:
        return self.environment.startswith(REPLAYS)

    @property
    def root(self) -> str:
        return f"_lake/env/{self.environment}/"

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
        return f"{self.iceberg(table)}/metadata/00001-{version}.metadata.json"

    def data(self, table: str, version: str) -> str:
        """The folder of a version's data files."""
        layer, name = split_table(table)
        return f"{layer}/{name}/{self.environment}-{version}"

    @property
    def all_runs(self) -> str:
        return f"{self.root}runs/"

    def runs(self, run: str) -> str:
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
        return f"{self.tables}{table}.json"

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
        return f"{self.orders}{file_slug(name)}/{generation}.json"

    def result(self, node: str, runner: int) -> str:
        return f"{self.results}{file_slug(node)}/{runner}.json"

    def log(self, node: str, runner: int) -> str:
        return f"{self.results}{file_slug(node)}/{runner}.log"

    def follower(self, task: str) -> str:
        return f"{self.followers}{file_slug(task)}.json"
