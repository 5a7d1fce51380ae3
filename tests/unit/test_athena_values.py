"""Values and types of DuckDB have the text and the name that Athena uses."""

from __future__ import annotations

import math
import struct
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from busco.embedded.athena_values import ColumnType, column_type, text
from busco.lake import types

DOUBLE, FLOAT = duckdb.sqltype("DOUBLE"), duckdb.sqltype("FLOAT")


@pytest.fixture(scope="module")
def connection() -> Any:
    with duckdb.connect(":memory:") as made:
        yield made


def of(connection: Any, sql: str) -> str | None:
    found = connection.execute(f"SELECT {sql}")
    return text(found.fetchall()[0][0], found.description[0][1])


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("0::DOUBLE", "0.0"),
        ("'-0'::DOUBLE", "-0.0"),
        ("1e-3::DOUBLE", "0.001"),
        ("9.99e-4::DOUBLE", "9.99E-4"),
        ("9999999::DOUBLE", "9999999.0"),
        ("1e7::DOUBLE", "1.0E7"),
        ("-1.5e300::DOUBLE", "-1.5E300"),
        ("16777216::FLOAT", "1.6777216E7"),
        ("3.4028235e38::FLOAT", "3.4028235E38"),
        ("1e-45::FLOAT", "1.0E-45"),
        ("'nan'::FLOAT", "NaN"),
        ("row(1, 'a', NULL)", "{field0=1, field1=a, field2=null}"),
        ("MAP {{'x': 1}: ['a']}", "{{x=1}=[a]}"),
        ("MAP {DATE '2024-01-01': NULL}", "{2024-01-01=null}"),
        ("[true, false]", "[true, false]"),
        ("[]::INTEGER[]", "[]"),
        ("TIMESTAMP_S '2024-01-02 03:04:05'", "2024-01-02 03:04:05"),
        ("TIMESTAMP_MS '2024-01-02 03:04:05.6'", "2024-01-02 03:04:05.600"),
        ("TIME '03:04:05'", "03:04:05.000000"),
        ("DATE '0001-01-01'", "0001-01-01"),
        ("NULL", None),
    ],
)
def test_a_value_has_the_text_that_athena_writes(connection: Any, sql: str, expected: str | None) -> None:
    assert of(connection, sql) == expected


def test_a_timestamp_with_time_zone_is_in_utc_in_any_session(connection: Any) -> None:
    for zone in ("America/Sao_Paulo", "Asia/Kolkata", "UTC"):
        connection.execute(f"SET TimeZone = '{zone}'")
        assert of(connection, "TIMESTAMPTZ '2024-01-02 03:04:05+00'") == "2024-01-02 03:04:05.000000 UTC"


@given(st.floats(allow_nan=False))
def test_the_text_of_a_double_is_exactly_that_number(value: float) -> None:
    found = text(value, DOUBLE)
    assert found is not None
    assert (float(found), math.copysign(1, float(found))) == (value, math.copysign(1, value))


@given(st.floats(width=32, allow_nan=False))
def test_the_text_of_a_real_is_exactly_that_number(value: float) -> None:
    found = text(value, FLOAT)
    assert found is not None
    read = float(found)
    assert math.isinf(read) or struct.unpack("f", struct.pack("f", read))[0] == value


@pytest.mark.parametrize("name", sorted(types._PRIMITIVES))
def test_each_type_that_tables_can_have_is_named_as_in_athena(name: str) -> None:
    named = {"string": "varchar", "int": "integer", "binary": "varbinary"}
    exact = {"TINYINT": "tinyint", "SMALLINT": "smallint", "UTINYINT": "smallint"}
    exact["TIMESTAMP WITH TIME ZONE"] = "timestamp with time zone"
    in_glue = types.glue(types.Primitive(name))
    assert column_type(duckdb.sqltype(name)).name == exact.get(name, named.get(in_glue, in_glue))


@pytest.mark.parametrize("kind", [ColumnType("decimal", 38, 10), ColumnType("timestamp with time zone")])
def test_a_column_type_is_read_from_its_text(kind: ColumnType) -> None:
    assert ColumnType.parse(str(kind)) == kind
