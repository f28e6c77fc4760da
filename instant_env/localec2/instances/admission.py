"""What an account may launch: its plan, its quotas, its role for Spot, and what its zones have."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from instant_env.localec2.records.records import InstanceRecord
from instant_env.localec2.state.moto_api import INSTANCE_TYPES, EC2ClientError, zones_of_types
from instant_env.localec2.state.state import State, now

#: Types that an account on the free plan may launch (EC2 User Guide, "Track your Free Tier usage for Amazon
#: EC2", of accounts made after July 15, 2025).
FREE_TYPES = frozenset({"t3.micro", "t3.small", "t4g.micro", "t4g.small", "c7i-flex.large", "m7i-flex.large"})
#: What the quota "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances" counts.
STANDARD_FAMILIES = frozenset("acdhimrtz")
#: EC2 Developer Guide, "Eventual consistency": a machine that was just ended still counts. The strict
#: reading is a minute.
COUNTED_AFTER_END = timedelta(seconds=60)
#: The role without which there is no Spot (EC2 User Guide, "Service-linked role for Spot Instance requests").
SPOT_ROLE = "AWSServiceRoleForEC2Spot"


def check_account(state: State, instance_type: str, count: int, *, spot: bool) -> None:
    """Refuse a launch that the account may not make. Raises EC2ClientError."""
    switches = state.strictness.switches
    if spot and not switches.spot_role and SPOT_ROLE not in state.identities.roles:
        # runs-on/runs-on's issue 233 has the words.
        raise EC2ClientError(
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for EC2 Spot "
            "Instances.",
        )
    if switches.free_plan and instance_type not in FREE_TYPES:
        # RhinoSecurityLabs/cloudgoat's issue 375 has the words.
        raise EC2ClientError(
            "InvalidParameterCombination",
            "The specified instance type is not eligible for Free Tier. For a list of Free Tier instance "
            "types, run 'describe-instance-types' with the filter 'free-tier-eligible=true'.",
        )
    if switches.vcpu_quota and not spot and _is_standard(instance_type):
        used = sum(_vcpus(item.instance_type) for item in state.instances.values() if _counts(item))
        if used + count * _vcpus(instance_type) > switches.vcpu_quota:
            raise EC2ClientError(
                "VcpuLimitExceeded",
                "You have requested more vCPU capacity than your current vCPU limit of "
                f"{switches.vcpu_quota} allows for the instance bucket that the specified instance type "
                "belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request an "
                "adjustment to this limit.",
            )


def _counts(instance: InstanceRecord) -> bool:
    if instance.market == "spot" or not _is_standard(instance.instance_type):
        return False
    if instance.state == "terminated":
        return instance.terminated_at is not None and now() - instance.terminated_at < COUNTED_AFTER_END
    return instance.state != "stopped"


def _is_standard(instance_type: str) -> bool:
    return instance_type[0] in STANDARD_FAMILIES


def _vcpus(instance_type: str) -> int:
    return int(INSTANCE_TYPES[instance_type]["VCpuInfo"]["DefaultVCpus"])


@functools.cache
def zones_with(region: str, instance_type: str) -> frozenset[str]:
    """The zones of a region that have a type; empty when nothing is known of the region."""
    return frozenset(zones_of_types(region).get(instance_type, ()))


def check_offered(state: State, instance_type: str, zone: str) -> None:
    """Refuse a type that a zone does not have. Raises EC2ClientError."""
    zones = zones_with(state.region, instance_type)
    if state.strictness.switches.zones_checked and zones and zone not in zones:
        raise EC2ClientError(
            "Unsupported",
            f"Your requested instance type ({instance_type}) is not supported in your requested Availability "
            f"Zone ({zone}). Please retry your request by not specifying an Availability Zone or choosing "
            f"{', '.join(sorted(zones))}.",
        )


def check_zone(state: State, zone: str | None, subnet: Any) -> None:
    """Refuse a zone that is not the subnet's. Raises EC2ClientError."""
    own = subnet.availability_zone
    if state.strictness.switches.zones_checked and zone and zone != own:
        # hashicorp/terraform-provider-aws's issue 13999.
        raise EC2ClientError(
            "InvalidParameterValue",
            f"The availability zone '{zone}' does not match that of the subnet '{subnet.id}': '{own}'",
        )


def default_zone(state: State, instance_type: str, zones: Iterable[str]) -> str:
    """The zone of a launch that names none: the first that has the type."""
    offered = zones_with(state.region, instance_type)
    return min(zones, key=lambda zone: (bool(offered) and zone not in offered, zone))


def no_default_vpc() -> EC2ClientError:
    """The answer to what wants a default VPC in an account that has none (EC2's "Error codes")."""
    return EC2ClientError(
        "VPCIdNotSpecified",
        "No default VPC for this user. GroupName is only supported for EC2-Classic and default VPC.",
    )
