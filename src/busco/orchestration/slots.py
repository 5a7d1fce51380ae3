"""The table of slots for ECS tasks, which limits concurrent tasks across all triggerers, first come, first served.

A slot is a row in Airflow's database; places.py describes its states. Rows are read and changed under one advisory
lock, so that two triggerers never grant the same slot, and each step returns whether the row was in the state that the
step requires. The only clock is the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import text

from busco.orchestration.places import ABANDONED, Holder, Place

_LOCK = 7_302_271_115  # the advisory lock's number: arbitrary, but not used for anything else in this database
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
# A column that was added later. It is '' if the slot was requested by several attempts, or by an older version of the
# platform.
_START = "alter table busco_ecs_slot add column if not exists start text not null default ''"
_GRANTED = "token = :token and is_taken and task_arn = ''"

Sessions = Callable[[], AbstractContextManager[Any]]


class Slots:
    """Slots for ECS tasks. Every method is one short transaction and blocks: call it in a thread.

    Args:
        limit: the maximum number of concurrent ECS tasks.
        sessions: opens a SQLAlchemy session on PostgreSQL; the session commits when it is closed.
        now: returns an SQL expression for the current time; replaced in tests.
    """

    def __init__(self, limit: int, sessions: Sessions, now: Callable[[], str] = lambda: "clock_timestamp()") -> None:
        self.limit, self._sessions, self._now = limit, sessions, now
        self._made = False

    @classmethod
    def of_airflow(cls, limit: int) -> Slots:
        """Returns slots in Airflow's own database."""
        from airflow.utils.session import create_session

        return cls(limit, create_session)

    # -- the owner's steps --------------------------------------------------------------------------------------------

    def ask(self, token: str, label: str, start: str) -> Place:
        """Requests a slot for an order, or returns the order's existing slot. Repeat the call until a slot is granted.

        Args:
            start: identifies this attempt to start the order. An attempt can give a slot back only if no other attempt
                has ever requested that slot.
        """
        with self._locked() as session:
            session.execute(
                text(
                    "insert into busco_ecs_slot (token, label, start, asked_at)"
                    f" values (:token, :label, :start, {self._now()})"
                    f" on conflict (token) do update set asked_at = {self._now()},"
                    " start = case busco_ecs_slot.start when excluded.start then excluded.start else '' end"
                ),
                {"token": token, "label": label, "start": start},
            )
            session.execute(
                text(f"delete from busco_ecs_slot where not is_taken and asked_at < {self._now()} - {ABANDONED}")
            )
            mine, is_taken, arn = session.execute(
                text("select id, is_taken, task_arn from busco_ecs_slot where token = :token"), {"token": token}
            ).one()
            taken, ahead = session.execute(
                text(
                    "select count(*) filter (where is_taken), count(*) filter (where not is_taken and id < :mine)"
                    " from busco_ecs_slot"
                ),
                {"mine": mine},
            ).one()
            if is_taken:
                return Place(True, 0, taken, mine, arn)
            if taken + ahead < self.limit:
                session.execute(text("update busco_ecs_slot set is_taken = true where id = :id"), {"id": mine})
                return Place(True, 0, taken + 1, mine)
            return Place(False, ahead, taken, mine)

    def keep(self, token: str) -> bool:
        """Sends a heartbeat for a granted slot. Returns whether the owner still has the slot."""
        return self._changed(f"update busco_ecs_slot set asked_at = {self._now()} where {_GRANTED}", token=token)

    def started(self, token: str, arn: str) -> bool:
        """Granted → started: records the ECS task in the slot. Returns whether the task now has the slot."""
        return self._changed(
            f"update busco_ecs_slot set task_arn = :arn, asked_at = {self._now()}"
            " where token = :token and is_taken and task_arn in ('', :arn)",
            token=token,
            arn=arn,
        )

    def leave(self, token: str) -> bool:
        """Waiting → freed."""
        return self._changed("delete from busco_ecs_slot where token = :token and not is_taken", token=token)

    def give_back(self, token: str, start: str) -> bool:
        """Waiting or granted → freed: for an attempt that started nothing, if no other attempt requested the slot."""
        return self._changed(
            "delete from busco_ecs_slot where token = :token and task_arn = '' and start = :start",
            token=token,
            start=start,
        )

    # -- any process's steps ------------------------------------------------------------------------------------------

    def take_away(self, token: str, seconds: float) -> bool:
        """Granted → freed: if the last heartbeat is older than `seconds`.

        The caller must make sure that ECS has no task for the order.
        """
        return self._changed(
            f"delete from busco_ecs_slot where {_GRANTED}"
            f" and asked_at < {self._now()} - make_interval(secs => :seconds)",
            token=token,
            seconds=seconds,
        )

    def gone(self, arns: Collection[str]) -> list[str]:
        """Started → freed: for tasks that have stopped. Returns the tokens of the freed slots."""
        if not arns:
            return []
        with self._locked() as session:
            freed = text("delete from busco_ecs_slot where task_arn = any(:arns) returning token")
            return [token for (token,) in session.execute(freed, {"arns": list(arns)}).all()]

    def holders(self) -> list[Holder]:
        """Returns the slots in use, oldest first."""
        with self._locked() as session:
            rows = session.execute(
                text(
                    f"select token, task_arn, extract(epoch from {self._now()} - asked_at)"
                    " from busco_ecs_slot where is_taken order by id"
                )
            ).all()
        return [Holder(token, arn, float(seconds)) for token, arn, seconds in rows]

    def _changed(self, statement: str, **values: Any) -> bool:
        with self._locked() as session:
            return bool(session.execute(text(statement), values).rowcount)

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        with self._sessions() as session:
            session.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            if not self._made:
                session.execute(text(_TABLE))
                session.execute(text(_START))
            yield session
        self._made = True
