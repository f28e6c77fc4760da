"""The service's security group: who may connect, and when it goes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from support.moto_cloud import LATER, launch

from instant_env.cloud import janitor, runs
from instant_env.cloud.janitor import Policy
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, new_run_id
from instant_env.errors import UsageError
from instant_env.service.server.group import check_cidrs, ensure_group

pytest_plugins = ("support.moto_cloud",)


def rules(cloud: Cloud, group_id: str) -> set[str]:
    (group,) = cloud.ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    found: list[Any] = group["IpPermissions"]
    return {rule["CidrIp"] for permission in found for rule in permission["IpRanges"]}


def test_it_is_made_once_and_its_rules_are_the_settings(cloud: Cloud) -> None:
    service_id = new_run_id()
    group_id = ensure_group(cloud, service_id, ["192.0.2.0/24", "198.51.100.7/32"])
    assert rules(cloud, group_id) == {"192.0.2.0/24", "198.51.100.7/32"}
    assert ensure_group(cloud, service_id, ["192.0.2.0/24"]) == group_id
    assert rules(cloud, group_id) == {"192.0.2.0/24"}
    assert ensure_group(cloud, new_run_id(), ["192.0.2.0/24"]) != group_id


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "10.0.0.0/8", "::/0", "192.0.2.7/24"])
def test_networks_of_strangers_and_what_is_none_are_refused(cidr: str) -> None:
    with pytest.raises(UsageError, match=cidr):
        check_cidrs([cidr], open_wide=False)


def test_a_wide_network_can_be_asked_for() -> None:
    check_cidrs(["0.0.0.0/0", "2001:db8::/32"], open_wide=True)


def test_a_dead_services_group_goes_with_clean_unless_a_lease_needs_it(cloud: Cloud) -> None:
    service_id = new_run_id()
    with runs.alive(cloud.settings, service_id):
        group_id = ensure_group(cloud, service_id, ["192.0.2.0/24"])
        assert group_id not in removable(cloud)
    assert group_id in removable(cloud)
    lease = launch(cloud, Role.LEASE, expires_at=LATER + timedelta(days=36500), run_id=service_id)
    cloud.ec2.modify_instance_attribute(InstanceId=lease, Groups=[group_id])
    assert group_id not in removable(cloud)


def removable(cloud: Cloud) -> set[str]:
    return {row.id for row in janitor.survey(cloud, Policy()).removals}
