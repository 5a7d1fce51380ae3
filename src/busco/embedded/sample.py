"""Generates a fictional online marketplace in Brazil: nine files with the schema and the quirks of the Olist data set.

A seed produces the same bytes on every machine. The code therefore avoids everything that depends on the machine's C
library (logarithms, powers) or zlib (compression).
"""

from __future__ import annotations

import random
import struct
import zlib
from bisect import bisect
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from busco.embedded import sample_text as fixed
from busco.embedded.sample_text import DAY, DAYS, HOUR, City, moment
from busco.errors import BuscoError

_BATCH = 5000


class _Place(NamedTuple):
    prefix: str
    city: City


class _Product(NamedTuple):
    id: str
    seller: str
    cents: int
    weight_g: int


class _Order(NamedTuple):
    """An order; `kind` is one of fixed.KINDS, or empty for an ordinary order.

    Times are in seconds since the first day; `promised` is in days since then.
    """

    id: str
    kind: str
    status: str
    city: City
    bought: int
    approved: int | None
    shipped: int | None
    delivered: int | None
    promised: int


class _Review(NamedTuple):
    """A review without its order. `created` is in days since the first day, `answered` in seconds since then."""

    id: str
    score: int
    title: str
    message: str
    created: int
    answered: int | None

    def line(self, order_id: str) -> str:
        times = f"{DAYS[self.created]} 00:00:00,{moment(self.answered)}"
        return f"{self.id},{order_id},{self.score},{self.title},{self.message},{times}\n"


def write_sample(
    orders: int, seed: int, out: Path, progress: Callable[[str, int], None] | None = None
) -> dict[str, int]:
    """Writes a synthetic marketplace. The same number of orders and seed produce the same bytes on any machine.

    Writes nine gzip files of UTF-8 CSV with Olist's names and headers. Purchases date from 2016-09-01 to 2018-10-31,
    times are local (America/Sao_Paulo) without a time zone, and amounts are in BRL with two decimal places. An id has
    32 hexadecimal digits. Some records appear in two rows; the later row is correct. Some items, payments and reviews
    refer to orders that are missing. When all files are complete, they are renamed to their final names, replacing
    older files.

    Args:
        orders: number of distinct orders; there are a third as many products and 3 % as many sellers.
        seed: the random generator's seed; each seed produces a different marketplace, with different ids.
        out: folder to write to; created if missing.
        progress: called with a file's name and number of rows when the file is complete.

    Returns:
        The number of rows in each file, excluding the header, by file name.

    Raises:
        BuscoError: `orders` is less than 1, or `out` is not writable.
    """
    if orders < 1:
        raise BuscoError(f"can't generate a sample of {orders} orders", "request at least 1 order")
    try:
        with _Files(out, progress) as files:
            places = _write_places(files, orders, _random(seed, "places"))
            products = _write_products(files, orders, places, _random(seed, "products"))
            _Market(files, places, products, _random(seed, "orders")).trade(orders)
            return files.rows
    except OSError as error:
        raise BuscoError(f"can't write the sample to {out}: {error.strerror or error}") from error


class _File:
    """A gzip file being written. Its deflate blocks are uncompressed: compressed ones would depend on zlib's build."""

    def __init__(self, path: Path, header: str) -> None:
        self.rows = 0
        self.lines: list[str] = []
        self._corrections: list[str] = []
        self._crc = self._size = 0
        self.stream = path.open("wb")
        self.stream.write(b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff")
        mark = "\ufeff" if header == fixed.HEADERS[fixed.TRANSLATION] else ""
        self._write(f"{mark}{header}\n".encode())

    def add(self, line: str, instead_of: str = "") -> None:
        """Adds a line. With `instead_of`, writes that wrong line here and the correct one at the end of the file."""
        if instead_of:
            self._corrections.append(line)
        self.lines.append(instead_of or line)

    def flush(self) -> None:
        self.rows += len(self.lines)
        self._write("".join(self.lines).encode())
        self.lines.clear()

    def close(self) -> None:
        self.lines += self._corrections
        self.flush()
        self.stream.write(b"\x01\x00\x00\xff\xff" + struct.pack("<LL", self._crc, self._size & 0xFFFFFFFF))
        self.stream.close()

    def _write(self, data: bytes) -> None:
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        for start in range(0, len(data), 0xFFFF):
            block = data[start : start + 0xFFFF]
            self.stream.write(struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF))
            self.stream.write(block)


