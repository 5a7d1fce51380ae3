"""`busco select --record`: what an ECS task answers to a run that is about to be pinned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from busco.cli import data
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Selection
from busco.warehouse.dbt import Selected
from tests.unit.memory_s3 import MemoryS3

ENVIRONMENT = EnvironmentLayout("prod")


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    made = ObjectStore(MemoryS3(), "lake")
    with mock.patch.object(data, "lake", return_value=(None, made, ENVIRONMENT)):
        yield made


def select(answer: object) -> Result:
    """The command where dbt's answer is this, or this error."""
    with mock.patch("busco.warehouse.dbt.opened") as opened:
        opened.return_value.__enter__.return_value.select.side_effect = [answer]
        opened.return_value.__exit__.return_value = False
        return CliRunner().invoke(data.select_command, ["--record", "token", "fct"])


def answered(store: ObjectStore) -> Selection | None:
    return store.read(ENVIRONMENT.selection("token"), Selection)


def test_what_a_selection_names_is_printed_and_written_down(store: ObjectStore) -> None:
    found = Selected(("model.busco.fct",), ("'typo' in the selection matches nothing",))
    done = select(found)
    assert json.loads(done.stdout) == ["model.busco.fct"]
    assert done.stderr == "'typo' in the selection matches nothing\n"
    assert answered(store) == Selection(select="fct", nodes=found.nodes, notes=found.notes)
    # the same task started twice
    assert select(found).exit_code == 0


def test_why_a_selection_can_not_be_read_is_an_answer(store: ObjectStore) -> None:
    done = select(BuscoError("the selection 'fct' matches nothing"))
    assert done.exit_code != 0
    assert answered(store) == Selection(select="fct", error="the selection 'fct' matches nothing")


def test_what_ends_unforeseen_leaves_no_answer(store: ObjectStore) -> None:
    done = select(KeyError("a bug of dbt's"))
    assert done.exit_code != 0
    assert answered(store) is None, "an empty one would skip every task, and the run would be green"
