"""Compares every way to run the sample's models: wall time, container-seconds, and Airflow's CPU time per model task.

Run it with `python -m bench.ways`; it needs Docker and the image (`make image`), and starts its own platform. A slow
result is not a failure. Copy the figures to RESULTS.md by hand.
"""

from __future__ import annotations

import argparse
import os
import platform as machine
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from urllib.parse import urlparse

import psutil

from bench import stock
from busco.aws import client
from busco.embedded import airflow, processes
from busco.lake.layout import run_key
from busco.lake.runs import open_run
from busco.settings import get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, ROOT, Driver, platform

SERVICES = ("scheduler", "triggerer")
TAG = "busco-bench:local"  # the image for all tasks
MODEL = "mart_daily_sales"  # the model to clear; no other model depends on it


def main() -> None:
    """Prints each row of a table as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000, help="orders in the sample (default: %(default)s)")
    parser.add_argument(
        "--ways", nargs="*", default=["plain", "ecs_shared", "ecs", "local", stock.NAME], help="which ones, in order"
    )
    parser.add_argument("--start", type=float, default=0, help="seconds that a container takes to start, as on Fargate")
    given = parser.parse_args()
    image = os.environ.get("BUSCO_DBT_IMAGE") or "busco-dbt:local"
    print(f"machine: {os.cpu_count()} cores, {machine.platform()}; {given.orders} orders, models rebuilt", flush=True)
    print("| way | wall, s | container-seconds | containers | Airflow's CPU, s | clear to green, s |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        platform(
            Path(folder) / "home",
            ROOT / "dbt_project",
            files=None,
            BUSCO_EXECUTION="ecs_shared",
            BUSCO_DBT_IMAGE=late(image, given.start),
        ) as driver,
    ):
        driver.busco("sample", "--orders", str(given.orders), "--out", f"{folder}/sample")
        driver.busco("ingest", f"{folder}/sample")
        for way in given.ways:
            if way == stock.NAME:
                stock.deploy(driver, image, TAG, given.start)
            row = plain() if way == "plain" else dag_run(driver, way)
            print(f"| {way} | {' | '.join(row)} |", flush=True)


def late(image: str, seconds: float) -> str:
    """Builds an image whose containers wait for `seconds` before they begin; returns its tag."""
    entrypoint = f'ENTRYPOINT ["sh", "-c", "sleep {seconds}; exec busco \\"$@\\"", "busco"]'
    text = f"FROM {image}\n{entrypoint}\n"
    subprocess.run(["docker", "build", "--quiet", "--tag", TAG, "-"], input=text, text=True, check=True)
    return TAG


def plain() -> list[str]:
    """Runs `busco dbt build` for everything in one container, without Airflow."""
    settings = get_settings()
    port = urlparse(str(settings.endpoint_url)).port
    variables = {
        "BUSCO_ENDPOINT_URL": f"http://host.docker.internal:{port}",
        "AWS_ENDPOINT_URL": f"http://host.docker.internal:{port}",
        "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        "BUSCO_LAKE_BUCKET": settings.lake_bucket,
        "BUSCO_REGION": settings.region,
    }
    command = ["docker", "run", "--rm", "--add-host", "host.docker.internal:host-gateway"]
    command += [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    began = time.monotonic()
    subprocess.run([*command, settings.dbt_image, "dbt", "build", "--full-refresh"], check=True, capture_output=True)
    seconds = time.monotonic() - began
    return [f"{seconds:.1f}", f"{seconds:.0f}", "1", "0", ""]


def dag_run(driver: Driver, way: str) -> list[str]:
    """Runs the DAG once, then clears one of its models with everything downstream."""
    os.environ["BUSCO_EXECUTION"] = "local" if way == "local" else "ecs" if way == stock.NAME else way
    dag, model = (stock.NAME, MODEL) if way == stock.NAME else (DAG, f"models.{MODEL}")
    get_settings.cache_clear()
    airflow.down(get_settings(), lambda _: None)
    airflow.up(get_settings(), lambda _: None)
    before = cpu()
    run = driver.start(dag) if way == stock.NAME else driver.start(full_refresh=True)
    driver.green(run, dag, limit=3600)
    used = cpu() - before
    ended = driver.api.dag_run(dag, run)
    wall = (datetime.fromisoformat(ended["end_date"]) - datetime.fromisoformat(ended["start_date"])).total_seconds()
    arns = stock.tasks() if way == stock.NAME else runners(driver, run)
    seconds = container_seconds(arns)
    began = time.monotonic()
    driver.api.clear(dag, run, [f"{model}.run"], downstream=True)
    driver.green(run, dag, limit=3600)
    again = time.monotonic() - began
    return [f"{wall:.1f}", f"{seconds:.0f}", str(len(arns)), f"{used:.0f}", f"{again:.1f}"]


def runners(driver: Driver, run: str) -> list[str]:
    return [runner.arn for runner in open_run(driver.store, ENVIRONMENT, run_key(DAG, run)).runners() if runner.arn]


def container_seconds(arns: list[str]) -> float:
    """Returns the total seconds from each task's start to its end, as recorded by ECS."""
    settings = get_settings()
    if not arns:
        return 0.0
    ecs = client("ecs", settings)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        some = [arns[begin : begin + 100] for begin in range(0, len(arns), 100)]
        tasks = [t for part in some for t in ecs.describe_tasks(cluster=settings.ecs_cluster, tasks=part)["tasks"]]
        if all("stoppedAt" in task for task in tasks):
            return float(sum((task["stoppedAt"] - task["startedAt"]).total_seconds() for task in tasks))
        time.sleep(0.5)
    raise SystemExit("some ECS tasks did not stop within 60 s")


def cpu() -> float:
    """Returns the CPU seconds of Airflow's scheduler and triggerer, including their children."""
    state, total = get_settings().state.resolve(), 0.0
    for service in SERVICES:
        found = processes.find(state, service)
        if found is not None:
            times = psutil.Process(found.pid).cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
            for child in psutil.Process(found.pid).children(recursive=True):
                own = child.cpu_times()
                total += own.user + own.system + own.children_user + own.children_system
    return total


if __name__ == "__main__":
    main()
