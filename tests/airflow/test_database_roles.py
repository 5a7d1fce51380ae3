"""PostgreSQL by itself: whoever takes its port hears no password, and Airflow's role is no superuser."""

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
    # pytest's own folders are closed to others, and PostgreSQL run as root needs another user
    state = Path(tempfile.mkdtemp(prefix="busco-database-"))
    state.chmod(0o755)
    yield state
    Postgres(state).down()
    shutil.rmtree(state)


class AsksInTheClear:
    """A false server, which asks whoever connects for the password in the clear or as MD5, as the protocol allows."""

    def __init__(self, port: int, kind: int = 3) -> None:
        self.heard: list[bytes] = []
        self._kind, self._server = kind, socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> AsksInTheClear:
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
            said = connection.recv(length - 4)
            self.heard.append(said)
            if struct.unpack("!I", said[:4])[0] not in (80877103, 80877104):  # neither TLS nor GSS
                break
            connection.send(b"N")
        salt = b"salt" if self._kind == 5 else b""
        connection.send(b"R" + struct.pack("!II", 8 + len(salt), self._kind) + salt)
        self.heard.append(connection.recv(1024))


def asked(postgres: Postgres, sql: str) -> Any:
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else None


def test_whoever_takes_the_port_before_postgresql_hears_nothing(state: Path) -> None:
    port = processes.pick_port(state, module.NAME)
    with AsksInTheClear(port) as false, mock.patch.object(processes, "pick_port", return_value=port):
        with pytest.raises(BuscoError, match="Address already in use"):
            Postgres(state).up()
        assert not Postgres(state).ready()
    assert false.heard == []


@pytest.mark.parametrize("kind", [3, 5], ids=["in the clear", "MD5"])
def test_no_client_tells_a_false_server_the_password(state: Path, kind: int) -> None:
    dsn = Postgres(state).dsn
    with AsksInTheClear(processes.pick_port(state, module.NAME), kind) as false:
        dsn = Postgres(state).dsn
        with pytest.raises(psycopg2.OperationalError, match="authentication method requirement"):
            psycopg2.connect(dsn, connect_timeout=5)
        with pytest.raises(Exception, match="authentication method requirement"):
            create_engine(dsn.replace("postgresql://", "postgresql+psycopg2://")).connect()
    assert len(false.heard) > 1
    assert not any((urlsplit(dsn).password or "").encode() in said or b"md5" in said for said in false.heard)


@pytest.mark.parametrize(
    "does",
    [
        "create temp table o (t text); copy o from program 'id'",
        "select pg_read_file('/etc/hostname')",
        "create role more superuser",
        "alter role airflow superuser",
    ],
)
def test_airflows_role_runs_no_program_and_reads_no_file(state: Path, does: str) -> None:
    postgres = Postgres(state)
    postgres.up()
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        asked(postgres, does)
    assert asked(postgres, "create table kept (id serial primary key)") is None, "it is its owner's database"
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(postgres.dsn.replace("//airflow:", "//postgres:"), connect_timeout=5)


def of_an_earlier_version(postgres: Postgres) -> Path:
    """A cluster whose superuser is Airflow's role, and no other; gives its data folder."""
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
def test_a_cluster_of_an_earlier_version_is_taken_over_with_all_that_is_in_it(state: Path, running: bool) -> None:
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
        assert asked(postgres, "select rolsuper from pg_roles where rolname = current_user") == [(True,)]
    for _ in range(2):
        postgres = Postgres(state)
        postgres.up()
        assert asked(postgres, "select rolname from pg_roles where rolsuper") == [("postgres",)]
        assert asked(postgres, "select n from job") == [(7,)]
    asked(postgres, "alter table job add column more int; insert into job (n) values (8)")
    asked(postgres, "select nextval('own'); drop view all_jobs; drop sequence own; drop table job")
    asked(postgres, "create schema more; comment on database airflow is 'mine'")
    assert secret(state / "secrets" / "postgres-superuser") not in postgres.dsn
