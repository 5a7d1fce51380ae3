"""How commands read selections: `busco dbt build`'s options, and `busco select --record`, whose result an ECS task
records for a run that is about to be pinned."""

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


# -- busco dbt build --------------------------------------------------------------------------------------------------


def build(*arguments: str) -> tuple[Result, list[tuple[str, str]]]:
    """Runs the command up to the selection; also returns what dbt was asked to select and to exclude."""
    asked = []

    def stop(selected: str, excluded: str, built: object) -> None:
        asked.append((selected, excluded))
        raise BuscoError("far enough")

    with mock.patch("busco.warehouse.dbt.opened") as opened:
        opened.return_value.__enter__.return_value.select.side_effect = stop
        opened.return_value.__exit__.return_value = False
        return CliRunner().invoke(data.build_command, arguments), asked


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("-s", "fct"), ("fct", "")),
        (("--select", "people", "--select", "days"), ("people days", "")),
        (("-s", "a b", "--select=c", "-sd", "-m", "e", "--models", "f", "--model=g"), ("a b c d e f g", "")),
        (("-s", "a,b", "--exclude", "c", "--exclude=d e"), ("a,b", "c d e")),
        (("--exclude", "c"), ("*", "c")),
    ],
)
def test_repeated_selections_are_united_as_in_dbt(
    store: ObjectStore, arguments: tuple[str, ...], asked: tuple[str, str]
) -> None:
    assert build(*arguments)[1] == [asked]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("-s", ""), "--select is empty"),
        (("--select= ",), "--select is empty"),
        (("-s", "fct", "-s", ""), "--select is empty"),
        (("-s", "fct", "--exclude", ""), "--exclude is empty"),
    ],
)
def test_an_empty_selection_is_wrong_usage_and_does_not_build_everything(
    store: ObjectStore, arguments: tuple[str, ...], named: str
) -> None:
    result, asked = build("--publish", *arguments)
    assert (result.exit_code, asked) == (2, [])
    assert named in result.output
    assert ("without --select, everything is built" in result.output) == ("--select" in named)


# -- busco select -----------------------------------------------------------------------------------------------------


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
