"""Measures new objects: the time from the upload of a small file to its row in Athena, by step, and many small files.

Run it with `python -m bench.events`; it starts its own platform. A slow result is not a failure. Copy the figures to
RESULTS.md by hand.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform as machine
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from busco.aws import client
from busco.events.pending import current_sets, published, unpublished
from busco.ingest.uploads import past_orders
from busco.lake.layout import ingest_order, ingest_outcome
from busco.lake.records import IngestOrder, IngestOutcome
from busco.project import Project
from busco.settings import get_settings
from tests.airflow.driver import DAG, ENVIRONMENT, ROOT, Driver, platform

SELLERS = "seller_id,seller_zip_code_prefix,seller_city,seller_state\n"
# Prints the seconds that one DuckDB call over all files of a folder takes.
PLAIN = """
import sys, time
import duckdb

duckdb.sql("set enable_progress_bar = false")
folder, began = sys.argv[1], time.monotonic()
duckdb.sql(
    f"copy (select * from read_csv('{folder}/*.csv', all_varchar = true, filename = true)) "
    f"to '{folder}/all.parquet' (format parquet)"
)
print(time.monotonic() - began)
"""
STEPS = ("until ingest is ordered", "ingest", "until the run starts", "pin", "models", "docs, publish", "Glue", "all")


def main() -> None:
    """Prints each row of a table as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000, help="orders in the lake (default: %(default)s)")
    parser.add_argument("--uploads", type=int, default=3, help="uploads of one file (default: %(default)s)")
    parser.add_argument("--files", type=int, default=10_000, help="small files (default: %(default)s; 0: none)")
    given = parser.parse_args()
    print(f"machine: {os.cpu_count()} cores, {machine.platform()}; {given.orders:,} orders", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        platform(Path(folder) / "home", ROOT / "dbt_project", None, BUSCO_LISTEN="true") as driver,
    ):
        driver.busco("dbt", "parse")
        driver.api.wait_for_dag(DAG)
        driver.busco("sample", "--orders", str(given.orders), "--out", f"{folder}/sample")
        began = time.monotonic()
        driver.busco("put", f"{folder}/sample")
        print(f"first data, from the upload to the release: {time.monotonic() - began:.1f} s", flush=True)
        settle(driver)
        print(f"\n| seconds | {' | '.join(STEPS)} |\n|---|{'---|' * len(STEPS)}", flush=True)
        rows = [one_file(driver, f"one-{number}") for number in range(given.uploads)]
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"| median of {given.uploads} | {' | '.join(f'{seconds:.1f}' for seconds in medians)} |", flush=True)
        if given.files:
            many_files(driver, given.files, Path(folder) / "many")


def settle(driver: Driver) -> None:
    """Waits until everything is published and no run is active."""
    settings, store = get_settings(), driver.store
    project = Project.of(settings)

    def done() -> bool:
        ended = all(run["state"] in ("success", "failed") for run in driver.api.dag_runs(DAG))
        now = current_sets(store, project.contracts)
        return ended and not unpublished(now, published(store, ENVIRONMENT, project.identity))

    driver.wait(done, 3600)


def until(ready: Callable[[], bool]) -> None:
    """Waits for a condition."""
    while not ready():
        time.sleep(0.05)


def one_file(driver: Driver, name: str) -> list[float]:
    """Uploads a file with one row; returns the seconds of each of `STEPS`."""
    settings, store = get_settings(), driver.store
    past, runs = past_orders(store), {run["dag_run_id"] for run in driver.api.dag_runs(DAG)}
    began = time.time()
    client("s3", settings).put_object(
        Bucket=settings.landing_bucket, Key=f"sellers/{name}.csv", Body=f"{SELLERS}{name},01234,sao paulo,SP\n".encode()
    )

    def orders() -> list[str]:
        return sorted(past_orders(store) - past)

    until(lambda: bool(orders()))
    order = orders()[0]
    until(lambda: store.read(ingest_outcome(order), IngestOutcome) is not None)
    ordered, outcome = store.read(ingest_order(order), IngestOrder), store.read(ingest_outcome(order), IngestOutcome)
    assert ordered is not None
    assert outcome is not None
    new: list[str] = []

    def started() -> bool:
        new[:] = [run["dag_run_id"] for run in driver.api.dag_runs(DAG) if run["dag_run_id"] not in runs]
        return bool(new) and driver.api.dag_run(DAG, new[0])["start_date"] is not None

    until(started)
    sql = f"select count(*) from busco_silver.sellers where seller_id = '{name}'"
    driver.green(new[0], limit=3600)
    assert driver.busco("query", "--format", "csv", sql).split()[-1] == "1"
    ends = {task["task_id"]: task["end_date"] for task in driver.api.task_instances(DAG, new[0])}
    models = max(end for task, end in ends.items() if task.startswith("models."))
    moments = [
        began,
        ordered.ordered_at.timestamp(),
        outcome.ended_at.timestamp(),
        *(
            datetime.fromisoformat(one).timestamp()
            for one in (
                driver.api.dag_run(DAG, new[0])["start_date"], ends["pin"], models, ends["publish"], ends["glue"],
            )
        ),
    ]  # fmt: skip
    settle(driver)
    return [*(later - earlier for earlier, later in pairwise(moments)), moments[-1] - began]


def many_files(driver: Driver, number: int, folder: Path) -> None:
    """Uploads many files of ten rows each, and compares their ingestion with one DuckDB call over all of them."""
    settings, store = get_settings(), driver.store
    folder.mkdir()
    for at in range(number):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [f"many-{at}-{row}", "01234", "sao paulo", "SP"] for row in range(10)
        )
        (folder / f"{at}.csv").write_text(SELLERS + text.getvalue())
    # only dbt's environment has DuckDB
    done = subprocess.run(
        [ROOT / ".venv-dbt/bin/python", "-c", PLAIN, folder], check=True, stdout=subprocess.PIPE, text=True
    )
    plain = float(done.stdout)
    runs, past = len(driver.api.dag_runs(DAG)), past_orders(store)
    began = time.monotonic()
    s3 = client("s3", settings)

    def put(at: int) -> None:
        body = (folder / f"{at}.csv").read_bytes()
        s3.put_object(Bucket=settings.landing_bucket, Key=f"sellers/many/{at}.csv", Body=body)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(number)))
    uploaded = time.monotonic() - began
    until(lambda: len(list(store.keys("_lake/deliveries/"))) >= number)
    settle(driver)
    whole = time.monotonic() - began
    # the time of the orders alone: from each order to its outcome
    seconds = 0.0
    for order in sorted(past_orders(store) - past):
        ordered, ended = store.read(ingest_order(order), IngestOrder), store.read(ingest_outcome(order), IngestOutcome)
        if ordered is not None and ended is not None:
            seconds += (ended.ended_at - ordered.ordered_at).total_seconds()
    print(f"\n| {number:,} files of ten rows | figure |\n|---|---|")
    print(f"| one DuckDB call over all files | {plain:.1f} s, {number / plain:,.0f} files a second |")
    print(f"| upload, 16 at once | {uploaded:.1f} s |")
    print(
        f"| ingest | {seconds:.1f} s, {number / seconds:,.0f} files a second, {seconds / plain:.1f} × DuckDB's call |"
    )
    print(f"| from the first upload until everything is published | {whole:.1f} s |")
    print(f"| runs | {len(driver.api.dag_runs(DAG)) - runs} |")


if __name__ == "__main__":
    main()
