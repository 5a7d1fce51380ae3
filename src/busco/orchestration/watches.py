"""The watches of this process: one for each run that anybody follows here."""

from __future__ import annotations

import asyncio

from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.records import Pin
from busco.orchestration.async_aws import objects_of, shared
from busco.orchestration.launch import launcher
from busco.orchestration.watch import Watch
from busco.settings import Settings

_watches: dict[tuple[int, str, int], Watch] = {}


async def watch(settings: Settings, run: str) -> Watch:
    """The watch of a run's newest epoch, one for all of its followers in this process.

    Raises:
        LookupError: the run has no pin.
    """
    watched: Watch = await shared(("watch", run), lambda: _watch(settings, run))
    return watched


async def _watch(settings: Settings, run: str) -> Watch:
    objects = await objects_of(settings)
    environment = EnvironmentLayout(settings.environment)
    epochs = sorted(
        (int(name) for name in await objects.folders(environment.runs(run)) if name.isdigit()), reverse=True
    )
    for epoch in epochs:
        key = (id(asyncio.get_running_loop()), run, epoch)
        if key in _watches and _watches[key].problem is None:
            return _watches[key]
        # the newest epoch may have no pin yet
        stored = await objects.get(RunLayout(environment.epoch(run, epoch)).pin)
        if stored is not None:
            for old in [other for other, known in _watches.items() if not known.followers and other != key]:
                del _watches[old]
            # another may have come to it meanwhile
            if key not in _watches or _watches[key].problem is not None:
                pin = Pin.model_validate_json(stored[0])
                _watches[key] = Watch(settings, pin, launcher(settings), objects)
            return _watches[key]
    raise LookupError(f"run {run} was never pinned")
