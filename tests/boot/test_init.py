"""init/ as PID 1 of a real machine, under QEMU: four starts of one Debian disk, one test each, in order.

The disk is the debian-12 base with systemd, cloud-init and an initramfs in it, none of which runs: the kernel
is started directly and finds only instant-init. Each test takes up the disk as the one before left it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from init_disk import USER, Disk
from init_machine import Login, boot, login, metadata

pytestmark = [pytest.mark.boot, pytest.mark.timeout(600)]

TTL_S = 25
FIRST, SECOND = (asyncssh.generate_private_key("ssh-ed25519", comment=name) for name in ("first", "second"))


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Short, because the path of a Unix socket ends at 108 characters."""
    with tempfile.TemporaryDirectory(prefix="init-boot.", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def disk(directory: Path) -> Disk:
    return Disk(directory)


@pytest.fixture(scope="module")
def host_keys() -> list[str]:
    """What the machine showed at each start."""
    return []


def check_whole_timeline(session: Login) -> None:
    """After the first login; PID 1 hears of that from sshd's log."""
    session.run(
        "for i in $(seq 50); do grep -q first_login /run/instant-init/timeline.json && exit; sleep 0.1; done"
    )
    text = session.run("cat /run/instant-init/timeline.json")
    assert text == session.run("/usr/sbin/instant-init timeline")
    whole = json.loads(text)
    marks = {mark["name"]: mark["boottime_ms"] for mark in whole["marks"]}
    assert 0 < marks["kernel_handoff"] < marks["init_start"] < marks["sshd_listening"] < marks["first_login"]
    stages = {stage["name"]: stage for stage in whole["stages"]}
    assert {"mounts", "network", "host keys", "key"} <= set(stages)
    assert all(stage["start_ms"] <= stage["end_ms"] for stage in stages.values())
    reads = {read["mark"]: read for read in whole["root_reads"]}
    assert 0 < reads["sshd_listening"]["bytes"] <= reads["first_login"]["bytes"]
    # What the kernel's own file says a little later; most of a login's reads are before it.
    now = session.run("cat /sys/block/nvme0n1/stat").split()
    assert reads["first_login"]["bytes"] <= int(now[2]) * 512 < 10 * reads["first_login"]["bytes"]


def test_first_start(disk: Disk, directory: Path, host_keys: list[str]) -> None:
    with boot(disk, directory / "1", metadata(FIRST)) as machine, login(machine, FIRST) as session:
        marks = machine.timeline()
        names = [mark["name"] for mark in marks["marks"]]
        times = [mark["boottime_ms"] for mark in marks["marks"]]
        assert (marks["version"], marks["clock"], marks["pid1"]) == (2, "CLOCK_BOOTTIME", True)
        assert names[0] == "init_start"
        assert names[-1] == "sshd_listening"
        assert {"network_up", "imds_token", "key_received", "key_written", "host_keys"} < set(names)
        assert names.index("sshd_started") < names.index("key_written"), "it loads while the key comes"
        assert times == sorted(times)
        check_whole_timeline(session)
        host_keys.append(session.host_key)

        # A login as people expect it, without systemd: name, sudo, terminal, home, devices, limits.
        assert session.run("id -un; hostname") == f"{USER}\nip-172-31-5-10"
        assert session.run("sudo -n id -u") == "0"
        assert session.run("tty; test -t 0", terminal="xterm").startswith("/dev/pts/")
        assert session.run("stat -c '%U %a' ~ ~/.ssh ~/.ssh/authorized_keys").split("\n") == [
            f"{USER} 700", f"{USER} 700", f"{USER} 600",
        ]  # fmt: skip
        assert session.run("stat -c '%a' /tmp /dev/shm /etc/ssh/ssh_host_ed25519_key") == "1777\n1777\n600"
        assert session.run("cat <(echo fd) /dev/stdin </dev/null") == "fd"
        assert session.run("ulimit -Hn") == "524288"
        assert session.run("getent -s files hosts ip-172-31-5-10").startswith("127.0.1.1")
        assert session.run("cat /proc/1/comm; ps -e -o comm= | grep -c -e systemd -e cloud-init || true") == (
            "instant-init\n0"
        )
        mounts = session.run("cut -d' ' -f2,3 /proc/mounts").split("\n")
        assert {"/proc proc", "/sys sysfs", "/dev/pts devpts", "/run tmpfs", "/sys/fs/cgroup cgroup2"} < set(
            mounts
        )
        # The address stays when nobody renews the lease.
        assert "valid_lft forever" in session.run("ip -4 addr show dev eth0")
        assert "denied" in session.run("/usr/sbin/instant-init key-agent 2>&1 || true")

        # Orphans become children of PID 1, all at once.
        session.run("for i in $(seq 200); do (sleep 0.2 &); done")
        time.sleep(1)
        assert session.run("sleep 1; ps -e -o stat= | grep -c ^Z || true") == "0"

        # sshd comes back, and a login is possible again.
        session.run("sudo pkill -KILL -o -x sshd")
        machine.wait_for("sshd ended: signal: killed; starting it again")
        with login(machine, FIRST) as again:
            assert again.run("echo back") == "back"

        machine.press_power_button()
        assert machine.wait_for_end() < 15
        machine_log = machine.console.read_text()
    assert "powering off: the power button was pressed" in machine_log
    assert disk.check() == "clean"


def test_second_start_keeps_identity_and_ends_at_its_time(
    disk: Disk, directory: Path, host_keys: list[str]
) -> None:
    items = metadata(SECOND, user_data=f'{{"instant-env": {{"ttl_s": {TTL_S}}}}}')
    started = time.monotonic()
    with boot(disk, directory / "2", items) as machine:
        with login(machine, SECOND) as session:
            assert session.host_key == host_keys[0]
        # A key that the user has stays beside the one of this start.
        with login(machine, FIRST) as session:
            assert session.run("wc -l < ~/.ssh/authorized_keys") == "2"
        machine.wait_for(f"its time is up: user data says ttl_s {TTL_S}")
        machine.wait_for_end()
        # The guest counts from the start of its kernel, which is later than QEMU's.
        assert TTL_S <= time.monotonic() - started < TTL_S + 20
    assert disk.check() == "clean"


def test_start_without_metadata_service_and_sigterm(
    disk: Disk, directory: Path, host_keys: list[str]
) -> None:
    items = metadata(FIRST) | {"http_endpoint": "disabled"}
    with boot(disk, directory / "3", items) as machine:
        with login(machine, SECOND) as session:
            machine.wait_for("the SSH keys of an earlier start stay")
            assert session.host_key == host_keys[0]
            session.run("sudo kill -HUP 1; sudo kill -USR1 1; sleep 0.5; sudo kill -0 1")
            session.run("(sleep 0.5; sudo kill -TERM 1) >/dev/null 2>&1 &")
        machine.wait_for_end()
        assert "powering off: signal: terminated" in machine.console.read_text()
    assert disk.check() == "clean"


def test_a_machine_that_cannot_let_anybody_in_says_why_and_ends(disk: Disk, directory: Path) -> None:
    disk.configure("nobody-here")
    with boot(disk, directory / "4", metadata(FIRST)) as machine:
        line = machine.wait_for("fatal: ")
        assert 'no user "nobody-here" in /etc/passwd' in line
        machine.wait_for_end(30)
