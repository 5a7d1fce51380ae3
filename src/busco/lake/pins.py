"""Pinning: a run writes down once what it is based on (R2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from busco.lake.audits import refuse_claimed
from busco.lake.deliveries import Contract, read_deliveries
from busco.lake.layout import EnvironmentLayout, RunLayout, new_id
from busco.lake.objects import ObjectStore
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
) -> Run:
    """Begins an epoch of a run on the live release and on all deliveries so far.

    Args:
        attempt: which try of the pin task it is: each begins an epoch (R1).
        nodes: the dbt unique ids of the selection, None for everything.
        origin: what tells this DAG run from an earlier one of the same run id (Pin): it begins anew.
        project: the dbt project's name, `project_dir` its folder, `tables` all that it has.

    Raises:
        BuscoError: another project has published a table of that name; deliveries under another contract than today's,
            with the files to ingest again.
    """
    live = read_live(store, environment)
    base = live.release if live else None
    refuse_claimed(project, tables, base)
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
