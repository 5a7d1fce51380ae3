"""Whose page has sent a request, and who has guessed how often."""

from __future__ import annotations

import pytest

from busco.orchestration.guard import FailedLogins, is_of_another_site

URL = "https://airflow.example.com"
HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "airflow.example.com", "web"})


def refused(asked: str, url: str = "", secure: bool = False, method: str = "POST", **said: str) -> bool:
    fields = {name.replace("_", "-"): value for name, value in said.items()}
    return is_of_another_site(method, fields, {asked}, HOSTS, url, secure)


@pytest.mark.parametrize(
    ("asked", "origin"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("LOCALHOST:8080", "http://localhost:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        # behind a proxy that ends https and passes Host on, or its own name for this server
        ("airflow.example.com", "https://airflow.example.com"),
        ("airflow.example.com:443", "https://airflow.example.com"),
        ("web:8080", "https://airflow.example.com"),
        ("localhost:8080", "https://localhost:8080"),
    ],
)
def test_a_server_s_own_page_is_answered(asked: str, origin: str) -> None:
    assert not refused(asked, URL, Origin=origin)
    assert not refused(asked, URL, Origin=origin, Sec_Fetch_Site="same-origin")


@pytest.mark.parametrize(
    ("asked", "origin"),
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
def test_another_page_is_refused_and_may_read(asked: str, origin: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "QUERY", "post"):
        assert refused(asked, URL, method=method, Origin=origin)
    assert refused(asked, URL, Origin=origin, Sec_Fetch_Site="cross-site")
    for method in ("GET", "HEAD", "OPTIONS"):
        assert not refused(asked, URL, method=method, Origin=origin)


def test_where_a_browser_says_it_the_site_decides_and_a_page_of_no_known_name_is_refused() -> None:
    for site in ("same-site", "cross-site", "same-origin, cross-site", "Same-Origin"):
        assert refused("localhost:8080", Sec_Fetch_Site=site)
        assert refused("localhost:8080", Sec_Fetch_Site=site, Origin="http://localhost:8080")
    assert refused("localhost:8080", Sec_Fetch_Site="same-origin", Origin="https://evil.example.com")
    # a proxy's other name of BUSCO_WEB_HOSTS, and a page that passes no address on
    assert not refused("web:8080", Sec_Fetch_Site="same-origin", Origin="https://airflow.example.com")
    assert not refused("web:8080", Sec_Fetch_Site="same-origin", Origin="null")


def test_what_is_no_browser_says_nothing_and_is_answered() -> None:
    assert not refused("localhost:8080")
    assert not refused("localhost:8080", Sec_Fetch_Site="none")


def test_a_plain_page_is_none_of_a_server_that_is_asked_by_https() -> None:
    assert refused("localhost:8080", secure=True, Origin="http://localhost:8080")
    assert not refused("localhost:8080", secure=True, Origin="https://localhost:8080")


def test_failures_count_by_user_and_address_and_in_a_larger_number_by_user() -> None:
    failed = FailedLogins()
    for _ in range(10):
        assert not failed.too_many("1", "Boss")
        failed.count("1", "bOSS")
    assert failed.too_many("1", "boss")
    assert not failed.too_many("1", "other")
    assert not failed.too_many("2", "boss"), "one guesser keeps nobody out"
    for number in range(90):
        failed.count(f"10.0.0.{number}", "boss")
    assert failed.too_many("2", "BOSS")
    assert not failed.too_many("2", "other")
