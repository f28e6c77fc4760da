"""Packer with its amazon-ebs builder, unmodified: built twice, the second replacing the first; the AMI boots.

Packer's own releases are on no package registry. Debian packages the last one whose plugins are part of it,
and that package is unpacked here, not installed.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import clients

if TYPE_CHECKING:
    from support.contract_cloud import ContractCloud

pytest_plugins = ("support.contract_cloud",)

TEMPLATE = clients.CLIENTS / "packer" / "build.json"
#: The version, whatever Debian's revision of it is.
PACKAGE = "packer=1.6.6*"


def install(home: Path) -> None:
    clients.step(["apt-get", "download", PACKAGE], home)
    (package,) = home.glob("packer_*.deb")
    clients.step(["dpkg-deb", "--extract", package, home], home)
    package.unlink()


class Packer:
    """One person's Packer and template."""

    def __init__(self, program: Path, folder: Path, env: dict[str, str], variables: dict[str, str]) -> None:
        self.program, self.folder, self.env, self.variables = program, folder, env, variables
        shutil.copy(TEMPLATE, folder)

    def build(self, note: str) -> str:
        """Build the image; its id."""
        variables = [part for pair in self.variables.items() for part in ("-var", "=".join(pair))]
        command = [self.program, "build", "-color=false", *variables, "-var", f"note={note}", TEMPLATE.name]
        output = clients.output(command, self.folder, self.env, timeout_s=900)
        (image_id,) = re.findall(rf"^{self.variables['region']}: (ami-\w+)$", output, re.MULTILINE)
        return str(image_id)


@clients.takes_minutes
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_packer(contract: ContractCloud, tmp_path: Path) -> None:
    if not contract.is_local:
        pytest.skip("its endpoint is localec2's")
    if contract.cloud.ssh_port != 22:
        pytest.skip("ports below 1024 cannot be bound, and Packer opens the port that it connects to")
    clients.needed("apt-get", "dpkg-deb")
    home = clients.installed("packer", [TEMPLATE], install)
    env = clients.environment(contract, tmp_path, CHECKPOINT_DISABLE="1")
    name, ec2 = contract.name("packer"), contract.ec2
    variables = {
        "image": contract.image_id, "type": contract.instance_type, "user": contract.login_user,
        "endpoint": env["AWS_ENDPOINT_URL"], "region": env["AWS_REGION"], "name": name,
    }  # fmt: skip
    packer = Packer(home / "usr" / "bin" / "packer", tmp_path, env, variables)

    def others() -> Any:
        """What a build makes for itself, and removes."""
        groups = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["packer*"]}])
        pairs = ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": ["packer*"]}])
        builders = ec2.describe_instances(
            Filters=[
                {"Name": "tag:Name", "Values": [f"{name}-builder"]},
                {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
            ]
        )
        return groups["SecurityGroups"], pairs["KeyPairs"], builders["Reservations"]

    def images() -> dict[str, Any]:
        named = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [name]}])["Images"]
        return {image["ImageId"]: image for image in named}

    def snapshot_of(image: Any) -> str:
        return str(image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])

    first = packer.build("one")
    made = images()
    assert list(made) == [first]
    assert {tag["Key"]: tag["Value"] for tag in made[first]["Tags"]} == {
        "Name": name, "Note": "one", "Base": contract.image_id,
    }  # fmt: skip
    assert made[first]["Description"] == "Made by Packer, one"
    second = packer.build("two")
    assert second != first
    replaced = images()
    assert list(replaced) == [second]
    snapshots = {snapshot_of(made[first]), snapshot_of(replaced[second])}
    left = ec2.describe_snapshots(Filters=[{"Name": "snapshot-id", "Values": sorted(snapshots)}])["Snapshots"]
    assert [item["SnapshotId"] for item in left] == [snapshot_of(replaced[second])]
    assert {"Key": "Note", "Value": "two"} in left[0]["Tags"]
    assert others() == ([], [], [])
    instance_id = contract.launch(ImageId=second)
    guest = contract.login(instance_id)
    assert guest.run("cat /etc/made-by-packer") == "two"
    assert guest.run("cat /etc/build.json") == TEMPLATE.read_text().rstrip("\n")
    contract.log_out(instance_id)
    ec2.terminate_instances(InstanceIds=[instance_id])
    contract.wait(instance_id, "terminated")
    ec2.deregister_image(ImageId=second)
    ec2.delete_snapshot(SnapshotId=snapshot_of(replaced[second]))
