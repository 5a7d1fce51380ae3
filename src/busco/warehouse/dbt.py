"""dbt, called in this process: parse, list, build, docs; each with a target folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dbt.cli.main import dbtRunner, dbtRunnerResult

from busco.errors import BuscoError
from busco.project import Project
from busco.settings import Settings

# dbt's own telemetry would reach for the network at each command
os.environ.setdefault("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
os.environ.setdefault("DBT_VERSION_CHECK", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")


class Dbt:
    """dbt on the project, with a target folder of its own, so that several processes may run at once.

    The partial parse is taken from and given back to the state folder, where every process finds the last one.
    """

    def __init__(self, settings: Settings, target: Path) -> None:
        self.settings, self.target = settings, target
        self.manifest: Any = None

    def parse(self) -> Project:
        """Parses the project and refuses what the lake refuses.

        Raises:
            BuscoError: dbt can't parse it (dbt's message), or a model is refused (`Project.check`).
        """
        shared = self.settings.state / "dbt" / "partial_parse.msgpack"
        own = self.target / "partial_parse.msgpack"
        self.target.mkdir(parents=True, exist_ok=True)
        if shared.is_file():
            shutil.copyfile(shared, own)
        result = self.invoke(["parse"], quiet=True)
        if not result.success:
            raise BuscoError(f"dbt can't parse the project:\n{_exception_text(result)}", "mend the file that it names")
        self.manifest = result.result
        project = self._project()
        project.check()
        if own.is_file():
            replace_file(shared, own.read_bytes())
        return project

    def _project(self) -> Project:
        manifest = json.loads((self.target / "manifest.json").read_text())
        said = yaml.safe_load((self.settings.dbt_project / "dbt_project.yml").read_text())
        manifest["vars"] = said.get("vars", {})
        return Project(manifest)

    def select(self, select: str, exclude: str = "") -> list[str]:
        """The unique ids that `select` (dbt's syntax) names: models, seeds, tests and unit tests.

        Raises:
            BuscoError: it names nothing, or dbt can't read it.
        """
        arguments = ["ls", "--select", *select.split(), "--output", "json", "--output-keys", "unique_id"]
        arguments += ["--resource-type", "model", "--resource-type", "seed"]
        arguments += ["--resource-type", "test", "--resource-type", "unit_test"]
        if exclude:
            arguments += ["--exclude", *exclude.split()]
        result = self.invoke(arguments, quiet=True)
        if not result.success:
            raise BuscoError(f"dbt can't read the selection {select!r}:\n{_exception_text(result)}")
        lines = result.result if isinstance(result.result, list) else []
        found = [str(json.loads(line)["unique_id"]) for line in lines if line.startswith("{")]
        if not found:
            raise BuscoError(f"the selection {select!r} matches nothing", "try it: busco dbt ls --select …")
        return found

    def invoke(
        self, arguments: Sequence[str], callbacks: Sequence[Callable[[Any], None]] = (), quiet: bool = False
    ) -> dbtRunnerResult:
        """Runs a dbt command; its log goes to standard output without colours unless `quiet`."""
        command, *rest = arguments
        folder = str(self.settings.dbt_project)
        flags = ["--no-use-colors", "--log-level-file", "none", "--no-send-anonymous-usage-stats"]
        flags += ["--log-path", str(self.target), "--no-version-check"]
        if quiet:
            flags.append("--quiet")
        runner = dbtRunner(manifest=self.manifest, callbacks=list(callbacks))
        places = ["--project-dir", folder, "--profiles-dir", folder, "--target-path", str(self.target)]
        return runner.invoke([*flags, command, *rest, *places])


@contextmanager
def opened(settings: Settings) -> Iterator[Dbt]:
    """A dbt with a fresh target folder below the state folder, taken away at the end."""
    root = settings.state / "dbt"
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="target-", dir=root))
    try:
        yield Dbt(settings, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(settings: Settings, project: Project) -> Path:
    """Makes `project` the one whose graph Airflow shows: replaces the manifest in one step."""
    path = settings.manifest_path
    replace_file(path, json.dumps(project.manifest).encode())
    return path


def ensure_manifest(settings: Settings) -> Project:
    """The project as it is on disk: from the manifest, parsed anew if a file of it is younger."""
    path = settings.manifest_path
    if path.is_file():
        made = path.stat().st_mtime
        files = (file for file in settings.dbt_project.rglob("*") if "target" not in file.parts)
        if all(file.stat().st_mtime <= made for file in files):
            return Project.read(path)
    with opened(settings) as dbt:
        project = dbt.parse()
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


def _exception_text(result: dbtRunnerResult) -> str:
    return str(result.exception) if result.exception else "dbt gave no reason; see its log above"


def say(text: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
