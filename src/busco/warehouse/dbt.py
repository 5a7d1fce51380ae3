"""dbt, called in this process: parse, list, build, docs; each with a target folder of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import click
import yaml
from dbt.adapters.factory import FACTORY
from dbt.cli.main import cli as dbt_cli
from dbt.cli.main import dbtRunner, dbtRunnerResult

from busco import output, refusals
from busco.environments import ask_for_parse
from busco.errors import BuscoError
from busco.processes import clear_left_behind, own_name
from busco.project import Project, is_ignored
from busco.projects import all_contracts
from busco.selection import selectors
from busco.settings import Settings
from busco.warehouse import baked, environment, package
from busco.warehouse.console import Console, Shown, shown_by
from busco.warehouse.redact import HIDDEN, Redactor

package.bring()
environment.install()

# dbt's own telemetry would reach for the network at each command
os.environ.setdefault("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
os.environ.setdefault("DBT_VERSION_CHECK", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

# What dbt's messages point at in its target folder, and what is worth a look when a build has failed.
_WORTH_KEEPING = (
    "compiled",
    "run_results.json",
    "manifest.json",
    "catalog.json",
    "index.html",
    "static_index.html",
    "sources.json",
)


@dataclass(frozen=True)
class Selected:
    """What a selection names.

    Attributes:
        nodes: unique ids of models, seeds, tests and unit tests.
        notes: a sentence for each part of the selection that matched nothing, and for tests that were left out.
    """

    nodes: tuple[str, ...]
    notes: tuple[str, ...]


class Dbt:
    """dbt on the project, with a target folder of its own, so that several processes may run at once.

    The partial parse is taken from and given back to the state folder, where every process finds the last one.
    `parsed_by` says whose word the project is: `dbt` parsed it here, or it came with the image (`baked`).

    Args:
        verbose: whether a refusal of the project names each model, however many there are.
    """

    def __init__(self, settings: Settings, target: Path, verbose: bool = False) -> None:
        self.settings, self.target, self.verbose = settings, target, verbose
        self.manifest: Any = None
        self.project: Project | None = None
        self.parsed_by: Literal["dbt", "image"] = "dbt"
        self.redactor: Redactor | None = None

    def parse(self) -> Project:
        """Parses the project, unless the image has its parse, and refuses what the lake refuses.

        Raises:
            BuscoError: dbt can't parse it (dbt's message), or a model is refused (`refusals`).
        """
        if (found := baked.find(self.settings)) is not None:
            self.manifest, self.parsed_by = found.manifest(), "image"
            self.project = found.project.with_id(self.settings.project_id)
            self.redactor = Redactor(self.project)
            self._check(self.project)
            return self.project
        shared = self.settings.partial_parse_path
        own = self.target / baked.PARTIAL_PARSE
        self.target.mkdir(parents=True, exist_ok=True)
        before = shared if shared.is_file() else baked.partial_parse(self.settings)
        if before is not None:
            shutil.copyfile(before, own)
        result = self.invoke(["parse"], shown="errors")
        if not result.success:
            reason = self.reason(result)
            raise BuscoError(
                f"dbt can't parse the project:\n{reason}", self.advice(reason) or "fix the file that it names"
            )
        self.manifest = result.result
        project = self._project()
        self._check(project)
        if own.is_file():
            replace_file(shared, own.read_bytes())
        self.project, self.redactor = project, Redactor(project)
        return project

    def _check(self, project: Project) -> None:
        refusals.check(project, self._project_file(), self.verbose, self.parse_command)

    @property
    def parse_command(self) -> str:
        """What parses the project, as a user types it."""
        return self.settings.dbt_command("parse")

    def _project_file(self) -> dict[str, Any]:
        """What is in the project's dbt_project.yml."""
        return dict(yaml.safe_load((self.settings.dbt_project / "dbt_project.yml").read_text()))

    def bake(self, folder: Path) -> bool:
        """Parses the project for an image, from nothing, into `folder`; False as in `baked.save`."""
        project = self.parse()
        self.check_partitions()
        return baked.save(folder, self.settings, project, self.target / baked.PARTIAL_PARSE)

    def check_partitions(self) -> None:
        """Refuses partitions by personal data, as far as it can be known before anything is built.

        Raises:
            BuscoError: with each model and column.
        """
        # it needs more of dbt than a parse does
        from busco.warehouse import partitions

        partitions.check(self)

    def _project(self) -> Project:
        manifest = json.loads((self.target / "manifest.json").read_text())
        manifest["vars"] = self._project_file().get("vars", {})
        manifest["nodes"] = {uid: node for uid, node in manifest["nodes"].items() if not is_ignored(node)}
        for node in manifest["nodes"].values():
            # of a seed above 1 MiB dbt's checksum is its path: what it holds would not be part of its fingerprint (R6)
            if node["resource_type"] == "seed" and node["checksum"]["name"] == "path":
                folder = Path(node.get("root_path") or self.settings.dbt_project)
                content = (folder / node["original_file_path"]).read_bytes()
                node["checksum"] = {"name": "sha256", "checksum": hashlib.sha256(content).hexdigest()}
        return Project(manifest).with_id(self.settings.project_id)

    def select(self, select: str, exclude: str = "", built: Collection[str] | None = None) -> Selected:
        """The models, seeds, tests and unit tests that `select` (dbt's syntax) names.

        dbt's `eager` takes every test that touches a selected model, also where its other parents were never built:
        on an empty lake no selection could work. Its `buildable` takes those alone whose parents are selected or
        ancestors of it: a model could not be published over a live release, which asks for every test of what was
        built. So it is eager for parents that have a version in `built`, and leaves out, with a word, the other tests.

        Args:
            built: the tables of the live release; None leaves nothing out.

        Raises:
            BuscoError: it names nothing, dbt can't read it, or a word of it looks like an option (`selectors`).
        """
        # each as one value: dbt's own parser splits it, and looks for no option in it
        wanted, unwanted = " ".join(selectors(select)), " ".join(selectors(exclude))
        if not wanted:
            raise BuscoError("the selection is empty", "try it: busco dbt ls --select …")
        arguments = ["ls", "--select", wanted, "--output", "json", "--output-keys", "unique_id"]
        arguments += ["--resource-type", "model", "--resource-type", "seed"]
        arguments += ["--resource-type", "test", "--resource-type", "unit_test"]
        if unwanted:
            arguments += ["--exclude", unwanted]
        unmatched: list[str] = []

        def note(event: Any) -> None:
            if event.info.name == "NoNodesForSelectionCriteria":
                unmatched.append(str(event.data.spec_raw))

        result = self.invoke(arguments, [note], shown="nothing")
        if not result.success:
            # `ls` runs no query: the message has no values
            raise BuscoError(f"dbt can't read the selection {select!r}:\n{result.exception or 'see its log above'}")
        lines = result.result if isinstance(result.result, list) else []
        found = [str(json.loads(line)["unique_id"]) for line in lines if line.startswith("{")]
        notes = [f"{word!r} in the selection matches nothing" for word in dict.fromkeys(unmatched)]
        if found and built is not None and self.project is not None:
            found, left_out = _testable(self.project, found, built)
            notes += left_out
        if not found:
            hint = "try it: busco dbt ls --select …"
            if any("," in word for word in unmatched):
                hint = f"a comma means both at once, as in tag:finance,gold.*; names have spaces between them; {hint}"
            raise BuscoError(f"the selection {select!r} matches nothing", hint)
        return Selected(tuple(found), tuple(notes))

    def invoke(
        self, arguments: Sequence[str], callbacks: Sequence[Callable[[Any], None]] = (), shown: Shown | None = None
    ) -> dbtRunnerResult:
        """Runs a dbt command; its log goes to standard output without colours, values of pii columns hidden.

        What a failed build wrote stays (`keep`).

        Args:
            shown: how much of its log; what dbt's own options among the arguments say without it.

        Raises:
            KeyboardInterrupt: it was interrupted; dbt itself would make an error of it.
        """
        known = options_of(arguments) or frozenset()
        folder = str(self.settings.dbt_project)
        flags = ["--no-use-colors", "--log-level-file", "none", "--no-send-anonymous-usage-stats"]
        flags += ["--log-path", str(self.target), "--no-version-check"]
        if self.parsed_by == "image" and arguments[0] in ("build", "test"):
            # its files are of no use to anybody once the container is gone, and the manifest is long
            flags.append("--no-write-json")
        console = Console(arguments[0], self.redactor, shown or shown_by(arguments))
        runner = dbtRunner(manifest=self.manifest, callbacks=[console, *callbacks])
        given = {"project_dir": folder, "profiles_dir": str(package.FOLDER), "target_path": str(self.target)}
        # whatever profile the project names for those who run it elsewhere
        given["profile"] = package.PROFILE
        places = [part for name in given if name in known for part in (f"--{name.replace('_', '-')}", given[name])]
        with _interrupting():
            # last, so that no other option lets dbt's own logger speak
            result = runner.invoke([*flags, *arguments, *places, "--log-level", "none"])
        if isinstance(result.exception, KeyboardInterrupt):
            raise result.exception
        console.check()
        if arguments[0] in ("build", "test") and not result.success:
            self.keep()
        return result

    def reason(self, result: dbtRunnerResult) -> str:
        """Why a command ended without results, values hidden."""
        if not result.exception:
            return "dbt gave no reason; see its log above"
        text = str(result.exception)
        return self.redactor.text("", text) if self.redactor else text

    def advice(self, reason: str) -> str:
        """What to do about dbt's error, as `about_packages`."""
        return about_packages(self.settings, reason)

    def without_answers(self, name: str) -> str:
        """The manifest that dbt wrote, or a page with it inside, without compiled SQL that is made of what a query
        gave (`Redactor.compiled`)."""
        text = (self.target / name).read_text()
        if self.redactor is None or not self.redactor.made_of_answers():
            return text
        manifest = (self.target / "manifest.json").read_text()
        return text.replace(manifest, self.redactor.compiled(manifest))

    def _hide_answers(self, compiled: Path) -> None:
        """Empties the files that have, or may have, SQL which is made of what a query gave."""
        if self.redactor is None or not (made := self.redactor.made_of_answers()):
            return
        project = self.redactor.project
        free = {
            compiled / place for uid in (*project.nodes, *project.unit_tests) if uid not in made
            for place in _compiled_files(project.node(uid))
        }  # fmt: skip
        for file in compiled.rglob("*"):
            if file.is_file() and file not in free:
                file.write_text(HIDDEN)

    def keep(self) -> None:
        """Puts what dbt wrote where it outlives this process, in place of what an earlier one left, and says so."""
        found = [self.target / name for name in _WORTH_KEEPING if (self.target / name).exists()]
        if not found:
            return
        last = self.settings.state / "dbt" / "last"
        fresh = self.target.with_name(f"{self.target.name}-kept")
        fresh.mkdir()
        for path in found:
            if path.is_dir():
                shutil.copytree(path, fresh / path.name)
                self._hide_answers(fresh / path.name)
            elif self.redactor and path.name in ("run_results.json", "sources.json"):
                (fresh / path.name).write_text(self.redactor.artifact(path.read_text()))
            elif path.name in ("manifest.json", "static_index.html"):
                (fresh / path.name).write_text(self.without_answers(path.name))
            else:
                shutil.copyfile(path, fresh / path.name)
        shutil.rmtree(last, ignore_errors=True)
        try:
            fresh.replace(last)
        except OSError:
            # another process has just put its own there
            shutil.rmtree(fresh, ignore_errors=True)
        say(f"what dbt wrote to its target folder is in {last}")


