"""Clients that read a query's result file, instead of fetching its rows from the API, work as they do with Athena."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import boto3
import iceberg_helper
import pytest
from botocore.exceptions import ClientError
from own_aws import Server, owners_environment, wait_for

from busco.embedded import athena_results

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
    bucket = os.environ["BUSCO_LAKE_BUCKET"]
    metadata, columns = iceberg_helper.write_table(server.client("s3"), bucket, "gold/orders", ROWS, 1)
    iceberg_helper.show(server.client("glue"), "busco_gold", "orders", metadata, columns)
    with owners_environment(server):
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


WITH_PARAMETERS = "SELECT order_id, '?' AS mark FROM orders WHERE day = ? AND status <> ? -- ?"
PARAMETERS = ["DATE '2018-01-01'", "'it''s ''; select'"]


def test_clients_pass_parameters_of_a_query_as_literals(orders: Server) -> None:
    import awswrangler
    from pyathena import connect

    frame = awswrangler.athena.read_sql_query(
        WITH_PARAMETERS, database="busco_gold", workgroup="busco", ctas_approach=False, params=PARAMETERS,
        paramstyle="qmark", athena_query_wait_polling_delay=0.1,
    )  # fmt: skip
    assert frame.to_numpy().tolist() == [[1, "?"]]
    options: Any = {
        "region_name": "us-east-1",
        "work_group": "busco",
        "schema_name": "busco_gold",
        "poll_interval": 0.1,
    }
    rows = connect(**options).cursor().execute(WITH_PARAMETERS, PARAMETERS, paramstyle="qmark").fetchall()
    assert rows == [(1, "?")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("-1", "-1"), ("1.50", "1.50"), ("1e3", "1000.0"), ("'a ''b'''", "a 'b'"), ("TRUE", "true"), (" null ", None),
     ("timestamp '2018-01-01 10:00:00'", "2018-01-01 10:00:00.000000"), ("DECIMAL '2.5'", "2.500")],
)  # fmt: skip
def test_a_parameter_has_the_value_of_its_literal(orders: Server, value: str, expected: str | None) -> None:
    assert first_value(orders, "SELECT ? AS a WHERE ? = 'x'", [value, "'x'"]) == expected


@pytest.mark.parametrize(
    "value",
    ["paid", "1 OR 1 = 1", "'a' || 'b'", "'a' 'b'", "(SELECT 1)", "current_date", "$$a$$", "E'a'", " ", "'a", "'a'; --",
     "getenv('HOME')", "?"],
)  # fmt: skip
def test_a_parameter_that_is_not_a_literal_is_refused_at_once(orders: Server, value: str) -> None:
    with pytest.raises(ClientError, match=r"InvalidRequestException.*value 2 is not an SQL literal"):
        first_value(orders, "SELECT ? AS a WHERE ? = 1", ["1", value])


@pytest.mark.parametrize(
    ("sql", "given", "message"),
    [
        ("SELECT ? AS a", [], "Incorrect number of parameters: expected 1 but found 0"),
        ("SELECT 1 AS a", ["1"], "Incorrect number of parameters: expected 0 but found 1"),
        ("EXPLAIN SELECT ? AS a", ["1", "2"], "Incorrect number of parameters: expected 1 but found 2"),
        ("SELECT $name AS a", ["1"], "parameters are written as ?"),
        ("SELECT * FROM read_text(?)", ["'/etc/hostname'"], "it reads or lists files"),
        ("SELECT * FROM ?", ["'/etc/hostname.csv'"], "syntax error"),
        ("SELECT * FROM query_table(?)", ["'orders'"], "it runs SQL that cannot be checked beforehand"),
    ],
)
def test_a_query_with_parameters_is_checked_like_any_other(
    orders: Server, sql: str, given: list[str], message: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        first_value(orders, sql, given)


def first_value(server: Server, sql: str, parameters: list[str]) -> str | None:
    """Runs a query with parameters and returns the first value."""
    athena = server.client("athena")
    more: Any = {"ExecutionParameters": parameters} if parameters else {}
    started = athena.start_query_execution(QueryString=sql, WorkGroup="busco", **more)["QueryExecutionId"]

    def status() -> Any:
        return athena.get_query_execution(QueryExecutionId=started)["QueryExecution"]["Status"]

    wait_for(lambda: status()["State"] in ("SUCCEEDED", "FAILED"))
    assert status()["State"] == "SUCCEEDED", status()["StateChangeReason"]
    rows = athena.get_query_results(QueryExecutionId=started)["ResultSet"]["Rows"]
    found: str | None = rows[1]["Data"][0].get("VarCharValue")
    return found


def test_awswrangler_works_without_a_workgroup(orders: Server) -> None:
    import awswrangler

    frame = awswrangler.athena.read_sql_query(
        SQL, database="busco_gold", ctas_approach=False, s3_output=f"s3://{os.environ['BUSCO_LOGS_BUCKET']}/mine/",
        athena_query_wait_polling_delay=0.1,
    )  # fmt: skip
    assert frame["order_id"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "option"),
    [({}, "ctas_approach=False"), ({"ctas_approach": False, "unload_approach": True}, "unload_approach=False")],
)
def test_awswrangler_fails_with_the_option_to_set(orders: Server, given: dict[str, bool], option: str) -> None:
    import awswrangler

    with pytest.raises(awswrangler.exceptions.QueryFailed, match=option):
        awswrangler.athena.read_sql_query(
            SQL, database="busco_gold", workgroup="busco", athena_query_wait_polling_delay=0.1, **given
        )


@pytest.mark.parametrize("place", ["/tmp/results", "http://bucket/results", "s3:/bucket/results", "s3:///results", "x"])
def test_a_location_for_results_outside_of_s3_is_refused_at_once(orders: Server, place: str) -> None:
    athena = orders.client("athena")
    with pytest.raises(athena.exceptions.InvalidRequestException, match="outputLocation is not a valid S3 path"):
        athena.start_query_execution(QueryString="SELECT 1", ResultConfiguration={"OutputLocation": place})


def test_the_result_of_values_has_a_header(orders: Server) -> None:
    assert orders.query("VALUES (1), (2)") == [["1"], ["2"]]


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
