"""Data for tests of the site: an online marketplace with its state, documentation, contents and releases."""

from __future__ import annotations

import copy
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import escape

Data = dict[str, Any]

# The shown time is that of the browser, so that the relative times stay true.
NOW = datetime.now(UTC).replace(microsecond=0)
# Each runs as soon as it becomes markup.
EVIL = {
    "script": "</script><script>window.pwned=1</script>",
    "image": '<img src=x onerror="window.pwned=1">',
    "comment": "<!--><svg onload=window.pwned=1>",
}
# Names and descriptions can have any letters.
LETTERS = "ação “citação” 'x' \"y\" 🧾 日本語 שלום עולם"
_DAY = timedelta(days=1)
_TABLES = """
bronze.orders|source|Orders as the shop exports them, one row per line of the file, with its file and line.||shop|order_id order_status order_purchase_timestamp order_delivered_customer_date order_estimated_delivery_date _file _line
bronze.payments|source|Payments as the payment provider delivers them.||shop|order_id payment_type payment_value
bronze.reviews|source|Avaliações dos clientes, como a loja as exporta.||shop|review_id order_id review_score review_comment
silver.orders|model|One row per order, with typed times and a valid status.|bronze.orders|core|order_id customer_id status purchased_at delivered_at estimated_delivery_on
silver.order_payments|model|One row per payment of an order.|bronze.payments|core|order_id payment_type amount
silver.order_reviews|model|Uma linha por avaliação de um pedido, com a nota e o comentário.|bronze.reviews|core|review_id order_id score answered_at
gold.fct_orders|model|One row per order, with its totals, delivery times and whether the customer got it late.|silver.orders silver.order_payments silver.order_reviews|finance logistics|order_id customer_unique_id customer_state status purchased_at delivered_at estimated_delivery_on order_amount paid_amount review_score is_late delivery_days
gold.mart_daily_sales|model|Revenue and sold orders by day of purchase: the figures of the daily sales report.|gold.fct_orders|finance|purchased_on orders order_amount average_amount
gold.mart_delivery_performance|model|Entregas por estado: prazo médio em dias e parcela de entregas atrasadas.|gold.fct_orders|logistics|customer_state orders average_days late_share
gold.mart_payment_mix|model|Revenue by month and type of payment.|silver.order_payments gold.fct_orders|finance|month payment_type amount share
gold.dim_dates|model|Every day from the first purchase to the last promised delivery.|silver.orders||date_day year month is_weekend
gold.dim_regions|seed|The states of Brazil with their regions.|||state region
"""  # noqa: E501
_ROWS = {
    "bronze.orders": 99441,
    "bronze.payments": 103886,
    "bronze.reviews": 99224,
    "silver.orders": 99441,
    "silver.order_payments": 103886,
    "silver.order_reviews": 99224,
    "gold.fct_orders": 99441,
    "gold.mart_daily_sales": 634,
    "gold.mart_delivery_performance": 27,
    "gold.mart_payment_mix": 110,
    "gold.dim_dates": 773,
    "gold.dim_regions": 27,
}
_DESCRIPTIONS = {
    "order_id": "The order's id.",
    "customer_unique_id": "The person who ordered, across all of their orders.",
    "customer_state": "The state that the order is sent to, two letters.",
    "status": "The order's status. Sold orders are those that are neither canceled nor unavailable.",
    "purchased_at": "When the order was placed, local time of the shop.",
    "delivered_at": "When the order reached the customer; empty until then.",
    "estimated_delivery_on": "The day that the customer was promised.",
    "order_amount": "Items and freight in BRL.",
    "paid_amount": "The sum of all payments in BRL; 0 if there are none.",
    "review_score": "The score that the customer gave, 1 to 5.",
    "is_late": "Whether the order was delivered after the promised day.",
    "delivery_days": "Days from purchase to delivery: the delivery time.",
    "late_share": "Parcela das entregas que chegaram depois do prazo.",
    "purchased_on": "The day of purchase.",
    "orders": "Number of sold orders.",
    "amount": "Amount in BRL.",
}
_TYPES = {
    "purchased_at": "TIMESTAMP",
    "delivered_at": "TIMESTAMP",
    "answered_at": "TIMESTAMP",
    "purchased_on": "DATE",
    "estimated_delivery_on": "DATE",
    "date_day": "DATE",
    "month": "DATE",
    "order_amount": "DECIMAL(18,2)",
    "paid_amount": "DECIMAL(18,2)",
    "amount": "DECIMAL(18,2)",
    "average_amount": "DECIMAL(18,2)",
    "orders": "BIGINT",
    "review_score": "INTEGER",
    "score": "INTEGER",
    "year": "INTEGER",
    "is_late": "BOOLEAN",
    "is_weekend": "BOOLEAN",
    "delivery_days": "DOUBLE",
    "average_days": "DOUBLE",
    "late_share": "DOUBLE",
    "share": "DOUBLE",
}
TIMES = ("DATE", "TIMESTAMP")
_KEYS = {"order_id", "review_id", "purchased_on", "date_day", "state"}
_TOP = {
    "status": [["delivered", 96478], ["shipped", 1107], ["canceled", 625], ["unavailable", 609], ["invoiced", 314]],
    "customer_state": [["SP", 41746], ["RJ", 12852], ["MG", 11635], ["RS", 5466], ["PR", 5045]],
    "review_score": [["5", 57328], ["4", 19142], ["1", 11424], ["3", 8179], ["2", 3151]],
    "is_late": [["false", 89941], ["true", 6535]],
    "payment_type": [["credit_card", 76795], ["boleto", 19784], ["voucher", 5775], ["debit_card", 1529]],
}
_SQL = """{{ config(partition_by=['purchase_month']) }}

-- the totals of each order
with payments as (
    select order_id, sum(amount) as paid_amount
    from {{ ref('order_payments') }}
    group by order_id
)

select
    orders.order_id,
    coalesce(payments.paid_amount, 0) as paid_amount,
    cast(orders.delivered_at as date) > orders.estimated_delivery_on as is_late
from {{ ref('orders') }} as orders
left join payments on payments.order_id = orders.order_id
"""


