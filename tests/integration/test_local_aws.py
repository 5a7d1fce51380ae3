"""The local AWS's process and its CloudFormation, tested on a separate server."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cfnlint.decode.cfn_yaml
import iceberg_helper
import psutil
import pytest
from own_aws import ROOT, Server, quiet, settings_of, started

from busco.embedded import athena_iceberg, aws, processes, stacks
from busco.errors import BuscoError
from busco.lake.engine import extension_file

LAKE_TEMPLATE = stacks.TEMPLATES[stacks.LAKE]
BUCKETS = ("BUSCO_LAKE_BUCKET", "BUSCO_LANDING_BUCKET", "BUSCO_LOGS_BUCKET")
NOWHERE = "http://127.0.0.1:9"
"""A proxy address on which nothing listens (port 9 is `discard`), so that every request through it fails."""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder; if a test starts a local AWS there, it is stopped after the test."""
    yield tmp_path / "state"
    processes.stop((tmp_path / "state").resolve(), aws.NAME)
    processes.release_port((tmp_path / "state").resolve(), aws.NAME)


@pytest.fixture
def lake(server: Server) -> str:
    return os.environ["BUSCO_LAKE_BUCKET"]


def test_another_lake_is_served_at_the_same_address_and_the_first_one_is_kept(state: Path) -> None:
    first = started(state)
    bucket = os.environ["BUSCO_LAKE_BUCKET"]
    first.client("s3").put_object(Bucket=bucket, Key="here", Body=b"sample")
    second = started(state, lake="other")
    assert second.endpoint == first.endpoint
    assert second.client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    aws.down(second.settings, quiet)
    assert started(state).client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0, "the last lake is remembered"
    back = started(state, lake="sample")
    assert back.client("s3").get_object(Bucket=bucket, Key="here")["Body"].read() == b"sample"


# starting, stopping ----------------------------------------------------------------------------------------------


def test_state_that_a_restart_loses_is_restored_once_per_start(state: Path) -> None:
    calls: list[str] = []

    def fails() -> None:
        calls.append("failed")
        raise BuscoError("no release")

    with pytest.raises(BuscoError, match="no release"):
        started(state, after_start=fails)
    started(state, after_start=lambda: calls.append("first"))
    server = started(state, after_start=lambda: calls.append("too often"))
    server.kill()
    started(state, after_start=lambda: calls.append("second"))
    assert calls == ["failed", "first", "second"]


