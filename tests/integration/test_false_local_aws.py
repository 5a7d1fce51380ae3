"""Whoever takes the local AWS's port is not taken for it, and can not take it as long as somebody may ask there."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from own_aws import Server, quiet, settings_of, started

from busco.embedded import aws, instances, keys, processes, provisioned
from busco.errors import BuscoError
from tests.airflow.fault_proxy import Proxy
from tests.loopback import WAY, Handler, serving

TAKES = """
import socket, sys
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, getattr(socket, sys.argv[2]), 1)
one.bind(("127.0.0.1", int(sys.argv[1])))
one.listen()
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    state = (tmp_path / "state").resolve()
    yield state
    processes.stop(state, "scheduler")
    aws.down(settings_of(state), quiet)


def answering(state: Path, heard: list[str], real: str = "") -> type[Handler]:
    """One who says to be the process that was started, or asks the real one, `127.0.0.1:<port>`, what to say."""

    class Says(Handler):
        def do_GET(self) -> None:
            heard.append(self.path)
            if real:
                connection = http.client.HTTPConnection(real, timeout=5)
                connection.request("GET", self.path)
                self.answer(200, connection.getresponse().read())
                return
            pid = json.loads(processes.record_path(state, aws.NAME).read_text())["pid"]
            said = {"lake": "sample", "pid": pid, "port": self.server.server_address[1]}
            self.answer(200, json.dumps({**said, "reviewed": provisioned.REVIEWED, "proof": "0" * 64}).encode())

        do_POST = do_PUT = do_GET

    return Says


def test_whoever_takes_its_port_while_it_starts_is_told_nothing(state: Path) -> None:
    heard: list[str] = []
    with serving(answering(state, heard)) as url, mock.patch.object(processes, "hold_port") as held:
        held.return_value = int(url.rpartition(":")[2])
        with pytest.raises(BuscoError, match="address already in use"):
            started(state)
    assert heard, "it was asked who it is"
    assert {path.partition("?")[0] for path in heard} == {"/_busco/identity"}


def test_a_proof_is_of_one_port_one_process_and_one_question(server: Server) -> None:
    state, process = server.settings.state, server.process
    assert aws._identity(state, process)["pid"] == process.pid
    heard: list[str] = []
    with serving(answering(state, heard, server.endpoint.removeprefix("http://"))) as url:
        port = url.rpartition(":")[2]
        with (
            mock.patch.object(aws, "_arguments", return_value={"--port": port}),
            mock.patch.object(processes, "listens", return_value=True),
        ):
            assert aws._identity(state, process) == {}
    assert len(heard) == 1
    with mock.patch.object(processes, "listens", return_value=False):
        assert aws._identity(state, process) == {}
    with mock.patch.object(keys, "owner", return_value=keys.Pair("AKIA", "another")):
        assert aws._identity(state, process) == {}
    with mock.patch.object(aws.secrets, "token_hex", side_effect=["one", "two"]):
        assert aws._identity(state, process)
        assert aws._identity(state, process)


def test_what_is_signed_for_another_port_is_not_answered_at_this_one(server: Server) -> None:
    """Whoever has the port at which somebody still asks passes on what he hears, as it was signed."""
    pair = keys.owner(server.settings.state)
    assert server.client("sts").get_caller_identity()["Arn"].endswith(":root")
    for port, answered in ((0, False), (WAY, True)):
        with serving(Proxy(server.endpoint).handler(), port) as url:
            asking = aws.client("sts", url, "us-east-1", pair)
            if answered:  # a port at which it is said to be published
                assert asking.get_caller_identity()["Arn"].endswith(":root")
                continue
            with pytest.raises(Exception, match="does not name the local AWS and its port"):
                asking.get_caller_identity()


@pytest.mark.parametrize("option", ["SO_REUSEADDR", "SO_REUSEPORT"])
def test_nobody_else_gets_the_port_of_one_that_has_died_or_restarts(state: Path, option: str) -> None:
    server = started(state)
    port = server.endpoint.rpartition(":")[2]

    def taken() -> bool:
        # as another user where that can be; one of the same user may bind beside it, since that is who starts it
        other = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        command = ["/usr/bin/python3" if other else sys.executable, "-c", TAKES, port, option]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **other)  # type: ignore[call-overload]
        assert done.returncode == 0 or "Address already in use" in done.stderr, done.stderr
        return bool(done.returncode == 0)

    if option == "SO_REUSEPORT" and os.geteuid() != 0:
        pytest.skip("only another user is refused, and only root can be one")
    assert not taken()
    server.kill()
    assert not taken()
    assert started(state, lake="other").endpoint == server.endpoint
    assert not taken()
    aws.down(server.settings, quiet)
    assert taken(), "given up at the end"


def test_a_port_that_was_taken_is_refused_while_somebody_asks_there_and_left_with_new_secrets(state: Path) -> None:
    server = started(state)
    heard = {who: keys.instance(state, who) for who in instances.ROLES}
    processes.start(state, "scheduler", ["/bin/sleep", "60"], os.environ, state)
    aws.down(server.settings, quiet)
    assert "aws-port" in processes.running(state), "held for the scheduler"
    processes.release_port(state, aws.NAME)
    with socket.create_server(("127.0.0.1", int(server.endpoint.rpartition(":")[2]))):
        with pytest.raises(BuscoError, match=r"scheduler would keep connecting to it\n.*busco down"):
            started(state)
        processes.stop(state, "scheduler")
        moved = started(state)
    assert moved.endpoint != server.endpoint
    assert all(keys.instance(state, who) != secret for who, secret in heard.items())
    again = {who: keys.instance(state, who) for who in instances.ROLES}
    moved.kill()
    assert started(state).endpoint == moved.endpoint
    assert {who: keys.instance(state, who) for who in instances.ROLES} == again, "as long as the port is its own"
