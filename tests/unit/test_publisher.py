"""The publisher's credentials: assumed once for a process, renewed before they end, and only where one is named."""

from __future__ import annotations

from collections.abc import Iterator
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
    """AssumeRole; each answer has a key of its own. `lasts` is how long its credentials are good for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.lasts = timedelta(hours=1)
        self.refuses = ""

    def assume_role(self, RoleArn: str, RoleSessionName: str) -> dict[str, Any]:
        self.asked.append(RoleArn)
        assert RoleSessionName
        if self.refuses:
            raise ClientError({"Error": {"Code": self.refuses, "Message": "not authorized"}}, "AssumeRole")
        key = f"ASSUMED{len(self.asked)}"
        ends = datetime.now(UTC) + self.lasts
        return {
            "Credentials": {"AccessKeyId": key, "SecretAccessKey": "s", "SessionToken": "t", "Expiration": ends},
        }


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sts]:
    made, real = Sts(), busco.aws._client
    busco.aws.assumed.cache_clear()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OWN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setattr(
        busco.aws, "_client", lambda name, *rest, **more: made if name == "sts" else real(name, *rest, **more)
    )
    yield made
    busco.aws.assumed.cache_clear()


def settings(role: str = ROLE) -> Settings:
    return Settings(home=Path("/"), platform="aws", publisher_role_arn=role)


def signer(s3: Any) -> str:
    """Whose key a client signs with."""
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    return str(
        url.partition("AWSAccessKeyId=")[2].partition("&")[0] or url.partition("Credential=")[2].partition("%")[0]
    )


def test_a_process_assumes_the_role_once_and_its_other_clients_have_its_own(sts: Sts) -> None:
    first, second = publisher_client("s3", settings()), publisher_client("s3", settings())
    assert (signer(first), signer(second), signer(client("s3", settings()))) == ("ASSUMED1", "ASSUMED1", "OWN")
    publisher_client("glue", settings())
    assert sts.asked == [ROLE]


def test_credentials_are_renewed_before_they_end(sts: Sts) -> None:
    sts.lasts = timedelta(minutes=5)
    s3 = publisher_client("s3", settings())
    assert signer(s3) != "ASSUMED1"
    assert set(sts.asked) == {ROLE}


def test_where_no_role_is_named_nobody_is_asked(sts: Sts) -> None:
    assert signer(publisher_client("s3", settings(""))) == "OWN"
    assert sts.asked == []


def test_who_may_not_assume_it_is_told_so_or_goes_on_as_himself(sts: Sts) -> None:
    sts.refuses = "AccessDenied"
    with pytest.raises(BuscoError, match=ROLE) as refused:
        publisher_client("s3", settings())
    assert "BUSCO_PUBLISHER_ROLE_ARN" in refused.value.hint
    assert signer(publisher_client("s3", settings(), or_own=True)) == "OWN"


def test_a_fault_of_sts_is_no_refusal(sts: Sts) -> None:
    sts.refuses = "ServiceUnavailable"
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        publisher_client("s3", settings(), or_own=True)
