"""Airflow parses a DAG file when the project was parsed anew, and is asked by the file's time."""

from __future__ import annotations

import os
from pathlib import Path

from busco.project import Project
from busco.settings import Settings
from busco.warehouse.dbt import write_manifest


def test_a_new_manifest_makes_the_dag_files_younger_than_airflow_s_last_parse(tmp_path: Path) -> None:
    dag, other = tmp_path / "dags/lakehouse.py", tmp_path / "dags/data.csv"
    dag.parent.mkdir()
    for file in (dag, other):
        file.write_text("as it was")
        os.utime(file, (1, 1))
    path = write_manifest(Settings(home=tmp_path), Project({"nodes": {}}))
    assert dag.stat().st_mtime >= path.stat().st_mtime
    assert (dag.read_text(), other.stat().st_mtime) == ("as it was", 1)


def test_a_manifest_is_written_where_there_are_no_dag_files(tmp_path: Path) -> None:
    assert write_manifest(Settings(home=tmp_path), Project({"nodes": {}})).is_file()
