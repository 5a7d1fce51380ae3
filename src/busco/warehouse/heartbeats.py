"""Writes a runner's heartbeats, which let its followers distinguish a hung runner from a busy one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError

from busco.lake.layout import RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Heartbeat, utc_now

_EVERY = 10.0  # seconds; a thousand writes in three hours, which cost half a cent on S3


@contextmanager
def beating(store: ObjectStore, layout: RunLayout, number: int, every: float = _EVERY) -> Iterator[None]:
    """Writes a heartbeat for runner `number` immediately and then every `every` seconds, until the block ends.

    A failed write is not retried before the next heartbeat is due: followers tolerate many missing heartbeats
    (BUSCO_RUNNER_SILENCE).
    """
    over = threading.Event()

    def beat(count: int) -> None:
        record = Heartbeat(number=number, beat=count, written_at=utc_now())
        try:
            store.put(layout.heartbeat(number), record)
        except (BotoCoreError, ClientError):
            return

    def keep_beating() -> None:
        for count in itertools.count(2):
            if over.wait(every):
                return
            beat(count)

    beat(1)
    thread = threading.Thread(target=keep_beating, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
