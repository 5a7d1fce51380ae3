"""Compares the ages of bronze tables' newest deliveries with the freshness that their dbt sources promise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from busco.lake.deliveries import Contract
from busco.lake.layout import delivery_prefix
from busco.lake.objects import ObjectStore


@dataclass(frozen=True)
class Freshness:
    """A source table's `freshness` in dbt: how old its newest delivery may be; None means that there is no limit."""

    warn_after: timedelta | None
    error_after: timedelta | None

    def with_stricter(self, other: Freshness | None) -> Freshness:
        """Returns the stricter of two projects' limits for one table."""
        if other is None:
            return self
        pairs = ((self.warn_after, other.warn_after), (self.error_after, other.error_after))
        return Freshness(*(min((one for one in pair if one is not None), default=None) for pair in pairs))


@dataclass(frozen=True)
class Late:
    """A bronze table without a recent delivery.

    Attributes:
        age: the age of the newest delivery; None if there is none.
        limit: the limit that it exceeds.
    """

    table: str
    severity: Literal["warn", "error"]
    age: timedelta | None
    limit: timedelta

    @property
    def text(self) -> str:
        found = "there is no delivery" if self.age is None else f"its newest delivery is {_hours(self.age)} old"
        return f"{self.table}: {found}; {self.severity}_after is {_hours(self.limit)}"


def late_tables(
    store: ObjectStore, contracts: Iterable[Contract], limits: Mapping[str, Freshness], now: datetime
) -> list[Late]:
    """Returns the bronze tables whose newest delivery is older than its source allows.

    Args:
        limits: the freshness of each table, by name; tables without an entry are not checked.
        now: in UTC.
    """
    found: list[Late] = []
    for contract in contracts:
        limit = limits.get(contract.name)
        if limit is None:
            continue
        newest = store.last_modified(delivery_prefix(contract.source, contract.table))
        age = None if newest is None else now - newest
        for severity, allowed in (("error", limit.error_after), ("warn", limit.warn_after)):
            if allowed is not None and (age is None or age > allowed):
                found.append(Late(contract.name, severity, age, allowed))  # type: ignore[arg-type]
                break
    return found


def _hours(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
