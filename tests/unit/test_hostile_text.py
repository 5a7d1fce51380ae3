"""Text from outside never reaches a terminal, or a log that is read in one, as control sequences."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
import unicodedata
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busco.cli import releases as command
from busco.cli.main import main
from busco.lake import releases
from busco.output import result, table
from busco.text import json_text, printable, shown
from busco.warehouse.console import Console
from tests.unit.lake import ENVIRONMENT, Lake

ROOT = Path(__file__).parents[2]
ATTACKS = {
    "clears the screen": "\x1b[2J\x1b[H",
    "colours, C1": "\x9b31;8m",
    "title that the terminal sends back as input": "\x1b]0;x\x07\x1b[21t",
    "link to another site": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "device control": "\x1bP+q544e\x1b\\",
    "overwrites the line": "good\rbad",
    "backspaces": "bad\b\b\bgood",
    "delete": "a\x7fb",
    "next line, C1": "a\x85b",
    "vertical tab and form feed": "a\x0b\x0cb",
    "right to left": "\u202etxt.exe",
    "isolates": "\u2066a\u2069\u061c\u200f",
    "line separator": "a\u2028b\u2029c",
    "invisible": "a\u200bb\ufeffc",
    "tags": "a\U000e0041b",
    "half a surrogate pair": "a\udc9bb",
    "another row": "why\nrel  2026-01-01 00:00:00  5 tables  boss",
}


def unescaped(output: str) -> list[str]:
    """Returns the characters that a terminal would not display as text."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [repr(char) for char in output if char not in "\n" and unicodedata.category(char) in kinds]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(function: Any, *arguments: Any, terminal: bool = False) -> str:
    with redirect_stdout(Terminal() if terminal else io.StringIO()) as out:
        function(*arguments)
    return out.getvalue()


@given(st.text())
def test_characters_that_are_not_text_are_escaped_and_text_is_unchanged(text: str) -> None:
    assert unescaped(shown(text).replace("\t", "")) == unescaped(printable(text)) == []
    assert "\n" not in printable(text)
    assert json.loads(json_text([text])) == [text]
    assert unescaped(json_text([text])) == []
    if not unescaped(text) and "\n" not in text:
        assert printable(text) == shown(text) == text


def test_letters_of_all_languages_are_not_escaped() -> None:
    for text in ("ação", "日本語\u3000テスト", "Ünï\u00a0cödé", "עברית", "🙂", "🫨"):
        assert printable(text) == text


