"""Removes values from error messages about models that read personal data.

DuckDB quotes a value that it can't convert, and the value may itself contain quotes, newlines or anything else.
Therefore the filter doesn't try to find and remove values; it shows only text from an allowlist:

- of a message about data (conversions, ranges, constraints, files, `error(…)`): its kind, and the constant words of the
  patterns in `SHAPES`;
- of a message about code (binder, catalog, parser): words from DuckDB's vocabulary, the project's code, and the
  project's names;
- of an echoed line of SQL: the whole line, if it contains only such words.

Everything else is replaced by `•••`. The messages are those of DuckDB 1.5.5.
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
# the line that dbt puts before a message, `Runtime Error in model orders (models/…)`, and the lines that dbt appends
_HEAD = re.compile(
    r"\A(\s*)((?:Runtime|Compilation|Database|Internal|Parsing|Validation|Dependency|Contract|Connection|Unhandled|"
    r"Encountered an|RPC) [eE]rror:?)([^\n]*)(?:\n|\Z)"
)
_BELOW = re.compile(r"\s*(?:> (?:in|called by)\b.*|compiled code at .*)?")
_ECHO = re.compile(r"\s*^LINE (\d{1,5}): ([^\n]*)\n( *\^)\s*\Z", re.MULTILINE)
_CALL = re.compile(r"An error occurred \((\w{1,40})\) when calling the (\w{1,40}) operation")
_COUNT = re.compile(r"Got \d+ results?, configured to (?:fail|warn) if [!<>=]+ ?\d+")
_FRAME = re.compile(r'  File "[^"\n]+", line \d+, in \w+')
# every non-ASCII character counts as part of a word, so that words include names in any script, and emojis
_WORD = re.compile(r"(?:\w|[^\x00-\x7f])+")
_SIZE = re.compile(r"\(\d{1,2}(?:, ?\d{1,2})?\)|\[\d{0,2}\]")
# macros that can bring query results into a model's SQL or into dbt's log
_QUERY_MACROS = frozenset({"macro.dbt.run_query", "macro.dbt.statement", "macro.dbt.load_result"})
# methods of `adapter` that return no values; any other use of `adapter` counts as returning values, even if `adapter`
# is only assigned to a variable
_HARMLESS = (
    "dispatch|quote|quote_as_configured|type|get_relation|load_relation|get_columns_in_relation|get_missing_columns"
)
_RUNS_QUERY = re.compile(rf"\b(?:run_query|load_result|statement|add_query)\b|\badapter\b(?!\s*\.\s*(?:{_HARMLESS})\b)")
# holes are greedy, so that everything up to the last occurrence of the next constant text counts as the value
_HOLES = {"…": r"(?:.*)", "<>": r"([\w .,()\[\]\":]+)"}


class Redactor:
    """Filters the messages from dbt and DuckDB about a project's nodes.

    Args:
        typed: code that the user typed, such as an inline query.
    """

    def __init__(self, project: Project, typed: Iterable[str] = ()) -> None:
        self.project, self.typed = project, tuple(typed)
        self._allowed: set[str] = set()
        # nodes found to read something that they don't declare and that a hook has created from personal data
        self._indirect: set[str] = set()
        # nodes whose Jinja has fetched values
        self._queried: set[str] = set()
        self._known: dict[str, frozenset[str]] = {}

    def allow(self, text: str) -> None:
        """Allows one of the platform's own messages to be shown unchanged, because it contains no values."""
        self._allowed.add(_squeezed(text))

    def mark_indirect_reader(self, node: str) -> None:
        """Records that a node reads something that another node has created from personal data."""
        self._indirect.add(node)

    def is_indirect_reader(self, node: str) -> bool:
        """Whether the node was marked by `mark_indirect_reader`."""
        return node in self._indirect

    def mark_queried(self, node: str) -> None:
        """Records that a node's Jinja has fetched values."""
        self._queried.add(node)

    # -- which nodes ----------------------------------------------------------------------------------------------

    def hides(self, node: str) -> bool:
        """Whether values are hidden in messages about a node, because it or one of its ancestors has pii columns.

        Messages that aren't about a node, or are about one that isn't in the project (hooks, inline queries), are
        filtered if any node has pii columns. The rows of a unit test are code from its YAML, so they are not hidden,
        unless they come from a query or the tested model's Jinja runs queries.
        """
        project = self.project
        if node in self._indirect:
            return self._any
        if node in project.unit_tests:
            unit = project.node(node)
            fixtures = [*unit["given"], unit["expect"]]
            is_code = all(one.get("format") != "sql" for one in fixtures) and not self.runs_queries(node)
            return not is_code and project.reads_pii(project.unit_tests[node])
        if node in project.sources or project.nodes.get(node, {}).get("resource_type") in ("model", "seed", "test"):
            return project.reads_pii(node)
        return self._any

    @cached_property
    def _any(self) -> bool:
        return any(self.project.pii(uid) for uid in (*self.project.sources, *self.project.nodes))

    def runs_queries(self, node: str) -> bool:
        """Whether a node's Jinja runs queries, whose results may then be in the node's SQL and log messages."""
        nodes, units = self.project.nodes, self.project.unit_tests
        if node in self._queried:
            return True
        if node in units:
            return self.runs_queries(units[node])
        if node not in nodes:
            return any(self.runs_queries(uid) for uid in nodes if nodes[uid]["resource_type"] != "operation")
        macros: Mapping[str, Any] = self.project.manifest["macros"]
        used = self.project.macros_used(nodes[node])
        texts = [str(macros[uid]["macro_sql"]) for uid in used if macros[uid]["package_name"] not in PLATFORM_PACKAGES]
        texts.append(str(nodes[node].get("raw_code", "")))
        return bool(used & _QUERY_MACROS) or any(_RUNS_QUERY.search(text) for text in texts)

    # -- filtering ------------------------------------------------------------------------------------------------

    def text(self, node: str, text: str) -> str:
        """Returns an error message or other text from dbt, filtered if the node's values must be hidden.

        Args:
            node: the unique id; '' if the text isn't about a node.
        """
        if not text.strip() or not self.hides(node):
            return text
        return self._shown(node, text)

    def free(self, node: str, text: str) -> str:
        """Returns the text of a `log()` or `print()` call in the project, hidden if it may contain query results."""
        return HIDDEN if text.strip() and self.hides(node) and self.runs_queries(node) else text

    def artifact(self, content: str) -> str:
        """Returns dbt's run_results.json or sources.json with messages filtered, and without compiled SQL that was
        built from query results."""
        document, hidden = json.loads(content), self.built_from_results()
        for result in document.get("results", []):
            for key in ("message", "error"):
                if isinstance(result.get(key), str) and str(result.get("status")) not in ("success", "pass"):
                    result[key] = self.text(str(result.get("unique_id")), result[key])
            if result.get("compiled_code") and result.get("unique_id") in hidden:
                result["compiled_code"] = HIDDEN
        return json.dumps(document)

    def compiled(self, content: str) -> str:
        """Returns dbt's manifest.json without compiled SQL that was built from query results."""
        document = json.loads(content)
        for node in self.built_from_results():
            if "compiled_code" in document["nodes"].get(node, {}):
                document["nodes"][node].update(compiled_code=HIDDEN, extra_ctes=[])
        return json.dumps(document)

    def built_from_results(self) -> frozenset[str]:
        """Returns the nodes and unit tests whose compiled SQL may contain values, because Jinja in the node, or in an
        ephemeral model that it includes, runs queries."""
        nodes = self.project.nodes
        parts = {uid for uid in nodes if nodes[uid]["config"].get("materialized") == "ephemeral"}
        querying = {uid for uid in nodes if self.hides(uid) and self.runs_queries(uid)}
        made = frozenset(uid for uid in nodes if querying & ({uid} | (self.project.ancestors[uid] & parts)))
        return made | {
            unit for unit, model in self.project.unit_tests.items() if model in made or unit in self._queried
        }

    def _shown(self, node: str, text: str) -> str:
        if _squeezed(text) in self._allowed or _COUNT.fullmatch(text.strip()):
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
        content = "\n".join(body)
        if _HEAD.match(content):
            shown = self._shown(node, content)
        elif kind.startswith(OF_THE_PROJECT):
            shown = HIDDEN if self.runs_queries(node) else content
        else:
            shown = self._body(node, content)
        inner = [margin + line if line.strip() else "" for line in (*(shown.split("\n") if content else ()), *below)]
        return "\n".join([first, *inner])

    def _body(self, node: str, text: str) -> str:
        """Filters what remains of a message after the lines that dbt adds (`_HEAD`, `_BELOW`) are removed."""
        if not text.strip() or _squeezed(text) in self._allowed or _COUNT.fullmatch(text.strip()):
            return text
        found = _KIND.match(text.strip())
        if found is None:
            if text.lstrip().startswith("Traceback "):
                return "\n".join(line for line in text.split("\n") if _FRAME.fullmatch(line))
            called = _CALL.match(text.strip())
            return f"{called.group(0)}: {HIDDEN}" if called else HIDDEN
        kind, content = found.groups()
        if kind.startswith(OF_THE_MACHINE):
            return text.strip()
        echo = _ECHO.search(content)
        at = ""
        if echo is not None:
            content = content[: echo.start()]
            if self._is_code(node, echo.group(2)):
                at = f"\n\nLINE {echo.group(1)}: {echo.group(2)}\n{echo.group(3)}"
        return kind + (self._of_code(node, content) if kind.startswith(OF_CODE) else self._of_data(node, content)) + at

    def _of_data(self, node: str, content: str) -> str:
        for shape, parts in _shapes():
            if found := shape.fullmatch(content.strip()):
                names = iter(found.groups())
                return "".join(
                    HIDDEN if part == "…" else self._name(node, next(names)) if part == "<>" else part for part in parts
                )
        return HIDDEN

    def _name(self, node: str, content: str) -> str:
        words = _WORD.findall(_SIZE.sub("", content))
        return content if all(word.lower() in self._words(node) for word in words) else HIDDEN

    def _of_code(self, node: str, content: str) -> str:
        """Hides the part of each line from the first to the last unknown word, extended to the first and last quote.
        Known words in between are hidden too, because they may belong to the same value."""
        known = self._words(node)

        def shown(line: str) -> str:
            words = _WORD.finditer(_SIZE.sub(lambda size: "(" * len(size.group()), line))
            odd = [found for found in words if found.group().lower() not in known]
            if not odd:
                return line
            quotes = [place for place, char in enumerate(line) if char in "\"'"]
            start, end = min([odd[0].start(), *(at + 1 for at in quotes)]), max([odd[-1].end(), *quotes])
            return f"{line[:start]}{HIDDEN}{line[end:]}"

        return "\n".join(shown(line) for line in content.split("\n"))

    def _is_code(self, node: str, line: str) -> bool:
        """Whether a line that DuckDB echoes contains only words from the code.

        DuckDB truncates long lines, even within a word.
        """
        known = self._words(node)
        cut_left, cut_right = line.startswith("..."), line.endswith("...")
        found = list(_WORD.finditer(line))
        for at, match in enumerate(found):
            word = match.group().lower()
            if word in known:
                continue
            is_tail = at == 0 and cut_left and any(one.endswith(word) for one in known)
            is_head = at == len(found) - 1 and cut_right and any(one.startswith(word) for one in known)
            if not is_tail and not is_head:
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
        """DuckDB's own words, the words of all macros, and all names in the project."""
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
    """Returns the names of DuckDB's keywords, types, functions and settings."""
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
    """Returns each shape as a regular expression, with its constant parts and holes in order."""
    if "shapes" not in _cache:
        parts = [[part for part in re.split("(…|<>)", line) if part] for line in SHAPES.splitlines()]
        # longest first, so that a hole of a shorter shape doesn't match the constant text of a longer one
        parts.sort(key=lambda line: -len("".join(line)))
        _cache["shapes"] = [
            (re.compile("".join(_HOLES.get(part) or re.escape(part) for part in line), re.DOTALL), line)
            for line in parts
        ]
    shapes: list[tuple[re.Pattern[str], list[str]]] = _cache["shapes"]
    return shapes
