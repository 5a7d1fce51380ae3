"""What may be said of an error in a model over personal data: all of it but the values.

DuckDB quotes the value that it could not convert, and that value may hold quotes, newlines and whatever else. So
nothing is looked for and taken out; it is the other way round: what is shown is known beforehand. Of a message about
data (conversions, ranges, constraints, files, `error(…)`) that is its kind and the constant words of the messages in
`SHAPES`; of a message about code (binder, catalog, parser), the words of DuckDB, of the project's code and of its
names; of an echoed line of SQL, the line if it has no other word. All else is `•••`. The messages are those of DuckDB
1.5.5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import duckdb

from busco.lake.deliveries import TECHNICAL
from busco.project import PLATFORM_PACKAGES, Project
from busco.warehouse.messages import KINDS, MESSAGE_WORDS, OF_CODE, OF_THE_MACHINE, OF_THE_PROJECT, SHAPES

HIDDEN = "•••"

_KIND = re.compile(rf"\A((?:{KINDS}) Error: )(.*)\Z", re.DOTALL)
# dbt's own head of a message, `Runtime Error in model orders (models/…)`, and what it says below one
_HEAD = re.compile(
    r"\A(\s*)((?:Runtime|Compilation|Database|Internal|Parsing|Validation|Dependency|Contract|Connection|Unhandled|"
    r"Encountered an|RPC) [eE]rror:?)([^\n]*)(?:\n|\Z)"
)
_BELOW = re.compile(r"\s*(?:> (?:in|called by)\b.*|compiled code at .*)?")
_ECHO = re.compile(r"\s*^LINE (\d{1,5}): ([^\n]*)\n( *\^)\s*\Z", re.MULTILINE)
_CALL = re.compile(r"An error occurred \((\w{1,40})\) when calling the (\w{1,40}) operation")
_COUNT = re.compile(r"Got \d+ results?, configured to (?:fail|warn) if [!<>=]+ ?\d+")
_FRAME = re.compile(r'  File "[^"\n]+", line \d+, in \w+')
# what else than ASCII could be is part of a word: a name in any script, an emoji
_WORD = re.compile(r"(?:\w|[^\x00-\x7f])+")
_SIZE = re.compile(r"\(\d{1,2}(?:, ?\d{1,2})?\)|\[\d{0,2}\]")
# macros and methods by which what a query gives gets into a model's SQL or into dbt's log
_ASKING = frozenset({"macro.dbt.run_query", "macro.dbt.statement", "macro.dbt.load_result"})
# what of `adapter` gives no values; whatever else is done with it, under another name too, may
_HARMLESS = (
    "dispatch|quote|quote_as_configured|type|get_relation|load_relation|get_columns_in_relation|get_missing_columns"
)
_ASKS = re.compile(rf"\b(?:run_query|load_result|statement|add_query)\b|\badapter\b(?!\s*\.\s*(?:{_HARMLESS})\b)")
# so that a shape's holes take the longest value there can be: what follows the last of the constant words is DuckDB's
_HOLES = {"…": r"(?:.*)", "<>": r"([\w .,()\[\]\":]+)"}


class Redactor:
    """The filter of what dbt and DuckDB say of a project's nodes.

    Args:
        typed: what the user typed, which is code too: an inline query.
    """

    def __init__(self, project: Project, typed: Iterable[str] = ()) -> None:
        self.project, self.typed = project, tuple(typed)
        self._told: set[str] = set()
        # nodes that read, or whose Jinja was given, what their declarations and words don't show
        self._more: set[str] = set()
        self._asked: set[str] = set()
        self._known: dict[str, frozenset[str]] = {}

    def tell(self, text: str) -> None:
        """Lets a message of this platform pass as it is: it names no values."""
        self._told.add(_squeezed(text))

    def reads_more(self, node: str) -> None:
        """Takes note that a node reads what another one that reads personal data has made."""
        self._more.add(node)

    def names_made(self, node: str) -> bool:
        """Whether `reads_more` was said of a node."""
        return node in self._more

    def asked(self, node: str) -> None:
        """Takes note that a node's Jinja was given values."""
        self._asked.add(node)

    # -- which nodes ----------------------------------------------------------------------------------------------

    def hides(self, node: str) -> bool:
        """Whether values are hidden in what is said of a node: it or one of its ancestors has pii columns.

        What is said of no node, or of one that the project doesn't have (hooks, inline queries), is hidden if any does.
        A unit test reads rows that stand in its YAML, unless they are a query's, or its model's Jinja asks for others.
        """
        project = self.project
        if node in self._more:
            return self._any
        if node in project.unit_tests:
            unit = project.node(node)
            fixtures = [*unit["given"], unit["expect"]]
            is_code = all(one.get("format") != "sql" for one in fixtures) and not self.asks(node)
            return not is_code and project.reads_pii(project.unit_tests[node])
        if node in project.sources or project.nodes.get(node, {}).get("resource_type") in ("model", "seed", "test"):
            return project.reads_pii(node)
        return self._any

    @cached_property
    def _any(self) -> bool:
        return any(self.project.pii(uid) for uid in (*self.project.sources, *self.project.nodes))

    def asks(self, node: str) -> bool:
        """Whether a node's Jinja runs queries: what they give may be in its SQL and in what it logs."""
        nodes, units = self.project.nodes, self.project.unit_tests
        if node in self._asked:
            return True
        if node in units:
            return self.asks(units[node])
        if node not in nodes:
            return any(self.asks(uid) for uid in nodes if nodes[uid]["resource_type"] != "operation")
        macros: Mapping[str, Any] = self.project.manifest["macros"]
        seen = self.project.macros_used(nodes[node])
        texts = [str(macros[uid]["macro_sql"]) for uid in seen if macros[uid]["package_name"] not in PLATFORM_PACKAGES]
        texts.append(str(nodes[node].get("raw_code", "")))
        return bool(seen & _ASKING) or any(_ASKS.search(text) for text in texts)

    # -- what is shown --------------------------------------------------------------------------------------------

    def text(self, node: str, text: str) -> str:
        """An error's text, or another that dbt gives, without values if the node's are hidden.

        Args:
            node: unique id; '' for what is said of no node.
        """
        if not text.strip() or not self.hides(node):
            return text
        return self._shown(node, text)

    def free(self, node: str, text: str) -> str:
        """A text of the project's own, by `log()` or `print()`: hidden where a query's result may be in it."""
        return HIDDEN if text.strip() and self.hides(node) and self.asks(node) else text

    def artifact(self, content: str) -> str:
        """dbt's run_results.json or sources.json with its messages filtered, and without compiled SQL that is made of
        what a query gave."""
        said, hidden = json.loads(content), self.made_of_answers()
        for result in said.get("results", []):
            for key in ("message", "error"):
                if isinstance(result.get(key), str) and str(result.get("status")) not in ("success", "pass"):
                    result[key] = self.text(str(result.get("unique_id")), result[key])
            if result.get("compiled_code") and result.get("unique_id") in hidden:
                result["compiled_code"] = HIDDEN
        return json.dumps(said)

    def compiled(self, content: str) -> str:
        """dbt's manifest.json without the compiled SQL that is made of what a query gave."""
        said = json.loads(content)
        for node in self.made_of_answers():
            if "compiled_code" in said["nodes"].get(node, {}):
                said["nodes"][node].update(compiled_code=HIDDEN, extra_ctes=[])
        return json.dumps(said)

    def made_of_answers(self) -> frozenset[str]:
        """The nodes and unit tests in whose compiled SQL there may be values: their Jinja asks for some, or that of an
        ephemeral which is a part of it."""
        nodes = self.project.nodes
        parts = {uid for uid in nodes if nodes[uid]["config"].get("materialized") == "ephemeral"}
        asking = {uid for uid in nodes if self.hides(uid) and self.asks(uid)}
        made = frozenset(uid for uid in nodes if asking & ({uid} | (self.project.ancestors[uid] & parts)))
        return made | {unit for unit, model in self.project.unit_tests.items() if model in made or unit in self._asked}

    def _shown(self, node: str, text: str) -> str:
        if _squeezed(text) in self._told or _COUNT.fullmatch(text.strip()):
            return text
        head = _HEAD.match(text)
        if head is None:
            return self._body(node, text)
        indent, kind, rest = head.groups()
        first = indent + kind + self._of_code(node, rest)
        lines = text[head.end() :].split("\n")
        margin = next((line[: len(line) - len(line.lstrip(" "))] for line in lines if line.strip()), "")
        body = [line.removeprefix(margin) for line in lines]
        below: list[str] = []
        while body and _BELOW.fullmatch(body[-1]):
            below.insert(0, self._of_code(node, body.pop()))
        said = "\n".join(body)
        if _HEAD.match(said):
            shown = self._shown(node, said)
        elif kind.startswith(OF_THE_PROJECT):
            shown = HIDDEN if self.asks(node) else said
        else:
            shown = self._body(node, said)
        inner = [margin + line if line.strip() else "" for line in (*(shown.split("\n") if said else ()), *below)]
        return "\n".join([first, *inner])

    def _body(self, node: str, text: str) -> str:
        """A message without dbt's frame."""
        if not text.strip() or _squeezed(text) in self._told or _COUNT.fullmatch(text.strip()):
            return text
        found = _KIND.match(text.strip())
        if found is None:
            if text.lstrip().startswith("Traceback "):
                return "\n".join(line for line in text.split("\n") if _FRAME.fullmatch(line))
            called = _CALL.match(text.strip())
            return f"{called.group(0)}: {HIDDEN}" if called else HIDDEN
        kind, said = found.groups()
        if kind.startswith(OF_THE_MACHINE):
            return text.strip()
        echo = _ECHO.search(said)
        at = ""
        if echo is not None:
            said = said[: echo.start()]
            if self._is_code(node, echo.group(2)):
                at = f"\n\nLINE {echo.group(1)}: {echo.group(2)}\n{echo.group(3)}"
        return kind + (self._of_code(node, said) if kind.startswith(OF_CODE) else self._of_data(node, said)) + at

    def _of_data(self, node: str, said: str) -> str:
        for shape, parts in _shapes():
            if found := shape.fullmatch(said.strip()):
                names = iter(found.groups())
                return "".join(
                    HIDDEN if part == "…" else self._name(node, next(names)) if part == "<>" else part for part in parts
                )
        return HIDDEN

    def _name(self, node: str, said: str) -> str:
        words = _WORD.findall(_SIZE.sub("", said))
        return said if all(word.lower() in self._words(node) for word in words) else HIDDEN

    def _of_code(self, node: str, said: str) -> str:
        """Each line with what lies between its first and last word that isn't known hidden, and its first and last
        quote, if it has any: known words beside may be of the same value."""
        known = self._words(node)

        def shown(line: str) -> str:
            words = _WORD.finditer(_SIZE.sub(lambda size: "(" * len(size.group()), line))
            odd = [found for found in words if found.group().lower() not in known]
            if not odd:
                return line
            quotes = [place for place, char in enumerate(line) if char in "\"'"]
            start, end = min([odd[0].start(), *(at + 1 for at in quotes)]), max([odd[-1].end(), *quotes])
            return f"{line[:start]}{HIDDEN}{line[end:]}"

        return "\n".join(shown(line) for line in said.split("\n"))

    def _is_code(self, node: str, line: str) -> bool:
        """Whether a line that DuckDB echoes has no word that isn't code; it cuts long ones, within a word too."""
        known = self._words(node)
        cut_left, cut_right = line.startswith("..."), line.endswith("...")
        found = list(_WORD.finditer(line))
        for place, match in enumerate(found):
            word = match.group().lower()
            if word in known:
                continue
            begins = place == 0 and cut_left and any(one.endswith(word) for one in known)
            ends = place == len(found) - 1 and cut_right and any(one.startswith(word) for one in known)
            if not begins and not ends:
                return False
        return True

    # -- words of code --------------------------------------------------------------------------------------------

    def _words(self, node: str) -> frozenset[str]:
        if node not in self._known:
            project = self.project
            nodes = project.nodes
            own = [node, *project.ancestors.get(node, ())] if node in nodes else [*nodes]
            texts = [str(nodes[uid].get("raw_code", "")) for uid in own if nodes.get(uid, {}).get("language") == "sql"]
            texts += [json.dumps(nodes[uid].get("test_metadata"), ensure_ascii=False) for uid in own if uid in nodes]
            self._known[node] = self._project_words | _words("\n".join(texts))
        return self._known[node]

    @cached_property
    def _project_words(self) -> frozenset[str]:
        """DuckDB's own words, the macros', and all names."""
        project = self.project
        texts = [str(macro["macro_sql"]) for macro in project.manifest["macros"].values()]
        texts += [json.dumps(project.manifest.get("vars", {}), ensure_ascii=False), *self.typed, MESSAGE_WORDS]
        for uid in (*project.sources, *project.nodes, *project.unit_tests):
            thing = project.node(uid)
            texts += [uid, str(thing.get("original_file_path", "")), *thing.get("columns", {})]
            texts += [str(thing.get(key) or "") for key in ("database", "schema", "alias", "identifier", "name")]
        texts += [column.name for column in TECHNICAL]
        return _words("\n".join(texts)) | engine_words()


