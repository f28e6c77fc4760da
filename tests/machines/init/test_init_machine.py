"""A machine of instant-init, as who logs in finds it: two starts, the second one with services."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.init_guest import console, start, stop, wait_for_line, wait_until, write_file

from instant_env.localec2 import starter
from instant_env.user_data import UserData

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tiny_cloud import Guest, TinyCloud

pytest_plugins = ("support.tiny_cloud",)
pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(600)]

#: The project's figure, KiB; x86_64 took 8 MiB when this was written.
MOST_RESIDENT_KIB = 12 * 1024

ORPHANS = 10_000
ZOMBIES = "grep -l '^[0-9]* (.*) Z' /proc/[0-9]*/stat 2>/dev/null | wc -l"

#: Scripts of services. This one tells on the console when it was stopped, for the order.
POLITE = """#!/bin/sh
echo "$0 is up"
sleep 4711 &
trap "echo stopped $(basename $0) >/dev/console; exit 0" TERM
while :; do sleep 0.1; done
"""
STUBBORN = "#!/bin/sh\ntrap '' TERM HUP\nwhile :; do sleep 0.1; done\n"
#: Ends, and leaves a child that is not to outlive it.
FLAKY = "#!/bin/sh\nsleep 815 &\necho I give up\nexit 3\n"
CHATTY = "#!/bin/sh\nyes 'all work and no play' | head -n 40000\nexec sleep 99\n"

SERVICES = {
    "base": {"argv": ["/root/base"]},
    # Its name sorts before the one that it needs.
    "above": {"argv": ["/root/above"], "after": ["base"], "environment": {"WORD": "two words"}},
    "wanted": {"argv": ["/root/wanted"], "start": "named"},
    "unwanted": {"argv": ["/root/unwanted"], "start": "named"},
    "stubborn": {"argv": ["/root/stubborn"]},
    "flaky": {"argv": ["/root/flaky"]},
    "chatty": {"argv": ["/root/chatty"]},
}


@pytest.fixture(scope="module")
def instance_id(shared_tiny_cloud: TinyCloud) -> str:
    user_data = UserData(services=("wanted", "absent"))
    return shared_tiny_cloud.launch_tiny(UserData=user_data.as_json())


@pytest.fixture(scope="module")
def guest(shared_tiny_cloud: TinyCloud, instance_id: str) -> Iterator[Guest]:
    """The first login to the machine's first start, which all tests but the last one look at."""
    guest = shared_tiny_cloud.login(instance_id)
    yield guest
    guest.connection.close()


def processes(guest: Guest, words: str) -> int:
    return int(guest.run(f"ps -o args | grep -cFx '{words}'; true"))


def whole_timeline(guest: Guest) -> dict[str, Any]:
    """What the machine tells after the first login, of which process 1 hears from sshd's log."""
    wait_until(guest, "instant-init timeline | grep -q first_login")
    found: dict[str, Any] = json.loads(guest.run("instant-init timeline"))
    return found


def test_timeline_reads_and_memory(shared_tiny_cloud: TinyCloud, instance_id: str, guest: Guest) -> None:
    timeline = whole_timeline(guest)
    assert (timeline["version"], timeline["clock"], timeline["pid1"]) == (2, "CLOCK_BOOTTIME", True)
    assert json.loads(guest.run("cat /run/instant-init/timeline.json")) == timeline
    line = wait_for_line(shared_tiny_cloud, instance_id, r"instant-init: timeline (\{.*first_login.*\})")
    assert json.loads(line[1]) == timeline

    marks = {mark["name"]: mark["boottime_ms"] for mark in timeline["marks"]}
    assert 0 < marks["kernel_handoff"] < marks["sshd_started"] < marks["init_start"] < marks["mounted"]
    assert marks["network_up"] < marks["imds_token"] < marks["key_received"] < marks["key_written"]
    # It loads while all that is done, and lets nobody in before the key is there.
    assert marks["mounted"] < marks["key_written"] < marks["sshd_listening"] < marks["first_login"]
    stages = {stage["name"]: stage for stage in timeline["stages"]}
    assert {"mounts", "network", "host keys", "key"} <= set(stages)
    assert all(stage["start_ms"] <= stage["end_ms"] <= marks["first_login"] for stage in stages.values())

    reads = {read["mark"]: read for read in timeline["root_reads"]}
    requests, size = (
        int(text) for text in guest.run("awk '{print $1, $3 * 512}' /sys/block/nvme0n1/stat").split()
    )
    assert 0 < reads["sshd_listening"]["bytes"] <= reads["first_login"]["bytes"] <= size
    assert 0 < reads["sshd_listening"]["requests"] <= reads["first_login"]["requests"] <= requests
    # From outside the firmware's reads count as well: the EFI binary alone is larger than the init.
    all_requests, all_bytes = starter.root_reads(shared_tiny_cloud.endpoint, instance_id)
    assert all_requests > requests
    assert all_bytes > size + 5_000_000

    assert int(guest.run("awk '/^VmRSS/ {print $2}' /proc/1/status")) <= MOST_RESIDENT_KIB


