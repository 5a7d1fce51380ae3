"""Deploys the sample's 20 models with stock Cosmos on ECS, as a baseline for `bench.ways`.

Each run and test task is a container; models use dbt-duckdb's `external` materialization and read the files of earlier
tasks. In its favor, it leaves out what only our platform has: unit tests, partitions, docs, a catalog, publishing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from busco.aws import client
from busco.settings import Settings, get_settings
from tests.airflow.driver import ROOT, Driver

NAME = "stock"
_PROFILE = """
busco:
  target: stock
  outputs:
    stock:
      type: duckdb
      path: ":memory:"
      threads: 4
      external_root: s3://{bucket}/stock
      extensions: [httpfs]
      config_options: {{extension_directory: /opt/stock/extensions, autoinstall_known_extensions: false}}
      secrets:
        - type: s3
          key_id: {key}
          secret: {secret}
          region: {region}
          endpoint: "{{{{ env_var('AWS_ENDPOINT_URL') | replace('http://', '') }}}}"
          use_ssl: false
          url_style: path
"""
_DOCKERFILE = """
FROM {image}
USER root
COPY project /opt/stock
RUN python -c "import duckdb; from busco.lake.engine import extension_file as f; \\
    c = duckdb.connect(config={{'extension_directory': '/opt/stock/extensions'}}); \\
    c.execute('install ' + repr(str(f('httpfs'))))" && chmod -R a+rX /opt/stock
USER 10001:10001
ENTRYPOINT ["sh", "-c", "sleep {delay}; if [ -n \\"$STOCK\\" ]; then exec \\"$@\\"; fi; exec busco \\"$@\\"", "sh"]
"""
# Variables of its tasks, which use the same image as all other tasks.
_VARIABLES = {
    "STOCK": "1",
    "DBT_PROJECT_DIR": "/opt/stock",
    "DBT_PROFILES_DIR": "/opt/stock",
    "DBT_TARGET_PATH": "/tmp/target",
    "DBT_LOG_PATH": "/tmp/logs",
}
_DAG = """
# Airflow reads only files that contain the words airflow and dag.
from datetime import datetime
from cosmos import DbtDag, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import ExecutionMode, LoadMode, TestBehavior

dag = DbtDag(
    dag_id={name!r}, schedule=None, start_date=datetime(2024, 1, 1), catchup=False,
    project_config=ProjectConfig(manifest_path={manifest!r}, project_name="busco"),
    profile_config=ProfileConfig(profile_name="busco", target_name="stock", profiles_yml_filepath={profile!r}),
    execution_config=ExecutionConfig(dbt_project_path="/opt/stock", execution_mode=ExecutionMode.AWS_ECS),
    render_config=RenderConfig(
        load_method=LoadMode.DBT_MANIFEST, test_behavior=TestBehavior.AFTER_EACH,
        should_detach_multiple_parents_tests=True, emit_datasets=False,
    ),
    operator_args={arguments!r},
)
"""


def deploy(driver: Driver, image: str, tag: str, delay: float) -> None:
    """Builds the project into the image of all tasks, registers its task definition and adds its DAG to Airflow.

    Args:
        driver: the platform under test.
        image: the base image.
        tag: the image that tasks run.
        delay: seconds before a container begins its work, to simulate Fargate's start.
    """
    settings, folder = get_settings(), driver.home / NAME
    project = folder / "project"
    _project(project, settings)
    variables = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1", "DBT_PROFILES_DIR": str(project)}
    dbt = ROOT / ".venv-dbt/bin/dbt"
    command = [str(dbt), "parse", "--project-dir", str(project), "--target-path", str(folder), "--no-partial-parse"]
    subprocess.run(command, env=variables, check=True, capture_output=True)
    (folder / "Dockerfile").write_text(_DOCKERFILE.format(image=image, delay=delay))
    build = ["docker", "build", "--quiet", "--tag", tag, str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    _register(settings)
    arguments: dict[str, Any] = {
        "cluster": settings.ecs_cluster,
        "task_definition": NAME,
        "container_name": settings.ecs_container,
        "aws_conn_id": None,
        "region_name": settings.region,
        "launch_type": "FARGATE",
        "deferrable": True,
    }
    text = _DAG.format(
        name=NAME, manifest=str(folder / "manifest.json"), profile=str(project / "profiles.yml"), arguments=arguments
    )
    (driver.home / "dags" / f"{NAME}.py").write_text(text)


def tasks() -> list[str]:
    """Returns the ARNs of all ECS tasks that the stock DAG has started."""
    settings = get_settings()
    ecs = client("ecs", settings)
    found = []
    for status in ("RUNNING", "STOPPED"):
        pages = ecs.get_paginator("list_tasks").paginate(
            cluster=settings.ecs_cluster, family=NAME, desiredStatus=status
        )
        found += [str(arn) for page in pages for arn in page["taskArns"]]
    return found


def _project(folder: Path, settings: Settings) -> None:
    shutil.copytree(ROOT / "dbt_project", folder, ignore=shutil.ignore_patterns("target", "logs"))
    shutil.copy(ROOT / "src/busco/warehouse/dbt_package/macros/schema.sql", folder / "macros/schema.sql")
    profile = _PROFILE.format(
        bucket=settings.lake_bucket,
        region=settings.region,
        key=os.environ["AWS_ACCESS_KEY_ID"],
        secret=os.environ["AWS_SECRET_ACCESS_KEY"],
    )
    (folder / "profiles.yml").write_text(profile)
    config = yaml.safe_load((folder / "dbt_project.yml").read_text())
    config["models"]["busco"] |= {"+materialized": "external"}
    config["on-run-start"] = ["{{ register_upstream_external_models() }}"]
    (folder / "dbt_project.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    for file in folder.glob("models/**/*.yml"):
        content = yaml.safe_load(file.read_text())
        # in a new process, a unit test can't find the relations that its model reads
        content.pop("unit_tests", None)
        for source in content.get("sources", []):
            for table in source["tables"]:
                location = f"s3://{settings.lake_bucket}/bronze/{source['name']}/{table['name']}/*.parquet"
                table["config"]["meta"]["external_location"] = location
        file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _register(settings: Settings) -> None:
    ecs = client("ecs", settings)
    known = ecs.describe_task_definition(taskDefinition=settings.ecs_task_definition_small)["taskDefinition"]
    wanted = (
        "taskRoleArn", "executionRoleArn", "networkMode", "volumes", "requiresCompatibilities", "cpu", "memory",
        "containerDefinitions",
    )  # fmt: skip
    given = {name: known[name] for name in wanted if name in known}
    for container in given["containerDefinitions"]:
        container["environment"] += [{"name": name, "value": value} for name, value in _VARIABLES.items()]
    ecs.register_task_definition(family=NAME, **given)
