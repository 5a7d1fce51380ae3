"""The slot table in PostgreSQL behaves, step by step, like the one in memory that places.py is tested with."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import text

from busco.orchestration.slots import Slots
from tests.unit.places_world import Memory


@pytest.mark.parametrize("seed", range(8))
def test_the_slot_tables_in_postgresql_and_in_memory_behave_alike(sessions: Any, seed: int) -> None:
    chance, now = random.Random(seed), [1_700_000_000.0]
    limit = chance.randint(1, 3)
    memory = Memory(limit, lambda: now[0])
    slots = Slots(limit, sessions, lambda: f"to_timestamp({now[0]})")
    numbers: dict[int, int] = {0: 0}
    seen = set[str]()
    for _ in range(300):
        now[0] += chance.choice([0, 1, 10, 50, 70])
        token, arn = chance.choice("abcd"), chance.choice(["arn:1", "arn:2", "arn:3"])
        start = chance.choice(["first", "first", "second"])
        step, arguments = chance.choice(
            [
                ("ask", (token, "label", start)),
                ("ask", (token, "label", start)),
                ("keep", (token,)),
                ("started", (token, arn)),
                ("leave", (token,)),
                ("give_back", (token, start)),
                ("take_away", (token, 60.0)),
                ("gone", ([arn],)),
            ]
        )
        expected, answer = getattr(memory, step)(*arguments), getattr(slots, step)(*arguments)
        if step == "ask":
            assert numbers.setdefault(answer.number, expected.number) == expected.number, "the same row in both tables"
            assert (answer.has_one, answer.ahead, answer.taken, answer.arn) == (
                expected.has_one, expected.ahead, expected.taken, expected.arn,
            )  # fmt: skip
        else:
            assert (sorted(answer) if step == "gone" else answer) == (
                sorted(expected) if step == "gone" else expected
            ), (step, arguments)
        assert slots.holders() == memory.holders()
        if expected:
            seen.add(step)
    assert len(seen) >= 6, "most kinds of steps succeeded at least once"


_OF_AN_EARLIER_RELEASE = """
create table busco_ecs_slot (
    id bigserial primary key,
    token text not null unique,
    label text not null,
    task_arn text not null default '',
    is_taken boolean not null default false,
    asked_at timestamptz not null default clock_timestamp()
)
"""


def test_a_table_of_an_earlier_release_keeps_its_slots_and_they_are_not_given_back(sessions: Any) -> None:
    with sessions() as session:
        session.execute(text(_OF_AN_EARLIER_RELEASE))
        session.execute(text("insert into busco_ecs_slot (token, label, is_taken) values ('old', 'label', true)"))
    slots = Slots(2, sessions)
    assert slots.ask("old", "label", "start").has_one
    assert not slots.give_back("old", "start"), "a triggerer of the earlier release may be starting its task"
    assert slots.ask("new", "label", "start").has_one
    assert slots.give_back("new", "start")
    # a triggerer of the earlier release is still running next to this one
    with sessions() as session:
        session.execute(text("insert into busco_ecs_slot (token, label) values ('older', 'label')"))
    assert slots.ask("older", "label", "start").has_one
    assert [holder.token for holder in slots.holders()] == ["old", "older"]
