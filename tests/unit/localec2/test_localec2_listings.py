"""Pages, patterns, and answers in which moto and EC2 differ; the contract suite asks for the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from instant_env.localec2.api.pages import page
from instant_env.localec2.records.records import TagsRecord
from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.moto_api import EC2ClientError

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA5saFnYGnUwNL9UPyc929LGOTXJo5uhKHDcTOqznQmn somebody"


FINGERPRINT = "q5r7C5q/XwRn2ncahGrI1kUg22S+g3qlTIXlLP1LMnw="


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("t3.*", "t3.micro", True),
        ("t3.*", "t4g.micro", False),
        ("t?.micro", "t3.micro", True),
        ("t3", "t3.micro", False),
        ("*", "", True),
        ("[t]3", "t3", False),
        (r"a\*", "a*", True),
        (r"a\*", "ab", False),
        ("true", True, True),
        ("sg-1*", ["sg-23", "sg-12"], True),
    ],
)
def test_patterns(pattern: str, value: object, expected: bool) -> None:
    assert matches([pattern], value) is expected


def test_pages_are_not_shifted_by_what_goes() -> None:
    names = list("abcdefghijkl")
    items, token = page(names, None, 5, str)
    assert items == list("abcde")
    last_gone, _ = page([name for name in names if name != "e"], token, 5, str)
    assert last_gone == list("fghij")
    items, token = page([name for name in names if name != "b"], token, 5, str)
    assert items == list("fghij")
    assert page(names, token, 5, str) == (list("kl"), None)
    for most in (4, 1001):
        with pytest.raises(EC2ClientError, match="maxResults"):
            page(names, None, most, str)


def test_security_groups_come_in_pages(served: Served) -> None:
    for number in range(6):
        served.ec2.create_security_group(GroupName=f"g{number}", Description="d")
    pages = served.ec2.get_paginator("describe_security_groups").paginate(PaginationConfig={"PageSize": 5})
    sizes = [len(answer["SecurityGroups"]) for answer in pages]
    assert sizes == [5, 2], "the default group is the seventh"


def test_instances_by_pattern(served: Served) -> None:
    image_id = served.register()
    made = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance_id = made["Instances"][0]["InstanceId"]

    def found(name: str, value: str) -> list[str]:
        answer = served.ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])
        return [item["InstanceId"] for group in answer["Reservations"] for item in group["Instances"]]

    assert found("instance-type", "t3.*") == found("image-id", "ami-*") == [instance_id]
    assert found("instance-type", "m?.*") == []


def test_ids_that_cannot_be(served: Served) -> None:
    with refused("InvalidInstanceID.Malformed"):
        served.ec2.describe_instances(InstanceIds=["i-nonsense"])
    with refused("InvalidAMIID.Malformed"):
        served.ec2.describe_images(ImageIds=["ami-nonsense"])
    with refused("InvalidInstanceID.NotFound"):
        served.ec2.describe_instances(InstanceIds=["i-12345678"])


def test_fingerprints_of_ed25519_keys(served: Served) -> None:
    """`ssh-keygen -lf` of this key, and padding."""
    answer = served.ec2.import_key_pair(KeyName="k", PublicKeyMaterial=PUBLIC_KEY)
    (pair,) = served.ec2.describe_key_pairs()["KeyPairs"]
    assert answer["KeyFingerprint"] == pair["KeyFingerprint"]
    assert pair["KeyFingerprint"] == FINGERPRINT


UNKNOWN_IDS = {
    "i-0123456789abcdef0": "InvalidInstanceID.NotFound",
    "vol-0123456789abcdef0": "InvalidVolume.NotFound",
    "snap-0123456789abcdef0": "InvalidSnapshot.NotFound",
    "ami-0123456789abcdef0": "InvalidAMIID.NotFound",
    "eni-0123456789abcdef0": "InvalidNetworkInterfaceID.NotFound",
    "eipalloc-0123456789abcdef0": "InvalidAllocationID.NotFound",
    "key-0123456789abcdef0": "InvalidKeyPair.NotFound",
    "sg-0123456789abcdef0": "InvalidGroup.NotFound",
    "sgr-0123456789abcdef0": "InvalidSecurityGroupRuleId.NotFound",
    "sir-01234567": "InvalidSpotInstanceRequestID.NotFound",
    "subnet-0123456789abcdef0": "InvalidSubnetID.NotFound",
    "vpc-0123456789abcdef0": "InvalidVpcID.NotFound",
    "xyz-0123456789abcdef0": "InvalidID",
    "i-nonsense": "InvalidID",
    "198.51.100.1": "InvalidID",
}


@pytest.mark.parametrize("with_tags", [True, False])
def test_tags_want_something_to_be_on(served: Served, with_tags: bool) -> None:
    """An unknown id among the resources, of any kind: nothing is tagged, and no record is left."""
    group_id = served.ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
    kept: Any = [{"Key": "kept", "Value": "yes"}]
    served.ec2.create_tags(Resources=[group_id], Tags=kept)
    for resource_id, code in UNKNOWN_IDS.items():
        with refused(code):
            served.ec2.create_tags(Resources=[group_id, resource_id], Tags=[{"Key": "a", "Value": "b"}])
        with refused(code):
            served.ec2.delete_tags(Resources=[group_id, resource_id], **({"Tags": kept} if with_tags else {}))
    (group,) = served.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    assert group["Tags"] == kept
    assert {tag["ResourceId"] for tag in served.ec2.describe_tags()["Tags"]} == {group_id}
    assert not list((served.directory / "records" / "tags").glob("*"))


def test_tags_of_everything_that_is_there(served: Served) -> None:
    (subnet, *_) = served.ec2.describe_subnets()["Subnets"]
    image_id = served.register()
    launched = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    (instance,) = launched["Instances"]
    volume = served.ec2.create_volume(AvailabilityZone=subnet["AvailabilityZone"], Size=1)
    interface = served.ec2.create_network_interface(SubnetId=subnet["SubnetId"])["NetworkInterface"]
    (group,) = served.ec2.describe_security_groups()["SecurityGroups"]
    (rule, *_) = served.ec2.describe_security_group_rules()["SecurityGroupRules"]
    resources = [
        instance["InstanceId"], instance["NetworkInterfaces"][0]["NetworkInterfaceId"], image_id,
        volume["VolumeId"], interface["NetworkInterfaceId"], group["GroupId"], rule["SecurityGroupRuleId"],
        served.ec2.allocate_address()["AllocationId"], subnet["SubnetId"], subnet["VpcId"],
        served.ec2.import_key_pair(KeyName="k", PublicKeyMaterial=PUBLIC_KEY)["KeyPairId"],
        *(table["RouteTableId"] for table in served.ec2.describe_route_tables()["RouteTables"]),
        *(acl["NetworkAclId"] for acl in served.ec2.describe_network_acls()["NetworkAcls"]),
    ]  # fmt: skip
    served.ec2.create_tags(Resources=resources, Tags=[{"Key": "a", "Value": "b"}])
    served.restart()
    assert {tag["ResourceId"] for tag in served.ec2.describe_tags()["Tags"]} == set(resources)
    served.ec2.delete_tags(Resources=resources)
    assert served.ec2.describe_tags()["Tags"] == []
    assert not list((served.directory / "records" / "tags").glob("*")), "records of no tags"


def test_tags_that_an_older_server_left_on_nothing_go(served: Served) -> None:
    served.state.write(TagsRecord(resource_id="i-0123456789abcdef0", tags={"a": "b"}))
    served.restart()
    assert served.ec2.describe_tags()["Tags"] == []
    assert not list((served.directory / "records" / "tags").glob("*"))


def test_amazons_tags_are_amazons(served: Served) -> None:
    group_id = served.ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
    tag: Any = {"Key": "aws:mine", "Value": "no"}
    with refused("InvalidParameterValue"):
        served.ec2.create_tags(Resources=[group_id], Tags=[tag])
    with refused("InvalidParameterValue"):
        served.ec2.run_instances(
            ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": [tag]}],
        )  # fmt: skip


@pytest.mark.parametrize("token", ["junk", "", "5", "MTIzNDU2NSBl"])
def test_a_token_that_no_answer_had_is_refused(served: Served, token: str) -> None:
    """EC2's answer to an empty one is in boto3's issue 2673; it is the same for junk."""
    describe: list[Any] = [
        served.ec2.describe_security_groups, served.ec2.describe_instances,
        served.ec2.describe_iam_instance_profile_associations, served.ec2.describe_images,
        served.ec2.describe_volumes, served.ec2.describe_snapshots, served.ec2.describe_instance_types,
        served.ec2.describe_network_interfaces, served.ec2.describe_spot_instance_requests,
    ]  # fmt: skip
    for call in describe:
        with refused("InvalidParameterValue"):
            call(NextToken=token)
