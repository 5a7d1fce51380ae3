"""Pinning: a run writes down once what it is based on (R2)."""

from __future__ import annotations

from collections.abc import Sequence

from busco.errors import BuscoError
from busco.lake.deliveries import Contract, read_deliveries
from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.objects import ObjectStore
from busco.lake.records import Pin, utc_now
from busco.lake.releases import read_live
from busco.lake.runs import Run, save_pin


def pin(
    store: ObjectStore,
    environment: EnvironmentLayout,
    run: str,
    epoch: int,
    contracts: Sequence[Contract],
    manifest_hash: str,
    select: str = "",
    nodes: Sequence[str] | None = None,
    full_refresh: bool = False,
    code_version: str = "",
    origin: str = "",
) -> Run:
    """Begins an epoch of a run on the live release and on all deliveries so far.

    Args:
        nodes: the dbt unique ids of the selection, None for everything.
        origin: what tells this DAG run from an earlier one of the same run id (Pin).

    Raises:
        BuscoError: deliveries under another contract than today's, with the files to ingest again; or the epoch's pin
            is that of an earlier DAG run.
    """
    live = read_live(store, environment)
    base = live.release if live else None
    made = Pin(
        run=run,
        epoch=epoch,
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
    )
    saved = save_pin(store, environment, made)
    if saved.pin.origin != origin:
        raise BuscoError(
            f"run {run} is known already: a DAG run of this run id was deleted in Airflow, and its records are kept",
            "trigger it under another run id",
        )
    return saved
