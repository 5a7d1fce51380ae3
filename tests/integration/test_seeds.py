"""Seeds have the same types and values as in plain dbt-duckdb, which loads the same files for comparison."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import pytest

from busco.lake.contents import read_version
from busco.lake.engine import connect
from busco.lake.records import Entry, Result
from busco.lake.relations import select_sql
from busco.lake.runs import Run
from tests.integration.conftest import MINI
from tests.platforms import ROOT, Platform, platform

# the cells of each column of one file with three rows
COLUMNS: dict[str, list[str]] = {
    "yes_no": ["yes", "no", ""],
    "t_f": ["t", "f", "t"],
    "true_false": ["true", "FALSE", ""],
    "zeros": ["007", "010", ""],
    "whole": ["12", "-3", ""],
    "points": ["27.0", "28.0", ""],
    "decimals": ["0.1", "12345678901234567.123456789", "-1.50"],
    "exponents": ["1e3", "1E-2", "5"],
    "null_texts": ["null", "NULL", "x"],
    "all_empty": ["", "", ""],
    "quoted": ['"1"', '"2"', '""'],
    "quoted_zeros": ['"01"', '"02"', '"03"'],
    "iso_days": ["2020-01-05", "1969-12-31", ""],
    "iso_moments": ["2020-01-05 10:00:00", "2020-01-05 23:59:59", ""],
    "iso_t": ["2020-01-05T10:00:00", "2020-01-05T10:00:00.123456", ""],
    "iso_zoned": ["2020-01-05T10:00:00Z", "2020-01-05T10:00:00+02:00", ""],
    "mixed_moments": ["2020-01-05", "2020-01-05 10:00:00", ""],
    "clock": ["12:30", "23:59", ""],
    "clock_s": ["12:30:00", "23:59:59", ""],
    "spaces": [" a", "b ", "  "],
    "spaced_numbers": [" 1", "2 ", "3"],
    "mixed": ["1", "x", "2.5"],
    "ones": ["1", "0", "1"],
    "unicode": ["é ü", "漢字", "🦆"],
    "texts": ['"a ""b"" c"', '"x\ny"', '"a, b"'],
    "nan": ["NaN", "inf", "1.5"],
    "typed_text": ["007", "null", ""],
    "typed_big": ["12", "9007199254740993", ""],
    "typed_decimal": ["1.10", "2", ""],
    "typed_day": ["2020-01-05", "", "0001-01-01"],
    "typed_flag": ["yes", "no", "t"],
}
# DuckDB detects one format for all dates of a file: with these, it would refuse the ISO dates above
OTHER_DAYS = {
    "day_first": ["01/02/2020", "31/12/2020", ""],
    "month_first": ["01/02/2020", "12/31/2020", ""],
    "slashes": ["2020/01/05", "2020/12/31", ""],
    "dotted": ["5.1.2020", "31.12.2020", ""],
}
TYPED = {
    "typed_text": "text", "typed_big": "bigint", "typed_decimal": "decimal(10, 3)", "typed_day": "timestamp",
    "typed_flag": "boolean",
}  # fmt: skip


def csv_of(columns: dict[str, list[str]]) -> str:
    return "\n".join(",".join(row) for row in [list(columns), *zip(*columns.values(), strict=True)]) + "\n"


# each seed's content and config
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "cells": (csv_of(COLUMNS), {"column_types": TYPED}),
    "days_of_others": (csv_of(OTHER_DAYS), {}),
    "semicolons": ("code;label\n01;a,b\n02;c\n", {"delimiter": ";"}),
    "tabs": ("code\tlabel\n1\ta b\n2\tc\n", {"delimiter": "\t"}),
    "quoted_names": ('Order,"a b",select\n1,2,3\n', {"quote_columns": True}),
    "upper": ("Code,LABEL\n1,a\n", {}),
    "header_only": ("a,b\n", {}),
    "header_only_typed": ("a,b\n", {"column_types": {"a": "date"}}),
    "blank_lines": ("a,b\n1,x\n\n2,y\n\n", {}),
    "no_newline": ("a,b\n1,x\n2,y", {}),
    "carriage_returns": ("a,b\r\n1,x\r\n2,y\r\n", {}),
    "with_bom": ("\ufeffa,b\n1,x\n", {}),
    "numbered_names": ("id,phone,phone_2\n1,a,b\n", {}),
    "nameless": ("id,,a\n1,2,3\n", {}),
    "slow": ("a,b,c\n1,null,2020-01-05 10:00:00\n2,,\n", {"fast": False}),
    "one_column": ("a\n1\n2\n", {}),
    "two_thousand": ("a,b\n" + "".join(f"{i},{'x' * (i % 7)}\n" for i in range(2000)), {}),
}
# seeds that plain dbt-duckdb refuses
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "huge": ("a\n12345678901234567890123\n", {}),
    "large": ("a\n3000000000\n", {}),
    "null_among_numbers": ("a\n1\nnull\n", {}),
    "thousands": ('a\n"1,000"\n"2,500"\n', {}),
    "money": ("a\n$5\n$6.50\n", {}),
    "typed": ("a\nx\n", {"column_types": {"a": "integer"}}),
    "long_row": ("a,b\n1,2,3\n", {}),
}
# seeds that plain dbt-duckdb accepts, but whose types tables can't store
REFUSED = {
    "hugeint": ("a\n1\n", {"column_types": {"a": "hugeint"}}, "tables can't store the type HUGEINT"),
    "time": ("a\n12:30:00\n", {"column_types": {"a": "time"}}, "tables can't store the type TIME"),
}
# a column with personal data that can't be converted
CANARY = "Zqcanary"
SECRET = (f"name\n{CANARY}\n", {"column_types": {"name": "integer"}})


Described = tuple[list[tuple[str, str]], dict[str, list[Any]]]


@dataclass
class Seeded:
    platform: Platform
    run: Run
    lake: duckdb.DuckDBPyConnection
    plain: duckdb.DuckDBPyConnection
    # seed → dbt's status
    plain_statuses: dict[str, str]

    @cached_property
    def results(self) -> dict[str, Result]:
        return self.run.latest_results()

    @cached_property
    def entries(self) -> dict[str, Entry]:
        return self.run.entries()

    def of_plain(self, name: str) -> Described:
        return described(self.plain, f"from main_silver.{name}")

    def of_lake(self, name: str) -> Described:
        version = self.entries[f"silver.{name}"].version
        assert version is not None, self.results[f"seed.busco.{name}"].error
        return described(self.lake, select_sql(read_version(self.platform.store, version), self.platform.store.bucket))


def described(db: duckdb.DuckDBPyConnection, sql: str) -> Described:
    """Returns the names and types of a query's columns, and each column's values as text, with sorted rows."""
    columns = [(str(row[0]), str(row[1])) for row in db.execute(f"describe {sql}").fetchall()]
    rows = sorted(db.execute(f"select columns(*)::varchar from ({sql})").fetchall(), key=repr)
    return columns, {name: [row[place] for row in rows] for place, (name, _) in enumerate(columns)}


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeded]:
    home = tmp_path_factory.mktemp("seeds")
    with platform(home, MINI) as made:
        for folder in ("silver", "gold"):
            shutil.rmtree(home / f"dbt_project/models/{folder}")
        given = {
            **FILES,
            **BAD,
            **{name: (text, config) for name, (text, config, _) in REFUSED.items()},
            "secret": SECRET,
        }
        for name, (text, _) in given.items():
            (home / "dbt_project/seeds").mkdir(exist_ok=True)
            (home / f"dbt_project/seeds/{name}.csv").write_bytes(text.encode())
        seeds: list[dict[str, Any]] = [
            {"name": name, "config": {"schema": "silver", **config}} for name, (_, config) in given.items()
        ]
        seeds[-1]["columns"] = [{"name": "name", "config": {"meta": {"pii": True}}}]
        made.write("dbt_project/seeds/seeds.yml", json.dumps({"seeds": seeds}))
        plain = home / "plain"
        shutil.copytree(home / "dbt_project/seeds", plain / "seeds")
        (plain / "dbt_project.yml").write_text("name: busco\nprofile: plain\nconfig-version: 2\n")
        (plain / "profiles.yml").write_text("plain: {target: t, outputs: {t: {type: duckdb, path: plain.duckdb}}}")
        subprocess.run(
            [str(ROOT / ".venv-dbt/bin/dbt"), "seed", "--project-dir", ".", "--profiles-dir", "."],
            cwd=plain, env={**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}, capture_output=True, timeout=300,
        )  # fmt: skip
        plain_results = json.loads((plain / "target/run_results.json").read_text())["results"]
        statuses = {one["unique_id"].split(".")[-1]: one["status"] for one in plain_results}
        run, _ = made.built()
        with duckdb.connect(str(plain / "plain.duckdb"), read_only=True) as db, connect(made.settings) as lake:
            yield Seeded(made, run, lake, db, statuses)


@pytest.mark.parametrize("name", FILES)
def test_a_seed_has_the_types_and_values_of_plain_dbt_duckdb(seeded: Seeded, name: str) -> None:
    assert seeded.of_lake(name) == seeded.of_plain(name)


def test_the_types_are_not_those_of_duckdbs_sniffer(seeded: Seeded) -> None:
    kinds = {**dict(seeded.of_lake("cells")[0]), **dict(seeded.of_lake("days_of_others")[0])}
    assert {kinds[name] for name in ("yes_no", "t_f", "day_first", "slashes")} == {"VARCHAR"}
    assert {kinds[name] for name in ("whole", "zeros", "quoted_zeros")} == {"INTEGER"}


@pytest.mark.parametrize("name", BAD)
def test_a_seed_that_plain_dbt_duckdb_refuses_is_refused(seeded: Seeded, name: str) -> None:
    assert seeded.plain_statuses[name] == "error"
    assert seeded.results[f"seed.busco.{name}"].status == "error"
    entry = seeded.entries.get(f"silver.{name}")
    assert entry is None or entry.version is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_tables_cannot_store_is_refused_with_where_to_set_another(seeded: Seeded, name: str) -> None:
    error = seeded.results[f"seed.busco.{name}"].error
    assert REFUSED[name][2] in error
    assert "column_types" in error


def test_personal_data_that_cannot_be_converted_in_a_seed_is_not_shown(seeded: Seeded) -> None:
    result = seeded.results["seed.busco.secret"]
    assert result.status == "error"
    keys = [key for key in seeded.platform.store.keys("_lake/env/prod/runs") if "secret" in key]
    assert keys
    assert [key for key in keys if CANARY.encode() in seeded.platform.store.get(key).body] == []
