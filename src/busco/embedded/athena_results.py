"""The local Athena writes a query's result where Athena does, as Athena writes it.

Clients such as awswrangler and PyAthena's pandas cursor read the file that GetQueryExecution names instead of asking
for the rows. MiniStack names `<location><query id>.csv` and writes `<location><query id>.csv/<query id>.csv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from busco.embedded import ministack_contract, policies

# What is wrapped or called of ministack, with the parameters that it had when this was written.
EXPECTED = {
    "services.athena._start_query_execution": ["data"],
    "services.athena._save_query_results": ["query_id"],
    "services.athena._datum_text": ["value"],
    "services.s3._put_object": ["bucket_name", "key", "body", "headers"],
}


def install() -> None:
    """Corrects `ministack.services.athena` in this process, before it serves.

    Raises:
        RuntimeError: this MiniStack is not the one that the correction was written for.
    """
    from ministack.services import athena

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_athena_clients.py")
    original = athena._start_query_execution

    def start(data: dict[str, Any]) -> Any:
        place = location(data, athena._workgroups)
        return original({**data, "ResultConfiguration": {"OutputLocation": place}} if place else data)

    async def save(query_id: str) -> None:
        # no await: whoever sees that the query has succeeded finds its result
        execution = athena._executions.get(query_id)
        if execution is not None and (failure := _save(execution)):
            execution["Status"].update(State="FAILED", StateChangeReason=failure)

    athena._start_query_execution = start
    athena._save_query_results = save


def location(request: dict[str, Any], workgroups: Any) -> str:
    """Where a query's result goes, ending in a slash: the workgroup's place where it enforces its configuration, else
    the request's (Athena User Guide, "Override client-side settings"). Empty where neither names one."""
    group = (workgroups.get(request.get("WorkGroup") or "primary") or {}).get("Configuration") or {}
    of_group = (group.get("ResultConfiguration") or {}).get("OutputLocation") or ""
    of_request = (request.get("ResultConfiguration") or {}).get("OutputLocation") or ""
    enforced = group.get("EnforceWorkGroupConfiguration", False)
    place = str(of_group if of_group and (enforced or not of_request) else of_request)
    return f"{place.rstrip('/')}/" if place else ""


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> bytes:
    """Columns and rows as Athena writes them: every value in double quotes, a NULL as nothing."""

    def line(values: Sequence[str | None]) -> str:
        return ",".join("" if value is None else '"' + value.replace('"', '""') + '"' for value in values)

    return "".join(f"{line(row)}\n" for row in (columns, *rows)).encode()


def _save(execution: dict[str, Any]) -> str:
    """Writes the result of a query as its caller; why it could not, else nothing."""
    from ministack.services import athena, s3

    found = execution.get("_results") or {"columns": [], "rows": []}
    rows = [[None if value is None else athena._datum_text(value) for value in row] for row in found["rows"]]
    types = execution.get("_column_types") or []
    target = urlsplit(execution["ResultConfiguration"]["OutputLocation"])
    bucket, key = target.netloc, target.path.lstrip("/")
    if policies.denied("s3:PutObject", f"arn:aws:s3:::{bucket}/{key}"):
        return f"Access denied when writing output to url: s3://{bucket}/{key}"
    # Athena's own metadata are protobuf of which no description is published: names and types, for people
    metadata = "\n".join([",".join(found["columns"]), ",".join(types)]).encode()
    for name, body, kind in (
        (key, as_csv(found["columns"], rows), "text/csv"),
        (f"{key}.metadata", metadata, "binary/octet-stream"),
    ):
        status, *_ = s3._put_object(bucket, name, body, {"content-type": kind, "content-length": str(len(body))})
        if status >= 300:
            return f"S3 refused the result at s3://{bucket}/{name} with status {status}"
    return ""
