"""Keeps the watches of this process, one for each run that has followers here."""

from __future__ import annotations

import asyncio

from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.records import Pin
from busco.orchestration.async_aws import objects_of, shared
from busco.orchestration.launch import launcher
from busco.orchestration.patience import patiently
from busco.orchestration.watch import Watch
from busco.settings import Settings

_watches: dict[tuple[int, str, int], Watch] = {}


async def watch(settings: Settings, run: str, follower: str) -> Watch:
    """Adds a follower to the watch of a run's newest pinned epoch, and returns this watch.

    All followers of the run in this process share the same watch.

    Raises:
        LookupError: the run has no pin.
        Exception: S3 could not be read.
    """
    while True:
        watched: Watch = await shared(("watch", run), lambda: _watch(settings, run))
        # the watch may have been dropped since it was found; once it has a follower, it is kept
        if _watches.get(_key(run, watched.pin.epoch)) is watched:
            watched.followers[follower] = 0
            return watched


async def _watch(settings: Settings, run: str) -> Watch:
    objects = await objects_of(settings)
    environment = EnvironmentLayout(settings.environment)
    folder = environment.runs(run)
    names = await patiently(f"listing {folder}", lambda: objects.folders(folder))
    for epoch in sorted((int(name) for name in names if name.isdigit()), reverse=True):
        key = _key(run, epoch)
        if key in _watches:
            return _watches[key]
        # the newest epoch may have no pin yet
        path = RunLayout(environment.epoch(run, epoch)).pin
        stored = await patiently(f"reading {path}", lambda path=path: objects.get(path))  # type: ignore[misc]
        if stored is not None:
            for old in [other for other, known in _watches.items() if not known.followers]:
                del _watches[old]
            _watches[key] = Watch(settings, Pin.model_validate_json(stored[0]), launcher(settings), objects)
            return _watches[key]
    raise LookupError(f"run {run} was never pinned")


def _key(run: str, epoch: int) -> tuple[int, str, int]:
    return id(asyncio.get_running_loop()), run, epoch
