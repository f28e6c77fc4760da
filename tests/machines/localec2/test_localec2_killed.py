"""A server that is killed in the middle of its work, real processes and all: the next one tells the truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.patience import until

from instant_env.localec2 import starter
from instant_env.localec2.records.layout import Layout
from instant_env.settings import ROOT

if TYPE_CHECKING:
    from support.localec2_cloud import LocalCloud

pytest_plugins = ("support.localec2_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow]

#: Bytes in the volume of which an image is made: a copy that can be met while it is made.
COPIED_MIB = 1024
#: By how much a launch is late whose caller is killed meanwhile; `invoke clean` has run by then.
LATE_S = 25.0
EXPIRY = "2099-01-01T00:00:00Z"


def tags(kind: str, **more: str) -> list[dict[str, Any]]:
    values = {"Project": "instant-env", "instant-env:run": "killed"} | {
        f"instant-env:{key.replace('_', '-')}": value for key, value in more.items()
    }
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": text} for key, text in values.items()]}]


def layout_of(cloud: LocalCloud) -> Layout:
    return Layout(cloud.endpoint.state_dir)


def processes(cloud: LocalCloud) -> dict[int, str]:
    """Programs that work below the state directory, the server among them."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if int(path.parent.name) != os.getpid() and any(
            str(cloud.endpoint.state_dir) in word for word in words
        ):
            found[int(path.parent.name)] = " ".join(words)
    return found


def kill(cloud: LocalCloud) -> None:
    pid = cloud.endpoint.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in processes(cloud))


def assert_nothing_lies_around(cloud: LocalCloud) -> None:
    """One process, and no file that is not somebody's."""
    assert list(processes(cloud)) == [cloud.endpoint.pid]
    layout = layout_of(cloud)
    assert list(layout.state_dir.rglob("*.part")) == []
    assert [path for path in layout.state_dir.rglob(".*") if path.is_file()] == []
    assert list(layout.runtime.glob("*.qmp")) == []


def clean(cloud: LocalCloud, keep: int = 0) -> dict[str, Any]:
    environ = {**os.environ, "INSTANT_ENV_STATE_DIR": str(cloud.settings.state_dir)}
    result = subprocess.run(
        [str(Path(sys.executable).parent / "invoke"), "clean", "--yes", "--keep", str(keep), "--json"],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def left(cloud: LocalCloud) -> list[str]:
    """What of ours is there after a clean."""
    instances = [i for r in cloud.ec2.describe_instances()["Reservations"] for i in r["Instances"]]
    return [
        *(i["InstanceId"] for i in instances if i["State"]["Name"] != "terminated"),
        *(volume["VolumeId"] for volume in cloud.ec2.describe_volumes()["Volumes"]),
        *(image["ImageId"] for image in cloud.ec2.describe_images(Owners=["self"])["Images"]),
        *(item["SnapshotId"] for item in cloud.ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]),
        *(key["KeyName"] for key in cloud.ec2.describe_key_pairs()["KeyPairs"]),
    ]


def test_killed_in_the_middle_of_three_launches(local_cloud: LocalCloud) -> None:
    image_id = local_cloud.register_blank()
    for delay_s in (0.0, 0.05, 0.3):
        local_cloud.ec2.create_key_pair(KeyName="run", TagSpecifications=tags("key-pair", expires_at=EXPIRY))  # type: ignore[arg-type]
        for _ in range(3):
            local_cloud.launch(
                image_id, TagSpecifications=tags("instance", role="bench", expires_at=EXPIRY), KeyName="run"
            )
        time.sleep(delay_s)
        kill(local_cloud)
        local_cloud.up()
        status = starter.status(local_cloud.settings)
        assert status.endpoint == local_cloud.endpoint
        states = [item.state for item in status.instances if item.state != "terminated"]
        assert states == ["stopped"] * 3, "no machine runs, and none is said to"
        assert_nothing_lies_around(local_cloud)
        assert clean(local_cloud)["failures"] == []
        assert left(local_cloud) == []


def baked(cloud: LocalCloud) -> str:
    """An AMI that claims to be one of ours."""
    instance_id = cloud.launch(cloud.register_blank())
    cloud.wait(instance_id, "running")
    cloud.ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    cloud.wait(instance_id, "stopped")
    image_id = image(cloud, instance_id, "baked", plan_hash="0" * 64, login_user="admin", base="debian-12")
    until(lambda: state_of(cloud, image_id) == "available")
    cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    cloud.wait(instance_id, "terminated")
    return image_id


