"""`busco replay`: rebuilds models of a run on this machine, from the run's inputs."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from busco import worktrees
from busco.cli.releases import lake
from busco.environments import without_airflow
from busco.errors import BuscoError
from busco.lake import replays
from busco.lake.budget import budget, size
from busco.lake.layout import EnvironmentLayout
from busco.lake.records import GOOD, RUNNER_NODE, Published, Result
from busco.lake.runs import Run
from busco.output import echo, say, table
from busco.project import Project, table_name
from busco.settings import Settings
from busco.warehouse.plan import buildable

# longer names are cut off: the names of generic tests contain all of their arguments
_NAME_LENGTH = 70
# variables with credentials: the docker command contains only their names, and Docker takes the values from the shell
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class Code:
    """The code that a replay runs: `home` is its folder; `commit` is empty for the working tree."""

    home: Path
    commit: str = ""

    def variables(self, environment: str) -> dict[str, str]:
        """Returns the environment variables of a process that runs this code in a lake environment."""
        made = without_airflow(dict(os.environ)) | {"BUSCO_ENVIRONMENT": environment, "BUSCO_HOME": str(self.home)}
        if not self.commit:
            return made
        # a commit's code has its own state folder, its own project, and its own parse of that project
        for name in ("BUSCO_STATE_DIR", "BUSCO_BAKED_DIR", "BUSCO_DBT_PROJECT_DIR", "BUSCO_PROJECT_ID"):
            made.pop(name, None)
        made["BUSCO_CODE_VERSION"] = self.commit
        if (self.home / "src" / "busco").is_dir():
            paths = [str(self.home / "src"), *filter(None, [made.get("PYTHONPATH")])]
            made["PYTHONPATH"] = os.pathsep.join(paths)
        return made

    def settings(self, settings: Settings, project_dir: str) -> Settings:
        if self.commit:
            fields = type(settings).model_fields
            own = {name: fields[name].default for name in ("state_dir", "baked_dir", "dbt_project_dir", "project_id")}
            settings = settings.model_copy(update={"home": self.home, **own})
        return settings.of_project(project_dir)


@click.command("replay")
@click.argument("run_name", metavar="RUN")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--code",
    "which",
    type=click.Choice(["run", "here"]),
    default="run",
    show_default=True,
    help="which code to run: the run's commit, or the files here, to try a fix on the run's data",
)
@click.option(
    "--tests/--no-tests", default=True, show_default=True, help="also run the models' own tests (unit tests always run)"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="write the table to this Parquet file (single model only)",
)
def replay_command(run_name: str, models: tuple[str, ...], which: str, tests: bool, out: Path | None) -> int:
    """Rebuild models of a run on this machine, as they were built in the run.

    MODEL is a name (fct_orders), a table (gold.fct_orders), or a dbt unique id. RUN is the run's key, Airflow's
    <DAG>/<run id>, or a unique part of either. The models read exactly the versions that the run's models read. The
    results go to an environment of your own: the run is not changed, and nothing is published.
    """
    if out is not None and len(models) > 1:
        raise click.UsageError("--out can be used only with a single model")
    settings, store, environment = lake()
    if environment.is_replay:
        raise BuscoError(
            f"BUSCO_ENVIRONMENT is {environment.environment}, which contains only replays",
            "unset it to replay a run of prod",
        )
    source = replays.find(store, environment, run_name)
    with _code(settings, source, models, which) as code:
        project = _project(settings, code, source.pin.project_dir)
        chosen = [_node(project, model) for model in models]
        _check_inputs(project, source, chosen, run_name)
        nodes = list(chosen)
        if tests:
            units = [unit for unit, model in project.unit_tests.items() if model in chosen]
            own = [test for model in chosen for test in project.own_tests.get(model, ())]
            nodes = list(dict.fromkeys([*nodes, *units, *own]))
        run = replays.copy(source, _environment())
        replays.order(run, nodes)
        commit = f"commit {code.commit}" if code.commit else "the files in this folder"
        say(f"replaying {source.name} epoch {source.pin.epoch} in {run.environment.environment}, code: {commit}")
        status = _build(code, run)
    results = run.latest_results()
    if any(node not in results for node in nodes):
        killed = "; the process was killed (out of memory?)" if status < 0 else ""
        raise BuscoError(
            f"the replay ended before it produced all results (exit status {status})", f"see the output above{killed}"
        )
    # dbt always runs a model's unit tests before it builds the model
    nodes += sorted(results.keys() - {RUNNER_NODE, *nodes})
    _report(settings, source, nodes, results)
    versions = [entry.version for name in chosen if (entry := run.entries().get(str(project.table_of(name))))]
    _show(settings, run, [version for version in versions if version is not None], out)
    return 0 if all(results[node].status in GOOD for node in nodes) else 1


def _environment() -> EnvironmentLayout:
    return replays.environment_of(getpass.getuser())


# -- the code ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _code(settings: Settings, source: Run, models: Sequence[str], which: str) -> Iterator[Code]:
    """Yields the requested code; its folder exists until the context ends."""
    if which == "here":
        yield Code(settings.home)
        return
    if Path(source.pin.project_dir).is_absolute():
        raise BuscoError(
            f"the dbt project {source.pin.project_dir} is outside of {settings.home} and not in the run's commit",
            "replay its current files: --code here",
        )
    version = _code_version(source, models)
    commit = version.removesuffix("+")
    if not commit:
        raise BuscoError(
            f"run {source.name} has no record of its code's commit", "replay it with the code here: --code here"
        )
    found = worktrees.full_commit(settings.home, commit)
    if found is None:
        raise _missing(settings, source, models, version)
    if version != commit:
        say(f"warning: the run's code had files that differ from commit {commit}; only the commit can be replayed")
    with worktrees.checked_out(settings.home, settings.state / "replay", found) as folder:
        code = Code(folder, commit)
        if not (code.settings(settings, source.pin.project_dir).dbt_project / "dbt_project.yml").is_file():
            raise BuscoError(
                f"commit {commit} has no dbt project {source.pin.project_dir}", "use the code here: --code here"
            )
        yield code


def _code_version(source: Run, models: Sequence[str]) -> str:
    """Returns the version of the code that built the models in the run; it can be newer than the version in the pin."""
    latest = source.latest_results()
    built = [latest[node].code_version for model in models if (node := _known(source, model)) in latest]
    return next((version for version in built if version), source.pin.code_version)


def _missing(settings: Settings, source: Run, models: Sequence[str], version: str) -> BuscoError:
    """Returns the error for a commit that is not in this clone. The docker command in its hint can be run as is."""
    commit = version.removesuffix("+")
    shallow = worktrees.is_shallow(settings.home)
    fetch = "this clone is shallow: git fetch --unshallow" if shallow else "git fetch --all"
    hints = [fetch, "or replay the run with the code here: --code here"]
    nodes = [node for model in models if (node := _known(source, model))]
    if len(nodes) == len(models):
        run = replays.copy(source, _environment())
        replays.order(run, nodes)
        hints.append(f"or build only the models, in the image of that commit: {_docker(settings, run, version)}")
    return BuscoError(f"the run's commit {commit} is not in this clone", "\n  → ".join(hints))


def _docker(settings: Settings, run: Run, version: str) -> str:
    values = {
        "BUSCO_ENVIRONMENT": run.environment.environment,
        "BUSCO_LAKE_BUCKET": settings.lake_bucket,
        "BUSCO_REGION": settings.region,
    }
    command = ["docker", "run", "--rm"]
    if settings.endpoint_url:
        command += ["--network", "host"]
        values["AWS_ENDPOINT_URL"] = settings.endpoint_url
    for name, value in values.items():
        command += ["-e", f"{name}={value}"]
    for name in _CREDENTIALS:
        command += ["-e", name]
    image, _, tag = settings.dbt_image.rpartition(":")
    image = settings.dbt_image if not image or "/" in tag else image
    # the tag that scripts/local_build.sh uses
    command += [f"{image}:{version.replace('+', '-dirty')}", *_runner(run)]
    return shlex.join(command)


def _known(source: Run, model: str) -> str:
    """Returns a model's unique id from the run's records alone; '' if they don't identify the model."""
    entries = {table: entry.version.unique_id for table, entry in source.entries().items() if entry.version}
    ids = {*source.latest_results(), *entries.values()}
    found = [uid for uid in ids if uid == model or uid.split(".")[-1] == model.split(".")[-1]]
    return found[0] if len(found) == 1 else entries.get(model, "")


