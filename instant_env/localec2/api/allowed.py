"""Which actions change something here, and with which parameters; all else answers UnsupportedOperation.

An emulator that says "done" to what it did not do is worse than none, so this is a list of what is done, not
of what is not. Names are those of the wire (``SecurityGroupId.1`` for boto3's ``SecurityGroupIds[0]``),
without the numbers; reading the wire means that a parameter newer than the installed botocore is refused and
not overlooked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from instant_env.localec2.api.requests.defaults import as_it_is
from instant_env.localec2.api.requests.fields import typed, without_numbers

#: In every request of the query protocol.
_PROTOCOL = frozenset({"Action", "Version", "DryRun"})
_TAGS = frozenset({"TagSpecification.ResourceType", "TagSpecification.Tag.Key", "TagSpecification.Tag.Value"})
_EBS = frozenset(
    f"BlockDeviceMapping.{name}"
    for name in (
        "DeviceName",
        "Ebs.SnapshotId",
        "Ebs.VolumeSize",
        "Ebs.VolumeType",
        "Ebs.DeleteOnTermination",
        "Ebs.Encrypted",
        "Ebs.Iops",
        "Ebs.Throughput",
        "NoDevice",
    )
)
#: API_EbsBlockDevice: of launches only.
_LAUNCH_EBS = _EBS | {
    "BlockDeviceMapping.Ebs.KmsKeyId", "BlockDeviceMapping.Ebs.VolumeInitializationRate",
}  # fmt: skip
_RULES = frozenset(
    {
        "GroupId", "GroupName", "IpProtocol", "FromPort", "ToPort", "CidrIp",
        "IpPermissions.IpProtocol", "IpPermissions.FromPort", "IpPermissions.ToPort",
        "IpPermissions.IpRanges.CidrIp", "IpPermissions.IpRanges.Description",
        "IpPermissions.Ipv6Ranges.CidrIpv6", "IpPermissions.Ipv6Ranges.Description",
        "IpPermissions.Groups.GroupId", "IpPermissions.Groups.GroupName", "IpPermissions.Groups.UserId",
        "IpPermissions.Groups.Description",
    }
)  # fmt: skip
_DESCRIBED = frozenset(
    {"SecurityGroupRuleDescription.SecurityGroupRuleId", "SecurityGroupRuleDescription.Description"}
)

#: Mutating action -> its parameters.
ACTIONS: dict[str, frozenset[str]] = {
    "RunInstances": _TAGS | _LAUNCH_EBS | {
        "ImageId", "InstanceType", "MinCount", "MaxCount", "KeyName", "SecurityGroupId", "SecurityGroup",
        "SubnetId", "UserData", "ClientToken", "InstanceInitiatedShutdownBehavior", "EbsOptimized",
        "MetadataOptions.HttpTokens", "MetadataOptions.HttpEndpoint",
        "MetadataOptions.HttpPutResponseHopLimit",
        "MetadataOptions.InstanceMetadataTags", "Placement.AvailabilityZone",
        "InstanceMarketOptions.MarketType",
        "InstanceMarketOptions.SpotOptions.SpotInstanceType",
        "InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior",
        "InstanceMarketOptions.SpotOptions.MaxPrice",
        "NetworkInterface.DeviceIndex", "NetworkInterface.AssociatePublicIpAddress",
        "NetworkInterface.SecurityGroupId", "NetworkInterface.SubnetId",
        "NetworkInterface.DeleteOnTermination", "NetworkInterface.NetworkInterfaceId",
        "DisableApiTermination", "DisableApiStop",
        "HibernationOptions.Configured",
        "IamInstanceProfile.Name", "IamInstanceProfile.Arn", "CreditSpecification.CpuCredits",
        "CpuOptions.CoreCount", "CpuOptions.ThreadsPerCore", "Monitoring.Enabled", "PrivateIpAddress",
        "NetworkInterface.PrivateIpAddress", "LaunchTemplate.LaunchTemplateId",
        "LaunchTemplate.LaunchTemplateName", "LaunchTemplate.Version",
    },
    "ModifyInstanceCreditSpecification": frozenset(
        {"ClientToken", "InstanceCreditSpecification.InstanceId", "InstanceCreditSpecification.CpuCredits"}
    ),
    "MonitorInstances": frozenset({"InstanceId"}),
    "UnmonitorInstances": frozenset({"InstanceId"}),
    "CancelSpotInstanceRequests": frozenset({"SpotInstanceRequestId"}),
    "StartInstances": frozenset({"InstanceId"}),
    "StopInstances": frozenset({"InstanceId", "Force", "SkipOsShutdown", "Hibernate"}),
    "TerminateInstances": frozenset({"InstanceId", "Force", "SkipOsShutdown"}),
    "RebootInstances": frozenset({"InstanceId"}),
    "ModifyInstanceAttribute": frozenset(
        {
            "InstanceId", "Attribute", "Value", "InstanceInitiatedShutdownBehavior.Value", "GroupId",
            "UserData.Value", "InstanceType.Value", "EbsOptimized.Value", "DisableApiTermination.Value",
            "DisableApiStop.Value", "BlockDeviceMapping.DeviceName", "BlockDeviceMapping.Ebs.VolumeId",
            "BlockDeviceMapping.Ebs.DeleteOnTermination", "SourceDestCheck.Value",
        }
    ),
    "ModifyInstanceMetadataOptions": frozenset(
        {"InstanceId", "HttpTokens", "HttpEndpoint", "HttpPutResponseHopLimit", "InstanceMetadataTags"}
    ),
    "AssociateIamInstanceProfile": frozenset(
        {"InstanceId", "IamInstanceProfile.Name", "IamInstanceProfile.Arn"}
    ),
    "ReplaceIamInstanceProfileAssociation": frozenset(
        {"AssociationId", "IamInstanceProfile.Name", "IamInstanceProfile.Arn"}
    ),
    "DisassociateIamInstanceProfile": frozenset({"AssociationId"}),
    "CreateImage": _TAGS | _EBS | {
        "InstanceId", "Name", "Description", "NoReboot",
    },
    "RegisterImage": _TAGS | _EBS | {
        "Name", "Description", "Architecture", "RootDeviceName", "BootMode", "ImdsSupport", "EnaSupport",
        "VirtualizationType", "SriovNetSupport",
    },
    "ModifyImageAttribute": frozenset(
        {"ImageId", "Attribute", "Value", "Description.Value", "ImdsSupport.Value"}
    ),
    "CopyImage": _TAGS | {
        "Name", "Description", "SourceImageId", "SourceRegion", "ClientToken", "CopyImageTags",
    },
    "DeregisterImage": frozenset({"ImageId", "DeleteAssociatedSnapshots"}),
    "DisableImage": frozenset({"ImageId"}),
    "EnableImage": frozenset({"ImageId"}),
    "EnableImageDeprecation": frozenset({"ImageId", "DeprecateAt"}),
    "DisableImageDeprecation": frozenset({"ImageId"}),
    "EnableImageDeregistrationProtection": frozenset({"ImageId", "WithCooldown"}),
    "DisableImageDeregistrationProtection": frozenset({"ImageId"}),
    "CreateSnapshot": _TAGS | {"VolumeId", "Description"},
    "CopySnapshot": _TAGS | {
        "SourceRegion", "SourceSnapshotId", "Description", "DestinationRegion", "Encrypted", "PresignedUrl",
    },
    "DeleteSnapshot": frozenset({"SnapshotId"}),
    "CreateVolume": _TAGS | {
        "AvailabilityZone", "Size", "SnapshotId", "VolumeType", "ClientToken", "Encrypted", "Iops",
        "Throughput", "KmsKeyId", "VolumeInitializationRate",
    },
    "AttachVolume": frozenset({"VolumeId", "InstanceId", "Device"}),
    "DetachVolume": frozenset({"VolumeId", "InstanceId", "Device", "Force"}),
    "ModifyVolume": frozenset({"VolumeId", "Size", "VolumeType", "Iops", "Throughput"}),
    "DeleteVolume": frozenset({"VolumeId"}),
    "CreateKeyPair": _TAGS | {"KeyName", "KeyType", "KeyFormat"},
    "ImportKeyPair": _TAGS | {"KeyName", "PublicKeyMaterial"},
    "DeleteKeyPair": frozenset({"KeyName", "KeyPairId"}),
    "CreateSecurityGroup": _TAGS | {"GroupName", "GroupDescription", "VpcId"},
    "DeleteSecurityGroup": frozenset({"GroupId", "GroupName"}),
    "AuthorizeSecurityGroupIngress": _RULES | _TAGS,
    "RevokeSecurityGroupIngress": _RULES | {"SecurityGroupRuleId"},
    "AuthorizeSecurityGroupEgress": _RULES | _TAGS,
    "RevokeSecurityGroupEgress": _RULES | {"SecurityGroupRuleId"},
    "ModifySecurityGroupRules": frozenset({"GroupId"}) | {
        f"SecurityGroupRule.{name}"
        for name in (
            "SecurityGroupRuleId", "SecurityGroupRule.IpProtocol", "SecurityGroupRule.FromPort",
            "SecurityGroupRule.ToPort", "SecurityGroupRule.CidrIpv4", "SecurityGroupRule.CidrIpv6",
            "SecurityGroupRule.ReferencedGroupId", "SecurityGroupRule.Description",
        )
    },
    "UpdateSecurityGroupRuleDescriptionsIngress": _RULES | _DESCRIBED,
    "UpdateSecurityGroupRuleDescriptionsEgress": _RULES | _DESCRIBED,
    "CreateNetworkInterface": _TAGS | {
        "SubnetId", "PrivateIpAddress", "SecurityGroupId", "Description", "ClientToken",
        "PrivateIpAddresses.Primary", "PrivateIpAddresses.PrivateIpAddress",
    },
    "DeleteNetworkInterface": frozenset({"NetworkInterfaceId"}),
    "AttachNetworkInterface": frozenset({"NetworkInterfaceId", "InstanceId", "DeviceIndex"}),
    "DetachNetworkInterface": frozenset({"AttachmentId", "Force"}),
    "ModifyNetworkInterfaceAttribute": frozenset(
        {
            "NetworkInterfaceId", "Description.Value", "SecurityGroupId", "SourceDestCheck.Value",
            "Attachment.AttachmentId", "Attachment.DeleteOnTermination",
        }
    ),
    "AllocateAddress": _TAGS | {"Domain"},
    "ReleaseAddress": frozenset({"AllocationId"}),
    "AssociateAddress": frozenset({"AllocationId", "InstanceId", "NetworkInterfaceId", "AllowReassociation"}),
    "DisassociateAddress": frozenset({"AssociationId"}),
    "CreateVpc": _TAGS | {"CidrBlock"},
    "DeleteVpc": frozenset({"VpcId"}),
    "ModifyVpcAttribute": frozenset({"VpcId", "EnableDnsSupport.Value", "EnableDnsHostnames.Value"}),
    "CreateSubnet": _TAGS | {"VpcId", "CidrBlock", "AvailabilityZone", "AvailabilityZoneId"},
    "DeleteSubnet": frozenset({"SubnetId"}),
    "ModifySubnetAttribute": frozenset({"SubnetId", "MapPublicIpOnLaunch.Value"}),
    "CreateInternetGateway": _TAGS,
    "DeleteInternetGateway": frozenset({"InternetGatewayId"}),
    "AttachInternetGateway": frozenset({"InternetGatewayId", "VpcId"}),
    "DetachInternetGateway": frozenset({"InternetGatewayId", "VpcId"}),
    "CreateRouteTable": _TAGS | {"VpcId", "ClientToken"},
    "DeleteRouteTable": frozenset({"RouteTableId"}),
    "CreateRoute": frozenset({"RouteTableId", "DestinationCidrBlock", "GatewayId"}),
    "ReplaceRoute": frozenset({"RouteTableId", "DestinationCidrBlock", "GatewayId"}),
    "DeleteRoute": frozenset({"RouteTableId", "DestinationCidrBlock"}),
    "AssociateRouteTable": frozenset({"RouteTableId", "SubnetId"}),
    "DisassociateRouteTable": frozenset({"AssociationId"}),
    "ReplaceRouteTableAssociation": frozenset({"RouteTableId", "AssociationId"}),
    "CreateTags": frozenset({"ResourceId", "Tag.Key", "Tag.Value"}),
    "DeleteTags": frozenset({"ResourceId", "Tag.Key", "Tag.Value"}),
}  # fmt: skip

_TEMPLATE_NAMES = frozenset({"LaunchTemplateId", "LaunchTemplateName"})
#: What a launch template may say: what a launch may say, and localec2 does.
_TEMPLATE_DATA = frozenset(
    f"LaunchTemplateData.{name}"
    for name in ACTIONS["RunInstances"]
    - {"MinCount", "MaxCount", "ClientToken", "SubnetId", "PrivateIpAddress"}
    if not name.startswith("LaunchTemplate.")
)
#: What a spot request may say of its instances, in the names of a launch.
_SPECIFICATION = frozenset(
    f"LaunchSpecification.{name}"
    for name in _LAUNCH_EBS | {
        "ImageId", "InstanceType", "KeyName", "SecurityGroupId", "SecurityGroup", "SubnetId", "UserData",
        "EbsOptimized", "Placement.AvailabilityZone", "IamInstanceProfile.Name", "IamInstanceProfile.Arn",
        "Monitoring.Enabled",
    } | {name for name in ACTIONS["RunInstances"] if name.startswith("NetworkInterface.")}
)  # fmt: skip
ACTIONS |= {
    "RequestSpotInstances": _TAGS | _SPECIFICATION | {
        "SpotPrice", "ClientToken", "InstanceCount", "Type", "InstanceInterruptionBehavior",
    },
    "CreateLaunchTemplate": _TAGS | _TEMPLATE_DATA | {
        "LaunchTemplateName", "VersionDescription", "ClientToken"
    },
    "CreateLaunchTemplateVersion": _TEMPLATE_DATA | _TEMPLATE_NAMES | {
        "SourceVersion", "VersionDescription", "ClientToken"
    },
    "ModifyLaunchTemplate": _TEMPLATE_NAMES | {"SetDefaultVersion", "ClientToken"},
    "DeleteLaunchTemplate": _TEMPLATE_NAMES,
    "DeleteLaunchTemplateVersions": _TEMPLATE_NAMES | {"LaunchTemplateVersion"},
}  # fmt: skip

#: Accepted with exactly these values, because they ask for what happens anyway.
ONLY_VALUES: dict[tuple[str, str], frozenset[str]] = {
    ("RunInstances", "InstanceMarketOptions.MarketType"): frozenset({"spot"}),
    ("RunInstances", "InstanceMarketOptions.SpotOptions.SpotInstanceType"): frozenset(
        {"one-time", "persistent"}
    ),
    ("RunInstances", "InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"): frozenset(
        {"terminate", "stop", "hibernate"}
    ),
    ("RequestSpotInstances", "Type"): frozenset({"one-time", "persistent"}),
    # The other actions say by HibernationOptions that the guest is made for it.
    ("RequestSpotInstances", "InstanceInterruptionBehavior"): frozenset({"terminate", "stop"}),
    ("RunInstances", "InstanceInitiatedShutdownBehavior"): frozenset({"stop", "terminate"}),
    ("AllocateAddress", "Domain"): frozenset({"vpc"}),
    ("CreateKeyPair", "KeyFormat"): frozenset({"pem"}),
    ("ModifyImageAttribute", "Attribute"): frozenset({"description", "imdsSupport"}),
    # netd drops what has another source than its sender, always.
    ("ModifyInstanceAttribute", "SourceDestCheck.Value"): frozenset({"true"}),
    ("ModifyNetworkInterfaceAttribute", "SourceDestCheck.Value"): frozenset({"true"}),
    # netd's resolver answers in every VPC.
    ("ModifyVpcAttribute", "EnableDnsSupport.Value"): frozenset({"true"}),
    ("RegisterImage", "VirtualizationType"): frozenset({"hvm"}),
    ("RegisterImage", "SriovNetSupport"): frozenset({"simple"}),
    ("RegisterImage", "BootMode"): frozenset({"uefi", "uefi-preferred"}),
}

ONLY_VALUES |= {
    (action, f"LaunchTemplateData.{name}"): values
    for (launch, name), values in list(ONLY_VALUES.items())
    if launch == "RunInstances"
    for action in ("CreateLaunchTemplate", "CreateLaunchTemplateVersion")
}

#: Reading changes nothing, so moto answers: from our records where they have something to say.
READ_ONLY = re.compile(r"(Describe|Get|List|Search)[A-Z]\w*")

#: SSM: action -> whether it changes something. Parameters only; there is no agent to send commands to.
SSM_ACTIONS = {
    "GetParameter": False, "GetParameters": False, "GetParametersByPath": False, "DescribeParameters": False,
    "ListTagsForResource": False, "PutParameter": True, "DeleteParameter": True, "DeleteParameters": True,
    "AddTagsToResource": True, "RemoveTagsFromResource": True,
}  # fmt: skip


class IamAction(NamedTuple):
    """An action of IAM that is served."""

    mutating: bool
    parameters: frozenset[str]


def _reads(*parameters: str) -> IamAction:
    return IamAction(False, frozenset(parameters) | {"Marker", "MaxItems"})


def _changes(*parameters: str) -> IamAction:
    return IamAction(True, frozenset(parameters))


_IAM_TAGS = ("Tags.member.Key", "Tags.member.Value")

#: IAM: roles, their policies, and instance profiles.
IAM_ACTIONS: dict[str, IamAction] = {
    "CreateRole": _changes(
        "RoleName", "Path", "AssumeRolePolicyDocument", "Description", "MaxSessionDuration",
        "Tags.member.Key", "Tags.member.Value",
    ),
    "UpdateAssumeRolePolicy": _changes("RoleName", "PolicyDocument"),
    "DeleteRole": _changes("RoleName"),
    "GetRole": _reads("RoleName"), "ListRoles": _reads("PathPrefix"),
    "PutRolePolicy": _changes("RoleName", "PolicyName", "PolicyDocument"),
    "DeleteRolePolicy": _changes("RoleName", "PolicyName"),
    "GetRolePolicy": _reads("RoleName", "PolicyName"), "ListRolePolicies": _reads("RoleName"),
    "AttachRolePolicy": _changes("RoleName", "PolicyArn"),
    "DetachRolePolicy": _changes("RoleName", "PolicyArn"),
    "ListAttachedRolePolicies": _reads("RoleName", "PathPrefix"),
    "CreateInstanceProfile": _changes(
        "InstanceProfileName", "Path", "Tags.member.Key", "Tags.member.Value"
    ),
    "DeleteInstanceProfile": _changes("InstanceProfileName"),
    "GetInstanceProfile": _reads("InstanceProfileName"), "ListInstanceProfiles": _reads("PathPrefix"),
    "ListInstanceProfilesForRole": _reads("RoleName"),
    "UpdateRole": _changes("RoleName", "Description", "MaxSessionDuration"),
    "UpdateRoleDescription": _changes("RoleName", "Description"),
    "TagRole": _changes("RoleName", *_IAM_TAGS), "UntagRole": _changes("RoleName", "TagKeys.member"),
    "ListRoleTags": _reads("RoleName"),
    "TagInstanceProfile": _changes("InstanceProfileName", *_IAM_TAGS),
    "UntagInstanceProfile": _changes("InstanceProfileName", "TagKeys.member"),
    "CreatePolicy": _changes("PolicyName", "Path", "PolicyDocument", "Description", *_IAM_TAGS),
    "DeletePolicy": _changes("PolicyArn"), "GetPolicy": _reads("PolicyArn"),
    "ListPolicies": _reads("Scope", "OnlyAttached", "PathPrefix"),
    "ListEntitiesForPolicy": _reads("PolicyArn", "EntityFilter", "PathPrefix"),
    "CreatePolicyVersion": _changes("PolicyArn", "PolicyDocument", "SetAsDefault"),
    "DeletePolicyVersion": _changes("PolicyArn", "VersionId"),
    "SetDefaultPolicyVersion": _changes("PolicyArn", "VersionId"),
    "GetPolicyVersion": _reads("PolicyArn", "VersionId"), "ListPolicyVersions": _reads("PolicyArn"),
    "TagPolicy": _changes("PolicyArn", *_IAM_TAGS), "UntagPolicy": _changes("PolicyArn", "TagKeys.member"),
    "ListPolicyTags": _reads("PolicyArn"),
    "AddRoleToInstanceProfile": _changes("InstanceProfileName", "RoleName"),
    "RemoveRoleFromInstanceProfile": _changes("InstanceProfileName", "RoleName"),
    "CreateServiceLinkedRole": _changes("AWSServiceName", "Description", "CustomSuffix"),
}  # fmt: skip

#: STS: who am I. Other credentials than those of instances are not given out.
STS_ACTIONS = frozenset({"GetCallerIdentity"})


def query_refusal(service: str, action: str, parameters: Iterable[tuple[str, str]]) -> str | None:
    """Why a request to IAM or STS is not served, as a sentence; None when it is, or for another service."""
    actions = {"iam": IAM_ACTIONS.keys(), "sts": STS_ACTIONS}.get(service)
    if actions is None:
        return None
    if action not in actions:
        return f"localec2 does not support {service.upper()}'s {action}."
    if service == "iam":
        for name, _ in parameters:
            if without_numbers(name) not in IAM_ACTIONS[action].parameters | _PROTOCOL:
                return f"localec2 does not support the parameter {name} of IAM's {action}."
    return None


def refusal(action: str, parameters: Iterable[tuple[str, str]]) -> str | None:
    """Why a request is not served, as a sentence; None when it is."""
    if READ_ONLY.fullmatch(action):
        return None
    if action not in ACTIONS:
        return f"localec2 does not support {action}."
    for field in typed(action, parameters):
        if field.plain not in ACTIONS[action] | _PROTOCOL and not as_it_is(field):
            return f"localec2 does not support the parameter {field.name} of {action}{_of(field.value)}."
        allowed = ONLY_VALUES.get((action, field.plain))
        if allowed is not None and field.value not in allowed:
            return f"localec2 does not support the value {field.value!r} of {field.name} in {action}."
    return None


def _of(value: str) -> str:
    """A value in a refusal: what would have been accepted may be another one."""
    return f" with the value {value!r}" if len(value) <= 40 else ""
