"""Where machines go: a subnet, the zone it is in, and whether it gives them public addresses. All of it is
known before a launch, so that nothing of it is found out on the clock.

EC2 refuses a launch with a subnet and another zone than the subnet's (InvalidParameterValue; seen in
hashicorp/terraform-provider-aws#13999), so a request names a subnet, or a zone, or neither. A machine gets a
public address where the subnet's MapPublicIpOnLaunch says so (EC2 API Reference, RunInstances).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from instant_env.cloud.session import Cloud, cloud_error
from instant_env.errors import UsageError

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import FilterTypeDef, SubnetTypeDef

#: In an experiment: every zone that has the types and a subnet for them.
EACH = "each"


@dataclass(frozen=True)
class Place:
    """A subnet for machines. ``public``: it gives them public addresses. ``free``: addresses left in it."""

    subnet_id: str
    zone: str
    vpc_id: str
    public: bool
    free: int = 0
    default: bool = False


def check_subnet(cloud: Cloud, *, private: bool | None = None) -> None:
    """Refuse the configured subnet when machines in it could not be reached.

    ``private``: they are reached by their private addresses; None is as the settings say. Raises UsageError
    for a subnet without public addresses, and CloudError for one that is not there.
    """
    if cloud.settings.subnet:
        _reachable(cloud, [_configured(cloud)], private)


def candidates(cloud: Cloud, instance_types: Collection[str] = (), zone: str | None = None) -> list[Place]:
    """Subnets that machines of all these types can be in, the one with the most free addresses first.

    That is the configured subnet; where another zone is asked for, those of the same VPC in that zone. With
    none configured they are the default ones of the default VPC. Raises UsageError that says what there is,
    when nothing fits; CloudError when EC2 does not answer.
    """
    having = zones_with(cloud, instance_types)
    if cloud.settings.subnet:
        own = _configured(cloud)
        places = [own] if zone in (None, own.zone) else _others(cloud, own.vpc_id, str(zone))
    else:
        places = _default(cloud)
    there = _reachable(cloud, [one for one in places if zone in (None, one.zone)], None, zone)
    fitting = [one for one in there if having is None or one.zone in having]
    if not fitting:
        here = ", ".join(sorted({one.zone for one in there}))
        zones = ", ".join(sorted(having or ())) or "none"
        raise UsageError(
            f"{here} does not have {' and '.join(sorted(instance_types))}",
            hint=f"in {cloud.region} these zones have them: {zones}; name another subnet, zone or type",
        )
    return sorted(fitting, key=lambda one: (not one.default, -one.free, one.zone, one.subnet_id))


def choose(cloud: Cloud, instance_types: Collection[str] = (), zone: str | None = None) -> Place:
    """The best of the :func:`candidates`."""
    return candidates(cloud, instance_types, zone)[0]


def leaves_choice(cloud: Cloud) -> bool:
    """Whether a machine can be reached in whichever of the default subnets EC2 puts it."""
    return cloud.settings.ssh_private or all(one.public for one in _default(cloud))


def zones_for(cloud: Cloud, instance_types: Collection[str]) -> list[str]:
    """Zones in which all these types are offered and a machine can be reached: what ``zone: each`` means."""
    having = zones_with(cloud, instance_types) or set()
    if cloud.settings.subnet:
        subnets = _subnets(cloud, [{"Name": "vpc-id", "Values": [_configured(cloud).vpc_id]}])
    else:
        subnets = _default(cloud)
    private = cloud.settings.ssh_private
    zones = sorted({one.zone for one in subnets if one.zone in having and (private or one.public)})
    if not zones:
        raise UsageError(
            f"no zone of {cloud.region} has {' and '.join(sorted(instance_types))} and a subnet with public "
            "addresses",
            hint="name zones in place of `each`, or another subnet: subnet: in instant-env.yml",
        )
    return zones


def zones_with(cloud: Cloud, instance_types: Iterable[str]) -> set[str] | None:
    """Zones of the region in which all of the types are offered; None when no type is named.

    Names of zones mean different ones in older accounts, so only the account itself can say (EC2 User Guide,
    "Availability Zones").
    """
    zones: set[str] | None = None
    for kind in instance_types:
        filters: list[FilterTypeDef] = [{"Name": "instance-type", "Values": [kind]}]
        try:
            offerings = cloud.ec2.describe_instance_type_offerings(
                LocationType="availability-zone", Filters=filters
            )["InstanceTypeOfferings"]
        except ClientError as error:
            raise cloud_error(error, f"asking which zones have {kind}") from error
        having = {offering["Location"] for offering in offerings}
        zones = having if zones is None else zones & having
    return zones


def _configured(cloud: Cloud) -> Place:
    try:
        subnets = cloud.ec2.describe_subnets(SubnetIds=[str(cloud.settings.subnet)])["Subnets"]
    except ClientError as error:
        raise cloud_error(
            error, "looking at the subnet", hint="correct subnet: in instant-env.yml"
        ) from error
    return _place(subnets[0])


def _default(cloud: Cloud) -> list[Place]:
    places = _subnets(cloud, [{"Name": "default-for-az", "Values": ["true"]}])
    if not places:
        raise UsageError(
            f"{cloud.region} has no default VPC with subnets",
            hint="name a subnet: subnet: in instant-env.yml",
        )
    return places


def _others(cloud: Cloud, vpc_id: str, zone: str) -> list[Place]:
    places = _subnets(
        cloud,
        [{"Name": "vpc-id", "Values": [vpc_id]}, {"Name": "availability-zone", "Values": [zone]}],
    )
    if not places:
        raise UsageError(
            f"the configured subnet {cloud.settings.subnet} is not in {zone}, and its VPC {vpc_id} has none "
            "there",
            hint="leave the zone out, make a subnet there, or do not configure one",
        )
    return places


def _subnets(cloud: Cloud, filters: Sequence[FilterTypeDef]) -> list[Place]:
    try:
        answer = cloud.ec2.describe_subnets(Filters=filters)
    except ClientError as error:
        raise cloud_error(error, "looking for subnets") from error
    return [_place(subnet) for subnet in answer["Subnets"]]


def _place(subnet: SubnetTypeDef) -> Place:
    return Place(
        subnet_id=subnet["SubnetId"],
        zone=subnet["AvailabilityZone"],
        vpc_id=subnet["VpcId"],
        public=subnet.get("MapPublicIpOnLaunch", False),
        free=subnet.get("AvailableIpAddressCount", 0),
        default=subnet.get("DefaultForAz", False),
    )


def _reachable(
    cloud: Cloud, places: Sequence[Place], private: bool | None, zone: str | None = None
) -> list[Place]:
    """Those with public addresses; all of them where machines are reached by private ones."""
    if cloud.settings.ssh_private if private is None else private:
        reachable = list(places)
    else:
        reachable = [one for one in places if one.public]
    if reachable:
        return reachable
    if not places:
        raise UsageError(
            f"there is no subnet of ours in {zone}", hint=f"a zone of {cloud.region} is named wrongly?"
        )
    names = ", ".join(sorted(one.subnet_id for one in places))
    raise UsageError(
        f"machines in {names} get no public address (MapPublicIpOnLaunch is false)",
        hint="name another subnet, or reach them from within the VPC: --ssh-private",
    )
