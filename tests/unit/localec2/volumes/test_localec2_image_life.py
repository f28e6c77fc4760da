"""Deprecation, disabling, protection, references and last launches of images, by boto3."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.localec2_served import refused
from support.patience import until

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def own(served: Served, name: str = "own") -> str:
    image_id = served.ec2.copy_image(
        Name=name, SourceImageId=served.register(), SourceRegion="us-east-1"
    )["ImageId"]  # fmt: skip
    until(lambda: described(served, image_id)["State"] == "available")
    return image_id


def described(served: Served, image_id: str, **more: Any) -> Any:
    return served.ec2.describe_images(ImageIds=[image_id], **more)["Images"][0]


def launch(served: Served, image_id: str) -> str:
    made = served.ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    return made["Instances"][0]["InstanceId"]


def test_a_disabled_image_is_hidden_and_does_not_launch(served: Served) -> None:
    image_id = own(served)
    assert served.ec2.disable_image(ImageId=image_id)["Return"] is True
    served.restart()
    assert served.ec2.describe_images(ImageIds=[image_id])["Images"] == []
    assert described(served, image_id, IncludeDisabled=True)["State"] == "disabled"
    with refused("InvalidAMIID.Unavailable"):
        launch(served, image_id)
    served.ec2.enable_image(ImageId=image_id)
    launch(served, image_id)
    with refused("AuthFailure"):
        served.ec2.disable_image(ImageId=served.register())


def test_deprecation_is_to_the_minute_and_lies_ahead(served: Served) -> None:
    image_id, at = own(served), (datetime.now(UTC) + timedelta(days=30)).replace(second=20)
    served.ec2.enable_image_deprecation(ImageId=image_id, DeprecateAt=at)
    assert described(served, image_id)["DeprecationTime"] == f"{at:%Y-%m-%dT%H:%M}:00.000Z"
    with refused("InvalidParameterValue"):
        served.ec2.enable_image_deprecation(ImageId=image_id, DeprecateAt=datetime(2020, 1, 1, tzinfo=UTC))
    served.ec2.disable_image_deprecation(ImageId=image_id)
    assert "DeprecationTime" not in described(served, image_id)


def test_a_deprecated_image_of_others_is_in_no_listing_that_does_not_ask_for_it(served: Served) -> None:
    """API_DescribeImages, IncludeDeprecated. Its owner sees it, and whoever knows its id."""
    theirs, ours = served.register(), own(served)
    for image_id in (theirs, ours):
        served.state.images[image_id].deprecation_time = datetime.now(UTC) - timedelta(days=1)
    named: Any = [{"Name": "image-id", "Values": [theirs, ours]}]

    def listed(**more: Any) -> set[str]:
        return {image["ImageId"] for image in served.ec2.describe_images(**more)["Images"]}

    assert listed(Filters=named) == {ours}
    assert listed(Owners=["self"]) == {ours}
    assert listed(Filters=named, IncludeDeprecated=True) == {theirs, ours}
    assert listed(ImageIds=[theirs]) == {theirs}


@pytest.mark.parametrize("cooldown", [False, True])
def test_a_protected_image_stays(served: Served, cooldown: bool) -> None:
    image_id = own(served)
    word = "enabled-with-cooldown" if cooldown else "enabled-without-cooldown"
    served.ec2.enable_image_deregistration_protection(ImageId=image_id, WithCooldown=cooldown)
    assert described(served, image_id)["DeregistrationProtection"] == word
    with refused("OperationNotPermitted"):
        served.ec2.deregister_image(ImageId=image_id)
    served.ec2.disable_image_deregistration_protection(ImageId=image_id)
    if cooldown:
        with refused("OperationNotPermitted"):
            served.ec2.deregister_image(ImageId=image_id)
        until_then = datetime.now(UTC) - timedelta(seconds=1)
        served.state.images[image_id].protected_until = until_then
    assert described(served, image_id)["DeregistrationProtection"] == "disabled"
    served.ec2.deregister_image(ImageId=image_id)


def test_who_refers_to_an_image_and_when_it_was_launched(served: Served) -> None:
    image_id, other = own(served), own(served, "other")
    attribute: Any = {"ImageId": image_id, "Attribute": "lastLaunchedTime"}
    assert served.ec2.describe_image_attribute(**attribute)["LastLaunchedTime"] == {}
    instance_id = launch(served, image_id)
    launched = served.ec2.describe_image_attribute(**attribute)["LastLaunchedTime"]["Value"]
    age = datetime.now(UTC) - datetime.fromisoformat(launched.replace("Z", "+00:00"))
    assert timedelta(0) <= age < timedelta(minutes=1)
    served.ssm.put_parameter(Name="/web/ami", Value=image_id, Type="String")
    both: Any = {"ImageIds": [image_id, other]}
    found = served.ec2.describe_image_references(IncludeAllResourceTypes=True, **both)["ImageReferences"]
    assert sorted((item["ImageId"], item["ResourceType"], item["Arn"]) for item in found) == [
        (image_id, "ec2:Instance", f"arn:aws:ec2:us-east-1:123456789012:instance/{instance_id}"),
        (image_id, "ssm:Parameter", "arn:aws:ssm:us-east-1:123456789012:parameter/web/ami"),
    ]
    only: Any = [{"ResourceType": "ssm:Parameter"}]
    (found_one,) = served.ec2.describe_image_references(ResourceTypes=only, **both)["ImageReferences"]
    assert found_one["ResourceType"] == "ssm:Parameter"
    with refused("InvalidParameterCombination"):
        served.ec2.describe_image_references(**both)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2030-01-01T12:00:29Z", "2030-01-01T12:00"),
        ("2030-01-01T12:00:45Z", "2030-01-01T12:01"),
        ("2030-12-31T23:59:30Z", "2031-01-01T00:00"),
    ],
)
def test_a_deprecation_time_is_rounded_to_the_nearest_minute(
    served: Served, given: str, expected: str
) -> None:
    source = served.register()
    image_id = served.ec2.copy_image(SourceImageId=source, SourceRegion="us-east-1", Name="mine")["ImageId"]
    served.ec2.enable_image_deprecation(ImageId=image_id, DeprecateAt=given)
    (image,) = served.ec2.describe_images(ImageIds=[image_id])["Images"]
    assert image["DeprecationTime"] == f"{expected}:00.000Z"
