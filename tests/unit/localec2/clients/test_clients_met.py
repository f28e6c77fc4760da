"""What SDKs, Ansible and Cloud Custodian met (tests/contract/clients), by its kind."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

ONCE = Config(retries={"max_attempts": 0})
TRUST = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", '
    '"Principal": {"Service": "ec2.amazonaws.com"}}]}'
)


@pytest.fixture
def ec2(served: Served) -> Any:
    return served.client("ec2", config=ONCE)


def refused(code: str, text: str = "") -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\).*{text}")


def named(name: str, *values: str) -> list[dict[str, Any]]:
    return [{"Name": name, "Values": list(values)}]


def test_the_regions_are_those_in_which_calls_are_served(ec2: Any) -> None:
    """Ansible's inventory and `custodian run --region all` ask each region that is listed."""
    for arguments in ({}, {"AllRegions": True}, {"RegionNames": ["us-east-1"]}):
        (region,) = ec2.describe_regions(**arguments)["Regions"]
        assert region["RegionName"] == "us-east-1"
        assert region["Endpoint"] == "ec2.us-east-1.amazonaws.com"
    with refused("InvalidParameterValue", "eu-west-1"):
        ec2.describe_regions(RegionNames=["eu-west-1"])


def test_filters_of_regions_and_zones(ec2: Any) -> None:
    """moto does not look at them, or at some."""

    def regions(*filter_: str) -> int:
        return len(ec2.describe_regions(Filters=named(*filter_))["Regions"])

    def zones(*filter_: str) -> list[str]:
        found = ec2.describe_availability_zones(Filters=named(*filter_))["AvailabilityZones"]
        return [zone["ZoneName"][-1] for zone in found]

    assert regions("region-name", "us-*") == regions("endpoint", "*east-1*") == 1
    assert regions("region-name", "eu-*") == 0
    assert zones("opt-in-status", "opt-in-not-required") == list("abcdef")
    assert zones("opt-in-status", "opted-in") == []
    assert zones("zone-name", "*a", "*f") == list("af")
    assert zones("zone-id", "use1-az6") == ["a"]
    with refused("InvalidParameterValue", "us-east-1q"):
        ec2.describe_availability_zones(ZoneNames=["us-east-1q"])
    with refused("UnsupportedOperation", "parent-zone-id"):
        ec2.describe_availability_zones(Filters=named("parent-zone-id", "x"))


#: Listings whose filter of an unknown name moto overlooked, or failed at with an error of its own.
LISTINGS = (
    "describe_addresses", "describe_availability_zones", "describe_dhcp_options", "describe_images",
    "describe_instance_credit_specifications", "describe_instance_status", "describe_instance_types",
    "describe_instances", "describe_internet_gateways", "describe_key_pairs", "describe_launch_templates",
    "describe_managed_prefix_lists", "describe_network_acls", "describe_network_interfaces",
    "describe_prefix_lists", "describe_regions", "describe_route_tables", "describe_security_group_rules",
    "describe_security_groups", "describe_snapshots", "describe_spot_instance_requests", "describe_subnets",
    "describe_tags", "describe_volumes", "describe_volumes_modifications", "describe_vpcs",
)  # fmt: skip


def test_a_filter_that_no_listing_has_is_invalid(ec2: Any) -> None:
    for listing in LISTINGS:
        with refused("InvalidParameterValue", "The filter 'colour' is invalid"):
            getattr(ec2, listing)(Filters=named("colour", "red"))


def test_disks_of_instance_types_are_no_filter_here(ec2: Any) -> None:
    """moto takes the list of them for one disk, and fails."""
    with refused("UnsupportedOperation", "instance-storage-info.disk.type"):
        ec2.describe_instance_types(Filters=named("instance-storage-info.disk.type", "ssd"))
    types = ec2.describe_instance_types(Filters=named("instance-storage-info.nvme-support", "required"))
    assert types["InstanceTypes"]


