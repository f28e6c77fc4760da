"""The service on booted machines: a key in, a login by its answer; killed and restarted; and without it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.patience import until
from support.service.booted import Served, bake_tiny, serving
from support.tiny_cloud import TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with a key pair, for what a person pastes."""
    directory = tmp_path / "a home"
    (directory / ".ssh").mkdir(parents=True, mode=0o700)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", directory / ".ssh" / "id_ed25519"], check=True
    )
    return directory


def log_in(home: Path, lease: dict[str, Any], command: str) -> str:
    """By ssh as a person would, with the host keys of the answer and nothing else."""
    known = home / "known_hosts"
    known.write_text(lease["known_hosts"] + "\n")
    done = subprocess.run(
        [
            "ssh", "-F", "none", "-i", home / ".ssh" / "id_ed25519", "-p", str(lease["port"]),
            "-o", f'UserKnownHostsFile="{known}"', "-o", "StrictHostKeyChecking=yes",
            "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60",
            f"{lease['user']}@{lease['address']}", command,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def paste(home: Path, served: Served) -> dict[str, Any]:
    """Run the curl line that `serve` has printed."""
    (line,) = re.findall(r"^  (curl .*)$", served.log(), re.MULTILINE)
    done = subprocess.run(
        ["sh", "-c", line], env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def public_key(home: Path) -> str:
    return (home / ".ssh" / "id_ed25519.pub").read_text().strip()


def state_of(cloud: TinyCloud, instance_id: str) -> str:
    (reservation,) = cloud.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    return str(reservation["Instances"][0]["State"]["Name"])


def test_a_key_in_and_a_login_by_the_answer(tiny_cloud: TinyCloud, home: Path) -> None:
    bake_tiny(tiny_cloud)
    with serving(tiny_cloud, home) as served:
        served.wait_for_pool(1)
        lease = paste(home, served)
        assert (lease["state"], lease["source"], lease["technique"]) == ("ready", "pool", "warm-running")
        assert lease["timing"]["t4_by"] == "pk_ok"
        assert lease["host_keys_known_by"] == "console"
        assert (
            log_in(home, lease, "cat /root/.ssh/authorized_keys").split()[:2] == public_key(home).split()[:2]
        )
        body = {"public_key": public_key(home), "technique": "custom-init", "ttl_seconds": 60}
        cold = served.take(body)
        assert (cold["state"], cold["source"]) == ("ready", "cold")
        assert log_in(home, cold, "echo in") == "in"
        print({one["technique"]: one["timing"] for one in (lease, cold)})
        # Its time is up a minute later, and not before.
        expires_at = datetime.fromisoformat(cold["expires_at"])
        while datetime.now(UTC) < expires_at:
            assert state_of(tiny_cloud, cold["instance_id"]) == "running"
            time.sleep(1)
        assert until(lambda: state_of(tiny_cloud, cold["instance_id"]) == "terminated", 60, 0.5)
        assert until(lambda: served.get(f"/v1/instances/{cold['id']}")["state"] == "ended", 30, 0.5)
        assert served.get(f"/v1/instances/{cold['id']}")["ended"]["reason"] == "ttl"
        served.wait_for_pool(1)  # what was claimed has been filled again
        assert served.stop() == 0
        assert f"lease {lease['id']}" in served.log()
        assert "machines of pools" in served.log()


def test_killed_right_after_the_hand_over_and_started_again(tiny_cloud: TinyCloud, home: Path) -> None:
    bake_tiny(tiny_cloud)
    with serving(tiny_cloud, home) as served:
        served.wait_for_pool(1)
        body = {"public_key": public_key(home), "ttl_seconds": 120}
        lease = served.take(body, **{"Idempotency-Key": "once"})
        served.kill()
        assert lease["state"] == "ready"
    with serving(tiny_cloud, home) as served:
        again = served.post("/v1/instances", body, headers={"Idempotency-Key": "once"})
        assert (again["id"], again["state"], again["timing"]) == (lease["id"], "ready", lease["timing"])
        assert log_in(home, again, "echo in") == "in"
        served.kill()
    # Nobody is there to end it: it ends by itself, at its tag's time.
    expires_at = datetime.fromisoformat(lease["expires_at"])
    gone = until(lambda: state_of(tiny_cloud, lease["instance_id"]) == "terminated", 240, 1)
    assert gone
    assert datetime.now(UTC) >= expires_at