def test_a_run_killed_between_its_key_pair_and_its_launch(local_cloud: LocalCloud, tmp_path: Path) -> None:
    """What it left goes at once, hours before it expires; and what comes late, too."""
    ec2 = local_cloud.ec2
    ami = baked(local_cloud)
    starter.inject(local_cloud.endpoint, kind="delay", action="RunInstances", delay_ms=int(LATE_S * 1000))
    environ = {
        **os.environ, "INSTANT_ENV_STATE_DIR": str(local_cloud.settings.state_dir),
        "INSTANT_ENV_RESULTS_DIR": str(tmp_path / "results"),
    }  # fmt: skip
    bench = subprocess.Popen(
        [str(Path(sys.executable).parent / "invoke"), "bench", "--ami", ami, "--technique", "minimal-ami",
         "--iterations", "1"],
        cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(
            lambda: starter.faults(local_cloud.endpoint)[0]["struck"] > 0 or bench.poll() is not None,
            pause_s=0.002,
        )
        struck = time.monotonic()
        assert bench.poll() is None, bench.stderr.read() if bench.stderr else ""
        (pair,) = until(lambda: ec2.describe_key_pairs()["KeyPairs"])
        assert pair["KeyName"].startswith("instant-env-bench-")
        before = clean(local_cloud, keep=1)
        assert before["found"] == [], "it lives, though no machine of it does"
    finally:
        bench.kill()
        bench.communicate()
    found = clean(local_cloud, keep=1)
    assert [row["kind"] for row in found["found"]] == ["security-group", "key-pair"]
    assert {row["reason"] for row in found["found"]} == {"its run is over"}
    assert found["failures"] == []
    assert ec2.describe_key_pairs()["KeyPairs"] == []
    # Its call was on the way. It comes too late: key and group are gone, so nothing starts.
    time.sleep(max(0.0, struck + LATE_S + 1 - time.monotonic()))
    assert left(local_cloud)[0] == ami, "no machine, no volume"
    assert clean(local_cloud)["failures"] == []
    assert left(local_cloud) == []


def copying(cloud: LocalCloud) -> tuple[str, str, str]:
    """A stopped instance, an image of it that is finished, and one that is being copied."""
    instance_id = cloud.launch(
        cloud.register_blank(), TagSpecifications=tags("instance", role="bench", expires_at=EXPIRY)
    )
    cloud.wait(instance_id, "running")
    cloud.ec2.stop_instances(InstanceIds=[instance_id], Force=True)
    cloud.wait(instance_id, "stopped")
    layout = layout_of(cloud)
    (volume,) = layout.volumes.iterdir()
    finished = image(cloud, instance_id, "finished")
    until(lambda: state_of(cloud, finished) == "available")
    fill = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {COPIED_MIB}M", str(volume)]
    subprocess.run(fill, check=True, capture_output=True)
    copied = image(cloud, instance_id, "interrupted")
    until(
        lambda: any(part.stat().st_size > 1 << 20 for part in layout.snapshots.glob("*.part")), pause_s=0.002
    )
    return instance_id, finished, copied


def test_killed_in_the_middle_of_an_image(local_cloud: LocalCloud) -> None:
    """The image before it is whole, this one is failed, and the program that copied is gone."""
    instance_id, finished, interrupted = copying(local_cloud)
    layout = layout_of(local_cloud)
    kill(local_cloud)
    local_cloud.up()
    assert_nothing_lies_around(local_cloud)
    assert state_of(local_cloud, finished) == "available"
    assert state_of(local_cloud, interrupted) == "failed"
    (described,) = local_cloud.ec2.describe_images(ImageIds=[finished])["Images"]
    snapshot_id = described["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    subprocess.run(["qemu-img", "check", str(layout.snapshot(snapshot_id))], check=True, capture_output=True)
    again = local_cloud.launch(
        finished, TagSpecifications=tags("instance", role="bench", expires_at="2020-01-01T00:00:00Z")
    )
    local_cloud.wait(again, "running")
    local_cloud.ec2.terminate_instances(InstanceIds=[instance_id])
    local_cloud.wait(instance_id, "terminated")
    assert clean(local_cloud)["failures"] == []
    assert left(local_cloud) == []
    assert [path.stem for path in layout.snapshots.iterdir()] == [
        item["SnapshotId"] for item in local_cloud.ec2.describe_snapshots()["Snapshots"]
    ]


def test_taken_down_in_the_middle_of_an_image(local_cloud: LocalCloud) -> None:
    """It is finished or it failed; nobody copies on beside the next server."""
    _, finished, other = copying(local_cloud)
    assert starter.down(local_cloud.settings)
    assert processes(local_cloud) == {}
    local_cloud.up()
    assert_nothing_lies_around(local_cloud)
    assert state_of(local_cloud, finished) == "available"
    assert state_of(local_cloud, other) in ("available", "failed")


def image(cloud: LocalCloud, instance_id: str, name: str, **more: str) -> str:
    specification = tags("image", role="image", recipe="minimal", arch="x86_64", **more) + tags("snapshot")
    made = cloud.ec2.create_image(InstanceId=instance_id, Name=name, TagSpecifications=specification)  # type: ignore[arg-type]
    return str(made["ImageId"])


def state_of(cloud: LocalCloud, image_id: str) -> str:
    return str(cloud.ec2.describe_images(ImageIds=[image_id])["Images"][0]["State"])


def test_a_new_volume_copies_nothing(local_cloud: LocalCloud) -> None:
    """Copy on write: what an instance takes of the disk is what it writes."""
    image_id = local_cloud.register_blank(fill_mib=64)
    (snapshot,) = layout_of(local_cloud).snapshots.iterdir()
    assert snapshot.stat().st_blocks * 512 >= 64 << 20
    local_cloud.wait(local_cloud.launch(image_id), "running")
    (volume,) = layout_of(local_cloud).volumes.iterdir()
    assert volume.stat().st_blocks * 512 < 2 << 20


def test_unsigned_calls_are_refused_and_the_status_names_what_runs(local_cloud: LocalCloud) -> None:
    request = urllib.request.Request(  # noqa: S310 - loopback
        local_cloud.endpoint.url + "/", data=b"Action=DescribeInstances&Version=2016-11-15"
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=10)  # noqa: S310 - loopback
    assert error.value.code == 401
    assert b"MissingAuthenticationToken" in error.value.read()
    instance_id = local_cloud.launch(local_cloud.register_blank())
    local_cloud.wait(instance_id, "running")
    environ = {**os.environ, "INSTANT_ENV_STATE_DIR": str(local_cloud.settings.state_dir)}
    invoke = [str(Path(sys.executable).parent / "invoke"), "local.status", "--json"]
    result = subprocess.run(invoke, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    status = json.loads(result.stdout)
    assert status["endpoint"]["url"] == local_cloud.endpoint.url
    assert [(item["id"], item["state"]) for item in status["instances"]] == [(instance_id, "running")]
    assert "secret_access_key" not in status["endpoint"]
    assert "admin_token" not in status["endpoint"]
