"""Checks that a file's header has exactly the columns of its contract, and states what to change if it does not."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from busco.ingest.formats import another_encoding, another_format
from busco.ingest.refused import Refused
from busco.lake.deliveries import Contract

# The maximum number of names in a message, and of characters per name. Both are needed because what is read as the
# header can be anything, even a single word a megabyte long.
_SHOWN = 100
# The line that tells Excel which separator a file uses. Excel never writes it, but programs that export to Excel do.
_SEPARATOR_LINE = re.compile(r"(?i)sep=(.?)")
_INVISIBLE = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]+")
# easily overlooked differences between two names, each with the function that removes the difference
_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "the spaces": lambda name: _INVISIBLE.sub("", name),
    "the capitalization": str.casefold,
    "the Unicode form (to NFC)": lambda name: unicodedata.normalize("NFC", name),
}


def read_header(path: Path, head: bytes, compressed: bool, contract: Contract) -> tuple[str, ...]:
    """Returns the column names in the header.

    Messages never contain values from the file, even if the header is missing and the first line contains values.

    Args:
        head: the beginning of the file's decompressed content, without a byte-order mark or leading blank lines.
        compressed: whether the file itself is gzip.

    Raises:
        Refused: the header does not have exactly the contract's columns, or the file is not CSV.
    """
    text = head.decode("utf-8", errors="surrogateescape")
    try:
        header = tuple(next(csv.reader(io.StringIO(text, newline="")), ()))
    except csv.Error:
        header = ()
    try:
        _check(header, contract)
    except Refused:
        if other := another_format(path, head, compressed):
            raise Refused(other) from None
        if not_utf8 := re.sub("[^\udc80-\udcff]", "", "".join(header)).encode("utf-8", "surrogateescape"):
            raise Refused(f"the header is not UTF-8: {another_encoding(not_utf8)}") from None
        raise
    return header


def _check(header: Sequence[str], contract: Contract) -> None:
    if not header:
        raise Refused("no header line")
    wanted = [column.name for column in contract.columns]
    missing = [name for name in wanted if name not in header]
    named = list(header)
    while named and not named[-1]:
        named.pop()
    extra = [name for name in named if name not in wanted]
    if missing:
        _check_separator(header, len(wanted))
    surplus = len(header) - len(named)
    commas = "a comma: delete it" if surplus == 1 else f"{surplus} commas: delete them"
    also = f"; the header also ends with {commas}" if surplus and len(missing) < len(wanted) else ""
    if missing:
        names = f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)} (table {contract.table})"
        raise Refused(names + _instead(missing, extra, len(missing) == len(wanted)) + also)
    if extra:
        names = ", ".join(name[:_SHOWN] or "(no name)" for name in extra[:_SHOWN])
        raise Refused(
            f"unknown column{'s' if len(extra) > 1 else ''} {names}: not in the contract of {contract.table}{also}"
        )
    if surplus:
        raise Refused(f"the header ends with {commas}")
    if len(set(header)) != len(header):
        raise Refused("the header contains a column twice")


def _check_separator(header: Sequence[str], columns: int) -> None:
    """Raises `Refused` if the first line is Excel's `sep=` line, or uses a separator other than commas."""
    if found := _SEPARATOR_LINE.fullmatch(",".join(header)):
        commas = "" if found[1] in ("", ",") else ", and separate values with commas"
        raise Refused(f"the first line is Excel's `{found[0]}`, not the header: delete it{commas}")
    if len(header) == 1 and columns > 1:
        for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
            if delimiter in header[0]:
                raise Refused(f"wrong delimiter: the header uses {name}, not commas")


def _instead(missing: Sequence[str], extra: Sequence[str], none: bool) -> str:
    """Returns what to append to a message about missing names: the similar names that the header has instead, if any.

    Args:
        none: whether the line has none of the table's column names, and therefore is probably not the header.
    """
    pairs = [(name, other) for name in missing for other in extra if _equal(name, other, _DIFFERENCES)]
    if not pairs:
        unlike = (
            "none of the names on the first line is a column of the table: is the header missing, or is it further "
            "down?"
        )
        return f"; {unlike}" if none else ""
    differ = [
        one for one in _DIFFERENCES if any(not _equal(*pair, [o for o in _DIFFERENCES if o != one]) for pair in pairs)
    ]
    shown = _and([repr(other[:_SHOWN]) for _, other in pairs[:_SHOWN]])
    return f"; the header has {shown} instead: correct {_and(differ)}"


def _equal(name: str, other: str, differences: Iterable[str]) -> bool:
    """Returns whether two names are equal apart from the given `_DIFFERENCES`."""
    for one in differences:
        name, other = _DIFFERENCES[one](name), _DIFFERENCES[one](other)
    return name == other


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
