"""Files into bronze (rules D1 to D4): whole or not at all, and nothing dropped silently."""

from __future__ import annotations

import gzip
from datetime import date
from decimal import Decimal

import duckdb
import pytest

from busco.ingest.ingest import Report
from busco.ingest.load import Loaded
from busco.lake.engine import connect
from busco.lake.records import Delivery
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


def test_a_file_becomes_one_delivery_with_file_row_and_time(mini: Platform) -> None:
    report = mini.take(mini.write("in/orders.csv", csv_text(HEADER, GOOD)))
    assert (one(report).rows, one(report).written, one(report).quarantined) == (2, 2, 0)
    (delivery,) = deliveries(mini)
    assert (delivery.file_name, delivery.number, delivery.rows) == ("orders.csv", 1, 2)
    first, second = rows(mini, delivery)
    assert first[:5] == ("a", "x", Decimal("1.50"), date(2018, 1, 1), 1)
    assert first[5:7] == ("orders.csv", 1)
    assert second[4] is None
    assert first[7] == delivery.ingested_at.replace(tzinfo=None)


def test_D2_the_same_content_is_nothing_to_do_and_older_content_that_returns_is_new(mini: Platform) -> None:
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


def test_lines_that_are_no_rows_are_quarantined_and_the_others_keep_their_numbers(mini: Platform) -> None:
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (b"id;customer;amount;day;n\na;b;1;2018-01-01;1\n", "wrong delimiter: the header is divided by semicolons"),
        (b"id,customer,day,n\na,b,2018-01-01,1\n", "missing column amount"),
        (b"id,customer,amount,day,n,more\na,b,1,2018-01-01,1,2\n", "unknown column more"),
        (gzip.compress(csv_text(HEADER, GOOD * 500).encode())[:-20], "broken gzip"),
        (gzip.compress(b"x" * 50)[:12] + b"garbage", "broken gzip"),
    ],
)
def test_a_broken_file_is_refused_whole_and_others_go_on(mini: Platform, content: bytes, reason: str) -> None:
    broken = mini.home / "in/orders-broken.csv"
    broken.parent.mkdir()
    broken.write_bytes(content)
    mini.write("in/orders-good.csv", csv_text(HEADER, GOOD))
    printed = mini.busco("ingest", str(mini.home / "in"), status=1)
    assert "orders-broken.csv" in printed
    assert reason in printed
    assert [d.file_name for d in deliveries(mini)] == ["orders-good.csv"]


def test_D3_an_ingest_that_dies_before_its_record_has_done_nothing(mini: Platform, monkeypatch) -> None:
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


def test_D3_of_two_ingests_of_one_file_at_once_one_delivery_remains(mini: Platform, monkeypatch) -> None:
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


def test_D4_another_environment_than_prod_is_refused(mini: Platform) -> None:
    file = mini.write("in/orders.csv", csv_text(HEADER, GOOD))
    printed = mini.busco("ingest", str(file), status=1, environment={"BUSCO_ENVIRONMENT": "dev_ana"})
    assert "bronze is written in environment prod only" in printed


def test_values_of_columns_with_personal_data_are_hidden_in_what_ingest_prints(mini: Platform) -> None:
    text = csv_text(HEADER, GOOD) + "c,CANARY,1\n"
    printed = mini.busco("ingest", str(mini.write("in/orders.csv", text)))
    assert "CANARY" not in printed
    assert "row 3" in printed


def test_a_delivery_under_another_contract_stops_the_pin_with_the_files_to_ingest_again(mini: Platform) -> None:
    mini.take(mini.write("in/orders.csv", csv_text(HEADER, GOOD)))
    source = mini.home / "dbt_project/models/bronze/s.yml"
    source.write_text(source.read_text().replace("name: n, data_type: INTEGER", "name: n, data_type: BIGINT"))
    printed = mini.busco("dbt", "build", status=1)
    assert "under another contract than today's" in printed
    assert "bronze.orders: orders.csv" in printed
    mini.busco("ingest", str(mini.home / "in/orders.csv"))
    mini.busco("dbt", "build")


def test_a_file_whose_name_tells_no_table_is_refused_unless_it_is_said(mini: Platform) -> None:
    file = mini.write("in/stuff.csv", csv_text(HEADER, GOOD))
    assert "its name tells no table" in mini.busco("ingest", str(file), status=1)
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
