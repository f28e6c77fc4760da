"""The NoCloud disk of guests whose cloud-init does not look for EC2."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from support.localec2_served import ZONE
from support.patience import until

from instant_env.arch import Arch
from instant_env.cloud.keys import KeyPair
from instant_env.errors import MissingToolError
from instant_env.localec2.instances import seed
from instant_env.localec2.qemu import command_line
from instant_env.localec2.volumes.images import StockRegistration

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)
pytestmark = pytest.mark.skipif(shutil.which("mcopy") is None, reason="needs mtools")


def register(served: Served, *, nocloud: bool = True) -> str:
    stock = StockRegistration(
        base="al2023", arch=Arch.X86_64, name="al2023-test", owner_id="137112412989",
        ssm_parameter="/aws/service/ami-amazon-linux-latest/test", root_device_name="/dev/xvda",
        disk=served.disk("al2023"), size_gib=2, boot_mode="uefi", nocloud=nocloud, digest="0123456789abcdef",
        created=datetime.now(UTC),
    )  # fmt: skip
    return served.services.images.register_stock(stock).id


def launched(served: Served, image_id: str, **more: str) -> str:
    answer = served.ec2.run_instances(
        ImageId=image_id, InstanceType="t3.micro", MinCount=1, MaxCount=1,
        Placement={"AvailabilityZone": ZONE}, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    instance_id = answer["Instances"][0]["InstanceId"]
    until(lambda: served.state.instances[instance_id].state == "running")
    return instance_id


def read(disk: Path, name: str) -> str:
    return subprocess.run(
        ["mtype", "-i", disk, f"::{name}"], check=True, capture_output=True, text=True
    ).stdout


def disk_of(served: Served, instance_id: str) -> Path:
    return served.state.layout.instance(instance_id) / "cidata.img"


def test_a_machine_finds_its_id_key_and_user_data_on_it(served: Served) -> None:
    key = KeyPair.generate().public_openssh
    served.ec2.import_key_pair(KeyName="mine", PublicKeyMaterial=key.encode())
    instance_id = launched(served, register(served), KeyName="mine", UserData="#cloud-config\nusers: []\n")
    disk = disk_of(served, instance_id)
    known = yaml.safe_load(read(disk, "meta-data"))
    assert known["instance-id"] == instance_id
    assert [line.split()[:2] for line in known["public-keys"]] == [key.split()[:2]]
    assert known["local-hostname"].startswith("ip-172-31-")
    assert read(disk, "user-data") == "#cloud-config\nusers: []\n"
    # What cloud-init's ds-identify asks for.
    probe = subprocess.run(
        ["blkid", "-p", "-o", "export", disk], check=True, capture_output=True, text=True,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
    ).stdout.splitlines()  # fmt: skip
    assert {"LABEL=CIDATA", "TYPE=vfat"} <= set(probe)


def test_it_is_made_anew_at_each_start(served: Served) -> None:
    instance_id = launched(served, register(served))
    assert read(disk_of(served, instance_id), "user-data") == "#cloud-config\n"
    served.ec2.stop_instances(InstanceIds=[instance_id])
    until(lambda: served.state.instances[instance_id].state == "stopped")
    served.ec2.modify_instance_attribute(InstanceId=instance_id, UserData={"Value": b"later"})
    served.ec2.start_instances(InstanceIds=[instance_id])
    until(lambda: served.state.instances[instance_id].state == "running")
    assert read(disk_of(served, instance_id), "user-data") == "later"
    served.ec2.terminate_instances(InstanceIds=[instance_id])
    until(lambda: served.state.instances[instance_id].state == "terminated")
    until(lambda: not disk_of(served, instance_id).exists())


def test_other_machines_have_none(served: Served) -> None:
    """Nor has a machine of an image that was made of such a one: it is no stock image any more."""
    assert not disk_of(served, launched(served, served.register())).exists()
    stock = launched(served, register(served))
    image_id = served.ec2.create_image(InstanceId=stock, Name="made of it", NoReboot=True)["ImageId"]
    until(lambda: served.state.images[image_id].state == "available")
    assert not disk_of(served, launched(served, image_id)).exists()


def test_an_image_that_an_older_server_registered_gets_it_too(served: Served) -> None:
    image_id = register(served, nocloud=False)
    assert register(served) == image_id
    assert disk_of(served, launched(served, image_id)).exists()


def test_the_machine_sees_a_disk_that_it_cannot_change(tmp_path: Path) -> None:
    platform = command_line.Platform(Arch.X86_64, "/usr/bin/qemu", Path("/fw/code.fd"), Path("/fw/vars.fd"))
    root = command_line.Disk("vol-00000000000000000", tmp_path / "root.qcow2")
    spec = command_line.MachineSpec(
        "i-0123456789abcdef0", "m7i.large", platform, "tcg", 2, 1024, (root,), (), tmp_path / "vars",
        tmp_path / "console", tmp_path / "qmp", seed=tmp_path / "cidata.img",
    )  # fmt: skip
    line = command_line.command(spec)
    objects = [json.loads(word) for word in line if word.startswith("{")]
    (drive,) = [item for item in objects if item.get("node-name") == "seed"]
    assert (drive["read-only"], drive["file"]["filename"]) == (True, str(tmp_path / "cidata.img"))
    devices = [item for item in objects if item.get("driver") == "nvme"]
    assert [item["serial"] for item in devices] == ["vol00000000000000000", "cidata"], "the root is the first"
    assert "bootindex" not in devices[1]


def test_a_tool_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    instance = served.state.instances[launched(served, served.register())]
    instance.user_data_base64 = base64.b64encode(b"x").decode()
    monkeypatch.setattr(seed, "_PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"mkfs\.vfat") as error:
        seed.write(tmp_path / "cidata.img", instance)
    assert "dosfstools" in error.value.hint
    assert list(tmp_path.glob("*cidata*")) == []
