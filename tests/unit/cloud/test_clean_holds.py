"""`clean` leaves machines that somebody uses, with what they need, and what is protected; and says so."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.moto_cloud import make_image

from instant_env.cloud import runs
from instant_env.cloud.janitor import Policy, survey
from instant_env.cloud.removal import Removal, remove
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import PROTECTED, Role, new_run_id, tag_list

pytest_plugins = ("support.moto_cloud",)

NOW = datetime.now(UTC) + timedelta(minutes=1)
PAST, FUTURE = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
ALL = Policy(keep=0, everything=True)
USED = (Role.LEASE, Role.ENVIRONMENT)


def quiet(_: str) -> None:
    pass


def of(kind: str, tags: list[Any]) -> list[Any]:
    return [{"ResourceType": kind, "Tags": tags}]


def machine_with_all(
    cloud: Cloud, role: Role, run_id: str, expires_at: datetime, needs: list[Any] | None = None
) -> tuple[str, dict[str, str]]:
    """A machine of a role, with a group, a key pair, an interface made ahead with its address, and a volume
    beside; the tags of those are ``needs``. Its id, and the kind of each other id."""
    ec2, own = cloud.ec2, tag_list(run_id, role, name="m", expires_at=expires_at)
    needs = needs or own
    name = new_run_id()
    group = ec2.create_security_group(
        GroupName=name, Description=name, TagSpecifications=of("security-group", needs)
    )["GroupId"]
    key = ec2.create_key_pair(KeyName=name, TagSpecifications=of("key-pair", needs))["KeyPairId"]
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    interface = ec2.create_network_interface(
        SubnetId=subnet, Groups=[group], TagSpecifications=of("network-interface", needs)
    )["NetworkInterface"]["NetworkInterfaceId"]
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=of("elastic-ip", needs))["AllocationId"]
    ec2.associate_address(AllocationId=address, NetworkInterfaceId=interface)
    machine = ec2.run_instances(
        ImageId="ami-12c6146b", MinCount=1, MaxCount=1, KeyName=name,
        NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": interface}],
        TagSpecifications=of("instance", own),
    )["Instances"][0]["InstanceId"]  # fmt: skip
    volume = ec2.create_volume(Size=1, AvailabilityZone="us-east-1a", TagSpecifications=of("volume", own))
    kinds = {group: "security-group", key: "key-pair", interface: "network-interface"}
    return machine, kinds | {address: "elastic-ip", volume["VolumeId"]: "volume"}


def ids(rows: Iterable[Removal]) -> set[str]:
    return {row.id for row in rows}


def present(cloud: Cloud) -> set[str]:
    """Ids of all that can be removed and is there; machines that have ended are not."""
    ec2 = cloud.ec2
    reservations = ec2.describe_instances()["Reservations"]
    machines = [i for r in reservations for i in r["Instances"] if i["State"]["Name"] != "terminated"]
    return {
        *(machine["InstanceId"] for machine in machines),
        *(volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]),
        *(snapshot["SnapshotId"] for snapshot in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]),
        *(group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]),
        *(key["KeyPairId"] for key in ec2.describe_key_pairs()["KeyPairs"]),
        *(one["NetworkInterfaceId"] for one in ec2.describe_network_interfaces()["NetworkInterfaces"]),
        *(address["AllocationId"] for address in ec2.describe_addresses()["Addresses"]),
        *(image["ImageId"] for image in ec2.describe_images(Owners=["self"])["Images"]),
    }


@pytest.mark.parametrize("role", USED)
@pytest.mark.parametrize("everything", [False, True])
def test_a_machine_in_use_stays_with_what_it_needs(cloud: Cloud, role: Role, everything: bool) -> None:
    """Even when the process that made it is over, as after a restart of what handed it out."""
    run_id = new_run_id()
    with runs.alive(cloud.settings, run_id):
        machine, needs = machine_with_all(cloud, role, run_id, FUTURE)
    found = survey(cloud, Policy(keep=0, everything=everything), NOW)
    assert ids(found.removals).isdisjoint({machine, *needs})
    until = FUTURE.strftime("%Y-%m-%dT%H:%M:%SZ")
    reasons = {row.id: row.reason for row in found.kept}
    assert reasons[machine] == f"{role} until {until}"
    assert {*needs} - {*reasons} == {i for i, kind in needs.items() if kind == "network-interface"}
    before = present(cloud)
    assert remove(cloud, found.removals, quiet).failures == []
    assert present(cloud) == before

    later = survey(cloud, Policy(keep=0, everything=everything), FUTURE + timedelta(minutes=1))
    assert {machine, *needs} <= ids(later.removals)
    assert later.kept == []


@pytest.mark.parametrize("role", USED)
def test_a_machine_in_use_without_an_end_stays(cloud: Cloud, role: Role) -> None:
    machine, needs = machine_with_all(cloud, role, "r", FUTURE)
    cloud.ec2.delete_tags(Resources=[machine], Tags=[{"Key": "instant-env:expires-at"}])
    found = survey(cloud, ALL, NOW + timedelta(days=1000))
    assert {row.id: row.reason for row in found.kept}[machine] == f"{role} that does not expire"
    assert ids(found.removals).isdisjoint({machine, *needs})


def test_what_a_lease_took_over_from_a_dead_run_is_not_pulled_from_under_it(cloud: Cloud) -> None:
    """A pool's run made the group, the key pair and the interface, with its own tags and its own end."""
    dead = new_run_id()
    with runs.alive(cloud.settings, dead):
        needs_tags = tag_list(dead, Role.POOL, name="p", expires_at=PAST)
        machine, needs = machine_with_all(cloud, Role.LEASE, "lease-1", FUTURE, needs=needs_tags)
        _, others = machine_with_all(cloud, Role.POOL, dead, PAST)
    found = survey(cloud, Policy(), NOW)
    assert ids(found.removals).isdisjoint({machine, *needs})
    assert {*others} <= ids(found.removals)
    kept = {row.id: row.reason for row in found.kept}
    address = next(resource_id for resource_id, kind in needs.items() if kind == "elastic-ip")
    assert kept[address].startswith("belongs to ")
    assert remove(cloud, found.removals, quiet).failures == []
    assert {machine, *needs} <= present(cloud)


