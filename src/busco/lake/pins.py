"""Pinning: a run writes down once what it is based on (R2)."""

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
    """Begins an epoch of a run on the live release and on all deliveries so far.

    Args:
        attempt: which try of the pin task it is: each begins an epoch (R1).
        nodes: the dbt unique ids of the selection, None for everything.
        origin: what tells this DAG run from an earlier one of the same run id (Pin): it begins anew.
        project: the dbt project's identity, `project_dir` its folder, `tables` all that it has.
        project_id: its id, where it has one, and `dbt_name` its dbt name; empty is the same as `project`.
        take_over: the run is to be published with `--take-over` (`busco.lake.owners`).

    Raises:
        BuscoError: another project has published a table of that name, or uses this one's dbt name; or deliveries under
            another contract than today's, with the files to ingest again.
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
    """The epoch of a try: its number, after those of an earlier DAG run of the same run id that was deleted."""
    others = [
        epoch
        for epoch in epochs(store, environment, run)
        if (pin := store.read(RunLayout(environment.epoch(run, epoch)).pin, Pin)) and pin.origin != origin
    ]
    return max(others, default=0) + attempt
