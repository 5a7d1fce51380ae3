"""Makes the local Athena write query results to the same location and in the same format as Athena on AWS.

Instead of requesting the rows, clients such as awswrangler and PyAthena's pandas cursor read the file that
GetQueryExecution names. Without this patch, GetQueryExecution names `<location><query id>.csv`, but MiniStack writes
the file to `<location><query id>.csv/<query id>.csv`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from busco.embedded import ministack_contract, policies
from busco.embedded.athena_catalog import is_utility
from busco.embedded.athena_checks import first_word
from busco.embedded.athena_values import ColumnType

# The MiniStack functions that this patch wraps or calls, with the parameters that they had when it was written.
EXPECTED = {
    "services.athena._start_query_execution": ["data"],
    "services.athena._save_query_results": ["query_id"],
    "services.athena._get_query_results": ["data"],
    "services.athena._get_workgroup": ["data"],
    "services.athena._detect_statement_type": ["query"],
    "services.athena._sql_tokens": ["sql"],
    "core.responses.error_response_json": ["code", "message", "status", "extra", "message_key", "content_type"],
    "services.s3._put_object": ["bucket_name", "key", "body", "headers"],
}


def install() -> None:
    """Patches `ministack.services.athena` in this process. Call this before serving requests.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    from ministack.core.responses import error_response_json
    from ministack.services import athena

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_athena_clients.py")
    original, original_results = athena._start_query_execution, athena._get_query_results
    original_workgroup = athena._get_workgroup

    def start(data: dict[str, Any]) -> Any:
        place = location(data, athena._workgroups)
        if place and not (place.startswith("s3://") and urlsplit(place).netloc):
            reason = f"outputLocation is not a valid S3 path: {place}; write s3://<bucket>/<prefix>/"
            return error_response_json("InvalidRequestException", reason, 400)
        answer = original({**data, "ResultConfiguration": {"OutputLocation": place}} if place else data)
        if answer[0] == 200:
            execution = athena._executions[json.loads(answer[2])["QueryExecutionId"]]
            if execution["StatementType"] == "UTILITY":
                result = execution["ResultConfiguration"]
                result["OutputLocation"] = f"{result['OutputLocation'].removesuffix('.csv')}.txt"
        return answer

    def workgroup(data: dict[str, Any]) -> Any:
        status, headers, body = original_workgroup(data)
        return (status, headers, _with_defaults(body)) if status == 200 else (status, headers, body)

    def statement_type(query: str) -> str:
        first = first_word(list(athena._sql_tokens(query)))
        return "UTILITY" if is_utility(first) else "DDL" if first in ("create", "drop", "alter") else "DML"

    async def save(query_id: str) -> None:
        # Nothing is awaited here, so once a client sees that the query has succeeded, the result exists.
        execution = athena._executions.get(query_id)
        if execution is not None and (failure := _save(execution)):
            execution["Status"].update(State="FAILED", StateChangeReason=failure)

    def results(data: dict[str, Any]) -> Any:
        status, headers, body = original_results(data)
        return (status, headers, _with_column_types(body)) if status == 200 else (status, headers, body)

    athena._start_query_execution = start
    athena._save_query_results = save
    athena._get_query_results = results
    athena._get_workgroup = workgroup
    athena._detect_statement_type = statement_type


def _with_defaults(body: bytes) -> bytes:
    """Adds the settings that Athena always returns to a GetWorkGroup response, with the defaults used by `location`."""
    answer = json.loads(body)
    configuration = answer["WorkGroup"].setdefault("Configuration", {})
    for name in ("EnforceWorkGroupConfiguration", "PublishCloudWatchMetricsEnabled", "RequesterPaysEnabled"):
        configuration.setdefault(name, False)
    configuration.setdefault("ResultConfiguration", {})
    return json.dumps(answer).encode()


def location(request: dict[str, Any], workgroups: Any) -> str:
    """Returns a query's result location, with a trailing slash; '' if neither the request nor the workgroup sets one.

    The request's location takes precedence, unless the workgroup has one and enforces its configuration (Athena User
    Guide, "Override client-side settings").
    """
    group = (workgroups.get(request.get("WorkGroup") or "primary") or {}).get("Configuration") or {}
    of_group = (group.get("ResultConfiguration") or {}).get("OutputLocation") or ""
    of_request = (request.get("ResultConfiguration") or {}).get("OutputLocation") or ""
    enforced = group.get("EnforceWorkGroupConfiguration", False)
    place = str(of_group if of_group and (enforced or not of_request) else of_request)
    return f"{place.rstrip('/')}/" if place else ""


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> bytes:
    """Formats columns and rows the way Athena does: every value in double quotes, NULL as an empty field."""

    def line(values: Sequence[str | None]) -> str:
        return ",".join("" if value is None else '"' + value.replace('"', '""') + '"' for value in values)

    return "".join(f"{line(row)}\n" for row in (columns, *rows)).encode()


def as_text(rows: Sequence[Sequence[str | None]]) -> bytes:
    """Formats the rows of SHOW, DESCRIBE and EXPLAIN as Athena does: one per line, with tabs between the values."""
    return "".join("\t".join(re.sub(r"[\t\r\n]", " ", value or "") for value in row) + "\n" for row in rows).encode()


def _with_column_types(body: bytes) -> bytes:
    """Separates each column's type from its precision and scale in GetQueryResults' response."""
    answer = json.loads(body)
    for column in answer["ResultSet"]["ResultSetMetadata"]["ColumnInfo"]:
        kind = ColumnType.parse(column["Type"])
        if kind.precision:
            column.update(Type=kind.name, Precision=kind.precision, Scale=kind.scale)
    return json.dumps(answer).encode()


def _save(execution: dict[str, Any]) -> str:
    """Writes a query's result with the caller's permissions; returns the reason if that fails, or an empty string."""
    from ministack.services import s3

    found = execution.get("_results") or {"columns": [], "rows": []}
    types = execution.get("_column_types") or []
    target = urlsplit(execution["ResultConfiguration"]["OutputLocation"])
    bucket, key = target.netloc, target.path.lstrip("/")
    if policies.denied("s3:PutObject", f"arn:aws:s3:::{bucket}/{key}"):
        return f"Access denied when writing output to url: s3://{bucket}/{key}"
    # Athena's metadata file is in an undocumented protobuf format. This one lists the columns' names and types as text,
    # for people to read.
    metadata = "\n".join([",".join(found["columns"]), ",".join(types)]).encode()
    is_text = key.endswith(".txt")
    content = as_text(found["rows"]) if is_text else as_csv(found["columns"], found["rows"])
    for name, body, kind in (
        (key, content, "text/plain" if is_text else "text/csv"),
        (f"{key}.metadata", metadata, "binary/octet-stream"),
    ):
        status, *_ = s3._put_object(bucket, name, body, {"content-type": kind, "content-length": str(len(body))})
        if status >= 300:
            return f"S3 refused the result at s3://{bucket}/{name} with status {status}"
    return ""
