"""`busco sample`, `ingest`, `dbt`, `query`, `runner`, `select` and `bake`, all of which run in dbt's environment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from botocore.exceptions import ClientError

from busco.aws import client
from busco.cli.no_table import advice, database_table, glue_tables
from busco.cli.releases import lake, me, named, publishing, show_glue
from busco.environments import code_version
from busco.errors import BuscoError
from busco.lake import pins, releases
from busco.lake.layout import EnvironmentLayout, local_run_key
from busco.lake.objects import AlreadyExists, ObjectStore
from busco.lake.records import GOOD, Release, Selection, utc_now
from busco.lake.runs import open_run, visible_versions
from busco.output import echo, progress, result, say, table
from busco.settings import Settings, get_settings, require_project
from busco.text import count, json_text, printable

_FORMS = click.Choice(["table", "csv", "json"])
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command("sample")
@click.option("--orders", default=100_000, show_default=True, type=click.IntRange(min=1), help="number of orders")
@click.option("--seed", default=1, show_default=True, help="the same seed produces the same bytes")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="folder to write to")
def sample_command(orders: int, seed: int, out: Path) -> None:
    """Generate the files of a sample marketplace in the sources' schema, quirks included."""
    from busco.embedded.sample import write_sample

    written = write_sample(orders, seed, out)
    table(("file", "rows"), [(name, f"{rows:,}") for name, rows in written.items()], right=(1,))


@click.command("ingest")
@click.argument("paths", nargs=-1)
@click.option("--order", help="carry out this order instead (started by the events service)", hidden=True)
@click.option(
    "--table", "table_name", help="the source table for all files; by default, inferred from each file's name"
)
@click.option("--follow-links", is_flag=True, help="follow links to files and folders; by default, they are refused")
def ingest_command(paths: tuple[str, ...], order: str | None, table_name: str | None, follow_links: bool) -> None:
    """Load CSV files (plain or gzip), and folders of them, into bronze.

    PATHS can also be URLs of the landing bucket, such as s3://BUCKET/orders/; the key determines an object's table.

    A file that was ingested before is skipped. A file that does not match its table's contract is refused as a whole,
    without affecting the others; a row whose values do not fit their types is quarantined. Exits with status 1 if any
    file was refused.
    """
    from busco.ingest.ingest import ingest
    from busco.ingest.orders import carry_out
    from busco.projects import all_contracts
    from busco.warehouse.dbt import ensure_manifests

    if bool(paths) == (order is not None):
        raise click.UsageError("name the files, folders or URLs to ingest")
    settings, store, _ = lake()
    contracts = all_contracts(ensure_manifests(settings))
    if order is not None:
        for ended in carry_out(settings, store, contracts, order).objects:
            line = f"{ended.outcome}: {ended.key}"
            say(printable(f"{line}: {ended.reason}" if ended.reason else f"{line} ({count(ended.rows, 'row')})"))
        return
    with progress("ingesting", in_bytes=True) as bar:

        def started(total: int) -> Any:
            task = bar.add_task("", total=total)
            return lambda done: bar.advance(task, done)

        report = ingest(settings, store, contracts, list(paths), table_name, started, follow_links)
    _show_results(
        (one.file.name, one.file.contract.table, one.outcome, one.rows, one.quarantined) for one in report.loaded
    )
    for one in report.loaded:
        for example in one.examples:
            say(printable(f"quarantined: {one.file.name}: {example}"))
    refused = [(one.file.label, one.reason) for one in report.loaded if one.outcome == "refused"]
    for path, reason in (*refused, *report.unknown):
        say(f"refused: {printable(path)}: {printable(reason)}")
    if not report.good:
        raise SystemExit(1)


def _show_results(results: Iterable[tuple[str, str, str, int, int]]) -> None:
    """Shows what became of files: name, table, outcome, number of rows, and how many of them were quarantined."""
    rows = [
        (
            name,
            table_name,
            "already ingested" if outcome == "known" else outcome,
            f"{all_rows:,}",
            f"{all_rows - quarantined:,}",
            f"{quarantined:,}",
        )
        for name, table_name, outcome, all_rows, quarantined in results
    ]
    if rows:
        table(("file", "table", "outcome", "rows in", "written", "quarantined"), rows, right=(3, 4, 5))