class _Files:
    """The nine files: written under temporary names, renamed when all are complete, and removed after an error."""

    def __init__(self, out: Path, progress: Callable[[str, int], None] | None) -> None:
        self.rows: dict[str, int] = {}
        self._out, self._progress = out, progress
        self._open: dict[str, _File] = {}

    def __enter__(self) -> _Files:
        self._out.mkdir(parents=True, exist_ok=True)
        return self

    def __getitem__(self, name: str) -> _File:
        if name not in self._open:
            self._open[name] = _File(self._part(name), fixed.HEADERS[name])
        return self._open[name]

    def finish(self, *names: str) -> None:
        for name in names:
            self._open[name].close()
            self.rows[name] = self._open[name].rows
            if self._progress:
                self._progress(name, self.rows[name])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            for name in self._open if kind is None else ():
                self._part(name).replace(self._out / name)
        finally:
            for name, file in self._open.items():
                with suppress(OSError):
                    file.stream.close()
                self._part(name).unlink(missing_ok=True)

    def _part(self, name: str) -> Path:
        return self._out / f".{name}.part"


def _write_places(files: _Files, orders: int, rng: random.Random) -> list[_Place]:
    """Writes the geolocation file; returns all zip prefixes, even those missing from the file, south-east first."""
    wanted, weights = max(80, orders // 20), sum(city.weight for city in fixed.CITIES)
    places: list[_Place] = []
    for city in fixed.CITIES:
        count = min(city.end - city.first, max(1, wanted * city.weight // weights))
        places += [_Place(f"{p:05}", city) for p in sorted(rng.sample(range(city.first, city.end), count))]
    outside_every = max(30, len(places) // 10)
    lines = files[fixed.GEOLOCATION].lines
    for number, (prefix, city) in enumerate(places):
        if number % 80 == 3:
            continue
        outside = number % outside_every == 7
        for _ in range(5 + int(rng.random() * 11)):
            latitude = city.latitude + 0.12 * (rng.random() - 0.5)
            longitude = city.longitude + 0.12 * (rng.random() - 0.5)
            if outside or rng.random() < 0.001:
                longitude = -longitude  # without its sign, the point is on the other side of the world
            spelled = city.name.lower() if rng.random() < 0.3 else city.plain
            line = f"{prefix},{latitude:.12f},{longitude:.12f},{spelled},{city.state}\n"
            lines += [line, line] if rng.random() < 0.1 else [line]
    files.finish(fixed.GEOLOCATION)
    return places


def _write_products(files: _Files, orders: int, places: list[_Place], rng: random.Random) -> list[_Product]:
    """Writes the files of translations, sellers and products; returns the products, best-selling first."""
    files[fixed.TRANSLATION].lines += [f"{c.name},{c.english}\n" for c in fixed.CATEGORIES if c.english]
    files.finish(fixed.TRANSLATION)
    sellers = _ids(rng, max(8, orders * 3 // 100))
    for number, seller in enumerate(sellers):
        prefix, city = places[int(len(places) * rng.random() * rng.random())]
        name = city.plain
        spelled = {1: name.upper(), 3: f"{name} ", 5: city.name, 7: f" {city.name.upper()}  "}.get(number % 16, name)
        files[fixed.SELLERS].lines.append(f"{seller},{prefix},{spelled},{city.state}\n")
    files.finish(fixed.SELLERS)
    products = []
    for number, product_id in enumerate(_ids(rng, max(60, orders // 3))):
        # Each category has at least one product, however small the sample.
        draw = number if number < len(fixed.CATEGORIES) else int(len(fixed.CATEGORIES) * rng.random() * rng.random())
        category = fixed.CATEGORIES[draw]
        seller = sellers[int(len(sellers) * rng.random() * rng.random())]
        skew = rng.random() * rng.random()
        cents = int(category.price * (0.3 + 3 * skew)) * 100 + (90 if rng.random() < 0.7 else int(rng.random() * 100))
        weight = 50 + int(category.weight_g * (0.3 + 2.5 * rng.random() * rng.random()))
        products.append(_Product(product_id, seller, cents, weight))
        words = f"{category.name},{20 + int(rng.random() * 44)},{80 + int(skew * 3000)},{1 + int(6 * skew)}"
        size = [16 + int(rng.random() * 50), 2 + int(rng.random() * 40), 11 + int(rng.random() * 35)]
        measures = ",".join(map(str, [weight, *size]))
        words, measures = ",,," if number % 50 == 45 else words, ",,," if number % 10_000 == 55 else measures
        files[fixed.PRODUCTS].lines.append(f"{product_id},{words},{measures}\n")
    files.finish(fixed.PRODUCTS)
    return products


class _Market:
    """Generates orders and everything that belongs to them, in batches, so that few rows are in memory at a time."""

    def __init__(self, files: _Files, places: list[_Place], products: list[_Product], rng: random.Random) -> None:
        self._files = files
        self._customers, self._orders, self._items, self._payments, self._reviews = (
            files[name] for name in (fixed.CUSTOMERS, fixed.ORDERS, fixed.ITEMS, fixed.PAYMENTS, fixed.REVIEWS)
        )
        self._places, self._products, self._rng, self._random = places, products, rng, rng.random
        self._people: list[tuple[str, _Place]] = []
        self._review: _Review | None = None

    def trade(self, orders: int) -> None:
        """Writes `orders` orders with customers, items, payments and reviews, then some rows whose order is missing."""
        kinds, missing = fixed.draw_kinds(orders, self._rng), max(2, orders // 5000)
        days, hours = list(accumulate(fixed.day_weights())), list(accumulate(fixed.HOURS))
        for start in range(0, orders + missing, _BATCH):
            numbers = range(start, min(start + _BATCH, orders + missing))
            bought_on = self._rng.choices(range(len(days)), cum_weights=days, k=len(numbers))
            bought_at = self._rng.choices(range(24), cum_weights=hours, k=len(numbers))
            ids = [_ids(self._rng, len(numbers)) for _ in range(4)]
            for number, day, hour, order_id, customer_id, person, review_id in zip(
                numbers, bought_on, bought_at, *ids, strict=True
            ):
                bought = day * DAY + hour * HOUR + int(self._random() * HOUR)
                city = self._customer(customer_id, person) if number < orders else fixed.CITIES[0]
                order = self._order(order_id, kinds.get(number, ""), bought, city)
                if number < orders:
                    self._buy(order, customer_id)
                self._pay(order, self._fill(order))
                self._judge(order, review_id)
            for file in (self._customers, self._orders, self._items, self._payments, self._reviews):
                file.flush()
        self._files.finish(fixed.CUSTOMERS, fixed.ORDERS, fixed.ITEMS, fixed.PAYMENTS, fixed.REVIEWS)

    def _customer(self, customer_id: str, person: str) -> City:
        place = self._places[int(len(self._places) * self._random())]
        if self._people and self._random() < 0.033:
            person, home = self._people[int(len(self._people) * self._random())]
            place = home if self._random() < 0.9 else place
        else:
            self._people.append((person, place))
        self._customers.lines.append(f"{customer_id},{person},{place.prefix},{place.city.plain},{place.city.state}\n")
        return place.city

    def _order(self, order_id: str, kind: str, bought: int, city: City) -> _Order:
        chance = self._random
        status = kind if kind in fixed.STATUSES else "canceled" if kind == "payment not defined" else "delivered"
        day = bought // DAY
        promised = day + 10 + 2 * city.days + int(14 * chance())
        approved = bought + 600 + int(1.5 * DAY * chance() * chance())
        shipped = approved + DAY // 2 + int(4 * DAY * chance() * chance())
        late = (0.049 + 0.006 * city.days) * fixed.LATE_MONTHS.get(DAYS[day][5:7], 1.0)
        fate = chance()
        if fate < late:
            arrived = promised + 1 + int(25 * chance() * chance())
        elif fate < late + 0.02:
            arrived = promised
        else:
            first = shipped // DAY + 1
            arrived = first + int((promised - first) * 0.4 * (chance() + chance()))
        delivered = arrived * DAY + 9 * HOUR + int(12 * HOUR * chance())
        reached = fixed.STATUSES.get(status, 3)
        if status == "canceled":
            reached = 1 + (fate > 0.88) + (fate > 0.99) if fate > 0.15 else 0
        times = (
            approved if reached > 0 and kind != "no approval time" else None,
            shipped if reached > 1 else None,
            delivered if reached > 2 and kind != "no delivery time" else None,
        )
        return _Order(order_id, kind, status, city, bought, *times, promised)

    def _buy(self, order: _Order, customer_id: str) -> None:
        def line(status: str, delivered: int | None) -> str:
            times = f"{moment(order.bought)},{moment(order.approved)},{moment(order.shipped)},{moment(delivered)}"
            return f"{order.id},{customer_id},{status},{times},{DAYS[order.promised]} 00:00:00\n"

        wrong = line("shipped", None) if order.kind == "order twice" else ""
        self._orders.add(line(order.status, order.delivered), instead_of=wrong)

    def _fill(self, order: _Order) -> int:
        """Writes an order's items; returns the total to pay in cents, or 0 if there are no items."""
        chance, total, product = self._random, 0, None
        share = 1.0 if order.kind == "payment not defined" else fixed.WITHOUT_ITEMS.get(order.status, 0.0)
        if chance() < share:
            return 0
        count = 1 + bisect(fixed.ITEM_COUNTS, chance())
        limit = moment((order.approved or order.bought) + (5 + int(3 * chance())) * DAY)
        for number in range(1, count + 1):
            if product is None or chance() < 0.35:
                product = self._products[int(len(self._products) * chance() * chance())]
            price = product.cents if chance() < 0.9 else product.cents * 9 // 10
            freight = 700 + 180 * order.city.days + product.weight_g // 25 + int(600 * chance())
            if chance() < 0.004:
                freight = 0
            if order.kind == "payments tie" and number == count:
                freight += (total + price + freight) % 2
            total += price + freight
            start = f"{order.id},{number},{product.id},{product.seller},{limit}"
            wrong = f"{start},{_money(price + 1000)},{_money(freight)}\n" if order.kind == "items twice" else ""
            self._items.add(f"{start},{_money(price)},{_money(freight)}\n", instead_of=wrong)
        return total

    def _pay(self, order: _Order, total: int) -> None:
        chance, rest = self._random, total or 3000 + int(20_000 * self._random())
        means = chance()
        payments: list[tuple[str, int, int]] = []
        if order.kind == "no payment":
            return
        if order.kind == "payment not defined":
            payments = [("not_defined", 1, 0)]
        elif order.kind == "payments tie":
            half = rest // 2
            payments = [("credit_card", 1, half), ("voucher", 1, half // 3), ("voucher", 1, half - half // 3)]
        elif means < 0.755:
            installments = 1 if chance() < 0.35 else 2 + int(9 * chance() * chance())
            payments = [("credit_card", installments, rest)]
        elif means < 0.96:
            payments = [("boleto" if means < 0.945 else "debit_card", 1, rest)]
        else:
            for _ in range(int(4 * chance() * chance())):
                part = int(rest * (0.2 + 0.3 * chance()))
                payments.append(("voucher", 1, part))
                rest -= part
            payments.append(("voucher" if chance() < 0.6 else "credit_card", 1, rest))
        for number, (kind, installments, cents) in enumerate(payments, 1):
            start = f"{order.id},{number},{kind},{installments}"
            wrong = f"{start},{_money(cents // 2)}\n" if order.kind == "payments twice" else ""
            self._payments.add(f"{start},{_money(cents)}\n", instead_of=wrong)

    def _judge(self, order: _Order, review_id: str) -> None:
        if order.kind == "no review":
            return
        if order.kind != "review of another" or self._review is None:
            self._review = self._write_review(order, review_id)
        self._reviews.add(self._review.line(order.id))
        if order.kind == "two reviews":
            second = self._write_review(order, _ids(self._rng, 1)[0])
            if self._random() < 0.5:
                second = second._replace(answered=self._review.answered)
            self._reviews.add(second.line(order.id))

    def _write_review(self, order: _Order, review_id: str) -> _Review:
        chance, arrived, mood = self._random, order.promised, "never"
        if order.status == "delivered":
            arrived = order.delivered // DAY if order.delivered else order.promised
            mood = "late" if arrived > order.promised else "in time"
        score = 1 + bisect(fixed.SCORES[mood], chance())
        title, message = fixed.comment(score, self._rng)
        answered = (arrived + 1) * DAY + 8 * HOUR + int(5 * DAY * chance() * chance())
        late = order.kind == "review unanswered"
        return _Review(review_id, score, title, message, arrived + 1, None if late else answered)


def _random(seed: int, part: str) -> random.Random:
    return random.Random(f"{seed}/{part}")  # noqa: S311 - synthetic data, which must be reproducible


def _ids(rng: random.Random, count: int) -> list[str]:
    digits = rng.randbytes(16 * count).hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"
