"""Filters, wildcards and pages are the same in every listing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from instant_env.localec2.state.paging import paging

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

ZONE = "us-east-1a"


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


@pytest.fixture
def ec2(served: Served) -> Any:
    """Without its types: parameters come from tables here."""
    return served.ec2


def named(served: Served, ec2: Any, text: str) -> dict[str, Callable[[str], list[str]]]:
    """One of each kind with the tag Name=text; for each, what is found by a pattern of that tag."""
    image_id = next(iter(served.state.images), None) or served.register()
    tags = [{"Key": "Name", "Value": text}]

    def specified(kind: str) -> Any:
        return [{"ResourceType": kind, "Tags": tags}]

    subnet_id = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    name = f"n{abs(hash(text))}"
    ec2.create_volume(AvailabilityZone=ZONE, Size=1, TagSpecifications=specified("volume"))
    volume_id = ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    ec2.create_snapshot(VolumeId=volume_id, TagSpecifications=specified("snapshot"))
    ec2.create_key_pair(KeyName=name, KeyType="ed25519", TagSpecifications=specified("key-pair"))
    ec2.create_security_group(GroupName=name, Description="d", TagSpecifications=specified("security-group"))
    ec2.create_network_interface(SubnetId=subnet_id, TagSpecifications=specified("network-interface"))
    ec2.allocate_address(TagSpecifications=specified("elastic-ip"))
    ec2.run_instances(
        ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1,
        TagSpecifications=specified("instance"),
    )  # fmt: skip
    listings = {
        "describe_volumes": "Volumes", "describe_snapshots": "Snapshots", "describe_key_pairs": "KeyPairs",
        "describe_security_groups": "SecurityGroups", "describe_network_interfaces": "NetworkInterfaces",
        "describe_addresses": "Addresses", "describe_instances": "Reservations",
    }  # fmt: skip

    def by_tag(call: str, member: str) -> Callable[[str], list[str]]:
        def found(pattern: str) -> list[str]:
            answer = getattr(ec2, call)(Filters=[{"Name": "tag:Name", "Values": [pattern]}])
            items = answer[member]
            if member == "Reservations":
                items = [item for group in items for item in group["Instances"]]
            return [tag["Value"] for item in items for tag in item.get("Tags") or item["TagSet"]]

        return found

    kinds = {call: by_tag(call, member) for call, member in listings.items()}

    def described(pattern: str) -> list[str]:
        answer = ec2.describe_tags(
            Filters=[{"Name": "value", "Values": [pattern]}, {"Name": "resource-type", "Values": ["volume"]}]
        )
        return [tag["Value"] for tag in answer["Tags"]]

    return kinds | {"describe_tags": described}


def test_wildcards_brackets_and_backslashes_in_every_listing(served: Served, ec2: Any) -> None:
    """EC2 User Guide, "Filter the found resources"; boto's issue 2172 has the example with the backslash."""
    first, second = "*amazon?\\[x86_64]", "xamazonq x"
    named(served, ec2, second)
    listings = named(served, ec2, first)
    cases = {
        r"\*amazon*": [first], r"\*amazon\?*": [first], r"\*amazon\?\\*": [first],
        r"*[x86_64]": [first], "*[!q]*": [], "xamazon? x": [second], "XAMAZON*": [],
        "*amazon*": [second, first], r"\*amazon\?\\[x86_64]": [first], "*": [second, first],
    }  # fmt: skip
    for listing, found in listings.items():
        for pattern, expected in cases.items():
            assert sorted(found(pattern)) == sorted(expected), (listing, pattern)


def test_an_image_is_found_by_its_exact_name(served: Served, ec2: Any) -> None:
    served.register("golden [x86_64] 2026", parameter="/aws/service/a")
    served.register("golden x 2026", digest="1123456789abcdef", parameter="/aws/service/b")

    def found(pattern: str) -> list[str]:
        answer = ec2.describe_images(Filters=[{"Name": "name", "Values": [pattern]}])
        return [image["Name"] for image in answer["Images"]]

    assert found("golden [x86_64] 2026") == ["golden [x86_64] 2026"]
    assert found("golden [!q] *") == []


