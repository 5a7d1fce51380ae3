"""The log of a stopped ECS task is complete, however long it takes to copy it."""

from __future__ import annotations

import threading
import time

from busco.embedded.local_ecs import join_while_busy


def test_a_thread_that_makes_progress_is_waited_for_beyond_the_limit() -> None:
    copied: list[int] = []

    def copy() -> None:
        for number in range(20):
            time.sleep(0.05)
            copied.append(number)

    thread = threading.Thread(target=copy)
    thread.start()
    join_while_busy(thread, lambda: len(copied), 0.2)
    assert len(copied) == 20
    assert not thread.is_alive()


def test_a_thread_that_hangs_is_given_up_after_the_limit() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    began = time.monotonic()
    join_while_busy(thread, lambda: 7, 0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert thread.is_alive()
    stop.set()
