"""The subnet that machines go to, and what is to be known of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from instant_env.arch import Arch
from instant_env.cloud.account.findings import Finding
from instant_env.cloud.instances import fits, usual_type
from instant_env.cloud.launching.places import check_subnet
from instant_env.cloud.session import Cloud, CloudError


def architectures(cloud: Cloud) -> list[Arch]:
    """Those that the configured instance type fits; all of them when none is configured."""
    kind = cloud.settings.instance_type
    return [arch for arch in Arch if kind is None or fits(kind, arch)]


def best_subnet(cloud: Cloud) -> Any:
    """The configured subnet; else, of the default VPC's, one in a zone that has the builders of every
    architecture, with a public address for machines and the most addresses free. Raises CloudError."""
    ec2 = cloud.ec2
    if cloud.settings.subnet:
        check_subnet(cloud)
        return ec2.describe_subnets(SubnetIds=[cloud.settings.subnet])["Subnets"][0]
    zones = zones_of_builders(cloud)
    fitting = [
        subnet
        for subnet in default_subnets(cloud)
        if subnet["AvailabilityZone"] in zones and subnet["MapPublicIpOnLaunch"]
    ]
    if not fitting:
        raise CloudError(
            f"no default subnet in {cloud.region} has our builders and public addresses",
            hint="name one: --subnet subnet-...",
        )
    return max(fitting, key=lambda subnet: (subnet["AvailableIpAddressCount"], subnet["SubnetId"]))


def default_subnets(cloud: Cloud) -> list[Any]:
    pages = cloud.ec2.get_paginator("describe_subnets").paginate(
        Filters=[{"Name": "default-for-az", "Values": ["true"]}]
    )
    return [subnet for page in pages for subnet in page["Subnets"]]


def zones_of_builders(cloud: Cloud) -> set[str]:
    """Zones that have the builders' types of every architecture in use."""
    zones: list[set[str]] = []
    for arch in architectures(cloud):
        offerings = cloud.ec2.describe_instance_type_offerings(
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": [usual_type(cloud, arch)]}],
        )["InstanceTypeOfferings"]
        zones.append({offering["Location"] for offering in offerings})
    return set.intersection(*zones)


def subnet_findings(cloud: Cloud) -> Iterator[Finding]:
    """The default VPC and the subnets that machines may go to, with what keeps each from being of use."""
    vpcs = cloud.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    configured = cloud.settings.subnet
    if vpcs:
        yield Finding("default VPC", vpcs[0]["VpcId"], "there")
    elif configured:
        yield Finding("default VPC", cloud.region, "ok", "there is none, and a subnet is configured")
    else:
        yield Finding(
            "default VPC", cloud.region, "trouble", "there is none: name a subnet in instant-env.yml"
        )
    if configured:
        subnets = cloud.ec2.describe_subnets(SubnetIds=[configured])["Subnets"]
    else:
        subnets = default_subnets(cloud)
    zones = zones_of_builders(cloud)
    for subnet in sorted(subnets, key=lambda one: str(one["AvailabilityZone"])):
        lacks = []
        if not subnet["MapPublicIpOnLaunch"]:
            lacks.append("gives no public addresses")
        if subnet["AvailabilityZone"] not in zones:
            lacks.append(
                "its zone lacks " + " or ".join(usual_type(cloud, one) for one in architectures(cloud))
            )
        if not subnet["AvailableIpAddressCount"]:
            lacks.append("has no address free")
        detail = "; ".join(lacks) or f"{subnet['AvailableIpAddressCount']} addresses free, public ones given"
        # Of default subnets one that is of use is enough.
        state = "ok" if not lacks else "trouble" if configured else "unfit"
        yield Finding("subnet", f"{subnet['SubnetId']} ({subnet['AvailabilityZone']})", state, detail)
