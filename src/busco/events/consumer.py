"""Turns the messages about new objects into deliveries: receives, ingests, announces, and deletes last.

A message is deleted only after its objects' deliveries are recorded and the changed tables were announced. Whatever is
interrupted before that is repeated, because the message is received again; repeating has no further effect (D2).

The states of a message, and what moves it on:

    waiting ──received──▶ held ──ingested──▶ delivered ──announced──▶ done ──deleted──▶ (gone)
       ▲                   │ │
       └──not extended─────┘ └──not a notification of the bucket──▶ dead letter, with the reason

A held message is extended until it is done. It returns to waiting if this process is killed, or if its object alone
made an order fail; after too many receives, SQS moves it to the dead letters.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from busco.events.notifications import Notification, read
from busco.events.queue import LONG_POLL, VISIBLE_AFTER, Message, Queue
from busco.lake.records import Arrival, IngestOutcome

log = logging.getLogger(__name__)

_LONGEST_BATCH = 30.0  # seconds from the first message of a batch until it is ingested
_LARGEST_BATCH = 5_000  # messages
_RECONCILE_EVERY = 86_400.0  # seconds; the longest that an object whose message was lost has to wait
_EXTEND_EVERY = VISIBLE_AFTER / 3
_LOOK_WHILE_PAUSED = 2.0  # seconds
_RETRY_AFTER, _RETRY_AFTER_MOST = 1.0, 60.0  # seconds
# Seconds until a message whose object alone made an order fail is received again.
_FAILED_ALONE = 60
_Result = TypeVar("_Result")


class OrderFailed(Exception):
    """An order ended without an outcome, although S3 and ECS respond: one of its objects may be the cause."""


class Ingest(Protocol):
    def __call__(self, objects: Sequence[Arrival], everything: bool = False) -> IngestOutcome:
        """Orders objects to be ingested, and returns the outcome.

        Raises:
            OrderFailed: the order ended without an outcome.
            Exception: a service can't be reached; a retry may succeed.
        """


@dataclass
class Consumer:
    """Receives messages in one thread; another one extends those that are held.

    Args:
        announce: tells Airflow which tables changed; called again if it fails.
        quiet: seconds without a message after which a batch is complete.
        stop: ends the consumer; messages that are not done are received again.
        say: reports what goes wrong, and '' when it works again.
        loses_messages: whether the queue's messages may be gone after an outage, as those of a local AWS are.
        paused: returns who paused the consumer and why; while it is not '', nothing is received.
    """

    queue: Queue
    bucket: str
    ingest: Ingest
    announce: Callable[[IngestOutcome], None]
    quiet: int
    stop: threading.Event
    say: Callable[[str], None] = lambda _: None
    loses_messages: bool = False
    paused: Callable[[], str] = lambda: ""
    _held: dict[str, Message] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _outages: int = 0

    def run(self) -> None:
        """Works until `stop` is set. At first, and then once a day, ingests what is in the bucket and was never
        delivered."""
        keeper = threading.Thread(target=self._keep, daemon=True, name="extends messages")
        keeper.start()
        compared = float("-inf")
        while not self.stop.is_set():
            if self._until_it_works(self.paused):
                self.stop.wait(_LOOK_WHILE_PAUSED)
                continue
            if time.monotonic() - compared > _RECONCILE_EVERY:
                self._compare()
                compared = time.monotonic()
            outages = self._outages
            batch = self._until_it_works(lambda: self.collect(LONG_POLL))
            if batch:
                self.process(batch)
            if self.loses_messages and self._outages > outages:
                compared = float("-inf")

    def _compare(self) -> None:
        try:
            self._until_it_works(self.reconcile)
        except OrderFailed as error:
            log.error("could not compare the landing bucket with the deliveries: %s", error)

    def reconcile(self) -> None:
        """Ingests the objects whose messages were lost, or were sent before there was a queue."""
        outcome = self.ingest((), everything=True)
        if outcome.objects:
            self.announce(outcome)

    def collect(self, wait: int) -> list[Message]:
        """Returns a batch: what arrives until no message has arrived for `quiet` seconds; [] if none does."""
        began = time.monotonic()
        batch = self._receive(wait)
        while batch and len(batch) < _LARGEST_BATCH and time.monotonic() - began < _LONGEST_BATCH:
            more = self._receive(self.quiet)
            if not more or self.stop.is_set():
                break
            batch += more
        return batch

    def process(self, batch: Sequence[Message]) -> None:
        """Ingests a batch's objects, announces the changed tables, and deletes the messages."""
        # a message can be received twice within a batch; only the last receipt can be deleted
        messages = list({one.id: one for one in batch}.values())
        self._handle(messages, {one.id: read(one.body, self.bucket) for one in messages})

    def _handle(self, messages: Sequence[Message], contents: Mapping[str, Notification]) -> None:
        wanted = list(dict.fromkeys(one for message in messages for one in contents[message.id].arrivals))
        if wanted:
            try:
                outcome = self._until_it_works(lambda: self.ingest(wanted))
            except OrderFailed as error:
                self._isolate(messages, contents, error)
                return
            if outcome is not None:
                self._until_it_works(lambda: self.announce(outcome))
        if self.stop.is_set():  # a step may not have been done
            return
        for message in messages:
            if reasons := "; ".join(contents[message.id].foreign):
                log.warning("dead letter message=%s: %s", message.id, reasons)
                self._until_it_works(partial(self.queue.reject, message, reasons))
        good = [one for one in messages if not contents[one.id].foreign]
        self._until_it_works(lambda: self.queue.delete(good))
        self._let_go(messages)

    def _isolate(self, messages: Sequence[Message], contents: Mapping[str, Notification], error: OrderFailed) -> None:
        """Handles the halves of a batch whose order failed separately, so that one object stops no other."""
        if len(messages) > 1:
            middle = len(messages) // 2
            self._handle(messages[:middle], contents)
            self._handle(messages[middle:], contents)
            return
        (message,) = messages
        keys = ", ".join(one.key for one in contents[message.id].arrivals)
        log.error("could not ingest %s (received %s times): %s", keys, message.receives, error)
        self._let_go(messages)
        self._until_it_works(lambda: self.queue.extend(messages, _FAILED_ALONE))

    # -- held messages ------------------------------------------------------------------------------------------------

    def _receive(self, wait: int) -> list[Message]:
        found = self.queue.receive(wait)
        with self._lock:
            self._held |= {one.id: one for one in found}
        return found

    def _let_go(self, messages: Sequence[Message]) -> None:
        with self._lock:
            for one in messages:
                self._held.pop(one.id, None)

    def _keep(self) -> None:
        while not self.stop.wait(_EXTEND_EVERY):
            with self._lock:
                held = list(self._held.values())
            try:
                self.queue.extend(held)
            except Exception as error:  # the messages may be received again, which has no further effect
                log.warning("held messages can't be extended: %s", error)

    # -- outages ------------------------------------------------------------------------------------------------------

    def _until_it_works(self, step: Callable[[], _Result]) -> _Result | None:
        """Repeats a step until it succeeds, with pauses of up to a minute; returns None if `stop` is set before.

        Raises:
            OrderFailed: the step raised it.
        """
        pause, failed = _RETRY_AFTER, False
        while not self.stop.is_set():
            try:
                result = step()
            except OrderFailed:
                raise
            except Exception as error:
                log.warning("retrying in %.0f s: %s", pause, error, exc_info=log.isEnabledFor(logging.DEBUG))
                self.say(str(error))
                failed = True
                self._outages += 1
                self.stop.wait(pause)
                pause = min(2 * pause, _RETRY_AFTER_MOST)
                continue
            if failed:
                self.say("")
            return result
        return None
