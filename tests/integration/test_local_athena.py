"""Features of the local AWS's Glue and Athena that the platform relies on, tested on a separate server."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import iceberg_helper
import pytest
from own_aws import Server, code_of, wait_for

# Glue ------------------------------------------------------------------------------------------------------------

COLUMNS = [
    {"Name": "order_id", "Type": "bigint", "Comment": "The order's number, é."},
    {"Name": "items", "Type": "array<struct<sku:string,price:decimal(18,2)>>", "Comment": ""},
]


def test_a_table_keeps_its_types_comments_and_parameters(server: Server) -> None:
    glue = server.client("glue")
    table = iceberg_helper.table_input("kept", "s3://lake/_lake/metadata/1.metadata.json", COLUMNS)
    glue.create_table(DatabaseName="busco_silver", TableInput=table)
    found = glue.get_table(DatabaseName="busco_silver", Name="kept")["Table"]
    assert found["StorageDescriptor"]["Columns"] == COLUMNS
    assert {name: found["Parameters"].get(name) for name in table["Parameters"]} == table["Parameters"]
    assert found["Description"] == "The table kept."


def test_a_table_is_created_once(server: Server) -> None:
    glue = server.client("glue")
    table = iceberg_helper.table_input("once", "s3://lake/_lake/metadata/1.metadata.json", COLUMNS)
    glue.create_table(DatabaseName="busco_silver", TableInput=table)
    again = code_of(lambda: glue.create_table(DatabaseName="busco_silver", TableInput=table))
    assert again == "AlreadyExistsException"


def test_only_one_of_eight_updates_with_the_same_version_id_succeeds(server: Server) -> None:
    glue = server.client("glue")
    table = iceberg_helper.table_input("raced", "s3://lake/_lake/metadata/1.metadata.json", COLUMNS)
    glue.create_table(DatabaseName="busco_silver", TableInput=table)
    seen = glue.get_table(DatabaseName="busco_silver", Name="raced")["Table"]["VersionId"]
    start = threading.Barrier(8)

    def update(number: int) -> str:
        start.wait(10)
        moved = iceberg_helper.table_input("raced", f"s3://lake/_lake/metadata/{number}.metadata.json", COLUMNS)
        request = {"DatabaseName": "busco_silver", "TableInput": moved, "VersionId": seen, "SkipArchive": True}
        return code_of(lambda: glue.update_table(**request))

    with ThreadPoolExecutor(8) as pool:
        results = sorted(pool.map(update, range(8)))
    assert results == ["ConcurrentModificationException"] * 7 + ["ok"]


# Athena over Iceberg ---------------------------------------------------------------------------------------------

ORDERS = """
    SELECT 1::BIGINT AS order_id, 10 AS customer_id, 'paid' AS status, 12.50::DECIMAL(18,2) AS amount, true AS is_late,
           TIMESTAMP '2018-01-01 10:00:00' AS order_at, DATE '2018-01-01' AS order_on, 0.1::DOUBLE AS share
    UNION ALL SELECT 2, 10, 'shipped', -0.01, false, TIMESTAMP '2018-01-02 10:00:00.123456', DATE '2018-01-02', 1e20
    UNION ALL SELECT 3, 11, NULL, NULL, NULL, NULL, NULL, NULL
    ORDER BY order_id