def about_packages(settings: Settings, error: str) -> str:
    """What to do about an error of dbt in which it asks for `dbt deps`; '' for any other error."""
    if "dbt deps" not in error:
        return ""
    install = settings.dbt_command("deps")
    if "calling a macro" not in error:
        return install
    # dbt can't tell a macro of a missing package from one whose name is wrong
    return f"correct the macro's name; or, if a package has it: name the package in packages.yml, then {install}"


def _compiled_files(node: Mapping[str, Any]) -> list[Path]:
    """The files below `compiled` that a node's SQL may be in: a generic or unit test's are below its YAML file."""
    package, file, path = Path(node["package_name"]), Path(node["original_file_path"]), node["path"]
    below = path if node["resource_type"] != "unit_test" else file.parent / f"{node['name']}.sql"
    return [package / file, package / path, package / file / below]


def options_of(arguments: Sequence[str]) -> frozenset[str] | None:
    """The names of the options that a dbt command takes (`target_path`, …); None where dbt has no such command."""
    found: click.Command = dbt_cli
    for word in arguments:
        if not isinstance(found, click.Group) or word.startswith("-"):
            break
        if word not in found.commands:
            return None
        found = found.commands[word]
    if isinstance(found, click.Group):
        return frozenset() if any(word.startswith("-") for word in arguments) else None
    return frozenset(str(option.name) for option in found.params)


