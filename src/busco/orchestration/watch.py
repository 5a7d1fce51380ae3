"""One poller for each run: it reads the run's records once for all of the tasks that follow them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from busco.aws import CLIENT_CONFIG
from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.records import FINAL, RUNNER_NODE, Follower, Pin, Result, Runner
from busco.orchestration.launch import Launcher, Starting, launcher
from busco.settings import Settings

log = logging.getLogger(__name__)

_EVERY = 0.3  # seconds between two looks at a run's records
_STUMBLES = 150  # looks that may fail in a row (a minute) before followers are told


class Conflict(Exception):
    """A conditional write lost."""


# One client for each event loop, that is for the triggerer's life: making one costs a third of a second, in which no
# other trigger moves.
_clients: dict[int, Any] = {}


async def objects_of(settings: Settings) -> AsyncObjects:
    """The lake bucket, over this event loop's client."""
    loop = id(asyncio.get_running_loop())
    if loop not in _clients:
        context = get_session().create_client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint_url,
            config=AioConfig(**CLIENT_CONFIG),
        )
        made = await context.__aenter__()
        _clients.setdefault(loop, made)
    return AsyncObjects(settings, _clients[loop])


@dataclass
class AsyncObjects:
    """The few S3 calls that triggers make, without blocking."""

    settings: Settings
    s3: Any

    async def get(self, key: str) -> tuple[bytes, str] | None:
        try:
            answer = await self.s3.get_object(Bucket=self.settings.lake_bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise
        async with answer["Body"] as body:
            return await body.read(), answer["ETag"]

    async def put(self, key: str, body: str, etag: str | None) -> None:
        """Creates (etag None) or swaps an object.

        Raises:
            Conflict: somebody else was first.
        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            await self.s3.put_object(Bucket=self.settings.lake_bucket, Key=key, Body=body.encode(), **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                raise Conflict(key) from error
            raise

    async def etags(self, prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.settings.lake_bucket, Prefix=prefix)
        async for page in pages:
            found.update({item["Key"]: item["ETag"] for item in page.get("Contents", [])})
        return found


class StartFailed(Exception):
    """A runner ended before it had registered itself; the text is the end of its output."""


@dataclass
class Slot:
    """A runner that was started under a name: `newest` is the number of the newest runner known then."""

    handle: Starting
    newest: int
    ended_seen: bool = False


@dataclass
class Watch:
    """What is known of one epoch of a run, kept up to date while anybody follows it."""

    settings: Settings
    pin: Pin
    launcher: Launcher
    objects: AsyncObjects
    runners: dict[int, Runner] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    results: dict[tuple[str, int], Result] = field(default_factory=dict)
    followers: set[str] = field(default_factory=set)
    problem: BaseException | None = None
    slots: dict[str, Slot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = RunLayout(EnvironmentLayout(self.settings.environment).epoch(self.pin.run, self.pin.epoch))
        self.lock = asyncio.Lock()
        self._seen: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stumbles = 0

    # -- what followers ask -------------------------------------------------------------------------------------------

    def final(self, node: str, runner: int) -> Result | None:
        result = self.results.get((node, runner))
        return result if result and result.status in FINAL else None

    def covering(self, nodes: Sequence[str], after: int) -> Runner | None:
        """The first runner after number `after` that gives results for all of `nodes`."""
        for number in sorted(self.runners):
            runner = self.runners[number]
            if number > after and (runner.kind == "shared" or set(nodes) <= set(runner.nodes)):
                return runner
        return None

    def shared_busy(self) -> bool:
        """Whether a shared runner is at work."""
        return any(r.kind == "shared" and n not in self.gone for n, r in self.runners.items())

    def died(self) -> list[int]:
        """Shared runners that are gone without a word on themselves."""
        return [n for n in sorted(self.gone) if self.runners[n].kind == "shared" and self.runner_word(n) is None]

    async def ensure(self, name: str, arguments: Sequence[str]) -> None:
        """Starts a runner under `name`, unless the last one of that name is alive or was seen no more than once since.

        Raises:
            StartFailed: the last one ended without registering itself.
        """
        async with self.lock:
            slot = self.slots.get(name)
            if slot is not None:
                if slot.handle.alive():
                    return
                if not slot.ended_seen:
                    # one more look at the records: it may have registered and ended since the last one
                    slot.ended_seen = True
                    return
                del self.slots[name]
                if not any(number > slot.newest for number in self.runners):
                    raise StartFailed(slot.handle.tail())
            newest = max(self.runners, default=0)
            self.slots[name] = Slot(await self.launcher.start(arguments), newest)

    def runner_word(self, number: int) -> Result | None:
        """What a runner said of itself at its end; None where it didn't come to that."""
        return self.final(RUNNER_NODE, number)

    async def read_log(self, node: str, runner: int) -> str:
        stored = await self.objects.get(self.layout.log(node, runner))
        return stored[0].decode(errors="replace") if stored else ""

    async def changed(self) -> None:
        """Waits for the next look at the records."""
        event = self._changed
        await event.wait()
        if self.problem is not None:
            raise self.problem

    async def read_follower(self, task: str) -> tuple[Follower, str] | None:
        stored = await self.objects.get(self.layout.follower(task))
        return (Follower.model_validate_json(stored[0]), stored[1]) if stored else None

    async def write_follower(self, follower: Follower, etag: str | None) -> None:
        await self.objects.put(self.layout.follower(follower.task), follower.model_dump_json(), etag)

    # -- the poller ---------------------------------------------------------------------------------------------------

    async def enter(self, task: str) -> None:
        self.followers.add(task)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
            await self.changed()

    def leave(self, task: str) -> None:
        self.followers.discard(task)

    async def _poll(self) -> None:
        while self.followers:
            try:
                await self._look()
                self._stumbles = 0
            except Exception as error:
                # S3 away for a while: the runner goes on, and so will we
                self._stumbles += 1
                log.warning("run=%s records not readable: %s", self.pin.run, error)
                if self._stumbles >= _STUMBLES:
                    self.problem = error
            event, self._changed = self._changed, asyncio.Event()
            event.set()
            if self.problem is not None:
                return
            await asyncio.sleep(_EVERY)

    async def _look(self) -> None:
        # liveness first: what a runner wrote before it was seen gone is then in the listing that follows
        gone = [n for n, runner in self.runners.items() if n not in self.gone and not await self.launcher.alive(runner)]
        etags = await self.objects.etags(self.layout.prefix)
        wanted = [key for key, etag in etags.items() if self._seen.get(key) != etag and self._interesting(key)]
        found = await asyncio.gather(*(self.objects.get(key) for key in wanted))
        for key, stored in zip(wanted, found, strict=True):
            if stored is None:
                continue
            if key.startswith(self.layout.results):
                result = Result.model_validate_json(stored[0])
                self.results[(result.node, result.runner)] = result
            else:
                runner = Runner.model_validate_json(stored[0])
                self.runners[runner.number] = runner
            self._seen[key] = etags[key]
        self.gone.update(gone)

    def _interesting(self, key: str) -> bool:
        name = key[len(self.layout.prefix) :]
        return key.endswith(".json") and (name.startswith("runner-") or key.startswith(self.layout.results))


_watches: dict[tuple[int, str, int], Watch] = {}


async def watch(settings: Settings, run: str) -> Watch:
    """The watch of a run's newest epoch, one for all of its followers in this process.

    Raises:
        LookupError: the run has no pin.
    """
    objects = await objects_of(settings)
    environment = EnvironmentLayout(settings.environment)
    names = [key.removeprefix(environment.runs(run)) for key in await objects.etags(environment.runs(run))]
    pins = {int(name.split("/")[0]) for name in names if name.endswith("/pin.json")}
    if not pins:
        raise LookupError(f"run {run} was never pinned")
    key = (id(asyncio.get_running_loop()), run, max(pins))
    if key not in _watches or _watches[key].problem is not None:
        stored = await objects.get(RunLayout(environment.epoch(run, max(pins))).pin)
        if stored is None:
            raise LookupError(f"run {run} was never pinned")
        for old in [other for other, known in _watches.items() if not known.followers and other != key]:
            del _watches[old]
        if key not in _watches or _watches[key].problem is not None:
            pin = Pin.model_validate_json(stored[0])
            _watches[key] = Watch(settings, pin, launcher(settings), objects)
    return _watches[key]
