"""Plants a person's name in pii columns and searches everything that a run leaves behind, except for data files."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner
from pyiceberg.conversions import from_bytes
from pyiceberg.table import StaticTable

from busco.aws import client
from busco.cli.scrub import scrub_command
from busco.errors import BuscoError
from busco.lake import versions
from busco.lake.contents import read_versions
from busco.lake.layout import new_id
from busco.lake.metadata_json import NONE
from busco.lake.records import Version
from busco.warehouse import site
from busco.warehouse.dbt import ensure_manifest
from tests.integration.conftest import MINI
from tests.platforms import ENVIRONMENT, Platform, csv_text, platform

CANARY = "zqcanary"
HEADER = ("id", "customer", "amount", "day", "n")
ROWS = [
    ("a", "Zqcanary Silva", "1.50", "2018-01-01", 1),
    ("b", "Zqcanary Souza", "2.50", "2018-01-01", 2),
    # a row with a missing value, so the name ends up in another column
    ("c", "3.50", "Zqcanary Costa", "2018-01-02", 3),
]
MODELS = {
    "gold/renamed": "select id, customer as person, n from {{ ref('orders') }}",
    "gold/starred": "with all_of_it as (select * from {{ ref('v_orders') }}) select * exclude (day) from all_of_it",
    "gold/largest": "select day, max(customer) as last_one, count(customer) as customers from {{ ref('v_orders') }} "
    "group by day",
    "gold/nested": "select id, {'name': upper(customer), 'n': n} as contact from {{ ref('brief') }}",
    "gold/greeted": "{% set who = run_query('select max(customer) from ' ~ ref('orders')).rows[0][0] if execute %}"
    "select id, '{{ who }}' as greeted from {{ ref('orders') }}",
    "gold/added": "{% set a = adapter %}{% set who = a.add_query('select max(customer) from ' ~ ref('orders'))[1]"
    ".fetchall()[0][0] if execute %}{% do log(who, info=True) %}"
    "select id, '{{ who }}' as greeted from {{ ref('orders') }}",
    "gold/hooked": "{{ config(pre_hook=\"create or replace temp macro the_last(x) as (select max(customer) from "
    "{{ ref('orders') }})\") }} select the_last(id) as who, 1 as one from {{ ref('orders') }}",
    "gold/judged": "select id, length(customer) as letters from {{ ref('orders') }}",
}  # fmt: skip
JUDGED = "models: [{name: judged, columns: [{name: letters, config: {meta: {pii: false}}}]}]"


@dataclass
class Written:
    """What a run has left behind: the output of its processes, objects, files and Glue tables."""

    platform: Platform
    printed: str

    def objects(self) -> dict[str, str]:
        """Returns the text of each object in all buckets, except for data files and quarantine, and all keys."""
        s3, settings, found = client("s3", self.platform.settings), self.platform.settings, {}
        for bucket in (settings.lake_bucket, settings.landing_bucket, settings.logs_bucket):
            for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
                for one in page.get("Versions", []):
                    key = one["Key"]
                    found[f"key of {key}"] = unquote(key)
                    if not key.startswith(("bronze/", "silver/", "gold/", "_lake/quarantine/")):
                        body = s3.get_object(Bucket=bucket, Key=key, VersionId=one["VersionId"])["Body"].read()
                        found[f"{key}@{one['VersionId']}"] = text(body)
        return found

    def files(self) -> dict[str, str]:
        """Returns the text of each file below home, except for the delivered ones."""
        home = self.platform.home
        left = [
            path for path in home.rglob("*") if path.is_file() and path.parts[len(home.parts)] not in ("in", "deploy")
        ]
        return {str(path.relative_to(home)): text(path.read_bytes()) for path in left}

    def glue(self) -> str:
        glue = client("glue", self.platform.settings)
        names = [one["Name"] for one in glue.get_databases()["DatabaseList"]]
        return json.dumps([glue.get_tables(DatabaseName=name)["TableList"] for name in names], default=str)

    def bounds(self, version: Version, key: str = "") -> dict[str, tuple[Any, Any, int]]:
        """Returns the smallest and largest value and the number of NULLs of each field of a table with one file."""
        table = static(self.platform, key or version.metadata)
        (manifest,) = table.current_snapshot().manifests(table.io)
        (entry,) = manifest.fetch_manifest_entry(table.io)
        file, found = entry.data_file, {}
        for number, nulls in file.null_value_counts.items():
            kind = table.schema().find_field(number).field_type
            low, high = ((kept or {}).get(number) for kept in (file.lower_bounds, file.upper_bounds))
            found[table.schema().find_column_name(number)] = (
                low if low is None else from_bytes(kind, low),
                high if high is None else from_bytes(kind, high),
                nulls,
            )
        return found


def text(body: bytes) -> str:
    """Returns a file's content as text; the blocks of an Avro file are decompressed."""
    if not body.startswith(b"Obj\x01"):
        return body.decode(errors="replace")
    sync, blocks = body[-16:], []
    for block in body.split(sync)[1:-1]:
        # two numbers of variable length come before the data
        start = [at for at, byte in enumerate(block[:20]) if byte < 128][1] + 1
        blocks.append(zlib.decompress(block[start:], -15).decode(errors="replace"))
    return body.decode(errors="replace") + "".join(blocks)


