"""No request can make the local AWS run code, start processes or contact other servers; tested on a separate server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import cfnlint.decode.cfn_yaml
import pytest
from own_aws import ROOT, Server, code_of, wait_for

from busco.embedded import aws, stacks
from tests.loopback import Handler, serving

BUCKET = "made-by-a-refused-stack"


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that an attack would write."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "the local AWS ran it"


def with_code(canary: Path) -> dict[str, Any]:
    """Returns the resources of an attack: a Python function that writes a file, and a custom resource that calls it."""
    code = f"def handler(event, context):\n    open({str(canary)!r}, 'w').write('ran')\n    return {{}}\n"
    function = {
        "Type": "AWS::Lambda::Function",
        "Properties": {
            "FunctionName": "attack",
            "Runtime": "python3.11",
            "Handler": "index.handler",
            "Role": "arn:aws:iam::000000000000:role/any",
            "Code": {"ZipFile": code},
        },
    }
    called = {"ServiceToken": {"Fn::GetAtt": ["Function", "Arn"]}, "ServiceTimeout": 5}
    return {"Function": function, "Called": {"Type": "Custom::Attack", "Properties": called}}


MADE = {"Bucket": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": BUCKET}}}
HARMLESS = {"Topic": {"Type": "AWS::SNS::Topic", "Properties": {}}}
ANY_STACK = {"TemplateURL": f"https://s3.amazonaws.com/{BUCKET}/template"}
REFUSED: dict[str, dict[str, Any]] = {
    "AWS::Lambda::Function": {"Resources": MADE | {"One": {"Type": "AWS::Lambda::Function", "Properties": {}}}},
    "Custom::Attack": {"Resources": MADE | {"One": {"Type": "Custom::Attack", "Properties": {"ServiceToken": "a"}}}},
    "AWS::CloudFormation::CustomResource": {"Resources": MADE | {"One": {"Properties": {"ServiceToken": "a"}}}},
    "AWS::CloudFormation::Stack": {
        "Resources": MADE | {"One": {"Type": "AWS::CloudFormation::Stack", "Properties": ANY_STACK}}
    },
    "AWS::CloudFormation::Macro": {"Resources": MADE | {"One": {"Type": "AWS::CloudFormation::Macro"}}},
    "AWS::Glue::Job": {"Resources": MADE | {"One": {"Type": "AWS::Glue::Job", "Properties": {}}}},
    "AWS::EC2::Instance": {
        "Conditions": {"Never": {"Fn::Equals": ["a", "b"]}},
        "Resources": MADE | {"One": {"Type": "AWS::EC2::Instance", "Condition": "Never"}},
    },
    "Transform": {"Transform": "AnyMacro", "Resources": MADE},
    "Fn::Transform": {"Resources": MADE | {"One": {"Fn::Transform": {"Name": "AnyMacro"}}}},
}


def deploy(cloudformation: Any, template: Any, name: str = "refused") -> None:
    cloudformation.create_stack(
        StackName=name, TemplateBody=json.dumps(template), Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
    )


def settled(cloudformation: Any, name: str) -> str:
    """Waits until nothing is in progress; returns the stack's status, or `none` if there is no such stack."""

    def status() -> str:
        try:
            return str(cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"])
        except botocore.exceptions.ClientError:
            return "none"

    wait_for(lambda: not status().endswith("IN_PROGRESS"))
    return status()


def test_only_the_resource_types_of_the_templates_are_provisioned() -> None:
    from busco.embedded.provisioned import PROVISIONED

    used = {
        resource["Type"]
        for template in stacks.TEMPLATES.values()
        for resource in cfnlint.decode.cfn_yaml.load(str(ROOT / template))["Resources"].values()
    }
    assert used == PROVISIONED, "review a new type before the local AWS provisions it: busco.embedded.provisioned"


@pytest.mark.parametrize("named", REFUSED)
def test_types_that_our_templates_do_not_use_are_refused_before_anything_is_created(server: Server, named: str) -> None:
    cloudformation, s3 = server.client("cloudformation"), server.client("s3")
    try:
        with pytest.raises(botocore.exceptions.ClientError, match=named):
            deploy(cloudformation, REFUSED[named])
        assert settled(cloudformation, "refused") == "none"
    finally:
        cloudformation.delete_stack(StackName="refused")
    assert code_of(lambda: s3.head_bucket(Bucket=BUCKET)) == "404"


def by_stack(cloudformation: Any, template: str) -> None:
    cloudformation.create_stack(StackName="attack", TemplateBody=template, Capabilities=["CAPABILITY_IAM"])


def by_update(cloudformation: Any, template: str) -> None:
    deploy(cloudformation, {"Resources": HARMLESS}, "attack")
    settled(cloudformation, "attack")
    cloudformation.update_stack(StackName="attack", TemplateBody=template, Capabilities=["CAPABILITY_IAM"])


def by_change_set(cloudformation: Any, template: str) -> None:
    made = {"StackName": "attack", "ChangeSetName": "attack"}
    cloudformation.create_change_set(
        **made, TemplateBody=template, ChangeSetType="CREATE", Capabilities=["CAPABILITY_IAM"]
    )
    wait_for(
        lambda: cloudformation.describe_change_set(**made)["Status"] not in ("CREATE_PENDING", "CREATE_IN_PROGRESS")
    )
    cloudformation.execute_change_set(**made)


@pytest.mark.parametrize("way", [by_stack, by_update, by_change_set], ids=lambda way: way.__name__)
def test_no_stack_can_make_the_local_aws_run_a_function(
    server: Server, canary: Path, way: Callable[[Any, str], None]
) -> None:
    cloudformation = server.client("cloudformation")
    try:
        with pytest.raises(botocore.exceptions.ClientError, match=r"AWS::Lambda::Function, Custom::Attack"):
            way(cloudformation, json.dumps({"Resources": with_code(canary)}))
    finally:
        settled(cloudformation, "attack")
        cloudformation.delete_stack(StackName="attack")
        settled(cloudformation, "attack")


def test_a_template_in_s3_is_refused_too(server: Server, canary: Path) -> None:
    lake = os.environ["BUSCO_LAKE_BUCKET"]
    server.client("s3").put_object(Bucket=lake, Key="t.json", Body=json.dumps({"Resources": with_code(canary)}))
    with pytest.raises(botocore.exceptions.ClientError, match="AWS::Lambda::Function"):
        server.client("cloudformation").create_stack(
            StackName="attack", TemplateURL=f"{server.endpoint}/{lake}/t.json", Capabilities=["CAPABILITY_IAM"]
        )


# requests to other machines --------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The URL of another server, to which the local AWS must not send any request."""
    received = threading.Event()

    class Recorder(Handler):
        def do_GET(self) -> None:
            received.set()
            self.answer(200)

        do_POST = do_HEAD = do_PUT = do_GET

    with serving(Recorder) as url:
        yield url
        assert not received.is_set(), "the local AWS sent a request to it"


def test_a_topic_delivers_to_no_url_and_no_function(server: Server, elsewhere: str) -> None:
    sns = server.client("sns")
    topic = sns.create_topic(Name="attack")["TopicArn"]
    function = "arn:aws:lambda:us-east-1:000000000000:function:any"
    refused = "Invalid parameter: .*sqs"
    for protocol, endpoint in (("http", elsewhere), ("https", elsewhere), ("lambda", function), ("firehose", "a")):
        with pytest.raises(botocore.exceptions.ClientError, match=refused):
            sns.subscribe(TopicArn=topic, Protocol=protocol, Endpoint=endpoint)
    cloudformation = server.client("cloudformation")
    subscribed = {"Subscription": [{"Protocol": "http", "Endpoint": elsewhere}]}
    deploy(cloudformation, {"Resources": {"Topic": {"Type": "AWS::SNS::Topic", "Properties": subscribed}}}, "topic")
    settled(cloudformation, "topic")
    made = cloudformation.describe_stack_resources(StackName="topic")["StackResources"]
    for one in (topic, *(one["PhysicalResourceId"] for one in made)):
        sns.publish(TopicArn=one, Message="x")
    queue = server.client("sqs").create_queue(QueueName="attack")["QueueUrl"]
    arn = f"arn:aws:sqs:us-east-1:000000000000:{queue.rpartition('/')[2]}"
    assert sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)["SubscriptionArn"]


