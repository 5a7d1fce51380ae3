"""A runner's signs of life: who follows it can tell one that hangs from one that works long."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError

from busco.lake.layout import RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Heartbeat, utc_now

_EVERY = 10.0  # seconds: a thousand writes in three hours, half a cent on S3


@contextmanager
def beating(store: ObjectStore, layout: RunLayout, number: int, every: float = _EVERY) -> Iterator[None]:
    """Writes a heartbeat of runner `number` at once and then every so many seconds, until the block ends.

    A write that fails is tried at the next beat: those who follow allow for many (BUSCO_RUNNER_SILENCE).
    """
    over = threading.Event()

    def beat(count: int) -> None:
        record = Heartbeat(number=number, beat=count, written_at=utc_now())
        try:
            store.put(layout.heartbeat(number), record)
        except (BotoCoreError, ClientError):
            return

    def go_on() -> None:
        for count in itertools.count(2):
            if over.wait(every):
                return
            beat(count)

    beat(1)
    thread = threading.Thread(target=go_on, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