def test_filters_by_their_older_names(ec2: Any) -> None:
    """Ansible looks for the default VPC by `isDefault`."""
    assert len(ec2.describe_vpcs(Filters=named("isDefault", "true"))["Vpcs"]) == 1
    assert len(ec2.describe_subnets(Filters=named("defaultForAz", "true"))["Subnets"]) == 6
    assert ec2.describe_instances(Filters=named("group-id", "sg-1"))["Reservations"] == []
    assert ec2.describe_addresses(Filters=named("domain", "vpc"))["Addresses"] == []


def test_filters_of_instances(served: Served, ec2: Any) -> None:
    """Those that moto lacks: what is described of an instance is what it is found by."""
    image_id = served.register()
    arguments = {"ImageId": image_id, "MinCount": 1, "MaxCount": 1}
    first = ec2.run_instances(InstanceType="t3.micro", **arguments)["Instances"][0]["InstanceId"]
    options = {"HttpTokens": "optional", "HttpPutResponseHopLimit": 7, "InstanceMetadataTags": "enabled"}
    data = {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "DeleteOnTermination": False}}
    second = ec2.run_instances(
        InstanceType="t3.small", Monitoring={"Enabled": True}, ClientToken="second",
        MetadataOptions=options,
        InstanceMarketOptions={"MarketType": "spot"}, BlockDeviceMappings=[data], **arguments,
    )["Instances"][0]["InstanceId"]  # fmt: skip
    ec2.get_waiter("instance_running").wait(InstanceIds=[first, second])
    described = ec2.describe_instances(InstanceIds=[second])["Reservations"][0]
    (instance,) = described["Instances"]
    volumes = [item["Ebs"]["VolumeId"] for item in instance["BlockDeviceMappings"]]
    assert len(volumes) == 2

    def found(name: str, *values: str) -> list[str]:
        answer = ec2.describe_instances(Filters=named(name, *values))["Reservations"]
        return [item["InstanceId"] for reservation in answer for item in reservation["Instances"]]

    of_second = {
        "block-device-mapping.device-name": "/dev/sdf", "block-device-mapping.volume-id": volumes[1],
        "block-device-mapping.delete-on-termination": "false", "client-token": "second",
        "instance-lifecycle": "spot", "metadata-options.http-tokens": "optional",
        "metadata-options.http-put-response-hop-limit": "7",
        "metadata-options.instance-metadata-tags": "enabled", "monitoring-state": "enabled",
        "reservation-id": described["ReservationId"],
        "spot-instance-request-id": instance["SpotInstanceRequestId"],
    }  # fmt: skip
    for name, value in of_second.items():
        assert found(name, value) == [second], name
        assert found(name, "none", value[:-1] + "?" if len(value) > 1 else value) == [second], name
    of_both = {
        "boot-mode": instance["BootMode"], "hypervisor": instance["Hypervisor"], "root-device-type": "ebs",
        "instance-state-code": str(instance["State"]["Code"]), "root-device-name": instance["RootDeviceName"],
        "launch-time": instance["LaunchTime"].strftime("%Y-%m-*"), "tenancy": "default",
        "virtualization-type": instance["VirtualizationType"], "ebs-optimized": "false",
        "launch-index": "0", "hibernation-options.configured": "false", "enclave-options.enabled": "false",
        "metadata-options.http-endpoint": "enabled", "block-device-mapping.status": "attached",
    }  # fmt: skip
    for name, value in of_both.items():
        assert sorted(found(name, value)) == sorted([first, second]), name
        assert found(name, "none") == [], name


def test_credit_specifications_of_the_instances_that_are_asked_for(served: Served, ec2: Any) -> None:
    image_id = served.register()
    answer = ec2.run_instances(ImageId=image_id, InstanceType="t3.micro", MinCount=2, MaxCount=2)
    first, second = (instance["InstanceId"] for instance in answer["Instances"])
    for patterns, expected in ((["i-0"], []), ([second], [second]), (["i-*"], sorted([first, second]))):
        listed = ec2.describe_instance_credit_specifications(Filters=named("instance-id", *patterns))
        assert sorted(item["InstanceId"] for item in listed["InstanceCreditSpecifications"]) == expected


def test_attributes_of_the_account(ec2: Any) -> None:
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    answer = ec2.describe_account_attributes(AttributeNames=["default-vpc", "supported-platforms"])
    attributes = {item["AttributeName"]: item["AttributeValues"] for item in answer["AccountAttributes"]}
    assert attributes == {
        "default-vpc": [{"AttributeValue": vpc["VpcId"]}],
        "supported-platforms": [{"AttributeValue": "VPC"}],
    }


