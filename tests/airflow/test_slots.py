"""The table of places in PostgreSQL does, step for step, what the one in memory does that places.py is tested with."""

from __future__ import annotations

import random
from typing import Any

import pytest

from busco.orchestration.slots import Slots
from tests.unit.places_world import Memory


@pytest.mark.parametrize("seed", range(8))
def test_the_table_in_postgresql_and_the_one_in_memory_answer_alike(sessions: Any, seed: int) -> None:
    chance, now = random.Random(seed), [1_700_000_000.0]
    limit = chance.randint(1, 3)
    memory = Memory(limit, lambda: now[0])
    slots = Slots(limit, sessions, lambda: f"to_timestamp({now[0]})")
    numbers: dict[int, int] = {0: 0}
    seen = set[str]()
    for _ in range(150):
        now[0] += chance.choice([0, 1, 10, 50, 70])
        token, arn = chance.choice("abcd"), chance.choice(["arn:1", "arn:2", "arn:3"])
        step, arguments = chance.choice(
            [
                ("ask", (token, "label")),
                ("ask", (token, "label")),
                ("keep", (token,)),
                ("started", (token, arn)),
                ("leave", (token,)),
                ("give_back", (token,)),
                ("take_away", (token, 60.0)),
                ("gone", ([arn],)),
            ]
        )
        expected, answer = getattr(memory, step)(*arguments), getattr(slots, step)(*arguments)
        if step == "ask":
            assert numbers.setdefault(answer.number, expected.number) == expected.number, "a row is one row"
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
    assert len(seen) >= 6, "most steps were taken, not only refused"
