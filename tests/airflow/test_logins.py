"""Who can log in, and with which roles: with a password, and through an OpenID Connect provider."""

from __future__ import annotations

import configparser
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from flask import Flask

from busco.errors import BuscoError
from busco.orchestration.oidc import user_info
from busco.settings import get_settings
from tests.airflow.oidc_provider import CLIENT, SECRET, Provider
from tests.loopback import serving

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "src/busco/orchestration/webserver_config.py"
ROLES = {"data-oncall": ["OnCall"], "data-admins": ["Admin"]}
# A webserver on SQLite, with the roles that the platform's setup creates.
SERVER = """
import sys
from airflow.utils import db
db.initdb()
from airflow.www.app import create_app
from werkzeug.serving import make_server
from busco.orchestration import access
app = create_app()
with app.app_context():
    manager = app.appbuilder.sm
    access.keep_roles(manager)
    manager.add_user("old", "o", "o", "o@example.com", manager.find_role("Admin"), password="admin")
    manager.add_user("local", "l", "l", "l@example.com", manager.find_role("Admin"), password="known")
make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True).serve_forever()
"""
OF_A_ROLE = """
select p.name || ' ' || v.name from ab_role r join ab_permission_view_role x on x.role_id = r.id
join ab_permission_view pv on pv.id = x.permission_view_id join ab_permission p on p.id = pv.permission_id
join ab_view_menu v on v.id = pv.view_menu_id where r.name = ?
"""
OF_A_PERSON = """
select r.name from ab_user u join ab_user_role x on x.user_id = u.id join ab_role r on r.id = x.role_id
where u.username = ?
"""


@dataclass
class Web:
    url: str
    provider: Provider
    home: Path

    def log_in(self) -> requests.Session:
        """Returns a session of the person that the provider currently authenticates."""
        browser = requests.Session()
        browser.trust_env = False
        answer = browser.get(f"{self.url}/login/OpenID", timeout=60)
        assert answer.status_code == 200, answer.text
        return browser

    def query(self, statement: str, *values: str) -> set[str]:
        """Returns the first column of a query's result from Airflow's database."""
        with closing(sqlite3.connect(f"file:{self.home}/airflow.db?mode=ro", uri=True)) as database:
            return {row[0] for row in database.execute(statement, values)}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with webserver(tmp_path_factory.mktemp("logins")) as made:
        yield made


