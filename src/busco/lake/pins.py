"""Pins runs: records what a run is based on, once per epoch (R2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from busco.lake.deliveries import Contract, read_deliveries
from busco.lake.layout import EnvironmentLayout, RunLayout, new_id
from busco.lake.objects import ObjectStore
from busco.lake.owners import Owner, refuse_claimed
from busco.lake.records import Pin, utc_now
from busco.lake.releases import read_live
from busco.lake.runs import Run, epochs, save_pin


def pin(
    store: ObjectStore,
    environment: EnvironmentLayout,
    run: str,
    attempt: int,
    contracts: Sequence[Contract],
    manifest_hash: str,
    select: str = "",
    nodes: Sequence[str] | None = None,
    full_refresh: bool = False,
    code_version: str = "",
    origin: str = "",
    project: str = "",
    project_dir: str = "",
    tables: Collection[str] = (),
    project_id: str = "",
    dbt_name: str = "",
    take_over: bool = False,
) -> Run:
    """Begins an epoch of a run, based on the live release and all current deliveries.

    Args:
        attempt: the try number of the pin task; each try begins an epoch (R1).
        nodes: the dbt unique ids of the selected nodes, or None if everything is selected.
        origin: distinguishes this DAG run from an earlier one with the same run id (see `Pin`).
        project: the dbt project's identity; `project_dir` is the project's folder, and `tables` are all of its tables.
        project_id: the project's id, or empty if it has none; `dbt_name` is the project's dbt name, or empty if the
            name is the same as `project`.
        take_over: whether the run will be published with `--take-over` (`busco.lake.owners`).

    Raises:
        BuscoError: another project has published one of the tables, or uses this project's dbt name; or some deliveries
            were made under an outdated contract (the message lists the files to ingest again).
    """
    live = read_live(store, environment)
    base = live.release if live else None
    owner = Owner(project, dbt_name or project, bool(project_id), project_dir)
    refuse_claimed(owner, tables, base, owner.owned(base, take_over))
    made = Pin(
        run=run,
        epoch=_epoch(store, environment, run, attempt, origin),
        environment=environment.environment,
        base=base.release if base else None,
        bronze=read_deliveries(store, contracts, base),
        manifest_hash=manifest_hash,
        select=select,
        nodes=None if nodes is None else tuple(nodes),
        full_refresh=full_refresh,
        code_version=code_version,
        created_at=utc_now(),
        attempt=new_id(),
        origin=origin,
        project=project,
        project_dir=project_dir,
        project_id=project_id,
    )
    return save_pin(store, environment, made)


def _epoch(store: ObjectStore, environment: EnvironmentLayout, run: str, attempt: int, origin: str) -> int:
    """Returns the epoch of a try: the try number, plus the last epoch of deleted DAG runs with the same run id."""
    others = [
        epoch
        for epoch in epochs(store, environment, run)
        if (pin := store.read(RunLayout(environment.epoch(run, epoch)).pin, Pin)) and pin.origin != origin
    ]
    return max(others, default=0) + attempt
