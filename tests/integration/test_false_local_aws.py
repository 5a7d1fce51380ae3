"""A process on the local AWS's port is not mistaken for it, and can't get the port while clients may still use it."""

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
from tests.loopback import PROXY_PORT, Handler, serving

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
    """An impostor that claims to be the started process, or relays replies from the real one at `127.0.0.1:<port>`."""

    class Impostor(Handler):
        def do_GET(self) -> None:
            heard.append(self.path)
            if real:
                connection = http.client.HTTPConnection(real, timeout=5)
                connection.request("GET", self.path)
                self.answer(200, connection.getresponse().read())
                return
            pid = json.loads(processes.record_path(state, aws.NAME).read_text())["pid"]
            claimed = {"lake": "sample", "pid": pid, "port": self.server.server_address[1]}
            self.answer(200, json.dumps({**claimed, "reviewed": provisioned.REVIEWED, "proof": "0" * 64}).encode())

        do_POST = do_PUT = do_GET

    return Impostor


def test_a_process_that_takes_the_port_during_startup_learns_nothing(state: Path) -> None:
    heard: list[str] = []
    with serving(answering(state, heard)) as url, mock.patch.object(processes, "hold_port") as held:
        held.return_value = int(url.rpartition(":")[2])
        with pytest.raises(BuscoError, match="address already in use"):
            started(state)
    assert heard, "it was asked for its identity"
    assert {path.partition("?")[0] for path in heard} == {"/_busco/identity"}


def test_a_proof_is_valid_for_one_port_one_process_and_one_nonce(server: Server) -> None:
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


def test_a_request_that_is_signed_for_another_port_is_refused(server: Server) -> None:
    """A process on a port that clients still use could pass on their requests with the original signatures."""
    pair = keys.owner(server.settings.state)
    assert server.client("sts").get_caller_identity()["Arn"].endswith(":root")
    for port, accepted in ((0, False), (PROXY_PORT, True)):
        with serving(Proxy(server.endpoint).handler(), port) as url:
            sts = aws.client("sts", url, "us-east-1", pair)
            if accepted:  # a port at which the local AWS is configured to be published
                assert sts.get_caller_identity()["Arn"].endswith(":root")
                continue
            with pytest.raises(Exception, match="does not name the local AWS and its port"):
                sts.get_caller_identity()


@pytest.mark.parametrize("option", ["SO_REUSEADDR", "SO_REUSEPORT"])
def test_nobody_else_gets_the_port_of_a_local_aws_that_died_or_restarts(state: Path, option: str) -> None:
    server = started(state)
    port = server.endpoint.rpartition(":")[2]

    def taken() -> bool:
        # as another user if possible: a process of the user who started the local AWS can bind to the port as well
        other = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        command = ["/usr/bin/python3" if other else sys.executable, "-c", TAKES, port, option]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **other)  # type: ignore[call-overload]
        assert done.returncode == 0 or "Address already in use" in done.stderr, done.stderr
        return bool(done.returncode == 0)

    if option == "SO_REUSEPORT" and os.geteuid() != 0:
        pytest.skip("only other users are refused, and only root can act as one")
    assert not taken()
    server.kill()
    assert not taken()
    assert started(state, lake="other").endpoint == server.endpoint
    assert not taken()
    aws.down(server.settings, quiet)
    assert taken(), "the port is released at the end"


def test_a_local_aws_whose_port_was_taken_moves_with_new_secrets_once_nobody_uses_it(state: Path) -> None:
    server = started(state)
    before = {who: keys.instance(state, who) for who in instances.ROLES}
    processes.start(state, "scheduler", ["/bin/sleep", "60"], os.environ, state)
    aws.down(server.settings, quiet)
    assert "aws-port" in processes.running(state), "the port is held for the scheduler"
    processes.release_port(state, aws.NAME)
    with socket.create_server(("127.0.0.1", int(server.endpoint.rpartition(":")[2]))):
        with pytest.raises(BuscoError, match=r"scheduler would keep connecting to it\n.*busco down"):
            started(state)
        processes.stop(state, "scheduler")
        moved = started(state)
    assert moved.endpoint != server.endpoint
    assert all(keys.instance(state, who) != secret for who, secret in before.items())
    again = {who: keys.instance(state, who) for who in instances.ROLES}
    moved.kill()
    assert started(state).endpoint == moved.endpoint
    assert {who: keys.instance(state, who) for who in instances.ROLES} == again, (
        "secrets stay the same as long as the port does"
    )