@contextmanager
def webserver(home: Path, **variables: str) -> Iterator[Web]:
    """A webserver with its own identity provider; it is started as in its image."""
    provider = Provider()
    with serving(provider.handler()) as url, socket.socket() as free:
        provider.url = url
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
        own = {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
            "AIRFLOW__WEBSERVER__CONFIG_FILE": str(CONFIG),
            "AIRFLOW__WEBSERVER__BASE_URL": f"http://127.0.0.1:{port}",
            "AIRFLOW_CONFIG": str(ROOT / "config/airflow.cfg"),
            "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW_LOGIN": "oauth",
            "OAUTH_ISSUER": url,
            "OAUTH_CLIENT_ID": CLIENT,
            "OAUTH_CLIENT_SECRET": SECRET,
            "OAUTH_ROLES": json.dumps(ROLES),
            # the commands that the entrypoint calls are this environment's
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "PYTHONWARNINGS": "ignore",
        }
        command = [ROOT / "scripts/entrypoint.sh", "python", "-c", SERVER, str(port)]
        with (home / "web.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env={**kept, **own, **variables}, stdout=log, stderr=log)
        made = Web(f"http://127.0.0.1:{port}", provider, home)
        try:
            _wait(made.url, process, home / "web.log")
            yield made
        finally:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline, pause = time.monotonic() + 120, threading.Event()
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if requests.get(f"{url}/health", timeout=60, proxies={"no_proxy": "*"}).ok:
                return
        except requests.ConnectionError:
            pause.wait(0.3)
    raise AssertionError(log.read_text()[-3000:])


def person(name: str, *groups: str) -> dict[str, Any]:
    return {"sub": name, "name": f"{name} Silva", "email": f"{name}@example.com", "groups": list(groups)}


def test_each_login_sets_a_person_s_roles_from_the_groups_at_the_provider(web: Web) -> None:
    web.provider.person = person("ana", "data-oncall", "something-else")
    browser = web.log_in()
    assert web.query(OF_A_PERSON, "ana") == {"OnCall", "Public"}
    assert browser.get(f"{web.url}/api/v1/connections", timeout=60).status_code == 403
    # she has moved to another team
    web.provider.person = person("ana", "data-admins")
    browser = web.log_in()
    assert web.query(OF_A_PERSON, "ana") == {"Admin", "Public"}
    assert browser.get(f"{web.url}/api/v1/connections", timeout=60).status_code == 200


def test_a_link_to_a_column_leads_through_the_provider_to_that_column(web: Web) -> None:
    web.provider.person = person("ana", "data-oncall")
    done = subprocess.run(
        [ROOT / ".venv-dbt/bin/python", "-m", "tests.airflow.oauth_in_a_browser", web.url],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if "Chromium is not installed" in done.stderr:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "landed": f"{web.url}/catalog/gold/fct_orders#is_late",
        "title": "gold.fct_orders · Data catalog",
        "visited": [
            f"{web.url}/docs/gold/fct_orders", f"{web.url}/catalog/gold/fct_orders",
            f"{web.url}/login/", f"{web.url}/login/OpenID", f"{web.provider.url}/authorize",
            f"{web.url}/oauth-authorized/OpenID", f"{web.url}/catalog/gold/fct_orders",
        ],
    }  # fmt: skip


@pytest.mark.slow
def test_people_in_none_of_our_groups_cannot_log_in_unless_the_settings_allow_it(web: Web, tmp_path: Path) -> None:
    web.provider.person = person("rui", "something-else")
    browser = web.log_in()
    assert web.query(OF_A_PERSON, "rui") == set(), "no account is created"
    assert "/login" in browser.get(f"{web.url}/home", timeout=60).url
    assert browser.get(f"{web.url}/api/v1/dags", timeout=60).status_code == 401
    # someone who was in a group and is in none any more
    web.provider.person = person("eva", "data-admins")
    assert web.log_in().get(f"{web.url}/api/v1/dags", timeout=60).status_code == 200
    web.provider.person = person("eva")
    assert web.log_in().get(f"{web.url}/api/v1/dags", timeout=60).status_code == 401
    with webserver(tmp_path, OAUTH_DEFAULT_ROLE="Viewer", OAUTH_ROLES="") as open_to_all:
        open_to_all.provider.person = person("rui")
        browser = open_to_all.log_in()
        assert open_to_all.query(OF_A_PERSON, "rui") == {"Viewer"}
        assert browser.get(f"{open_to_all.url}/api/v1/dags", timeout=60).status_code == 200
        assert browser.get(f"{open_to_all.url}/api/v1/connections", timeout=60).status_code == 403


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AIRFLOW_LOGIN": "oauht"}, "AIRFLOW_LOGIN is 'oauht'"),
        ({"AIRFLOW_LOGIN": "OAuth"}, "AIRFLOW_LOGIN is 'OAuth'"),
        ({"AIRFLOW_LOGIN": "oauth"}, "nobody could log in"),
        ({"BUSCO_PLATFORM": "aws", "AIRFLOW_ADMIN_PASSWORD": "admin"}, "AIRFLOW_ADMIN_PASSWORD is a well-known"),
    ],
)
def test_a_webserver_does_not_start_with_an_invalid_or_unsafe_login_configuration(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AIRFLOW_LOGIN", "OAUTH_ROLES", "OAUTH_DEFAULT_ROLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    app = Flask(__name__)
    # as Airflow reads it (2.10.5, airflow/www/app.py): with silent, a missing file is not an error
    with app.app_context(), pytest.raises(BuscoError, match=says):
        app.config.from_pyfile(str(CONFIG), silent=True)
    get_settings.cache_clear()


def test_setup_on_aws_refuses_a_well_known_password_even_one_from_an_earlier_start(web: Web) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    own = {
        **kept,
        "AIRFLOW_HOME": str(web.home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{web.home}/airflow.db",
        "BUSCO_PLATFORM": "aws",
        "AIRFLOW_ADMIN_USERNAME": "old",
        "PYTHONWARNINGS": "ignore",
    }
    for more, expected in (
        ({"AIRFLOW_ADMIN_PASSWORD": "admin"}, "AIRFLOW_ADMIN_PASSWORD"),
        ({}, "the password of Airflow's user old"),
        ({"AIRFLOW_LOGIN": "pasword"}, "AIRFLOW_LOGIN is 'pasword'"),
    ):
        command = [sys.executable, "-m", "busco.orchestration.access"]
        done = subprocess.run(
            command, env={**own, **more}, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 1, expected
        assert expected in done.stderr.splitlines()[-2], done.stderr[-2000:]


def test_the_image_s_configuration_names_an_existing_file() -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "config/airflow.cfg")
    # Dockerfile.airflow: the package is installed in /opt/busco/lib
    assert config["webserver"]["config_file"] == f"/opt/busco/lib/{CONFIG.relative_to(ROOT / 'src')}"
    assert CONFIG.is_file()


def test_a_token_of_another_issuer_lets_nobody_in(web: Web) -> None:
    web.provider.person = {**person("eve", "data-admins"), "iss": "https://elsewhere.example.com"}
    browser = web.log_in()
    assert web.query(OF_A_PERSON, "eve") == set()
    assert "/login" in browser.get(f"{web.url}/home", timeout=60).url


def test_the_api_accepts_no_password_if_people_log_in_through_a_provider(web: Web) -> None:
    anybody = requests.Session()
    anybody.trust_env = False
    anybody.auth = ("local", "known")
    assert anybody.get(f"{web.url}/api/v1/connections", timeout=60).status_code == 401


@pytest.mark.slow
def test_behind_a_proxy_cookies_require_https_and_addresses_are_the_proxy_s(web: Web, tmp_path: Path) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "airflow.example.com"}

    def start_login(url: str) -> tuple[str, str]:
        """Returns the session cookie and the address to which the provider is asked to redirect the person."""
        browser = requests.Session()
        browser.trust_env = False
        answer = browser.get(f"{url}/login/OpenID", headers=forwarded, allow_redirects=False, timeout=60)
        return answer.headers["Set-Cookie"], parse_qs(urlsplit(answer.headers["Location"]).query)["redirect_uri"][0]

    known_as = "https://airflow.example.com"
    with webserver(tmp_path, AIRFLOW_BEHIND_PROXY="true", AIRFLOW__WEBSERVER__BASE_URL=known_as) as proxied:
        cookie, back = start_login(proxied.url)
        for name in ("Host", "X-Forwarded-Host"):
            other = requests.get(f"{proxied.url}/health", headers={**forwarded, name: "evil.example.com"}, timeout=60)
            assert other.status_code == 403, name
        # what a browser sends for a page if nobody is logged in
        for origin, status in (
            (known_as, 401), (known_as.replace("https", "http"), 403), ("https://wiki.example.com", 403),
        ):  # fmt: skip
            answer = requests.post(
                f"{proxied.url}/api/v1/dags/x/dagRuns", headers={**forwarded, "Origin": origin}, json={}, timeout=60
            )
            assert answer.status_code == status, origin
    assert all(word in cookie for word in ("Secure", "HttpOnly", "SameSite=Lax"))
    assert back == "https://airflow.example.com/oauth-authorized/OpenID"
    # a webserver that is not behind a proxy ignores these headers
    cookie, back = start_login(web.url)
    assert "Secure" not in cookie
    assert back == f"{web.url}/oauth-authorized/OpenID"


def test_on_call_can_pause_trigger_clear_and_mark_and_stock_roles_are_unchanged(web: Web) -> None:
    from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride as Stock
    from airflow.security import permissions

    on_call = web.query(OF_A_ROLE, "OnCall")
    assert on_call - web.query(OF_A_ROLE, "Viewer") == {
        "can_edit DAGs", "can_create DAG Runs", "can_edit DAG Runs", "can_edit Task Instances",
        "menu_access New objects",
    }  # fmt: skip
    assert not [permission for permission in on_call if permission.startswith("can_delete ")]
    for resource in (permissions.RESOURCE_CONNECTION, permissions.RESOURCE_VARIABLE, permissions.RESOURCE_POOL):
        assert not [
            permission
            for permission in on_call
            if permission.split(" ", 1)[1] == resource and not permission.startswith("can_read ")
        ]
    for config in Stock.ROLE_CONFIGS:
        stock = {f"{action} {resource}" for action, resource in config["perms"]}
        if config["role"] not in ("Public", "Admin"):
            # everybody who can read DAGs can read the site about their tables
            stock.add("menu_access Data catalog")
        # an admin also has the pages of Flask-AppBuilder
        found = web.query(OF_A_ROLE, config["role"])
        assert found >= stock if config["role"] == "Admin" else found == stock, config["role"]


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (
            {"sub": "1", "given_name": "Ana", "family_name": "Silva", "email": "a@x", "groups": ["g"]},
            {"username": "1", "first_name": "Ana", "last_name": "Silva", "email": "a@x", "role_keys": ["g"]},
        ),
        (
            {"sub": "2", "name": "Rui de Sá", "groups": "g"},
            {"username": "2", "first_name": "Rui", "last_name": "de Sá", "email": "2", "role_keys": ["g"]},
        ),
        ({"sub": "3"}, {"username": "3", "first_name": "3", "last_name": "", "email": "3", "role_keys": []}),
    ],
)
def test_the_user_name_is_the_claim_that_never_changes(claims: dict[str, Any], expected: dict[str, Any]) -> None:
    assert user_info(claims, "groups") == expected
