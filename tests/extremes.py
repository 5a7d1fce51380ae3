"""Models whose tables have every supported type with its extreme values, and filters over them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from busco.lake import types

# Every type that docs/iceberg.md lists as supported, with the extreme values that all readers can represent:
# ClickHouse's dates have four-digit years, and DuckDB's JSON must be valid JSON.
WIDE = r"""
select * from (values
    (1, true, (-128)::tinyint, (-32768)::smallint, (-2147483648)::integer, (-9223372036854775808)::bigint, 0::utinyint,
     0::usmallint, '-inf'::float, '-inf'::double, (-99999.9999)::decimal(9, 4), (-0.01)::decimal(18, 2),
     '-9999999999999999999999999999.9999999999'::decimal(38, 10), '', ''::blob, date '0001-01-01',
     timestamp '1969-12-31 23:59:59.999999', timestamp_s '1969-12-31 23:59:59', timestamp_ms '1969-12-31 23:59:59.999',
     timestamptz '0001-01-01 00:00:00.000001+00', 'small'::enum('small', 'big'), '{"a": [1, null]}'::json),
    (2, false, 127, 32767, 2147483647, 9223372036854775807, 255, 65535, 'inf', 'inf', 99999.9999, 9999999999999999.99,
     '9999999999999999999999999999.9999999999', 'é ü 漢字 🦆 ''a'' "b" \ ' || chr(10) || chr(0),
     '\x00\xFF\x80a'::blob, '9999-12-31', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59',
     '9999-12-31 23:59:59.999', '2018-01-01 00:00:00.1+03:30', 'big', '[]'),
    (3, true, 0, 0, 0, 0, 1, 1, 'nan', 'nan', 0, 0, 0, 'NULL', 'a'::blob, '1969-12-31', '0001-01-01 00:00:00.000001',
     '0001-01-01 00:00:00', '0001-01-01 00:00:00.001', '1969-12-31 23:59:59.999999+00', 'small', 'null'),
    (4, true, 1, 1, 1, 1, 1, 1, 1.1::float, 0.1, 0.0001, 0.01, 0.0000000001, 'null', 'NULL'::blob, '1970-01-01',
     '1970-01-01', '1970-01-01', '1970-01-01', '1970-01-01 00:00:00+00', 'small', '"é"'),
    (5, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
     null, null, null)
) as t (k, a_bool, a_tiny, a_small, an_int, a_big, a_utiny, a_usmall, a_float, a_double, a_dec9, a_dec18, a_dec38,
    a_text, a_blob, a_date, a_time, a_time_s, a_time_ms, a_zoned, an_enum, a_json)
