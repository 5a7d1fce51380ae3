"""What the production stack refuses to start with, and where its passwords come from."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from busco.orchestration import broker, database, production

ROOT = Path(__file__).parents[2]
FERNET = "3QnV4H3yqL0E8WJt1xk8m7m3pJQ8vV4Z6mC0t2r5u9c="
GOOD = {
    production.REQUIRES: "AIRFLOW__CORE__FERNET_KEY DB_PASSWORD",
    "AIRFLOW__CORE__FERNET_KEY": FERNET,
    "DB_PASSWORD": "a$b?c#d%e@f",
    "BUSCO_LAKE_BUCKET": "busco-lake-111111111111-us-east-1",
}


def names(environment: dict[str, str]) -> list[str]:
    """Returns the first word of each problem, which is the variable's name."""
    return [problem.split()[0] for problem in production.problems(environment)]


def test_complete_settings_have_no_problem() -> None:
    assert names(GOOD) == []


@pytest.mark.parametrize("name", ["AIRFLOW__CORE__FERNET_KEY", "DB_PASSWORD"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_secret_is_named(name: str, value: str | None) -> None:
    without = {one: text for one, text in GOOD.items() if one != name}
    if value is not None:
        without[name] = value
    assert names(without) == [name]
    assert names({**without, f"{name}_SECRET": "busco/key"}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIRFLOW_ADMIN_PASSWORD", "admin"),
        ("AIRFLOW_ADMIN_PASSWORD", "Airflow"),
        ("DB_PASSWORD", "postgres"),
        ("REDIS_PASSWORD", "busco-local"),
        ("AIRFLOW__CELERY__FLOWER_BASIC_AUTH", "me:admin"),
        ("REDIS_PASSWORD", "<random>"),
        ("BUSCO_LAKE_BUCKET", "<output:LakeBucket>"),
        ("AIRFLOW__CORE__FERNET_KEY", "short"),
        ("AIRFLOW__CORE__FERNET_KEY", f"{FERNET},not-a-key"),
        ("BUSCO_ENDPOINT_URL", "http://local-aws:4566"),
        ("AWS_ENDPOINT_URL", "http://local-aws:4566"),
        ("AWS_ENDPOINT_URL_S3", "http://local-aws:4566"),
        ("BUSCO_LAKE_BUCKET", "busco-lake-000000000000-us-east-1"),
        ("BUSCO_RUNNER_ROLE_ARN", "arn:aws:iam::000000000000:role/x"),
        ("DB_PASSWORD_SECRET", "arn:aws:secretsmanager:us-east-1:000000000000:secret:x"),
        ("REDIS_PASSWORD_SECRET", "arn:aws:ssm:us-east-1:000000000000:parameter/x"),
    ],
)
def test_known_and_local_values_are_refused_by_the_variable_s_name(name: str, value: str) -> None:
    found = list(production.problems({**GOOD, name: value}))
    assert [problem.split()[0] for problem in found] == [name]
    if len(value) > 8:
        assert value not in found[0], "the value may be a secret"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASSWORD", ""),
        ("DB_PASSWORD", "admin"),
        ("AIRFLOW__CORE__FERNET_KEY", "short"),
        ("AWS_ENDPOINT_URL", "http://local-aws:4566"),
        ("BUSCO_LAKE_BUCKET", "busco-lake-000000000000-us-east-1"),
    ],
)
def test_the_image_s_entry_point_starts_nothing_with_unsafe_settings(name: str, value: str) -> None:
    """The first argument is what would start."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**GOOD, "PATH": path, production.REQUIRES: "DB_PASSWORD AIRFLOW__CORE__FERNET_KEY"}
    command = [ROOT / "scripts/entrypoint.sh", "echo", "started"]

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env={**environment, **changes}, capture_output=True, text=True, check=False)

    refused = run(**{name: value})
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"error: {name} ")
    assert run().stdout == "started\n"


def test_two_fernet_keys_are_a_rotation() -> None:
    assert names({**GOOD, "AIRFLOW__CORE__FERNET_KEY": f"{FERNET}, {FERNET}"}) == []


def test_numbers_that_only_contain_the_local_account_are_no_account() -> None:
    assert names({**GOOD, "BUSCO_INGEST_FILE_BYTES": "20000000000000"}) == []


def test_the_tests_override_only_allows_a_local_aws() -> None:
    local = {**GOOD, "AWS_ENDPOINT_URL": "http://aws:1", "BUSCO_LAKE_BUCKET": "lake-000000000000"}
    assert names(local) == ["AWS_ENDPOINT_URL", "BUSCO_LAKE_BUCKET"]
    assert names({**local, production.TEST_ENDPOINT: "true"}) == []
    assert names({**local, production.TEST_ENDPOINT: "true", "DB_PASSWORD": "admin"}) == ["DB_PASSWORD"]


def test_the_command_prints_all_problems_and_fails() -> None:
    environment = {**GOOD, "DB_PASSWORD": "", "AWS_ENDPOINT_URL": "http://aws", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "busco.orchestration.production"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stderr.splitlines()] == [
        ["error:", "DB_PASSWORD"], ["error:", "AWS_ENDPOINT_URL"],
    ]  # fmt: skip


# -- passwords --------------------------------------------------------------------------------------------------------


def test_the_broker_s_url_quotes_any_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__CELERY__BROKER_URL", raising=False)
    monkeypatch.setenv("REDIS_PASSWORD", "a$b?c#d%e@f/:")
    assert broker.url() == "redis://:a%24b%3Fc%23d%25e%40f%2F%3A@redis:6379/0"
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", "redis://elsewhere")
    assert broker.url() == "redis://elsewhere"


class Rejected(Exception):
    """What psycopg2 raises, in an environment without it."""


class Rds:
    """A database whose password RDS changes, and the secret that RDS keeps it in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.password, self.secret, self.reads = "first", "first", 0
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setenv(database.SECRET, "rds!db-1")
        monkeypatch.delenv(database.PLAIN, raising=False)
        monkeypatch.setattr(database, "_read", self.read)
        monkeypatch.setattr(database, "_rejection", lambda: Rejected)

    def read(self, name: str) -> str:
        assert name == "rds!db-1"
        self.reads += 1
        return self.secret

    def connect(self, password: str) -> str:
        if password != self.password:
            raise Rejected('FATAL:  password authentication failed for user "airflow"')
        return f"connected with {password}"

    def rotate(self, password: str) -> None:
        self.password = self.secret = password


