"""`busco select --record`: what an ECS task records for a run that is about to be pinned."""

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


def select(outcome: object) -> Result:
    """Runs the command with dbt returning `outcome`, or raising it if it is an error."""
    with mock.patch("busco.warehouse.dbt.opened") as opened:
        opened.return_value.__enter__.return_value.select.side_effect = [outcome]
        opened.return_value.__exit__.return_value = False
        return CliRunner().invoke(data.select_command, ["--record", "token", "fct"])


def recorded(store: ObjectStore) -> Selection | None:
    return store.read(ENVIRONMENT.selection("token"), Selection)


def test_the_nodes_of_a_selection_are_printed_and_recorded(store: ObjectStore) -> None:
    found = Selected(("model.busco.fct",), ("'typo' in the selection matches nothing",))
    result = select(found)
    assert json.loads(result.stdout) == ["model.busco.fct"]
    assert result.stderr == "'typo' in the selection matches nothing\n"
    assert recorded(store) == Selection(select="fct", nodes=found.nodes, notes=found.notes)
    # the same task may be started twice
    assert select(found).exit_code == 0


def test_the_error_of_an_invalid_selection_is_recorded(store: ObjectStore) -> None:
    result = select(BuscoError("the selection 'fct' matches nothing"))
    assert result.exit_code != 0
    assert recorded(store) == Selection(select="fct", error="the selection 'fct' matches nothing")


def test_nothing_is_recorded_after_an_unexpected_error(store: ObjectStore) -> None:
    result = select(KeyError("a bug of dbt's"))
    assert result.exit_code != 0
    assert recorded(store) is None, "an empty selection would skip every task, and the run would succeed"
