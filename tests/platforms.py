"""A separate platform for a test: a dbt project, a local AWS with a lake, and the command, all below one folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from busco.aws import client
from busco.embedded import aws
from busco.lake import pins, releases
from busco.lake.contents import read_version
from busco.lake.layout import EnvironmentLayout, local_run_key
from busco.lake.objects import ObjectStore
from busco.lake.records import Release, Version, utc_now
from busco.lake.runs import Run, open_run
from busco.project import Project
from busco.projects import all_contracts
from busco.settings import Settings, get_settings
from tests import warm
from tests.loopback import PROXY_PORT

if TYPE_CHECKING:
    from busco.ingest.ingest import Report
    from busco.warehouse.runner import Outcome

ROOT = Path(__file__).parents[1]
BAKERY = ROOT / "tests/projects/foreign"
ENVIRONMENT = EnvironmentLayout("prod")


@dataclass
class Platform:
    """`home` contains the dbt project; `settings` are those of a process that runs there."""

    home: Path

    @property
    def settings(self) -> Settings:
        return get_settings()

    @property
    def store(self) -> ObjectStore:
        return ObjectStore(client("s3", self.settings), self.settings.lake_bucket)

    def live(self) -> Release:
        live = releases.read_live(self.store, ENVIRONMENT)
        assert live is not None, "nothing is published"
        return live.release

    def version(self, table: str) -> Version:
        """Returns a table's version in the live release, with its columns and files."""
        return read_version(self.store, self.live().tables[table])

    def write(self, path: str, text: str) -> Path:
        """Writes a file below home, such as a file of the project."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def model(self, path: str, sql: str, yaml: str = "") -> None:
        """Writes a model, such as `gold/fct`, and its YAML."""
        self.write(f"dbt_project/models/{path}.sql", sql)
        if yaml:
            self.write(f"dbt_project/models/{path}.yml", yaml)

    def busco(self, *arguments: str, status: int = 0, environment: dict[str, str] | None = None) -> str:
        """Runs the command as a user would; returns the output of both streams."""
        result = warm.run("-m", "busco", *arguments, cwd=self.home, environment={**os.environ, **(environment or {})})
        printed = result.stdout + result.stderr
        assert result.returncode == status, f"exit status {result.returncode}:\n{printed}"
        return printed

    def take(self, *paths: Path, table: str | None = None, follow_links: bool = False) -> Report:
        """Ingests files in this process."""
        from busco.ingest.ingest import ingest
        from busco.warehouse.dbt import ensure_manifests

        contracts = all_contracts(ensure_manifests(self.settings))
        return ingest(self.settings, self.store, contracts, list(paths), table, lambda _: lambda _: None, follow_links)

    def deliver(self, text: str, name: str = "orders.csv") -> None:
        """Ingests a file with this name and content, all rows of which must be accepted."""
        assert self.take(self.write(f"in/{name}", text)).good

    def build(self, select: str = "", publish: bool = True, project: str = "") -> Outcome:
        """Builds a new run in this process and publishes it if it succeeded; `project` is a folder below home."""
        run, outcome = self.built(select, project)
        if publish and outcome.good:
            self.publish(run)
        return outcome

    def publish(self, run: Run) -> Release:
        from busco.cli.releases import show_glue

        release = releases.publish(run, self.audit(run), "test", run.docs)
        show_glue(self.settings, self.store, ENVIRONMENT)
        return release

    def built(self, select: str = "", project: str = "") -> tuple[Run, Outcome]:
        """Builds a new run without publishing it."""
        from busco.warehouse.dbt import opened
        from busco.warehouse.runner import work

        key = local_run_key(utc_now())
        settings = self.settings.of_project(project)
        with opened(settings) as dbt:
            parsed = dbt.parse()
            nodes = dbt.select(select).nodes if select else None
        pins.pin(
            self.store, ENVIRONMENT, key, 1, parsed.contracts, parsed.hash, select=select, nodes=nodes,
            project=parsed.identity, project_dir=str(settings.dbt_project_dir), tables=parsed.tables,
            project_id=parsed.id, dbt_name=parsed.name,
        )  # fmt: skip
        outcome = work(self.settings, key)
        assert outcome is not None
        return open_run(self.store, ENVIRONMENT, key), outcome

    def audit(self, run: Run) -> releases.Audit:
        stored = self.store.get(f"{run.docs}manifest.json")
        assert stored is not None, "the run has no docs"
        return Project(json.loads(stored.body)).audit()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query by Athena, as text."""
        from busco.catalog import athena

        return athena.query(client("athena", self.settings), sql, "busco", "busco_gold").rows

    def duckdb(self, sql: str, release: Release | None = None) -> list[tuple[Any, ...]]:
        from busco.lake.reading import query

        return query(self.settings, self.store, release or self.live(), sql)[1]


def neutral_environment() -> dict[str, str]:
    """Returns this process's environment without the variables that configure a platform."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW_"))}


@contextmanager
def platform(home: Path, project: Path, served: Path | None = None) -> Iterator[Platform]:
    """Yields a platform with a copy of `project` (a folder with dbt_project/) and a running local AWS.

    Args:
        served: the state folder of a running local AWS, which is emptied and used; None starts a new one.
    """
    shutil.copytree(project / "dbt_project", home / "dbt_project", dirs_exist_ok=True)
    (home / "deploy").mkdir(exist_ok=True)
    if not (home / "deploy/aws").exists():
        (home / "deploy/aws").symlink_to(ROOT / "deploy/aws")
    with mock.patch.dict(
        os.environ, {**neutral_environment(), "BUSCO_HOME": str(home), "BUSCO_AWS_PORT": str(PROXY_PORT)}, clear=True
    ):
        get_settings.cache_clear()
        if served is None:
            aws.up(get_settings(), lambda _: None)
        else:
            shutil.copy(served / "aws.env", get_settings().state / "aws.env")
        get_settings.cache_clear()
        try:
            if served is not None:
                empty(get_settings())
            yield Platform(home)
        finally:
            if served is None:
                aws.down(get_settings(), lambda _: None)
            get_settings.cache_clear()


def empty(settings: Settings) -> None:
    """Deletes all objects from the buckets and all tables from Glue; the resources of the stacks stay."""
    s3, glue = client("s3", settings), client("glue", settings)
    for bucket in (settings.lake_bucket, settings.landing_bucket, settings.logs_bucket):
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if found:
                keys = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found]
                s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    for database in glue.get_databases()["DatabaseList"]:
        for page in glue.get_paginator("get_tables").paginate(DatabaseName=database["Name"]):
            for table in page["TableList"]:
                glue.delete_table(DatabaseName=database["Name"], Name=table["Name"])


def with_bakery(made: Platform) -> Platform:
    """Adds the bakery's project beside the platform's own, and installs its packages."""
    shutil.copytree(BAKERY, made.home / "bakery")
    made.busco("dbt", "--project-dir", "bakery", "deps")
    return made


def with_parse(made: Platform, parsed: dict[str, bytes]) -> Platform:
    """Parses the platform's project, or copies the files that an earlier call for the same project kept."""
    from busco.warehouse.dbt import ensure_manifest, replace_file

    kept = [made.settings.manifest_path, made.settings.state / "dbt/partial_parse.msgpack"]
    for file in kept:
        if file.name in parsed:
            replace_file(file, parsed[file.name])
    if not parsed:
        ensure_manifest(made.settings)
        parsed.update({file.name: file.read_bytes() for file in kept})
    return made


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [",".join(header)] + [",".join("" if v is None else str(v) for v in row) for row in rows]
    return "\n".join(lines) + "\n"