@click.command("put")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--table", "table_name", help="the source table for all files; by default, inferred from each file's name"
)
@click.option("--follow-links", is_flag=True, help="follow links to files and folders; by default, they are refused")
@click.option(
    "--until",
    type=click.Choice(["uploaded", "ingested", "published"]),
    default="published",
    show_default=True,
    help="what to wait for; `uploaded` only writes to the landing bucket, the others also read the lake",
)
@click.option(
    "--timeout", default=3600, show_default=True, type=click.IntRange(min=1), help="seconds to wait, then exit with 1"
)
def put_command(paths: tuple[Path, ...], table_name: str | None, follow_links: bool, until: str, timeout: int) -> None:
    """Upload CSV files (plain or gzip), and folders of them, to the landing bucket.

    The events service ingests them and starts a run; this command waits until each dbt project that reads their tables
    has published them. It can be interrupted, and repeated: a file that was uploaded before is not ingested again.
    Exits with status 1 if any file was refused, or if the time is over, for example because the run failed.
    """
    from busco.ingest.files import find
    from busco.ingest.ingest import require_prod
    from busco.ingest.uploads import past_orders, results, upload
    from busco.projects import all_contracts
    from busco.warehouse.dbt import ensure_manifests

    settings, store, environment = lake()
    require_prod(settings)
    if not settings.landing_bucket:
        raise BuscoError("BUSCO_LANDING_BUCKET is not set", "set it to the bucket of the stack busco-lake")
    if until != "uploaded" and not settings.listen:
        raise BuscoError(
            "the events service is turned off (BUSCO_LISTEN=false)", "use busco ingest, or --until uploaded"
        )
    contracts = all_contracts(ensure_manifests(settings))
    files, unknown = find(list(paths), contracts, table_name, follow_links)
    past = past_orders(store) if until != "uploaded" else frozenset()
    with progress("uploading", in_bytes=True) as bar:
        task = bar.add_task("", total=sum(file.size for file in files))
        uploaded, unread = _allowed(
            upload,
            client("s3", settings),
            settings.landing_bucket,
            files,
            settings.state / "spill",
            lambda n: bar.advance(task, n),
        )
    say(f"uploaded {count(len(uploaded), 'file')} to s3://{settings.landing_bucket}/")
    refused = [*((str(path), reason) for path, reason in unknown), *unread]
    if until != "uploaded":
        waiting = _Waiting("to be ingested", timeout)
        found = list(results(store, uploaded, past, lambda missing: waiting.tick(count(missing, "file"))))
        _show_results(
            (one.file.name, one.file.contract.table, ended.outcome, ended.rows, ended.quarantined)
            for one, ended in sorted(found, key=lambda pair: pair[0].key)
        )
        refused += [
            (one.file.label, f"{ended.reason} (it will be tried again)" if ended.transient else ended.reason)
            for one, ended in found
            if ended.outcome == "refused"
        ]
    for path, reason in refused:
        say(f"refused: {printable(path)}: {printable(reason)}")
    if until == "published":
        tables = {ended.table for _, ended in found if ended.outcome in ("ingested", "known")}
        _wait_until_published(settings, store, environment, tables, timeout)
    if refused:
        raise SystemExit(1)


