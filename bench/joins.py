"""Compares TPC-DS queries on the lake's relations with the same queries on the same files in DuckDB alone.

TPC-DS's data is written to the local AWS twice: as tables of one file, and with the six largest tables in 365
partitions each. `lake` are the views of `busco query`, `files` are views of plain `read_parquet`, on connections that
are otherwise the same. Their runs alternate, after one run each that is not counted, and the figures are medians.
`schema` is what the lake's views were until decision 031, with a single run, which also opens the files, and a time
limit.

It needs an extension that is not in requirements/: .venv-dbt/bin/pip install --no-deps duckdb-extension-tpcds==1.5.5

usage: .venv-dbt/bin/python -m bench.joins [--scale N] [--runs N] [--limit SECONDS]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb

from busco.lake import engine, types
from busco.lake.layout import new_id
from busco.lake.reading import open_versions
from busco.lake.records import DataFile, Version
from busco.lake.relations import deferred_sql
from busco.settings import Settings, get_settings
from busco.warehouse import model_sql

HOME = Path(__file__).parents[1]
STATE = HOME / ".busco" / "bench-joins"
# queries that join several large tables
QUERIES = (4, 11, 17, 24, 25, 29, 64, 72, 85, 95)
LARGE = ("store_sales", "store_returns", "catalog_sales", "catalog_returns", "web_sales", "web_returns")
TARGET = 1.2


def main() -> None:
    """Prints a table for each of the two layouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.3, help="TPC-DS's scale factor (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each query (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=60, help="seconds for `schema` (default: %(default)s)")
    given = parser.parse_args()
    with local_aws() as settings, engine.connect(settings) as made:
        made.execute(f"load {types.literal(str(engine.extension_file('tpcds')))}")
        made.execute(f"call dsdgen(sf = {given.scale})")
        texts = made.execute("select query_nr, query from tpcds_queries()").fetchall()
        queries = {number: text for number, text in texts if number in QUERIES}
        tables = [str(row[0]) for row in made.execute("select table_name from duckdb_tables()").fetchall()]
        for layout in ("one file", "365 partitions"):
            split = LARGE if layout == "365 partitions" else ()
            written = [write(made, settings, table, new_id(), table in split) for table in tables]
            versions = {version.table: version for version in written}
            print(f"\n{layout}: {sum(len(version.files) for version in written):,} files, ", end="")
            print(f"{sum(version.rows for version in written):,} rows")
            report(settings, versions, queries, given.runs, given.limit)


@contextmanager
def local_aws() -> Iterator[Settings]:
    from busco.embedded import aws

    os.environ.update(BUSCO_HOME=str(HOME), BUSCO_STATE_DIR=str(STATE))
    aws.up(get_settings(), print)
    get_settings.cache_clear()
    try:
        yield get_settings()
    finally:
        aws.down(get_settings(), print)
        shutil.rmtree(STATE)


def write(made: duckdb.DuckDBPyConnection, settings: Settings, table: str, identity: str, split: bool) -> Version:
    """Writes a table as a model's version is written, with 365 partitions if `split`."""
    part = ", (row_number() over () % 365)::integer as part" if split else ""
    sql = f"select *{part} from {table}"
    described = [(str(row[0]), str(row[1])) for row in made.execute(f"describe {sql}").fetchall()]
    columns, selected = model_sql.columns(described, ())
    bucket = f"s3://{settings.lake_bucket}/"
    partition_by = ("part",) if split else ()
    copy = model_sql.copy_sql(selected, columns, partition_by, sql, f"{bucket}gold/{table}/bench-{identity}")
    files = model_sql.written_files(made.execute(copy).fetchall(), bucket)
    return Version(
        table=f"gold.{table}",
        version=identity,
        columns=columns,
        partition_by=partition_by,
        rows=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files),
        files=tuple(DataFile(key=file.key, rows=file.rows, bytes=file.bytes) for file in files),
        metadata="",
    )


def plain(version: Version, bucket: str) -> str:
    files = ", ".join(types.literal(f"s3://{bucket}/{file.key}") for file in version.files)
    return f"from read_parquet([{files}])"


def schema_only(version: Version, bucket: str) -> str:
    return re.sub(r"explicit_cardinality = \d+, ", "", deferred_sql(version, bucket))


def report(
    settings: Settings, versions: Mapping[str, Version], queries: Mapping[int, str], runs: int, limit: float
) -> None:
    print("| query | files, s | lake, s | lake / files | lake / files, CPU | `schema`, s |\n|---|---|---|---|---|---|")
    ratios = []
    with (
        open_versions(settings, versions, "\n".join(queries.values())) as lake,
        engine.connect(settings) as files,
        engine.connect(settings) as before,
    ):
        for version in versions.values():
            name = version.table.split(".")[1]
            files.execute(f"create view {name} as {plain(version, settings.lake_bucket)}")
            before.execute(f"create view {name} as {schema_only(version, settings.lake_bucket)}")
        for number, text in sorted(queries.items()):
            assert len(files.execute(text).fetchall()) == len(lake.execute(text).fetchall())
            taken: dict[duckdb.DuckDBPyConnection, list[tuple[float, float]]] = {files: [], lake: []}
            for turn in range(runs):
                for connection in (files, lake) if turn % 2 else (lake, files):
                    taken[connection].append(seconds(connection, text))
            wall, cpu = (
                [statistics.median(run[kind] for run in taken[one]) for one in (files, lake)] for kind in (0, 1)
            )
            ratios.append((wall[1] / wall[0], cpu[1] / cpu[0]))
            cells = [str(number), *(f"{figure:.2f}" for figure in (*wall, *ratios[-1])), limited(before, text, limit)]
            print("|", " | ".join(cells), "|", flush=True)
    of_wall, of_cpu = zip(*ratios, strict=True)
    print(f"target {TARGET}; largest ratio {max(of_wall):.2f}, of CPU seconds {max(of_cpu):.2f}; ", end="")
    print(f"median ratio {statistics.median(of_wall):.2f}, of CPU seconds {statistics.median(of_cpu):.2f}", flush=True)


def seconds(connection: duckdb.DuckDBPyConnection, text: str) -> tuple[float, float]:
    """Runs a query, and returns the seconds that it took and this process's CPU seconds."""
    began, cpu = time.monotonic(), time.process_time()
    connection.execute(text).fetchall()
    return time.monotonic() - began, time.process_time() - cpu


def limited(connection: duckdb.DuckDBPyConnection, text: str, limit: float) -> str:
    timer = threading.Timer(limit, connection.interrupt)
    timer.start()
    began = time.monotonic()
    try:
        connection.execute(text).fetchall()
    except duckdb.InterruptException:
        return f"not ended after {limit:.0f}"
    finally:
        timer.cancel()
    return f"{time.monotonic() - began:.2f}"


if __name__ == "__main__":
    main()
