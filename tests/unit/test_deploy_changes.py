"""Which changes of a stack `deploy/aws/deploy.sh` refuses, because they lose data or a state."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.platforms import ROOT

_spec = importlib.util.spec_from_file_location("deploy_templates", ROOT / "deploy/aws/deploy.py")
assert _spec is not None
assert _spec.loader is not None
deploy = importlib.util.module_from_spec(_spec)
sys.modules["deploy_templates"] = deploy
_spec.loader.exec_module(deploy)

HOST, DATABASE, ALARM = "AWS::EC2::Instance", "AWS::RDS::DBInstance", "AWS::CloudWatch::Alarm"


def change(kind: str, action: str = "Modify", replacement: str = "False", *changed: tuple[str, str]) -> dict[str, Any]:
    """Returns a change as DescribeChangeSet describes it; `changed` are properties and whether they need recreation."""
    targets = [{"Attribute": "Properties", "Name": name, "RequiresRecreation": when} for name, when in changed]
    details = [{"Target": target} for target in targets]
    return {
        "ResourceType": kind, "LogicalResourceId": kind.rpartition("::")[2], "Action": action,
        "Replacement": replacement, "Details": details,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "loses"),
    [
        (change(HOST, "Add"), False),
        (change(HOST, "Remove"), True),
        (change(HOST, "Modify", "True", ("ImageId", "Always")), True),
        (change(HOST, "Modify", "False", ("DisableApiTermination", "Never")), False),
        # a machine with another disk is another machine
        (change(HOST, "Modify", "Conditional", ("BlockDeviceMappings", "Conditionally")), True),
        (change(HOST, "Modify", "Conditional", ("InstanceType", "Conditionally")), False),
        (change(HOST, "Modify", "Conditional", ("InstanceType", "Conditionally"), ("Tags", "Never")), False),
        (change(HOST, "Modify", "Conditional", ("UserData", "Conditionally"), ("HostId", "Conditionally")), True),
        (change(DATABASE, "Modify", "Conditional", ("MultiAZ", "Conditionally")), False),
        (change(DATABASE, "Modify", "Conditional", ("Engine", "Conditionally")), True),
        # without details, nothing is known
        (change("AWS::S3::Bucket", "Modify", "Conditional"), True),
        (change("AWS::EC2::Subnet", "Modify", "True", ("CidrBlock", "Always")), True),
        (change(ALARM, "Remove"), False),
        (change(ALARM, "Modify", "True", ("AlarmName", "Always")), False),
    ],
)
def test_a_change_that_loses_data_or_a_state_is_recognized(given: dict[str, Any], loses: bool) -> None:
    assert deploy._loses(given) is loses


def test_every_output_that_a_template_takes_exists() -> None:
    by_name = {template.name: template for template in deploy.TEMPLATES}
    assert len(by_name) == len(list((ROOT / "deploy/aws").glob("*.yaml")))
    for template in deploy.TEMPLATES:
        for parameter, (source, output) in template.inputs.items():
            assert parameter in template.parameters, (template.name, parameter)
            assert f"\n  {output}:\n" in by_name[source].path.read_text().partition("\nOutputs:")[2]


def test_what_comes_and_goes_with_the_way_to_aws_is_not_a_loss() -> None:
    for kind, name in (("AWS::EC2::EIP", "NatAddress"), ("AWS::EC2::SecurityGroup", "EndpointSecurityGroup")):
        assert not deploy._loses({**change(kind, "Remove"), "LogicalResourceId": name})
        assert deploy._loses(change(kind, "Remove"))


@pytest.mark.parametrize(
    ("given", "restarts"),
    [
        (change(HOST, "Modify", "Conditional", ("InstanceType", "Conditionally")), True),
        (change(HOST, "Modify", "Conditional", ("UserData", "Conditionally")), True),
        (change(HOST, "Modify", "False", ("Tags", "Never")), False),
        (change(HOST, "Add"), False),
        (change(DATABASE, "Modify", "Conditional", ("MultiAZ", "Conditionally")), False),
    ],
)
def test_a_change_that_stops_the_machine_is_announced(given: dict[str, Any], restarts: bool) -> None:
    assert deploy._restarts(given) is restarts


class Aws:
    """CloudFormation with the stacks that a test gives; records the parameters of each change set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **stacks: Any) -> None:
        self.stacks = {f"busco-{name}": stack for name, stack in stacks.items()}
        self.applied: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []
        self.executed: list[str] = []
        monkeypatch.setattr(deploy, "_account", lambda: ("111122223333", "eu-west-1"))
        monkeypatch.setattr(deploy, "describe", lambda name: self.stacks.get(name, deploy.Stack(name)))
        monkeypatch.setattr(deploy, "_change_set", self.change_set)
        monkeypatch.setattr(deploy, "_newest_event", lambda _: "")
        monkeypatch.setattr(deploy, "follow", lambda name, _: self.executed.append(name))
        monkeypatch.setattr(deploy, "_debian", lambda architecture: f"ami-{architecture}")
        monkeypatch.setattr(deploy, "_aws", self.call)
        self.given = argparse.Namespace(
            parameters=[], dry_run=False, name="busco", without=[], create=[], replace=[], outputs=tmp_path / "o.json"
        )

    def call(self, *arguments: str, **_: Any) -> Any:
        if arguments[1] == "describe-instance-type-offerings":
            return {"InstanceTypeOfferings": [{"Location": f"eu-west-1{letter}"} for letter in "cb"]}
        return {}

    def change_set(self, template: Any, stack: Any, parameters: Any, _: bool) -> Any:
        self.applied[template.name] = dict(parameters)
        return self.changes if template.name == "host" else None

    def deploy(self, *parameters: str, **options: Any) -> None:
        self.given.parameters = list(parameters)
        vars(self.given).update(options)
        deploy.deploy(self.given)