def test_a_filter_is_met_by_one_of_several_values(ec2: Any) -> None:
    """Keys of tags, for one: moto wants all of a resource's."""
    tags = [{"Key": key, "Value": "v"} for key in ("a", "b", "c")]
    ec2.create_volume(
        AvailabilityZone=ZONE, Size=1, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}]
    )
    for values in (["a"], ["a", "x"], ["b", "c"], ["?"]):
        answer = ec2.describe_volumes(Filters=[{"Name": "tag-key", "Values": values}])
        assert len(answer["Volumes"]) == 1, values


def test_filters_of_other_listings(ec2: Any) -> None:
    """Patterns where moto compares: attributes, zones and gateways."""
    assert ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["*1a"]}])["Subnets"]
    zones = ec2.describe_availability_zones(Filters=[{"Name": "zone-name", "Values": ["us-east-1?"]}])
    assert len(zones["AvailabilityZones"]) == 6
    assert ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    assert ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["d?f*"]}])[
        "SecurityGroups"
    ]
    assert not ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["[d]efault"]}])[
        "SecurityGroups"
    ]


def ten_of_each(served: Served, ec2: Any) -> None:
    subnet_id = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    for number in range(10):
        served.register(f"image {number}", digest=f"{number}" * 16, parameter=f"/aws/service/{number}")
        volume_id = ec2.create_volume(
            AvailabilityZone=ZONE, Size=1,
            TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "n", "Value": str(number)}]}],
        )["VolumeId"]  # fmt: skip
        ec2.create_snapshot(VolumeId=volume_id)
        ec2.create_network_interface(SubnetId=subnet_id)


PAGED = {
    "describe_volumes": "Volumes", "describe_images": "Images", "describe_snapshots": "Snapshots",
    "describe_tags": "Tags", "describe_network_interfaces": "NetworkInterfaces",
    "describe_subnets": "Subnets", "describe_instance_types": "InstanceTypes",
}  # fmt: skip


def test_every_listing_comes_in_pages(served: Served, ec2: Any) -> None:
    ten_of_each(served, ec2)
    unchecked = served.client("ec2", config=Config(parameter_validation=False, retries={"max_attempts": 0}))
    for call, member in PAGED.items():
        describe = getattr(ec2, call)
        whole = ec2.get_paginator(call).paginate().build_full_result()[member]
        first = describe(MaxResults=5)
        assert len(first[member]) == 5, call
        assert first["NextToken"], call
        pages = ec2.get_paginator(call).paginate(PaginationConfig={"PageSize": 5})
        items = [item for page in pages for item in page[member]]
        assert items == whole, call
        for most in (1, 4, 1001):
            with refused("InvalidParameterValue"):
                getattr(unchecked, call)(MaxResults=most)
        with refused("InvalidParameterValue"):
            describe(NextToken="rubbish")


def test_a_page_goes_on_behind_what_is_gone(served: Served, ec2: Any) -> None:
    ten_of_each(served, ec2)
    first = ec2.describe_volumes(MaxResults=5)
    for volume in first["Volumes"]:
        ec2.delete_volume(VolumeId=volume["VolumeId"])
    rest = ec2.describe_volumes(MaxResults=5, NextToken=first["NextToken"])
    assert not {v["VolumeId"] for v in rest["Volumes"]} & {v["VolumeId"] for v in first["Volumes"]}


def test_which_actions_page_is_read_from_their_models() -> None:
    assert paging("DescribeLaunchTemplates") is not None
    instances = paging("DescribeNetworkInterfaces")
    assert instances is not None
    assert (instances.items, instances.least, instances.most) == ("NetworkInterfaces", 5, 1000)
    assert instances.excluded == ("NetworkInterfaceIds",)
    for action in ("DescribeAddresses", "DescribeKeyPairs", "RunInstances", "DeleteVolume"):
        assert paging(action) is None, action
