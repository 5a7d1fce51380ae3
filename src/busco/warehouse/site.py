"""Makes the site's files about a run's tables: one index, and one content file per version of a table.

The files are described in docs/catalog.md. Everything in them comes from the dbt project, the records of the run and of
its versions, and the versions' rows; none of it changes after the run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import duckdb
from botocore.exceptions import ClientError
from markdown_it import MarkdownIt

from busco.lake import engine
from busco.lake.deliveries import TECHNICAL
from busco.lake.layout import listing, slug, split_table
from busco.lake.objects import ObjectStore, canonical_json
from busco.lake.records import Result, Version
from busco.lake.runs import Run
from busco.project import Project, meta_of, table_name
from busco.site.files import FORMAT, INDEX, read_index
from busco.text import count
from busco.warehouse.dbt import say
from busco.warehouse.personal import of_version
from busco.warehouse.profile import Profile, Profiler, Sample
from busco.warehouse.session import Session

if TYPE_CHECKING:
    from busco.warehouse.lineage import Relation

# Profiles may take this share of the time that the run's models took.
_SHARE = 0.05
_THREADS = 16
# Generic tests that a combination of columns is unique: the sample project's, and the one of the package dbt_utils.
_COMBINATIONS = frozenset({"unique_combination", "unique_combination_of_columns"})
# The types whose greatest value says how new a table's data is.
_TIMES = ("DATE", "TIMESTAMP")
_TECHNICAL = frozenset(column.name for column in TECHNICAL)
# Searches look at this many characters of a table's description after its first paragraph, and of other texts.
_SEARCHED = 2000
# The keys of `meta` that have a place of their own on a page, or that only the platform needs.
_OWN_META = frozenset({"owner", "grain", "pii", "delivery", "ecs", "volatile", "contact", "synonyms"})


def make_site(project: Project, run: Run, session: Session, manifest: Mapping[str, Any]) -> str:
    """Writes the site's files about a run's tables, and returns what was done, in one sentence.

    A content file that the base release has for the same version and the same descriptions is used again.

    Args:
        manifest: dbt's manifest with the compiled SQL.
    """
    started = time.monotonic()
    results = run.latest_results()
    base = run.base()
    prefix = base.docs_by_project().get(project.identity, "") if base else ""
    before = _index(run, prefix)
    described = _Described(project, session, manifest, MarkdownIt("js-default", {"html": False}))
    versions = _versions(project, session)
    tables, made = {}, []
    for table, (unique_id, version) in versions.items():
        fixed = described.fixed(unique_id, version)
        digest = hashlib.sha256(canonical_json(fixed)).hexdigest()[:16]
        known = before["tables"].get(table, {})
        kept = known.get("content", {})
        is_kept = (kept.get("version"), kept.get("hash")) == (version.version, digest)
        key = kept["key"] if is_kept else f"{run.docs}tables/{slug(table, 120)}.{version.version}.{digest}.json"
        if not is_kept:
            made.append(_Content(key, table, unique_id, version, fixed))
        tables[table] = {
            **described.entry(unique_id, version, results, known.get("tests", ())),
            "loaded_at": known.get("loaded_at") if is_kept else None,
            "newest": known.get("newest") if is_kept else None,
            "personal": [column["name"] for column in fixed["columns"] if column["personal"]],
            "types": [column["type"] for column in fixed["columns"]],
            "key": fixed["grain"],
            "content": {"version": version.version, "hash": digest, "key": key},
        }
    seconds = _SHARE * _time_of_models(one for one in results.values() if one.made and not one.kept)
    from_rows = 0
    with engine.connect(session.settings) as connection, ThreadPoolExecutor(_THREADS) as pool:
        profiler, written = Profiler(connection, run.store.bucket, seconds), []
        for content in sorted(made, key=lambda one: one.version.bytes):
            personal = frozenset(column["name"] for column in content.fixed["columns"] if column["personal"])
            profile = profiler.profile(content.version, personal)
            from_rows += profile.source == "rows"
            body = described.content(content, profile)
            if profile.loaded_at is not None:
                tables[content.table]["loaded_at"] = profile.loaded_at.isoformat()
            tables[content.table]["newest"] = _newest(body["columns"])
            written.append(pool.submit(_write, run.store, content, body, personal, profiler))
        for one in written:
            one.result()
    for table, (_, version) in versions.items():
        tables[table]["loaded_at"] = tables[table]["loaded_at"] or _delivered_at(run.store, version)
    index = {
        "format": FORMAT,
        "project": project.identity,
        "title": project.name,
        "run": run.name,
        "epoch": run.pin.epoch,
        "tables": tables,
        **described.others(),
    }
    run.store.put(f"{run.docs}{INDEX}", _encoded(index))
    took = time.monotonic() - started
    what = f"{len(made)} made, {from_rows} of them with a profile of their rows"
    failed = "".join(f"\nwarning: {table} has no profile ({kind})" for table, kind in sorted(profiler.failed.items()))
    return f"pages for {count(len(tables), 'table')} in {took:.1f} s: {what}{failed}"


def _write(
    store: ObjectStore, content: _Content, body: dict[str, Any], personal: frozenset[str], profiler: Profiler
) -> None:
    """Writes a content file, with sample rows even if there was no time for a profile."""
    if body["sample"] is None:
        body["sample"] = _sample(profiler.sample(content.version, personal))
    store.put(content.key, _encoded(body))


def _sample(sample: Sample | None) -> dict[str, Any] | None:
    return sample and {"columns": sample[0], "rows": sample[1]}


def _time_of_models(results: Iterable[Result]) -> float:
    """Returns the seconds that the models took. Models that were built at the same time count once."""
    times = sorted((one.finished_at.timestamp() - one.seconds, one.finished_at.timestamp())
                   for one in results if one.finished_at is not None)  # fmt: skip
    total, end = 0.0, 0.0
    for began, ended in times:
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


def _newest(columns: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Returns the column that says how new a table's data is, and its greatest value.

    It is the first key column with a date or a time, or the first such column; None if there is none.
    """
    timed = [
        one
        for one in columns
        if one["type"].startswith(_TIMES) and one["name"] not in _TECHNICAL and (one["profile"] or {}).get("max")
    ]
    found = next((one for one in timed if one["key"]), timed[0] if timed else None)
    return (found["name"], found["profile"]["max"]) if found is not None else None