def _testable(project: Project, found: Sequence[str], built: Collection[str]) -> tuple[list[str], list[str]]:
    """The selection without the tests that read tables which are neither built in it nor before; and a note of them."""
    have = {table for node in (*found, *project.sources) if (table := project.table_of(node))} | set(built)
    missing = {node: lacking for node in found if node in project.tests and (lacking := project.parents(node) - have)}
    notes = []
    if missing:
        names = sorted(str(project.node(node)["name"]) for node in missing)
        tables = ", ".join(sorted(frozenset().union(*missing.values())))
        notes.append(f"left out, since {tables} was never built: {', '.join(names)}")
    return [node for node in found if node not in missing], notes


@contextmanager
def _interrupting() -> Iterator[None]:
    """Makes a SIGINT end dbt. dbt interrupts its connections once and waits for its threads: a query that one of them
    begins after that knows nothing of it, and would be waited for. So they are interrupted until dbt has ended."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield
        return
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.1):
            adapters: list[Any] = list(FACTORY.adapters.values())
            for adapter in adapters:
                # a connection that is closed meanwhile, or a list of them that changes, is for the next round
                with contextlib.suppress(Exception):
                    adapter.cancel_open_connections()

    def handle(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=interrupt, daemon=True).start()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGINT, usual)


@contextmanager
def opened(settings: Settings, verbose: bool = False) -> Iterator[Dbt]:
    """A dbt with a fresh target folder below the state folder, taken away at the end; so are those of processes that
    were killed.

    Args:
        verbose: as of `Dbt`.
    """
    root = settings.state / "dbt"
    root.mkdir(parents=True, exist_ok=True)
    clear_left_behind(root, "target")
    folder = root / own_name("target")
    folder.mkdir(mode=0o700)
    try:
        yield Dbt(settings, folder, verbose)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(settings: Settings, project: Project) -> Path:
    """Makes `project` the one whose graph Airflow shows: replaces the manifest in one step."""
    path = settings.manifest_path
    replace_file(path, json.dumps(project.manifest).encode())
    ask_for_parse(settings)
    return path


def ensure_manifests(settings: Settings) -> list[Project]:
    """All dbt projects of the platform as they are on disk, that of the settings first.

    Raises:
        BuscoError: one of them can't be parsed, or two of them say different things of one source table.
    """
    projects = [ensure_manifest(one) for one in settings.of_all_projects()]
    all_contracts(projects)
    return projects


def ensure_manifest(settings: Settings) -> Project:
    """The project as it is on disk: from the manifest, parsed anew if a file of it is younger."""
    path = settings.manifest_path
    if path.is_file():
        made = path.stat().st_mtime
        files = [file for file in settings.dbt_project.rglob("*") if "target" not in file.parts]
        files += package.FOLDER.rglob("*")
        if all(file.stat().st_mtime <= made for file in files):
            return Project.of(settings)
    with opened(settings) as dbt:
        project = dbt.parse()
        dbt.check_partitions()
    write_manifest(settings, project)
    return project


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(scratch).chmod(0o644)
    Path(scratch).replace(path)


def say(text: str) -> None:
    """A line on standard output, at once."""
    output.echo(text)
