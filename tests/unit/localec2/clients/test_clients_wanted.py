"""What people's configurations have besides machines: policies, tags of roles, copies of snapshots."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from support.patience import until

from instant_env.localec2.api import allowed
from instant_env.localec2.state.identities import RoleRecord

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


def document(*actions: str) -> str:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}
        ],
    }
)


def test_a_policy_of_ones_own_is_kept_and_counts(served: Served) -> None:
    iam = served.client("iam")
    arn = iam.create_policy(
        PolicyName="mine", PolicyDocument=document("ec2:DescribeVolumes"), Description="d",
        Tags=[{"Key": "Team", "Value": "A"}],
    )["Policy"]["Arn"]  # fmt: skip
    iam.create_role(RoleName="r", AssumeRolePolicyDocument=TRUST)
    iam.attach_role_policy(RoleName="r", PolicyArn=arn)
    iam.create_policy_version(PolicyArn=arn, PolicyDocument=document("ec2:DescribeImages"), SetAsDefault=True)
    served.restart()
    iam = served.client("iam")
    policy = iam.get_policy(PolicyArn=arn)["Policy"]
    assert (policy["DefaultVersionId"], policy["AttachmentCount"], policy["Description"]) == ("v2", 1, "d")
    assert iam.list_policy_tags(PolicyArn=arn)["Tags"] == [{"Key": "Team", "Value": "A"}]
    versions = iam.list_policy_versions(PolicyArn=arn)["Versions"]
    assert {item["VersionId"]: item["IsDefaultVersion"] for item in versions} == {"v1": False, "v2": True}
    shown = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
    assert shown["Statement"][0]["Action"] == ["ec2:DescribeVolumes"]
    role: RoleRecord = served.state.identities.roles["r"]
    assert served.state.identities.allows(role, "ec2:DescribeImages")
    assert not served.state.identities.allows(role, "ec2:DescribeVolumes")
    with refused("DeleteConflict"):
        iam.delete_policy(PolicyArn=arn)
    iam.detach_role_policy(RoleName="r", PolicyArn=arn)
    with refused("DeleteConflict"):
        iam.delete_policy(PolicyArn=arn)
    iam.delete_policy_version(PolicyArn=arn, VersionId="v1")
    iam.delete_policy(PolicyArn=arn)
    served.restart()
    with refused("NoSuchEntity"):
        served.client("iam").get_policy(PolicyArn=arn)


def test_one_of_amazons_policies_can_be_read(served: Served) -> None:
    arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
    assert served.client("iam").get_policy(PolicyArn=arn)["Policy"]["Arn"] == arn


def test_roles_and_profiles_have_tags(served: Served) -> None:
    iam = served.client("iam")
    iam.create_role(RoleName="r", AssumeRolePolicyDocument=TRUST, Description="before")
    iam.create_instance_profile(InstanceProfileName="p")
    tags = [{"Key": "Team", "Value": "A"}, {"Key": "gone", "Value": "x"}]
    iam.tag_role(RoleName="r", Tags=tags)
    iam.untag_role(RoleName="r", TagKeys=["gone"])
    iam.tag_instance_profile(InstanceProfileName="p", Tags=tags)
    iam.untag_instance_profile(InstanceProfileName="p", TagKeys=["gone"])
    iam.update_role(RoleName="r", MaxSessionDuration=7200)
    served.restart()
    iam = served.client("iam")
    assert iam.list_role_tags(RoleName="r")["Tags"] == [{"Key": "Team", "Value": "A"}]
    profile = iam.get_instance_profile(InstanceProfileName="p")["InstanceProfile"]
    assert profile["Tags"] == [{"Key": "Team", "Value": "A"}]
    role = iam.get_role(RoleName="r")["Role"]
    assert (role["Description"], role["MaxSessionDuration"]) == ("before", 7200)


def test_a_snapshot_is_copied(served: Served) -> None:
    ec2: Any = served.ec2
    volume_id = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    source = ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"]
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[source], WaiterConfig={"Delay": 0})
    tags = [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]
    copied = ec2.copy_snapshot(
        SourceRegion="us-east-1", SourceSnapshotId=source, Description="a copy", Encrypted=True,
        TagSpecifications=tags,
    )["SnapshotId"]  # fmt: skip
    until(lambda: ec2.describe_snapshots(SnapshotIds=[copied])["Snapshots"][0]["State"] == "completed")
    ec2.delete_snapshot(SnapshotId=source)
    served.restart()
    (shown,) = served.ec2.describe_snapshots(SnapshotIds=[copied])["Snapshots"]
    assert (shown["Description"], shown["Encrypted"], shown["VolumeSize"]) == ("a copy", True, 1)
    assert shown["Tags"] == [{"Key": "a", "Value": "b"}]
    assert served.state.layout.snapshot(copied).exists()
    with refused("UnsupportedOperation"):
        ec2 = served.ec2
        ec2.copy_snapshot(SourceRegion="eu-west-1", SourceSnapshotId=copied)
    with refused("InvalidSnapshot.NotFound"):
        ec2.copy_snapshot(SourceRegion="us-east-1", SourceSnapshotId="snap-0123456789abcdef0")


def test_the_default_vpc_has_its_gateway(served: Served) -> None:
    """Found by its VPC, as modules do; the same after a restart, with its tags and its route."""
    ec2: Any = served.ec2
    vpc_id = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    attached: Any = [{"Name": "attachment.vpc-id", "Values": [vpc_id]}]
    (gateway,) = ec2.describe_internet_gateways(Filters=attached)["InternetGateways"]
    gateway_id = gateway["InternetGatewayId"]
    ec2.create_tags(Resources=[gateway_id], Tags=[{"Key": "a", "Value": "b"}])
    served.restart()
    (again,) = served.ec2.describe_internet_gateways(Filters=attached)["InternetGateways"]
    assert (again["InternetGatewayId"], again["Tags"]) == (gateway_id, [{"Key": "a", "Value": "b"}])
    (table,) = served.ec2.describe_route_tables(Filters=[{"Name": "association.main", "Values": ["true"]}])[
        "RouteTables"
    ]
    routes = {route["DestinationCidrBlock"]: route["GatewayId"] for route in table["Routes"]}
    assert routes == {"172.31.0.0/16": "local", "0.0.0.0/0": gateway_id}


def test_a_launch_from_a_template(served: Served) -> None:
    ec2: Any = served.ec2
    data = {
        "ImageId": served.register(), "InstanceType": "t3.micro", "UserData": "Zmlyc3Q=",
        "Monitoring": {"Enabled": True}, "MetadataOptions": {"HttpTokens": "required"},
        "EnclaveOptions": {"Enabled": False},
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3, "VolumeType": "gp3"}},
            {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1}},
        ],
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "1"}]}
        ],
    }  # fmt: skip
    made = ec2.create_launch_template(
        LaunchTemplateName="web", LaunchTemplateData=data, VersionDescription="first",
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": [{"Key": "t", "Value": "v"}]}],
    )["LaunchTemplate"]  # fmt: skip
    template_id = made["LaunchTemplateId"]
    second = ec2.create_launch_template_version(
        LaunchTemplateId=template_id, SourceVersion="1", LaunchTemplateData={"InstanceType": "t3.small"}
    )["LaunchTemplateVersion"]
    assert (second["VersionNumber"], second["LaunchTemplateData"]["ImageId"]) == (2, data["ImageId"])
    served.restart()
    ec2 = served.ec2
    (shown,) = ec2.describe_launch_templates(Filters=[{"Name": "tag:t", "Values": ["?"]}])["LaunchTemplates"]
    assert (shown["DefaultVersionNumber"], shown["LatestVersionNumber"]) == (1, 2)
    (first,) = ec2.describe_launch_template_versions(LaunchTemplateName="web", Versions=["$Default"])[
        "LaunchTemplateVersions"
    ]
    assert first["LaunchTemplateData"] == data | {"EnclaveOptions": {"Enabled": False}}
    assert first["VersionDescription"] == "first"

    def launch(**more: Any) -> Any:
        return ec2.run_instances(MinCount=1, MaxCount=1, **more)["Instances"][0]

    by_default = launch(
        LaunchTemplate={"LaunchTemplateName": "web"},
        TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "b", "Value": "2"}]}],
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 4}}],
    )
    assert by_default["InstanceType"] == "t3.micro"
    assert {tag["Key"]: tag["Value"] for tag in by_default["Tags"]} == {"a": "1", "b": "2"}
    volumes = [v for v in served.state.volumes.values() if v.attachment]
    assert sorted(volume.size_gib for volume in volumes) == [1, 4]
    latest = launch(LaunchTemplate={"LaunchTemplateId": template_id, "Version": "$Latest"})
    assert latest["InstanceType"] == "t3.small"
    over = launch(LaunchTemplate={"LaunchTemplateId": template_id}, InstanceType="t3.medium")
    assert over["InstanceType"] == "t3.medium"
    ec2.modify_launch_template(LaunchTemplateId=template_id, DefaultVersion="2")
    assert launch(LaunchTemplate={"LaunchTemplateId": template_id})["InstanceType"] == "t3.small"
    gone = ec2.delete_launch_template_versions(LaunchTemplateId=template_id, Versions=["1", "2"])
    assert [item["VersionNumber"] for item in gone["SuccessfullyDeletedLaunchTemplateVersions"]] == [1]
    assert [item["VersionNumber"] for item in gone["UnsuccessfullyDeletedLaunchTemplateVersions"]] == [2]
    ec2.delete_launch_template(LaunchTemplateId=template_id)
    with refused("InvalidLaunchTemplateId.NotFound"):
        launch(LaunchTemplate={"LaunchTemplateId": template_id})
    assert not [tag for tag in ec2.describe_tags()["Tags"] if tag["ResourceId"] == template_id]


def test_what_a_launch_cannot_say_a_template_cannot(served: Served) -> None:
    ec2: Any = served.ec2
    for data, name in (
        ({"Placement": {"Tenancy": "dedicated"}}, "Placement.Tenancy"),
        (
            {"InstanceRequirements": {"VCpuCount": {"Min": 1}, "MemoryMiB": {"Min": 1}}},
            "InstanceRequirements",
        ),
        ({"InstanceMarketOptions": {"MarketType": "capacity-block"}}, "MarketType"),
    ):
        with refused("UnsupportedOperation") as error:
            ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)
        assert name in str(error.value)
    ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData={"InstanceType": "t3.micro"})
    with refused("InvalidLaunchTemplateName.AlreadyExistsException"):
        ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData={"InstanceType": "t3.micro"})
    with refused("InvalidLaunchTemplateId.VersionNotFound"):
        ec2.run_instances(
            MinCount=1, MaxCount=1, LaunchTemplate={"LaunchTemplateName": "web", "Version": "7"}
        )


@pytest.mark.parametrize(
    "action",
    [
        "CreateNatGateway", "CreateVpcPeeringConnection", "CreateVpcEndpoint", "AssociateVpcCidrBlock",
        "CreateNetworkAcl", "CreateNetworkAclEntry", "CreateEgressOnlyInternetGateway", "CreateDhcpOptions",
        "CreateFlowLogs", "CreatePlacementGroup", "EnableEbsEncryptionByDefault",
        "ModifyInstanceMetadataDefaults", "ModifySnapshotAttribute", "ResetImageAttribute",
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_its_name(action: str) -> None:
    """And stands in the table of differences: rows `networks` and `refused`."""
    assert allowed.refusal(action, []) == f"localec2 does not support {action}."
