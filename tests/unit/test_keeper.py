"""Which files the keeper of Airflow's graph looks at, and when the graph is old."""

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
def test_what_dbt_reads_counts_and_what_it_or_an_editor_writes_does_not(file: str, is_read: bool) -> None:
    # a hidden folder above the project says nothing of the project's files
    folder = Path("/home/me/.work/dbt_project")
    assert _counts(folder, folder / file) is is_read
    assert not _counts(folder, Path("/home/me/.work/other") / file)


def test_a_graph_is_old_when_something_was_saved_added_or_deleted_since(tmp_path: Path) -> None:
    project, manifest = tmp_path / "dbt_project", tmp_path / "manifest.json"
    (project / "models").mkdir(parents=True)
    (project / "target").mkdir()
    model = project / "models/fct.sql"
    model.write_text("select 1")
    assert is_stale(project, manifest), "there is none"

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
    assert not is_stale(project, manifest), "nothing that dbt reads"
    model.write_text("select 2")
    assert is_stale(project, manifest), "saved"
    parsed()
    (project / "models/new.sql").write_text("select 1")
    assert is_stale(project, manifest), "added"
    (project / "models/new.sql").unlink()
    assert is_stale(project, manifest), "deleted"
