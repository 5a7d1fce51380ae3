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
    """A runner that was started under a name: `newest` is the number of the newest runner known then, `ended_at` the
    number of the look at which it was first seen gone."""

    handle: Starting
    newest: int
    ended_at: int | None = None


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
        self._looks = 0
        # versions that were made in this run and made anew by a later runner
        self._replaced: set[str] = set()

    # -- what followers ask -------------------------------------------------------------------------------------------

    def final(self, node: str, runner: int) -> Result | None:
        """A runner's final word on a node, if it counts: it wasn't fenced off (R4), and nothing that it read was built
        anew since."""
        result = self.results.get((node, runner))
        if result is None or result.status not in FINAL or result.fenced:
            return None
        return None if self._replaced & set(result.reads.values()) else result

    def covers(self, number: int, node: str) -> bool:
        """Whether a runner gives, or may yet give, a final result for a node."""
        runner = self.runners[number]
        if (node, number) in self.results and self.results[(node, number)].status in FINAL:
            return self.final(node, number) is not None
        if runner.kind == "solo":
            return node in runner.nodes
        word = self.results.get((RUNNER_NODE, number))
        return word is None or word.plan is None or node in word.plan

    def shared_busy(self) -> bool:
        """Whether a shared runner is at work."""
        return any(r.kind == "shared" and n not in self.gone for n, r in self.runners.items())

    async def ended(self) -> frozenset[int]:
        """The runners that are gone, asked now."""
        found = [n for n, r in self.runners.items() if n in self.gone or not await self.launcher.alive(r)]
        return frozenset(found)

    async def ensure(self, name: str, arguments: Sequence[str]) -> None:
        """Starts a runner under `name`, unless the last one of that name is alive or may have registered itself since
        the records were looked at.

        Raises:
            StartFailed: the last one ended without registering itself.
        """
        async with self.lock:
            slot = self.slots.get(name)
            if slot is not None:
                if slot.handle.alive():
                    return
                if slot.ended_at is None:
                    slot.ended_at = self._looks
                # a look that began before it ended may not have seen it register
                if self._looks < slot.ended_at + 2:
                    return
                registered = any(number > slot.newest for number in self.runners)
                # whoever waited for it is told; a task that comes later has it started anew
                if not registered and self._looks < slot.ended_at + 10:
                    raise StartFailed(slot.handle.tail())
            newest = max(self.runners, default=0)
            self.slots[name] = Slot(await self.launcher.start(arguments), newest)

    async def abandon(self, name: str) -> None:
        """Ends the runner that was started under `name`, even if it has not registered itself yet."""
        slot = self.slots.get(name)
        if slot is not None:
            await slot.handle.stop()

    def runner_word(self, number: int) -> Result | None:
        """What a runner said of itself at its end; None where it didn't come to that."""
        word = self.results.get((RUNNER_NODE, number))
        return word if word and word.status in FINAL else None

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
                self._looks += 1
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
        self._replaced = self._replaced_versions()

    def _replaced_versions(self) -> set[str]:
        newest: dict[str, tuple[int, str]] = {}
        everything: set[str] = set()
        for (node, number), result in self.results.items():
            if result.made and not result.fenced:
                everything.add(result.made)
                newest[node] = max(newest.get(node, (0, "")), (number, result.made))
        return everything - {version for _, version in newest.values()}

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
