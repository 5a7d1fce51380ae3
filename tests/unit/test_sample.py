"""The sample marketplace is reproducible and consistent, and has the quirks that the platform must cope with."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from busco.embedded.sample import write_sample
from busco.errors import BuscoError

Row = dict[str, str]

HEADERS = {
    "olist_orders_dataset.csv.gz": "order_id customer_id order_status order_purchase_timestamp order_approved_at "
    "order_delivered_carrier_date order_delivered_customer_date order_estimated_delivery_date",
    "olist_order_items_dataset.csv.gz": "order_id order_item_id product_id seller_id shipping_limit_date price "
    "freight_value",
    "olist_order_payments_dataset.csv.gz": "order_id payment_sequential payment_type payment_installments "
    "payment_value",
    "olist_order_reviews_dataset.csv.gz": "review_id order_id review_score review_comment_title "
    "review_comment_message review_creation_date review_answer_timestamp",
    "olist_customers_dataset.csv.gz": "customer_id customer_unique_id customer_zip_code_prefix customer_city "
    "customer_state",
    "olist_products_dataset.csv.gz": "product_id product_category_name product_name_lenght "
    "product_description_lenght product_photos_qty product_weight_g product_length_cm product_height_cm "
    "product_width_cm",
    "olist_sellers_dataset.csv.gz": "seller_id seller_zip_code_prefix seller_city seller_state",
    "olist_geolocation_dataset.csv.gz": "geolocation_zip_code_prefix geolocation_lat geolocation_lng "
    "geolocation_city geolocation_state",
    "product_category_name_translation.csv.gz": "product_category_name product_category_name_english",
}
STATUSES = {"delivered", "shipped", "canceled", "unavailable", "invoiced", "processing", "created", "approved"}
INTEGERS = re.compile(
    r"order_item_id|payment_(sequential|installments)|review_score|product_(\w+_lenght|photos_qty|\w+_g|\w+_cm)"
)
TIMES = re.compile(r"\w+_timestamp|\w+_date|order_approved_at")
ORDERS = 2000


def read(folder: Path, table: str) -> list[Row]:
    path = next(name for name in HEADERS if re.fullmatch(rf"(olist_)?{table}(_dataset)?\.csv\.gz", name))
    text = gzip.decompress((folder / path).read_bytes()).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


class Sample:
    """The rows of all files, and the latest row for each key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tables = {
            table: read(folder, table)
            for table in (
                "orders", "order_items", "order_payments", "order_reviews", "customers", "products", "sellers",
                "geolocation", "product_category_name_translation",
            )
        }  # fmt: skip
        self.orders = {row["order_id"]: row for row in self.tables["orders"]}
        self.items = self._latest("order_items", "order_item_id")
        self.payments = self._latest("order_payments", "payment_sequential")
        self.reviews = self._latest("order_reviews", "review_id")

    def _latest(self, table: str, key: str) -> dict[str, dict[str, Row]]:
        found: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in self.tables[table]:
            found[row["order_id"]][row[key]] = row
        return found

    def delivered(self) -> list[Row]:
        return [r for r in self.orders.values() if r["order_status"] == "delivered"]

    def arrivals(self) -> list[tuple[str, str]]:
        """Returns the dates of delivery, each with the promised date."""
        rows = [r for r in self.delivered() if r["order_delivered_customer_date"]]
        return [(r["order_delivered_customer_date"][:10], r["order_estimated_delivery_date"][:10]) for r in rows]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(ORDERS, 7, folder)
    return Sample(folder)


def twice(rows: list[Row], *key: str) -> list[tuple[Row, Row]]:
    """Returns pairs of consecutive rows with the same key."""
    seen: dict[tuple[str, ...], Row] = {}
    pairs = []
    for row in rows:
        name = tuple(row[column] for column in key)
        if name in seen:
            pairs.append((seen[name], row))
        seen[name] = row
    return pairs


# The files


def test_the_same_seed_produces_the_same_bytes(sample: Sample, tmp_path: Path) -> None:
    write_sample(ORDERS, 7, tmp_path)
    assert digests(tmp_path) == digests(sample.folder)


def test_a_sample_has_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    # This hash changes only if the generated data is changed deliberately.
    write_sample(300, 1, tmp_path)
    together = hashlib.sha256("".join(digest for _, digest in sorted(digests(tmp_path).items())).encode())
    assert together.hexdigest() == "9797b7ba1eda67438bcf3b1d87ed3d6dee81aa67eab65c61fd1e28d3053c38ea"