def test_nothing_that_is_protected_goes_whatever_its_age(cloud: Cloud) -> None:
    machine, needs = machine_with_all(cloud, Role.BENCH, "r", PAST)
    image = make_image(cloud, "minimal")
    loose = [
        cloud.ec2.create_volume(
            Size=1, AvailabilityZone="us-east-1a",
            TagSpecifications=of("volume", tag_list("s", Role.BENCH, name="v", expires_at=PAST)),
        )["VolumeId"]
    ]  # fmt: skip
    loose.append(
        cloud.ec2.create_snapshot(
            VolumeId=loose[0],
            TagSpecifications=of("snapshot", tag_list("s", Role.BENCH, name="v", expires_at=PAST)),
        )["SnapshotId"]
    )
    mine = {machine, *needs, image, *loose}
    cloud.ec2.create_tags(Resources=[*mine], Tags=[{"Key": PROTECTED, "Value": "true"}])
    found = survey(cloud, ALL, NOW + timedelta(days=1000))
    assert ids(found.removals).isdisjoint(mine)
    said = {row.id: row.reason for row in found.kept}
    assert said[machine] == said[image] == f"protected by its tag {PROTECTED}"
    assert remove(cloud, found.removals, quiet).failures == []
    assert mine <= present(cloud)

    cloud.ec2.create_tags(Resources=[*mine], Tags=[{"Key": PROTECTED, "Value": "false"}])
    assert mine <= ids(survey(cloud, ALL, NOW + timedelta(days=1000)).removals)


