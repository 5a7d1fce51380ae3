"""What the pages say about the tables of the sample project: each number, and each query that they offer.

The page is the file that `busco docs open` writes, opened in a browser. It is compared with queries on the lake's
files: by DuckDB over the views of `busco export duckdb`, by Athena, and with the records in Glue.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote, unquote, urlparse

import boto3
import duckdb
import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, Page, expect
from sqlglot.dialects.presto import Presto

from busco.aws import client
from busco.catalog import athena
from busco.cli.docs import docs_command
from busco.embedded.sample import write_sample
from busco.lake.engine import extension_file
from busco.warehouse import site
from tests.chromium import steady
from tests.integration.test_personal_data import static
from tests.platforms import ROOT, Platform, platform

OLIST = os.environ.get("OLIST_DIR")
# A table whose name needs quotes in Athena.
QUOTED = "gold.order"
QUOTED_SQL = """{{ config(contract={'enforced': false}) }}
select order_id, is_late, purchased_at from {{ ref('fct_orders') }}"""
# The names of the sample project's columns with personal data.
PERSONAL = {"customer_unique_id", "zip_prefix", "title", "message", "review_comment_title", "review_comment_message"}
PERSONAL |= {f"{of}_zip_code_prefix" for of in ("customer", "seller", "geolocation")}
# Values of them that are long enough to be searched for.
IDENTIFIERS = "select customer_unique_id from busco_bronze.customers"
MESSAGES = "select message from busco_silver.order_reviews where length(message) > 30 order by all limit 300"
READ = """() => {
    const own = (node, selector) => [...node.querySelectorAll(selector)];
    const text = (node, selector) => node.querySelector(selector)?.textContent.trim() ?? null;
    const pairs = (node) => Object.fromEntries(own(node, ":scope > div")
        .map((one) => [text(one, "dt"), one.querySelector("dd")]));
    const texts = (found) => Object.fromEntries(Object.entries(found)
        .map(([name, one]) => [name, one.textContent.trim()]));
    const top = (node) => own(node, ".top li").map((one) => [one.querySelector(".value").textContent,
        text(one, ".soft")]);
    const columns = {};
    for (const row of own(document, "table.columns > tbody > tr:not(.detail)")) {
        const values = row.querySelector("td.values");
        const details = pairs(row.nextElementSibling.querySelector("dl.details"));
        columns[text(row, "th code")] = {
            type: text(row, "td.type"), text: values.textContent.trim(), nulls: text(values, ".nulls"),
            exactly: values.querySelector(".nulls")?.title ?? null,
            distinct: text(values, "p > .soft"), first: top(values),
            range: own(values, ".range bdi").map((one) => one.textContent),
            min: details["Smallest"]?.textContent ?? null, max: details["Largest"]?.textContent ?? null,
            top: details["Most frequent values"] ? top(details["Most frequent values"]) : null,
        };
    }
    const facts = pairs(document.querySelector("dl.facts"));
    const sample = document.querySelector("table.sample");
    return {
        title: document.title,
        columns,
        rows: facts["Rows"].firstChild.textContent.trim(),
        bytes: text(facts["Rows"], ".soft"),
        newest: facts["Newest data"] ? [text(facts["Newest data"], ".newest"), text(facts["Newest data"], "code")]
            : null,
        arrived: facts["Newest rows arrived"]?.querySelector("time").getAttribute("datetime") ?? null,
        details: texts(pairs(document.querySelector(".part-details dl"))),
        sample: sample && {
            columns: own(sample, "th").map((one) => one.textContent),
            rows: own(sample, "tbody tr").map((row) => own(row, "td")
                .map((one) => one.querySelector(".null") ? null : one.textContent)),
        },
    };
}"""


@dataclass
class Shop:
    """A published marketplace, its page in a browser, and the views of its release in DuckDB."""

    made: Platform
    page: Page
    file: Path
    exported: Path
    # the rows of the exported views
    lake: duckdb.DuckDBPyConnection
    # what the pages of tables were found to show
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.lake.execute(sql).fetchall()

    def named(self, table: str) -> str:
        """Returns a table's name in DuckDB and in Athena."""
        layer, name = table.split(".", 1)
        return f'busco_{layer}."{name}"'

    def open(self, table: str) -> Page:
        """Opens a table's page."""
        self.page.goto(f"{self.file.as_uri()}#/{quote(table.replace('.', '/', 1))}")
        expect(self.page.locator("h1")).to_have_text(table.split(".", 1)[1])
        expect(self.page.locator("table.columns")).to_be_visible()
        return self.page

    def shown(self, table: str) -> dict[str, Any]:
        """Returns what a table's page shows, with all of its columns opened."""
        if table in self.known:
            return self.known[table]
        page = self.open(table)
        page.evaluate("document.querySelectorAll('.opener[aria-expanded=false]').forEach((one) => one.click())")
        columns = page.locator("table.columns > tbody > tr:not(.detail)").count()
        expect(page.locator("table.columns > tbody > tr.detail")).to_have_count(columns)
        self.known[table] = dict(page.evaluate(READ))
        return self.known[table]

    def offered(self, table: str, tab: str) -> list[str]:
        """Returns the code that a table's page offers for a tool."""
        page = self.open(table)
        section = page.locator(".part-query")
        section.get_by_role("tab", name=tab, exact=True).click()
        expect(section.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")
        return section.locator(".code pre").all_text_contents()


@contextlib.contextmanager
def copied(exported: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yields a database in memory with the rows of all views of an export, which many queries read."""
    with duckdb.connect() as lake:
        lake.execute(f"load '{extension_file('httpfs')}'")
        lake.execute("set s3_url_style = 'path'")
        lake.execute("set timezone = 'UTC'")
        lake.execute(f"attach '{exported}' as exported (read_only)")
        for (name,) in lake.execute("select table_name from exported.busco.tables").fetchall():
            database, table = name.split(".", 1)
            lake.execute(f"create schema if not exists {database}")
            lake.execute(f'create table {database}."{table}" as from exported.{database}."{table}"')
        yield lake


@contextlib.contextmanager
def opened(made: Platform, browser: Browser, folder: Path) -> Iterator[Shop]:
    """Writes the page and the export of the live release, and opens both."""
    file, exported = folder / "pages.html", folder / "lake.duckdb"
    printed = made.busco("docs", "open", "gold.fct_orders", "--file", str(file))
    assert f"release {made.live().release}, {len(made.live().tables)} tables" in printed
    made.busco("export", "duckdb", str(exported))
    endpoint = urlparse(str(made.settings.endpoint_url))
    # DuckDB's httpfs extension reads these and AWS's variables when it is loaded
    given = {"AWS_REGION": made.settings.region, "AWS_DEFAULT_REGION": made.settings.region}
    given |= {"DUCKDB_S3_ENDPOINT": endpoint.netloc, "DUCKDB_S3_USE_SSL": "false", "AWS_S3_ADDRESSING_STYLE": "path"}
    context = browser.new_context(locale="en-GB", timezone_id="UTC")
    # awswrangler uses boto3's default session, which would keep the credentials of an earlier test module
    with (
        mock.patch.dict(os.environ, given),
        mock.patch.object(boto3, "DEFAULT_SESSION", None),
        copied(exported) as lake,
    ):
        yield Shop(made, steady(context.new_page()), file, exported, lake)
    context.close()


@pytest.fixture(scope="module", params=["olist" if OLIST else "generated"])
def shop(
    request: pytest.FixtureRequest, browser: Browser, served: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """The sample project on Olist's data, or without it on generated data."""
    data = Path(str(OLIST))
    if request.param == "generated":
        data = tmp_path_factory.mktemp("data")
        write_sample(400, 7, data)
    with platform(tmp_path_factory.mktemp("home"), ROOT, served) as made, pytest.MonkeyPatch.context() as patch:
        # otherwise, profiles get a twentieth of the few seconds that the models take
        patch.setattr(site, "_SHARE", 1000.0)
        made.model(QUOTED.replace(".", "/"), QUOTED_SQL)
        # the project's tests take longer than its models, and no number here depends on them
        project = made.home / "dbt_project/dbt_project.yml"
        project.write_text(f"{project.read_text()}\ndata_tests: {{+enabled: false}}\nunit_tests: {{+enabled: false}}\n")
        assert made.take(data).good
        outcome = made.build()
        assert outcome.good, {node: status for node, status in outcome.statuses.items() if status != "success"}
        with opened(made, browser, tmp_path_factory.mktemp("pages")) as found:
            yield found


def shortest(value: Decimal, places: int) -> str:
    """Returns a number with at most so many decimal places, as the browser writes it in English."""
    rounded = f"{value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):,f}"
    return rounded.rstrip("0").rstrip(".") if places else rounded


def share(part: int, whole: int) -> str:
    found = part / whole
    if 0 < found < 0.001:
        return "< 0.1%"
    if 0.999 < found < 1:
        return "> 99.9%"
    return f"{shortest(Decimal(repr(found)) * 100, 1 if found < 0.1 else 0)}%"


def size(number: int) -> str:
    value, unit = Decimal(number), 0
    while value >= Decimal("999.5"):
        value, unit = value / 1000, unit + 1
    return f"{shortest(value, 1 if value < 10 and unit else 0)} {('byte', 'kB', 'MB', 'GB')[unit]}"


def top_of(shop: Shop, table: str, column: str) -> list[tuple[str, str]]:
    found = shop.rows(
        f'select left("{column}"::varchar, 200), count(*) from {shop.named(table)} where "{column}" is not null '
        f'group by "{column}"'
    )
    rows = count_rows(shop, table)
    return [(value, share(n, rows)) for value, n in sorted(found, key=lambda one: (-one[1], one[0]))]


def count_rows(shop: Shop, table: str) -> int:
    return int(shop.rows(f"select count(*) from {shop.named(table)}")[0][0])


def is_nested(kind: str) -> bool:
    return kind.startswith(("STRUCT", "MAP")) or kind.endswith("]")


def values(shop: Shop, table: str, column: str, kind: str) -> dict[str, Any]:
    """Returns what a page must show of a column's values."""
    rows = count_rows(shop, table)
    name = f'"{column}"'
    ordered = f"count(distinct {name}), left(min({name})::varchar, 200), left(max({name})::varchar, 200)"
    ((known, distinct, least, greatest),) = shop.rows(
        f"select count({name}), {'null, null, null' if is_nested(kind) else ordered} from {shop.named(table)}"
    )
    nulls = rows - known
    top = top_of(shop, table, column) if distinct and distinct <= 20 and distinct < rows else []
    different = None if distinct is None else f"· {distinct:,} {'value' if distinct == 1 else 'different'}"
    return {
        "nulls": f"{share(nulls, rows)} null" if nulls else None,
        "exactly": f"{nulls:,}" if nulls else None,
        "distinct": different,
        "first": [list(one) for one in top[:3]],
        "range": [least, greatest] if not top and least is not None else [],
        "min": least, "max": greatest,
        "top": [list(one) for one in top[:10]] if len(top) > 3 else None,
    }  # fmt: skip


def in_glue(shop: Shop, table: str) -> dict[str, Any]:
    layer, name = table.split(".", 1)
    found = client("glue", shop.made.settings).get_table(DatabaseName=f"busco_{layer}", Name=name)
    return dict(found["Table"])


def stored_files(shop: Shop, table: str) -> dict[str, int]:
    """Returns the sizes of the data files of the table in Glue, as S3 reports them."""
    key = shop.made.store.key(in_glue(shop, table)["Parameters"]["metadata_location"])
    files = {shop.made.store.key(task.file.file_path) for task in static(shop.made, key).scan().plan_files()}
    s3, bucket = client("s3", shop.made.settings), shop.made.settings.lake_bucket
    return {key: s3.head_object(Bucket=bucket, Key=key)["ContentLength"] for key in files}


def wrong(shop: Shop, table: str) -> list[str]:
    """Compares the numbers of a table's page with queries; returns the differences."""
    shown, problems = shop.shown(table), []
    described = shop.rows(f"describe {shop.named(table)}")

    def compare(what: str, found: Any, expected: Any) -> None:
        if found != expected:
            problems.append(f"{table}: {what} is {found!r}, but {expected!r} by a query")

    compare("rows", shown["rows"], f"{count_rows(shop, table):,}")
    files = stored_files(shop, table)
    compare("bytes", shown["bytes"], size(sum(files.values())))
    number = f"{len(files)} {'file' if len(files) == 1 else 'files'}"
    compare("size", re.sub(r"\s+", " ", shown["details"]["Size"]), f"{shown['bytes']} · {number}")
    compare("columns", [(name, one["type"]) for name, one in shown["columns"].items()], [row[:2] for row in described])
    personal = {name for name, one in shown["columns"].items() if one["text"].startswith("personal data")}
    compare("personal", personal, PERSONAL & {name for name, *_ in described})
    for name, kind, *_ in described:
        if name in personal:
            continue
        expected = values(shop, table, name, kind)
        found = {key: shown["columns"][name][key] for key in expected}
        compare(name, found, expected)
    if (newest := shown["newest"]) is not None:
        ((greatest,),) = shop.rows(f'select max("{newest[1]}")::varchar from {shop.named(table)}')
        compare("newest data", newest[0], re.sub(r" 00:00:00$", "", greatest))
    if table.startswith("bronze."):
        ((arrived,),) = shop.rows(
            f"select strftime(max(_ingested_at), '%Y-%m-%dT%H:%M:%S.%f+00:00') from {shop.named(table)}"
        )
        compare("arrival", shown["arrived"], arrived)
    sample = shown["sample"]
    compare("sample's columns", sample["columns"], [row[0] for row in described if row[0] not in personal])
    compare("sample's rows", len(sample["rows"]), min(10, count_rows(shop, table)))
    texts = ", ".join(f'left("{name}"::varchar, 200)' for name in sample["columns"])
    stored = Counter(shop.rows(f"select {texts} from {shop.named(table)}"))
    compare("rows that are not there", list((Counter(map(tuple, sample["rows"])) - stored).elements()), [])
    return problems


def tables(shop: Shop) -> list[str]:
    return sorted(shop.made.live().tables)


def test_all_numbers_of_all_tables_are_those_that_queries_return(shop: Shop) -> None:
    assert len(tables(shop)) == 30
    problems = [problem for table in tables(shop) for problem in wrong(shop, table)]
    assert not problems, "\n".join(problems)


def test_the_list_of_tables_has_their_numbers_of_rows_and_newest_data(shop: Shop) -> None:
    shop.page.goto(f"{shop.file.as_uri()}#/")
    expect(shop.page.locator("h1")).to_have_text("Tables")
    for table in tables(shop):
        layer, name = table.split(".", 1)
        section = shop.page.locator("section.layer").filter(has=shop.page.get_by_role("heading", name=layer))
        link = shop.page.get_by_role("link", name=name, exact=True)
        row = section.locator("tbody tr").filter(has=link)
        expect(row.locator("td.amount")).to_have_text(re.compile(rf"^\s*{count_rows(shop, table):,} rows$"))
        newest = row.locator(".newest-data")
        if newest.locator("code").count():
            column = newest.locator("code").inner_text()
            ((greatest,),) = shop.rows(f'select max("{column}")::varchar from {shop.named(table)}')
            expect(newest.locator(".newest")).to_have_text(re.sub(r" 00:00:00$", "", greatest))


def test_no_value_of_a_person_is_in_the_page(shop: Shop) -> None:
    for table, column in {
        "bronze.customers": "customer_unique_id", "silver.order_reviews": "message", "silver.customers": "zip_prefix",
    }.items():  # fmt: skip
        assert shop.shown(table)["columns"][column]["text"] == "personal data: no values are shown"
    written = shop.file.read_text()
    identifiers = {value for (value,) in shop.rows(IDENTIFIERS)}
    assert len(identifiers) > 100
    assert not identifiers & set(re.findall(r"[0-9a-f]{32}", written))
    messages = [json.dumps(value, ensure_ascii=False)[1:-1] for (value,) in shop.rows(MESSAGES)]
    assert len(messages) > 30
    assert [message for message in messages if message in written] == []


def found_by(page: Page, query: str) -> list[tuple[str, str]]:
    """Searches, and returns the names of what was found, each with its place."""
    box, said = page.locator(".search input"), page.locator(".search [role=status]")
    box.fill("")
    expect(said).to_have_text("")
    box.fill(query)
    expect(said).to_have_text(re.compile(r"\d+ result"))
    hits = page.locator("#hits li")
    return list(
        zip(
            hits.locator("code").all_text_contents(),
            [re.sub(r"\s+", " ", text) for text in hits.locator("div > span.soft").all_inner_texts()],
            strict=True,
        )
    )


@pytest.mark.parametrize("query", ["late delivery", "Delivery LATE", "entrega atrasada", "atrasada entrega"])
def test_a_search_for_late_deliveries_in_either_language_finds_the_column_and_the_mart(shop: Shop, query: str) -> None:
    shop.page.goto(f"{shop.file.as_uri()}#/")
    first = found_by(shop.page, query)[:5]
    assert ("is_late", "column in gold.fct_orders") in first
    assert ("mart_delivery_performance", "gold") in first


def test_the_names_and_the_place_in_the_data_catalog_are_those_of_glue(shop: Shop) -> None:
    for table in tables(shop):
        shown, glue = shop.shown(table)["details"], in_glue(shop, table)
        assert (shown["Database in Glue"], shown["Table in Glue"]) == (glue["DatabaseName"], glue["Name"]), table
        assert shown["Location"].removesuffix("Copy").strip() == glue["Parameters"]["metadata_location"], table


# Tables with few and with many rows, a partitioned one, and the one whose name needs quotes.
ASKED = ("bronze.orders", "gold.fct_orders", "gold.mart_delivery_performance", QUOTED)


def check_rows(shop: Shop, table: str, rows: list[Any], names: list[str]) -> None:
    """Checks that these are rows of a table, up to 100 of them, and that they have all of its columns."""
    described = [row[0] for row in shop.rows(f"describe {shop.named(table)}")]
    assert [name.lower() for name in names] == [name.lower() for name in described]
    assert len(rows) == min(100, count_rows(shop, table)), table
    first = described[0]
    stored = Counter(str(value) for (value,) in shop.rows(f'select "{first}" from {shop.named(table)}'))
    assert not Counter(str(row[0]) for row in rows) - stored, table


@pytest.mark.parametrize("table", ASKED)
def test_the_query_for_athena_returns_the_table_s_rows(shop: Shop, table: str) -> None:
    (sql,) = shop.offered(table, "Athena")
    found = athena.query(client("athena", shop.made.settings), sql, "busco", "default")
    check_rows(shop, table, found.rows, list(found.columns))


@pytest.mark.parametrize("table", ASKED)
def test_the_query_for_duckdb_returns_the_rows_of_the_exported_views(shop: Shop, table: str) -> None:
    (sql,) = shop.offered(table, "DuckDB")
    with duckdb.connect(str(shop.exported), read_only=True) as lake:
        lake.execute(f"load '{extension_file('httpfs')}'")
        lake.execute("set s3_url_style = 'path'")
        found = lake.execute(sql)
        names = [column[0] for column in found.description or ()]
        check_rows(shop, table, found.fetchall(), names)


def test_the_code_for_python_returns_the_table_s_rows(shop: Shop) -> None:
    table = QUOTED
    by_duckdb, by_wrangler, by_pyathena = shop.offered(table, "Python")
    # the shared local AWS, and DuckDB's extension from its wheel, are all that differs from a consumer's machine
    prepared = "import duckdb\nconnect = duckdb.connect\ndef reach(*given, **options):\n"
    prepared += "    made = connect(*given, **options)\n"
    prepared += f"    made.execute(\"load '{extension_file('httpfs')}'; set s3_url_style = 'path'\")\n"
    prepared += "    return made\nduckdb.connect = reach\n"
    printed = "\nprint(json.dumps([list(frame.columns), frame.astype(str).values.tolist()]))"
    code = f"import json\n{prepared}{by_duckdb}{printed}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=shop.exported.parent, env=dict(os.environ), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names, rows = json.loads(done.stdout)
    check_rows(shop, table, rows, names)
    given: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(by_wrangler, given)
        check_rows(shop, table, given["frame"].to_numpy().tolist(), list(given["frame"].columns))
        exec(by_pyathena, given)
    check_rows(shop, table, given["rows"], [column[0] for column in given["cursor"].description])


def test_words_that_athena_reserves_are_quoted_in_queries(shop: Shop) -> None:
    for word in sorted(Presto.Generator.RESERVED_KEYWORDS):
        content = {"glue": {"database": "busco_gold", "name": word}, "partition_by": []}
        made = shop.page.evaluate("(content) => busco.queries.queries(content, null)", content)
        assert f'busco_gold."{word}"' in made["athena"], word
        assert f'busco_gold.\\"{word}\\"' in made["python_wrangler"], word


def test_the_code_for_r_has_the_query_that_the_code_for_python_has(shop: Shop) -> None:
    """R is not installed where the tests run; its text literals are written as those of JSON."""
    (code,), (python, *_) = shop.offered(QUOTED, "R"), shop.offered(QUOTED, "Python")
    assert 'dbConnect(duckdb::duckdb(), "lake.duckdb", read_only = TRUE)' in code
    texts = [re.findall(r'^ +("select .*")$', one, re.MULTILINE) for one in (code, python)]
    assert [json.loads(text) for (text,) in texts] == [f"select * from {shop.named(QUOTED)} limit 100"] * 2


def test_the_browser_is_opened_at_the_table_that_was_asked_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def browse(address: str) -> bool:
        asked.append(address)
        return True

    monkeypatch.setattr("busco.cli.docs.webbrowser.open", browse)
    result = CliRunner().invoke(docs_command, ["open", "gold.fct_orders"], catch_exceptions=False)
    assert result.exit_code == 0
    (address,) = asked
    shop.page.goto(address)
    expect(shop.page.locator("h1")).to_have_text("fct_orders")
    expect(shop.page.locator("table.columns")).to_be_visible()
    assert Path(unquote(urlparse(address).path)).is_relative_to(shop.made.home)