@pytest.mark.parametrize(
    ("service", "operation", "parameters"),
    [
        ("glue", "create_job", {"Name": "a", "Role": "a", "Command": {"Name": "pythonshell", "ScriptLocation": "/a"}}),
        ("glue", "start_job_run", {"JobName": "a"}),
        ("glue", "create_crawler", {"Name": "a", "Role": "a", "Targets": {}}),
        ("glue", "create_trigger", {"Name": "a", "Type": "ON_DEMAND", "Actions": [{"JobName": "a"}]}),
        ("glue", "create_connection", {"ConnectionInput": {"Name": "a", "ConnectionType": "JDBC",
                                                           "ConnectionProperties": {}}}),
        ("glue", "create_session", {"Id": "a", "Role": "arn:aws:iam::000000000000:role/a",
                                     "Command": {"Name": "glueetl"}}),
        ("events", "put_targets", {"Rule": "a", "Targets": [{"Id": "1", "Arn": "arn:aws:lambda:us-east-1:0:a"}]}),
        ("events", "create_api_destination", {"Name": "a", "ConnectionArn": "arn:aws:events:us-east-1:000000000000:a",
                                              "InvocationEndpoint": "https://a.example", "HttpMethod": "POST"}),
        ("events", "create_connection", {"Name": "a", "AuthorizationType": "BASIC", "AuthParameters": {}}),
        ("logs", "put_subscription_filter", {"logGroupName": "/busco/dbt", "filterName": "a", "filterPattern": "",
                                             "destinationArn": "arn:aws:lambda:us-east-1:000000000000:function:a"}),
        ("ecs", "create_service", {"serviceName": "a", "taskDefinition": "busco-dbt-small", "desiredCount": 1}),
        ("athena", "start_session", {"WorkGroup": "busco", "EngineConfiguration": {"MaxConcurrentDpus": 2}}),
    ],
    ids=lambda parameters: parameters if isinstance(parameters, str) else "",
)  # fmt: skip
def test_operations_that_run_code_or_call_other_services_are_refused_by_name(
    server: Server, service: str, operation: str, parameters: dict[str, Any]
) -> None:
    client = server.client(service)
    name = client.meta.method_to_api_mapping[operation]
    with pytest.raises(botocore.exceptions.ClientError, match=f"{name} is not available here"):
        getattr(client, operation)(**parameters)