def static(made: Platform, key: str) -> StaticTable:
    properties = {
        "s3.endpoint": str(made.settings.endpoint_url),
        "s3.region": made.settings.region,
        "s3.access-key-id": os.environ["AWS_ACCESS_KEY_ID"],
        "s3.secret-access-key": os.environ["AWS_SECRET_ACCESS_KEY"],
    }
    return StaticTable.from_metadata(made.store.url(key), properties)


def scrubbed(*options: str) -> str:
    """Runs `busco scrub`; returns what it prints."""
    result = CliRunner().invoke(scrub_command, options, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, served: Path) -> Iterator[Written]:
    with (
        platform(tmp_path_factory.mktemp("personal"), MINI, served) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        # otherwise, the pages get a twentieth of the time of the models, in which hardly any row is read
        patch.setattr(site, "_SHARE", 1000.0)
        for path, sql in MODELS.items():
            made.model(path, sql)
        made.write("dbt_project/models/gold/judged.yml", JUDGED)
        made.model("gold/brief", "{{ config(materialized='ephemeral') }} select * from {{ ref('orders') }}")
        printed = made.busco("ingest", str(made.write("in/orders.csv", csv_text(HEADER, ROWS))))
        output = io.StringIO()
        handler = logging.StreamHandler(output)
        logging.getLogger().addHandler(handler)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            outcome = made.build()
        logging.getLogger().removeHandler(handler)
        assert outcome.good, output.getvalue()
        yield Written(made, printed + output.getvalue())


def test_a_persons_name_is_only_in_data_files_and_quarantine(written: Written) -> None:
    rows = written.platform.duckdb("select person from busco_gold.renamed order by all")
    assert rows == [("Zqcanary Silva",), ("Zqcanary Souza",)]
    assert "quarantined" in written.printed
    warning = "warning: gold.renamed: personal data may have been passed on to person; mark each of these columns"
    assert warning in written.printed
    everything = {"printed": written.printed, "Glue": written.glue(), **written.objects(), **written.files()}
    assert len(everything) > 100
    assert [name for name, content in everything.items() if CANARY in content.lower()] == []


def test_pages_that_were_made_from_rows_have_no_values_of_personal_columns_and_of_what_is_passed_on(
    written: Written,
) -> None:
    made = written.platform
    index = json.loads(text_of(made, f"{made.live().docs}site.json"))
    tables = read_versions(made.store, made.live().tables.values())
    assert index["tables"].keys() == tables.keys()
    for table, version in tables.items():
        content = json.loads(text_of(made, index["tables"][table]["content"]["key"]))
        personal = set(version.personal or ())
        shown = [column.name for column in version.columns if column.name not in personal]
        assert [one["name"] for one in content["columns"] if one["profile"]] == shown, table
        if shown:
            assert (content["profile_from"], content["sample"]["columns"]) == ("rows", shown), table
            assert len(content["sample"]["rows"]) == version.rows
        else:
            assert (content["profile_from"], content["sample"]) == (None, None), table


def text_of(made: Platform, key: str) -> str:
    stored = made.store.get(key)
    assert stored is not None, key
    return stored.body.decode()


def test_columns_with_personal_data_have_null_counts_but_no_bounds_and_others_have_both(written: Written) -> None:
    tables = read_versions(written.platform.store, written.platform.live().tables.values())
    assert {table: set(version.personal or ()) for table, version in tables.items()} == {
        "bronze.orders": {"customer"},
        "silver.orders": {"customer"},
        "gold.fct": set(),
        "gold.renamed": {"person"},
        "gold.starred": {"customer"},
        "gold.largest": {"last_one"},
        "gold.nested": {"contact"},
        # these models insert query results into their SQL, which can contain anything
        "gold.greeted": {"id", "greeted"},
        "gold.added": {"id", "greeted"},
        "gold.hooked": {"who", "one"},
        "gold.judged": set(),
    }
    assert written.bounds(tables["gold.renamed"]) == {"id": ("a", "b", 0), "person": (None, None, 0), "n": (1, 2, 0)}
    assert written.bounds(tables["gold.largest"])["customers"] == (2, 2, 0)
    assert written.bounds(tables["gold.judged"])["letters"] == (14, 14, 0)
    nested = written.bounds(tables["gold.nested"])
    assert (nested["id"], nested["contact.name"], nested["contact.n"]) == (
        ("a", "b", 0),
        (None, None, 0),
        (None, None, 0),
    )
    raw = written.bounds(tables["bronze.orders"])
    assert (raw["customer"], raw["n"]) == ((None, None, 0), (1, 2, 0))


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        (
            "select lower(customer) as who from {{ ref('v_orders') }}",
            "partition_by names who, which contains personal data",
        ),
        ("select 'x' as who from {{ ref('orders') }}", ""),
    ],
)
def test_partitioning_by_a_column_derived_from_personal_data_is_refused_at_parse(
    written: Written, sql: str, problem: str
) -> None:
    made = written.platform
    file = made.write("dbt_project/models/gold/by_who.sql", "{{ config(partition_by=['who']) }} " + sql)
    try:
        if problem:
            with pytest.raises(BuscoError, match=re.escape(problem)):
                ensure_manifest(made.settings)
        else:
            ensure_manifest(made.settings)
    finally:
        file.unlink()


