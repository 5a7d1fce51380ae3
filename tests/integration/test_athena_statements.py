"""In the local Athena, SHOW, DESCRIBE and EXPLAIN work; other statements that aren't queries are refused by name."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from typing import Any

import boto3
import iceberg_helper
import pytest
from own_aws import Server, code_of, owners_environment, wait_for

SELECT = "SELECT 1::BIGINT AS order_id, 'paid' AS status, DATE '2018-01-01' AS day"
COLUMNS = [["order_id", "bigint", "about order_id"], ["status", "string", "about status"], ["day", "date", "about day"]]


@pytest.fixture(scope="module")
def tables(server: Server) -> Server:
    """Tables in two databases: busco_gold.orders and busco_silver.customers."""
    for database, table in (("busco_gold", "orders"), ("busco_gold", "days"), ("busco_silver", "customers")):
        bucket = os.environ["BUSCO_LAKE_BUCKET"]
        metadata, columns = iceberg_helper.write_table(server.client("s3"), bucket, f"{database[6:]}/{table}", SELECT)
        iceberg_helper.show(server.client("glue"), database, table, metadata, columns)
    return server


def run(athena: Any, sql: str, **more: Any) -> tuple[str, str]:
    """Runs a statement. Returns its id, and the reason why it failed or ''."""
    identifier = athena.start_query_execution(
        QueryString=sql, QueryExecutionContext={"Database": "busco_gold"}, WorkGroup="busco", **more
    )["QueryExecutionId"]

    def execution() -> Any:
        return athena.get_query_execution(QueryExecutionId=identifier)["QueryExecution"]["Status"]

    wait_for(lambda: execution()["State"] in ("SUCCEEDED", "FAILED"))
    return identifier, execution()["StateChangeReason"] if execution()["State"] == "FAILED" else ""


def rows(athena: Any, sql: str) -> list[list[str | None]]:
    identifier, failed = run(athena, sql)
    assert failed == ""
    found = athena.get_query_results(QueryExecutionId=identifier)["ResultSet"]["Rows"]
    return [[cell.get("VarCharValue") for cell in row["Data"]] for row in found]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SHOW DATABASES", [["busco_bronze"], ["busco_gold"], ["busco_silver"]]),
        ("show schemas like '*_s*';", [["busco_silver"]]),
        ("SHOW TABLES", [["days"], ["orders"]]),
        ("-- all\nSHOW TABLES IN busco_silver", [["customers"]]),
        ("SHOW TABLES FROM `busco_gold` 'ord*|x'", [["orders"]]),
        ("SHOW COLUMNS IN orders", [["order_id"], ["status"], ["day"]]),
        ("SHOW COLUMNS FROM customers IN busco_silver", [["order_id"], ["status"], ["day"]]),
        ("DESCRIBE busco_gold.orders", COLUMNS),
        ('DESC "ORDERS"', COLUMNS),
    ],
)
def test_show_and_describe_list_what_is_in_glue(tables: Server, sql: str, expected: list[list[str]]) -> None:
    assert rows(tables.client("athena"), sql) == expected


def test_explain_shows_the_plan_of_a_query_without_running_it(tables: Server) -> None:
    plan = "\n".join(str(row[0]) for row in rows(tables.client("athena"), "EXPLAIN SELECT status FROM orders"))
    assert "PROJECTION" in plan or "SCAN" in plan
    assert rows(tables.client("athena"), "explain select error('it ran')")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SHOW TABLES IN nowhere", "SCHEMA_NOT_FOUND: Schema 'nowhere' does not exist"),
        ("DESCRIBE nothing", "TABLE_NOT_FOUND: Table 'awsdatacatalog.busco_gold.nothing' does not exist"),
        ("SHOW COLUMNS IN nothing", "TABLE_NOT_FOUND: Table 'awsdatacatalog.busco_gold.nothing' does not exist"),
        ("SHOW CREATE TABLE orders", "SHOW CREATE is not available here"),
        ("SHOW TABLES IN busco_gold; SELECT 1", "only one statement can run at a time"),
        ("SELECT 1; SELECT 2", "only one statement can run at a time"),
        ("EXPLAIN ANALYZE SELECT 1", "EXPLAIN ANALYZE is not available here"),
        ("EXPLAIN (FORMAT JSON) SELECT 1", "EXPLAIN with options is not available here"),
        ("EXPLAIN EXPLAIN SELECT 1", "EXPLAIN must be followed by a query"),
        ("EXPLAIN SHOW TABLES", "EXPLAIN must be followed by a query"),
        ("EXPLAIN COPY (SELECT 1) TO 'x.csv'", "EXPLAIN must be followed by a query"),
        ("EXPLAIN SELECT * FROM read_text('/etc/hostname')", "it reads or lists files"),
        ("EXPLAIN SELECT * FROM '/etc/some.csv'", "a string is not a table"),
        ("DESCRIBE SELECT 1", "DESCRIBE is not available here in this form"),
        ("CREATE TABLE x AS SELECT 1 AS a", "CREATE TABLE AS is not available here"),
        ("CREATE TABLE x WITH (format = 'PARQUET') AS WITH a AS (SELECT 1 AS a) SELECT * FROM a",
         "CREATE TABLE AS is not available here"),
        ("UNLOAD (SELECT 1) TO 's3://a/b' WITH (format = 'PARQUET')", "UNLOAD is not available here"),
        ("CREATE VIEW v AS SELECT 1 AS a", "CREATE VIEW is not available here"),
        ("INSERT INTO orders SELECT * FROM orders", "INSERT is not available here"),
        ("WITH a AS (SELECT 1) INSERT INTO orders SELECT * FROM a", "only a query can run here"),
        ("SET x = 1", "SET is not available here"),
        ('SELECT * FROM "s3://a/b.parquet"', "it names a path; read tables by name"),
    ],
)  # fmt: skip
def test_a_statement_that_does_not_work_is_refused_with_what_does(tables: Server, sql: str, message: str) -> None:
    _, failed = run(tables.client("athena"), sql)
    assert message in failed
    assert "model" not in failed
    assert "busco query" not in failed


def test_a_caller_sees_only_the_tables_that_their_policies_allow(tables: Server) -> None:
    iam = tables.client("iam")
    iam.create_user(UserName="half")
    here = "arn:aws:glue:us-east-1:000000000000"
    allowed = [f"{here}:catalog", f"{here}:database/busco_gold", f"{here}:table/busco_gold/orders"]
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["athena:*", "s3:*"], "Resource": "*"},
            {"Effect": "Allow", "Action": "glue:Get*", "Resource": allowed},
        ],
    }
    iam.put_user_policy(UserName="half", PolicyName="half", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="half")["AccessKey"]
    athena = boto3.client(
        "athena", endpoint_url=tables.endpoint, region_name="us-east-1", aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
    )  # fmt: skip
    assert rows(athena, "SHOW DATABASES") == [["busco_gold"]]
    assert rows(athena, "SHOW TABLES") == [["orders"]]
    assert rows(athena, "DESCRIBE orders") == COLUMNS
    for sql in ("SHOW TABLES IN busco_silver", "DESCRIBE busco_silver.customers", "DESCRIBE days", "DESCRIBE absent"):
        assert "not authorized to perform: glue:Get" in run(athena, sql)[1], sql


@pytest.fixture
def environment(tables: Server) -> Iterator[None]:
    with owners_environment(tables), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("environment")
def test_clients_read_the_result_of_show_and_describe(tables: Server) -> None:
    import awswrangler
    from pyathena import connect
    from pyathena.pandas.cursor import PandasCursor

    options: Any = {
        "region_name": "us-east-1",
        "work_group": "busco",
        "schema_name": "busco_gold",
        "poll_interval": 0.1,
    }
    assert connect(**options).cursor().execute("SHOW TABLES").fetchall() == [("days",), ("orders",)]
    frame: Any = connect(cursor_class=PandasCursor, **options).cursor().execute("DESCRIBE orders").as_pandas()
    assert frame.to_numpy().tolist() == COLUMNS
    described = awswrangler.athena.describe_table("orders", "busco_gold", workgroup="busco")
    assert described[["Column Name", "Type", "Comment"]].to_numpy().tolist() == COLUMNS


def test_only_the_account_owner_can_change_glue_by_sql(tables: Server) -> None:
    # A statement that MiniStack runs against Glue itself is not affected by the checks of queries.
    athena = tables.client("athena")
    assert run(athena, "DROP TABLE IF EXISTS nothing")[1] == ""
    assert code_of(lambda: tables.client("glue").get_table(DatabaseName="busco_gold", Name="orders")) == "ok"
