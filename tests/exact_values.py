"""Texts for every type that a contract can name, each with the exact value that it denotes, computed in Python.

Nothing here uses DuckDB: numbers are fractions, times are counted in microseconds, and the nearest FLOAT is computed
exactly.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from itertools import repeat
from random import Random
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from busco.lake.types import DataType, ListOf, MapOf, Primitive, Struct

# the value of a string that denotes no value of its type
NOTHING = object()

RANGES = {
    "TINYINT": (-(2**7), 2**7 - 1),
    "SMALLINT": (-(2**15), 2**15 - 1),
    "INTEGER": (-(2**31), 2**31 - 1),
    "BIGINT": (-(2**63), 2**63 - 1),
    "UTINYINT": (0, 2**8 - 1),
    "USMALLINT": (0, 2**16 - 1),
}
PLACES = {"TIMESTAMP_S": 0, "TIMESTAMP_MS": 3, "TIMESTAMP": 6, "TIMESTAMP WITH TIME ZONE": 6}
TIMES = ("DATE", *PLACES)
BOOLEANS = dict.fromkeys(["true", "t", "yes", "y", "1"], True) | dict.fromkeys(["false", "f", "no", "n", "0"], False)
SCALARS = [
    *("BOOLEAN", *RANGES, "FLOAT", "DOUBLE", "DECIMAL(4,1)", "DECIMAL(12,2)", "DECIMAL(3,3)", "DECIMAL(18,0)"),
    *("DECIMAL(38,0)", "DECIMAL(38,10)", "DECIMAL(38,38)", "VARCHAR", "JSON", "BLOB", *TIMES),
]
NESTED = [
    "INTEGER[]",
    "DECIMAL(4,1)[][]",
    "VARCHAR[]",
    "JSON[]",
    "JSON[][]",
    "STRUCT(l JSON[], j JSON)",
    "BOOLEAN[]",
    "FLOAT[]",
    "STRUCT(a INTEGER, d DECIMAL(4,1))",
    'STRUCT("null" VARCHAR, "q ""r\'" BLOB, "a: b" TIMESTAMP_S)',
    "STRUCT(x STRUCT(n DATE, t TIMESTAMP_MS)[], m MAP(VARCHAR, DOUBLE))[]",
    "MAP(INTEGER, VARCHAR)",
    "MAP(VARCHAR, STRUCT(u UTINYINT, z TIMESTAMPTZ)[])",
    "MAP(DECIMAL(4,1), BIGINT)",
]
TYPES = [*SCALARS, *NESTED]

_EPOCH = datetime(1970, 1, 1)
_DIGITS = r"(\d+(?:_\d+)*)?"
_NUMBER = re.compile(rf"([+-]?)(?=\.?\d){_DIGITS}(?:\.{_DIGITS})?(?:[eE]([+-]?\d+))?", re.ASCII)
_ZONE = r" ?(?:Z|UTC|utc)|([+-])(\d\d)(?::?(\d\d)(?::(\d\d))?)?| ([A-Za-z]+/\S+)"
_MOMENT = re.compile(
    r"(\d{4})([-/\\ ])(\d\d?)\2(\d\d?)"
    rf"(?:(?:T|\s+)(\d\d?):(\d\d?)(?::(\d\d?)(?:\.(\d*))?)?(?:{_ZONE})?)?",
    re.ASCII,
)


def exact(kind: Primitive, text: str) -> Any:
    """Returns the value of the type that the text denotes exactly, or NOTHING."""
    if kind.name == "VARCHAR":
        return text
    if kind.name == "BLOB":
        return _bytes(text)
    text = text.strip()
    if kind.name == "BOOLEAN":
        return BOOLEANS.get(text.lower() if text.isascii() else "", NOTHING)
    if kind.name == "JSON":
        return _json(text)
    if kind.name in TIMES:
        return _time(kind, text)
    return _numeric(kind, text)


def same(one: Any, other: Any, zeros: bool = True) -> bool:
    """Whether two values are identical; True and 1 are not, and with `zeros`, neither are 0.0 and -0.0."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other, repeat(zeros)))
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k], zeros) for k in one)
        )
    if zeros and isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return type(one) is type(other) and one == other