@pytest.mark.parametrize("seed", [8, -7])
def test_another_seed_produces_different_ids_in_every_file(sample: Sample, tmp_path: Path, seed: int) -> None:
    write_sample(ORDERS, seed, tmp_path)
    for table, column in {
        "orders": "order_id", "customers": "customer_id", "products": "product_id", "sellers": "seller_id",
        "order_reviews": "review_id",
    }.items():  # fmt: skip
        assert not {r[column] for r in sample.tables[table]} & {r[column] for r in read(tmp_path, table)}, table


def test_there_are_nine_files_with_the_sources_headers(sample: Sample) -> None:
    assert {file.name for file in sample.folder.iterdir()} == set(HEADERS)
    for name, header in HEADERS.items():
        first = gzip.decompress((sample.folder / name).read_bytes()).decode("utf-8-sig").split("\n")[0]
        assert first == header.replace(" ", ","), name


def test_only_the_translation_starts_with_a_byte_order_mark(sample: Sample) -> None:
    marked = {n for n in HEADERS if gzip.decompress((sample.folder / n).read_bytes()).startswith(b"\xef\xbb\xbf")}
    assert marked == {"product_category_name_translation.csv.gz"}


def test_gzip_headers_contain_neither_time_nor_name(sample: Sample) -> None:
    for name in HEADERS:
        head = (sample.folder / name).read_bytes()[:10]
        assert (head[3], head[4:8]) == (0, bytes(4)), name


def test_progress_and_result_report_each_file_s_rows(tmp_path: Path) -> None:
    reported: list[tuple[str, int]] = []
    written = write_sample(200, 1, tmp_path, lambda name, rows: reported.append((name, rows)))
    assert dict(reported) == written
    assert len(reported) == 9
    for name, rows in written.items():
        text = gzip.decompress((tmp_path / name).read_bytes()).decode("utf-8-sig")
        assert len(list(csv.reader(io.StringIO(text, newline="")))) - 1 == rows, name


def test_a_sample_replaces_an_older_one_and_creates_a_missing_folder(tmp_path: Path) -> None:
    write_sample(60, 1, tmp_path / "deep" / "down")
    write_sample(50, 2, tmp_path / "deep" / "down")
    write_sample(50, 2, tmp_path / "new")
    assert digests(tmp_path / "deep" / "down") == digests(tmp_path / "new")


def test_a_failed_run_leaves_the_older_files_and_none_of_its_own(tmp_path: Path) -> None:
    write_sample(50, 1, tmp_path)
    before = digests(tmp_path)

    def fail(name: str, rows: int) -> None:
        if "items" in name:
            raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        write_sample(50, 2, tmp_path, fail)
    assert digests(tmp_path) == before


