"""Turns the messages about new objects into deliveries: receives, ingests, announces, and deletes last.

A message is deleted only after its objects' deliveries are recorded and the changed tables were announced. Whatever is
interrupted before that is repeated, because the message is received again; repeating has no further effect (D2).

The states of a message, and what moves it on:

    waiting ──received──▶ held ──ingested──▶ delivered ──announced──▶ done ──deleted──▶ (gone)
       ▲                   │ │
       └─timeout not extended┘ └──not a notification of the bucket──▶ dead letter, with the reason

While a message is held, its visibility timeout is extended. It returns to *waiting* if this process is killed, if an
order for its object alone failed, or if its object was refused for a transient reason. After ten receives, SQS moves it
to the dead letters.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from busco.events.notifications import read
from busco.events.queue import LONG_POLL, VISIBLE_AFTER, Message, Queue
from busco.lake.layout import is_delivery, stamp
from busco.lake.records import Arrival, IngestOrder, IngestOutcome, utc_now
from busco.text import printable

log = logging.getLogger(__name__)

_LONGEST_BATCH = 30.0  # seconds from the first message of a batch until its ingestion starts
_LARGEST_BATCH = 5_000  # messages
# Seconds between two comparisons of the bucket with the deliveries: the longest time for which an object whose message
# was lost has to wait. After a comparison that could not handle all objects, the next one follows sooner, after a pause
# that doubles each time.
_RECONCILE_EVERY, _RECONCILE_AGAIN = 86_400.0, 300.0
_EXTEND_EVERY = VISIBLE_AFTER / 3
_LOOK_WHILE_PAUSED = 2.0  # seconds
_RETRY_AFTER, _RETRY_AFTER_MOST = 1.0, 60.0  # seconds
# Seconds until a message whose object could not be ingested is received again: doubled each time, up to the most. So
# ten receives take five hours, in which somebody can restore a permission or a key.
_RECEIVED_AGAIN, _RECEIVED_AGAIN_MOST = 60, 3600
_Result = TypeVar("_Result")


class OrderFailed(Exception):
    """An order ended without an outcome, and not because of an interruption: one of its objects may be the cause."""


def new_order(objects: Sequence[Arrival] = (), everything: bool = False, after: str = "") -> IngestOrder:
    """Returns a new order, whose id begins with the time (UTC).

    Args:
        after: with `everything`: the key after which the listing begins.
    """
    moment = utc_now()
    return IngestOrder(
        order=f"{stamp(moment)}-{secrets.token_hex(4)}",
        objects=tuple(objects),
        everything=everything,
        after=after,
        ordered_at=moment,
    )


@dataclass(frozen=True)
class _Part:
    """Some of the objects that need to be ingested, and the key after which there are more; '' if these were all."""

    objects: Sequence[Arrival]
    after: str


@dataclass
class Consumer:
    """Receives messages in one thread; another one extends the visibility timeout of those that are held.

    Args:
        queue: the queue of the landing bucket's events.
        bucket: the landing bucket.
        ingest: carries out an order and returns the outcome; returns the existing outcome if the order was carried out
            before. Raises OrderFailed if there is no outcome, and other exceptions if a retry may succeed.
        announce: tells Airflow which tables changed; called again if it fails.
        quiet: seconds without a message after which a batch is complete.
        stop: ends the consumer; messages that are not done are received again.
        say: receives each problem, and '' once the step succeeds.
        loses_messages: whether the queue can be replaced by a new one, as that of a local AWS is when it restarts.
        paused: returns who paused the consumer and why, '' if nobody has; while it is not '', nothing is received.
        compare: like `ingest`, for the orders that compare the bucket with the deliveries, which are carried out in a
            thread of their own: a comparison takes minutes in a large bucket, and new objects must not wait for it.
            Default: `ingest`.
    """

    queue: Queue
    bucket: str
    ingest: Callable[[IngestOrder], IngestOutcome]
    announce: Callable[[IngestOutcome], None]
    quiet: int
    stop: threading.Event
    say: Callable[[str], None] = lambda _: None
    loses_messages: bool = False
    paused: Callable[[], str] = lambda: ""
    compare: Callable[[IngestOrder], IngestOutcome] | None = None
    _held: dict[str, Message] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Works until `stop` is set. On start and once a day, also ingests the objects in the bucket that have no
        delivery."""
        threading.Thread(target=self._keep, daemon=True, name="extends messages").start()
        compare_at, again, queue = 0.0, _RECONCILE_AGAIN, ""
        listing: Future[_Part | None] | None = None
        failed = False  # whether the present comparison could not handle everything so far
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="lists objects") as pool:
            while not self.stop.is_set():
                if self._until_it_works(self.paused):
                    self.stop.wait(_LOOK_WHILE_PAUSED)
                    continue
                if self.loses_messages and (created := self._until_it_works(self.queue.created) or queue) != queue:
                    compare_at, again, queue = 0.0, _RECONCILE_AGAIN, created
                if listing is None and time.monotonic() >= compare_at:
                    listing, failed, compare_at = pool.submit(self._list, ""), False, math.inf
                if listing is not None and listing.done():
                    part, listing = listing.result(), None
                    failed = part is None or bool(self._take(part.objects)) or failed
                    if part is not None and part.after:
                        listing = pool.submit(self._list, part.after)
                    else:
                        if compare_at == math.inf:  # otherwise the queue is a new one: compare at once
                            compare_at = time.monotonic() + (again if failed else _RECONCILE_EVERY)
                        # what is refused for a reason that persists must not repeat the comparison every few minutes
                        again = min(2 * again, _RECONCILE_EVERY) if failed else _RECONCILE_AGAIN
                # a short wait while objects are listed, which may be ingested as soon as they are known
                if batch := self._until_it_works(partial(self.collect, LONG_POLL if listing is None else 1)):
                    self.process(batch)

    def reconcile(self) -> bool:
        """Ingests objects without a delivery: their messages were lost, or they were uploaded before the bucket had a
        queue.

        Returns whether all of them have been handled.
        """
        failed, after = False, ""
        while True:
            part = self._list(after)
            failed = part is None or bool(self._take(part.objects)) or failed
            if part is None or not part.after:
                return not failed and not self.stop.is_set()
            after = part.after

    def _list(self, after: str) -> _Part | None:
        """Returns some of the objects in the bucket that need to be ingested, in the order of their keys; None if the
        bucket could not be compared with the deliveries.

        Args:
            after: the key after which to begin.
        """
        listing = new_order(everything=True, after=after)
        try:
            outcome = self._until_it_works(partial(self.compare or self.ingest, listing))
        except OrderFailed as error:
            log.error("the landing bucket could not be compared with the deliveries: %s", error)
            return None
        if outcome is None:  # stopped
            return None
        objects = [Arrival(key=one.key, version=one.version, etag=one.etag, size=one.size) for one in outcome.objects]
        return _Part(objects, objects[-1].key if outcome.more else "")

    def collect(self, wait: int) -> list[Message]:
        """Returns a batch: what arrives until no message has arrived for `quiet` seconds, at most 5,000 messages or 30
        seconds; [] if none arrives within `wait` seconds."""
        began = time.monotonic()
        batch = self._receive(wait)
        while batch and len(batch) < _LARGEST_BATCH and time.monotonic() - began < _LONGEST_BATCH:
            try:
                more = self._receive(self.quiet)
            except Exception as error:  # what was received before is a batch
                log.warning("could not receive more messages: %s", error)
                break
            if not more or self.stop.is_set():
                break
            batch += more
        return batch

    def process(self, batch: Sequence[Message]) -> None:
        """Ingests a batch's objects, announces the changed tables, and deletes the messages."""
        # a message can be received twice within a batch; only the last receipt can be deleted
        messages = list({one.id: one for one in batch}.values())
        contents = {one.id: read(one.body, self.bucket) for one in messages}
        arrivals = (one for message in messages for one in contents[message.id].arrivals)
        wanted = dict.fromkeys(one for one in arrivals if is_delivery(one.key, one.size))
        failed = self._take(list(wanted))
        if self.stop.is_set():  # a step may have been skipped
            return
        again = [one for one in messages if failed.intersection(contents[one.id].arrivals)]
        for message in again:
            keys = ", ".join(one.key for one in contents[message.id].arrivals if one in failed)
            log.error("could not ingest %s; its message has been received %s times", printable(keys), message.receives)
        self._let_go(again)
        self._receive_later(again)
        done = [one for one in messages if one not in again]
        # first those that are done: a dead letter that can't be sent must not hold them up
        self._until_it_works(partial(self.queue.delete, [one for one in done if not contents[one.id].foreign]))
        for message in done:
            if reasons := "; ".join(contents[message.id].foreign):
                log.warning("dead letter message=%s: %s", message.id, reasons)
                try:
                    self.queue.reject(message, reasons)
                except Exception as error:  # it is received again, and after ten receives, SQS moves it
                    log.error("message %s can't be sent to the dead letters: %s", message.id, printable(str(error)))
        self._let_go(done)

    def _receive_later(self, messages: Sequence[Message]) -> None:
        """Hides messages whose objects could not be ingested, the longer the more often they were received."""
        by_pause: dict[int, list[Message]] = {}
        for one in messages:
            pause = min(_RECEIVED_AGAIN * 2 ** max(0, one.receives - 1), _RECEIVED_AGAIN_MOST)
            by_pause.setdefault(int(pause), []).append(one)
        for pause, several in by_pause.items():
            self._until_it_works(partial(self.queue.extend, several, pause))

    def _take(self, objects: Sequence[Arrival]) -> set[Arrival]:
        """Ingests and announces objects, and returns those that could not be ingested now but may be later.

        If an order fails, each half is tried as an order of its own, so that one bad object doesn't hold up the others.
        """
        if not objects or self.stop.is_set():
            return set()
        order = new_order(objects)
        try:
            outcome = self._until_it_works(partial(self.ingest, order))
        except OrderFailed as error:
            log.error("order=%s of %s objects failed: %s", order.order, len(objects), error)
            self._until_it_works(self._try_nothing)
            if len(objects) == 1:
                return set(objects)
            middle = len(objects) // 2
            return self._take(objects[:middle]) | self._take(objects[middle:])
        if outcome is None:  # stopped
            return set()
        self._until_it_works(partial(self.announce, outcome))
        transient = {(one.key, one.version, one.etag) for one in outcome.objects if one.transient}
        return {one for one in objects if (one.key, one.version, one.etag) in transient}

    def _try_nothing(self) -> None:
        """Carries out an order without objects: if that fails too, it is not because of an object."""
        try:
            self.ingest(new_order())
        except OrderFailed as error:
            raise RuntimeError(f"ingest fails without any object: {error}") from error

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
                log.warning("the visibility timeout of held messages can't be extended: %s", error)

    # -- outages ------------------------------------------------------------------------------------------------------

    def _until_it_works(self, step: Callable[[], _Result]) -> _Result | None:
        """Repeats a step until it succeeds, with pauses of up to a minute; returns None if `stop` is set before.

        Raises:
            OrderFailed: the step raised it.
        """
        pause, failed = _RETRY_AFTER, False
        try:
            while not self.stop.is_set():
                try:
                    return step()
                except OrderFailed:
                    raise
                except Exception as error:
                    if self.stop.is_set():
                        break
                    log.warning("retrying in %.0f s: %s", pause, printable(str(error)))
                    self.say(str(error))
                    failed = True
                    self.stop.wait(pause)
                    pause = min(2 * pause, _RETRY_AFTER_MOST)
            return None
        finally:
            if failed:
                self.say("")