def made(name: str, parameters: Any = None, outputs: Any = None) -> Any:
    return deploy.Stack(f"busco-{name}", "CREATE_COMPLETE", parameters or {}, outputs or {})


def test_a_first_deployment_that_failed_is_continued_with_what_the_message_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aws = Aws(monkeypatch, tmp_path, ecs=made("ecs"))
    with pytest.raises(deploy.Failed, match="not busco-network and busco-host") as failed:
        aws.deploy()
    assert "--create network --create host" in str(failed.value)
    assert "--without network --without host" in str(failed.value)
    assert aws.applied == {}


def test_a_parameter_that_was_given_another_value_than_the_stacks_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("LakeBucket", "LandingBucket", "LogsBucket", "GluePrefix")
    of_lake = {name: f"the stack's {name}" for name in names}
    own = {**of_lake, "LandingBucket": "producers", "DbtImage": "image:1"}
    aws = Aws(monkeypatch, tmp_path, lake=made("lake", {}, of_lake), ecs=made("ecs", own))
    aws.deploy(without=["network", "host", "airflow"])
    assert aws.applied["ecs"]["LakeBucket"] == "the stack's LakeBucket"
    assert "LandingBucket" not in aws.applied["ecs"], "it keeps its value"
    aws.deploy("ecs.LandingBucket=others")
    assert aws.applied["ecs"]["LandingBucket"] == "others"


def test_the_role_for_github_is_deployed_only_for_those_who_name_a_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = made("host", {}, {"HostInstance": "i-0123456789abcdef0"})
    aws = Aws(monkeypatch, tmp_path, host=host, ecs=made("ecs"), network=made("network"))
    without = ["events", "lake", "ecs", "network", "airflow", "host"]
    aws.deploy(without=without)
    assert aws.applied == {}
    aws.deploy("GitHubRepository=owner/fork", without=without)
    assert aws.applied["github"] == {
        "Name": "busco", "GitHubRepository": "owner/fork", "HostInstance": "i-0123456789abcdef0",
    }  # fmt: skip
    aws.stacks["busco-github"] = made("github", {"GitHubRepository": "owner/fork"})
    aws.applied.clear()
    aws.deploy(without=without)
    assert "github" in aws.applied, "it exists, so it is updated with the others"


