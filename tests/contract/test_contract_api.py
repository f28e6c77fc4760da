"""What needs no guest: errors, filters, pages, keys, groups, tags. The shared machines boot meanwhile."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from support.contract_cloud import refused
from support.tiny_cloud import INSTANCE_TYPES

from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import error_code
from instant_env.cloud.tags import read_tags

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)
pytestmark = pytest.mark.usefixtures("first")

NO_INSTANCE = "i-0123456789abcdef0"
NO_VOLUME = "vol-0123456789abcdef0"
NO_GROUP = "sg-0123456789abcdef0"
NO_SUBNET = "subnet-0123456789abcdef0"
NO_FILTER: Any = {"Name": "no-such-filter", "Values": ["y"]}


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("InvalidInstanceID.NotFound", lambda ec2: ec2.describe_instances(InstanceIds=[NO_INSTANCE])),
        ("InvalidInstanceID.Malformed", lambda ec2: ec2.describe_instances(InstanceIds=["i-nonsense"])),
        ("InvalidInstanceID.NotFound", lambda ec2: ec2.start_instances(InstanceIds=[NO_INSTANCE])),
        ("InvalidInstanceID.NotFound", lambda ec2: ec2.terminate_instances(InstanceIds=[NO_INSTANCE])),
        ("InvalidInstanceID.NotFound", lambda ec2: ec2.get_console_output(InstanceId=NO_INSTANCE)),
        ("InvalidAMIID.NotFound", lambda ec2: ec2.describe_images(ImageIds=["ami-0123456789abcdef0"])),
        ("InvalidAMIID.Malformed", lambda ec2: ec2.describe_images(ImageIds=["ami-nonsense"])),
        ("InvalidVolume.NotFound", lambda ec2: ec2.describe_volumes(VolumeIds=[NO_VOLUME])),
        ("InvalidVolume.NotFound", lambda ec2: ec2.create_snapshot(VolumeId=NO_VOLUME)),
        ("InvalidSnapshot.NotFound", lambda ec2: ec2.delete_snapshot(SnapshotId="snap-0123456789abcdef0")),
        ("InvalidKeyPair.NotFound", lambda ec2: ec2.describe_key_pairs(KeyNames=["no-such-key"])),
        ("InvalidGroup.NotFound", lambda ec2: ec2.describe_security_groups(GroupIds=[NO_GROUP])),
        ("InvalidSubnetID.NotFound", lambda ec2: ec2.describe_subnets(SubnetIds=[NO_SUBNET])),
        ("InvalidParameterValue", lambda ec2: ec2.describe_instances(MaxResults=3)),
        ("InvalidKey.Format", lambda ec2: ec2.import_key_pair(KeyName="k", PublicKeyMaterial=b"nonsense")),
    ],
)  # fmt: skip
def test_mistakes_have_their_codes(
    contract: ContractCloud, code: str, call: Callable[[EC2Client], object]
) -> None:
    with refused(code):
        call(contract.ec2)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("InvalidAMIID.NotFound", {"ImageId": "ami-0123456789abcdef0"}),
        ("InvalidAMIID.Malformed", {"ImageId": "ami-nonsense"}),
        ("InvalidParameterValue", {"InstanceType": "t3.enormous"}),
        ("InvalidKeyPair.NotFound", {"KeyName": "no-such-key"}),
        ("InvalidGroup.NotFound", {"SecurityGroupIds": [NO_GROUP]}),
        ("InvalidSubnetID.NotFound", {"SubnetId": NO_SUBNET}),
        ("InvalidParameterValue", {"UserData": "x" * 16385}),
        ("InvalidParameterValue", {"MinCount": 2, "MaxCount": 1}),
        ("DryRunOperation", {"DryRun": True}),
    ],
)
def test_launches_that_cannot_be(contract: ContractCloud, code: str, arguments: dict[str, Any]) -> None:
    with refused(code):
        contract.run_instances(**arguments)


def test_a_type_of_another_architecture_than_the_image(contract: ContractCloud) -> None:
    (other,) = (name for arch, name in INSTANCE_TYPES.items() if arch is not contract.arch)
    with refused("InvalidParameterValue"):
        contract.run_instances(InstanceType=other)


def test_filters(contract: ContractCloud, first: str, second: str) -> None:
    def found(**filters: str) -> set[str]:
        wanted: list[Any] = [
            {"Name": name.replace("_", "-"), "Values": [value]} for name, value in filters.items()
        ]
        pages = contract.ec2.get_paginator("describe_instances").paginate(Filters=[*contract.ours, *wanted])
        return {i["InstanceId"] for page in pages for r in page["Reservations"] for i in r["Instances"]}

    assert {first, second} <= found(image_id=contract.image_id)
    assert found(image_id="ami-0123456789abcdef0") == set()
    assert {first, second} <= found(instance_type=contract.instance_type.replace("micro", "*"))
    assert {first, second} <= found(key_name=contract.key_name)
    assert {first, second}.isdisjoint(found(instance_state_name="terminated"))
    contract.ec2.create_tags(Resources=[first], Tags=[{"Key": "contract", "Value": "one of two"}])
    assert found(tag_key="contract") == {first}
    tagged: Any = [{"Name": "tag:contract", "Values": ["one*"]}, *contract.ours]
    (only,) = contract.eventually(
        lambda: contract.ec2.describe_instances(Filters=tagged)["Reservations"], bool
    )
    assert only["Instances"][0]["InstanceId"] == first


def test_a_filter_that_does_not_exist(contract: ContractCloud) -> None:
    with refused("InvalidParameterValue"):
        contract.ec2.describe_instances(Filters=[NO_FILTER])


def test_pages(contract: ContractCloud) -> None:
    names = [contract.name(f"page-{number}") for number in range(7)]
    for name in names:
        contract.ec2.create_security_group(
            GroupName=name, Description="contract", TagSpecifications=contract.tags("security-group")
        )
    wanted: Any = [*contract.ours, {"Name": "group-name", "Values": names}]
    paginator = contract.ec2.get_paginator("describe_security_groups")
    pages = contract.eventually(
        lambda: list(paginator.paginate(Filters=wanted, PaginationConfig={"PageSize": 5})),
        lambda pages: sum(len(page["SecurityGroups"]) for page in pages) == len(names),
    )
    assert [len(page["SecurityGroups"]) for page in pages] == [5, 2]
    assert {group["GroupName"] for page in pages for group in page["SecurityGroups"]} == set(names)


def test_key_pairs(contract: ContractCloud) -> None:
    ec2, name = contract.ec2, contract.name("key")
    key = KeyPair.generate()
    imported = ec2.import_key_pair(
        KeyName=name,
        PublicKeyMaterial=key.public_openssh.encode(),
        TagSpecifications=contract.tags("key-pair"),
    )
    # Of an ed25519 key: base64 of the SHA-256 of its body, as ssh-keygen -l prints it.
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(key.public_key.body)).digest()).decode()
    assert imported["KeyFingerprint"].rstrip("=") == digest.rstrip("=")
    with refused("InvalidKeyPair.Duplicate"):
        ec2.import_key_pair(KeyName=name, PublicKeyMaterial=key.public_openssh.encode())
    (pair,) = ec2.describe_key_pairs(KeyPairIds=[imported["KeyPairId"]], IncludePublicKey=True)["KeyPairs"]
    assert pair["KeyName"] == name
    assert pair["KeyType"] == "ed25519"
    assert pair["PublicKey"].split()[1] == key.public_key.body
    assert read_tags(pair["Tags"])["instant-env:run"] == contract.run_id
    ec2.delete_key_pair(KeyName=name)
    ec2.delete_key_pair(KeyName=name)  # no error on EC2
    made = ec2.create_key_pair(KeyName=name, KeyType="ed25519", TagSpecifications=contract.tags("key-pair"))
    assert made["KeyMaterial"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    ec2.delete_key_pair(KeyPairId=made["KeyPairId"])


def test_security_groups(contract: ContractCloud, first: str) -> None:
    ec2, name = contract.ec2, contract.name("group")
    group_id = ec2.create_security_group(
        GroupName=name, Description="contract", TagSpecifications=contract.tags("security-group")
    )["GroupId"]
    with refused("InvalidGroup.Duplicate"):
        ec2.create_security_group(GroupName=name, Description="contract")
    (group,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    assert group["IpPermissions"] == []
    assert [rule["IpProtocol"] for rule in group["IpPermissionsEgress"]] == ["-1"], "everything may leave"
    rule: Any = {
        "IpProtocol": "tcp", "FromPort": 8000, "ToPort": 8001,
        "IpRanges": [{"CidrIp": "203.0.113.0/24", "Description": "documentation"}],
    }  # fmt: skip
    made = ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
    assert made["Return"] is True
    (described,) = made["SecurityGroupRules"]
    assert described["SecurityGroupRuleId"].startswith("sgr-")
    assert (described["FromPort"], described["ToPort"], described["CidrIpv4"]) == (
        8000,
        8001,
        "203.0.113.0/24",
    )
    with refused("InvalidPermission.Duplicate"):
        ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
    with refused("InvalidParameterValue"):
        ec2.authorize_security_group_ingress(
            GroupId=group_id, IpProtocol="tcp", FromPort=1, ToPort=2, CidrIp="not a range"
        )
    ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
    # In a default VPC what is not there is no error; in another one it is InvalidPermission.NotFound.
    again = ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[rule])
    assert [unknown["FromPort"] for unknown in again["UnknownIpPermissions"]] == [8000]
    ec2.delete_security_group(GroupId=group_id)
    with refused("DependencyViolation"):
        ec2.delete_security_group(GroupId=contract.group_id)  # the machines are in it


def test_tags(contract: ContractCloud, first: str) -> None:
    ec2 = contract.ec2
    ec2.create_tags(Resources=[first], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}])
    ec2.create_tags(Resources=[first], Tags=[{"Key": "a", "Value": "2"}])
    tags = read_tags(contract.describe(first)["Tags"])
    assert (tags["a"], tags["b"], tags["Project"]) == ("2", "", "instant-env")
    ec2.delete_tags(Resources=[first], Tags=[{"Key": "a", "Value": "another value"}])
    ec2.delete_tags(Resources=[first], Tags=[{"Key": "b"}])
    listed = ec2.describe_tags(
        Filters=[{"Name": "resource-id", "Values": [first]}, {"Name": "key", "Values": ["a", "b"]}]
    )
    assert [(tag["Key"], tag["Value"], tag["ResourceType"]) for tag in listed["Tags"]] == [
        ("a", "2", "instance")
    ]
    with refused("InvalidParameterValue"):
        ec2.create_tags(Resources=[first], Tags=[{"Key": "aws:mine", "Value": "no"}])
    with refused("InvalidInstanceID.NotFound"):
        ec2.create_tags(Resources=[NO_INSTANCE], Tags=[{"Key": "a", "Value": "1"}])


def test_dry_runs_do_nothing(contract: ContractCloud, first: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: contract.ec2.terminate_instances(InstanceIds=[first], DryRun=True),
        lambda: contract.ec2.create_volume(AvailabilityZone=contract.zone, Size=1, DryRun=True),
        lambda: contract.ec2.describe_instances(DryRun=True),
    ]
    for call in calls:
        with refused("DryRunOperation"):
            call()
    assert contract.describe(first)["State"]["Name"] in ("pending", "running")


def test_a_machine_protected_from_termination(contract: ContractCloud, first: str) -> None:
    ec2 = contract.ec2
    ec2.modify_instance_attribute(InstanceId=first, DisableApiTermination={"Value": True})
    with refused("OperationNotPermitted"):
        ec2.terminate_instances(InstanceIds=[first])
    ec2.modify_instance_attribute(InstanceId=first, DisableApiTermination={"Value": False})
    answer = ec2.describe_instance_attribute(InstanceId=first, Attribute="disableApiTermination")
    assert answer["DisableApiTermination"] == {"Value": False}


def test_what_instance_types_are_is_known(contract: ContractCloud) -> None:
    (kind,) = contract.ec2.describe_instance_types(InstanceTypes=["t4g.small"])["InstanceTypes"]
    assert kind["ProcessorInfo"]["SupportedArchitectures"] == ["arm64"]
    with refused("InvalidInstanceType"):
        contract.ec2.describe_instance_types(InstanceTypes=["t3.enormous"])  # type: ignore[list-item]


def test_what_an_error_has(contract: ContractCloud) -> None:
    with pytest.raises(contract.ec2.exceptions.ClientError) as caught:
        contract.ec2.describe_instances(InstanceIds=[NO_INSTANCE])
    assert error_code(caught.value) == "InvalidInstanceID.NotFound"
    assert NO_INSTANCE in caught.value.response["Error"]["Message"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert caught.value.response["ResponseMetadata"]["RequestId"]
