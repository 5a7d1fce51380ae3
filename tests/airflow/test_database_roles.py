"""PostgreSQL alone: a process that takes its port receives no password, and Airflow's role is not a superuser."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import psycopg2
import pytest
from sqlalchemy import create_engine

from busco.embedded import postgres as module
from busco.embedded import processes
from busco.embedded.keys import secret
from busco.embedded.postgres import Postgres
from busco.errors import BuscoError


@pytest.fixture
def state() -> Iterator[Path]:
    # pytest's own folders are private to their owner, but PostgreSQL runs as another user if this one is root
    state = Path(tempfile.mkdtemp(prefix="busco-database-"))
    state.chmod(0o755)
    yield state
    Postgres(state).down()
    shutil.rmtree(state)


class FakeServer:
    """A fake server that asks each client for the password in clear text (3) or as MD5 (5), as the protocol allows."""

    def __init__(self, port: int, kind: int = 3) -> None:
        self.received: list[bytes] = []
        self._kind, self._server = kind, socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self._ask(connection)
                except (OSError, struct.error):
                    continue

    def _ask(self, connection: socket.socket) -> None:
        while True:
            (length,) = struct.unpack("!I", connection.recv(4))
            message = connection.recv(length - 4)
            self.received.append(message)
            if struct.unpack("!I", message[:4])[0] not in (80877103, 80877104):  # neither a TLS nor a GSS request
                break
            connection.send(b"N")
        salt = b"salt" if self._kind == 5 else b""
        connection.send(b"R" + struct.pack("!II", 8 + len(salt), self._kind) + salt)
        self.received.append(connection.recv(1024))


def execute(postgres: Postgres, sql: str) -> Any:
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else None


def test_a_process_that_takes_postgresql_s_port_first_receives_nothing(state: Path) -> None:
    port = processes.pick_port(state, module.NAME)
    with FakeServer(port) as fake, mock.patch.object(processes, "pick_port", return_value=port):
        with pytest.raises(BuscoError, match="Address already in use"):
            Postgres(state).up()
        assert not Postgres(state).ready()
    assert fake.received == []


@pytest.mark.parametrize("kind", [3, 5], ids=["in the clear", "MD5"])
def test_no_client_sends_the_password_to_a_fake_server(state: Path, kind: int) -> None:
    dsn = Postgres(state).dsn
    with FakeServer(processes.pick_port(state, module.NAME), kind) as fake:
        dsn = Postgres(state).dsn
        with pytest.raises(psycopg2.OperationalError, match="authentication method requirement"):
            psycopg2.connect(dsn, connect_timeout=5)
        with pytest.raises(Exception, match="authentication method requirement"):
            create_engine(dsn.replace("postgresql://", "postgresql+psycopg2://")).connect()
    assert len(fake.received) > 1
    password = (urlsplit(dsn).password or "").encode()
    assert not any(password in message or b"md5" in message for message in fake.received)


@pytest.mark.parametrize(
    "statement",
    [
        "create temp table o (t text); copy o from program 'id'",
        "select pg_read_file('/etc/hostname')",
        "create role more superuser",
        "alter role airflow superuser",
    ],
)
def test_airflow_s_role_can_not_run_programs_or_read_files(state: Path, statement: str) -> None:
    postgres = Postgres(state)
    postgres.up()
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        execute(postgres, statement)
    assert execute(postgres, "create table kept (id serial primary key)") is None, "Airflow's role owns its database"
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(postgres.dsn.replace("//airflow:", "//postgres:"), connect_timeout=5)


def of_an_earlier_version(postgres: Postgres) -> Path:
    """Creates a cluster whose only superuser is Airflow's role, and returns its data folder."""
    account = postgres._account()
    data = postgres._data(account)
    scratch = Path(tempfile.mkdtemp(prefix="old", dir=data.parent))
    password, new = scratch / "password", scratch / "data"
    password.write_text(secret(postgres.state / "secrets" / "postgres"))
    new.mkdir(mode=0o700)
    if account is not None:
        for path in (scratch, new, password):
            os.chown(path, account.pw_uid, account.pw_gid)
    binaries = module._binaries(account is not None)
    initdb = [str(binaries / "initdb"), "-D", str(new), "-U", "airflow", f"--pwfile={password}"]
    module._run([*initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"], account)
    module._run(
        [str(binaries / "postgres"), "--single", "-D", str(new), "template1"], account, "create database airflow\n"
    )
    made = "create table job (id serial primary key, n int); create sequence own; create view all_jobs as table job; "
    made += "insert into job (n) values (7)\n"
    module._run([str(binaries / "postgres"), "--single", "-D", str(new), "airflow"], account, made)
    new.rename(data)
    shutil.rmtree(scratch)
    return data


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_a_cluster_of_an_earlier_version_is_taken_over_with_all_its_contents(state: Path, running: bool) -> None:
    postgres = Postgres(state)
    data = of_an_earlier_version(postgres)
    if running:
        postgres.port, account = processes.pick_port(state, module.NAME), postgres._account()
        uid = account.pw_uid if account else None
        command = postgres._command(data, uid)
        processes.start(state, module.NAME, command, module._environment(), data.parent, uid)
        process = processes.find(state, module.NAME)
        assert process is not None
        processes.wait_until(postgres.ready, process, "it", 30)
        assert execute(postgres, "select rolsuper from pg_roles where rolname = current_user") == [(True,)]
    for _ in range(2):
        postgres = Postgres(state)
        postgres.up()
        assert execute(postgres, "select rolname from pg_roles where rolsuper") == [("postgres",)]
        assert execute(postgres, "select n from job") == [(7,)]
    execute(postgres, "alter table job add column more int; insert into job (n) values (8)")
    execute(postgres, "select nextval('own'); drop view all_jobs; drop sequence own; drop table job")
    execute(postgres, "create schema more; comment on database airflow is 'mine'")
    assert secret(state / "secrets" / "postgres-superuser") not in postgres.dsn
