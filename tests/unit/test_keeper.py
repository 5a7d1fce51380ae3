"""Which files the keeper watches for changes, and when Airflow's graph is stale."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from busco.embedded.keeper import _counts, is_stale


@pytest.mark.parametrize(
    ("file", "is_read"),
    [
        ("models/gold/fct.sql", True),
        ("models/gold/fct.yml", True),
        ("seeds/regions.csv", True),
        ("dbt_project.yml", True),
        ("docs/blocks.md", True),
        ("models/gold/fct.sql~", False),
        ("models/gold/.#fct.sql", False),
        ("models/gold/.fct.sql.swp", False),
        ("target/compiled/fct.sql", False),
        ("logs/dbt.log", False),
        ("dbt_packages/utils/macros/a.sql", False),
        (".user.yml", False),
    ],
)
def test_files_that_dbt_reads_count_and_files_that_dbt_or_editors_write_do_not(file: str, is_read: bool) -> None:
    # a hidden folder above the project does not matter
    folder = Path("/home/me/.work/dbt_project")
    assert _counts(folder, folder / file) is is_read
    assert not _counts(folder, Path("/home/me/.work/other") / file)


def test_a_graph_is_stale_if_a_file_was_saved_added_or_deleted_since(tmp_path: Path) -> None:
    project, manifest = tmp_path / "dbt_project", tmp_path / "manifest.json"
    (project / "models").mkdir(parents=True)
    (project / "target").mkdir()
    model = project / "models/fct.sql"
    model.write_text("select 1")
    assert is_stale(project, manifest), "there is no manifest"

    def parsed() -> None:
        manifest.touch()
        for path in (project, project / "models", project / "target", model):
            if path.exists():
                os.utime(path, (1000, 1000))
        os.utime(manifest, (2000, 2000))

    parsed()
    assert not is_stale(project, manifest)
    (project / "target/compiled.sql").write_text("select 1")
    (project / "models/notes.txt").write_text("")
    os.utime(project / "models", (1000, 1000))
    assert not is_stale(project, manifest), "no file that dbt reads has changed"
    model.write_text("select 2")
    assert is_stale(project, manifest), "a file was saved"
    parsed()
    (project / "models/new.sql").write_text("select 1")
    assert is_stale(project, manifest), "a file was added"
    (project / "models/new.sql").unlink()
    assert is_stale(project, manifest), "a file was deleted"
