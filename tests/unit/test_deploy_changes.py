"""Which changes of a stack `deploy/aws/deploy.sh` refuses, because they lose data or a state."""

from __future__ import annotations

import importlib.util
import sys
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
    return {"ResourceType": kind, "Action": action, "Replacement": replacement, "Details": details}


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


def test_an_arm_platform_gets_an_arm_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "_debian", lambda architecture: f"ami-{architecture}")
    host = next(template for template in deploy.TEMPLATES if template.name == "host")
    new = deploy.Stack("busco-host")

    def defaults(architecture: str, **parameters: str) -> dict[str, str]:
        found: dict[str, str] = deploy._defaults(host, new, parameters, "1", "eu-west-1", architecture)
        return found

    assert defaults("X86_64") == {"InstanceType": "t3.large", "ImageId": "ami-amd64"}
    assert defaults("ARM64") == {"InstanceType": "t4g.large", "ImageId": "ami-arm64"}
    assert defaults("X86_64", InstanceType="m7g.large") == {"ImageId": "ami-arm64"}
    existing = deploy.Stack("busco-host", "CREATE_COMPLETE")
    # another image would replace the machine
    assert deploy._defaults(host, existing, {}, "1", "eu-west-1", "X86_64") == {}
