"""Hostile pages in a browser, password guessers and users of another DAG get nothing from Airflow."""

from __future__ import annotations

import base64
import functools
import html
import json
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from busco.embedded import airflow
from busco.embedded.airflow_api import AirflowApi, logged_in
from busco.embedded.postgres import Postgres
from busco.lake.layout import EnvironmentLayout, run_key
from busco.lake.records import DOCS_NODE
from busco.lake.runs import open_run
from busco.settings import get_settings
from tests.airflow.driver import DAG, ROOT, Driver

PATHS = ("health", "login/", "api/v1/dags", "static/pin_32.png", "cosmos/dbt_docs", "no-such-page")
OTHER = "operations"  # a DAG that builds no dbt project
NUL = "\0"
PERMISSION = """
with made as (
    insert into ab_view_menu (id, name) values (nextval('ab_view_menu_id_seq'), %(view)s) on conflict do nothing
    returning id
)
insert into ab_permission_view (id, permission_id, view_menu_id)
select nextval('ab_permission_view_id_seq'), p.id, made.id from ab_permission p, made where p.name = 'can_read'
"""


@pytest.fixture(scope="module")
def url(driver: Driver) -> str:
    """Returns Airflow's address, after the project's docs were published and the users were created."""
    live = driver.live()
    if live is None or "busco" not in live.all_docs:
        driver.green(driver.start())
    api, base = driver.api.session, driver.api.base
    of_all = ("Website", "DAG Runs", "Task Instances", f"DAG:{OTHER}")
    actions = [{"action": {"name": "can_read"}, "resource": {"name": name}} for name in of_all]
    # as `airflow sync-perm --include-dags` creates it
    with closing(Postgres(get_settings().state).connect()) as database, database, database.cursor() as cursor:
        cursor.execute(PERMISSION, {"view": f"DAG:{OTHER}"})
    made = api.post(f"{base}/auth/fab/v1/roles", json={"name": "Other", "actions": actions}, timeout=60)
    assert made.status_code in (200, 409), made.text
    for name, role in (("other", "Other"), ("watcher", "Viewer"), ("guessed", "Viewer")):
        user = {"username": name, "password": name, "first_name": "x", "last_name": "x", "email": f"{name}@e.com"}
        response = api.post(f"{base}/auth/fab/v1/users", json={**user, "roles": [{"name": role}]}, timeout=60)
        assert response.status_code in (200, 409), response.text
    return airflow.url(get_settings())


@pytest.fixture(scope="module")
def browsers(url: str) -> Callable[[str], requests.Session]:
    """Returns a function that returns a user's session. Each logs in only once, because Airflow limits logins."""
    return functools.cache(lambda user: logged_in(url, user, user))


def get(url: str, path: str, **more: Any) -> requests.Response:
    session = requests.Session()
    session.trust_env = False
    return session.get(f"{url}/{path}", timeout=60, allow_redirects=False, **more)


# -- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example.com", "evil.example.com:{port}", "127.0.0.1.evil.example.com", "localhost.evil.example.com",
     "evil@127.0.0.1", "0x7f000001", "", "169.254.169.254"],
)  # fmt: skip
def test_a_host_name_that_was_rebound_to_this_machine_is_refused_everywhere(url: str, host: str) -> None:
    headers = {"Host": host.format(port=urlsplit(url).port), "X-Forwarded-Host": "localhost"}
    for path in PATHS:
        answer = get(url, path, headers=headers, auth=("admin", "admin"))
        assert answer.status_code in (400, 403), path
        assert "BUSCO_WEB_HOSTS" in answer.text or answer.status_code == 400, path


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1", "127.0.0.1:{port}", "[::1]:{port}"])
def test_this_machine_s_own_names_are_accepted(url: str, host: str) -> None:
    assert get(url, "health", headers={"Host": host.format(port=urlsplit(url).port)}).status_code == 200


# -- passwords --------------------------------------------------------------------------------------------------------


