"""What can be started as a local ECS task, and by whom, even if the local AWS is compromised."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from busco.embedded import task_shape
from busco.embedded.starter import DockerStarter, Ended, LostError, PullError, StartError
from busco.embedded.starter_client import SocketStarter
from busco.embedded.starter_service import MOST_BYTES, serve
from busco.embedded.task_shape import OWNER_LABEL
from tests.unit.docker_memory import IMAGE, Container, Engine
from tests.unit.task_orders import ATTACKS, OWNER, RULES, TASK, definition, order


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def over_a_socket(engine: Engine, tmp_path: Path) -> Iterator[SocketStarter]:
    with serve(tmp_path / "socket", DockerStarter(engine, RULES)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield SocketStarter(tmp_path / "socket")
        server.shutdown()
        thread.join()


# -- starting ---------------------------------------------------------------------------------------------------------


def test_a_task_from_our_template_is_started_with_exactly_these_arguments(engine: Engine) -> None:
    made = engine.made[DockerStarter(engine, RULES).start(order())]
    options = dict(made.options)
    scratch, code = options.pop("mounts")
    assert (scratch["Type"], scratch["Target"], scratch["Source"]) == (
        "volume", "/tmp", f"busco-scratch-{task_shape.task_id(TASK)}",
    )  # fmt: skip
    assert scratch["VolumeOptions"]["NoCopy"] is False
    assert code == {
        "Type": "bind", "Target": "/opt/busco/lib/busco", "Source": "/home/me/busco/src/busco", "ReadOnly": True,
    }  # fmt: skip
    labels = options.pop("labels")
    assert (labels[OWNER_LABEL], labels[task_shape.TASK_LABEL], labels["busco.stop-timeout"]) == (OWNER, TASK, "60")
    assert options == {
        "name": f"busco-task-{task_shape.task_id(TASK)}-dbt",
        "command": ["run", "x"],
        "environment": {"BUSCO_PLATFORM": "aws"},
        "network": OWNER,
        "mem_limit": "4096m",
        "memswap_limit": "4096m",
        "nano_cpus": 1_000_000_000,
        "pids_limit": 4096,
        "user": "10001:10001",
        "read_only": True,
        "init": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    assert (made.image, made.status) == (IMAGE, "running")


def test_overrides_from_run_task_are_applied(engine: Engine) -> None:
    override = {"name": "dbt", "command": ["docs"], "cpu": 512, "memory": 1024}
    given = {"cpu": "2048", "memory": "8 GB", "containerOverrides": [override]}
    made = engine.made[DockerStarter(engine, RULES).start(order(overrides=given))]
    assert (made.options["command"], made.options["mem_limit"], made.options["nano_cpus"]) == (
        ["docs"], "1024m", 2_000_000_000,
    )  # fmt: skip


def test_a_minimal_task_definition_gets_no_more_privileges_than_ours(engine: Engine) -> None:
    bare = {
        "family": "acme-small", "revision": 3, "cpu": "1024", "memory": "2048", "networkMode": "awsvpc",
        "containerDefinitions": [{"name": "dbt", "image": IMAGE}],
    }  # fmt: skip
    starter = DockerStarter(engine, RULES)
    ours, theirs = (
        engine.made[starter.start(each)].options
        for each in (order(), order(task=f"{TASK[:-1]}5", definition=bare, overrides={}))
    )
    for name in ("user", "read_only", "init", "cap_drop", "security_opt", "network", "pids_limit"):
        assert ours[name] == theirs[name]
    assert theirs["mem_limit"] == "2048m"


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_task_that_our_template_does_not_allow_is_refused_and_creates_nothing(attack: str, engine: Engine) -> None:
    given = deepcopy(order())
    ATTACKS[attack](given)
    with pytest.raises(StartError) as refused:
        DockerStarter(engine, RULES).start(given)
    assert (engine.made, engine.pulled) == ({}, [])
    assert str(refused.value)


def test_run_task_reports_unsupported_fields_immediately_without_their_values() -> None:
    assert task_shape.refused(definition(), order()["overrides"]) == ""
    given = definition()
    given["containerDefinitions"][0]["entryPoint"] = ["sh", "-c", "canary"]
    message = task_shape.refused(given, {})
    assert message == (
        "containerDefinitions.0.entryPoint: is not supported here; see deploy/aws/ecs.yaml for what tasks can use"
    )
    assert "canary" not in task_shape.refused(definition(), {"cpu": "canary"})


def test_an_image_that_does_not_exist_is_reported() -> None:
    with pytest.raises(PullError, match="manifest unknown"):
        DockerStarter(Engine(images=()), RULES).start(order())


def test_the_number_of_containers_is_limited(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busco.embedded.starter.MOST_CONTAINERS", 2)
    starter = DockerStarter(engine, RULES)
    for number in range(2):
        starter.start(order(task=f"{TASK[:-1]}{number}"))
    with pytest.raises(StartError, match="2 containers already exist"):
        starter.start(order())


# -- which containers it touches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [{}, {OWNER_LABEL: "busco-2_tasks"}, {task_shape.TASK_LABEL: TASK}], ids=str)
def test_containers_of_others_are_neither_stopped_nor_read_nor_removed(
    labels: dict[str, str], over_a_socket: SocketStarter, engine: Engine
) -> None:
    foreign, ours = engine.other(**labels), over_a_socket.start(order())
    for verb in (over_a_socket.end, lambda one: list(over_a_socket.lines(one))):
        with pytest.raises(LostError):
            verb(foreign.id)
    over_a_socket.wait(foreign.id)
    over_a_socket.remove(foreign.id)
    assert (foreign.status, foreign.signals) == ("running", [])
    assert over_a_socket.end_all(0) == 1
    assert list(engine.made) == [foreign.id] != [ours]


@pytest.mark.parametrize("name", ["postgres", "../images/json", "", "A" * 64, "0" * 63])
def test_a_container_can_be_addressed_only_by_its_id(name: str, over_a_socket: SocketStarter) -> None:
    with pytest.raises(LostError):
        over_a_socket.end(name)


# -- the socket -------------------------------------------------------------------------------------------------------


def test_a_task_can_be_started_stopped_and_removed_over_the_socket(
    over_a_socket: SocketStarter, engine: Engine
) -> None:
    assert over_a_socket.about().folders == RULES.folders
    container = over_a_socket.start(order())
    ended = over_a_socket.end(container)
    assert (ended.code, ended.out_of_memory, engine.made[container].signals) == (143, False, ["stop 60"])
    over_a_socket.remove(container)
    assert engine.made == {}
    with pytest.raises(LostError):
        over_a_socket.end(container)


@pytest.mark.parametrize("attack", ["privileged", "a folder of the host", "another image", "arguments of Docker's"])
def test_attacks_are_refused_over_the_socket_too(attack: str, over_a_socket: SocketStarter, engine: Engine) -> None:
    given = deepcopy(order())
    ATTACKS[attack](given)
    with pytest.raises(StartError):
        over_a_socket.start(given)
    assert engine.made == {}


def test_other_verbs_and_methods_are_refused(over_a_socket: SocketStarter, tmp_path: Path) -> None:
    assert over_a_socket.about().image == IMAGE
    for verb in ("containers/create", "exec", "images", "_client", "__init__", ""):
        assert status_of(tmp_path / "socket", f"POST /{verb} HTTP/1.0\r\ncontent-length: 2\r\n\r\n{{}}") == 400
    assert status_of(tmp_path / "socket", "GET /about HTTP/1.0\r\n\r\n") == 501


@pytest.mark.parametrize(
    "request_text",
    [
        "POST /start HTTP/1.0\r\ncontent-length: 2\r\n\r\n[]",
        "POST /start HTTP/1.0\r\ncontent-length: x\r\n\r\n",
        f"POST /start HTTP/1.0\r\ncontent-length: {MOST_BYTES + 1}\r\n\r\n",
        "POST /end HTTP/1.0\r\ncontent-length: 17\r\n\r\n" + json.dumps({"container": [1]}),
        "POST /end_all HTTP/1.0\r\ncontent-length: 15\r\n\r\n" + json.dumps({"grace": "long"}),
    ],
)
def test_a_malformed_request_gets_a_400_and_the_service_continues(
    request_text: str, over_a_socket: SocketStarter, tmp_path: Path, engine: Engine
) -> None:
    assert status_of(tmp_path / "socket", request_text) == 400
    assert engine.made == {}
    over_a_socket.start(order())


def status_of(path: Path, text: str) -> int:
    """Sends a request and returns the status of the response."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(text.encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status


