"""Pools are filled without a key pair, and their slots are found again in EC2's tags."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, fresh_key, register_image, states

from instant_env.cloud.handover import by_tag
from instant_env.cloud.instances import Market
from instant_env.cloud.session import Cloud
from instant_env.cloud.tags import Role, read_tags
from instant_env.launch import slots
from instant_env.launch.host_keys import with_host_keys
from instant_env.launch.launcher import Launcher
from instant_env.launch.techniques import FillError, LaunchSpec, PoolSlot, Prepared, find_technique
from instant_env.user_data import Mount, UserData

NOW = datetime.now(UTC)
SPEC = LaunchSpec(
    run_id="r", name="n", role=Role.POOL, instance_type="m7i.large", key_name="operators",
    security_group_id="", market=Market.ON_DEMAND, expires_at=NOW + timedelta(hours=1),
    user_data=UserData(ttl_s=3600), client_token="token", public_key=fresh_key().public_key, pool="p1",
)  # fmt: skip


@pytest.fixture
def faults() -> Ec2Faults:
    return Ec2Faults()


@pytest.fixture
def host() -> Iterator[SshHost]:
    with SshHost().serving() as ssh:
        yield ssh


@pytest.fixture
def cloud(tmp_path: Path, host: SshHost, faults: Ec2Faults) -> Iterator[Cloud]:
    faults.console = host.console
    with cloud_in_process(tmp_path, host.port, faults) as made:
        made.ec2.create_key_pair(KeyName="operators")
        yield made


def fill(cloud: Cloud, spec: LaunchSpec = SPEC, technique: str = "warm-running") -> PoolSlot:
    async def work() -> PoolSlot:
        async with Launcher(cloud, timeout_s=60.0) as launcher:
            prepared = Prepared(register_image(cloud, spec.client_token), "admin")
            return await launcher.fill(find_technique(technique), prepared, spec)

    return asyncio.run(work())


def ready(cloud: Cloud, pool: str = "p1", **tags: str) -> str:
    """A machine with the tags of a slot, which was not filled; ``tags`` override."""
    values = {
        "Project": "instant-env", "instant-env:role": "pool", "instant-env:pool": pool,
        slots.READY_AT: "2026-01-01T00:00:00Z", slots.READY_STATE: "running", slots.BOOT_ID: "b",
    } | {f"instant-env:{key.replace('_', '-')}": value for key, value in tags.items()}  # fmt: skip
    specification: Any = [
        {"ResourceType": "instance", "Tags": [{"Key": k, "Value": v} for k, v in values.items() if v]}
    ]
    launched = cloud.ec2.run_instances(
        ImageId=register_image(cloud), MinCount=1, MaxCount=1, TagSpecifications=specification
    )
    return launched["Instances"][0]["InstanceId"]


@pytest.mark.parametrize("technique", ["warm-running", "warm-stopped"])
def test_a_slot_found_again_is_the_one_that_was_filled(
    cloud: Cloud, faults: Ec2Faults, host: SshHost, technique: str
) -> None:
    slot = fill(cloud, technique=technique)
    assert slot.boot_id
    assert slots.adopt(cloud, "p2") == []
    (found,) = slots.adopt(cloud, "p1")
    assert asyncio.run(with_host_keys(cloud, found)) == slot
    assert slot.host_keys is not None
    assert slot.host_keys.fingerprints == (host.host_key.get_fingerprint(),)
    assert abs(found.filled_ns - slot.filled_ns) < 2e9, "the tag has seconds"
    assert "KeyName" not in faults.run_bodies[0]


def test_a_fill_for_nobody_to_find_has_no_more_tags_than_before(cloud: Cloud) -> None:
    slot = fill(cloud, dataclasses.replace(SPEC, pool=""))
    described = cloud.ec2.describe_instances(InstanceIds=[slot.instance_id])["Reservations"][0]
    keys = set(read_tags(described["Instances"][0]["Tags"]))
    assert keys == {"Project", "Name", *(f"instant-env:{name}" for name in ("run", "role", "expires-at"))}


def test_all_of_the_user_data_reaches_the_machine(cloud: Cloud, faults: Ec2Faults) -> None:
    data = UserData(ttl_s=3600, mounts=(Mount("/dev/sdf", "/data"),), services=("web",))
    fill(cloud, dataclasses.replace(SPEC, user_data=data, beside_user_data={"padding": "xx"}))
    sent = base64.b64decode(faults.run_bodies[0]["UserData"])
    assert json.loads(sent) == data.document() | {"padding": "xx"}


def test_what_is_no_ready_slot_is_left_out(cloud: Cloud) -> None:
    good = ready(cloud)
    stopped = ready(cloud, ready_state="stopped", ready_at="2026-01-01T00:01:00Z")
    cloud.ec2.stop_instances(InstanceIds=[stopped])
    tagged, handed_out = ready(cloud), ready(cloud)
    by_tag(cloud, tagged, fresh_key().public_key)
    slots.mark_handed_out(cloud, PoolSlot(handed_out), Role.LEASE, NOW + timedelta(hours=1))
    ready(cloud, ready_at="")  # its fill has not proven itself
    ready(cloud, ready_at="soon")
    ready(cloud, expires_at="2026-01-01T00:00:00Z")
    ready(cloud, role="bench")
    ready(cloud, ready_state="stopped")  # somebody has started it
    asleep, ended = ready(cloud), ready(cloud)
    cloud.ec2.stop_instances(InstanceIds=[asleep])
    cloud.ec2.terminate_instances(InstanceIds=[ended])
    found = slots.adopt(cloud, "p1")
    assert [slot.instance_id for slot in found] == [good, stopped]
    assert [slot.address for slot in found] == ["127.0.0.1", ""]


def test_a_large_pool_is_read_in_pages_and_the_oldest_comes_first(cloud: Cloud) -> None:
    ages = [7, 3, 11, 1, 9, 5, 2, 12, 4, 10, 6, 8]
    made = {age: ready(cloud, ready_at=f"2026-01-{age:02}T00:00:00Z") for age in ages}
    described: list[Any] = []
    events = cloud.ec2.meta.events
    events.register("before-parameter-build.ec2.DescribeInstances", lambda **_: described.append(1))
    found = slots.adopt(cloud, "p1", page_size=5)
    assert [slot.instance_id for slot in found] == [made[age] for age in sorted(made)]
    assert len(described) == 3


def test_a_machine_whose_console_has_another_host_key_is_ended(cloud: Cloud, faults: Ec2Faults) -> None:
    faults.console = SshHost().console
    with pytest.raises(FillError, match="none of the machine's"):
        fill(cloud)
    assert states(cloud) == ["terminated"]


def test_an_image_that_takes_no_keys_while_it_runs_cannot_fill_a_pool(cloud: Cloud, host: SshHost) -> None:
    host.public_key = fresh_key().public_openssh
    with pytest.raises(FillError, match="sshd refused a key of EC2 Instance Connect 3 times") as caught:
        fill(cloud)
    assert "minimal or custom-init" in caught.value.hint
    assert states(cloud) == ["terminated"]


def test_a_machine_that_cannot_be_tagged_as_ready_is_ended(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, "CreateTags")

    monkeypatch.setattr(cloud.ec2, "create_tags", refuse)
    with pytest.raises(FillError, match=r"cannot be tagged as ready: .*UnauthorizedOperation"):
        fill(cloud)
    assert states(cloud) == ["terminated"]
