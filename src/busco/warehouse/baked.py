"""Saves a parse in an image and finds it again, so that a process need not parse an unchanged project.

The folder `settings.baked_dir` contains dbt's partial parse, the project's manifest, and a stamp of everything that a
parse depends on. If the stamp doesn't match the project on disk (for example, because a development project is mounted
over the image's), only the partial parse is used: dbt starts from it and compares it with the project file by file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from busco.project import Project
from busco.settings import Settings
from busco.warehouse import package

PARTIAL_PARSE = "partial_parse.msgpack"
_MANIFEST = "manifest.json"
_STAMP = "stamp"
PACKAGES = ("dbt-core", "dbt-adapters", "dbt-common", "dbt-duckdb")
# files and folders that dbt and its users leave in a project's folder and that a parse does not read
_NOT_READ = frozenset({"target", "logs", ".user.yml", "__pycache__"})
# dbt's environment variables that affect what is parsed
_CHOOSES = re.compile(r"DBT_(ENGINE_)?(TARGET|PROFILE|VARS)$")


@dataclass(frozen=True)
class Baked:
    """A parse that is valid for the project as it is on disk now."""

    folder: Path

    @cached_property
    def project(self) -> Project:
        return Project.read(self.folder / _MANIFEST)

    def manifest(self) -> Any:
        """Returns dbt's own manifest, as dbt's parser would if no file had changed since the partial parse."""
        from dbt.contracts.graph.manifest import Manifest
        from dbt.parser.manifest import extended_mashumuro_decoder
        from dbt_common.invocation import get_invocation_id

        content = (self.folder / PARTIAL_PARSE).read_bytes()
        manifest: Any = Manifest.from_msgpack(content, decoder=extended_mashumuro_decoder)  # type: ignore[arg-type, unused-ignore]
        manifest.metadata.generated_at = datetime.now(UTC).replace(tzinfo=None)
        manifest.metadata.invocation_id = get_invocation_id()
        manifest.build_parent_and_child_maps()
        manifest.build_flat_graph()
        return manifest


def find(settings: Settings) -> Baked | None:
    """Returns the parse in `settings.baked_dir` if the installed versions of dbt made it from exactly this project."""
    folder = _folder(settings)
    if folder is None or not (folder / _STAMP).is_file():
        return None
    baked_stamp = (folder / _STAMP).read_text()
    return Baked(folder) if baked_stamp == stamp(settings.dbt_project) else None


def partial_parse(settings: Settings) -> Path | None:
    """Returns the image's partial parse, which dbt can start from no matter what has changed since then."""
    folder = _folder(settings)
    path = folder / PARTIAL_PARSE if folder else None
    return path if path is not None and path.is_file() else None


def _folder(settings: Settings) -> Path | None:
    return settings.project_part(settings.baked_dir) if settings.baked_dir else None


def save(folder: Path, settings: Settings, project: Project, parsed: Path) -> bool:
    """Writes `project`, and dbt's partial parse from the file `parsed`, to `folder` for use as BUSCO_BAKED_DIR.

    Returns False if only the partial parse can be used later, because the project reads environment variables: its
    files alone don't determine the result of a parse.
    """
    folder = settings.project_part(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PARTIAL_PARSE).write_bytes(parsed.read_bytes())
    (folder / _MANIFEST).write_text(json.dumps(project.manifest))
    current = stamp(settings.dbt_project)
    (folder / _STAMP).unlink(missing_ok=True)
    if current is None:
        return False
    (folder / _STAMP).write_text(current)
    return True


def stamp(project: Path) -> str | None:
    """Returns a hash of everything that a parse of the project depends on: its path, its files and those of the
    platform's package, the versions of dbt, and dbt's environment variables. Returns None if the project uses
    `env_var`, since a parse then depends on other variables too."""
    digest = hashlib.sha256()
    chosen = sorted((name, value) for name, value in os.environ.items() if _CHOOSES.match(name))
    packages = [(name, version(name)) for name in PACKAGES]
    digest.update(repr((str(project.resolve()), chosen, packages)).encode())
    for name, path in (*sorted(_files(project)), *sorted(_files(package.FOLDER))):
        content = path.read_bytes()
        if b"env_var" in content:
            return None
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _files(project: Path) -> list[tuple[str, Path]]:
    found = []
    for folder, folders, names in os.walk(project, followlinks=True):
        folders[:] = [name for name in folders if name not in _NOT_READ]
        paths = (Path(folder) / name for name in names if name not in _NOT_READ)
        found += [(path.relative_to(project).as_posix(), path) for path in paths if path.is_file()]
    return found
