"""The parse that came with an image: a process that finds the project as it was there parses nothing.

The folder has dbt's own partial parse, the project's manifest, and a stamp of all that a parse depends on. Where any
of it differs (a development's project is mounted over the image's) the folder counts for nothing more than as the
partial parse that dbt begins with, and checks file by file.
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
_PACKAGES = ("dbt-core", "dbt-adapters", "dbt-common", "dbt-duckdb")
# what dbt and its users leave in a project's folder, and a parse does not read
_NOT_READ = frozenset({"target", "logs", ".user.yml", "__pycache__"})
# dbt's own variables that choose what is parsed
_CHOOSES = re.compile(r"DBT_(ENGINE_)?(TARGET|PROFILE|VARS)$")


@dataclass(frozen=True)
class Baked:
    """A parse that holds for the project as it is on disk now."""

    folder: Path

    @cached_property
    def project(self) -> Project:
        return Project.read(self.folder / _MANIFEST)

    def manifest(self) -> Any:
        """dbt's own manifest, as its parser gives it where no file has changed since the partial parse."""
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
    """The parse of `settings.baked_dir`, if it is one of exactly this project with these versions of dbt."""
    folder = _place(settings)
    if folder is None or not (folder / _STAMP).is_file():
        return None
    known = (folder / _STAMP).read_text()
    return Baked(folder) if known == stamp(settings.dbt_project) else None


def partial_parse(settings: Settings) -> Path | None:
    """The image's partial parse, which dbt may begin with whatever has changed since."""
    folder = _place(settings)
    path = folder / PARTIAL_PARSE if folder else None
    return path if path is not None and path.is_file() else None


def _place(settings: Settings) -> Path | None:
    return settings.project_part(settings.baked_dir) if settings.baked_dir else None


def save(folder: Path, settings: Settings, project: Project, parsed: Path) -> bool:
    """Writes a parse to `folder`, for BUSCO_BAKED_DIR: `project`, and dbt's partial parse from the file `parsed`.

    Gives False where only the partial parse can be used later: the project reads the environment, so that what a parse
    gives is not told by its files.
    """
    folder = settings.project_part(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PARTIAL_PARSE).write_bytes(parsed.read_bytes())
    (folder / _MANIFEST).write_text(json.dumps(project.manifest))
    made = stamp(settings.dbt_project)
    (folder / _STAMP).unlink(missing_ok=True)
    if made is None:
        return False
    (folder / _STAMP).write_text(made)
    return True


def stamp(project: Path) -> str | None:
    """A hash of what a parse of the project depends on: its place, its files and the platform's own, dbt's versions,
    and what is chosen by dbt's variables. None where it depends on more, by `env_var`."""
    digest = hashlib.sha256()
    chosen = sorted((name, value) for name, value in os.environ.items() if _CHOOSES.match(name))
    packages = [(name, version(name)) for name in _PACKAGES]
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