def _numeric(kind: Primitive, text: str) -> Any:
    number, minus = _fraction(kind, text)
    if number is None:
        return NOTHING
    if kind.name in RANGES:
        low, high = RANGES[kind.name]
        return int(number) if number.denominator == 1 and low <= number <= high else NOTHING
    if kind.name == "DECIMAL":
        units = number * 10**kind.scale
        fits = units.denominator == 1 and abs(units) < 10**kind.precision
        return Decimal((int(units < 0), tuple(map(int, str(abs(int(units))))), -kind.scale)) if fits else NOTHING
    found = _nearest(number, 24, -149, 128) if kind.name == "FLOAT" else _nearest(number, 53, -1074, 1024)
    return NOTHING if found is None else math.copysign(float(found), -1 if minus else 1)


def _fraction(kind: Primitive, text: str) -> tuple[Fraction | None, bool]:
    if kind.name in RANGES and re.fullmatch(r"0[xXbB][0-9a-fA-F_]+", text, re.ASCII):
        try:
            return Fraction(int(text, 0)), False
        except ValueError:
            return None, False
    found = _NUMBER.fullmatch(text)
    if not found:
        return None, False
    sign, whole, part, exponent = (group or "" for group in found.groups())
    digits = (whole + part).replace("_", "")
    # no type here distinguishes 10 to the power of 5,000 from anything larger
    power = max(-5000, min(5000, int(exponent or 0))) - len(part.replace("_", ""))
    number = Fraction(int(digits)) * Fraction(10) ** power
    return (-number if sign == "-" else number), sign == "-"


def _nearest(number: Fraction, bits: int, smallest: int, above: int) -> Fraction | None:
    """Returns the nearest binary number, ties to even; None above the largest (IEEE 754, section 4.3.1)."""
    size = abs(number)
    exponent = max(smallest, size.numerator.bit_length() - size.denominator.bit_length() - bits - 1)
    while size >= Fraction(2) ** (exponent + bits):
        exponent += 1
    unit = Fraction(2) ** exponent
    rounded = round(size / unit) * unit
    if rounded >= Fraction(2) ** above:
        return None
    return -rounded if number < 0 else rounded


def _time(kind: Primitive, text: str) -> Any:
    if text.lower() == "epoch":
        micros: Fraction | None = Fraction(0)
    else:
        micros = _micros(text, kind.name == "TIMESTAMP WITH TIME ZONE")
    if micros is None:
        return NOTHING
    try:
        moment = _EPOCH + timedelta(microseconds=int(micros))
    except OverflowError:
        return NOTHING
    if kind.name == "DATE":
        return moment.date() if micros % 86_400_000_000 == 0 else NOTHING
    if micros % 10 ** (6 - PLACES[kind.name]):
        return NOTHING
    return moment.replace(tzinfo=UTC) if kind.name == "TIMESTAMP WITH TIME ZONE" else moment


def _micros(text: str, zoned: bool) -> Fraction | None:
    """Returns a string as microseconds since 1970, in UTC if the type has a time zone."""
    found = _MOMENT.fullmatch(text)
    if not found:
        return None
    year, _, month, day, hour, minute, second, part, sign, *offset, name = found.groups()
    hours, minutes, seconds = int(hour or 0), int(minute or 0), int(second or 0)
    if minutes > 59 or seconds > 59 or hours > 24 or (hours == 24 and (minutes or seconds or int(part or 0))):
        return None
    try:
        at = date(int(year), int(month), int(day)).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None
    local = Fraction((at * 86400 + hours * 3600 + minutes * 60 + seconds) * 1_000_000)
    if part:
        local += Fraction(int(part), 10 ** len(part)) * 1_000_000
    away = [int(field or 0) for field in offset]
    if not zoned:
        return None if name or any(away) else local
    if name:
        return _in_zone(local, name)
    if away[0] > 23 or away[1] > 59 or away[2] > 59:
        return None
    distance = Fraction((away[0] * 3600 + away[1] * 60 + away[2]) * 1_000_000)
    return local + distance if sign == "-" else local - distance


