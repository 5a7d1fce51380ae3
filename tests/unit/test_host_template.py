"""`network.yaml` and `host.yaml`, which no local AWS can deploy: what an attacker or a mistake must not find there."""

from __future__ import annotations

import re
from typing import Any

import cfnlint.decode.cfn_yaml

from tests.platforms import ROOT

HOST, NETWORK = (
    cfnlint.decode.cfn_yaml.load(str(ROOT / f"deploy/aws/{name}.yaml"))["Resources"] for name in ("host", "network")
)
EVERYBODY = "0.0.0.0/0"


def properties(resources: Any, name: str) -> Any:
    return resources[name]["Properties"]


def ingress(resources: Any) -> list[tuple[str, int, Any]]:
    """Returns each inbound rule of the security groups: group, port, and who may connect."""
    found = []
    for name, resource in resources.items():
        if resource["Type"] == "AWS::EC2::SecurityGroup":
            for given in resource["Properties"].get("SecurityGroupIngress", []):
                rule = given["Fn::If"][1] if "Fn::If" in given else given
                assert rule["FromPort"] == rule["ToPort"]
                found.append((name, rule["FromPort"], rule.get("CidrIp") or rule["SourceSecurityGroupId"]))
    return found


def test_only_the_web_ports_are_open_and_only_the_host_reaches_the_database() -> None:
    assert ingress(HOST) == [
        ("HostSecurityGroup", 80, EVERYBODY),
        ("HostSecurityGroup", 443, {"Ref": "HttpsCidr"}),
        ("HostSecurityGroup", 22, {"Ref": "SshCidr"}),
        ("DatabaseSecurityGroup", 5432, {"Fn::GetAtt": ["HostSecurityGroup", "GroupId"]}),
    ]
    assert ingress(NETWORK) == [("EndpointSecurityGroup", 443, {"Ref": "VpcCidr"})]
    for resources in (HOST, NETWORK):
        for name, resource in resources.items():
            if resource["Type"] == "AWS::EC2::SecurityGroup":
                # without a rule of its own, a group allows everything outbound
                assert resource["Properties"]["SecurityGroupEgress"], name
            assert not resource["Properties"].get("MapPublicIpOnLaunch"), name


def test_the_machine_s_role_can_t_be_reached_with_version_1_of_the_metadata_service() -> None:
    host = properties(HOST, "Host")
    assert host["MetadataOptions"] == {
        "HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 2,
    }  # fmt: skip
    assert all(device["Ebs"]["Encrypted"] is True for device in host["BlockDeviceMappings"])
    assert host["DisableApiTermination"] == {"Ref": "DeletionProtection"}


def test_the_database_is_private_encrypted_backed_up_and_survives_the_stack() -> None:
    database = properties(HOST, "Database")
    assert database["PubliclyAccessible"] is False
    assert database["StorageEncrypted"] is True
    assert database["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in database
    assert database["DeletionProtection"] == {"Ref": "DeletionProtection"}
    assert (HOST["Database"]["DeletionPolicy"], HOST["Database"]["UpdateReplacePolicy"]) == ("Snapshot", "Snapshot")
    assert properties(HOST, "DatabaseParameters")["Parameters"]["rds.force_ssl"] == "1"


def test_the_host_s_alarms_are_about_the_host_and_its_database() -> None:
    about = {"AWS/EC2": ("InstanceId", "Host"), "AWS/RDS": ("DBInstanceIdentifier", "Database")}
    alarms = [one["Properties"] for one in HOST.values() if one["Type"] == "AWS::CloudWatch::Alarm"]
    assert len(alarms) == 5
    for alarm in alarms:
        name, resource = about[alarm["Namespace"]]
        assert alarm["Dimensions"] == [{"Name": name, "Value": {"Ref": resource}}]
        assert alarm["TreatMissingData"] in ("breaching", "notBreaching", "ignore")
        assert alarm["AlarmActions"]


def test_ec2_accepts_all_descriptions_of_security_groups_and_their_rules() -> None:
    """EC2 refuses other characters, such as an apostrophe, and then no stack can be created (EC2 API reference,
    IpRange)."""
    allowed = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{1,255}")
    checked = 0
    for resources in (HOST, NETWORK):
        for resource in resources.values():
            if resource["Type"] != "AWS::EC2::SecurityGroup":
                continue
            group = resource["Properties"]
            texts = [group["GroupDescription"]["Fn::Sub"].replace("${Name}", "busco")]
            for rule in (*group.get("SecurityGroupIngress", ()), *group["SecurityGroupEgress"]):
                texts.append((rule["Fn::If"][1] if "Fn::If" in rule else rule)["Description"])
            for text in texts:
                assert allowed.fullmatch(text), text
                checked += 1
    assert checked > 10


def test_airflow_may_read_the_password_that_rds_rotates() -> None:
    (statement,) = properties(HOST, "DatabaseSecretPolicy")["PolicyDocument"]["Statement"]
    assert statement["Action"] == "secretsmanager:GetSecretValue"
    assert statement["Resource"] == {"Fn::GetAtt": ["Database", "MasterUserSecret.SecretArn"]}
    assert properties(HOST, "DatabaseSecretPolicy")["Roles"] == [{"Fn::Sub": "${Name}-${AWS::Region}-airflow"}]
