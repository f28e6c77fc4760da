"""What needs our AMIs: it would break, or could not start again, if one of them were removed.

Everything in the account and region is looked at, ours or not: instances in any state, every version of every
launch template, launch configurations, the auto-scaling groups that use either, and SSM parameters. What
cannot be listed is an error, never "nothing". Not looked at: recipes of EC2 Image Builder, other accounts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.session import Cloud, error_code

#: API_GetParameters takes so many names.
_NAMES = 10
#: API_PutParameter: the third type is SecureString.
_PLAIN_TYPES = ["String", "StringList"]
_IMAGE_ID = re.compile(r"ami-[0-9a-f]{8,17}")

References = dict[str, list[str]]


def find(cloud: Cloud, image_ids: Collection[str], *, ending: Collection[str] = ()) -> References:
    """What refers to each of these AMIs, as sentences; nothing for one that is not needed.

    ``ending``: instances that are about to be terminated, and do not count. Raises botocore's ClientError.
    """
    if not image_ids:
        return {}
    referrers: defaultdict[str, list[str]] = defaultdict(list)
    for sources in (_instances(cloud, ending), _templates_and_groups(cloud), _parameters(cloud)):
        for image_id, who in sources:
            if image_id in image_ids:
                referrers[image_id].append(who)
    return dict(referrers)


def _pages(client: Any, operation: str, key: str, **arguments: Any) -> Iterator[Any]:
    for page in client.get_paginator(operation).paginate(**arguments):
        yield from page[key]


def _instances(cloud: Cloud, ending: Collection[str]) -> Iterator[tuple[str, str]]:
    for reservation in _pages(cloud.ec2, "describe_instances", "Reservations"):
        for instance in reservation["Instances"]:
            state, instance_id = instance["State"]["Name"], instance["InstanceId"]
            if state not in ("terminated", "shutting-down") and instance_id not in ending:
                yield instance["ImageId"], f"instance {instance_id} ({state}) was made from it"


def _templates_and_groups(cloud: Cloud) -> Iterator[tuple[str, str]]:
    configurations, groups = _auto_scaling(cloud)
    for template in _pages(cloud.ec2, "describe_launch_templates", "LaunchTemplates"):
        name, template_id = template["LaunchTemplateName"], template["LaunchTemplateId"]
        users = [group for group in groups if {name, template_id} & set(_templates_of(group))]
        versions = _pages(
            cloud.ec2, "describe_launch_template_versions", "LaunchTemplateVersions",
            LaunchTemplateId=template_id,
        )  # fmt: skip
        for version in versions:
            for image_id in _IMAGE_ID.findall(version["LaunchTemplateData"].get("ImageId", "")):
                used = _used_by(users)
                yield image_id, f"launch template {name}, version {version['VersionNumber']}{used}"
    for configuration in configurations:
        name = configuration["LaunchConfigurationName"]
        users = [group for group in groups if group.get("LaunchConfigurationName") == name]
        yield configuration["ImageId"], f"launch configuration {name}{_used_by(users)}"


def _used_by(groups: list[Any]) -> str:
    names = ", ".join(group["AutoScalingGroupName"] for group in groups)
    return f" (auto-scaling group {names})" if names else ""


def _auto_scaling(cloud: Cloud) -> tuple[list[Any], list[Any]]:
    """Launch configurations and auto-scaling groups; none where there is no such service (localec2)."""
    client = cloud.client("autoscaling")
    try:
        return (
            list(_pages(client, "describe_launch_configurations", "LaunchConfigurations")),
            list(_pages(client, "describe_auto_scaling_groups", "AutoScalingGroups")),
        )
    except ClientError as error:
        if error_code(error) == "UnsupportedOperation":
            return [], []
        raise


def _templates_of(group: Any) -> Iterator[str]:
    """Names and ids of the launch templates that a group uses, those of its overrides too."""
    mixed = group.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {})
    used = [group.get("LaunchTemplate"), mixed.get("LaunchTemplateSpecification")]
    used += [override.get("LaunchTemplateSpecification") for override in mixed.get("Overrides", [])]
    for specification in used:
        for key in ("LaunchTemplateId", "LaunchTemplateName"):
            if specification and key in specification:
                yield specification[key]


def _parameters(cloud: Cloud) -> Iterator[tuple[str, str]]:
    """Parameters that name AMIs, alone or within a text. Any may, so all plain ones are read.

    What is encrypted is not asked for at all: GetParameters would answer its ciphertext, which names nothing,
    and a read of each secret would stand in the account's CloudTrail.
    """
    plain = [{"Key": "Type", "Values": _PLAIN_TYPES}]
    named = [
        p["Name"] for p in _pages(cloud.ssm, "describe_parameters", "Parameters", ParameterFilters=plain)
    ]
    for some in _in_groups((name for name in named if not name.startswith("/aws/")), _NAMES):
        for parameter in cloud.ssm.get_parameters(Names=some)["Parameters"]:
            for image_id in dict.fromkeys(_IMAGE_ID.findall(parameter["Value"])):
                yield image_id, f"SSM parameter {parameter['Name']}"


def _in_groups(items: Iterable[str], most: int) -> Iterator[list[str]]:
    rest = iter(items)
    while group := list(islice(rest, most)):
        yield group