@pytest.mark.parametrize("service", ["lambda", "stepfunctions", "codebuild", "cloudcontrol", "batch", "databrew"])
def test_services_that_the_templates_do_not_use_are_refused_by_name(server: Server, service: str) -> None:
    client = server.client(service)
    listing = {
        "lambda": "list_functions", "stepfunctions": "list_state_machines", "codebuild": "list_projects",
        "batch": "describe_job_queues", "databrew": "list_jobs",
    }  # fmt: skip
    call = (
        (lambda: client.list_resources(TypeName="AWS::Lambda::Function"))
        if service == "cloudcontrol"
        else getattr(client, listing[service])
    )
    signed = client.meta.service_model.signing_name
    with pytest.raises(botocore.exceptions.ClientError, match=f"{signed} is not available here"):
        call()


@pytest.mark.parametrize(
    "attack",
    [
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('{url}/a.csv')",
        "copy (select 1) to '{url}/a.csv'",
        "create secret other (type s3, endpoint '{netloc}', use_ssl false, url_style 'path');"
        " select * from read_parquet('s3://any/a.parquet')",
        "attach 's3://any/a.duckdb' as other (type duckdb); select 1",
        "install httpfs from '{url}'",
        "set s3_endpoint = '{netloc}'; select * from read_parquet('s3://any/a.parquet')",
        "pragma enable_profiling; set profile_output = '{file}'; select 1",
        "export database '{file}'",
    ],
    ids=lambda attack: attack[:24],
)
def test_an_athena_query_cannot_read_files_or_contact_other_servers(
    server: Server, elsewhere: str, tmp_path: Path, attack: str
) -> None:
    file = tmp_path / "written"
    sql = attack.format(url=elsewhere, netloc=elsewhere.removeprefix("http://"), file=file)
    athena = server.client("athena")
    identifier = athena.start_query_execution(QueryString=sql, WorkGroup="busco")["QueryExecutionId"]

    def state() -> str:
        return str(athena.get_query_execution(QueryExecutionId=identifier)["QueryExecution"]["Status"]["State"])

    wait_for(lambda: state() in ("SUCCEEDED", "FAILED"))
    if "passwd" in sql:
        assert state() == "FAILED"
    assert not file.exists()


# the process itself ----------------------------------------------------------------------------------------------

