"""Every environment variable of the platform, typed, once."""

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
# The task definitions of deploy/aws/ecs.yaml, the smallest first.
Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = ("small", "medium", "large")
# How a dbt project's id is written: as a var of its dbt_project.yml, or as a setting.
PROJECT_ID = r"[a-z0-9_-]{1,63}"
PROJECT_ID_WORDS = "1 to 63 lower-case letters, digits, - and _"


def _home() -> Path:
    """The project's root: BUSCO_HOME, else the nearest folder above this file or the working directory that
    holds `dbt_project/`."""
    if given := os.environ.get("BUSCO_HOME"):
        return Path(given).resolve()
    for start in (Path(__file__).resolve(), Path.cwd().resolve() / "x"):
        for folder in start.parents:
            if (folder / "dbt_project" / "dbt_project.yml").is_file():
                return folder
    raise BuscoError("cannot find the project (no dbt_project/ here or above)", "set BUSCO_HOME to its folder")


def _cpu_architecture() -> Literal["X86_64", "ARM64"]:
    """This machine's processor architecture in ECS's words."""
    return "ARM64" if machine().lower() in ("arm64", "aarch64") else "X86_64"


class Settings(BaseSettings):
    """The platform's settings, read from the environment (prefix `BUSCO_`) and, in the embedded platform, from
    the file that the local AWS writes when it starts (`<state_dir>/aws.env`).

    Buckets are names, not ARNs; folders are absolute; nothing in here is secret.
    """

    model_config = SettingsConfigDict(env_prefix="BUSCO_", extra="ignore")

    home: Path = Field(default_factory=_home, description="the project's root")
    state_dir: Path = Field(default=Path(".busco"), description="local state, below home unless absolute")
    platform: Literal["embedded", "development", "aws"] = Field(
        default="embedded",
        description="where the platform runs: a local AWS in one process, Docker Compose, AWS",
    )
    environment: str = Field(
        default="prod", pattern=r"^[a-z][a-z0-9_]{0,30}$", description="the lake's environment to run in"
    )
    local_role: Literal["", "airflow", "runner", "ingest", "none"] = Field(
        default="",
        description="the role that a process of the embedded platform has; empty: the local AWS's owner",
    )
    execution: Literal["local", "ecs_shared", "ecs"] = Field(
        default="local",
        description="how models run: `local` one process on this machine, `ecs_shared` one ECS task for the run, `ecs` "
        "an ECS task for each model",
    )
    region: str = Field(default="us-east-1", description="AWS region")
    endpoint_url: str | None = Field(
        default=None,
        # the SDKs' own variable, for an ECS task is given that one
        validation_alias=AliasChoices("BUSCO_ENDPOINT_URL", "AWS_ENDPOINT_URL"),
        description="AWS endpoint, where it isn't AWS's own",
    )
    lake_bucket: str = Field(default="", description="bucket of the lake: tables and records")
    landing_bucket: str = Field(default="", description="bucket where producers leave raw files")
    logs_bucket: str = Field(default="", description="bucket of task logs and query results")
    glue_prefix: str = Field(default="busco_", description="Glue database = this prefix + layer")
    athena_workgroup: str = Field(default="busco", description="Athena workgroup of `busco query`")
    dbt_project_dir: Path = Field(default=Path("dbt_project"), description="the dbt project, below home")
    dbt_projects: str = Field(
        default="", description="further dbt projects of the same lake: their folders, with commas between them"
    )
    project_id: str = Field(
        default="",
        description="the id of the dbt project of BUSCO_DBT_PROJECT_DIR, if its dbt_project.yml has no var "
        "busco_project_id; empty: it is known by its dbt name",
    )
    baked_dir: Path | None = Field(
        default=None, description="where an image has the parse of its project (`busco bake`), empty: there is none"
    )
    keep_graph: bool = Field(
        default=True,
        description="whether the embedded platform parses the dbt project when a file of it is saved",
    )
    dbt_threads: int = Field(default=4, ge=1, le=64, description="models that one runner builds at once")
    duckdb_memory_limit: str = Field(
        default="",
        pattern=r"^(\d+(\.\d+)? ?([KMGTkmgt][Ii]?)?[Bb]|\d+(\.\d+)? ?%)?$",
        description="DuckDB's memory limit (`4GB`, `60%`), empty: a share of the container's, DuckDB's own default "
        "where it has none",
    )
    duckdb_spill_limit: str = Field(
        default="",
        pattern=r"^(\d+(\.\d+)? ?([KMGTkmgt][Ii]?)?[Bb])?$",
        description="how much DuckDB may spill to the disk (`50GB`), empty: most of what is free where it spills",
    )
    ingest_row_bytes: int = Field(
        default=32_000_000,
        ge=1,
        le=1_000_000_000,
        description="bytes that a row of a file to ingest may have; a file with a longer one is refused",
    )
    ingest_file_bytes: int = Field(
        default=20_000_000_000,
        ge=1,
        description="bytes that a file to ingest may have, once it is decompressed; a larger one is refused",
    )
    runner_silence: float = Field(
        default=300,
        ge=0,
        description="seconds without a sign of life, which come every ten, after which a runner is stopped and "
        "replaced; 0: never",
    )
    runner_restarts: int = Field(default=3, ge=0, description="how often a run's lost shared runner is replaced")
    max_local_runners: int = Field(
        default=2,
        ge=1,
        description="runners for single models that one triggerer has on this machine at once",
    )
    airflow_url: str = Field(default="", description="base URL of Airflow's webserver")
    web_hosts: str = Field(
        default="",
        description="further names by which browsers reach Airflow and Flower, with commas between them; others are "
        "refused",
    )
    ecs_cluster: str = Field(default="busco", description="ECS cluster of the runners: its name or ARN")
    ecs_task_definition_small: str = Field(default="busco-dbt-small", description="task definition: family or ARN")
    ecs_task_definition_medium: str = Field(default="busco-dbt-medium", description="task definition: family or ARN")
    ecs_task_definition_large: str = Field(default="busco-dbt-large", description="task definition: family or ARN")
    ecs_container: str = Field(default="dbt", description="the container of these task definitions that runs busco")
    ecs_cpu_architecture: Literal["X86_64", "ARM64"] = Field(
        default_factory=_cpu_architecture,
        description="processor architecture that dbt's image was built for; this machine's if not said",
    )
    dbt_image: str = Field(default="busco-dbt:local", description="image that the local AWS's task definitions run")
    ecs_size: Size = Field(default="medium", description="size of a run's shared runner, and of models without one")
    ecs_launch_type: Literal["FARGATE", "EC2"] = Field(default="FARGATE", description="ECS launch type")
    ecs_capacity_provider: str = Field(
        default="",
        description="capacity provider in place of the launch type: FARGATE_SPOT for what may be interrupted",
    )
    ecs_platform_version: str = Field(default="", description="Fargate platform version, empty: ECS's default")
    ecs_subnets: str = Field(default="", description="subnets of the tasks, with commas between them")
    ecs_security_groups: str = Field(default="", description="security groups of the tasks, with commas between them")
    ecs_assign_public_ip: bool = Field(default=False, description="whether tasks get a public IP address")
    ecs_log_group: str = Field(default="/busco/dbt", description="CloudWatch log group of the tasks' output")
    ecs_log_prefix: str = Field(default="dbt", description="first part of the log streams' names")
    runner_role_arn: str = Field(
        default="", description="role of the ECS tasks that build models, empty: their task definition's"
    )
    ingest_role_arn: str = Field(
        default="", description="role of the ECS tasks that ingest, empty: their task definition's"
    )
    publisher_role_arn: str = Field(
        default="", description="role that Airflow assumes to publish releases and show them, empty: its own"
    )
    max_ecs_tasks: int = Field(default=10, ge=1, description="ECS tasks that run at once, over all triggerers")
    maintenance_schedule: str = Field(
        default="*/15 * * * *", description="when the DAG `maintenance` runs: a cron expression; empty: never by itself"
    )
    local_aws_host: str = Field(
        default="",
        description="name by which the platform's containers reach the local AWS, where it runs in one itself",
    )
    local_aws_tasks_host: str = Field(
        default="",
        description="name by which ECS tasks reach a local AWS that runs in a container, on the network that they "
        "share with it alone; empty: by this machine's address on Docker's bridge",
    )
    starter: str = Field(
        default="",
        description="socket of what starts the containers of ECS tasks, where the local AWS has no Docker itself",
    )
    local_aws_port: int = Field(default=0, ge=0, le=65535, description="port of the local AWS; 0 picks a free one")
    aws_port: int = Field(
        default=0, ge=0, le=65535, description="another port at which the local AWS is known, as Docker publishes it"
    )
    graph_dir: Path | None = Field(
        default=None,
        description="the state folder of Airflow's services, where the local AWS in a container leaves their graph",
    )
    alerts_topic: str = Field(default="", description="ARN of the SNS topic of alerts, empty: no alerts")
    price_vcpu_hour: float = Field(default=0.04048, ge=0, description="price of a vCPU for an hour, for estimates")
    price_gb_hour: float = Field(default=0.004445, ge=0, description="price of a GB of memory for an hour")

    @field_validator("project_id")
    @classmethod
    def _is_an_id(cls, value: str) -> str:
        if value and not re.fullmatch(PROJECT_ID, value):
            raise ValueError(f"no id of a dbt project: {PROJECT_ID_WORDS}")
        return value

    @field_validator("runner_silence")
    @classmethod
    def _longer_than_a_beat(cls, value: float) -> float:
        if 0 < value < 15:
            raise ValueError("shorter than the time between two signs of life: at least 15, or 0 for never")
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
        """These settings for a process that works on another dbt project; the same where `folder` is empty.

        Args:
            folder: absolute, or below home.
            project_id: the id that a run was pinned with, which may be empty; None is the setting, which is about this
                process's own project alone.
        """
        changes: dict[str, object] = {} if project_id is None else {"project_id": project_id}
        if folder:
            path = Path(os.path.normpath(self.below_home(Path(folder))))
            if project_id is None and path != Path(os.path.normpath(self.dbt_project)):
                changes["project_id"] = ""
            changes["dbt_project_dir"] = path.relative_to(self.home) if path.is_relative_to(self.home) else path
        return self.model_copy(update=changes) if changes else self

    def of_all_projects(self) -> list[Settings]:
        """These settings for each dbt project of the platform, its own first."""
        folders = [folder.strip() for folder in self.dbt_projects.split(",") if folder.strip()]
        found = {one.dbt_project: one for one in (self.of_project(self.dbt_project), *map(self.of_project, folders))}
        return list(found.values())

    @property
    def manifest_path(self) -> Path:
        """The dbt manifest from which Airflow's graph and the sources' contracts are read."""
        return self.project_part(self.state) / "manifest.json"

    @property
    def parse_error_path(self) -> Path:
        """Where dbt's message is while a project can't be parsed."""
        return self.state / "parse_error.txt"

    @property
    def partial_parse_path(self) -> Path:
        """What dbt's last parse of the project left for the next."""
        return self.project_part(self.state) / "dbt" / "partial_parse.msgpack"

    def project_part(self, folder: Path) -> Path:
        """Where in a folder lies what is kept there of the dbt project: the default one's is the folder itself."""
        if self._is_default_project:
            return folder
        return folder / "projects" / quote(str(self.dbt_project_dir), safe="")

    @property
    def _is_default_project(self) -> bool:
        return bool(self.dbt_project_dir == type(self).model_fields["dbt_project_dir"].default)

    def dbt_command(self, words: str) -> str:
        """A dbt command on this project as a user types it where this process runs: `busco dbt --project-dir x ls`."""
        if self._is_default_project:
            return f"busco dbt {words}"
        here, folder = Path.cwd(), self.dbt_project
        typed = folder.relative_to(here) if folder.is_relative_to(here) else folder
        return f"busco dbt --project-dir {shlex.quote(str(typed))} {words}"

    @property
    def maintenance_cron(self) -> str | None:
        """When the DAG `maintenance` runs; None where models run on this machine: it has nothing to look after."""
        return (self.maintenance_schedule or None) if self.execution != "local" else None

    def database(self, layer: str) -> str:
        """The Glue database of a layer, `busco_gold` for `gold`."""
        return f"{self.glue_prefix}{layer}"


