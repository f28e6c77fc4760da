"""What clients change in place: rules of security groups, interfaces, volumes; and what they ask beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.patience import until

from instant_env.localec2.qemu import disks

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

ZONE = "us-east-1a"
SSH = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


@pytest.fixture
def ec2(served: Served) -> Any:
    """Without its types: parameters come from tables here."""
    return served.ec2


def group(ec2: Any, name: str = "g") -> str:
    return str(ec2.create_security_group(GroupName=name, Description="d")["GroupId"])


def admitted(*ranges: str, **more: Any) -> dict[str, Any]:
    return {**SSH, "IpRanges": [{"CidrIp": text} for text in ranges], **more}


def ingress(ec2: Any, group_id: str) -> list[dict[str, Any]]:
    rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group_id]}])
    return [rule for rule in rules["SecurityGroupRules"] if not rule["IsEgress"]]


def test_what_is_revoked_is_answered(ec2: Any) -> None:
    group_id = group(ec2)
    ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[admitted("10.0.0.0/8")])
    (rule,) = ingress(ec2, group_id)
    answer = ec2.revoke_security_group_ingress(
        GroupId=group_id, IpPermissions=[admitted("10.0.0.0/8", "192.168.0.0/16")]
    )
    assert [item["SecurityGroupRuleId"] for item in answer["RevokedSecurityGroupRules"]] == [
        rule["SecurityGroupRuleId"]
    ]
    (unknown,) = answer["UnknownIpPermissions"]
    assert unknown["IpRanges"] == [{"CidrIp": "192.168.0.0/16"}]
    assert ingress(ec2, group_id) == []
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        ec2.revoke_security_group_ingress(
            GroupId=group_id, SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]]
        )


def test_all_permissions_of_a_request_are_answered_or_none_is_made(ec2: Any) -> None:
    group_id = group(ec2)
    permissions = [admitted("10.0.0.0/8"), admitted("10.0.0.0/8", FromPort=80, ToPort=80)]
    made = ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=permissions)
    assert len(made["SecurityGroupRules"]) == 2
    with refused("InvalidPermission.Duplicate"):
        ec2.authorize_security_group_ingress(
            GroupId=group_id, IpPermissions=[admitted("172.16.0.0/12"), *permissions]
        )
    assert len(ingress(ec2, group_id)) == 2


PERMISSIONS: list[tuple[dict[str, Any], str]] = [
    ({"IpProtocol": "tcp"}, "InvalidParameterValue"),
    ({"IpProtocol": "tcp", "FromPort": 70000, "ToPort": 70000}, "InvalidParameterValue"),
    ({"IpProtocol": "udp", "FromPort": 2, "ToPort": 1}, "InvalidParameterValue"),
    ({"IpProtocol": "icmp", "FromPort": 256, "ToPort": -1}, "InvalidParameterValue"),
    ({"IpProtocol": "tpc", "FromPort": 1, "ToPort": 1}, "InvalidParameterValue"),
    ({"IpProtocol": "256", "FromPort": 1, "ToPort": 1}, "InvalidParameterValue"),
]


@pytest.mark.parametrize(("permission", "code"), PERMISSIONS, ids=lambda value: str(value)[:60])
def test_protocols_and_ports_that_cannot_be(ec2: Any, permission: dict[str, Any], code: str) -> None:
    group_id = group(ec2)
    with refused(code):
        ec2.authorize_security_group_ingress(
            GroupId=group_id, IpPermissions=[{**permission, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}]
        )
    assert ingress(ec2, group_id) == []


@pytest.mark.parametrize("cidr", ["10.0.0.0", "10.0.0.0/33", "ten", "::/0"])
def test_ranges_that_cannot_be(ec2: Any, cidr: str) -> None:
    with refused("InvalidParameterValue"):
        ec2.authorize_security_group_ingress(GroupId=group(ec2), IpPermissions=[admitted(cidr)])


def test_rules_that_ec2_writes_its_own_way(served: Served, ec2: Any) -> None:
    """Host bits are cleared, ICMP has types for ports, a protocol by its number has all ports."""
    group_id = group(ec2)
    ranges = [{"CidrIp": "10.1.2.3/8"}]
    for protocol in ("icmp", "6", "47"):
        ports = {"FromPort": 22, "ToPort": 22} if protocol == "6" else {}
        ec2.authorize_security_group_ingress(
            GroupId=group_id, IpPermissions=[{"IpProtocol": protocol, **ports, "IpRanges": ranges}]
        )
    served.restart()
    shown = [
        (rule["IpProtocol"], rule["FromPort"], rule["ToPort"], rule["CidrIpv4"])
        for rule in ingress(served.ec2, group_id)
    ]
    assert shown == [
        ("icmp", -1, -1, "10.0.0.0/8"), ("tcp", 22, 22, "10.0.0.0/8"), ("47", -1, -1, "10.0.0.0/8")
    ]  # fmt: skip


def test_rules_are_modified_in_place(served: Served, ec2: Any) -> None:
    group_id, other = group(ec2), group(ec2, "other")
    ec2.authorize_security_group_ingress(
        GroupId=group_id,
        IpPermissions=[admitted("10.0.0.0/8"), {**SSH, "UserIdGroupPairs": [{"GroupId": other}]}],
    )
    by_range, by_group = ingress(ec2, group_id)
    new = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "Description": "https"}
    ec2.modify_security_group_rules(
        GroupId=group_id,
        SecurityGroupRules=[
            {
                "SecurityGroupRuleId": by_range["SecurityGroupRuleId"],
                "SecurityGroupRule": {**new, "CidrIpv4": "192.168.0.0/16"},
            },
            {
                "SecurityGroupRuleId": by_group["SecurityGroupRuleId"],
                "SecurityGroupRule": {**new, "ReferencedGroupId": group_id},
            },
        ],
    )
    assert {rule["from"] for rule in served.network.groups[group_id] if not rule["egress"]} == {443}
    served.restart()
    after = ingress(served.ec2, group_id)
    assert [rule["SecurityGroupRuleId"] for rule in after] == [
        by_range["SecurityGroupRuleId"], by_group["SecurityGroupRuleId"]
    ]  # fmt: skip
    assert [(rule["FromPort"], rule["Description"]) for rule in after] == [(443, "https")] * 2
    assert after[0]["CidrIpv4"] == "192.168.0.0/16"
    assert after[1]["ReferencedGroupInfo"]["GroupId"] == group_id
    with refused("InvalidSecurityGroupRuleId.NotFound"):
        served.ec2.modify_security_group_rules(
            GroupId=other,
            SecurityGroupRules=[
                {
                    "SecurityGroupRuleId": by_range["SecurityGroupRuleId"],
                    "SecurityGroupRule": {**new, "CidrIpv4": "10.0.0.0/8"},  # type: ignore[typeddict-item]
                }
            ],
        )


def test_descriptions_of_rules_are_updated(ec2: Any) -> None:
    group_id = group(ec2)
    ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[admitted("10.0.0.0/8")])
    described = {**SSH, "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "office"}]}
    ec2.update_security_group_rule_descriptions_ingress(GroupId=group_id, IpPermissions=[described])
    (rule,) = ingress(ec2, group_id)
    assert rule["Description"] == "office"
    ec2.update_security_group_rule_descriptions_ingress(
        GroupId=group_id,
        SecurityGroupRuleDescriptions=[{"SecurityGroupRuleId": rule["SecurityGroupRuleId"]}],
    )
    assert "Description" not in ingress(ec2, group_id)[0]


def test_a_group_that_is_missing_is_named_plainly(ec2: Any) -> None:
    with refused("InvalidGroup.NotFound") as error:
        ec2.describe_security_groups(GroupIds=["sg-0123456789abcdef0"])
    assert "'sg-0123456789abcdef0' does not exist" in str(error.value)
    assert "{" not in str(error.value)


def launched(served: Served) -> dict[str, Any]:
    made: Any = served.ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1
    )["Instances"][0]
    served.ec2.get_waiter("instance_running").wait(
        InstanceIds=[made["InstanceId"]], WaiterConfig={"Delay": 0}
    )
    return dict(made)


def test_the_groups_of_an_instance_by_its_interface(served: Served, ec2: Any) -> None:
    """So the AWS provider changes `vpc_security_group_ids` of an instance that has one interface."""
    group_id, instance = group(ec2), launched(served)
    interface_id = instance["NetworkInterfaces"][0]["NetworkInterfaceId"]
    ec2.modify_network_interface_attribute(NetworkInterfaceId=interface_id, Groups=[group_id])
    served.state.instance(instance["InstanceId"])
    (shown,) = ec2.describe_instances(InstanceIds=[instance["InstanceId"]])["Reservations"][0]["Instances"]
    assert [item["GroupId"] for item in shown["SecurityGroups"]] == [group_id]
    assert served.network.interfaces[interface_id].groups == (group_id,)
    for call, code in (
        ({"NetworkInterfaceId": interface_id, "Groups": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"NetworkInterfaceId": interface_id, "SourceDestCheck": {"Value": False}}, "UnsupportedOperation"),
        ({"NetworkInterfaceId": interface_id, "Description": {"Value": "x"}}, "UnsupportedOperation"),
        ({"NetworkInterfaceId": interface_id}, "MissingParameter"),
    ):
        with refused(code):
            ec2.modify_network_interface_attribute(**call)
    ec2.modify_network_interface_attribute(NetworkInterfaceId=interface_id, SourceDestCheck={"Value": True})
    ec2.modify_instance_attribute(InstanceId=instance["InstanceId"], SourceDestCheck={"Value": True})


def test_an_interface_of_its_own_is_changed(served: Served, ec2: Any) -> None:
    subnet = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [ZONE]}])["Subnets"][0]
    instance_id = served.ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
        SubnetId=subnet["SubnetId"],
    )["Instances"][0]["InstanceId"]  # fmt: skip
    served.ec2.get_waiter("instance_running").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 0})
    interface = ec2.create_network_interface(SubnetId=subnet["SubnetId"])["NetworkInterface"]
    interface_id = interface["NetworkInterfaceId"]
    attachment = ec2.attach_network_interface(
        NetworkInterfaceId=interface_id, InstanceId=instance_id, DeviceIndex=1
    )["AttachmentId"]
    ec2.modify_network_interface_attribute(NetworkInterfaceId=interface_id, Description={"Value": "second"})
    ec2.modify_network_interface_attribute(
        NetworkInterfaceId=interface_id,
        Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
    )
    (shown,) = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface_id])["NetworkInterfaces"]
    assert shown["Description"] == "second"
    assert shown["Attachment"]["DeleteOnTermination"] is True
    ec2.detach_network_interface(AttachmentId=attachment, Force=True)
    until(lambda: served.state.interfaces[interface_id].attachment is None)


def test_volumes_grow(served: Served, ec2: Any) -> None:
    """Free, and attached; and a server that was killed before the file followed."""
    instance = launched(served)
    free = ec2.create_volume(AvailabilityZone=ZONE, Size=1, VolumeType="gp3")["VolumeId"]
    root = next(iter(v.id for v in served.state.volumes.values() if v.attachment))
    for volume_id in (free, root):
        answer = ec2.modify_volume(VolumeId=volume_id, Size=10, Iops=4000 if volume_id == free else 3000)
        assert answer["VolumeModification"]["TargetSize"] == 10
        await_modification(ec2, volume_id)
    assert disks.virtual_size_gib(served.state.layout.volume(root)) == 10
    shown = modified(ec2, free)
    assert (shown["OriginalSize"], shown["OriginalIops"], shown["TargetIops"]) == (1, 3000, 4000)
    assert ec2.describe_volumes(VolumeIds=[free])["Volumes"][0]["Size"] == 10
    ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    with refused("InvalidParameterValue"):
        ec2.modify_volume(VolumeId=free, Size=4)
    with refused("InvalidVolume.NotFound"):
        ec2.modify_volume(VolumeId="vol-0123456789abcdef0", Size=4)
    untouched = ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    with refused("InvalidVolumeModification.NotFound"):
        ec2.describe_volumes_modifications(VolumeIds=[untouched])


def test_a_growth_that_a_kill_interrupted_goes_on(served: Served, ec2: Any) -> None:
    volume_id = ec2.create_volume(AvailabilityZone=ZONE, Size=1, VolumeType="gp3")["VolumeId"]
    path = served.state.layout.volume(volume_id)
    disks.create(path, 1)
    with served.services.lifecycle.storage.lock(volume_id):
        ec2.modify_volume(VolumeId=volume_id, Size=2)
        assert modified(ec2, volume_id)["ModificationState"] == "modifying"
        with refused("IncorrectModificationState"):
            ec2.modify_volume(VolumeId=volume_id, Size=3)
        served.restart()
    await_modification(served.ec2, volume_id)
    assert disks.virtual_size_gib(path) == 2


def await_modification(ec2: Any, volume_id: str) -> None:
    until(lambda: modified(ec2, volume_id)["ModificationState"] == "completed")


def modified(ec2: Any, volume_id: str) -> dict[str, Any]:
    (shown,) = ec2.describe_volumes_modifications(VolumeIds=[volume_id])["VolumesModifications"]
    return dict(shown)


@pytest.mark.parametrize(
    ("attribute", "member", "value"),
    [
        ("productCodes", "ProductCodes", []),
        ("kernel", "KernelId", {}),
        ("ramdisk", "RamdiskId", {}),
        ("tpmSupport", "TpmSupport", {}),
        ("uefiData", "UefiData", {}),
        ("sriovNetSupport", "SriovNetSupport", {"Value": "simple"}),
    ],
)
def test_attributes_that_images_do_not_have(
    served: Served, ec2: Any, attribute: str, member: str, value: Any
) -> None:
    assert ec2.describe_image_attribute(ImageId=served.register(), Attribute=attribute)[member] == value


def test_spot_prices_of_each_product(ec2: Any) -> None:
    def products(**more: Any) -> set[str]:
        answer = ec2.describe_spot_price_history(InstanceTypes=["t3.micro"], **more)["SpotPriceHistory"]
        return {item["ProductDescription"] for item in answer}

    assert products(ProductDescriptions=["Linux/UNIX"]) == {"Linux/UNIX"}
    assert products(ProductDescriptions=["Linux/UNIX (Amazon VPC)"]) == {"Linux/UNIX (Amazon VPC)"}
    assert products(Filters=[{"Name": "product-description", "Values": ["Linux/UNIX"]}]) == {"Linux/UNIX"}
    assert products(ProductDescriptions=["Windows"]) == set()
    assert len(products()) == 2


def test_the_default_key(ec2: Any) -> None:
    assert ec2.get_ebs_default_kms_key_id()["KmsKeyId"] == "alias/aws/ebs"
