"""The publisher's role is assumed once per process, its credentials are renewed, and no role means no AssumeRole."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

import busco.aws
from busco.aws import client, publisher_client
from busco.errors import BuscoError
from busco.settings import Settings

ROLE = "arn:aws:iam::000000000000:role/busco-us-east-1-publisher"


class Sts:
    """Implements AssumeRole with a new key per call. `lasts` is how long the credentials are valid."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lasts = timedelta(hours=1)
        self.error_code = ""

    def assume_role(self, RoleArn: str, RoleSessionName: str) -> dict[str, Any]:
        self.calls.append(RoleArn)
        assert RoleSessionName
        if self.error_code:
            raise ClientError({"Error": {"Code": self.error_code, "Message": "not authorized"}}, "AssumeRole")
        key = f"ASSUMED{len(self.calls)}"
        ends = datetime.now(UTC) + self.lasts
        return {
            "Credentials": {"AccessKeyId": key, "SecretAccessKey": "s", "SessionToken": "t", "Expiration": ends},
        }


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sts]:
    fake, real = Sts(), busco.aws._client
    busco.aws.assumed.cache_clear()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OWN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setattr(
        busco.aws, "_client", lambda name, *rest, **more: fake if name == "sts" else real(name, *rest, **more)
    )
    yield fake
    busco.aws.assumed.cache_clear()


def settings(role: str = ROLE) -> Settings:
    return Settings(home=Path("/"), platform="aws", publisher_role_arn=role)


def signer(s3: Any) -> str:
    """Returns the access key that a client signs with."""
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    return str(
        url.partition("AWSAccessKeyId=")[2].partition("&")[0] or url.partition("Credential=")[2].partition("%")[0]
    )


def test_a_process_assumes_the_role_once_and_its_other_clients_use_its_own_credentials(sts: Sts) -> None:
    first, second = publisher_client("s3", settings()), publisher_client("s3", settings())
    assert (signer(first), signer(second), signer(client("s3", settings()))) == ("ASSUMED1", "ASSUMED1", "OWN")
    publisher_client("glue", settings())
    assert sts.calls == [ROLE]


def test_credentials_are_renewed_before_they_expire(sts: Sts) -> None:
    sts.lasts = timedelta(minutes=5)
    s3 = publisher_client("s3", settings())
    assert signer(s3) != "ASSUMED1"
    assert set(sts.calls) == {ROLE}


def test_without_a_configured_role_no_role_is_assumed(sts: Sts) -> None:
    assert signer(publisher_client("s3", settings(""))) == "OWN"
    assert sts.calls == []


def test_if_the_role_is_denied_an_error_is_raised_or_the_own_credentials_are_used(sts: Sts) -> None:
    sts.error_code = "AccessDenied"
    with pytest.raises(BuscoError, match=ROLE) as refused:
        publisher_client("s3", settings())
    assert "BUSCO_PUBLISHER_ROLE_ARN" in refused.value.hint
    assert signer(publisher_client("s3", settings(), or_own=True)) == "OWN"


@pytest.mark.parametrize("or_own", [True, False])
def test_a_denied_role_causes_no_warning_and_no_traceback(
    sts: Sts, caplog: pytest.LogCaptureFixture, or_own: bool
) -> None:
    sts.error_code = "AccessDenied"
    with caplog.at_level(logging.DEBUG), suppress(BuscoError):
        publisher_client("s3", settings(), or_own=or_own)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info] == []
    own = [record.getMessage() for record in caplog.records if record.name == "busco.aws"]
    assert own == ([f"not allowed to assume {ROLE}; using this process's own credentials"] if or_own else [])


def test_a_role_that_is_denied_after_it_was_assumed_is_reported(sts: Sts, caplog: pytest.LogCaptureFixture) -> None:
    sts.lasts = timedelta(minutes=5)
    s3 = publisher_client("s3", settings(), or_own=True)
    sts.error_code = "AccessDenied"
    with pytest.raises(ClientError, match="AccessDenied"):
        signer(s3)
    assert "Refreshing temporary credentials failed" in caplog.text


def test_an_sts_outage_is_not_mistaken_for_a_denied_role(sts: Sts) -> None:
    sts.error_code = "ServiceUnavailable"
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        publisher_client("s3", settings(), or_own=True)
