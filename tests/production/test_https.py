"""HTTPS in production: the certificate, redirects, headers, limits, and what can be reached from outside."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from tests.production.stack import DOMAIN, Production

FORGED = [
    "--header", "X-Forwarded-For: 203.0.113.7", "--header", "X-Forwarded-Host: evil.example",
    "--header", "X-Forwarded-Proto: http", "--header", "X-Forwarded-Prefix: /evil",
    "--header", "Forwarded: for=203.0.113.7",
]  # fmt: skip


def test_the_first_certificate_comes_from_the_authority_without_any_further_step(stack: Production) -> None:
    stack.wait(lambda: "Pebble" in stack.certificate().issuer.rfc4514_string(), 60)
    log = stack.compose("logs", "nginx-proxy")
    assert "serving a self-signed certificate" in log
    assert "switched to the certificate" in log


def test_http_redirects_to_https_except_for_the_challenge(stack: Production) -> None:
    answer = stack.get("/dags?x=1", scheme="http")
    assert answer.status == 301
    assert answer.headers["location"] == f"https://{DOMAIN}/dags?x=1"
    challenge = stack.get("/.well-known/acme-challenge/unknown", scheme="http")
    assert challenge.status == 404


def test_other_host_names_and_addresses_get_no_answer(stack: Production) -> None:
    assert stack.get("/", scheme="http", host="evil.example").status == 0
    assert stack.get("/", host="evil.example").status == 0


def test_a_login_page_has_security_headers_and_secure_cookies(stack: Production) -> None:
    answer = stack.get("/login/")
    assert answer.status == 200
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"].upper() in ("DENY", "SAMEORIGIN")
    assert "server" not in answer.headers or not re.search(r"\d", answer.headers["server"])
    cookie = answer.headers["set-cookie"]
    assert "secure" in cookie
    assert "httponly" in cookie


def test_forged_headers_have_no_effect(stack: Production) -> None:
    for path in ("/", "/home", "/flower", "/docs"):
        answer = stack.get(path, *FORGED)
        location = answer.headers.get("location", f"https://{DOMAIN}/")
        assert location.startswith((f"https://{DOMAIN}/", "/")), (path, location)
        assert "evil" not in location


def test_airflow_logs_the_client_s_real_address(stack: Production) -> None:
    stack.get("/health", *FORGED)
    log = stack.compose("logs", "--tail", "50", "nginx-proxy", "airflow-webserver")
    assert "203.0.113.7" not in log


def test_flower_and_its_metrics_need_a_login(stack: Production) -> None:
    user, password = stack.value("AIRFLOW_ADMIN_USERNAME"), stack.value("AIRFLOW_ADMIN_PASSWORD")
    assert stack.get("/flower").headers["location"] == f"https://{DOMAIN}/flower/"
    for path in ("/flower/", "/flower/metrics", "/flower/api/workers", "/flower/tasks"):
        assert stack.get(path).status == 401, path
        assert stack.get(path, "--user", "admin:admin").status == 401, path
    page = stack.get("/flower/workers", "--user", f"{user}:{password}")
    assert page.status == 200
    assert "celery@" in page.body
    assert "# HELP" in stack.get("/flower/metrics", "--user", f"{user}:{password}").body


def test_the_known_password_does_not_log_in(stack: Production) -> None:
    assert stack.get("/api/v1/dags", "--user", "admin:admin").status == 401
    assert stack.get("/api/v1/dags").status in (401, 403)
    assert stack.api("GET", "api/v1/dags")["total_entries"] > 0


def test_the_docs_need_airflow_s_login(stack: Production) -> None:
    for path in ("/catalog/", "/catalog/gold/fct_orders"):
        answer = stack.get(path)
        assert answer.status == 401
        assert "/login/" in answer.body
        assert "fct_orders" not in answer.body.replace("%2Fcatalog%2Fgold%2Ffct_orders", "")
    for path in ("/docs/", "/catalog/_frame", "/catalog/_data/state", "/catalog/catalog.json"):
        assert stack.get(path).status == 302, path
    assert stack.get("/docs").headers["location"] in ("/catalog/", f"https://{DOMAIN}/catalog/")


def test_logins_are_limited(stack: Production) -> None:
    def attempt(number: int) -> int:
        return stack.get("/login/", "--request", "POST", "--data", f"username=x{number}&password=y").status

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(attempt, range(30)))
    assert statuses.count(429) >= 15
    assert stack.get("/login/").status == 200, "the page itself is not limited"


def test_only_http_and_https_answer_from_another_container(stack: Production) -> None:
    """Scans all published ports of this machine that belong to the stack's containers."""
    published = stack.call(
        "docker", "ps", "--filter", f"label=com.docker.compose.project={stack.project}", "--format",
        '{{.Label "com.docker.compose.service"}} {{.Ports}}',
    )  # fmt: skip
    services = {line.split(" ", 1)[0] for line in published.splitlines() if "->" in line}
    # local-aws stands in for AWS, and is no part of the stack
    assert services - {"local-aws"} == {"nginx-proxy"}


def test_a_renewal_switches_the_certificate_and_fails_no_request(stack: Production) -> None:
    stack.wait(lambda: "Pebble" in stack.certificate().issuer.rfc4514_string(), 60)
    before = stack.certificate().serial_number
    with ThreadPoolExecutor(2) as pool:
        renewing = pool.submit(stack.compose, "run", "--rm", "--no-deps", "letsencrypt", "renew", "--force")
        statuses = []
        while not renewing.done() or stack.certificate().serial_number == before:
            statuses.append(stack.get("/-/proxy").status)
            assert len(statuses) < 2000, renewing.result()
    assert set(statuses) == {200}
    assert len(statuses) > 10
    # right after a reload, an old worker of nginx can still accept a connection
    stack.wait(lambda: all(stack.certificate().serial_number != before for _ in range(5)), 30)


def test_ten_restarts_request_nothing(stack: Production) -> None:
    before = stack.certificate().serial_number
    requested = stack.compose("logs", "pebble").count("POST /order-plz")
    for number in range(1, 11):
        stack.compose("restart", "--timeout", "5", "letsencrypt")
        stack.wait(lambda: stack.compose("logs", "letsencrypt").count("there is a certificate") >= number)  # noqa: B023
    assert stack.compose("logs", "pebble").count("POST /order-plz") == requested > 0
    assert stack.certificate().serial_number == before


def test_a_wrong_address_stops_before_any_request(stack: Production) -> None:
    """The name of another server, which answers differently."""
    done = stack.failing(
        "run", "--rm", "--no-deps", "--env", "BUSCO_DOMAIN=airflow-webserver", "--env", "LETSENCRYPT_HTTP_PORT=8080",
        "--env", "LETSENCRYPT_WAIT=3", "letsencrypt", "renew",
    )  # fmt: skip
    assert "the A record of airflow-webserver is" in done
    assert "another server answers there" in done
    assert "Nothing was requested" in done


def test_nginx_answers_while_airflow_is_down_and_finds_it_again(stack: Production) -> None:
    stack.compose("rm", "--stop", "--force", "airflow-webserver")
    answer = stack.get("/home")
    assert answer.status == 502
    assert "Airflow is starting" in answer.body
    assert answer.headers["retry-after"] == "10"
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert answer.headers["x-content-type-options"] == "nosniff"
    stack.compose("up", "--detach", "--wait", "--no-deps", "airflow-webserver")
    stack.wait(lambda: stack.get("/login/").status == 200, 30)
