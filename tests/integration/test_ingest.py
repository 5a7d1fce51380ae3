"""Files are ingested into bronze (rules D1 to D4) as a whole or not at all, and nothing is dropped silently."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest

from busco.ingest import ingest as ingesting
from busco.ingest import load as loading
from busco.ingest.ingest import Report
from busco.ingest.load import Loaded
from busco.lake import types
from busco.lake.engine import connect
from busco.lake.objects import ObjectStore
from busco.lake.records import Delivery
from busco.settings import get_settings
from tests.exact_values import TYPES, random_text, same
from tests.platforms import Platform, csv_text

HEADER = ("id", "customer", "amount", "day", "n")
GOOD = [("a", "x", "1.50", "2018-01-01", 1), ("b", "y", "2.25", "2018-01-02", None)]


def one(report: Report) -> Loaded:
    assert len(report.loaded) == 1
    return report.loaded[0]


def deliveries(platform: Platform) -> list[Delivery]:
    return platform.store.read_many(list(platform.store.keys("_lake/deliveries/")), Delivery)


def rows(platform: Platform, delivery: Delivery) -> list[tuple]:
    with connect(platform.settings) as connection:
        return connection.execute(
            f"select * from read_parquet('{platform.store.url(delivery.object)}') order by _source_row"
        ).fetchall()


def quarantined(platform: Platform) -> list[tuple]:
    keys = list(platform.store.keys("_lake/quarantine/"))
    with connect(platform.settings) as connection:
        files = [platform.store.url(key) for key in keys]
        return connection.execute(
            'select file, row, "column", value, reason from read_parquet($files) order by row, "column"',
            {"files": files},
        ).fetchall()


def test_a_file_becomes_one_delivery_whose_rows_have_file_name_row_number_and_time(mini: Platform) -> None:
    report = mini.take(mini.write("in/orders.csv", csv_text(HEADER, GOOD)))
    assert (one(report).rows, one(report).written, one(report).quarantined) == (2, 2, 0)
    (delivery,) = deliveries(mini)
    assert (delivery.file_name, delivery.number, delivery.rows) == ("orders.csv", 1, 2)
    first, second = rows(mini, delivery)
    assert first[:5] == ("a", "x", Decimal("1.50"), date(2018, 1, 1), 1)
    assert first[5:7] == ("orders.csv", 1)
    assert second[4] is None
    assert first[7] == delivery.ingested_at.replace(tzinfo=None)


def test_D2_unchanged_content_is_not_ingested_again_but_older_content_that_returns_is(mini: Platform) -> None:
    file = mini.write("in/orders.csv", csv_text(HEADER, GOOD))
    mini.take(file)
    assert one(mini.take(file)).outcome == "known"
    packed = mini.home / "in/packed/orders.csv.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert one(mini.take(packed)).outcome == "known"
    file.write_text(csv_text(HEADER, GOOD[:1]))
    assert one(mini.take(file)).outcome == "ingested"
    file.write_text(csv_text(HEADER, GOOD))
    assert one(mini.take(file)).outcome == "ingested"
    found = sorted(deliveries(mini), key=lambda d: d.number)
    assert [d.number for d in found] == [1, 2, 3]
    assert found[0].ingested_at < found[1].ingested_at < found[2].ingested_at


def test_a_row_that_does_not_fit_is_quarantined_with_file_row_column_value_and_reason(mini: Platform) -> None:
    bad = [
        ("c", "z", "12.345", "2018-01-01", 1),
        ("d", "z", "1", "2018-02-30", 1),
        ("e", "z", "1", "2018-01-01", "1.5"),
        (None, "z", "1e3", "01/02/2018", 3_000_000_000),
    ]
    report = mini.take(mini.write("in/orders.csv", csv_text(HEADER, [GOOD[0], *bad, GOOD[1]])))
    assert (one(report).rows, one(report).written, one(report).quarantined) == (6, 2, 4)
    assert quarantined(mini) == [
        ("orders.csv", 2, "amount", "12.345", "not a DECIMAL(12,2)"),
        ("orders.csv", 3, "day", "2018-02-30", "not a DATE"),
        ("orders.csv", 4, "n", "1.5", "not an INTEGER"),
        ("orders.csv", 5, "amount", "1e3", "not a DECIMAL(12,2)"),
        ("orders.csv", 5, "day", "01/02/2018", "not a DATE"),
        ("orders.csv", 5, "id", None, "empty, but part of the table's grain"),
        ("orders.csv", 5, "n", "3000000000", "not an INTEGER"),
    ]
    (delivery,) = deliveries(mini)
    assert [row[6] for row in rows(mini, delivery)] == [1, 6]


def test_malformed_lines_are_quarantined_and_the_other_rows_keep_their_numbers(mini: Platform) -> None:
    text = (
        "id,customer,amount,day,n\n"
        'a,"first\nsecond, ""third""",1,2018-01-01,1\n'
        "b,too,few\n"
        "c,x,1,2018-01-01,1\n"
        "d,x,1,2018-01-01,1,too,many\n"
        "e,x,oops,2018-01-01,1\n"
        "f,x,1,2018-01-01,1\n"
    )
    report = mini.take(mini.write("in/orders.csv", text))
    assert (one(report).rows, one(report).written, one(report).quarantined) == (6, 3, 3)
    (delivery,) = deliveries(mini)
    assert [(row[0], row[6]) for row in rows(mini, delivery)] == [("a", 1), ("c", 3), ("f", 6)]
    assert [(row[1], row[2]) for row in quarantined(mini)] == [(2, ""), (4, ""), (5, "amount")]


