"""`busco doctor` finds the connections that the service's key can't decrypt, and names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from airflow.models import Connection
from cryptography.fernet import Fernet
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from busco.doctor import airflow
from busco.errors import BuscoError

OURS, OTHER = Fernet.generate_key(), Fernet.generate_key()


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Session:
    """A database with connections, of which the services can decrypt those of the key OURS."""
    engine = create_engine("sqlite://")
    Connection.__table__.create(engine)
    session = Session(engine)

    @contextmanager
    def create_session() -> Iterator[Session]:
        yield session

    monkeypatch.setattr("airflow.utils.session.create_session", create_session)
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", f"{OURS.decode()}, {Fernet.generate_key().decode()}")
    return session


def store(session: Session, name: str, key: bytes | None, extra: str = "") -> None:
    password = Fernet(key).encrypt(b"secret").decode() if key else "plain"
    session.execute(
        Connection.__table__.insert().values(
            conn_id=name, conn_type="http", password=password, is_encrypted=key is not None, extra=extra,
            is_extra_encrypted=bool(extra),
        )
    )  # fmt: skip


def test_readable_connections_are_counted(stored: Session) -> None:
    store(stored, "encrypted", OURS, Fernet(OURS).encrypt(b"{}").decode())
    store(stored, "plain", None)
    assert airflow._readable() == 2


def test_all_connections_of_another_key_are_named_with_what_to_do(stored: Session) -> None:
    store(stored, "good", OURS)
    store(stored, "password_of_another_key", OTHER)
    store(stored, "extra_of_another_key", OURS, Fernet(OTHER).encrypt(b"{}").decode())
    with pytest.raises(BuscoError) as failed:
        airflow._readable()
    assert "2 connections can't be decrypted" in failed.value.message
    assert "password_of_another_key, extra_of_another_key" in failed.value.message
    assert "append the key that encrypted them" in str(failed.value)
