"""All silver and gold tables of the sample warehouse, recomputed in Polars from the raw CSV files.

It is written only from the definitions and shares no code with the models, so an error would have to be made twice.
"""

from __future__ import annotations

import csv
import gzip
import io
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import polars as pl

from tests.oracle import COLUMNS, KEYS

Tables = dict[str, pl.DataFrame]

_TYPES: dict[str, pl.DataType] = {
    "text": pl.String(),
    "integer": pl.Int32(),
    "bigint": pl.Int64(),
    "double": pl.Float64(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "timestamp": pl.Datetime("us"),
    "money": pl.Decimal(12, 2),
    "sum": pl.Decimal(18, 2),
}

# The columns of each table in order, grouped by type: each group is a type followed by its columns.
_BRONZE = {
    "orders": "text order_id customer_id order_status; timestamp order_purchase_timestamp order_approved_at"
    " order_delivered_carrier_date order_delivered_customer_date order_estimated_delivery_date",
    "order_items": "text order_id; integer order_item_id; text product_id seller_id; timestamp shipping_limit_date;"
    " money price freight_value",
    "order_payments": "text order_id; integer payment_sequential; text payment_type; integer payment_installments;"
    " money payment_value",
    "order_reviews": "text review_id order_id; integer review_score; text review_comment_title review_comment_message;"
    " timestamp review_creation_date review_answer_timestamp",
    "customers": "text customer_id customer_unique_id customer_zip_code_prefix customer_city customer_state",
    "products": "text product_id product_category_name; integer product_name_lenght product_description_lenght"
    " product_photos_qty product_weight_g product_length_cm product_height_cm product_width_cm",
    "sellers": "text seller_id seller_zip_code_prefix seller_city seller_state",
    "geolocation": "text geolocation_zip_code_prefix; double geolocation_lat geolocation_lng;"
    " text geolocation_city geolocation_state",
    "product_category_name_translation": "text product_category_name product_category_name_english",
}
_GRAINS: dict[str, list[str]] = {
    "orders": ["order_id"],
    "order_items": ["order_id", "order_item_id"],
    "order_payments": ["order_id", "payment_sequential"],
    "order_reviews": ["review_id", "order_id"],
    "customers": ["customer_id"],
    "products": ["product_id"],
    "sellers": ["seller_id"],
    "geolocation": [],
    "product_category_name_translation": ["product_category_name"],
}


def recompute(folder: Path) -> Tables:
    """Returns every silver and gold table, computed from the nine CSV files in `folder`."""
    tables = _silver({name: _bronze(folder, name) for name in _BRONZE})
    tables["gold.fct_orders"] = _fct_orders(tables)
    tables["gold.fct_order_items"] = _fct_order_items(tables)
    tables |= _dimensions(tables) | _sales(tables) | _customers_and_payments(tables)
    return {name: _finish(name, tables[name]) for name in COLUMNS}


def _schema(groups: str) -> dict[str, pl.DataType]:
    """Parses columns and types from a string such as `text a b; date c`."""
    split = [group.split() for group in groups.split(";")]
    return {column: _TYPES[kind] for kind, *columns in split for column in columns}


def _finish(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Returns the table with its own columns and types, ordered by its grain."""
    schema = _schema(COLUMNS[name])
    return frame.select(pl.col(column).cast(kind) for column, kind in schema.items()).sort(KEYS[name])


# ---- Bronze


def _bronze(folder: Path, name: str) -> pl.DataFrame:
    """Returns one file's rows with types and `_source_row`: the last row of each grain key."""
    raw = gzip.decompress(content) if (content := _file(folder, name).read_bytes())[:2] == b"\x1f\x8b" else content
    reader = csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
    header = next(reader)
    values = list(zip(*(row for row in reader if row), strict=True)) or [()] * len(header)
    texts = pl.DataFrame(
        {c: pl.Series([v or None for v in vs], dtype=pl.String) for c, vs in zip(header, values, strict=True)}
    )
    typed = texts.select(
        pl.col(column).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us")
        if kind == _TYPES["timestamp"]
        else pl.col(column).cast(kind)
        for column, kind in _schema(_BRONZE[name]).items()
    ).with_row_index("_source_row", offset=1)
    grain = _GRAINS[name]
    return typed.unique(grain, keep="last", maintain_order=True) if grain else typed


def _file(folder: Path, name: str) -> Path:
    """Returns the only file of a table, named after the data set or the table, compressed or not."""
    stems = [f"olist_{name}_dataset", f"olist_{name}", f"{name}_dataset", name]
    found = [path for stem in stems for end in (".csv", ".csv.gz") if (path := folder / f"{stem}{end}").is_file()]
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} should have one file for {name}, but has {len(found)}")
    return found[0]


# ---- Silver


def _city(column: str) -> pl.Expr:
    """Returns a city name, trimmed, in lower case and without accents."""
    plain = pl.col(column).str.normalize("NFD").str.replace_all(r"\p{Mn}", "").str.normalize("NFC")
    return plain.str.strip_chars().str.to_lowercase().alias("city")


def _silver(bronze: Tables) -> Tables:
    """Returns the eight silver tables."""
    orders = bronze["orders"].rename(
        {
            "order_status": "status",
            "order_purchase_timestamp": "purchased_at",
            "order_approved_at": "approved_at",
            "order_delivered_carrier_date": "shipped_at",
            "order_delivered_customer_date": "delivered_at",
        }
    )
    orders = orders.with_columns(
        estimated_delivery_on=pl.col("order_estimated_delivery_date").dt.date(),
        purchased_on=pl.col("purchased_at").dt.date(),
        purchase_month=pl.col("purchased_at").dt.date().dt.month_start(),
    )
    month = orders.select("order_id", "purchase_month")
    items = bronze["order_items"].rename(
        {"order_item_id": "item_number", "shipping_limit_date": "shipping_limit_at", "freight_value": "freight"}
    )
    payments = bronze["order_payments"].rename(
        {
            "payment_sequential": "payment_number",
            "payment_installments": "installments",
            "payment_value": "amount",
        }
    )
    reviews = bronze["order_reviews"].select(
        "review_id",
        "order_id",
        "_source_row",
        score="review_score",
        title="review_comment_title",  # the reader returns NULL for empty text
        message="review_comment_message",
        created_on=pl.col("review_creation_date").dt.date(),
        answered_at="review_answer_timestamp",
    )
    products = bronze["products"].join(
        bronze["product_category_name_translation"].drop("_source_row"), on="product_category_name", how="left"
    )
    geolocation = bronze["geolocation"].filter(
        pl.col("geolocation_lat").is_between(-33.8, 5.3) & pl.col("geolocation_lng").is_between(-74.0, -34.7)
    )
    return {
        "silver.orders": orders,
        "silver.order_items": items.join(month, on="order_id"),
        "silver.order_payments": payments.join(month, on="order_id"),
        "silver.order_reviews": reviews.join(month, on="order_id", how="semi"),
        "silver.customers": bronze["customers"].with_columns(
            _city("customer_city"), zip_prefix="customer_zip_code_prefix", state="customer_state"
        ),
        "silver.products": products.with_columns(
            category=pl.coalesce("product_category_name_english", "product_category_name", pl.lit("unknown")),
            photos="product_photos_qty",
            weight_g="product_weight_g",
            length_cm="product_length_cm",
            height_cm="product_height_cm",
            width_cm="product_width_cm",
        ),
        "silver.sellers": bronze["sellers"].with_columns(
            _city("seller_city"), zip_prefix="seller_zip_code_prefix", state="seller_state"
        ),
        "silver.locations": geolocation.group_by(zip_prefix="geolocation_zip_code_prefix").agg(
            latitude=pl.median("geolocation_lat"), longitude=pl.median("geolocation_lng"), points=pl.len()
        ),
    }


# ---- Gold: facts and dimensions


def _total(column: str) -> pl.Expr:
    """Returns the exact sum of an amount, 0 if there are no rows."""
    return pl.col(column).cast(_TYPES["sum"]).sum()


def _ratio(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """Returns a quotient as DOUBLE, or NULL if the denominator is 0."""
    return pl.when(whole != 0).then(part.cast(pl.Float64) / whole.cast(pl.Float64))


def _fct_orders(tables: Tables) -> pl.DataFrame:
    items = (
        tables["silver.order_items"]
        .group_by("order_id")
        .agg(
            items=pl.len(),
            sellers=pl.col("seller_id").drop_nulls().n_unique(),
            items_amount=_total("price"),
            freight_amount=_total("freight"),
        )
    )
    payments = tables["silver.order_payments"].group_by("order_id").agg(paid_amount=_total("amount"), payments=pl.len())
    by_type = tables["silver.order_payments"].group_by("order_id", "payment_type").agg(of_type=_total("amount"))
    main_type = (
        by_type.sort("of_type", "payment_type", descending=[True, False])
        .unique("order_id", keep="first", maintain_order=True)
        .select("order_id", main_payment_type="payment_type")
    )
    review = (
        tables["silver.order_reviews"]
        .sort("answered_at", "review_id", descending=[True, False], nulls_last=True)
        .unique("order_id", keep="first", maintain_order=True)
        .select("order_id", review_score="score")
    )
    customers = tables["silver.customers"].select("customer_id", "customer_unique_id", customer_state="state")
    joined = tables["silver.orders"].join(customers, on="customer_id", how="left")
    for other in (items, payments, main_type, review):
        joined = joined.join(other, on="order_id", how="left")
    counted = ["items", "sellers", "items_amount", "freight_amount", "paid_amount", "payments"]
    delivered = pl.col("status").eq_missing(pl.lit("delivered")) & pl.col("delivered_at").is_not_null()
    elapsed = (pl.col("delivered_at") - pl.col("purchased_at")).dt.total_microseconds()
    return joined.with_columns(pl.col(counted).fill_null(0)).with_columns(
        order_amount=pl.col("items_amount") + pl.col("freight_amount"),
        is_sold=~pl.col("status").is_in(["canceled", "unavailable"]).fill_null(False),
        is_delivered=delivered,
        is_late=pl.when(delivered).then(pl.col("delivered_at").dt.date() > pl.col("estimated_delivery_on")),
        delivery_days=pl.when(delivered).then(elapsed / 86_400_000_000),
    )


def _fct_order_items(tables: Tables) -> pl.DataFrame:
    orders = tables["gold.fct_orders"].select("order_id", "customer_state", "purchased_on", "is_sold")
    products = tables["silver.products"].select("product_id", "category")
    sellers = tables["silver.sellers"].select("seller_id", seller_state="state")
    items = tables["silver.order_items"].join(orders, on="order_id")
    return items.join(products, on="product_id", how="left").join(sellers, on="seller_id", how="left")


def _dimensions(tables: Tables) -> Tables:
    """Returns the four dimensions."""
    orders, items = tables["gold.fct_orders"], tables["gold.fct_order_items"].filter("is_sold")
    sold_on = [pl.min("purchased_on").alias("first_sold_on"), pl.max("purchased_on").alias("last_sold_on")]

    span = orders.select(day=pl.date_ranges(pl.min("purchased_on"), pl.max("estimated_delivery_on")))
    day = pl.col("date_day")
    dates = pl.DataFrame({"date_day": span["day"].explode().drop_nulls()}).with_columns(
        year=day.dt.year(),
        quarter=day.dt.quarter(),
        month=day.dt.month(),
        month_start=day.dt.month_start(),
        iso_week=day.dt.week(),
        day_of_week=day.dt.weekday(),
        is_weekend=day.dt.weekday() >= 6,
    )

    cities = tables["silver.customers"].select("customer_id", "city")
    of_customers = (
        orders.join(cities, on="customer_id", how="left")
        .sort("purchased_at", "order_id")
        .group_by("customer_unique_id")
        .agg(
            first_order_at=pl.min("purchased_at"),
            last_order_at=pl.max("purchased_at"),
            orders=pl.col("is_sold").sum(),
            lifetime_amount=pl.col("order_amount").filter("is_sold").sum(),
            state=pl.last("customer_state"),
            city=pl.last("city"),
        )
    )
    customers = tables["silver.customers"].select("customer_unique_id").drop_nulls().unique()
    customers = customers.join(of_customers, on="customer_unique_id", how="left")
    customers = customers.with_columns(pl.col("orders", "lifetime_amount").fill_null(0))

    of_products = items.group_by("product_id").agg(pl.len().alias("items_sold"), *sold_on)
    products = tables["silver.products"].join(of_products, on="product_id", how="left")
    sides = [pl.col(side).cast(pl.Int64) for side in ("length_cm", "height_cm", "width_cm")]
    located = tables["silver.sellers"].join(tables["silver.locations"], on="zip_prefix", how="left")
    return {
        "gold.dim_dates": dates,
        "gold.dim_customers": customers.with_columns(is_repeat=pl.col("orders") > 1),
        "gold.dim_products": products.with_columns(
            pl.col("items_sold").fill_null(0), volume_cm3=sides[0] * sides[1] * sides[2]
        ),
        "gold.dim_sellers": located.join(items.group_by("seller_id").agg(sold_on), on="seller_id", how="left"),
    }


# ---- Gold: marts


def _sales(tables: Tables) -> Tables:
    """Returns the marts of days, categories, sellers and deliveries."""
    orders = tables["gold.fct_orders"]
    items = tables["gold.fct_order_items"].filter("is_sold")
    daily = (
        orders.filter("is_sold")
        .group_by("purchased_on")
        .agg(
            pl.col("items", "items_amount", "freight_amount", "order_amount").sum(),
            orders=pl.len(),
            customers=pl.col("customer_unique_id").drop_nulls().n_unique(),
        )
    )
    averages = [
        (amount / count).quantize(Decimal("0.01"), ROUND_HALF_UP)
        for amount, count in daily.select("order_amount", "orders").iter_rows()
    ]
    of_items = [
        pl.col("order_id").n_unique().alias("orders"),
        pl.len().alias("items"),
        _total("price").alias("items_amount"),
    ]
    category = items.group_by("purchase_month", "category").agg(
        *of_items, freight_amount=_total("freight"), sellers=pl.col("seller_id").drop_nulls().n_unique()
    )

    delivered, late = pl.col("is_delivered").sum(), pl.col("is_late").sum()
    per_seller = items.select("seller_id", "order_id").unique().join(orders, on="order_id")
    scores = per_seller.group_by("seller_id").agg(
        delivered_orders=delivered, late_orders=late, average_review_score=pl.mean("review_score")
    )
    sellers = items.group_by("seller_id").agg(of_items).join(scores, on="seller_id")
    sellers = sellers.sort("items_amount", "seller_id", descending=[True, False]).with_row_index("amount_rank", 1)

    delivery = (
        orders.filter("is_delivered")
        .group_by("customer_state", "purchase_month")
        .agg(
            delivered_orders=delivered,
            late_orders=late,
            average_delivery_days=pl.mean("delivery_days"),
            p90_delivery_days=pl.col("delivery_days").quantile(0.9, "linear"),
        )
    )
    late_rate = _ratio(pl.col("late_orders"), pl.col("delivered_orders"))
    return {
        "gold.mart_daily_sales": daily.with_columns(average_order_amount=pl.Series(averages, dtype=_TYPES["money"])),
        "gold.mart_category_sales": category,
        "gold.mart_seller_scorecard": sellers.with_columns(late_rate=late_rate),
        "gold.mart_delivery_performance": delivery.with_columns(on_time_rate=1 - late_rate),
    }


def _customers_and_payments(tables: Tables) -> Tables:
    """Returns the marts of cohorts and payments."""
    sold = tables["gold.fct_orders"].filter("is_sold")
    known = sold.filter(pl.col("customer_unique_id").is_not_null()).with_columns(
        cohort_month=pl.min("purchase_month").over("customer_unique_id")
    )
    month, first = pl.col("purchase_month"), pl.col("cohort_month")
    years = month.dt.year() - first.dt.year()
    since = 12 * years + month.dt.month().cast(pl.Int32) - first.dt.month().cast(pl.Int32)
    active = known.group_by("cohort_month", since.alias("months_since_first")).agg(
        active_customers=pl.col("customer_unique_id").n_unique(),
        orders=pl.len(),
        order_amount=pl.col("order_amount").sum(),
    )
    sizes = known.group_by("cohort_month").agg(cohort_customers=pl.col("customer_unique_id").n_unique())
    cohorts = active.join(sizes, on="cohort_month")

    mix = (
        tables["silver.order_payments"]
        .join(sold, on="order_id", how="semi")
        .group_by("purchase_month", "payment_type")
        .agg(
            payments=pl.len(),
            orders=pl.col("order_id").n_unique(),
            amount=_total("amount"),
            average_installments=pl.mean("installments"),
        )
    )
    return {
        "gold.mart_customer_cohorts": cohorts.with_columns(
            retention_rate=_ratio(pl.col("active_customers"), pl.col("cohort_customers"))
        ),
        "gold.mart_payment_mix": mix.with_columns(
            share=_ratio(pl.col("amount"), pl.col("amount").sum().over("purchase_month"))
        ),
    }
