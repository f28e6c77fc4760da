"""Which machines are somebody's: what `local.down` asks about before it takes them along."""

from __future__ import annotations

from datetime import timedelta

from support.moto_cloud import LATER, NOW, launch

from instant_env.cloud import in_use
from instant_env.cloud.instances import describe
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, read_tags

pytest_plugins = ("support.moto_cloud",)


def test_leases_and_environments_are_somebodys_until_they_have_expired_or_ended(cloud: Cloud) -> None:
    lease, environment = launch(cloud, Role.LEASE), launch(cloud, Role.ENVIRONMENT)
    launch(cloud, Role.POOL)
    launch(cloud, Role.LEASE, expires_at=NOW - timedelta(hours=1))
    ended = launch(cloud, Role.LEASE)
    cloud.ec2.terminate_instances(InstanceIds=[ended])
    machines = in_use.machines_in_use(cloud, NOW)
    assert {machine.instance_id for machine in machines} == {lease, environment}
    assert all(f"until {LATER:%Y-%m-%dT%H:%M:%SZ}" in machine.why for machine in machines)


def test_who_ends_them_is_in_their_tags(cloud: Cloud) -> None:
    launch(cloud, Role.LEASE)
    machines = in_use.machines_in_use(cloud, NOW)
    in_use.say_ended_by_operator(cloud, machines)
    described = describe(cloud, machines[0].instance_id)
    assert described is not None
    assert read_tags(described.get("Tags"))[in_use.ENDED_BY] == in_use.OPERATOR
