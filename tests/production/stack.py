"""The production stack on this machine, for tests: docker-compose.prod.yml with tests/production/override.yml."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import socket
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from tests import certificates
from tests.compose.stack import ROOT, Stack, free_port

DOMAIN = "busco.test"
PASSWORD = "a$b?c#d%e@f'x"  # of the database and of the admin
FILES = ("docker-compose.prod.yml", "docker-compose.prod.letsencrypt.yml", "tests/production/override.yml")
PEBBLE = {
    "pebble": {
        "listenAddress": ":14000",
        "managementListenAddress": ":15000",
        "certificate": "/test/pebble.pem",
        "privateKey": "/test/pebble.key",
        "httpPort": 80,
        "tlsPort": 443,
        "certificateValidityPeriod": 7776000,  # 90 days
    }
}


@dataclass(frozen=True)
class Answer:
    """What nginx answered: its status, its headers with names in lower case, and its body."""

    status: int
    headers: Mapping[str, str]
    body: str


@dataclass
class Production(Stack):
    """A production stack below `home`, whose services run in containers of the Compose project `project`.

    Attributes:
        files: the Compose files, which can be given without the override for Let's Encrypt.
    """

    files: tuple[str, ...] = field(default=FILES)

    @classmethod
    def of(cls, home: Path, project: str, **variables: object) -> Production:
        """Copies the checkout, writes its .env, and makes the certificates of the database and of Pebble."""
        copied = cls.copied(home, project)
        folder = home / "test"
        certificates.make(folder / "tls", "postgres", "server")
        (folder / "tls/pg_hba.conf").write_text("local all all trust\nhostssl all all all scram-sha-256\n")
        certificates.make(folder / "pebble", "pebble", "pebble")
        (folder / "pebble/config.json").write_text(json.dumps(PEBBLE))
        (folder / "dags").mkdir()
        shutil.copy(ROOT / "tests/production/load_dag.py", folder / "dags/load.py")
        # the users of the containers read them
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        values = {
            "COMPOSE_PROJECT_NAME": project,
            "BUSCO_DOMAIN": DOMAIN,
            "LETSENCRYPT_EMAIL": "somebody@example.com",
            "LETSENCRYPT_SERVER": "https://pebble:14000/dir",
            "DB_HOST": "postgres",
            "DB_NAME": "airflow",
            "DB_USER": "airflow",
            "DB_PASSWORD": PASSWORD,
            "REDIS_PASSWORD": PASSWORD,
            "AIRFLOW_ADMIN_USERNAME": "admin",
            "AIRFLOW_ADMIN_PASSWORD": PASSWORD,
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__WEBSERVER__SECRET_KEY": secrets.token_hex(24),
            "BUSCO_METRICS_PLATFORM": "busco",
            "LOCAL_AWS_AIRFLOW_SECRET": secrets.token_hex(24),
            # docker-compose.yml, from which the override takes the local AWS, names them; nothing uses them here
            **dict.fromkeys(("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "BUSCO_AIRFLOW_URL"), "unused"),
            "TEST_FOLDER": folder,
            "TEST_HTTP_PORT": free_port(),
            "TEST_HTTPS_PORT": free_port(),
            "BUSCO_AWS_PORT": free_port(),
            "DOCKER_GID": Path("/var/run/docker.sock").stat().st_gid,
            **settings_of_the_example(),
            **variables,
        }
        lines = [f'{name}="{_escaped(str(value))}"' for name, value in values.items()]
        (home / ".env").write_text("\n".join(lines) + "\n")
        (home / ".env").chmod(0o600)
        return copied

    def compose(self, *arguments: str, check: bool = True, limit: float = 600, given: str | None = None) -> str:
        files = [part for name in self.files for part in ("--file", name)]
        return self.call("docker", "compose", *files, *arguments, check=check, limit=limit, given=given)

    def failing(self, *arguments: str) -> str:
        files = [part for name in self.files for part in ("--file", name)]
        return super().failing(*files, *arguments)

    # -- HTTPS --------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"https://{DOMAIN}:{self.value('TEST_HTTPS_PORT')}"

    def value(self, name: str) -> str:
        text = super().value(name)
        return text[1:-1].replace("\\$", "$").replace('\\"', '"') if text.startswith('"') else text

    def get(self, path: str, *options: str, scheme: str = "https", host: str = DOMAIN) -> Answer:
        """Requests a page from nginx with curl, without verifying its certificate, and without following redirects."""
        port = self.value("TEST_HTTPS_PORT" if scheme == "https" else "TEST_HTTP_PORT")
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "--insecure", "--noproxy", "*", "--max-time", "60", "--include",
             "--resolve", f"{host}:{port}:127.0.0.1", *options, f"{scheme}://{host}:{port}{path}"],
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return Answer(0, {}, done.stderr.decode())
        head, _, body = done.stdout.decode(errors="replace").partition("\r\n\r\n")
        first, *rest = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) if ": " in line else (line.lower(), "") for line in rest)
        return Answer(int(first.split()[1]), headers, body)

    def api(self, method: str, path: str, body: Any = None) -> Any:
        login = ["--user", f"{self.value('AIRFLOW_ADMIN_USERNAME')}:{self.value('AIRFLOW_ADMIN_PASSWORD')}"]
        data = ["--header", "content-type: application/json", "--data", json.dumps(body)] if body is not None else []
        answer = self.get(f"/{path}", "--request", method, *login, *data)
        assert 200 <= answer.status < 400, (answer.status, answer.body)
        return json.loads(answer.body) if "json" in answer.headers.get("content-type", "") else answer.body

    def certificate(self) -> x509.Certificate:
        """Returns the certificate that nginx serves."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", int(self.value("TEST_HTTPS_PORT"))), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=DOMAIN) as secure,
        ):
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def settings_of_the_example() -> dict[str, str]:
    """Returns the settings of .env.example, which are those of a local AWS, except for the images and the address."""
    found = {}
    for line in (ROOT / ".env.example").read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and name.startswith("BUSCO_") and name not in ("BUSCO_AIRFLOW_URL", "BUSCO_AWS_PORT"):
            found[name] = value
    return found


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