def test_a_broken_file_is_refused_as_a_whole_and_the_others_are_ingested(mini: Platform) -> None:
    broken = [
        (b"", "zero bytes"),
        (b"id;customer;amount;day;n\na;b;1;2018-01-01;1\n", "wrong delimiter: the header uses semicolons"),
        (b"id,customer,day,n\na,b,2018-01-01,1\n", "missing column amount"),
        (b"id,customer,amount,day,n,more\na,b,1,2018-01-01,1,2\n", "unknown column more"),
        (gzip.compress(csv_text(HEADER, GOOD * 500).encode())[:-20], "broken gzip"),
        (gzip.compress(b"x" * 50)[:12] + b"garbage", "broken gzip"),
    ]
    mini.write("in/orders-good.csv", csv_text(HEADER, GOOD))
    for number, (content, _) in enumerate(broken):
        (mini.home / f"in/orders-broken{number}.csv").write_bytes(content)
    printed = mini.busco("ingest", str(mini.home / "in"), status=1)
    for number, (_, reason) in enumerate(broken):
        (line,) = (text for text in printed.splitlines() if text.startswith("refused") and f"broken{number}" in text)
        assert reason in line
    assert [d.file_name for d in deliveries(mini)] == ["orders-good.csv"]


def test_a_database_is_opened_once_per_thread_and_not_used_again_after_a_refused_file(
    mini: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[duckdb.DuckDBPyConnection] = []

    def counted(*given: Any, **options: Any) -> duckdb.DuckDBPyConnection:
        opened.append(connect(*given, **options))
        return opened[-1]

    monkeypatch.setattr(ingesting, "connect", counted)
    text = "id,customer,amount,day,n\n{},x,1.50,2018-01-01,1\n"
    good = [mini.write(f"in/orders_{number}.csv", text.format(number)) for number in range(8)]
    assert mini.take(*good, table="orders").good
    assert 1 <= len(opened) <= 2
    opened.clear()
    broken = [mini.write(f"in/broken_{number}.csv", "nothing\n1\n") for number in range(4)]
    found = mini.take(*broken, mini.write("in/orders_9.csv", text.format(9)), table="orders")
    assert sorted(loaded.outcome for loaded in found.loaded) == ["ingested"] + ["refused"] * 4
    assert 4 <= len(opened) <= 5
    for database in opened:
        with pytest.raises(duckdb.ConnectionException):
            database.execute("select 1")


def test_D3_an_ingest_that_dies_before_it_writes_its_record_leaves_no_delivery(mini: Platform, monkeypatch) -> None:
    file = mini.write("in/orders.csv", csv_text(HEADER, GOOD))

    class Dead(BaseException):
        pass

    def die(*_: object) -> None:
        raise Dead

    with monkeypatch.context() as patched:
        patched.setattr("busco.lake.objects.ObjectStore.create", die)
        with pytest.raises(Dead):
            mini.take(file)
    assert list(mini.store.keys("bronze/")), "the object is written first"
    assert deliveries(mini) == []
    assert one(mini.take(file)).outcome == "ingested"
    (delivery,) = deliveries(mini)
    assert delivery.number == 1


def test_D3_two_simultaneous_ingests_of_one_file_make_one_delivery(mini: Platform, monkeypatch) -> None:
    file = mini.write("in/orders.csv", csv_text(HEADER, GOOD))
    from busco.lake.objects import ObjectStore

    create = ObjectStore.create

    def other_first(self: ObjectStore, key: str, *rest: object) -> str:
        if key.endswith("/1.json") and not list(self.keys("_lake/deliveries/")):
            monkeypatch.setattr(ObjectStore, "create", create)
            mini.take(file)
        return create(self, key, *rest)

    monkeypatch.setattr(ObjectStore, "create", other_first)
    assert one(mini.take(file)).outcome == "known"
    assert len(deliveries(mini)) == 1


def test_D4_ingest_is_refused_in_environments_other_than_prod(mini: Platform) -> None:
    file = mini.write("in/orders.csv", csv_text(HEADER, GOOD))
    printed = mini.busco("ingest", str(file), status=1, environment={"BUSCO_ENVIRONMENT": "dev_ana"})
    assert "bronze can be written to only in the prod environment" in printed


def test_values_of_columns_with_personal_data_are_hidden_in_the_output_of_ingest(mini: Platform) -> None:
    text = csv_text(HEADER, GOOD) + "c,CANARY,1\n"
    printed = mini.busco("ingest", str(mini.write("in/orders.csv", text)))
    assert "CANARY" not in printed
    assert "row 3" in printed


def test_a_delivery_under_another_contract_stops_the_pin_with_the_files_to_ingest_again(mini: Platform) -> None:
    mini.take(mini.write("in/orders.csv", csv_text(HEADER, GOOD)))
    source = mini.home / "dbt_project/models/bronze/s.yml"
    source.write_text(source.read_text().replace("name: n, data_type: INTEGER", "name: n, data_type: BIGINT"))
    printed = mini.busco("dbt", "build", status=1)
    assert "under an outdated contract" in printed
    assert "bronze.orders: orders.csv" in printed
    mini.busco("ingest", str(mini.home / "in/orders.csv"))
    mini.busco("dbt", "build")


def test_a_file_whose_name_matches_no_table_is_refused_unless_the_table_is_specified(mini: Platform) -> None:
    file = mini.write("in/stuff.csv", csv_text(HEADER, GOOD))
    assert "its name matches no table" in mini.busco("ingest", str(file), status=1)
    assert "ingested" in mini.busco("ingest", str(file), "--table", "orders")
    assert "there is no source table nothing" in mini.busco("ingest", str(file), "--table", "nothing", status=1)


def test_a_million_rows_keep_their_order_and_numbers(mini: Platform) -> None:
    file = mini.home / "in/orders.csv"
    file.parent.mkdir()
    with duckdb.connect() as connection:
        connection.execute(
            "copy (select i as id, 'c' as customer, i % 100 as amount, date '2018-01-01' as day, i as n "
            f"from range(1, 1000001) r(i)) to '{file}' (header)"
        )
    assert one(mini.take(file)).written == 1_000_000
    (delivery,) = deliveries(mini)
    with connect(mini.settings) as connection:
        url = mini.store.url(delivery.object)
        found = connection.execute(
            f"select count(*) filter (where n = _source_row) from read_parquet('{url}')"
        ).fetchone()
    assert found == (1_000_000,)


def test_a_path_is_not_a_pattern_and_its_folders_are_not_columns(mini: Platform) -> None:
    names = ["orders-[1].csv", "orders-*.csv", "orders-?.csv", "day=2011-01-01/orders.csv"]
    files = [mini.write(f"in/{name}", csv_text(HEADER, [(name, *GOOD[0][1:])])) for name in names]
    mini.write("in/orders-1.csv", csv_text(HEADER, GOOD))
    report = mini.take(*files)
    assert [(done.outcome, done.rows) for done in report.loaded] == [("ingested", 1)] * 4
    found = {delivery.file_name: rows(mini, delivery)[0] for delivery in deliveries(mini)}
    assert [found[name.rsplit("/")[-1]][0] for name in names] == names
    assert {row[3] for row in found.values()} == {date(2018, 1, 1)}


def test_a_file_that_is_too_large_or_can_t_be_split_reliably_into_rows_is_refused(mini: Platform, monkeypatch) -> None:
    monkeypatch.setenv("BUSCO_INGEST_ROW_BYTES", "3000000")
    monkeypatch.setenv("BUSCO_INGEST_FILE_BYTES", "4000000")
    get_settings.cache_clear()
    head, row = "id,customer,amount,day,n\n", "{},x,1,2018-01-01,1\n"
    many = [row.format(i) for i in range(50_000)]
    texts = {
        "orders-open.csv": head + "".join([*many[:10], '"o,x,1,2018-01-01,1\n', *many[10:]]),
        "orders-shut.csv": head + "".join([*many[:10], 'o,"x,1,2018-01-01,1\n', *many[10:20], 'p,x"y,1,2,3\n']),
        "orders-long.csv": head + f"a,{'x' * 3_000_001},1,2018-01-01,1\n",
        "orders-huge.csv": head + "".join(many * 4),
        "orders-mixed.csv": head + "".join(many[:3]) + "z,x,1,2018-01-01,1\r\n",
        "orders-ragged.csv": head + '"a\nb",too,few\n' + row.format("c") + '"d,x,1,2018-01-01,1',
    }
    for name, text in texts.items():
        (mini.home / "in").mkdir(exist_ok=True)
        (mini.home / "in" / name).write_bytes(text.encode())
    report = {done.file.name: done for done in mini.take(mini.home / "in").loaded}
    assert {name: done.reason for name, done in report.items()} == {
        "orders-open.csv": "a quote opened in row 11 is never closed",
        "orders-shut.csv": "a quote opened in row 11 is never closed",
        "orders-long.csv": "row 1 is longer than 3,000,000 bytes (BUSCO_INGEST_ROW_BYTES)",
        "orders-huge.csv": (
            "it is larger than 4,000,000 bytes uncompressed (BUSCO_INGEST_FILE_BYTES); split it, or raise that limit"
        ),
        "orders-mixed.csv": "line endings are mixed; make them all LF or CRLF",
        "orders-ragged.csv": "",
    }
    assert (report["orders-ragged.csv"].written, report["orders-ragged.csv"].quarantined) == (1, 2)
    assert [(found[1], found[4]) for found in quarantined(mini)] == [
        (1, "3 values instead of 5"),
        (3, "a quote is never closed"),
    ]


def test_a_row_that_is_not_utf_8_is_quarantined_and_its_line_is_hidden(mini: Platform) -> None:
    file = mini.write("in/orders.csv", "")
    row = "c{},CANARY é,1,2018-01-01,1\n"
    file.write_bytes(csv_text(HEADER, GOOD).encode() + row.format(1).encode("latin-1") + row.format(2).encode())
    done = one(mini.take(file))
    assert (done.rows, done.written, done.quarantined) == (4, 3, 1)
    assert done.examples == ("row 3, the whole line: ••• — not UTF-8",)


def test_row_numbers_skip_the_header_and_blank_lines_but_not_malformed_rows(mini: Platform) -> None:
    lines = [",".join(HEADER)]
    for i in range(150_000):
        lines.append(f"o{i},too,few" if i % 10_007 == 7 else f'o{i},"x\n\ny",{i % 50},2018-01-01,{i + 1}')
        if i % 5_003 == 0:
            lines.append("")
    done = one(mini.take(mini.write("in/orders.csv", "\n".join(lines) + "\n")))
    assert (done.rows, done.quarantined) == (150_000, 15)
    (delivery,) = deliveries(mini)
    assert all(row[4] == row[6] for row in rows(mini, delivery))
    assert [(row[1], row[3]) for row in quarantined(mini)] == [
        (i + 1, f"o{i},too,few") for i in range(7, 150_000, 10_007)
    ]


def test_paths_that_are_not_readable_files_are_refused_and_the_others_are_ingested(mini: Platform) -> None:
    folder = mini.write("in/orders.csv", csv_text(HEADER, GOOD)).parent
    os.mkfifo(folder / "orders-pipe.csv")
    (folder / "orders-nowhere.csv").symlink_to("nowhere")
    (folder / "orders-broken.csv").symlink_to("/proc/self/mem")
    (mini.home / "empty").mkdir()
    paths = (mini.home / "missing.csv", folder, mini.home / "empty", mini.home / "/dev/null")
    report = mini.take(*paths, follow_links=True)
    assert {Path(path).name: reason for path, reason in report.unknown} == {
        "missing.csv": "it does not exist",
        "orders-pipe.csv": "it is a pipe, which can be read only once; write its content to a file first",
        "orders-nowhere.csv": "it is a link to a file that does not exist",
        "empty": "this folder contains no CSV files; specify files, or a folder with *.csv or *.csv.gz files",
        "null": "it is a device or a socket, not a file",
    }
    assert {done.file.name: (done.outcome, done.reason) for done in report.loaded} == {
        "orders.csv": ("ingested", ""),
        "orders-broken.csv": ("refused", "it cannot be read: Input/output error"),
    }


def test_a_link_in_a_delivery_reaches_no_file_outside_it(mini: Platform) -> None:
    folder = mini.write("in/orders.csv", csv_text(HEADER, GOOD)).parent
    secret = mini.write("private/orders-secret.csv", csv_text(HEADER, [("canary", "z", "1", "2018-01-01", 1)]))
    (folder / "orders-link.csv").symlink_to(secret)
    (folder / "more").symlink_to(secret.parent)
    printed = mini.busco("ingest", str(folder), status=1)
    for name, target in (("orders-link.csv", secret), ("more", secret.parent)):
        assert (
            f"refused: {folder / name}: it is a link to {target}; deliver the file itself, or allow links with"
            in printed
        )
    assert [(delivery.file_name, delivery.rows) for delivery in deliveries(mini)] == [("orders.csv", 2)]
    mini.busco("ingest", "--follow-links", str(folder))
    assert sorted(delivery.file_name for delivery in deliveries(mini)) == [
        "more/orders-secret.csv", "orders-link.csv", "orders.csv",
    ]  # fmt: skip


def test_file_names_and_headers_send_no_escape_sequences_to_a_terminal(mini: Platform) -> None:
    controls = "\x1b[2J\x1b]0;x\x07\x9b31m\u202e"
    folder = mini.write(
        f"in/orders-{controls}.csv", csv_text(HEADER, [("a", "x", f"1{controls}", "2018-01-01", 1)])
    ).parent
    mini.write("in/orders-b.csv", csv_text((*HEADER, f"more{controls}"), [(*GOOD[0], 1)]))
    (folder / "orders-link.csv").symlink_to(f"/{controls}")
    printed = mini.busco("ingest", str(folder), f"{folder}/orders-{controls}", status=1)
    assert not [char for char in printed if char != "\n" and not char.isprintable()]
    for line in ("orders-{}.csv", "unknown column", "it is a link to /{};", "amount: ••• — not a DECIMAL"):
        assert line.format(r"\x1b[2J\x1b]0;x\x07\x9b31m\u202e") in printed


@pytest.mark.parametrize(("new", "kept"), [("c,z,3,2018-01-03,3\n", True), ("c,z,three,2018-01-03,3\n", False)])
def test_a_file_that_changes_while_it_is_read_is_refused(mini: Platform, monkeypatch, new: str, kept: bool) -> None:
    file = mini.write("in/orders.csv", csv_text(HEADER, GOOD))
    survey = loading.survey

    def survey_then_change(*arguments: object) -> object:
        found = survey(*arguments)
        file.write_text((file.read_text() if kept else ",".join(HEADER) + "\n") + new)
        return found

    monkeypatch.setattr(loading, "survey", survey_then_change)
    done = one(mini.take(file))
    assert (done.outcome, done.reason) == ("refused", "it changed while it was being read")
    assert deliveries(mini) == []


def test_an_error_from_s3_does_not_count_as_a_refused_file(mini: Platform, monkeypatch) -> None:
    file = mini.write("in/orders.csv", csv_text(HEADER, GOOD))
    monkeypatch.setattr(ObjectStore, "url", lambda self, key: f"s3://no-such-bucket/{key}")
    with pytest.raises(duckdb.Error):
        mini.take(file)


def test_numbers_must_be_finite_years_positive_and_full_deliveries_not_empty(mini: Platform) -> None:
    source = mini.home / "dbt_project/models/bronze/s.yml"
    source.write_text(
        source.read_text()
        + "      - name: cities\n        config: {meta: {grain: [], delivery: full}}\n        columns:\n"
        + "          - {name: lat, data_type: DOUBLE}\n          - {name: seen, data_type: TIMESTAMP}\n"
    )
    lats = ["nan", "inf", "-inf", "1_0", "1e999", "0x10", "1e2", "-.5", "+1.", "12.25"]
    seen = ["0000-01-01", "0000-01-01 10:00:00", "0001-01-01"]
    text = csv_text(("lat", "seen"), [*((lat, "2018-01-01") for lat in lats), *((1, moment) for moment in seen)])
    done = one(mini.take(mini.write("in/cities.csv", text)))
    assert (done.written, done.quarantined) == (5, 8)
    assert {row[3] for row in quarantined(mini)} == {*lats[:6], *seen[:2]}
    for text in ("lat,seen\n", "lat,seen\nnan,2018-01-01\n", "lat,seen\n1\n"):
        done = one(mini.take(mini.write("in/cities.csv", text)))
        assert done.outcome == "refused"
        assert done.reason.startswith("no row fits")
        assert done.reason.endswith("a full delivery without rows would leave the previous file's rows in place")
    assert len(deliveries(mini)) == 1


def quoted_text(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Returns a CSV whose values can contain commas, quotes and line breaks; None becomes an empty value."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()


def declare(mini: Platform, table: str, columns: dict[str, str]) -> None:
    """Adds a source table whose grain is its first column."""
    source = mini.home / "dbt_project/models/bronze/s.yml"
    listed = "".join(f"          - {{name: {name}, data_type: {json.dumps(kind)}}}\n" for name, kind in columns.items())
    grain = next(iter(columns))
    source.write_text(
        source.read_text()
        + f"      - name: {table}\n        config: {{meta: {{grain: [{grain}], delivery: rows}}}}\n"
        + f"        columns:\n{listed}"
    )


# for each type: strings and their values; None if the row is quarantined
EXACT = {
    "TIMESTAMP_S": {"2018-01-01 00:00:00.7": None, "2018-01-01 00:00:00.000": datetime(2018, 1, 1)},
    "TIMESTAMP_MS": {
        "2018-01-01 00:00:00.123456": None,
        "2018-01-01T00:00:00.123000": datetime(2018, 1, 1, 0, 0, 0, 123000),
    },
    "TIMESTAMPTZ": {
        "2018-01-01 10:00:00.123456789+00": None,
        "infinity": None,
        "0000-06-01 00:00:00+00": None,
        "2018-01-01 (BC) 00:00:00": None,
        "20000-01-01 00:00:00+00": None,
        "0001-01-01 00:00:00+01": None,
        "2018-11-04 00:30:00 America/Sao_Paulo": None,
        "2018-11-04 12:30:00 America/Sao_Paulo": datetime(2018, 11, 4, 14, 30, tzinfo=UTC),
        # DuckDB would read it in the time zone of the previous row
        "2018-01-01 10:00:00": datetime(2018, 1, 1, 10, tzinfo=UTC),
        "2018-01-01T10:00:00.123456000-05:30": datetime(2018, 1, 1, 15, 30, 0, 123456, tzinfo=UTC),
    },
    "UTINYINT": {"1.5": None, "254.6": None, "255": 255, "0x1f": 31, "25e1": 250, "1_0": 10},
    "BLOB": {" a ": b" a ", "\\xFFa": b"\xffa", "é": None},
    "JSON": {'{"a": NaN}': None, '{"a": "NaN"}': '{"a": "NaN"}'},
    "INTEGER[]": {
        "[1, 2.7]": None,
        "[1, x]": None,
        "[1, NULL, '3', 4e1]": [1, None, 3, 40],
        "[1,]": None,
        "[]": [],
    },
    "VARCHAR[]": {
        """["a, b", 'it\\'s', NULL, 'NULL', [x]]""": ["a, b", "it's", None, "NULL", "[x]"],
        "['it''s']": None,
        r'["a\nb"]': None,
        "['a' 'b']": None,
    },
    "VARCHAR[][]": {"[['}', ']']]": [["}", "]"]], "[['a'], b]": None},
    "STRUCT(a INTEGER, d DECIMAL(4,1))": {
        "{'a': 1.6, 'd': 2.55}": None,
        "{'a': 1, 'd': 0.7e-45}": None,
        "{'a': 1, 'a': 2}": None,
        "{'a': null, 'a': 2}": None,
        "{'a': 1, 'b': 2}": None,
        "{'d': 2.50, \"a\": 1.0}": {"a": 1, "d": Decimal("2.5")},
        "{'d': 2}": {"a": None, "d": Decimal("2.0")},
        "(1, 2.5)": {"a": 1, "d": Decimal("2.5")},
    },
    "STRUCT(day DATE)": {"{'day': 2018-01-01 10:00}": None, "{'day': 2018-1-2}": {"day": date(2018, 1, 2)}},
    "MAP(INTEGER, VARCHAR)": {
        "{1=a, 1=b}": None,
        "{1=a, 01=b}": None,
        "{1=a,,2=b}": None,
        "{1=a, 2=NULL}": {1: "a", 2: None},
    },
}


def test_a_row_whose_value_would_change_is_quarantined_and_the_others_keep_their_values(
    mini: Platform,
) -> None:
    columns = {f"c{number}": kind for number, kind in enumerate(EXACT)}
    declare(mini, "things", {"id": "INTEGER", **columns})
    cases = [(column, text, value) for column, kind in columns.items() for text, value in EXACT[kind].items()]
    lines = [
        [row, *(text if column == one else None for one in columns)] for row, (column, text, _) in enumerate(cases, 1)
    ]
    done = one(mini.take(mini.write("in/things.csv", quoted_text(("id", *columns), lines))))
    bad = [(row, column, text) for row, (column, text, value) in enumerate(cases, 1) if value is None]
    assert (done.reason, done.quarantined, done.written) == ("", len(bad), len(cases) - len(bad))
    assert [(row, column, text) for _, row, column, text, _ in quarantined(mini)] == sorted(bad)
    (delivery,) = deliveries(mini)
    found = {row[0]: row for row in rows(mini, delivery)}
    for row, (column, text, value) in enumerate(cases, 1):
        assert value is None or same(found[row][1 + list(columns).index(column)], value), (text, found[row])


def test_values_of_every_type_in_parquet_equal_those_in_the_texts(mini: Platform) -> None:
    columns = {f"c{number}": kind for number, kind in enumerate(TYPES)}
    declare(mini, "things", {"id": "INTEGER", **columns})
    random = Random(14)
    cases = [(column, random_text(types.parse(kind), random)) for column, kind in columns.items() for _ in range(20)]
    cases = [(column, case) for column, case in cases if case.text]
    lines = [
        [row, *(case.text if column == one else None for one in columns)] for row, (column, case) in enumerate(cases, 1)
    ]
    done = one(mini.take(mini.write("in/things.csv", quoted_text(("id", *columns), lines))))
    assert (done.outcome, done.rows) == ("ingested", len(cases))
    (delivery,) = deliveries(mini)
    found = {row[0]: row for row in rows(mini, delivery)}
    assert len(found) == done.written
    misfits = {(row, column) for _, row, column, _, _ in quarantined(mini)}
    for row, (column, case) in enumerate(cases, 1):
        if row in found:
            # DuckDB's Parquet writer treats 0.0 and -0.0 as one value
            value = found[row][1 + list(columns).index(column)]
            assert same(value, case.value, zeros=False), (columns[column], case)
        else:
            assert (row, column) in misfits
            assert not case.canonical, (columns[column], case)
