"""What a project's SQL may do on its DuckDB: every statement is looked at before it runs.

All that dbt sends to DuckDB comes by here: models, hooks, tests, `run_query` and `statement` in Jinja, and the
platform's own statements, which are granted one by one (`Guard.grant`). A statement is what DuckDB's own parser says
that it is; names of functions and strings are the tokens of DuckDB's own lexer. So neither comments, quoting, several
statements in one text nor a Unicode space can make this see another statement than DuckDB runs.

DuckDB's own settings hold beside it (`busco.lake.engine.close`): what got past this would still reach no file but the
tables' own. Decision 024 says which of the two keeps what.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Collection
from functools import cached_property
from itertools import zip_longest

import duckdb

from busco.errors import BuscoError
from busco.warehouse import scope as scopes
from busco.warehouse.redact import HIDDEN, Redactor
from busco.warehouse.scope import Scope
from busco.warehouse.tokens import Token, split, tokens, word

# Statements by DuckDB's StatementType, and the words by which they begin. What creates, drops, alters or sets something
# is told apart by the kind of thing (`_KINDS`).
_ALLOWED = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE_INTO", "TRANSACTION", "VACUUM", "ANALYZE", "CREATE", "DROP"}
    | {"ALTER", "SET"}
)
_ASKING = frozenset({"select", "with", "from", "pivot", "pivot_wider", "unpivot", "values", "describe", "summarize"})
_FIRST = _ASKING | frozenset(
    {"(", "show", "table", "insert", "update", "delete", "truncate", "merge", "begin", "start", "commit", "end"}
    | {"rollback", "abort", "vacuum", "analyze", "create", "drop", "alter", "comment", "set", "reset"}
)
_THINGS = frozenset({"table", "view", "macro", "function", "schema", "type", "sequence", "index"})
# first word → the words that may stand between it and the kind of thing, and the kinds that are allowed
_KINDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "create": (frozenset({"or", "replace", "temp", "temporary", "unique", "recursive"}), _THINGS),
    "drop": (frozenset(), _THINGS),
    "alter": (frozenset(), _THINGS),
    "comment": (frozenset({"on"}), _THINGS | {"column"}),
    "set": (frozenset(), frozenset({"variable"})),
    "reset": (frozenset(), frozenset({"variable"})),
}

# Why functions are refused, and which. A test compares them with all table functions of DuckDB.
_REASONS = {
    "it reads or lists files": """
        glob read_blob read_csv read_csv_auto read_duckdb read_json read_json_auto read_json_objects
        read_json_objects_auto read_ndjson read_ndjson_auto read_ndjson_objects read_parquet read_text parquet_scan
        parquet_metadata parquet_schema parquet_file_metadata parquet_full_metadata parquet_kv_metadata
        parquet_bloom_probe sniff_csv sql_auto_complete iceberg_scan iceberg_metadata iceberg_snapshots read_avro""",
    "it shows settings and secrets of the connection": """
        current_setting duckdb_settings duckdb_secrets which_secret pg_settings getenv""",
    "it reads or writes logs of DuckDB": """
        duckdb_logs duckdb_logs_parsed duckdb_log_contexts truncate_duckdb_logs enable_logging disable_logging
        write_log enable_profiling enable_profile""",
    "it runs SQL that cannot be checked before": "query query_table json_execute_serialized_sql",
    "it reads memory of this process": "arrow_scan arrow_scan_dumb pandas_scan python_map_function seq_scan",
}
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}
# They are views too, which are read without parentheses.
_VIEWS = frozenset({"pg_settings", "duckdb_settings", "duckdb_secrets", "duckdb_logs"})

# what begins a comment that dbt puts before or after a statement (`query-comment`)
_COMMENT = re.compile(r"\s*(?:/\*(?:(?!/\*|\*/).)*\*/)?\s*;?\s*", re.DOTALL)
# The statement by which dbt-duckdb loads a seed's file (its macro `duckdb__load_csv_rows`).
_NAME = r'(?:"(?:[^"]|"")*"|\w+)'
_SEED = re.compile(
    rf"copy\s+{_NAME}(?:\.{_NAME})*\s+from\s+'([^']*)'\s*\(format csv, header true, delimiter '[^']+'\)",
    re.IGNORECASE,
)
# one string, behind which nothing follows that could join another one to it
_PLAIN_STRING = re.compile(r"'(?:[^']|'')*' *")
_MOST = 200


class Guard:
    """The rules for the SQL of one dbt process.

    Args:
        bucket: the lake's; '' where there is none.
        seeds: files that dbt may load as seeds.
        redactor: what hides values of pii columns, and is told of refusals, in which there are none.
        scope: what SQL of the project's nodes may name; None where there is no project.
    """

    def __init__(
        self,
        bucket: str = "",
        seeds: Collection[str] = (),
        redactor: Redactor | None = None,
        scope: Scope | None = None,
    ) -> None:
        self._lake, self._seeds = f"s3://{bucket}/" if bucket else "", frozenset(seeds)
        self._redactor, self.scope = redactor, scope
        self._granted: set[str] = set()
        self._lock = threading.Lock()

    def grant(self, sql: str) -> None:
        """Lets this very statement run once: it is the platform's own."""
        with self._lock:
            self._granted.add(sql.strip())

    def check(self, sql: str, node: str = "") -> bool:
        """Refuses a text of statements, before any of them runs.

        Args:
            node: unique id of the node at work; '' for none.

        Returns whether what it gives may be personal values.

        Raises:
            BuscoError: one of them may not be run; with the node, the line and the reason.
            duckdb.ParserException: DuckDB can't read it.
        """
        if not self._is_granted(sql) and not self._is_seed(sql):
            # lines are counted behind the comment that dbt puts before a statement
            _, statements = self._check(sql[_beginning(sql) :], node)
            return self._seen(statements, node)
        return False

    def check_question(self, sql: str, node: str = "") -> None:
        """Refuses a model's SQL that is not one statement that asks; what is put into another one must be that.

        Raises:
            BuscoError, duckdb.ParserException: as `check`.
        """
        types, statements = self._check(sql, node)
        asks = len(statements) == 1 and types[-1:] == ["SELECT"] and {*types} <= {"SELECT", "CREATE"}
        if not asks or word(statements[0][0]) not in _ASKING | {"("}:
            raise self._refusal(sql, node, None, "a model's SQL is one statement that asks (select)")
        self._seen(statements, node)

    # -- the rules ----------------------------------------------------------------------------------------------------

    def _check(self, sql: str, node: str) -> tuple[list[str], list[list[Token]]]:
        """The types of the statements, as DuckDB runs them, and the tokens of each, as they are written."""
        types, text = self._parsed(sql, node)
        found = list(tokens(text))
        statements = [one for one in split(found) if one]
        bad = [kind for kind in types if kind not in _ALLOWED]
        for statement in statements:
            if reason := _refused(statement, bad):
                raise self._refusal(text, node, statement[0], reason)
        if bad:
            raise self._refusal(text, node, None, _why(bad[0]))
        for token, after in zip_longest(found, found[1:]):
            if reason := self._token_refused(token, after):
                raise self._refusal(text, node, token, reason)
        for statement in statements:
            problem = scopes.own_problem(statement) or (self.scope and self.scope.refused(node, statement))
            if problem:
                raise self._refusal(text, node, *problem)
        return types, statements

    def _seen(self, statements: list[list[Token]], node: str) -> bool:
        """Takes note of what a node's statements name and make; gives whether they ask for personal values."""
        if self.scope is None:
            return False
        for statement in statements:
            if self._redactor is not None and self.scope.names_made(node, statement):
                self._redactor.reads_more(node)
            self.scope.learn(node, statement)
        return any(self.scope.is_personal(statement) for statement in statements)

    def _parsed(self, sql: str, node: str) -> tuple[list[str], str]:
        """The types of the statements, and their text as DuckDB's lexer reads it: with plain spaces."""
        try:
            with self._lock:
                found = self._parser.extract_statements(sql)
                types = [one.type.name for one in found]
                queries = [one.query for one in found]
        except duckdb.ParserException:
            # DuckDB's own word for it, with the line
            raise
        except (duckdb.Error, RuntimeError) as error:
            # it wants files or extensions to be read at all (IMPORT DATABASE, PRAGMA)
            raise self._refusal(sql, node, None, str(error).splitlines()[0]) from error
        if not _odd_spaces(sql):
            return types, sql
        if not all(queries):
            raise self._refusal(sql, node, None, "it has spaces other than the plain one beside a pivot; replace them")
        return types, ";".join(queries)

    @cached_property
    def _parser(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB that only parses."""
        made = duckdb.connect(":memory:", config={"threads": 1, "autoload_known_extensions": "false"})
        made.execute("set autoinstall_known_extensions = false; set enable_external_access = false")
        return made

    def _token_refused(self, token: Token, after: Token | None) -> str:
        if token.kind == "string_const":
            return self._string_refused(token.text)
        if token.kind not in ("identifier", "keyword"):
            return ""
        name = token.name
        if "s3:/" in name:
            # as a table's name, to which DuckDB would add what follows a dot
            return _path_reason()
        if name in _VIEWS or (name in REFUSED and after is not None and after.text.startswith("(")):
            return f"{name}: {REFUSED[name]}"
        return ""

    def _string_refused(self, text: str) -> str:
        """A string may stand for a table: `from 's3://…'`."""
        if not self._lake:
            return ""
        if not _PLAIN_STRING.fullmatch(text):
            # it has escapes, or goes on behind white space with a newline or carriage return: DuckDB says what it is
            with self._lock:
                row = self._parser.execute(f"select {text}").fetchone()
            text = str(row[0]) if row else text
        return _path_reason() if self._lake in text else ""

    # -- what is the platform's own -----------------------------------------------------------------------------------

    def _is_granted(self, sql: str) -> bool:
        with self._lock:
            for granted in self._granted:
                before, found, after = sql.partition(granted)
                if found and _COMMENT.fullmatch(before) and _COMMENT.fullmatch(after):
                    self._granted.discard(granted)
                    return True
        return False

    def _is_seed(self, sql: str) -> bool:
        found = _SEED.match(sql, _beginning(sql))
        return found is not None and found.group(1) in self._seeds and bool(_COMMENT.fullmatch(sql[found.end() :]))

    # -- what is said -------------------------------------------------------------------------------------------------

    def _refusal(self, text: str, node: str, token: Token | None, reason: str) -> BuscoError:
        number = token.line if token else 1
        lines = text.split("\n")
        shown = lines[number - 1].strip() if number <= len(lines) else ""
        if self._redactor is not None and self._redactor.hides(node) and self._redactor.asks(node):
            # a query's answer may be in the SQL
            shown = HIDDEN
        error = BuscoError(
            f"{node or 'this SQL'} is refused before it runs: {reason}\nLINE {number}: {shown[:_MOST]}",
            'docs/modelling.md, section "What a model\'s SQL may do", says what to write instead',
        )
        if self._redactor is not None:
            self._redactor.tell(str(error))
        return error


def _why(kind: str) -> str:
    return {
        "COPY": "COPY reads and writes files; a model's rows are written by the platform",
        "EXPORT": "EXPORT writes files",
        "ATTACH": "ATTACH opens another database; read sources",
        "DETACH": "DETACH closes a database",
        "LOAD": "INSTALL and LOAD bring code into the runner",
        "PREPARE": "PREPARE hides what is run; write the statement itself",
        "EXECUTE": "EXECUTE hides what is run; write the statement itself",
        "CALL": "CALL runs a function for what it does; write a select",
        "EXPLAIN": "EXPLAIN ANALYZE runs what it explains; ask busco query",
        "SET": "USE changes settings of the connection",
    }.get(kind, "it is no statement of a model")


def _refused(statement: list[Token], bad: list[str]) -> str:
    """Why a statement is refused by the words that it begins with, '' if it isn't; `bad` are types that are."""
    first = word(statement[0])
    if first == "pragma":
        return "PRAGMA shows and changes settings; write a select from the function pragma_…"
    if first not in _FIRST:
        return _why(bad[0] if bad else "SET" if first == "use" else "")
    if first not in _KINDS:
        return ""
    between, things = _KINDS[first]
    thing = next((word for word in map(word, statement[1:]) if word not in between), "")
    if thing in things:
        return ""
    if first in ("set", "reset"):
        return "SET and RESET change settings of the connection; a hook may set variable"
    return f"{first} {thing}; a hook may {first} {', '.join(sorted(things))}"


def _beginning(sql: str) -> int:
    """Where a text begins behind white space and a comment."""
    comment = _COMMENT.match(sql)
    return comment.end() if comment else 0


def _path_reason() -> str:
    return "it names a path in the lake; read tables by ref() and source()"


def _odd_spaces(sql: str) -> bool:
    """Whether a text has characters that DuckDB might take for a space before its lexer sees them."""
    return not sql.isascii() and any(
        ord(char) > 127 and (char.isspace() or unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cf")) for char in sql
    )
