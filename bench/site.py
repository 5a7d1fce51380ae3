"""Measures the site's files for a lake of 1,000 tables with 20 columns: the time to make them, and the index's size.

The models are real and are built first, which takes a few minutes. The second time is for a run that changes one table.

usage: .venv-dbt/bin/python -m bench.site [--tables N] [--columns N]
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from pathlib import Path

from busco.lake.layout import EnvironmentLayout
from busco.lake.records import DOCS_NODE
from busco.site.release import Site
from tests.platforms import ROOT, Platform, platform

PROJECT = ROOT / "tests/projects/mini"
DESCRIPTION = "The {column} of the {model}, as the source system reports it at the end of the day."


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000, help="tables (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=20, help="columns of each table (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, platform(Path(folder), PROJECT) as lake:
        write(lake, given.tables, given.columns)
        first = build(lake)
        lake.model("gold/t0000", sql(0, given.columns).replace("range(100)", "range(101)"))
        second = build(lake)
        site = Site(lake.store, EnvironmentLayout("prod"), frozenset({"busco"}))
        began = time.monotonic()
        site.state(), site.index("busco"), site.history()
        read = time.monotonic() - began
        stored = lake.store.get(f"{lake.live().docs}site.json")
        assert stored is not None
        sizes = f"{len(stored.body) / 1e6:.2f} MB, {len(gzip.compress(stored.body, 5)) / 1e6:.2f} MB compressed"
    print(f"first run: {first}\nsecond run: {second}\nindex: {sizes}\nstate, index and history: {read:.2f} s")


def write(lake: Platform, tables: int, columns: int) -> None:
    """Writes the models: a hundred without parents, and the others each with the model a hundred before it."""
    for path in (lake.home / "dbt_project/models").rglob("*.*"):
        path.unlink()
    for number in range(tables):
        name = f"t{number:04}"
        described = "".join(
            f"      - {{name: c{at}, description: {DESCRIPTION.format(column=f'measure {at}', model=name)!r}}}\n"
            for at in range(columns)
        )
        yaml = (
            f"models:\n  - name: {name}\n    description: Table {number} of the benchmark.\n    columns:\n{described}"
        )
        lake.model(f"gold/{name}", sql(number, columns), yaml)


def sql(number: int, columns: int) -> str:
    """Returns the SQL of a model."""
    if number < 100:
        return f"select {', '.join(f'(i + {at}) % 50 as c{at}' for at in range(columns))} from range(100) t(i)"
    read = ", ".join(f"c{at} + 1 as c{at}" for at in range(columns))
    return f"select {read} from {{{{ ref('t{number - 100:04}') }}}}"


def build(lake: Platform) -> str:
    """Builds and publishes a run; returns what its docs task reports."""
    began = time.monotonic()
    run, outcome = lake.built()
    assert outcome.good, outcome
    lake.publish(run)
    return f"{time.monotonic() - began:.0f} s in all; " + "; ".join(run.log(DOCS_NODE, 1).split("\n")).strip("; ")


if __name__ == "__main__":
    main()