def test_what_programs_expect_of_a_system(
    shared_tiny_cloud: TinyCloud, instance_id: str, guest: Guest
) -> None:
    described = shared_tiny_cloud.describe(instance_id)
    name = f"ip-{described['PrivateIpAddress'].replace('.', '-')}"
    assert guest.run("hostname") == name
    assert guest.run("uname -m") == shared_tiny_cloud.arch.machine
    assert name in guest.run("grep '^127.0.1.1 ' /etc/hosts").split(), "or sudo waits for DNS"
    assert guest.run("grep -v '^#' /etc/resolv.conf") == "search ec2.internal\nnameserver 172.31.0.2"
    assert guest.run("stat -c %a /root /root/.ssh /root/.ssh/authorized_keys").split() == [
        "700",
        "700",
        "600",
    ]
    assert guest.run("stat -c %a /tmp /dev/shm /etc/ssh/ssh_host_ed25519_key").split() == [
        "1777", "1777", "600",
    ]  # fmt: skip
    mounts = set(guest.run("cut -d' ' -f2,3 /proc/mounts").split("\n"))
    assert {"/proc proc", "/sys sysfs", "/dev/pts devpts", "/run tmpfs", "/sys/fs/cgroup cgroup2"} <= mounts
    assert guest.run("ulimit -Hn") == "524288"
    assert guest.run("echo in | cat /dev/stdin /dev/fd/0 2>/dev/stdout") == "in"

    # No file is left half-written, and both host keys are there.
    names = guest.run("ls -a /etc/ssh").split()
    assert {"ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "ssh_host_ecdsa_key"} <= set(names)
    assert not [name for name in names if name.startswith(".ssh_host")]


def test_by_hand_it_explains_itself(guest: Guest) -> None:
    for arguments in ("", "reboot"):
        said = guest.run(f"instant-init {arguments} 2>&1; echo $?").split("\n")
        assert said[0].startswith("instant-init is the first process of a machine"), said
        assert "key-agent" in said[1]
        assert said[-1] == "2"


def test_orphans(guest: Guest) -> None:
    """A hundred at once: whom a shell has not waited for is process 1's when the shell ends."""
    batch = "n=0; while [ $n -lt 100 ]; do : & n=$((n+1)); done"
    guest.run(f"for batch in $(seq {ORPHANS // 100}); do ({batch}); done", timeout_s=400)
    wait_until(guest, f"[ $({ZOMBIES}) = 0 ]")
    assert int(guest.run("sh -c 'echo $$'")) > ORPHANS


def test_sshd_is_reloaded_and_killed_five_times(
    shared_tiny_cloud: TinyCloud, instance_id: str, guest: Guest
) -> None:
    """This session outlives each of its servers, and a new one is let in."""
    guest.run("kill -HUP $(cat /run/sshd.pid)")
    wait_until(guest, "grep -q 'Received SIGHUP; restarting' /run/instant-init/log/sshd.log")
    assert shared_tiny_cloud.login(instance_id).run("echo back") == "back"
    for _ in range(5):
        listener = guest.run("cat /run/sshd.pid")
        assert guest.run(f"awk '{{print $2, $4}}' /proc/{listener}/stat") == "(sshd) 1"
        guest.run(f"kill -KILL {listener}")
        wait_until(guest, f"[ $(cat /run/sshd.pid) != {listener} ]")
    assert shared_tiny_cloud.login(instance_id).run("echo back") == "back"
    for pause in ("100ms", "200ms", "400ms", "800ms", "1.6s"):
        line = f"sshd ended: signal: killed; starting it again in {pause}"
        wait_for_line(shared_tiny_cloud, instance_id, line)


def test_what_dockerd_wants(guest: Guest) -> None:
    """A writable hierarchy with all controllers delegated, and process 1 not in its root."""
    wait_until(guest, "grep -q ' / / .*shared:' /proc/self/mountinfo")  # the last part, well after the login
    assert guest.run("cat /proc/1/cgroup") == "0::/instant-init"
    assert guest.run("cat /proc/self/cgroup") == "0::/services/sshd"
    delegated = set(guest.run("cat /sys/fs/cgroup/cgroup.subtree_control").split())
    assert delegated == set(guest.run("cat /sys/fs/cgroup/cgroup.controllers").split())
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= delegated
    assert "nsdelegate" in guest.run("grep cgroup2 /proc/mounts")
    guest.run("mkdir -p /sys/fs/cgroup/docker/container && test -e /sys/fs/cgroup/docker/memory.max")


def test_services(shared_tiny_cloud: TinyCloud, instance_id: str, guest: Guest) -> None:
    for name, declaration in SERVICES.items():
        write_file(guest, f"/etc/instant-init/services/{name}.json", json.dumps(declaration))
        script = {"stubborn": STUBBORN, "flaky": FLAKY, "chatty": CHATTY}.get(name, POLITE)
        write_file(guest, f"/root/{name}", script, "0755")
    write_file(guest, "/etc/instant-init/services/broken.json", "{")
    host_key = guest.run("cat /etc/ssh/ssh_host_ed25519_key.pub")
    stop(shared_tiny_cloud, instance_id)

    again = start(shared_tiny_cloud, instance_id)
    assert again.run("cat /etc/ssh/ssh_host_ed25519_key.pub") == host_key, "its identity is kept"
    for name in ("base", "above", "wanted"):
        wait_until(again, f"grep -q ' /root/{name} is up$' /run/instant-init/log/{name}.log")
    wait_for_line(shared_tiny_cloud, instance_id, r"services: /etc/instant-init/services/broken\.json: ")
    wait_for_line(shared_tiny_cloud, instance_id, r'services: user data: there is no service "absent"')
    assert console(shared_tiny_cloud, instance_id).count("broken.json") == 1
    assert processes(again, "{unwanted} /bin/sh /root/unwanted") == 0
    assert again.status("ls /run/instant-init/log/unwanted.log") != 0
    above = again.run("head -n 1 /sys/fs/cgroup/services/above/cgroup.procs")
    assert "WORD=two words" in again.run(f"tr '\\0' '\\n' </proc/{above}/environ")
    start_time = "awk '{print $22}' /proc/$(head -n 1 /sys/fs/cgroup/services/%s/cgroup.procs)/stat"
    assert int(again.run(start_time % "base")) <= int(again.run(start_time % "above"))

    # Started again and again, with what it left behind gone each time.
    ended = r"flaky ended: status 3; starting it again in 3\.2s; its last words: I give up"
    wait_for_line(shared_tiny_cloud, instance_id, ended)
    assert processes(again, "sleep 815") <= 1
    # A log has its limit.
    wait_until(again, "[ -f /run/instant-init/log/chatty.log.1 ]")
    assert int(again.run("cat /run/instant-init/log/chatty.log* | wc -c")) < 600_000
    assert "all work" not in console(shared_tiny_cloud, instance_id)

    # Down in reverse, and one that will not is killed.
    said = stop(shared_tiny_cloud, instance_id)
    assert "stubborn does not end: killing it" in said, said
    assert said.index("stopped above") < said.index("stopped base")
    assert "stopped wanted" in said


def test_another_sshd_is_started_in_its_place(shared_tiny_cloud: TinyCloud) -> None:
    """What is executed before the configuration is read makes way for what that names."""
    instance_id = shared_tiny_cloud.launch_tiny()
    guest = shared_tiny_cloud.login(instance_id)
    assert guest.run("readlink /proc/$(cat /run/sshd.pid)/exe") == "/usr/sbin/sshd"
    assert guest.status("dmesg | grep 'was not wanted'") != 0
    guest.run("cp -p /usr/sbin/sshd /root/sshd")
    write_file(guest, "/etc/instant-init.json", '{"login_user": "root", "sshd": "/root/sshd"}')
    stop(shared_tiny_cloud, instance_id)
    guest = start(shared_tiny_cloud, instance_id)
    assert guest.run("readlink /proc/$(cat /run/sshd.pid)/exe") == "/root/sshd"
    assert processes(guest, "/usr/sbin/sshd -D -e -o PidFile=/run/instant-init/sshd.gate") == 0
    guest.run("dmesg | grep '/usr/sbin/sshd was not wanted: signal: killed'")
    marks = {mark["name"]: mark["boottime_ms"] for mark in whole_timeline(guest)["marks"]}
    assert marks["sshd_started"] > marks["mounted"]
