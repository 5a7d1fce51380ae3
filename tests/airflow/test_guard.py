"""Which site's page sent a request, and how failed logins are counted."""

from __future__ import annotations

import pytest

from busco.orchestration.guard import FailedLogins, is_of_another_site

URL = "https://airflow.example.com"
HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "airflow.example.com", "web"})


def refused(host: str, url: str = "", secure: bool = False, method: str = "POST", **fields: str) -> bool:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return is_of_another_site(method, headers, {host}, HOSTS, url, secure)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("LOCALHOST:8080", "http://localhost:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        # behind a proxy that terminates TLS and passes on either the Host header or its own name for this server
        ("airflow.example.com", "https://airflow.example.com"),
        ("airflow.example.com:443", "https://airflow.example.com"),
        ("web:8080", "https://airflow.example.com"),
        ("localhost:8080", "https://localhost:8080"),
    ],
)
def test_requests_from_the_server_s_own_pages_are_accepted(host: str, origin: str) -> None:
    assert not refused(host, URL, Origin=origin)
    assert not refused(host, URL, Origin=origin, Sec_Fetch_Site="same-origin")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:9999"),
        ("127.0.0.1:8080", "http://127.0.0.1"),
        ("127.0.0.1:8080", "http://localhost:8080"),
        ("localhost", "http://localhost:8080"),
        ("airflow.example.com", "http://airflow.example.com"),
        ("airflow.example.com", "https://airflow.example.com:8443"),
        ("airflow.example.com", "https://wiki.example.com"),
        ("airflow.example.com", "https://airflow.example.com.evil.example"),
        ("airflow.example.com", "https://airflow.example.com@evil.example"),
        ("airflow.example.com", "https://airflow.example.com, https://evil.example"),
        ("web:8080", "https://web"),
        ("web:8080", "http://airflow.example.com"),
        ("localhost:8080", "null"),
        ("localhost:8080", "file://"),
        ("localhost:8080", "chrome-extension://localhost:8080"),
        ("localhost:8080", "localhost:8080"),
        ("localhost:8080", "http://"),
    ],
)
def test_a_page_of_another_site_can_read_but_cannot_write(host: str, origin: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "QUERY", "post"):
        assert refused(host, URL, method=method, Origin=origin)
    assert refused(host, URL, Origin=origin, Sec_Fetch_Site="cross-site")
    for method in ("GET", "HEAD", "OPTIONS"):
        assert not refused(host, URL, method=method, Origin=origin)


def test_sec_fetch_site_decides_if_sent_and_origins_with_unknown_hosts_are_refused() -> None:
    for site in ("same-site", "cross-site", "same-origin, cross-site", "Same-Origin"):
        assert refused("localhost:8080", Sec_Fetch_Site=site)
        assert refused("localhost:8080", Sec_Fetch_Site=site, Origin="http://localhost:8080")
    assert refused("localhost:8080", Sec_Fetch_Site="same-origin", Origin="https://evil.example.com")
    # another name from BUSCO_WEB_HOSTS that a proxy uses, and a page that does not reveal its address
    assert not refused("web:8080", Sec_Fetch_Site="same-origin", Origin="https://airflow.example.com")
    assert not refused("web:8080", Sec_Fetch_Site="same-origin", Origin="null")


def test_requests_that_no_page_sent_are_accepted() -> None:
    assert not refused("localhost:8080")
    assert not refused("localhost:8080", Sec_Fetch_Site="none")


def test_an_http_page_is_refused_by_a_server_that_is_reached_over_https() -> None:
    assert refused("localhost:8080", secure=True, Origin="http://localhost:8080")
    assert not refused("localhost:8080", secure=True, Origin="https://localhost:8080")


def test_failed_logins_are_limited_per_user_and_address_and_less_strictly_per_user() -> None:
    failed = FailedLogins()
    for _ in range(10):
        assert not failed.too_many("1", "Boss")
        failed.count("1", "bOSS")
    assert failed.too_many("1", "boss")
    assert not failed.too_many("1", "other")
    assert not failed.too_many("2", "boss"), "a guesser does not lock the user out at other addresses"
    for number in range(90):
        failed.count(f"10.0.0.{number}", "boss")
    assert failed.too_many("2", "BOSS")
    assert not failed.too_many("2", "other")