def test_scrub_removes_a_persons_name_from_old_metadata_which_stays_readable(written: Written) -> None:
    made = written.platform
    store, version = made.store, made.version("gold.renamed")
    settings = made.settings
    s3 = client("s3", settings)
    s3.put_bucket_versioning(Bucket=settings.lake_bucket, VersioningConfiguration={"Status": "Enabled"})
    identity = new_id()
    key = ENVIRONMENT.metadata(version.table, identity)
    (file,) = version.files
    statistics = {'"person"': {"min": "Zqcanary Silva", "max": "Zqcanary Souza", "null_count": "0", "num_values": "2"}}
    old = version.model_copy(
        update={
            "version": identity, "metadata": key, "personal": (),
            "files": (file.model_copy(update={"statistics": statistics}),),
        }
    )  # fmt: skip
    store.create(ENVIRONMENT.version(old.table, identity), old)
    versions.write_metadata(store, ENVIRONMENT, old, [versions.ManifestFiles(identity, lambda: old.files)], NONE, {})
    (delivery,) = store.keys("_lake/deliveries/")
    record = json.loads(store.get(delivery).body)
    record["statistics"]['"customer"'] |= {"min": "Zqcanary Silva", "max": "Zqcanary Souza"}
    store.put(delivery, json.dumps({**record, "later": 1}).encode())
    assert written.bounds(version, key)["person"] == ("Zqcanary Silva", "Zqcanary Souza", 0)

    (manifest,) = static(made, key).current_snapshot().manifests(static(made, key).io)
    place = manifest.manifest_path.removeprefix(store.url(""))
    before = store.get(place).body

    assert "1 of 1 delivery records, 1 of 12 version records, 1 of" in scrubbed("--dry-run")
    assert written.bounds(version, key)["person"] == ("Zqcanary Silva", "Zqcanary Souza", 0)
    assert key in scrubbed()

    assert [name for name, content in written.objects().items() if CANARY in content.lower()] == []
    assert written.bounds(version, key) == {"person": (None, None, 0)}
    assert sorted(static(made, key).scan().to_arrow()["person"].to_pylist()) == ["Zqcanary Silva", "Zqcanary Souza"]
    assert json.loads(store.get(delivery).body)["later"] == 1
    assert written.bounds(version)["n"] == (1, 2, 0)
    # an earlier scrub was killed before it deleted the old manifest
    store.put(place, before)
    assert "0 of 1 delivery records, 0 of 12 version records, 0 of" in scrubbed()
    assert store.get(place) is None
    assert made.query("select count(*) from busco_bronze.orders") == [("2",)]
