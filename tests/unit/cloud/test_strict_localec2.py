"""Our own code against a localec2 that is late with everything new: it waits, and leaves nothing behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from support.localec2_cloud import STRICT
from support.localec2_served import completed
from support.patience import until

from instant_env.cloud import instances
from instant_env.cloud.instances import LaunchRequest
from instant_env.cloud.interfaces import delete_of_run, make_public_interface
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, new_run_id
from instant_env.cloud.volumes import attached, temporary_volume
from instant_env.localec2.state.strictness import visibility
from instant_env.settings import CloudName, Settings

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

EXPIRES = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def cloud(served: Served, tmp_path: Path) -> Cloud:
    """Of a localec2 that has its image, and is late from now on."""
    served.register()
    with served.state.lock:
        visibility.change(served.state, STRICT.model_dump())
    server = served.state.server
    return Cloud(
        name=CloudName.LOCAL, settings=Settings(state_dir=tmp_path), ec2=served.ec2, ssm=served.ssm,
        instance_connect=served.client("ec2-instance-connect"), region="us-east-1", ssh_port=22,
        caller_ip_url="", accelerator="tcg", endpoint_url=served.server.url,
        session=boto3.Session(server.access_key_id, server.secret_access_key, region_name="us-east-1"),
    )  # fmt: skip


def request(served: Served, run_id: str, **more: Any) -> LaunchRequest:
    return LaunchRequest(
        image_id=served.register(), instance_type="t3.micro", run_id=run_id, role=Role.BENCH, name="strict",
        expires_at=EXPIRES, client_token=f"token-{run_id}", **more,
    )  # fmt: skip


def launched(cloud: Cloud, served: Served, run_id: str, **more: Any) -> str:
    return instances.launch_where_there_is_room(
        cloud, request(served, run_id, **more), ["t3.micro"], lambda _: None
    )


def settled(served: Served) -> None:
    """Nothing is young enough to be hidden again: what was found once may not be found a moment later."""
    strictness = served.state.strictness
    late_s = strictness.switches.late_ms / 1000
    until(lambda: all(strictness._made.age_s(name) >= late_s for name in strictness._made.names()))


def states(served: Served) -> set[str]:
    return {instance.state for instance in served.state.instances.values()}


def test_a_machine_is_launched_with_a_key_and_a_group_that_were_just_made(
    cloud: Cloud, served: Served
) -> None:
    run: Any = {"run_id": new_run_id(), "role": Role.BENCH, "expires_at": EXPIRES}
    with (
        imported_key_pair(cloud, KeyPair.generate(), **run) as key_name,
        temporary_security_group(cloud, cidr="127.0.0.1/32", **run) as group_id,
    ):
        instance_id = launched(cloud, served, run["run_id"], key_name=key_name, security_group_id=group_id)
        instances.wait_for_state(cloud, instance_id, {"running"}, timeout_s=60)
        assert served.state.instances[instance_id].security_group_ids == [group_id]
        instances.terminate(cloud, [instance_id], timeout_s=60)
    assert states(served) == {"terminated"}
    assert served.state.mirror.ec2.key_pairs == {}
    assert [group.name for group in served.state.groups()] == ["default"]


def test_a_machine_is_ended_right_after_its_launch(cloud: Cloud, served: Served) -> None:
    """NotFound is not believed: it would run on."""
    instance_id = launched(cloud, served, new_run_id())
    instances.terminate(cloud, [instance_id], timeout_s=60)
    assert states(served) == {"terminated"}


def test_a_run_is_ended_though_no_tag_leads_to_its_machine_yet(cloud: Cloud, served: Served) -> None:
    served.state.strictness.change({"late_tags_ms": 600_000})
    run_id = new_run_id()
    launched(cloud, served, run_id)
    assert instances.live_of_run(cloud, run_id) == []
    instances.end_run(cloud, run_id)
    assert states(served) == {"terminated"}


def test_a_volume_and_an_interface_that_were_just_made_are_used_and_deleted(
    cloud: Cloud, served: Served
) -> None:
    run: Any = {"run_id": new_run_id(), "role": Role.BENCH, "expires_at": EXPIRES}
    first = launched(cloud, served, run["run_id"])
    zone = instances.wait_for_state(cloud, first, {"running"}, timeout_s=60)["Placement"]["AvailabilityZone"]
    blank = served.ec2.create_volume(AvailabilityZone=zone, Size=1)["VolumeId"]
    settled(served)
    snapshot_id = served.ec2.create_snapshot(VolumeId=blank)["SnapshotId"]
    settled(served)
    completed(served, snapshot_id)
    with (
        temporary_volume(cloud, snapshot_id, zone, run_id=run["run_id"], expires_at=EXPIRES) as volume_id,
        attached(cloud, volume_id, first, "/dev/sdf"),
    ):
        assert served.state.volumes[volume_id].attachment is not None
    assert volume_id not in served.state.volumes
    with temporary_security_group(cloud, cidr="127.0.0.1/32", **run) as group_id:
        interface = make_public_interface(cloud, security_group_id=group_id, name="strict", **run)
        second = instances.launch(cloud, request(served, run["run_id"], interface_id=interface.interface_id))
        instances.wait_for_state(cloud, second, {"running"}, timeout_s=60)
        instances.terminate(cloud, [first, second], timeout_s=60)
        delete_of_run(cloud, run["run_id"])
    assert (served.state.interfaces, served.state.addresses) == ({}, {})
