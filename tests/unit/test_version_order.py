"""Whatever the order of events, an object's rows are those that its versions would have produced in their own order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from busco.ingest.landing import Version, to_apply

# The rows of each content: some are in several contents, with other values.
ROWS = {"A": {"a": 1, "x": 1}, "B": {"a": 2, "x": 2, "b": 2}, "C": {"b": 3, "c": 3}, "D": {"c": 4}}


class Object:
    """An object of the landing bucket, whose versions are delivered as `busco.ingest.orders` does it (D2, D5)."""

    def __init__(self, contents: str, etags: Sequence[str]) -> None:
        self.contents, self.deliveries = contents, list[Any]()
        self.versions = [Version(str(at), etag, 1) for at, etag in enumerate(etags)]

    def load(self, at: int) -> None:
        content = self.contents[at]
        if content == "-":  # it is refused
            return
        if self.deliveries and self.contents[int(self.deliveries[-1].source_version)] == content:
            return
        made = SimpleNamespace(
            source_version=str(at), source_etag=self.versions[at].etag, number=len(self.deliveries) + 1
        )
        self.deliveries.append(made)

    def order(self, events: Iterable[int]) -> None:
        made = {int(one.source_version) for one in self.deliveries}
        for at in sorted(events):
            if at not in made:
                self.load(at)
        new = {one.source_version for one in self.deliveries} - {str(at) for at in made}
        if len({one.source_version for one in self.deliveries}) > 1:
            accepted = [one for one in self.versions if self.contents[int(one.id)] != "-"]
            for one in to_apply(accepted, self.deliveries, new):
                self.load(int(one.id))

    @property
    def rows(self) -> dict[str, int]:
        return self.merged(self.contents[int(one.source_version)] for one in self.deliveries)

    @property
    def expected(self) -> dict[str, int]:
        return self.merged(content for content in self.contents if content != "-")

    @staticmethod
    def merged(contents: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for content in contents:
            found |= ROWS[content]
        return found


def batches(events: Sequence[int], cuts: Sequence[bool]) -> list[list[int]]:
    """Splits events into orders: a new one begins after each cut."""
    found: list[list[int]] = [[]]
    for event, cut in zip(events, [*cuts, False], strict=True):
        found[-1].append(event)
        if cut:
            found.append([])
    return found


@pytest.mark.parametrize("unlike", [False, True], ids=["equal ETags", "ETags that differ for equal content"])
@pytest.mark.parametrize("number", [2, 3, 4])
def test_each_order_of_events_leads_to_the_same_rows(number: int, unlike: bool) -> None:
    stories = list(itertools.product("ABC-", repeat=number))
    if number == 4:
        stories = random.Random(1).sample(stories, 60)
    for contents in stories:
        etags = [f"{content}{at if unlike else ''}" for at, content in enumerate(contents)]
        for events in itertools.permutations(range(number)):
            for cuts in itertools.product([False, True], repeat=number - 1):
                one = Object("".join(contents), etags)
                for batch in batches(events, cuts):
                    one.order(batch)
                assert one.rows == one.expected, (contents, batches(events, cuts))
                # the events again change no rows, and, unless equal contents look different, in the end nothing
                for _ in range(3):
                    before = len(one.deliveries)
                    for event in events:
                        one.order([event])
                    assert one.rows == one.expected
                assert unlike or len(one.deliveries) == before


def test_versions_that_arrive_in_order_are_delivered_once() -> None:
    for contents in itertools.product("ABC-", repeat=4):
        one = Object("".join(contents), [])
        for at in range(4):
            one.versions.append(Version(str(at), contents[at], 1))
            one.order([at])
        accepted = [content for content in contents if content != "-"]
        assert len(one.deliveries) == len([1 for at, this in enumerate(accepted) if not at or accepted[at - 1] != this])