# -- what to build ----------------------------------------------------------------------------------------------------


def _project(settings: Settings, code: Code, project_dir: str) -> Project:
    """Returns the dbt project of the given code; a commit's project is parsed only once, by the commit's own code."""
    own = code.settings(settings, project_dir)
    if not code.commit:
        from busco.warehouse.dbt import opened

        with opened(own) as dbt:
            return dbt.parse()
    if not own.manifest_path.is_file():
        command = [sys.executable, "-m", "busco", "dbt", "--project-dir", str(own.dbt_project), "parse"]
        variables = code.variables(settings.environment)
        parsed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=code.home, env=variables)
        if parsed.returncode:
            raise BuscoError(f"the project of commit {code.commit} can't be parsed:\n{parsed.stdout}{parsed.stderr}")
    return Project.read(own.manifest_path)


def _node(project: Project, model: str) -> str:
    """Returns the unique id of a model, seed or test, given its name, table or unique id.

    Raises:
        BuscoError: no node matches, or several do.
    """
    names = {uid: _names(project, uid) for uid in buildable(project)}
    found = [uid for uid, own in names.items() if model in own]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n".join(f"    {uid}" for uid in sorted(found))
        raise BuscoError(f"several nodes match {model}:\n{listed}", "specify the unique id")
    near = difflib.get_close_matches(model, sorted(set().union(*names.values())), 3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see: busco dbt ls"
    raise BuscoError(f"the dbt project {project.name} has no buildable model {model}", hint)


def _names(project: Project, uid: str) -> set[str]:
    node = project.node(uid)
    own = {uid, str(node["name"])}
    if node["resource_type"] in ("model", "seed"):
        own.add(table_name(node))
    return own


def _check_inputs(project: Project, source: Run, chosen: Sequence[str], run_name: str) -> None:
    """Warns if a model would read a different version of a parent than it would have read in the run.

    Raises:
        BuscoError: the run started to build a parent but has no version of it.
    """
    entries = source.entries()
    here = {made for node in chosen if (made := project.table_of(node))}
    for node in chosen:
        for parent in sorted(project.parents(node) - here):
            if parent not in project.tables:
                continue
            name = project.node(node)["name"]
            if (entry := entries.get(parent)) is not None and entry.version is None:
                raise BuscoError(
                    f"{parent}, which {name} reads, was not finished in the run",
                    f"replay both: busco replay {run_name} {parent} {name}",
                )
            if entry is None and (source.pin.nodes is None or project.tables[parent] in source.pin.nodes):
                say(f"warning: the run has not built {parent} (yet): {name} reads the base release's version")


def _runner(run: Run) -> list[str]:
    arguments = ["runner", "--run", run.name, "--epoch", str(run.pin.epoch)]
    return [*arguments, "--order", replays.ORDER, "--generation", "1"]


def _build(code: Code, run: Run) -> int:
    """Carries out the order in a process that runs the given code and prints dbt's output. Returns the exit status of
    that process."""
    sys.stdout.flush()
    variables = code.variables(run.environment.environment)
    process = subprocess.Popen([sys.executable, "-m", "busco", *_runner(run)], cwd=code.home, env=variables)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # the terminal has interrupted that process as well
        process.wait()
        raise


# -- the results ------------------------------------------------------------------------------------------------------


def _report(settings: Settings, source: Run, nodes: Sequence[str], results: dict[str, Result]) -> None:
    """Prints each node's result in the replay next to its result in the run, and errors in the format of task logs."""
    then = source.latest_results()
    rows = []
    for node in nodes:
        result, before = results[node], then.get(node)
        counted = "" if result.rows is None else f"{result.rows:,}"
        name = _short(node)
        name = name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
        rows.append((name, before.status if before else "", result.status, counted, f"{result.seconds:.1f}"))
    table(("node", "in the run", "replayed", "rows", "seconds"), rows, right=(3, 4))
    for node in nodes:
        result = results[node]
        if result.status not in GOOD:
            failure = f"{_short(node)} failed\n{result.error or result.message or 'dbt reported no reason'}"
            echo(failure + (f"\nat {result.where}" if result.where else ""))
    given = budget(settings)
    of = f" of {size(given.container)}" if given.container is not None else ""
    runners = {runner.number: runner for runner in source.runners()}
    numbers = {then[node].runner for node in nodes if node in then}
    had = sorted({runners[n].memory for n in numbers if n in runners and runners[n].memory})
    there = f"; the run's container had {' and '.join(f'{memory} MiB' for memory in had)}" if had else ""
    echo(f"memory: DuckDB's limit here was {given.memory or '80% of the machine'}{of}{there}")


def _short(node: str) -> str:
    return node.split(".", 2)[-1]


def _show(settings: Settings, run: Run, versions: Sequence[Published], out: Path | None) -> None:
    """Prints commands that query the results; if `out` is given, also writes the table to that local file."""
    environment = run.environment.environment
    for version in versions:
        layer, name = version.table.split(".", 1)
        sql = f"select * from {settings.database(layer)}.{name} limit 20"
        echo(f"to look at {version.table}: busco query --env {environment} --run {run.name} {shlex.quote(sql)}")
    if out is None:
        return
    if not versions:
        raise BuscoError(f"{out} was not written: no table was built")
    from busco.lake.contents import read_version
    from busco.lake.engine import connect
    from busco.lake.relations import select_sql
    from busco.lake.types import literal

    out.parent.mkdir(parents=True, exist_ok=True)
    with connect(settings) as connection:
        made = select_sql(read_version(run.store, versions[0]), settings.lake_bucket)
        connection.execute(f"copy ({made}) to {literal(str(out))} (format parquet)")
    echo(f"wrote {out}")
