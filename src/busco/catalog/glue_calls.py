"""Makes concurrent calls to Glue at the rate that Glue accepts, and distinguishes refused calls from unanswered ones.

botocore's own retries are disabled (`client_options`): if the response to a write was lost, they repeat the write
without reading the table first; they give up on a call that was throttled eight times; and in adaptive mode, they take
up to four times as long as the service's limit requires (bench/RESULTS.md).
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# A throttled call was not performed.
_THROTTLED = frozenset(
    {"Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException", "RequestLimitExceeded"}
)
# After these errors, and after errors with an HTTP status of 500 or higher, the call may have been performed.
_UNDECIDED = frozenset({"InternalServiceException", "OperationTimeoutException"})

TRIES = 8  # how many times an unanswered call is made in total
_PATIENCE = 120.0  # seconds in which Glue throttles every call, after which a throttled call fails
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds before an unanswered call is repeated


def client_options(at_once: int) -> dict[str, Any]:
    """Returns botocore's Config options for a Glue client that makes `at_once` concurrent calls through `Calls`."""
    return {"retries": {"mode": "standard", "total_max_attempts": 1}, "max_pool_connections": at_once}


class Unanswered(Exception):
    """A call got no answer that says whether it was performed: it timed out, or Glue had an internal error.

    `error` is botocore's exception.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Unavailable(Unanswered):
    """Glue did not answer a call in any of `TRIES` attempts, or has throttled every call for two minutes."""


class Rate:
    """Decides when calls may be sent, based on which calls were throttled. It has no clock and no lock.

    Times are in seconds. Calls are not limited until one is throttled. The initial rate is then nine tenths of the
    number of calls that were accepted in the last second, but at least `FIRST`. It grows quickly, since a service that
    accepts few calls at once may accept many in a second. From the next throttled call on, the rate grows slowly with
    each accepted call, and is lowered by a tenth when a call is throttled, but not to less than nine tenths of what
    Glue has accepted in the last second. So it stays close to the limit, whatever the limit is, and whether Glue counts
    calls per second or uses a token bucket.
    """

    LEAST = 0.5  # the lowest rate, in calls per second
    FIRST = 10.0  # the lowest initial rate
    LOWERED = 0.9
    GROWTH, FIRST_GROWTH = 0.05, 4.0  # how much each accepted call raises the rate

    def __init__(self) -> None:
        self.rate: float | None = None
        self._next = 0.0
        self._changed = 0.0
        self._growth = self.GROWTH
        self._accepted: deque[float] = deque()

    def pause(self, now: float) -> float:
        """Returns how long to wait before sending the next call; 0 if it may be sent now."""
        return 0.0 if self.rate is None else max(0.0, self._next - now)

    def sent(self, now: float) -> None:
        """Records that a call is being sent now."""
        if self.rate is not None:
            self._next = max(self._next, now) + 1 / self.rate

    def accepted(self, now: float) -> None:
        """Records that a call was performed, or refused for any reason other than throttling."""
        self._accepted.append(now)
        self._last_second(now)
        if self.rate is not None:
            self.rate += self._growth

    def throttled(self, sent: float, now: float) -> None:
        """Records that the call that was sent at the time `sent` was throttled.

        If the call was sent before the rate was last lowered, the rate is not lowered again.
        """
        recent = self._last_second(now)
        if self.rate is None:
            self.rate = max(self.FIRST, self.LOWERED * recent)
            self._growth = self.FIRST_GROWTH
            self._next = now + 1 / self.rate
        elif sent > self._changed:
            self.rate = max(self.LEAST, min(self.rate, self.LOWERED * max(self.rate, recent)))
            self._growth = self.GROWTH
        else:
            return
        self._changed = now

    def _last_second(self, now: float) -> int:
        while self._accepted and self._accepted[0] < now - 1:
            self._accepted.popleft()
        return len(self._accepted)


class Calls:
    """Makes calls with a Glue client, from any number of threads.

    Args:
        client: a boto3 Glue client with `client_options`.
        at_once: the number of threads that `each` uses, and so of concurrent calls.
    """

    def __init__(
        self,
        client: Any,
        at_once: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.client, self.at_once = client, at_once
        self._clock, self._sleep = clock, sleep
        self._rate = Rate()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._throttled_since: float | None = None  # since when every call has been throttled

    def read(self, operation: str, **request: Any) -> dict[str, Any]:
        """Makes a call that changes nothing, such as `get_table`, and repeats it until it gets an answer.

        Raises:
            ClientError: Glue refused the call.
            Unavailable: Glue does not answer, or throttles every call.
        """
        for attempt in itertools.count(1):
            try:
                return self.write(operation, **request)
            except Unanswered as lost:
                self.pause_after(attempt, lost)
        raise AssertionError("unreachable")

    def write(self, operation: str, **request: Any) -> dict[str, Any]:
        """Makes a call, such as `update_table`, and repeats it while it is throttled.

        Raises:
            ClientError: Glue refused the call.
            Unanswered: the call may or may not have been performed; read the table before anything else.
            Unavailable: Glue throttles every call.
        """
        while True:
            sent = self._send()
            try:
                answer: dict[str, Any] = getattr(self.client, operation)(**request)
            except ClientError as error:
                if error_code(error) not in _THROTTLED:
                    self._note_accepted()
                    if _is_undecided(error):
                        raise Unanswered(error) from error
                    raise
                if self._note_throttled(sent) > _PATIENCE:
                    raise Unavailable(error) from error
            except (ConnectionError, HTTPClientError) as error:
                raise Unanswered(error) from error
            else:
                self._note_accepted()
                return answer

    def pause_after(self, attempt: int, lost: Unanswered) -> None:
        """Waits before an unanswered call is repeated; `attempt` is the number of attempts so far, from 1.

        Raises:
            Unavailable: there have been `TRIES` attempts, or `lost` is already an `Unavailable`.
        """
        if isinstance(lost, Unavailable):
            raise lost
        if attempt >= TRIES:
            raise Unavailable(lost.error) from lost
        self._sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1)))

    def each(self, work: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
        """Calls `work` for all items, `at_once` of them at a time, and returns the results in the order of the items.

        Errors are handled as in `attempt`, except that the first ClientError is raised once all items were processed.
        """
        futures, refused = self._each(work, items)
        if refused:
            raise refused[0]
        return [future.result() for future in futures]

    def attempt(self, work: Callable[[Item], None], items: Iterable[Item]) -> list[ClientError]:
        """Calls `work` for all items, `at_once` of them at a time, and returns the items' ClientErrors.

        If AWS returns an error for one item (ClientError), the others are processed anyway; after any other error, no
        further items are processed, and the error is raised. Either way, no work is in progress anymore at the end.
        """
        return self._each(work, items)[1]

    def _each(
        self, work: Callable[[Item], Answer], items: Iterable[Item]
    ) -> tuple[list[Future[Answer]], list[ClientError]]:
        refused: list[ClientError] = []
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="glue") as pool:
            futures: list[Future[Answer]] = [pool.submit(work, item) for item in items]
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if isinstance(error, ClientError):
                        refused.append(error)
                    elif error is not None:
                        raise error
            finally:
                for future in futures:
                    future.cancel()
        return futures, refused

    def _send(self) -> float:
        """Waits until a call may be sent, and returns the current time; waiting threads take turns."""
        with self._turn:
            while True:
                with self._lock:
                    now = self._clock()
                    pause = self._rate.pause(now)
                    if not pause:
                        self._rate.sent(now)
                        return now
                self._sleep(pause)

    def _note_accepted(self) -> None:
        with self._lock:
            self._throttled_since = None
            self._rate.accepted(self._clock())

    def _note_throttled(self, sent: float) -> float:
        """Records a throttled call, and returns for how many seconds every call has been throttled.

        The time without any call doesn't count: Glue may accept the next one at once.
        """
        with self._lock:
            now, first = self._clock(), self._rate.rate is None
            self._rate.throttled(sent, now)
            if first:
                log.info("Glue is throttling calls; continuing at %.0f calls per second", self._rate.rate)
            if self._throttled_since is None:
                self._throttled_since = now
            return now - self._throttled_since


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_undecided(error: ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or error_code(error) in _UNDECIDED