def _delivered_at(store: ObjectStore, version: Version) -> str | None:
    """Returns when the newest delivery of a bronze version was recorded; None if there is none.

    The rows know the time to the microsecond, but there may be no time to read them.
    """
    if not version.deliveries:
        return None
    stored = store.modified(listing(version.deliveries[0]))
    times = [stored[record] for record in version.deliveries if record in stored]
    return max(times).isoformat() if times else None


def _index(run: Run, prefix: str) -> Mapping[str, Any]:
    """Returns the base release's index. If it can't be read, all content files are made again."""
    try:
        return read_index(run.store, prefix) or {"tables": {}}
    except (ClientError, ValueError) as error:
        say(f"warning: all of the site's pages are made again, because {prefix}site.json can't be read: {error}")
        return {"tables": {}}


@dataclass(frozen=True)
class _Content:
    """A content file to be written. `fixed` is the part of it that determines its name."""

    key: str
    table: str
    unique_id: str
    version: Version
    fixed: Mapping[str, Any]


def _versions(project: Project, session: Session) -> dict[str, tuple[str, Version]]:
    """Returns the project's tables that have a version, and the unique ids of their nodes."""
    found = {}
    for unique_id in (*project.sources, *project.nodes):
        table = project.table_of(unique_id)
        version = session.version(table) if table else None
        if table and version is not None:
            found[table] = (unique_id, version)
    return dict(sorted(found.items()))


