"""What `deploy/aws/check_ssl.sh` reports about real TLS servers on this machine."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests import certificates

SCRIPT = Path(__file__).parents[2] / "deploy/aws/check_ssl.sh"
HOST = "data.example.com"


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """Serves a certificate on a port of this machine; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    plain, _ = listener.accept()
                    with suppress(OSError), context.wrap_socket(plain, server_side=True) as secure:
                        secure.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def check(folder: Path, port: int, *options: str, host: str = HOST) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, "--connect", "127.0.0.1", "--port", str(port), "--ca", folder / "ca.pem", *options, host],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_valid_certificate_is_reported_with_its_days(tmp_path: Path) -> None:
    certificates.make(tmp_path, HOST, days=30.5)
    with server(tmp_path) as port:
        done = check(tmp_path, port)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{HOST}: valid for 30 more days" in done.stdout
        soon = check(tmp_path, port, "--days", "31")
    assert soon.returncode == 1
    assert "expires in 30 days" in soon.stderr


def test_an_expired_certificate_fails(tmp_path: Path) -> None:
    certificates.make(tmp_path, HOST, days=-0.01)
    with server(tmp_path) as port:
        done = check(tmp_path, port)
    assert done.returncode == 1
    assert "certificate has expired" in done.stderr


def test_another_host_s_certificate_fails(tmp_path: Path) -> None:
    certificates.make(tmp_path, "other.example.com")
    with server(tmp_path) as port:
        done = check(tmp_path, port)
    assert done.returncode == 1
    assert "hostname mismatch" in done.stderr.lower()


def test_an_unknown_authority_fails(tmp_path: Path) -> None:
    certificates.make(tmp_path / "a", HOST)
    certificates.make(tmp_path / "b", HOST)
    with server(tmp_path / "a") as port:
        done = check(tmp_path / "b", port)
    assert done.returncode == 1
    assert "not valid for this host" in done.stderr


def test_a_server_that_is_down_fails(tmp_path: Path) -> None:
    certificates.make(tmp_path, HOST)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = check(tmp_path, port)
    assert done.returncode == 1
    assert f"no certificate from 127.0.0.1:{port}" in done.stderr


def test_wrong_usage_has_its_own_status(tmp_path: Path) -> None:
    assert subprocess.run([SCRIPT], capture_output=True, check=False).returncode == 2
    helped = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "usage: deploy/aws/check_ssl.sh" in helped.stdout
