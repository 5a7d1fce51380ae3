"""Lists the runs that the lake has records of, each with a human-readable status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import FINAL, RUNNER_NODE, Pin, Release, Result
from busco.lake.releases import Live, history, read_live
from busco.lake.runs import newest_epoch
from busco.text import count


@dataclass(frozen=True)
class Summary:
    """A run in a list, as of its newest pinned epoch. `status` is a short human-readable text."""

    pin: Pin
    status: str


def summaries(store: ObjectStore, environment: EnvironmentLayout) -> list[Summary]:
    """Returns all runs that the lake has records of, starting with the most recently pinned one.

    For each run, this reads at least two objects and makes up to two listings.
    """
    live = read_live(store, environment)
    published = {(one.run, one.epoch): one for one in history(store, environment) if one.kind == "publish"}
    found = []
    for run in store.folders(environment.all_runs):
        epoch = newest_epoch(store, environment, run)
        pin = None if epoch is None else store.read(RunLayout(environment.epoch(run, epoch)).pin, Pin)
        if pin is not None:
            found.append(Summary(pin, _status(store, environment, pin, published, live)))
    return sorted(found, key=lambda one: one.pin.created_at, reverse=True)


def _status(
    store: ObjectStore,
    environment: EnvironmentLayout,
    pin: Pin,
    published: Mapping[tuple[str, int], Release],
    live: Live | None,
) -> str:
    release = published.get((pin.run, pin.epoch))
    if release is not None:
        return f"published as {release.release}"
    if live is not None and live.current.hold is not None and pin.run in live.current.hold.skipped:
        return "not published: on hold"
    layout = RunLayout(environment.epoch(pin.run, pin.epoch))
    names = set(store.modified(layout.prefix, "/"))
    numbers = _numbers(names, layout.prefix, "runner-")
    unended = sorted(numbers - _numbers(names, layout.prefix, "ended-"))
    own = [store.read(layout.result(RUNNER_NODE, number), Result) for number in unended]
    working = sum(one is None or one.status not in FINAL for one in own)
    if working:
        return f"not published; {count(working, 'runner')} working, or lost"
    return f"not published; {count(len(numbers), 'runner')}, all ended" if numbers else "not published; no runner yet"


def _numbers(keys: Iterable[str], prefix: str, name: str) -> set[int]:
    """Returns the number n from each key `<prefix><name><n>.json`."""
    begin = f"{prefix}{name}"
    found = (key.removeprefix(begin).removesuffix(".json") for key in keys if key.startswith(begin))
    return {int(number) for number in found if number.isdigit()}
