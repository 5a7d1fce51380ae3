"""Builds the SQL that parses a string as the exact value of a type, or as NULL.

DuckDB's casts change values to make them fit: `'1.5'` becomes the integer 2, `'0.7e-45'` the DECIMAL(4,1) 0.1, and
`'2018-01-01 10:00:00.7'` the TIMESTAMP_S `10:00:01`; within a list, an element that does not fit becomes NULL. So each
type has a pattern for the strings whose exact value it can hold, and DuckDB casts only those. A nested value is first
split into strings with DuckDB's own grammar; each string is then parsed as the type of the element, field, key or value
that it represents.

docs/producing.md lists the accepted strings for each type.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence

from busco.ingest.scalars import (
    FLOATS,
    FRACTIONS,
    INTEGERS,
    JSON_STRING,
    WIDE,
    matches,
    moment,
    strict,
    stripped,
    time_pattern,
    trimmed,
    where,
)
from busco.lake import types
from busco.lake.types import literal, quoted

_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?"
_RADIX = r"0[xX][0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|0[bB][01]+(?:_[01]+)*"
# larger exponents are rejected: no realistic number with 38 digits needs one
_FURTHEST = 1000

# the word NULL, and its replacement where a NULL must count as a value
_NULL, _NOT_NULL = "(?i)(nul)l", "\\1\ue000"

_WIDE_DAY = r"\d{4}(?:[-/\\ ]\d{1,2}){2}"
_EPOCH = r"(?i:epoch)|"
_NO_TIME = r"(?:[ T]00:00(?::00(?:\.0*)?)?)?"
_UTC = r"(?:Z| UTC| utc|[+-]00(?::?00(?::00)?)?)?"
_NAMED = literal(r" ([A-Za-z][A-Za-z0-9_/+-]*)$")
_ZONE = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d(?::[0-5]\d)?)?| [A-Za-z][A-Za-z0-9_/+-]*)?"

# Quoted strings that make up a whole element, name, key or value. DuckDB accepts other strings too, but changes them:
# it drops the quotes in `"a" "b"` and `'it''s'`, and the backslash in `"\n"`.
_STRING = r"""(?:"(?:[^"\\]|\\[^0-9A-Za-z])*"|'(?:[^'\\]|\\[^0-9A-Za-z])*')"""
_OTHER = r"""(?:\\.|[^"'\\])*"""
_STRINGS = rf"\\?[\[{{(,:=]\s*{_STRING}\s*(?:[,:=]\s*{_STRING}\s*)*[\]}}),:=]"
_PARTS = r"""(?s)"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?:[^"'\\]|\\.)+"""
_BRACKET_IN_QUOTES = r"""["'][^"']*[\[\]{}()][^"']*["']"""
# The characters that have a special meaning in DuckDB's grammar, and the placeholders that replace them while DuckDB
# reads a string in which they are meant literally. The letter `l` is included because of the word null.
_SIGNS = "[]{}()\"'\\,l"
_OTHERS = "".join(chr(0xE001 + at) for at in range(len(_SIGNS)))
_BRACKETS = _SIGNS[:6]
_LITERAL = rf"(?s)(?:{_OTHER}{_STRINGS})*{_OTHER}"
# Outside of its strings, JSON has no single quotes or backslashes, which DuckDB's grammar would interpret.
_JSON_PARTS = rf"(?s){JSON_STRING}|[^\"]+"
_JSON_LITERAL = rf"(?s)(?:[^\"'\\]|{JSON_STRING})*"


def value_sql(kind: types.DataType, text: str) -> str:
    """Returns an SQL expression for the exact value of a string, or NULL if the type can't hold it.

    Args:
        text: a column of type VARCHAR.
    """
    return _Reader().value(kind, text, inner=False)


def fits_sql(kind: types.DataType, text: str) -> str:
    """Returns SQL that tests whether a non-NULL string fits; where possible, the test is faster than `value_sql`."""
    if isinstance(kind, types.Primitive) and kind.name not in WIDE | {"VARCHAR"}:
        return strict(kind, stripped(kind, text)).fits()
    return f"{value_sql(kind, text)} is not null"


