"""Pages, patterns, and answers in which moto and EC2 differ; the contract suite asks for the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from instant_env.localec2.api.pages import is_pattern, matches, page
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


def test_what_a_pattern_is() -> None:
    assert [is_pattern(text) for text in ("a*", "a?", "a", r"a\*", r"a\?*")] == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_pages_are_not_shifted_by_what_goes() -> None:
    names = list("abcdefghijkl")
    items, token = page(names, None, 5, str)
    assert (items, token) == (list("abcde"), "e")
    items, token = page([name for name in names if name != "b"], token, 5, str)
    assert (items, token) == (list("fghij"), "j")
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


def test_tags_want_something_to_be_on(served: Served) -> None:
    for resource_id, code in {
        "i-0123456789abcdef0": "InvalidInstanceID.NotFound",
        "vol-0123456789abcdef0": "InvalidVolume.NotFound",
        "snap-0123456789abcdef0": "InvalidSnapshot.NotFound",
        "ami-0123456789abcdef0": "InvalidAMIID.NotFound",
    }.items():
        with refused(code):
            served.ec2.create_tags(Resources=[resource_id], Tags=[{"Key": "a", "Value": "b"}])


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
