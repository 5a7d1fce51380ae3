"""Replays: copies of a run's records in a user's own environment, where the run's models can be rebuilt."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from busco.errors import BuscoError
from busco.lake.formats import encode
from busco.lake.layout import MAX_RUN_BYTES, REPLAYS, EnvironmentLayout, key_bytes, new_id, run_key, slug
from busco.lake.objects import ObjectStore
from busco.lake.records import Order, utc_now
from busco.lake.runs import Run, epochs, newest_epoch, open_run, save_pin

ORDER = "replay"
# settings.environment allows 31 characters.
_NAME_LENGTH = 31 - len(REPLAYS)
_LISTED = 10


def environment_of(login: str) -> EnvironmentLayout:
    """Returns the environment for a user's replays; no two login names share one."""
    name = re.sub(r"[^a-z0-9_]", "_", login)[:_NAME_LENGTH]
    if name != login:
        name = f"{name[: _NAME_LENGTH - 7]}_{hashlib.sha256(login.encode()).hexdigest()[:6]}"
    return EnvironmentLayout(f"{REPLAYS}{name}")


def find(store: ObjectStore, environment: EnvironmentLayout, name: str) -> Run:
    """Returns the run that a user's input refers to, in the run's newest epoch.

    Args:
        name: the run's key, Airflow's `<DAG>/<run id>`, or a part of either that identifies a single run.

    Raises:
        BuscoError: no run matches, or several do; the message lists them.
    """
    dag, _, run_id = name.partition("/")
    for key in (name, run_key(dag, run_id)):
        # The name may be an Airflow run id that is longer than any key.
        if key_bytes(key) <= MAX_RUN_BYTES and newest_epoch(store, environment, key) is not None:
            return open_run(store, environment, key)
    # A run's key contains Airflow's run id as a slug.
    parts = [slug(part) for part in name.split("/", 1)]
    known = store.folders(environment.all_runs)
    found = [key for key in known if all(part and part in key for part in parts)]
    if len(found) == 1:
        return open_run(store, environment, found[0])
    if not found:
        raise BuscoError(
            f"there is no run {name} in environment {environment.environment}",
            "use the run's key from a failed task's log, or Airflow's <DAG>/<run id>, or a part of either",
        )
    more = f"\n    … and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    listed = "\n".join(f"    {key}" for key in found[-_LISTED:])
    raise BuscoError(f"{len(found)} runs have {name} in their names:\n{listed}{more}", "use a longer part of the name")


def copy(source: Run, environment: EnvironmentLayout) -> Run:
    """Begins an epoch of the run in `environment`, with copies of the source's current pin, entries and base release.

    The copies refer to the source's versions, whose files stay where they are. The base release is copied under the
    same id, but no other release links to it. So the replay stays the same, no matter what is published or
    garbage-collected in the source's environment.

    Raises:
        BuscoError: the source's base release no longer exists.
    """
    store, base = source.store, source.base()
    entries = source.entries()
    if base is not None:
        stored = store.get(source.environment.release(base.release))
        assert stored is not None
        store.create(environment.release(base.release), stored.body)
    while True:
        pin = source.pin.model_copy(
            update={
                "environment": environment.environment,
                "epoch": max(epochs(store, environment, source.name), default=0) + 1,
                "created_at": utc_now(),
                "attempt": new_id(),
            }
        )
        run = save_pin(store, environment, pin)
        # If the attempts differ, another replay of this run began at the same time and got this epoch: try again.
        if run.pin.attempt == pin.attempt:
            break
    for entry in entries.values():
        # With runner 0, any runner of the copy can take over the entry (R4).
        own = entry.model_copy(update={"token": new_id(), "runner": 0})
        store.create(run.layout.entry(entry.table), encode(store, own, pin.format))
    return run


def order(run: Run, nodes: Sequence[str]) -> Order:
    """Writes the order for the replay's runner, which runs these nodes and rebuilds even unchanged models."""
    if not run.environment.is_replay:
        raise BuscoError(f"{run.environment.environment} is not a replay environment")
    made = Order(name=ORDER, generation=1, kind="solo", nodes=tuple(nodes), rebuild=True)
    run.store.create(run.layout.order(made.name, made.generation), made)
    return made
