"""Cloud Custodian, unmodified: policies that find machines by a tag, each as a dry run and in earnest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import clients

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)


class Custodian:
    """One person's Custodian."""

    def __init__(self, program: Path, folder: Path, env: dict[str, str], name: str) -> None:
        self.program, self.folder, self.env = program, folder, env
        text = (clients.CLIENTS / "custodian" / "policies.yml").read_text().replace("NAME", name)
        (folder / "policies.yml").write_text(text)

    def run(self, policy: str, *options: str) -> list[Any]:
        """The resources that a policy selects; without ``--dryrun`` it acts on them."""
        command = [
            self.program, "run", *options, "--cache-period", "0", "--policies", policy,
            "--output-dir", "output", "policies.yml",
        ]  # fmt: skip
        shutil.rmtree(self.folder / "output", ignore_errors=True)
        clients.output(command, self.folder, self.env)
        (path,) = (self.folder / "output").rglob("resources.json")  # in a folder of the region with several
        resources: list[Any] = json.loads(path.read_text())
        return resources


@pytest.mark.slow
def test_custodian(contract: ContractCloud, tmp_path: Path) -> None:
    if not contract.is_local:
        pytest.skip("its policies would read a real account")
    home = clients.python_client("custodian")
    name, ec2 = contract.name("custodian"), contract.ec2
    env = clients.environment(contract, tmp_path)
    custodian = Custodian(home / "venv" / "bin" / "custodian", tmp_path, env, name)
    machines: Any = contract.run_instances(
        MinCount=2, MaxCount=2, TagSpecifications=contract.tags("instance", name=name)
    )
    ids = sorted(machine["InstanceId"] for machine in machines)
    for instance_id in ids:
        contract.wait(instance_id, "running")
    other = contract.launch()

    def selected(policy: str, *options: str) -> list[str]:
        return sorted(item["InstanceId"] for item in custodian.run(policy, *options))

    def tags(instance_id: str) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in contract.describe(instance_id)["Tags"]}

    def state(instance_id: str) -> str:
        return contract.describe(instance_id)["State"]["Name"]

    assert selected("mark", "--dryrun") == ids
    assert "c7n_status" not in tags(ids[0])
    # `all` are the regions that the account has.
    assert selected("mark", "--region", "all") == ids
    assert tags(ids[0])["c7n_status"].startswith("Resource does not meet policy: terminate@")
    assert tags(ids[0])["Owner"] == "platform: ünïcode"
    assert selected("mark", "--dryrun") == []
    assert selected("stop", "--dryrun") == ids
    assert state(ids[0]) == "running"
    assert selected("stop") == ids
    for instance_id in ids:
        contract.wait(instance_id, "stopped")
    assert selected("terminate", "--dryrun") == ids
    assert state(ids[0]) == "stopped"
    assert selected("terminate") == ids
    for instance_id in ids:
        contract.wait(instance_id, "terminated")
    assert state(other) == "running"
    assert "c7n_status" not in tags(other)
    # What is beside machines: a volume that nobody uses, and a group that is open to all.
    volume_id = ec2.create_volume(
        AvailabilityZone=contract.zone, Size=1, TagSpecifications=contract.tags("volume", name=name)
    )["VolumeId"]
    assert [item["VolumeId"] for item in custodian.run("volumes", "--dryrun")] == [volume_id]
    custodian.run("volumes")
    volumes = ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [volume_id]}])["Volumes"]
    assert volumes == []
    group_id = ec2.create_security_group(
        GroupName=name, Description="open to all",
        TagSpecifications=contract.tags("security-group", name=name),
    )["GroupId"]  # fmt: skip
    for cidr in ("0.0.0.0/0", "10.0.0.0/8"):
        ec2.authorize_security_group_ingress(
            GroupId=group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp=cidr
        )
    assert [item["GroupId"] for item in custodian.run("groups", "--dryrun")] == [group_id]
    custodian.run("groups")
    (group,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    assert [item["CidrIp"] for item in group["IpPermissions"][0]["IpRanges"]] == ["10.0.0.0/8"]
    contract.ec2.terminate_instances(InstanceIds=[other])