def cast_sql(kind: types.DataType, text: str) -> str:
    """Returns SQL for the value of a string that is known to fit; where possible, it is faster than `value_sql`."""
    if not isinstance(kind, types.Primitive) or kind.name in WIDE:
        return value_sql(kind, text)
    return text if kind.name == "VARCHAR" else f"cast({stripped(kind, text)} as {kind})"


class _Reader:
    """Builds a single SQL expression in which each variable has a unique name."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def value(self, kind: types.DataType, text: str, inner: bool) -> str:
        """Returns SQL for the value of a string.

        Args:
            inner: whether the string is part of a nested value; if so, DuckDB's wider grammar applies to it.
        """
        if isinstance(kind, types.ListOf):
            return self._list(kind, text)
        if isinstance(kind, types.Struct):
            return self._struct(kind, text)
        if isinstance(kind, types.MapOf):
            return self._map(kind, text)
        if kind.name == "VARCHAR":
            return text
        if not (inner or kind.name in WIDE):
            return strict(kind, stripped(kind, text)).value()
        inside = text if kind.name == "BLOB" else trimmed(text)
        return self._let(inside, lambda t: self._wide(kind, t))

    def _let(self, expression: str, body: Callable[[str], str]) -> str:
        """Returns SQL that computes an expression once, for a body that uses it several times."""
        name = self._name()
        return f"list_transform([{expression}], lambda {name}: {body(name)})[1]"

    def _each(self, values: str, body: Callable[[str], str]) -> str:
        name = self._name()
        return f"list_transform({values}, lambda {name}: {body(name)})"

    def _name(self) -> str:
        return f"_text{next(self._numbers)}"

    # -- nested types: a value fits if each part whose string is not NULL has a value ---------------------------------
    #
    # Each enclosing lambda doubles the time that DuckDB takes to bind an expression. So only one of the lambdas for a
    # nested value encloses the lambdas for its parts: the one that turns each part into a pair (`_pair`), which
    # contains the part's value and whether its string was given (not NULL).

    def _list(self, kind: types.ListOf, text: str) -> str:
        of_json = isinstance(kind.element, types.Primitive) and kind.element.name == "JSON"
        raw = f"try_cast({self._hidden_json(text) if of_json else self._hidden(text)} as VARCHAR[])"
        pairs = self._each(raw, lambda element: self._pair(kind.element, element))
        return self._let(pairs, lambda read: where(self._all_read(read, "value"), self._every(read, "value")))

    def _struct(self, kind: types.Struct, text: str) -> str:
        names = [_hidden_name(name) for name, _ in kind.fields]
        pairs = list(zip(names, kind.fields, strict=True))

        def fields(raw: str) -> str:
            read = ", ".join(f"{literal(name)}: {self._pair(inner, _field(raw, hid))}" for hid, (name, inner) in pairs)
            return where(f"{raw} is not null", f"{{{read}}}")

        def whole(read: str) -> str:
            parts = [(literal(name), _field(read, name)) for name, _ in kind.fields]
            fits = " and ".join(f"{_field(part, 'given')} = ({_field(part, 'value')} is not null)" for _, part in parts)
            return where(fits, "{" + ", ".join(f"{name}: {_field(part, 'value')}" for name, part in parts) + "}")

        raw = self._let(
            self._hidden(text),
            lambda hidden: where(self._each_field_once(names, hidden), f"try_cast({hidden} as {_texts(names)})"),
        )
        return self._let(self._let(raw, fields), whole)

    def _each_field_once(self, names: Sequence[str], text: str) -> str:
        """Returns SQL that tests whether a struct's string has each field at most once.

        DuckDB would keep only the last value of a repeated field. The string must have as many entries as there are
        fields with a value. The word NULL is replaced first, in field names too, so that a field whose value is NULL
        counts as a field with a value.
        """
        changed = f"regexp_replace({text}, {literal(_NULL)}, {literal(_NOT_NULL)}, 'g')"
        given = f"try_cast({changed} as {_texts(map(_not_null, names))})"

        def present(given: str) -> str:
            return " + ".join(f"cast({_field(given, _not_null(name))} is not null as integer)" for name in names)

        # the form `(1, 2)` has no field names
        return f"(starts_with({trimmed(text)}, '(') or {_entries(text)} = {self._let(given, present)})"

    def _map(self, kind: types.MapOf, text: str) -> str:
        def entry(raw: str) -> str:
            key, value = self._pair(kind.key, f"{raw}.key"), self._pair(kind.value, f"{raw}.value")
            return f"{{'key': {key}, 'value': {value}}}"

        def whole(read: str) -> str:
            keys, values = self._every(self._every(read, "key"), "value"), self._every(read, "value")
            fits = [
                f"list_count({keys}) = len({read})",
                # different strings can be the same key: 1 and 01
                f"list_unique({keys}) = len({read})",
                self._all_read(values, "value"),
            ]
            return where(" and ".join(fits), f"map({keys}, {self._every(values, 'value')})")

        # `try` is needed because even TRY_CAST raises an error for a duplicate key. The entries are counted because
        # DuckDB reads a key `,b` from `{a=1,,b=2}`.
        raw = self._let(
            self._hidden(text),
            lambda hidden: f"{{'map': try(cast({hidden} as MAP(VARCHAR, VARCHAR))), 'entries': {_entries(hidden)}}}",
        )
        entries = self._let(
            raw, lambda raw: where(f"len(map_keys({raw}.map)) = {raw}.entries", f"map_entries({raw}.map)")
        )
        return self._let(self._each(entries, entry), whole)

    def _pair(self, kind: types.DataType, part: str) -> str:
        return f"{{'given': {part} is not null, 'value': {self.value(kind, _shown(part), inner=True)}}}"

    def _every(self, pairs: str, name: str) -> str:
        return self._each(pairs, lambda pair: f"{pair}.{name}")

    def _all_read(self, pairs: str, name: str) -> str:
        lost = self._name()
        return f"len(list_filter({pairs}, lambda {lost}: {lost}.given and {lost}.{name} is null)) = 0"

    def _hidden(self, text: str) -> str:
        """Returns a nested value's string with placeholders for the brackets in its quoted strings.

        Without placeholders, DuckDB drops quotes: it reads the only element of `[['}', ']']]` as `['}', ']]`. The
        result is NULL if the quotes do not enclose whole parts, or if the string already contains a placeholder.
        """

        def without_brackets(part: str) -> str:
            hidden = f"translate({part}, {literal(_BRACKETS)}, {literal(_OTHERS[:6])})"
            return f"case when left({part}, 1) in (chr(34), chr(39)) then {hidden} else {part} end"

        def hidden(text: str) -> str:
            parts = self._each(f"regexp_extract_all({text}, {literal(_PARTS)})", without_brackets)
            return (
                f"case when not {matches(text, _LITERAL)} or regexp_matches({text}, '[{_OTHERS}]') then null "
                f"when regexp_matches({text}, {literal(_BRACKET_IN_QUOTES)}) then array_to_string({parts}, '') "
                f"else {text} end"
            )

        return self._let(text, hidden)

    def _hidden_json(self, text: str) -> str:
        """Returns a JSON array's string with placeholders for the characters that DuckDB would interpret.

        Without placeholders, DuckDB would drop the quotes of JSON strings, which would turn the string "1" into the
        number 1, and would read the JSON null as NULL. The result is NULL if the string cannot be JSON or already
        contains a placeholder.
        """

        def hidden_part(part: str) -> str:
            null = f"replace({part}, 'null', {literal('nul' + _OTHERS[-1])})"
            hidden = f"translate({part}, {literal(_SIGNS)}, {literal(_OTHERS)})"
            return f"case when starts_with({part}, chr(34)) then {hidden} else {null} end"

        def hidden(text: str) -> str:
            parts = self._each(f"regexp_extract_all({text}, {literal(_JSON_PARTS)})", hidden_part)
            is_json = f"{matches(text, _JSON_LITERAL)} and not regexp_matches({text}, '[{_OTHERS}]')"
            return where(is_json, f"array_to_string({parts}, '')")

        return self._let(text, hidden)

    # -- scalars, in the grammar of DuckDB's casts -------------------------------------------------------------------

    def _wide(self, kind: types.Primitive, text: str) -> str:
        narrow = strict(kind, text)
        if kind.name in FLOATS:
            plain = where(matches(text, _NUMBER), f"replace({text}, '_', '')")
            return self._let(plain, lambda number: strict(kind, number).value())
        if kind.name in INTEGERS or kind.name == "DECIMAL":
            plain = where(matches(text, _NUMBER), self._plain(text))
            other = self._let(plain, lambda number: strict(kind, number).value())
            if kind.name != "DECIMAL":
                other = f"case when {matches(text, _RADIX)} then {narrow.cast} else {other} end"
            return f"case when {narrow.texts[0]} then {narrow.cast} else {other} end"
        if kind.name == "DATE":
            return moment(kind, text, _EPOCH + _WIDE_DAY + _NO_TIME).value()
        if kind.name in FRACTIONS:
            zoned = kind.name == "TIMESTAMP WITH TIME ZONE"
            time = time_pattern(kind, r"(?:T|\s+)", r"\d{1,2}", _ZONE if zoned else _UTC)
            read = moment(kind, text, _EPOCH + _WIDE_DAY + time).value()
            if zoned:
                # separate branches, because DuckDB reads a time without a zone as if it had the previous time's zone
                named = f"regexp_matches({text}, {_NAMED})"
                return f"case when {named} then {self._in_zone(text, read)} else {read} end"
            return read
        return narrow.value()

    def _plain(self, text: str) -> str:
        """Returns SQL that rewrites a number so that it has no underscores or exponent: `1_5e-1` becomes `1.5`.

        This is needed because DuckDB's own cast rounds 0.7e-45 up to 0.1.
        """

        def moved(parts: str) -> str:
            digits = f"{parts}.whole || {parts}.part"
            point = f"(len({parts}.whole) + {parts}.exponent)"
            return (
                f"{parts}.sign || case when {point} <= 0 then '0.' || repeat('0', -{point}) || {digits} "
                f"when {point} >= len({digits}) then {digits} || repeat('0', {point} - len({digits})) "
                f"else left({digits}, {point}) || '.' || substr({digits}, {point} + 1) end"
            )

        number = f"replace({text}, '_', '')"
        pattern = r"^([+-]?)(\d*)\.?(\d*)[eE](.*)$"
        found = [f"regexp_extract({number}, {literal(pattern)}, {group})" for group in (1, 2, 3)]
        exponent = f"try_cast(regexp_extract({number}, {literal(pattern)}, 4) as integer)"
        parts = (
            f"case when {exponent} between -{_FURTHEST} and {_FURTHEST} then {{'sign': {found[0]}, "
            f"'whole': {found[1]}, 'part': {found[2]}, 'exponent': {exponent}}} end"
        )
        return f"case when contains(lower({text}), 'e') then {self._let(parts, moved)} else {number} end"

    def _in_zone(self, text: str, read: str) -> str:
        """Returns SQL for the moment that a string with a named time zone represents.

        The result is NULL unless the string's local time occurs exactly once in that zone: a clock change can skip or
        repeat a local time.
        """

        def once(moment: str, zone: str, local: str) -> str:
            # the offsets one day before and one day after are those on either side of a clock change
            shown = [
                f"timezone('UTC', {local} - (timezone({zone}, {near}) - timezone('UTC', {near})))"
                for near in (f"({moment} - interval 1 day)", f"({moment} + interval 1 day)")
            ]
            others = " and ".join(f"({one} = {moment} or timezone({zone}, {one}) <> {local})" for one in shown)
            return f"try(timezone({zone}, {moment}) = {local} and {others})"

        zone = f"regexp_extract({text}, {_NAMED}, 1)"
        local = f"try_cast(regexp_replace({text}, {_NAMED}, '') as timestamp)"
        return self._let(read, lambda moment: where(once(moment, zone, local), moment))


def _field(struct: str, name: str) -> str:
    return f"struct_extract({struct}, {literal(name)})"


def _shown(text: str) -> str:
    """Returns SQL that restores the characters that `_hidden` and `_hidden_json` replaced."""
    return f"translate({text}, {literal(_OTHERS)}, {literal(_SIGNS)})"


def _hidden_name(name: str) -> str:
    return name.translate(str.maketrans(_BRACKETS, _OTHERS[:6]))


def _texts(names: Iterable[str]) -> str:
    return "STRUCT(" + ", ".join(f"{quoted(name)} VARCHAR" for name in names) + ")"


def _entries(text: str) -> str:
    """Returns an SQL expression for the number of entries in the string of a struct or map."""
    inner = trimmed(text)
    return f"len(try_cast('[' || substr({inner}, 2, len({inner}) - 2) || ']' as VARCHAR[]))"


def _not_null(name: str) -> str:
    return re.sub(_NULL, _NOT_NULL, name)
