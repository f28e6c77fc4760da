"""`invoke clean` beside machines in use: real machines, and the command as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from instant_env.cloud.interfaces import make_public_interface
from instant_env.cloud.session import connect
from instant_env.cloud.tags import Role, tag_specifications
from instant_env.settings import ROOT

if TYPE_CHECKING:
    from support.localec2_cloud import LocalCloud

pytest_plugins = ("support.localec2_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]


def clean(cloud: LocalCloud, *words: str) -> dict[str, Any]:
    environ = {**os.environ, "INSTANT_ENV_STATE_DIR": str(cloud.settings.state_dir)}
    result = subprocess.run(
        [str(Path(sys.executable).parent / "invoke"), "clean", "--yes", "--json", *words],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_a_lease_outlives_a_clean_of_all_and_a_killed_race_goes_at_once(local_cloud: LocalCloud) -> None:
    """The race had a machine with an interface made ahead; the lease came from the same run's pool."""
    ec2, later = local_cloud.ec2, datetime.now(UTC) + timedelta(hours=1)
    image_id = local_cloud.register_blank()

    def tags(*kinds: Any, role: Role) -> Any:
        return tag_specifications(*kinds, run_id="race", role=role, name=f"{role}", expires_at=later)

    groups, keys = {}, {}
    for role in (Role.LEASE, Role.BENCH):
        groups[role] = ec2.create_security_group(
            GroupName=role, Description=role, TagSpecifications=tags("security-group", role=role)
        )["GroupId"]
        keys[role] = ec2.create_key_pair(KeyName=role, TagSpecifications=tags("key-pair", role=role))
    interface = make_public_interface(
        connect(local_cloud.settings, print), security_group_id=groups[Role.BENCH], run_id="other",
        role=Role.POOL, name="eni", expires_at=later,
    )  # fmt: skip
    lease = local_cloud.launch(
        image_id, KeyName=Role.LEASE, SecurityGroupIds=[groups[Role.LEASE]],
        TagSpecifications=tags("instance", "volume", role=Role.LEASE),
    )  # fmt: skip
    raced = local_cloud.launch(
        image_id, TagSpecifications=tags("instance", "volume", role=Role.BENCH),
        NetworkInterfaces=[{"DeviceIndex": 0, "NetworkInterfaceId": interface.interface_id}],
    )  # fmt: skip
    for machine in (lease, raced):
        local_cloud.wait(machine, "running")

    answer = clean(local_cloud, "--all")
    assert answer["failures"] == []
    assert {raced, interface.interface_id, interface.allocation_id} <= {row["id"] for row in answer["found"]}
    kept = {row["id"]: row["reason"] for row in answer["kept"]}
    assert kept[lease] == f"lease until {later:%Y-%m-%dT%H:%M:%SZ}"
    assert {groups[Role.LEASE], keys[Role.LEASE]["KeyPairId"]} <= set(kept)
    assert local_cloud.describe(lease)["State"]["Name"] == "running"
    assert local_cloud.describe(raced)["State"]["Name"] == "terminated"
    assert ec2.describe_addresses()["Addresses"] == []

    past = datetime.now(UTC) - timedelta(seconds=1)
    ec2.create_tags(
        Resources=[lease, groups[Role.LEASE], keys[Role.LEASE]["KeyPairId"]],
        Tags=[{"Key": "instant-env:expires-at", "Value": f"{past:%Y-%m-%dT%H:%M:%SZ}"}],
    )
    answer = clean(local_cloud, "--all")
    assert (answer["failures"], answer["kept"]) == ([], [])
    assert local_cloud.describe(lease)["State"]["Name"] == "terminated"
    assert ec2.describe_key_pairs()["KeyPairs"] == []