def _allowed(call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function that uses S3; an error that is the user's to fix becomes a message."""
    try:
        return call(*arguments)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code not in ("AccessDenied", "NoSuchBucket", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            raise
        message = error.response["Error"].get("Message", code)
        hint = "use credentials that may write to the landing bucket (docs/producing.md)"
        raise BuscoError(f"S3 refuses the upload: {message} ({code})", hint) from error


class _Waiting:
    """Says once in a while what a command is waiting for."""

    _EVERY = 30.0  # seconds

    def __init__(self, what: str, timeout: float) -> None:
        self.what, self.at, self.end = what, time.monotonic() + self._EVERY, time.monotonic() + timeout

    def tick(self, who: str) -> None:
        """Raises BuscoError if the time is over."""
        if time.monotonic() >= self.end:
            raise BuscoError(f"the time to wait for {who} {self.what} is over", "to see why: busco events status")
        if time.monotonic() >= self.at:
            self.at += self._EVERY
            say(f"waiting for {who} {self.what}; to see why: busco events status")


def _wait_until_published(
    settings: Settings, store: ObjectStore, environment: EnvironmentLayout, tables: set[str], timeout: float
) -> None:
    """Waits until each project that reads one of the bronze tables has published the current deliveries."""
    from busco.events.pending import current_sets, published, unpublished
    from busco.project import Project

    waiting = _Waiting("to be published", timeout)
    for one in settings.of_all_projects():
        project = Project.of(one)
        contracts = [contract for contract in project.contracts if contract.name in tables]
        while missing := unpublished(current_sets(store, contracts), published(store, environment, project.identity)):
            waiting.tick(f"{', '.join(sorted(missing))} in the project {project.identity}")
            time.sleep(1.0)
    live = releases.read_live(store, environment)
    if live is not None and tables:
        say(f"published in release {live.release.release}; Athena shows it when the task `glue` has ended")


@click.command(
    "dbt", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.option("--project-dir", type=_FOLDER)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dbt_command(project_dir: Path | None, arguments: tuple[str, ...]) -> int:
    """Run dbt on the lake."""
    _work_on(project_dir)
    if not arguments or arguments[0] in ("-h", "--help"):
        echo(_DBT_HELP)
    elif arguments[0] in ("build", "parse"):
        command = build_command if arguments[0] == "build" else parse_command
        rest, prog_name = list(arguments[1:]), f"busco dbt {arguments[0]}"
        status = command.main(args=rest, prog_name=prog_name, standalone_mode=False, obj=project_dir)
        return int(status or 0)
    elif arguments[0] in ("run", "test", "seed", "snapshot", "clone", "run-operation", "retry"):
        raise BuscoError(
            f"busco dbt {arguments[0]} is not supported: models are built and tested in a run", "use: busco dbt build"
        )
    else:
        _pass_on(list(arguments))
    return 0


_DBT_HELP = """Usage: busco dbt [--project-dir FOLDER] COMMAND …

  build   build and test models in a new run (busco dbt build --help)
  parse   parse the project and update Airflow's graph; without --project-dir, also the projects in BUSCO_DBT_PROJECTS
          (busco dbt parse --help)
  ls, compile, show, docs, debug, …   dbt's own commands, on the live release, read-only
"""


_VERBOSE = click.option(
    "--verbose", is_flag=True, help="list every model that the lake refuses, even if there are many"
)


@click.command("parse")
@_VERBOSE
@click.pass_obj
def parse_command(project_dir: Path | None, verbose: bool) -> None:
    """Parse the project and update Airflow's graph; without --project-dir, also the projects in BUSCO_DBT_PROJECTS."""
    _parse([get_settings()] if project_dir else get_settings().of_all_projects(), verbose)


def _united(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str:
    """Joins the values of a repeated option, as dbt does.

    Raises:
        UsageError: a value is empty, for example because it comes from a shell variable that is not set.
    """
    if all(value.strip() for value in values):
        return " ".join(values)
    otherwise = "everything is built" if option.name == "select" else "nothing is left out"
    raise click.UsageError(f"--{option.name} is empty; without --{option.name}, {otherwise}", ctx)


@click.command("build")
@click.option(
    "-s", "--select", "-m", "--models", "--model", "select",
    multiple=True, callback=_united, help="what to build (dbt's syntax); default: everything",
)  # fmt: skip
@click.option("--exclude", multiple=True, callback=_united, help="what to leave out (dbt's syntax)")
@click.option("--full-refresh", is_flag=True, help="build every selected model, even if nothing has changed")
@click.option(
    "--publish", is_flag=True, help="if everything succeeds, make the result the live release and show it in Glue"
)
@click.option(
    "--take-over",
    is_flag=True,
    help="with --publish: also take over or drop live tables that may belong to another dbt project with the same name",
)
@click.option("--run", "run_key", help="rebuild the selected nodes in this existing run, instead of starting a new one")
@_VERBOSE
def build_command(
    select: str,
    exclude: str,
    full_refresh: bool,
    publish: bool,
    take_over: bool,
    run_key: str | None,
    verbose: bool,
) -> int:
    """Build and test models in a new run, based on the live release and all deliveries.

    Nobody sees the result unless it is published.
    """
    from busco.warehouse.dbt import opened
    from busco.warehouse.dbt import say as tell
    from busco.warehouse.runner import work

    if take_over and not publish:
        raise click.UsageError("--take-over requires --publish, because it affects only live tables")
    settings, store, environment = lake()
    if run_key is not None:
        pin = open_run(store, environment, run_key).pin
        settings = settings.of_project(pin.project_dir, pin.project_id if pin.project else None)
    nodes: list[str] | None = None
    with opened(settings, verbose) as dbt:
        project = dbt.parse()
        if select or exclude:
            found = dbt.select(select or "*", exclude, _live_tables(store, environment))
            nodes = list(found.nodes)
            for note in found.notes:
                say(note)
    if run_key is not None and nodes is None:
        raise click.UsageError("--run requires --select: specify what to rebuild in that run")
    key = run_key or local_run_key(utc_now())
    if run_key is None:
        pins.pin(
            store,
            environment,
            key,
            1,
            project.contracts,
            project.hash,
            select=select,
            nodes=nodes,
            full_refresh=full_refresh,
            code_version=code_version(settings),
            project=project.identity,
            project_dir=str(settings.dbt_project_dir),
            tables=project.tables,
            project_id=project.id,
            dbt_name=project.name,
            take_over=take_over,
        )
    tell(f"run {key}")
    outcome = work(settings, key, nodes=nodes if run_key else None, rebuild=run_key is not None)
    assert outcome is not None
    counts: dict[str, int] = {}
    for status in outcome.statuses.values():
        counts[status] = counts.get(status, 0) + 1
    tell(f"run {key}: " + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())))
    if not outcome.good:
        return 1
    if publish:
        run = open_run(store, environment, key)
        manifest = store.get(f"{run.docs}manifest.json")
        if manifest is None:
            work(settings, key, nodes=["docs"])
        run = open_run(publishing(settings), environment, key)
        try:
            release = releases.publish(run, project.audit(), me(), run.docs, take_over, tell)
        except releases.OnHold as held:
            raise BuscoError(f"not published: {held}", "to end the hold: busco release resume") from held
        except releases.Skipped as skipped:
            tell(f"not published: {skipped}")
            return 0
        show_glue(settings, run.store, environment)
        tell(f"published {release.release}")
    return 0


def _live_tables(store: ObjectStore, environment: EnvironmentLayout) -> frozenset[str]:
    live = releases.read_live(store, environment)
    return frozenset(live.release.tables if live else ())


def _work_on(project_dir: Path | None) -> None:
    """Makes this process, and the processes it starts, use a dbt project other than the platform's own.

    Raises:
        BuscoError: the folder has no dbt project.
    """
    if project_dir is not None:
        os.environ["BUSCO_DBT_PROJECT_DIR"] = str(get_settings().of_project(project_dir.absolute()).dbt_project_dir)
        get_settings.cache_clear()
        require_project(get_settings())


def _parse(projects: list[Settings], verbose: bool) -> None:
    from busco.projects import all_contracts
    from busco.warehouse.dbt import opened, write_manifest

    parsed = []
    for settings in projects:
        with opened(settings, verbose) as dbt:
            project = dbt.parse()
            dbt.check_partitions()
        counts = ", ".join(
            count(len(found), one)
            for found, one in ((project.tables, "table"), (project.tests, "test"), (project.contracts, "source"))
        )
        echo(f"parsed {counts}" + (f" of {project.identity}" if len(projects) > 1 else ""))
        parsed.append(project)
    all_contracts(parsed)
    for settings, project in zip(projects, parsed, strict=True):
        write_manifest(settings, project)


def _pass_on(arguments: list[str]) -> None:
    """Runs any other dbt command on the live release, read-only; if no lake is configured, runs it without one.

    For a command without a target folder (debug, deps, init), the project is not parsed: it may be what is broken.
    """
    from dbt.cli.exceptions import DbtUsageException

    from busco.warehouse import plugin
    from busco.warehouse.dbt import opened, options_of
    from busco.warehouse.redact import Redactor
    from busco.warehouse.session import Session

    options = options_of(arguments)
    if options is None:
        raise click.UsageError(
            f"dbt has no command {' '.join(arguments)!r}, or the command requires another argument; "
            "see: busco dbt --help"
        )
    if loud := [word for word in arguments if word in ("-d", "--debug") or word.startswith("--log-format")]:
        raise click.UsageError(
            f"{loud[0]} would show values of pii columns: dbt's log is available only as text, at level info and above"
        )
    settings = get_settings()
    with opened(settings) as dbt:
        if "target_path" in options:
            project = dbt.parse()
            store, base = None, None
            if settings.lake_bucket:
                _, store, environment = lake()
                live = releases.read_live(store, environment)
                base = live.release if live else None
            dbt.redactor = Redactor(project, typed=arguments)
            # only `show` reads rows; the other commands need the tables' columns
            nodes = None if arguments[0] == "show" else ()
            plugin.activate(Session(settings, project, store, None, base, redactor=dbt.redactor, nodes=nodes))
        outcome = dbt.invoke(arguments)
        if arguments[0] in ("docs", "compile", "show", "source"):
            dbt.keep()
    if isinstance(outcome.exception, DbtUsageException):
        raise click.UsageError(f"dbt: {outcome.exception}")
    if outcome.exception is not None:
        reason = dbt.reason(outcome)
        raise BuscoError(f"dbt: {reason}", dbt.advice(reason))
    if not outcome.success:
        raise SystemExit(1)


# a statement may begin with a comment, `-- …`, which is not an option
@click.command("query", context_settings={"ignore_unknown_options": True})
@click.argument("sql")
@click.option(
    "--engine", type=click.Choice(["athena", "duckdb"]), help="default: Athena; DuckDB with --release, --env or --run"
)
@click.option("--format", "form", type=_FORMS, default="table", show_default=True)
@click.option("--release", "release_id", help="read this release instead of the live one")
@click.option("--env", "environment_name", help="read this lake environment")
@click.option("--run", "run_key", help="read what this run's models read and built, even if it is not published")
def query_command(
    sql: str,
    engine: str | None,
    form: str,
    release_id: str | None,
    environment_name: str | None,
    run_key: str | None,
) -> None:
    """Query the live release: busco query "select count(*) from busco_gold.fct_orders".

    The query is a single read-only statement. With --format json, both engines write integers, doubles and booleans as
    JSON values, decimals (with all digits), dates and times as strings, and NaN and infinity as null. DuckDB writes
    arrays and rows as JSON; Athena writes them in its own text format.
    """
    from busco.lake.reading import Seen, check_question
    from busco.lake.reading import query as read

    if release_id is not None:
        named(release_id)
    if release_id and run_key:
        raise click.UsageError("use either --release or --run, not both")
    by_duckdb = release_id or environment_name or run_key
    if by_duckdb and engine == "athena":
        option = "--release" if release_id else "--env" if environment_name else "--run"
        raise click.UsageError(f"{option} requires DuckDB: Athena reads only what Glue shows")
    check_question(sql)
    settings, store, environment = lake()
    if environment_name:
        environment = EnvironmentLayout(environment_name)
    if (engine or ("duckdb" if by_duckdb else "athena")) == "athena":
        from busco.catalog import athena

        with _with_advice(settings, sql, lambda: glue_tables(settings)):
            answer = athena.query(client("athena", settings), sql, settings.athena_workgroup, settings.database("gold"))
        result(answer.columns, answer.typed(), form)
        return
    shown: Release | Seen
    if run_key:
        run = open_run(store, environment, run_key)
        shown = Seen(visible_versions(run, run.base(), run.entries()))
    elif release_id:
        shown = releases.resolve(store, environment, release_id)
    else:
        live = releases.read_live(store, environment)
        if live is None:
            where = f" in {environment_name}" if environment_name else ""
            raise BuscoError(f"nothing is published yet{where}", "run: make demo, or: busco dbt build --publish")
        shown = live.release
    with _with_advice(settings, sql, lambda: [database_table(settings, table) for table in shown.tables]):
        columns, rows = read(settings, store, shown, sql)
    result(columns, rows, form)


@contextmanager
def _with_advice(settings: Settings, sql: str, tables: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Adds a hint (`no_table.advice`) to the error of a query if the query reads a table that does not exist."""
    try:
        yield
    except BuscoError as error:
        if hint := advice(settings, error.message, sql, tables):
            raise BuscoError(error.message, hint) from error
        raise


@click.command("runner")
@click.option("--run", "run_key", required=True)
@click.option("--epoch", type=int, required=True)
@click.option("--order", required=True, help="the name of the order to carry out")
@click.option("--generation", type=int, required=True, help="the order's generation under that name")
@click.option("--log", default="", help="where the runner's output goes")
def runner_command(run_key: str, epoch: int, order: str, generation: int, log: str) -> int:
    """Carry out an order, as one of a run's runners."""
    from busco.lake.runs import open_run
    from busco.warehouse.runner import open_store, serve

    settings = get_settings()
    run = open_run(*open_store(settings), run_key, epoch)
    outcome = serve(settings, run, run.order(order, generation), log)
    return 0 if outcome is None or all(status in GOOD for status in outcome.statuses.values()) else 1


@click.command("select")
@click.option("--project-dir", type=_FOLDER)
@click.option("--record", default="", help="also write the result to the lake, under this name")
@click.argument("selection")
def select_command(project_dir: Path | None, record: str, selection: str) -> None:
    """Print the nodes that a selection (dbt's syntax) matches, as a JSON list."""
    from busco.warehouse.dbt import opened

    _work_on(project_dir)
    settings = get_settings()
    built = _live_tables(*lake()[1:]) if settings.lake_bucket else None
    try:
        with opened(settings) as dbt:
            dbt.parse()
            given = dbt.select(selection, built=built)
            found = Selection(select=selection, nodes=given.nodes, notes=given.notes)
    except BuscoError as error:
        # this error is an answer too: the waiting task reports it; after any other failure, the task gets no answer and
        # tries again
        _answer(record, Selection(select=selection, error=str(error)))
        raise
    _answer(record, found)
    for note in found.notes:
        say(note)
    echo(json_text(found.nodes))


def _answer(record: str, found: Selection) -> None:
    """Writes the result of a selection to the lake if it was requested, that is, if `record` is not empty."""
    if record:
        _, store, environment = lake()
        with suppress(AlreadyExists):
            # the record already exists if this command was started twice for the same try
            store.create(environment.selection(record), found)


@click.command("bake")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def bake_command(folder: Path) -> None:
    """Parse the projects for an image, and save the results in FOLDER for the image's containers (BUSCO_BAKED_DIR)."""
    from busco.warehouse.dbt import opened

    for settings in get_settings().of_all_projects():
        # ignore any earlier parse that the base image contains
        with opened(settings.model_copy(update={"baked_dir": None})) as dbt:
            whole = dbt.bake(folder)
        limit = "" if whole else ", only as a starting point, because the project reads environment variables (env_var)"
        echo(f"parsed for an image{limit}: {settings.project_part(folder)}")
