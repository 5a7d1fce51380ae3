"""Defines all settings of the platform: their environment variables, types, defaults and descriptions."""

from __future__ import annotations

import os
import re
import shlex
from functools import lru_cache
from pathlib import Path
from platform import machine
from typing import Literal
from urllib.parse import quote

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from busco.errors import BuscoError
from busco.private import make_private

Layer = Literal["bronze", "silver", "gold"]
LAYERS: tuple[Layer, ...] = ("bronze", "silver", "gold")
# The sizes of the task definitions in deploy/aws/ecs.yaml, smallest first.
Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = ("small", "medium", "large")
GLUE_CALLS = 32  # the default maximum number of simultaneous calls to Glue
# The format of a dbt project's id, whether a var in dbt_project.yml or BUSCO_PROJECT_ID sets it.
# the file with a project's manifest, and the folder with the files of projects other than the default one
_MANIFEST, _PROJECTS = "manifest.json", "projects"
PROJECT_ID = r"[a-z0-9_-]{1,63}"
PROJECT_ID_WORDS = "1 to 63 lower-case letters, digits, - and _"


def _home() -> Path:
    """Returns the project's root: BUSCO_HOME, or the nearest folder above this file or the working directory that
    contains `dbt_project/`."""
    if given := os.environ.get("BUSCO_HOME"):
        return Path(given).resolve()
    for start in (Path(__file__).resolve(), Path.cwd().resolve() / "x"):
        for folder in start.parents:
            if (folder / "dbt_project" / "dbt_project.yml").is_file():
                return folder
    raise BuscoError("can't find the project (no dbt_project/ here or above)", "set BUSCO_HOME to the project's folder")


def _cpu_architecture() -> Literal["X86_64", "ARM64"]:
    """Returns this machine's processor architecture, as ECS names it."""
    return "ARM64" if machine().lower() in ("arm64", "aarch64") else "X86_64"


