"""Lets the local Athena read Iceberg tables; unpatched, MiniStack would read the files at a table's location as CSV.

Each Iceberg table that a query names becomes a view over `iceberg_scan('<metadata_location>')` in the query's own
DuckDB connection. The view has the table's database and name, in a catalog named `AwsDataCatalog` as in Athena. So the
query's text needs no rewriting for these tables: DuckDB's binder resolves the names (CTEs, quoting, qualified columns).
Each view is bound once per query, so the whole query sees one version of the table.

A query can read S3 and the copies that MiniStack makes of other tables' files, but none of the other files that this
process can read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import duckdb

from busco.embedded import ministack_contract, policies
from busco.embedded.athena_catalog import CATALOG
from busco.embedded.athena_checks import check_query
from busco.embedded.door import CALLER
from busco.lake.engine import extension_file
from busco.warehouse.guard import Guard

EXTENSIONS = ("httpfs", "avro", "iceberg")

# The MiniStack functions that this patch wraps or calls, with the parameters that they had when it was written.
EXPECTED = {
    "services.athena._run_duckdb": ["query", "database", "catalog"],
    "services.athena._rewrite_data_paths": ["query", "database", "catalog"],
    "services.athena._attach_s3_table_buckets": ["conn", "buckets"],
    "services.athena._table_references": ["query"],
    "services.athena._empty_relation": ["table_data"],
    "services.athena._sql_tokens": ["sql"],
    "services.athena._run_ddl": ["ddl", "database"],
    "services.athena._materialize_table_files": ["location", "workdirs"],
}

# DuckDB's two error messages for a missing table: in a schema that is also missing, and in one that exists.
_NO_TABLE = re.compile(
    r'Table with name (?:"(?P<whole>.+)" does not exist because schema "(?P<schema>.+)" does not exist'
    r"|(?P<table>.+?) does not exist)"
)
_NO_CATALOG = f'Catalog "{CATALOG}" does not exist'

Table = tuple[str, str]
"""(database, table): the names in Glue, in lower case."""


@dataclass(frozen=True)
class Reader:
    """How a query's connection reads S3.

    Args:
        endpoint: the local AWS's endpoint, `http://127.0.0.1:<port>`.
        region: the local AWS's region.
    """

    endpoint: str
    region: str


class _Attachments(dict[str, str]):
    """The table buckets that MiniStack attaches to a query's connection, plus what this patch adds to the connection.

    `folders` contain MiniStack's copies of the query's other tables. An instance is always true, even without table
    buckets, so that MiniStack passes every query's connection to the patch.
    """

    def __init__(
        self, buckets: Mapping[str, str], views: Mapping[Table, str], database: str, folders: Sequence[str]
    ) -> None:
        super().__init__(buckets)
        self.folders = folders
        self.views = dict(views)
        self.database = database

    def __bool__(self) -> bool:
        return True


_left_to_views: ContextVar[tuple[str, frozenset[Table]]] = ContextVar("_left_to_views", default=("", frozenset()))


def install(reader: Reader) -> None:
    """Patches `ministack.services.athena` in this process. Call this before serving requests.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    import ministack.services.athena as athena
    from ministack.core import iam_evaluator
    from ministack.services import glue

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_athena.py")
    original_rewrite = athena._rewrite_data_paths
    original_attach = athena._attach_s3_table_buckets
    original_references = athena._table_references
    original_ddl, original_files = athena._run_ddl, athena._materialize_table_files
    guard = Guard()
    original_run = athena._run_duckdb

    async def rewrite(query: str, database: str | None, catalog: str | None = None) -> tuple[str, Any, list[str]]:
        check_query(guard, query, list(athena._sql_tokens(query)))
        context = (database or "default").lower()
        views = _iceberg_views(athena, query, glue._tables, context)
        token = _left_to_views.set((context, frozenset(views)))
        try:
            rewritten, buckets, workdirs = await original_rewrite(query, database, catalog)
        finally:
            _left_to_views.reset(token)
        return rewritten, _Attachments(buckets, views, context, workdirs), workdirs

    def references(query: str) -> list[Any]:
        context, views = _left_to_views.get()
        found = original_references(query)
        return [one for one in found if ((one.database or context).lower(), one.table.lower()) not in views]

    def attach(connection: duckdb.DuckDBPyConnection, buckets: _Attachments) -> None:
        connection.execute("SET autoinstall_known_extensions = false")
        if buckets.views:
            _create_views(connection, reader, buckets)
        if len(buckets):
            original_attach(connection, dict(buckets))
        _close(connection, buckets.folders)

    def ddl(statement: Any, database: str | None) -> Any:
        # MiniStack runs DDL without checking permissions for Glue or S3.
        if not iam_evaluator.is_root_access_key(CALLER.get()):
            raise PermissionError("only the account owner can run DDL in Athena here; use Glue's API instead")
        return original_ddl(statement, database)

    def files(location: str, workdirs: list[str]) -> list[str]:
        for arn in _objects_at(location):
            if policies.denied("s3:GetObject", arn):
                raise PermissionError(f"Access Denied (Service: Amazon S3; Status Code: 403): {arn}")
        return list(original_files(location, workdirs))

    athena._run_ddl = ddl
    athena._materialize_table_files = files

    async def run(query: str, database: str | None, catalog: str | None = None) -> Any:
        try:
            return await original_run(query, database, catalog)
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            context = (database or "default").lower()
            if reason := _not_found(str(error), query, list(athena._sql_tokens(query)), _in_glue(glue), context):
                raise LookupError(reason) from error
            raise

    athena._run_duckdb = run
    athena._rewrite_data_paths = rewrite
    athena._attach_s3_table_buckets = attach
    athena._table_references = references


