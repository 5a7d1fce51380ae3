"""Replays: a run's records, copied into an environment of a person's own, where its models can be built again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from busco.errors import BuscoError
from busco.lake.layout import MAX_RUN_BYTES, REPLAYS, EnvironmentLayout, key_bytes, new_id, run_key, slug
from busco.lake.objects import ObjectStore
from busco.lake.records import Order, utc_now
from busco.lake.runs import Run, epochs, newest_epoch, open_run, save_pin

ORDER = "replay"
# settings.environment takes 31 characters
_NAME_LENGTH = 31 - len(REPLAYS)
_LISTED = 10


def environment_of(login: str) -> EnvironmentLayout:
    """The environment of a person's replays; two login names never share one."""
    name = re.sub(r"[^a-z0-9_]", "_", login)[:_NAME_LENGTH]
    if name != login:
        name = f"{name[: _NAME_LENGTH - 7]}_{hashlib.sha256(login.encode()).hexdigest()[:6]}"
    return EnvironmentLayout(f"{REPLAYS}{name}")


def find(store: ObjectStore, environment: EnvironmentLayout, asked: str) -> Run:
    """The run that is meant, in its newest epoch.

    Args:
        asked: the run's key, Airflow's `<DAG>/<run id>`, or a part of either that only one run has.

    Raises:
        BuscoError: none has it, or several have, which are listed.
    """
    dag, _, run_id = asked.partition("/")
    for key in (asked, run_key(dag, run_id)):
        # what was asked for may be Airflow's run id, which is longer than any key
        if key_bytes(key) <= MAX_RUN_BYTES and newest_epoch(store, environment, key) is not None:
            return open_run(store, environment, key)
    # a run's key has Airflow's run id as a slug
    parts = [slug(part) for part in asked.split("/", 1)]
    known = store.folders(environment.all_runs)
    found = [key for key in known if all(part and part in key for part in parts)]
    if len(found) == 1:
        return open_run(store, environment, found[0])
    if not found:
        raise BuscoError(
            f"there is no run {asked} in environment {environment.environment}",
            "a failed task's log names its run; Airflow's <DAG>/<run id> will do, or a part of it",
        )
    more = f"\n    … and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    listed = "\n".join(f"    {key}" for key in found[-_LISTED:])
    raise BuscoError(f"{len(found)} runs have {asked} in their names:\n{listed}{more}", "give more of the name")


def copy(source: Run, environment: EnvironmentLayout) -> Run:
    """Begins an epoch of the run in `environment` on what the source has now: pin, entries, and its base release.

    The copies name the source's versions, whose files stay where they are. The base release is copied too, under its
    id and reachable from nowhere: the run is the same whatever is published, or collected, in the source's environment.

    Raises:
        BuscoError: the source's base release is gone.
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
        # else another replay of this run began at the same time, and has the epoch
        if run.pin.attempt == pin.attempt:
            break
    for entry in entries.values():
        # 0: any runner of the copy may take it (R4)
        own = entry.model_copy(update={"token": new_id(), "runner": 0})
        store.create(run.layout.entry(entry.table), own)
    return run


def order(run: Run, nodes: Sequence[str]) -> Order:
    """Writes down what the replay's runner is to do: these nodes, models of them built even if nothing has changed."""
    if not run.environment.is_replay:
        raise BuscoError(f"{run.environment.environment} is no environment for replays")
    made = Order(name=ORDER, generation=1, kind="solo", nodes=tuple(nodes), rebuild=True)
    run.store.create(run.layout.order(made.name, made.generation), made)
    return made