def test_concurrent_starts_start_only_one_server(state: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        servers = list(pool.map(lambda _: started(state), range(3)))
    assert len({server.endpoint for server in servers}) == 1


def test_two_processes_never_serve_the_same_lake(server: Server) -> None:
    command = [sys.executable, "-m", "busco.embedded.local_aws_server", "--state", str(server.settings.state)]
    command += ["--lake", "sample", "--port", str(processes.pick_port(server.settings.state, "second"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"already served by process {server.process.pid}" in done.stderr


def test_only_one_loopback_port_is_open(server: Server) -> None:
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    sockets = [socket for process in family for socket in process.net_connections(kind="inet")]
    listening = [socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN or not socket.raddr]
    assert [(address.ip, f":{address.port}") for address in listening] == [("127.0.0.1", server.endpoint[-6:])]


def test_no_request_can_wipe_the_lake(server: Server, lake: str) -> None:
    server.client("s3").put_object(Bucket=lake, Key="stays", Body=b"")
    for path in ("/_ministack/reset", "/_ministack/reset/", "/_localstack/reset", "/_ministack/config"):
        request = urllib.request.Request(server.endpoint + path, data=b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5)
    server.client("s3").head_object(Bucket=lake, Key="stays")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://elsewhere.example.com"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        # a page whose host name was rebound to this address
        {"Host": "elsewhere.example.com"},
        {"Host": "127.0.0.1.elsewhere.example.com"},
        # a server at another port that forwards requests meant for it
        {"Host": "127.0.0.1:9"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:none"},
    ],
    ids=str,
)
def test_a_page_in_a_browser_cannot_send_requests_to_it(server: Server, headers: dict[str, str]) -> None:
    address = server.endpoint.removeprefix("http://")
    for method, path in (("OPTIONS", "/"), ("GET", "/_busco/identity"), ("POST", "/")):
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request(method, path, headers={"Host": address, **headers})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Access-Control-Allow-Origin")) == (403, None), (method, path)
        connection.close()


def test_proxies_profiles_and_the_home_folder_of_this_machine_are_not_used(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    before = set(Path(tempfile.gettempdir()).glob("*ministack*"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
        monkeypatch.setenv(name.lower(), NOWHERE)
    for name, value in {
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "AWS_PROFILE": "absent",
        "AWS_CA_BUNDLE": "/absent.pem",
        "AWS_ENDPOINT_URL": NOWHERE,
        "AWS_ENDPOINT_URL_S3": NOWHERE,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "intern.example",
        "no_proxy": "intern.example",
    }.items():
        monkeypatch.setenv(name, value)
    server = started(state)
    bucket = os.environ["BUSCO_LAKE_BUCKET"]
    metadata, columns = iceberg_helper.write_table(server.client("s3"), bucket, "gold/t", "SELECT 7 AS x")
    iceberg_helper.show(server.client("glue"), "busco_gold", "t", metadata, columns)

    assert server.query("SELECT x FROM t") == [["7"]]
    assert os.environ["NO_PROXY"] == "127.0.0.1,localhost,intern.example"
    loaded = {Path(mapped.path) for mapped in psutil.Process(server.process.pid).memory_maps()}
    assert {extension_file(name) for name in athena_iceberg.EXTENSIONS} <= loaded
    assert not list(state.rglob("*.duckdb_extension*"))
    assert [*home.rglob("*"), *scratch.rglob("*")] == []
    assert set(Path(tempfile.gettempdir()).glob("*ministack*")) == before


def test_the_variables_file_is_private_and_names_everything(server: Server) -> None:
    path = server.settings.state / "aws.env"
    assert path.stat().st_mode & 0o777 == 0o600
    lines = dict(line.split("=", 1) for line in path.read_text().splitlines())
    assert lines["AWS_ENDPOINT_URL"] == lines["BUSCO_ENDPOINT_URL"] == server.endpoint
    assert {lines[name] for name in BUCKETS} == {
        f"busco-{kind}-000000000000-us-east-1" for kind in ("lake", "landing", "logs")
    }
    assert f"export AWS_ENDPOINT_URL={server.endpoint}\n" in aws.env_lines(server.settings)
    assert ("local AWS", f"running, pid {server.process.pid}") in aws.status(server.settings)


def test_an_error_says_how_to_start_a_local_aws_that_is_not_running(state: Path) -> None:
    server = started(state)
    process = server.process
    aws.down(server.settings, quiet)
    assert not process.alive()
    assert aws.status(server.settings) == [("local AWS", "not running")]
    with pytest.raises(BuscoError, match="busco aws up"):
        aws.env_lines(server.settings)
    aws.down(server.settings, quiet)


# the template ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", stacks.TEMPLATES)
def test_a_template_deploys_unchanged_and_deploying_it_again_changes_nothing(server: Server, stack: str) -> None:
    cloudformation = server.client("cloudformation")
    before = cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    stacks.deploy_all(cloudformation, stacks.of_settings(server.settings))
    after = cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    assert [one["PhysicalResourceId"] for one in before] == [one["PhysicalResourceId"] for one in after]
    assert {one["ResourceStatus"] for one in after} <= {"CREATE_COMPLETE", "UPDATE_COMPLETE"}


def test_the_buckets_are_private(server: Server) -> None:
    s3 = server.client("s3")
    for bucket in (os.environ[name] for name in BUCKETS):
        blocked = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        assert set(blocked.values()) == {True}


# The emulator's CloudFormation ignores encryption, ownership and lifecycle rules, so this test reads the template.
def test_the_template_encrypts_cleans_up_and_retains_its_buckets() -> None:
    resources = cfnlint.decode.cfn_yaml.load(str(ROOT / LAKE_TEMPLATE))["Resources"]
    buckets = {name: one for name, one in resources.items() if one["Type"] == "AWS::S3::Bucket"}
    assert set(buckets) == {"LakeBucket", "LandingBucket", "LogsBucket"}
    for bucket in buckets.values():
        assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("Retain", "Retain")
        properties = bucket["Properties"]
        rule = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"][0]
        assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        assert properties["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
        rules = properties["LifecycleConfiguration"]["Rules"]
        assert {"DaysAfterInitiation": 7} in [rule.get("AbortIncompleteMultipartUpload") for rule in rules]
    lake = buckets["LakeBucket"]["Properties"]
    assert lake["VersioningConfiguration"] == {"Status": "Enabled"}
    assert {
        "Id": "expire-old-versions",
        "Status": "Enabled",
        "NoncurrentVersionExpiration": {"NoncurrentDays": {"Ref": "OldVersionDays"}},
        "ExpiredObjectDeleteMarker": True,
    } in lake["LifecycleConfiguration"]["Rules"]
    expiring = {
        (name, rule.get("Prefix", "")): rule["ExpirationInDays"]
        for name, bucket in buckets.items()
        for rule in bucket["Properties"]["LifecycleConfiguration"]["Rules"]
        if "ExpirationInDays" in rule
    }
    assert expiring == {("LogsBucket", ""): {"Ref": "LogRetentionDays"}, ("LakeBucket", "_lake/ingest/"): 30}


def test_the_workgroup_enforces_the_location_of_results_and_the_scan_limit(server: Server) -> None:
    workgroup = server.client("athena").get_work_group(WorkGroup="busco")["WorkGroup"]["Configuration"]
    location = workgroup["ResultConfiguration"]["OutputLocation"]
    assert location == f"s3://{os.environ['BUSCO_LOGS_BUCKET']}/athena/"
    assert workgroup["EnforceWorkGroupConfiguration"] is True
    assert int(workgroup["BytesScannedCutoffPerQuery"]) == 2**40


def with_template(tmp_path: Path, change: Callable[[str], str]) -> Path:
    for template in stacks.TEMPLATES.values():
        path = tmp_path / "home" / template
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / template).read_text()
        path.write_text(change(text) if template == LAKE_TEMPLATE else text)
    return tmp_path / "home"


def test_a_changed_template_is_deployed_to_the_running_local_aws(state: Path, tmp_path: Path) -> None:
    server = started(state)
    pid = server.process.pid
    home = with_template(tmp_path, lambda text: text.replace("Cleaned entities", "Clean entities"))
    aws.up(settings_of(state, home), quiet, after_start=lambda: pytest.fail("nothing was lost"))
    description = server.client("glue").get_database(Name="busco_silver")["Database"]["Description"]
    assert description.startswith("Clean entities")
    assert server.process.pid == pid

    broken = with_template(tmp_path, lambda text: text.replace("${GluePrefix}gold", "${GluePrefix}silver"))
    with pytest.raises(BuscoError, match="Database"):
        aws.up(settings_of(state, broken), quiet)
    with_template(tmp_path, lambda text: text.replace("Cleaned entities", "Clean entities"))
    assert aws.up(settings_of(state, home), quiet) == server.endpoint, "the failed update was rolled back completely"


def test_a_resource_that_fails_is_named_with_its_reason_and_the_fixed_template_deploys(
    state: Path, tmp_path: Path
) -> None:
    home = with_template(tmp_path, lambda text: text.replace("${GluePrefix}gold", "${GluePrefix}silver"))
    with pytest.raises(BuscoError, match=r"Database \(AWS::Glue::Database\): .*already exists"):
        aws.up(settings_of(state, home), quiet)
    assert started(state).client("glue").get_database(Name="busco_gold")