def _objects_at(location: str) -> Iterator[str]:
    """Yields the ARNs of the objects under a table's location."""
    from ministack.services import s3

    place = urlsplit(location)
    prefix = place.path.lstrip("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    bucket = s3._buckets.get(place.netloc)
    for key in sorted(bucket["objects"]) if bucket else ():
        if key.startswith(prefix):
            yield f"arn:aws:s3:::{place.netloc}/{key}"


def _iceberg_views(athena: Any, query: str, tables: Any, context: str) -> dict[Table, str]:
    """Returns the Iceberg tables that a query may refer to, each with the relation for its view.

    A table is included if its name appears anywhere in the query: an extra view (because a column has the same name)
    costs little, while a missing view would make the query fail. If a query names `information_schema`, which lists the
    views that exist, all other Iceberg tables are included too, with their columns but without rows.
    """
    names = {text.lower() for kind, text, _, _ in athena._sql_tokens(query) if kind in ("name", "qname")}
    views: dict[Table, str] = {}
    for key, table in list(tables.items()):
        database, _, name = str(key).lower().partition("/")
        parameters = table.get("Parameters") or {}
        location = parameters.get("metadata_location")
        if parameters.get("table_type", "").upper() != "ICEBERG" or not location:
            continue
        if name in names and (database in names or database == context):
            views[(database, name)] = f"iceberg_scan({_literal(location)})"
        elif "information_schema" in names:
            views[(database, name)] = athena._empty_relation(table)
    return views


def _in_glue(glue: Any) -> tuple[frozenset[str], frozenset[Table]]:
    """Returns the names of the databases and tables in Glue."""
    tables = [str(key).lower().partition("/") for key in list(glue._tables)]
    databases = frozenset(str(name).lower() for name in list(glue._databases))
    return databases, frozenset((database, name) for database, _, name in tables)


def _not_found(
    error: str,
    query: str,
    tokens: Sequence[tuple[str, str, int, int]],
    in_glue: tuple[frozenset[str], frozenset[Table]],
    context: str,
) -> str:
    """Returns Athena's error message for a table or database that isn't in Glue; '' for any other error.

    DuckDB's own message describes the query's connection, which has a schema for a database only if the query reads a
    table in that database.

    Args:
        error: DuckDB's error message.
        tokens: the query's tokens (`ministack.services.athena._sql_tokens`).
        context: the database that unqualified names refer to.
    """
    found = _NO_TABLE.search(error)
    if found is None and _NO_CATALOG.lower() not in error.lower():
        return ""
    schema = (found["schema"] or "").lower() if found else ""
    table = (found["table"] or found["whole"]).lower().removeprefix(f"{schema}.") if found else ""
    databases, tables = in_glue
    # A column can have the same name as a table, so names that are qualified with a database are tried first.
    for start, *parts in sorted(_dotted(tokens), key=len, reverse=True):
        database, name = (parts[-2] if len(parts) > 1 else context), parts[-1]
        is_it = (name, schema or database) == (table, database) if found else parts[0] == CATALOG
        if not is_it or (database, name) in tables:
            continue
        where = f"line {query.count(chr(10), 0, start) + 1}:{start - query.rfind(chr(10), 0, start)}"
        if database not in databases:
            return f"SCHEMA_NOT_FOUND: {where}: Schema '{database}' does not exist"
        return f"TABLE_NOT_FOUND: {where}: Table '{CATALOG}.{database}.{name}' does not exist"
    return ""


def _dotted(tokens: Sequence[tuple[str, str, int, int]]) -> list[list[Any]]:
    """Returns each name in a query as its position and lower-case parts; `a.b.c` is one name with three parts."""
    found: list[list[Any]] = []
    continues = False
    for kind, text, start, _ in tokens:
        if kind not in ("name", "qname"):
            continues = text == "." and bool(found)
        elif continues:
            found[-1].append(text.lower())
            continues = False
        else:
            found.append([start, text.lower()])
    return found


def _create_views(connection: duckdb.DuckDBPyConnection, reader: Reader, attachments: _Attachments) -> None:
    endpoint = urlsplit(reader.endpoint)
    for name in EXTENSIONS:
        connection.execute(f"LOAD {_literal(str(extension_file(name)))}")
    key, secret, token = _keys_of_caller()
    connection.execute(
        f"CREATE SECRET busco (TYPE S3, KEY_ID {_literal(key)}, SECRET {_literal(secret)}, "
        f"SESSION_TOKEN {_literal(token)}, URL_STYLE 'path', "
        f"ENDPOINT {_literal(endpoint.netloc)}, USE_SSL {'true' if endpoint.scheme == 'https' else 'false'}, "
        f"REGION {_literal(reader.region)})"
    )
    connection.execute(f"ATTACH ':memory:' AS {CATALOG}")
    for database in {attachments.database, *(database for database, _ in attachments.views)}:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {CATALOG}.{_quoted(database)}")
    for (database, table), relation in attachments.views.items():
        view = f"{CATALOG}.{_quoted(database)}.{_quoted(table)}"
        connection.execute(f"CREATE VIEW {view} AS SELECT * FROM {relation}")
    connection.execute(f"USE {CATALOG}.{_quoted(attachments.database)}")


def _keys_of_caller() -> tuple[str, str, str]:
    """Returns the caller's key, secret and session token: as on AWS, a query can read only what its caller can."""
    from ministack.core import iam_evaluator

    found = iam_evaluator.resolve_credential(CALLER.get())
    if isinstance(found, iam_evaluator.CredentialResolutionError):
        raise PermissionError(found.message)
    return found.access_key_id, found.secret_access_key, found.session_token or ""


def _close(connection: duckdb.DuckDBPyConnection, folders: Sequence[str]) -> None:
    """Denies a query access to all files except those in S3 and under `folders` (DuckDB, "Securing DuckDB")."""
    allowed = ", ".join(_literal(folder) for folder in ("s3://", *(f"{one}/" for one in folders)))
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