def personal_columns(project: Project, unique_id: str, version: Version) -> frozenset[str]:
    """Returns a version's columns with personal data: those of its record, and those that the YAML marks now.

    The names in the YAML can differ from the version's in case.
    """
    marked = {name.lower() for name in of_version(project, version) | project.pii(unique_id)}
    return frozenset(column.name for column in version.columns if column.name.lower() in marked)


class _Described:
    """Describes tables with what the dbt project says about them."""

    def __init__(self, project: Project, session: Session, manifest: Mapping[str, Any], markdown: MarkdownIt) -> None:
        self._project, self._session, self._manifest, self._markdown = project, session, manifest, markdown
        self._groups = {one["name"]: one for one in project.manifest.get("groups", {}).values()}
        self._tests: dict[str, list[str]] = {}
        for uid, test in project.tests.items():
            attached = test.get("attached_node")
            for parent in [attached] if attached else sorted(set(test["depends_on"]["nodes"])):
                self._tests.setdefault(str(parent), []).append(uid)

    # -- the index ------------------------------------------------------------------------------------------------

    def entry(self, uid: str, version: Version, results: Mapping[str, Result], before: Any) -> dict[str, Any]:
        """Returns a table's entry in the index, without its content file.

        Args:
            before: the table's tests in the base release's index, for those that did not run in this run.
        """
        project, node = self._project, self._project.node(uid)
        layer, name = split_table(version.table)
        columns = {name.lower(): column for name, column in node.get("columns", {}).items()}
        limits = project.freshness.get(version.table) if uid in project.sources else None
        summary, _, more = str(node.get("description") or "").strip().partition("\n\n")
        known = {one["unique_id"]: one for one in before}
        return {
            "layer": layer,
            "name": name,
            "kind": node["resource_type"],
            "unique_id": uid,
            "summary": _line(summary),
            "more": self._text(more),
            "tags": sorted(node.get("tags") or ()),
            "synonyms": _synonyms(node),
            "owner": self._owner(node),
            "group": node["config"].get("group"),
            "columns": [
                [column.name, _line(str(declared.get("description") or "")), " · ".join(_synonyms(declared))]
                for column in version.columns
                for declared in [columns.get(column.name.lower(), {})]
            ],
            "upstream": sorted(project.parents(uid)) if uid in project.nodes else [],
            "warn_after": limits.warn_after.total_seconds() if limits and limits.warn_after else None,
            "error_after": limits.error_after.total_seconds() if limits and limits.error_after else None,
            "tests": [self._test(test, results.get(test), known.get(test)) for test in self._tests.get(uid, ())],
        }

    def _test(self, uid: str, result: Result | None, before: Mapping[str, Any] | None) -> dict[str, Any]:
        node = self._project.node(uid)
        outcome = before or {"status": None, "failures": None, "at": None, "seconds": None}
        if result is not None:
            outcome = {
                "status": result.status,
                "failures": result.failures,
                "at": result.finished_at.isoformat() if result.finished_at else None,
                "seconds": result.seconds,
            }
        return {
            "unique_id": uid,
            "name": node["name"],
            "kind": (node.get("test_metadata") or {}).get("name") or "sql",
            "column": node.get("column_name"),
            **{key: outcome.get(key) for key in ("status", "failures", "at", "seconds")},
        }

    def others(self) -> dict[str, Any]:
        """Returns what the index says about things that are not tables: exposures, pages and groups."""
        project, manifest = self._project, self._project.manifest
        exposures = [
            {
                "name": one["name"],
                "label": one.get("label") or one["name"],
                "type": one["type"],
                "url": _address(one.get("url")),
                "owner": {key: (one.get("owner") or {}).get(key) for key in ("name", "email")},
                "description_html": self._html(one.get("description")),
                "text": self._text(str(one.get("description") or "")),
                "maturity": one.get("maturity"),
                "tables": sorted(project.parents(uid)),
            }
            for uid, one in sorted(manifest.get("exposures", {}).items())
        ]
        pages = [
            {
                "name": one["name"],
                "package": one["package_name"],
                "html": self._html(one["block_contents"]),
                "text": self._text(str(one["block_contents"] or "")),
            }
            for uid, one in sorted(manifest.get("docs", {}).items())
            if one["package_name"] != "dbt"
        ]
        groups = [
            {
                "name": one["name"],
                "owner": (one.get("owner") or {}).get("name"),
                "email": (one.get("owner") or {}).get("email"),
                "description_html": self._html(one.get("description")),
            }
            for one in sorted(self._groups.values(), key=lambda one: str(one["name"]))
        ]
        return {"exposures": exposures, "pages": pages, "groups": groups}

    # -- content files --------------------------------------------------------------------------------------------

    def fixed(self, uid: str, version: Version) -> dict[str, Any]:
        """Returns the part of a content file that needs no rows. Its hash is part of the file's name."""
        project, node = self._project, self._project.node(uid)
        layer, name = split_table(version.table)
        declared = {name.lower(): column for name, column in node.get("columns", {}).items()}
        grain = self._grain(uid, node)
        personal = personal_columns(project, uid, version)
        meta = {key: str(value) for key, value in sorted(meta_of(node).items()) if key not in _OWN_META}
        sql = None
        if uid in project.nodes and node["resource_type"] == "model":
            compiled = self._manifest["nodes"].get(uid, {}).get("compiled_code")
            # a run of some models keeps the versions of the others, whose code can have changed since
            is_of_version = project.fingerprint(uid, duckdb.__version__) == version.fingerprint
            sql = {
                "path": node["original_file_path"],
                "source": node["raw_code"],
                "compiled": compiled,
                "is_of_version": is_of_version,
            }
        return {
            "format": FORMAT,
            "project": project.identity,
            "table": version.table,
            "description_html": self._html(node.get("description")),
            "grain": list(grain),
            "owner": self._owner(node),
            "contact": self._contact(node),
            "group": node["config"].get("group"),
            "meta": meta,
            "columns": [
                {
                    "name": column.name,
                    "type": column.type,
                    "required": column.required,
                    "key": column.name in grain,
                    "personal": column.name in personal,
                    "description_html": self._html(declared.get(column.name.lower(), {}).get("description")),
                }
                for column in version.columns
            ],
            "partition_by": list(version.partition_by),
            "sql": sql,
            "glue": {
                "database": self._session.settings.database(layer),
                "name": name,
                "location": f"s3://{self._session.settings.lake_bucket}/{version.metadata}",
            },
        }

    def content(self, content: _Content, profile: Profile) -> dict[str, Any]:
        """Returns a content file."""
        origins = self._origins(content.unique_id)
        columns = [
            {
                **column,
                "lineage": None if origins is None else [list(one) for one in origins.get(column["name"].lower(), ())],
                "profile": None if column["personal"] else profile.columns.get(column["name"]),
            }
            for column in content.fixed["columns"]
        ]
        version = content.version
        return {
            **content.fixed,
            "version": version.version,
            "made_at": version.made_at.isoformat() if version.made_at else None,
            "rows": version.rows,
            "bytes": version.bytes,
            "files": len(version.files),
            "columns": columns,
            "profile_from": profile.source if profile.columns else None,
            "sample": _sample(profile.sample),
        }

    def _origins(self, uid: str) -> Mapping[str, tuple[tuple[str, str], ...]] | None:
        """Returns, for each column of a model, the columns of tables that it is computed from; None if not known."""
        node = self._project.node(uid)
        if node["resource_type"] != "model":
            return {} if uid in self._project.sources else None
        compiled = self._manifest["nodes"].get(uid, {}).get("compiled_code")
        if not compiled or self._session.redactor.runs_queries(uid):
            return None
        found = self._session.personal.traced(uid, compiled, self._relations)
        return None if found is None else {one.name: self._through_views(one.origins) for one in found}

    def _through_views(self, origins: Iterable[tuple[str, str, str]]) -> tuple[tuple[str, str], ...]:
        """Returns columns with those of views replaced by the columns of tables that the views compute them from."""
        found: set[tuple[str, str]] = set()
        for schema, relation, column in origins:
            view = self._views.get((schema, relation))
            above = self._origins(view) if view else None
            found |= {*above.get(column, ())} if above is not None else {(f"{schema}.{relation}", column)}
        return tuple(sorted(found))

    @cached_property
    def _relations(self) -> Mapping[tuple[str, str], Relation]:
        # nothing is built any more while pages are made
        return self._session.personal.relations()

    @cached_property
    def _views(self) -> dict[tuple[str, str], str]:
        """The unique id of each view, by schema and name in lower case."""
        views = {}
        for uid, node in self._project.nodes.items():
            if node["resource_type"] == "model" and node["config"]["materialized"] == "view":
                schema, name = split_table(table_name(node).lower())
                views[schema, name] = uid
        return views

    # -- parts ----------------------------------------------------------------------------------------------------

    def _grain(self, uid: str, node: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the columns that identify a row: `meta.grain`, the primary key, or a column with a unique test."""
        if given := meta_of(node).get("grain"):
            return (given,) if isinstance(given, str) else tuple(str(name) for name in given)
        for constraint in node.get("constraints") or ():
            if constraint["type"] == "primary_key" and constraint.get("columns"):
                return tuple(constraint["columns"])
        for name, column in node.get("columns", {}).items():
            if any(one["type"] == "primary_key" for one in column.get("constraints") or ()):
                return (name,)
        for test in self._tests.get(uid, ()):
            found = self._project.node(test)
            metadata = found.get("test_metadata") or {}
            arguments = metadata.get("kwargs") or {}
            combination = arguments.get("combination_of_columns") or arguments.get("columns")
            if metadata.get("name") in _COMBINATIONS and isinstance(combination, list):
                return tuple(str(name) for name in combination)
            if metadata.get("name") == "unique" and found.get("column_name") in node.get("columns", {}):
                return (str(found["column_name"]),)
        return ()

    def _owner(self, node: Mapping[str, Any]) -> str:
        owner = meta_of(node).get("owner")
        if isinstance(owner, Mapping):
            owner = owner.get("name") or owner.get("email")
        group = self._groups.get(node["config"].get("group")) or {}
        return str(owner or (group.get("owner") or {}).get("name") or "")

    def _contact(self, node: Mapping[str, Any]) -> str:
        """Returns how to reach the owner: `meta.contact`, or the email of the group that is or has the owner."""
        groups = [self._groups.get(node["config"].get("group")), self._groups.get(self._owner(node))]
        emails = [(group.get("owner") or {}).get("email") for group in groups if group is not None]
        return str(meta_of(node).get("contact") or next(filter(None, emails), ""))

    def _html(self, text: Any) -> str:
        return str(self._markdown.render(str(text or ""))).strip()

    def _text(self, markdown: str) -> str:
        """Returns the words of a Markdown text, for searches."""
        parts = []
        for token in self._markdown.parse(markdown):
            parts += [one.content for one in token.children or ()] if token.type == "inline" else [token.content]
        return _line(" ".join(parts))[:_SEARCHED]


def _synonyms(node: Mapping[str, Any]) -> list[str]:
    """Returns other words for a table or a column, `meta.synonyms`: a text, or a list of texts."""
    given = meta_of(node).get("synonyms") or ()
    return [_line(str(one)) for one in (given if isinstance(given, list | tuple) else [given])]


def _line(text: str) -> str:
    return " ".join(text.split())


def _address(url: Any) -> str | None:
    """Returns an exposure's URL if a browser may open it, otherwise None."""
    return str(url) if str(url or "").startswith(("https://", "http://")) else None


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