class Settings(BaseSettings):
    """The platform's settings.

    They are read from the environment (prefix `BUSCO_`) and, in the embedded platform, from the file that the local AWS
    writes when it starts (`<state_dir>/aws.env`). Buckets are specified by name, not by ARN. Folders are absolute paths
    unless their descriptions say otherwise. None of the settings is secret.
    """

    model_config = SettingsConfigDict(env_prefix="BUSCO_", extra="ignore")

    home: Path = Field(default_factory=_home, description="the project's root")
    state_dir: Path = Field(default=Path(".busco"), description="local state, relative to home")
    platform: Literal["embedded", "development", "aws"] = Field(
        default="embedded",
        description="where the platform runs: `embedded` (with a local AWS in one process), `development` (Docker "
        "Compose), or `aws`",
    )
    environment: str = Field(
        default="prod", pattern=r"^[a-z][a-z0-9_]{0,30}$", description="lake environment to work in"
    )
    local_role: Literal["", "airflow", "runner", "ingest", "none"] = Field(
        default="",
        description="role of a process in the embedded platform; empty: the owner of the local AWS",
    )
    execution: Literal["local", "ecs_shared", "ecs"] = Field(
        default="local",
        description="how models run: `local` (a process on this machine), `ecs_shared` (one ECS task for the run), or "
        "`ecs` (an ECS task for each model)",
    )
    region: str = Field(default="us-east-1", description="AWS region")
    endpoint_url: str | None = Field(
        default=None,
        # ECS tasks get the SDKs' own variable, AWS_ENDPOINT_URL
        validation_alias=AliasChoices("BUSCO_ENDPOINT_URL", "AWS_ENDPOINT_URL"),
        description="AWS endpoint to use instead of AWS's own",
    )
    lake_bucket: str = Field(default="", description="lake bucket, for tables and records")
    landing_bucket: str = Field(default="", description="bucket where producers put raw files")
    logs_bucket: str = Field(default="", description="bucket for task logs and query results")
    glue_prefix: str = Field(default="busco_", description="prefix of the Glue databases' names, before the layer")
    glue_calls: int = Field(
        default=GLUE_CALLS,
        ge=1,
        le=256,
        description="maximum number of simultaneous calls to Glue while it is updated to show a release",
    )
    athena_workgroup: str = Field(default="busco", description="Athena workgroup for `busco query`")
    dbt_project_dir: Path = Field(default=Path("dbt_project"), description="the dbt project, relative to home")
    dbt_projects: str = Field(
        default="", description="folders of further dbt projects on the same lake, separated by commas"
    )
    project_id: str = Field(
        default="",
        description="id of the dbt project in BUSCO_DBT_PROJECT_DIR, if its dbt_project.yml does not set the var "
        "busco_project_id; empty: the project is identified by its dbt name",
    )
    baked_dir: Path | None = Field(
        default=None,
        description="folder in an image that contains the parsed project (`busco bake`); empty: there is none",
    )
    keep_graph: bool = Field(
        default=True,
        description="whether the embedded platform parses the dbt project whenever one of its files is saved",
    )
    dbt_threads: int = Field(default=4, ge=1, le=64, description="number of models that one runner builds at once")
    duckdb_memory_limit: str = Field(
        default="",
        pattern=r"^(\d+(\.\d+)? ?([KMGTkmgt][Ii]?)?[Bb]|\d+(\.\d+)? ?%)?$",
        description="DuckDB's memory limit (`4GB`, `60%`); empty: a share of the container's limit, or DuckDB's own "
        "default if the container has no limit",
    )
    duckdb_spill_limit: str = Field(
        default="",
        pattern=r"^(\d+(\.\d+)? ?([KMGTkmgt][Ii]?)?[Bb])?$",
        description="how much DuckDB can spill to disk (`50GB`); empty: most of the free space on that disk",
    )
    ingest_row_bytes: int = Field(
        default=32_000_000,
        ge=1,
        le=1_000_000_000,
        description="maximum bytes in a row of an ingested file; a file with a longer row is refused",
    )
    ingest_file_bytes: int = Field(
        default=20_000_000_000,
        ge=1,
        description="maximum bytes in an ingested file after decompression; a larger file is refused",
    )
    runner_silence: float = Field(
        default=300,
        ge=0,
        description="seconds without a heartbeat (sent every ten seconds) after which a runner is stopped and "
        "replaced; 0: never",
    )
    runner_restarts: int = Field(
        default=3, ge=0, description="how many times a run's shared runner is replaced if it is lost"
    )
    max_local_runners: int = Field(
        default=2,
        ge=1,
        description="maximum number of runners for single models that one triggerer runs on this machine at once",
    )
    airflow_url: str = Field(default="", description="base URL of Airflow's webserver")
    web_hosts: str = Field(
        default="",
        description="further host names by which browsers reach Airflow and Flower, separated by commas; requests "
        "with any other host name are refused",
    )
    ecs_cluster: str = Field(default="busco", description="ECS cluster for runners: name or ARN")
    ecs_task_definition_small: str = Field(default="busco-dbt-small", description="task definition: family or ARN")
    ecs_task_definition_medium: str = Field(default="busco-dbt-medium", description="task definition: family or ARN")
    ecs_task_definition_large: str = Field(default="busco-dbt-large", description="task definition: family or ARN")
    ecs_container: str = Field(default="dbt", description="container that runs busco in these task definitions")
    ecs_cpu_architecture: Literal["X86_64", "ARM64"] = Field(
        default_factory=_cpu_architecture,
        description="processor architecture of the dbt image; this machine's by default",
    )
    dbt_image: str = Field(default="busco-dbt:local", description="image in the local AWS's task definitions")
    ecs_size: Size = Field(default="medium", description="size of a run's shared runner, and of models without a size")
    ecs_launch_type: Literal["FARGATE", "EC2"] = Field(default="FARGATE", description="ECS launch type")
    ecs_capacity_provider: str = Field(
        default="",
        description="capacity provider to use instead of the launch type; FARGATE_SPOT if tasks can be interrupted",
    )
    ecs_platform_version: str = Field(default="", description="Fargate platform version; empty: ECS's default")
    ecs_subnets: str = Field(default="", description="subnets for the tasks, separated by commas")
    ecs_security_groups: str = Field(default="", description="security groups for the tasks, separated by commas")
    ecs_assign_public_ip: bool = Field(default=False, description="whether tasks get a public IP address")
    ecs_log_group: str = Field(default="/busco/dbt", description="CloudWatch log group for the tasks' output")
    ecs_log_prefix: str = Field(default="dbt", description="prefix of the log streams' names")
    runner_role_arn: str = Field(
        default="", description="role of the ECS tasks that build models; empty: the task definition's"
    )
    ingest_role_arn: str = Field(
        default="", description="role of the ECS tasks that ingest files; empty: the task definition's"
    )
    publisher_role_arn: str = Field(
        default="", description="role that Airflow assumes to publish releases and update Glue; empty: Airflow's own"
    )
    max_ecs_tasks: int = Field(
        default=10, ge=1, description="maximum number of ECS tasks at once, across all triggerers"
    )
    maintenance_schedule: str = Field(
        default="*/15 * * * *", description="cron schedule of the `maintenance` DAG; empty: not scheduled"
    )
    drift_schedule: str = Field(
        default="0 5 * * *", description="cron schedule (UTC) of the `drift` DAG; empty: not scheduled"
    )
    freshness_schedule: str = Field(
        default="0 6 * * *", description="cron schedule (UTC) of the `freshness` DAG; empty: not scheduled"
    )
    local_aws_host: str = Field(
        default="",
        description="host name by which the platform's containers reach a local AWS in a container",
    )
    local_aws_tasks_host: str = Field(
        default="",
        description="host name of a local AWS in a container, on the network that it shares only with ECS tasks; "
        "empty: tasks use this machine's address on Docker's bridge",
    )
    starter: str = Field(
        default="",
        description="socket of the service that starts ECS tasks' containers, if the local AWS can't access Docker",
    )
    local_aws_port: int = Field(default=0, ge=0, le=65535, description="port of the local AWS; 0 picks a free one")
    aws_port: int = Field(
        default=0, ge=0, le=65535, description="port on which Docker publishes a local AWS in a container; 0: none"
    )
    graph_dir: Path | None = Field(
        default=None,
        description="state folder of Airflow's services, to which a local AWS in a container writes Airflow's graph",
    )
    alerts_topic: str = Field(default="", description="ARN of the SNS topic for alerts; empty: no alerts")
    listen: bool = Field(
        default=True,
        description="whether the embedded platform processes new objects in the landing bucket as they arrive",
    )
    events_queue: str = Field(
        default="", description="URL of the SQS queue that receives the landing bucket's events; empty: none"
    )
    events_dead_letters: str = Field(
        default="", description="URL of the SQS queue for messages that could not be processed"
    )
    events_quiet: int = Field(
        default=1,
        ge=1,
        le=20,
        description="seconds without a new event after which the objects that have arrived are ingested together; "
        "they are ingested after 30 seconds at the latest",
    )
    metrics_platform: str = Field(
        default="",
        description="dimension Platform of the metrics in CloudWatch, the templates' Name; empty: no metrics",
    )
    metrics_server: str = Field(
        default="", description="host and port of the web server whose certificate is measured; empty: none"
    )
    price_vcpu_hour: float = Field(default=0.04048, ge=0, description="price of a vCPU per hour, for estimates")
    price_gb_hour: float = Field(default=0.004445, ge=0, description="price of a GB of memory per hour, for estimates")

    @field_validator("project_id")
    @classmethod
    def _is_an_id(cls, value: str) -> str:
        if value and not re.fullmatch(PROJECT_ID, value):
            raise ValueError(f"not a valid project id; use {PROJECT_ID_WORDS}")
        return value

    @field_validator("runner_silence")
    @classmethod
    def _longer_than_a_beat(cls, value: float) -> float:
        if 0 < value < 15:
            raise ValueError("must be 0 (never), or at least 15, since runners send a heartbeat every ten seconds")
        return value

    def below_home(self, path: Path) -> Path:
        return path if path.is_absolute() else self.home / path

    @property
    def state(self) -> Path:
        return self.below_home(self.state_dir)

    @property
    def dbt_project(self) -> Path:
        return self.below_home(self.dbt_project_dir)

    def of_project(self, folder: Path | str | None, project_id: str | None = None) -> Settings:
        """Returns these settings for a process that works on the dbt project in `folder`.

        An empty `folder` means this process's own project.

        Args:
            folder: an absolute path, or one relative to home.
            project_id: the id, possibly empty, with which a run was pinned. If None, the setting BUSCO_PROJECT_ID is
                used, but only for this process's own project.
        """
        changes: dict[str, object] = {} if project_id is None else {"project_id": project_id}
        if folder:
            path = Path(os.path.normpath(self.below_home(Path(folder))))
            if project_id is None and path != Path(os.path.normpath(self.dbt_project)):
                changes["project_id"] = ""
            changes["dbt_project_dir"] = path.relative_to(self.home) if path.is_relative_to(self.home) else path
        return self.model_copy(update=changes) if changes else self

    def of_all_projects(self) -> list[Settings]:
        """Returns these settings for each dbt project of the platform, starting with this process's own."""
        found = {one.dbt_project: one for one in (self.of_project(self.dbt_project), *self._further_projects())}
        return list(found.values())

    def _further_projects(self) -> list[Settings]:
        return [self.of_project(folder.strip()) for folder in self.dbt_projects.split(",") if folder.strip()]

    @property
    def is_further_project(self) -> bool:
        """Whether these settings' dbt project is one of those that BUSCO_DBT_PROJECTS names."""
        return self.dbt_project in {one.dbt_project for one in self._further_projects()}

    @property
    def manifest_path(self) -> Path:
        """The dbt manifest, from which Airflow's graph and the sources' contracts are read."""
        return self.project_part(self.state) / _MANIFEST

    @property
    def manifests_made_here(self) -> list[Path]:
        """The manifests of all projects that were parsed here, whether or not BUSCO_DBT_PROJECTS names them."""
        return sorted(
            path for path in (self.state / _MANIFEST, *self.state.glob(f"{_PROJECTS}/*/{_MANIFEST}")) if path.is_file()
        )

    @property
    def parse_error_path(self) -> Path:
        """The file that contains dbt's error message while a project can't be parsed."""
        return self.state / "parse_error.txt"

    @property
    def partial_parse_path(self) -> Path:
        """The file in which dbt's last parse of the project saved its state for the next parse."""
        return self.project_part(self.state) / "dbt" / "partial_parse.msgpack"

    def project_part(self, folder: Path) -> Path:
        """Returns the subfolder for this dbt project's files; for the default project, the folder itself."""
        if self._is_default_project:
            return folder
        return folder / _PROJECTS / quote(str(self.dbt_project_dir), safe="")

    @property
    def _is_default_project(self) -> bool:
        return bool(self.dbt_project_dir == type(self).model_fields["dbt_project_dir"].default)

    def dbt_command(self, words: str) -> str:
        """Returns a dbt command for this project, as a user types it in the working directory.

        For a project other than the default one, the command names its folder: `busco dbt --project-dir x ls`.
        """
        if self._is_default_project:
            return f"busco dbt {words}"
        here, folder = Path.cwd(), self.dbt_project
        typed = folder.relative_to(here) if folder.is_relative_to(here) else folder
        return f"busco dbt --project-dir {shlex.quote(str(typed))} {words}"

    @property
    def maintenance_cron(self) -> str | None:
        """The schedule of the `maintenance` DAG; None if it is not scheduled, or if models run on this machine,
        where there is nothing to clean up."""
        return (self.maintenance_schedule or None) if self.execution != "local" else None

    def database(self, layer: str) -> str:
        """Returns the Glue database of a layer, such as `busco_gold` for `gold`."""
        return f"{self.glue_prefix}{layer}"