def iso(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def release_id(number: int) -> str:
    """Returns the id of the release that was published so many days before the live one."""
    when = NOW - timedelta(hours=3) - number * _DAY
    return f"{when:%Y%m%dT%H%M%SZ}-{hashlib.sha256(str(number).encode()).hexdigest()[:8]}"


LIVE, BEFORE = release_id(0), release_id(1)
DAYS = 14


def marketplace() -> Data:
    """Returns all data of the marketplace, as `frame_html` takes it, with one table in each state but `held`."""
    tables, entries, contents = {}, {}, {}
    for line in _TABLES.strip().splitlines():
        name, kind, summary, upstream, tags, columns = line.split("|")
        tables[name] = _published(name)
        entries[name] = _entry(name, kind, summary, upstream.split(), tags.split(), columns.split())
        contents[name] = _content(entries[name], tables[name])
    # each of these is in a state of its own
    entries["bronze.reviews"]["loaded_at"] = iso(NOW - 3 * _DAY)
    tables["gold.mart_payment_mix"]["stale"] = ["silver.order_payments"]
    entries["gold.dim_dates"]["tests"][0].update(status="failed", failures=3)
    entries["gold.dim_regions"]["tests"][0].update(status="warn", failures=1)
    # only what is built from reviews is late; the orders of this shop have their own
    entries["gold.fct_orders"]["upstream"].remove("silver.order_reviews")
    project = {
        "title": "Marketplace",
        "has_site": True,
        "dag": "/dags/lakehouse/grid",
        "dbt_docs": "/busco/dbt_docs_page?dag_id=lakehouse&project=busco",
        "tasks": {"gold.fct_orders": "/dags/lakehouse/grid?dag_run_id=r&task_id=fct_orders"},
    }
    state = {
        "format": 1,
        "environment": "prod",
        "release": LIVE,
        "live": LIVE,
        "kind": "publish",
        "published_at": iso(NOW - timedelta(hours=3)),
        "who": "airflow:admin",
        "reason": "",
        "run": "scheduled__2026-12-02",
        "code_version": "4b0c1fe9a7d25",
        "rolled_back_to": None,
        "previous": BEFORE,
        "hold": None,
        "tables": tables,
        "projects": {"busco": project},
    }
    site = {
        "format": 1,
        "project": "busco",
        "title": "Marketplace",
        "made_at": iso(NOW),
        "run": "r",
        "tables": entries,
        "exposures": [
            {
                "name": "weekly_sales_review",
                "label": "Weekly sales review",
                "type": "dashboard",
                "maturity": "high",
                "url": "https://bi.example.com/sales",
                "owner": {"name": "Sales analytics", "email": "sales@example.com"},
                "description_html": "<p>The dashboard that the sales team reviews <strong>every Monday</strong>.</p>",
                "tables": ["gold.mart_daily_sales", "gold.mart_payment_mix", "gold.dim_dates"],
            }
        ],
        "pages": [
            {
                "name": "sold_order",
                "package": "busco",
                "html": "<p>An order that is neither <code>canceled</code> nor <code>unavailable</code>.</p>",
            }
        ],
        "groups": [
            {
                "name": "finance",
                "owner": "Finance data",
                "email": "finance@example.com",
                "description_html": "<p>Everything that is reported to the board.</p>",
            }
        ],
    }
    return {
        "state": state,
        "history": {
            "format": 1,
            "releases": [_release(number) for number in range(DAYS)],
            "next": None,
            "complete": False,
        },
        "sites": {"busco": site},
        "tables": {"busco": contents},
    }


def _published(name: str, number: int = 0) -> Data:
    rows = _ROWS.get(name, 1)
    rows -= number * 137 if rows > 1000 else number if rows > 100 else 0
    return {
        "version": f"{name}-v{number}",
        "rows": rows,
        "bytes": rows * 96,
        "project": "busco",
        "published_at": iso(NOW - timedelta(hours=3) - number * _DAY),
    }


def _release(number: int) -> Data:
    changes = {name: {key: _published(name, number)[key] for key in ("version", "rows", "bytes")} for name in _ROWS}
    if number:
        del changes["gold.dim_regions"]
    return {
        "release": release_id(number),
        "kind": "rollback" if number == 5 else "publish",
        "who": "airflow:admin",
        "published_at": iso(NOW - timedelta(hours=3) - number * _DAY),
        "project": "busco",
        "changes": changes,
        "reason": "the payments of Tuesday were doubled" if number == 5 else "",
        "run": f"scheduled__{number}",
        "code_version": "4b0c1fe9a7d25",
        "rolled_back_to": release_id(6) if number == 5 else None,
        "dropped": [],
    }


def result(table: str, column: str | None, kind: str = "not_null", **more: Any) -> Data:
    return {
        "name": f"{kind}_{table}_{column}",
        "kind": kind,
        "column": column,
        "status": "success",
        "failures": 0,
        "at": iso(NOW - timedelta(hours=3)),
        "seconds": 0.12,
        **more,
    }


def _entry(name: str, kind: str, summary: str, upstream: list[str], tags: list[str], columns: list[str]) -> Data:
    layer, short = name.split(".")
    is_source = kind == "source"
    return {
        "layer": layer,
        "name": short,
        "kind": kind,
        "unique_id": f"{kind}.busco.{short}",
        "summary": summary,
        "tags": tags,
        "owner": "Finance data" if "finance" in tags else "Data platform",
        "group": "finance" if "finance" in tags else None,
        "synonyms": ["faturamento", "receita"] if short == "mart_daily_sales" else [],
        "columns": [
            [column, _DESCRIPTIONS.get(column, ""), "prazo de entrega" if column == "delivery_days" else ""]
            for column in columns
        ],
        "upstream": upstream,
        "loaded_at": iso(NOW - timedelta(hours=5)) if is_source else None,
        "newest": next(([one, column(one)["profile"]["max"]] for one in columns if _TYPES.get(one) in TIMES), None),
        "personal": [one for one in columns if one == "customer_unique_id"],
        "warn_after": 86400 if is_source else None,
        "error_after": 2 * 86400 if is_source else None,
        "tests": [result(short, columns[0]), result(short, columns[0], "unique")],
    }


def column(name: str, **more: Any) -> Data:
    """Returns a column of a table's content."""
    kind = _TYPES.get(name, "VARCHAR")
    newest = iso(NOW - timedelta(hours=14))[:19].replace("T", " ")
    low, high = {
        "TIMESTAMP": ("2016-09-04 21:15:19", newest),
        "DATE": ("2016-09-04", newest[:10]),
        "DOUBLE": ("0.53", "209.6"),
        "DECIMAL(18,2)": ("9.59", "13664.08"),
        "INTEGER": ("1", "5"),
        "BIGINT": ("1", "1176"),
    }.get(kind, ("a01", "zz9"))
    text = _DESCRIPTIONS.get(name, "")
    top = _TOP.get(name)
    return {
        "name": name,
        "type": kind,
        "required": name in _KEYS,
        "key": name in _KEYS,
        "personal": name == "customer_unique_id",
        "description_html": f"<p>{text}</p>" if text else "",
        "lineage": None,
        "profile": {
            "nulls": 2965 if name.startswith("deliver") else 0,
            "distinct": len(top) if top else 99441,
            "exact": bool(top),
            "min": low,
            "max": high,
            "top": top,
        },
        **more,
    }


def _content(entry: Data, published: Data) -> Data:
    name = f"{entry['layer']}.{entry['name']}"
    columns = [column(each) for each, *_ in entry["columns"]]
    for each in columns:
        if each["personal"]:
            each["profile"] = {"nulls": 0, "distinct": 96096, "exact": False, "min": None, "max": None, "top": None}
        if entry["upstream"] and each["name"] in ("order_id", "status", "delivered_at", "purchased_at"):
            each["lineage"] = [[entry["upstream"][0], each["name"]]]
        if name == "gold.fct_orders" and each["name"] in ("is_late", "delivery_days"):
            each["lineage"] = [["silver.orders", "delivered_at"], ["silver.orders", "purchased_at"]]
        if name == "gold.mart_delivery_performance" and each["name"] == "late_share":
            each["lineage"] = [["gold.fct_orders", "is_late"]]
    shown = [each["name"] for each in columns if not each["personal"]]
    rows = [
        [None if at % 5 == 4 and each.startswith("deliver") else f"{each[:9]} {at}" for each in shown]
        for at in range(20)
    ]
    return {
        "format": 1,
        "table": name,
        "version": published["version"],
        "made_at": published["published_at"],
        "rows": published["rows"],
        "bytes": published["bytes"],
        "files": 3,
        "description_html": f"<p>{entry['summary']}</p>",
        "grain": [columns[0]["name"]],
        "owner": entry["owner"],
        "contact": "data@example.com",
        "group": entry["group"],
        "meta": {"retention": "5 years"},
        "columns": columns,
        "profile_from": "rows",
        "sample": {"columns": shown, "rows": rows},
        "partition_by": [],
        "sql": None
        if entry["kind"] == "source"
        else {
            "path": f"models/{entry['layer']}/{entry['name']}.sql",
            "source": _SQL,
            "compiled": _SQL.replace("{{", "").replace("}}", ""),
        },
        "glue": {
            "database": f"busco_{entry['layer']}",
            "name": entry["name"],
            "location": f"s3://busco-lake/{name.replace('.', '/')}/{published['version']}",
        },
    }


def earlier(content: Data, number: int) -> Data:
    """Returns a table's content as it was in an earlier release: from seven days on, without its last column."""
    found = copy.deepcopy(content)
    published = _published(content["table"], number)
    found.update(version=published["version"], rows=published["rows"], bytes=published["bytes"])
    if number == 1:
        found["description_html"] = "<p>An older description.</p>"
        found["columns"][0]["type"] = "BIGINT"
    if number >= 7:
        found["columns"].pop()
    return found


def wide(data: Data, name: str, columns: int) -> None:
    """Gives a table so many columns."""
    entry, content = data["sites"]["busco"]["tables"][name], data["tables"]["busco"][name]
    for number in range(len(content["columns"]), columns):
        content["columns"].append(column(f"measure_{number:03}", description_html=f"<p>Measure number {number}.</p>"))
        entry["columns"].append([f"measure_{number:03}", f"Measure number {number}."])


def many(tables: int, columns: int) -> Data:
    """Returns the marketplace with more tables, of so many columns each."""
    data = marketplace()
    for number in range(tables):
        name = f"{('gold', 'silver', 'bronze')[number % 3]}.table_{number:04}"
        names = [f"{word}_{at}" for at in range(columns // 2) for word in ("value", "amount")]
        entry = _entry(
            name, "model", f"Table number {number} of the sales data.", ["bronze.orders"], [f"t{number % 9}"], names
        )
        data["sites"]["busco"]["tables"][name] = entry
        data["state"]["tables"][name] = {**_published("gold.fct_orders"), "version": f"{name}-v0"}
    return data


def hostile() -> Data:
    """Returns data whose texts are markup that would run, and letters of many scripts, wherever a text can be."""
    data = marketplace()
    evil = " ".join(EVIL.values())
    text = f"{evil} {LETTERS}"
    rendered = f'<p>{escape(text)} <a href="javascript:window.pwned=1">go</a> <a href="https://example.com">out</a></p>'
    name = f"gold.{text}"
    entry = _entry("gold.x", "model", text, ["silver.orders"], [text], [text])
    entry.update(name=text, owner=text, group=text, columns=[[text, text, text]], synonyms=[text], newest=[text, text])
    entry["tests"] = [result("x", text, text, name=text)]
    published = {**_published("gold.fct_orders"), "version": "evil-v0", "stale": [text]}
    content = _content(data["sites"]["busco"]["tables"]["gold.fct_orders"], published)
    profile = {"nulls": 1, "distinct": 2, "exact": True, "min": text, "max": text, "top": [[text, 5], ["x", 3]]}
    content.update(
        table=name,
        description_html=rendered,
        grain=[text],
        owner=text,
        contact=text,
        group=text,
        meta={text: text},
        columns=[column(text, type=text, description_html=rendered, profile=profile, lineage=[[text, text]])],
        sample={"columns": [text], "rows": [[text], [None]]},
        partition_by=[text],
        sql={"path": text, "source": text, "compiled": text},
        glue={"database": text, "name": text, "location": text},
    )
    state, site = data["state"], data["sites"]["busco"]
    state["tables"][name] = published
    site["tables"][name] = entry
    data["tables"]["busco"][name] = content
    site["exposures"] = [
        {
            "name": text,
            "label": text,
            "type": text,
            "url": "javascript:window.pwned=1",
            "maturity": text,
            "owner": {"name": text, "email": text},
            "description_html": rendered,
            "tables": [name, text],
        }
    ]
    site["pages"] = [{"name": text, "package": text, "html": rendered}]
    site["groups"] = [{"name": text, "owner": text, "email": text, "description_html": rendered}]
    state.update(
        kind="rollback", who=text, reason=text, rolled_back_to=text, run=text, code_version=text, environment=text
    )
    state["hold"] = {"who": text, "when": iso(NOW), "reason": text}
    state["projects"]["busco"]["title"] = text
    for release in data["history"]["releases"]:
        release.update(who=text, reason=text, run=text, code_version=text)
        release["changes"][name] = {"version": "evil-v0", "rows": 1, "bytes": 1}
    return data