"""
NESTED = """
select * from (values
    (1, [1, null], ['a', '', null], [[1], [], null], {'a': 1, 'Ü b': [date '1969-12-31', null]}, [{'x': 1.50}],
     map {'k': 1, '': null}, map {1: [{'v': timestamp '1969-12-31 23:59:59.999999'}]}),
    (2, [], [], [], {'a': null, 'Ü b': []}, [], map {}, map {}),
    (3, null, null, null, null, null, null, null)
) as t (k, a_list, texts, lists, a_struct, structs, a_map, maps)
"""
ODD = ["a/b=c %x", None, "", "é ü", "a+b", "NULL", "%2F", ".", "..", "a.b", " a", "a ", "A", "a", "a\nb", "a'b", 'a"b']
ODD += ["a\\b", "a#?&:;b", "🦆", "é" * 100]
TEXTS = ", ".join(f"({i}, {'null' if text is None else types.literal(text)})" for i, text in enumerate(ODD))
# Values that grow with the partition, so bounds exclude most files. Some values are NULL; some files have only NULLs.
BOUNDED = """
with r as (select range as i, hash(range) % 7 = 0 or range // 100 = 5 as gone from range(1200))
select
    i as id,
    case when i // 100 < 11 then 'p' || i // 100 end as part,
    case when not gone then (i - 600)::integer end as n,
    case when not gone then (i - 600) * 15372286728091293 end as big,
    case when not gone then ((i - 600) * 123456789.0123456789)::decimal(38, 10) end as amount,
    case when not gone then (i - 600) / 7 end as share,
    case when not gone then ((i - 600) / 7)::float as small_share,
    case when not gone then case when i % 50 = 0 then 'nan'::double else i / 3 end end as wild,
    case when not gone then date '1969-01-01' + i::integer end as day,
    case when not gone then timestamp '1969-06-01' + to_microseconds((i * 86399123457)::bigint) end as moment,
    case when not gone
        then timestamptz '1969-06-01 00:00:00+00' + to_microseconds((i * 43199123457)::bigint) end as zoned,
    case when not gone then lpad(i::varchar, 5, 'é') || ' ü' end as word,
    case when not gone then repeat(chr((96 + i // 50)::integer), 300) || i end as long_word,
    case when not gone then repeat('x', 255) || chr((233 + i // 50)::integer) || repeat('🦆', 100) || i end as cut_word,
    case when not gone then chr(1114111) || repeat(chr(1114111), 80) || i end as last_word,
    case when not gone then i >= 300 end as flag
from r
""".replace("::float as small_share", "::float end as small_share")
MODELS: dict[str, tuple[tuple[str, ...], str]] = {
    "wide": ((), WIDE),
    "nested": ((), NESTED),
    "no_rows": ((), f"select * from ({NESTED}) where false"),
    "no_rows_by_day": (("day",), "select 1 as k, date '2018-01-01' as day where false"),
    "by_text": (("text",), f"select * from (values {TEXTS}) as t (k, text)"),
    "by_day": (
        ("day",),
        "select i as k, case when i < 8 then date '1969-12-28' + i::integer end as day, 'x' as text"
        " from range(18) as r (i)",
    ),
    "by_two": (
        ("n", "text"),
        "select n, text, n + 1 as m"
        " from (values ((-2147483648)::integer), (0), (null)) as a (n), (values ('b/c'), ('')) as b (text)",
    ),
    "many": (
        ("n",),
        "select (i % 60)::integer as n, i as k, repeat('x', (i % 7)::integer) as text from range(240) as r (i)",
    ),
    "bounded": (("part",), BOUNDED),
    # The last code points before and after the surrogates, where a bound is cut, or would be rounded up
    "code_points": (
        ("part",),
        "select part, text from (values ('d7ff', repeat(chr(55295), 300)), ('10ffff', repeat(chr(1114111), 80)),"
        " ('both', chr(1114111) || chr(55295)), ('accent', repeat('x', 15) || 'é' || repeat('x', 300)),"
        " ('e000', repeat('x', 255) || chr(57344))) as t (part, text)",
    ),
}

Dialect = Literal["duckdb", "clickhouse", "trino"]
OPERATORS = ("=", "<", "<=", ">", ">=", "<>")


@dataclass(frozen=True)
class Query:
    """A filter that compares a column with a value; `= None` is IS NULL."""

    column: str
    operator: str
    value: Any

    def sql(self, dialect: Dialect = "duckdb") -> str:
        if self.value is None:
            return f"{self.column} is {'not ' if self.operator == '<>' else ''}null"
        return f"{self.column} {self.operator} {self._literal(dialect)}"

    def _literal(self, dialect: Dialect) -> str:
        value = self.value
        if isinstance(value, datetime):
            text = value.replace(tzinfo=None).isoformat(" ", "microseconds")
            if dialect == "clickhouse":
                return f"toDateTime64('{text}', 6, 'UTC')"
            if not value.tzinfo:
                return f"timestamp '{text}'"
            return f"timestamptz '{text}+00'" if dialect == "duckdb" else f"timestamp '{text} UTC'"
        if isinstance(value, date):
            return f"toDate32('{value}')" if dialect == "clickhouse" else f"date '{value}'"
        if isinstance(value, Decimal):
            casts = {"clickhouse": f"toDecimal128('{value}', 10)", "trino": f"decimal '{value:f}'"}
            return casts.get(dialect, f"'{value}'::decimal(38, 10)")
        if isinstance(value, str):
            return types.literal(value.replace("\\", "\\\\") if dialect == "clickhouse" else value)
        if isinstance(value, float):
            casts = {"clickhouse": f"toFloat64({value!r})", "trino": f"double '{value!r}'"}
            return casts.get(dialect, f"{value!r}::double")
        return str(value).lower()


def queries_of(table: Any) -> list[Query]:
    """Returns equality and range queries with values from an Arrow table with the rows of `bounded`."""
    rng = random.Random(7)
    made = []
    for name in table.column_names:
        values = [v for v in table[name].to_pylist() if v is not None and not (isinstance(v, float) and math.isnan(v))]
        # DuckDB sorts NaN above all numbers, unlike the other readers; -0.0 is a separate matter
        operators = ("=",) if name == "wild" else OPERATORS
        if name in ("flag", "part"):
            operators = ("=", "<>")
        made += [Query(name, "=", rng.choice(values)) for _ in range(4)]
        made += [
            Query(name, rng.choice(operators), rng.choice([values[0], values[-1], rng.choice(values)]))
            for _ in range(6)
        ]
        made += [Query(name, "=", None), Query(name, "<>", None)]
    return list(dict.fromkeys(made))
