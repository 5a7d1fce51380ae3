"""Checks every SQL statement of a project before it runs on DuckDB, and refuses those that are not allowed.

Everything that dbt sends to DuckDB passes through this module: models, hooks, tests, `run_query` and `statement` in
Jinja, and the platform's own statements, which are granted one by one (`Guard.grant`). DuckDB's own parser determines
the type of a statement, and DuckDB's own lexer determines function names and strings. Comments, quoting, multiple
statements in one string and Unicode spaces therefore can't make the guard see a different statement than the one that
DuckDB runs.

DuckDB's own settings are a second line of defense (`busco.lake.engine.close`): a statement that got past the guard
could still open only the tables' own files. Decision 024 describes what the guard protects and what the settings
protect.
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

# The allowed statements, by DuckDB's StatementType and by their first word. Whether a statement that creates, drops,
# alters or sets something is allowed also depends on the kind of object (`_KINDS`).
_ALLOWED = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE_INTO", "TRANSACTION", "VACUUM", "ANALYZE", "CREATE", "DROP"}
    | {"ALTER", "SET"}
)
QUERIES = frozenset({"select", "with", "from", "pivot", "pivot_wider", "unpivot", "values", "describe", "summarize"})
_FIRST = QUERIES | frozenset(
    {"(", "show", "table", "insert", "update", "delete", "truncate", "merge", "begin", "start", "commit", "end"}
    | {"rollback", "abort", "vacuum", "analyze", "create", "drop", "alter", "comment", "set", "reset"}
)
_OBJECTS = frozenset({"table", "view", "macro", "function", "schema", "type", "sequence", "index"})
# first word → the words that can come between the first word and the kind of object, and the allowed kinds of object
_KINDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "create": (frozenset({"or", "replace", "temp", "temporary", "unique", "recursive"}), _OBJECTS),
    "drop": (frozenset(), _OBJECTS),
    "alter": (frozenset(), _OBJECTS),
    "comment": (frozenset({"on"}), _OBJECTS | {"column"}),
    "set": (frozenset(), frozenset({"variable"})),
    "reset": (frozenset(), frozenset({"variable"})),
}

# The refused functions, by reason. A test compares them with all of DuckDB's table functions.
_REASONS = {
    "it reads or lists files": """
        glob read_blob read_csv read_csv_auto read_duckdb read_json read_json_auto read_json_objects
        read_json_objects_auto read_ndjson read_ndjson_auto read_ndjson_objects read_parquet read_text parquet_scan
        parquet_metadata parquet_schema parquet_file_metadata parquet_full_metadata parquet_kv_metadata
        parquet_bloom_probe sniff_csv sql_auto_complete iceberg_scan iceberg_metadata iceberg_snapshots read_avro""",
    "it shows the connection's settings and secrets": """
        current_setting duckdb_settings duckdb_secrets which_secret pg_settings getenv""",
    "it reads or writes DuckDB's logs": """
        duckdb_logs duckdb_logs_parsed duckdb_log_contexts truncate_duckdb_logs enable_logging disable_logging
        write_log enable_profiling enable_profile""",
    "it runs SQL that cannot be checked beforehand": "query query_table json_execute_serialized_sql",
    "it reads the memory of this process": "arrow_scan arrow_scan_dumb pandas_scan python_map_function seq_scan",
}
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}
# Some refused functions are also views, which can be read without parentheses.
_VIEWS = frozenset({"pg_settings", "duckdb_settings", "duckdb_secrets", "duckdb_logs"})

# what dbt may add before or after a statement: a comment (`query-comment`), spaces and a semicolon, all optional
_COMMENT = re.compile(r"\s*(?:/\*(?:(?!/\*|\*/).)*\*/)?\s*;?\s*", re.DOTALL)
# The statement that dbt-duckdb runs to load a seed's file (in its macro `duckdb__load_csv_rows`).
_NAME = r'(?:"(?:[^"]|"")*"|\w+)'
_SEED = re.compile(
    rf"copy\s+{_NAME}(?:\.{_NAME})*\s+from\s+'([^']*)'\s*\(format csv, header true, delimiter '[^']+'\)",
    re.IGNORECASE,
)
# a single string, not followed by anything that could join another string to it
_PLAIN_STRING = re.compile(r"'(?:[^']|'')*' *")
_MAX_SHOWN = 200


class Guard:
    """The rules for the SQL of one dbt process.

    Args:
        bucket: the lake's bucket; '' if there is none.
        seeds: the files that dbt may load as seeds.
        redactor: hides the values of pii columns. The guard registers its refusals with the redactor as messages that
            contain no values.
        scope: what the SQL of the project's nodes may name; None if there is no project.
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
        """Allows exactly this statement, which the platform has built, to run once."""
        with self._lock:
            self._granted.add(sql.strip())

    def check(self, sql: str, node: str = "") -> bool:
        """Checks all statements in the SQL before any of them runs.

        Args:
            node: the unique id of the node that runs the SQL; '' for none.

        Returns:
            Whether the results may contain personal data.

        Raises:
            BuscoError: one of the statements is refused; the message states the node, the line and the reason.
            duckdb.ParserException: DuckDB can't parse the SQL.
        """
        if not self._is_granted(sql) and not self._is_seed(sql):
            # line numbers start after the comment that dbt adds before a statement
            _, statements = self._check(sql[_beginning(sql) :], node)
            return self._record(statements, node)
        return False

    def check_question(self, sql: str, node: str = "") -> None:
        """Refuses a model's SQL unless it is a single query, since the SQL is embedded in another statement.

        Raises:
            BuscoError, duckdb.ParserException: as for `check`.
        """
        types, statements = self._check(sql, node)
        if not statements:
            raise BuscoError(
                f"{node or 'this SQL'} is empty: without comments and Jinja, no SQL is left",
                "write a select; or, to keep the file without building the model: {{ config(enabled=false) }}",
            )
        is_query = len(statements) == 1 and types[-1:] == ["SELECT"] and {*types} <= {"SELECT", "CREATE"}
        if not is_query or word(statements[0][0]) not in QUERIES | {"("}:
            reason = "a model's SQL must be a single query (select)" if node else "only a query can run here"
            raise self._refusal(sql, node, None, reason)
        self._record(statements, node)

    # -- the rules ----------------------------------------------------------------------------------------------------

    def _check(self, sql: str, node: str) -> tuple[list[str], list[list[Token]]]:
        """Checks the statements. Returns the types of the statements that DuckDB runs, and each statement's tokens as
        written."""
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
            if reason := self._token_refused(token, after, node):
                raise self._refusal(text, node, token, reason)
        for statement in statements:
            problem = scopes.own_problem(statement) or (self.scope and self.scope.refused(node, statement))
            if problem:
                raise self._refusal(text, node, *problem)
        return types, statements

    def _record(self, statements: list[list[Token]], node: str) -> bool:
        """Records what a node's statements name and create. Returns whether they may return personal data."""
        if self.scope is None:
            return False
        for statement in statements:
            if self._redactor is not None and self.scope.names_hook_objects(node, statement):
                self._redactor.mark_indirect_reader(node)
            self.scope.record(node, statement)
        return any(self.scope.is_personal(statement) for statement in statements)

    def _parsed(self, sql: str, node: str) -> tuple[list[str], str]:
        """Returns the types of the statements, and their text as DuckDB's lexer reads it: with plain spaces."""
        try:
            with self._lock:
                found = self._parser.extract_statements(sql)
                types = [one.type.name for one in found]
                queries = [one.query for one in found]
        except duckdb.ParserException:
            # DuckDB's own message already names the line
            raise
        except (duckdb.Error, RuntimeError) as error:
            # parsing this SQL requires files or extensions (IMPORT DATABASE, PRAGMA)
            raise self._refusal(sql, node, None, str(error).splitlines()[0]) from error
        if not _odd_spaces(sql):
            return types, sql
        if not all(queries):
            reason = "it has a pivot and non-ASCII spaces; replace these spaces with plain ones"
            raise self._refusal(sql, node, None, reason)
        return types, ";".join(queries)

    @cached_property
    def _parser(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection that is used only to parse."""
        made = duckdb.connect(":memory:", config={"threads": 1, "autoload_known_extensions": "false"})
        made.execute("set autoinstall_known_extensions = false; set enable_external_access = false")
        return made

    def _token_refused(self, token: Token, after: Token | None, node: str) -> str:
        if token.kind == "string_const":
            return self._string_refused(token.text, node)
        if token.kind not in ("identifier", "keyword"):
            return ""
        name = token.name
        if "s3:/" in name:
            # a path is used as a table's name; if a dot and another name follow, DuckDB appends them to the path
            return _path_reason(node)
        if name in _VIEWS or (name in REFUSED and after is not None and after.text.startswith("(")):
            return f"{name}: {REFUSED[name]}"
        return ""

    def _string_refused(self, text: str, node: str) -> str:
        """Returns why a string is refused; '' if it isn't. A string can be used as a table: `from 's3://…'`."""
        if not self._lake:
            return ""
        if not _PLAIN_STRING.fullmatch(text):
            # it has escapes, or continues on another line: let DuckDB evaluate it
            with self._lock:
                row = self._parser.execute(f"select {text}").fetchone()
            text = str(row[0]) if row else text
        return _path_reason(node) if self._lake in text else ""

    # -- the platform's own statements --------------------------------------------------------------------------------

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

    # -- messages -----------------------------------------------------------------------------------------------------

    def _refusal(self, text: str, node: str, token: Token | None, reason: str) -> BuscoError:
        number = token.line if token else 1
        lines = text.split("\n")
        shown = lines[number - 1].strip() if number <= len(lines) else ""
        if self._redactor is not None and self._redactor.hides(node) and self._redactor.runs_queries(node):
            # the SQL may contain a query's results
            shown = HIDDEN
        error = BuscoError(
            f"{node or 'this SQL'} was rejected before it ran: {reason}\nLINE {number}: {shown[:_MAX_SHOWN]}",
            'see docs/modelling.md, section "What a model\'s SQL may do", for what to write instead',
        )
        if self._redactor is not None:
            self._redactor.allow(str(error))
        return error


def _why(kind: str) -> str:
    return {
        "COPY": "COPY reads and writes files; only the platform writes a model's rows",
        "EXPORT": "EXPORT writes files",
        "ATTACH": "ATTACH opens another database; use a source",
        "DETACH": "DETACH closes a database",
        "LOAD": "INSTALL and LOAD load code into the runner",
        "PREPARE": "PREPARE hides what is run; write the statement itself",
        "EXECUTE": "EXECUTE hides what is run; write the statement itself",
        "CALL": "CALL runs a function for its side effects; write a select",
        "EXPLAIN": "EXPLAIN returns a plan, and EXPLAIN ANALYZE runs the query; explain it with busco query",
        "SET": "USE changes the connection's settings",
    }.get(kind, "models cannot use this kind of statement")


def _refused(statement: list[Token], bad: list[str]) -> str:
    """Returns why a statement's first words are refused; '' if they aren't. `bad` lists the SQL's refused statement
    types."""
    first = word(statement[0])
    if first == "pragma":
        return "PRAGMA shows and changes settings; select from the function pragma_… instead"
    if first not in _FIRST:
        return _why(bad[0] if bad else "SET" if first == "use" else "")
    if first not in _KINDS:
        return ""
    between, kinds = _KINDS[first]
    kind = next((word for word in map(word, statement[1:]) if word not in between), "")
    if kind in kinds:
        return ""
    if first in ("set", "reset"):
        return "SET and RESET change the connection's settings; hooks can only use `SET VARIABLE`"
    return f"{first} {kind} is not allowed; hooks can use {first} with: {', '.join(sorted(kinds))}"


def _beginning(sql: str) -> int:
    """Returns the position of the first character after any leading white space and comment."""
    comment = _COMMENT.match(sql)
    return comment.end() if comment else 0


def _path_reason(node: str) -> str:
    if not node:
        return "it names a path; read tables by name"
    return "it names a path in the lake; use ref() and source() to read tables"


def _odd_spaces(sql: str) -> bool:
    """Returns whether the SQL contains characters that DuckDB might convert to a space before its lexer sees them."""
    return not sql.isascii() and any(
        ord(char) > 127 and (char.isspace() or unicodedata.category(char) in ("Zs", "Zl", "Zp", "Cf")) for char in sql
    )
