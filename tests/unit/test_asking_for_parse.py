"""After a project has been parsed, the DAG files' modification times are updated, so Airflow parses them again."""

from __future__ import annotations

import os
from pathlib import Path

from busco.project import Project
from busco.settings import Settings
from busco.warehouse.dbt import write_manifest


def test_a_new_manifest_updates_the_modification_times_of_dag_files(tmp_path: Path) -> None:
    dag, other = tmp_path / "dags/lakehouse.py", tmp_path / "dags/data.csv"
    dag.parent.mkdir()
    for file in (dag, other):
        file.write_text("as it was")
        os.utime(file, (1, 1))
    path = write_manifest(Settings(home=tmp_path), Project({"nodes": {}}))
    assert dag.stat().st_mtime >= path.stat().st_mtime
    assert (dag.read_text(), other.stat().st_mtime) == ("as it was", 1)


def test_a_manifest_is_written_even_if_there_are_no_dag_files(tmp_path: Path) -> None:
    assert write_manifest(Settings(home=tmp_path), Project({"nodes": {}})).is_file()