"""


@pytest.fixture(scope="module")
def tables(server: Server) -> Server:
    """Writes gold: fct_orders, fct_empty (no file), fct_no_rows; silver: customers, and another fct_orders."""
    s3, glue, bucket = server.client("s3"), server.client("glue"), os.environ["BUSCO_LAKE_BUCKET"]
    for database, table, select, files in (
        ("busco_gold", "fct_orders", ORDERS, 1),
        ("busco_gold", "fct_empty", ORDERS, 0),
        ("busco_gold", "fct_no_rows", f"FROM ({ORDERS}) WHERE false", 1),
        ("busco_silver", "customers", "SELECT 10 AS customer_id, 'Ana''s' AS name UNION ALL SELECT 11, 'Bo'", 1),
        ("busco_silver", "fct_orders", "SELECT 99::BIGINT AS order_id", 2),
    ):
        metadata, columns = iceberg_helper.write_table(s3, bucket, f"{database[6:]}/{table}", select, files)
        iceberg_helper.show(glue, database, table, metadata, columns)
    return server


SHAPES = {
    "database of the context": "SELECT order_id FROM fct_orders",
    "qualified name": "SELECT order_id FROM busco_gold.fct_orders",
    "catalog": 'SELECT order_id FROM "AwsDataCatalog"."busco_gold"."fct_orders"',
    "quoted name": 'SELECT "order_id" FROM "busco_gold"."fct_orders"',
    "upper case": "SELECT ORDER_ID FROM BUSCO_GOLD.FCT_ORDERS",
    "alias": "SELECT o.order_id FROM busco_gold.fct_orders AS o",
    "alias without as": "SELECT o.order_id FROM fct_orders o WHERE o.order_id > 0",
    "column by table": "SELECT fct_orders.order_id FROM busco_gold.fct_orders",
    "column by table of the context": "SELECT fct_orders.order_id FROM fct_orders WHERE fct_orders.order_id > 0",
    "column by database and table": "SELECT busco_gold.fct_orders.order_id FROM busco_gold.fct_orders",
    "join over databases": """SELECT fct_orders.order_id FROM fct_orders JOIN busco_silver.customers
        ON customers.customer_id = fct_orders.customer_id""",
    "join using, aliases": """SELECT o.order_id FROM busco_gold.fct_orders o
        LEFT JOIN busco_silver.customers c USING (customer_id)""",
    "comma join": """SELECT o.order_id FROM fct_orders o, busco_silver.customers c
        WHERE c.customer_id = o.customer_id""",
    "self join": "SELECT a.order_id FROM fct_orders a JOIN fct_orders b ON a.order_id = b.order_id",
    "same name in two databases": """SELECT g.order_id FROM busco_gold.fct_orders g
        WHERE g.order_id < (SELECT max(order_id) FROM busco_silver.fct_orders)""",
    "CTE": "WITH late AS (SELECT * FROM fct_orders) SELECT order_id FROM late",
    "CTE with the table's name": "WITH fct_orders AS (SELECT * FROM fct_orders) SELECT order_id FROM fct_orders",
    "nested CTE": """WITH a AS (WITH b AS (SELECT * FROM busco_gold.fct_orders) SELECT * FROM b)
        SELECT order_id FROM a""",
    "subquery": "SELECT order_id FROM (SELECT * FROM busco_gold.fct_orders) AS x",
    "scalar and in subquery": """SELECT order_id FROM fct_orders
        WHERE customer_id IN (SELECT customer_id FROM busco_silver.customers)
          AND order_id <= (SELECT max(order_id) FROM fct_orders)""",
    "union": "SELECT order_id FROM fct_orders UNION ALL SELECT order_id FROM fct_empty",
    "a comment and a string that name tables": """SELECT order_id -- FROM busco_silver.customers
        FROM fct_orders WHERE coalesce(status, '') <> 'from busco_gold.fct_orders'""",
    "extract from": "SELECT order_id FROM fct_orders WHERE coalesce(extract(year FROM order_at), 2018) = 2018",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_athena_reads_iceberg_tables_in_queries_of_any_shape(tables: Server, shape: str) -> None:
    assert sorted(tables.query(SHAPES[shape])) == [["1"], ["2"], ["3"]]


def test_values_are_text_as_athena_formats_them_and_null_is_none(tables: Server) -> None:
    rows = tables.query("SELECT * FROM fct_orders ORDER BY order_id")
    assert rows[0][:6] == ["1", "10", "paid", "12.50", "true", "2018-01-01 10:00:00.000000"]
    assert rows[1][3:7] == ["-0.01", "false", "2018-01-02 10:00:00.123456", "2018-01-02"]
    assert rows[2] == ["3", "11", *[None] * 6]


@pytest.mark.parametrize("table", ["fct_empty", "fct_no_rows"])
def test_a_table_without_rows_has_its_columns(tables: Server, table: str) -> None:
    assert tables.query(f"SELECT order_id, status FROM busco_gold.{table}", "busco_silver") == []
    assert tables.query(f"SELECT count(*), max(amount) FROM {table}") == [["0", None]]


def test_exactly_the_files_in_the_metadata_are_read(tables: Server) -> None:
    location = tables.client("glue").get_table(DatabaseName="busco_silver", Name="fct_orders")["Table"][
        "StorageDescriptor"
    ]["Location"]
    iceberg_helper.put(tables.client("s3"), f"{location}/stray.parquet", b"not a part of the table")
    assert tables.query("SELECT order_id FROM busco_silver.fct_orders") == [["99"], ["99"]]


def test_the_information_schema_lists_the_iceberg_tables(tables: Server) -> None:
    sql = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'busco_silver' AND table_name = "
    assert tables.query(f"{sql} 'customers' ORDER BY ordinal_position") == [["customer_id"], ["name"]]


@pytest.mark.long
def test_a_reader_sees_one_version_while_the_metadata_moves(server: Server) -> None:
    s3, glue, bucket = server.client("s3"), server.client("glue"), os.environ["BUSCO_LAKE_BUCKET"]
    versions = [
        iceberg_helper.write_table(s3, bucket, "gold/moving", f"SELECT {v} AS v FROM range(1000)", 2) for v in (0, 1)
    ]
    iceberg_helper.show(glue, "busco_gold", "moving", *versions[0])
    seen: list[list[list[str | None]]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(server.query("SELECT count(*), min(a.v), max(a.v), (SELECT max(v) FROM moving) FROM moving a"))

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for number in range(1, 9):
                iceberg_helper.show(glue, "busco_gold", "moving", *versions[number % 2])
                reads = len(seen) + 1
                wait_for(lambda: len(seen) > reads or any(reader.done() for reader in readers))  # noqa: B023
        finally:
            done.set()
        for reader in readers:
            reader.result()
    assert {tuple(rows[0]) for rows in seen} == {("2000", "0", "0", "0"), ("2000", "1", "1", "1")}


@pytest.mark.long
def test_concurrent_queries_read_from_the_server_that_runs_them(tables: Server) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: tables.query("SELECT count(*) FROM fct_orders"), range(24)))
    assert results == [[["3"]]] * 24


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM fct_absent", "line 1:15: Table 'awsdatacatalog.busco_gold.fct_absent' does not exist"),
        ("SELECT 1\nFROM Busco_Bronze.Nothing", "line 2:6: Table 'awsdatacatalog.busco_bronze.nothing' does not exist"),
        ('SELECT * FROM fct_orders, "busco_silver"."v_x" v', "Table 'awsdatacatalog.busco_silver.v_x' does not exist"),
        ("WITH a AS (SELECT * FROM customers) SELECT * FROM a", "Table 'awsdatacatalog.busco_gold.customers'"),
        (
            "SELECT x.a FROM busco_silver.x WHERE x.a = 1",
            "line 1:17: Table 'awsdatacatalog.busco_silver.x' does not exist",
        ),
        ("SELECT * FROM AwsDataCatalog.busco_gold.x", "line 1:15: Table 'awsdatacatalog.busco_gold.x' does not exist"),
        ("SELECT * FROM busco_golf.fct_orders", "SCHEMA_NOT_FOUND: line 1:15: Schema 'busco_golf' does not exist"),
    ],
)
def test_a_query_of_an_unknown_table_or_database_fails_with_athenas_message(
    tables: Server, sql: str, message: str
) -> None:
    with pytest.raises(AssertionError) as failed:
        tables.query(sql)
    assert message in str(failed.value)
    assert ("SCHEMA_NOT_FOUND" in str(failed.value)) is ("golf" in sql)
    assert ("TABLE_NOT_FOUND" in str(failed.value)) is ("golf" not in sql)


def test_a_table_that_is_not_in_iceberg_format_is_read_from_its_files(tables: Server) -> None:
    bucket = os.environ["BUSCO_LAKE_BUCKET"]
    iceberg_helper.put(tables.client("s3"), f"s3://{bucket}/files/a.csv", b"1,x\n2,y\n")
    storage = {
        "Columns": [{"Name": "n", "Type": "int"}, {"Name": "t", "Type": "string"}],
        "Location": f"s3://{bucket}/files",
        "InputFormat": "org.apache.hadoop.mapred.TextInputFormat",
        "SerdeInfo": {
            "SerializationLibrary": "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe",
            "Parameters": {"field.delim": ","},
        },
    }
    tables.client("glue").create_table(
        DatabaseName="busco_silver", TableInput={"Name": "files", "StorageDescriptor": storage}
    )
    sql = "SELECT f.t FROM busco_silver.files f JOIN fct_orders o ON o.order_id = f.n ORDER BY f.n"
    assert tables.query(sql) == [["x"], ["y"]]


FILE = "/etc/hostname"


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT * FROM read_text('{FILE}')",
        f"SELECT fct_orders.order_id FROM fct_orders, read_csv('{FILE}')",
        "SELECT * FROM '/etc/some.csv'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_text('http://127.0.0.1:9/')",
        "COPY (SELECT 1) TO 'here.csv'",
        "ATTACH 'here.db'",
        f"SET enable_external_access = true; SELECT * FROM read_text('{FILE}')",
        f"SET allowed_paths = ['{FILE}']; SELECT * FROM read_text('{FILE}')",
    ],
)
def test_a_query_cannot_read_or_write_files_of_the_server(tables: Server, sql: str) -> None:
    refusals = r"(?i)permission|cannot|locked|rejected before it ran|a string is not a table"
    with pytest.raises(AssertionError, match=refusals):
        print(tables.query(sql))