def test_a_protected_machine_is_not_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = {"VpcId": "vpc-1", "HostSubnet": "subnet-1", "DatabaseSubnets": "subnet-2,subnet-3", "ImageId": "ami-1"}
    stacks = {name: made(name) for name in ("ecs", "network")}
    aws = Aws(monkeypatch, tmp_path, **stacks, host=made("host", {**parts, "DeletionProtection": "true"}))
    aws.changes = [{**change(HOST, "Modify", "True", ("ImageId", "Always")), "LogicalResourceId": "Host"}]
    without = ["events", "lake", "ecs", "network", "airflow"]
    with pytest.raises(deploy.Failed, match="--replace Host"):
        aws.deploy("ImageId=ami-2", without=without)
    with pytest.raises(deploy.Failed, match=r"first deploy host\.DeletionProtection=false"):
        aws.deploy("ImageId=ami-2", without=without, replace=["Host"])
    assert aws.executed == []
    aws.stacks["busco-host"] = made("host", {**parts, "DeletionProtection": "false"})
    aws.deploy("ImageId=ami-2", without=without, replace=["Host"])
    assert aws.executed == ["busco-host"]


def test_a_region_without_an_authority_for_its_databases_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aws = Aws(monkeypatch, tmp_path)
    monkeypatch.setattr(deploy, "_account", lambda: ("111122223333", "xx-nowhere-1"))
    with pytest.raises(deploy.Failed, match="no certificate authority of RDS in xx-nowhere-1"):
        aws.deploy()


def test_a_new_network_has_zones_in_which_the_machine_can_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aws = Aws(monkeypatch, tmp_path)
    aws.deploy(without=["events", "lake", "ecs", "host", "airflow"])
    assert aws.applied["network"] == {"Name": "busco", "FirstZone": "eu-west-1b", "SecondZone": "eu-west-1c"}


def test_the_host_comes_after_the_permissions_of_session_manager() -> None:
    names = [template.name for template in deploy.TEMPLATES]
    assert names.index("airflow") < names.index("host")
    assert "UseSessionManager" in (ROOT / "deploy/aws/airflow.yaml").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("amd64", "t3.large")),
        ({"CpuArchitecture": "ARM64"}, ("arm64", "t4g.large")),
        ({"CpuArchitecture": "X86_64", "InstanceType": "m7g.large"}, ("arm64", "m7g.large")),
        ({"CpuArchitecture": "X86_64", "InstanceType": "m7i.large"}, ("amd64", "m7i.large")),
    ],
)
def test_an_arm_platform_gets_an_arm_machine(given: dict[str, str], expected: tuple[str, str]) -> None:
    assert deploy._machine(given) == expected


def test_an_existing_machine_keeps_its_image() -> None:
    host = next(template for template in deploy.TEMPLATES if template.name == "host")
    existing = deploy.Stack("busco-host", "CREATE_COMPLETE")
    # another image would replace the machine
    assert deploy._defaults(host, existing, {}, "1", "eu-west-1", {}) == {}


def test_a_checkout_may_have_any_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "Área de Trabalho"
    folder.mkdir()
    (folder / "events.yaml").write_text((ROOT / "deploy/aws/events.yaml").read_text())
    monkeypatch.setattr(deploy, "FOLDER", folder)
    calls: list[tuple[str, ...]] = []

    def call(*arguments: str, **_: Any) -> Any:
        calls.append(arguments)
        return {"Status": "CREATE_COMPLETE", "Changes": []}

    monkeypatch.setattr(deploy, "_aws", call)
    template = deploy.Template("events")
    deploy._change_set(template, deploy.Stack("busco-events"), {"Name": "busco"}, False)
    body = calls[0][calls[0].index("--template-body") + 1]
    # the AWS CLI opens what follows file:// as it is
    assert Path(body.removeprefix("file://")).read_text().startswith("AWSTemplateFormatVersion")
