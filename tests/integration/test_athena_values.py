"""Each type that a table can have arrives with its value in the clients that people use with Athena."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import boto3
import pytest
from own_aws import Server, owners_environment

SAME: Any = object()


@dataclass(frozen=True)
class Case:
    """A value: its SQL, its type and text in Athena, and what each client returns.

    `frames` is what clients with pandas return, and `awswrangler` what awswrangler returns, if they return something
    else than PyAthena's ordinary cursor: they leave nested values as text, and awswrangler also leaves binary values in
    the hexadecimal format.
    """

    sql: str
    kind: str
    text: str
    value: Any
    frames: Any = SAME
    awswrangler: Any = SAME


MOMENT = datetime(2024, 1, 2, 3, 4, 5)
CASES = {
    "boolean": Case("true", "boolean", "true", True),
    "tinyint": Case("(-8)::TINYINT", "tinyint", "-8", -8),
    "smallint": Case("16::SMALLINT", "smallint", "16", 16),
    "integer": Case("32::INTEGER", "integer", "32", 32),
    "bigint": Case("9223372036854775807", "bigint", "9223372036854775807", 2**63 - 1),
    "real": Case("0.1::FLOAT", "float", "0.1", 0.1, awswrangler=pytest.approx(0.1)),
    "double": Case("0.1::DOUBLE", "double", "0.1", 0.1),
    "small_double": Case("1e-7::DOUBLE", "double", "1.0E-7", 1e-7),
    "large_double": Case("12345678::DOUBLE", "double", "1.2345678E7", 12345678.0),
    "nan": Case("'nan'::DOUBLE", "double", "NaN", pytest.approx(float("nan"), nan_ok=True)),
    "infinity": Case("'-inf'::DOUBLE", "double", "-Infinity", float("-inf")),
    "decimal": Case("12.50::DECIMAL(12,2)", "decimal", "12.50", Decimal("12.50")),
    "decimal_zero": Case("0::DECIMAL(38,10)", "decimal", "0.0000000000", Decimal("0E-10")),
    "string": Case("'Ana''s \"x\", ü\n'", "varchar", "Ana's \"x\", ü\n", "Ana's \"x\", ü\n"),
    "blob": Case(r"'a\x00b'::BLOB", "varbinary", "61 00 62", b"a\x00b", awswrangler=b"61 00 62"),
    "date": Case("DATE '2018-01-01'", "date", "2018-01-01", date(2018, 1, 1)),
    "timestamp": Case("TIMESTAMP '2024-01-02 03:04:05'", "timestamp", "2024-01-02 03:04:05.000000", MOMENT),
    "microseconds": Case(
        "TIMESTAMP '2024-01-02 03:04:05.25'", "timestamp", "2024-01-02 03:04:05.250000",
        MOMENT.replace(microsecond=250000),
    ),
    "timestamptz": Case(
        "TIMESTAMPTZ '2024-01-02 05:04:05+02'", "timestamp with time zone", "2024-01-02 03:04:05.000000 UTC",
        MOMENT.replace(tzinfo=UTC),
    ),
    "list": Case("['x', 'y z', NULL]", "array", "[x, y z, null]", ["x", "y z", None], "[x, y z, null]"),
    "numbers": Case("[1e-7::DOUBLE, 2]", "array", "[1.0E-7, 2.0]", [1e-7, 2.0], "[1.0E-7, 2.0]"),
    "struct": Case("{'k': 1, 'v': 'w'}", "row", "{k=1, v=w}", {"k": "1", "v": "w"}, "{k=1, v=w}"),
    "map": Case("MAP {'a': true}", "map", "{a=true}", {"a": "true"}, "{a=true}"),
    "nested": Case(
        "[{'at': TIMESTAMP '2024-01-02 03:04:05', 'b': 'ab'::BLOB}]", "array",
        "[{at=2024-01-02 03:04:05.000000, b=61 62}]", [{"at": "2024-01-02 03:04:05.000000", "b": "61 62"}],
        "[{at=2024-01-02 03:04:05.000000, b=61 62}]",
    ),
}  # fmt: skip
SQL = (
    f"SELECT 1 AS n, {', '.join(f'{case.sql} AS {name}_' for name, case in CASES.items())} "
    f"UNION ALL SELECT 2, {', '.join('NULL' for _ in CASES)} ORDER BY n"
)


@dataclass(frozen=True)
class Results:
    """What the clients return for the same query: PyAthena's rows, and the frames of the two others."""

    types: dict[str, tuple[str, int, int]]
    texts: list[dict[str, str | None]]
    rows: Any
    frame: Any
    awswrangler: Any


