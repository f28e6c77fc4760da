"""What a call finds: things that are new, or that the account is said not to have, are hidden from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.state import State

#: Prefix of an id -> the code and sentence of one that is not found (EC2's "Error codes").
_NOT_FOUND = {
    "i": ("InvalidInstanceID.NotFound", "The instance ID '{}' does not exist"),
    "vol": ("InvalidVolume.NotFound", "The volume '{}' does not exist."),
    "snap": ("InvalidSnapshot.NotFound", "The snapshot '{}' does not exist."),
    "ami": ("InvalidAMIID.NotFound", "The image id '[{}]' does not exist"),
    "eni": ("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '{}' does not exist"),
    "sg": ("InvalidGroup.NotFound", "The security group '{}' does not exist"),
    "key": ("InvalidKeyPair.NotFound", "The key pair '{}' does not exist"),
    "vpc": ("InvalidVpcID.NotFound", "The vpc ID '{}' does not exist"),
    "subnet": ("InvalidSubnetID.NotFound", "The subnet ID '{}' does not exist"),
    "igw": ("InvalidInternetGatewayID.NotFound", "The internetGateway ID '{}' does not exist"),
    "rtb": ("InvalidRouteTableID.NotFound", "The routeTable ID '{}' does not exist"),
}
#: Fields that name something by what is no id, without their numbers.
_KEY_NAMES = ("KeyName", "LaunchSpecification.KeyName")
_GROUP_NAMES = ("GroupName", "SecurityGroup", "LaunchSpecification.SecurityGroup")
_PROFILES = ("IamInstanceProfile.Name", "IamInstanceProfile.Arn")
#: Actions that make what they name, or do not mind whether it is there.
_BY_NAME_ANYWAY = ("CreateKeyPair", "ImportKeyPair", "DeleteKeyPair", "CreateSecurityGroup")
#: What is in a request and names nothing that is there.
_TEXTS = re.compile(
    r"(Filter|TagSpecification|Tag|LaunchTemplateData)[.].*|UserData|.*Description|ClientToken"
)
_TAG_FILTER = re.compile(r"Filter\.\d+\.Name")
#: Listing -> the member of its answer, and the id of an item that is no object of moto's. Instances are in
#: reservations, and DescribeInstances sees to them itself.
_LISTINGS = {
    "DescribeImages": ("Images", "ImageId"),
    "DescribeInstanceStatus": ("InstanceStatuses", "InstanceId"),
    "DescribeInternetGateways": ("InternetGateways", "InternetGatewayId"),
    "DescribeKeyPairs": ("KeyPairs", "KeyPairId"),
    "DescribeNetworkInterfaces": ("NetworkInterfaces", "NetworkInterfaceId"),
    "DescribeRouteTables": ("RouteTables", "RouteTableId"),
    "DescribeSecurityGroups": ("SecurityGroups", "GroupId"),
    "DescribeSnapshots": ("Snapshots", "SnapshotId"),
    "DescribeSubnets": ("Subnets", "SubnetId"),
    "DescribeTags": ("Tags", "ResourceId"),
    "DescribeVolumes": ("Volumes", "VolumeId"),
    "DescribeVpcs": ("Vpcs", "VpcId"),
}


def prepare(state: State) -> set[str]:
    """Show in moto what time has made visible; the ids that are hidden from one call (lock held).

    They are asked for once: what a call finds by its id, its listing has as well.
    """
    if state.strictness.switches.late_address_ms:
        state.mirror.show_public_addresses(state.instances, state.strictness.address_is_late)
    return hidden(state)


def change(state: State, switches: Mapping[str, object]) -> None:
    """Set some of the switches (lock held). Raises pydantic's ValidationError."""
    state.strictness.change(switches)
    state.mirror.show_public_addresses(state.instances, state.strictness.address_is_late)
    state.networks.show_public_subnets(public=state.strictness.switches.public_subnets)


def hidden(state: State) -> set[str]:
    """The ids of everything that no list shows (lock held)."""
    ids = state.strictness.hidden()
    if not state.strictness.switches.default_vpc:
        ids |= _default_network(state)
    return ids


def _default_network(state: State) -> set[str]:
    """What the default VPC comes with."""
    networks = state.networks
    records = (*networks.vpcs.values(), *networks.subnets.values(), *networks.gateways.values())
    ids = {record.id for record in (*records, *networks.tables.values()) if record.is_default}
    group = state.mirror.ec2.get_default_security_group(networks.default_vpc_id)
    return ids | {group.id}


def check_named(state: State, ids: Set[str], action: str, fields: Mapping[str, str]) -> None:
    """Refuse a call that names what is hidden (lock held). Raises EC2ClientError."""
    if not ids:
        return
    for name, value in fields.items():
        plain = ".".join(part for part in name.split(".") if not part.isdigit())
        if _TEXTS.fullmatch(plain):
            continue
        if value in ids:
            raise not_found(value)
        if action not in _BY_NAME_ANYWAY and _named(state, plain, value) in ids:
            if plain in _PROFILES:
                # What Packer repeats: hashicorp/packer's step_run_source_instance.go.
                raise EC2ClientError(
                    "InvalidParameterValue",
                    f"Value ({value}) for parameter {plain[0].lower()}{plain[1:]} is invalid. Invalid IAM "
                    "Instance Profile name",
                )
            code, sentence = _NOT_FOUND["key" if plain in _KEY_NAMES else "sg"]
            raise EC2ClientError(code, sentence.format(value))


def not_found(resource_id: str) -> EC2ClientError:
    """The answer to a call that names what it does not find."""
    code, sentence = _NOT_FOUND.get(resource_id.partition("-")[0], ("InvalidID", "The ID '{}' is not valid"))
    return EC2ClientError(code, sentence.format(resource_id))


def _named(state: State, plain: str, value: str) -> str:
    """The id of what a field names otherwise; "" when there is none."""
    ec2 = state.mirror.ec2
    if plain in _KEY_NAMES:
        return str(ec2.key_pairs[value].id) if value in ec2.key_pairs else ""
    if plain in _GROUP_NAMES:
        group = ec2.get_security_group_from_name(value, state.networks.default_vpc_id)
        return "" if group is None else str(group.id)
    if plain in _PROFILES:
        profiles = state.identities.profiles.values()
        return next((item.id for item in profiles if value in (item.name, item.arn)), "")
    return ""


def shown(
    state: State, ids: Set[str], action: str, answer: dict[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
    """A listing without what is hidden from it (lock held)."""
    if action not in _LISTINGS:
        return answer
    (member, key), is_hidden = _LISTINGS[action], hides(state, ids, fields)

    def name_of(item: Any) -> str:
        return str(item[key] if isinstance(item, dict) else item.id)

    return {**answer, member: [item for item in answer[member] if not is_hidden(name_of(item))]}


def hides(state: State, ids: Set[str], fields: Mapping[str, str]) -> Callable[[str], bool]:
    """Whether a listing with these fields leaves out what has this id (lock held)."""
    keys = list(_tag_keys(fields))
    late = state.strictness.tag_is_late
    return lambda name: name in ids or any(late(name, key) for key in keys)


def _tag_keys(fields: Mapping[str, str]) -> Iterable[str | None]:
    """The keys that a request's filters by tag name; None for a filter of any key."""
    for name, value in fields.items():
        if _TAG_FILTER.fullmatch(name):
            if value.startswith("tag:"):
                yield value.removeprefix("tag:")
            elif value in ("tag-key", "tag-value"):
                yield None