CONFINED = """
import socket, sys
from busco.embedded.confinement import confine
confine({reachable!r}, {writable!r})
try:
    {attack}
except OSError as refused:
    print(refused)
    sys.exit(9)
"""


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("import subprocess; subprocess.run(['true'])", "can't start processes"),
        ("import os; os.system('true')", "can't start processes"),
        ("import os; os.fork()", "can't start processes"),
        ("import os; os.execv('/bin/true', ['true'])", "can't start processes"),
        ("import os; os.posix_spawn('/bin/true', ['true'], dict())", "can't start processes"),
        ("import os; os.spawnv(os.P_WAIT, '/bin/true', ['true'])", "can't start processes"),
        ("import pty; pty.spawn('true')", "can't start processes"),
        ("import asyncio; asyncio.run(asyncio.create_subprocess_exec('true'))", "can't start processes"),
        ("import urllib.request as u; u.urlopen('http://127.0.0.1:9/')", "can't connect to 127.0.0.1:9"),
        ("socket.create_connection(('192.0.2.1', 80), 1)", "can't look up 192.0.2.1"),
        ("socket.getaddrinfo('elsewhere.example.com', 80)", "can't look up elsewhere.example.com"),
        ("socket.gethostbyname('elsewhere.example.com')", "can't look up elsewhere.example.com"),
        ("socket.socket(socket.AF_UNIX).connect('/run/docker.sock')", "can't connect to /run/docker.sock"),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))", "can't connect to 127.0.0.1:9"),
    ],
)
def test_the_process_cannot_start_processes_or_connect_to_other_servers(attack: str, message: str) -> None:
    code = CONFINED.format(reachable=[("127.0.0.1", 8)], writable=[], attack=attack)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, message in done.stdout) == (9, True), done.stdout + done.stderr


@pytest.mark.parametrize(
    "attack",
    [
        "open('{out}/new', 'w')", "open('{out}/there', 'r+b')", "import pathlib; pathlib.Path('{out}/new').mkdir()",
        "import os; os.open('{out}/there', os.O_RDONLY | os.O_TRUNC)", "import os; os.makedirs('{out}/a/b')",
        "import os; os.rename('{own}/mine', '{out}/there')", "import os; os.replace('{out}/there', '{own}/taken')",
        "import os; os.remove('{out}/there')", "import shutil; shutil.rmtree('{out}/folder')",
        "import os; os.link('{own}/mine', '{out}/new')", "import os; os.symlink('{own}/mine', '{out}/new')",
        "import os; os.chmod('{out}/there', 0o777)", "import os; os.truncate('{out}/there', 0)",
        "open('{own}/../out/new', 'w')", "open('{own}/door/new', 'w')", "open('{own}/window', 'w')",
        "import tempfile; tempfile.mkstemp(dir='{out}')",
    ],
)  # fmt: skip
def test_the_process_changes_no_file_outside_of_its_own_folders(tmp_path: Path, attack: str) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    own.mkdir()
    (out / "there").write_text("as it was")
    (own / "mine").write_text("mine")
    (own / "door").symlink_to(out)
    (own / "window").symlink_to(out / "there")
    before = sorted(out.rglob("*"))
    code = CONFINED.format(reachable=[], writable=[str(own)], attack=attack.format(own=own, out=out))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "can't write outside" in done.stdout) == (9, True), done.stdout + done.stderr
    assert sorted(out.rglob("*")) == before
    assert (out / "there").read_text() == "as it was"
    assert (own / "mine").read_text() == "mine"


def test_the_process_can_write_and_remove_files_below_its_own_folders(tmp_path: Path) -> None:
    work = (
        f"import os, shutil, tempfile; os.makedirs('{tmp_path}/a/b'); open('{tmp_path}/a/b/c', 'w').close(); "
        f"os.rename('{tmp_path}/a/b/c', '{tmp_path}/d'); os.remove('{tmp_path}/d'); shutil.rmtree('{tmp_path}/a'); "
        f"tempfile.mkdtemp(dir='{tmp_path}'); open(os.devnull, 'w').close(); open('/etc/hostname').close()"
    )
    code = CONFINED.format(reachable=[], writable=[str(tmp_path)], attack=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_server_is_confined(server: Server) -> None:
    log = (server.settings.state / "log" / f"{aws.NAME}.log").read_text()
    assert "event=local_aws_confined" in log
