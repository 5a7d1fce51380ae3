"""Flower, as Compose starts it, accepts only known host names and requires the admin's login."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from busco.errors import BuscoError
from busco.orchestration.flower import login
from busco.settings import get_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with flower(tmp_path_factory.mktemp("flower")) as made:
        yield made


@pytest.fixture
def url_behind_a_proxy(tmp_path: Path) -> Iterator[str]:
    with flower(tmp_path, FLOWER_XHEADERS="True") as made:
        yield made


@contextmanager
def flower(home: Path, **environment: str) -> Iterator[str]:
    """Runs Flower; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    own = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        # Airflow requires a database that several processes can use, but Flower never queries it
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://nobody@127.0.0.1:1/nothing",
        "AIRFLOW__CELERY__BROKER_URL": "memory://",
        "AIRFLOW__CELERY__RESULT_BACKEND": "cache+memory://",
        "AIRFLOW_ADMIN_PASSWORD": "a password, with a comma",
        "BUSCO_PLATFORM": "development",
        "BUSCO_WEB_HOSTS": "flower.example.com",
        "BUSCO_AIRFLOW_URL": "http://airflow.example.com:8080",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "busco.orchestration.flower", "--hostname", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, env={**kept, **own, **environment}, stdout=log, stderr=log)
    made, deadline, pause = f"http://127.0.0.1:{port}", time.monotonic() + 120, threading.Event()
    try:
        while True:
            assert process.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            try:
                requests.get(f"{made}/healthcheck", timeout=10, proxies={"no_proxy": "*"})
                break
            except requests.ConnectionError:
                pause.wait(0.3)
        yield made
    finally:
        process.terminate()
        process.wait()


def status(
    url: str, path: str, host: str = "", password: str | None = "a password, with a comma", client: str = ""
) -> int:
    session = requests.Session()
    session.trust_env = False
    auth = ("admin", password) if password is not None else None
    headers = {name: value for name, value in (("Host", host), ("X-Real-IP", client)) if value}
    return session.get(f"{url}{path}", headers=headers, auth=auth, timeout=60).status_code


def test_a_rebound_host_name_is_refused_and_known_ones_are_accepted(url: str) -> None:
    for host in ("evil.example.com", "127.0.0.1.example.com", "localhost.example.com:80", "evil@localhost"):
        for path in ("/", "/healthcheck", "/api/workers", "/static/css/flower.css", "/metrics"):
            # Tornado itself rejects a malformed host name with 400
            assert status(url, path, host) == (400 if "@" in host else 403), (host, path)
    for host in ("localhost:5555", "127.0.0.1", "[::1]:5555", "airflow.example.com", "flower.example.com:443"):
        assert status(url, "/workers", host) == 200, host


def test_only_the_health_check_is_served_without_the_admin_s_login(url: str) -> None:
    for path in ("/", "/workers", "/tasks", "/metrics", "/api/workers", "/api/tasks", "/static/css/flower.css", "/x"):
        assert status(url, path, password=None) == 401, path
    assert status(url, "/healthcheck", password=None) == 200
    assert status(url, "/metrics") == 200
    for wrong in ("a password", " with a comma", "admin"):
        assert status(url, "/workers", password=wrong) == 401, wrong


def test_a_page_of_another_site_can_not_change_anything_with_the_browser_s_login(url: str) -> None:
    port = url.rpartition(":")[2]
    pages: list[dict[str, str]] = [
        {"Origin": "http://127.0.0.1:9999"}, {"Origin": "null"}, {"Origin": f"http://localhost:{port}"},
        {"Origin": "http://airflow.example.com:8080"}, {"Sec-Fetch-Site": "same-site"},
        {"Origin": url, "Sec-Fetch-Site": "cross-site"}, {"Origin": f"{url}.example.com"},
    ]  # fmt: skip
    for headers in pages:
        for method in ("POST", "PUT", "DELETE"):
            assert shutdown(url, method, headers) == (403, "403: Forbidden\n"), (method, headers)
    # 404, because no worker has this name
    for headers in ({}, {"Origin": url}, {"Origin": url, "Sec-Fetch-Site": "same-origin"}):
        assert shutdown(url, "POST", headers)[0] == 404, headers


def shutdown(url: str, method: str, headers: dict[str, str]) -> tuple[int, str]:
    """Requests a worker's shutdown, and returns the status and body of the response."""
    with requests.Session() as session:
        session.trust_env = False
        session.auth = ("admin", "a password, with a comma")
        answer = session.request(method, f"{url}/api/worker/shutdown/nobody", headers=headers, timeout=60)
        return answer.status_code, answer.text


def test_no_page_can_be_framed(url: str) -> None:
    for path in ("/workers", "/healthcheck", "/x"):
        answer = requests.get(f"{url}{path}", auth=("admin", "a password, with a comma"), timeout=60)
        assert answer.headers["X-Frame-Options"] == "DENY", path


def test_password_guesses_are_limited(url: str) -> None:
    for number in range(12):
        # without a proxy, what a client says about its address counts for nothing
        last = status(url, "/workers", password="guess", client=f"192.0.2.{number}")
    assert last == 429
    assert status(url, "/workers") == 429, "the right password is not checked either"
    assert status(url, "/healthcheck", password=None) == 200


def test_guesses_behind_a_proxy_lock_out_only_the_client_that_makes_them(url_behind_a_proxy: str) -> None:
    for _ in range(12):
        last = status(url_behind_a_proxy, "/workers", password="guess", client="192.0.2.1")
    assert last == 429
    assert status(url_behind_a_proxy, "/workers", client="192.0.2.1") == 429
    assert status(url_behind_a_proxy, "/workers", client="192.0.2.2") == 200


def test_flower_needs_a_login_and_on_aws_one_with_another_password_than_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AIRFLOW_ADMIN_USERNAME", "AIRFLOW_ADMIN_PASSWORD", "AIRFLOW__CELERY__FLOWER_BASIC_AUTH"):
        monkeypatch.delenv(name, raising=False)
    get_settings.cache_clear()
    with pytest.raises(BuscoError, match="Flower has no login"):
        login()
    monkeypatch.setenv("AIRFLOW_ADMIN_PASSWORD", "admin")
    assert login() == "admin:admin"
    monkeypatch.setenv("BUSCO_PLATFORM", "aws")
    get_settings.cache_clear()
    with pytest.raises(BuscoError, match="is a well-known password"):
        login()
    monkeypatch.setenv("AIRFLOW__CELERY__FLOWER_BASIC_AUTH", "ops:a long one")
    assert login() == "ops:a long one"
    get_settings.cache_clear()
