"""Parts of the site's files: which columns are personal, how long profiles may take, and when raw rows arrived."""

from __future__ import annotations

import pytest

from busco.lake.records import Column, Version
from busco.warehouse import site
from tests.unit.test_personal import project


def version(**changes: object) -> Version:
    columns = (Column(name="id", type="VARCHAR"), Column(name="Email", type="VARCHAR"))
    return Version(table="silver.people", version="1", columns=columns, rows=1, bytes=1).model_copy(update=changes)


@pytest.mark.parametrize("written", ["Email", "email", "EMAIL"])
def test_a_column_that_is_marked_after_its_version_was_made_is_personal_in_any_case(written: str) -> None:
    marked = project(marks={written: True})
    assert site.personal_columns(marked, "model.p.people", version(personal=())) == {"Email"}
    assert site.personal_columns(project(), "model.p.people", version(personal=("Email",))) == {"Email"}
