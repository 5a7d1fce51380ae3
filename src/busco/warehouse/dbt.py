"""Runs dbt in this process (parse, list, build, docs), with a separate target folder for each process."""

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
from busco.errors import BuscoError
from busco.processes import clear_left_behind, own_name
from busco.project import Project, is_ignored
from busco.projects import all_contracts
from busco.selection import selectors
from busco.settings import Settings, require_project
from busco.warehouse import baked, dbt_errors, environment, package, selectable
from busco.warehouse.console import Console, Shown, shown_by
from busco.warehouse.redact import HIDDEN, Redactor

package.register()
environment.install()

# dbt's telemetry and version check would access the network on every command
os.environ.setdefault("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
os.environ.setdefault("DBT_VERSION_CHECK", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

# Files and folders in the target folder that dbt's messages refer to, or that help to debug a failed build.
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
    """The nodes that a selection matches.

    Attributes:
        nodes: the unique ids of models, seeds, tests and unit tests.
        notes: one sentence for each part of the selection or exclusion that matched nothing, and one for each reason
            why nodes were left out.
    """

    nodes: tuple[str, ...]
    notes: tuple[str, ...]


class Dbt:
    """Runs dbt for one project, in a target folder of its own, so that several processes can run at the same time.

    Processes share the partial parse: each one reads it from the state folder and writes it back after parsing.
    `parsed_by` is `dbt` if this process parsed the project, or `image` if the parse came with the image (`baked`).

    Args:
        verbose: whether a refusal of the project lists every model, however many there are.
    """

    def __init__(self, settings: Settings, target: Path, verbose: bool = False) -> None:
        self.settings, self.target, self.verbose = settings, target, verbose
        self.manifest: Any = None
        self.project: Project | None = None
        self.parsed_by: Literal["dbt", "image"] = "dbt"
        self.redactor: Redactor | None = None

    def parse(self) -> Project:
        """Parses the project or uses the image's parse, and checks the project against the lake's rules (`refusals`).

        Raises:
            BuscoError: there is no project, dbt can't parse it (the message includes dbt's message), or a model is
                refused.
        """
        require_project(self.settings)
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
                f"dbt can't parse the project:\n{reason}", self.advice(reason) or "fix the file named in the message"
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
        """The command that parses the project, as a user would type it."""
        return self.settings.dbt_command("parse")

    def _project_file(self) -> dict[str, Any]:
        """Returns the content of the project's dbt_project.yml."""
        return dict(yaml.safe_load((self.settings.dbt_project / "dbt_project.yml").read_text()))

    def bake(self, folder: Path) -> bool:
        """Parses the project for an image and saves the parse in `folder`. Returns what `baked.save` returns."""
        project = self.parse()
        self.check_partitions()
        return baked.save(folder, self.settings, project, self.target / baked.PARTIAL_PARSE)

    def check_partitions(self) -> None:
        """Refuses partitions by personal data, as far as they can be detected before anything is built.

        Raises:
            BuscoError: there are such partitions; the message lists each model and column.
        """
        # imported here because it loads more of dbt than a parse needs
        from busco.warehouse import partitions

        partitions.check(self)

    def _project(self) -> Project:
        manifest = json.loads((self.target / "manifest.json").read_text())
        manifest["vars"] = self._project_file().get("vars", {})
        manifest["dispatch"] = self._project_file().get("dispatch", [])
        manifest["nodes"] = {uid: node for uid, node in manifest["nodes"].items() if not is_ignored(node)}
        for node in manifest["nodes"].values():
            # for a seed over 1 MiB, dbt's checksum covers only the path; the fingerprint must cover the content (R6)
            if node["resource_type"] == "seed" and node["checksum"]["name"] == "path":
                folder = Path(node.get("root_path") or self.settings.dbt_project)
                content = (folder / node["original_file_path"]).read_bytes()
                node["checksum"] = {"name": "sha256", "checksum": hashlib.sha256(content).hexdigest()}
        return Project(manifest).with_id(self.settings.project_id)

    def select(self, select: str, exclude: str = "", built: Collection[str] | None = None) -> Selected:
        """Returns the models, seeds, tests and unit tests that `select`, in dbt's syntax, matches.

        Neither of dbt's modes for selecting tests works here. `eager` selects every test of a selected model, even if
        the test's other parents were never built, so no selection would work on an empty lake. `buildable` selects only
        tests whose parents are all selected or ancestors of the selection, so a selected model could lack some of its
        tests and then not be published over a live release, because publishing requires every test of what was built.
        This method therefore uses `eager`, leaves out the tests with a parent that was never built, and lists them in
        a note.

        Args:
            built: the tables of the live release; if None, no test is left out.

        Raises:
            BuscoError: the selection matches nothing, or only what is excluded or left out; or dbt can't read it; or a
                part of it looks like an option (`selectors`).
        """
        # pass each of the two as a single value, which dbt splits, so that dbt can't mistake a part of it for an option
        included, excluded = " ".join(selectors(select)), " ".join(selectors(exclude))
        if not included:
            raise BuscoError("the selection is empty", "to try one, use: busco dbt ls --select …")
        arguments = ["ls", "--select", included, "--output", "json", "--output-keys", "unique_id"]
        arguments += ["--resource-type", "model", "--resource-type", "seed"]
        arguments += ["--resource-type", "test", "--resource-type", "unit_test"]
        if excluded:
            arguments += ["--exclude", excluded]
        unmatched: list[str] = []
        ignored: list[str] = []

        def note(event: Any) -> None:
            if event.info.name == "NoNodesForSelectionCriteria":
                unmatched.append(str(event.data.spec_raw))

        result = self.invoke(arguments, [note], shown="nothing")
        if not result.success:
            # `ls` runs no query, so the message contains no values
            raise BuscoError(f"dbt can't read the selection {select!r}:\n{result.exception or 'see the log above'}")
        lines = result.result if isinstance(result.result, list) else []
        found = [str(json.loads(line)["unique_id"]) for line in lines if line.startswith("{")]
        words, excluded_words = included.split(), excluded.split()
        notes = []
        for part in dict.fromkeys(unmatched):
            where = "exclusion" if part in excluded_words and part not in words else "selection"
            notes.append(f"{part!r} in the {where} matches nothing")
        reason = "matches nothing"
        if self.project is not None:
            found, ignored = selectable.built(self.project, found)
            notes += ignored
        if found and built is not None and self.project is not None:
            found, left_out = selectable.testable(self.project, found, built)
            notes += left_out
            reason = f"matches only tests that are {'; '.join(left_out)}"
        elif excluded and not set(words) <= set(unmatched):
            reason = f"matches only what is excluded by {exclude!r}"
        if not found:
            hint = "to try it, use: busco dbt ls --select …"
            if ignored:
                raise BuscoError(
                    f"the selection {select!r} matches nothing that dbt builds: {'; '.join(ignored)}", hint
                )
            if any("," in part for part in unmatched):
                both = "a comma means that both must match, as in tag:finance,gold.*"
                hint = f"{both}; separate alternatives with spaces; {hint}"
            raise BuscoError(f"the selection {select!r} {reason}", hint)
        return Selected(tuple(found), tuple(notes))

    @contextmanager
    def _only(self, unit_tests: Collection[str] | None) -> Iterator[None]:
        """Leaves only these unit tests in dbt's manifest. (dbt can't copy a manifest that it has used.)"""
        if unit_tests is None:
            yield
            return
        whole = self.manifest.unit_tests
        self.manifest.unit_tests = {uid: test for uid, test in whole.items() if uid in unit_tests}
        try:
            yield
        finally:
            self.manifest.unit_tests = whole

    def invoke(
        self,
        arguments: Sequence[str],
        callbacks: Sequence[Callable[[Any], None]] = (),
        shown: Shown | None = None,
        unit_tests: Collection[str] | None = None,
    ) -> dbtRunnerResult:
        """Runs a dbt command. Its log goes to standard output without colors, with values of pii columns hidden.

        If a build or test fails, the files that it wrote are kept (`keep`).

        Args:
            shown: how much of the log to show; by default, as much as dbt's own options among the arguments specify.
            unit_tests: the unique ids of the unit tests that dbt can run; None for all. Otherwise, dbt would run all
                unit tests of each model that is selected.

        Raises:
            KeyboardInterrupt: the command was interrupted; dbt itself would report this as an error.
        """
        known = options_of(arguments) or frozenset()
        folder = str(self.settings.dbt_project)
        flags = ["--no-use-colors", "--log-level-file", "none", "--no-send-anonymous-usage-stats"]
        flags += ["--log-path", str(self.target), "--no-version-check"]
        if self.parsed_by == "image" and arguments[0] in ("build", "test"):
            # nobody can read dbt's JSON files after the container has exited, and the manifest is large
            flags.append("--no-write-json")
        console = Console(arguments[0], self.redactor, shown or shown_by(arguments))
        runner = dbtRunner(manifest=self.manifest, callbacks=[console, *callbacks])
        given = {"project_dir": folder, "profiles_dir": str(package.FOLDER), "target_path": str(self.target)}
        # overrides the project's own profile, which is for running the project elsewhere
        given["profile"] = package.PROFILE
        options = [part for name in given if name in known for part in (f"--{name.replace('_', '-')}", given[name])]
        with _interrupting(), self._only(unit_tests):
            # `--log-level` comes last, so that no other option re-enables dbt's own logger
            result = runner.invoke([*flags, *arguments, *options, "--log-level", "none"])
        if isinstance(result.exception, KeyboardInterrupt):
            raise result.exception
        console.check()
        if arguments[0] in ("build", "test") and not result.success:
            self.keep()
        return result

    def reason(self, result: dbtRunnerResult) -> str:
        """Returns why a command ended without results, with values hidden."""
        if not result.exception:
            return "dbt reported no reason; see the log above"
        text = str(result.exception)
        return self.redactor.text("", text) if self.redactor else text

    def advice(self, reason: str) -> str:
        """Returns what to do about dbt's error; see `dbt_errors.advice`."""
        return dbt_errors.advice(self.settings, reason)

    def without_results(self, name: str) -> str:
        """Returns the manifest that dbt wrote, or a page that embeds it, without compiled SQL that was built from query
        results (`Redactor.compiled`)."""
        text = (self.target / name).read_text()
        if self.redactor is None or not self.redactor.built_from_results():
            return text
        manifest = (self.target / "manifest.json").read_text()
        return text.replace(manifest, self.redactor.compiled(manifest))

    def _hide_results(self, compiled: Path) -> None:
        """Replaces the content of files whose SQL was, or may have been, built from query results."""
        if self.redactor is None or not (made := self.redactor.built_from_results()):
            return
        project = self.redactor.project
        free = {
            compiled / path for uid in (*project.nodes, *project.unit_tests) if uid not in made
            for path in _compiled_files(project.node(uid))
        }  # fmt: skip
        for file in compiled.rglob("*"):
            if file.is_file() and file not in free:
                file.write_text(HIDDEN)

    def keep(self) -> None:
        """Copies dbt's files to a folder that outlives this process, replacing earlier files, and prints the path."""
        found = [self.target / name for name in _WORTH_KEEPING if (self.target / name).exists()]
        if not found:
            return
        last = self.settings.state / "dbt" / "last"
        fresh = self.target.with_name(f"{self.target.name}-kept")
        fresh.mkdir()
        for path in found:
            if path.is_dir():
                shutil.copytree(path, fresh / path.name)
                self._hide_results(fresh / path.name)
            elif self.redactor and path.name in ("run_results.json", "sources.json"):
                (fresh / path.name).write_text(self.redactor.artifact(path.read_text()))
            elif path.name in ("manifest.json", "static_index.html"):
                (fresh / path.name).write_text(self.without_results(path.name))
            else:
                shutil.copyfile(path, fresh / path.name)
        shutil.rmtree(last, ignore_errors=True)
        try:
            fresh.replace(last)
        except OSError:
            # another process has just saved its output there
            shutil.rmtree(fresh, ignore_errors=True)
        say(f"the files from dbt's target folder are in {last}")


def _compiled_files(node: Mapping[str, Any]) -> list[Path]:
    """Returns the files below `compiled` that may contain a node's SQL. For generic and unit tests, those files are
    below a folder with the YAML file's name."""
    package, file, path = Path(node["package_name"]), Path(node["original_file_path"]), node["path"]
    below = path if node["resource_type"] != "unit_test" else file.parent / f"{node['name']}.sql"
    return [package / file, package / path, package / file / below]


def options_of(arguments: Sequence[str]) -> frozenset[str] | None:
    """Returns the names of a dbt command's options (`target_path`, …); None if dbt has no such command."""
    found: click.Command = dbt_cli
    for argument in arguments:
        if not isinstance(found, click.Group) or argument.startswith("-"):
            break
        if argument not in found.commands:
            return None
        found = found.commands[argument]
    if isinstance(found, click.Group):
        return frozenset() if any(argument.startswith("-") for argument in arguments) else None
    return frozenset(str(option.name) for option in found.params)


@contextmanager
def _interrupting() -> Iterator[None]:
    """Makes SIGINT stop dbt promptly. dbt interrupts its connections once and then waits for its threads, so a query
    that a thread starts later would run to completion. This context manager keeps interrupting the connections until
    dbt stops."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield
        return
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.1):
            adapters: list[Any] = list(FACTORY.adapters.values())
            for adapter in adapters:
                # if a connection is closed or the list changes meanwhile, the next round interrupts the rest
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
    """Yields a `Dbt` with a new target folder below the state folder. The folder is removed at the end; folders that
    killed processes left behind are removed at the start.

    Args:
        verbose: as for `Dbt`.
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
    """Replaces the manifest atomically, and Airflow's triggerer then requests a parse of the project's DAGs."""
    path = settings.manifest_path
    replace_file(path, json.dumps(project.manifest).encode())
    return path


def ensure_manifests(settings: Settings) -> list[Project]:
    """Returns all dbt projects of the platform as they are on disk, starting with the one that the settings name.

    Raises:
        BuscoError: one of them can't be parsed, or two of them define the same source table differently.
    """
    projects = [ensure_manifest(one) for one in settings.of_all_projects()]
    all_contracts(projects)
    return projects


def ensure_manifest(settings: Settings) -> Project:
    """Returns the project as it is on disk: from the manifest, or by a new parse if one of the project's files is newer
    than the manifest or there is no manifest."""
    require_project(settings)
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


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file atomically: readers see either the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(scratch).chmod(mode)
    Path(scratch).replace(path)


def say(text: str) -> None:
    """Prints a line on standard output and flushes it."""
    output.echo(text)
