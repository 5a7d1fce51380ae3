"""Ingest parses text as exactly the value that it states, or not at all (`busco.ingest.exact`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from busco.ingest import exact
from busco.lake import types
from tests.exact_values import TYPES, random_text, same

# the assertion shows the failing text; shrinking the random numbers behind it takes long and adds nothing
PHASES = (Phase.explicit, Phase.generate)
KINDS = {name: types.parse(name) for name in TYPES}


@pytest.fixture(scope="module")
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute("set threads = 1")
        yield connection


def read(db: duckdb.DuckDBPyConnection, kind: types.DataType, texts: Sequence[str]) -> list[Any]:
    """Returns each string's value, None if it does not fit. Checks that the three SQL expressions agree."""
    value, fits, cast = (of(kind, "text") for of in (exact.value_sql, exact.fits_sql, exact.cast_sql))
    found = db.execute(
        f"select {value}, {fits}, case when {fits} then {cast} end from (select unnest($1) as text)", [list(texts)]
    ).fetchall()
    assert all((one is not None) == fits for one, fits, _ in found)
    assert all(one is None or same(one, cast) for one, _, cast in found)
    return [one for one, _, _ in found]


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(random=st.randoms(use_true_random=True))
def test_text_is_parsed_exactly_or_not_at_all_and_canonical_text_is_parsed(
    db: duckdb.DuckDBPyConnection, name: str, random: Random
) -> None:
    texts = [random_text(KINDS[name], random) for _ in range(300)]
    for one, found in zip(texts, read(db, KINDS[name], [one.text for one in texts]), strict=True):
        if found is None:
            assert not one.canonical, f"{one} was not read"
        else:
            assert same(found, one.value), f"{one} was read as {found!r}"


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=1, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(random=st.randoms(use_true_random=True))
def test_no_text_raises_an_error_that_would_reject_the_whole_file(
    db: duckdb.DuckDBPyConnection, name: str, random: Random
) -> None:
    texts = [random_text(KINDS[name], random).text for _ in range(300)]
    for _ in range(3):
        texts = [damaged(text, random) for text in texts]
    assert len(read(db, KINDS[name], texts)) == len(texts)


def damaged(text: str, random: Random) -> str:
    """Returns the text with a character deleted or replaced, or a part of it duplicated."""
    at = random.randrange(len(text) + 1)
    return text[:at] + random.choice(["", text[at : at + 3] * 2, *"\"'\\[]{}(),:= x0"]) + text[at + 1 :]


def test_values_of_a_deeply_nested_type_are_parsed_without_delay(db: duckdb.DuckDBPyConnection) -> None:
    kind: types.DataType = types.parse("MAP(VARCHAR, STRUCT(a INTEGER)[])")
    text, value = "{k=[{'a': 1}]}", {"k": [{"a": 1}]}
    for _ in range(4):
        kind, text, value = types.ListOf(types.Struct((("s", kind),))), f"[{{'s': {text}}}]", [{"s": value}]  # type: ignore[assignment]
    assert read(db, kind, [text, text.replace("1", "1.5")]) == [value, None]


def test_a_list_of_json_is_a_json_array_whose_elements_keep_their_texts(db: duckdb.DuckDBPyConnection) -> None:
    kind = types.parse("JSON[]")
    arrays = [
        ['"1"', '"007e1"', '"2.50"', '"true"', '"null"', '"NULL"', '""'],
        ["1.50", "0.1234567890123456789", "123456789012345678901234567890", "-0.0", "1e400"],
        ["null", None, '{"k": ["1", null, {"a":1}]}', "[]", "{}", '["null"]', "true"],
        ['"it\'s, [b] {c} (d)"', r'"say \"so\" \\ \n \u00e9"', '" a "', '"日本 \u00a0"', '"NaN"', '"[1,]"'],
        [],
    ]
    texts = [
        "[" + separator.join(one or "NULL" for one in array) + "]" for array in arrays for separator in (",", " , ")
    ]
    assert read(db, kind, texts) == [array for array in arrays for _ in range(2)]
    # also as DuckDB prints it
    printed = db.execute("select cast(cast($1 as JSON[]) as VARCHAR)", [arrays[2]]).fetchall()[0][0]
    assert read(db, kind, [printed]) == [arrays[2]]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "['1']",
            "['\"1\"']",
            '["1" "2"]',
            '["1"',
            '"1"',
            "1",
            "x",
            "",
            '{"a": 1}',
            "[x]",
            '["x]',
            "[NaN]",
            '[{"a": inf}]',
        ),
        *("[1,]", '["a",]', "[,1]", "[1,,2]", "[[1,]]", '[{"k": "x" , }]', r"[\"1\"]", '[{"k": NULL}]', '["\ue007"]'),
    ],
)
def test_text_that_is_not_a_json_array_is_not_parsed_as_a_list_of_json(
    db: duckdb.DuckDBPyConnection, text: str
) -> None:
    assert read(db, types.parse("JSON[]"), [text]) == [None]