def test_a_killed_run_leaves_no_file_under_a_final_name_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from busco.embedded.sample import write_sample\n"
        "write_sample(200, 1, Path(sys.argv[1]), lambda name, rows: os._exit(9) if 'items' in name else None)"
    )
    source = str(Path(__file__).parents[2] / "src")
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": source}, check=False
    )
    assert killed.returncode == 9
    assert list(tmp_path.iterdir())
    assert not list(tmp_path.glob("*.csv.gz"))
    write_sample(200, 1, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(HEADERS)


@pytest.mark.parametrize("orders", [0, -1])
def test_fewer_than_one_order_is_refused(tmp_path: Path, orders: int) -> None:
    with pytest.raises(BuscoError, match="at least 1 order"):
        write_sample(orders, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuscoError, match="can't write the sample"):
        write_sample(10, 1, tmp_path / "file")


@pytest.mark.parametrize("orders", [1, 2, 49, 50, 149])
def test_a_small_sample_is_complete(tmp_path: Path, orders: int) -> None:
    write_sample(orders, 1, tmp_path)
    small = Sample(tmp_path)
    assert len(small.orders) == len(small.tables["customers"]) == orders
    assert all(small.tables.values())


# Types and relations


def test_every_value_fits_its_type(sample: Sample) -> None:
    for table, rows in sample.tables.items():
        for row in rows:
            for column, value in row.items():
                if INTEGERS.fullmatch(column):
                    assert re.fullmatch(r"\d*", value), (table, row)
                elif TIMES.fullmatch(column):
                    assert value == "" or datetime.strptime(value, "%Y-%m-%d %H:%M:%S"), (table, row)
                elif column in ("price", "freight_value", "payment_value"):
                    assert re.fullmatch(r"\d{1,10}\.\d\d", value), (table, row)
                elif column.endswith(("_lat", "_lng")):
                    assert -180 <= float(value) <= 180, (table, row)
                elif column.endswith("zip_code_prefix"):
                    assert re.fullmatch(r"\d{5}", value), (table, row)
                elif column.endswith("_id"):
                    assert re.fullmatch(r"[0-9a-f]{32}", value), (table, row)


def test_every_order_has_a_customer_and_every_item_a_product_and_a_seller(sample: Sample) -> None:
    def ids(table: str, column: str) -> set[str]:
        found = [row[column] for row in sample.tables[table]]
        assert len(set(found)) == len(found)
        return set(found)

    assert {r["customer_id"] for r in sample.orders.values()} == ids("customers", "customer_id")
    assert {r["product_id"] for r in sample.tables["order_items"]} <= ids("products", "product_id")
    assert {r["seller_id"] for r in sample.tables["order_items"]} <= ids("sellers", "seller_id")


def test_payments_are_the_sum_of_items_and_freight(sample: Sample) -> None:
    compared = 0
    for order, payments in sample.payments.items():
        if order in sample.items:
            due = sum(Decimal(r["price"]) + Decimal(r["freight_value"]) for r in sample.items[order].values())
            assert sum(Decimal(r["payment_value"]) for r in payments.values()) == due, order
            compared += 1
    assert compared > 0.98 * ORDERS


def test_the_timestamps_of_an_order_are_in_sequence(sample: Sample) -> None:
    steps = ("order_purchase_timestamp", "order_approved_at", "order_delivered_carrier_date")
    for row in sample.orders.values():
        times = [row[step] for step in (*steps, "order_delivered_customer_date") if row[step]]
        assert times == sorted(times), row
        assert row["order_estimated_delivery_date"][10:] == " 00:00:00"


def test_the_status_of_an_order_matches_its_timestamps(sample: Sample) -> None:
    for row in sample.orders.values():
        reached = [
            bool(row[c]) for c in ("order_approved_at", "order_delivered_carrier_date", "order_delivered_customer_date")
        ]
        if row["order_status"] == "created":
            assert reached == [False, False, False]
        elif row["order_status"] == "shipped":
            assert reached == [True, True, False]
        elif row["order_status"] not in ("delivered", "canceled"):
            assert reached == [True, False, False]


# Quirks


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_orders_include_all_statuses(tmp_path: Path, seed: int) -> None:
    write_sample(1000, seed, tmp_path)
    statuses = Counter(r["order_status"] for r in Sample(tmp_path).orders.values())
    assert set(statuses) == STATUSES
    assert 0.96 < statuses["delivered"] / 1000 < 0.98


def test_purchases_grow_over_two_years_and_follow_weekly_and_seasonal_patterns(tmp_path: Path) -> None:
    write_sample(20_000, 1, tmp_path)
    bought = [datetime.fromisoformat(r["order_purchase_timestamp"]) for r in read(tmp_path, "orders")]
    assert (min(bought).strftime("%Y-%m"), max(bought).strftime("%Y-%m")) == ("2016-09", "2018-10")
    months = Counter(at.strftime("%Y-%m") for at in bought)
    assert months["2016-10"] < months["2017-06"] < months["2018-06"]
    assert months["2017-11"] > max(months["2017-10"], months["2017-12"])
    assert Counter(at.date() for at in bought).most_common(1)[0][0] == date(2017, 11, 24)
    weekdays, hours = Counter(at.weekday() for at in bought), Counter(at.hour for at in bought)
    assert weekdays[0] > 1.2 * weekdays[5]
    assert hours[15] > 5 * hours[4]


def test_some_delivered_orders_lack_the_time_of_delivery_or_of_approval(sample: Sample) -> None:
    assert [r for r in sample.delivered() if not r["order_delivered_customer_date"]]
    assert [r for r in sample.delivered() if not r["order_approved_at"]]


def test_some_orders_are_late_and_some_arrive_on_the_last_day(tmp_path: Path) -> None:
    write_sample(20_000, 3, tmp_path)
    arrivals = Sample(tmp_path).arrivals()
    assert 0.07 < sum(day > promised for day, promised in arrivals) / len(arrivals) < 0.09
    assert 0.01 < sum(day == promised for day, promised in arrivals) / len(arrivals) < 0.03


def test_orders_have_up_to_four_items_from_one_or_more_sellers_and_a_few_have_none(sample: Sample) -> None:
    assert 0.005 < sum(order not in sample.items for order in sample.orders) / ORDERS < 0.013
    assert {len(items) for items in sample.items.values()} == {1, 2, 3, 4}
    several = sum(len({r["seller_id"] for r in items.values()}) > 1 for items in sample.items.values())
    assert 0.02 < several / ORDERS < 0.09


def test_payments_include_all_types_and_some_orders_use_several_vouchers(sample: Sample) -> None:
    types = Counter(r["payment_type"] for r in sample.tables["order_payments"])
    assert set(types) == {"credit_card", "boleto", "voucher", "debit_card", "not_defined"}
    undefined = [r for r in sample.tables["order_payments"] if r["payment_type"] == "not_defined"]
    assert {r["payment_value"] for r in undefined} == {"0.00"}
    vouchers = [[r for r in p.values() if r["payment_type"] == "voucher"] for p in sample.payments.values()]
    assert max(map(len, vouchers)) > 2
    assert {r["payment_installments"] for r in sample.tables["order_payments"]} >= {"1", "2", "8"}


def test_two_payment_types_tie_in_some_orders(sample: Sample) -> None:
    ties = 0
    for payments in sample.payments.values():
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for row in payments.values():
            sums[row["payment_type"]] += Decimal(row["payment_value"])
        ties += len(sums) > 1 and len(set(sums.values())) == 1
    assert ties >= 3


def test_some_orders_with_items_have_no_payment(sample: Sample) -> None:
    assert [order for order in sample.orders if order in sample.items and order not in sample.payments]


def test_nearly_all_orders_have_a_review_and_some_have_two(sample: Sample) -> None:
    reviews = Counter(len(sample.reviews.get(order, {})) for order in sample.orders)
    assert set(reviews) == {0, 1, 2}
    assert 0.98 < 1 - reviews[0] / ORDERS < 0.995
    assert {r["review_score"] for r in sample.tables["order_reviews"]} == set("12345")


def test_both_reviews_of_some_orders_were_answered_at_the_same_time(sample: Sample) -> None:
    answers = [[r["review_answer_timestamp"] for r in rows.values()] for rows in sample.reviews.values()]
    assert {len(set(times)) for times in answers if len(times) == 2} == {1, 2}


def test_review_ids_repeat_but_pairs_of_review_and_order_ids_do_not(sample: Sample) -> None:
    rows = sample.tables["order_reviews"]
    assert twice(rows, "review_id")
    assert not twice(rows, "review_id", "order_id")


def test_half_of_the_comments_are_empty_and_others_contain_text_that_breaks_simple_parsers(sample: Sample) -> None:
    rows = sample.tables["order_reviews"]
    comments = [r["review_comment_message"] for r in rows]
    assert 0.45 < comments.count("") / len(rows) < 0.6
    assert 0.8 < sum(not r["review_comment_title"] for r in rows) / len(rows) < 0.95
    for mark in ("\n", "\r\n", '"', ",", "👍", "ã"):
        assert any(mark in comment for comment in comments), repr(mark)


def test_a_few_reviews_have_no_answer_time(sample: Sample) -> None:
    empty = [r for r in sample.tables["order_reviews"] if not r["review_answer_timestamp"]]
    assert 2 <= len(empty) < 0.01 * ORDERS


def test_a_few_percent_of_customers_order_again(sample: Sample) -> None:
    people = {r["customer_unique_id"] for r in sample.tables["customers"]}
    assert 0.02 < 1 - len(people) / ORDERS < 0.045


def test_zip_prefixes_keep_their_leading_zeros(sample: Sample) -> None:
    for table, column in (("customers", "customer"), ("sellers", "seller"), ("geolocation", "geolocation")):
        assert any(r[f"{column}_zip_code_prefix"].startswith("0") for r in sample.tables[table]), table


def test_cities_have_several_spellings(sample: Sample) -> None:
    sellers = [r["seller_city"] for r in sample.tables["sellers"]]
    plain = re.compile(r"[a-z]+( [a-z]+)*")
    spellings: dict[str, Callable[[str], bool]] = {
        "plain": lambda city: bool(plain.fullmatch(city)),
        "upper case alone": lambda city: city.isupper() and bool(plain.fullmatch(city.lower())),
        "trailing space alone": lambda city: city != city.rstrip() and bool(plain.fullmatch(city.rstrip())),
        "accents alone": lambda city: not city.isascii() and city == city.strip() and not city.isupper(),
        "all at once": lambda city: not city.isascii() and city != city.strip() and city.isupper(),
    }
    for name, spelled in spellings.items():
        assert any(spelled(city) for city in sellers), name
    located = {r["geolocation_city"] for r in sample.tables["geolocation"]}
    assert {"são paulo", "sao paulo"} <= located
    assert all(r["customer_city"].isascii() for r in sample.tables["customers"])


def test_some_products_lack_category_name_and_photos_and_some_their_measures(sample: Sample) -> None:
    products = sample.tables["products"]
    bare = [r for r in products if not r["product_category_name"]]
    assert 0.01 < len(bare) / len(products) < 0.03
    for row in bare:
        assert not row["product_name_lenght"] + row["product_description_lenght"] + row["product_photos_qty"]
    assert [r for r in products if not r["product_weight_g"]]


def test_two_categories_of_products_have_no_translation(sample: Sample) -> None:
    known = {r["product_category_name"] for r in sample.tables["product_category_name_translation"]}
    used = {r["product_category_name"] for r in sample.tables["products"]} - {""}
    assert len(used - known) == 2
    assert known <= used


def test_the_numbers_of_products_and_sellers_are_proportional_to_the_orders(sample: Sample) -> None:
    assert len(sample.tables["products"]) == ORDERS // 3
    assert len(sample.tables["sellers"]) == ORDERS * 3 // 100


def test_a_zip_prefix_has_about_ten_points_and_a_few_prefixes_are_outside_brazil(sample: Sample) -> None:
    points: dict[str, list[bool]] = defaultdict(list)
    for row in sample.tables["geolocation"]:
        latitude, longitude = float(row["geolocation_lat"]), float(row["geolocation_lng"])
        inside = -33.8 <= latitude <= 5.3 and -74.0 <= longitude <= -34.7
        points[row["geolocation_zip_code_prefix"]].append(inside)
    assert 8 < sum(map(len, points.values())) / len(points) < 13
    outside = [prefix for prefix, inside in points.items() if not any(inside)]
    assert 2 <= len(outside) < 0.1 * len(points)
    assert [prefix for prefix, inside in points.items() if any(inside)]


def test_some_customers_have_a_zip_prefix_without_points(sample: Sample) -> None:
    located = {r["geolocation_zip_code_prefix"] for r in sample.tables["geolocation"]}
    lost = [r for r in sample.tables["customers"] if r["customer_zip_code_prefix"] not in located]
    assert 0 < len(lost) < 0.05 * ORDERS


def test_zip_prefixes_grow_more_slowly_than_orders(tmp_path: Path) -> None:
    write_sample(20_000, 1, tmp_path)
    assert 500 < len({r["geolocation_zip_code_prefix"] for r in read(tmp_path, "geolocation")}) <= 1100


@pytest.mark.parametrize(
    ("table", "key", "changed"),
    [
        ("orders", ("order_id",), "order_status"),
        ("order_items", ("order_id", "order_item_id"), "price"),
        ("order_payments", ("order_id", "payment_sequential"), "payment_value"),
    ],
)
def test_a_few_rows_appear_twice_and_the_later_one_is_a_correction(
    sample: Sample, table: str, key: tuple[str, ...], changed: str
) -> None:
    pairs = twice(sample.tables[table], *key)
    assert 2 <= len(pairs) < 0.01 * ORDERS
    assert all(earlier[changed] != later[changed] for earlier, later in pairs)


@pytest.mark.parametrize("table", ["order_items", "order_payments", "order_reviews"])
def test_a_few_rows_refer_to_missing_orders(sample: Sample, table: str) -> None:
    orphans = {r["order_id"] for r in sample.tables[table]} - set(sample.orders)
    assert 2 <= len(orphans) < 0.01 * ORDERS
