"""A container's output as lines, whatever pieces it comes in."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from busco.embedded.ecs_containers import MAX_LINE_BYTES, _Line

PIECE = 16_384  # bytes, as Docker gives them


@given(st.lists(st.text(alphabet="ab\n", max_size=9), max_size=20))
def test_lines_are_those_of_the_whole_output(pieces: list[str]) -> None:
    line = _Line()
    found = [ended for piece in pieces for ended in line.add(piece.encode())]
    assert [*found, line.take()] == "".join(pieces).encode().split(b"\n")


def test_a_line_without_an_end_is_given_up_at_its_limit_and_costs_what_it_is_long() -> None:
    line, began = _Line(), time.process_time()
    found = [ended for _ in range(4096) for ended in line.add(b"x" * PIECE)]
    assert time.process_time() - began < 5, "64 MiB"
    assert {len(one) for one in found} <= {MAX_LINE_BYTES, *range(PIECE)}
    assert sum(map(len, found)) + len(line.take()) == 4096 * PIECE


def test_a_long_piece_is_given_up_in_parts() -> None:
    line = _Line()
    found = line.add(b"y" * (3 * MAX_LINE_BYTES + 5))
    assert [len(one) for one in found] == [MAX_LINE_BYTES] * 3 + [5]
    assert line.add(b"z\n") == [b"z"]