def test_lists_of_json_are_parsed_within_other_types(db: duckdb.DuckDBPyConnection) -> None:
    for name, text, value in (
        ("JSON[][]", '[["1", null], ["a, b", {"c": "]"}], NULL]', [['"1"', "null"], ['"a, b"', '{"c": "]"}'], None]),
        ("STRUCT(a JSON[], b VARCHAR)", "{'a': [\"1\"], 'b': \"1\"}", {"a": ['"1"'], "b": "1"}),
        ("MAP(VARCHAR, JSON[])", '{k=["1", NULL]}', {"k": ['"1"', None]}),
    ):
        assert read(db, types.parse(name), [text]) == [value]


def test_json_with_a_trailing_comma_is_not_parsed(db: duckdb.DuckDBPyConnection) -> None:
    bad = ["[1,]", '{"k": 1,}', "[1 , ]", '["a",]', '{"k": [1,\n]}', '{"k": "v",\t}', "[[1],]", "[{},]"]
    good = ['["a", "b"]', '[ "a" , "b" ]', '{"a": "b" , "c": "d"}', '["x,]", "x,}", ",]"]', r'["\",]"]', "[[1], [ ]]"]
    for name in ("JSON", "STRUCT(j JSON)", "MAP(VARCHAR, JSON)"):
        kind = types.parse(name)
        quoted = [one if name == "JSON" else "'" + one.replace("\\", "\\\\") + "'" for one in bad + good]
        texts = [
            {"JSON": one, "STRUCT(j JSON)": f"{{'j': {one}}}", "MAP(VARCHAR, JSON)": f"{{j={one}}}"}[name]
            for one in quoted
        ]
        found = [one if name == "JSON" or one is None else one["j"] for one in read(db, kind, texts)]
        assert found == [None] * len(bad) + good


def test_the_sql_for_a_struct_grows_linearly_with_its_number_of_fields(db: duckdb.DuckDBPyConnection) -> None:
    sizes = []
    for fields in (20, 80):
        kind = types.Struct(tuple((f"f{i}", types.parse("VARCHAR")) for i in range(fields)))
        sizes.append(len(exact.value_sql(kind, "text")))
        entries = [f"'f{i}': x" for i in range(fields)]
        whole = dict.fromkeys((name for name, _ in kind.fields), "x")
        texts = [f"{{{', '.join(given)}}}" for given in (entries, entries[1:], [*entries, entries[0]])]
        assert read(db, kind, texts) == [whole, whole | {"f0": None}, None]
    assert sizes[1] < 4 * sizes[0]


def test_a_time_without_a_zone_is_utc_whatever_zone_the_previous_row_has(db: duckdb.DuckDBPyConnection) -> None:
    texts = ["2018-01-01 10:00:00 America/Sao_Paulo", "2018-01-01 10:00:00", "2018-01-01 10:00:00Z"]
    found = read(db, types.parse("TIMESTAMPTZ"), texts)
    assert [moment.strftime("%H:%M %Z") for moment in found] == ["12:00 UTC", "10:00 UTC", "10:00 UTC"]


def test_any_number_of_leading_and_trailing_zeros_is_parsed(db: duckdb.DuckDBPyConnection) -> None:
    zeros = "0" * 500
    texts = [f"{zeros}7", f"7.{zeros}", f"7.{zeros}1", f"-{zeros}.{zeros}"]
    for name in ("INTEGER", "BIGINT", "DECIMAL(38,0)", "DECIMAL(38,10)"):
        found = read(db, types.parse(name), texts)
        assert found == [7, 7, None, 0]