def _words(text: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(text))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


_cache: dict[str, Any] = {}


def engine_words() -> frozenset[str]:
    """DuckDB's keywords, types, functions, settings."""
    if "words" not in _cache:
        with duckdb.connect() as connection:
            found = connection.execute(
                "select keyword_name from duckdb_keywords() union select type_name from duckdb_types() union "
                "select function_name from duckdb_functions() union select name from duckdb_settings()"
            ).fetchall()
        inner = (
            "BOOL INT8 INT16 INT32 INT64 INT128 UINT8 UINT16 UINT32 UINT64 UINT128 FLOAT INTEGER_LITERAL STRING_LITERAL"
        )
        _cache["words"] = _words("\n".join(str(name) for (name,) in found) + " " + inner)
    words: frozenset[str] = _cache["words"]
    return words


def _shapes() -> list[tuple[re.Pattern[str], list[str]]]:
    """Each shape as pattern, and its constant parts and holes in order."""
    if "shapes" not in _cache:
        parts = [[part for part in re.split("(…|<>)", line) if part] for line in SHAPES.splitlines()]
        # the longest first: what follows a name in a longer one is no part of it
        parts.sort(key=lambda line: -len("".join(line)))
        _cache["shapes"] = [
            (re.compile("".join(_HOLES.get(part) or re.escape(part) for part in line), re.DOTALL), line)
            for line in parts
        ]
    shapes: list[tuple[re.Pattern[str], list[str]]] = _cache["shapes"]
    return shapes