def test_policies_of_aws_are_listed(served: Served) -> None:
    """Ansible finds a policy's ARN by its name in the list of all."""
    iam: Any = served.client("iam", config=ONCE)

    def arns(**arguments: Any) -> list[str]:
        pages = iam.get_paginator("list_policies").paginate(**arguments)
        return [policy["Arn"] for page in pages for policy in page["Policies"]]

    document = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
    iam.create_policy(PolicyName="own", PolicyDocument=document)
    ssm = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
    own = "arn:aws:iam::123456789012:policy/own"
    everything = arns()
    assert {ssm, own} <= set(everything)
    assert len(everything) == len(set(everything)) > 1000
    assert arns(Scope="Local") == [own]
    assert own not in arns(Scope="AWS")
    iam.create_role(RoleName="role", AssumeRolePolicyDocument=TRUST)
    iam.attach_role_policy(RoleName="role", PolicyArn=ssm)
    assert arns(OnlyAttached=True) == [ssm]


def test_a_list_without_elements_is_absent(served: Served) -> None:
    """The query protocol writes it as an empty field. Ansible's profiles have the tags of their role."""
    iam: Any = served.client("iam", config=ONCE)
    profile = iam.create_instance_profile(InstanceProfileName="profile", Tags=[])["InstanceProfile"]
    assert not profile.get("Tags")
    iam.create_role(RoleName="role", AssumeRolePolicyDocument=TRUST, Tags=[], Description="")
    assert iam.get_role(RoleName="role")["Role"].get("Description", "") == ""


def test_a_machine_without_a_public_address_has_no_association(served: Served, ec2: Any) -> None:
    """Clients of the SDK for Go saw an empty object where EC2 has none."""
    interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": False}
    (made,) = ec2.run_instances(
        ImageId=served.register(), InstanceType="t3.micro", MinCount=1, MaxCount=1,
        NetworkInterfaces=[interface],
    )["Instances"]  # fmt: skip
    (reservation,) = ec2.describe_instances(InstanceIds=[made["InstanceId"]])["Reservations"]
    (card,) = reservation["Instances"][0]["NetworkInterfaces"]
    (listed,) = ec2.describe_network_interfaces(NetworkInterfaceIds=[card["NetworkInterfaceId"]])[
        "NetworkInterfaces"
    ]
    for described in (card, listed):
        assert "Association" not in described
        assert "Association" not in described["PrivateIpAddresses"][0]


def test_every_answer_has_an_id(served: Served, ec2: Any) -> None:
    """SDKs show it with each error, and read it from a header alone."""
    push: Any = served.client("ec2-instance-connect", config=ONCE)
    sts: Any = served.client("sts", config=ONCE)
    ssm: Any = served.client("ssm", config=ONCE)
    stranger = boto3.client(
        "ec2", endpoint_url=served.server.url, region_name="us-east-1", config=ONCE,
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="none",
    )  # fmt: skip
    key = {"InstanceOSUser": "root", "SSHPublicKey": "ssh-ed25519 " + "A" * 80}
    failures = [
        lambda: ec2.describe_instances(InstanceIds=["i-0123456789abcdef0"]),
        lambda: ec2.create_vpc_peering_connection(VpcId="vpc-1"),
        stranger.describe_instances,
        sts.get_session_token,
        lambda: ssm.get_parameter(Name="/none"),
        lambda: push.send_ssh_public_key(InstanceId="i-0123456789abcdef0", **key),
    ]
    ids = set()
    for call in failures:
        with pytest.raises(ClientError) as error:
            call()
        metadata = error.value.response["ResponseMetadata"]
        assert metadata["HTTPHeaders"]["x-amzn-requestid"], error.value
        ids.add(metadata["RequestId"])
    assert len(ids) == len(failures)
    # The body's and the header's are one.
    header = ec2.describe_vpcs()["ResponseMetadata"]
    assert uuid.UUID(header["RequestId"]) == uuid.UUID(header["HTTPHeaders"]["x-amzn-requestid"])