@pytest.fixture(scope="module")
def results(server: Server) -> Iterator[Results]:
    import awswrangler
    from pyathena import connect
    from pyathena.cursor import DictCursor
    from pyathena.pandas.cursor import PandasCursor

    options: Any = {
        "region_name": "us-east-1",
        "work_group": "busco",
        "schema_name": "busco_gold",
        "poll_interval": 0.1,
    }
    with owners_environment(server), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cursor = connect(cursor_class=DictCursor, **options).cursor().execute(SQL)
        rows = cursor.fetchall()
        found = server.client("athena").get_query_results(QueryExecutionId=cursor.query_id)["ResultSet"]
        columns = found["ResultSetMetadata"]["ColumnInfo"]
        names = [one["Name"] for one in columns]
        texts = [[cell.get("VarCharValue") for cell in row["Data"]] for row in found["Rows"][1:]]
        yield Results(
            {one["Name"]: (one["Type"], one["Precision"], one["Scale"]) for one in columns},
            [dict(zip(names, row, strict=True)) for row in texts],
            rows,
            # without na_values, this cursor can't read the text that Athena writes for NaN
            connect(cursor_class=PandasCursor, **options).cursor().execute(SQL, na_values=["", "NaN"]).as_pandas(),
            awswrangler.athena.read_sql_query(
                SQL, database="busco_gold", workgroup="busco", ctas_approach=False, boto3_session=boto3.Session(),
                athena_query_wait_polling_delay=0.1,
            ),
        )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_value_has_athena_s_type_and_text(results: Results, name: str) -> None:
    case = CASES[name]
    assert (results.types[f"{name}_"][0], results.texts[0][f"{name}_"]) == (case.kind, case.text)
    assert results.texts[1][f"{name}_"] is None


def test_a_decimal_column_has_its_precision_and_scale(results: Results) -> None:
    assert results.types["decimal_"] == ("decimal", 12, 2)
    assert results.types["decimal_zero_"] == ("decimal", 38, 10)


@pytest.mark.parametrize("name", CASES)
def test_pyathena_returns_the_value(results: Results, name: str) -> None:
    assert [row[f"{name}_"] for row in results.rows] == [CASES[name].value, None]


@pytest.mark.parametrize("name", CASES)
def test_pyathena_s_pandas_cursor_returns_the_value(results: Results, name: str) -> None:
    case = CASES[name]
    expected = case.value if case.frames is SAME else case.frames
    assert_column(results.frame[f"{name}_"], expected)


@pytest.mark.parametrize("name", CASES)
def test_awswrangler_returns_the_value(results: Results, name: str) -> None:
    case = CASES[name]
    expected = next(one for one in (case.awswrangler, case.frames, case.value) if one is not SAME)
    assert_column(results.awswrangler[f"{name}_"], expected)


def assert_column(column: Any, expected: Any) -> None:
    found = column.tolist()
    if isinstance(expected, date) and not isinstance(expected, datetime) and isinstance(found[0], datetime):
        # pandas has no type for dates
        expected = datetime.combine(expected, datetime.min.time())
    assert found[0] == expected
    assert column.isna().tolist() == [found[0] != found[0], True]