def test_ten_wrong_passwords_lock_out_that_user_but_no_other_user(url: str) -> None:
    for _ in range(15):
        assert get(url, "api/v1/dags", auth=("watcher", "watcher")).status_code == 200, (
            "successful logins are not counted"
        )
    tried = [get(url, "api/v1/dags", auth=("guessed", f"wrong {number}")).status_code for number in range(12)]
    assert tried == [401] * 10 + [429] * 2
    answer = get(url, "api/v1/dags", auth=("guessed", "guessed"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
    assert get(url, "api/v1/dags", auth=("watcher", "watcher")).status_code == 200


def test_the_admin_s_password_is_that_of_the_latest_start(
    url: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        monkeypatch.setenv("AIRFLOW_ADMIN_PASSWORD", "another one")
        airflow.up(get_settings(), lambda _: None)
        assert get(url, "api/v1/dags", auth=("admin", "another one")).status_code == 200
        assert get(url, "api/v1/dags", auth=("admin", "admin")).status_code == 401
        assert AirflowApi(get_settings()).call("GET", "dags")["total_entries"], "the command uses the new one too"
    finally:
        monkeypatch.delenv("AIRFLOW_ADMIN_PASSWORD")
        airflow.up(get_settings(), lambda _: None)
        # a new password ends the sessions that were opened with the old one
        driver.browsers.clear()
    assert get(url, "api/v1/dags", auth=("admin", "admin")).status_code == 200


# -- docs -------------------------------------------------------------------------------------------------------------


def test_every_page_with_docs_is_sandboxed_and_none_is_in_airflow_s_origin(
    url: str, browsers: Callable[[str], requests.Session]
) -> None:
    browser = browsers("watcher")
    mine = f"/busco/dbt_docs_page?dag_id={DAG}&project=busco"
    pages = {mine}
    # Cosmos's own page, which would have the docs in Airflow's origin, leads to the platform's page
    for path in ("dbt_docs", "dbt_docs_index.html", "manifest.json", "catalog.json", "dbt_docs_index.html?x=1", ""):
        answer = browser.get(f"{url}/cosmos/{path}", timeout=60)
        assert urlsplit(answer.url).path == "/busco/docs", path
        assert "model.busco" not in answer.text, path
        # the docs of a single project are shown in a frame; several projects are linked
        frames = re.findall(r"<iframe[^>]*>", answer.text)
        assert all('sandbox="allow-scripts allow-popups allow-downloads"' in frame for frame in frames), path
        linked = {html.unescape(found) for found in re.findall(r'"(/busco/dbt_docs_page[^"]*)"', answer.text)}
        assert mine in linked, path
        assert bool(frames) == (len(linked) == 1), path
        pages |= linked
    for path in sorted(pages):
        page = browser.get(f"{url}{path}", timeout=60)
        assert page.status_code == 200, path
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        sandbox = page.headers["Content-Security-Policy"].split(";")[0].split()
        assert sandbox[0] == "sandbox"
        assert not {"allow-same-origin", "allow-forms", "allow-top-navigation"} & set(sandbox)


def test_a_user_of_another_dag_cannot_read_the_docs_of_any_project(
    url: str, browsers: Callable[[str], requests.Session]
) -> None:
    browser = browsers("other")
    for dag, expected in ((OTHER, 404), (DAG, 302)):
        page = browser.get(f"{url}/busco/dbt_docs_page?dag_id={dag}&project=busco", timeout=60, allow_redirects=False)
        assert page.status_code == expected, dag
        assert "model.busco" not in page.text
    for path in ("busco/docs", "cosmos/dbt_docs_index.html", "cosmos/manifest.json"):
        page = browser.get(f"{url}/{path}", timeout=60)
        assert page.status_code == 200
        assert "No docs are available" in page.text
        assert "dbt_docs_page" not in page.text
    # a user who can read the project's DAG gets the link
    assert f"dag_id={DAG}&amp;project=busco" in browsers("watcher").get(f"{url}/busco/docs").text


# -- the site ---------------------------------------------------------------------------------------------------------


def docs_log(driver: Driver) -> str:
    """Returns what the runner of the live release's docs reported, which says why there are no pages."""
    live = driver.live()
    assert live is not None
    run = open_run(driver.store, EnvironmentLayout("prod"), live.run)
    return "\n".join([live.docs, *(run.log(DOCS_NODE, one.number) for one in run.runners())])


def test_the_site_s_data_comes_with_a_login_and_its_pages_contain_none(
    url: str, browsers: Callable[[str], requests.Session], driver: Driver
) -> None:
    browser = browsers("watcher")
    for path in ("catalog/", "catalog/gold/fct", "catalog/releases?release=x"):
        shell, frame = browser.get(f"{url}/{path}", timeout=60), browser.get(f"{url}/catalog/_frame", timeout=60)
        assert (shell.status_code, frame.status_code) == (200, 200)
        assert "gold.fct" not in shell.text + frame.text
        policy = frame.headers["Content-Security-Policy"]
        sandbox, *rules = [rule.strip() for rule in policy.split(";")]
        assert sandbox.split()[0] == "sandbox"
        assert not {"allow-same-origin", "allow-forms", "allow-top-navigation"} & set(sandbox.split())
        assert {"default-src 'none'", "connect-src 'none'"} <= set(rules)
        assert "unsafe" not in policy + shell.headers["Content-Security-Policy"]
    state = browser.get(f"{url}/catalog/_data/state", timeout=60).json()
    assert state["tables"]["gold.fct"]["rows"] > 0
    about = state["projects"]["busco"]
    assert about["has_site"], docs_log(driver)
    assert f"dag_id={DAG}" in about["dbt_docs"]
    task = about["tasks"]["gold.fct"]
    assert browser.get(f"{url}{task}", timeout=60).status_code == 200
    assert parse_qs(urlsplit(task).query)["task_id"] == ["models.fct.run"], "the task that builds it, not its tests'"
    index = browser.get(f"{url}/catalog/_data/site?project=busco", timeout=60).json()
    assert index["tables"]["gold.fct"]["tests"]
    table = browser.get(f"{url}/catalog/_data/table?project=busco&table=gold.fct", timeout=60).json()
    assert table["version"] == state["tables"]["gold.fct"]["version"]
    assert browser.get(f"{url}/catalog/_data/history", timeout=60).json()["releases"][0]["release"] == state["release"]
    assert browser.get(f"{url}/catalog/catalog.json", timeout=60).json()["tables"].keys() == state["tables"].keys()


def test_a_link_to_a_column_leads_through_the_login_to_that_column(
    url: str, browsers: Callable[[str], requests.Session]
) -> None:
    done = subprocess.run(
        [ROOT / ".venv-dbt/bin/python", "-m", "tests.airflow.site_in_a_browser", url, "watcher", "watcher"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if "Chromium is not installed" in done.stderr:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown.pop("docs").startswith(f"{url}/busco/dbt_docs_page?")
    task = parse_qs(urlsplit(shown.pop("task")).query)
    history = browsers("watcher").get(f"{url}/catalog/_data/history", timeout=60).json()
    made = next(release for release in history["releases"] if "gold.fct" in release["changes"])
    assert task["task_id"] == ["models.fct.run"]
    assert [run_key(DAG, run) for run in task["dag_run_id"]] == [made["run"]]
    assert shown == {
        "landed": f"{url}/catalog/gold/fct#amount", "found": f"{url}/catalog/silver/orders",
        "title": "silver.orders · Data catalog", "menu": f"{url}/catalog/", "problems": [],
    }  # fmt: skip


def test_a_look_for_a_new_state_costs_nothing_until_there_is_one(
    url: str, browsers: Callable[[str], requests.Session], driver: Driver
) -> None:
    address = f"{url}/catalog/_data/state"
    first = browsers("watcher").get(address, timeout=60)
    etag = first.headers["ETag"]
    again = browsers("watcher").get(address, headers={"If-None-Match": etag}, timeout=60)
    assert (again.status_code, again.content) == (304, b"")
    other = browsers("other").get(address, headers={"If-None-Match": etag}, timeout=60)
    assert other.status_code == 200, "somebody else's state is another one"
    live = driver.live()
    assert live is not None
    driver.busco("release", "rollback", live.release, "--reason", "the site shows it")
    try:
        changed = browsers("watcher").get(address, headers={"If-None-Match": etag}, timeout=60)
        assert (changed.status_code, changed.json()["hold"]["reason"]) == (200, "the site shows it")
    finally:
        driver.busco("release", "resume")


def test_the_site_has_nothing_for_a_user_of_another_dag(url: str, browsers: Callable[[str], requests.Session]) -> None:
    browser = browsers("other")
    assert browser.get(f"{url}/catalog/gold/fct", timeout=60).status_code == 200, "the shell is the same for all"
    for path in ("state", "history"):
        answer = browser.get(f"{url}/catalog/_data/{path}", timeout=60)
        assert answer.status_code == 200
        assert "gold.fct" not in answer.text, path
    assert browser.get(f"{url}/catalog/_data/state", timeout=60).json()["tables"] == {}
    assert browser.get(f"{url}/catalog/catalog.json", timeout=60).json()["tables"] == {}
    for path in ("site?project=busco", "table?project=busco&table=gold.fct", "site?project=", "nothing"):
        answer = browser.get(f"{url}/catalog/_data/{path}", timeout=60)
        assert answer.status_code == 404, path
        assert "columns" not in answer.text, path


def test_addresses_below_docs_lead_to_the_site(url: str) -> None:
    for path, target in (
        ("docs", "/catalog/"), ("docs/", "/catalog/"), ("docs/gold/fct?release=x", "/catalog/gold/fct?release=x"),
        ("docs//example.com", "/catalog//example.com"),
        ("docs/?release=%ff", "/catalog/?release=%FF"), ("docs/a%0d%0ab", "/catalog/a%0D%0Ab"),
    ):  # fmt: skip
        answer = get(url, path)
        assert (answer.status_code, answer.headers["Location"]) == (302, target), path


def test_a_visitor_is_led_to_the_login_and_gets_nothing_of_the_site(url: str) -> None:
    for path in ("catalog/", "catalog/gold/fct"):
        answer = get(url, path)
        assert answer.status_code == 401
        assert "/login/?next=" in answer.text
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
    for path in ("catalog/_frame", "catalog/_data/state", "catalog/_data/site?project=busco", "catalog/catalog.json"):
        answer = get(url, path)
        assert (answer.status_code, "/login/" in answer.headers["Location"]) == (302, True), path


# -- text that no database accepts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"dag_run_id": f"a{NUL}b"}, "NUL"),
        ({"dag_run_id": "a" * 200_000}, "250"),
        ({"dag_run_id": "a" * 251}, "250"),
        ({"dag_run_id": "a b"}, "does not match"),
        ({"conf": {"select": f"fct{NUL}"}}, "NUL"),
        ({"conf": {"select": "f" * 200_000}}, "too long"),
        ({"conf": {"select": "fct\x1b[2J"}}, "does not match"),
        ({"conf": {f"select{NUL}": "fct"}}, "NUL"),
        ({"note": f"x{NUL}"}, "NUL"),
    ],
)
def test_a_run_with_text_that_no_database_accepts_is_refused_with_the_reason(
    url: str, driver: Driver, body: dict[str, Any], says: str
) -> None:
    before = driver.api.call("GET", f"dags/{DAG}/dagRuns")["total_entries"]
    answer = driver.api.session.post(f"{url}/api/v1/dags/{DAG}/dagRuns", json=body, timeout=60)
    assert answer.status_code == 400, answer.text[:500]
    assert says in answer.json()["detail"]
    assert len(answer.text) < 5000 or "too long" in says
    assert driver.api.call("GET", f"dags/{DAG}/dagRuns")["total_entries"] == before


@pytest.mark.parametrize(
    "path",
    [f"api/v1/dags/{DAG}%00/dagRuns", f"api/v1/dags/{DAG}/dagRuns/a%00b", f"dags/{DAG}/grid?dag_run_id=a%00b",
     f"dags/{DAG}/grid?dag_run_id={'a' * 300}", f"busco/log_stream?dag_id={DAG}&task_id=docs&dag_run_id=%00"],
)  # fmt: skip
def test_an_address_with_such_text_is_refused(url: str, path: str, browsers: Callable[[str], requests.Session]) -> None:
    browser = browsers("admin") if not path.startswith("api") else None
    answer = browser.get(f"{url}/{path}", timeout=60) if browser else get(url, path, auth=("admin", "admin"))
    assert answer.status_code == 400


def test_the_form_refuses_such_text_too(url: str, browsers: Callable[[str], requests.Session]) -> None:
    browser = browsers("admin")
    form = browser.get(f"{url}/dags/{DAG}/trigger", timeout=60).text
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', form)
    assert token
    for more, status in (({"run_id": f"a{NUL}"}, 400), ({"run_id": "a" * 200_000}, 400), ({"conf": NUL}, 400)):
        sent = {"csrf_token": token[1], "conf": "{}", **more}
        assert browser.post(f"{url}/dags/{DAG}/trigger", data=sent, timeout=60).status_code == status, list(more)
    # an invalid parameter is reported on the form, and no run starts
    for conf in ('{"select": "a\\u0000"}', f'{{"select": "{"f" * 5000}"}}'):
        sent = {"csrf_token": token[1], "conf": conf}
        response = browser.post(f"{url}/dags/{DAG}/trigger", data=sent, timeout=60, allow_redirects=False)
        assert response.status_code == 200
        assert "select" in response.text
        assert "Invalid input" in response.text


def test_malformed_credentials_and_a_malformed_body_are_refused(url: str) -> None:
    nul = base64.b64encode(f"ad{NUL}min:x".encode()).decode()
    assert get(url, "api/v1/dags", headers={"Authorization": f"Basic {nul}"}).status_code == 400
    deep = "[" * 200_000
    answer = requests.post(
        f"{url}/api/v1/dags/{DAG}/dagRuns", data=deep, headers={"Content-Type": "application/json"},
        auth=("admin", "admin"), timeout=60,
    )  # fmt: skip
    assert answer.status_code == 400