def _in_zone(local: Fraction, name: str) -> Fraction | None:
    whole = math.floor(local)
    try:
        moment = _EPOCH + timedelta(microseconds=whole)
        early, late = (moment.replace(tzinfo=ZoneInfo(name), fold=fold).astimezone(UTC) for fold in (0, 1))
    except (OverflowError, ZoneInfoNotFoundError):
        return None
    if early != late:  # clocks in this zone showed this time twice, or never
        return None
    return Fraction((early.replace(tzinfo=None) - _EPOCH) // timedelta(microseconds=1)) + (local - whole)


def _bytes(text: str) -> Any:
    if not text.isascii() or not re.fullmatch(r"(?s)(?:[^\\]|\\x[0-9a-fA-F]{2})*", text):
        return NOTHING
    return re.sub(r"\\x(..)", lambda found: chr(int(found[1], 16)), text).encode("latin-1")


def _json(text: str) -> Any:
    def refuse(_: str) -> None:
        raise ValueError

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return NOTHING
    return text


# -- text -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A string, its value, and whether ingest must accept it because it is the canonical text of a value."""

    text: str
    value: Any
    canonical: bool


def random_text(kind: DataType, random: Random) -> Sample:
    """Returns a random text for a column of a type."""
    if isinstance(kind, ListOf):
        return _list(kind, random)
    if isinstance(kind, Struct):
        return _struct(kind, random)
    if isinstance(kind, MapOf):
        return _map(kind, random)
    canonical = random.random() < 0.6
    if canonical:
        text = _canonical(kind, random)
    else:
        text = random.choice(_AROUND) + _odd(kind, random) + random.choice(_AROUND)
    value = exact(kind, text)
    return Sample(text, value, canonical and value is not NOTHING)


def _words(*lines: str) -> list[str]:
    """Splits lines into words; `␣` becomes a space, and two spaces in a row enclose an empty word."""
    return [word.replace("␣", " ") for line in lines for word in line.split(" ")]


_AROUND = ["", "", "", "", " ", "  ", "\t", "\n", "\u00a0", "\u2003"]
_SPECIAL = "\"'\\,[]{}():= \tnulNUL_xa1é日\u00a0\n"
_STRINGS = ["", "NULL", "null", "it's", 'say "so"', "a, b", "C:\\dir", "\\", " a ", "[1]", "{a: 1}", "x=y", "日本"]


def _string(random: Random) -> str:
    return (
        random.choice(_STRINGS) if random.random() < 0.5 else "".join(random.choices(_SPECIAL, k=random.randrange(8)))
    )


def _document(random: Random) -> Any:
    leaves = [None, True, random.randrange(10**20), random.uniform(-1e9, 1e9), _string(random)]
    return random.choice([*leaves, leaves, {_string(random): leaf for leaf in leaves}])


def _canonical(kind: Primitive, random: Random) -> str:
    if kind.name in RANGES or kind.name == "DECIMAL":
        low, high = RANGES.get(kind.name) or (1 - 10**kind.precision, 10**kind.precision - 1)
        near = random.choice([low - 1, low, low + 1, -1, 0, 1, high - 1, high, high + 1, random.randint(low, high)])
        return format(Decimal(near).scaleb(-kind.scale, Context(prec=100)), "f")
    if kind.name in ("FLOAT", "DOUBLE"):
        code, size = ("<f", 4) if kind.name == "FLOAT" else ("<d", 8)
        value = struct.unpack(code, random.randbytes(size))[0]
        return repr(value if math.isfinite(value) else -0.0)
    if kind.name == "BOOLEAN":
        return random.choice(_words("true false True FALSE 1 0"))
    if kind.name == "VARCHAR":
        return _string(random)
    if kind.name == "JSON":
        return json.dumps(_document(random), ensure_ascii=random.random() < 0.5)
    if kind.name == "BLOB":
        return "".join(f"\\x{byte:02X}" for byte in random.randbytes(random.randrange(5)))
    moment = random.choice(
        [datetime.min, datetime.max, _EPOCH + timedelta(microseconds=random.randint(-(2**55), 2**55))]
    )
    if kind.name == "DATE":
        return moment.date().isoformat()
    unit = 10 ** (6 - PLACES[kind.name])
    cut = moment.replace(microsecond=moment.microsecond // unit * unit)
    zones = _words(" Z +00:00 +05:30 -03 -00:30 +23:59") if kind.name == "TIMESTAMP WITH TIME ZONE" else [""]
    return cut.isoformat(random.choice(" T"), "auto") + random.choice(zones)


_WHOLE = _words(
    " 0 00 1 5 9 49 50 999 1_000 1__0 0_1 １ 0x1F 0b101 0xg 0x7fffffff 0xFFFFFFFFFFFFFFFF 12345678901234567890"
)
_NUMBERS = _words(
    " . nan inf -Infinity 1d -0 -0.0 12.5e-1 0.7e-45 1.4e-45 4.9e-324 2.4e-324 3.4028235e38 3.4028236e38 1e-400 1e999",
    "1.00000017881393432617187501 1.7976931348623158e308 1.7976931348623159e308 9223372036854775807.0 255.5",
)
_PARTS = ["", "", "0", "000", "5", "50", "25", "1_0", "7" * 30, "0" * 50, "0" * 50 + "1"]
_YEARS = _words("2018 2018 2018 2016 2100 1969 1900 0001 9999 0000 10000 20000 -0044 18 +2018 ２０１８")
_HOURS = _words("00:00 00:00:00 10:00:00 23:59:59 24:00:00 24:00 24:00:01 25:00:00 23:59:60 1:2:3 10 10:60:00 00:30:00")
_FRACTIONS = _words("   . .0 .000000000 .7 .123 .123000 .123456 .1234567 .123456789 .9999999 ,5")
_ZONES = _words(
    "   Z z +05:30 -0530 +00 -00:00 +5 +24 +05:60 +99 ␣+05 +00:30:15 -00:30 ␣UTC ␣BC ␣(BC)",
    "␣America/Sao_Paulo ␣Asia/Kolkata ␣Europe/Berlin ␣Nowhere/City",
)
_MOMENTS = [
    *_words(" epoch Epoch infinity -infinity Infinity today 20180105 2018-W01-1 2018-001"),
    *("2018-01-05 (BC)", "2018-01-05 BC", "0001-01-01 00:00:00+01", "9999-12-31 23:59:59-01", "9999-12-31 24:00:00"),
    *("0000-12-31 23:30:00-01:00", "2018-11-04 00:30:00 America/Sao_Paulo", "2018-01-01 Europe/Berlin"),
    *("2018-02-17 23:30:00 America/Sao_Paulo", "2018-02-17 22:59:59.5 America/Sao_Paulo"),
]
_ODD = {
    "BOOLEAN": _words(" t F yes NO y on 2 1.0 -1 tru t␣rue ｔ"),
    "JSON": [
        "NaN",
        "[1, -Infinity]",
        '{"a": nan}',
        '"NaN"',
        '{"inf": 1}',
        "nul",
        "{'a': 1}",
        "[1",
        "",
        "1 2",
        "[1,]",
        '{"a": "b" , }',
    ],
}


def _odd(kind: Primitive, random: Random) -> str:
    pick = random.choice
    if kind.name in _ODD:
        return pick(_ODD[kind.name])
    if kind.name in ("BLOB", "VARCHAR"):
        return "".join(random.choices("\\x4fFgé a\n,", k=random.randrange(8)))
    if kind.name not in TIMES:
        exponents = _words("   e0 E+2 e-1 e-3 e38 e-45 e-324 e309 e e1.5 e99999999999")
        number = pick(_words("  - + --")) + pick(_WHOLE) + pick(_words(" . . ,")) + pick(_PARTS) + pick(exponents)
        return pick([number, number, pick(_NUMBERS)])
    months, days = _words("01 1 12 02 2 11 13 00"), _words("01 1 31 30 29 28 04 00 32")
    day = pick(_words("- - - / \\ ␣ .")).join((pick(_YEARS), pick(months), pick(days)))
    time = pick(_words("␣ ␣ T T ␣␣ \t t ␣T \u00a0")) + pick(_HOURS) + pick(_FRACTIONS) + pick(_ZONES)
    return pick([day, day + time, day + time, day + time, pick(_MOMENTS)])


# -- nested text, in DuckDB's own notation ----------------------------------------------------------------------------

_SPACES = ["", "", " ", "  ", "\t", "\n"]


def _in_quotes(text: str, random: Random) -> str:
    quote = random.choice("\"'")
    return quote + re.sub(r"([\\" + quote + "])", r"\\\1", text) + quote


def _part(kind: DataType, random: Random) -> Sample:
    """Returns an element, a key or a value: bare if possible, otherwise in quotes."""
    if random.random() < 0.1:
        return Sample(random.choice(["NULL", "null", "Null"]), None, True)
    inner = random_text(kind, random)
    text = inner.text
    canonical = inner.canonical
    if _is_json_list(kind):
        # DuckDB's grammar for the enclosing list does not understand JSON's own escapes
        canonical = canonical and not re.search(r"\\[0-9A-Za-z]", text)
    if isinstance(kind, Primitive):
        bare = text and text == text.strip() and not re.search(r"[\"'\\,\[\]{}():=]", text) and text.lower() != "null"
        text = text if bare and random.random() < 0.7 else _in_quotes(text, random)
    return Sample(random.choice(_SPACES) + text + random.choice(_SPACES), inner.value, canonical)


def _is_json_list(kind: DataType) -> bool:
    return isinstance(kind, ListOf) and isinstance(kind.element, Primitive) and kind.element.name == "JSON"


def _element(kind: DataType, random: Random) -> Sample:
    """Returns an element of a list; JSON is written without quotes, as in a JSON array."""
    if not (isinstance(kind, Primitive) and kind.name == "JSON"):
        return _part(kind, random)
    if random.random() < 0.1:
        return Sample("NULL", None, True)
    inner = random_text(kind, random)
    # an empty text is not an element, and an open bracket could be closed by a later one
    text = "''" if inner.text.strip() in ("", "[1") else inner.text
    return Sample(random.choice(_SPACES) + text + random.choice(_SPACES), inner.value, inner.canonical)


def _whole(text: str, parts: list[Sample], value: Any) -> Sample:
    if any(part.value is NOTHING for part in parts):
        value = NOTHING
    return Sample(text, value, value is not NOTHING and all(part.canonical for part in parts))


def _list(kind: ListOf, random: Random) -> Sample:
    parts = [_element(kind.element, random) for _ in range(random.randrange(4))]
    text = "[" + ",".join(part.text for part in parts) + "]"
    if random.random() < 0.05:
        return Sample(text + random.choice("]x,\"'"), NOTHING, False)
    return _whole(text, parts, [part.value for part in parts])


def _struct(kind: Struct, random: Random) -> Sample:
    kinds = dict(kind.fields)
    names = random.sample(list(kinds), random.randint(0, len(kinds)))
    once = random.random() < 0.9
    names += [] if once or not names else [random.choice(names)]
    parts = [_part(kinds[name], random) for name in names]
    entries = [f"{_in_quotes(name, random)}:{part.text}" for name, part in zip(names, parts, strict=True)]
    values: Any = dict.fromkeys(kinds) | {name: part.value for name, part in zip(names, parts, strict=True)}
    if random.random() < 0.05:
        entries.append(random.choice(["other: 1", "1", "", ": 1"]))
        once = not (names or entries[0])
    return _whole("{" + ",".join(entries) + "}", parts, values if len(set(names)) == len(entries) or once else NOTHING)


def _map(kind: MapOf, random: Random) -> Sample:
    keys = [_part(kind.key, random) for _ in range(random.randrange(4))]
    parts = [_part(kind.value, random) for _ in keys]
    text = "{" + ",".join(f"{key.text}={part.text}" for key, part in zip(keys, parts, strict=True)) + "}"
    read = [key.value for key in keys]
    values: Any = NOTHING
    if NOTHING not in read and None not in read and len(set(read)) == len(read):
        values = {key: part.value for key, part in zip(read, parts, strict=True)}
    return _whole(text, [*keys, *parts], values)
