"""A selection is split into words, none of which can be mistaken for a dbt option."""

from __future__ import annotations

import pytest

from busco.errors import BuscoError
from busco.selection import selectors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (None, []),
        (" \t\n", []),
        ("fct_orders+", ["fct_orders+"]),
        ("1+fct,tag:a\t@b\nc*", ["1+fct,tag:a", "@b", "c*"]),
        ("path:models/gold fqn:a-b.c", ["path:models/gold", "fqn:a-b.c"]),
        ("modèle", ["modèle"]),
    ],
)  # fmt: skip
def test_a_selection_is_split_into_its_words(text: str | None, words: list[str]) -> None:
    assert selectors(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "dim_dates --record-timing-info /tmp/x",
        "--record-timing-info=/tmp/x",
        "-x",
        "-",
        "--",
        "a\t--vars {}",
        "a\n--target-path\n/tmp",
        "a\u00a0--target-path",
        "a\u2003-x",
        "a \u2014target-path",
        "a \u2013x",
        "a \u2010x",
        "a \u2212x",
        "a \uff0dx",
        '["dim_dates", "--record-timing-info", "/tmp/x"]',
        "['-x']",
        '"--vars"',
        ["dim_dates", "--record-timing-info", "/tmp/x"],
        {"select": "-x"},
        "a \u200b--x",
        "a \x00--x",
        "a\x1b[31m",
    ],
)
def test_text_that_looks_like_an_option_and_values_that_are_not_text_are_refused(text: object) -> None:
    with pytest.raises(BuscoError, match=r"begins with a dash|invisible characters|must be text"):
        selectors(text)