def test_what_would_take_a_protected_part_along_stays(cloud: Cloud) -> None:
    machine, _ = machine_with_all(cloud, Role.BENCH, "r", PAST)
    image = make_image(cloud, "minimal")
    described = cloud.ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]
    volume = described["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    mapping = cloud.ec2.describe_images(ImageIds=[image])["Images"][0]["BlockDeviceMappings"][0]
    snapshot = mapping["Ebs"]["SnapshotId"]
    cloud.ec2.create_tags(Resources=[volume, snapshot], Tags=[{"Key": PROTECTED, "Value": "true"}])
    found = survey(cloud, ALL, NOW)
    said = {row.id: row.reason for row in found.kept}
    assert said[machine] == f"its end would delete {volume}: protected by its tag {PROTECTED}"
    assert said[image].startswith(f"its snapshot {snapshot} stays: protected")
    assert ids(found.removals).isdisjoint({machine, image, snapshot})


def test_a_lease_that_was_ended_early_goes_with_its_own_volume(cloud: Cloud) -> None:
    """The volume's tags are still those of the launch."""
    machine, _ = machine_with_all(cloud, Role.LEASE, "r", FUTURE)
    described = cloud.ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]
    volume = described["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    launch_tags: Any = tag_list("r", Role.LEASE, name="m", expires_at=FUTURE)
    cloud.ec2.create_tags(Resources=[volume], Tags=launch_tags)
    ended: Any = tag_list("r", Role.LEASE, name="m", expires_at=PAST)
    cloud.ec2.create_tags(Resources=[machine], Tags=ended)
    assert machine in ids(survey(cloud, ALL, NOW).removals)


@pytest.mark.parametrize("change", ["claimed", "renewed", "protected"])
def test_what_is_taken_into_use_while_somebody_reads_the_table_stays(cloud: Cloud, change: str) -> None:
    role = Role.POOL if change == "claimed" else Role.LEASE
    machine, _ = machine_with_all(cloud, role, "r", PAST)
    found = survey(cloud, Policy(kinds=frozenset({"instance"})), NOW)
    assert machine in ids(found.removals)
    at = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    changes = {
        "claimed": [("instant-env:role", "lease"), ("instant-env:expires-at", at)],
        "renewed": [("instant-env:expires-at", at)],
        "protected": [(PROTECTED, "true")],
    }
    tags: Any = [{"Key": key, "Value": value} for key, value in changes[change]]
    cloud.ec2.create_tags(Resources=[machine], Tags=tags)
    lines: list[str] = []
    assert remove(cloud, found.removals, lines.append).failures == []
    assert machine in present(cloud)
    assert any(line.startswith(f"left alone: instance {machine}: ") for line in lines)


def refuse(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, call: str, code: str, times: int) -> list[str]:
    """Let a call of EC2 fail so many times; what it was asked for."""
    real, asked = getattr(cloud.ec2, call), []

    def maybe(**arguments: Any) -> Any:
        asked.append(call)
        if len(asked) <= times:
            raise ClientError({"Error": {"Code": code, "Message": "as the test wants it"}}, call)
        return real(**arguments)

    monkeypatch.setattr(cloud.ec2, call, maybe)
    return asked


class Clock:
    """Stands still but for the sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def read(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_what_is_in_use_is_tried_again_until_it_goes(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    _, needs = machine_with_all(cloud, Role.BENCH, "r", PAST)
    removals = survey(cloud, Policy(), NOW).removals
    groups = refuse(cloud, monkeypatch, "delete_security_group", "DependencyViolation", 20)
    interfaces = refuse(cloud, monkeypatch, "delete_network_interface", "InvalidParameterValue", 5)
    clock = Clock()
    assert remove(cloud, removals, quiet, clock=clock.read, sleep=clock.sleep).failures == []
    assert present(cloud).isdisjoint(needs)
    assert (len(groups), len(interfaces)) == (21, 6)


def test_it_ends_when_nothing_moves_and_names_what_is_left(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, needs = machine_with_all(cloud, Role.BENCH, "r", PAST)
    removals = survey(cloud, Policy(), NOW).removals
    refuse(cloud, monkeypatch, "delete_security_group", "DependencyViolation", 10**6)
    refused = refuse(cloud, monkeypatch, "delete_volume", "UnauthorizedOperation", 10**6)
    clock = Clock()
    failures = remove(cloud, removals, quiet, clock=clock.read, sleep=clock.sleep).failures
    assert {row.kind for row, _ in failures} == {"security-group", "volume"}
    assert all("DependencyViolation" in why or "UnauthorizedOperation" in why for _, why in failures)
    assert 60 <= clock.now_s < 70
    assert len(refused) == 1, "not worth another try"
    assert {kind for i, kind in needs.items() if i in present(cloud)} == {"security-group", "volume"}
