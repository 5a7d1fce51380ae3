"""Models, views and seeds that are refused when they are built: dates that readers can't represent, duplicate columns.

All of them are built in one run; none prevents another from being built.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from busco.errors import BuscoError
from busco.lake import engine, layout, types
from busco.lake.contents import read_version
from busco.lake.deliveries import TECHNICAL, Contract, bronze_version
from busco.lake.records import Column, Delivery, Published, Result, utc_now
from busco.lake.relations import select_sql
from busco.lake.runs import Run
from busco.project import Project
from busco.warehouse.runner import Outcome
from busco.warehouse.session import write_bronze_metadata
from tests.integration.conftest import MINI
from tests.platforms import ENVIRONMENT, Platform, csv_text, platform

BC = "date '0044-03-15 (BC)'"
# each model's SQL, and part of its error
BEYOND = {
    "day": ("select * from (values (1, date 'infinity'), (2, '2018-01-01'), (3, '-infinity'), (4, null)) t (k, day)",
            "day in 2 rows"),
    "bc": (f"select {BC} as day", "day in 1 row"),
    "year": ("select date '10000-01-01' as day from range(1000)", "day in 1000 rows"),
    "moment": ("select timestamp 'infinity' as at, timestamp_s '10000-01-01 00:00:00' as s,"
               " timestamp_ms '-infinity' as ms, 'inf'::double as d", "at in 1 row, s in 1 row, ms in 1 row"),
    "zoned": ("select timestamptz '9999-12-31 23:30:00-01' as at", "at in 1 row"),
    "nested": (f"select [date '2018-01-01', {BC}] as l, {{'a': [{{'b': {BC}}}]}} as s, map {{{BC}: 1}} as m",
               "l in 1 row, s in 1 row, m in 1 row"),
    "parted": ("{{ config(partition_by=['day']) }} select i as k, case when i < 2 then date 'infinity' else"
               " date '2018-01-01' + i::int end as day from range(9) as r (i)", "day in 2 rows"),
    "parted_other": ("{{ config(partition_by=['k']) }} select i % 3 as k, case when i % 3 < 2 then date 'infinity' end"
                     " as day from range(9) as r (i)", "day in 6 rows"),
    "secret": ("select date '44444-04-04' as born", "born in 1 row"),
}  # fmt: skip
DOUBLED = {
    "twice": ("select 1 as a, 2 as a", "the SQL has duplicate columns: a"),
    "thrice": ("with x as (select 1 as a) select a, a as b, a as a, x.a from x -- the end", "duplicate columns: a"),
    "cased": ('select 1 as a, 2 as "A"', "a and A"),
    "contracted": ("select 1 as a, 2 as a", "the SQL has duplicate columns: a"),
    "joined": ("select * from {{ ref('orders') }} o join {{ ref('v_orders') }} v on o.id = v.id", "id, customer"),
    "below": ("with j as (select o.id, v.id from {{ ref('orders') }} o join {{ ref('v_orders') }} v on true)"
              " select * from j", "id_1 was a second column named id"),
    "through": ("select * from {{ ref('doubled') }}", "a_1 was a second column named a"),
    "v_twice": ("{{ config(materialized='view') }} select 1 as a, 2 as A", "a and A"),
    "v_below": ("{{ config(materialized='view') }} select * from (select 1 as a, 2 as a)",
                "a_1 was a second column named a"),
}  # fmt: skip
RIGHT = {
    # infinity as a double, and the first and the last representable day
    "edges": ("select 'inf'::double as x, 'nan'::float as y, [timestamp '0001-01-01'] as l,"
              " timestamptz '9999-12-31 23:59:59.999999+00' as z", ["x", "y", "l", "z"]),
    # names that look as if DuckDB had generated them, but that the project chose
    "named": ("select 1 as a, 2 as a_1", ["a", "a_1"]),
    "picked": ("with j as (select 1 as a, 2 as a) select a, a_1 from j", ["a", "a_1"]),
    "passed_on": ("select * from {{ ref('named') }}", ["a", "a_1"]),
    "viewed": ("select * from {{ ref('v_named') }}", ["a", "a_1"]),
    "through_ephemeral": ("select * from {{ ref('e_named') }}", ["a", "a_1"]),
    "described": ("select * from (select 1 as a, 2 as a)", ["a", "a_1"]),
    # names that come from a struct's fields, from data or from a pattern
    "structs": ("select 1 as id, {'a': 1, 'a_1': [{'a_2': 2}]} as s", ["id", "s"]),
    "unpacked": ("select id, s.* from {{ ref('structs') }}", ["id", "a", "a_1"]),
    "pivoted": ("with n as (select 1 as day, 'day_' || i as k, i from range(1, 3) as r (i))"
                " select * from (pivot n on k using sum(i)::bigint group by day)", ["day", "day_1", "day_2"]),
    "patterned": ("select columns('id'), columns('id') as '\\0_1' from {{ ref('structs') }}", ["id", "id_1"]),
    "one_using": ("select * from {{ ref('named') }} join {{ ref('picked') }} using (a, a_1)", ["a", "a_1"]),
}  # fmt: skip


@dataclass
class Built:
    platform: Platform
    run: Run
    outcome: Outcome
    results: dict[str, Result] = field(default_factory=dict)

    def error_of(self, name: str) -> str:
        """Returns the error of a model or seed, which must not have a version."""
        (result,) = [one for node, one in self.results.items() if node.split(".")[2:] == [name]]
        assert result.status == "error", f"{name}: {result.status}"
        assert not [t for t, entry in self.run.entries().items() if t.endswith(f".{name}") and entry.version]
        return result.error


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    with platform(tmp_path_factory.mktemp("refused"), MINI) as made:
        for name, (sql, _) in {**BEYOND, **DOUBLED, **RIGHT}.items():
            made.model(f"gold/{name}", sql)
        made.model("gold/doubled", "{{ config(materialized='ephemeral') }} select 1 as a, 2 as a")
        made.model("gold/v_named", "{{ config(materialized='view') }} select * from {{ ref('named') }}")
        made.model("gold/e_named", "{{ config(materialized='ephemeral') }} select * from {{ ref('v_named') }}")
        made.write(
            "dbt_project/models/gold/some.yml",
            "models: [{name: contracted, config: {contract: {enforced: true}}, columns: ["
            "{name: a, data_type: INTEGER}, {name: a_1, data_type: INTEGER}]},"
            " {name: described, columns: [{name: a_1, description: wanted}]},"
            " {name: secret, columns: [{name: born, config: {meta: {pii: true}}}]}]",
        )
        made.write("dbt_project/seeds/s_beyond.csv", "k,day\n1,2018-01-01\n2,infinity\n")
        made.write("dbt_project/seeds/s_twice.csv", "a,b,a\n1,2,3\n")
        made.write("dbt_project/seeds/s_cased.csv", "a;b;A\n1;2;3\n")
        made.write("dbt_project/seeds/s_nameless.csv", ",a,b\n1,2,3\n")
        made.write(
            "dbt_project/seeds/seeds.yml",
            "seeds: [{name: s_beyond, config: {schema: silver, column_types: {day: date}}},"
            " {name: s_nameless, config: {schema: silver}},"
            " {name: s_twice, config: {schema: silver}}, {name: s_cased, config: {schema: silver, delimiter: ';'}}]",
        )
        made.deliver(csv_text(("id", "customer", "amount", "day", "n"), [("a", "x", "1.50", "2018-01-01", 1)]))
        run, outcome = made.built()
        yield Built(made, run, outcome, run.latest_results())


# -- dates and times beyond the years 1 to 9999 -----------------------------------------------------------------------


@pytest.mark.parametrize("name", BEYOND)
def test_a_model_with_dates_that_readers_cannot_represent_is_refused_with_columns_and_rows(
    built: Built, name: str
) -> None:
    error = built.error_of(name)
    assert f"gold.{name}" in error
    assert BEYOND[name][1] in error


@pytest.mark.parametrize("name", ["day", "nested", "parted", "parted_other"])
def test_the_query_in_the_refusal_finds_the_rows(built: Built, name: str) -> None:
    (command,) = [line for line in built.error_of(name).splitlines() if "busco query" in line]
    arguments = command.split("busco query", 1)[1]
    sql = arguments.split('"', 1)[1].rsplit('"', 1)[0].replace('\\"', '"')
    with engine.connect(built.platform.settings) as db:
        rows = db.execute(sql).fetchall()
    assert len(rows) == {"day": 2, "nested": 1, "parted": 2, "parted_other": 6}[name]


def test_the_refusal_shows_no_personal_data(built: Built) -> None:
    assert "44444" not in built.error_of("secret")
    keys = [key for key in built.platform.store.keys(ENVIRONMENT.runs("")[:-1]) if "secret" in key]
    assert keys
    assert [key for key in keys if b"44444" in built.platform.store.get(key).body] == []


def test_a_seed_with_such_a_date_is_refused_too(built: Built) -> None:
    assert "day in 1 row" in built.error_of("s_beyond")


def test_a_bronze_table_with_such_a_time_is_refused_until_its_file_is_corrected(built: Built) -> None:
    """The file was ingested by an earlier version of the platform, which accepted it."""
    store, name = built.platform.store, f"t{uuid.uuid4().hex}"
    columns = (Column(name="at", type="TIMESTAMP WITH TIME ZONE"),)
    contract = Contract("s", name, columns, (), "rows")
    fields = types.field_ids_sql([(c.name, types.parse(c.type)) for c in (*columns, *TECHNICAL)])

    def delivered(number: int, times: list[str]) -> str:
        key = layout.bronze_object("s", name, "c", str(number))
        rows = ", ".join(f"({place}, timestamptz '{time}')" for place, time in enumerate(times, 1))
        sql = (
            f"select t.\"at\", 'x.csv' as _source_file, place::bigint as _source_row, localtimestamp as _ingested_at"
            f' from (values {rows}) as t (place, "at")'
        )
        with engine.connect(built.platform.settings) as db:
            ((_, count, size, _, statistics, *_),) = db.execute(
                f"copy ({sql}) to '{store.url(key)}' (format parquet, return_stats, field_ids {fields})"
            ).fetchall()
        record = Delivery(
            table=contract.name, file_name="x.csv", number=number, object=key, attempt=str(number), content_hash="c",
            contract_hash=contract.hash, columns=(*columns, *TECHNICAL), rows=count, quarantined=0, bytes=size,
            statistics=statistics, ingested_at=utc_now(),
        )  # fmt: skip
        store.create(layout.delivery("s", name, "x.csv", number), record)
        return key

    def pinned() -> Published:
        delivered = {key: etag for key, (etag, _) in store.sizes(layout.delivery_prefix("s", name)).items()}
        version = bronze_version(store, contract, delivered, None)
        assert isinstance(version, Published)
        return version

    def prepare(version: Published) -> None:
        write_bronze_metadata(
            built.platform.settings, Project.of(built.platform.settings), built.run, {contract.name: version}, None
        )

    bad = delivered(1, ["2018-01-01 00:00:00+00", "infinity"])
    refused = pinned()
    with pytest.raises(BuscoError) as refusal:
        prepare(refused)
    assert f"{contract.name} " in str(refusal.value)
    assert "at in 1 row" in str(refusal.value)
    assert "correct the dates in x.csv" in str(refusal.value)
    assert store.url(bad) in str(refusal.value)
    assert store.get(refused.metadata) is None

    corrected = delivered(2, ["2018-01-01 00:00:00+00", "2018-01-02 00:00:00+00"])
    version = pinned()
    prepare(version)
    assert store.get(version.metadata) is not None
    assert [file.key for file in read_version(store, version).files] == [corrected]
    with engine.connect(built.platform.settings) as db:
        assert db.execute(
            f"select count(*) from ({select_sql(read_version(store, version), store.bucket)})"
        ).fetchall() == [(2,)]


# -- duplicate columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOUBLED)
def test_a_model_whose_sql_has_a_duplicate_column_is_refused_with_its_name(built: Built, name: str) -> None:
    assert DOUBLED[name][1] in built.error_of(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("s_twice", "duplicate columns: a"), ("s_cased", "a and A"), ("s_nameless", "a would become a_2")],
)
def test_a_seed_whose_header_has_a_duplicate_column_is_refused(built: Built, name: str, message: str) -> None:
    assert message in built.error_of(name)


@pytest.mark.parametrize("name", RIGHT)
def test_a_model_whose_columns_only_look_like_duplicates_is_built(built: Built, name: str) -> None:
    version = built.run.entries()[f"gold.{name}"].version
    assert version is not None, built.error_of(name)
    columns = read_version(built.platform.store, version).columns
    assert [column.name for column in columns] == RIGHT[name][1]
