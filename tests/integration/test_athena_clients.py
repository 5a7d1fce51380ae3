"""Clients that read a query's result file, instead of fetching its rows from the API, work as they do with Athena."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from unittest import mock

import boto3
import iceberg_helper
import pytest
from own_aws import Server

from busco.embedded import athena_results, keys

ROWS = """
    SELECT 1::BIGINT AS order_id, 'a "quoted", text' AS status, 12.50::DECIMAL(18,2) AS amount, DATE '2018-01-01' AS day
    UNION ALL SELECT 2, E'two\\nlines', NULL, NULL
    UNION ALL SELECT 3, '', -0.01, DATE '2018-01-03'
    ORDER BY order_id
"""
SQL = "SELECT order_id, status, amount, day FROM orders ORDER BY order_id"


@pytest.fixture(scope="module")
def orders(server: Server) -> Iterator[Server]:
    """The table gold.orders, and the environment of a user of the local AWS."""
    pair = keys.owner(server.settings.state)
    bucket = os.environ["BUSCO_LAKE_BUCKET"]
    metadata, columns = iceberg_helper.write_table(server.client("s3"), bucket, "gold/orders", ROWS, 1)
    iceberg_helper.show(server.client("glue"), "busco_gold", "orders", metadata, columns)
    variables = {
        "AWS_ENDPOINT_URL": server.endpoint, "AWS_ACCESS_KEY_ID": pair.key, "AWS_SECRET_ACCESS_KEY": pair.secret,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_S3_ADDRESSING_STYLE": "path",
    }  # fmt: skip
    with mock.patch.dict(os.environ, variables):
        yield server


def test_awswrangler_reads_a_query_into_a_frame(orders: Server) -> None:
    import awswrangler

    frame = awswrangler.athena.read_sql_query(
        SQL, database="busco_gold", workgroup="busco", ctas_approach=False, boto3_session=boto3.Session()
    )
    assert list(frame.columns) == ["order_id", "status", "amount", "day"]
    assert frame["order_id"].tolist() == [1, 2, 3]
    assert frame["status"].tolist()[:2] == ['a "quoted", text', "two\nlines"]
    assert [None if value is None else str(value) for value in frame["amount"]] == ["12.50", None, "-0.01"]
    assert str(frame["day"][0]) == "2018-01-01"


def test_pyathena_s_cursors_read_the_same_rows(orders: Server) -> None:
    from pyathena import connect
    from pyathena.pandas.cursor import PandasCursor

    options = {"region_name": "us-east-1", "work_group": "busco", "schema_name": "busco_gold"}
    rows = connect(**options).cursor().execute(SQL).fetchall()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = connect(cursor_class=PandasCursor, **options).cursor().execute(SQL).as_pandas()
    assert [row[0] for row in rows] == frame["order_id"].tolist() == [1, 2, 3]
    assert [row[1] for row in rows][:2] == frame["status"].tolist()[:2] == ['a "quoted", text', "two\nlines"]
    assert str(rows[0][2]) == "12.50"
    assert rows[1][2] is None


def test_the_result_file_is_where_the_query_says_and_in_athena_s_format(orders: Server) -> None:
    athena, s3 = orders.client("athena"), orders.client("s3")
    started = athena.start_query_execution(
        QueryString=SQL, QueryExecutionContext={"Database": "busco_gold"}, WorkGroup="busco",
        # ignored, because the workgroup enforces its own location
        ResultConfiguration={"OutputLocation": f"s3://{os.environ['BUSCO_LAKE_BUCKET']}/_lake"},
    )["QueryExecutionId"]  # fmt: skip
    execution = athena.get_query_execution(QueryExecutionId=started)["QueryExecution"]
    while execution["Status"]["State"] in ("QUEUED", "RUNNING"):
        execution = athena.get_query_execution(QueryExecutionId=started)["QueryExecution"]
    assert execution["Status"]["State"] == "SUCCEEDED", execution["Status"]
    place = execution["ResultConfiguration"]["OutputLocation"]
    bucket, key = place.removeprefix("s3://").split("/", 1)
    assert (bucket, key) == (os.environ["BUSCO_LOGS_BUCKET"], f"athena/{started}.csv")
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode() == (
        '"order_id","status","amount","day"\n"1","a ""quoted"", text","12.50","2018-01-01"\n"2","two\nlines",,\n'
        '"3","","-0.01","2018-01-03"\n'
    )
    found = s3.list_objects_v2(Bucket=bucket, Prefix=f"athena/{started}")["Contents"]
    assert [one["Key"] for one in found] == [key, f"{key}.metadata"]


@pytest.mark.parametrize(
    ("request_", "group", "place"),
    [
        ({}, {}, ""),
        ({"ResultConfiguration": {"OutputLocation": "s3://b/x"}}, {}, "s3://b/x/"),
        ({"ResultConfiguration": {"OutputLocation": "s3://b"}}, {}, "s3://b/"),
        ({}, {"OutputLocation": "s3://g/y/"}, "s3://g/y/"),
        ({"ResultConfiguration": {"OutputLocation": "s3://b/x/"}}, {"OutputLocation": "s3://g/y/"}, "s3://b/x/"),
    ],
)
def test_the_result_s_location_comes_from_the_request_or_the_workgroup(
    request_: dict[str, object], group: object, place: str
) -> None:
    groups = {"primary": {"Configuration": {"ResultConfiguration": group}}}
    assert athena_results.location(request_, groups) == place
    groups["primary"]["Configuration"]["EnforceWorkGroupConfiguration"] = True
    if group:
        assert athena_results.location(request_, groups) == "s3://g/y/"