def env_file(state: Path, role: str = "") -> Path:
    """Returns the file with the environment variables that give access to the local AWS, as its owner or in a role."""
    return state / (f"aws-{role}.env" if role else "aws.env")


def read_env_file(path: Path) -> dict[str, str]:
    """Returns the variables in a file of `NAME=value` lines; none if the file doesn't exist."""
    if not path.is_file():
        return {}
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#") and "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Returns this process's settings.

    In the embedded platform, this function also adds the local AWS's variables (`aws.env`, or the role's file if
    BUSCO_LOCAL_ROLE is set) to the process's environment, so that boto3 and child processes see them too. BUSCO_
    variables that are already set are kept.

    Raises:
        BuscoError: a variable has an invalid value, or the state folder can't be created or belongs to another user.
    """
    settings = _read()
    if settings.platform == "embedded":
        try:
            # the folder for Airflow's graph must not be private: Airflow's containers use it too, as another user
            if settings.graph_dir is None or settings.state != settings.below_home(settings.graph_dir):
                make_private(settings.state)
        except OSError as error:
            raise BuscoError(
                f"BUSCO_STATE_DIR: the folder {settings.state} can't be created or made private: {error.strerror}",
                "set it to a folder that you own",
            ) from error
        _point_at_local_aws(read_env_file(env_file(settings.state, settings.local_role)))
        settings = _read()
    return settings


def _read() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        wrong = []
        for one in error.errors():
            name = f"BUSCO_{'_'.join(str(part) for part in one['loc']).upper()}"
            wrong.append(f"{name} is {one['input']!r}: {one['msg'].removeprefix('Value error, ')}")
        raise BuscoError("\n".join(wrong), "correct the value, or unset the variable to use the default") from error


def require_project(settings: Settings) -> None:
    """Checks that the dbt project exists where the settings specify.

    Raises:
        BuscoError: there is no dbt project.
    """
    if not (settings.dbt_project / "dbt_project.yml").is_file():
        if settings.is_further_project:
            raise BuscoError(
                f"BUSCO_DBT_PROJECTS names {settings.dbt_project_dir}, but there is no dbt_project.yml in it "
                f"({settings.dbt_project})",
                "correct the folder in BUSCO_DBT_PROJECTS, relative to BUSCO_HOME, or remove it",
            )
        raise BuscoError(
            f"BUSCO_HOME is {settings.home}, but there is no {settings.dbt_project_dir}/dbt_project.yml in it",
            "set BUSCO_HOME to the project's folder, or unset it and run the command inside the project",
        )


# variables that point SDKs to other credentials (boto3 documentation, "Credentials")
_OTHER_CREDENTIALS = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip


def _point_at_local_aws(variables: dict[str, str]) -> None:
    """Makes this process use the local AWS, whatever AWS account the user's shell is configured for."""
    if not variables:
        return
    for name in _OTHER_CREDENTIALS:
        os.environ.pop(name, None)
    for name, value in variables.items():
        if name.startswith("AWS_"):
            os.environ[name] = value
        elif name.upper() == "NO_PROXY":
            known = [host for host in os.environ.get(name, "").split(",") if host]
            os.environ[name] = ",".join(dict.fromkeys([*known, *value.split(",")]))
        else:
            os.environ.setdefault(name, value)


def require_lake(settings: Settings) -> Settings:
    """Returns the settings, if they include a lake bucket.

    Raises:
        BuscoError: no lake bucket is configured, or the embedded platform's local AWS was never started.
    """
    if settings.lake_bucket:
        return settings
    if settings.platform == "embedded":
        raise BuscoError("the local AWS is not running", "start it: busco aws up")
    raise BuscoError("BUSCO_LAKE_BUCKET is not set", "set it to the lake's bucket")