@pytest.fixture
def rds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rds:
    return Rds(monkeypatch, tmp_path)


def test_a_rotated_password_is_read_again_and_only_then(rds: Rds, tmp_path: Path) -> None:
    assert [database.with_password(rds.connect) for _ in range(3)] == ["connected with first"] * 3
    assert rds.reads == 1
    rds.rotate("second")
    assert [database.with_password(rds.connect) for _ in range(3)] == ["connected with second"] * 3
    assert rds.reads == 2
    (kept,) = tmp_path.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_password_that_stays_wrong_is_reported(rds: Rds) -> None:
    rds.password = "other"
    with pytest.raises(Rejected):
        database.with_password(rds.connect)
    assert rds.reads == 2, "the secret was read once more, in case that it had changed"


def test_other_errors_do_not_read_the_secret_again(rds: Rds) -> None:
    def unreachable(password: str) -> Any:
        raise Rejected("could not connect to server: Connection refused")

    with pytest.raises(Rejected):
        database.with_password(unreachable)
    assert rds.reads == 1


def test_a_plain_password_is_used_as_it_is(rds: Rds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(database.PLAIN, "a$b?c#d%e@f")
    rds.password = "a$b?c#d%e@f"
    assert database.with_password(rds.connect) == "connected with a$b?c#d%e@f"
    assert rds.reads == 0


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("plain text", "plain text"),
        (json.dumps({"username": "airflow", "password": 'a"b'}), 'a"b'),
    ],
)
def test_a_secret_is_a_password_or_what_rds_writes(stored: str, expected: str) -> None:
    assert database.password_of(stored) == expected


def test_json_without_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match=r"JSON without a `password`"):
        database.password_of('{"username": "airflow"}')
