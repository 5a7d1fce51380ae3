"""A container's output is split into lines, regardless of the chunks in which it arrives."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from busco.embedded.ecs_containers import MAX_LINE_BYTES, _Line

CHUNK = 16_384  # bytes, the size of Docker's chunks


@given(st.lists(st.text(alphabet="ab\n", max_size=9), max_size=20))
def test_lines_do_not_depend_on_how_the_output_is_chunked(chunks: list[str]) -> None:
    line = _Line()
    found = [ended for chunk in chunks for ended in line.add(chunk.encode())]
    assert [*found, line.take()] == "".join(chunks).encode().split(b"\n")


def test_an_endless_line_is_split_at_the_limit_in_linear_time() -> None:
    line, began = _Line(), time.process_time()
    found = [ended for _ in range(4096) for ended in line.add(b"x" * CHUNK)]
    assert time.process_time() - began < 5, "splitting 64 MiB took too much CPU time"
    assert {len(one) for one in found} <= {MAX_LINE_BYTES, *range(CHUNK)}
    assert sum(map(len, found)) + len(line.take()) == 4096 * CHUNK


def test_a_long_chunk_is_split_at_the_limit() -> None:
    line = _Line()
    found = line.add(b"y" * (3 * MAX_LINE_BYTES + 5))
    assert [len(one) for one in found] == [MAX_LINE_BYTES] * 3 + [5]
    assert line.add(b"z\n") == [b"z"]