def env_file(state: Path, role: str = "") -> Path:
    """The file of the variables with which its owner, or a process that has a role, reaches the local AWS."""
    return state / (f"aws-{role}.env" if role else "aws.env")


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of `NAME=value` lines; empty where the file doesn't exist."""
    if not path.is_file():
        return {}
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#") and "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process.

    In the embedded platform the local AWS's variables (`aws.env`, or a role's where BUSCO_LOCAL_ROLE names one) are put
    into this process's environment, so that boto3 and children see them too; BUSCO_ variables that are set already
    stay.

    Raises:
        BuscoError: a variable's value makes no sense; it is named. Or the state folder can't be made, or belongs to
            somebody else.
    """
    settings = _read()
    if settings.platform == "embedded":
        try:
            # the folder of Airflow's graph is shared with Airflow's containers, which run as another user
            if settings.graph_dir is None or settings.state != settings.below_home(settings.graph_dir):
                make_private(settings.state)
        except OSError as error:
            raise BuscoError(
                f"BUSCO_STATE_DIR: the folder {settings.state} can't be made, or kept from other users: "
                f"{error.strerror}",
                "set it to a folder of your own",
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
        raise BuscoError("\n".join(wrong), "set it anew, or unset it for its default") from error


def require_project(settings: Settings) -> None:
    """Checks that the project is where the settings say.

    Raises:
        BuscoError: there is no dbt project.
    """
    if not (settings.dbt_project / "dbt_project.yml").is_file():
        raise BuscoError(
            f"BUSCO_HOME is {settings.home}, where {settings.dbt_project_dir}/dbt_project.yml does not exist",
            "set BUSCO_HOME to the project's folder, or unset it within the project",
        )


# where else SDKs would find credentials (boto3 documentation, "Credentials")
_OTHER_CREDENTIALS = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip


def _point_at_local_aws(variables: dict[str, str]) -> None:
    """Whatever AWS account the user's shell is set up for, the embedded platform never speaks to it."""
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
    """The settings, if they name a lake.

    Raises:
        BuscoError: no lake bucket is configured, or the embedded platform's local AWS was never started.
    """
    if settings.lake_bucket:
        return settings
    if settings.platform == "embedded":
        raise BuscoError("the local AWS is not running", "start it: busco aws up")
    raise BuscoError("BUSCO_LAKE_BUCKET is not set", "set it to the lake's bucket")
