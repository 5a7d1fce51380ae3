"""Places for ECS tasks: at most so many run at once, over all triggerers, first come first served.

A place is a row in Airflow's database. Rows are looked at and changed under one advisory lock, so that two triggerers
never give the same place. A row is taken away when its ECS task was seen gone, by whoever sees it; one that waits, when
nobody has asked for it for a minute: its triggerer has died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

_LOCK = 7_302_271_115  # the advisory lock's number: any, so long as nobody else in this database takes it
_FORGOTTEN = "interval '1 minute'"
_TABLE = """
create table if not exists busco_ecs_slot (
    id bigserial primary key,
    token text not null unique,
    label text not null,
    task_arn text not null default '',
    is_taken boolean not null default false,
    asked_at timestamptz not null default clock_timestamp()
)
"""

Sessions = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Place:
    """Where an order stands: `ahead` is how many wait before it, 0 with a place or as the next one."""

    has_one: bool
    ahead: int
    taken: int


@dataclass(frozen=True)
class Holder:
    """Who has a place: `arn` is '' from when it was given until ECS has answered."""

    token: str
    arn: str
    seconds: float


class Slots:
    """Places for ECS tasks. Every method is one short transaction and blocks: call it in a thread.

    Args:
        limit: how many ECS tasks run at once.
        sessions: opens a SQLAlchemy session on PostgreSQL that commits at its end.
    """

    def __init__(self, limit: int, sessions: Sessions) -> None:
        self.limit, self._sessions = limit, sessions
        self._made = False

    @classmethod
    def of_airflow(cls, limit: int) -> Slots:
        """Places in Airflow's own database."""
        from airflow.utils.session import create_session

        return cls(limit, create_session)

    def ask(self, token: str, label: str) -> Place:
        """Asks for a place, or for the one that `token` has already; to be repeated until it is given."""
        with self._locked() as session:
            session.execute(
                text(
                    "insert into busco_ecs_slot (token, label) values (:token, :label)"
                    " on conflict (token) do update set asked_at = clock_timestamp()"
                ),
                {"token": token, "label": label},
            )
            session.execute(
                text(f"delete from busco_ecs_slot where not is_taken and asked_at < clock_timestamp() - {_FORGOTTEN}")
            )
            mine, is_taken = session.execute(
                text("select id, is_taken from busco_ecs_slot where token = :token"), {"token": token}
            ).one()
            taken, ahead = session.execute(
                text(
                    "select count(*) filter (where is_taken), count(*) filter (where not is_taken and id < :mine)"
                    " from busco_ecs_slot"
                ),
                {"mine": mine},
            ).one()
            if is_taken:
                return Place(True, 0, taken)
            if taken + ahead < self.limit:
                session.execute(
                    text("update busco_ecs_slot set is_taken = true, asked_at = clock_timestamp() where id = :id"),
                    {"id": mine},
                )
                return Place(True, 0, taken + 1)
            return Place(False, ahead, taken)

    def started(self, token: str, arn: str) -> None:
        """Says which ECS task has the place."""
        with self._locked() as session:
            session.execute(
                text("update busco_ecs_slot set task_arn = :arn where token = :token"), {"token": token, "arn": arn}
            )

    def give_back(self, token: str) -> None:
        """Frees a place, or leaves the line; nothing happens where there is none."""
        with self._locked() as session:
            session.execute(text("delete from busco_ecs_slot where token = :token"), {"token": token})

    def gone(self, arns: list[str]) -> None:
        """Frees the places of ECS tasks that were seen gone."""
        if arns:
            with self._locked() as session:
                session.execute(text("delete from busco_ecs_slot where task_arn = any(:arns)"), {"arns": arns})

    def holders(self) -> list[Holder]:
        """Who has a place, the longest first; `seconds` since it was last asked for."""
        with self._locked() as session:
            rows = session.execute(
                text(
                    "select token, task_arn, extract(epoch from clock_timestamp() - asked_at)"
                    " from busco_ecs_slot where is_taken order by id"
                )
            ).all()
        return [Holder(token, arn, float(seconds)) for token, arn, seconds in rows]

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        with self._sessions() as session:
            session.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            if not self._made:
                session.execute(text(_TABLE))
            yield session
        self._made = True