@pytest.fixture
def lake(monkeypatch: pytest.MonkeyPatch) -> Lake:
    made = Lake()
    made.published()
    monkeypatch.setattr(command, "lake", lambda: (None, made.store, ENVIRONMENT))
    monkeypatch.setattr(command, "publishing", lambda _: made.store)
    monkeypatch.setattr(command, "show_glue", lambda *_: None)
    return made


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_rollbacks_reason_and_author_are_escaped_wherever_they_are_shown(
    lake: Lake, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # a record can't have half a surrogate pair
    attack = attack.encode("utf-8", "replace").decode()
    releases.rollback(lake.store, ENVIRONMENT, lake.live().release, f"ana{attack}", f"why{attack}")
    commands = (["release", "show"], ["release", "list"], ["release", "resume", "--no-start"], ["release", "resume"])
    for words in commands:
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        assert unescaped(out + err) == []
        assert printable(attack) in out, words
        # text from a user cannot start a line
        assert not [line for line in out.splitlines() if line.startswith("rel  2026")]
        if words[-1] == "list":
            heads, *rows = out.splitlines()
            assert {row.rindex("ana") for row in rows if "ana" in row} == {heads.rindex("who")}


def test_the_json_of_releases_is_exact_and_contains_no_control_characters(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "".join(ATTACKS.values()).encode("utf-8", "replace").decode()
    releases.rollback(lake.store, ENVIRONMENT, lake.live().release, "ana", reason)
    for words in (["release", "show", "--json"], ["release", "list", "--format", "json"]):
        with pytest.raises(SystemExit):
            main(words)
        out = capsys.readouterr().out
        assert unescaped(out) == []
        found = json.loads(out)
        assert (found if isinstance(found, dict) else found[0])["reason"] == reason.strip()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_query_result_is_escaped_for_people_and_exact_for_programs(attack: str) -> None:
    columns, rows = ["a", f"b{attack}"], [[attack, 1], ["plain", 2]]
    for_people = printed(result, columns, rows, "table")
    assert unescaped(for_people) == []
    heads, first, second, count = for_people.splitlines()
    assert heads.index("b") == first.index("1", len(printable(attack))) == second.index("2"), "aligned"
    assert count == "2 rows"
    assert unescaped(printed(result, columns, rows, "json")) == []
    assert json.loads(printed(result, columns, rows, "json"))[0] == {"a": attack, f"b{attack}": 1}
    assert unescaped(printed(result, columns, rows, "csv", terminal=True)) == []
    assert len(printed(result, columns, rows, "csv", terminal=True).splitlines()) == 3
    assert attack in printed(result, columns, rows, "csv").replace('""', '"')
    assert unescaped(printed(table, ["h" + attack], [[attack]], (), attack)) == []


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_dbt_output_is_escaped_in_a_log_and_exact_for_programs(attack: str) -> None:
    attack = attack.replace("\udc9b", "")

    def event(name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(name=name, level="info", msg=f"x{attack}x"), data=SimpleNamespace())

    for name in ("JinjaLogInfo", "PrintEvent", "MainEncounteredError"):
        assert unescaped(printed(Console("build", None, "all"), event(name))) == [], "a runner's log"
    assert printed(Console("show", None, "all"), event("ShowNode")) == f"x{attack}x\n"
    assert unescaped(printed(Console("show", None, "all"), event("ShowNode"), terminal=True)) == []


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_errors_usage_errors_and_tracebacks_are_escaped(
    lake: Lake, attack: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, status in ((["release", "show", f"x{attack}"], 1), (["release", "show", f"--x{attack}"], 2)):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == status
        assert unescaped("".join(capsys.readouterr())) == []
    monkeypatch.setattr(command, "lake", lambda: 1 / len(attack[:0]))
    with pytest.raises(ZeroDivisionError) as bug:
        main(["release", "show"])
    sys.excepthook(RuntimeError, RuntimeError(attack), bug.tb)
    assert unescaped(capsys.readouterr().err) == []


def test_logs_are_escaped_even_if_logging_is_not_configured() -> None:
    code = (
        "import logging, sys; from busco.text import guard; guard(); "
        "logging.getLogger('x').warning('%s', '\\x1b[2J\\u202e'); raise RuntimeError('\\x9b31m')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert unescaped(done.stderr) == []
    assert r"\x1b[2J\u202e" in done.stderr
    assert r"RuntimeError: \x9b31m" in done.stderr


def test_only_the_output_module_prints() -> None:
    """Anything that is printed elsewhere would not be escaped."""
    # these print no text from outside: a server's startup message, a usage message, a URL that is quoted, the names of
    # this service's variables, a revision, for PostgreSQL's tools a password, and escaped names of connections
    own = {
        "output.py", "text.py", "embedded/local_aws_server.py", "orchestration/health.py", "orchestration/broker.py",
        "orchestration/production.py", "orchestration/revision.py", "orchestration/backups.py",
        "orchestration/rotation.py",
    }  # fmt: skip
    found = []
    for path in sorted((ROOT / "src/busco").rglob("*.py")):
        name = path.relative_to(ROOT / "src/busco").as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write", "error.show"):
                found += [f"{name}:{node.lineno} {called}"] if name not in own else []  # type: ignore[attr-defined]
    assert found == []
    assert logging.lastResort is not None
