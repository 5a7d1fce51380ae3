"""The environments of replays, and copying a run's records when the process is killed at any write."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busco.errors import BuscoError
from busco.lake import releases, replays
from busco.lake.contents import read_version
from busco.lake.formats import encode
from busco.lake.layout import run_key
from busco.lake.records import Pin
from busco.lake.runs import open_run, visible_versions
from busco.settings import Settings
from tests.unit.lake import AUDIT, ENVIRONMENT, Lake
from tests.unit.memory_s3 import Killed

OWN = replays.environment_of("ana")
PATTERN = next(m.pattern for m in Settings.model_fields["environment"].metadata if hasattr(m, "pattern"))


@given(st.text(min_size=1), st.text(min_size=1))
def test_each_login_has_its_own_environment_with_a_valid_name(one: str, other: str) -> None:
    names = {replays.environment_of(login).environment for login in (one, other)}
    assert all(re.fullmatch(PATTERN, name) for name in names)
    assert len(names) == len({one, other})


def test_a_login_in_lower_case_letters_is_used_in_the_environment_name() -> None:
    assert OWN.environment == "replay_ana"
    assert replays.environment_of("ana.lima").environment.startswith("replay_ana_lima_")


def test_a_copy_that_was_killed_at_any_write_can_be_repeated_and_leaves_the_run_unchanged() -> None:
    for step in range(8):
        lake = Lake()
        base = lake.pin()
        lake.build_all(base)
        releases.publish(base, AUDIT, "test", "")
        lake.deliveries += 1
        run = lake.pin()
        lake.build(run, "silver.s")
        run.take("gold.g", 7)
        before = dict(lake.s3.objects)
        lake.s3.kill_at = step
        killed = False
        try:
            replays.copy(run, OWN)
        except Killed:
            killed = True
        lake.s3.kill_at = None
        # Meanwhile, prod continues: what is published or garbage-collected there makes no difference.
        again = lake.pin()
        lake.build_all(again)
        releases.publish(again, AUDIT, "test", "")
        copied = replays.copy(open_run(lake.store, ENVIRONMENT, run.name), OWN)
        assert visible_versions(copied, copied.base(), copied.entries()) == visible_versions(
            run, run.base(), run.entries()
        )
        assert copied.take("gold.g", 1)
        assert {key: lake.s3.objects[key] for key in before if key != ENVIRONMENT.current} == {
            key: body for key, body in before.items() if key != ENVIRONMENT.current
        }
        if not killed:
            return
    pytest.fail("the copy has more writes than this test has kills")


def test_nothing_can_be_published_or_rolled_back_in_a_replay_environment() -> None:
    lake = Lake()
    run = lake.pin()
    lake.build_all(run)
    copied = replays.copy(run, OWN)
    with pytest.raises(BuscoError, match="nothing can be published in replay_ana"):
        releases.publish(copied, AUDIT, "test", "")
    with pytest.raises(BuscoError, match="nothing can be published in replay_ana"):
        releases.rollback(lake.store, OWN, "r1", "test", "why")
    with pytest.raises(BuscoError, match="prod is not a replay environment"):
        replays.order(run, ["model.busco.g"])


def test_a_run_is_found_by_a_long_airflow_run_id() -> None:
    lake, run_id = Lake(), f"manual__{'again-' * 40}"
    run = lake.pin(run=run_key("lakehouse", run_id))
    assert replays.find(lake.store, ENVIRONMENT, f"lakehouse/{run_id}").name == run.name
    with pytest.raises(BuscoError, match="there is no run lakehouse/x{200}"):
        replays.find(lake.store, ENVIRONMENT, f"lakehouse/{'x' * 200}")


def test_a_version_without_a_record_of_its_own_is_only_stored_as_a_whole() -> None:
    lake = Lake()
    run = lake.pin()
    whole = {table: read_version(lake.store, one).model_dump() for table, one in run.pin.bronze.items()}
    old = run.pin.model_copy(
        update={"format": 1, "bronze": Pin.model_validate(run.pin.model_dump() | {"bronze": whole}).bronze}
    )
    assert all(one.inline is not None for one in old.bronze.values())
    with pytest.raises(ValueError, match="has no record of its own"):
        lake.store.create("pin.json", old)
    stored = encode(lake.store, old, 1)
    assert "format" not in json.loads(stored)
    assert Pin.model_validate_json(stored) == old