def test_only_the_owner_and_the_group_can_access_the_socket(over_a_socket: SocketStarter, tmp_path: Path) -> None:
    assert over_a_socket.about().architecture == "amd64"
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660


class _Cut(DockerStarter):
    """A starter whose output breaks off once, as it does when a starter is restarted."""

    def __init__(self) -> None:
        super().__init__(Engine(), RULES)
        self.times = 0

    def lines(self, container: str) -> Iterator[list[tuple[int, str]]]:
        self.times += 1
        yield [(1, "a"), (2, "b")]
        if self.times == 1:
            raise LostError("Docker is gone")
        yield [(3, "c")]
        yield [(4, "d")]


def test_output_that_broke_off_is_continued_without_repeating_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    starter = _Cut()
    with serve(tmp_path / "socket", starter) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        received = [line for lines in SocketStarter(tmp_path / "socket").lines("0" * 64) for line in lines]
        server.shutdown()
        thread.join()
    assert (received, starter.times) == ([(1, "a"), (2, "b"), (3, "c"), (4, "d")], 2)


def test_an_unreachable_starter_is_reported(tmp_path: Path) -> None:
    absent = SocketStarter(tmp_path / "absent")
    for verb in (absent.about, lambda: absent.end_all(0)):
        with pytest.raises(LostError, match="does not answer"):
            verb()


class _Killed(DockerStarter):
    """A starter that is killed once in each verb, after the work is done and before it responds."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, RULES)
        self.killed: set[str] = set()

    def _kill(self, verb: str) -> None:
        if verb not in self.killed:
            self.killed.add(verb)
            raise ConnectionResetError(verb)

    def start(self, given: Any) -> str:
        made = super().start(given)
        self._kill("start")
        return made

    def end(self, container: str) -> Ended:
        ended = super().end(container)
        self._kill("end")
        return ended


def test_a_killed_starter_starts_nothing_twice_and_loses_no_exit_status(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve(tmp_path / "socket", _Killed(engine)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        client = SocketStarter(tmp_path / "socket")
        container = client.start(order())
        assert list(engine.made) == [container]
        assert client.end(container).code == 143
        server.shutdown()
        thread.join()


def test_the_image_s_scratch_content_is_copied_only_if_the_image_declares_the_volume() -> None:
    given = task_shape.order(order())
    without, declared = (
        task_shape.docker_arguments(given, RULES, 8, volumes)["mounts"][0] for volumes in ((), ("/tmp",))
    )
    assert (without["VolumeOptions"]["NoCopy"], declared["VolumeOptions"]["NoCopy"]) == (True, False)


def test_a_container_that_cannot_be_started_is_removed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Container) -> None:
        raise OSError("no such file or directory")

    monkeypatch.setattr(Container, "start", refuse)
    with pytest.raises(StartError, match="no such file"):
        DockerStarter(engine, RULES).start(order())
    assert engine.made == {}
